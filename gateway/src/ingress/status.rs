//! What `status.loadBalancer` of our Ingresses shows: where their requests are taken. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::networking::v1::Ingress;
use serde_json::{Value, json};

use crate::peers::Peers;
use crate::table::Port;

/// The status as it has to be.
pub(crate) fn wished(ip: IpAddr, open: &BTreeMap<Port, SocketAddr>, tls: bool) -> Value {
    let shown = |port: &Port| match port {
        Port::Http => true,
        Port::Https => tls,
        Port::Other(..) => false,
    };
    let ports: Vec<Value> = open
        .iter()
        .filter(|(port, _)| shown(port))
        .map(|(_, addr)| json!({"port": addr.port(), "protocol": "TCP"}))
        .collect();
    match ports.is_empty() {
        true => json!([]),
        false => json!([{"ip": ip, "ports": ports}]),
    }
}

/// What all gateways say together, as this one knows it: its own, and what those said that are still there.
pub(crate) fn merged(present: &Value, ip: IpAddr, own: Value, peers: &Peers) -> Value {
    let of_others = |entry: &&Value| {
        let said = entry["ip"].as_str().and_then(|text| text.parse().ok());
        said.is_some_and(|said: IpAddr| said != ip && peers.keeps(said))
    };
    let others = present.as_array().into_iter().flatten().filter(of_others);
    let mut all: Vec<Value> = others.cloned().collect();
    if let (true, Value::Array(own)) = (peers.counts(), own) {
        all.extend(own);
    }
    all.sort_by_key(|entry| entry["ip"].as_str().map(str::to_owned));
    json!(all)
}

/// The status as it is.
pub(crate) fn present(ingress: &Ingress) -> Value {
    let balancer = ingress
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref());
    let shown = balancer.and_then(|balancer| balancer.ingress.as_ref());
    shown.map_or_else(|| json!([]), |shown| json!(shown))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gateway_says_its_own() {
        let entry = |ip: &str| json!({"ip": ip, "ports": [{"port": 80, "protocol": "TCP"}]});
        let node = |name: &str, ip: &str| {
            let node = json!({"metadata": {"name": name, "labels": {"coxswain.dev/gateway": "true"}}, "status": {
                "conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": ip}]}});
            std::sync::Arc::new(serde_json::from_value(node).unwrap())
        };
        let mut peers = Peers::new("b");
        peers.read(&[node("a", "192.0.2.1"), node("b", "192.0.2.2")]);
        let own: IpAddr = "192.0.2.2".parse().unwrap();
        let present = json!([entry("192.0.2.1"), entry("192.0.2.9"), {"hostname": "old.example"}]);
        let first = merged(&present, own, json!([entry("192.0.2.2")]), &peers);
        assert_eq!(first, json!([entry("192.0.2.1"), entry("192.0.2.2")]));
        let again = merged(&first, own, json!([entry("192.0.2.2")]), &peers);
        assert_eq!(again, first, "settled");
        let closed = merged(&first, own, json!([]), &peers);
        assert_eq!(closed, json!([entry("192.0.2.1")]));
    }

    #[test]
    fn where_requests_are_taken() {
        let ip: IpAddr = "192.0.2.1".parse().unwrap();
        let at = |port: u16| SocketAddr::new(ip, port);
        let open = BTreeMap::from([
            (Port::Http, at(8080)),
            (Port::Https, at(443)),
            (Port::Other(9000, false), at(9000)),
        ]);
        let both = wished(ip, &open, true);
        assert_eq!(
            both,
            json!([{"ip": "192.0.2.1", "ports": [{"port": 8080, "protocol": "TCP"}, {"port": 443, "protocol": "TCP"}]}])
        );
        let ingress = json!({"status": {"loadBalancer": {"ingress": both}}});
        let ingress: Ingress = serde_json::from_value(ingress).unwrap();
        assert_eq!(
            present(&ingress),
            both,
            "what was written reads as what was wished: a settled Ingress is not written"
        );
        assert_eq!(wished(ip, &BTreeMap::new(), true), json!([]));
        assert_eq!(present(&Ingress::default()), json!([]));
    }
}
