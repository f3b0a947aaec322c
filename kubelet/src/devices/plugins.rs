//! The socket where device plugins register, and following what devices each has. A kubelet that starts makes the socket anew,
//! which plugins watch for: then they register again.

use super::proto::device_plugin_client::DevicePluginClient;
use super::proto::registration_server::{Registration, RegistrationServer};
use super::proto::{self, DevicePluginOptions, RegisterRequest};
use super::{Devices, Plugin};
use crate::csi::{stream_channel, text};
use crate::files;
use crate::go_clients::incoming;
use cox_client::tasks::TaskScope;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

const SOCKET: &str = "kubelet.sock";
/// The version of the interface that is spoken.
const VERSION: &str = "v1beta1";
const WELL: &str = "Healthy";

static TURNS: AtomicU64 = AtomicU64::new(0);

struct Door {
    devices: Arc<Devices>,
    scope: Arc<TaskScope>,
}

#[tonic::async_trait]
impl Registration for Door {
    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<proto::Empty>, Status> {
        let asked = request.into_inner();
        let socket = self.devices.folder.join(&asked.endpoint);
        let taken = self.devices.clone().take(
            &asked.resource_name,
            std::slice::from_ref(&asked.version),
            socket,
            asked.options,
            &self.scope,
        );
        match taken {
            Ok(()) => Ok(Response::new(proto::Empty {})),
            Err(why) => {
                tracing::warn!(
                    resource = asked.resource_name,
                    why,
                    "Device plugin was refused"
                );
                Err(Status::invalid_argument(why))
            }
        }
    }
}

/// Where the devices sit that say so.
fn places(devices: &[proto::Device]) -> BTreeMap<String, Vec<i64>> {
    let place = |device: &proto::Device| {
        let nodes = &device.topology.as_ref()?.nodes;
        let nodes = nodes.iter().map(|node| node.id).collect();
        Some((device.id.clone(), nodes))
    };
    devices.iter().filter_map(place).collect()
}

/// An extended resource: of a domain that is not Kubernetes' own.
fn is_extended(name: &str) -> bool {
    let Some((domain, rest)) = name.split_once('/') else {
        return false;
    };
    let native = domain == "kubernetes.io" || domain.ends_with(".kubernetes.io");
    !rest.is_empty() && !rest.contains('/') && !domain.is_empty() && !native
}

impl Devices {
    /// Serves the socket until cancelled.
    pub(crate) async fn run(self: Arc<Self>, cancel: CancellationToken) {
        let listener = match files::listen(&self.folder.join(SOCKET)) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(folder = %self.folder.display(), %error, "Device plugins cannot register");
                return;
            }
        };
        let scope = Arc::new(TaskScope::new("device-plugins", &cancel));
        let door = Door {
            devices: self,
            scope,
        };
        let served = tonic::transport::Server::builder()
            .add_service(RegistrationServer::new(door))
            .serve_with_incoming_shutdown(incoming(listener), cancel.clone().cancelled_owned());
        if let Err(error) = served.await {
            tracing::error!(%error, "Device plugins cannot register any more");
        }
    }

    /// Takes a plugin that registered, and follows it. A later one of the same resource takes its place.
    pub(crate) fn take(
        self: Arc<Self>,
        resource: &str,
        versions: &[String],
        socket: PathBuf,
        options: Option<DevicePluginOptions>,
        scope: &TaskScope,
    ) -> Result<(), String> {
        if !versions.iter().any(|version| version == VERSION) {
            return Err(format!(
                "requested API version {versions:?} is not supported by kubelet. Supported version is {VERSION:?}"
            ));
        }
        if !is_extended(resource) {
            return Err(format!(
                "the ResourceName {resource:?} is invalid: it is no extended resource, such as vendor.com/device"
            ));
        }
        let options = options.unwrap_or_default();
        let plugin = Plugin {
            socket,
            pre_start: options.pre_start_required,
            prefers: options.get_preferred_allocation_available,
            turn: TURNS.fetch_add(1, Ordering::Relaxed),
        };
        tracing::info!(resource, "Device plugin registered");
        self.plugins().insert(resource.to_owned(), plugin.clone());
        let resource = resource.to_owned();
        scope.spawn("device-plugin", async move {
            let ended = self.follow(&resource, &plugin).await;
            self.left(&resource, &plugin, ended);
        });
        Ok(())
    }

    /// Follows what devices a plugin has, until it ends; answers why.
    async fn follow(&self, resource: &str, plugin: &Plugin) -> String {
        let mut client = DevicePluginClient::new(stream_channel(&plugin.socket));
        let mut lists = match client.list_and_watch(proto::Empty {}).await {
            Ok(lists) => lists.into_inner(),
            Err(status) => return text(status),
        };
        loop {
            match lists.message().await {
                Ok(Some(list)) => {
                    let places = places(&list.devices);
                    let devices: BTreeMap<String, bool> = list
                        .devices
                        .into_iter()
                        .map(|device| (device.id, device.health == WELL))
                        .collect();
                    let is_newest = self.plugins().get(resource) == Some(plugin);
                    if !is_newest {
                        return "another plugin has taken its place".to_owned();
                    }
                    self.places().insert(resource.to_owned(), places);
                    let mut state = self.state();
                    if state.set(resource, devices) {
                        self.affected.add(state.users(resource));
                    }
                    self.changed(&state);
                }
                Ok(None) => return "it ended its list".to_owned(),
                Err(status) => return text(status),
            }
        }
    }

    /// What Pods have stays theirs; nothing more is given until the plugin is back.
    fn left(&self, resource: &str, plugin: &Plugin, why: String) {
        let mut plugins = self.plugins();
        if plugins.get(resource) != Some(plugin) {
            return;
        }
        plugins.remove(resource);
        drop(plugins);
        tracing::warn!(resource, why, "Device plugin is gone");
        let mut state = self.state();
        state.lost(resource);
        self.affected.add(state.users(resource));
        self.changed(&state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extended_resources_have_a_domain_of_their_own() {
        for (name, expected) in [
            ("example.com/gpu", true),
            ("cpu", false),
            ("kubernetes.io/x", false),
            ("a.kubernetes.io/x", false),
            ("example.com/", false),
        ] {
            assert_eq!(is_extended(name), expected, "{name}");
        }
    }
}
