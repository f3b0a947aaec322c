//! What RBAC grants, revokes and refuses to escalate.
#![allow(clippy::too_many_lines, reason = "the tables are the tests")]

use std::sync::Arc;

use cox_store::{Backend, Config, Store};
use serde_json::{Value, json};

use super::*;
use crate::testing::{self, NoAttrs, remove, store};

/// Stores an object under a path.
async fn put(store: &Store, plural: &str, path: &str, mut object: Value) {
    object["metadata"] = match path.split_once('/') {
        Some((namespace, name)) => json!({"namespace": namespace, "name": name}),
        None => json!({"name": path}),
    };
    testing::put(store, plural, &object).await;
}

fn rules(text: &str) -> Value {
    // "verbs groups resources [names]" with commas inside; "-" is the core group; "/path" for URLs.
    let list = |part: &str| -> Value {
        part.split(',')
            .map(|one| json!(if one == "-" { "" } else { one }))
            .collect()
    };
    let rules = text.split(';').map(|rule| {
        let parts: Vec<&str> = rule.split_whitespace().collect();
        match parts.as_slice() {
            [verbs, urls] => json!({"verbs": list(verbs), "nonResourceURLs": list(urls)}),
            [verbs, groups, resources] => {
                json!({"verbs": list(verbs), "apiGroups": list(groups), "resources": list(resources)})
            }
            [verbs, groups, resources, names] => json!({"verbs": list(verbs), "apiGroups": list(groups),
                "resources": list(resources), "resourceNames": list(names)}),
            _ => panic!("not a rule: {rule}"),
        }
    });
    Value::Array(rules.collect())
}

fn parse(text: &str) -> Vec<PolicyRule> {
    serde_json::from_value(rules(text)).expect("rules")
}

fn binding(kind: &str, role: &str, subjects: &[Value]) -> Value {
    json!({"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role}, "subjects": subjects})
}

fn user(name: &str) -> Value {
    json!({"kind": "User", "name": name})
}

/// "verb group/resource[/sub] [namespace[/name]]" or "verb /path".
fn ask(rbac: &Rbac, who: &UserInfo, question: &str) -> Decision {
    let parts: Vec<&str> = question.split_whitespace().collect();
    if parts[1].starts_with('/') {
        return rbac.authorize(&Attributes::for_path(who, parts[0], parts[1]));
    }
    let thing: Vec<&str> = parts[1].split('/').collect();
    let place = parts.get(2).copied().unwrap_or("");
    let (namespace, name) = place.split_once('/').unwrap_or((place, ""));
    let mut asked = Attributes::for_resource(
        who,
        parts[0],
        if thing[0] == "-" { "" } else { thing[0] },
        thing[1],
    );
    asked.subresource = thing.get(2).copied().unwrap_or("");
    asked.namespace = namespace;
    asked.name = name;
    rbac.authorize(&asked)
}

#[tokio::test]
async fn what_a_rule_allows() {
    let cases: &[(&str, &str, &str, bool)] = &[
        ("the very thing", "get - pods", "get -/pods ns/a", true),
        ("another verb", "get - pods", "list -/pods ns", false),
        ("another group", "get - pods", "get apps/pods ns/a", false),
        ("any verb", "* - pods", "frobnicate -/pods ns/a", true),
        (
            "any group",
            "get * deployments",
            "get apps/deployments ns/a",
            true,
        ),
        (
            "any resource holds subresources",
            "get - *",
            "get -/pods/log ns/a",
            true,
        ),
        (
            "a resource does not hold its subresources",
            "get - pods",
            "get -/pods/log ns/a",
            false,
        ),
        (
            "a subresource does not hold its resource",
            "get - pods/log",
            "get -/pods ns/a",
            false,
        ),
        (
            "the subresource named",
            "get - pods/log",
            "get -/pods/log ns/a",
            true,
        ),
        (
            "a subresource of any resource",
            "update * */scale",
            "update apps/deployments/scale ns/a",
            true,
        ),
        (
            "not another subresource",
            "update * */scale",
            "update apps/deployments/status ns/a",
            false,
        ),
        (
            "*/scale is not the resource",
            "update * */scale",
            "update apps/deployments ns/a",
            false,
        ),
        (
            "the object named",
            "get - secrets a,b",
            "get -/secrets ns/b",
            true,
        ),
        (
            "an object not named",
            "get - secrets a",
            "get -/secrets ns/c",
            false,
        ),
        (
            "a list has no name",
            "list - secrets a",
            "list -/secrets ns",
            false,
        ),
        (
            "a create has no name",
            "create - secrets a",
            "create -/secrets ns",
            false,
        ),
        ("a path", "get /healthz", "get /healthz", true),
        ("not below it", "get /healthz", "get /healthz/etcd", false),
        (
            "a path pattern",
            "get /healthz/*",
            "get /healthz/etcd",
            true,
        ),
        (
            "a pattern is not its folder",
            "get /healthz/*",
            "get /healthz",
            false,
        ),
        ("all paths", "get *", "get /metrics", true),
        (
            "a resource rule grants no path",
            "* * *",
            "get /metrics",
            false,
        ),
        (
            "a path rule grants no resource",
            "* *",
            "get -/pods ns/a",
            false,
        ),
    ];
    for (case, rule, question, expected) in cases {
        let store = store();
        put(&store, "clusterroles", "r", json!({"rules": rules(rule)})).await;
        put(
            &store,
            "clusterrolebindings",
            "b",
            binding("ClusterRole", "r", &[user("jane")]),
        )
        .await;
        let rbac = Rbac::new(store);
        let answer = ask(&rbac, &UserInfo::new("jane", []), question);
        assert_eq!(answer.is_allowed(), *expected, "{case}");
        assert!(
            !ask(&rbac, &UserInfo::new("joe", []), question).is_allowed(),
            "{case}: nobody else"
        );
    }
}

#[tokio::test]
async fn who_is_bound_and_where() {
    let store = store();
    put(
        &store,
        "clusterroles",
        "reader",
        json!({"rules": rules("get - pods")}),
    )
    .await;
    put(
        &store,
        "roles",
        "a/writer",
        json!({"rules": rules("update - pods")}),
    )
    .await;
    let robot = json!({"kind": "ServiceAccount", "name": "robot"});
    let subjects = [user("jane"), json!({"kind": "Group", "name": "dev"}), robot];
    put(
        &store,
        "rolebindings",
        "a/b1",
        binding("ClusterRole", "reader", &subjects),
    )
    .await;
    put(
        &store,
        "rolebindings",
        "a/b2",
        binding("Role", "writer", &[user("jane")]),
    )
    .await;
    put(
        &store,
        "rolebindings",
        "b/b3",
        binding("Role", "writer", &[user("jane")]),
    )
    .await;
    let rbac = Rbac::new(store);
    let jane = UserInfo::new("jane", []);
    let dev = UserInfo::new("x", ["dev"]);
    let robot = UserInfo::service_account("a", "robot", "");
    let stranger = UserInfo::service_account("b", "robot", "");
    let cases: &[(&str, &UserInfo, &str, bool)] = &[
        (
            "a cluster role through a role binding",
            &jane,
            "get -/pods a/p",
            true,
        ),
        ("not in another namespace", &jane, "get -/pods b/p", false),
        ("not cluster-wide", &jane, "get -/pods", false),
        ("a role of the namespace", &jane, "update -/pods a/p", true),
        (
            "a role of the same name elsewhere does not count",
            &jane,
            "update -/pods b/p",
            false,
        ),
        ("by group", &dev, "get -/pods a/p", true),
        (
            "a service account of the binding's namespace",
            &robot,
            "get -/pods a/p",
            true,
        ),
        ("its namesake elsewhere", &stranger, "get -/pods a/p", false),
    ];
    for (case, who, question, expected) in cases {
        assert_eq!(ask(&rbac, who, question).is_allowed(), *expected, "{case}");
    }
    let reason = r#"RBAC: role.rbac.authorization.k8s.io "writer" not found"#;
    assert_eq!(
        ask(&rbac, &jane, "update -/pods b/p"),
        Decision::Deny(reason.into())
    );
}

#[tokio::test]
async fn a_write_counts_from_its_acknowledgement() {
    let store = store();
    let rbac = Rbac::new(store.clone());
    let jane = UserInfo::new("jane", []);
    let question = "get -/pods a/p";
    assert!(!ask(&rbac, &jane, question).is_allowed());
    put(
        &store,
        "clusterroles",
        "r",
        json!({"rules": rules("get - pods")}),
    )
    .await;
    put(
        &store,
        "clusterrolebindings",
        "b",
        binding("ClusterRole", "r", &[user("jane")]),
    )
    .await;
    assert!(ask(&rbac, &jane, question).is_allowed(), "bound");
    put(&store, "clusterroles", "r", json!({"rules": null})).await;
    assert!(
        !ask(&rbac, &jane, question).is_allowed(),
        "the role lost its rule"
    );
    put(
        &store,
        "clusterroles",
        "r",
        json!({"rules": rules("get - pods")}),
    )
    .await;
    put(
        &store,
        "clusterrolebindings",
        "b",
        binding("ClusterRole", "r", &[user("joe")]),
    )
    .await;
    assert!(
        !ask(&rbac, &jane, question).is_allowed(),
        "another subject took the binding over"
    );
    assert!(ask(&rbac, &UserInfo::new("joe", []), question).is_allowed());
    remove(&store, "clusterrolebindings", "b").await;
    assert!(
        !ask(&rbac, &UserInfo::new("joe", []), question).is_allowed(),
        "the binding is gone"
    );
}

#[tokio::test]
async fn falling_behind_reads_everything_again() {
    let mut config = Config::new(Backend::Memory);
    config.ring_events_max = 4;
    let store = Store::open(config, Arc::new(NoAttrs)).expect("a store");
    let rbac = Rbac::new(store.clone());
    put(
        &store,
        "clusterroles",
        "r",
        json!({"rules": rules("get - pods")}),
    )
    .await;
    for at in 0..40 {
        let who = format!("u{at}");
        let path = format!("b{at}");
        put(
            &store,
            "clusterrolebindings",
            &path,
            binding("ClusterRole", "r", &[user(&who)]),
        )
        .await;
    }
    for at in 0..40 {
        let who = UserInfo::new(format!("u{at}"), []);
        assert!(ask(&rbac, &who, "get -/pods a/p").is_allowed(), "user {at}");
    }
}

#[tokio::test]
async fn only_the_askers_bindings_are_looked_at() {
    let store = store();
    put(
        &store,
        "clusterroles",
        "r",
        json!({"rules": rules("get - pods")}),
    )
    .await;
    for at in 0..2000 {
        let who = user(&format!("u{at}"));
        put(
            &store,
            "clusterrolebindings",
            &format!("b{at}"),
            binding("ClusterRole", "r", &[who]),
        )
        .await;
    }
    let rbac = Rbac::new(store);
    let mut visited = 0;
    rbac.index
        .read()
        .visit(&UserInfo::new("u7", []), "default", |_| {
            visited += 1;
            true
        });
    assert_eq!(visited, 1);
}

#[tokio::test]
async fn nobody_grants_what_they_do_not_hold() {
    let cases: &[(&str, &str, &str, bool)] = &[
        ("the same", "get,list - pods", "get,list - pods", true),
        ("less", "get,list - pods,secrets", "get - secrets", true),
        ("more verbs", "get - pods", "get,delete - pods", false),
        (
            "a wildcard verb is more than all named ones",
            "get,list,watch - pods",
            "* - pods",
            false,
        ),
        (
            "under a wildcard",
            "* * *",
            "delete apps deployments/scale",
            true,
        ),
        (
            "a resource does not cover its subresource",
            "get - pods",
            "get - pods/log",
            false,
        ),
        (
            "*/scale covers",
            "update apps */scale",
            "update apps deployments/scale",
            true,
        ),
        (
            "* covers */scale",
            "update apps *",
            "update apps */scale",
            true,
        ),
        (
            "one name covers itself",
            "get - secrets a,b",
            "get - secrets b",
            true,
        ),
        (
            "names do not cover all",
            "get - secrets a",
            "get - secrets",
            false,
        ),
        ("all covers names", "get - secrets", "get - secrets a", true),
        (
            "covered by two rules together",
            "get - pods;list - pods",
            "get,list - pods",
            true,
        ),
        ("a path under a pattern", "get /a/*", "get /a/b", true),
        ("a pattern under a pattern", "get /a/*", "get /a/b/*", true),
        ("a wider pattern", "get /a/b/*", "get /a/*", false),
        (
            "resources do not cover paths",
            "* * *",
            "get /healthz",
            false,
        ),
    ];
    for (case, held, asked, expected) in cases {
        let store = store();
        put(&store, "clusterroles", "r", json!({"rules": rules(held)})).await;
        put(
            &store,
            "clusterrolebindings",
            "b",
            binding("ClusterRole", "r", &[user("jane")]),
        )
        .await;
        let rbac = Rbac::new(store);
        let verdict = rbac.confirm_no_escalation(&UserInfo::new("jane", []), "", &parse(asked));
        assert_eq!(verdict.is_ok(), *expected, "{case}: {verdict:?}");
        rbac.confirm_no_escalation(&UserInfo::new("root", [MASTERS]), "", &parse(asked))
            .expect("masters may");
    }
}

#[tokio::test]
async fn the_sentence_about_escalation_is_upstreams() {
    let rbac = Rbac::new(store());
    let jane = UserInfo::new("jane", ["dev"]);
    let text = rbac
        .confirm_no_escalation(&jane, "", &parse("get,list - pods;get /x"))
        .expect_err("nothing held");
    assert_eq!(
        text,
        "user \"jane\" (groups=[\"dev\" \"system:authenticated\"]) is attempting to grant RBAC permissions not \
         currently held:\n{NonResourceURLs:[\"/x\"], Verbs:[\"get\"]}\n{APIGroups:[\"\"], Resources:[\"pods\"], \
         Verbs:[\"get\" \"list\"]}"
    );
}
