//! Brings Pods, mirrors and news of the runtime to the workers, and starts a worker for each Pod that has none.
//!
//! In: the informer over this node's Pods, the static folder, the runtime's event stream. Runs: one task for the API's side and
//! the folder, one for the runtime's events, one per Pod. It decides nothing about a Pod but that it exists.
//!
//! | module | holds |
//! | --- | --- |
//! | `static_pods` | the folder and the URL of manifests |
//! | `room` | making room for critical Pods |
//! | `stop` | ending all Pods with the node |

mod room;
mod static_pods;
mod stop;

use crate::admission::{self, Refusal};
use crate::cri::client::Runtime;
use crate::cri::observe::{self, FoundPod};
use crate::files;
use crate::keep::Record;
use crate::pod::plan::previous_container;
use crate::pod::view::PodView;
use crate::pod::{PodUid, is_over};
use crate::sources::mirror;
use crate::worker::mailbox::Failing;
use crate::worker::publish::revision;
use crate::worker::refuse;
use crate::worker::{Actor, Mailbox, Shared, Start};
use cox_client::tasks::TaskScope;
use cox_client::{Change, Informer};
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use static_pods::StaticPods;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// How often the static folder is read.
const FOLDER_EVERY: Duration = Duration::from_secs(20);
/// First and longest wait before the runtime is asked for its events again.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// How long the API server has to answer before kept Pods are started without it.
const OFFLINE_AFTER: Duration = Duration::from_secs(3);

/// A Pod with a worker.
#[derive(Clone, Debug)]
struct Known {
    mailbox: Arc<Mailbox>,
    pod: Arc<Pod>,
    is_static: bool,
    /// Only the runtime knows it: it is being cleaned away.
    is_orphan: bool,
    /// The status as the worker sees it, which is newer than the API server's.
    status: watch::Receiver<Option<Arc<PodStatus>>>,
}

/// All Pods of the node.
#[derive(Debug)]
pub struct Dispatcher {
    shared: Arc<Shared>,
    pods: Informer<Pod>,
    known: Mutex<HashMap<PodUid, Known>>,
    /// Pods that the runtime runs and no worker has taken over yet.
    found: Mutex<HashMap<PodUid, FoundPod>>,
    /// Pods that were kept on the node and that no worker has taken over yet.
    kept: Mutex<Vec<Record>>,
    scope: TaskScope,
    left: Notify,
    /// The node stops: no Pod is started any more.
    stopping: AtomicBool,
    /// Held while a Pod is looked at and taken.
    starting: Mutex<()>,
    /// Critical Pods that wait until others have made room for them.
    waiting: Mutex<BTreeSet<PodUid>>,
    /// Manifests that could not be read, at the last look.
    bad_manifests: AtomicUsize,
    /// All sources were read once: what the runtime runs beyond them is nobody's.
    all_known: AtomicBool,
    /// Whether the runtime answers.
    runtime_up: watch::Sender<bool>,
}

impl Dispatcher {
    /// A dispatcher that does nothing yet.
    #[must_use]
    pub fn new(shared: Arc<Shared>, pods: Informer<Pod>, cancel: &CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            shared,
            pods,
            known: Mutex::default(),
            found: Mutex::default(),
            kept: Mutex::default(),
            scope: TaskScope::new("pod-workers", cancel),
            left: Notify::new(),
            stopping: AtomicBool::new(false),
            starting: Mutex::default(),
            waiting: Mutex::default(),
            bad_manifests: AtomicUsize::new(0),
            all_known: AtomicBool::new(false),
            runtime_up: watch::Sender::new(false),
        })
    }

    /// Whether the runtime answers, as it changes.
    #[must_use]
    pub fn runtime_up(&self) -> watch::Receiver<bool> {
        self.runtime_up.subscribe()
    }

    /// The Pods that have a worker, as their newest objects.
    #[must_use]
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.lock()
            .values()
            .filter(|known| !known.is_orphan)
            .map(|known| known.pod.clone())
            .collect()
    }

    /// The Pod of a namespace and name.
    #[must_use]
    pub fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let is_it = |pod: &Pod| {
            pod.metadata.namespace.as_deref() == Some(namespace)
                && pod.metadata.name.as_deref() == Some(name)
        };
        self.lock()
            .values()
            .find(|known| !known.is_orphan && is_it(&known.pod))
            .map(|known| known.pod.clone())
    }

    /// Makes a Pod fail.
    pub fn fail(&self, pod: &Pod, failing: Failing) {
        if let Some(known) = self.lock().get(&uid(pod)) {
            known.mailbox.put(|mail| mail.fails = Some(failing));
        }
    }

    /// Why this node does not take a new Pod. One that began here before, or that the runtime runs, was taken already.
    fn refusal(&self, pod: &Pod, view: &PodView) -> Option<Refusal> {
        let began = pod
            .status
            .as_ref()
            .is_some_and(|status| status.start_time.is_some());
        if began || !view.is_empty() || pod.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let node = self.shared.node_view();
        let allocations = &self.shared.allocations;
        let refused = allocations.look(|held| admission::refusal(pod, held, &node));
        refused.or_else(|| self.no_cores(pod))
    }

    /// The Pods that are not over, as their workers see them.
    pub(crate) fn live(&self) -> Vec<Arc<Pod>> {
        let is_over = |known: &Known| is_over(known.status.borrow().as_deref());
        let all = self.lock();
        let live = all
            .values()
            .filter(|known| !known.is_orphan && !is_over(known));
        live.map(|known| known.pod.clone()).collect()
    }

    /// The newest status of a Pod.
    #[must_use]
    pub fn status_of(&self, pod: &Pod) -> Option<Arc<PodStatus>> {
        self.lock().get(&uid(pod))?.status.borrow().clone()
    }

    /// Completes when the given attempt of a container runs no more.
    pub fn ended(&self, pod: &Pod, container: &str, attempt: i32) -> BoxFuture<'static, ()> {
        let Some(mut status) = self.lock().get(&uid(pod)).map(|known| known.status.clone()) else {
            return Box::pin(std::future::ready(()));
        };
        let container = container.to_owned();
        Box::pin(async move {
            let is_over = |status: &Option<Arc<PodStatus>>| {
                let found = status
                    .as_ref()
                    .and_then(|status| previous_container(status, &container));
                found.is_none_or(|found| {
                    found.restart_count > attempt
                        || found
                            .state
                            .as_ref()
                            .is_none_or(|state| state.running.is_none())
                })
            };
            // An error means that the worker has ended, and the container with it.
            if status.wait_for(is_over).await.is_err() {
                tracing::trace!(container, "Worker of a followed log ended");
            }
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<PodUid, Known>> {
        self.known
            .lock()
            .expect("no panic happens while this lock is held")
    }

    /// Follows the API server and the static folder until cancelled. The runtime's events have to run beside it.
    pub async fn run_sources(self: Arc<Self>, cancel: CancellationToken) {
        let mut up = self.runtime_up();
        tokio::select! {
            // Both only wait.
            waited = up.wait_for(|up| *up) => if waited.is_err() { return },
            () = cancel.cancelled() => return,
        }
        drop(up);
        self.load_kept().await;
        let offline = tokio::time::sleep(OFFLINE_AFTER);
        tokio::pin!(offline);
        let mut waits = true;
        let mut changes = self.pods.subscribe();
        let mut folder = tokio::time::interval(FOLDER_EVERY);
        folder.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut statics = StaticPods::default();
        // Before the API's side: what the folder wants must not look like an orphan.
        folder.tick().await;
        self.read_static(&mut statics).await;
        loop {
            tokio::select! {
                // A change is taken only when it is returned.
                change = changes.next() => match change {
                    Some(change) => self.take(change),
                    None => return,
                },
                // A tick that is missed comes with the next call.
                _ = folder.tick() => self.read_static(&mut statics).await,
                // Polled by reference: it goes on where it was.
                () = &mut offline, if waits => {
                    waits = false;
                    self.start_kept();
                }
                () = cancel.cancelled() => return,
            }
        }
    }

    fn take(self: &Arc<Self>, change: Change<Pod>) {
        match change {
            Change::Resync => self.resync(),
            Change::Applied { new, .. } => self.deliver(new),
            Change::Deleted(pod) => self.object_gone(&pod),
        }
    }

    /// The cache is complete: deliver all of it, and find out who is gone.
    fn resync(self: &Arc<Self>) {
        let pods = self.pods.list();
        let here: HashSet<PodUid> = pods.iter().map(|pod| uid(pod)).collect();
        for pod in pods {
            self.deliver(pod);
        }
        for (uid, known) in self.lock().iter() {
            if !known.is_static && !known.is_orphan && !here.contains(uid) {
                known.mailbox.put(|mail| mail.gone = true);
            }
        }
        self.all_known.store(true, Ordering::Relaxed);
        if self.shared.keeper.is_offline() {
            self.shared.keeper.set_offline(false);
            // What was kept stood in for its word until now.
            for known in self.lock().values() {
                known.mailbox.put(|mail| mail.objects_changed = true);
            }
        }
        self.clear_kept(&here);
        self.clear_orphans();
        let live: HashSet<PodUid> = self.lock().keys().cloned().collect();
        let is_there = |uid: &str| live.iter().chain(&here).any(|one| one.as_str() == uid);
        self.shared.devices.keep_only(is_there);
        self.shared.claims.keep_only(is_there);
    }

    fn deliver(self: &Arc<Self>, pod: Arc<Pod>) {
        if mirror::is_mirror(&pod) {
            self.mirror_changed(&pod, Some(pod.clone()));
            return;
        }
        let uid = uid(&pod);
        if let Some(known) = self.lock().get_mut(&uid) {
            known.pod = pod.clone();
            known.mailbox.put(|mail| mail.pod = Some(pod));
            return;
        }
        self.start(uid, pod, false, false);
    }

    fn object_gone(&self, pod: &Pod) {
        if mirror::is_mirror(pod) {
            self.mirror_changed(pod, None);
            return;
        }
        if let Some(known) = self.lock().get(&uid(pod)) {
            known.mailbox.put(|mail| {
                mail.pod = Some(Arc::new(pod.clone()));
                mail.gone = true;
            });
        }
    }

    fn mirror_changed(&self, pod: &Pod, mirror: Option<Arc<Pod>>) {
        for known in self
            .lock()
            .values()
            .filter(|known| known.is_static && same_name(&known.pod, pod))
        {
            known.mailbox.put(|mail| {
                mail.mirror_gone = mirror.is_none();
                mail.mirror.clone_from(&mirror);
            });
        }
    }

    /// Starts a worker; what the runtime already runs of the Pod goes with it.
    fn start(self: &Arc<Self>, uid: PodUid, pod: Arc<Pod>, is_static: bool, is_orphan: bool) {
        if self.stopping.load(Ordering::Relaxed) || self.is_waiting(&uid) {
            return;
        }
        // Two that are looked at beside each other would both fit where there is room for one.
        let _one_at_a_time = self
            .starting
            .lock()
            .expect("no panic happens while this lock is held");
        if let Some(known) = self.lock().get_mut(&uid) {
            // What was kept of it came first, and its object just behind.
            if revision(&pod) > revision(&known.pod) {
                known.pod = pod.clone();
                known.mailbox.put(|mail| mail.pod = Some(pod));
            }
            return;
        }
        let mut found = self
            .found
            .lock()
            .expect("no panic happens while this lock is held");
        let view = found
            .remove(&uid)
            .map(|found| found.view)
            .unwrap_or_default();
        drop(found);
        if !is_orphan && let Some(refusal) = self.refusal(&pod, &view) {
            if let Some(victims) = self.victims(&pod, &refusal) {
                self.make_room(uid, &pod, is_static, victims);
                return;
            }
            // Its object says so from now on, and comes back with that: then it gets a worker that ends it. A static Pod has none,
            // and is asked for again with the next look into the folder.
            let refused = refuse::refuse(self.shared.clone(), pod, refusal, is_static);
            self.scope.spawn("refuse", refused);
            return;
        }
        if !is_orphan && !is_over(pod.status.as_ref()) {
            self.shared.allocations.admit(&pod);
        }
        let mailbox = Arc::new(Mailbox::default());
        let (status_tx, status) = watch::channel(None);
        let known = Known {
            mailbox: mailbox.clone(),
            pod: pod.clone(),
            is_static,
            is_orphan,
            status,
        };
        self.lock().insert(uid, known);
        if is_orphan {
            mailbox.put(|mail| mail.gone = true);
        }
        let actor = Actor::new(
            self.shared.clone(),
            Start {
                pod,
                is_static,
                view,
                mailbox,
                status_tx,
            },
        );
        let dispatcher = Arc::downgrade(self);
        let cancel = self.scope.cancellation().clone();
        self.scope.spawn("pod", async move {
            let uid = Box::pin(actor.run(cancel)).await;
            if let Some(dispatcher) = dispatcher.upgrade() {
                dispatcher.shared.allocations.release(uid.as_str());
                dispatcher.lock().remove(&uid);
                dispatcher.left.notify_waiters();
            }
        });
    }

    /// Pods in the runtime that nobody wants: they get a worker that ends them.
    fn clear_orphans(self: &Arc<Self>) {
        // A Pod that is in the cache and has no worker yet is about to get one.
        let expected: HashSet<PodUid> = self.pods.list().iter().map(|pod| uid(pod)).collect();
        let orphans: Vec<(PodUid, FoundPod)> = {
            let found = self
                .found
                .lock()
                .expect("no panic happens while this lock is held");
            let orphans = found.iter().filter(|(uid, _)| !expected.contains(uid));
            orphans
                .map(|(uid, pod)| (uid.clone(), pod.clone()))
                .collect()
        };
        for (uid, found) in orphans {
            tracing::info!(
                namespace = found.namespace,
                name = found.name,
                uid = uid.as_str(),
                "Orphaned Pod is removed"
            );
            let pod = Pod {
                metadata: ObjectMeta {
                    name: Some(found.name),
                    namespace: Some(found.namespace),
                    uid: Some(uid.0.clone()),
                    ..ObjectMeta::default()
                },
                spec: Some(PodSpec::default()),
                status: None,
            };
            self.start(uid, Arc::new(pod), false, true);
        }
    }

    /// Reads what was kept; it stands in for the API server wherever that does not answer.
    async fn load_kept(&self) {
        let keeper = self.shared.keeper.clone();
        let Ok(records) = tokio::task::spawn_blocking(move || keeper.load()).await else {
            return;
        };
        let volumes = &self.shared.volumes;
        for record in &records {
            let namespace = record.pod.metadata.namespace.as_deref().unwrap_or_default();
            for map in &record.config_maps {
                let name = map.metadata.name.as_deref().unwrap_or_default();
                volumes.config_maps.seed(namespace, name, map.clone());
            }
            for secret in &record.secrets {
                let name = secret.metadata.name.as_deref().unwrap_or_default();
                volumes.secrets.seed(namespace, name, secret.clone());
            }
            let uid = uid(&record.pod);
            volumes.tokens.take_over(uid.as_str(), &record.tokens);
            let certificates = &volumes.certificates;
            certificates.take_over(uid.as_str(), &record.certificates);
            volumes.answers.take_over(uid.as_str(), &record.volumes);
        }
        *self
            .kept
            .lock()
            .expect("no panic happens while this lock is held") = records;
    }

    fn take_kept(&self) -> Vec<Record> {
        std::mem::take(
            &mut *self
                .kept
                .lock()
                .expect("no panic happens while this lock is held"),
        )
    }

    /// The API server does not answer: what was kept runs again without it.
    fn start_kept(self: &Arc<Self>) {
        if self.all_known.load(Ordering::Relaxed) {
            return;
        }
        self.shared.keeper.set_offline(true);
        let records = self.take_kept();
        if !records.is_empty() {
            tracing::info!(
                pods = records.len(),
                "The API server is away: kept Pods are started without it"
            );
        }
        for record in records {
            let pod = Arc::new(record.pod);
            let uid = uid(&pod);
            if !self.lock().contains_key(&uid) {
                self.start(uid, pod, false, false);
            }
        }
    }

    /// The API server answered: what was kept and is not there any more leaves the node.
    fn clear_kept(self: &Arc<Self>, here: &HashSet<PodUid>) {
        for record in self.take_kept() {
            let uid = uid(&record.pod);
            if !here.contains(&uid) && !self.lock().contains_key(&uid) {
                self.start(uid, Arc::new(record.pod), false, true);
            }
        }
    }

    /// Counters of what is kept and of manifests, in the text format of Prometheus.
    #[must_use]
    pub fn kept_text(&self) -> String {
        let shared = &self.shared;
        let (volumes, drivers) = shared.volumes.writes();
        let writes = files::writes_text(&[
            ("kept-pods", shared.keeper.writes()),
            ("volumes", volumes),
            ("drivers", drivers),
            ("devices", shared.devices.writes()),
            ("claims", shared.claims.writes()),
            (
                "cores",
                shared.cpus.as_ref().map_or(0, |cpus| cpus.writes()),
            ),
            ("logs", shared.log_rotations.count()),
        ]);
        format!(
            "{}{writes}# HELP cox_kubelet_claims_in_use Resource claims that are prepared for Pods of the node.\n\
             # TYPE cox_kubelet_claims_in_use gauge\n\
             cox_kubelet_claims_in_use {}\n\
             # HELP cox_kubelet_bad_manifests Static manifests that could not be read at the last look.\n\
             # TYPE cox_kubelet_bad_manifests gauge\n\
             cox_kubelet_bad_manifests {}\n",
            self.shared.keeper.text(),
            shared.claims.in_use(),
            self.bad_manifests.load(Ordering::Relaxed)
        )
    }

    /// What `/metrics/probes` shows.
    #[must_use]
    pub fn probes_text(&self) -> String {
        self.shared.probe_metrics.text()
    }

    /// The runtime under the Pods.
    #[must_use]
    pub fn runtime(&self) -> Runtime {
        self.shared.runtime.clone()
    }

    /// Follows the runtime's events until cancelled; lists everything at start and after each gap.
    pub async fn run_events(self: Arc<Self>, cancel: CancellationToken) {
        let mut wait = RECONNECT.0;
        loop {
            let followed = tokio::select! {
                // Dropping it at the end of everything loses nothing that is needed.
                followed = self.follow_events() => followed,
                () = cancel.cancelled() => return,
            };
            let was_up = self.runtime_up.send_replace(false);
            match followed {
                Ok(()) => tracing::warn!("Runtime ended its event stream"),
                Err(error) if was_up => tracing::warn!(%error, "Runtime is gone"),
                Err(error) => tracing::debug!(%error, "Runtime does not answer"),
            }
            wait = if was_up {
                RECONNECT.0
            } else {
                (wait * 2).min(RECONNECT.1)
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = cancel.cancelled() => return,
            }
        }
    }

    async fn follow_events(self: &Arc<Self>) -> Result<(), crate::cri::client::CriError> {
        let info = self.shared.runtime.version().await?;
        // A restarted runtime has the same name: the first answer stands.
        self.shared.runtime_name.get_or_init(|| info.name);
        // First the stream, then the list: what happens in between is in both, and merging it twice changes nothing.
        let mut events = self.shared.runtime.events().await?;
        let listing = observe::all_pods(&self.shared.runtime).await?;
        self.take_listing(listing);
        self.runtime_up.send_replace(true);
        loop {
            match events.message().await {
                Ok(Some(event)) => self.take_event(&event),
                Ok(None) => return Ok(()),
                Err(status) => {
                    tracing::debug!(%status, "Event stream failed");
                    return Ok(());
                }
            }
        }
    }

    fn take_listing(self: &Arc<Self>, mut listing: HashMap<PodUid, FoundPod>) {
        for (uid, known) in self.lock().iter() {
            let view = listing
                .remove(uid)
                .map_or_else(PodView::default, |found| found.view);
            known.mailbox.put(|mail| mail.listing = Some(view));
        }
        *self
            .found
            .lock()
            .expect("no panic happens while this lock is held") = listing;
        if self.all_known.load(Ordering::Relaxed) {
            self.clear_orphans();
        }
    }

    fn take_event(&self, event: &cox_cri::v1::ContainerEventResponse) {
        let Some(news) = observe::news(event) else {
            return;
        };
        if let Some(known) = self.lock().get(&news.uid) {
            known.mailbox.put_news(news);
        }
    }
}

fn uid(pod: &Pod) -> PodUid {
    PodUid(pod.metadata.uid.clone().unwrap_or_default())
}

fn same_name(a: &Pod, b: &Pod) -> bool {
    a.metadata.namespace == b.metadata.namespace && a.metadata.name == b.metadata.name
}
