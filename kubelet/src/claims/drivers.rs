//! The drivers of dynamic resources on this node: which of their plugins answer, calls to them, and the ResourceSlices of those
//! that are gone. A driver may have several plugins at once, as long as it is being updated: the newest that answers is asked.

use super::health::Health;
use super::proto;
use crate::csi::{channel, connect_until, text};
use cox_client::tasks::TaskScope;
use http::uri::PathAndQuery;
use k8s_openapi::api::resource::v1::ResourceSlice;
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// Upstream's limit for a call.
const TIMEOUT: Duration = Duration::from_secs(45);
/// How long a driver may be away before the node's devices of it are not offered any more: upstream's.
const AWAY: Duration = Duration::from_secs(30);
/// First and longest wait before what did not work is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// What plugins say that they speak, and where that is.
const SERVICES: [(&str, &str); 2] = [("v1.DRAPlugin", "v1"), ("v1beta1.DRAPlugin", "v1beta1")];
const HEALTH_SERVICE: &str = "v1alpha1.DRAResourceHealth";

#[derive(Debug)]
struct Instance {
    endpoint: PathBuf,
    /// `v1` or `v1beta1`.
    version: &'static str,
    /// There as long as the plugin answers.
    connection: Option<Channel>,
    cancel: CancellationToken,
}

/// Plugins by driver, in the order of their coming.
#[derive(Debug, Default)]
pub(super) struct Drivers {
    known: Mutex<BTreeMap<String, Vec<Instance>>>,
    /// Drivers none of whose plugins answers, and until when that is borne.
    away: Mutex<BTreeMap<String, Instant>>,
    changed: Notify,
}

impl Drivers {
    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Vec<Instance>>> {
        self.known
            .lock()
            .expect("no panic happens while this lock is held")
    }

    fn away(&self) -> MutexGuard<'_, BTreeMap<String, Instant>> {
        self.away
            .lock()
            .expect("no panic happens while this lock is held")
    }

    /// Takes a plugin that registered, and keeps a connection to it until it leaves.
    pub(super) fn take(
        self: &Arc<Self>,
        driver: &str,
        endpoint: &Path,
        versions: &[String],
        health: &Arc<Health>,
        scope: &TaskScope,
    ) -> Result<(), String> {
        let speaks = |name: &str| versions.iter().any(|one| one == name);
        let service = SERVICES.into_iter().find(|(name, _)| speaks(name));
        let Some((_, version)) = service else {
            let ours = SERVICES.map(|(name, _)| name);
            return Err(format!(
                "none of services supported by the plugin ({versions:?}) are supported by the kubelet ({ours:?})"
            ));
        };
        let mut known = self.known();
        let instances = known.entry(driver.to_owned()).or_default();
        if instances.iter().any(|one| one.endpoint == endpoint) {
            return Err(format!(
                "endpoint {} already registered for DRA driver plugin {driver}",
                endpoint.display()
            ));
        }
        let cancel = scope.cancellation().child_token();
        instances.push(Instance {
            endpoint: endpoint.to_owned(),
            version,
            connection: None,
            cancel: cancel.clone(),
        });
        drop(known);
        self.judge(driver);
        let follow = Connection {
            drivers: self.clone(),
            health: speaks(HEALTH_SERVICE).then(|| health.clone()),
            driver: driver.to_owned(),
            endpoint: endpoint.to_owned(),
        };
        scope.spawn("dra-plugin", async move {
            tokio::select! {
                () = follow.keep() => {}
                () = cancel.cancelled() => {}
            }
        });
        Ok(())
    }

    /// Forgets a plugin that has taken its socket away.
    pub(super) fn leave(&self, driver: &str, endpoint: &Path) {
        let mut known = self.known();
        if let Some(instances) = known.get_mut(driver) {
            instances.retain(|one| {
                let stays = one.endpoint != endpoint;
                if !stays {
                    one.cancel.cancel();
                }
                stays
            });
            if instances.is_empty() {
                known.remove(driver);
            }
        }
        drop(known);
        self.judge(driver);
    }

    fn connected(&self, driver: &str, endpoint: &Path, connection: Option<Channel>) {
        let mut known = self.known();
        let mut instances = known.get_mut(driver).into_iter().flatten();
        if let Some(one) = instances.find(|one| one.endpoint == endpoint) {
            one.connection = connection;
        }
        drop(known);
        self.judge(driver);
    }

    fn answers(&self, driver: &str) -> bool {
        let known = self.known();
        let mut instances = known.get(driver).into_iter().flatten();
        instances.any(|one| one.connection.is_some())
    }

    /// Whether a driver is away is looked at whenever something of it has changed.
    fn judge(&self, driver: &str) {
        let answers = self.answers(driver);
        let mut away = self.away();
        if answers {
            away.remove(driver);
        } else {
            away.entry(driver.to_owned())
                .or_insert_with(|| Instant::now() + AWAY);
        }
        drop(away);
        self.changed.notify_one();
    }

    /// Fails for a driver that has no plugin on the node.
    pub(super) fn check(&self, driver: &str) -> Result<(), String> {
        self.pick(driver).map(drop)
    }

    fn pick(&self, driver: &str) -> Result<(Channel, &'static str), String> {
        let known = self.known();
        let instances = known.get(driver).filter(|all| !all.is_empty());
        let instances =
            instances.ok_or_else(|| format!("DRA driver {driver} is not registered"))?;
        let answering = instances
            .iter()
            .rev()
            .find_map(|one| Some((one.connection.clone()?, one.version)));
        Ok(answering.unwrap_or_else(|| {
            let last = &instances[instances.len() - 1];
            (channel(&last.endpoint), last.version)
        }))
    }

    /// Has devices made ready; answers what came of each claim, by uid.
    pub(super) async fn prepare(
        &self,
        driver: &str,
        claims: Vec<proto::Claim>,
    ) -> Result<HashMap<String, proto::NodePrepareResourceResponse>, String> {
        let request = proto::NodePrepareResourcesRequest { claims };
        let answer: proto::NodePrepareResourcesResponse =
            self.call(driver, "NodePrepareResources", request).await?;
        Ok(answer.claims)
    }

    /// Has devices cleared away; answers what came of each claim, by uid.
    pub(super) async fn unprepare(
        &self,
        driver: &str,
        claims: Vec<proto::Claim>,
    ) -> Result<HashMap<String, proto::NodeUnprepareResourceResponse>, String> {
        let request = proto::NodeUnprepareResourcesRequest { claims };
        let answer: proto::NodeUnprepareResourcesResponse =
            self.call(driver, "NodeUnprepareResources", request).await?;
        Ok(answer.claims)
    }

    /// The messages of all versions are the same; only the name of the service is not.
    async fn call<Q, A>(&self, driver: &str, method: &str, request: Q) -> Result<A, String>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let (channel, version) = self.pick(driver)?;
        let path = format!("/k8s.io.kubelet.pkg.apis.dra.{version}.DRAPlugin/{method}");
        let path = PathAndQuery::try_from(path).map_err(|error| error.to_string())?;
        let mut client = tonic::client::Grpc::new(channel);
        let call = async {
            client
                .ready()
                .await
                .map_err(|error| tonic::Status::unavailable(error.to_string()))?;
            let codec = tonic_prost::ProstCodec::<Q, A>::default();
            client
                .unary(tonic::Request::new(request), path, codec)
                .await
        };
        let answer = match tokio::time::timeout(TIMEOUT, call).await {
            Ok(answer) => answer.map_err(text),
            Err(_) => Err(format!("no answer within {} s", TIMEOUT.as_secs())),
        };
        answer
            .map(tonic::Response::into_inner)
            .map_err(|why| format!("{method}: driver {driver}: {why}"))
    }

    /// Takes the node's ResourceSlices away of drivers that stay away, until cancelled: Pods would come here and wait for them. Those
    /// that an earlier kubelet knew have as long to come back.
    pub(super) async fn run(&self, client: kube::Client, node: &str, cancel: CancellationToken) {
        let api: Api<ResourceSlice> = Api::all(client);
        let mut look_at = Some(Instant::now() + AWAY);
        let mut wait = RETRY.0;
        loop {
            let due = self.away().values().min().copied();
            let due = due.into_iter().chain(look_at).min();
            let sleep = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // All three only wait.
                () = self.changed.notified() => continue,
                () = sleep => {}
                () = cancel.cancelled() => return,
            }
            let now = Instant::now();
            let lost = self.lost(now);
            let work = async {
                if look_at.is_some_and(|at| at <= now) {
                    self.wipe_unknown(&api, node).await?;
                }
                for driver in &lost {
                    wipe(&api, node, driver).await?;
                }
                Ok::<(), kube::Error>(())
            };
            let done = tokio::select! {
                // What was not deleted is deleted by the next start.
                done = work => done,
                () = cancel.cancelled() => return,
            };
            match done {
                Ok(()) => {
                    look_at = look_at.filter(|at| *at > now);
                    self.away().retain(|driver, _| !lost.contains(driver));
                    wait = RETRY.0;
                }
                Err(error) => {
                    tracing::debug!(%error, "ResourceSlices of drivers that are gone stay for now");
                    wait = (wait * 2).min(RETRY.1);
                    let later = now + wait;
                    look_at = look_at.map(|at| at.max(later));
                    for driver in &lost {
                        if let Some(until) = self.away().get_mut(driver) {
                            *until = later;
                        }
                    }
                }
            }
        }
    }

    fn lost(&self, now: Instant) -> BTreeSet<String> {
        let away = self.away();
        let lost = away.iter().filter(|(_, until)| **until <= now);
        lost.map(|(driver, _)| driver.clone()).collect()
    }

    async fn wipe_unknown(&self, api: &Api<ResourceSlice>, node: &str) -> Result<(), kube::Error> {
        let selector = format!("spec.nodeName={node}");
        let slices = api.list(&ListParams::default().fields(&selector)).await?;
        let drivers: BTreeSet<String> = slices
            .items
            .into_iter()
            .map(|slice| slice.spec.driver)
            .collect();
        for driver in drivers.iter().filter(|driver| !self.answers(driver)) {
            wipe(api, node, driver).await?;
        }
        Ok(())
    }
}

async fn wipe(api: &Api<ResourceSlice>, node: &str, driver: &str) -> Result<(), kube::Error> {
    let selector = format!("spec.nodeName={node},spec.driver={driver}");
    api.delete_collection(
        &DeleteParams::default(),
        &ListParams::default().fields(&selector),
    )
    .await?;
    tracing::info!(
        driver,
        "The node does not offer the devices of a driver that is gone"
    );
    Ok(())
}

/// One plugin's connection.
struct Connection {
    drivers: Arc<Drivers>,
    health: Option<Arc<Health>>,
    driver: String,
    endpoint: PathBuf,
}

impl Connection {
    /// Connects, waits for the end of the connection, and again.
    async fn keep(self) {
        let mut wait = RETRY.0;
        loop {
            let ended = CancellationToken::new();
            match connect_until(&self.endpoint, ended.clone()).await {
                Ok(channel) => {
                    wait = RETRY.0;
                    self.drivers
                        .connected(&self.driver, &self.endpoint, Some(channel.clone()));
                    tokio::select! {
                        () = ended.cancelled() => {}
                        () = self.hear(channel) => {}
                    }
                    self.drivers.connected(&self.driver, &self.endpoint, None);
                    if let Some(health) = &self.health {
                        health.forget(&self.driver);
                    }
                }
                Err(error) => {
                    tracing::debug!(driver = self.driver, %error, "DRA plugin does not answer")
                }
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY.1);
        }
    }

    /// Hears of the devices' health; never ends.
    async fn hear(&self, channel: Channel) {
        let Some(health) = &self.health else {
            return std::future::pending().await;
        };
        loop {
            let why = health.follow(&self.driver, channel.clone()).await;
            tracing::debug!(
                driver = self.driver,
                why,
                "Nothing is heard of the health of devices"
            );
            health.forget(&self.driver);
            tokio::time::sleep(RETRY.1).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope() -> TaskScope {
        TaskScope::new("test", &CancellationToken::new())
    }

    #[tokio::test]
    async fn plugins_of_a_driver_come_and_go() {
        let drivers = Arc::new(Drivers::default());
        let health = Arc::new(Health::new(Arc::default(), Arc::default()));
        let scope = scope();
        let take = |endpoint: &str, versions: &[&str]| {
            let versions: Vec<String> = versions.iter().map(|one| (*one).to_owned()).collect();
            drivers.take("d", Path::new(endpoint), &versions, &health, &scope)
        };
        assert_eq!(
            drivers.check("d").unwrap_err(),
            "DRA driver d is not registered"
        );
        assert!(
            take("/a", &["v1alpha3.Node"])
                .unwrap_err()
                .contains("none of services")
        );
        take("/a", &["v1beta1.DRAPlugin", "v1.DRAPlugin"]).unwrap();
        assert!(
            take("/a", &["v1.DRAPlugin"])
                .unwrap_err()
                .contains("already registered")
        );
        assert_eq!(
            drivers.pick("d").unwrap().1,
            "v1",
            "the newest that both speak"
        );
        take("/b", &["v1beta1.DRAPlugin"]).unwrap();
        assert_eq!(drivers.pick("d").unwrap().1, "v1beta1", "the newest plugin");
        drivers.leave("d", Path::new("/b"));
        assert_eq!(drivers.pick("d").unwrap().1, "v1");
        drivers.leave("d", Path::new("/a"));
        assert!(drivers.check("d").is_err());
        assert!(drivers.lost(Instant::now()).is_empty());
        assert_eq!(
            drivers.lost(Instant::now() + AWAY).len(),
            1,
            "its slices go when it stays away"
        );
    }
}
