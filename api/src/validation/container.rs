//! Containers: main, init and ephemeral.

use super::node::{Errors, Node, repath};
use super::{FieldError, env, probe, resources, restart, security};
use crate::names;
use serde_json::Value;
use std::collections::HashSet;

/// What the containers of a Pod may refer to.
pub(super) struct Around<'a> {
    /// Names of the Pod's volumes.
    pub(super) volumes: &'a HashSet<&'a str>,
    /// Names of its resource claims.
    pub(super) claims: &'a HashSet<&'a str>,
    /// `terminationGracePeriodSeconds`.
    pub(super) grace_secs: Option<i64>,
    /// `restartPolicy` of the Pod is Never.
    pub(super) never_restarts: bool,
    /// The Pod uses the host's network.
    pub(super) host_network: bool,
}

/// Rules of all containers of a Pod spec.
pub(super) fn all(spec: &Node<'_>, around: &Around<'_>, errors: &mut Errors) {
    let mut names_taken = HashSet::new();
    if spec.len("containers") == 0 {
        spec.get("containers").required("", errors);
    }
    for container in spec.items("containers") {
        common(&container, around, errors);
        unique_name(&container, &mut names_taken, errors);
        probe::all(&container, around.grace_secs, errors);
        restart::all(&container, errors);
    }
    for container in spec.items("initContainers") {
        common(&container, around, errors);
        unique_name(&container, &mut names_taken, errors);
        init(&container, around, errors);
    }
    for container in spec.items("ephemeralContainers") {
        ephemeral(spec, &container, around, &mut names_taken, errors);
    }
    host_ports(spec, errors);
}

fn unique_name<'a>(container: &Node<'a>, taken: &mut HashSet<&'a str>, errors: &mut Errors) {
    if !container.text("name").is_empty() && !taken.insert(container.text("name")) {
        container.get("name").duplicate(errors);
    }
}

fn common(container: &Node<'_>, around: &Around<'_>, errors: &mut Errors) {
    if container.need("name", errors) {
        let name = container.get("name");
        name.all_invalid(names::dns_label(name.as_text()), errors);
    }
    if container.need("image", errors) {
        let image = container.get("image");
        if image.as_text().trim() != image.as_text() {
            image.invalid("must not have leading or trailing whitespace", errors);
        }
    }
    container
        .get("terminationMessagePolicy")
        .one_of(&["File", "FallbackToLogsOnError"], errors);
    ports(container, around, errors);
    env::all(container, errors);
    volume_mounts(container, around.volumes, errors);
    volume_devices(container, around.volumes, errors);
    container
        .get("imagePullPolicy")
        .one_of(&["Always", "IfNotPresent", "Never"], errors);
    if let Some(resources) = container.some("resources") {
        resources::requirements(&resources, errors);
        super::claims::of_container(&resources, around.claims, errors);
    }
    if let Some(context) = container.some("securityContext") {
        security::container(&context, errors);
    }
    resize_policies(container, around, errors);
}

/// Upstream names the list, not the item.
fn resize_policies(container: &Node<'_>, around: &Around<'_>, errors: &mut Errors) {
    let mut taken = HashSet::new();
    let list = container.get("resizePolicy");
    for policy in container.items("resizePolicy") {
        for (field, supported) in [
            ("resourceName", ["cpu", "memory"]),
            ("restartPolicy", ["NotRequired", "RestartContainer"]),
        ] {
            let value = policy.text(field);
            if value.is_empty() {
                list.required("", errors);
            } else if !supported.contains(&value) {
                errors.push(FieldError::not_supported(list.path(), value, &supported));
            }
        }
        if around.never_restarts && policy.text("restartPolicy") != "NotRequired" {
            let why = "must be 'NotRequired' when pod `restartPolicy` is 'Never'";
            let value = policy.text("restartPolicy");
            errors.push(FieldError::invalid(list.path(), value, why));
        }
        if !taken.insert(policy.text("resourceName")) {
            errors.push(FieldError::duplicate(
                policy.path(),
                policy.text("resourceName"),
            ));
        }
    }
}

/// What an init container that runs once cannot have in its `resizePolicy`.
const NO_RESTART: &str = "must not be set to 'RestartContainer' for non-sidecar initContainers";

/// Pods and templates of earlier releases may have what a new one cannot: it may stay.
pub(super) fn allow_existing(old: &Value, errors: &mut Errors) {
    if !errors.iter().any(|error| error.detail == NO_RESTART) {
        return;
    }
    let specs = [
        "/spec",
        "/spec/template/spec",
        "/template/spec",
        "/spec/jobTemplate/spec/template/spec",
    ];
    let has = |spec: &Value| {
        let list = spec.get("initContainers").and_then(Value::as_array);
        list.into_iter()
            .flatten()
            .filter(|container| container["restartPolicy"] != "Always")
            .filter_map(|container| container.get("resizePolicy")?.as_array())
            .flatten()
            .any(|policy| policy["restartPolicy"] == "RestartContainer")
    };
    if specs.iter().filter_map(|at| old.pointer(at)).any(has) {
        errors.retain(|error| error.detail != NO_RESTART);
    }
}

fn init(container: &Node<'_>, around: &Around<'_>, errors: &mut Errors) {
    restart::all(container, errors);
    if container.text("restartPolicy") == "Always" {
        probe::all(container, around.grace_secs, errors);
        return;
    }
    for policy in container.items("resizePolicy") {
        if policy.text("restartPolicy") == "RestartContainer" {
            policy.get("restartPolicy").invalid(NO_RESTART, errors);
        }
    }
    for field in [
        "lifecycle",
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
    ] {
        if let Some(node) = container.some(field) {
            node.forbidden(
                "may not be set for init containers without restartPolicy=Always",
                errors,
            );
        }
    }
}

fn ephemeral<'a>(
    spec: &Node<'a>,
    container: &Node<'a>,
    around: &Around<'_>,
    taken: &mut HashSet<&'a str>,
    errors: &mut Errors,
) {
    common(container, around, errors);
    unique_name(container, taken, errors);
    let target = container.text("targetContainerName");
    let exists = ["containers", "initContainers"]
        .iter()
        .any(|list| spec.items(list).any(|c| c.text("name") == target));
    if !target.is_empty() && !exists {
        errors.push(FieldError::not_found(
            container.get("targetContainerName").path(),
            target,
        ));
    }
    for field in [
        "ports",
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
        "lifecycle",
        "resizePolicy",
        "restartPolicy",
    ] {
        if container.has(field) {
            container
                .get(field)
                .forbidden("cannot be set for an Ephemeral Container", errors);
        }
    }
    let resources = container.get("resources");
    if resources.len("limits") + resources.len("requests") + resources.len("claims") > 0 {
        resources.forbidden("cannot be set for an Ephemeral Container", errors);
    }
    for mount in container.items("volumeMounts") {
        for field in ["subPath", "subPathExpr"] {
            if !mount.text(field).is_empty() {
                mount
                    .get(field)
                    .forbidden("cannot be set for an Ephemeral Container", errors);
            }
        }
    }
}

fn ports(container: &Node<'_>, around: &Around<'_>, errors: &mut Errors) {
    let mut taken = HashSet::new();
    for port in container.items("ports") {
        let name = port.get("name");
        if !name.as_text().is_empty() {
            let problems = names::port_name(name.as_text());
            if problems.is_empty() && !taken.insert(port.text("name")) {
                name.duplicate(errors);
            }
            name.all_invalid(problems, errors);
        }
        let number = port.int("containerPort").unwrap_or(0);
        if number == 0 {
            port.get("containerPort").required("", errors);
        } else {
            port.get("containerPort")
                .all_invalid(names::port_number(number), errors);
        }
        let host_port = port.int("hostPort").unwrap_or(0);
        if host_port != 0 {
            port.get("hostPort")
                .all_invalid(names::port_number(host_port), errors);
        }
        if around.host_network && host_port != number {
            port.get("containerPort")
                .invalid("must match `hostPort` when `hostNetwork` is true", errors);
        }
        let host_ip = port.get("hostIP");
        if !host_ip.as_text().is_empty() {
            host_ip.all_invalid(names::ip(host_ip.as_text()), errors);
        }
        port.get("protocol").one_of(&["SCTP", "TCP", "UDP"], errors);
    }
}

/// Two containers of a Pod cannot both have one port of the host.
fn host_ports(spec: &Node<'_>, errors: &mut Errors) {
    let mut taken = HashSet::new();
    for container in spec.items("containers") {
        for port in container.items("ports") {
            let Some(number) = port.int("hostPort").filter(|number| *number != 0) else {
                continue;
            };
            let key = format!("{}/{}/{number}", port.text("protocol"), port.text("hostIP"));
            if !taken.insert(key.clone()) {
                errors.push(FieldError::duplicate(port.get("hostPort").path(), key));
            }
        }
    }
}

fn volume_mounts(container: &Node<'_>, volumes: &HashSet<&str>, errors: &mut Errors) {
    let mut paths = HashSet::new();
    let privileged = container.get("securityContext").flag("privileged");
    for mount in container.items("volumeMounts") {
        mount.need("name", errors);
        let name = mount.text("name");
        if !volumes.contains(name) {
            errors.push(FieldError::not_found(mount.get("name").path(), name));
        }
        mount.need("mountPath", errors);
        if !mount.text("mountPath").is_empty() && !paths.insert(mount.text("mountPath")) {
            mount.get("mountPath").invalid("must be unique", errors);
        }
        for field in ["subPath", "subPathExpr"] {
            descending_path(&mount.get(field), errors);
        }
        if !mount.text("subPath").is_empty() && !mount.text("subPathExpr").is_empty() {
            mount
                .get("subPathExpr")
                .invalid("subPathExpr and subPath are mutually exclusive", errors);
        }
        let since = errors.len();
        let propagation = mount.get("mountPropagation");
        propagation.one_of_if_set(&["Bidirectional", "HostToContainer", "None"], errors);
        if propagation.as_text() == "Bidirectional" && !privileged {
            propagation.forbidden(
                "Bidirectional mount propagation is available only to privileged containers",
                errors,
            );
        }
        let recursive = mount.get("recursiveReadOnly");
        recursive.one_of_if_set(&["Disabled", "Enabled", "IfPossible"], errors);
        if matches!(recursive.as_text(), "Enabled" | "IfPossible") && !mount.flag("readOnly") {
            recursive.forbidden("may only be specified when readOnly is true", errors);
        }
        if matches!(recursive.as_text(), "Enabled" | "IfPossible")
            && !matches!(propagation.value.as_str(), None | Some("None"))
        {
            let why = "may only be specified when mountPropagation is None or not specified";
            recursive.forbidden(why, errors);
        }
        let item = format!("{}.", mount.path());
        let list = format!("{}.", container.get("volumeMounts").path());
        repath(errors, since, &item, &list);
    }
}

fn volume_devices(container: &Node<'_>, volumes: &HashSet<&str>, errors: &mut Errors) {
    let mut paths = HashSet::new();
    for device in container.items("volumeDevices") {
        device.need("name", errors);
        if !volumes.contains(device.text("name")) {
            errors.push(FieldError::not_found(
                device.get("name").path(),
                device.text("name"),
            ));
        }
        device.need("devicePath", errors);
        if !device.text("devicePath").is_empty() && !paths.insert(device.text("devicePath")) {
            device.get("devicePath").invalid("must be unique", errors);
        }
    }
}

/// A path that stays below where it starts.
pub(super) fn descending_path(path: &Node<'_>, errors: &mut Errors) {
    if path.as_text().starts_with('/') {
        path.invalid("must be a relative path", errors);
    }
    no_backsteps(path, errors);
}

/// No `..` among the parts of a path.
pub(super) fn no_backsteps(path: &Node<'_>, errors: &mut Errors) {
    if path.as_text().split('/').any(|part| part == "..") {
        path.invalid("must not contain '..'", errors);
    }
}
