//! Cheap to send, dear to answer: aliases, nesting, copies, expressions, patterns, selectors, compressed bodies, watches.

use super::*;

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

fn yaml_bomb() -> String {
    let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for level in 1..12 {
        let below = format!("*a{},", level - 1).repeat(10);
        bomb.push_str(&format!("a{level}: &a{level} [{below}]\n"));
    }
    bomb + "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: bomb}\ndata: *a11\n"
}

fn nested(open: &str, close: &str, levels: usize) -> String {
    format!(
        "{{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{{\"name\":\"deep\"}},\"data\":{}{}}}",
        open.repeat(levels),
        close.repeat(levels)
    )
}

/// So many MiB of spaces, packed; never in memory as a whole.
fn gzipped_spaces(mib: usize) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let block = vec![b' '; 1 << 20];
    for _ in 0..mib {
        encoder.write_all(&block).unwrap();
    }
    encoder.finish().unwrap()
}

/// A definition whose objects have a spec of this schema.
fn definition(plural: &str, spec: Value) -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": format!("{plural}.bomb.io")},
        "spec": {"group": "bomb.io", "scope": "Cluster", "names": {"plural": plural, "kind": plural},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object",
                "properties": {"spec": spec}}}}]}})
}

fn policy(name: &str, expression: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"failurePolicy": "Fail", "validations": [{"expression": expression}],
        "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]}}})
}

#[tokio::test]
async fn bodies_that_grow_are_refused() {
    let server = Server::with_namespace().await;
    let before = peak_bytes();
    let mut client = Client::new(&server, Some(&server.pki.issue_admin().unwrap())).await;
    let copies: Vec<Value> = (0..200)
        .map(|_| json!({"op": "copy", "from": "/data", "path": "/data/x"}))
        .collect();
    let many: Vec<Value> = (0..20_000)
        .map(|_| json!({"op": "test", "path": "/kind", "value": "ConfigMap"}))
        .collect();
    server
        .post(CONFIG_MAPS, &config_map("target"))
        .await
        .ok(201);
    let target = format!("{CONFIG_MAPS}/target?fieldManager=x");
    let mut large = config_map("large");
    large["data"]["k"] = "x".repeat(2 << 20).into();
    let mut wide = config_map("wide");
    wide["metadata"]["annotations"] = "x"
        .repeat(300_000)
        .chars()
        .map(|one| one.to_string())
        .collect::<Vec<_>>()
        .into();
    let (json, yaml) = ("application/json", "application/yaml");
    let proto = "application/vnd.kubernetes.protobuf";
    let cases: Vec<(&str, &str, &str, &str, Vec<u8>, u16)> = vec![
        (
            "aliases of aliases",
            "POST",
            CONFIG_MAPS,
            yaml,
            yaml_bomb().into(),
            400,
        ),
        (
            "the same as an apply",
            "PATCH",
            &target,
            "application/apply-patch+yaml",
            yaml_bomb().into(),
            400,
        ),
        (
            "lists in lists",
            "POST",
            CONFIG_MAPS,
            json,
            nested("[", "]", 500_000).into(),
            400,
        ),
        (
            "objects in objects",
            "POST",
            CONFIG_MAPS,
            json,
            nested("{\"a\":", "}", 300_000).into(),
            400,
        ),
        (
            "lists in lists, in YAML",
            "POST",
            CONFIG_MAPS,
            yaml,
            nested("[", "]", 100_000).into(),
            400,
        ),
        (
            "objects in objects in a merge patch",
            "PATCH",
            &target,
            "application/merge-patch+json",
            nested("{\"a\":", "}", 300_000).into(),
            400,
        ),
        (
            "objects in objects in a strategic patch",
            "PATCH",
            &target,
            "application/strategic-merge-patch+json",
            nested("{\"a\":", "}", 300_000).into(),
            400,
        ),
        (
            "objects in objects in an apply",
            "PATCH",
            &target,
            "application/apply-patch+yaml",
            nested("{\"a\":", "}", 100_000).into(),
            400,
        ),
        (
            "messages in messages",
            "POST",
            CONFIG_MAPS,
            proto,
            [b"k8s\0".to_vec(), [0x0a, 0xff, 0xff, 0x7f].repeat(200_000)].concat(),
            400,
        ),
        (
            "lengths that are not there",
            "POST",
            CONFIG_MAPS,
            proto,
            b"k8s\0\x12\xff\xff\xff\xff\x0f".to_vec(),
            400,
        ),
        (
            "copies of copies",
            "PATCH",
            &target,
            "application/json-patch+json",
            Value::from(copies).to_string().into(),
            422,
        ),
        (
            "operations without end",
            "PATCH",
            &target,
            "application/json-patch+json",
            Value::from(many).to_string().into(),
            413,
        ),
        (
            "an object of 2 MiB",
            "POST",
            CONFIG_MAPS,
            json,
            large.to_string().into(),
            422,
        ),
        (
            "a list where a map belongs",
            "POST",
            CONFIG_MAPS,
            json,
            wide.to_string().into(),
            400,
        ),
        (
            "four MiB",
            "POST",
            CONFIG_MAPS,
            json,
            vec![b' '; 4 << 20],
            413,
        ),
        (
            "thirty MiB",
            "POST",
            CONFIG_MAPS,
            json,
            vec![b' '; 30 << 20],
            413,
        ),
        (
            "a name without end",
            "POST",
            CONFIG_MAPS,
            json,
            config_map(&"x".repeat(1 << 20)).to_string().into(),
            422,
        ),
    ];
    for (case, method, path, content_type, body, code) in cases {
        let answer = client
            .ask_with(method, path, &[("content-type", content_type)], body)
            .await;
        assert_eq!(
            answer.code,
            code,
            "{case}: {}",
            &answer.text()[..answer.text().len().min(300)]
        );
        assert!(
            answer.body.len() < 8 << 20,
            "{case}: an answer of {}",
            answer.body.len()
        );
    }
    // Half a gigabyte of spaces in half a megabyte: bodies are not unpacked at all.
    let bomb = gzipped_spaces(512);
    let grown = peak_bytes();
    for coding in ["gzip", "deflate", "br"] {
        let headers = [("content-encoding", coding)];
        let answer = client
            .ask_with("POST", CONFIG_MAPS, &headers, bomb.clone())
            .await;
        assert!(
            matches!(answer.code, 400 | 415),
            "{coding}: {}",
            answer.text()
        );
    }
    assert!(peak_bytes() - grown < 64 << 20, "the bomb was unpacked");
    assert!(
        grown - before < GROWTH_BYTES_MAX,
        "{} bytes",
        grown - before
    );
    client
        .ask("POST", CONFIG_MAPS, config_map("after").to_string())
        .await
        .ok(201);
}

#[tokio::test]
async fn expressions_and_patterns_have_a_price() {
    let server = Server::with_namespace().await;
    let before = peak_bytes();
    let mut client = Client::new(&server, Some(&server.pki.issue_admin().unwrap())).await;
    let list = json!({"type": "array", "items": {"type": "string"}});
    let ruled = |rule: &str| {
        let mut spec = json!({"type": "object", "properties": {"l": list.clone()}});
        spec["x-kubernetes-validations"] = json!([{"rule": rule}]);
        spec
    };
    let deep = format!("{}true{}", "(".repeat(5000), ")".repeat(5000));
    let cases: Vec<(&str, Value, u16)> = vec![
        (
            "a loop in a loop in a loop",
            definition(
                "a",
                ruled("self.l.all(x, self.l.all(y, self.l.all(z, x != y && y != z)))"),
            ),
            422,
        ),
        (
            "a pattern of patterns",
            definition(
                "b",
                json!({"type": "string", "pattern": "(((a{1,100}){1,100}){1,100}){1,100}"}),
            ),
            422,
        ),
        (
            "parentheses without end",
            definition("c", ruled(&deep)),
            422,
        ),
        (
            "a name that nobody knows",
            definition("d", ruled("somebody.secret == ''")),
            422,
        ),
    ];
    for (case, body, code) in cases {
        let answer = client.ask("POST", CRDS, body.to_string()).await;
        assert_eq!(answer.code, code, "{case}: {}", answer.text());
    }
    let policies = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
    let ten = "[1,2,3,4,5,6,7,8,9,10]";
    let loops = format!(
        "{ten}.all(a, {ten}.all(b, {ten}.all(c, {ten}.all(d, {ten}.all(e, {ten}.all(f, {ten}.all(g, {ten}.all(h, a + b + c + d + e + f + g + h > 0))))))))"
    );
    let grown = "'x'".to_owned() + &".replace('x', 'xxxxxxxxxx')".repeat(12) + " == 'y'";
    let pattern = "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!'.matches('^(a+)+$') || '"
        .to_owned()
        + &"a".repeat(50_000)
        + "!'.matches('^(a|aa)+$')";
    let huge = "object.data.k.matches('(((a{1,100}){1,100}){1,100}){1,100}')".to_owned();
    for (at, (case, expression)) in [
        ("a hundred million steps", loops),
        ("a text that grows tenfold a dozen times", grown),
        ("patterns that go back and forth", pattern),
        ("a pattern that is a program", huge),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("p{at}");
        let answer = client
            .ask("POST", policies, policy(&name, &expression).to_string())
            .await;
        if answer.code == 201 {
            let binding = json!({"metadata": {"name": name}, "spec": {"policyName": name, "validationActions": ["Deny"]}});
            let bindings =
                "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings";
            client
                .ask("POST", bindings, binding.to_string())
                .await
                .ok(201);
            let refused = client
                .ask("POST", CONFIG_MAPS, config_map(&name).to_string())
                .await;
            assert!(
                matches!(refused.code, 403 | 422),
                "{case}: {}",
                refused.text()
            );
            client
                .ask("DELETE", &format!("{bindings}/{name}"), "")
                .await
                .ok(200);
        } else {
            assert_eq!(answer.code, 422, "{case}: {}", answer.text());
        }
    }
    client
        .ask("POST", CONFIG_MAPS, config_map("after").to_string())
        .await
        .ok(201);
    let grown = peak_bytes() - before;
    assert!(grown < GROWTH_BYTES_MAX, "{grown} bytes");
}

#[tokio::test]
async fn queries_are_bounded_too() {
    let server = Server::with_namespace().await;
    let mut client = Client::new(&server, Some(&server.pki.issue_admin().unwrap())).await;
    let terms = (0..8_000)
        .map(|at| format!("k{at}"))
        .collect::<Vec<_>>()
        .join(",");
    let cases: Vec<(&str, String, &[u16])> = vec![
        (
            "a selector of many terms",
            format!("{PODS}?labelSelector={terms}"),
            &[200, 400],
        ),
        (
            "a selector that is none",
            format!("{PODS}?labelSelector=a%3D%3D%3D%28%28%28"),
            &[400],
        ),
        (
            "a limit below nothing",
            format!("{PODS}?limit=-1"),
            &[200, 400, 422],
        ),
        (
            "a limit that no number holds",
            format!("{PODS}?limit=99999999999999999999999"),
            &[400, 422],
        ),
        (
            "a revision from the future",
            format!("{PODS}?resourceVersion=9223372036854775807"),
            &[504],
        ),
        (
            "a revision that is none",
            format!("{PODS}?resourceVersion=x"),
            &[400, 422],
        ),
        (
            "a continue token of one's own",
            format!(
                "{PODS}?limit=1&continue=eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6LTEsInN0YXJ0IjoiLi4vLi4vc2VjcmV0cyJ9"
            ),
            &[200, 400, 410],
        ),
        (
            "a path without end",
            format!("/api/v1/{}", "a/".repeat(20_000)),
            &[404],
        ),
    ];
    for (case, path, codes) in cases {
        let answer = client.ask("GET", &path, "").await;
        assert!(
            codes.contains(&answer.code),
            "{case}: {} {}",
            answer.code,
            answer.text()
        );
    }
}

/// One who opens watches without end and reads none of them costs the others nothing.
#[tokio::test]
async fn a_flood_of_watches_drowns_nobody() {
    let server = Server::with_namespace().await;
    grant(&server, "flood", json!([{"verbs": ["list", "watch", "get"], "apiGroups": [""], "resources": ["configmaps"]}])).await;
    let pair = server.pki.issue_client("flood", &[]).unwrap();
    let mut connections = Vec::new();
    let mut bodies = Vec::new();
    for _ in 0..4 {
        let stream = hyper_util::rt::TokioIo::new(
            super::super::sockets::secured(&server, Some(&pair)).await,
        );
        let executor = hyper_util::rt::TokioExecutor::new();
        let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, stream)
            .await
            .unwrap();
        tokio::spawn(connection);
        for _ in 0..200 {
            let request = Request::get(format!(
                "https://test{CONFIG_MAPS}?watch=true&resourceVersion=0"
            ));
            let response = sender
                .send_request(request.body(Full::<Bytes>::default()).unwrap())
                .await
                .unwrap();
            assert_eq!(response.status(), 200);
            bodies.push(response.into_body());
        }
        connections.push(sender);
    }
    let before = peak_bytes();
    let mut victim = Client::new(&server, Some(&server.pki.issue_admin().unwrap())).await;
    let mut object = config_map("busy");
    object["data"]["k"] = "x".repeat(20_000).into();
    victim
        .ask("POST", CONFIG_MAPS, object.to_string())
        .await
        .ok(201);
    let begun = Instant::now();
    for at in 0..300 {
        object["data"]["n"] = at.to_string().into();
        victim
            .ask("PUT", &format!("{CONFIG_MAPS}/busy"), object.to_string())
            .await
            .ok(200);
    }
    assert!(begun.elapsed() < Duration::from_secs(60));
    // Had every watch its own copy of every event, it would be 4.8 GB.
    let grown = peak_bytes() - before;
    assert!(grown < GROWTH_BYTES_MAX, "{grown} bytes");
    drop(bodies);
}
