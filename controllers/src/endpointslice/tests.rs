use super::*;

use k8s_openapi::api::discovery::v1::EndpointPort;
use serde_json::{Value, json};

fn from<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn pod(name: &str, ip: &str, ready: bool, spec: Value) -> Arc<Pod> {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "ns", "uid": name, "labels": {"app": "web"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
    });
    for (field, value) in spec.as_object().unwrap() {
        pod["spec"][field] = value.clone();
    }
    Arc::new(from(pod))
}

fn service(spec: Value) -> Service {
    let mut service = json!({
        "metadata": {"name": "web", "namespace": "ns", "labels": {"l": "v"}},
        "spec": {"type": "ClusterIP", "selector": {"app": "web"}, "ipFamilies": ["IPv4"],
            "ports": [{"name": "web", "port": 80, "targetPort": "http", "protocol": "TCP"}]},
    });
    for (field, value) in spec.as_object().unwrap() {
        service["spec"][field] = value.clone();
    }
    from(service)
}

fn node(name: &str) -> Option<Arc<Node>> {
    Some(Arc::new(from(
        json!({"metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": "z1"}}}),
    )))
}

/// `address:ports ready/serving/terminating`, one word per endpoint.
fn told(groups: &[slices::Group]) -> Vec<String> {
    let mut all = Vec::new();
    for group in groups {
        let number = |port: &EndpointPort| port.port.unwrap_or_default().to_string();
        let ports: Vec<String> = group.ports.iter().map(number).collect();
        for endpoint in &group.endpoints {
            let conditions = endpoint.conditions.clone().unwrap();
            let flag = |value: Option<bool>| if value.unwrap() { "+" } else { "-" };
            all.push(format!(
                "{}:{} {}{}{}",
                endpoint.addresses.join(","),
                ports.join(","),
                flag(conditions.ready),
                flag(conditions.serving),
                flag(conditions.terminating)
            ));
        }
    }
    all
}

#[test]
fn endpoints_say_in_which_state_they_are() {
    let mut ending = (*pod("e", "10.0.0.5", true, json!({}))).clone();
    ending.metadata.deletion_timestamp = Some(from(json!("2026-06-01T12:00:00Z")));
    let mut done = (*pod("d", "10.0.0.6", true, json!({}))).clone();
    done.status.as_mut().unwrap().phase = Some("Succeeded".into());
    let pods = [
        pod("a", "10.0.0.1", true, json!({})),
        pod("b", "10.0.0.2", false, json!({})),
        pod("c", "fd00::3", true, json!({})),
        pod("n", "", false, json!({})),
        Arc::new(ending),
        Arc::new(done),
    ];
    let cases: &[(&str, Value, &[&str])] = &[
        (
            "ready, not ready, terminating",
            json!({}),
            &[
                "10.0.0.1:8080 ++-",
                "10.0.0.2:8080 ---",
                "10.0.0.5:8080 -++",
            ],
        ),
        (
            "everyone is published",
            json!({"publishNotReadyAddresses": true}),
            &[
                "10.0.0.1:8080 ++-",
                "10.0.0.2:8080 +--",
                "10.0.0.5:8080 +++",
            ],
        ),
        (
            "the other family",
            json!({"ipFamilies": ["IPv6"]}),
            &["fd00::3:8080 ++-"],
        ),
        (
            "a port that no container names",
            json!({"ipFamilies": ["IPv6"], "ports": [{"port": 80, "targetPort": "other"}]}),
            &["fd00::3: ++-"],
        ),
        (
            "a port by number",
            json!({"ipFamilies": ["IPv6"], "ports": [{"port": 80, "targetPort": 9}]}),
            &["fd00::3:9 ++-"],
        ),
        (
            "headless without ports",
            json!({"ipFamilies": ["IPv6"], "clusterIP": "None", "ports": []}),
            &["fd00::3: ++-"],
        ),
    ];
    for (case, spec, expected) in cases {
        let groups = plan::groups(&service(spec.clone()), &pods, &node);
        assert_eq!(told(&groups), *expected, "case: {case}");
    }
}

#[test]
fn endpoints_know_their_zone_their_name_and_whom_they_serve() {
    let named = json!({"hostname": "zero", "subdomain": "web"});
    let elsewhere = json!({"hostname": "zero", "subdomain": "other"});
    let pods = [
        pod("a", "10.0.0.1", true, named),
        pod("b", "10.0.0.2", true, elsewhere),
    ];
    let groups = plan::groups(
        &service(json!({"trafficDistribution": "PreferSameNode"})),
        &pods,
        &node,
    );
    let endpoint = &groups[0].endpoints[0];
    assert_eq!(endpoint.zone.as_deref(), Some("z1"));
    assert_eq!(endpoint.hostname.as_deref(), Some("zero"));
    assert_eq!(groups[0].endpoints[1].hostname, None);
    let hints = serde_json::to_value(endpoint.hints.as_ref().unwrap()).unwrap();
    assert_eq!(
        hints,
        json!({"forZones": [{"name": "z1"}], "forNodes": [{"name": "n1"}]})
    );
    let template = plan::template(&service(json!({"clusterIP": "None"})));
    let labels = serde_json::to_value(&template.labels).unwrap();
    assert_eq!(
        labels,
        json!({"l": "v", SERVICE_NAME: "web", MANAGED_BY: plan::MANAGER, HEADLESS: ""})
    );
}
