//! `pods/proxy`, `services/proxy` and `nodes/proxy` before a server of the test's own, and logs over WebSocket.

use std::net::SocketAddr;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use super::*;

const PODS: &str = "/api/v1/namespaces/a/pods";
const SERVICES: &str = "/api/v1/namespaces/a/services";

/// Says what it was asked; a page for `/page`, a redirect for `/moved`.
async fn told(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, http::Error> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let header = |name: &str| {
        let value = parts.headers.get(name);
        value.map(|value| value.to_str().unwrap().to_owned())
    };
    match parts.uri.path() {
        "/page" => Response::builder()
            .header("content-type", "text/html; charset=utf-8")
            .body(Full::from(r#"<a href="/x">x</a>"#)),
        "/moved" => Response::builder()
            .status(302)
            .header("location", "/there")
            .body(Full::default()),
        "/teapot" => Response::builder()
            .status(418)
            .body(Full::from("short and stout")),
        _ => {
            let said = json!({
                "method": parts.method.as_str(), "uri": parts.uri.to_string(), "body": String::from_utf8_lossy(&body),
                "authorization": header("authorization"), "forwarded": header("x-forwarded-uri"),
            });
            Response::builder()
                .header("content-type", "text/plain")
                .body(Full::from(said.to_string()))
        }
    }
}

/// Starts the server at an address that Pods have.
async fn backend() -> SocketAddr {
    let listener = TcpListener::bind("127.64.0.5:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let served = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service_fn(told));
                served.await.ok();
            });
        }
    });
    addr
}

/// A Pod at the address, and a Service with a port by name and one without before it.
async fn with_backend(addr: SocketAddr) -> Server {
    let server = Server::with_namespace().await;
    let node = json!({"metadata": {"name": "n"}, "spec": {"podCIDR": "127.64.0.0/18", "podCIDRs": ["127.64.0.0/18"]}});
    server.post("/api/v1/nodes", &node).await.ok(201);
    for (name, ip) in [
        ("p", addr.ip().to_string()),
        ("own", "127.0.0.1".to_owned()),
    ] {
        let pod = json!({"metadata": {"name": name}, "spec": {"containers": [
            {"name": "c", "image": "i", "ports": [{"containerPort": addr.port()}]}]}});
        server.post(PODS, &pod).await.ok(201);
        let status = json!({"status": {"podIP": ip, "podIPs": [{"ip": ip}]}});
        server
            .merge(&format!("{PODS}/{name}/status"), &status)
            .await
            .ok(200);
    }
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"name": "web", "port": 80}, {"name": "other", "port": 81}]}});
    server.post(SERVICES, &service).await.ok(201);
    let slice = json!({
        "metadata": {"name": "s-1", "labels": {"kubernetes.io/service-name": "s"}}, "addressType": "IPv4",
        "ports": [{"name": "web", "port": addr.port()}], "endpoints": [{"addresses": [addr.ip().to_string()]}]});
    let slices = "/apis/discovery.k8s.io/v1/namespaces/a/endpointslices";
    server.post(slices, &slice).await.ok(201);
    server
}

#[tokio::test]
async fn requests_reach_pods_and_services_by_every_method_and_name() {
    let addr = backend().await;
    let server = with_backend(addr).await;
    let port = addr.port();
    let names = [
        format!("{PODS}/p/proxy"),
        format!("{PODS}/p:{port}/proxy"),
        format!("{PODS}/http:p:{port}/proxy"),
        format!("{SERVICES}/s:web/proxy"),
        format!("{SERVICES}/http:s:80/proxy"),
    ];
    for own in &names {
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            let request = Request::builder()
                .method(method)
                .uri(format!("{own}/dir/x%2Fy/?q=1&q=2"))
                .header("authorization", "Bearer secret");
            let body = if method == "GET" { "" } else { "some bytes" };
            let answer = server.send(request.body(Full::from(body)).unwrap()).await;
            assert_eq!(answer.code, 200, "{method} {own}: {}", answer.text());
            let expected = json!({
                "method": method, "uri": "/dir/x%2Fy/?q=1&q=2", "body": body, "authorization": null,
                "forwarded": format!("{own}/dir/x%2Fy/"),
            });
            assert_eq!(answer.json(), expected, "case: {method} {own}");
        }
    }
}

#[tokio::test]
async fn answers_come_back_as_they_are_but_links_lead_through_the_proxy() {
    let server = with_backend(backend().await).await;
    let own = format!("{PODS}/p/proxy");
    let page = server.get(&format!("{own}/page")).await;
    assert_eq!(page.text(), format!(r#"<a href="{own}/x">x</a>"#));
    let moved = server.get(&format!("{own}/moved")).await;
    assert_eq!(
        (moved.code, moved.headers["location"].to_str().unwrap()),
        (302, format!("{own}/there").as_str())
    );
    let teapot = server.get(&format!("{own}/teapot")).await;
    assert_eq!(
        (teapot.code, teapot.text().as_str()),
        (418, "short and stout")
    );
    let bare = server.get(&format!("{own}?x=y")).await;
    assert_eq!(
        (bare.code, bare.headers["location"].to_str().unwrap()),
        (301, format!("{own}/?x=y").as_str())
    );
    let posted = server.post(&own, &json!({})).await;
    assert_eq!(posted.json()["uri"], "/");
}

#[tokio::test]
async fn what_cannot_be_reached_is_refused_with_its_reason() {
    let server = with_backend(backend().await).await;
    let cases = [
        (
            "no such pod",
            format!("{PODS}/x/proxy/"),
            404,
            "pods \"x\" not found",
        ),
        (
            "this machine's own loopback",
            format!("{PODS}/own/proxy/"),
            400,
            "address not allowed",
        ),
        (
            "a scheme that is none",
            format!("{PODS}/ftp:p:1/proxy/"),
            400,
            "invalid pod request \"ftp:p:1\"",
        ),
        (
            "a port that is none",
            format!("{PODS}/p:web/proxy/"),
            400,
            "\"web\" is no port",
        ),
        (
            "no such service",
            format!("{SERVICES}/x/proxy/"),
            404,
            "services \"x\" not found",
        ),
        (
            "a port that the service has not",
            format!("{SERVICES}/s:99/proxy/"),
            503,
            "no service port 99 found for service \"s\"",
        ),
        (
            "a port without endpoints",
            format!("{SERVICES}/s:other/proxy/"),
            503,
            "no endpoints available for service \"s\"",
        ),
    ];
    for (case, path, code, message) in cases {
        let (got, _, said) = server.get(&path).await.failure();
        assert_eq!((got, said.as_str()), (code, message), "case: {case}");
    }
    let (code, _, message) = server.get(&format!("{PODS}/p:1/proxy/")).await.failure();
    assert_eq!(code, 503);
    assert!(
        message.starts_with("error trying to reach service: dial tcp 127.64.0.5:1: "),
        "{message}"
    );
}
