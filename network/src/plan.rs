//! Which traffic goes where: one rule per port of a Service. Pure.
//!
//! Endpoints that are ready take the traffic; when none is, those that are terminating and still serve. Hints and traffic policies
//! narrow the choice to the zone or the node, as the Service asks.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::view::{Key, NodeFacts, View, cluster_ips, is_ready};

/// Transport of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    pub(crate) fn of(text: Option<&str>) -> Self {
        match text {
            Some("UDP") => Self::Udp,
            Some("SCTP") => Self::Sctp,
            _ => Self::Tcp,
        }
    }
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// `namespace/name:port`, unique together with the family.
    pub(crate) name: String,
    pub(crate) protocol: Protocol,
    /// Addresses inside the cluster.
    pub(crate) cluster: Vec<SocketAddr>,
    /// External IPs and addresses of the load balancer.
    pub(crate) external: Vec<SocketAddr>,
    pub(crate) node_port: Option<u16>,
    /// How long a client keeps its endpoint.
    pub(crate) affinity_secs: Option<u32>,
    /// Who may come through the load balancer; empty: everyone.
    pub(crate) source_ranges: Vec<String>,
    /// Where traffic from inside goes.
    pub(crate) endpoints: Vec<SocketAddr>,
    /// Where traffic from outside goes.
    pub(crate) external_endpoints: Vec<SocketAddr>,
    /// Traffic from outside keeps its source: only endpoints of this node take it.
    pub(crate) external_local: bool,
    /// Where what comes from this node and its Pods to an address for outside goes, where that is elsewhere: no source has to be
    /// kept that is here, so any endpoint takes it, as upstream has it.
    pub(crate) own_endpoints: Option<Vec<SocketAddr>>,
}

impl Rule {
    /// What no other rule of its time has.
    pub(crate) fn key(&self) -> (&str, Protocol) {
        (&self.name, self.protocol)
    }

    /// For traffic from inside and from outside.
    pub(crate) fn all_endpoints(&self) -> impl Iterator<Item = &SocketAddr> {
        let both = self.endpoints.iter().chain(&self.external_endpoints);
        both.chain(self.own_endpoints.iter().flatten())
    }

    /// Whether anybody may get an answer.
    pub(crate) fn has_endpoints(&self) -> bool {
        self.all_endpoints().next().is_some()
    }

    /// Who may come from outside, of one kind of address; none: everyone.
    pub(crate) fn sources(&self, v6: bool) -> impl Iterator<Item = &str> {
        let ranges = self.source_ranges.iter().map(String::as_str);
        ranges.filter(move |range| range.contains(':') == v6)
    }

    /// How traffic comes in: by an address, or by a port of the node.
    pub(crate) fn ways(&self) -> impl Iterator<Item = (Protocol, Option<IpAddr>, u16)> {
        let addrs = self.cluster.iter().chain(&self.external);
        let addrs = addrs.map(|addr| (self.protocol, Some(addr.ip()), addr.port()));
        addrs.chain(self.node_port.map(|port| (self.protocol, None, port)))
    }
}

/// Plans one view after the other: a Service that is as it was keeps its rules.
#[derive(Debug, Default)]
pub(crate) struct Planner {
    node: NodeFacts,
    planned: HashMap<Key, Planned>,
}

/// The rules of a Service, and what they were made of.
#[derive(Debug)]
struct Planned {
    service: Arc<Service>,
    slices: Vec<Arc<EndpointSlice>>,
    rules: Vec<Arc<Rule>>,
}

impl Planned {
    fn is_of(&self, service: &Arc<Service>, slices: &[Arc<EndpointSlice>]) -> bool {
        let mut both = self.slices.iter().zip(slices);
        Arc::ptr_eq(&self.service, service)
            && self.slices.len() == slices.len()
            && both.all(|(one, other)| Arc::ptr_eq(one, other))
    }
}

impl Planner {
    /// All rules, ordered by name.
    pub(crate) fn rules(&mut self, view: &View) -> Vec<Arc<Rule>> {
        if self.node != view.node {
            self.node.clone_from(&view.node);
            self.planned.clear();
        }
        self.planned
            .retain(|key, _| view.services.contains_key(key));
        let mut all = Vec::with_capacity(self.planned.len());
        for (key, service) in &view.services {
            let slices = view.slices_of(key);
            let known = self.planned.get(key);
            if let Some(known) = known.filter(|known| known.is_of(service, slices)) {
                all.extend_from_slice(&known.rules);
                continue;
            }
            let rules: Vec<_> = rules_of(view, key, service).map(Arc::new).collect();
            all.extend_from_slice(&rules);
            let planned = Planned {
                service: Arc::clone(service),
                slices: slices.to_vec(),
                rules,
            };
            self.planned.insert(key.clone(), planned);
        }
        all.sort_unstable_by(|a, b| a.key().cmp(&b.key()));
        all
    }
}

fn rules_of(view: &View, key: &Key, service: &Service) -> impl Iterator<Item = Rule> {
    let ips = cluster_ips(service);
    let is_ours = !ips.is_empty() && !is_others(&service.metadata);
    let spec = service.spec.as_ref().filter(|_| is_ours);
    let ports = spec
        .and_then(|spec| spec.ports.as_ref())
        .into_iter()
        .flatten();
    let both = ports.flat_map(|port| [(port, false), (port, true)]);
    both.filter_map(move |(port, v6)| rule(view, key, service, port, &ips, v6))
}

/// Labels by which a Service, or a slice of endpoints, asks to be left to another proxy, or to none.
const LEFT_ALONE: [&str; 2] = [
    "service.kubernetes.io/service-proxy-name",
    "service.kubernetes.io/headless",
];

fn is_others(meta: &ObjectMeta) -> bool {
    let labels = meta.labels.as_ref();
    labels.is_some_and(|labels| LEFT_ALONE.iter().any(|name| labels.contains_key(*name)))
}

fn rule(
    view: &View,
    key: &Key,
    service: &Service,
    port: &ServicePort,
    ips: &[IpAddr],
    v6: bool,
) -> Option<Rule> {
    let spec = service.spec.as_ref()?;
    let number = u16::try_from(port.port).ok()?;
    let addresses = |all: &[IpAddr]| -> Vec<SocketAddr> {
        let own = all.iter().filter(|ip| ip.is_ipv6() == v6);
        own.map(|ip| SocketAddr::new(*ip, number)).collect()
    };
    let cluster = addresses(ips);
    if cluster.is_empty() {
        return None;
    }
    let external = addresses(&external_ips(service, spec));
    let protocol = Protocol::of(port.protocol.as_deref());
    let candidates = candidates(view, key, port, protocol, v6);
    let external_local = spec.external_traffic_policy.as_deref() == Some("Local");
    let internal_local = spec.internal_traffic_policy.as_deref() == Some("Local");
    let affinity = spec.session_affinity.as_deref() == Some("ClientIP");
    let config = spec.session_affinity_config.as_ref();
    let timeout = config.and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
    let node_port = port.node_port.and_then(|port| u16::try_from(port).ok());
    let (namespace, name) = key;
    let family = if v6 { "/v6" } else { "" };
    let external_endpoints = choose(&candidates, &view.node, external_local);
    let has_outside = node_port.is_some_and(|port| port != 0) || !external.is_empty();
    let own_endpoints = (external_local && has_outside)
        .then(|| choose(&candidates, &view.node, false))
        .filter(|all| *all != external_endpoints);
    Some(Rule {
        name: format!(
            "{namespace}/{name}:{}{family}",
            port.name.as_deref().unwrap_or_default()
        ),
        protocol,
        cluster,
        external,
        node_port: node_port.filter(|port| *port != 0),
        affinity_secs: affinity.then(|| {
            timeout
                .and_then(|secs| u32::try_from(secs).ok())
                .unwrap_or(10_800)
        }),
        source_ranges: spec.load_balancer_source_ranges.clone().unwrap_or_default(),
        endpoints: choose(&candidates, &view.node, internal_local),
        external_endpoints,
        external_local,
        own_endpoints,
    })
}

fn external_ips(service: &Service, spec: &ServiceSpec) -> Vec<IpAddr> {
    let status = service.status.as_ref();
    let balancer = status.and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_ref());
    // Addresses of a balancer that is a proxy belong to that proxy.
    let balanced = ingress
        .into_iter()
        .flatten()
        .filter(|one| one.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|one| one.ip.as_deref());
    let listed = spec.external_ips.iter().flatten().map(String::as_str);
    listed
        .chain(balanced)
        .filter_map(|ip| ip.parse().ok())
        .collect()
}

/// An endpoint that might take traffic.
#[derive(Clone, Debug)]
struct Candidate<'a> {
    addr: SocketAddr,
    endpoint: &'a Endpoint,
}

impl Candidate<'_> {
    fn is_local(&self, node: &NodeFacts) -> bool {
        self.endpoint.node_name.as_deref() == Some(node.name.as_str())
    }

    /// Terminating, but still answering.
    fn is_draining(&self) -> bool {
        let conditions = self.endpoint.conditions.as_ref();
        conditions.is_some_and(|one| one.serving == Some(true) && one.terminating == Some(true))
    }
}

fn candidates<'a>(
    view: &'a View,
    key: &Key,
    wanted: &ServicePort,
    protocol: Protocol,
    v6: bool,
) -> Vec<Candidate<'a>> {
    let name = wanted.name.as_deref().unwrap_or_default();
    let family = if v6 { "IPv6" } else { "IPv4" };
    let mut all = Vec::new();
    for slice in view
        .slices_of(key)
        .iter()
        .filter(|slice| slice.address_type == family && !is_others(&slice.metadata))
    {
        let port = slice.ports.iter().flatten().find(|port| {
            port.name.as_deref().unwrap_or_default() == name
                && Protocol::of(port.protocol.as_deref()) == protocol
        });
        let Some(port) = port.and_then(|port| u16::try_from(port.port?).ok()) else {
            continue;
        };
        for endpoint in slice.endpoints.iter().flatten() {
            // The first address is the one that counts.
            let ip = endpoint
                .addresses
                .first()
                .and_then(|ip| ip.parse::<IpAddr>().ok());
            all.extend(ip.map(|ip| Candidate {
                addr: SocketAddr::new(ip, port),
                endpoint,
            }));
        }
    }
    all
}

/// How many endpoints of a Service this node has that take traffic.
pub(crate) fn local_endpoints(view: &View, key: &Key) -> usize {
    let endpoints = view
        .slices_of(key)
        .iter()
        .flat_map(|slice| slice.endpoints.iter().flatten());
    let here = endpoints
        .filter(|one| is_ready(one) && one.node_name.as_deref() == Some(view.node.name.as_str()));
    let ips: std::collections::BTreeSet<_> = here.flat_map(|one| &one.addresses).collect();
    ips.len()
}

fn choose(candidates: &[Candidate<'_>], node: &NodeFacts, local_only: bool) -> Vec<SocketAddr> {
    let allowed = |one: &&Candidate<'_>| !local_only || one.is_local(node);
    let mut chosen: Vec<&Candidate<'_>> = candidates
        .iter()
        .filter(allowed)
        .filter(|one| is_ready(one.endpoint))
        .collect();
    if chosen.is_empty() {
        chosen = candidates
            .iter()
            .filter(allowed)
            .filter(|one| one.is_draining())
            .collect();
    } else if !local_only {
        chosen = close_by(chosen, node);
    }
    let mut addrs: Vec<SocketAddr> = chosen.into_iter().map(|one| one.addr).collect();
    addrs.sort_unstable();
    addrs.dedup();
    addrs
}

/// Those that hints give to this node, or to its zone; all of them when hints are missing or give nobody.
fn close_by<'a, 'b>(all: Vec<&'a Candidate<'b>>, node: &NodeFacts) -> Vec<&'a Candidate<'b>> {
    let hinted = |one: &&Candidate<'_>, own: &dyn Fn(&Candidate<'_>) -> Option<bool>| own(one);
    let by_node = |one: &Candidate<'_>| -> Option<bool> {
        let nodes = one.endpoint.hints.as_ref()?.for_nodes.as_ref()?;
        Some(nodes.iter().any(|hint| hint.name == node.name))
    };
    let by_zone = |one: &Candidate<'_>| -> Option<bool> {
        let zones = one.endpoint.hints.as_ref()?.for_zones.as_ref()?;
        let zone = node.zone.as_deref()?;
        Some(zones.iter().any(|hint| hint.name == zone))
    };
    type Kind<'f> = &'f dyn Fn(&Candidate<'_>) -> Option<bool>;
    let kinds: [Kind<'_>; 2] = [&by_node, &by_zone];
    for own in kinds {
        if all.iter().all(|one| hinted(one, own).is_some()) {
            let close: Vec<_> = all
                .iter()
                .copied()
                .filter(|one| own(one) == Some(true))
                .collect();
            if !close.is_empty() {
                return close;
            }
        }
    }
    all
}

/// What tests of the proxies begin with.
#[cfg(test)]
pub(crate) mod fixture {
    use super::*;

    pub(crate) fn shared(rules: &[Rule]) -> Vec<Arc<Rule>> {
        rules.iter().cloned().map(Arc::new).collect()
    }

    /// A Service with an address and a node port of its own.
    pub(crate) fn rule(name: &str, endpoints: &[&str]) -> Rule {
        let endpoints: Vec<SocketAddr> = endpoints.iter().map(|one| one.parse().unwrap()).collect();
        Rule {
            name: name.into(),
            protocol: Protocol::Tcp,
            cluster: vec!["10.96.0.7:80".parse().unwrap()],
            external: Vec::new(),
            node_port: Some(30_080),
            affinity_secs: None,
            source_ranges: Vec::new(),
            external_endpoints: endpoints.clone(),
            endpoints,
            external_local: false,
            own_endpoints: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use serde_json::{Value, json};

    fn view(spec: Value, endpoints: Value) -> View {
        let mut service = json!({"metadata": {"namespace": "ns", "name": "web"}, "spec": {
            "type": "ClusterIP", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}});
        for (field, value) in spec.as_object().unwrap() {
            service["spec"][field] = value.clone();
        }
        let slice = json!({"addressType": "IPv4", "metadata": {"namespace": "ns", "name": "web-1",
            "labels": {"kubernetes.io/service-name": "web"}}, "endpoints": endpoints,
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "other", "port": 1}]});
        let node = NodeFacts {
            name: "n1".into(),
            zone: Some("z1".into()),
            pods: Vec::new(),
        };
        View::new(
            vec![Arc::new(serde_json::from_value(service).unwrap())],
            vec![Arc::new(serde_json::from_value(slice).unwrap())],
            node,
        )
    }

    fn rules(view: &View) -> Vec<Arc<Rule>> {
        Planner::default().rules(view)
    }

    #[test]
    fn a_service_that_is_as_it_was_keeps_its_rules() {
        let one = view(json!({}), json!([endpoint("10.0.0.1", "rs", json!({}))]));
        let mut planner = Planner::default();
        let first = planner.rules(&one);
        assert!(Arc::ptr_eq(&first[0], &planner.rules(&one)[0]));
        let key = ("ns".to_owned(), "web".to_owned());
        let with = |slice: Arc<EndpointSlice>, node| {
            View::new(vec![one.services[&key].clone()], vec![slice], node)
        };
        let slice = &one.slices_of(&key)[0];
        let mut moved = (**slice).clone();
        moved.endpoints.as_mut().unwrap()[0].addresses = vec!["10.0.0.2".into()];
        let changed = planner.rules(&with(Arc::new(moved), one.node.clone()));
        assert_eq!(changed[0].endpoints, ["10.0.0.2:8080".parse().unwrap()]);
        assert_eq!(planner.rules(&one), first);
        let elsewhere = NodeFacts {
            zone: Some("z2".into()),
            ..one.node.clone()
        };
        let other = planner.rules(&with(Arc::clone(slice), elsewhere));
        assert!(!Arc::ptr_eq(&other[0], &first[0]), "hints are for zones");
        assert_eq!(planner.rules(&View::default()), []);
        assert!(planner.planned.is_empty());
    }

    fn endpoint(ip: &str, conditions: &str, extra: Value) -> Value {
        let mut endpoint = json!({"addresses": [ip], "conditions": {
            "ready": conditions.contains('r'), "serving": conditions.contains('s'), "terminating": conditions.contains('t')}});
        for (field, value) in extra.as_object().unwrap() {
            endpoint[field] = value.clone();
        }
        endpoint
    }

    #[test]
    fn endpoints_are_chosen() {
        let zone = |zone: &str, node: &str| json!({"nodeName": node, "hints": {"forZones": [{"name": zone}]}});
        let cases: Vec<(&str, Value, Value, &str)> = vec![
            (
                "ready ones",
                json!({}),
                json!([
                    endpoint("10.0.0.1", "rs", json!({})),
                    endpoint("10.0.0.2", "", json!({}))
                ]),
                "10.0.0.1:8080",
            ),
            (
                "those that end, when no other is left",
                json!({}),
                json!([
                    endpoint("10.0.0.1", "st", json!({})),
                    endpoint("10.0.0.2", "", json!({}))
                ]),
                "10.0.0.1:8080",
            ),
            (
                "none",
                json!({}),
                json!([endpoint("10.0.0.2", "", json!({}))]),
                "",
            ),
            (
                "the own node's only",
                json!({"internalTrafficPolicy": "Local"}),
                json!([
                    endpoint("10.0.0.1", "rs", json!({"nodeName": "n2"})),
                    endpoint("10.0.0.2", "rs", json!({"nodeName": "n1"}))
                ]),
                "10.0.0.2:8080",
            ),
            (
                "the own zone's",
                json!({}),
                json!([
                    endpoint("10.0.0.1", "rs", zone("z2", "n2")),
                    endpoint("10.0.0.2", "rs", zone("z1", "n3"))
                ]),
                "10.0.0.2:8080",
            ),
            (
                "all, when no hint is for here",
                json!({}),
                json!([
                    endpoint("10.0.0.1", "rs", zone("z2", "n2")),
                    endpoint("10.0.0.2", "rs", zone("z3", "n3"))
                ]),
                "10.0.0.1:8080 10.0.0.2:8080",
            ),
            (
                "all, when a hint is missing",
                json!({}),
                json!([
                    endpoint("10.0.0.1", "rs", json!({})),
                    endpoint("10.0.0.2", "rs", zone("z1", "n3"))
                ]),
                "10.0.0.1:8080 10.0.0.2:8080",
            ),
        ];
        for (case, spec, endpoints, expected) in cases {
            let rules = rules(&view(spec, endpoints));
            let told: Vec<String> = rules[0].endpoints.iter().map(ToString::to_string).collect();
            assert_eq!(told.join(" "), expected, "case: {case}");
        }
    }

    #[test]
    fn a_rule_has_all_ways_in() {
        let spec = json!({"type": "LoadBalancer", "externalIPs": ["192.0.2.9"], "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}}, "externalTrafficPolicy": "Local",
            "ports": [{"name": "http", "port": 80, "nodePort": 30080}]});
        let endpoints = json!([endpoint("10.0.0.1", "rs", json!({"nodeName": "n2"}))]);
        let rules = rules(&view(spec, endpoints));
        let rule = &rules[0];
        assert_eq!((rules.len(), rule.name.as_str()), (1, "ns/web:http"));
        assert_eq!(rule.external, ["192.0.2.9:80".parse().unwrap()]);
        assert_eq!(
            (rule.node_port, rule.affinity_secs),
            (Some(30_080), Some(5))
        );
        assert_eq!(rule.endpoints.len(), 1);
        assert!(rule.external_endpoints.is_empty(), "none on this node");
        assert_eq!(
            rule.own_endpoints.as_deref(),
            Some(&rule.endpoints[..]),
            "what is from here may go anywhere"
        );
    }

    #[test]
    fn what_is_from_here_has_a_way_of_its_own_only_where_that_is_another() {
        let on = |node: &str| json!([endpoint("10.0.0.1", "rs", json!({"nodeName": node}))]);
        let of = |spec: Value, node: &str| rules(&view(spec, on(node)))[0].own_endpoints.clone();
        let with = |policy: &str, port: u16| {
            json!({"type": "NodePort", "externalTrafficPolicy": policy,
                "ports": [{"name": "http", "port": 80, "nodePort": port}]})
        };
        assert_eq!(of(with("Cluster", 30_080), "n2"), None, "all go anywhere");
        assert_eq!(of(with("Local", 30_080), "n1"), None, "all are here");
        assert_eq!(of(with("Local", 0), "n2"), None, "nobody asks");
        assert_eq!(of(with("Local", 30_080), "n2").unwrap().len(), 1);
    }

    #[test]
    fn services_of_other_proxies_have_no_rule() {
        for label in LEFT_ALONE {
            let view = view(json!({}), json!([endpoint("10.0.0.1", "rs", json!({}))]));
            assert_eq!(rules(&view)[0].endpoints.len(), 1);
            let key = ("ns".to_owned(), "web".to_owned());
            let mut service = (*view.services[&key]).clone();
            service.metadata.labels = Some([(label.to_owned(), String::new())].into());
            let other = View::new(vec![service.into()], Vec::new(), NodeFacts::default());
            assert_eq!(rules(&other), [], "{label}");
            let mut slice = (*view.slices_of(&key)[0]).clone();
            let labels = slice.metadata.labels.get_or_insert_default();
            labels.insert(label.to_owned(), String::new());
            let service = view.services[&key].clone();
            let other = View::new(vec![service], vec![slice.into()], NodeFacts::default());
            assert!(rules(&other)[0].endpoints.is_empty(), "a slice of {label}");
        }
    }

    #[test]
    fn headless_services_have_no_rule() {
        let headless = json!({"clusterIP": "None", "clusterIPs": ["None"]});
        assert!(rules(&view(headless, json!([]))).is_empty());
    }
}
