//! Fields that one operating system does not know, where a Pod says which it needs.

use super::node::{Errors, Node};

const NOT_WINDOWS: &str = "cannot be set for a windows pod";
const NOT_LINUX: &str = "windows options cannot be set for a linux pod";

/// Rules of `spec.os`.
pub(super) fn all(spec: &Node<'_>, errors: &mut Errors) {
    match spec.get("os").text("name") {
        "windows" => windows(spec, errors),
        "linux" => linux(spec, errors),
        _ => {}
    }
}

fn windows(spec: &Node<'_>, errors: &mut Errors) {
    let forbid = |parent: &Node<'_>, fields: &[&str], errors: &mut Errors| {
        for field in fields {
            let node = parent.get(field);
            // False flags and empty lists are as good as absent.
            let set = parent.has(field)
                && node.value.as_bool() != Some(false)
                && node.value.as_array().is_none_or(|items| !items.is_empty());
            if set {
                node.forbidden(NOT_WINDOWS, errors);
            }
        }
    };
    forbid(
        spec,
        &["hostPID", "hostIPC", "hostUsers", "shareProcessNamespace"],
        errors,
    );
    let context = spec.get("securityContext");
    let of_pod = [
        "appArmorProfile",
        "seLinuxOptions",
        "seccompProfile",
        "fsGroup",
        "fsGroupChangePolicy",
        "sysctls",
        "runAsUser",
        "runAsGroup",
        "supplementalGroups",
        "supplementalGroupsPolicy",
    ];
    forbid(&context, &of_pod, errors);
    let of_container = [
        "appArmorProfile",
        "seLinuxOptions",
        "seccompProfile",
        "capabilities",
        "readOnlyRootFilesystem",
        "privileged",
        "allowPrivilegeEscalation",
        "procMount",
        "runAsUser",
        "runAsGroup",
    ];
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in spec.items(list) {
            forbid(&container.get("securityContext"), &of_container, errors);
        }
    }
}

fn linux(spec: &Node<'_>, errors: &mut Errors) {
    let check = |parent: &Node<'_>, errors: &mut Errors| {
        let context = parent.get("securityContext");
        if context.has("windowsOptions") {
            context.get("windowsOptions").forbidden(NOT_LINUX, errors);
        }
    };
    check(spec, errors);
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in spec.items(list) {
            check(&container, errors);
        }
    }
}
