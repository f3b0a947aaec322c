//! Whether a user may do what is asked: `system:masters` may, then the authorizers are asked one after the other; usually the rules
//! of nodes, then RBAC.

use std::sync::Arc;

use arc_swap::ArcSwap;
use cox_api::status::ApiStatus;
use cox_store::Store;
use futures::FutureExt as _;
use http::request::Parts;
use tokio::runtime::{Handle, RuntimeFlavor};

use super::node::NodeAuthorizer;
use super::rbac::Rbac;
use super::webhook::Webhook;
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
    steps: ArcSwap<Vec<Step>>,
}

/// One authorizer of the chain.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Node,
    Rbac,
    AlwaysAllow,
    AlwaysDeny,
    Webhook(Arc<Webhook>),
}

/// What one authorizer thinks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Opinion {
    Allow,
    /// Nobody else is asked.
    Deny(String),
    /// The next one is asked.
    None(String),
    /// It could not be asked; the next one is.
    Failed(String),
    /// It could not be asked, and nobody else is.
    FailedAndDenied(String),
}

impl Authorizer {
    /// Authorizers over what the store holds: nodes, then RBAC.
    pub fn new(store: Store) -> Self {
        Self {
            chain: Arc::new(Chain {
                rbac: Rbac::new(store.clone()),
                nodes: NodeAuthorizer::new(store),
                steps: ArcSwap::from_pointee(vec![Step::Node, Step::Rbac]),
            }),
        }
    }

    /// Other authorizers, or another order, from the next question on.
    pub(super) fn follow(&self, steps: Vec<Step>) {
        self.chain.steps.store(Arc::new(steps));
    }

    /// Answers a question.
    pub async fn decide(&self, asked: &Attributes<'_>) -> Decision {
        if asked.user.in_group(MASTERS) {
            return Decision::Allow;
        }
        let (mut reasons, mut failures) = (Vec::new(), Vec::new());
        for step in &*self.chain.steps.load_full() {
            match self.opinion(step, asked).await {
                Opinion::Allow => return Decision::Allow,
                Opinion::Deny(reason) => return Decision::Deny(reason),
                Opinion::None(reason) if reason.is_empty() => {}
                Opinion::None(reason) => reasons.push(reason),
                Opinion::Failed(why) => failures.push(why),
                Opinion::FailedAndDenied(why) => {
                    failures.push(why);
                    break;
                }
            }
        }
        if failures.is_empty() {
            Decision::Deny(reasons.join("\n"))
        } else {
            Decision::Failed(failures.join(", "))
        }
    }

    async fn opinion(&self, step: &Step, asked: &Attributes<'_>) -> Opinion {
        let local = match step {
            Step::AlwaysAllow => return Opinion::Allow,
            Step::AlwaysDeny => return Opinion::None("Everything is forbidden.".to_owned()),
            Step::Webhook(webhook) => return Box::pin(webhook.opinion(asked)).await,
            Step::Node => match asked.user.node_name() {
                Some(node) => self.chain.nodes.authorize(node, asked),
                None => return Opinion::None(String::new()),
            },
            Step::Rbac => self.chain.rbac.authorize(asked),
        };
        match local {
            Decision::Allow => Opinion::Allow,
            Decision::Deny(reason) => Opinion::None(reason),
            Decision::Failed(why) => Opinion::Failed(why),
        }
    }

    /// Answers a question where nothing can wait, as in expressions. A webhook among the authorizers makes the thread wait.
    pub fn authorize(&self, asked: &Attributes<'_>) -> Decision {
        let outside = |step: &Step| matches!(step, Step::Webhook(_));
        if !self.chain.steps.load().iter().any(outside) {
            let decided = self.decide(asked).now_or_never();
            return decided.unwrap_or_else(|| unreachable!("only webhooks have to be waited for"));
        }
        match Handle::try_current() {
            Ok(handle) if handle.runtime_flavor() == RuntimeFlavor::MultiThread => {
                tokio::task::block_in_place(|| handle.block_on(self.decide(asked)))
            }
            _ => Decision::Failed("no webhook can be asked on this thread".to_owned()),
        }
    }

    /// The same, with a refusal ready to be sent.
    ///
    /// # Errors
    /// 403 with upstream's sentence; 500 when an authorizer that might allow it could not be asked.
    pub async fn require(&self, asked: &Attributes<'_>) -> Result<(), ApiStatus> {
        match self.decide(asked).await {
            Decision::Allow => Ok(()),
            Decision::Deny(reason) => Err(forbidden(asked, &reason)),
            Decision::Failed(why) => Err(ApiStatus::internal(why)),
        }
    }

    /// The user that a request acts as, which is `user` unless it carries `Impersonate-*` headers.
    ///
    /// # Errors
    /// 403 when the user may not act as that other one; 400 for headers that make no sense.
    pub async fn impersonate(
        &self,
        parts: &Parts,
        user: &Arc<UserInfo>,
    ) -> Result<Arc<UserInfo>, ApiStatus> {
        impersonate::impersonate(self, &parts.headers, user).await
    }

    /// The RBAC part, for questions about rules.
    pub fn rbac(&self) -> &Rbac {
        &self.chain.rbac
    }

    /// Whether servers outside are asked too, whose rules nobody can list.
    pub(super) fn asks_outside(&self) -> bool {
        let steps = self.chain.steps.load();
        steps.iter().any(|step| matches!(step, Step::Webhook(_)))
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
