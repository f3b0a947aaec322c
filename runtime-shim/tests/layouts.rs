//! The ways in which tools ship Wasm, pushed by skopeo into Debian's docker-registry as those tools lay them out: `wkg`'s artifact,
//! runwasi's layers, `docker buildx`'s `wasi/wasm` with its attestation, a `.wasm` in an image for Linux, Docker's own manifests,
//! and Spin's application, which needs Spin.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::large_futures,
    clippy::too_many_lines,
    reason = "an integration test"
)]

mod support;

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use cox_cri::v1::*;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use support::{Shim, container, guests, wait_until};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI: &str = "application/vnd.oci.image.config.v1+json";
const TAR_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Debian's registry, without TLS, on a port of its own.
struct Registry {
    process: Child,
    dir: tempfile::TempDir,
    host: String,
}

impl Registry {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let host = {
            let free = TcpListener::bind("127.0.0.1:0").unwrap();
            free.local_addr().unwrap().to_string()
        };
        let at = dir.path().display();
        let config = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {at}/content}}}}\nhttp: {{addr: '{host}'}}\n"
        );
        let file = dir.path().join("config.yml");
        std::fs::write(&file, config).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_until("the registry listens", || async {
            std::net::TcpStream::connect(&host).ok()
        })
        .await;
        Self { process, dir, host }
    }

    /// Has skopeo push a layout as it is, or as `format`.
    fn push(&self, layout: &Layout, name: &str, format: Option<&str>) {
        let mut command = Command::new("skopeo");
        command
            .args(["copy", "--quiet", "--all", "--insecure-policy"])
            .arg("--dest-tls-verify=false");
        match format {
            Some(format) => command.arg(format!("--format={format}")),
            None => command.arg("--preserve-digests"),
        };
        let from = format!("oci:{}", layout.dir.display());
        let to = format!("docker://{}/{name}:latest", self.host);
        let output = command.args([from, to]).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {told}");
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// An OCI layout being made.
struct Layout {
    dir: PathBuf,
}

impl Layout {
    fn new(dir: &Path) -> Self {
        std::fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self {
            dir: dir.to_owned(),
        }
    }

    fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let hex: String = Sha256::digest(bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        std::fs::write(self.dir.join("blobs/sha256").join(&hex), bytes).unwrap();
        json!({"mediaType": media_type, "digest": format!("sha256:{hex}"), "size": bytes.len()})
    }

    fn manifest(&self, config: (&str, &Value), layers: &[(&str, &[u8])]) -> Value {
        let layers: Vec<Value> = layers
            .iter()
            .map(|(media_type, bytes)| self.blob(media_type, bytes))
            .collect();
        let config = self.blob(config.0, config.1.to_string().as_bytes());
        let manifest =
            json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        self.blob(MANIFEST, manifest.to_string().as_bytes())
    }

    /// Names what the layout holds.
    fn entry(self, entry: &Value) -> Self {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]});
        std::fs::write(self.dir.join("index.json"), index.to_string()).unwrap();
        self
    }
}

/// A layer of one file, as image builders write it.
fn layer(name: &str, content: &[u8]) -> (Vec<u8>, String) {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o755);
    archive.append_data(&mut header, name, content).unwrap();
    let plain = archive.into_inner().unwrap();
    let hex: String = Sha256::digest(&plain)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(&plain).unwrap();
    (packed.finish().unwrap(), format!("sha256:{hex}"))
}

/// The configuration of an image with one layer and an entrypoint.
fn image_config(os: &str, architecture: &str, diff: &str) -> Value {
    json!({
        "created": "2026-01-01T00:00:00Z", "os": os, "architecture": architecture,
        "config": {"Entrypoint": ["/app.wasm"], "Env": ["A=1"]},
        "rootfs": {"type": "layers", "diff_ids": [diff]},
    })
}

/// `docker buildx build --platform=wasi/wasm`: an index with the image and an attestation of no platform.
fn buildx(dir: &Path, wasm: &[u8]) -> Layout {
    let layout = Layout::new(dir);
    let (bytes, diff) = layer("app.wasm", wasm);
    let mut image = layout.manifest(
        (OCI, &image_config("wasi", "wasm", &diff)),
        &[(TAR_GZIP, &bytes)],
    );
    image["platform"] = json!({"architecture": "wasm", "os": "wasi"});
    let nothing = json!({"os": "unknown", "architecture": "unknown", "config": {}, "rootfs": {"type": "layers", "diff_ids": []}});
    let mut attestation =
        layout.manifest((OCI, &nothing), &[("application/vnd.in-toto+json", b"{}")]);
    attestation["platform"] = json!({"architecture": "unknown", "os": "unknown"});
    attestation["annotations"] = json!({"vnd.docker.reference.digest": image["digest"], "vnd.docker.reference.type": "attestation-manifest"});
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [image, attestation]});
    let index = layout.blob(INDEX, index.to_string().as_bytes());
    layout.entry(&index)
}

async fn pull(shim: &mut Shim, image: &str) -> Result<String, tonic::Status> {
    let request = PullImageRequest {
        image: Some(ImageSpec {
            image: image.into(),
            ..ImageSpec::default()
        }),
        ..PullImageRequest::default()
    };
    let answer = shim.images.pull_image(request).await?;
    Ok(answer.into_inner().image_ref)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_tools_push_runs_or_says_why_not() {
    let test = "what_tools_push_runs_or_says_why_not";
    let path = std::env::var_os("PATH").unwrap_or_default();
    for tool in ["docker-registry", "skopeo"] {
        if !std::env::split_paths(&path).any(|dir| dir.join(tool).exists()) {
            return support::node::skip(test, tool);
        }
    }
    let registry = Registry::start().await;
    let dir = tempfile::tempdir().unwrap();
    let host = registry.host.clone();
    let mut shim = Shim::start_with(dir.path(), |config| {
        config.registries.plain_http = vec![host.clone()];
    })
    .await;
    let wasm = wat::parse_str(guests::exits(42)).unwrap();
    let at = |name: &str| registry.dir.path().join(name);
    let one = |name: &str, config: (&str, Value), layers: &[(&str, &[u8])]| {
        let layout = Layout::new(&at(name));
        let entry = layout.manifest((config.0, &config.1), layers);
        layout.entry(&entry)
    };
    let wkg = json!({
        "created": "2026-01-01T00:00:00Z", "author": null, "architecture": "wasm", "os": "wasip2",
        "layerDigests": [], "component": {"exports": [], "imports": [], "target": null},
    });
    let artifact = "application/vnd.wasm.config.v0+json";
    let component = "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm";
    let bare = json!({"architecture": "wasm", "os": "wasip1", "rootfs": {"type": "layers", "diff_ids": []}});
    let (packed, diff) = layer("app.wasm", &wasm);
    let linux = image_config("linux", "amd64", &diff);
    let layers: [(&str, &[u8]); 1] = [(TAR_GZIP, &packed)];
    registry.push(
        &one("wkg", (artifact, wkg), &[("application/wasm", &wasm)]),
        "wkg",
        None,
    );
    registry.push(
        &one("runwasi", (OCI, bare.clone()), &[(component, &wasm)]),
        "runwasi",
        None,
    );
    registry.push(&buildx(&at("buildx"), &wasm), "buildx", None);
    registry.push(&one("linux", (OCI, linux.clone()), &layers), "linux", None);
    registry.push(
        &one("docker", (OCI, linux), &layers),
        "docker",
        Some("v2s2"),
    );
    let spin: [(&str, &[u8]); 2] = [
        ("application/vnd.wasm.content.layer.v1+wasm", &wasm),
        ("application/vnd.wasm.content.layer.v1+data", b"asset"),
    ];
    let app = json!({"spin_manifest_version": 1, "locked": {}, "components": []});
    let spin = one(
        "spin",
        ("application/vnd.fermyon.spin.application.v1+config", app),
        &spin,
    );
    registry.push(&spin, "spin", None);

    let pod = shim.sandbox("pod").await;
    for name in ["wkg", "runwasi", "buildx", "linux", "docker"] {
        let pulled = pull(&mut shim, &format!("{host}/{name}:latest")).await;
        let id = pulled.unwrap_or_else(|err| panic!("{name}: {err}"));
        let mut config = container(name, name);
        config.image = Some(ImageSpec {
            image: id,
            ..ImageSpec::default()
        });
        let id = shim.launch(&pod, config).await;
        assert_eq!(shim.exit(&id).await.exit_code, 42, "{name}");
    }
    let refused = pull(&mut shim, &format!("{host}/spin:latest"))
        .await
        .unwrap_err();
    assert!(refused.message().contains("Spin application"), "{refused}");
    shim.stop().await;
}
