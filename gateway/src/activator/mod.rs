//! Services that sleep: with the annotation `coxswain.dev/scale-to-zero: 30s` their Deployments go to 0 replicas when nobody asked
//! for that long, and the next request starts one again.
//!
//! Requests through an Ingress are held by the data plane. For those to the Service's own address the activator listens itself, and
//! stands in an EndpointSlice of its own as long as no Pod is ready: every proxy leads to it then. Activity is what passes through
//! here, and, since proxies lead past us once a Pod is ready, the CPU time of the Pods. Written: the scale of Deployments, the
//! slices `NAME-activator-NODE`.

mod idle;
mod listen;
mod plan;
pub(crate) mod slices;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cox_client::events::{EventType, Recorder};
use cox_client::tasks::TaskScope;
use cox_client::{Informer, Informers};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::backend::{Backend, BackendKey, Protocol, Registry, ServiceKey, ServiceState};
use crate::data::Plane;
use crate::resolve::sleeps_after;

/// How long a Deployment that was scaled is not scaled again for the same reason: its change has to come by first.
const WAKE_PAUSE: Duration = Duration::from_secs(1);

/// Where the activator can be reached, and as which node.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) ip: Option<IpAddr>,
    pub(crate) node: String,
}

/// A Service that may sleep.
#[derive(Debug)]
pub(crate) struct Sleeper {
    key: ServiceKey,
    uid: String,
    after: Duration,
    state: Arc<ServiceState>,
    doors: Vec<Door>,
    cancel: CancellationToken,
}

impl Sleeper {
    /// Whether a Pod takes its requests.
    fn is_awake(&self) -> bool {
        self.doors
            .iter()
            .any(|door| !door.backend.endpoints().is_empty())
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// A port of a Service, and where its connections are taken while nobody else does.
#[derive(Debug)]
struct Door {
    port: Arc<str>,
    backend: Arc<Backend>,
    addr: Option<SocketAddr>,
}

/// Everybody who may sleep, by Service.
type Sleepers = Arc<Mutex<HashMap<ServiceKey, Arc<Sleeper>>>>;

/// What the activator's parts share.
#[derive(Clone)]
pub(crate) struct Shared {
    client: kube::Client,
    services: Informer<Service>,
    deployments: Informer<Deployment>,
    slices: Informer<EndpointSlice>,
    events: Recorder,
    sleepers: Sleepers,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// Started with the first Service that may sleep.
#[derive(Debug)]
pub(crate) struct Activator {
    shared: Shared,
    place: Place,
    plane: Arc<Plane>,
    scope: TaskScope,
    published: slices::Published,
}

impl Activator {
    /// `left` are the Services of which slices are there from an earlier start.
    #[allow(
        clippy::too_many_arguments,
        reason = "made in one place, of parts that have nothing in common"
    )]
    pub(crate) async fn start(
        client: kube::Client,
        informers: &Informers,
        events: Recorder,
        place: Place,
        plane: Arc<Plane>,
        wanted: mpsc::Receiver<ServiceKey>,
        left: Vec<ServiceKey>,
        cancel: &CancellationToken,
    ) -> Self {
        let shared = Shared {
            client,
            services: informers.of(),
            deployments: informers.of(),
            slices: informers.of(),
            events,
            sleepers: Sleepers::default(),
        };
        shared.deployments.synced().await;
        let scope = TaskScope::new("activator", cancel);
        let (waking, resting) = (shared.clone(), shared.clone());
        let (cancel, idle_cancel) = (scope.cancellation().clone(), scope.cancellation().clone());
        scope.spawn("wake", async move {
            // A Service that is not woken because all ends needs it no more.
            cancel.run_until_cancelled(waking.wake_all(wanted)).await;
        });
        scope.spawn("idle", async move {
            idle_cancel.run_until_cancelled(idle::run(resting)).await;
        });
        Self {
            shared,
            place,
            plane,
            scope,
            published: slices::Published::with(left),
        }
    }

    /// Brings the doors to what the Services ask for.
    pub(crate) fn sync(&mut self, services: &[Arc<Service>], registry: &Registry) {
        let mut before = self.shared.sleepers.lock().clone();
        let mut now: HashMap<ServiceKey, Arc<Sleeper>> = HashMap::new();
        for service in services {
            let Some(after) = sleeps_after(service) else {
                continue;
            };
            let wished = plan::Wished::of(service, Duration::from_millis(after));
            let sleeper = match before.remove(&wished.key) {
                Some(kept) if wished.is(&kept) => kept,
                known => {
                    // Its successor has the state in common with it: only the doors are others.
                    if let Some(replaced) = known {
                        replaced.cancel.cancel();
                    }
                    Arc::new(self.open(wished, registry))
                }
            };
            now.insert(sleeper.key.clone(), sleeper);
        }
        for gone in before.into_values() {
            gone.cancel.cancel();
            gone.state.set_sleeps_after(0);
        }
        *self.shared.sleepers.lock() = now;
    }

    fn open(&self, wished: plan::Wished, registry: &Registry) -> Sleeper {
        let state = registry.service(&wished.key);
        state.set_sleeps_after(millis(wished.after));
        let cancel = self.scope.cancellation().child_token();
        let mut doors = Vec::new();
        for port in &wished.ports {
            let backend = registry.backend(&BackendKey {
                service: wished.key.clone(),
                port: Arc::clone(port),
                protocol: Protocol::Http,
                outside: None,
            });
            let ip = self.place.ip.filter(|_| wished.has_address);
            let addr = match ip {
                Some(ip) => {
                    listen::open(ip, Arc::clone(&self.plane), &backend, &self.scope, &cancel)
                }
                None => None,
            };
            doors.push(Door {
                port: Arc::clone(port),
                backend,
                addr,
            });
        }
        Sleeper {
            key: wished.key,
            uid: wished.uid,
            after: wished.after,
            state,
            doors,
            cancel,
        }
    }

    /// Lets proxies lead to the doors of those that sleep, and past those that are awake. Whether something could not be written.
    pub(crate) async fn publish(&mut self) -> bool {
        let sleepers: Vec<_> = self.shared.sleepers.lock().values().cloned().collect();
        self.published
            .sync(&self.shared.client, &self.place, &sleepers)
            .await
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Shared {
    async fn wake_all(self, mut wanted: mpsc::Receiver<ServiceKey>) {
        let mut woken: HashMap<ServiceKey, Instant> = HashMap::new();
        while let Some(key) = wanted.recv().await {
            woken.retain(|_, at| at.elapsed() < WAKE_PAUSE);
            if woken.contains_key(&key) {
                continue;
            }
            match self.scale(&key, 1).await {
                Ok(0) => {}
                Ok(_) => {
                    woken.insert(key, Instant::now());
                }
                Err(error) => {
                    tracing::warn!(service = %key, %error, "A Service could not be woken")
                }
            }
        }
    }

    /// Wakes the Deployments behind a Service that have no replicas, or puts those that have some to sleep (0). How many.
    async fn scale(&self, key: &ServiceKey, to: i32) -> Result<usize, kube::Error> {
        let Some(service) = self.services.get(Some(&key.namespace), &key.name) else {
            return Ok(0);
        };
        let all = self.deployments.list_in(&key.namespace);
        let behind = plan::behind(&service, &all);
        let mut scaled = 0;
        for deployment in behind {
            if (to == 0) == (plan::replicas(deployment) == 0) {
                continue;
            }
            let Some(name) = &deployment.metadata.name else {
                continue;
            };
            let api: Api<Deployment> = Api::namespaced(self.client.clone(), &key.namespace);
            let patch = Patch::Merge(json!({"spec": {"replicas": to}}));
            api.patch_scale(name, &PatchParams::default(), &patch)
                .await?;
            let (reason, message) = match to {
                0 => (
                    "Sleeping",
                    format!("Nobody asked Service {key}: to 0 replicas, until the next request."),
                ),
                _ => (
                    "Woken",
                    format!("Somebody asks Service {key}: to {to} replica."),
                ),
            };
            self.events
                .event_on(&**deployment, EventType::Normal, reason, message);
            scaled += 1;
        }
        Ok(scaled)
    }
}
