//! Resource claims (dynamic resource allocation): what the scheduler has allocated to a Pod is made ready by the drivers of the
//! devices before anything of the Pod starts, reaches its containers by the runtime's device interface (CDI), and is cleared away
//! after its last container.
//!
//! | module | holds |
//! | --- | --- |
//! | `drivers` | the drivers' plugins, calls to them, ResourceSlices of those that are gone |
//! | `health` | what drivers say of their devices |
//! | `plan` | which claims are prepared for whom, and what a Pod's claims are; pure |
//!
//! Invariants: a driver is never asked for a claim that is not written down with its Pod, so that a kubelet that is killed in
//! between clears it away; a claim is cleared away once, after its last Pod on this node; a claim that is being cleared away gets
//! no new Pod. Without an API server a Pod that had its claims before gets them again.

mod drivers;
mod health;
mod plan;

#[allow(
    missing_debug_implementations,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "generated code"
)]
pub mod proto {
    //! Messages and service of drivers.
    tonic::include_proto!("k8s.io.kubelet.pkg.apis.dra.v1");
}

#[allow(
    missing_debug_implementations,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "generated code"
)]
pub mod health_proto {
    //! Messages and service of the devices' health.
    tonic::include_proto!("v1alpha1");
}

pub(crate) use plan::Device;

use crate::affected::Affected;
use crate::files;
use crate::worker::ClientHandle;
use cox_client::tasks::TaskScope;
use cox_cri::v1;
use drivers::Drivers;
use health::Health;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceHealth, ResourceStatus};
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::Api;
use plan::{Named, Needed, State};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Where prepared claims are written down.
const FILE: &str = "claims.json";
/// How long the API server may take to answer for a claim that the node knows already.
const PATIENCE: Duration = Duration::from_secs(5);
/// Before claims of Pods that are gone are cleared away again.
const RETRY: Duration = Duration::from_secs(10);

/// A claim that a container uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HeldClaim {
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// With the driver's name.
    pub(crate) devices: Vec<(String, Device)>,
}

/// The claims of a node.
#[derive(Debug)]
pub struct Claims {
    file: PathBuf,
    client: ClientHandle,
    state: Arc<Mutex<State>>,
    drivers: Arc<Drivers>,
    health: Arc<Health>,
    /// Pods that are gone, with claims that are not cleared away.
    gone: Mutex<BTreeSet<String>>,
    went: Notify,
    writes: files::Writes,
}

impl Claims {
    /// With what was prepared before.
    #[must_use]
    pub(crate) fn open(
        data_dir: &Path,
        client: kube::Client,
        affected: Arc<Affected>,
    ) -> Arc<Self> {
        let file = data_dir.join(FILE);
        let state = match std::fs::read(&file) {
            Ok(text) => State::restore(&text).unwrap_or_else(|error| {
                tracing::error!(file = %file.display(), %error, "Which claims were prepared cannot be read: nobody clears away what Pods had that are gone");
                State::default()
            }),
            Err(_) => State::default(),
        };
        let state = Arc::new(Mutex::new(state));
        Arc::new(Self {
            file,
            client: ClientHandle(client),
            health: Arc::new(Health::new(state.clone(), affected)),
            state,
            drivers: Arc::default(),
            gone: Mutex::default(),
            went: Notify::new(),
            writes: files::Writes::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no panic happens while this lock is held")
    }

    /// How often it was written down what is prepared.
    pub(crate) fn writes(&self) -> u64 {
        self.writes.count()
    }

    /// How many claims are prepared, or about to be.
    pub(crate) fn in_use(&self) -> usize {
        self.state().len()
    }

    fn write(&self, state: &State) -> Result<(), String> {
        self.writes.note();
        files::replace(&self.file, state.text()).map_err(|error| {
            format!(
                "prepared claims cannot be written down in {}: {error}",
                self.file.display()
            )
        })
    }

    /// Takes a driver's plugin that registered.
    pub(crate) fn take(
        &self,
        driver: &str,
        endpoint: &Path,
        versions: &[String],
        scope: &TaskScope,
    ) -> Result<(), String> {
        self.drivers
            .take(driver, endpoint, versions, &self.health, scope)
    }

    /// A plugin has taken its socket away.
    pub(crate) fn leave(&self, driver: &str, endpoint: &Path) {
        self.drivers.leave(driver, endpoint);
    }

    /// Has the claims of a Pod made ready; doing it twice changes nothing.
    pub(crate) async fn prepare(&self, pod: &Pod) -> Result<(), String> {
        let named = plan::to_prepare(pod)?;
        if named.is_empty() {
            return Ok(());
        }
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let mut needed = Vec::new();
        for one in named {
            let one = self.look_up(pod, &one).await?;
            for driver in &one.drivers {
                self.drivers.check(driver)?;
            }
            needed.push(one);
        }
        let asked = {
            let mut state = self.state();
            let asked = state.refer(uid, &needed)?;
            self.write(&state)?;
            asked
        };
        if asked.is_empty() {
            return Ok(());
        }
        for (driver, claims) in by_driver(&asked) {
            let request = claims.iter().map(|one| message(one)).collect();
            let mut answers = self.drivers.prepare(driver, request).await?;
            for claim in claims {
                let answer = take(&mut answers, claim, "NodePrepareResources")?;
                if !answer.error.is_empty() {
                    return Err(format!(
                        "NodePrepareResources failed for ResourceClaim {}: {}",
                        claim.key.1, answer.error
                    ));
                }
                let devices = answer.devices.into_iter().map(device).collect();
                self.state().prepared(&claim.key, driver, devices);
            }
        }
        let mut state = self.state();
        state.ready(&asked);
        self.write(&state)
    }

    /// What a claim of a Pod takes. Without an API server, what it took before.
    async fn look_up(&self, pod: &Pod, named: &Named) -> Result<Needed, String> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let api: Api<ResourceClaim> = Api::namespaced(self.client.0.clone(), namespace);
        let answer = tokio::time::timeout(PATIENCE, api.get(&named.claim)).await;
        let why = match answer {
            Ok(Ok(claim)) => return plan::check(pod, named, &claim),
            Ok(Err(error)) if cox_client::is_answer(&error) => {
                return Err(format!("fetch ResourceClaim {}: {error}", named.claim));
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", PATIENCE.as_secs()),
        };
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let state = self.state();
        match state.get(namespace, &named.claim) {
            Some(known) if known.pods.contains(uid) => Ok(Needed {
                key: (namespace.to_owned(), named.claim.clone()),
                uid: known.uid.clone(),
                drivers: known.drivers.keys().cloned().collect(),
            }),
            _ => Err(format!("fetch ResourceClaim {}: {why}", named.claim)),
        }
    }

    /// Has what a Pod was the last to use cleared away; doing it twice changes nothing.
    pub(crate) async fn unprepare(&self, uid: &str) -> Result<(), String> {
        let last = {
            let mut state = self.state();
            if !state.is_used_by(uid) {
                return Ok(());
            }
            state.leave(uid)?
        };
        let done = self.clear_away(&last).await;
        let mut state = self.state();
        state.left(&last, done.is_ok());
        let written = self.write(&state);
        done.and(written)
    }

    async fn clear_away(&self, last: &[Needed]) -> Result<(), String> {
        for (driver, claims) in by_driver(last) {
            let request = claims.iter().map(|one| message(one)).collect();
            let mut answers = self.drivers.unprepare(driver, request).await?;
            for claim in claims {
                let answer = take(&mut answers, claim, "NodeUnprepareResources")?;
                if !answer.error.is_empty() {
                    return Err(format!(
                        "NodeUnprepareResources failed for ResourceClaim {}: {}",
                        claim.key.1, answer.error
                    ));
                }
            }
        }
        Ok(())
    }

    /// Has cleared away what Pods had that are gone.
    pub(crate) fn keep_only(&self, is_there: impl Fn(&str) -> bool) {
        let mut gone = self.state().pods();
        gone.retain(|uid| !is_there(uid));
        if !gone.is_empty() {
            self.gone().extend(gone);
            self.went.notify_one();
        }
    }

    fn gone(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.gone
            .lock()
            .expect("no panic happens while this lock is held")
    }

    /// Clears away for Pods that are gone, and watches the drivers, until cancelled.
    pub(crate) async fn run(self: Arc<Self>, node: String, cancel: CancellationToken) {
        let drivers = self
            .drivers
            .run(self.client.0.clone(), &node, cancel.clone());
        tokio::join!(drivers, self.clear(cancel));
    }

    async fn clear(&self, cancel: CancellationToken) {
        loop {
            let gone = self.gone().clone();
            for uid in &gone {
                match self.unprepare(uid).await {
                    Ok(()) => {
                        self.gone().remove(uid);
                    }
                    Err(error) => {
                        tracing::warn!(
                            pod = uid,
                            error,
                            "Claims of a Pod that is gone are not cleared away yet"
                        );
                    }
                }
            }
            let is_done = self.gone().is_empty();
            let again = async {
                match is_done {
                    true => std::future::pending().await,
                    false => tokio::time::sleep(RETRY).await,
                }
            };
            tokio::select! {
                // Both only wait.
                () = self.went.notified() => {}
                () = again => {}
                () = cancel.cancelled() => return,
            }
        }
    }

    /// The claims that a container uses, with the devices of its requests.
    pub(crate) fn held(&self, pod: &Pod, container: &Container) -> Result<Vec<HeldClaim>, String> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let state = self.state();
        let mut held: Vec<HeldClaim> = Vec::new();
        for (name, request) in plan::used_by(pod, container)? {
            let known = state
                .get(namespace, &name)
                .ok_or_else(|| format!("ResourceClaim {name} is not prepared"))?;
            let devices = known.drivers.iter().flat_map(|(driver, devices)| {
                let mine = devices.iter().filter(|one| one.is_for(request.as_deref()));
                mine.map(|one| (driver.clone(), one.clone()))
            });
            held.push(HeldClaim {
                namespace: namespace.to_owned(),
                name,
                devices: devices.collect(),
            });
        }
        Ok(held)
    }

    /// The devices that a container is made with, each once.
    pub(crate) fn for_container(
        &self,
        pod: &Pod,
        container: &Container,
    ) -> Result<Vec<v1::CdiDevice>, String> {
        let held = self.held(pod, container)?;
        let devices = held.into_iter().flat_map(|claim| claim.devices);
        let mut seen = BTreeSet::new();
        let names = devices.flat_map(|(_, device)| device.cdi);
        let names = names.filter(|name| seen.insert(name.clone()));
        Ok(names.map(|name| v1::CdiDevice { name }).collect())
    }

    /// What the status of a container says of the health of what it claims.
    pub(crate) fn health(&self, pod: &Pod, container: &Container) -> Vec<ResourceStatus> {
        let resources = container.resources.as_ref();
        let asked = resources.and_then(|one| one.claims.as_ref());
        // Most have none, and every turn of every Pod asks.
        let (Some(asked), Ok(named)) = (asked, plan::named(pod)) else {
            return Vec::new();
        };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let state = self.state();
        let status = |one: &k8s_openapi::api::core::v1::ResourceClaim| {
            let (_, claim) = named.iter().find(|(name, _)| *name == one.name)?;
            let known = state.get(namespace, &claim.claim)?;
            let request = one.request.as_deref().filter(|request| !request.is_empty());
            let mut all: Vec<ResourceHealth> = Vec::new();
            for (driver, devices) in &known.drivers {
                for device in devices.iter().filter(|device| device.is_for(request)) {
                    let health = self.health.of(driver, device);
                    if all.iter().all(|one| one.resource_id != health.resource_id) {
                        all.push(health);
                    }
                }
            }
            let name = match request {
                Some(request) => format!("claim:{}/{request}", one.name),
                None => format!("claim:{}", one.name),
            };
            (!all.is_empty()).then_some(ResourceStatus {
                name,
                resources: Some(all),
            })
        };
        asked.iter().filter_map(status).collect()
    }
}

/// What each driver is asked for.
fn by_driver(claims: &[Needed]) -> BTreeMap<&str, Vec<&Needed>> {
    let mut all: BTreeMap<&str, Vec<&Needed>> = BTreeMap::new();
    for claim in claims {
        for driver in &claim.drivers {
            all.entry(driver).or_default().push(claim);
        }
    }
    all
}

fn message(claim: &Needed) -> proto::Claim {
    proto::Claim {
        namespace: claim.key.0.clone(),
        uid: claim.uid.clone(),
        name: claim.key.1.clone(),
    }
}

/// The answer for a claim; a driver that leaves one out has not done its work.
fn take<A>(answers: &mut HashMap<String, A>, claim: &Needed, method: &str) -> Result<A, String> {
    let answer = answers.remove(&claim.uid);
    answer.ok_or_else(|| format!("{method} skipped ResourceClaim {}", claim.key.1))
}

fn device(said: proto::Device) -> Device {
    Device {
        pool: said.pool_name,
        name: said.device_name,
        share: said.share_id,
        requests: said.request_names,
        cdi: said.cdi_device_ids,
    }
}
