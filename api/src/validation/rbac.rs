//! Roles and bindings.

use super::node::{Errors, Node};
use crate::names;

const GROUP: &str = "rbac.authorization.k8s.io";

/// Rules of a Role.
pub(super) fn role(role: &Node<'_>, errors: &mut Errors) {
    for rule in role.items("rules") {
        policy_rule(&rule, true, errors);
    }
}

/// Rules of a ClusterRole.
pub(super) fn cluster_role(role: &Node<'_>, errors: &mut Errors) {
    for rule in role.items("rules") {
        policy_rule(&rule, false, errors);
    }
    if let Some(aggregation) = role.some("aggregationRule") {
        if aggregation.len("clusterRoleSelectors") == 0 {
            aggregation.get("clusterRoleSelectors").required(
                "at least one clusterRoleSelector required if aggregationRule is non-nil",
                errors,
            );
        }
        for selector in aggregation.items("clusterRoleSelectors") {
            super::selector::label_selector(&selector, errors);
        }
    }
}

fn policy_rule(rule: &Node<'_>, namespaced: bool, errors: &mut Errors) {
    if rule.len("verbs") == 0 {
        rule.get("verbs")
            .required("verbs must contain at least one value", errors);
    }
    let resource_parts = rule.len("apiGroups") + rule.len("resources") + rule.len("resourceNames");
    if rule.len("nonResourceURLs") > 0 {
        if namespaced {
            rule.get("nonResourceURLs")
                .invalid("namespaced rules cannot apply to non-resource URLs", errors);
        }
        if resource_parts > 0 {
            rule.get("nonResourceURLs").invalid(
                "rules cannot apply to both regular resources and non-resource URLs",
                errors,
            );
        }
        return;
    }
    if rule.len("apiGroups") == 0 {
        rule.get("apiGroups")
            .required("resource rules must supply at least one api group", errors);
    }
    if rule.len("resources") == 0 {
        rule.get("resources")
            .required("resource rules must supply at least one resource", errors);
    }
}

/// Rules of a RoleBinding.
pub(super) fn role_binding(binding: &Node<'_>, errors: &mut Errors) {
    self::binding(binding, &["Role", "ClusterRole"], errors);
}

/// Rules of a ClusterRoleBinding.
pub(super) fn cluster_role_binding(binding: &Node<'_>, errors: &mut Errors) {
    self::binding(binding, &["ClusterRole"], errors);
}

fn binding(binding: &Node<'_>, kinds: &[&str], errors: &mut Errors) {
    let role = binding.get("roleRef");
    if role.text("apiGroup") != GROUP {
        role.get("apiGroup").not_supported(&[GROUP], errors);
    }
    if !kinds.contains(&role.text("kind")) {
        role.get("kind").not_supported(kinds, errors);
    }
    if role.need("name", errors) {
        role.get("name")
            .all_invalid(names::path_segment(role.text("name")), errors);
    }
    for subject in binding.items("subjects") {
        self::subject(&subject, kinds.len() == 1, errors);
    }
}

fn subject(subject: &Node<'_>, cluster: bool, errors: &mut Errors) {
    subject.need("name", errors);
    let group = subject.get("apiGroup");
    match subject.text("kind") {
        "ServiceAccount" => {
            let name = subject.get("name");
            if !name.as_text().is_empty() {
                name.all_invalid(names::dns_subdomain(name.as_text()), errors);
            }
            if !group.as_text().is_empty() {
                group.not_supported(&[""], errors);
            }
            if cluster {
                subject.need("namespace", errors);
            }
        }
        "User" | "Group" if group.as_text() != GROUP => group.not_supported(&[GROUP], errors),
        "User" | "Group" => {}
        _ => subject
            .get("kind")
            .not_supported(&["ServiceAccount", "User", "Group"], errors),
    }
}

/// A binding binds to one role for ever: changing it would lend the subjects' trust to another.
pub(super) fn same_role(new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    if new.value.get("roleRef") != old.value.get("roleRef") {
        new.get("roleRef").invalid("cannot change roleRef", errors);
    }
}
