//! The one task that brings everything to the present state: objects to a table, the table to open ports, both to status and Events.
//!
//! Watched: Ingresses and their classes; Services, EndpointSlices and Secrets from the first Ingress on. A change of endpoints makes
//! no new table.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use cox_client::events::{EventType, Recorder};
use cox_client::{Cached, Change, Informer, Subscription};
use k8s_openapi::api::core::v1::{Node, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use kube::Api;
use kube::api::{Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::activator::{Activator, Place, slices};
use crate::backend::{self, Registry, ServiceKey};
use crate::data::Plane;
use crate::data::activation::Wake;
use crate::data::ports::{self, Ports};
use crate::gateway_api::{GatewayApi, Served, by_age};
use crate::ingress::{class, compile, status};
use crate::peers::{self, Peers};
use crate::resolve::{Certificates, Named, Problem, Resolver, sleeps_after};
use crate::table::{Port, Table};
use crate::{Config, Deps};

/// Changes that come together are one sync.
const SYNC_PAUSE: Duration = Duration::from_millis(5);
/// After something could not be written or opened.
const RETRY_PAUSE: Duration = Duration::from_secs(5);
/// What a node that joined needs to be bound to.
const ROLE: &str = "coxswain:gateway";
/// Between attempts to read and write what is needed at the start.
const START_PAUSE: Duration = Duration::from_millis(250);

/// What is watched from the start.
#[derive(Debug)]
struct Always {
    ingresses: Informer<Ingress>,
    classes: Informer<IngressClass>,
    services: Informer<Service>,
    nodes: Informer<Node>,
}

/// What is watched once something is served.
#[derive(Debug)]
struct Serving {
    slices: Informer<EndpointSlice>,
    secrets: Informer<Secret>,
    slice_changes: Subscription<EndpointSlice>,
    secret_changes: Subscription<Secret>,
}

impl Serving {
    async fn start(informers: &cox_client::Informers) -> Self {
        let slices = informers.of::<EndpointSlice>();
        let secrets = informers.of_selected::<Secret>("type=kubernetes.io/tls");
        tokio::join!(slices.synced(), secrets.synced());
        Self {
            slice_changes: slices.subscribe(),
            secret_changes: secrets.subscribe(),
            slices,
            secrets,
        }
    }
}

/// What has to be done after a change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Due {
    table: bool,
    endpoints: bool,
    sleepers: bool,
}

pub(crate) struct Syncing {
    deps: Deps,
    config: Config,
    plane: Arc<Plane>,
    ports: Ports,
    registry: Registry,
    certificates: Certificates,
    events: Recorder,
    always: Always,
    peers: Peers,
    /// Whether this node could not be marked yet.
    unmarked: bool,
    serving: Option<Serving>,
    gateways: Option<GatewayApi>,
    activator: Option<Activator>,
    wanted: Option<mpsc::Receiver<ServiceKey>>,
    /// Services of which the activator has slices from an earlier start.
    left: Vec<ServiceKey>,
    cancel: CancellationToken,
    named: Named,
    /// Ports that cannot be opened, and why.
    closed: BTreeMap<Port, String>,
    /// What was said already, by object and sentence.
    said: HashSet<(Option<String>, String)>,
}

impl Syncing {
    pub(crate) fn new(
        config: Config,
        deps: Deps,
        events: Recorder,
        cancel: &CancellationToken,
    ) -> Self {
        let (wake, wanted) = Wake::new();
        let plane = Arc::new(Plane::new(wake));
        let told = ports::Config {
            ip: config.node_ip,
            http: config.http,
            https: config.https,
        };
        Self {
            always: Always {
                ingresses: deps.informers.of(),
                classes: deps.informers.of(),
                services: deps.informers.of(),
                nodes: deps.informers.of(),
            },
            peers: Peers::new(&config.node_name),
            unmarked: false,
            ports: Ports::new(told, Arc::clone(&plane), cancel),
            deps,
            plane,
            registry: Registry::new(!config.activator),
            certificates: Certificates::default(),
            events,
            serving: None,
            gateways: None,
            activator: None,
            wanted: Some(wanted),
            left: Vec::new(),
            cancel: cancel.clone(),
            named: Named::default(),
            closed: BTreeMap::new(),
            said: HashSet::new(),
            config,
        }
    }

    pub(crate) async fn run(mut self) {
        self.prepare().await;
        let mut ingresses = self.always.ingresses.subscribe();
        let mut classes = self.always.classes.subscribe();
        let mut services = self.always.services.subscribe();
        let mut nodes = self.always.nodes.subscribe();
        let mut retry = false;
        let (client, clock) = (self.deps.client.clone(), Arc::clone(&self.deps.clock));
        let starting = GatewayApi::start(client, self.deps.informers.clone(), clock);
        tokio::pin!(starting);
        loop {
            let mut due = Due::default();
            // Each arm only waits: a change is taken when it is returned.
            tokio::select! {
                change = ingresses.next() => match change {
                    Some(_) => due.table = true,
                    // Informers end only when everything does.
                    None => return std::future::pending().await,
                },
                Some(_) = classes.next() => due.table = true,
                Some(change) = services.next() => due = self.after_service(&change),
                Some(_) = nodes.next() => {
                    while nodes.try_next().is_some() {}
                    due.table = self.after_nodes().await;
                }
                started = &mut starting, if self.config.gateway_api && self.gateways.is_none() => {
                    self.gateways = Some(started);
                }
                () = of_gateways(self.gateways.as_mut()) => due.table = true,
                more = further(self.serving.as_mut(), &self.named) => due = more,
                () = tokio::time::sleep(RETRY_PAUSE), if retry || self.unmarked => {
                    self.after_nodes().await;
                    due.table = true;
                }
            }
            while ingresses.try_next().is_some() || classes.try_next().is_some() {
                due.table = true;
            }
            while let Some(change) = services.try_next() {
                let more = self.after_service(&change);
                due.table |= more.table;
                due.sleepers |= more.sleepers;
            }
            self.drain(&mut due);
            if due.table {
                retry = self.sync().await;
            }
            if due.sleepers {
                self.sync_sleepers().await;
            }
            if due.endpoints || due.sleepers {
                self.refresh();
            }
            if due.endpoints || due.sleepers || due.table {
                retry |= self.publish().await;
            }
            tokio::time::sleep(SYNC_PAUSE).await;
        }
    }

    /// Makes and reads what the loop begins with.
    async fn prepare(&mut self) {
        let mut warned = false;
        while let Err(error) = class::ensure(&self.deps.client).await {
            let forbidden = matches!(&error, kube::Error::Api(status) if status.code == 403);
            if forbidden && !warned {
                warned = true;
                tracing::warn!(%error, "This node takes no requests from outside until it is let: bind its user to ClusterRole {ROLE}");
            }
            tracing::debug!(%error, "The class of Ingresses cannot be made yet");
            tokio::time::sleep(if forbidden { RETRY_PAUSE } else { START_PAUSE }).await;
        }
        if !self.config.activator {
            return;
        }
        self.left = loop {
            match slices::left(&self.deps.client, &self.config.node_name).await {
                Ok(left) => break left,
                Err(error) => {
                    tracing::debug!(%error, "Slices of an earlier start cannot be read yet")
                }
            }
            tokio::time::sleep(START_PAUSE).await;
        };
    }

    /// Whether other gateways are there than before; this one is made known.
    async fn after_nodes(&mut self) -> bool {
        let nodes = self.always.nodes.list();
        self.unmarked = peers::mark(&self.deps.client, &self.config.node_name, &nodes).await;
        self.peers.read(&nodes)
    }

    /// Takes what else has changed meanwhile.
    fn drain(&mut self, due: &mut Due) {
        let Some(serving) = &mut self.serving else {
            return;
        };
        while serving.slice_changes.try_next().is_some() {
            due.endpoints = true;
        }
        while serving.secret_changes.try_next().is_some() {
            due.table |= self.named.secrets;
        }
    }

    /// A new table, and what follows from it. Whether something is to be tried again.
    async fn sync(&mut self) -> bool {
        let classes = self.always.classes.list();
        let mut ingresses = self.always.ingresses.list();
        ingresses.retain(|ingress| class::is_ours(ingress, &classes));
        let mut failed = false;
        if let Some(default) = class::default_due(&classes).filter(|_| self.peers.speaks()) {
            failed |= class::set_default(&self.deps.client, default)
                .await
                .is_err();
        }
        let gateways_used = self.gateways.as_ref().is_some_and(GatewayApi::is_used);
        if ingresses.is_empty() && !gateways_used && self.serving.is_none() {
            return failed | self.write_gateways().await;
        }
        if let Some(gateways) = &mut self.gateways {
            gateways.watch_more().await;
        }
        self.start_serving().await;
        by_age(&mut ingresses);
        let (table, problems) = self.compile(&ingresses);
        let wanted: BTreeSet<Port> = table.ports.keys().copied().collect();
        self.refresh();
        self.plane.table.store(Arc::new(table));
        let closed = self.ports.sync(&wanted).await;
        for (port, error) in &closed {
            tracing::debug!(?port, error, "A port is not open");
        }
        let of_ingresses = closed
            .iter()
            .filter(|(port, _)| !matches!(port, Port::Other(..)));
        let closed_reasons = of_ingresses.flat_map(|(_, error)| {
            ingresses.iter().map(move |ingress| Problem {
                object: cox_client::events::reference(&**ingress),
                reason: "PortNotOpen",
                message: format!("Requests cannot be taken: {error}."),
            })
        });
        self.closed = closed.iter().cloned().collect();
        let problems = problems.into_iter().filter(|_| self.peers.speaks());
        let problems = problems.chain(closed_reasons).collect();
        self.say(problems);
        failed |= !closed.is_empty();
        failed |= self.write_status(&ingresses).await;
        failed |= self.write_gateways().await;
        failed
    }

    async fn start_serving(&mut self) {
        if self.serving.is_none() {
            self.always.services.synced().await;
            self.serving = Some(Serving::start(&self.deps.informers).await);
        }
    }

    /// What a change of a Service asks for.
    fn after_service(&self, change: &Change<Service>) -> Due {
        let wishes = |service: &Service| sleeps_after(service).is_some();
        let sleepers = match change {
            Change::Resync => {
                !self.left.is_empty()
                    || self.activator.is_some()
                    || self.always.services.list().iter().any(|one| wishes(one))
            }
            Change::Applied { old, new } => wishes(new) || old.as_deref().is_some_and(wishes),
            Change::Deleted(service) => wishes(service),
        };
        Due {
            table: concerns(change, &self.named),
            sleepers: sleepers && self.config.activator,
            endpoints: false,
        }
    }

    /// Brings what sleeps to what the Services ask for.
    async fn sync_sleepers(&mut self) {
        self.start_serving().await;
        if let Some(wanted) = self.wanted.take() {
            let place = Place {
                ip: self.config.activator_ip,
                node: self.config.node_name.clone(),
            };
            let (client, events) = (self.deps.client.clone(), self.events.clone());
            let plane = Arc::clone(&self.plane);
            let started = Activator::start(
                client,
                &self.deps.informers,
                events,
                place,
                plane,
                wanted,
                std::mem::take(&mut self.left),
                &self.cancel,
            );
            self.activator = Some(started.await);
        }
        if let Some(activator) = &mut self.activator {
            activator.sync(&self.always.services.list(), &self.registry);
        }
    }

    async fn publish(&mut self) -> bool {
        match &mut self.activator {
            Some(activator) => activator.publish().await,
            None => false,
        }
    }

    fn compile(&mut self, ingresses: &[Arc<Ingress>]) -> (Table, Vec<Problem>) {
        let Some(serving) = &self.serving else {
            return (Table::default(), Vec::new());
        };
        let known = &self.always.services;
        let services = |namespace: &str, name: &str| known.get(Some(namespace), name);
        let secrets = |namespace: &str, name: &str| serving.secrets.get(Some(namespace), name);
        let resolver = Resolver {
            services: &services,
            secrets: &secrets,
            registry: &self.registry,
            certificates: &self.certificates,
            named: Mutex::default(),
        };
        let mut table = Table::default();
        let mut problems = Vec::new();
        let mut tls = false;
        for ingress in ingresses {
            tls |= compile::has_tls(ingress);
            problems.extend(compile::add(&mut table, ingress, &resolver));
        }
        if tls {
            let https = table.ports.entry(Port::Https).or_default();
            https.default_certificate = self.certificates.fallback();
        } else {
            table.ports.remove(&Port::Https);
        }
        if let Some(gateways) = &mut self.gateways {
            gateways.compile(&mut table, &resolver);
        }
        for port in table.ports.values_mut() {
            port.settle();
        }
        self.named = resolver.named.into_inner();
        self.certificates
            .retain(|namespace, name| secrets(namespace, name).is_some());
        (table, problems)
    }

    async fn write_gateways(&self) -> bool {
        let Some(gateways) = self.gateways.as_ref().filter(|_| self.peers.speaks()) else {
            return false;
        };
        let open = self.plane.open.borrow().clone();
        let served = Served {
            ips: self.peers.ips(self.config.node_ip),
            open: &open,
            closed: &self.closed,
        };
        gateways.write_status(&served).await
    }

    fn refresh(&self) {
        let Some(serving) = &self.serving else {
            return;
        };
        let mut by_service: HashMap<ServiceKey, Vec<Arc<EndpointSlice>>> = HashMap::new();
        for slice in serving.slices.list() {
            let key = backend::service_of(&slice);
            if let Some(key) = key.filter(|key| self.registry.knows(key)) {
                by_service.entry(key).or_default().push(slice);
            }
        }
        self.registry
            .refresh(|key| by_service.get(key).cloned().unwrap_or_default());
    }

    /// Tells owners what is wrong, once for as long as it is.
    fn say(&mut self, problems: Vec<Problem>) {
        let mut now = HashSet::new();
        for problem in problems {
            let key = (problem.object.uid.clone(), problem.message.clone());
            if !now.insert(key.clone()) || self.said.contains(&key) {
                continue;
            }
            self.events.event(
                &problem.object,
                EventType::Warning,
                problem.reason,
                problem.message,
            );
        }
        self.said = now;
    }

    /// Whether a status could not be written.
    async fn write_status(&self, ingresses: &[Arc<Ingress>]) -> bool {
        let open = self.plane.open.borrow().clone();
        let mut failed = false;
        for ingress in ingresses {
            let ip = self.config.node_ip;
            let own = status::wished(ip, &open, compile::has_tls(ingress));
            let present = status::present(ingress);
            let wished = status::merged(&present, ip, own, &self.peers);
            if wished == present {
                continue;
            }
            let meta = &ingress.metadata;
            let (Some(namespace), Some(name)) = (&meta.namespace, &meta.name) else {
                continue;
            };
            let api: Api<Ingress> = Api::namespaced(self.deps.client.clone(), namespace);
            let patch = Patch::Merge(json!({"status": {"loadBalancer": {"ingress": wished}}}));
            match api
                .patch_status(name, &PatchParams::default(), &patch)
                .await
            {
                Ok(_) => {}
                Err(error) if cox_client::is_not_found(&error) => {}
                Err(error) => {
                    tracing::debug!(namespace, name, %error, "The status of an Ingress was not written");
                    failed = true;
                }
            }
        }
        failed
    }
}

/// Waits for a change of the Gateway API's kinds.
///
/// # Cancel safety
/// A change is taken only when it is returned.
async fn of_gateways(gateways: Option<&mut GatewayApi>) {
    match gateways {
        Some(gateways) => gateways.changed().await,
        None => std::future::pending().await,
    }
}

/// Waits for a change of what is watched once something is served.
///
/// # Cancel safety
/// A change is taken only when it is returned.
async fn further(serving: Option<&mut Serving>, named: &Named) -> Due {
    let Some(serving) = serving else {
        return std::future::pending().await;
    };
    let nothing = Due::default();
    tokio::select! {
        Some(_) = serving.slice_changes.next() => Due { endpoints: true, ..nothing },
        Some(_) = serving.secret_changes.next() => Due { table: named.secrets, ..nothing },
        else => std::future::pending().await,
    }
}

/// Whether a change of a Service is one that the table depends on.
fn concerns(change: &Change<Service>, named: &Named) -> bool {
    let is_named = |service: &Service| named.services.contains(&key_of(service));
    match change {
        Change::Resync => true,
        Change::Applied { old, new } => {
            let same = old.as_ref().is_some_and(|old| {
                old.spec == new.spec && old.metadata.annotations == new.metadata.annotations
            });
            !same && is_named(new)
        }
        Change::Deleted(service) => is_named(service),
    }
}

fn key_of<K: Cached>(object: &K) -> ServiceKey {
    let meta = object.meta();
    ServiceKey::new(
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
    )
}
