//! Pulls from a registry: every way to ship Wasm, credentials, mirrors, what is not Wasm and what was tampered with.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::large_futures,
    clippy::too_many_lines,
    reason = "an integration test"
)]

mod support;

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use cox_cri::v1::*;
use cox_runtime_shim::Mirror;
use cox_runtime_shim::images::door;
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use support::oci::{Containerd, busybox_layers, can_run_oci, image_config, shell};
use support::{Shim, container, guests};
use tokio::net::TcpListener;

/// A registry with what tests push into it.
#[derive(Clone, Default)]
struct Registry {
    /// By path below `/v2/`: media type and content.
    content: Arc<Mutex<HashMap<String, (String, Bytes)>>>,
    /// `user:password` in base64 that every request must carry.
    auth: Option<String>,
    requests: Arc<Mutex<Vec<String>>>,
    /// A path whose content breaks off in the middle, once.
    torn: Arc<Mutex<Option<String>>>,
    /// The ranges that were asked for.
    ranges: Arc<Mutex<Vec<String>>>,
    /// A path that is answered only when the gate opens.
    held: Arc<Mutex<Option<String>>>,
    gate: Arc<tokio::sync::Notify>,
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

impl Registry {
    async fn serve(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let registry = self.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let registry = registry.clone();
                let service = service_fn(move |request| {
                    let registry = registry.clone();
                    async move {
                        let path = request.uri().path().trim_start_matches("/v2/").to_owned();
                        let held = registry.held.lock().unwrap().as_ref() == Some(&path);
                        if held {
                            registry.gate.notified().await;
                        }
                        Ok::<_, Infallible>(registry.answer(&request))
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        addr
    }

    /// The answer, or the beginning of it.
    fn answer(&self, request: &Request<Incoming>) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
        let path = request.uri().path().trim_start_matches("/v2/");
        let tears = self.torn.lock().unwrap().take_if(|torn| torn == path);
        let whole = self.whole(request);
        let Some(path) = tears else {
            return whole.map(BodyExt::boxed_unsync);
        };
        let bytes = self.content.lock().unwrap()[&path].1.clone();
        // Less than it says: the connection ends there.
        let half = bytes.slice(..bytes.len() / 4 * 3);
        let body = StreamBody::new(futures::stream::iter([Ok(Frame::data(half))]));
        Response::builder()
            .header("content-length", bytes.len())
            .body(body.boxed_unsync())
            .unwrap()
    }

    fn whole(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path().trim_start_matches("/v2/").to_owned();
        self.requests.lock().unwrap().push(path.clone());
        let sent = request
            .headers()
            .get("authorization")
            .and_then(|value| value.to_str().ok());
        if self
            .auth
            .as_ref()
            .is_some_and(|auth| sent != Some(&format!("Basic {auth}")))
        {
            let response = Response::builder()
                .status(401)
                .header("www-authenticate", "Basic realm=\"test\"");
            return response.body(Full::default()).unwrap();
        }
        if path == "/v2" || path.is_empty() {
            return Response::new(Full::default());
        }
        let range = request
            .headers()
            .get("range")
            .and_then(|value| value.to_str().ok()?.strip_prefix("bytes=")?.split_once('-'));
        if let (Some((from, _)), Some((_, bytes))) =
            (range, self.content.lock().unwrap().get(&path))
        {
            self.ranges.lock().unwrap().push(from.to_owned());
            let rest = bytes.slice(from.parse::<usize>().unwrap()..);
            let response = Response::builder().status(206);
            return response.body(Full::new(rest)).unwrap();
        }
        match self.content.lock().unwrap().get(&path) {
            Some((media_type, bytes)) => Response::builder()
                .header("content-type", media_type)
                .header("docker-content-digest", digest(bytes))
                .body(Full::new(bytes.clone()))
                .unwrap(),
            None => Response::builder()
                .status(404)
                .body(Full::from(
                    r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"unknown"}]}"#,
                ))
                .unwrap(),
        }
    }

    fn put(&self, path: String, media_type: &str, bytes: &[u8]) {
        self.content
            .lock()
            .unwrap()
            .insert(path, (media_type.to_owned(), Bytes::copy_from_slice(bytes)));
    }

    fn blob(&self, name: &str, media_type: &str, bytes: &[u8]) -> Value {
        self.put(
            format!("{name}/blobs/{}", digest(bytes)),
            "application/octet-stream",
            bytes,
        );
        json!({ "mediaType": media_type, "digest": digest(bytes), "size": bytes.len() })
    }

    /// Pushes an image; returns the descriptor of its manifest.
    fn push(&self, name: &str, config: (&str, &str), layers: &[(&str, &[u8])]) -> Value {
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let layers: Vec<Value> = layers
            .iter()
            .map(|(media_type, bytes)| self.blob(name, media_type, bytes))
            .collect();
        let config = self.blob(name, config.0, config.1.as_bytes());
        let manifest = json!({ "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers });
        let bytes = serde_json::to_vec(&manifest).unwrap();
        self.put(format!("{name}/manifests/latest"), media_type, &bytes);
        self.put(
            format!("{name}/manifests/{}", digest(&bytes)),
            media_type,
            &bytes,
        );
        json!({ "mediaType": media_type, "digest": digest(&bytes), "size": bytes.len() })
    }
}

/// A tar archive of one file.
fn tar(name: &str, content: &[u8]) -> Vec<u8> {
    let mut block = [0u8; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    block[148..156].copy_from_slice(b"        ");
    block[156] = b'0';
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut out = [&block, content].concat();
    out.resize(out.len().next_multiple_of(512) + 1024, 0);
    out
}

async fn pull(
    shim: &mut Shim,
    image: &str,
    auth: Option<AuthConfig>,
) -> Result<String, tonic::Status> {
    let image = Some(ImageSpec {
        image: image.into(),
        ..ImageSpec::default()
    });
    let request = PullImageRequest {
        image,
        auth,
        sandbox_config: None,
    };
    Ok(shim
        .images
        .pull_image(request)
        .await?
        .into_inner()
        .image_ref)
}

const ARTIFACT: (&str, &str) = ("application/vnd.wasm.config.v0+json", "{}");
const OCI: &str = "application/vnd.oci.image.config.v1+json";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

#[tokio::test(flavor = "multi_thread")]
async fn every_format_is_pulled_and_runs() {
    let registry = Registry::default();
    let host = registry.serve().await;
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start_with(dir.path(), |config| {
        config.registries.plain_http = vec![host.to_string()]
    })
    .await;
    let wasm = wat::parse_str(guests::exits(42)).unwrap();
    let wasi = r#"{"os":"wasi","architecture":"wasm","config":{"Entrypoint":["/app.wasm"],"Env":["A=1"]}}"#;
    registry.push("artifact", ARTIFACT, &[("application/wasm", &wasm)]);
    registry.push(
        "runwasi",
        (OCI, "{}"),
        &[(
            "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
            &wasm,
        )],
    );
    registry.push("buildx", (OCI, wasi), &[(TAR, &tar("app.wasm", &wasm))]);
    let manifest = registry.push("index", ARTIFACT, &[("application/wasm", &wasm)]);
    let mut entry = manifest.clone();
    entry["platform"] = json!({ "os": "wasip1", "architecture": "wasm" });
    let linux = json!({ "mediaType": manifest["mediaType"], "digest": digest(b"x"), "size": 1, "platform": { "os": "linux", "architecture": "amd64" } });
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": [linux, entry] });
    registry.put(
        "index/manifests/latest".into(),
        media_type,
        &serde_json::to_vec(&index).unwrap(),
    );
    let pod = shim.sandbox("pod").await;
    for name in ["artifact", "runwasi", "buildx", "index"] {
        let image = format!("{host}/{name}");
        let id = pull(&mut shim, &image, None)
            .await
            .unwrap_or_else(|err| panic!("{name}: {err}"));
        let mut config = container(name, name);
        config.image = Some(ImageSpec {
            image: id,
            ..ImageSpec::default()
        });
        let container = shim.launch(&pod, config).await;
        let status = shim.exit(&container).await;
        assert_eq!(status.exit_code, 42, "{name}");
        // Two of them are the same image under two names.
        assert!(
            status.image_ref.contains("@sha256:"),
            "{}",
            status.image_ref
        );
    }
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_run_is_refused_by_name() {
    let registry = Registry::default();
    let host = registry.serve().await;
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start_with(dir.path(), |config| {
        config.registries.plain_http = vec![host.to_string()]
    })
    .await;
    let wasm = wat::parse_str(guests::exits(42)).unwrap();
    let linux = r#"{"os":"linux","architecture":"amd64","config":{"Cmd":["nginx"]}}"#;
    registry.push(
        "nginx",
        (OCI, linux),
        &[(TAR, &tar("bin/nginx", b"\x7fELF..."))],
    );
    registry.push(
        "spin",
        (OCI, "{}"),
        &[
            ("application/vnd.wasm.content.layer.v1+wasm", &wasm),
            ("application/vnd.fermyon.spin.application.v1+config", b"{}"),
        ],
    );
    registry.push(
        "moon",
        ARTIFACT,
        &[(
            "application/wasm",
            &wat::parse_str(guests::wants_the_moon()).unwrap(),
        )],
    );
    registry.push(
        "text",
        ARTIFACT,
        &[("application/wasm", b"not wasm at all")],
    );
    registry.push("bad", ARTIFACT, &[("application/wasm", &wasm)]);
    registry.put(
        format!("bad/blobs/{}", digest(&wasm)),
        "application/octet-stream",
        &wat::parse_str(guests::exits(0)).unwrap(),
    );
    let cases = [
        ("nginx", "no container runtime on this node"),
        ("spin", "Spin application"),
        ("moon", "acme:moon/landing"),
        ("text", "not a Wasm file"),
        ("bad", "digest"),
        ("none", "cannot pull"),
    ];
    for (name, reason) in cases {
        let image = format!("{host}/{name}");
        let err = pull(&mut shim, &image, None).await.unwrap_err();
        assert!(
            err.message()
                .to_lowercase()
                .contains(&reason.to_lowercase())
                && err.message().contains(name),
            "{name}: {err}"
        );
    }
    assert_eq!(
        std::fs::read_dir(dir.path().join("root/blobs/sha256"))
            .unwrap()
            .count(),
        0,
        "nothing refused is kept"
    );
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_open_a_registry_and_are_not_given_to_its_mirror() {
    let wasm = wat::parse_str(guests::exits(0)).unwrap();
    let private = Registry {
        auth: Some("dTpw".into()),
        ..Registry::default()
    };
    private.push("app", ARTIFACT, &[("application/wasm", &wasm)]);
    let mirror = Registry::default();
    mirror.push("mirrored", ARTIFACT, &[("application/wasm", &wasm)]);
    let (host, mirror_host) = (private.serve().await, mirror.serve().await);
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start_with(dir.path(), |config| {
        config.registries.plain_http = vec![host.to_string(), mirror_host.to_string()];
        config.registries.mirrors = vec![Mirror {
            registry: host.to_string(),
            hosts: vec![mirror_host.to_string()],
        }];
    })
    .await;
    let auth = |password: &str| AuthConfig {
        username: "u".into(),
        password: password.into(),
        ..AuthConfig::default()
    };
    let image = format!("{host}/app");
    assert!(pull(&mut shim, &image, None).await.is_err());
    assert!(pull(&mut shim, &image, Some(auth("wrong"))).await.is_err());
    pull(&mut shim, &image, Some(auth("p"))).await.unwrap();
    pull(&mut shim, &format!("{host}/mirrored"), Some(auth("p")))
        .await
        .unwrap();
    assert!(
        !private
            .requests
            .lock()
            .unwrap()
            .iter()
            .any(|path| path.contains("mirrored")),
        "the mirror had it"
    );
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_for_linux_goes_into_containerd_and_a_broken_download_goes_on() {
    if !can_run_oci("an_image_for_linux_goes_into_containerd_and_a_broken_download_goes_on") {
        return;
    }
    let registry = Registry::default();
    let host = registry.serve().await;
    let dir = tempfile::tempdir().unwrap();
    let containerd = Containerd::start(dir.path()).await;
    let mut shim = Shim::start_with(dir.path(), |config| {
        config.containerd_socket = containerd.socket();
        config.registries.plain_http = vec![host.to_string()];
    })
    .await;
    let layers = busybox_layers();
    let config = String::from_utf8(image_config(&layers)).unwrap();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packed, &layers[1]).unwrap();
    let packed = packed.finish().unwrap();
    let gzip = format!("{TAR}+gzip");
    let mut entry = registry.push(
        "app",
        (OCI, &config),
        &[(TAR, &layers[0]), (&gzip, &packed)],
    );
    let config: Value = serde_json::from_str(&config).unwrap();
    entry["platform"] = json!({ "os": "linux", "architecture": config["architecture"] });
    let other = json!({ "mediaType": entry["mediaType"], "digest": digest(b"x"), "size": 1, "platform": { "os": "linux", "architecture": "mips64le" } });
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": [other, entry] });
    let index = serde_json::to_vec(&index).unwrap();
    registry.put("app/manifests/latest".into(), media_type, &index);
    let low = format!("app/blobs/{}", digest(&layers[0]));
    *registry.torn.lock().unwrap() = Some(low.clone());
    let image = format!("{host}/app");
    let id = pull(&mut shim, &image, None).await.unwrap();
    let ranges = registry.ranges.lock().unwrap().clone();
    assert_eq!(ranges.len(), 1, "the layer went on once: {ranges:?}");
    assert!(
        ranges[0].parse::<u64>().unwrap() > 0,
        "and not from the start"
    );
    // The same layers under another name are not fetched again.
    let before = registry.requests.lock().unwrap().len();
    assert_eq!(pull(&mut shim, &image, None).await.unwrap(), id);
    let again = registry.requests.lock().unwrap()[before..].to_vec();
    assert!(
        !again
            .iter()
            .any(|path| path.contains("/blobs/sha256:") && *path == low),
        "{again:?}"
    );
    let by = |image: &str| ImageStatusRequest {
        image: Some(ImageSpec {
            image: image.into(),
            ..ImageSpec::default()
        }),
        verbose: true,
    };
    for name in [
        image.clone(),
        id.clone(),
        format!("{image}@{}", digest(&index)),
    ] {
        let found = shim
            .images
            .image_status(by(&name))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(found.info["coxswain.dev/image-kind"], "oci");
        let found = found.image.unwrap();
        assert_eq!(
            (found.id, found.repo_tags),
            (id.clone(), vec![format!("{image}:latest")]),
            "{name}"
        );
        assert!(!found.pinned);
    }
    // What nothing holds any more is what containerd's collector takes: the image must not be among it.
    containerd.ctr(&["content", "prune", "references"]);
    let pod = shim.host_sandbox("pod").await;
    let mut config = shell("app", "x", "id www; exit 42");
    config.image = Some(ImageSpec {
        image: id,
        ..ImageSpec::default()
    });
    let container = shim.launch(&pod, config).await;
    assert_eq!(shim.exit(&container).await.exit_code, 42);
    assert!(
        pod.log("app")[0].contains("uid=33(www)"),
        "the upper layer is on top"
    );
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_collector_takes_nothing_of_a_pull_that_is_under_way() {
    if !can_run_oci("the_collector_takes_nothing_of_a_pull_that_is_under_way") {
        return;
    }
    let registry = Registry::default();
    let host = registry.serve().await;
    let dir = tempfile::tempdir().unwrap();
    let containerd = Containerd::start(dir.path()).await;
    let mut shim = Shim::start_with(dir.path(), |config| {
        config.containerd_socket = containerd.socket();
        config.registries.plain_http = vec![host.to_string()];
    })
    .await;
    let layers = busybox_layers();
    let config = String::from_utf8(image_config(&layers)).unwrap();
    registry.push(
        "app",
        (OCI, &config),
        &[(TAR, &layers[0]), (TAR, &layers[1])],
    );
    *registry.held.lock().unwrap() = Some(format!("app/blobs/{}", digest(&layers[1])));
    let image = format!("{host}/app");
    let pulling = tokio::spawn({
        let mut images = shim.images.clone();
        let image = ImageSpec {
            image: image.clone(),
            ..ImageSpec::default()
        };
        let request = PullImageRequest {
            image: Some(image),
            ..PullImageRequest::default()
        };
        async move { images.pull_image(request).await }
    });
    let low = digest(&layers[0]);
    let has_both = || {
        let content = containerd.ctr(&["content", "ls", "-q"]);
        let snapshots = containerd.ctr(&["snapshots", "ls"]);
        let committed = |line: &str| line.starts_with(&low) && line.contains("Committed");
        content.contains(&low) && snapshots.lines().any(committed)
    };
    support::wait_until("the first layer is unpacked", || async {
        has_both().then_some(())
    })
    .await;
    // Nothing names the layer yet; only the pull's lease holds it.
    containerd.ctr(&["content", "prune", "references"]);
    assert!(has_both(), "the collector took the first layer");
    assert!(!pulling.is_finished());
    registry.gate.notify_one();
    let id = pulling.await.unwrap().unwrap().into_inner().image_ref;
    assert_eq!(
        containerd.ctr(&["images", "ls", "-q"]).lines().next(),
        Some(&*format!("{image}:latest")),
        "as other clients see it"
    );
    let pod = shim.host_sandbox("pod").await;
    let mut config = shell("app", "x", "exit 42");
    config.image = Some(ImageSpec {
        image: id,
        ..ImageSpec::default()
    });
    let container = shim.launch(&pod, config).await;
    assert_eq!(shim.exit(&container).await.exit_code, 42);
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_says_how_far_it_is() {
    if !can_run_oci("a_pull_says_how_far_it_is") {
        return;
    }
    let registry = Registry::default();
    let host = registry.serve().await;
    let dir = tempfile::tempdir().unwrap();
    let containerd = Containerd::start(dir.path()).await;
    let shim = Shim::start_with(dir.path(), |config| {
        config.containerd_socket = containerd.socket();
        config.registries.plain_http = vec![host.to_string()];
    })
    .await;
    let layers = busybox_layers();
    let config = String::from_utf8(image_config(&layers)).unwrap();
    registry.push(
        "app",
        (OCI, &config),
        &[(TAR, &layers[0]), (TAR, &layers[1])],
    );
    *registry.held.lock().unwrap() = Some(format!("app/blobs/{}", digest(&layers[1])));
    let (image, socket) = (format!("{host}/app"), shim.config.images_socket.clone());
    let (low, all) = (
        layers[0].len() as u64,
        (layers[0].len() + layers[1].len()) as u64,
    );
    let told = Arc::new(Mutex::new(Vec::new()));
    let pulling = tokio::spawn({
        let (image, socket, told) = (image.clone(), socket.clone(), Arc::clone(&told));
        let tell = move |now: &door::Pulling| told.lock().unwrap().push((now.bytes, now.of));
        async move { door::pull(&socket, &image, tell).await }
    });
    let under_way = support::wait_until("all but the last layer is here", || async {
        let pulls = door::pulls(&socket).await.unwrap();
        pulls.into_iter().find(|pull| pull.bytes == low)
    })
    .await;
    assert_eq!((under_way.name, under_way.of), (image.clone(), all));
    let request = StatusRequest { verbose: true };
    let status = shim.runtime.clone().status(request).await.unwrap();
    let info: serde_json::Value =
        serde_json::from_str(&status.into_inner().info["config"]).unwrap();
    assert_eq!(info["pulls"][0]["bytes"], low);
    support::wait_until("who pulls has heard it", || async {
        told.lock().unwrap().contains(&(low, all)).then_some(())
    })
    .await;
    registry.gate.notify_one();
    let pulled = pulling.await.unwrap().unwrap();
    let told = told.lock().unwrap().clone();
    assert_eq!((&*pulled.kind, told[0]), ("oci", (0, 0)));
    let mut sorted = told.clone();
    sorted.sort_unstable();
    assert_eq!(told, sorted, "it never goes back");
    assert_eq!(door::pulls(&socket).await.unwrap(), []);
    let missing = format!("{host}/nothing");
    let refused = door::pull(&socket, &missing, |_| {}).await.unwrap_err();
    assert!(refused.to_string().contains(&missing), "{refused}");
    shim.stop().await;
}
