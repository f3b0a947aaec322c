//! Services that change their type: what the old type had and the new one cannot have is dropped, if the client did not
//! change it as well. So `kubectl patch` of the type alone works.

use super::{copy_field, take_from};
use serde_json::{Map, Value};

fn kind(service: &Value) -> &str {
    service
        .pointer("/spec/type")
        .and_then(Value::as_str)
        .unwrap_or("ClusterIP")
}

fn has_node_ports(service: &Value) -> bool {
    matches!(kind(service), "NodePort" | "LoadBalancer")
}

fn is_balanced(service: &Value) -> bool {
    kind(service) == "LoadBalancer"
}

fn needs_health_check(service: &Value) -> bool {
    let policy = service.pointer("/spec/externalTrafficPolicy");
    is_balanced(service) && policy.and_then(Value::as_str) == Some("Local")
}

fn is_external(service: &Value) -> bool {
    let ips = service
        .pointer("/spec/externalIPs")
        .and_then(Value::as_array);
    has_node_ports(service)
        || kind(service) == "ClusterIP" && ips.is_some_and(|ips| !ips.is_empty())
}

/// `clusterIP` is the first of `clusterIPs`: what a client says about the one holds for the other.
pub(super) fn mirror_address(service: &mut Value, old: Option<&Value>) {
    let (ip, list) = (
        spec_field(service, "clusterIP"),
        spec_field(service, "clusterIPs"),
    );
    let before = |field| old.and_then(|old| spec_field(old, field));
    let untouched = list.is_none() || old.is_some() && list == before("clusterIPs");
    if kind(service) == "ExternalName" || !untouched {
        return;
    }
    let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    match ip {
        Some(ip) if list.is_none() || Some(&ip) != before("clusterIP").as_ref() => {
            spec.insert("clusterIPs".to_owned(), Value::from(vec![ip]));
        }
        _ => {}
    }
}

/// Drops what no longer fits the type.
pub(super) fn drop_unfit(new: &mut Value, old: &Value) {
    let addressed = |service: &Value| kind(service) != "ExternalName";
    if addressed(old) && !addressed(new) {
        if same(new, old, "clusterIP") && same(new, old, "clusterIPs") {
            drop_spec(new, &["clusterIP", "clusterIPs"]);
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            drop_same(new, old, field);
        }
    }
    if has_node_ports(old) && !has_node_ports(new) {
        drop_node_ports(new, old);
    }
    if needs_health_check(old) && !needs_health_check(new) {
        drop_same(new, old, "healthCheckNodePort");
    }
    if is_balanced(old) && !is_balanced(new) {
        for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            drop_same(new, old, field);
        }
    }
    if is_external(old) && !is_external(new) {
        drop_same(new, old, "externalTrafficPolicy");
    }
    if !is_balanced(new) && old.get("status").is_some() {
        let mut status = old.get("status").cloned().unwrap_or_default();
        if let Some(status) = status.as_object_mut() {
            status.insert("loadBalancer".to_owned(), Value::Object(Map::new()));
        }
        let holder = serde_json::json!({"status": status});
        copy_field(new, &holder, "status");
    }
}

fn spec_field(service: &Value, field: &str) -> Option<Value> {
    service.get("spec").and_then(|spec| take_from(spec, field))
}

fn same(new: &Value, old: &Value, field: &str) -> bool {
    spec_field(new, field) == spec_field(old, field)
}

fn drop_same(new: &mut Value, old: &Value, field: &str) {
    if same(new, old, field) {
        drop_spec(new, &[field]);
    }
}

fn drop_spec(service: &mut Value, fields: &[&str]) {
    if let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) {
        for field in fields {
            spec.remove(*field);
        }
    }
}

fn node_ports(service: &Value) -> Vec<i64> {
    let ports = service.pointer("/spec/ports").and_then(Value::as_array);
    ports
        .into_iter()
        .flatten()
        .filter_map(|port| port.get("nodePort")?.as_i64())
        .collect()
}

fn drop_node_ports(new: &mut Value, old: &Value) {
    let had = node_ports(old);
    if !node_ports(new).iter().all(|port| had.contains(port)) {
        return;
    }
    let ports = new.pointer_mut("/spec/ports").and_then(Value::as_array_mut);
    for port in ports.into_iter().flatten().filter_map(Value::as_object_mut) {
        port.remove("nodePort");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_service_that_changes_its_type_loses_what_the_old_type_had() {
        let old = json!({"spec": {"type": "LoadBalancer", "clusterIP": "10.0.0.1", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30001,
            "allocateLoadBalancerNodePorts": true, "ports": [{"port": 80, "nodePort": 30080}]}});
        let mut new = old.clone();
        new["spec"]["type"] = json!("ClusterIP");
        drop_unfit(&mut new, &old);
        assert_eq!(
            new,
            json!({"spec": {"type": "ClusterIP", "clusterIP": "10.0.0.1", "ports": [{"port": 80}]}})
        );
        let mut named = old.clone();
        named["spec"]["type"] = json!("ExternalName");
        drop_unfit(&mut named, &old);
        assert_eq!(named["spec"].get("clusterIP"), None);
        let mut moved = old.clone();
        moved["spec"]["type"] = json!("ClusterIP");
        moved["spec"]["ports"][0]["nodePort"] = json!(30081);
        drop_unfit(&mut moved, &old);
        assert_eq!(
            moved["spec"]["ports"][0]["nodePort"],
            json!(30081),
            "the client asked for it"
        );
    }
}
