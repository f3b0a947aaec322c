//! `RunPodSandbox`: decides, writes down, makes. What fails in the middle is undone from what was written down; so is what a shim
//! left that died in the middle.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use cox_cri::v1::{ContainerEventType, PodSandboxConfig, PortMapping};
use serde_json::{Map, Value, json};

use super::namespaces::{self, Making, Namespaces};
use super::pause::Unsettled;
use super::plan::{Isolation, Plan, plan};
use super::{
    Attachment, CNI_FILE, Phase, PodFiles, Record, Sandbox, SandboxError, files, reservation,
};
use crate::clock::now_nanos;
use crate::error::VerbError;
use crate::ids::SandboxId;
use crate::network::{
    DnsConfig, HostPorts, Netns, Place, PodAddresses, PodNetwork, Resolver, cni, plan_host_ports,
    veth_name,
};
use crate::shim::Shim;

/// Handlers of RuntimeClasses that this runtime serves.
pub(crate) const HANDLERS: [&str; 2] = ["", "wasm"];

impl Shim {
    pub(crate) async fn run_pod_sandbox(
        self: &Arc<Self>,
        config: PodSandboxConfig,
        handler: String,
    ) -> Result<SandboxId, VerbError> {
        let shim = Arc::clone(self);
        // A task of its own: a caller that gives up waiting leaves a sandbox or none, not half of one.
        let making = self
            .tasks
            .spawn(async move { Box::pin(shim.make_sandbox(config, handler)).await });
        making
            .await
            .map_err(|err| VerbError::Start(err.to_string()))?
    }

    async fn make_sandbox(
        self: Arc<Self>,
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
        let plan = plan(&config, &self.networks.ability)?;
        let id = SandboxId::random();
        let name = reservation(&metadata);
        let reserved = self.names.reserve("sandbox", &name, id.as_str())?;
        let (mut record, list) = self.draft(&id, handler, &plan)?;
        // Written first: whatever happens from here on is found again and undone.
        let made = match self.sandbox_state.create(id.as_str(), &config, &record) {
            Ok(()) => self.carry_out(&id, &config, &plan, &mut record, list).await,
            Err(err) => Err(err),
        };
        let host_ports = match made {
            Ok(host_ports) => host_ports,
            Err(err) => {
                self.undo(&id, &record).await;
                return Err(err);
            }
        };
        let network = self.pod_network(&id, &config, &record);
        let ips = record.ips();
        let sandbox = Sandbox::new(id.clone(), config, network, record, host_ports);
        self.sandboxes
            .write()
            .insert(id.clone(), Arc::clone(&sandbox));
        reserved.keep();
        self.watch_pause(&sandbox);
        tracing::info!(sandbox = %id, pod = metadata.name, namespace = metadata.namespace, ips = ?ips, "Sandbox is ready");
        for event in [
            ContainerEventType::ContainerCreatedEvent,
            ContainerEventType::ContainerStartedEvent,
        ] {
            self.emit(event, id.as_str(), &sandbox);
        }
        Ok(id)
    }

    /// What is going to exist, with its address taken.
    fn draft(
        &self,
        id: &SandboxId,
        handler: String,
        plan: &Plan,
    ) -> Result<(Record, Option<cni::NetworkList>), VerbError> {
        let mut record = Record {
            phase: Phase::Making,
            handler,
            created_at: now_nanos(),
            ip: None,
            ip6: None,
            ip6_first: self.config.ipv6_first,
            ip6_alone: self.networks.is_ipv6_alone(),
            attachment: Attachment::Host,
            cni_ips: Vec::new(),
            namespaces: None,
            pause: None,
        };
        let mut list = None;
        match plan {
            // Everything is the node's; it costs nothing to let OCI containers in.
            Plan::Host => record.namespaces = Some(Namespaces::default()),
            Plan::Virtual => {
                record.attachment = Attachment::Virtual;
                let taken = self
                    .networks
                    .take_virtual()
                    .map_err(|source| SandboxError::Make {
                        what: format!("make {} local to this node", self.config.pod_cidr),
                        source,
                    })?;
                let ip = taken.ok_or_else(|| VerbError::NoAddress(self.config.pod_cidr.clone()))?;
                record.ip = Some(ip);
                record.ip6 = self.networks.virtual_ipv6(ip);
            }
            Plan::Isolated(isolation) => {
                let dir = self.sandbox_state.path(id.as_str());
                record.namespaces = Some(Namespaces::planned(&dir, isolation));
                if isolation.net {
                    list = self.networks.cni().map_err(SandboxError::Cni)?;
                    if list.is_some() {
                        record.attachment = Attachment::Cni;
                    } else {
                        record.ip = Some(
                            self.networks
                                .bridge
                                .take_address()
                                .map_err(SandboxError::Bridge)?,
                        );
                        record.ip6 = record.ip.and_then(|ip| self.networks.bridge.ipv6(ip));
                        record.attachment = Attachment::Bridge;
                    }
                }
            }
        }
        Ok((record, list))
    }

    async fn carry_out(
        self: &Arc<Self>,
        id: &SandboxId,
        config: &PodSandboxConfig,
        plan: &Plan,
        record: &mut Record,
        list: Option<cni::NetworkList>,
    ) -> Result<Option<HostPorts>, VerbError> {
        let mappings = &config.port_mappings;
        // Refused before anything is made, except where a plugin decides.
        let host_ports = match record.attachment {
            Attachment::Virtual | Attachment::Bridge => {
                plan_host_ports(mappings).map_err(SandboxError::HostPort)?
            }
            // On the node's network, a container's port is the node's already.
            Attachment::Host | Attachment::Cni => Vec::new(),
        };
        if let Some(namespaces) = record.namespaces.clone() {
            if let Plan::Isolated(isolation) = plan {
                self.isolate(id, isolation, record).await?;
            }
            if let (Some(list), Some(netns)) = (list, &namespaces.net) {
                record.cni_ips = self.add_to_cni(id, config, list, netns).await?;
            }
            let dir = self.sandbox_state.path(id.as_str());
            files::write(
                &PodFiles::below(&dir, &namespaces),
                config,
                namespaces.net.is_some(),
                &record.ips(),
            )
            .map_err(|source| SandboxError::Make {
                what: "write the Pod's files".into(),
                source,
            })?;
        }
        let opened = HostPorts::open(&host_ports, &record.ips(), self.engine.executor().io())
            .map_err(SandboxError::HostPort)?;
        record.phase = Phase::Ready;
        self.sandbox_state.save(id.as_str(), record)?;
        Ok(opened)
    }

    async fn isolate(
        self: &Arc<Self>,
        id: &SandboxId,
        isolation: &Isolation,
        record: &mut Record,
    ) -> Result<(), VerbError> {
        let namespaces = record.namespaces.clone().unwrap_or_default();
        let pause = self
            .make_namespaces(id, isolation, &namespaces, record)
            .await?;
        if let Some(pause) = pause {
            record.pause = Some(pause.planned());
            self.sandbox_state.save(id.as_str(), record)?;
            pause.settle()?;
        }
        Ok(())
    }

    async fn make_namespaces(
        self: &Arc<Self>,
        id: &SandboxId,
        isolation: &Isolation,
        namespaces: &Namespaces,
        record: &Record,
    ) -> Result<Option<Unsettled>, SandboxError> {
        let (shim, isolation, namespaces) =
            (Arc::clone(self), isolation.clone(), namespaces.clone());
        let dir = self.sandbox_state.path(id.as_str());
        let veth = veth_name(id.as_str());
        let address = record
            .ip
            .filter(|_| record.attachment == Attachment::Bridge);
        let (done, wait) = tokio::sync::oneshot::channel();
        let make = move || {
            let made = namespaces::make(&Making {
                dir: &dir,
                isolation: &isolation,
                namespaces: &namespaces,
                pause_command: &shim.networks.pause_command,
                bridge: address.map(|ip| (&shim.networks.bridge, veth.as_str(), ip)),
            });
            // The one who waits is a task of ours that is not given up.
            drop(done.send(made));
        };
        std::thread::Builder::new()
            .name("pod-namespaces".into())
            .spawn(make)
            .map_err(SandboxError::Thread)?;
        wait.await
            .map_err(|_| SandboxError::Thread(std::io::Error::other("it panicked")))?
    }

    async fn add_to_cni(
        &self,
        id: &SandboxId,
        config: &PodSandboxConfig,
        list: cni::NetworkList,
        netns: &Path,
    ) -> Result<Vec<IpAddr>, VerbError> {
        let metadata = config.metadata.clone().unwrap_or_default();
        let pod = cni::PodFacts {
            sandbox: id.as_str(),
            namespace: &metadata.namespace,
            name: &metadata.name,
            uid: &metadata.uid,
            capabilities: capabilities(config),
        };
        let mut attachment = list.attachment(netns, pod);
        let file = self.sandbox_state.path(id.as_str()).join(CNI_FILE);
        let save = |attachment: &cni::Attachment| {
            let bytes = serde_json::to_vec(attachment).expect("an attachment is plain data");
            std::fs::write(&file, bytes).map_err(|source| SandboxError::Make {
                what: "write down the Pod's attachment".into(),
                source,
            })
        };
        // Before the plugins act: they are asked to undo whatever they did.
        save(&attachment)?;
        let ips = attachment
            .add(&self.networks.cni_bin_dirs)
            .await
            .map_err(SandboxError::Cni)?;
        save(&attachment)?;
        Ok(ips)
    }

    /// Undoes a sandbox that did not come to be. What cannot be undone now stays written down for the next start.
    async fn undo(&self, id: &SandboxId, record: &Record) {
        if let Err(err) = self.release(id.as_str(), record).await {
            tracing::warn!(error = %err, sandbox = %id, "A half-made sandbox could not be undone; the next start tries again");
            return;
        }
        if let Some(ip) = record.ip {
            self.networks.give_back(ip, record.attachment);
        }
        if let Err(err) = self.sandbox_state.remove(id.as_str()) {
            tracing::warn!(error = %err, sandbox = %id, "The state of a half-made sandbox could not be removed");
        }
    }

    /// The network that a sandbox's containers see.
    pub(crate) fn pod_network(
        &self,
        id: &SandboxId,
        config: &PodSandboxConfig,
        record: &Record,
    ) -> Arc<PodNetwork> {
        let asked = config.dns_config.clone().unwrap_or_default();
        let mut dns = DnsConfig {
            servers: asked.servers,
            searches: asked.searches,
            options: asked.options,
        };
        let netns = record
            .namespaces
            .as_ref()
            .and_then(|namespaces| namespaces.net.as_deref());
        let place = match (netns, record.attachment, record.ip) {
            (Some(path), ..) => {
                // The file that OCI containers of the Pod read, the node's servers in it where the Pod names none.
                let file = self.sandbox_state.path(id.as_str()).join("resolv.conf");
                if let Ok(text) = std::fs::read_to_string(file) {
                    dns = DnsConfig::parse(&text);
                }
                Place::Netns(Netns::at(path))
            }
            (None, Attachment::Virtual, Some(ip)) => Place::Virtual(match record.ip6 {
                Some(ip6) if record.ip6_alone => PodAddresses::ipv6_alone(ip, ip6),
                ip6 => PodAddresses::new(ip, ip6),
            }),
            (None, ..) => Place::Host,
        };
        let resolver = Resolver::new(&dns, &config.hostname, &record.ips());
        Arc::new(PodNetwork::new(place, Arc::clone(&self.policy), resolver))
    }
}

/// What a CNI plugin may ask for.
fn capabilities(config: &PodSandboxConfig) -> Map<String, Value> {
    let mut all = Map::new();
    let ports: Vec<Value> = config
        .port_mappings
        .iter()
        .filter(|mapping| mapping.host_port != 0)
        .map(port_mapping)
        .collect();
    if !ports.is_empty() {
        all.insert("portMappings".into(), Value::Array(ports));
    }
    if let Some(dns) = config
        .dns_config
        .as_ref()
        .filter(|dns| !dns.servers.is_empty())
    {
        all.insert(
            "dns".into(),
            json!({"servers": dns.servers, "searches": dns.searches, "options": dns.options}),
        );
    }
    all.insert(
        "io.kubernetes.cri.pod-annotations".into(),
        json!(config.annotations),
    );
    if let Some(linux) = config
        .linux
        .as_ref()
        .filter(|linux| !linux.cgroup_parent.is_empty())
    {
        all.insert("cgroupPath".into(), json!(linux.cgroup_parent));
    }
    all
}

fn port_mapping(mapping: &PortMapping) -> Value {
    json!({
        "hostPort": mapping.host_port,
        "containerPort": mapping.container_port,
        "protocol": mapping.protocol().as_str_name().to_ascii_lowercase(),
        "hostIP": mapping.host_ip,
    })
}
