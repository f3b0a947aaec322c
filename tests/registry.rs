//! Images from a real registry (Debian's docker-registry), in the formats that the field pushes.
#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    clippy::type_complexity,
    reason = "tests are tables and stories, and fail by panicking"
)]

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use cox_testkit::http::{self, Answer};
use cox_testkit::{Cluster, eventually, skip};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const COX: &str = env!("CARGO_BIN_EXE_cox");
const HELLO: &[u8] = include_bytes!("../examples/hello/hello.wasm");
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A registry with a folder and a port of its own.
struct Registry {
    process: Child,
    address: String,
    _dir: tempfile::TempDir,
}

impl Registry {
    fn start() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let address = format!("127.0.0.1:{port}");
        let config = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            dir.path().display()
        );
        std::fs::write(dir.path().join("config.yml"), config).unwrap();
        let mut command = Command::new("docker-registry");
        command
            .args(["serve"])
            .arg(dir.path().join("config.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = command.spawn().ok()?;
        let registry = Self {
            process,
            address,
            _dir: dir,
        };
        eventually("the registry to answer", || {
            http::get(&registry.address, "/v2/")
        });
        Some(registry)
    }

    fn push_blob(&self, repository: &str, bytes: &[u8]) -> Value {
        let digest = digest(bytes);
        let begun = http::send(
            &self.address,
            "POST",
            &format!("/v2/{repository}/blobs/uploads/"),
            &[],
            b"",
        )
        .unwrap();
        let location = begun.header("location").unwrap();
        let path = location
            .split_once(&self.address)
            .map_or(location, |(_, path)| path);
        let separator = if path.contains('?') { '&' } else { '?' };
        let headers = [("Content-Type", "application/octet-stream")];
        let put = http::send(
            &self.address,
            "PUT",
            &format!("{path}{separator}digest={digest}"),
            &headers,
            bytes,
        )
        .unwrap();
        assert_eq!(put.status, 201, "{put:?}");
        json!({"digest": digest, "size": bytes.len()})
    }

    fn push_manifest(&self, repository: &str, manifest: &Value) -> Answer {
        let headers = [("Content-Type", MANIFEST)];
        let put = http::send(
            &self.address,
            "PUT",
            &format!("/v2/{repository}/manifests/v1"),
            &headers,
            manifest.to_string().as_bytes(),
        )
        .unwrap();
        assert_eq!(put.status, 201, "{put:?}");
        put
    }

    /// Pushes an image of one layer; gives back its reference.
    fn push(
        &self,
        repository: &str,
        config_type: &str,
        config: &Value,
        layer_type: &str,
        layer: &[u8],
    ) -> String {
        let mut config_blob = self.push_blob(repository, config.to_string().as_bytes());
        config_blob["mediaType"] = config_type.into();
        let mut layer_blob = self.push_blob(repository, layer);
        layer_blob["mediaType"] = layer_type.into();
        self.push_manifest(repository, &json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config_blob, "layers": [layer_blob]}));
        format!("{}/{repository}:v1", self.address)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

fn digest(bytes: &[u8]) -> String {
    let hash: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hash}")
}

/// A tar archive with one file, as an image's layer.
fn tar(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..107].copy_from_slice(b"0000755");
    header[108..115].copy_from_slice(b"0000000");
    header[116..123].copy_from_slice(b"0000000");
    header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    header[136..147].copy_from_slice(b"00000000000");
    header[148..156].copy_from_slice(b"        ");
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut archive = header.to_vec();
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(512) + 1024, 0);
    archive
}

fn pod(name: &str, image: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  runtimeClassName: wasm\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
         - {{name: c, image: '{image}', imagePullPolicy: Always, args: [{name}]}}\n"
    )
}

#[test]
fn images_of_every_format_run_from_a_registry() {
    let Some(registry) = Registry::start() else {
        return skip(
            "images_of_every_format_run_from_a_registry",
            "docker-registry is not installed",
        );
    };
    let mut cluster = Cluster::prepare(COX, &["--no-follow"]);
    std::fs::create_dir_all(cluster.data_dir()).unwrap();
    std::fs::write(
        cluster.data_dir().join("registries.json"),
        json!({"plain_http": [registry.address]}).to_string(),
    )
    .unwrap();
    cluster.start();

    let artifact_config = json!({"created": "2026-01-01T00:00:00Z", "architecture": "wasm", "os": "wasip2", "layerDigests": [digest(HELLO)],
                                 "component": {"exports": ["wasi:cli/run@0.2.0"], "imports": []}});
    let image_config = |os: &str, entrypoint: &str| json!({"architecture": "wasm", "os": os, "config": {"Entrypoint": [entrypoint]}, "rootfs": {"type": "layers", "diff_ids": []}});
    let oci_config = "application/vnd.oci.image.config.v1+json";
    let images = [
        (
            "artifact",
            registry.push(
                "artifact",
                "application/vnd.wasm.config.v0+json",
                &artifact_config,
                "application/wasm",
                HELLO,
            ),
        ),
        (
            "runwasi",
            registry.push(
                "runwasi",
                oci_config,
                &image_config("wasip2", ""),
                "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
                HELLO,
            ),
        ),
        (
            "buildx",
            registry.push(
                "buildx",
                oci_config,
                &image_config("wasi", "/hello.wasm"),
                "application/vnd.oci.image.layer.v1.tar",
                &tar("hello.wasm", HELLO),
            ),
        ),
    ];
    for (name, image) in &images {
        cluster.apply(&pod(name, image)).ok();
    }
    for (name, _) in &images {
        cluster.wait("condition=Ready", &format!("pod/{name}"));
        assert!(
            cluster
                .kubectl(&["logs", name])
                .ok()
                .contains(&format!("Hello, {name}!"))
        );
    }

    let linux = json!({"architecture": "amd64", "os": "linux", "config": {"Entrypoint": ["/bin/sh"]}, "rootfs": {"type": "layers", "diff_ids": []}});
    let image = registry.push(
        "linux",
        oci_config,
        &linux,
        "application/vnd.oci.image.layer.v1.tar",
        &tar("bin/sh", b"\x7fELF"),
    );
    cluster.apply(&pod("linux", &image)).ok();
    let message = eventually("the event that says why", || {
        let events = cluster.json(&[
            "get",
            "events",
            "--field-selector",
            "involvedObject.name=linux",
        ]);
        let messages: Vec<String> = events["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|event| event["message"].as_str().unwrap_or_default().to_owned())
            .collect();
        messages
            .iter()
            .find(|message| message.contains("no container runtime on this node"))
            .cloned()
            .ok_or(messages)
    });
    assert!(message.contains(&image), "{message}");
}
