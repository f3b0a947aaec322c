//! Deletes Pods that use a device with a NoExecute taint which their claim does not tolerate, or no longer.
//!
//! Watched: resource slices, claims, pods. Written: the condition DisruptionTarget of pods, which then are deleted; events. A
//! delayed key only leads to another look at the present state, so a taint that went away evicts nobody. Taints of devices come
//! from their drivers only: DeviceTaintRules are off by default and not served here.

mod plan;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use cox_client::Informer;
use cox_client::events::EventType;
use cox_client::runner::{ObjectName, Verdict};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceSlice};
use parking_lot::Mutex;

use crate::context::{Context, Loop};
use crate::disrupt::disrupt;
use crate::pod::{is_active, node_name};
use crate::resource_claim::claim_names;
use plan::Pool;

const WORKERS: usize = 4;

/// The slices of each pool by name.
#[derive(Debug)]
struct Pools {
    slices: Informer<ResourceSlice>,
    names: Mutex<HashMap<Pool, BTreeSet<String>>>,
}

impl Pools {
    /// Takes note of a slice that came or went.
    fn saw(&self, slice: &ResourceSlice) {
        let pool = plan::pool_of(slice);
        let name = slice.metadata.name.clone().unwrap_or_default();
        let mut names = self.names.lock();
        let known = names.entry(pool.clone()).or_default();
        if self.slices.get(None, &name).is_some() {
            known.insert(name);
        } else {
            known.remove(&name);
        }
        if known.is_empty() {
            names.remove(&pool);
        }
    }

    fn slices(&self, pool: &Pool) -> Vec<Arc<ResourceSlice>> {
        let names = self.names.lock().get(pool).cloned().unwrap_or_default();
        let found = names.iter().filter_map(|name| self.slices.get(None, name));
        found.collect()
    }

    fn is_tainted(&self, pool: &Pool) -> bool {
        self.slices(pool)
            .iter()
            .any(|slice| plan::is_tainted(slice))
    }
}

struct Evictor {
    context: Context,
    pods: Informer<Pod>,
    claims: Informer<ResourceClaim>,
    pools: Arc<Pools>,
    /// Pods whose end has been planned, so that one that may stay after all hears of it.
    planned: Mutex<HashMap<ObjectName, Option<String>>>,
}

pub(crate) async fn run(context: Context) {
    let slices = context.informers.of::<ResourceSlice>();
    let claims = context.informers.of::<ResourceClaim>();
    let pods = context.informers.of::<Pod>();
    let pools = Arc::new(Pools {
        slices: slices.clone(),
        names: Mutex::default(),
    });
    let mut frame = Loop::new("device-taint-eviction");
    let known = (claims.clone(), Arc::clone(&pools));
    frame.feed(&slices, move |slice, keys| {
        let (claims, pools) = &known;
        pools.saw(slice);
        let pool = plan::pool_of(slice);
        if plan::is_tainted(slice) || pools.is_tainted(&pool) {
            let claims = claims.list();
            let using = claims
                .iter()
                .filter(|claim| plan::pools_of(claim).any(|found| found == pool));
            keys.extend(using.flat_map(|claim| plan::users(claim)));
        }
    });
    let known = Arc::clone(&pools);
    frame.feed(&claims, move |claim, keys| {
        if plan::pools_of(claim).any(|pool| known.is_tainted(&pool)) {
            keys.extend(plan::users(claim));
        }
    });
    frame.feed(&pods, |pod, keys| {
        if claim_names(pod).next().is_some() {
            keys.push(ObjectName::of(pod));
        }
    });
    let cancel = context.cancel.clone();
    let evictor = Arc::new(Evictor {
        context,
        pods,
        claims,
        pools,
        planned: Mutex::default(),
    });
    let reconcile = move |key: ObjectName| {
        let evictor = evictor.clone();
        async move { evictor.reconcile(&key).await }
    };
    frame.run(WORKERS, reconcile, cancel).await;
}

impl Evictor {
    async fn reconcile(&self, key: &ObjectName) -> Verdict {
        let pod = self.pods.get(Some(&key.namespace), &key.name);
        let Some(pod) = pod.filter(|pod| is_active(pod) && !node_name(pod).is_empty()) else {
            self.planned.lock().remove(key);
            return Verdict::Done;
        };
        let now = self.context.clock.now();
        match self.deadline(key, &pod) {
            None => {
                let planned = self.planned.lock().remove(key);
                if planned.is_some_and(|uid| uid == pod.metadata.uid) {
                    self.tell(&pod, "Cancelling deletion");
                }
                Verdict::WaitForChange
            }
            Some(at) if at > now => {
                let uid = pod.metadata.uid.clone();
                self.planned.lock().insert(key.clone(), uid);
                Verdict::After(Duration::try_from(at.duration_since(now)).unwrap_or_default())
            }
            Some(_) => {
                self.planned.lock().remove(key);
                self.tell(&pod, "Marking for deletion");
                let (reason, message) = (
                    "DeletionByDeviceTaintManager",
                    "Device Taint manager: deleting due to NoExecute taint",
                );
                disrupt(&self.context, &pod, reason, message)
                    .await
                    .map(drop)
                    .into()
            }
        }
    }

    /// When the Pod must go, because of any claim that is reserved for it.
    fn deadline(&self, key: &ObjectName, pod: &Pod) -> Option<Timestamp> {
        let claims =
            claim_names(pod).filter_map(|name| self.claims.get(Some(&key.namespace), name));
        claims
            .filter(|claim| plan::is_reserved_for(claim, pod))
            .filter_map(|claim| plan::deadline(&claim, |pool| self.pools.slices(pool)))
            .min()
    }

    fn tell(&self, pod: &Pod, message: &str) {
        let (events, reason) = (&self.context.events, "DeviceTaintManagerEviction");
        events.event_on(pod, EventType::Normal, reason, message);
    }
}
