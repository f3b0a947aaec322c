//! From Gateways and HTTPRoutes to the routing table, and what their statuses have to say. Pure but for what the resolver looks up.

mod rules;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{Selector, SelectorExt};
use rustls::sign::CertifiedKey;

use super::conditions::Condition;
use super::hostnames::{intersect, overlap};
use super::types::{
    GROUP, GRPCRoute, Gateway, HTTPRoute, Labels, Listener, ParentRef, ReferenceGrant, RouteKind,
    RouteSpec,
};
use super::{age, grpc};
use crate::resolve::Resolver;
use crate::table::{HostPattern, Port, Table};
use rules::Built;

/// What kind of route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Http,
    Grpc,
}

impl Kind {
    pub(crate) const ALL: [Self; 2] = [Self::Http, Self::Grpc];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http => "HTTPRoute",
            Self::Grpc => "GRPCRoute",
        }
    }
}

/// A route of any kind.
#[derive(Debug)]
struct Route<'a> {
    kind: Kind,
    metadata: &'a ObjectMeta,
    spec: Cow<'a, RouteSpec>,
}

/// What is compiled.
pub(crate) struct Input<'a> {
    /// Those of our classes, the oldest first.
    pub(crate) gateways: &'a [Arc<Gateway>],
    pub(crate) routes: &'a [Arc<HTTPRoute>],
    pub(crate) grpc_routes: &'a [Arc<GRPCRoute>],
    pub(crate) grants: &'a [Arc<ReferenceGrant>],
    /// The labels of a namespace.
    pub(crate) labels: &'a dyn Fn(&str) -> Labels,
}

/// What the statuses have to say, beside the table.
#[derive(Debug, Default)]
pub(crate) struct Output {
    /// By namespace and name.
    pub(crate) gateways: HashMap<(String, String), Vec<ListenerState>>,
    /// Of each route the parents that are ours.
    pub(crate) routes: HashMap<(Kind, (String, String)), Vec<ParentState>>,
}

/// What is to be said of one listener.
#[derive(Clone, Debug)]
pub(crate) struct ListenerState {
    pub(crate) name: String,
    /// Where it is served; `None`: it is not.
    pub(crate) port: Option<Port>,
    /// Which routes it takes.
    pub(crate) kinds: Vec<Kind>,
    /// The hosts of those that it has.
    pub(crate) hosts: Vec<(Kind, HostPattern)>,
    pub(crate) attached: usize,
    pub(crate) conditions: Vec<Condition>,
}

/// What is to be said of a route towards one of its parents.
#[derive(Clone, Debug)]
pub(crate) struct ParentState {
    pub(crate) parent: ParentRef,
    pub(crate) conditions: Vec<Condition>,
}

/// Adds Gateways and their routes to the table; the caller settles it when all are in.
pub(crate) fn add(table: &mut Table, input: &Input<'_>, resolver: &Resolver<'_>) -> Output {
    let mut output = Output::default();
    let mut taken: BTreeMap<u16, String> = BTreeMap::new();
    for gateway in input.gateways {
        let listeners = listeners(table, gateway, input, resolver, &mut taken);
        output.gateways.insert(place(&gateway.metadata), listeners);
    }
    for route in &routes(input) {
        let ours = route
            .spec
            .parent_refs
            .iter()
            .filter(|parent| is_gateway(parent));
        let built = OnceCell::new();
        let mut states = Vec::new();
        for parent in ours {
            let namespace = parent
                .namespace
                .clone()
                .or_else(|| route.metadata.namespace.clone());
            let key = (namespace.unwrap_or_default(), parent.name.clone());
            let gateway = input
                .gateways
                .iter()
                .find(|one| place(&one.metadata) == key);
            let (Some(gateway), Some(listeners)) = (gateway, output.gateways.get_mut(&key)) else {
                continue;
            };
            let built = built.get_or_init(|| rules::build(route, input.grants, resolver));
            let mut attaching = Attaching {
                table,
                input,
                gateway,
                route,
                parent,
            };
            states.push(attaching.attach(listeners, built));
        }
        if !states.is_empty() {
            let key = (route.kind, place(route.metadata));
            output.routes.insert(key, states);
        }
    }
    output
}

/// All routes, the oldest first.
fn routes<'a>(input: &Input<'a>) -> Vec<Route<'a>> {
    let http = input.routes.iter().map(|route| Route {
        kind: Kind::Http,
        metadata: &route.metadata,
        spec: Cow::Borrowed(&route.spec),
    });
    let grpc = input.grpc_routes.iter().map(|route| Route {
        kind: Kind::Grpc,
        metadata: &route.metadata,
        spec: Cow::Owned(grpc::as_http(&route.spec)),
    });
    let mut all: Vec<Route<'a>> = http.chain(grpc).collect();
    all.sort_by_cached_key(|route| age(route.metadata));
    all
}

/// Where an object stands: its namespace and name.
pub(super) fn place(meta: &ObjectMeta) -> (String, String) {
    (
        meta.namespace.clone().unwrap_or_default(),
        meta.name.clone().unwrap_or_default(),
    )
}

fn is_gateway(parent: &ParentRef) -> bool {
    parent.group.as_deref().unwrap_or(GROUP) == GROUP
        && parent.kind.as_deref().unwrap_or("Gateway") == "Gateway"
}

/// Which port of the table a listener means.
fn port_of(listener: &Listener) -> Option<Port> {
    match (listener.protocol.as_str(), listener.port) {
        ("HTTP", 80) => Some(Port::Http),
        ("HTTPS", 443) => Some(Port::Https),
        ("HTTP", port) => Some(Port::Other(port, false)),
        ("HTTPS", port) => Some(Port::Other(port, true)),
        _ => None,
    }
}

fn listeners(
    table: &mut Table,
    gateway: &Gateway,
    input: &Input<'_>,
    resolver: &Resolver<'_>,
    taken: &mut BTreeMap<u16, String>,
) -> Vec<ListenerState> {
    let mut states: Vec<ListenerState> = Vec::new();
    for (index, listener) in gateway.spec.listeners.iter().enumerate() {
        let mut state = ListenerState {
            name: listener.name.clone(),
            port: port_of(listener),
            kinds: Kind::ALL.to_vec(),
            hosts: Vec::new(),
            attached: 0,
            conditions: Vec::new(),
        };
        let protocol = taken
            .entry(listener.port)
            .or_insert_with(|| listener.protocol.clone());
        let twin =
            |other: &Listener| other.port == listener.port && other.hostname == listener.hostname;
        let conflict = if *protocol != listener.protocol {
            let message = format!("Port {} is taken for {protocol}.", listener.port);
            Some(Condition {
                holds: true,
                ..Condition::fails("Conflicted", "ProtocolConflict", message)
            })
        } else if gateway.spec.listeners[..index].iter().any(twin) {
            let message = "Another listener has the same port and hostname.";
            Some(Condition {
                holds: true,
                ..Condition::fails("Conflicted", "HostnameConflict", message)
            })
        } else {
            None
        };
        if state.port.is_none() {
            state.kinds.clear();
            let message = format!(
                "Protocol {} is not served, HTTP and HTTPS are.",
                listener.protocol
            );
            state
                .conditions
                .push(Condition::fails("Accepted", "UnsupportedProtocol", message));
        } else if let Some(conflict) = conflict {
            state.port = None;
            let why = conflict.message.clone();
            state
                .conditions
                .push(Condition::fails("Accepted", conflict.reason, why));
            state.conditions.push(conflict);
        } else {
            state
                .conditions
                .push(Condition::holds("Accepted", "Accepted"));
            state.conditions.push(Condition {
                holds: false,
                ..Condition::holds("Conflicted", "NoConflicts")
            });
        }
        let references = references(table, gateway, listener, &mut state, input, resolver);
        state.conditions.push(references);
        if let Some(port) = state.port {
            table.ports.entry(port).or_default();
        }
        states.push(state);
    }
    states
}

/// Whether what a listener names is there; its certificates go into the table.
fn references(
    table: &mut Table,
    gateway: &Gateway,
    listener: &Listener,
    state: &mut ListenerState,
    input: &Input<'_>,
    resolver: &Resolver<'_>,
) -> Condition {
    let kinds = listener
        .allowed_routes
        .as_ref()
        .map(|allowed| allowed.kinds.as_slice())
        .unwrap_or_default();
    let is = |kind: &RouteKind, served: &Kind| {
        kind.kind == served.name() && kind.group.as_deref().unwrap_or(GROUP) == GROUP
    };
    if !kinds.is_empty() {
        state
            .kinds
            .retain(|served| kinds.iter().any(|kind| is(kind, served)));
    }
    if let Some(port) = state.port.filter(|port| port.is_tls()) {
        match certificates(gateway, listener, input, resolver) {
            Ok(all) => {
                let ports = table.ports.entry(port).or_default();
                let host = listener
                    .hostname
                    .as_deref()
                    .map_or(HostPattern::Any, HostPattern::of_gateway);
                for certificate in all {
                    ports.certificates.insert_first(host.clone(), certificate);
                }
            }
            Err(failed) => {
                // Without its certificate nothing must be served there.
                state.port = None;
                return failed;
            }
        }
    }
    let good = |kind: &RouteKind| Kind::ALL.iter().any(|served| is(kind, served));
    if !kinds.iter().all(good) {
        let message = "Only HTTPRoutes and GRPCRoutes are served.";
        return Condition::fails("ResolvedRefs", "InvalidRouteKinds", message);
    }
    Condition::holds("ResolvedRefs", "ResolvedRefs")
}

fn certificates(
    gateway: &Gateway,
    listener: &Listener,
    input: &Input<'_>,
    resolver: &Resolver<'_>,
) -> Result<Vec<Arc<CertifiedKey>>, Condition> {
    let invalid =
        |message: String| Condition::fails("ResolvedRefs", "InvalidCertificateRef", message);
    let tls = listener.tls.clone().unwrap_or_default();
    if tls.mode.as_deref() == Some("Passthrough") {
        return Err(invalid(
            "TLS is ended here (Terminate), not passed through.".into(),
        ));
    }
    if tls.certificate_refs.is_empty() {
        return Err(invalid("The listener names no certificate.".into()));
    }
    let own = gateway.metadata.namespace.as_deref().unwrap_or_default();
    let mut all = Vec::new();
    for reference in &tls.certificate_refs {
        let is_secret = reference.kind.as_deref().unwrap_or("Secret") == "Secret"
            && reference.group.as_deref().unwrap_or_default().is_empty();
        if !is_secret {
            return Err(invalid(format!("{} is no Secret.", reference.name)));
        }
        let namespace = reference.namespace.as_deref().unwrap_or(own);
        if !granted(
            input.grants,
            (GROUP, "Gateway", own),
            ("Secret", namespace, &reference.name),
        ) {
            let message = format!(
                "No ReferenceGrant lets Gateways of {own} use Secret {namespace}/{}.",
                reference.name
            );
            return Err(Condition::fails("ResolvedRefs", "RefNotPermitted", message));
        }
        all.push(
            resolver
                .certificate(namespace, &reference.name)
                .map_err(invalid)?,
        );
    }
    Ok(all)
}

/// Whether an object of one namespace may name one of another: `from` is group, kind and namespace, `to` kind, namespace and name.
fn granted(
    grants: &[Arc<ReferenceGrant>],
    from: (&str, &str, &str),
    to: (&str, &str, &str),
) -> bool {
    if from.2 == to.1 {
        return true;
    }
    grants
        .iter()
        .filter(|grant| grant.metadata.namespace.as_deref() == Some(to.1))
        .any(|grant| {
            let from_fits = grant.spec.from.iter().any(|one| {
                (
                    one.group.as_str(),
                    one.kind.as_str(),
                    one.namespace.as_str(),
                ) == from
            });
            let to_fits = |one: &super::types::GrantTo| {
                one.group.is_empty()
                    && one.kind == to.0
                    && one.name.as_deref().is_none_or(|name| name == to.2)
            };
            from_fits && grant.spec.to.iter().any(to_fits)
        })
}

/// One route and one of its parents.
struct Attaching<'a, 'r> {
    table: &'a mut Table,
    input: &'a Input<'r>,
    gateway: &'a Gateway,
    route: &'a Route<'r>,
    parent: &'a ParentRef,
}

impl Attaching<'_, '_> {
    fn attach(&mut self, listeners: &mut [ListenerState], built: &Built) -> ParentState {
        let accepted = match self.hosts(listeners) {
            Err(failed) => failed,
            Ok(found) => {
                for (index, hosts) in found {
                    listeners[index].attached += 1;
                    let own = hosts.iter().map(|host| (self.route.kind, host.clone()));
                    listeners[index].hosts.extend(own);
                    let Some(port) = listeners[index].port else {
                        continue;
                    };
                    let served = self.table.ports.entry(port).or_default();
                    for host in hosts {
                        let routes = served.hosts.entry(host);
                        for one in &built.routes {
                            if !routes.iter().any(|known| Arc::ptr_eq(known, one)) {
                                routes.push(Arc::clone(one));
                            }
                        }
                    }
                }
                built.accepted.clone()
            }
        };
        ParentState {
            parent: self.parent.clone(),
            conditions: vec![accepted, built.resolved.clone()],
        }
    }

    /// The listeners that take the route, by index, with its hosts there.
    fn hosts(
        &self,
        listeners: &[ListenerState],
    ) -> Result<Vec<(usize, Vec<HostPattern>)>, Condition> {
        let named = |listener: &Listener| {
            self.parent
                .section_name
                .as_ref()
                .is_none_or(|name| *name == listener.name)
                && self.parent.port.is_none_or(|port| port == listener.port)
        };
        let all = self.gateway.spec.listeners.iter().enumerate();
        let named: Vec<_> = all.filter(|(_, listener)| named(listener)).collect();
        if named.is_empty() {
            let message = "The Gateway has no such listener.";
            return Err(Condition::fails("Accepted", "NoMatchingParent", message));
        }
        let allowed: Vec<_> = named
            .into_iter()
            .filter(|(index, listener)| {
                listeners[*index].kinds.contains(&self.route.kind) && self.is_allowed(listener)
            })
            .collect();
        if allowed.is_empty() {
            let message = "No listener allows routes of this kind and namespace.";
            return Err(Condition::fails(
                "Accepted",
                "NotAllowedByListeners",
                message,
            ));
        }
        let found: Vec<_> = allowed
            .into_iter()
            .map(|(index, listener)| {
                (
                    index,
                    intersect(listener.hostname.as_deref(), &self.route.spec.hostnames),
                )
            })
            .filter(|(_, hosts)| !hosts.is_empty())
            .collect();
        if found.is_empty() {
            let message = "No listener has one of the route's hostnames.";
            return Err(Condition::fails(
                "Accepted",
                "NoMatchingListenerHostname",
                message,
            ));
        }
        // Of two kinds of routes for one host on one listener the older holds it.
        let is_free = |(index, hosts): &(usize, Vec<HostPattern>)| {
            let mut others = listeners[*index]
                .hosts
                .iter()
                .filter(|(kind, _)| *kind != self.route.kind);
            !others.any(|(_, taken)| hosts.iter().any(|host| overlap(host, taken)))
        };
        let free: Vec<_> = found.into_iter().filter(is_free).collect();
        if free.is_empty() {
            let message = "An older route of another kind has one of these hostnames.";
            return Err(Condition::fails("Accepted", "HostnameConflict", message));
        }
        Ok(free)
    }

    fn is_allowed(&self, listener: &Listener) -> bool {
        let namespaces = listener
            .allowed_routes
            .as_ref()
            .and_then(|allowed| allowed.namespaces.as_ref());
        let route = self.route.metadata.namespace.as_deref().unwrap_or_default();
        match namespaces
            .and_then(|namespaces| namespaces.from.as_deref())
            .unwrap_or("Same")
        {
            "All" => true,
            "None" => false,
            "Selector" => {
                let selector = namespaces.and_then(|namespaces| namespaces.selector.as_ref());
                let labels = (self.input.labels)(route);
                selector.is_some_and(|selector| {
                    Selector::try_from(selector.clone())
                        .is_ok_and(|selector| selector.matches(&labels))
                })
            }
            _ => self.gateway.metadata.namespace.as_deref() == Some(route),
        }
    }
}
