//! Certificate signing requests: approves those of nodes, signs what was approved, clears away what is over.
//!
//! Watched: requests; Nodes, for the addresses that a serving certificate may name. Written: the condition Approved on requests of
//! nodes for themselves, `status.certificate` (or the condition Failed) of approved requests of upstream's own signers; old
//! requests are deleted. Who may ask is the API server's answer (SubjectAccessReview), never decided here. A request that is
//! signed, denied, or for another signer is left alone until it is old.

mod of_pods;
mod plan;
mod request;

use std::sync::Arc;
use std::time::Duration;

use cox_client::Informer;
use cox_client::runner::{ObjectName, Verdict};
use k8s_openapi::ByteString;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition,
};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, PostParams, Preconditions};

use crate::context::{Context, Loop};
use crate::serviceaccount::is_settled;
use plan::{Approval, Next, Purpose};

/// Signs a request with the cluster's authority: the request in PEM, its usages, how long it shall be valid. The answer is the
/// certificate in PEM, or why there is none.
pub type Signer = Arc<dyn Fn(&str, &[String], Duration) -> Result<String, String> + Send + Sync>;

struct Controller {
    context: Context,
    requests: Informer<CertificateSigningRequest>,
    nodes: Informer<Node>,
    signer: Signer,
}

pub(crate) async fn run(context: Context, signer: Signer) {
    tokio::join!(run_requests(context.clone(), signer), of_pods::run(context));
}

async fn run_requests(context: Context, signer: Signer) {
    let requests = context.informers.of::<CertificateSigningRequest>();
    let nodes = context.informers.of::<Node>();
    let mut frame = Loop::new("certificates");
    frame.feed(&requests, |request, keys| {
        keys.push(ObjectName::of(request));
    });
    frame.needs(&nodes);
    let cancel = context.cancel.clone();
    let controller = Arc::new(Controller {
        context,
        requests,
        nodes,
        signer,
    });
    let reconcile = move |key: ObjectName| {
        let controller = Arc::clone(&controller);
        async move { controller.reconcile(&key.name).await }
    };
    frame.run(2, reconcile, cancel).await;
}

impl Controller {
    async fn reconcile(&self, name: &str) -> Verdict {
        let Some(request) = self.requests.get(None, name) else {
            return Verdict::Done;
        };
        let now = self.context.clock.now();
        let next = plan::next(&request, now);
        tracing::debug!(request = name, ?next, "Certificate request was looked at");
        let done = match next {
            Next::Nothing => return Verdict::Done,
            Next::LookAgain(after) => return Verdict::After(after),
            Next::Delete => self.delete(&request).await,
            Next::Decide(purpose) => return self.decide(&request, purpose).await,
            Next::Sign { valid_for } => self.sign(&request, valid_for).await,
        };
        match done {
            Ok(()) => Verdict::Done,
            Err(error) if is_settled(&error) => Verdict::Done,
            Err(error) => Verdict::Backoff(error.into()),
        }
    }

    async fn delete(&self, request: &CertificateSigningRequest) -> Result<(), kube::Error> {
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: request.metadata.uid.clone(),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let api = self.context.cluster_api::<CertificateSigningRequest>();
        let name = request.metadata.name.as_deref().unwrap_or_default();
        api.delete(name, &params).await.map(drop)
    }

    /// Approves a request of a node for itself, if it may have that.
    async fn decide(&self, request: &CertificateSigningRequest, purpose: Purpose) -> Verdict {
        let decided = match purpose {
            Purpose::Client { of_itself } => self.may_have(request, of_itself).await,
            Purpose::Serving { node } => Ok(self.names_itself(request, &node)),
        };
        let approval = match decided {
            Ok(Some(approval)) => approval,
            // Somebody else may approve it; for a node that has no addresses yet, look again when it may have.
            Ok(None) => return Verdict::After(plan::LOOK_AGAIN),
            Err(error) => return Verdict::Backoff(error.into()),
        };
        let mut approved = request.clone();
        push(
            &mut approved,
            condition(
                "Approved",
                approval.reason,
                approval.message,
                self.context.clock.now(),
            ),
        );
        let api = self.context.cluster_api::<CertificateSigningRequest>();
        let name = request.metadata.name.as_deref().unwrap_or_default();
        let written = api
            .replace_subresource("approval", name, &PostParams::default(), &approved)
            .await;
        match written {
            Ok(_) => Verdict::Done,
            Err(error) if is_settled(&error) => Verdict::Done,
            Err(error) => Verdict::Backoff(error.into()),
        }
    }

    /// Asks the API server whether the requester may have a client certificate of a node, its own or any.
    async fn may_have(
        &self,
        request: &CertificateSigningRequest,
        of_itself: bool,
    ) -> Result<Option<Approval>, kube::Error> {
        let own = of_itself.then_some("selfnodeclient");
        for subresource in own.into_iter().chain(["nodeclient"]) {
            let spec = &request.spec;
            let review = SubjectAccessReview {
                spec: SubjectAccessReviewSpec {
                    user: spec.username.clone(),
                    groups: spec.groups.clone(),
                    uid: spec.uid.clone(),
                    extra: spec.extra.clone(),
                    resource_attributes: Some(ResourceAttributes {
                        group: Some("certificates.k8s.io".to_owned()),
                        resource: Some("certificatesigningrequests".to_owned()),
                        subresource: Some(subresource.to_owned()),
                        verb: Some("create".to_owned()),
                        version: Some("*".to_owned()),
                        ..ResourceAttributes::default()
                    }),
                    non_resource_attributes: None,
                },
                ..SubjectAccessReview::default()
            };
            let api = kube::Api::<SubjectAccessReview>::all(self.context.client());
            let answer = api.create(&PostParams::default(), &review).await?;
            if answer.status.is_some_and(|status| status.allowed) {
                let message = if subresource == "selfnodeclient" {
                    "Auto approving self kubelet client certificate after SubjectAccessReview."
                } else {
                    "Auto approving kubelet client certificate after SubjectAccessReview."
                };
                return Ok(Some(Approval {
                    reason: "AutoApproved",
                    message,
                }));
            }
        }
        Ok(None)
    }

    /// A serving certificate is approved where it names nothing but what the Node says of itself.
    fn names_itself(&self, request: &CertificateSigningRequest, node: &str) -> Option<Approval> {
        let node = self.nodes.get(None, node)?;
        plan::names_only(request, &node).then_some(Approval {
            reason: "AutoApproved",
            message: "Auto approving kubelet serving certificate that names only the node's own addresses.",
        })
    }

    async fn sign(
        &self,
        request: &CertificateSigningRequest,
        valid_for: Duration,
    ) -> Result<(), kube::Error> {
        let pem = String::from_utf8_lossy(&request.spec.request.0).into_owned();
        let usages = request.spec.usages.clone().unwrap_or_default();
        let mut answered = request.clone();
        let fitting = plan::fits_signer(request);
        match fitting.and_then(|()| (self.signer)(&pem, &usages, valid_for)) {
            Ok(certificate) => {
                let status = answered.status.get_or_insert_default();
                status.certificate = Some(ByteString(certificate.into_bytes()));
            }
            Err(why) => {
                tracing::warn!(
                    request = request.metadata.name,
                    why,
                    "Approved request cannot be signed"
                );
                let now = self.context.clock.now();
                push(
                    &mut answered,
                    condition("Failed", "SignerValidationFailure", &why, now),
                );
            }
        }
        let api = self.context.cluster_api::<CertificateSigningRequest>();
        let name = request.metadata.name.as_deref().unwrap_or_default();
        api.replace_status(name, &PostParams::default(), &answered)
            .await
            .map(drop)
    }
}

fn push(request: &mut CertificateSigningRequest, condition: CertificateSigningRequestCondition) {
    let status = request.status.get_or_insert_default();
    status.conditions.get_or_insert_default().push(condition);
}

fn condition(
    kind: &str,
    reason: &str,
    message: &str,
    now: jiff::Timestamp,
) -> CertificateSigningRequestCondition {
    CertificateSigningRequestCondition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: Some(Time(now)),
        last_update_time: Some(Time(now)),
    }
}
