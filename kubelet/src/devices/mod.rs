//! Devices of plugins: which there are, which container has which, and what a container gets with them.
//!
//! | module | holds |
//! | --- | --- |
//! | `plugins` | the socket where plugins register, and following what devices they have |
//! | `plan` | who has what, and which devices are given next; pure |
//!
//! Invariants: a Pod gets the devices of all its containers before anything of it starts, or fails; what was given is written
//! down, and stays with its Pod over a restart of the kubelet and of the plugin; a device has one container at a time, but that
//! of an init container goes on to the main ones.

mod plan;
mod plugins;

#[allow(
    missing_debug_implementations,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "generated code"
)]
pub mod proto {
    //! Messages and services of device plugins.
    tonic::include_proto!("v1beta1");
}

use crate::affected::Affected;
use crate::csi::channel;
use crate::files;
use crate::pod::containers::{inits, is_sidecar, mains};
use cox_cri::v1;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceStatus};
use plan::{Given, State};
use proto::device_plugin_client::DevicePluginClient;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::watch;

/// Devices of each resource: all, and those that are well.
pub(crate) type Counts = BTreeMap<String, (i64, i64)>;

/// A plugin that has registered.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Plugin {
    socket: PathBuf,
    pre_start: bool,
    prefers: bool,
    /// Tells one registration from the next.
    turn: u64,
}

/// What of the devices a container is made with.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ForContainer {
    pub(crate) env: Vec<(String, String)>,
    pub(crate) mounts: Vec<v1::Mount>,
    pub(crate) devices: Vec<v1::Device>,
    pub(crate) cdi: Vec<v1::CdiDevice>,
    pub(crate) annotations: BTreeMap<String, String>,
}

/// A device that somebody holds, or could.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HeldDevice {
    pub(crate) resource: String,
    pub(crate) id: String,
    /// Where it sits, if its plugin says so.
    pub(crate) numa_nodes: Option<Vec<i64>>,
}

/// Where devices sit: by resource and name.
type Places = BTreeMap<String, BTreeMap<String, Vec<i64>>>;

/// The devices of a node.
#[derive(Debug)]
pub struct Devices {
    /// `<data_dir>/device-plugins`.
    folder: PathBuf,
    state: Mutex<State>,
    plugins: Mutex<BTreeMap<String, Plugin>>,
    places: Mutex<Places>,
    counts: watch::Sender<Counts>,
    affected: Arc<Affected>,
    /// The text of the file, as far as it is known.
    written: Mutex<String>,
    writes: files::Writes,
    /// One Pod at a time is given devices: a plugin is asked in between.
    one_at_a_time: tokio::sync::Mutex<()>,
}

impl Devices {
    /// With what was given before.
    #[must_use]
    pub(crate) fn open(data_dir: &Path, affected: Arc<Affected>) -> Arc<Self> {
        let folder = data_dir.join("device-plugins");
        let file = folder.join(FILE);
        let state = match std::fs::read(&file) {
            Ok(text) => State::restore(&text).unwrap_or_else(|error| {
                tracing::error!(file = %file.display(), %error, "Which devices were given cannot be read: Pods with devices keep them, and others may get the same ones");
                State::default()
            }),
            Err(_) => State::default(),
        };
        let counts = watch::Sender::new(state.counts());
        Arc::new(Self {
            folder,
            state: Mutex::new(state),
            plugins: Mutex::default(),
            places: Mutex::default(),
            counts,
            affected,
            written: Mutex::default(),
            writes: files::Writes::default(),
            one_at_a_time: tokio::sync::Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no panic happens while this lock is held")
    }

    fn plugins(&self) -> MutexGuard<'_, BTreeMap<String, Plugin>> {
        self.plugins
            .lock()
            .expect("no panic happens while this lock is held")
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places
            .lock()
            .expect("no panic happens while this lock is held")
    }

    /// The devices that a container has.
    pub(crate) fn held(&self, uid: &str, container: &str) -> Vec<HeldDevice> {
        let given = self.state().of(uid, container).into_iter();
        self.placed(given.flat_map(|(resource, given)| {
            let ids = given.ids.into_iter();
            ids.map(move |id| (resource.clone(), id))
        }))
    }

    /// What the status of a container says of its devices' health.
    pub(crate) fn health(&self, uid: &str, container: &str) -> Vec<ResourceStatus> {
        let state = self.state();
        let plugins = self.plugins();
        state.health(uid, container, |resource| plugins.contains_key(resource))
    }

    /// All devices that are well, whoever has them.
    pub(crate) fn well(&self) -> Vec<HeldDevice> {
        let well = self.state().well();
        self.placed(well.into_iter())
    }

    fn placed(&self, devices: impl Iterator<Item = (String, String)>) -> Vec<HeldDevice> {
        let places = self.places();
        let place = |resource: &str, id: &str| places.get(resource)?.get(id).cloned();
        devices
            .map(|(resource, id)| HeldDevice {
                numa_nodes: place(&resource, &id),
                resource,
                id,
            })
            .collect()
    }

    /// How often what was given was written down.
    pub(crate) fn writes(&self) -> u64 {
        self.writes.count()
    }

    /// How many devices there are, for the Node's status.
    pub(crate) fn counts(&self) -> watch::Receiver<Counts> {
        self.counts.subscribe()
    }

    /// Shows and writes down what has changed.
    fn changed(&self, state: &State) {
        let counts = state.counts();
        self.counts.send_if_modified(|known| {
            let differs = *known != counts;
            *known = counts;
            differs
        });
        let file = self.folder.join(FILE);
        let text = state.text();
        let mut known = self
            .written
            .lock()
            .expect("no panic happens while this lock is held");
        // Plugins repeat their lists: that must not wear the disk.
        if *known == text {
            return;
        }
        self.writes.note();
        let written =
            std::fs::create_dir_all(&self.folder).and_then(|()| files::replace(&file, &text));
        if written.is_ok() {
            *known = text;
        }
        drop(known);
        if let Err(error) = written {
            tracing::error!(file = %file.display(), %error, "Devices that were given cannot be written down");
        }
    }

    /// Gives each container of a Pod its devices; doing it twice changes nothing. All of the Pod or nothing.
    pub(crate) async fn allocate(&self, pod: &Pod) -> Result<(), String> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        if !self.state().lacks(pod) {
            return Ok(());
        }
        let _one = self.one_at_a_time.lock().await;
        let mut reusable: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let all = inits(pod).iter().chain(mains(pod));
        for container in all {
            let passes_on = inits(pod).iter().any(|init| init.name == container.name)
                && !is_sidecar(pod, container);
            let asked = plan::wanted(pod, container, &self.state());
            for (resource, number) in asked {
                let given = match self
                    .give(uid, container, &resource, number, &reusable)
                    .await
                {
                    Ok(given) => given,
                    Err(why) => {
                        self.release(uid);
                        return Err(why);
                    }
                };
                let pool = reusable.entry(resource).or_default();
                if passes_on {
                    pool.extend(given);
                } else {
                    pool.retain(|id| !given.contains(id));
                }
            }
        }
        Ok(())
    }

    /// Gives a container devices of one resource; answers which it has.
    async fn give(
        &self,
        uid: &str,
        container: &Container,
        resource: &str,
        number: usize,
        reusable: &BTreeMap<String, BTreeSet<String>>,
    ) -> Result<BTreeSet<String>, String> {
        if let Some(given) = self.state().given(uid, &container.name, resource) {
            return Ok(given.ids.clone());
        }
        let reusable = reusable.get(resource).cloned().unwrap_or_default();
        let (must, free) = self.state().choice(resource, number, &reusable)?;
        let plugin = self.plugins().get(resource).cloned();
        let plugin =
            plugin.ok_or_else(|| format!("no plugin is registered for resource {resource}"))?;
        let mut client = DevicePluginClient::new(channel(&plugin.socket));
        let preferred = if plugin.prefers && free.len() + must.len() > number {
            preferred(&mut client, &must, &free, number).await
        } else {
            Vec::new()
        };
        let ids = plan::choose(number, &must, &free, &preferred);
        let request = proto::AllocateRequest {
            container_requests: vec![proto::ContainerAllocateRequest {
                devices_ids: ids.iter().cloned().collect(),
            }],
        };
        let answer = client
            .allocate(request)
            .await
            .map_err(crate::csi::text)?
            .into_inner();
        let [answer] = <[_; 1]>::try_from(answer.container_responses).map_err(|_| {
            format!("the plugin of {resource} answered for another number of containers")
        })?;
        let mut state = self.state();
        state.give(
            uid,
            &container.name,
            resource,
            Given::new(ids.clone(), answer),
        );
        self.changed(&state);
        Ok(ids)
    }

    /// Takes back what a Pod had.
    pub(crate) fn release(&self, uid: &str) {
        let mut state = self.state();
        if state.take_back(uid) {
            self.changed(&state);
        }
    }

    /// Takes back what Pods had that are gone.
    pub(crate) fn keep_only(&self, is_there: impl Fn(&str) -> bool) {
        let gone: Vec<String> = self
            .state()
            .pods()
            .filter(|uid| !is_there(uid))
            .map(str::to_owned)
            .collect();
        for uid in gone {
            self.release(&uid);
        }
    }

    /// What a container is made with. Plugins that want to are told that it starts.
    pub(crate) async fn for_container(
        &self,
        pod: &Pod,
        container: &str,
    ) -> Result<ForContainer, String> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let given = self.state().of(uid, container);
        let mut all = ForContainer::default();
        for (resource, given) in given {
            let plugin = self.plugins().get(&resource).cloned();
            if let Some(plugin) = plugin.filter(|plugin| plugin.pre_start) {
                let request = proto::PreStartContainerRequest {
                    devices_ids: given.ids.iter().cloned().collect(),
                };
                DevicePluginClient::new(channel(&plugin.socket))
                    .pre_start_container(request)
                    .await
                    .map_err(crate::csi::text)?;
            }
            given.add_to(&mut all);
        }
        Ok(all)
    }
}

/// Where what was given is written down.
const FILE: &str = "given.json";

/// What the plugin would choose; it need not be asked twice, and its choice is checked.
async fn preferred(
    client: &mut DevicePluginClient<tonic::transport::Channel>,
    must: &BTreeSet<String>,
    free: &BTreeSet<String>,
    number: usize,
) -> Vec<String> {
    let request = proto::ContainerPreferredAllocationRequest {
        available_device_i_ds: must.union(free).cloned().collect(),
        must_include_device_i_ds: must.iter().cloned().collect(),
        allocation_size: i32::try_from(number).unwrap_or(i32::MAX),
    };
    let request = proto::PreferredAllocationRequest {
        container_requests: vec![request],
    };
    match client.get_preferred_allocation(request).await {
        Ok(answer) => {
            let answers = answer.into_inner().container_responses.into_iter();
            answers.flat_map(|one| one.device_i_ds).collect()
        }
        Err(status) => {
            tracing::warn!(
                error = crate::csi::text(status),
                "A device plugin says nothing of what it prefers"
            );
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_that_repeats_its_list_does_not_wear_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let devices = Devices::open(dir.path(), Arc::default());
        let list = |well: bool| {
            let mut state = devices.state();
            state.set("example.com/oar", [("left".to_owned(), well)].into());
            devices.changed(&state);
        };
        for _ in 0..9 {
            list(true);
        }
        assert_eq!(devices.writes(), 1);
        list(false);
        assert_eq!(devices.writes(), 2);
    }
}
