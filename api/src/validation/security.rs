//! Security contexts of Pods and containers.

use super::node::{Errors, Node};
use crate::names;

const ID_MAX: i64 = i32::MAX as i64;

/// Rules of a container's security context.
pub(super) fn container(context: &Node<'_>, errors: &mut Errors) {
    ids(context, errors);
    context
        .get("procMount")
        .one_of_if_set(&["Default", "Unmasked"], errors);
    profiles(context, errors);
    if context
        .value
        .get("allowPrivilegeEscalation")
        .and_then(serde_json::Value::as_bool)
        == Some(false)
    {
        if context.flag("privileged") {
            context.invalid(
                "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
                errors,
            );
        }
        let capabilities = context.get("capabilities");
        let adds_admin = capabilities
            .items("add")
            .any(|c| c.as_text() == "CAP_SYS_ADMIN");
        if adds_admin {
            context.invalid("cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN", errors);
        }
    }
}

/// Rules of a Pod's security context.
pub(super) fn pod(spec: &Node<'_>, errors: &mut Errors) {
    if spec.flag("hostPID") && spec.flag("shareProcessNamespace") {
        spec.get("shareProcessNamespace").invalid(
            "ShareProcessNamespace and HostPID cannot both be enabled",
            errors,
        );
    }
    let Some(context) = spec.some("securityContext") else {
        return;
    };
    ids(&context, errors);
    context.in_range("fsGroup", 0, ID_MAX, errors);
    for group in context.items("supplementalGroups") {
        if !group
            .value
            .as_i64()
            .is_some_and(|id| (0..=ID_MAX).contains(&id))
        {
            group.invalid(format!("must be between 0 and {ID_MAX}, inclusive"), errors);
        }
    }
    context
        .get("fsGroupChangePolicy")
        .one_of_if_set(&["Always", "OnRootMismatch"], errors);
    context
        .get("supplementalGroupsPolicy")
        .one_of_if_set(&["Merge", "Strict"], errors);
    sysctls(spec, &context, errors);
    profiles(&context, errors);
}

fn ids(context: &Node<'_>, errors: &mut Errors) {
    context.in_range("runAsUser", 0, ID_MAX, errors);
    context.in_range("runAsGroup", 0, ID_MAX, errors);
}

fn profiles(context: &Node<'_>, errors: &mut Errors) {
    for name in ["seccompProfile", "appArmorProfile"] {
        let Some(profile) = context.some(name) else {
            continue;
        };
        let types: &[&str] = &["Localhost", "RuntimeDefault", "Unconfined"];
        let kind = profile.get("type");
        let (what, mechanism) = if name == "seccompProfile" {
            ("seccomp", "seccomp")
        } else {
            ("appArmor", "AppArmor")
        };
        if kind.as_text().is_empty() {
            kind.required(
                &format!("type is required when {what}Profile is set"),
                errors,
            );
        } else {
            kind.supported(types, errors);
        }
        let local = profile.get("localhostProfile");
        match (profile.text("type"), local.as_text().is_empty()) {
            ("Localhost", true) => {
                let why = format!("must be set when {mechanism} type is Localhost");
                local.required(&why, errors);
            }
            (kind, false) if kind != "Localhost" => {
                let why = format!("can only be set when {mechanism} type is Localhost");
                local.invalid(why, errors);
            }
            ("Localhost", false) if name == "seccompProfile" => {
                super::container::descending_path(&local, errors)
            }
            _ => {}
        }
    }
}

fn sysctls(spec: &Node<'_>, context: &Node<'_>, errors: &mut Errors) {
    let mut taken = std::collections::HashSet::new();
    for sysctl in context.items("sysctls") {
        let name = sysctl.get("name");
        let text = name.as_text().replace('/', ".");
        if text.is_empty() {
            name.required("", errors);
        } else if !is_sysctl(&text) {
            name.invalid("must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$", errors);
        } else if !taken.insert(text.clone()) {
            name.duplicate(errors);
        }
        if spec.flag("hostNetwork") && text.starts_with("net.") {
            name.invalid("may not be specified when 'hostNetwork' is true", errors);
        }
        if spec.flag("hostIPC")
            && (text.starts_with("kernel.shm")
                || text.starts_with("kernel.msg")
                || text.starts_with("fs.mqueue.")
                || text == "kernel.sem")
        {
            name.invalid("may not be specified when 'hostIPC' is true", errors);
        }
    }
}

fn is_sysctl(name: &str) -> bool {
    // Underscores stand where DNS has dashes.
    name.len() <= 253
        && name
            .split('.')
            .all(|part| names::dns_label(&part.replace('_', "-")).is_empty())
}
