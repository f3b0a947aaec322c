//! Who may do what: impersonation, nodes, reviews, aggregated roles.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use futures::FutureExt as _;

use super::*;

/// A name, the headers, and the code that answers them.
type Refused<'a> = (&'a str, &'a [(&'a str, &'a str)], u16);

async fn grant(store: &cox_store::Store, user: &str, rules: Value) {
    let role = format!("role-of-{user}");
    put(
        store,
        "clusterroles",
        &json!({"metadata": {"name": role}, "rules": rules}),
    )
    .await;
    let binding = json!({"metadata": {"name": role}, "roleRef": {"kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "User", "name": user}]});
    put(store, "clusterrolebindings", &binding).await;
}

#[tokio::test]
async fn impersonation_needs_a_right_for_each_header() {
    let cluster = cluster().await;
    let rule = |group: &str, resource: &str, names: &[&str]| json!({"verbs": ["impersonate"], "apiGroups": [group], "resources": [resource], "resourceNames": names});
    let rules = json!([
        rule("", "users", &["jane"]),
        rule("", "groups", &["dev"]),
        rule("", "serviceaccounts", &["robot"]),
        rule("authentication.k8s.io", "userextras/reason", &["test"]),
    ]);
    grant(&cluster.store, "boss", rules).await;
    let authorizer = Authorizer::new(cluster.store.clone());
    let boss = Arc::new(UserInfo::new("boss", []));
    let act = |headers: &[(&str, &str)]| {
        let parts = request("/api", headers);
        let acted = authorizer.impersonate(&parts, &boss).now_or_never();
        acted.expect("nobody outside is asked")
    };

    assert!(Arc::ptr_eq(&act(&[]).expect("oneself"), &boss));
    let jane = act(&[
        ("Impersonate-User", "jane"),
        ("Impersonate-Group", "dev"),
        ("Impersonate-Extra-reason", "test"),
    ]);
    let jane = jane.expect("jane");
    assert_eq!(
        (jane.name.as_str(), jane.groups.as_slice()),
        ("jane", ["dev", AUTHENTICATED].map(String::from).as_slice())
    );
    assert_eq!(jane.extra["reason"], ["test"]);
    let robot = act(&[("Impersonate-User", "system:serviceaccount:ns:robot")]).expect("robot");
    assert!(robot.in_group("system:serviceaccounts:ns"));

    let refused: &[Refused<'_>] = &[
        ("another user", &[("Impersonate-User", "root")], 403),
        (
            "a group beside",
            &[("Impersonate-User", "jane"), ("Impersonate-Group", MASTERS)],
            403,
        ),
        (
            "one of two groups",
            &[
                ("Impersonate-User", "jane"),
                ("Impersonate-Group", "dev"),
                ("Impersonate-Group", "ops"),
            ],
            403,
        ),
        (
            "a uid",
            &[("Impersonate-User", "jane"), ("Impersonate-Uid", "1")],
            403,
        ),
        (
            "another extra value",
            &[
                ("Impersonate-User", "jane"),
                ("Impersonate-Extra-reason", "fun"),
            ],
            403,
        ),
        ("a group alone", &[("Impersonate-Group", "dev")], 400),
        (
            "another account",
            &[("Impersonate-User", "system:serviceaccount:ns:other")],
            403,
        ),
    ];
    for (case, headers, code) in refused {
        assert_eq!(act(headers).expect_err(case).code, *code, "{case}");
    }
}

#[tokio::test]
async fn a_node_reads_what_its_pods_need_and_keeps_its_own() {
    let cluster = cluster().await;
    put(&cluster.store, "pods", &pod("far", "pod-7", "n2")).await;
    for (name, node) in [("r1", "n1"), ("r2", "n2")] {
        let request =
            json!({"metadata": {"name": name, "namespace": "ns"}, "spec": {"nodeName": node}});
        put(&cluster.store, "podcertificaterequests", &request).await;
    }
    for (name, node) in [("s1", "n1"), ("s2", "n2")] {
        let slice = json!({"metadata": {"name": name}, "spec": {"nodeName": node}});
        put(&cluster.store, "resourceslices", &slice).await;
    }
    let mut with_devices = pod("devices", "pod-8", "n1");
    with_devices["spec"] = json!({"nodeName": "n1", "resourceClaims": [
        {"name": "a", "resourceClaimName": "of-user"}, {"name": "b", "resourceClaimTemplateName": "t"}]});
    with_devices["status"] = json!({"extendedResourceClaimStatus": {"resourceClaimName": "extended"},
        "resourceClaimStatuses": [{"name": "b", "resourceClaimName": "made"}, {"name": "a", "resourceClaimName": "made-up"}]});
    put(&cluster.store, "pods", &with_devices).await;
    let authorizer = Authorizer::new(cluster.store.clone());
    let node = UserInfo::new("system:node:n1", [NODES]);
    // verb group/resource[/sub] namespace/name selector
    let cases: &[(&str, &str, &str, &str, bool)] = &[
        ("get", "/secrets", "ns/mine", "", true),
        ("watch", "/secrets", "ns/mine", "", true),
        ("get", "/secrets", "ns/other", "", false),
        ("list", "/secrets", "ns/", "", false),
        ("get", "/secrets", "else/mine", "", false),
        ("update", "/secrets", "ns/mine", "", false),
        ("get", "/configmaps", "ns/settings", "", true),
        ("get", "/configmaps", "ns/other", "", false),
        ("get", "/pods", "ns/p", "", true),
        ("get", "/pods", "ns/far", "", false),
        ("list", "/pods", "/", "spec.nodeName=n1", true),
        ("list", "/pods", "/", "spec.nodeName=n2", false),
        ("list", "/pods", "/", "", false),
        ("patch", "/pods/status", "ns/p", "", true),
        ("create", "/pods/exec", "ns/p", "", false),
        ("create", "/serviceaccounts/token", "ns/robot", "", true),
        ("create", "/serviceaccounts/token", "ns/other", "", false),
        ("create", "/nodes", "/", "", true),
        ("patch", "/nodes/status", "/n1", "", true),
        ("patch", "/nodes/status", "/n2", "", false),
        ("get", "/nodes", "/n2", "", false),
        ("watch", "/nodes", "/", "", true),
        ("delete", "/nodes", "/n1", "", false),
        (
            "update",
            "coordination.k8s.io/leases",
            "kube-node-lease/n1",
            "",
            true,
        ),
        (
            "update",
            "coordination.k8s.io/leases",
            "kube-node-lease/n2",
            "",
            false,
        ),
        (
            "update",
            "coordination.k8s.io/leases",
            "kube-system/n1",
            "",
            false,
        ),
        ("list", "/services", "/", "", true),
        ("create", "/events", "ns/", "", true),
        (
            "create",
            "certificates.k8s.io/podcertificaterequests",
            "ns/",
            "",
            true,
        ),
        (
            "get",
            "certificates.k8s.io/podcertificaterequests",
            "ns/r1",
            "",
            true,
        ),
        (
            "get",
            "certificates.k8s.io/podcertificaterequests",
            "ns/r2",
            "",
            false,
        ),
        (
            "watch",
            "certificates.k8s.io/podcertificaterequests",
            "ns/",
            "metadata.name=r1,spec.nodeName=n1",
            true,
        ),
        (
            "watch",
            "certificates.k8s.io/podcertificaterequests",
            "ns/r1",
            "metadata.name=r1",
            false,
        ),
        (
            "update",
            "certificates.k8s.io/podcertificaterequests/status",
            "ns/r1",
            "",
            false,
        ),
        (
            "delete",
            "certificates.k8s.io/podcertificaterequests",
            "ns/r1",
            "",
            false,
        ),
        (
            "list",
            "certificates.k8s.io/clustertrustbundles",
            "/",
            "",
            true,
        ),
        (
            "update",
            "certificates.k8s.io/clustertrustbundles",
            "/b",
            "",
            false,
        ),
        (
            "get",
            "resource.k8s.io/resourceclaims",
            "ns/of-user",
            "",
            true,
        ),
        ("get", "resource.k8s.io/resourceclaims", "ns/made", "", true),
        (
            "get",
            "resource.k8s.io/resourceclaims",
            "ns/extended",
            "",
            true,
        ),
        (
            "get",
            "resource.k8s.io/resourceclaims",
            "ns/made-up",
            "",
            false,
        ),
        (
            "get",
            "resource.k8s.io/resourceclaims",
            "ns/other",
            "",
            false,
        ),
        (
            "get",
            "resource.k8s.io/resourceclaims",
            "else/made",
            "",
            false,
        ),
        ("list", "resource.k8s.io/resourceclaims", "ns/", "", false),
        (
            "update",
            "resource.k8s.io/resourceclaims/status",
            "ns/made",
            "",
            false,
        ),
        ("get", "resource.k8s.io/resourceslices", "/s1", "", true),
        ("get", "resource.k8s.io/resourceslices", "/s2", "", false),
        ("update", "resource.k8s.io/resourceslices", "/s1", "", true),
        ("patch", "resource.k8s.io/resourceslices", "/s2", "", false),
        ("delete", "resource.k8s.io/resourceslices", "/s2", "", false),
        (
            "delete",
            "resource.k8s.io/resourceslices",
            "/gone",
            "",
            false,
        ),
        ("create", "resource.k8s.io/resourceslices", "/", "", true),
        (
            "list",
            "resource.k8s.io/resourceslices",
            "/",
            "spec.nodeName=n1",
            true,
        ),
        (
            "watch",
            "resource.k8s.io/resourceslices",
            "/",
            "spec.nodeName=n2",
            false,
        ),
        ("list", "resource.k8s.io/resourceslices", "/", "", false),
        (
            "deletecollection",
            "resource.k8s.io/resourceslices",
            "/",
            "spec.nodeName=n1,spec.driver=d",
            true,
        ),
        (
            "deletecollection",
            "resource.k8s.io/resourceslices",
            "/",
            "spec.driver=d",
            false,
        ),
        ("get", "resource.k8s.io/deviceclasses", "/c", "", false),
        ("list", "node.k8s.io/runtimeclasses", "/", "", true),
        (
            "create",
            "rbac.authorization.k8s.io/clusterrolebindings",
            "/",
            "",
            false,
        ),
    ];
    for (verb, resource, object, selector, expected) in cases {
        let mut parts = resource.splitn(3, '/');
        let group = parts.next().unwrap_or_default();
        let mut asked =
            Attributes::for_resource(&node, verb, group, parts.next().unwrap_or_default());
        asked.subresource = parts.next().unwrap_or_default();
        (asked.namespace, asked.name) = object.split_once('/').expect("namespace/name");
        asked.field_selector = selector;
        assert_eq!(
            authorizer.authorize(&asked).is_allowed(),
            *expected,
            "{verb} {resource} {object} {selector}"
        );
    }
    let impostor = UserInfo::new("system:node:n1", []);
    let mut asked = Attributes::for_resource(&impostor, "get", "", "pods");
    (asked.namespace, asked.name) = ("ns", "p");
    assert!(
        !authorizer.authorize(&asked).is_allowed(),
        "the name alone makes no node"
    );

    let mut asked = Attributes::for_resource(&node, "get", "", "secrets");
    (asked.namespace, asked.name) = ("ns", "mine");
    remove(&cluster.store, "pods", "ns/p").await;
    let answer = authorizer
        .require(&asked)
        .await
        .expect_err("the pod that needed it is gone");
    assert_eq!(
        answer.message,
        "secrets \"mine\" is forbidden: User \"system:node:n1\" cannot get resource \"secrets\" in API group \"\" in the \
         namespace \"ns\": no relationship found between node 'n1' and this object"
    );
}

#[tokio::test]
async fn refusals_are_in_upstreams_words() {
    let authorizer = Authorizer::new(store());
    let jane = UserInfo::new("jane", []);
    let mut asked = Attributes::for_resource(&jane, "get", "apps", "deployments");
    (asked.subresource, asked.name) = ("scale", "d");
    let cases = [
        (
            asked,
            "deployments.apps \"d\" is forbidden: User \"jane\" cannot get resource \"deployments/scale\" in API group \
             \"apps\" at the cluster scope",
        ),
        (
            Attributes::for_path(&jane, "get", "/metrics"),
            "forbidden: User \"jane\" cannot get path \"/metrics\"",
        ),
    ];
    for (asked, expected) in cases {
        let status = authorizer
            .require(&asked)
            .await
            .expect_err("nothing is allowed");
        assert_eq!((status.code, status.message.as_str()), (403, expected));
    }
}

#[tokio::test]
async fn reviews_answer_questions() {
    let cluster = cluster().await;
    let rules = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]},
        {"verbs": ["get"], "nonResourceURLs": ["/metrics"]}]);
    grant(&cluster.store, "jane", rules).await;
    let authorizer = Authorizer::new(cluster.store.clone());
    let jane = UserInfo::new("jane", ["dev"]);
    let root = UserInfo::new("root", [MASTERS]);
    let ask = |user: &UserInfo, plural: &str, namespace: &str, spec: Value| {
        reviews::create(
            &cluster.authn,
            &authorizer,
            user,
            plural,
            namespace,
            json!({"spec": spec}),
        )
        .now_or_never()
        .expect("nobody outside is asked")
        .map(|review| review["status"].clone())
    };
    let pods = |verb: &str, namespace: &str| json!({"verb": verb, "resource": "pods", "namespace": namespace});
    let oneself = |verb: &str| {
        ask(
            &jane,
            "selfsubjectaccessreviews",
            "",
            json!({"resourceAttributes": pods(verb, "ns")}),
        )
    };
    assert_eq!(oneself("get").expect("an answer")["allowed"], true);
    assert_eq!(oneself("delete").expect("an answer")["allowed"], false);
    let about_jane =
        json!({"user": "jane", "nonResourceAttributes": {"verb": "get", "path": "/metrics"}});
    assert_eq!(
        ask(&root, "subjectaccessreviews", "", about_jane).expect("an answer")["allowed"],
        true
    );
    let local = json!({"user": "jane", "resourceAttributes": pods("get", "ns")});
    assert_eq!(
        ask(&root, "localsubjectaccessreviews", "ns", local.clone()).expect("an answer")["allowed"],
        true
    );
    assert_eq!(
        ask(&root, "localsubjectaccessreviews", "else", local)
            .expect_err("another namespace")
            .code,
        422
    );
    let both = json!({"user": "jane", "resourceAttributes": {}, "nonResourceAttributes": {}});
    assert_eq!(
        ask(&root, "subjectaccessreviews", "", both)
            .expect_err("two questions")
            .code,
        422
    );
    assert_eq!(
        ask(
            &root,
            "subjectaccessreviews",
            "",
            json!({"resourceAttributes": {}})
        )
        .expect_err("nobody")
        .code,
        422
    );

    let me = ask(&jane, "selfsubjectreviews", "", json!({})).expect("an answer");
    assert_eq!(me["userInfo"]["groups"], json!(["dev", AUTHENTICATED]));
    let rules = ask(
        &jane,
        "selfsubjectrulesreviews",
        "",
        json!({"namespace": "ns"}),
    )
    .expect("an answer");
    assert_eq!(rules["resourceRules"][0]["resources"], json!(["pods"]));
    assert_eq!(
        rules["nonResourceRules"][0]["nonResourceURLs"],
        json!(["/metrics"])
    );

    let token = cluster.token(json!({"audiences": ["vault"]}));
    let review = ask(
        &root,
        "tokenreviews",
        "",
        json!({"token": token, "audiences": ["vault", "x"]}),
    )
    .expect("an answer");
    assert_eq!(
        (&review["authenticated"], &review["audiences"]),
        (&json!(true), &json!(["vault"]))
    );
    assert_eq!(review["user"]["username"], "system:serviceaccount:ns:robot");
    let review = ask(&root, "tokenreviews", "", json!({"token": token})).expect("an answer");
    assert!(
        review["authenticated"].is_null() && review["error"].is_string(),
        "not meant for the API server"
    );
    assert_eq!(
        ask(&root, "tokenreviews", "", json!({}))
            .expect_err("no token")
            .code,
        400
    );
}

#[tokio::test]
async fn aggregated_roles_follow_their_parts() {
    let store = store();
    let rule =
        |resource: &str| json!({"verbs": ["get"], "apiGroups": [""], "resources": [resource]});
    let part = |name: &str, label: &str, resource: &str| json!({"metadata": {"name": name, "labels": {"to": label}}, "rules": [rule(resource)]});
    let selector = json!({"clusterRoleSelectors": [{"matchLabels": {"to": "sum"}}]});
    put(&store, "clusterroles", &json!({"metadata": {"name": "sum"}, "aggregationRule": selector, "rules": [rule("stale")]})).await;
    put(&store, "clusterroles", &part("a", "sum", "pods")).await;
    let cancel = CancellationToken::new();
    let controller = tokio::spawn(aggregation::run(store.clone(), cancel.clone()));
    until_rules(&store, &["pods"]).await;
    put(&store, "clusterroles", &part("b", "sum", "nodes")).await;
    until_rules(&store, &["pods", "nodes"]).await;
    put(&store, "clusterroles", &part("a", "other", "pods")).await;
    until_rules(&store, &["nodes"]).await;
    let settled = store.snapshot().revision();
    cancel.cancel();
    controller.await.expect("the controller ends");
    assert_eq!(
        store.snapshot().revision(),
        settled,
        "a settled role is not written"
    );
}

/// Waits until the role `sum` grants exactly these resources.
async fn until_rules(store: &cox_store::Store, expected: &[&str]) {
    let wait = async {
        loop {
            let snapshot = store.snapshot();
            let role = snapshot.get("clusterroles", "sum").expect("the role");
            let role: Value = serde_json::from_slice(&role.json).expect("JSON");
            let granted: Vec<&str> = role["rules"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|rule| rule["resources"][0].as_str())
                .collect();
            if granted == expected {
                return;
            }
            let mut watch = store
                .watch("clusterroles", snapshot.revision())
                .expect("a watch");
            watch.next().await.expect("a write");
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait)
        .await
        .expect("the role follows");
}
