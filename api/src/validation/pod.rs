//! Pods and Pod specs: creation, the few fields that may change, and status.

use super::container::Around;
use super::node::{Errors, Node};
use super::{
    FieldError, annotations, claims, container, env, os, resources, scheduling, security, volume,
};
use crate::{meta, names};
use serde_json::{Map, Value};
use std::collections::HashSet;

/// Rules of a new Pod.
pub(super) fn create(pod: &Node<'_>, errors: &mut Errors) {
    annotations::pod(pod, errors);
    let root = pod.get("spec");
    let is_mirror = meta::annotation(pod.value, "kubernetes.io/config.mirror").is_some();
    if is_mirror && root.len("resourceClaims") > 0 {
        let why = "static pods do not support resource claims";
        errors.push(FieldError::forbidden("[]", why));
    }
    spec(&root, errors);
    if root.len("ephemeralContainers") > 0 {
        root.get("ephemeralContainers")
            .forbidden("cannot be set on create", errors);
    }
    if !root.text("nodeName").is_empty() && root.len("schedulingGates") > 0 {
        root.get("nodeName").forbidden(
            "cannot be set until all schedulingGates have been cleared",
            errors,
        );
    }
}

/// Rules of a Pod template, wherever it stands.
pub(super) fn template(template: &Node<'_>, errors: &mut Errors) {
    let metadata = template.get("metadata");
    // Upstream leaves `metadata` out of these paths.
    super::meta::labels(
        metadata.value.get("labels"),
        &template.get("labels"),
        errors,
    );
    super::meta::annotations(
        metadata.value.get("annotations"),
        &template.get("annotations"),
        errors,
    );
    let root = template.get("spec");
    spec(&root, errors);
    if root.len("ephemeralContainers") > 0 {
        root.get("ephemeralContainers")
            .forbidden("ephemeral containers not allowed in pod template", errors);
    }
}

/// Rules of a Pod spec.
pub(super) fn spec(spec: &Node<'_>, errors: &mut Errors) {
    let volumes = volume::all(spec, errors);
    let claims: HashSet<&str> = spec
        .items("resourceClaims")
        .map(|claim| claim.text("name"))
        .collect();
    claims::all(spec, errors);
    let around = Around {
        volumes: &volumes,
        claims: &claims,
        grace_secs: spec.int("terminationGracePeriodSeconds"),
        never_restarts: spec.text("restartPolicy") == "Never",
        host_network: spec.flag("hostNetwork"),
    };
    container::all(spec, &around, errors);
    pod_resources(spec, &claims, errors);
    spec.get("restartPolicy")
        .one_of(&["Always", "OnFailure", "Never"], errors);
    spec.get("dnsPolicy").one_of(
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
        errors,
    );
    super::meta::labels(
        spec.value.get("nodeSelector"),
        &spec.get("nodeSelector"),
        errors,
    );
    security::pod(spec, errors);
    scheduling::all(spec, errors);
    dns(spec, errors);
    for gate in spec.items("readinessGates") {
        let kind = gate.get("conditionType");
        kind.all_invalid(names::qualified_name(kind.as_text()), errors);
    }
    scheduling_gates(spec, errors);
    object_names(spec, errors);
    spec.in_range("activeDeadlineSeconds", 1, i64::from(i32::MAX), errors);
    host_aliases(spec, errors);
    if let Some(policy) = spec.some("preemptionPolicy") {
        policy.one_of(&["PreemptLowerPriority", "Never"], errors);
    }
    resources::overhead(spec, "overhead", errors);
    if let Some(os) = spec.some("os") {
        if os.text("name").is_empty() {
            os.get("name").required("", errors);
        } else if !["linux", "windows"].contains(&os.text("name")) {
            let path = os.path();
            errors.push(FieldError::not_supported(
                path,
                os.text("name"),
                &["linux", "windows"],
            ));
        }
    }
    os::all(spec, errors);
    env::file_volumes(spec, errors);
    if spec.value.get("hostUsers").and_then(Value::as_bool) == Some(false) {
        for field in ["hostNetwork", "hostPID", "hostIPC"]
            .into_iter()
            .filter(|field| spec.flag(field))
        {
            spec.get(field)
                .forbidden("when `hostUsers` is false", errors);
        }
    }
}

/// Resources of the Pod as a whole: at least what its containers ask for, and no container beyond them.
fn pod_resources(spec: &Node<'_>, claims: &HashSet<&str>, errors: &mut Errors) {
    let Some(resources) = spec.some("resources") else {
        return;
    };
    if spec.get("os").text("name") == "windows" {
        resources.forbidden("may not be set for a windows pod", errors);
        return;
    }
    if resources.has("claims") {
        resources
            .get("claims")
            .forbidden("claims may not be set for Resources at pod-level", errors);
    }
    resources::pod_requirements(&resources, errors);
    claims::of_container(&resources, claims, errors);
    resources::pod_covers_containers(spec, &resources, errors);
}

fn object_names(spec: &Node<'_>, errors: &mut Errors) {
    for field in [
        "serviceAccountName",
        "nodeName",
        "priorityClassName",
        "runtimeClassName",
    ] {
        let name = spec.get(field);
        if !name.as_text().is_empty() {
            name.all_invalid(names::dns_subdomain(name.as_text()), errors);
        }
    }
    for field in ["hostname", "subdomain"] {
        let name = spec.get(field);
        if !name.as_text().is_empty() {
            name.all_invalid(names::dns_label(name.as_text()), errors);
        }
    }
}

fn scheduling_gates(spec: &Node<'_>, errors: &mut Errors) {
    let mut taken = HashSet::new();
    for gate in spec.items("schedulingGates") {
        for detail in names::qualified_name(gate.text("name")) {
            errors.push(FieldError::invalid(gate.path(), gate.text("name"), detail));
        }
        if !taken.insert(gate.text("name")) {
            errors.push(FieldError::duplicate(gate.path(), gate.text("name")));
        }
    }
}

fn dns(spec: &Node<'_>, errors: &mut Errors) {
    let config = spec.get("dnsConfig");
    if spec.text("dnsPolicy") == "None" && config.len("nameservers") == 0 {
        let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        if config.value.is_null() {
            config.required("must provide `dnsConfig` when `dnsPolicy` is None", errors)
        } else {
            config.get("nameservers").required(detail, errors)
        }
    }
    if config.len("nameservers") > 3 {
        config
            .get("nameservers")
            .invalid("must not have more than 3 nameservers", errors);
    }
    for server in config.items("nameservers") {
        server.all_invalid(names::ip(server.as_text()), errors);
    }
    if config.len("searches") > 32 {
        config
            .get("searches")
            .invalid("must not have more than 32 search paths", errors);
    }
    for search in config.items("searches") {
        let text = search
            .as_text()
            .strip_suffix('.')
            .unwrap_or(search.as_text());
        // Underscores are not in RFC 1123, but resolvers take them.
        if !text.is_empty() {
            search.all_invalid(
                names::dns_subdomain(text.replace('_', "-").trim_matches('-')),
                errors,
            );
        }
    }
    for option in config.items("options") {
        if option.text("name").is_empty() {
            option.required("must not be empty", errors);
        }
    }
}

fn host_aliases(spec: &Node<'_>, errors: &mut Errors) {
    for alias in spec.items("hostAliases") {
        let ip = alias.get("ip");
        ip.all_invalid(names::ip(ip.as_text()), errors);
        for hostname in alias.items("hostnames") {
            hostname.all_invalid(names::dns_subdomain(hostname.as_text()), errors);
        }
    }
}

/// What a Pod lets change, as the refusal lists it.
const MUTABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Rules of an update of a Pod's main endpoint.
pub(super) fn update(new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    annotations::pod(new, errors);
    annotations::pod_update(new, old, errors);
    let (spec, before) = (new.get("spec"), old.get("spec"));
    for list in ["containers", "initContainers"] {
        if spec.len(list) != before.len(list) {
            spec.get(list)
                .forbidden("pod updates may not add or remove containers", errors);
            return;
        }
        for container in spec.items(list) {
            if container.need("image", errors)
                && container.text("image").trim() != container.text("image")
            {
                container
                    .get("image")
                    .invalid("must not have leading or trailing whitespace", errors);
            }
        }
    }
    active_deadline(&spec, &before, errors);
    for toleration in spec.items("tolerations") {
        scheduling::toleration(&toleration, errors);
    }
    added_tolerations(&spec, &before, errors);
    removed_gates(&spec, &before, errors);
    super::meta::labels(
        spec.value.get("nodeSelector"),
        &spec.get("nodeSelector"),
        errors,
    );
    let changed = forbidden_changes(spec.value, before.value);
    if !changed.is_empty() {
        let diff: Vec<String> = changed
            .into_iter()
            .map(|field| format!("  spec.{field} differs"))
            .collect();
        spec.forbidden(
            format!(
                "pod updates may not change fields other than {MUTABLE}\n{}\n",
                diff.join("\n")
            ),
            errors,
        );
    }
}

fn active_deadline(spec: &Node<'_>, before: &Node<'_>, errors: &mut Errors) {
    let node = spec.get("activeDeadlineSeconds");
    match (
        spec.int("activeDeadlineSeconds"),
        before.int("activeDeadlineSeconds"),
    ) {
        (Some(new), _) if !(0..=i64::from(i32::MAX)).contains(&new) => node.invalid(
            format!("must be between 0 and {}, inclusive", i32::MAX),
            errors,
        ),
        (Some(new), Some(old)) if new > old => {
            node.invalid("must be less than or equal to previous value", errors)
        }
        (None, Some(_)) => node.invalid(
            "must not update from a positive integer to nil value",
            errors,
        ),
        _ => {}
    }
}

/// Tolerations may be added, and the seconds of one may change.
fn added_tolerations(spec: &Node<'_>, before: &Node<'_>, errors: &mut Errors) {
    // As text, since a long list would make comparing each with each slow.
    let without_secs = |toleration: &Value| {
        let mut toleration = toleration.clone();
        if let Some(object) = toleration.as_object_mut() {
            object.remove("tolerationSeconds");
        }
        toleration.to_string()
    };
    let new: HashSet<String> = spec
        .items("tolerations")
        .map(|t| without_secs(t.value))
        .collect();
    if before
        .items("tolerations")
        .any(|old| !new.contains(&without_secs(old.value)))
    {
        spec.get("tolerations").forbidden(
            "existing toleration can not be modified except its tolerationSeconds",
            errors,
        );
    }
}

fn removed_gates(spec: &Node<'_>, before: &Node<'_>, errors: &mut Errors) {
    let old: HashSet<&str> = before
        .items("schedulingGates")
        .map(|gate| gate.text("name"))
        .collect();
    for gate in spec
        .items("schedulingGates")
        .filter(|gate| !old.contains(gate.text("name")))
    {
        let why = format!(
            "only deletion is allowed, but found new scheduling gate '{}'",
            gate.text("name")
        );
        errors.push(FieldError::forbidden(gate.path(), why));
    }
}

/// Names of the spec's fields that differ where they must not.
fn forbidden_changes(new: &Value, old: &Value) -> Vec<String> {
    let empty = Map::new();
    let (new, old) = (
        new.as_object().unwrap_or(&empty),
        old.as_object().unwrap_or(&empty),
    );
    let gated = old
        .get("schedulingGates")
        .and_then(Value::as_array)
        .is_some_and(|gates| !gates.is_empty());
    let mut changed = Vec::new();
    for field in new
        .keys()
        .chain(old.keys().filter(|key| !new.contains_key(*key)))
    {
        let (to, from) = (new.get(field), old.get(field));
        let same = match field.as_str() {
            "activeDeadlineSeconds" | "tolerations" | "schedulingGates" => true,
            "terminationGracePeriodSeconds" => {
                to == from
                    || from.and_then(Value::as_i64).is_some_and(|secs| secs < 0)
                        && to.and_then(Value::as_i64) == Some(1)
            }
            "containers" | "initContainers" => without_images(to) == without_images(from),
            // Before it is scheduled, a gated Pod may become pickier.
            "nodeSelector" if gated => is_superset(to, from),
            "affinity" if gated => true,
            _ => to == from,
        };
        if !same {
            changed.push(field.clone());
        }
    }
    changed
}

fn is_superset(new: Option<&Value>, old: Option<&Value>) -> bool {
    old.and_then(Value::as_object)
        .into_iter()
        .flatten()
        .all(|(key, value)| new.and_then(|n| n.get(key)) == Some(value))
}

fn without_images(containers: Option<&Value>) -> Vec<Value> {
    let mut containers: Vec<Value> = containers
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    for container in containers.iter_mut().filter_map(Value::as_object_mut) {
        container.remove("image");
    }
    containers
}

/// Resources that may change while a Pod runs.
const RESIZABLE: [&str; 2] = ["cpu", "memory"];

/// Rules of an update through `/resize`.
pub(super) fn update_resources(new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    let (spec, before) = (new.get("spec"), old.get("spec"));
    self::spec(&spec, errors);
    let before_os = before.get("os");
    for (forbidden, why) in [
        (
            meta::annotation(old.value, "kubernetes.io/config.mirror").is_some(),
            "static pods cannot be resized",
        ),
        (
            before_os.text("name") == "windows",
            "windows pods cannot be resized",
        ),
    ] {
        if forbidden {
            *errors = vec![FieldError::forbidden("[]", why)];
            return;
        }
    }
    if crate::strategy::qos_class(new.value) != crate::strategy::qos_class(old.value) {
        let class = crate::strategy::qos_class(old.value).as_str();
        let why = "Pod QOS Class may not change as a result of resizing";
        errors.push(FieldError::invalid("spec", class, why));
    }
    if !node_resizes(old) {
        let why = "Pod running on node without support for resize";
        errors.push(FieldError::forbidden("spec", why));
    }
    let pod_level = |spec: &Node<'_>| {
        let resources = spec.get("resources");
        resources.len("requests") + resources.len("limits") > 0
    };
    if pod_level(&spec) || pod_level(&before) {
        pod_level_resize(&spec, &before, errors);
    }
    if old
        .get("status")
        .len("nodeAllocatableResourceClaimStatuses")
        > 0
    {
        let why = "pods with node allocatable resource claims cannot be resized";
        errors.push(FieldError::forbidden("spec", why));
    }
    if !same_containers(&spec, &before, errors) {
        return;
    }
    for list in ["initContainers", "containers"] {
        for (container, earlier) in spec.items(list).zip(before.items(list)) {
            container_resize(list, &container, &earlier, errors);
        }
    }
}

/// Does the Pod's node resize? One that does publishes what a running container has; before any runs, nobody knows.
fn node_resizes(pod: &Node<'_>) -> bool {
    pod.get("status")
        .items("containerStatuses")
        .find(|status| status.get("state").has("running"))
        .is_none_or(|status| status.has("resources"))
}

fn same_containers(spec: &Node<'_>, before: &Node<'_>, errors: &mut Errors) -> bool {
    let found = errors.len();
    for list in ["containers", "initContainers"] {
        if spec.len(list) != before.len(list) {
            let why = format!("{list} may not be added or removed on resize");
            spec.get(list).forbidden(why, errors);
            continue;
        }
        for (container, earlier) in spec.items(list).zip(before.items(list)) {
            if container.text("name") != earlier.text("name") {
                let why = format!("{list} may not be renamed or reordered on resize");
                container.get("name").forbidden(why, errors);
            }
        }
    }
    errors.len() == found
}

/// Did a resource lose its amount?
fn removed(resources: &Node<'_>, before: &Node<'_>, list: &str) -> bool {
    let now = resources.get(list);
    before.entries(list).any(|(name, _)| !now.has(name))
}

/// The resources without what may change.
fn rest(resources: &Node<'_>) -> Vec<(String, String, Value)> {
    ["limits", "requests"]
        .iter()
        .flat_map(|list| {
            let amounts = resources.value.get(*list).and_then(Value::as_object);
            let fixed = amounts
                .into_iter()
                .flatten()
                .filter(|(name, _)| !RESIZABLE.contains(&name.as_str()));
            fixed.map(move |(name, amount)| ((*list).to_owned(), name.clone(), amount.clone()))
        })
        .collect()
}

fn container_resize(list: &str, container: &Node<'_>, earlier: &Node<'_>, errors: &mut Errors) {
    let (resources, before) = (container.get("resources"), earlier.get("resources"));
    for (field, what) in [("requests", "requests"), ("limits", "limits")] {
        if removed(&resources, &before, field) {
            resources
                .get(field)
                .forbidden(format!("resource {what} cannot be removed"), errors);
        }
    }
    // A container with claims cannot change at all: upstream drops them before it compares.
    if before.len("claims") > 0
        || rest(&resources) != rest(&before)
        || container.differs(earlier, "resizePolicy")
    {
        if list == "containers" {
            errors.push(FieldError::forbidden(
                "spec",
                "only cpu and memory resources are mutable",
            ));
        } else {
            let why = "only cpu and memory resources for init or sidecar containers are mutable";
            container.forbidden(why, errors);
        }
    }
    // One that runs once cannot start again with more. Such a policy may stand in Pods of earlier releases.
    let runs_once = list == "initContainers" && container.text("restartPolicy") != "Always";
    if runs_once && container.value != earlier.value {
        let restarting = container
            .items("resizePolicy")
            .filter(|policy| policy.text("restartPolicy") == "RestartContainer");
        for _ in restarting {
            let why = "non-sidecar init containers with a resize policy of RestartContainer cannot be resized";
            container.forbidden(why, errors);
        }
    }
}

fn pod_level_resize(spec: &Node<'_>, before: &Node<'_>, errors: &mut Errors) {
    let (resources, earlier) = (spec.get("resources"), before.get("resources"));
    if !earlier.value.is_null() && resources.value.is_null() {
        resources.forbidden("pod-level resources cannot be removed", errors);
        return;
    }
    for field in ["requests", "limits"] {
        if removed(&resources, &earlier, field) {
            resources.get(field).forbidden(
                format!("pod-level resource {field} cannot be removed"),
                errors,
            );
        }
    }
    if rest(&resources) != rest(&earlier) {
        let why = "only cpu and memory resources are mutable at pod-level";
        errors.push(FieldError::forbidden("spec", why));
    }
}

/// Rules of an update through `/ephemeralcontainers`.
pub(super) fn update_ephemeral_containers(new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    let root = new.get("spec");
    spec(&root, errors);
    let before = old.get("spec");
    for container in before.items("ephemeralContainers") {
        let name = container.text("name");
        match root
            .items("ephemeralContainers")
            .find(|c| c.text("name") == name)
        {
            None => root.get("ephemeralContainers").forbidden(
                format!(
                    "existing ephemeral containers {} may not be removed\n",
                    crate::text::quote(name)
                ),
                errors,
            ),
            Some(new) if new.value != container.value => {
                root.get("ephemeralContainers").forbidden(
                    format!(
                        "existing ephemeral containers {} may not be changed\n",
                        crate::text::quote(name)
                    ),
                    errors,
                );
            }
            Some(_) => {}
        }
    }
}

/// Rules of an update through `/status`.
pub(super) fn update_status(new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    let (status, before) = (new.get("status"), old.get("status"));
    let nominated = status.get("nominatedNodeName");
    if status.differs(&before, "nominatedNodeName") && !nominated.as_text().is_empty() {
        nominated.check(names::dns_subdomain, errors);
        if !old.get("spec").text("nodeName").is_empty() {
            let why = "may not be set on pods that are already bound to a node";
            nominated.forbidden(why, errors);
        }
    }
    for ips in ["podIPs", "hostIPs"] {
        for entry in status.items(ips) {
            let ip = entry.get("ip");
            ip.all_invalid(names::ip(ip.as_text()), errors);
        }
    }
    super::claims::of_status(new, errors);
    for condition in status.items("conditions") {
        let kind = condition.get("type");
        kind.all_invalid(names::qualified_name(kind.as_text()), errors);
        condition
            .get("status")
            .one_of(&["True", "False", "Unknown"], errors);
    }
    // A container that may not be started again stays terminated.
    let policy = new.get("spec");
    if policy.text("restartPolicy") == "Always" || may_restart_all(&policy) {
        return;
    }
    for after in status.items("containerStatuses") {
        let Some(earlier) = before
            .items("containerStatuses")
            .find(|c| c.text("name") == after.text("name"))
        else {
            continue;
        };
        let code = earlier
            .value
            .pointer("/state/terminated/exitCode")
            .and_then(Value::as_i64);
        let was_final =
            code.is_some_and(|code| policy.text("restartPolicy") == "Never" || code == 0);
        if was_final
            && after.value.pointer("/state/terminated").is_none()
            && !has_restart_rules(&policy, after.text("name"))
        {
            after
                .get("state")
                .forbidden("may not be transitioned to non-terminated state", errors);
        }
    }
}

/// Whether a container may end so that all others start again, whatever their own policy.
fn may_restart_all(spec: &Node<'_>) -> bool {
    let may = |container: Node<'_>| {
        let mut rules = container.items("restartPolicyRules");
        rules.any(|rule| rule.text("action") == "RestartAllContainers")
    };
    spec.items("initContainers").any(may) || spec.items("containers").any(may)
}

fn has_restart_rules(spec: &Node<'_>, name: &str) -> bool {
    spec.items("containers")
        .any(|c| c.text("name") == name && (c.has("restartPolicyRules") || c.has("restartPolicy")))
}
