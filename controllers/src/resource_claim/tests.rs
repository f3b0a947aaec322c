//! Tables of the plans.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimTemplate};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::plan::{
    ClaimPlan, FINALIZER, Step, claim_names, claim_of, entries, must_reserve, plan_claim,
    reserved_for, step,
};

fn object<T: DeserializeOwned>(json: Value) -> T {
    serde_json::from_value(json).unwrap()
}

/// Pod `p` of uid `p1` with the entry `gpu` from template `t`; `status` is as given.
fn pod(status: Value) -> Pod {
    object(
        json!({"metadata": {"name": "p", "namespace": "n", "uid": "p1"}, "status": status,
        "spec": {"containers": [], "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "t"}]}}),
    )
}

/// A claim that Pod `uid` owns, made for an entry.
fn owned(name: &str, uid: &str, entry: &str) -> ResourceClaim {
    object(
        json!({"metadata": {"name": name, "namespace": "n", "uid": name,
        "annotations": {"resource.kubernetes.io/pod-claim-name": entry},
        "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid, "controller": true}]},
        "spec": {}}),
    )
}

#[test]
fn entries_table() {
    let made = json!({"resourceClaimStatuses": [{"name": "gpu", "resourceClaimName": "c"}]});
    let not_needed = json!({"resourceClaimStatuses": [{"name": "gpu"}]});
    let (own, other) = (owned("c", "p1", "gpu"), owned("c", "p0", "gpu"));
    let none: Vec<ResourceClaim> = vec![];
    let down = |name: &str| Step::WriteDown(name.to_owned());
    let cases = [
        ("a new Pod", json!({}), None, none.clone(), Step::Make("t")),
        (
            "made before a crash",
            json!({}),
            None,
            vec![own.clone()],
            down("c"),
        ),
        (
            "of another entry",
            json!({}),
            None,
            vec![owned("x", "p1", "net")],
            Step::Make("t"),
        ),
        (
            "of an earlier Pod",
            json!({}),
            None,
            vec![other.clone()],
            Step::Make("t"),
        ),
        (
            "settled",
            made.clone(),
            Some(own.clone()),
            vec![own.clone()],
            Step::Nothing,
        ),
        ("deleted", made.clone(), None, none.clone(), Step::Make("t")),
        (
            "taken by another",
            made.clone(),
            Some(other),
            none.clone(),
            Step::Make("t"),
        ),
        ("not needed", not_needed, None, none, Step::Nothing),
    ];
    for (name, status, written_down, own, expected) in cases {
        let pod = pod(status);
        let own: Vec<_> = own.into_iter().map(Arc::new).collect();
        let found = step(&pod, &entries(&pod)[0], written_down.as_ref(), &own);
        assert_eq!(found, expected, "case: {name}");
    }
}

#[test]
fn a_claim_is_as_its_template_says_and_belongs_to_the_pod() {
    let template: ResourceClaimTemplate = object(json!({"metadata": {"name": "t"}, "spec": {
        "metadata": {"labels": {"l": "1"}, "annotations": {"a": "2"}},
        "spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "c"}}]}}}}));
    let pod = pod(json!({}));
    let claim = claim_of(&pod, &entries(&pod)[0], &template);
    let expected = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
        "metadata": {"generateName": "p-gpu-", "labels": {"l": "1"},
            "annotations": {"a": "2", "resource.kubernetes.io/pod-claim-name": "gpu"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "p1", "controller": true}]},
        "spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "c"}}]}}});
    assert_eq!(serde_json::to_value(&claim).unwrap(), expected);
}

#[test]
fn long_names_are_cut_in_proportion() {
    let template: ResourceClaimTemplate =
        object(json!({"metadata": {"name": "t"}, "spec": {"spec": {}}}));
    let name = |pod_name: &str, entry: &str| {
        let mut pod = pod(json!({}));
        pod.metadata.name = Some(pod_name.to_owned());
        let list = pod.spec.as_mut().unwrap().resource_claims.as_mut().unwrap();
        entry.clone_into(&mut list[0].name);
        let claim = claim_of(&pod, &entries(&pod)[0], &template);
        claim.metadata.generate_name.unwrap()
    };
    let cases = [
        (40, 15, format!("{}-{}-", "p".repeat(40), "e".repeat(15))),
        // 102 characters: 57/102 of each.
        (50, 50, format!("{}-{}", "p".repeat(27), "e".repeat(27))),
        (100, 5, format!("{}-{}", "p".repeat(53), "e".repeat(2))),
    ];
    for (pod_len, entry_len, expected) in cases {
        let found = name(&"p".repeat(pod_len), &"e".repeat(entry_len));
        assert_eq!(found, expected, "lengths {pod_len} and {entry_len}");
        assert!(found.len() <= 58);
    }
}

#[test]
fn names_of_claims_come_from_spec_and_status() {
    let status = json!({"resourceClaimStatuses": [{"name": "gpu", "resourceClaimName": "made"}],
        "extendedResourceClaimStatus": {"resourceClaimName": "extended", "requestMappings": []}});
    let mut pod = pod(status);
    let list = pod.spec.as_mut().unwrap().resource_claims.as_mut().unwrap();
    list.push(object(
        json!({"name": "mine", "resourceClaimName": "of-user"}),
    ));
    let found: Vec<_> = claim_names(&pod).collect();
    assert_eq!(found, ["made", "of-user", "extended"]);
}

/// A claim from words: `held` (finalizer), `allocated`, `deleting`, `owned` (by Pod p1), and users as `uid`.
fn claim(words: &str) -> ResourceClaim {
    let has = |word: &str| words.split_whitespace().any(|found| found == word);
    let mut claim = if has("owned") {
        owned("c", "p1", "gpu")
    } else {
        object(json!({"metadata": {"name": "c", "namespace": "n"}, "spec": {}}))
    };
    if has("held") {
        claim.metadata.finalizers = Some(vec!["other".into(), FINALIZER.into()]);
    }
    if has("deleting") {
        let now = crate::testing::time(crate::testing::NOW);
        claim.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now));
    }
    let mut status = json!({});
    if has("allocated") {
        status["allocation"] = json!({});
    }
    let users = words.split_whitespace().filter(|word| word.len() == 2);
    let users: Vec<_> = users
        .map(|uid| json!({"resource": "pods", "name": uid, "uid": uid}))
        .collect();
    status["reservedFor"] = json!(users);
    claim.status = Some(object(status));
    claim
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn claims_table() {
    // The claim; the users that stay; the owner's phase; then what is written: users, deallocate, finalizer, delete.
    let cases = [
        ("in use", "held allocated u1", "u1", "", ""),
        (
            "one of two went",
            "held allocated u1 u2",
            "u2",
            "",
            "users=u2",
        ),
        (
            "the last one went",
            "held allocated u1",
            "",
            "",
            "users= deallocate finalizer",
        ),
        (
            "allocated by a driver, nobody came yet",
            "held allocated",
            "",
            "",
            "",
        ),
        (
            "not held by us: the allocation is another's",
            "allocated u1",
            "",
            "",
            "users=",
        ),
        (
            "deleted and unused",
            "held allocated deleting",
            "",
            "",
            "deallocate finalizer",
        ),
        (
            "deleted, held and not allocated",
            "held deleting",
            "",
            "",
            "finalizer",
        ),
        (
            "deleted but in use",
            "held allocated deleting u1",
            "u1",
            "",
            "",
        ),
        (
            "its Pod runs",
            "held allocated owned u1",
            "u1",
            "Running",
            "",
        ),
        ("its Pod waits", "owned", "", "Pending", ""),
        (
            "its Pod is done",
            "held allocated owned u1",
            "",
            "Succeeded",
            "users= deallocate finalizer delete",
        ),
        ("its Pod failed before", "owned", "", "Failed", "delete"),
        (
            "its Pod is done, another uses it",
            "held allocated owned u1 u2",
            "u2",
            "Failed",
            "users=u2",
        ),
        (
            "its Pod is another of the name",
            "owned",
            "",
            "replaced",
            "delete",
        ),
        (
            "its Pod is not known: the garbage collector's",
            "owned",
            "",
            "",
            "",
        ),
        (
            "on its way out already",
            "owned deleting",
            "",
            "Succeeded",
            "",
        ),
        (
            "a Pod of the name, but it is the user's claim",
            "",
            "",
            "Succeeded",
            "",
        ),
    ];
    for (name, words, stay, phase, expected) in cases {
        let claim = claim(words);
        let remaining = reserved_for(&claim).iter();
        let remaining = remaining
            .filter(|user| stay.split(' ').any(|uid| uid == user.uid))
            .cloned()
            .collect();
        let owner = (!phase.is_empty()).then(|| {
            let mut pod = pod(json!({"phase": phase}));
            if phase == "replaced" {
                pod.metadata.uid = Some("p2".into());
            }
            pod
        });
        let found = shown(&plan_claim(&claim, remaining, owner.as_ref()));
        assert_eq!(found, expected, "case: {name}");
    }
}

fn shown(plan: &ClaimPlan) -> String {
    let users = plan.reserved_for.as_ref().map(|users| {
        let uids: Vec<_> = users.iter().map(|user| user.uid.as_str()).collect();
        format!("users={}", uids.join(","))
    });
    let flag = |set: bool, name: &str| set.then(|| name.to_owned());
    let parts = [
        users,
        flag(plan.deallocate, "deallocate"),
        flag(plan.drop_finalizer, "finalizer"),
        flag(plan.delete, "delete"),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

#[test]
fn only_pods_on_nodes_are_put_on_the_list_of_what_is_allocated() {
    let mut bound = pod(json!({}));
    assert!(!must_reserve(&bound, &claim("allocated")));
    bound.spec.as_mut().unwrap().node_name = Some("node".into());
    assert!(must_reserve(&bound, &claim("allocated")));
    assert!(!must_reserve(&bound, &claim("")));
    assert!(!must_reserve(&bound, &claim("allocated p1")));
    assert!(must_reserve(&bound, &claim("allocated p2")));
}
