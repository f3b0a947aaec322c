//! Makes room: others end for critical Pods, which start when that is done, and others leave cores that are given away. Tells Pods
//! whose resize waited that there is room.

use super::{Dispatcher, uid};
use crate::admission::{self, Refusal};
use crate::pod::{PodUid, is_over};
use crate::preemption;
use crate::worker::mailbox::Failing;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use std::collections::BTreeSet;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long those who make room may take; then the Pod is looked at anew.
const PATIENCE: Duration = Duration::from_secs(60);

impl Dispatcher {
    fn waiting(&self) -> MutexGuard<'_, BTreeSet<PodUid>> {
        self.waiting
            .lock()
            .expect("no panic happens while this lock is held")
    }

    /// Whether a Pod waits for others to make room.
    pub(super) fn is_waiting(&self, uid: &PodUid) -> bool {
        self.waiting().contains(uid)
    }

    /// Those that end so that a Pod that was refused fits after all.
    pub(super) fn victims(&self, pod: &Pod, refusal: &Refusal) -> Option<Vec<Arc<Pod>>> {
        if !refusal.reason.starts_with("OutOf") {
            return None;
        }
        let (live, node) = (self.live(), self.shared.node_view());
        let victims = preemption::victims(pod, &live, &node)?;
        let mut rest = self.shared.allocations.look(Clone::clone);
        for victim in &victims {
            rest.remove(uid(victim).as_str());
        }
        // Nobody ends for a Pod that something else keeps away.
        admission::refusal(pod, &rest, &node)
            .is_none()
            .then_some(victims)
    }

    /// Gives the Pod the cores that are to be its own; the refusal, if there are not enough.
    pub(super) fn no_cores(&self, pod: &Pod) -> Option<Refusal> {
        let cpus = self.shared.cpus.as_ref()?;
        match cpus.allocate(pod) {
            Ok(false) => None,
            Ok(true) => {
                self.move_others();
                None
            }
            Err(why) => Some(Refusal {
                reason: "UnexpectedAdmissionError".to_owned(),
                message: format!("Allocate failed due to {why}, which is unexpected"),
            }),
        }
    }

    /// Others leave the cores that were given away, and may use those that came back.
    fn move_others(&self) {
        let shared = self.shared.clone();
        self.scope.spawn("move-others", async move {
            if let Some(cpus) = &shared.cpus {
                cpus.move_others(&shared.runtime).await;
            }
        });
    }

    /// Tells Pods whose resize waited that there is room now, until cancelled.
    pub async fn run_grants(self: Arc<Self>, cancel: CancellationToken) {
        loop {
            let granted = tokio::select! {
                // What was not taken is answered by the next call.
                granted = self.shared.allocations.granted() => granted,
                () = cancel.cancelled() => return,
            };
            for uid in granted {
                if let Some(known) = self.lock().get(&PodUid(uid)) {
                    known.mailbox.put(|mail| mail.room = true);
                }
            }
        }
    }

    /// Has Pods look again whose devices' health has changed, until cancelled.
    pub async fn run_health(self: Arc<Self>, cancel: CancellationToken) {
        loop {
            let affected = tokio::select! {
                // What was not taken is answered by the next call.
                affected = self.shared.affected.next() => affected,
                () = cancel.cancelled() => return,
            };
            for uid in affected {
                if let Some(known) = self.lock().get(&PodUid(uid)) {
                    known.mailbox.put(|_| {});
                }
            }
        }
    }

    /// Ends the victims, waits for them and starts the Pod.
    pub(super) fn make_room(
        self: &Arc<Self>,
        for_uid: PodUid,
        pod: &Arc<Pod>,
        is_static: bool,
        victims: Vec<Arc<Pod>>,
    ) {
        if !self.waiting().insert(for_uid.clone()) {
            return;
        }
        let ends: Vec<_> = victims
            .iter()
            .filter_map(|victim| Some(self.lock().get(&uid(victim))?.status.clone()))
            .collect();
        for victim in &victims {
            tracing::info!(
                pod = victim.metadata.name,
                critical = pod.metadata.name,
                "Pod makes room for a critical one"
            );
            let failing = Failing {
                reason: "Preempting".to_owned(),
                message: "Preempted in order to admit critical pod".to_owned(),
                grace_secs: 0,
                disruption: Some(
                    "Pod was preempted by Kubelet to accommodate a critical pod.".to_owned(),
                ),
            };
            self.fail(victim, failing);
        }
        let (dispatcher, pod) = (Arc::downgrade(self), pod.clone());
        self.scope.spawn("make-room", async move {
            let all = futures::future::join_all(ends.into_iter().map(until_over));
            if tokio::time::timeout(PATIENCE, all).await.is_err() {
                tracing::warn!(pod = pod.metadata.name, "Others do not make room in time");
            }
            let Some(dispatcher) = dispatcher.upgrade() else {
                return;
            };
            dispatcher.waiting().remove(&for_uid);
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let newest = dispatcher.pods.get(pod.metadata.namespace.as_deref(), name);
            let newest = newest.filter(|newest| uid(newest) == for_uid);
            // A static Pod is not in the API server's cache under its uid.
            if let Some(pod) = newest.or(is_static.then_some(pod)) {
                dispatcher.start(for_uid, pod, is_static, false);
            }
        });
    }
}

/// Completes when a Pod holds nothing any more.
async fn until_over(mut status: watch::Receiver<Option<Arc<PodStatus>>>) {
    let is_over = |status: &Option<Arc<PodStatus>>| is_over(status.as_deref());
    // An error means that the worker has ended, and the Pod with it.
    if status.wait_for(is_over).await.is_err() {
        tracing::trace!("Worker of a Pod that makes room ended");
    }
}
