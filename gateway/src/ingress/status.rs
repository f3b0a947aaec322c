//! What `status.loadBalancer` of our Ingresses shows: where their requests are taken. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::networking::v1::Ingress;
use serde_json::{Value, json};

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
