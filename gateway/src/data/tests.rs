//! The data plane on loopback: real clients, real backends, tables and endpoints that change under them.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::activation::Wake;
use super::body::{Answer, text};
use super::ports::{Choice, Config, Ports};
use super::*;
use crate::backend::{BackendKey, Protocol, Registry, ServiceKey};
use crate::table::{
    Action, Age, Edits, HostPattern, Limits, Match, PathMatch, Route, Target, Weighted,
};

/// A gateway with one backend.
struct Bench {
    plane: Arc<Plane>,
    registry: Registry,
    key: BackendKey,
    addr: SocketAddr,
    wanted: mpsc::Receiver<ServiceKey>,
    _ports: Ports,
    _end: tokio_util::sync::DropGuard,
}

impl Bench {
    async fn start(protocol: Protocol) -> Self {
        let (wake, wanted) = Wake::new();
        let plane = Arc::new(Plane::new(wake));
        let cancel = CancellationToken::new();
        let config = Config {
            ip: [127, 0, 0, 1].into(),
            http: Choice::Exactly(0),
            https: Choice::Exactly(0),
        };
        let mut ports = Ports::new(config, Arc::clone(&plane), &cancel);
        let failed = ports.sync(&[Port::Http].into()).await;
        assert!(failed.is_empty(), "{failed:?}");
        let addr = plane.open.borrow()[&Port::Http];
        let bench = Self {
            key: BackendKey {
                service: ServiceKey::new("default", "web"),
                port: "".into(),
                protocol,
                outside: None,
            },
            registry: Registry::default(),
            plane,
            addr,
            wanted,
            _ports: ports,
            _end: cancel.drop_guard(),
        };
        bench.load(Edits::default(), Limits::default());
        bench
    }

    /// A new table with one route.
    fn load(&self, edits: Edits, limits: Limits) {
        let target = Target::Backend(self.registry.backend(&self.key));
        let route = Route {
            matches: vec![Match::path(PathMatch::prefix("/"))],
            age: Age::default(),
            edits,
            action: Arc::new(Action::Forward(vec![Weighted {
                weight: 1,
                target,
                edits: Edits::default(),
            }])),
            https_only: false,
            limits,
        };
        let mut table = Table::default();
        let port = table.ports.entry(Port::Http).or_default();
        port.hosts.entry(HostPattern::Any).push(Arc::new(route));
        self.plane.table.store(Arc::new(table));
    }

    /// The endpoints as of now.
    fn endpoints(&self, all: &[SocketAddr]) {
        let slices: Vec<Arc<EndpointSlice>> = all
            .iter()
            .map(|addr| {
                let slice = json!({"metadata": {}, "addressType": "IPv4", "ports": [{"port": addr.port()}],
                    "endpoints": [{"addresses": [addr.ip()]}]});
                Arc::new(serde_json::from_value(slice).unwrap())
            })
            .collect();
        self.registry.refresh(|_| slices.clone());
    }

    async fn get(&self, path: &str) -> (StatusCode, String) {
        let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
        let uri = format!("http://{}{path}", self.addr);
        let response = client.get(uri.parse().unwrap()).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }
}

/// A backend that answers as told, and for how many requests it has.
async fn backend<F, Fut>(answer: F) -> (SocketAddr, Arc<AtomicUsize>)
where
    F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Response<Answer>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (answer, counting) = (answer.clone(), Arc::clone(&counting));
            let service = service_fn(move |request| {
                counting.fetch_add(1, Ordering::SeqCst);
                let answer = answer.clone();
                async move { Ok::<_, Infallible>(answer(request).await) }
            });
            tokio::spawn(async move {
                let builder = auto::Builder::new(TokioExecutor::new());
                let io = TokioIo::new(stream);
                // A client that breaks off is the test's business.
                builder
                    .serve_connection_with_upgrades(io, service)
                    .await
                    .ok();
            });
        }
    });
    (addr, count)
}

async fn named(name: &'static str) -> (SocketAddr, Arc<AtomicUsize>) {
    backend(move |_| async move { Response::new(text(name)) }).await
}

/// An address where nobody listens.
async fn dead() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
}

#[tokio::test]
async fn endpoints_take_turns_and_dead_ones_cost_no_request() {
    let bench = Bench::start(Protocol::Http).await;
    let (status, body) = bench.get("/").await;
    assert_eq!(
        (status.as_u16(), body.as_str()),
        (503, "Service default/web has no endpoint that is ready.\n")
    );
    let ((one, ones), (two, twos)) = (named("one").await, named("two").await);
    bench.endpoints(&[one, dead().await, two]);
    for _ in 0..30 {
        assert_eq!(bench.get("/").await.0, StatusCode::OK);
    }
    let (ones, twos) = (ones.load(Ordering::SeqCst), twos.load(Ordering::SeqCst));
    assert!(
        ones >= 10 && twos >= 10 && ones + twos == 30,
        "{ones} and {twos}"
    );
    bench.endpoints(&[dead().await]);
    let (status, body) = bench.get("/").await;
    assert_eq!(
        (status.as_u16(), body.as_str()),
        (502, "No endpoint of Service default/web answers.\n")
    );
}

#[tokio::test]
async fn the_backend_sees_the_host_and_who_asked() {
    let bench = Bench::start(Protocol::Http).await;
    let (addr, _) = backend(|request: Request<Incoming>| async move {
        let get = |name: &str| {
            request
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
                .unwrap_or("-")
                .to_owned()
        };
        let seen = [
            "host",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-proto",
            "x-added",
            "x-hop",
        ]
        .map(get);
        Response::new(text(format!("{} {}", request.uri(), seen.join(" "))))
    })
    .await;
    bench.endpoints(&[addr]);
    let mut edits = Edits::default();
    edits.request.set.push((
        http::HeaderName::from_static("x-added"),
        http::HeaderValue::from_static("yes"),
    ));
    bench.load(edits, Limits::default());
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let request = Request::get(format!("http://{}/a%20b?c=d", bench.addr))
        .header("host", "shop.example")
        .header("x-forwarded-for", "6.6.6.6")
        .header("connection", "x-hop")
        .header("x-hop", "1");
    let response = client
        .request(request.body(Full::default()).unwrap())
        .await
        .unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(
        body,
        "/a%20b?c=d shop.example 127.0.0.1 shop.example http yes -"
    );
}

#[tokio::test]
async fn what_is_refused() {
    let bench = Bench::start(Protocol::Http).await;
    let (addr, count) = backend(|request: Request<Incoming>| async move {
        let read = request.into_body().collect().await;
        Response::new(text(if read.is_ok() { "all" } else { "part" }))
    })
    .await;
    bench.endpoints(&[addr]);
    let limits = Limits {
        body_bytes_max: Some(10),
        ..Limits::default()
    };
    bench.load(Edits::default(), limits);
    for path in ["/a/../b", "/a/%2e%2E/b", "/."] {
        let mut stream = TcpStream::connect(bench.addr).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{path}: {answer}");
    }
    assert_eq!(count.load(Ordering::SeqCst), 0);
    let client = Client::builder(TokioExecutor::new()).build_http();
    let post = |body: http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>| {
        let request = Request::post(format!("http://{}/", bench.addr))
            .body(body)
            .unwrap();
        client.request(request)
    };
    let told = post(Full::from("more than ten bytes").boxed_unsync())
        .await
        .unwrap();
    assert_eq!(told.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let frames =
        ["12345", "67890", "1"].map(|part| Ok::<_, Infallible>(Frame::data(Bytes::from(part))));
    let untold = post(StreamBody::new(futures::stream::iter(frames)).boxed_unsync())
        .await
        .unwrap();
    assert_ne!(
        untold.status(),
        StatusCode::OK,
        "a body that does not say how long it is"
    );
    assert_eq!(
        post(Full::from("ten bytes.").boxed_unsync())
            .await
            .unwrap()
            .status(),
        StatusCode::OK
    );
}

#[tokio::test]
async fn a_websocket_goes_both_ways_for_as_long_as_it_likes() {
    let bench = Bench::start(Protocol::Http).await;
    let (addr, _) = backend(|mut request: Request<Incoming>| async move {
        assert_eq!(request.headers()["upgrade"], "websocket");
        let switched = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(switched.await.unwrap());
            let mut bytes = [0; 4];
            while io.read_exact(&mut bytes).await.is_ok() {
                bytes.reverse();
                io.write_all(&bytes).await.unwrap();
            }
        });
        let response = Response::builder()
            .status(101)
            .header("connection", "upgrade")
            .header("upgrade", "websocket");
        response
            .header("sec-websocket-accept", "x")
            .body(text(""))
            .unwrap()
    })
    .await;
    bench.endpoints(&[addr]);
    let mut stream = TcpStream::connect(bench.addr).await.unwrap();
    let request = b"GET /chat HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    assert!(
        head.starts_with("http/1.1 101 ")
            && head.contains("upgrade: websocket")
            && head.contains("sec-websocket-accept: x"),
        "{head}"
    );
    let backend = bench.registry.backend(&bench.key);
    for word in [b"abcd", b"efgh"] {
        // The table goes, the tunnel stays.
        bench.plane.table.store(Arc::default());
        stream.write_all(word).await.unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).await.unwrap();
        answer.reverse();
        assert_eq!(&answer, word);
        assert_eq!(
            backend.service.idle_millis(),
            None,
            "a tunnel is a request under way"
        );
    }
    drop(stream);
    while backend.service.idle_millis().is_none() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn grpc_keeps_its_authority_and_its_trailers() {
    let bench = Bench::start(Protocol::H2c).await;
    let (addr, _) = backend(|request: Request<Incoming>| async move {
        assert_eq!(request.version(), http::Version::HTTP_2);
        assert_eq!(request.headers()["te"], "trailers");
        let authority = request.uri().authority().unwrap().to_string();
        let sent = request.into_body().collect().await.unwrap().to_bytes();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        let text = Bytes::from(format!("{authority} {}", sent.len()));
        let frames = [Ok(Frame::data(text)), Ok(Frame::trailers(trailers))];
        Response::new(StreamBody::new(futures::stream::iter(frames)).boxed_unsync())
    })
    .await;
    bench.endpoints(&[addr]);
    let stream = TcpStream::connect(bench.addr).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let mut calls = Vec::new();
    for _ in 0..20 {
        let request = Request::post("http://rpc.example/pkg.Service/Call").header("te", "trailers");
        calls.push(
            sender.send_request(
                request
                    .body(Full::new(Bytes::from_static(b"12345")))
                    .unwrap(),
            ),
        );
    }
    for call in calls {
        let collected = call.await.unwrap().into_body().collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(collected.to_bytes(), "rpc.example 5");
    }
}

#[tokio::test]
async fn a_request_is_held_for_somebody_who_sleeps() {
    let mut bench = Bench::start(Protocol::Http).await;
    let service = bench.registry.service(&bench.key.service);
    service.set_sleeps_after(1000);
    let (addr, _) = named("awake").await;
    let (answer, ()) = tokio::join!(bench.plane_get(), async {
        let wanted = bench.wanted.recv().await.unwrap();
        assert_eq!(wanted.to_string(), "default/web");
        bench.registry.refresh(|_| {
            let slice = json!({"metadata": {}, "addressType": "IPv4", "ports": [{"port": addr.port()}],
                "endpoints": [{"addresses": [addr.ip()]}]});
            vec![Arc::new(serde_json::from_value(slice).unwrap())]
        });
    });
    assert_eq!(answer, "awake");
}

impl Bench {
    /// A request that borrows nothing of the bench.
    fn plane_get(&self) -> impl Future<Output = String> + use<> {
        let addr = self.addr;
        async move {
            let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
            let response = client
                .get(format!("http://{addr}/").parse().unwrap())
                .await
                .unwrap();
            let body = response.into_body().collect().await.unwrap().to_bytes();
            String::from_utf8(body.to_vec()).unwrap()
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_lost_while_tables_and_endpoints_change() {
    const CLIENTS: usize = 8;
    const REQUESTS: usize = 250;
    let bench = Bench::start(Protocol::Http).await;
    let ((one, _), (two, _)) = (named("one").await, named("two").await);
    bench.endpoints(&[one]);
    let over = Arc::new(AtomicBool::new(false));
    let addr = bench.addr;
    let clients = (0..CLIENTS).map(|_| {
        tokio::spawn(async move {
            let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
            for number in 0..REQUESTS {
                let uri = format!("http://{addr}/{number}").parse().unwrap();
                let response = client.get(uri).await.unwrap();
                let status = response.status();
                let body = response.into_body().collect().await.unwrap().to_bytes();
                assert_eq!(status, StatusCode::OK, "{body:?}");
            }
        })
    });
    let clients: Vec<_> = clients.collect();
    let finished = Arc::clone(&over);
    let watch = tokio::spawn(async move {
        for client in clients {
            client.await.unwrap();
        }
        finished.store(true, Ordering::SeqCst);
    });
    let mut tables = 0;
    while !over.load(Ordering::SeqCst) && !watch.is_finished() {
        bench.load(Edits::default(), Limits::default());
        let gone = dead().await;
        let all = [[one, two], [two, gone], [gone, one]];
        bench.endpoints(&all[tables % all.len()]);
        tables += 1;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    watch.await.unwrap();
    assert!(
        tables > 20,
        "the tables have changed under the clients: {tables}"
    );
}

/// What a backend was sent, whole.
async fn recording() -> (SocketAddr, mpsc::Receiver<String>) {
    let (seen_tx, seen_rx) = mpsc::channel(8);
    let (addr, _) = backend(move |request: Request<Incoming>| {
        let seen_tx = seen_tx.clone();
        async move {
            let target = request.uri().to_string();
            let body = request.into_body().collect().await;
            let len = body.map_or(0, |body| body.to_bytes().len());
            seen_tx.send(format!("{target} {len}")).await.unwrap();
            Response::new(text("seen"))
        }
    })
    .await;
    (addr, seen_rx)
}

#[tokio::test]
async fn copies_are_whole_and_nobody_waits_for_them() {
    let bench = Bench::start(Protocol::Http).await;
    let ((main, mut mains), (copy, mut copies)) = (recording().await, recording().await);
    let other = BackendKey {
        service: ServiceKey::new("default", "copy"),
        ..bench.key.clone()
    };
    let mirror = crate::table::Mirror {
        backend: bench.registry.backend(&other),
        share: (1, 1),
    };
    let edits = Edits {
        mirrors: vec![mirror],
        ..Edits::default()
    };
    bench.load(edits, Limits::default());
    let slice = |addr: SocketAddr| -> Arc<EndpointSlice> {
        let slice = json!({"metadata": {}, "addressType": "IPv4", "ports": [{"port": addr.port()}],
            "endpoints": [{"addresses": [addr.ip()]}]});
        Arc::new(serde_json::from_value(slice).unwrap())
    };
    let endpoints = |copy: SocketAddr| {
        bench.registry.refresh(|key| match &*key.name {
            "copy" => vec![slice(copy)],
            _ => vec![slice(main)],
        });
    };
    endpoints(copy);
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let post = |len: usize| {
        let uri = format!("http://{}/p?q", bench.addr);
        client.request(
            Request::post(uri)
                .body(Full::from(vec![b'x'; len]))
                .unwrap(),
        )
    };
    for len in [0, 5, 100_000] {
        assert_eq!(post(len).await.unwrap().status(), StatusCode::OK);
        let expected = format!("/p?q {len}");
        assert_eq!(mains.recv().await, Some(expected.clone()));
        assert_eq!(copies.recv().await, Some(expected));
    }
    endpoints(dead().await);
    assert_eq!(post(5).await.unwrap().status(), StatusCode::OK);
    assert_eq!(mains.recv().await.as_deref(), Some("/p?q 5"));
}

#[tokio::test]
async fn browsers_that_ask_before_are_answered_here() {
    let bench = Bench::start(Protocol::Http).await;
    let (addr, count) = named("web").await;
    bench.endpoints(&[addr]);
    let cors = crate::table::Cors {
        origins: vec!["https://a.example".to_owned()],
        methods: vec!["PUT".to_owned()],
        max_age_secs: 5,
        ..crate::table::Cors::default()
    };
    let edits = Edits {
        cors: Some(cors),
        ..Edits::default()
    };
    bench.load(edits, Limits::default());
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let ask = |method: &str| {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{}/", bench.addr))
            .header("origin", "https://a.example")
            .header("access-control-request-method", "PUT");
        client.request(request.body(Full::default()).unwrap())
    };
    let told = ask("OPTIONS").await.unwrap();
    assert_eq!(told.status(), StatusCode::NO_CONTENT);
    assert_eq!(told.headers()["access-control-allow-methods"], "PUT");
    assert_eq!(count.load(Ordering::SeqCst), 0, "the backend is not asked");
    let answer = ask("PUT").await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(
        answer.headers()["access-control-allow-origin"],
        "https://a.example"
    );
}
