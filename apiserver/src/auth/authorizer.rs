//! Whether a user may do what is asked: `system:masters` may, then nodes have their own rules, then RBAC decides.

use std::sync::Arc;

use cox_api::status::ApiStatus;
use cox_store::Store;
use http::request::Parts;

use super::node::NodeAuthorizer;
use super::rbac::Rbac;
use super::{Attributes, Decision, MASTERS, UserInfo, impersonate};

/// The chain of authorizers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Authorizer {
    chain: Arc<Chain>,
}

#[derive(Debug)]
struct Chain {
    rbac: Rbac,
    nodes: NodeAuthorizer,
}

impl Authorizer {
    /// Authorizers over what the store holds.
    pub fn new(store: Store) -> Self {
        Self {
            chain: Arc::new(Chain {
                rbac: Rbac::new(store.clone()),
                nodes: NodeAuthorizer::new(store),
            }),
        }
    }

    /// Answers a question.
    pub fn authorize(&self, asked: &Attributes<'_>) -> Decision {
        if asked.user.in_group(MASTERS) {
            return Decision::Allow;
        }
        let of_nodes = asked
            .user
            .node_name()
            .map(|node| self.chain.nodes.authorize(node, asked));
        if of_nodes == Some(Decision::Allow) {
            return Decision::Allow;
        }
        match (self.chain.rbac.authorize(asked), of_nodes) {
            (Decision::Allow, _) => Decision::Allow,
            (Decision::Deny(reason), Some(Decision::Deny(of_nodes))) if reason.is_empty() => {
                Decision::Deny(of_nodes)
            }
            (denied, _) => denied,
        }
    }

    /// The same, with a refusal ready to be sent.
    ///
    /// # Errors
    /// 403 with upstream's sentence.
    pub fn require(&self, asked: &Attributes<'_>) -> Result<(), ApiStatus> {
        match self.authorize(asked) {
            Decision::Allow => Ok(()),
            Decision::Deny(reason) => Err(forbidden(asked, &reason)),
        }
    }

    /// The user that a request acts as, which is `user` unless it carries `Impersonate-*` headers.
    ///
    /// # Errors
    /// 403 when the user may not act as that other one; 400 for headers that make no sense.
    pub fn impersonate(
        &self,
        parts: &Parts,
        user: &Arc<UserInfo>,
    ) -> Result<Arc<UserInfo>, ApiStatus> {
        impersonate::impersonate(self, &parts.headers, user)
    }

    /// The RBAC part, for questions about rules.
    pub fn rbac(&self) -> &Rbac {
        &self.chain.rbac
    }
}

/// The refusal of a request, in upstream's words: `pods is forbidden: User "jane" cannot list resource "pods" …`.
pub fn forbidden(asked: &Attributes<'_>, reason: &str) -> ApiStatus {
    let user = format!("{:?}", asked.user.name);
    let reason = if reason.is_empty() {
        String::new()
    } else {
        format!(": {reason}")
    };
    if !asked.is_resource() {
        return ApiStatus::forbidden(
            "",
            "",
            "",
            format!(
                "User {user} cannot {} path {:?}{reason}",
                asked.verb, asked.path
            ),
        );
    }
    let resource = if asked.subresource.is_empty() {
        asked.resource.to_owned()
    } else {
        format!("{}/{}", asked.resource, asked.subresource)
    };
    let place = if asked.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {:?}", asked.namespace)
    };
    let sentence = format!(
        "User {user} cannot {} resource {resource:?} in API group {:?} {place}{reason}",
        asked.verb, asked.group
    );
    ApiStatus::forbidden(asked.group, asked.resource, asked.name, sentence)
}
