//! What Services are given when they are written: cluster addresses and node ports, each to one Service at a time.
//!
//! A cluster address is held by an IPAddress object of its name, made before the Service is stored and removed after it is gone;
//! the ranges come from the flags and from ServiceCIDR objects. Node ports are held in memory. [`repair`] puts both right at start:
//! a crash may have left an IPAddress without its Service, and an older version Services without IPAddress.

pub mod cidr;
mod families;
mod ports;

use std::net::IpAddr;

use cox_api::meta;
use cox_api::status::ApiStatus;
use cox_api::validation::FieldError;
use cox_store::{CommitError, Mutation, Op, Precondition};
use parking_lot::RwLock;
use serde_json::{Value, json};

use crate::refuse;
use crate::registry::{Entry, Registry, decode_stored};
use cidr::Cidr;
use ports::NodePorts;

const GROUP: &str = "networking.k8s.io";
const SERVICES: &str = "services/specs";
/// The ServiceCIDR that says what the flags said.
pub const DEFAULT_CIDR_NAME: &str = "kubernetes";
/// Random tries before a range is searched from its start.
const TRIES: usize = 32;
/// How far a range is searched: beyond, nobody has as many Services.
const SEARCH_MAX: u128 = 1 << 17;

/// What is shared by all requests.
#[derive(Debug, Default)]
pub(crate) struct Services {
    /// The ranges of the flags, the default family first.
    defaults: RwLock<Vec<Cidr>>,
    ports: NodePorts,
}

impl Services {
    pub(crate) fn set_ranges(&self, ranges: Vec<Cidr>) {
        *self.defaults.write() = ranges;
    }
}

/// What one write took; to be given back when the write fails.
#[derive(Debug, Default)]
pub(crate) struct Held {
    ips: Vec<IpAddr>,
    ports: Vec<u16>,
    owner: String,
}

/// Is it the resource that this is about?
pub(crate) fn is_service(entry: &Entry) -> bool {
    &*entry.prefix == SERVICES
}

fn owner_of(service: &Value) -> String {
    format!("{}/{}", meta::namespace(service), meta::name(service))
}

/// Addresses of a Service; none when it is headless.
fn ips_of(service: &Value) -> Vec<String> {
    let list = service
        .pointer("/spec/clusterIPs")
        .and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .filter(|ip| !ip.is_empty() && *ip != "None")
        .map(str::to_owned)
        .collect()
}

fn ports_of(service: &Value) -> Vec<u16> {
    let ports = service.pointer("/spec/ports").and_then(Value::as_array);
    let mut all: Vec<u16> = ports
        .into_iter()
        .flatten()
        .filter_map(|port| port.get("nodePort"))
        .chain(service.pointer("/spec/healthCheckNodePort"))
        .filter_map(|port| u16::try_from(port.as_u64()?).ok())
        .filter(|port| *port != 0)
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Gives a Service that is about to be stored what it lacks. In a dry run nothing is kept.
pub(crate) async fn reserve(
    registry: &Registry,
    entry: &Entry,
    new: &mut Value,
    old: Option<&Value>,
    dry_run: bool,
) -> Result<Held, ApiStatus> {
    let mut held = Held {
        owner: owner_of(new),
        ..Held::default()
    };
    let taken = take(registry, entry, new, old, dry_run, &mut held).await;
    if taken.is_err() || dry_run {
        release(registry, &held).await;
        held.ips.clear();
        held.ports.clear();
    }
    taken.map(|()| held)
}

async fn take(
    registry: &Registry,
    entry: &Entry,
    new: &mut Value,
    old: Option<&Value>,
    dry_run: bool,
    held: &mut Held,
) -> Result<(), ApiStatus> {
    let ranges = ranges(registry);
    let mut configured: Vec<&str> = Vec::new();
    for range in &ranges {
        if !configured.contains(&range.family()) {
            configured.push(range.family());
        }
    }
    let errors = families::complete(new, old, &configured);
    refuse::invalid_if(entry, new, errors)?;
    let kind = new["spec"]["type"]
        .as_str()
        .unwrap_or("ClusterIP")
        .to_owned();
    if kind == "ExternalName" {
        return Ok(());
    }
    if new["spec"]["clusterIP"] != "None" {
        take_addresses(registry, entry, new, old, &ranges, dry_run, held).await?;
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        let allocates = new["spec"]["allocateLoadBalancerNodePorts"] != false;
        take_ports(registry, entry, new, old, allocates, held)?;
    }
    Ok(())
}

/// The ranges of the flags, then those of ServiceCIDRs that are ready.
fn ranges(registry: &Registry) -> Vec<Cidr> {
    let mut all = registry.services().defaults.read().clone();
    for object in registry.list(GROUP, "servicecidrs", "") {
        let Ok(value) = decode_stored(&object.json) else {
            continue;
        };
        let conditions = value["status"]["conditions"].as_array();
        let ready = conditions
            .into_iter()
            .flatten()
            .any(|one| one["type"] == "Ready" && one["status"] == "True");
        if !ready || value["metadata"]["deletionTimestamp"].is_string() {
            continue;
        }
        let cidrs = value["spec"]["cidrs"].as_array();
        for text in cidrs.into_iter().flatten().filter_map(Value::as_str) {
            match text.parse::<Cidr>() {
                Ok(cidr) if !all.contains(&cidr) => all.push(cidr),
                Ok(_) | Err(_) => {}
            }
        }
    }
    all
}

async fn take_addresses(
    registry: &Registry,
    entry: &Entry,
    new: &mut Value,
    old: Option<&Value>,
    ranges: &[Cidr],
    dry_run: bool,
    held: &mut Held,
) -> Result<(), ApiStatus> {
    let had = old.map(ips_of).unwrap_or_default();
    let mut ips = ips_of(new);
    let families: Vec<String> =
        serde_json::from_value(new["spec"]["ipFamilies"].clone()).unwrap_or_default();
    for (at, family) in families.iter().enumerate() {
        match ips.get(at) {
            Some(ip) if had.contains(ip) => {}
            Some(text) => {
                let refused = |why: String| {
                    let errors = vec![FieldError::invalid(
                        "spec.clusterIPs",
                        json!(ips),
                        format!("failed to allocate IP {text}: {why}"),
                    )];
                    refuse::invalid_if(entry, new, errors)
                };
                let Ok(ip) = text.parse::<IpAddr>() else {
                    return Err(refuse::internal(&format!(
                        "failed to parse service IP {text:?}"
                    )));
                };
                if !ranges.iter().any(|range| range.holds(ip)) {
                    let valid: Vec<String> = ranges.iter().map(ToString::to_string).collect();
                    refused(format!(
                        "the provided IP ({ip}) is not in the valid range. The range of valid IPs is {}",
                        valid.join(",")
                    ))?;
                }
                if !hold(registry, ip, &held.owner).await? {
                    refused("provided IP is already allocated".to_owned())?;
                }
                held.ips.push(ip);
            }
            None => {
                let ip = take_any(registry, ranges, family, held, dry_run).await?;
                let Some(ip) = ip else {
                    let name = meta::name(new);
                    return Err(refuse::internal(&format!(
                        "failed to allocate a serviceIP for Service {name:?}: range is full"
                    )));
                };
                ips.push(ip.to_string());
            }
        }
    }
    new["spec"]["clusterIP"] = ips
        .first()
        .map_or(Value::Null, |ip| Value::from(ip.as_str()));
    new["spec"]["clusterIPs"] = json!(ips);
    Ok(())
}

async fn take_any(
    registry: &Registry,
    ranges: &[Cidr],
    family: &str,
    held: &mut Held,
    dry_run: bool,
) -> Result<Option<IpAddr>, ApiStatus> {
    for range in ranges.iter().filter(|range| range.family() == family) {
        let (band, last) = (range.static_band(), range.usable());
        for offset in offsets(band, last) {
            let ip = range.at(offset);
            if registry
                .object(GROUP, "ipaddresses", "", &ip.to_string())
                .is_some()
            {
                continue;
            }
            if dry_run || hold(registry, ip, &held.owner).await? {
                if !dry_run {
                    held.ips.push(ip);
                }
                return Ok(Some(ip));
            }
        }
    }
    Ok(None)
}

/// In which order offsets are tried: some at random, then all of the upper band, then the lower one.
fn offsets(band: u128, last: u128) -> impl Iterator<Item = u128> {
    let first = band + 1;
    let tries = if first <= last { TRIES } else { 0 };
    let random = (0..tries).map(move |_| rand::random_range(first..=last));
    random
        .chain((first..=last).take_while(move |offset| offset - first < SEARCH_MAX))
        .chain(1..=band)
}

/// Makes the IPAddress that says that `ip` is `owner`'s; false when it is somebody else's.
async fn hold(registry: &Registry, ip: IpAddr, owner: &str) -> Result<bool, ApiStatus> {
    if registry
        .ensure(GROUP, "ipaddresses", address_object(ip, owner))
        .await?
    {
        return Ok(true);
    }
    // What a crash between the two writes left is its Service's, which is not there yet.
    let held = registry.value(GROUP, "ipaddresses", "", &ip.to_string());
    let parent = held.map(|value| parent_of(&value)).unwrap_or_default();
    let (namespace, name) = owner.split_once('/').unwrap_or_default();
    Ok(parent == owner && registry.object("", "services", namespace, name).is_none())
}

fn address_object(ip: IpAddr, owner: &str) -> Value {
    let (namespace, name) = owner.split_once('/').unwrap_or_default();
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": {"name": ip.to_string(), "labels": {
            "ipaddress.kubernetes.io/ip-family": if ip.is_ipv6() { "IPv6" } else { "IPv4" },
            "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
        }},
        "spec": {"parentRef": {"group": "", "resource": "services", "namespace": namespace, "name": name}},
    })
}

fn parent_of(address: &Value) -> String {
    let parent = &address["spec"]["parentRef"];
    let text = |field: &str| parent[field].as_str().unwrap_or_default();
    if text("resource") == "services" && text("group").is_empty() {
        format!("{}/{}", text("namespace"), text("name"))
    } else {
        String::new()
    }
}

fn take_ports(
    registry: &Registry,
    entry: &Entry,
    new: &mut Value,
    old: Option<&Value>,
    allocates: bool,
    held: &mut Held,
) -> Result<(), ApiStatus> {
    let had = old.map(ports_of).unwrap_or_default();
    let node_ports = &registry.services().ports;
    let mut ports = new["spec"]["ports"].as_array().cloned().unwrap_or_default();
    // One number serves a port in all its protocols.
    let mut by_port: Vec<(Value, u16)> = Vec::new();
    for (at, port) in ports.iter_mut().enumerate() {
        let number = port["port"].clone();
        let wanted = port["nodePort"].as_u64().unwrap_or(0);
        let shared = by_port
            .iter()
            .find(|(known, _)| *known == number)
            .map(|(_, node_port)| *node_port);
        let wanted = u16::try_from(wanted).unwrap_or(u16::MAX);
        let node_port = match (wanted, shared) {
            (0, _) if !allocates => continue,
            (0, Some(shared)) => shared,
            (0, None) => any_port(node_ports, held)?,
            (wanted, _) if had.contains(&wanted) || held.ports.contains(&wanted) => wanted,
            (wanted, _) => {
                if let Err(error) = node_ports.take(wanted, &held.owner) {
                    let errors = vec![FieldError::invalid(
                        format!("spec.ports[{at}].nodePort"),
                        wanted,
                        error.to_string(),
                    )];
                    refuse::invalid_if(entry, new, errors)?;
                }
                held.ports.push(wanted);
                wanted
            }
        };
        by_port.push((number, node_port));
        port["nodePort"] = node_port.into();
    }
    if !ports.is_empty() {
        new["spec"]["ports"] = Value::Array(ports);
    }
    let local =
        new["spec"]["type"] == "LoadBalancer" && new["spec"]["externalTrafficPolicy"] == "Local";
    if local {
        let wanted = new["spec"]["healthCheckNodePort"]
            .as_u64()
            .and_then(|port| u16::try_from(port).ok())
            .unwrap_or(0);
        if wanted == 0 {
            new["spec"]["healthCheckNodePort"] = any_port(node_ports, held)?.into();
        } else if !had.contains(&wanted) {
            node_ports.take(wanted, &held.owner).map_err(|error| {
                refuse::internal(&format!(
                    "failed to allocate requested HealthCheck NodePort {wanted}: {error}"
                ))
            })?;
            held.ports.push(wanted);
        }
    }
    Ok(())
}

fn any_port(node_ports: &NodePorts, held: &mut Held) -> Result<u16, ApiStatus> {
    let port = node_ports
        .take_any(&held.owner, rand::random())
        .map_err(|error| refuse::internal(&format!("failed to allocate a nodePort: {error}")))?;
    held.ports.push(port);
    Ok(port)
}

/// Gives back what a write took that did not happen.
pub(crate) async fn release(registry: &Registry, held: &Held) {
    for ip in &held.ips {
        drop_address(registry, &ip.to_string(), &held.owner).await;
    }
    for port in &held.ports {
        registry.services().ports.give_back(*port, &held.owner);
    }
}

/// After a write: what the Service had and has no longer is free again. `new` is none when it is gone.
pub(crate) async fn settle(registry: &Registry, old: &Value, new: Option<&Value>) {
    let owner = owner_of(old);
    let (ips, ports) = (
        new.map(ips_of).unwrap_or_default(),
        new.map(ports_of).unwrap_or_default(),
    );
    for ip in ips_of(old).iter().filter(|ip| !ips.contains(ip)) {
        drop_address(registry, ip, &owner).await;
    }
    for port in ports_of(old).iter().filter(|port| !ports.contains(port)) {
        registry.services().ports.give_back(*port, &owner);
    }
}

async fn drop_address(registry: &Registry, ip: &str, owner: &str) {
    let Some(object) = registry.object(GROUP, "ipaddresses", "", ip) else {
        return;
    };
    if !decode_stored(&object.json).is_ok_and(|value| parent_of(&value) == owner) {
        return;
    }
    let mutation = Mutation {
        key: object.key.clone(),
        precondition: Precondition::Revision(object.revision),
        op: Op::Delete,
        durability: cox_store::Durability::Durable,
    };
    match registry.store().commit(mutation).await {
        Ok(_) | Err(CommitError::Conflict(_) | CommitError::NotFound(_)) => {}
        Err(error) => {
            tracing::warn!(%error, ip, "The address of a Service could not be given back; the next start does it")
        }
    }
}

/// The ranges of a cluster's first start are its ranges: Services have addresses in them. `wanted` are those of the flags.
pub(crate) fn kept_ranges(registry: &Registry, wanted: &[Cidr]) -> Vec<Cidr> {
    let stored = registry.value(GROUP, "servicecidrs", "", DEFAULT_CIDR_NAME);
    let texts = stored
        .as_ref()
        .and_then(|value| value["spec"]["cidrs"].as_array());
    let kept: Vec<Cidr> = texts
        .into_iter()
        .flatten()
        .filter_map(|text| text.as_str()?.parse().ok())
        .collect();
    if kept.is_empty() {
        return wanted.to_vec();
    }
    if kept != wanted {
        tracing::info!(
            ?kept,
            ?wanted,
            "The cluster keeps the Service addresses of its first start"
        );
    }
    kept
}

/// The API server's own Service has the first address of the range; one of an earlier range is made anew.
pub(crate) async fn forget_misplaced(registry: &Registry) {
    let Some(service) = registry.value("", "services", "default", "kubernetes") else {
        return;
    };
    let ranges = registry.services().defaults.read().clone();
    let outside = ips_of(&service).iter().any(|ip| {
        ip.parse()
            .is_ok_and(|ip: IpAddr| !ranges.iter().any(|range| range.holds(ip)))
    });
    let Some(entry) = registry
        .catalog()
        .stored("", "services")
        .filter(|_| outside)
    else {
        return;
    };
    if let Err(error) = registry
        .commit_delete(entry, "default", "kubernetes", Precondition::None)
        .await
    {
        tracing::warn!(%error, "The API server's own Service cannot get an address of the range");
    }
}

/// Compares Services with what they hold, once, at start.
pub(crate) async fn repair(registry: &Registry) {
    let mut owned: std::collections::HashMap<String, String> = std::collections::HashMap::new();
    for object in registry.list("", "services", "") {
        let Ok(service) = decode_stored(&object.json) else {
            continue;
        };
        let owner = owner_of(&service);
        for port in ports_of(&service) {
            if let Some(holder) = registry.services().ports.remember(port, &owner) {
                tracing::warn!(
                    port,
                    service = owner,
                    holder,
                    "Two Services have the same node port"
                );
            }
        }
        for text in ips_of(&service) {
            let Ok(ip) = text.parse::<IpAddr>() else {
                continue;
            };
            let made = registry
                .ensure(GROUP, "ipaddresses", address_object(ip, &owner))
                .await;
            match made {
                Ok(true) => tracing::info!(
                    ip = text,
                    service = owner,
                    "A Service's address was not held, and is now"
                ),
                Ok(false) => {}
                Err(error) => tracing::warn!(
                    message = error.message,
                    ip = text,
                    "An address cannot be held"
                ),
            }
            owned.insert(text, owner.clone());
        }
    }
    for object in registry.list(GROUP, "ipaddresses", "") {
        let Ok(address) = decode_stored(&object.json) else {
            continue;
        };
        let (ip, parent) = (meta::name(&address), parent_of(&address));
        if !parent.is_empty() && owned.get(ip) != Some(&parent) {
            tracing::info!(
                ip,
                service = parent,
                "An address was held for a Service that does not have it"
            );
            drop_address(registry, ip, &parent).await;
        }
    }
}
