//! Admission policies as clients meet them.

use serde_json::{Value, json};

use super::{Answer, CONFIG_MAPS, Server, config_map};

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/a/deployments";

fn policy(kind: &str, name: &str, spec: Value, resource: &str) -> Value {
    let (group, plural) = resource.split_once('/').unwrap();
    let mut object = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    object["spec"]["matchConstraints"] = json!({"resourceRules": [{"operations": ["CREATE", "UPDATE"], "apiGroups": [group],
        "apiVersions": ["*"], "resources": [plural]}]});
    object
}

async fn install(server: &Server, policy: &Value, binding: Value) {
    let kind = policy["kind"].as_str().unwrap();
    let plural = kind.to_lowercase().replace("policy", "policies");
    server
        .post(&format!("{GROUP}/{plural}"), policy)
        .await
        .ok(201);
    let name = &policy["metadata"]["name"];
    let mut bound = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": format!("{kind}Binding"), "metadata": {"name": name},
        "spec": binding});
    bound["spec"]["policyName"] = name.clone();
    let bindings = format!("{GROUP}/{}bindings", kind.to_lowercase());
    server.post(&bindings, &bound).await.ok(201);
}

fn deployment(name: &str, replicas: i64) -> Value {
    json!({"metadata": {"name": name}, "spec": {"replicas": replicas, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
}

async fn make(server: &Server, name: &str, data: Value) -> Answer {
    let mut object = config_map(name);
    object["data"] = data;
    server.post(CONFIG_MAPS, &object).await
}

#[tokio::test]
async fn policies_judge_an_apply_that_changes_nothing() {
    let server = Server::with_namespace().await;
    let mut applied = deployment("d", 1);
    applied["apiVersion"] = "apps/v1".into();
    applied["kind"] = "Deployment".into();
    let path = format!("{DEPLOYMENTS}/d?fieldManager=one");
    let created = server.apply(&path, &applied).await.ok(201);
    let again = server.apply(&path, &applied).await.ok(200);
    assert_eq!(again, created);
    let spec = json!({"validations": [{"expression": "object.metadata.managedFields.size() != 1", "message": "seen whole"}]});
    let made = policy("ValidatingAdmissionPolicy", "all", spec, "apps/deployments");
    install(&server, &made, json!({"validationActions": ["Deny"]})).await;
    let (code, _, message) = server.apply(&path, &applied).await.failure();
    assert!(
        code == 422 && message.ends_with("seen whole"),
        "{code} {message}"
    );
}

#[tokio::test]
async fn validating_policies_refuse_warn_and_explain() {
    let server = Server::with_namespace().await;
    let spec = json!({"variables": [{"name": "most", "expression": "request.userInfo.username == 'admin' ? 5 : 1"},
            {"name": "twice", "expression": "variables.most * 2"}],
        "validations": [
            {"expression": "object.spec.replicas <= variables.most", "messageExpression": "'no more than ' + string(variables.most)", "reason": "Forbidden"},
            {"expression": "object.spec.replicas <= variables.twice", "message": "not twice as many"},
            {"expression": "namespaceObject.metadata.name == 'a' && authorizer.requestResource.check('create').allowed()"}]});
    let made = policy("ValidatingAdmissionPolicy", "few", spec, "apps/deployments");
    install(&server, &made, json!({"validationActions": ["Deny"]})).await;
    server
        .post(DEPLOYMENTS, &deployment("good", 5))
        .await
        .ok(201);
    let (code, reason, message) = server
        .post(DEPLOYMENTS, &deployment("bad", 6))
        .await
        .failure();
    assert_eq!(
        (code, reason.as_str(), message.as_str()),
        (
            403,
            "Forbidden",
            "deployments.apps \"bad\" is forbidden: ValidatingAdmissionPolicy 'few' with binding 'few' denied request: no more than 5"
        )
    );
    let warn = json!({"spec": {"validationActions": ["Warn", "Audit"]}});
    let binding = format!("{GROUP}/validatingadmissionpolicybindings/few");
    server.merge(&binding, &warn).await.ok(200);
    let warned = server.post(DEPLOYMENTS, &deployment("many", 11)).await;
    assert_eq!(warned.code, 201);
    let warnings: Vec<_> = warned.headers.get_all("warning").iter().collect();
    assert_eq!(
        warnings,
        [
            "299 - \"Validation failed for ValidatingAdmissionPolicy 'few' with binding 'few': no more than 5\"",
            "299 - \"Validation failed for ValidatingAdmissionPolicy 'few' with binding 'few': not twice as many\"",
        ]
    );
}

#[tokio::test]
async fn policies_take_parameters_and_conditions() {
    let server = Server::with_namespace().await;
    make(&server, "limits", json!({"most": "3"})).await.ok(201);
    let spec = json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "matchConditions": [{"name": "not-exempt", "expression": "!('exempt' in object.metadata.?labels.orValue({}))"}],
        "validations": [{"expression": "object.spec.replicas <= int(params.data.most)"}]});
    let made = policy("ValidatingAdmissionPolicy", "few", spec, "apps/deployments");
    let reference = json!({"name": "limits", "namespace": "a", "parameterNotFoundAction": "Deny"});
    install(
        &server,
        &made,
        json!({"validationActions": ["Deny"], "paramRef": reference}),
    )
    .await;
    let (code, reason, message) = server
        .post(DEPLOYMENTS, &deployment("bad", 4))
        .await
        .failure();
    assert_eq!(
        (code, reason.as_str(), message.as_str()),
        (
            422,
            "Invalid",
            "deployments.apps \"bad\" is forbidden: ValidatingAdmissionPolicy 'few' with binding 'few' denied request: \
          failed expression: object.spec.replicas <= int(params.data.most)"
        )
    );
    let mut exempt = deployment("exempt", 9);
    exempt["metadata"]["labels"] = json!({"exempt": ""});
    server.post(DEPLOYMENTS, &exempt).await.ok(201);
    server
        .delete(&format!("{CONFIG_MAPS}/limits"))
        .await
        .ok(200);
    let (_, _, message) = server
        .post(DEPLOYMENTS, &deployment("x", 1))
        .await
        .failure();
    assert!(
        message.ends_with("denied request: failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction"),
        "{message}"
    );
}

#[tokio::test]
async fn expressions_that_fail_or_never_end_are_refusals_unless_ignored() {
    let server = Server::with_namespace().await;
    let bomb = "object.data.k.size() > 0 && [1,2,3,4,5,6,7,8,9,10].all(a, [1,2,3,4,5,6,7,8,9,10].all(b, [1,2,3,4,5,6,7,8,9,10].all(c, \
        [1,2,3,4,5,6,7,8,9,10].all(d, [1,2,3,4,5,6,7,8,9,10].all(e, [1,2,3,4,5,6,7,8,9,10].all(f, a+b+c+d+e+f > 0))))))";
    for (name, expression, why) in [
        (
            "missing",
            "object.data.absent == 'x'",
            "expression 'object.data.absent == 'x'' resulted in error: no such key: absent",
        ),
        (
            "bomb",
            bomb,
            "validation failed due to running out of cost budget, no further validation rules will be run",
        ),
    ] {
        let spec = json!({"validations": [{"expression": expression}]});
        let made = policy("ValidatingAdmissionPolicy", name, spec, "/configmaps");
        install(&server, &made, json!({"validationActions": ["Deny"]})).await;
        let (_, _, message) = make(&server, "m", json!({"k": "v"})).await.failure();
        assert!(
            message.ends_with(&format!("denied request: {why}")),
            "{message}"
        );
        let ignore = json!({"spec": {"failurePolicy": "Ignore"}});
        let path = format!("{GROUP}/validatingadmissionpolicies/{name}");
        server.merge(&path, &ignore).await.ok(200);
        make(&server, &format!("passes-{name}"), json!({"k": "v"}))
            .await
            .ok(201);
    }
}

#[tokio::test]
async fn policies_that_do_not_compile_are_refused_with_the_place() {
    let server = Server::with_namespace().await;
    let spec = json!({"matchConditions": [{"name": "c", "expression": "1 + 1"}],
        "variables": [{"name": "v", "expression": "request.nothing"}],
        "validations": [{"expression": "object.x ==", "messageExpression": "1"}, {"expression": "variables.absent"}],
        "auditAnnotations": [{"key": "k", "valueExpression": "7"}]});
    let made = policy("ValidatingAdmissionPolicy", "bad", spec, "apps/deployments");
    let answer = server
        .post(&format!("{GROUP}/validatingadmissionpolicies"), &made)
        .await;
    let status = answer.json();
    let causes = status["details"]["causes"].as_array().unwrap();
    let found: Vec<(&str, bool)> = causes
        .iter()
        .map(|cause| {
            let message = cause["message"].as_str().unwrap();
            (
                cause["field"].as_str().unwrap(),
                message.contains("compilation failed: ERROR: <input>:"),
            )
        })
        .collect();
    assert_eq!(
        found,
        [
            ("spec.matchConditions[0].expression", false),
            ("spec.variables[0].expression", true),
            ("spec.validations[0].expression", true),
            ("spec.validations[0].messageExpression", false),
            ("spec.validations[1].expression", true),
            ("spec.auditAnnotations[0].valueExpression", false),
        ],
        "{status}"
    );
}

#[tokio::test]
async fn mutating_policies_apply_configurations_and_patches() {
    let server = Server::with_namespace().await;
    let spec = json!({"reinvocationPolicy": "Never", "failurePolicy": "Fail", "mutations": [
        {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression":
            "Object{metadata: Object.metadata{labels: {'by': request.userInfo.username}}, spec: Object.spec{template: Object.spec.template{\
             spec: Object.spec.template.spec{containers: [Object.spec.template.spec.containers{name: 'c', imagePullPolicy: 'Always'}]}}}}"}},
        {"patchType": "JSONPatch", "jsonPatch": {"expression":
            "[JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('a/b'), value: 'c'}, \
             JSONPatch{op: 'replace', path: '/spec/replicas', value: object.spec.replicas + 1}]"}}]});
    let made = policy("MutatingAdmissionPolicy", "label", spec, "apps/deployments");
    install(&server, &made, json!({})).await;
    let made = server.post(DEPLOYMENTS, &deployment("d", 2)).await.ok(201);
    assert_eq!(
        made["metadata"]["labels"],
        json!({"by": "admin", "a/b": "c"})
    );
    assert_eq!(made["spec"]["replicas"], 3);
    let container = &made["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(
        (&container["image"], &container["imagePullPolicy"]),
        (&json!("i"), &json!("Always"))
    );
}
