//! Upstream's bootstrap policy: the cluster roles, roles and bindings of a new cluster, read from `tables/rbac.txt`.
//!
//! Pure: text in, objects out. Aggregated roles come with the union of their parts already in them, so that a new cluster
//! needs no second write.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use serde_json::{Map, Value, json};

use crate::auth::rbac::PolicyRule;

const API_VERSION: &str = "rbac.authorization.k8s.io/v1";
const GROUP: &str = "rbac.authorization.k8s.io";

/// A role of the policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Role {
    /// `namespace/name`, or `name` for a cluster role.
    pub path: String,
    /// Labels beside the one that marks the policy.
    pub labels: Vec<(String, String)>,
    /// The labels (with the value `true`) of the cluster roles that this one is the union of.
    pub aggregates: Vec<String>,
    /// What it grants.
    pub rules: Vec<PolicyRule>,
}

/// A binding of the policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Binding {
    /// `namespace/name`, or `name` for a cluster role binding.
    pub path: String,
    /// Kind of the role.
    pub role_kind: String,
    /// Name of the role.
    pub role: String,
    /// The subjects, as they stand in the object.
    pub subjects: Vec<Value>,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Cluster roles.
    pub cluster_roles: Vec<Role>,
    /// Roles.
    pub roles: Vec<Role>,
    /// Cluster role bindings.
    pub cluster_role_bindings: Vec<Binding>,
    /// Role bindings.
    pub role_bindings: Vec<Binding>,
}

/// The policy compiled into the program.
pub fn builtin() -> &'static Policy {
    static BUILTIN: OnceLock<Policy> = OnceLock::new();
    BUILTIN.get_or_init(|| {
        let mut policy = parse(include_str!("../../tables/rbac.txt"))
            .expect("the table compiled into the program is tested to parse");
        policy.aggregate();
        policy
    })
}

impl Policy {
    /// The rules of a cluster role.
    pub fn cluster_role(&self, name: &str) -> &[PolicyRule] {
        self.cluster_roles
            .iter()
            .find(|role| role.path == name)
            .map_or(&[], |role| &role.rules)
    }

    /// Puts the union of their parts into the aggregated roles; a part may be aggregated itself.
    fn aggregate(&mut self) {
        for _ in 0..self.cluster_roles.len() {
            let next: Vec<Vec<PolicyRule>> = self
                .cluster_roles
                .iter()
                .map(|role| self.union_for(role))
                .collect();
            let mut changed = false;
            for (role, rules) in self.cluster_roles.iter_mut().zip(next) {
                changed |= role.rules != rules;
                role.rules = rules;
            }
            if !changed {
                return;
            }
        }
    }

    fn union_for(&self, role: &Role) -> Vec<PolicyRule> {
        if role.aggregates.is_empty() {
            return role.rules.clone();
        }
        let mut parts: Vec<&Role> = self
            .cluster_roles
            .iter()
            .filter(|part| part.path != role.path)
            .filter(|part| {
                part.labels
                    .iter()
                    .any(|(key, value)| role.aggregates.contains(key) && value == "true")
            })
            .collect();
        parts.sort_by_key(|part| &part.path);
        union(parts.iter().flat_map(|part| &part.rules))
    }
}

/// The rules without repetitions, in order.
pub fn union<'a>(rules: impl Iterator<Item = &'a PolicyRule>) -> Vec<PolicyRule> {
    let mut seen = BTreeSet::new();
    rules.filter(|rule| seen.insert(*rule)).cloned().collect()
}

impl Role {
    /// The object, of kind `Role` or `ClusterRole`.
    pub fn object(&self, kind: &str) -> Value {
        let mut object = json!({
            "apiVersion": API_VERSION, "kind": kind, "metadata": metadata(&self.path, &self.labels), "rules": self.rules,
        });
        if !self.aggregates.is_empty() {
            let selectors: Vec<Value> = self
                .aggregates
                .iter()
                .map(|label| json!({"matchLabels": {label.as_str(): "true"}}))
                .collect();
            object["aggregationRule"] = json!({"clusterRoleSelectors": selectors});
        }
        object
    }
}

impl Binding {
    /// The object, of kind `RoleBinding` or `ClusterRoleBinding`.
    pub fn object(&self, kind: &str) -> Value {
        let mut object = json!({
            "apiVersion": API_VERSION, "kind": kind, "metadata": metadata(&self.path, &[]),
            "roleRef": {"apiGroup": GROUP, "kind": self.role_kind, "name": self.role},
        });
        if !self.subjects.is_empty() {
            object["subjects"] = self.subjects.clone().into();
        }
        object
    }
}

fn metadata(path: &str, labels: &[(String, String)]) -> Value {
    let mut all = Map::new();
    all.insert(
        "kubernetes.io/bootstrapping".to_owned(),
        "rbac-defaults".into(),
    );
    all.extend(
        labels
            .iter()
            .map(|(key, value)| (key.clone(), value.as_str().into())),
    );
    let (namespace, name) = path.split_once('/').unwrap_or(("", path));
    let mut metadata = json!({
        "name": name, "labels": all, "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
    });
    if !namespace.is_empty() {
        metadata["namespace"] = namespace.into();
    }
    metadata
}

fn parse(table: &str) -> Result<Policy, String> {
    let mut policy = Policy::default();
    let mut in_namespace = false;
    for line in table
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
    {
        if let Some(rule) = line.strip_prefix(' ') {
            let roles = if in_namespace {
                &mut policy.roles
            } else {
                &mut policy.cluster_roles
            };
            let role = roles
                .last_mut()
                .ok_or_else(|| format!("a rule before any role: {line}"))?;
            role.rules
                .push(parse_rule(rule).ok_or_else(|| format!("not a rule: {line}"))?);
            continue;
        }
        let (word, rest) = line
            .split_once(' ')
            .ok_or_else(|| format!("not a line: {line}"))?;
        match word {
            "clusterrole" => {
                in_namespace = false;
                policy.cluster_roles.push(parse_role(rest));
            }
            "role" => {
                in_namespace = true;
                policy.roles.push(parse_role(rest));
            }
            "clusterbinding" => policy.cluster_role_bindings.push(parse_binding(rest)?),
            "binding" => policy.role_bindings.push(parse_binding(rest)?),
            _ => return Err(format!("not a line: {line}")),
        }
    }
    Ok(policy)
}

fn parse_role(line: &str) -> Role {
    let mut words = line.split(' ');
    let mut role = Role {
        path: words.next().unwrap_or_default().to_owned(),
        ..Role::default()
    };
    for word in words {
        if let Some(label) = word.strip_prefix('<') {
            role.aggregates.push(label.to_owned());
        } else if let Some((key, value)) = word.split_once('=') {
            role.labels.push((key.to_owned(), value.to_owned()));
        }
    }
    role
}

fn parse_rule(line: &str) -> Option<PolicyRule> {
    let list = |part: &str| -> Vec<String> {
        part.split(',')
            .map(|one| {
                if one == "-" {
                    String::new()
                } else {
                    one.to_owned()
                }
            })
            .collect()
    };
    let parts: Vec<&str> = line.split('\t').collect();
    Some(match *parts.as_slice() {
        [verbs, paths] => PolicyRule {
            verbs: list(verbs),
            non_resource_urls: list(paths),
            ..PolicyRule::default()
        },
        [verbs, groups, resources] => PolicyRule {
            verbs: list(verbs),
            api_groups: list(groups),
            resources: list(resources),
            ..PolicyRule::default()
        },
        [verbs, groups, resources, names] => PolicyRule {
            verbs: list(verbs),
            api_groups: list(groups),
            resources: list(resources),
            resource_names: list(names),
            ..PolicyRule::default()
        },
        _ => return None,
    })
}

fn parse_binding(line: &str) -> Result<Binding, String> {
    let parts: Vec<&str> = line.split('\t').collect();
    let [path, role, subjects] = *parts.as_slice() else {
        return Err(format!("not a binding: {line}"));
    };
    let (role_kind, role) = role.split_once('/').unwrap_or(("ClusterRole", role));
    let subjects: Result<Vec<Value>, String> =
        subjects.split_whitespace().map(parse_subject).collect();
    Ok(Binding {
        path: path.to_owned(),
        role_kind: role_kind.to_owned(),
        role: role.to_owned(),
        subjects: subjects?,
    })
}

fn parse_subject(word: &str) -> Result<Value, String> {
    let wrong = || format!("not a subject: {word}");
    let (kind, name) = word.split_once(':').ok_or_else(wrong)?;
    Ok(match kind {
        "u" => json!({"apiGroup": GROUP, "kind": "User", "name": name}),
        "g" => json!({"apiGroup": GROUP, "kind": "Group", "name": name}),
        "s" => {
            let (namespace, name) = name.split_once('/').ok_or_else(wrong)?;
            json!({"kind": "ServiceAccount", "name": name, "namespace": namespace})
        }
        _ => return Err(wrong()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_holds_upstreams_policy() {
        let policy = builtin();
        let counts = (
            policy.cluster_roles.len(),
            policy.roles.len(),
            policy.cluster_role_bindings.len(),
            policy.role_bindings.len(),
        );
        // Ours: local-path, the approval of serving certificates and the clearing of Pods' requests for them, with their bindings, and the three
        // of joining nodes.
        assert_eq!(counts, (69 + 3, 7, 50 + 3 + 3, 7));
        for binding in &policy.cluster_role_bindings {
            assert!(
                policy
                    .cluster_roles
                    .iter()
                    .any(|role| role.path == binding.role),
                "{}",
                binding.path
            );
        }
        for role in policy.cluster_roles.iter().chain(&policy.roles) {
            assert!(!role.rules.is_empty(), "{} grants something", role.path);
        }
    }

    #[test]
    fn aggregated_roles_hold_the_union_of_their_parts() {
        let policy = builtin();
        let holds = |role: &str, part: &str| {
            let rules = policy.cluster_role(role);
            policy
                .cluster_role(part)
                .iter()
                .all(|rule| rules.contains(rule))
        };
        assert!(holds("view", "system:aggregate-to-view"));
        assert!(
            holds("edit", "system:aggregate-to-view"),
            "through the role view"
        );
        assert!(
            holds("admin", "system:aggregate-to-edit")
                && holds("admin", "system:aggregate-to-view")
        );
        assert!(!holds("edit", "system:aggregate-to-admin"));
    }

    #[test]
    fn what_is_not_a_table_is_told() {
        for (case, table) in [
            ("a rule without a role", " get\t-\tpods"),
            ("an unknown word", "rule x"),
            ("a short binding", "binding a/b\tRole/c"),
            ("an unknown subject", "clusterbinding a\tb\tx:y"),
        ] {
            parse(table).expect_err(case);
        }
    }
}
