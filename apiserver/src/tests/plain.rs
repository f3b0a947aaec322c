use super::*;

#[tokio::test]
async fn health_is_told_in_words() {
    let server = Server::new().await;
    for path in [
        "/healthz",
        "/livez",
        "/readyz",
        "/readyz/ping",
        "/livez/store",
    ] {
        let answer = server.get(path).await;
        assert_eq!(
            (answer.code, answer.text().as_str()),
            (200, "ok"),
            "case: {path}"
        );
    }
    let verbose = server.get("/readyz?verbose").await.text();
    assert!(
        verbose.starts_with("[+]ping ok\n[+]store ok\n")
            && verbose.ends_with("readyz check passed\n"),
        "{verbose}"
    );
    assert_eq!(server.get("/readyz/nonsense").await.code, 404);
    server.cancel.cancel();
    let stopping = server.get("/readyz").await;
    assert_eq!(stopping.code, 500);
    assert!(
        stopping.text().contains("[-]shutdown failed"),
        "{}",
        stopping.text()
    );
}

#[tokio::test]
async fn the_version_is_upstreams() {
    let version = Server::new().await.get("/version").await.ok(200);
    assert_eq!(
        (version["major"].as_str(), version["minor"].as_str()),
        (Some("1"), Some("36"))
    );
    assert!(
        version["gitVersion"]
            .as_str()
            .unwrap()
            .starts_with("v1.36.")
    );
}

#[tokio::test]
async fn metrics_count_what_was_asked() {
    let server = Server::with_namespace().await;
    server.get(CONFIG_MAPS).await.ok(200);
    let page = server.get("/metrics").await.text();
    let line = "apiserver_request_total{verb=\"LIST\",group=\"\",version=\"v1\",resource=\"configmaps\",subresource=\"\",code=\"200\"} 1";
    assert!(page.contains(line), "{page}");
}

#[tokio::test]
async fn discovery_names_every_resource_in_both_forms() {
    let server = Server::new().await;
    let root = server.get("/").await.ok(200);
    for path in ["/api/v1", "/apis/apps/v1", "/healthz", "/openapi/v3"] {
        assert!(
            root["paths"].as_array().unwrap().contains(&path.into()),
            "no {path}"
        );
    }
    let core = server.get("/api/v1").await.ok(200);
    let pods = core["resources"]
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["name"] == "pods")
        .unwrap()
        .clone();
    assert_eq!(
        (pods["shortNames"][0].as_str(), pods["namespaced"].as_bool()),
        (Some("po"), Some(true))
    );
    assert!(
        core["resources"]
            .as_array()
            .unwrap()
            .iter()
            .any(|row| row["name"] == "pods/eviction" && row["group"] == "policy")
    );
    let groups = server.get("/apis").await.ok(200);
    let autoscaling = groups["groups"]
        .as_array()
        .unwrap()
        .iter()
        .find(|group| group["name"] == "autoscaling")
        .unwrap();
    assert_eq!(
        autoscaling["preferredVersion"]["groupVersion"],
        "autoscaling/v2"
    );
    server.get("/apis/apps").await.ok(200);
    let mut rows = 0;
    for path in root["paths"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
    {
        if path.starts_with("/api/") || path.matches('/').count() == 3 && path.starts_with("/apis/")
        {
            rows += server.get(path).await.ok(200)["resources"]
                .as_array()
                .unwrap()
                .len();
        }
    }
    // Two of them are the built-in metrics API.
    assert_eq!(rows, 152);
}

#[tokio::test]
async fn aggregated_discovery_has_an_etag() {
    let server = Server::new().await;
    let accept =
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let aggregated = server.get_as("/apis", accept).await;
    assert_eq!(
        aggregated.headers["content-type"],
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    );
    let apps = aggregated.json()["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|group| group["metadata"]["name"] == "apps")
        .unwrap()
        .clone();
    let deployments = apps["versions"][0]["resources"]
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["resource"] == "deployments")
        .unwrap();
    assert_eq!(
        deployments["responseKind"],
        json!({"group": "apps", "version": "v1", "kind": "Deployment"})
    );
    assert!(
        deployments["subresources"]
            .as_array()
            .unwrap()
            .iter()
            .any(|sub| sub["subresource"] == "scale")
    );
    let request = Request::get("/apis")
        .header("accept", accept)
        .header("if-none-match", &aggregated.headers["etag"]);
    assert_eq!(
        server
            .send(request.body(Full::default()).unwrap())
            .await
            .code,
        304
    );
}

#[tokio::test]
async fn every_resource_is_served_by_the_one_registry() {
    let server = Server::with_namespace().await;
    let mut served = 0;
    for entry in server.server.registry().catalog().entries() {
        let resource = &entry.resource;
        let root = if resource.group.is_empty() {
            "/api".to_owned()
        } else {
            format!("/apis/{}", resource.group)
        };
        let scope = if resource.namespaced {
            "/namespaces/a"
        } else {
            ""
        };
        let path = format!("{root}/{}{scope}/{}", resource.version, resource.plural);
        if entry.has_verb("list") {
            let list = server.get(&path).await.ok(200);
            assert_eq!(
                list["kind"],
                format!("{}List", resource.kind),
                "case: {path}"
            );
            served += 1;
        }
        if entry.has_verb("watch") {
            let events = server.watch(&format!("{path}?watch=true")).await;
            drop(events);
        }
    }
    assert!(served > 70, "{served}");
}

#[tokio::test]
async fn a_busy_port_is_a_clear_error() {
    let server = Server::new().await;
    let keys = tempfile::tempdir().unwrap();
    let pki = Arc::new(Pki::load_or_create(keys.path()).unwrap());
    let store = Store::open(
        cox_store::Config::new(Backend::Memory),
        Arc::new(BuiltinIndexer),
    )
    .unwrap();
    let error = start(
        Config::new(server.server.addr(), pki),
        Deps::new(store),
        CancellationToken::new(),
    )
    .await
    .unwrap_err();
    let addr = server.server.addr();
    assert_eq!(
        error.to_string(),
        format!("{addr} is in use by another program: choose another port (0 picks a free one)")
    );
}

#[tokio::test]
async fn documents_without_a_protobuf_form_stay_json() {
    let server = Server::new().await;
    let protobuf = "application/vnd.kubernetes.protobuf";
    let version = server.get_as("/version", protobuf).await;
    assert_eq!(version.headers["content-type"], "application/json");
    assert_eq!(version.ok(200)["major"], "1");
    let groups = server.get_as("/apis", protobuf).await;
    assert_eq!(groups.headers["content-type"], protobuf);
    assert!(groups.body.starts_with(b"k8s\0"));
}
