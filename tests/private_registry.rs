//! Images from a registry that wants TLS by an authority of its own and a password (Debian's docker-registry), pushed by skopeo: with
//! pull secrets, the node's docker configuration and a credential provider plugin; zstd and gzip, tag and digest, Linux and Wasm.
#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "tests are stories, and fail by panicking"
)]

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use cox_testkit::linux::{self, Containerd};
use cox_testkit::{Cluster, Output, eventually, skip};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const COX: &str = env!("CARGO_BIN_EXE_cox");
const HELLO: &[u8] = include_bytes!("../examples/hello/hello.wasm");
const USER: &str = "me";
const PASSWORD: &str = "hush";
/// The same as `htpasswd -B` writes it.
const HTPASSWD: &str = "me:$2y$05$abcdefghijklmnopqrstuulzd.YqjLDl8lvpSmVj3De/fioSBHnUa\n";

/// A registry with a certificate, an authority and a password of its own.
struct Registry {
    process: Child,
    dir: tempfile::TempDir,
    port: u16,
}

impl Registry {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        certificates(dir.path());
        std::fs::write(dir.path().join("htpasswd"), HTPASSWD).unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let at = dir.path().display();
        let config = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {at}/content}}}}\n\
             auth: {{htpasswd: {{realm: test, path: {at}/htpasswd}}}}\n\
             http: {{addr: '127.0.0.1:{port}', tls: {{certificate: {at}/server.pem, key: {at}/server.key}}}}\n"
        );
        std::fs::write(dir.path().join("config.yml"), config).unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(dir.path().join("config.yml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let registry = Self { process, dir, port };
        eventually("the registry to listen", || {
            std::net::TcpStream::connect(("127.0.0.1", registry.port))
        });
        registry
    }

    fn authority(&self) -> PathBuf {
        self.dir.path().join("certs/ca.crt")
    }

    /// Has skopeo push `from`, its layers packed with `format`.
    fn push(&self, from: &str, repository: &str, format: &str) {
        let mut command = Command::new("skopeo");
        command
            .args(["copy", "--quiet", "--insecure-policy", "--format=oci"])
            .arg(format!("--dest-creds={USER}:{PASSWORD}"))
            .arg(format!(
                "--dest-cert-dir={}",
                self.dir.path().join("certs").display()
            ))
            .arg(format!("--dest-compress-format={format}"))
            .args([
                from,
                &format!("docker://127.0.0.1:{}/{repository}", self.port),
            ]);
        Output::of(&mut command).ok();
    }

    fn digest(&self, repository: &str) -> String {
        let mut command = Command::new("skopeo");
        command
            .args(["inspect", "--format={{.Digest}}"])
            .arg(format!("--creds={USER}:{PASSWORD}"))
            .arg(format!(
                "--cert-dir={}",
                self.dir.path().join("certs").display()
            ))
            .arg(format!("docker://127.0.0.1:{}/{repository}", self.port));
        Output::of(&mut command).ok().trim().to_owned()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// An authority, and a server's certificate by it.
fn certificates(dir: &Path) {
    std::fs::create_dir(dir.join("certs")).unwrap();
    std::fs::write(
        dir.join("server.ext"),
        "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n",
    )
    .unwrap();
    let new_key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    for line in [
        format!("req -x509 {new_key} -keyout ca.key -out certs/ca.crt -days 2 -subj /CN=test-ca"),
        format!("req {new_key} -keyout server.key -out server.csr -subj /CN=registry"),
        "x509 -req -in server.csr -CA certs/ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile server.ext -out server.pem".into(),
    ] {
        let mut command = Command::new("openssl");
        command.args(line.split(' ')).current_dir(dir);
        Output::of(&mut command).ok();
    }
}

/// The component as an OCI layout with the artifact that `wkg oci push` makes, for skopeo to push.
fn artifact(dir: &Path) -> String {
    let layout = dir.join("artifact");
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let blob = |media_type: &str, bytes: &[u8]| {
        let hex: String = Sha256::digest(bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        std::fs::write(blobs.join(&hex), bytes).unwrap();
        json!({"mediaType": media_type, "digest": format!("sha256:{hex}"), "size": bytes.len()})
    };
    let config = json!({"created": "2024-09-25T12:00:00Z", "architecture": "wasm", "os": "wasip2", "layerDigests": [], "component": {"exports": [], "imports": []}});
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": manifest_type,
        "config": blob("application/vnd.wasm.config.v0+json", config.to_string().as_bytes()),
        "layers": [blob("application/wasm", HELLO)],
    });
    let entry = blob(manifest_type, manifest.to_string().as_bytes());
    std::fs::write(
        layout.join("index.json"),
        json!({"schemaVersion": 2, "manifests": [entry]}).to_string(),
    )
    .unwrap();
    std::fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
    format!("oci:{}", layout.display())
}

/// A credential provider for images below `plugin/`: a program and the configuration that names it.
fn provider(dir: &Path, port: u16) -> (PathBuf, PathBuf) {
    let bin = dir.join("plugins");
    std::fs::create_dir(&bin).unwrap();
    let answer = json!({
        "kind": "CredentialProviderResponse", "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
        "cacheKeyType": "Registry", "auth": {format!("127.0.0.1:{port}/plugin"): {"username": USER, "password": PASSWORD}},
    });
    let script = format!("#!/bin/sh\ncat >/dev/null\ncat <<'X'\n{answer}\nX\n");
    std::fs::write(bin.join("keys"), script).unwrap();
    std::fs::set_permissions(bin.join("keys"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let config = dir.join("providers.yaml");
    std::fs::write(
        &config,
        format!(
            "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- name: keys\n  \
             matchImages: ['127.0.0.1:{port}/plugin']\n  defaultCacheDuration: 1h\n  \
             apiVersion: credentialprovider.kubelet.k8s.io/v1\n"
        ),
    )
    .unwrap();
    (config, bin)
}

fn pod(name: &str, image: &str, secret: Option<&str>, command: &[&str]) -> String {
    let mut container = json!({"name": "c", "image": image, "imagePullPolicy": "Always"});
    if !command.is_empty() {
        container["command"] = json!(command);
    }
    // On the node's network: pulls are what is looked at.
    let mut spec = json!({"hostNetwork": true, "restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [container]});
    if let Some(secret) = secret {
        spec["imagePullSecrets"] = json!([{"name": secret}]);
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}).to_string()
}

fn waiting(cluster: &Cluster, name: &str) -> Value {
    let pod = cluster.json(&["get", "pod", name]);
    pod["status"]["containerStatuses"][0]["state"]["waiting"].clone()
}

#[test]
fn private_images_are_pulled_with_every_kind_of_credentials() {
    let test = "private_images_are_pulled_with_every_kind_of_credentials";
    if !linux::can_run_containers(test) {
        return;
    }
    for tool in ["docker-registry", "skopeo", "openssl"] {
        let path = std::env::var_os("PATH").unwrap_or_default();
        if !std::env::split_paths(&path).any(|dir| dir.join(tool).exists()) {
            skip(test, tool);
            return;
        }
    }
    let registry = Registry::start();
    let port = registry.port;
    let containerd = Containerd::start();
    let socket = containerd.socket();
    let dir = tempfile::tempdir().unwrap();
    let (config, bin) = provider(dir.path(), port);
    let mut cluster = Cluster::prepare(
        COX,
        &[
            "--no-follow",
            "--containerd-socket",
            socket.to_str().unwrap(),
            "--image-credential-provider-config",
            config.to_str().unwrap(),
            "--image-credential-provider-bin-dir",
            bin.to_str().unwrap(),
        ],
    );
    std::fs::create_dir_all(cluster.data_dir()).unwrap();
    let trusted = json!({"ca_files": [registry.authority()]});
    std::fs::write(
        cluster.data_dir().join("registries.json"),
        trusted.to_string(),
    )
    .unwrap();
    cluster.start();

    let archive = dir.path().join("busybox.tar");
    linux::save_busybox(&archive, "docker.io/library/busybox:latest");
    let archive = format!("docker-archive:{}", archive.display());
    registry.push(&archive, "private/busybox:zstd", "zstd");
    registry.push(&archive, "private/busybox:gzip", "gzip");
    registry.push(&archive, "plugin/busybox:gzip", "gzip");
    registry.push(&artifact(dir.path()), "private/hello:1", "gzip");
    let digest = registry.digest("private/busybox:zstd");
    cluster
        .kubectl(&[
            "create",
            "secret",
            "docker-registry",
            "keys",
            &format!("--docker-server=127.0.0.1:{port}"),
            &format!("--docker-username={USER}"),
            &format!("--docker-password={PASSWORD}"),
        ])
        .ok();
    // Docker's own file, put there while the node runs.
    let packed = "bWU6aHVzaA==";
    let docker = json!({"auths": {format!("https://localhost:{port}"): {"auth": packed}}});
    std::fs::create_dir_all(cluster.data_dir().join("kubelet")).unwrap();
    std::fs::write(
        cluster.data_dir().join("kubelet/config.json"),
        docker.to_string(),
    )
    .unwrap();

    let private = format!("127.0.0.1:{port}/private");
    let line = &["sh", "-c", "echo pulled"][..];
    for (name, image, secret, command, said) in [
        (
            "secret",
            format!("{private}/busybox:zstd"),
            Some("keys"),
            line,
            "pulled",
        ),
        (
            "digest",
            format!("{private}/busybox@{digest}"),
            Some("keys"),
            line,
            "pulled",
        ),
        (
            "artifact",
            format!("{private}/hello:1"),
            Some("keys"),
            &[][..],
            "This is a Wasm component",
        ),
        (
            "docker-config",
            format!("localhost:{port}/private/busybox:gzip"),
            None,
            line,
            "pulled",
        ),
        (
            "plugin",
            format!("127.0.0.1:{port}/plugin/busybox:gzip"),
            None,
            line,
            "pulled",
        ),
    ] {
        cluster.apply(&pod(name, &image, secret, command)).ok();
        eventually(&format!("Pod {name} to have run"), || {
            let log = cluster.kubectl(&["logs", name]);
            if log.stdout.contains(said) {
                Ok(())
            } else {
                Err(format!(
                    "{}{}{}",
                    log.stdout,
                    log.stderr,
                    waiting(&cluster, name)
                ))
            }
        });
    }
    // Nothing fits: the registry's answer is what the user sees.
    cluster
        .apply(&pod(
            "nobody",
            &format!("{private}/busybox:gzip"),
            None,
            line,
        ))
        .ok();
    eventually("the Pod without credentials to be refused", || {
        let waiting = waiting(&cluster, "nobody");
        let reason = waiting["reason"].as_str().unwrap_or_default();
        let message = waiting["message"].as_str().unwrap_or_default();
        if reason.contains("ImagePull") && message.to_lowercase().contains("authoriz") {
            Ok(())
        } else {
            Err(waiting)
        }
    });
}
