//! `RunPodSandbox`: takes an address and remembers the Pod.

use std::sync::Arc;

use cox_cri::v1::{ContainerEventType, PodSandboxConfig};

use super::{Phase, Record, Sandbox, reservation, wants_host_network};
use crate::clock::now_nanos;
use crate::error::VerbError;
use crate::ids::SandboxId;
use crate::network::{DnsConfig, Place, PodNetwork, Resolver};
use crate::shim::Shim;

/// Handlers of RuntimeClasses that this runtime serves.
pub(crate) const HANDLERS: [&str; 2] = ["", "wasm"];

impl Shim {
    pub(crate) fn run_pod_sandbox(
        &self,
        config: PodSandboxConfig,
        handler: String,
    ) -> Result<SandboxId, VerbError> {
        let metadata = config
            .metadata
            .clone()
            .ok_or_else(|| VerbError::Invalid("the sandbox has no metadata".into()))?;
        if !HANDLERS.contains(&handler.as_str()) {
            return Err(VerbError::Invalid(format!(
                "no runtime handler {handler:?}; this node has \"\" and \"wasm\""
            )));
        }
        let id = SandboxId::random();
        let name = reservation(&metadata);
        let reserved = self.names.reserve("sandbox", &name, id.as_str())?;
        let ip = if wants_host_network(&config) {
            None
        } else {
            Some(
                self.addresses
                    .take()
                    .ok_or_else(|| VerbError::NoAddress(self.config.pod_cidr.clone()))?,
            )
        };
        let record = Record {
            phase: Phase::Ready,
            handler,
            created_at: now_nanos(),
            ip,
            namespaces: wants_host_network(&config).then(crate::sandbox::Namespaces::default),
        };
        // Written first: whatever happens from here on is found again and undone.
        if let Err(err) = self.sandbox_state.create(id.as_str(), &config, &record) {
            ip.inspect(|ip| self.addresses.give_back(*ip));
            return Err(err);
        }
        let network = self.pod_network(&config, &record);
        let sandbox = Sandbox::new(id.clone(), config, network, record);
        self.sandboxes
            .write()
            .insert(id.clone(), Arc::clone(&sandbox));
        reserved.keep();
        tracing::info!(sandbox = %id, pod = metadata.name, namespace = metadata.namespace, ip = ?ip, "Sandbox is ready");
        self.emit(
            ContainerEventType::ContainerCreatedEvent,
            id.as_str(),
            &sandbox,
        );
        self.emit(
            ContainerEventType::ContainerStartedEvent,
            id.as_str(),
            &sandbox,
        );
        Ok(id)
    }

    /// The network that a sandbox's containers see.
    pub(crate) fn pod_network(
        &self,
        config: &PodSandboxConfig,
        record: &Record,
    ) -> Arc<PodNetwork> {
        let dns = config.dns_config.clone().unwrap_or_default();
        let dns = DnsConfig {
            servers: dns.servers,
            searches: dns.searches,
            options: dns.options,
        };
        let place = record.ip.map_or(Place::Host, Place::Virtual);
        let resolver = Resolver::new(&dns, &config.hostname, record.ip);
        Arc::new(PodNetwork::new(place, Arc::clone(&self.policy), resolver))
    }
}
