//! The statuses of GatewayClasses, Gateways and routes as they have to be. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::CONTROLLER;
use super::compile::{ListenerState, ParentState};
use super::conditions::{Condition, render};
use super::types::{GROUP, Gateway, GatewayClass};
use crate::table::Port;

/// Where requests are taken.
#[derive(Debug)]
pub(crate) struct Served<'a> {
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) open: &'a BTreeMap<Port, SocketAddr>,
    /// Ports that cannot be opened, and why.
    pub(crate) closed: &'a BTreeMap<Port, String>,
}

fn generation(meta: &ObjectMeta) -> i64 {
    meta.generation.unwrap_or_default()
}

/// Of a class of ours.
pub(super) fn class(class: &GatewayClass, now: &str) -> Value {
    let accepted = [Condition::holds("Accepted", "Accepted")];
    let conditions = render(
        &accepted,
        &class.status["conditions"],
        generation(&class.metadata),
        now,
    );
    json!({ "conditions": conditions })
}

/// Of a Gateway of ours.
pub(super) fn gateway(
    gateway: &Gateway,
    listeners: &[ListenerState],
    served: &Served<'_>,
    now: &str,
) -> Value {
    let at = generation(&gateway.metadata);
    let before = |name: &str| {
        let all = gateway.status["listeners"].as_array();
        let mut named = all.into_iter().flatten().filter(|one| one["name"] == name);
        named
            .next()
            .map_or(Value::Null, |one| one["conditions"].clone())
    };
    let rendered: Vec<Value> = listeners
        .iter()
        .map(|listener| {
            let mut conditions = listener.conditions.clone();
            conditions.push(programmed(listener, served));
            let kinds = listener.kinds.iter();
            let kinds: Vec<Value> = kinds
                .map(|kind| json!({"group": GROUP, "kind": kind.name()}))
                .collect();
            json!({"name": listener.name, "supportedKinds": kinds, "attachedRoutes": listener.attached,
                "conditions": render(&conditions, &before(&listener.name), at, now)})
        })
        .collect();
    let some = listeners
        .iter()
        .any(|listener| programmed(listener, served).holds);
    let all = listeners.iter().all(|listener| {
        listener
            .conditions
            .iter()
            .all(|one| one.kind == "Conflicted" || one.holds)
    });
    let accepted = match all {
        true => Condition::holds("Accepted", "Accepted"),
        false => Condition {
            message: "Not all listeners are valid.".into(),
            ..Condition::holds("Accepted", "ListenersNotValid")
        },
    };
    let ready = match some {
        true => Condition::holds("Programmed", "Programmed"),
        false => Condition::fails("Programmed", "Invalid", "No listener is served."),
    };
    let taken_at = served.ips.iter().filter(|_| some);
    let addresses: Vec<Value> = taken_at
        .map(|ip| json!({"type": "IPAddress", "value": ip}))
        .collect();
    json!({
        "addresses": addresses,
        "conditions": render(&[accepted, ready], &gateway.status["conditions"], at, now),
        "listeners": rendered,
    })
}

/// Whether a listener takes requests, and on which port of the node where that is another one.
fn programmed(listener: &ListenerState, served: &Served<'_>) -> Condition {
    let Some(port) = listener.port else {
        return Condition::fails("Programmed", "Invalid", "The listener is not valid.");
    };
    match served.open.get(&port) {
        Some(addr) => Condition {
            message: format!("Requests are taken at {addr}."),
            ..Condition::holds("Programmed", "Programmed")
        },
        None => match served.closed.get(&port) {
            Some(why) => Condition::fails(
                "Programmed",
                "PortUnavailable",
                format!("Requests cannot be taken: {why}."),
            ),
            None => Condition::fails(
                "Programmed",
                "Pending",
                "The port of the node is not open yet.",
            ),
        },
    }
}

/// Of a route; null where nothing is to be written.
pub(super) fn route(meta: &ObjectMeta, status: &Value, states: &[ParentState], now: &str) -> Value {
    let before = status["parents"].as_array().cloned().unwrap_or_default();
    let ours = |entry: &&Value| entry["controllerName"] == CONTROLLER;
    if states.is_empty() && !before.iter().any(|entry| ours(&entry)) {
        return Value::Null;
    }
    let mut parents: Vec<Value> = before
        .iter()
        .filter(|entry| !ours(entry))
        .cloned()
        .collect();
    for state in states {
        let reference = json!(state.parent);
        let known = before
            .iter()
            .filter(ours)
            .find(|entry| entry["parentRef"] == reference);
        let known = known.map_or(Value::Null, |entry| entry["conditions"].clone());
        let conditions = render(&state.conditions, &known, generation(meta), now);
        parents.push(
            json!({"parentRef": reference, "controllerName": CONTROLLER, "conditions": conditions}),
        );
    }
    json!({ "parents": parents })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway_api::compile::Kind;
    use crate::gateway_api::types::HTTPRoute;

    #[test]
    fn a_settled_gateway_is_not_written() {
        let mut object: Gateway =
            serde_json::from_value(json!({"metadata": {"generation": 3}})).unwrap();
        let open = BTreeMap::from([(Port::Http, "127.0.0.1:8080".parse().unwrap())]);
        let closed = BTreeMap::from([(
            Port::Https,
            "port 443 of the node cannot be opened".to_owned(),
        )]);
        let served = Served {
            ips: vec![[127, 0, 0, 1].into()],
            open: &open,
            closed: &closed,
        };
        let listener = |name: &str, port| ListenerState {
            name: name.into(),
            port,
            kinds: Kind::ALL.to_vec(),
            hosts: Vec::new(),
            attached: 2,
            conditions: vec![Condition::holds("Accepted", "Accepted")],
        };
        let listeners = [
            listener("web", Some(Port::Http)),
            listener("tls", Some(Port::Https)),
        ];
        let first = gateway(&object, &listeners, &served, "t1");
        assert_eq!(first["addresses"][0]["value"], "127.0.0.1");
        assert_eq!(
            first["listeners"][0]["conditions"][1]["message"],
            "Requests are taken at 127.0.0.1:8080."
        );
        assert_eq!(
            first["listeners"][1]["conditions"][1]["message"],
            "Requests cannot be taken: port 443 of the node cannot be opened."
        );
        object.status = first.clone();
        assert_eq!(gateway(&object, &listeners, &served, "t2"), first);
    }

    #[test]
    fn what_others_say_of_a_route_stays() {
        let theirs = json!({"parentRef": {"name": "x"}, "controllerName": "example.com/other", "conditions": []});
        let object = json!({"status": {"parents": [theirs]}});
        let mut object: HTTPRoute = serde_json::from_value(object).unwrap();
        let route = |object: &HTTPRoute, states: &[ParentState]| {
            route(&object.metadata, &object.status, states, "t")
        };
        assert_eq!(route(&object, &[]), Value::Null);
        let state = ParentState {
            parent: serde_json::from_value(json!({"name": "g"})).unwrap(),
            conditions: vec![Condition::holds("Accepted", "Accepted")],
        };
        let wished = route(&object, &[state]);
        assert_eq!(wished["parents"][0], theirs);
        assert_eq!(wished["parents"][1]["parentRef"], json!({"name": "g"}));
        object.status = wished;
        assert_eq!(
            route(&object, &[])["parents"].as_array().unwrap().len(),
            1,
            "ours goes with the Gateway"
        );
    }
}
