//! What ResourceQuotas count: which objects a quota is about, and how much of what an object uses. Pure: admission charges with
//! it, the controller recomputes with it.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::meta;
use crate::quantity::{Format, Quantity};
use crate::selector::LabelSelector;
use crate::totals::{self, Amounts, amounts, containers};

const POD_NAMES: [&str; 11] = [
    "count/pods",
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
];
/// What each container must say when a quota is about it.
const MUST_SAY: [&str; 6] = [
    "cpu",
    "memory",
    "requests.cpu",
    "requests.memory",
    "limits.cpu",
    "limits.memory",
];
const OF_CLASS: [&str; 2] = [
    ".storageclass.storage.k8s.io/requests.storage",
    ".storageclass.storage.k8s.io/persistentvolumeclaims",
];
const OF_DEVICES: &str = ".deviceclass.resource.k8s.io/devices";
/// Before the name of a class: what Pods ask for as the extended resource that every class of devices is.
const OF_IMPLICIT: &str = "requests.deviceclass.resource.kubernetes.io/";
/// No allocation has more devices.
const DEVICES_MAX: i64 = 32;
/// On claims that the scheduler makes for extended resources.
const EXTENDED_CLAIM: &str = "resource.kubernetes.io/extended-resource-claim";
/// Kinds that are counted under their bare name too.
const COUNTED_BARE: [&str; 4] = [
    "configmaps",
    "resourcequotas",
    "replicationcontrollers",
    "secrets",
];

fn one() -> Quantity {
    Quantity::from_i64(1, Format::DecimalSi)
}

/// `count/deployments.apps`
pub fn count_name(group: &str, plural: &str) -> String {
    if group.is_empty() {
        format!("count/{plural}")
    } else {
        format!("count/{plural}.{group}")
    }
}

/// Whether an object of the resource may count under the name.
pub fn concerns(group: &str, plural: &str, name: &str) -> bool {
    if name == count_name(group, plural) {
        return true;
    }
    match (group, plural) {
        ("", "pods") => {
            POD_NAMES.contains(&name)
                || name.starts_with("hugepages-")
                || name.starts_with("requests.hugepages-")
                || is_extended_request(name)
        }
        ("", "services") => matches!(
            name,
            "services" | "services.nodeports" | "services.loadbalancers"
        ),
        ("", "persistentvolumeclaims") => {
            matches!(name, "persistentvolumeclaims" | "requests.storage")
                || OF_CLASS.iter().any(|suffix| name.ends_with(suffix))
        }
        ("resource.k8s.io", "resourceclaims") => {
            name.ends_with(OF_DEVICES) || is_extended_request(name)
        }
        ("", plural) => COUNTED_BARE.contains(&plural) && name == plural,
        _ => false,
    }
}

/// The resources of which objects may count under the name; `None` when only the catalog can tell (`count/…`).
pub fn counted_kinds(name: &str) -> Vec<(String, String)> {
    if let Some(rest) = name.strip_prefix("count/") {
        let (plural, group) = rest.split_once('.').unwrap_or((rest, ""));
        return vec![(group.to_owned(), plural.to_owned())];
    }
    let known = [
        ("", "pods"),
        ("", "services"),
        ("", "persistentvolumeclaims"),
        ("resource.k8s.io", "resourceclaims"),
        ("", "configmaps"),
        ("", "resourcequotas"),
        ("", "replicationcontrollers"),
        ("", "secrets"),
    ];
    let counted = known
        .into_iter()
        .filter(|(group, plural)| concerns(group, plural, name));
    counted
        .map(|(group, plural)| (group.to_owned(), plural.to_owned()))
        .collect()
}

fn is_extended_request(name: &str) -> bool {
    name.starts_with(OF_IMPLICIT)
        || name.strip_prefix("requests.").is_some_and(|rest| {
            rest.contains('/') && !rest.split('/').next().is_some_and(is_native)
        })
}

/// `kubernetes.io` and below.
fn is_native(domain: &str) -> bool {
    domain == "kubernetes.io" || domain.ends_with(".kubernetes.io")
}

/// How much of what an object uses.
pub fn usage(group: &str, plural: &str, object: &Value, now: Timestamp) -> Amounts {
    let mut used = Amounts::from([(count_name(group, plural), one())]);
    match (group, plural) {
        ("", "pods") => of_pod(object, now, &mut used),
        ("", "services") => of_service(object, &mut used),
        ("", "persistentvolumeclaims") => of_claim(object, &mut used),
        ("resource.k8s.io", "resourceclaims") => of_devices(object, &mut used),
        ("", plural) if COUNTED_BARE.contains(&plural) => {
            used.insert(plural.to_owned(), one());
        }
        _ => {}
    }
    used
}

fn of_pod(pod: &Value, now: Timestamp, used: &mut Amounts) {
    if !is_charged(pod, now) {
        return;
    }
    let requests = totals::pod_requests(&pod["spec"]);
    let limits = totals::pod_limits(&pod["spec"]);
    let charged = charged(&requests, &limits);
    used.extend(charged);
}

/// A Pod that has ended, or should have by now, uses nothing.
fn is_charged(pod: &Value, now: Timestamp) -> bool {
    if matches!(
        pod["status"]["phase"].as_str(),
        Some("Failed" | "Succeeded")
    ) {
        return false;
    }
    let due = meta::deletion_timestamp(pod)
        .zip(meta::deletion_grace_period_secs(pod))
        .and_then(|(at, secs)| at.checked_add(SignedDuration::from_secs(secs)).ok());
    due.is_none_or(|due| now <= due)
}

fn charged(requests: &Amounts, limits: &Amounts) -> Amounts {
    let mut used = Amounts::from([("pods".to_owned(), one())]);
    for (name, amount) in requests {
        let native = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage");
        if native || name.starts_with("hugepages-") {
            used.insert(name.clone(), *amount);
            used.insert(format!("requests.{name}"), *amount);
        } else if name.contains('/') {
            used.insert(format!("requests.{name}"), *amount);
        }
    }
    for name in ["cpu", "memory", "ephemeral-storage"] {
        if let Some(amount) = limits.get(name) {
            used.insert(format!("limits.{name}"), *amount);
        }
    }
    used
}

fn of_service(service: &Value, used: &mut Amounts) {
    let spec = &service["spec"];
    let ports = spec["ports"].as_array().map_or(&[][..], Vec::as_slice);
    let whole = |count: usize| {
        Quantity::from_i64(i64::try_from(count).unwrap_or(i64::MAX), Format::DecimalSi)
    };
    let (node_ports, balancers) = match spec["type"].as_str() {
        Some("NodePort") => (ports.len(), 0),
        Some("LoadBalancer") if spec["allocateLoadBalancerNodePorts"] == false => {
            let set = |port: &&Value| port["nodePort"].as_i64().unwrap_or(0) != 0;
            (ports.iter().filter(set).count(), 1)
        }
        Some("LoadBalancer") => (ports.len(), 1),
        _ => (0, 0),
    };
    used.insert("services".to_owned(), one());
    used.insert("services.nodeports".to_owned(), whole(node_ports));
    used.insert("services.loadbalancers".to_owned(), whole(balancers));
}

fn of_claim(claim: &Value, used: &mut Amounts) {
    used.insert("persistentvolumeclaims".to_owned(), one());
    let class = meta::annotation(claim, "volume.beta.kubernetes.io/storage-class")
        .or_else(|| claim["spec"]["storageClassName"].as_str())
        .unwrap_or_default();
    if !class.is_empty() {
        used.insert(format!("{class}{}", OF_CLASS[1]), one());
    }
    let asked = amounts(&claim["spec"]["resources"]["requests"])
        .remove("storage")
        .or_else(|| amounts(&claim["status"]["allocatedResources"]).remove("storage"));
    let Some(asked) = asked else { return };
    let allocated = amounts(&claim["status"]["allocatedResources"]).remove("storage");
    let storage = allocated.map_or(asked, |allocated| allocated.max(asked));
    used.insert("requests.storage".to_owned(), storage);
    if !class.is_empty() {
        used.insert(format!("{class}{}", OF_CLASS[0]), storage);
    }
}

fn of_devices(claim: &Value, used: &mut Amounts) {
    let requests = claim["spec"]["devices"]["requests"].as_array();
    for request in requests.into_iter().flatten() {
        let alternatives = request["firstAvailable"].as_array();
        let wanted = match alternatives.filter(|list| !list.is_empty()) {
            // One of them it will be; of each class the worst.
            Some(alternatives) => {
                let mut worst = Amounts::new();
                for (name, amount) in alternatives.iter().filter_map(of_class) {
                    let known = worst.entry(name).or_insert(amount);
                    *known = (*known).max(amount);
                }
                worst
            }
            None => of_class(&request["exactly"]).into_iter().collect(),
        };
        totals::add(used, &wanted);
    }
}

/// The devices of its class that a request is for.
fn of_class(request: &Value) -> Option<(String, Quantity)> {
    let class = request["deviceClassName"].as_str()?;
    let count = match request["allocationMode"].as_str() {
        // All that fit: no more than one claim can hold.
        Some("All") => DEVICES_MAX,
        _ => request["count"].as_i64().unwrap_or(1),
    };
    let amount = Quantity::from_i64(count, Format::DecimalSi);
    Some((format!("{class}{OF_DEVICES}"), amount))
}

/// What a claim uses beside [`usage`], of the extended resources that its classes stand for, so that quotas of these hold for
/// claims too. `extended` tells the resource of a class; `of_pod` is what the Pod is charged for the same devices.
pub fn extended_usage(
    claim: &Value,
    extended: impl Fn(&str) -> Option<String>,
    of_pod: &Amounts,
) -> Amounts {
    let mut devices = Amounts::new();
    of_devices(claim, &mut devices);
    let mut beside = Amounts::new();
    for (name, amount) in devices {
        let class = name.strip_suffix(OF_DEVICES).unwrap_or_default();
        let Some(resource) = extended(class).filter(|resource| !resource.is_empty()) else {
            continue;
        };
        for name in [
            format!("{OF_IMPLICIT}{class}"),
            format!("requests.{resource}"),
        ] {
            let paid = of_pod.get(&name).copied().unwrap_or(Quantity::ZERO);
            let owed = amount - paid;
            if !owed.is_zero() && !owed.is_negative() {
                beside.insert(name, owed);
            }
        }
    }
    beside
}

/// The Pod that a claim was made for because of its extended resources: name and uid.
pub fn extended_owner(claim: &Value) -> Option<(&str, &str)> {
    if meta::annotation(claim, EXTENDED_CLAIM) != Some("true") {
        return None;
    }
    let owners = claim["metadata"]["ownerReferences"].as_array()?;
    let owner = owners.iter().find(|owner| owner["controller"] == true)?;
    let is_pod = owner["kind"] == "Pod" && owner["apiVersion"] == "v1";
    owner["name"]
        .as_str()
        .zip(owner["uid"].as_str())
        .filter(|_| is_pod)
}

/// Whether a Pod pays for a claim of its own: it names the claim, or names none yet and this is the first. `others` are the
/// claims of its namespace.
pub fn is_paid_by<'a>(
    claim: &Value,
    pod: &Value,
    mut others: impl Iterator<Item = &'a Value>,
) -> bool {
    let Some((_, uid)) = extended_owner(claim).filter(|(_, uid)| *uid == meta::uid(pod)) else {
        return false;
    };
    match pod["status"]["extendedResourceClaimStatus"]["resourceClaimName"].as_str() {
        Some(named) => named == meta::name(claim),
        None => {
            let age = |claim: &Value| {
                (
                    meta::creation_timestamp(claim),
                    meta::name(claim).to_owned(),
                )
            };
            let mine = age(claim);
            !others.any(|other| {
                extended_owner(other).is_some_and(|(_, of)| of == uid) && age(other) < mine
            })
        }
    }
}

/// Whether a quota is about an object: it limits something that the object may use, and all its scopes fit.
pub fn matches(quota: &Value, limits: &Amounts, group: &str, plural: &str, object: &Value) -> bool {
    limits.keys().any(|name| concerns(group, plural, name))
        && scopes(quota).all(|scope| in_scope(&scope, group, plural, object))
}

struct Scope<'v> {
    name: &'v str,
    operator: &'v str,
    values: Vec<&'v str>,
}

fn scopes(quota: &Value) -> impl Iterator<Item = Scope<'_>> {
    let plain = quota["spec"]["scopes"].as_array().into_iter().flatten();
    let plain = plain.filter_map(Value::as_str).map(|name| Scope {
        name,
        operator: "Exists",
        values: Vec::new(),
    });
    let selected = quota["spec"]["scopeSelector"]["matchExpressions"].as_array();
    let selected = selected.into_iter().flatten().map(|one| Scope {
        name: one["scopeName"].as_str().unwrap_or_default(),
        operator: one["operator"].as_str().unwrap_or_default(),
        values: one["values"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect(),
    });
    plain.chain(selected)
}

impl Scope<'_> {
    fn selects(&self, value: &str) -> bool {
        match self.operator {
            "In" => self.values.contains(&value),
            "NotIn" => !self.values.contains(&value),
            "Exists" => !value.is_empty(),
            "DoesNotExist" => value.is_empty(),
            _ => false,
        }
    }
}

fn in_scope(scope: &Scope<'_>, group: &str, plural: &str, object: &Value) -> bool {
    let spec = &object["spec"];
    match (group, plural, scope.name) {
        ("", "pods", "Terminating") => is_bounded(spec),
        ("", "pods", "NotTerminating") => !is_bounded(spec),
        ("", "pods", "BestEffort") => is_best_effort(spec),
        ("", "pods", "NotBestEffort") => !is_best_effort(spec),
        ("", "pods", "PriorityClass") => {
            let class = spec["priorityClassName"].as_str().unwrap_or_default();
            // A Pod without a class is in no class, also for `NotIn`.
            (scope.operator == "DoesNotExist" || !class.is_empty() || scope.operator == "NotIn")
                && scope.selects(class)
        }
        ("", "pods", "CrossNamespacePodAffinity") => reaches_other_namespaces(spec),
        ("", "persistentvolumeclaims", "VolumeAttributesClass") => {
            let names = [
                &spec["volumeAttributesClassName"],
                &object["status"]["currentVolumeAttributesClassName"],
                &object["status"]["modifyVolumeStatus"]["targetVolumeAttributesClassName"],
            ];
            let names: BTreeSet<&str> = names
                .into_iter()
                .filter_map(Value::as_str)
                .filter(|name| !name.is_empty())
                .collect();
            if names.is_empty() {
                return scope.selects("");
            }
            names.iter().any(|name| scope.selects(name))
        }
        _ => false,
    }
}

/// Has a deadline.
fn is_bounded(spec: &Value) -> bool {
    spec["activeDeadlineSeconds"]
        .as_i64()
        .is_some_and(|secs| secs >= 0)
}

/// No container says anything about CPU or memory.
pub fn is_best_effort(spec: &Value) -> bool {
    let says = |resources: &Value| {
        ["requests", "limits"].iter().any(|field| {
            let list = amounts(&resources[field]);
            ["cpu", "memory"].iter().any(|name| {
                list.get(*name)
                    .is_some_and(|amount| !amount.is_zero() && !amount.is_negative())
            })
        })
    };
    !says(&spec["resources"])
        && !containers(spec, "containers")
            .chain(containers(spec, "initContainers"))
            .any(|container| says(&container["resources"]))
}

fn reaches_other_namespaces(spec: &Value) -> bool {
    let crosses = |term: &Value| {
        term["namespaces"]
            .as_array()
            .is_some_and(|names| !names.is_empty())
            || term["namespaceSelector"].is_object()
    };
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let affinity = &spec["affinity"][kind];
        let hard = affinity["requiredDuringSchedulingIgnoredDuringExecution"].as_array();
        let soft = affinity["preferredDuringSchedulingIgnoredDuringExecution"].as_array();
        hard.into_iter().flatten().any(crosses)
            || soft
                .into_iter()
                .flatten()
                .any(|term| crosses(&term["podAffinityTerm"]))
    })
}

/// What the containers of a Pod leave unsaid that a quota over `limited` counts: `limits.cpu for: c1,c2; …`.
pub fn unsaid<'n>(pod: &Value, limited: impl Iterator<Item = &'n str>) -> Option<String> {
    let spec = &pod["spec"];
    if ["requests", "limits"]
        .iter()
        .any(|field| !amounts(&spec["resources"][field]).is_empty())
    {
        return None;
    }
    let wanted: BTreeSet<&str> = limited.filter(|name| MUST_SAY.contains(name)).collect();
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for container in containers(spec, "containers").chain(containers(spec, "initContainers")) {
        let resources = &container["resources"];
        let said = charged(
            &amounts(&resources["requests"]),
            &amounts(&resources["limits"]),
        );
        for name in wanted.iter().filter(|name| !said.contains_key(**name)) {
            let of_container = container["name"].as_str().unwrap_or_default();
            missing.entry(name).or_default().insert(of_container);
        }
    }
    if missing.is_empty() {
        return None;
    }
    let parts: Vec<String> = missing
        .into_iter()
        .map(|(name, containers)| {
            let containers: Vec<&str> = containers.into_iter().collect();
            format!("{name} for: {}", containers.join(","))
        })
        .collect();
    Some(parts.join("; "))
}

/// Labels of an object satisfy a selector; used where quotas and limits look at both.
pub fn selects(selector: &Value, object: &Value) -> bool {
    LabelSelector::from_value(selector).is_ok_and(|selector| {
        let labels: Vec<(&str, &str)> = meta::labels(object).collect();
        selector.matches(labels.iter().copied())
    })
}

/// `cpu=1,pods=3`, sorted.
pub fn shown(amounts: &Amounts) -> String {
    let parts: Vec<String> = amounts
        .iter()
        .map(|(name, amount)| format!("{name}={amount}"))
        .collect();
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: &str = "2026-01-01T00:00:00Z";

    fn used(group: &str, plural: &str, object: &Value) -> String {
        shown(&usage(group, plural, object, NOW.parse().unwrap()))
    }

    #[test]
    fn objects_use_what_they_are_and_what_they_ask_for() {
        let pod = json!({"spec": {"containers": [{"name": "c", "resources": {
            "requests": {"cpu": "100m", "memory": "1Gi", "example.com/gpu": "2"}, "limits": {"cpu": "1"}}}]}});
        let mut ended = pod.clone();
        ended["status"] = json!({"phase": "Succeeded"});
        let claim = json!({"spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "5Gi"}}}});
        let balanced =
            json!({"spec": {"type": "LoadBalancer", "ports": [{"port": 1}, {"port": 2}]}});
        let exact = |class: &str, count: i64| json!({"deviceClassName": class, "allocationMode": "ExactCount", "count": count});
        let devices = json!({"spec": {"devices": {"requests": [
            {"exactly": exact("a", 2)}, {"exactly": {"deviceClassName": "b", "allocationMode": "All"}},
            {"firstAvailable": [exact("a", 1), exact("b", 1), exact("a", 4)]}]}}});
        let cases = [
            (
                "a pod",
                used("", "pods", &pod),
                "count/pods=1,cpu=100m,limits.cpu=1,memory=1Gi,pods=1,requests.cpu=100m,requests.example.com/gpu=2,requests.memory=1Gi",
            ),
            (
                "a pod that has ended",
                used("", "pods", &ended),
                "count/pods=1",
            ),
            (
                "a claim",
                used("", "persistentvolumeclaims", &claim),
                "count/persistentvolumeclaims=1,gold.storageclass.storage.k8s.io/persistentvolumeclaims=1,\
                 gold.storageclass.storage.k8s.io/requests.storage=5Gi,persistentvolumeclaims=1,requests.storage=5Gi",
            ),
            (
                "a balanced service",
                used("", "services", &balanced),
                "count/services=1,services=1,services.loadbalancers=1,services.nodeports=2",
            ),
            (
                "devices",
                used("resource.k8s.io", "resourceclaims", &devices),
                "a.deviceclass.resource.k8s.io/devices=6,b.deviceclass.resource.k8s.io/devices=33,count/resourceclaims.resource.k8s.io=1",
            ),
            (
                "a secret",
                used("", "secrets", &json!({})),
                "count/secrets=1,secrets=1",
            ),
            (
                "anything else",
                used("apps", "deployments", &json!({})),
                "count/deployments.apps=1",
            ),
        ];
        for (name, got, expected) in cases {
            assert_eq!(got, expected, "case: {name}");
        }
    }

    #[test]
    fn scopes_choose_pods() {
        let plain = json!({"spec": {"containers": [{"name": "c"}]}});
        let bounded = json!({"spec": {"activeDeadlineSeconds": 5, "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]}});
        let urgent = json!({"spec": {"priorityClassName": "high", "containers": []}});
        let quota = |scope: &str| json!({"spec": {"hard": {"pods": "1"}, "scopes": [scope]}});
        let selected = |operator: &str, values: Value| {
            json!({"spec": {"hard": {"pods": "1"}, "scopeSelector": {"matchExpressions": [
                {"scopeName": "PriorityClass", "operator": operator, "values": values}]}}})
        };
        let cases = [
            ("best effort", quota("BestEffort"), &plain, true),
            ("not best effort", quota("BestEffort"), &bounded, false),
            ("with a deadline", quota("Terminating"), &bounded, true),
            ("without one", quota("Terminating"), &plain, false),
            ("of a class", selected("In", json!(["high"])), &urgent, true),
            (
                "of another class",
                selected("In", json!(["low"])),
                &urgent,
                false,
            ),
            ("of no class", selected("In", json!(["low"])), &plain, false),
            ("of any class", selected("Exists", json!([])), &urgent, true),
        ];
        for (name, quota, pod, expected) in cases {
            let hard = amounts(&quota["spec"]["hard"]);
            assert_eq!(
                matches(&quota, &hard, "", "pods", pod),
                expected,
                "case: {name}"
            );
        }
        let hard = amounts(&json!({"services": "1"}));
        assert!(!matches(&json!({}), &hard, "", "pods", &plain));
    }

    #[test]
    fn containers_must_say_what_is_counted() {
        let pod = json!({"spec": {"containers": [{"name": "b"}, {"name": "a", "resources": {"requests": {"cpu": "1"}}}]}});
        assert_eq!(
            unsaid(&pod, ["requests.cpu", "limits.memory", "pods"].into_iter()),
            Some("limits.memory for: a,b; requests.cpu for: b".to_owned())
        );
        assert_eq!(unsaid(&pod, ["pods"].into_iter()), None);
    }

    #[test]
    fn claims_use_extended_resources_unless_their_pod_does() {
        let claim = |name: &str, created: &str, owner: &str| {
            json!({"metadata": {"name": name, "creationTimestamp": created,
                "annotations": {"resource.kubernetes.io/extended-resource-claim": "true"},
                "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": owner, "controller": true}]},
                "spec": {"devices": {"requests": [{"exactly": {"deviceClassName": "gold", "count": 3}}, {"exactly": {"deviceClassName": "plain", "count": 1}}]}}})
        };
        let of = |class: &str| (class == "gold").then(|| "example.com/gpu".to_owned());
        let (early, late) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
        let first = claim("first", early, "u");
        assert_eq!(
            shown(&extended_usage(&first, of, &Amounts::new())),
            "requests.deviceclass.resource.kubernetes.io/gold=3,requests.example.com/gpu=3"
        );
        let paid = amounts(
            &json!({"requests.example.com/gpu": "2", "requests.deviceclass.resource.kubernetes.io/gold": "3"}),
        );
        assert_eq!(
            shown(&extended_usage(&first, of, &paid)),
            "requests.example.com/gpu=1"
        );
        for name in [
            "requests.example.com/gpu",
            "requests.deviceclass.resource.kubernetes.io/gold",
        ] {
            assert!(
                concerns("resource.k8s.io", "resourceclaims", name),
                "{name}"
            );
            assert!(concerns("", "pods", name), "{name}");
        }
        assert!(!concerns(
            "resource.k8s.io",
            "resourceclaims",
            "requests.cpu"
        ));

        let silent = json!({"metadata": {"name": "p", "uid": "u"}});
        let mut naming = silent.clone();
        naming["status"] = json!({"extendedResourceClaimStatus": {"resourceClaimName": "second"}});
        let second = claim("second", late, "u");
        let of_other = claim("zeroth", early, "v");
        let mut of_user = first.clone();
        of_user["metadata"]["annotations"] = json!({});
        let all = [first.clone(), second.clone(), of_other.clone()];
        let cases = [
            ("the first of a pod that names none", &first, &silent, true),
            ("the second", &second, &silent, false),
            ("the one that is named", &second, &naming, true),
            ("another than that", &first, &naming, false),
            ("of another pod", &of_other, &silent, false),
            ("the user's own", &of_user, &silent, false),
        ];
        for (name, claim, pod, expected) in cases {
            assert_eq!(is_paid_by(claim, pod, all.iter()), expected, "case: {name}");
        }
    }
}
