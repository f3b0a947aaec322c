//! What Services are given, through the API: addresses, node ports, and both free again.

use super::*;

const SERVICES: &str = "/api/v1/namespaces/a/services";
const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";

fn service(name: &str, spec: &Value) -> Value {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80}]},
    });
    for (field, value) in spec.as_object().into_iter().flatten() {
        service["spec"][field] = value.clone();
    }
    service
}

#[tokio::test]
async fn a_service_gets_an_address_and_gives_it_back() {
    let server = Server::with_namespace().await;
    let made = server
        .post(SERVICES, &service("x", &json!({})))
        .await
        .ok(201);
    let ip = made["spec"]["clusterIP"].as_str().unwrap().to_owned();
    assert_eq!(made["spec"]["clusterIPs"], json!([ip]));
    assert_eq!(made["spec"]["ipFamilies"], json!(["IPv4"]));
    assert_eq!(made["spec"]["ipFamilyPolicy"], "SingleStack");
    assert!(ip.starts_with("10.96."), "{ip}");
    let held = server.get(&format!("{ADDRESSES}/{ip}")).await.ok(200);
    assert_eq!(
        held["spec"]["parentRef"],
        json!({"group": "", "resource": "services", "namespace": "a", "name": "x"})
            .as_object()
            .map(|parent| {
                let mut parent = parent.clone();
                parent.retain(|field, _| held["spec"]["parentRef"].get(field).is_some());
                Value::Object(parent)
            })
            .unwrap()
    );
    let same = service("y", &json!({"clusterIP": ip}));
    let refused = server.post(SERVICES, &same).await.failure();
    assert_eq!(
        (refused.0, refused.2),
        (
            422,
            format!(
                "Service \"y\" is invalid: spec.clusterIPs: Invalid value: [\"{ip}\"]: failed to allocate IP {ip}: provided IP is already allocated"
            )
        )
    );
    server.delete(&format!("{SERVICES}/x")).await.ok(200);
    assert_eq!(server.get(&format!("{ADDRESSES}/{ip}")).await.code, 404);
    server.post(SERVICES, &same).await.ok(201);
    let outside = service("z", &json!({"clusterIP": "192.0.2.1"}));
    let refused = server.post(SERVICES, &outside).await.failure();
    assert_eq!(
        refused.2,
        "Service \"z\" is invalid: spec.clusterIPs: Invalid value: [\"192.0.2.1\"]: failed to allocate IP 192.0.2.1: the provided IP (192.0.2.1) is not in the valid range. The range of valid IPs is 10.96.0.0/16"
    );
    let headless = service("h", &json!({"clusterIP": "None"}));
    let made = server.post(SERVICES, &headless).await.ok(201);
    assert_eq!(made["spec"]["clusterIPs"], json!(["None"]));
}

#[tokio::test]
async fn node_ports_come_and_go_with_the_type() {
    let server = Server::with_namespace().await;
    let two = json!({"type": "NodePort", "ports": [
        {"name": "t", "port": 53, "protocol": "TCP"}, {"name": "u", "port": 53, "protocol": "UDP"}]});
    let made = server.post(SERVICES, &service("x", &two)).await.ok(201);
    let port = made["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
    assert!((30_086..=32_767).contains(&port), "{port}");
    assert_eq!(
        made["spec"]["ports"][1]["nodePort"], port,
        "one number for both protocols"
    );
    let same = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]});
    let refused = server.post(SERVICES, &service("y", &same)).await.failure();
    assert_eq!(
        refused.2,
        format!(
            "Service \"y\" is invalid: spec.ports[0].nodePort: Invalid value: {port}: provided port is already allocated"
        )
    );
    // A refused Service leaves nothing behind.
    let held = server.get(ADDRESSES).await.ok(200);
    let owners = held["items"].as_array().unwrap().iter();
    assert_eq!(
        owners
            .filter(|one| one["spec"]["parentRef"]["name"] == "y")
            .count(),
        0
    );
    let path = format!("{SERVICES}/x");
    let plain = json!({"spec": {"type": "ClusterIP"}});
    let changed = server.merge(&path, &plain).await.ok(200);
    assert_eq!(
        changed["spec"]["clusterIP"], made["spec"]["clusterIP"],
        "the address stays"
    );
    assert!(changed["spec"]["ports"][0]["nodePort"].is_null());
    server.post(SERVICES, &service("y", &same)).await.ok(201);
    let named = json!({"spec": {"type": "ExternalName", "externalName": "example.org"}});
    let changed = server.merge(&path, &named).await.ok(200);
    assert!(changed["spec"]["clusterIP"].is_null(), "{changed}");
    let ip = made["spec"]["clusterIP"].as_str().unwrap();
    assert_eq!(server.get(&format!("{ADDRESSES}/{ip}")).await.code, 404);
    let dry = service("dry", &json!({"type": "NodePort"}));
    let answered = server
        .post(&format!("{SERVICES}?dryRun=All"), &dry)
        .await
        .ok(201);
    let ip = answered["spec"]["clusterIP"].as_str().unwrap();
    assert_eq!(server.get(&format!("{ADDRESSES}/{ip}")).await.code, 404);
}

#[tokio::test]
async fn the_api_server_is_a_service_itself() {
    let server = Server::new().await;
    let service = server
        .get("/api/v1/namespaces/default/services/kubernetes")
        .await
        .ok(200);
    assert_eq!(service["spec"]["clusterIP"], "10.96.0.1");
    server.get(&format!("{ADDRESSES}/10.96.0.1")).await.ok(200);
    let cidr = server
        .get("/apis/networking.k8s.io/v1/servicecidrs/kubernetes")
        .await
        .ok(200);
    assert_eq!(cidr["spec"]["cidrs"], json!(["10.96.0.0/16"]));
    let endpoints = server
        .get("/api/v1/namespaces/default/endpoints/kubernetes")
        .await
        .ok(200);
    assert_eq!(
        endpoints["subsets"][0]["ports"][0]["port"],
        server.server.addr().port()
    );
}
