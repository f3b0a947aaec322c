//! The identity behind a request.

use std::collections::BTreeMap;
use std::sync::Arc;

/// The group of everyone who was authenticated.
pub const AUTHENTICATED: &str = "system:authenticated";
/// The group of everyone who was not.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// The name of a user without credentials.
pub const ANONYMOUS: &str = "system:anonymous";
/// The group that passes every authorization check.
pub const MASTERS: &str = "system:masters";
/// The group of all nodes.
pub const NODES: &str = "system:nodes";
/// What a node's user name starts with.
pub const NODE_PREFIX: &str = "system:node:";
/// What a service account's user name starts with.
pub const SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";

/// An authenticated (or anonymous, or impersonated) user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserInfo {
    /// The user's name, unique among active users.
    pub name: String,
    /// Tells users of one name apart over time; may be empty.
    pub uid: String,
    /// The groups, in the order in which the credentials name them.
    pub groups: Vec<String>,
    /// What else the credentials say.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// A user with the given groups, as a component inside this process is; `system:authenticated` is added.
    pub fn new<'a>(name: impl Into<String>, groups: impl IntoIterator<Item = &'a str>) -> Self {
        let mut groups: Vec<String> = groups.into_iter().map(str::to_owned).collect();
        if !groups.iter().any(|group| group == AUTHENTICATED) {
            groups.push(AUTHENTICATED.to_owned());
        }
        Self {
            name: name.into(),
            groups,
            ..Self::default()
        }
    }

    /// The user without credentials.
    pub fn anonymous() -> Self {
        Self {
            name: ANONYMOUS.to_owned(),
            groups: vec![UNAUTHENTICATED.to_owned()],
            ..Self::default()
        }
    }

    /// The user that a service account is.
    pub fn service_account(namespace: &str, name: &str, uid: &str) -> Self {
        let mut user = Self::new(
            format!("{SERVICE_ACCOUNT_PREFIX}{namespace}:{name}"),
            [
                "system:serviceaccounts",
                &format!("system:serviceaccounts:{namespace}"),
            ],
        );
        uid.clone_into(&mut user.uid);
        user
    }

    /// Whether the user is in `group`.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|one| one == group)
    }

    /// The node that this user is, when it is one.
    pub fn node_name(&self) -> Option<&str> {
        let name = self
            .name
            .strip_prefix(NODE_PREFIX)
            .filter(|name| !name.is_empty())?;
        self.in_group(NODES).then_some(name)
    }

    /// Namespace and name of the service account that this user is, when it is one.
    pub fn service_account_name(&self) -> Option<(&str, &str)> {
        let (namespace, name) = self
            .name
            .strip_prefix(SERVICE_ACCOUNT_PREFIX)?
            .split_once(':')?;
        (!namespace.is_empty() && !name.is_empty() && !name.contains(':'))
            .then_some((namespace, name))
    }
}

/// Who stands at the other end of a connection, found out once per connection.
#[derive(Clone, Debug)]
pub enum Peer {
    /// A component of this process, with the identity it was given.
    Local(Arc<UserInfo>),
    /// A TLS client without a certificate.
    Unidentified,
    /// A TLS client whose certificate this cluster's CA issued.
    Certificate {
        /// The user that the certificate names.
        user: Arc<UserInfo>,
        /// When the certificate ends, in seconds since 1970; a connection may outlive it.
        not_after_secs: i64,
    },
    /// A TLS client whose certificate is not accepted, and why (for the log, never for the client).
    Rejected(Arc<str>),
}
