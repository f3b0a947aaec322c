//! Roles and bindings by who they bind, so that a question looks only at the asker's own bindings.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use serde::Deserialize;

use super::rule::PolicyRule;
use crate::auth::{SERVICE_ACCOUNT_PREFIX, UserInfo};

/// Rules shared between the index and whoever is reading them.
pub(super) type Rules = Arc<[PolicyRule]>;

/// The four resources that the index is made of, by their storage prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Roles,
    ClusterRoles,
    RoleBindings,
    ClusterRoleBindings,
}

impl Source {
    pub(super) const ALL: [Self; 4] = [
        Self::Roles,
        Self::ClusterRoles,
        Self::RoleBindings,
        Self::ClusterRoleBindings,
    ];

    /// The storage prefix.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Roles => "roles",
            Self::ClusterRoles => "clusterroles",
            Self::RoleBindings => "rolebindings",
            Self::ClusterRoleBindings => "clusterrolebindings",
        }
    }
}

/// Which role a binding gives.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(super) struct RoleRef {
    pub(super) kind: String,
    pub(super) name: String,
}

#[derive(Deserialize)]
struct StoredRole {
    rules: Option<Vec<PolicyRule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredBinding {
    subjects: Option<Vec<StoredSubject>>,
    role_ref: RoleRef,
}

#[derive(Deserialize)]
struct StoredSubject {
    kind: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
}

/// Who is bound; a service account is bound by its user name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    User(String),
    Group(String),
}

#[derive(Debug)]
struct Binding {
    subjects: BTreeSet<Subject>,
    role: Arc<RoleRef>,
}

/// Bindings of one namespace, or of the cluster, by subject. The key of the inner map is the binding's path.
#[derive(Debug, Default)]
struct BySubject {
    users: HashMap<String, HashMap<Arc<str>, Arc<RoleRef>>>,
    groups: HashMap<String, HashMap<Arc<str>, Arc<RoleRef>>>,
}

impl BySubject {
    fn insert(&mut self, path: &Arc<str>, binding: &Binding) {
        for subject in &binding.subjects {
            let bound = match subject {
                Subject::User(name) => self.users.entry(name.clone()),
                Subject::Group(name) => self.groups.entry(name.clone()),
            };
            bound
                .or_default()
                .insert(path.clone(), binding.role.clone());
        }
    }

    fn remove(&mut self, path: &str, binding: &Binding) {
        for subject in &binding.subjects {
            let (map, name) = match subject {
                Subject::User(name) => (&mut self.users, name),
                Subject::Group(name) => (&mut self.groups, name),
            };
            if let Some(bound) = map.get_mut(name) {
                bound.remove(path);
                if bound.is_empty() {
                    map.remove(name);
                }
            }
        }
    }

    fn of<'a>(&'a self, user: &'a UserInfo) -> impl Iterator<Item = &'a RoleRef> {
        let by_name = self.users.get(&user.name);
        let by_group = user
            .groups
            .iter()
            .filter_map(|group| self.groups.get(group));
        by_name
            .into_iter()
            .chain(by_group)
            .flat_map(|bound| bound.values().map(Arc::as_ref))
    }
}

/// Everything RBAC knows. Keys of roles and bindings are store paths: `namespace/name`, or `name`.
#[derive(Debug, Default)]
pub(super) struct Index {
    roles: HashMap<Arc<str>, Rules>,
    cluster_roles: HashMap<Arc<str>, Rules>,
    role_bindings: HashMap<Arc<str>, Binding>,
    cluster_role_bindings: HashMap<Arc<str>, Binding>,
    cluster: BySubject,
    namespaces: HashMap<String, BySubject>,
}

impl Index {
    /// Takes in the newest state of an object; what does not parse counts as gone, as it can grant nothing.
    pub(super) fn put(&mut self, source: Source, path: &Arc<str>, json: &[u8]) {
        self.remove(source, path);
        match source {
            Source::Roles | Source::ClusterRoles => {
                let Ok(role) = serde_json::from_slice::<StoredRole>(json) else {
                    return;
                };
                let rules: Rules = role.rules.unwrap_or_default().into();
                let map = if source == Source::Roles {
                    &mut self.roles
                } else {
                    &mut self.cluster_roles
                };
                map.insert(path.clone(), rules);
            }
            Source::RoleBindings | Source::ClusterRoleBindings => {
                let Ok(stored) = serde_json::from_slice::<StoredBinding>(json) else {
                    return;
                };
                let namespace = path.split_once('/').map_or("", |(namespace, _)| namespace);
                let subjects = stored.subjects.unwrap_or_default();
                let subjects = subjects
                    .into_iter()
                    .filter_map(|one| subject(one, namespace))
                    .collect();
                let binding = Binding {
                    subjects,
                    role: Arc::new(stored.role_ref),
                };
                if source == Source::ClusterRoleBindings {
                    self.cluster.insert(path, &binding);
                    self.cluster_role_bindings.insert(path.clone(), binding);
                } else {
                    self.namespaces
                        .entry(namespace.to_owned())
                        .or_default()
                        .insert(path, &binding);
                    self.role_bindings.insert(path.clone(), binding);
                }
            }
        }
    }

    /// Forgets an object.
    pub(super) fn remove(&mut self, source: Source, path: &str) {
        match source {
            Source::Roles => drop(self.roles.remove(path)),
            Source::ClusterRoles => drop(self.cluster_roles.remove(path)),
            Source::ClusterRoleBindings => {
                if let Some(binding) = self.cluster_role_bindings.remove(path) {
                    self.cluster.remove(path, &binding);
                }
            }
            Source::RoleBindings => {
                let Some(binding) = self.role_bindings.remove(path) else {
                    return;
                };
                let namespace = path.split_once('/').map_or("", |(namespace, _)| namespace);
                if let Some(by_subject) = self.namespaces.get_mut(namespace) {
                    by_subject.remove(path, &binding);
                    if by_subject.users.is_empty() && by_subject.groups.is_empty() {
                        self.namespaces.remove(namespace);
                    }
                }
            }
        }
    }

    /// The rules of a role, `None` when it does not exist. `namespace` matters for kind `Role` only.
    pub(super) fn rules_of(&self, namespace: &str, kind: &str, name: &str) -> Option<&Rules> {
        match kind {
            "ClusterRole" => self.cluster_roles.get(name),
            "Role" => self.roles.get(format!("{namespace}/{name}").as_str()),
            _ => None,
        }
    }

    /// Visits the rules that `user` has, cluster-wide and in `namespace` (if it is not empty), until `visit` says stop
    /// (`false`). A binding to a role that does not exist is visited as an error text.
    pub(super) fn visit(
        &self,
        user: &UserInfo,
        namespace: &str,
        mut visit: impl FnMut(Result<&Rules, String>) -> bool,
    ) {
        let of_cluster = self.cluster.of(user).map(|role| ("", role));
        let local = self
            .namespaces
            .get(namespace)
            .filter(|_| !namespace.is_empty());
        let of_namespace = local
            .into_iter()
            .flat_map(|bound| bound.of(user))
            .map(|role| (namespace, role));
        for (namespace, role) in of_cluster.chain(of_namespace) {
            let found = self
                .rules_of(namespace, &role.kind, &role.name)
                .ok_or_else(|| {
                    format!(
                        "{}.rbac.authorization.k8s.io {:?} not found",
                        role.kind.to_lowercase(),
                        role.name
                    )
                });
            if !visit(found) {
                return;
            }
        }
    }
}

/// The subject as it is looked up; what names nobody is left out.
fn subject(stored: StoredSubject, binding_namespace: &str) -> Option<Subject> {
    match stored.kind.as_str() {
        "User" => Some(Subject::User(stored.name)),
        "Group" => Some(Subject::Group(stored.name)),
        "ServiceAccount" => {
            let namespace = if stored.namespace.is_empty() {
                binding_namespace
            } else {
                &stored.namespace
            };
            let named = !namespace.is_empty() && !stored.name.is_empty();
            named.then(|| {
                Subject::User(format!(
                    "{SERVICE_ACCOUNT_PREFIX}{namespace}:{}",
                    stored.name
                ))
            })
        }
        _ => None,
    }
}
