//! Makes the ResourceClaims that Pods ask for by template, and frees claims that nobody uses any more.
//!
//! Watched: pods, claims, claim templates. Written: claims (created and deleted, `status.reservedFor`, `status.allocation`, the
//! finalizer that protects an allocation), `status.resourceClaimStatuses` of pods, events. Invariants: an entry of a Pod has one
//! claim, also when this process dies between making it and writing it down; a user is only taken off a claim when the API
//! server says that the Pod is done, gone or another; devices are given back when the last user goes. Which devices a claim
//! gets is the scheduler's; this only reserves, for Pods that came without the scheduler, what is allocated already.

mod effects;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use cox_client::events::EventType;
use cox_client::runner::{ObjectName, Verdict};
use cox_client::{BoxError, Informer};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{
    ResourceClaim, ResourceClaimConsumerReference, ResourceClaimTemplate,
};
use parking_lot::Mutex;

use crate::context::{Context, Loop};
use crate::pod::{is_active, node_name};
use plan::{Named, Step};
pub(crate) use plan::{claim_names, is_pod, reserved_for};

const WORKERS: usize = 4;
/// How soon to look again when the cache has not shown our own claims; their events normally come first.
const UNSEEN_PAUSE: Duration = Duration::from_secs(1);

/// What is looked at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Work {
    /// Which claims the Pod needs.
    Pod(ObjectName),
    /// Who uses the claim.
    Claim(ObjectName),
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(name) => write!(f, "pod {name}"),
            Self::Claim(name) => write!(f, "claim {name}"),
        }
    }
}

/// Why an entry of a Pod has no claim.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(
        "resource claim template \"{0}\": resourceclaimtemplate.resource.k8s.io \"{0}\" not found"
    )]
    NoTemplate(String),
    #[error("create ResourceClaim")]
    Create(#[source] kube::Error),
}

/// Claims that this process made and may not see yet: the highest revision of each Pod's.
#[derive(Debug, Default)]
struct Made {
    by_pod: Mutex<HashMap<ObjectName, u64>>,
}

impl Made {
    fn note(&self, pod: &Pod, claim: &ResourceClaim) {
        let version = claim.metadata.resource_version.as_deref();
        let revision = version.and_then(|version| version.parse().ok());
        let mut by_pod = self.by_pod.lock();
        let highest = by_pod.entry(ObjectName::of(pod)).or_default();
        *highest = (*highest).max(revision.unwrap_or_default());
    }

    /// Whether the cache has all that was made for a Pod. Forgets what it has.
    fn seen(&self, pod: &ObjectName, claims: &Informer<ResourceClaim>) -> bool {
        let mut by_pod = self.by_pod.lock();
        let seen = by_pod
            .get(pod)
            .is_none_or(|revision| claims.revision() >= *revision);
        if seen {
            by_pod.remove(pod);
        }
        seen
    }
}

struct Controller {
    context: Context,
    pods: Informer<Pod>,
    claims: Informer<ResourceClaim>,
    templates: Informer<ResourceClaimTemplate>,
    made: Made,
}

pub(crate) async fn run(context: Context) {
    let pods = context.informers.of::<Pod>();
    let claims = context.informers.of::<ResourceClaim>();
    let templates = context.informers.of::<ResourceClaimTemplate>();
    let mut frame = Loop::new("resource-claim");
    let known = (pods.clone(), claims.clone());
    frame.feed(&pods, move |pod, keys| {
        keys_of_pod(pod, &known.0, &known.1, keys);
    });
    let known = pods.clone();
    frame.feed(&claims, move |claim, keys| {
        keys_of_claim(claim, &known, keys)
    });
    let known = pods.clone();
    frame.feed(&templates, move |template, keys| {
        let namespace = template.metadata.namespace.as_deref().unwrap_or_default();
        let name = template.metadata.name.as_deref();
        let of_template = |pod: &Pod| {
            plan::entries(pod)
                .iter()
                .any(|entry| entry.resource_claim_template_name.as_deref() == name)
        };
        let pods = known.list_in(namespace);
        let found = pods.iter().filter(|pod| of_template(pod));
        keys.extend(found.map(|pod| Work::Pod(ObjectName::of(&**pod))));
    });
    let cancel = context.cancel.clone();
    let controller = Arc::new(Controller {
        context,
        pods,
        claims,
        templates,
        made: Made::default(),
    });
    let reconcile = move |key: Work| {
        let controller = controller.clone();
        async move {
            match key {
                Work::Pod(name) => controller.look_at_pod(&name).await,
                Work::Claim(name) => controller.look_at_claim(&name).await,
            }
        }
    };
    frame.run(WORKERS, reconcile, cancel).await;
}

/// The Pod, and, where it will not run any more, each claim that may wait for that.
fn keys_of_pod(
    pod: &Pod,
    pods: &Informer<Pod>,
    claims: &Informer<ResourceClaim>,
    keys: &mut Vec<Work>,
) {
    let named: Vec<&str> = plan::claim_names(pod).collect();
    if named.is_empty() && plan::entries(pod).is_empty() {
        return;
    }
    let key = ObjectName::of(pod);
    let current = pods.get(Some(&key.namespace), &key.name);
    let may_run = current
        .filter(|current| current.metadata.uid == pod.metadata.uid)
        .is_some_and(|current| !plan::is_done(&current));
    if !may_run {
        let claim_key = |name: &str| Work::Claim(ObjectName::namespaced(&key.namespace, name));
        keys.extend(named.into_iter().map(claim_key));
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let own = claims.controlled_by(&key.namespace, uid);
        keys.extend(
            own.iter()
                .map(|claim| Work::Claim(ObjectName::of(&**claim))),
        );
    }
    keys.push(Work::Pod(key));
}

/// The claim, and the Pod it was made for or, of a user's claim, Pods on nodes that are not on its list yet.
fn keys_of_claim(claim: &ResourceClaim, pods: &Informer<Pod>, keys: &mut Vec<Work>) {
    let key = ObjectName::of(claim);
    let status = claim.status.as_ref();
    if let Some(owner) = plan::owning_pod(claim) {
        // Nobody else needs to be looked for: there may be as many of these as Pods.
        keys.push(Work::Pod(ObjectName::namespaced(
            &key.namespace,
            &owner.name,
        )));
    } else if status.is_some_and(|status| status.allocation.is_some()) {
        let all = pods.list_in(&key.namespace);
        let waiting = all.iter().filter(|pod| {
            plan::must_reserve(pod, claim) && plan::claim_names(pod).any(|name| name == &*key.name)
        });
        keys.extend(waiting.map(|pod| Work::Pod(ObjectName::of(&**pod))));
    }
    keys.push(Work::Claim(key));
}

impl Controller {
    async fn look_at_pod(&self, key: &ObjectName) -> Verdict {
        let pod = self.pods.get(Some(&key.namespace), &key.name);
        let Some(pod) = pod.filter(|pod| is_active(pod)) else {
            self.made.by_pod.lock().remove(key);
            return Verdict::Done;
        };
        if !self.made.seen(key, &self.claims) {
            return Verdict::After(UNSEEN_PAUSE);
        }
        match self.sync_pod(key, &pod).await {
            Ok(()) => Verdict::Done,
            Err(error) => Verdict::Backoff(error),
        }
    }

    async fn sync_pod(&self, key: &ObjectName, pod: &Pod) -> Result<(), BoxError> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let own = self.claims.controlled_by(&key.namespace, uid);
        let (mut statuses, mut changed) = (Vec::new(), false);
        let mut failed = None;
        for entry in plan::entries(pod) {
            let written_down = match plan::named(pod, entry) {
                Named::Generated(name) => Some(name),
                _ => None,
            };
            let claim = written_down.and_then(|name| self.claims.get(Some(&key.namespace), name));
            let made = match plan::step(pod, entry, claim.as_deref(), &own) {
                Step::Nothing => {
                    if entry.resource_claim_template_name.is_some() {
                        statuses.push((entry.name.clone(), written_down.map(str::to_owned)));
                    }
                    continue;
                }
                Step::WriteDown(name) => Ok(name),
                Step::Make(template) => self.make(pod, entry, template).await,
            };
            match made {
                Ok(name) => {
                    changed |= written_down != Some(&*name);
                    statuses.push((entry.name.clone(), Some(name)));
                }
                Err(failure) => {
                    let message =
                        format!("PodResourceClaim {}: {}", entry.name, failure.sentence());
                    let (events, reason) = (&self.context.events, "FailedResourceClaimCreation");
                    events.event_on(pod, EventType::Warning, reason, message);
                    failed.get_or_insert(failure);
                    if let Some(name) = written_down {
                        statuses.push((entry.name.clone(), Some(name.to_owned())));
                    }
                }
            }
        }
        // What was made is written down even where another could not be.
        if changed {
            self.write_down(pod, &statuses).await?;
        }
        if let Some(failure) = failed {
            return Err(failure.into());
        }
        self.reserve_all(key, pod).await
    }

    /// Reserves what is allocated, for a Pod that is on a node without the scheduler's doing.
    async fn reserve_all(&self, key: &ObjectName, pod: &Pod) -> Result<(), BoxError> {
        if node_name(pod).is_empty() {
            return Ok(());
        }
        for entry in plan::entries(pod) {
            let (name, generated) = match plan::named(pod, entry) {
                Named::ByUser(name) => (name, false),
                Named::Generated(name) => (name, true),
                Named::NotNeeded | Named::NotMade(_) | Named::Unsupported => continue,
            };
            let Some(claim) = self.claims.get(Some(&key.namespace), name) else {
                continue;
            };
            if generated && !plan::is_for(pod, &claim) {
                let what = format!(
                    "ResourceClaim {}/{name} was not created for Pod {key} (Pod is not owner)",
                    key.namespace
                );
                return Err(what.into());
            }
            if plan::must_reserve(pod, &claim) {
                self.reserve(pod, &claim).await?;
            }
        }
        Ok(())
    }

    async fn look_at_claim(&self, key: &ObjectName) -> Verdict {
        let Some(claim) = self.claims.get(Some(&key.namespace), &key.name) else {
            return Verdict::Done;
        };
        let mut remaining = Vec::new();
        for user in plan::reserved_for(&claim) {
            match self.still_uses(key, user).await {
                Ok(true) => remaining.push(user.clone()),
                Ok(false) => {}
                Err(error) => return Verdict::Backoff(error.into()),
            }
        }
        let owner = plan::owning_pod(&claim)
            .and_then(|owner| self.pods.get(Some(&key.namespace), &owner.name));
        let plan = plan::plan_claim(&claim, remaining, owner.as_deref());
        if plan.is_nothing() {
            return Verdict::Done;
        }
        tracing::debug!(claim = %key, ?plan, "Claim was looked at");
        match self.carry_out(&claim, &plan).await {
            Err(error) if cox_client::is_not_found(&error) => Verdict::Done,
            result => result.into(),
        }
    }

    async fn still_uses(
        &self,
        claim: &ObjectName,
        user: &ResourceClaimConsumerReference,
    ) -> Result<bool, kube::Error> {
        if !plan::is_pod(user) {
            return Ok(true);
        }
        let is_it = |pod: &Pod| pod.metadata.uid.as_ref() == Some(&user.uid);
        let cached = self.pods.get(Some(&claim.namespace), &user.name);
        if let Some(pod) = cached.filter(|pod| is_it(pod)) {
            return Ok(!plan::is_done(&pod));
        }
        // The cache may not have it yet; what the scheduler reserves must not be taken away.
        let api = self.context.api::<Pod>(&claim.namespace);
        let live = api.get_opt(&user.name).await?;
        Ok(live.is_some_and(|pod| is_it(&pod) && !plan::is_done(&pod)))
    }
}
