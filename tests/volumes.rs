//! Volumes and where they let Pods go, as a user sees it: claims that wait for their Pod, volumes that are elsewhere, claims for one
//! Pod alone, block devices in Linux containers, and keys with certificates of a signer.
#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "tests are stories, and fail by panicking"
)]

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use cox_testkit::linux::MixedCluster;
use cox_testkit::{Cluster, Output, eventually, skip};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use rcgen::{CertificateParams, CertificateSigningRequestParams, Issuer, KeyPair};
use serde_json::{Value, json};

const COX: &str = env!("CARGO_BIN_EXE_cox");
const HELLO: &str = "examples/hello/hello.wasm";

/// A class of volumes that somebody else made, which wait for their Pod.
fn late_class() -> Value {
    json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "late"},
        "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer"})
}

/// A local volume of that class on a node.
fn volume(name: &str, path: &Path, node: &str, mode: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": {
        "storageClassName": "late", "capacity": {"storage": "8Mi"}, "accessModes": ["ReadWriteOnce"], "volumeMode": mode,
        "persistentVolumeReclaimPolicy": "Retain", "local": {"path": path},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}}}})
}

fn claim(name: &str, class: &str, access: &str, mode: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": {
        "storageClassName": class, "accessModes": [access], "volumeMode": mode, "resources": {"requests": {"storage": "8Mi"}}}})
}

/// A Pod with these containers, and a volume `v` from a claim.
fn pod(name: &str, claim: &str, container: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"terminationGracePeriodSeconds": 1,
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}], "containers": [container]}})
}

fn apply(cluster: &Cluster, object: &Value) {
    cluster.apply(&object.to_string()).ok();
}

/// Waits until the scheduler says this of a Pod.
fn told(cluster: &Cluster, pod: &str, wanted: &str) {
    eventually(&format!("{pod} to be told {wanted:?}"), || {
        let pod = cluster.json(&["get", "pod", pod]);
        let conditions = pod["status"]["conditions"].as_array().cloned();
        let mut conditions = conditions.unwrap_or_default().into_iter();
        let scheduled = conditions.find(|one| one["type"] == "PodScheduled");
        let message = scheduled.unwrap_or_default()["message"].clone();
        if message == wanted {
            Ok(())
        } else {
            Err(message)
        }
    });
}

fn node_of(cluster: &Cluster) -> String {
    let nodes = cluster.json(&["get", "nodes"]);
    nodes["items"][0]["metadata"]["name"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[test]
fn pods_wait_for_their_volumes_and_go_where_they_are() {
    let cluster = Cluster::up(COX, &["--no-follow"]);
    Output::of(cluster.command("image load").arg(HELLO)).ok();
    let node = node_of(&cluster);
    let hello = json!({"name": "c", "image": "cox.local/hello:latest", "imagePullPolicy": "IfNotPresent",
        "volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    apply(&cluster, &late_class());
    apply(&cluster, &pod("late", "late", &hello));
    told(
        &cluster,
        "late",
        "0/1 nodes are available: persistentvolumeclaim \"late\" not found.",
    );
    apply(
        &cluster,
        &claim("late", "late", "ReadWriteOnce", "Filesystem"),
    );
    let none =
        "0/1 nodes are available: 1 node(s) didn't find available persistent volumes to bind.";
    told(&cluster, "late", none);
    let folder = cluster.scratch().join("here");
    std::fs::create_dir(&folder).unwrap();
    apply(
        &cluster,
        &volume("elsewhere", &folder, "another-node", "Filesystem"),
    );
    apply(&cluster, &volume("here", &folder, &node, "Filesystem"));
    cluster.wait("condition=PodScheduled", "pod/late");
    let bound = cluster.json(&["get", "pvc", "late"]);
    assert_eq!(
        (&bound["status"]["phase"], &bound["spec"]["volumeName"]),
        (&json!("Bound"), &json!("here"))
    );
    let free = cluster.json(&["get", "pv", "elsewhere"]);
    assert_eq!(free["status"]["phase"], "Available");

    // The node's own class makes a volume for the node that was chosen; a claim for one Pod alone is for one.
    apply(
        &cluster,
        &claim("alone", "local-path", "ReadWriteOncePod", "Filesystem"),
    );
    apply(&cluster, &pod("first", "alone", &hello));
    cluster.wait("condition=PodScheduled", "pod/first");
    let made = cluster.json(&["get", "pvc", "alone"]);
    let chosen = &made["metadata"]["annotations"]["volume.kubernetes.io/selected-node"];
    assert_eq!(
        (chosen, &made["status"]["phase"]),
        (&json!(node), &json!("Bound"))
    );
    apply(&cluster, &pod("second", "alone", &hello));
    let taken = "0/1 nodes are available: 1 node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod.";
    told(&cluster, "second", taken);
    cluster.kubectl(&["delete", "pod", "first", "--now"]).ok();
    cluster.wait("condition=PodScheduled", "pod/second");
}

/// A loop device over a file; taken apart when dropped.
struct Loop {
    device: PathBuf,
}

impl Loop {
    /// `None` where there are no loop devices, which is said.
    fn new(test: &str, file: &Path) -> Option<Self> {
        std::fs::write(file, vec![0; 8 << 20]).unwrap();
        let made = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output();
        let device = made.ok().filter(|made| made.status.success());
        let Some(device) = device else {
            skip(test, "loop devices (losetup)");
            return None;
        };
        let device = String::from_utf8(device.stdout).unwrap();
        Some(Self {
            device: PathBuf::from(device.trim()),
        })
    }

    fn starts_with(&self, text: &str) -> bool {
        use std::io::Read as _;
        let mut found = vec![0; text.len()];
        let mut device = std::fs::File::open(&self.device).unwrap();
        device.read_exact(&mut found).unwrap();
        found == text.as_bytes()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        Command::new("losetup")
            .arg("--detach")
            .arg(&self.device)
            .status()
            .ok();
    }
}

#[test]
fn a_block_volume_is_a_device_of_a_linux_container() {
    let test = "a_block_volume_is_a_device_of_a_linux_container";
    let Some(node) = MixedCluster::start(test, COX, &[HELLO]) else {
        return;
    };
    let cluster = &node.cluster;
    let Some(disk) = Loop::new(test, &cluster.scratch().join("disk")) else {
        return;
    };
    apply(cluster, &late_class());
    apply(
        cluster,
        &volume("disk", &disk.device, &node_of(cluster), "Block"),
    );
    apply(cluster, &claim("disk", "late", "ReadWriteOnce", "Block"));
    let linux = |line: &str| {
        json!({"name": "c", "image": "docker.io/library/busybox:latest", "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", line], "volumeDevices": [{"name": "v", "devicePath": "/dev/disk"}]})
    };
    let writer = linux(
        "test -b /dev/disk && printf written | dd of=/dev/disk conv=notrunc,fsync && touch /tmp/done; exec sleep 1000",
    );
    apply(cluster, &pod("writer", "disk", &writer));
    cluster.wait("condition=Ready", "pod/writer");
    eventually("the container to have written to its device", || {
        let done = cluster.kubectl(&["exec", "writer", "--", "ls", "/tmp/done"]);
        if done.status.success() {
            Ok(())
        } else {
            Err(cluster.kubectl(&["logs", "writer"]).stdout)
        }
    });
    assert!(
        disk.starts_with("written"),
        "what was written is on the device"
    );
    let bound = cluster.json(&["get", "pv", "disk"]);
    assert_eq!(bound["status"]["phase"], "Bound");
    // A device that was not given is not there: the cgroup lets a container use its own only.
    let other = cluster.kubectl(&[
        "exec",
        "writer",
        "--",
        "sh",
        "-c",
        "mknod /tmp/other b 7 9 && head -c1 /tmp/other",
    ]);
    let refused = other.refused();
    assert!(
        refused.contains("ermitted") || refused.contains("ermission"),
        "{refused}"
    );

    // It is the same for the next Pod, which may only read.
    cluster.kubectl(&["delete", "pod", "writer", "--now"]).ok();
    let mut reader = pod(
        "reader",
        "disk",
        &linux(
            "dd if=/dev/disk bs=7 count=1 2>/dev/null; (printf x >/dev/disk) 2>/dev/null && echo yes || echo no; exec sleep 1000",
        ),
    );
    reader["spec"]["volumes"][0]["persistentVolumeClaim"]["readOnly"] = json!(true);
    apply(cluster, &reader);
    cluster.wait("condition=Ready", "pod/reader");
    eventually("the reader to have tried", || {
        let log = cluster.kubectl(&["logs", "reader"]).stdout;
        if log == "writtenno\n" {
            Ok(())
        } else {
            Err(log)
        }
    });
    assert!(disk.starts_with("written"), "nothing was written over it");
    cluster.kubectl(&["delete", "pod", "reader", "--now"]).ok();

    // A guest has no devices: it says so, and does not start without.
    let mut guest =
        json!({"name": "c", "image": "cox.local/hello:latest", "imagePullPolicy": "IfNotPresent"});
    guest["volumeDevices"] = json!([{"name": "v", "devicePath": "/dev/disk"}]);
    apply(cluster, &pod("guest", "disk", &guest));
    eventually("the guest to say that it gets no device", || {
        let status = cluster.json(&["get", "pod", "guest"])["status"]["containerStatuses"][0]["state"]["waiting"].clone();
        let message = status["message"].as_str().unwrap_or_default().to_owned();
        if message.contains("device") {
            Ok(())
        } else {
            Err(status)
        }
    });
}

/// Who signs for `example.com/team`: what it may is said apart from whether it may sign.
fn signer_account() -> Vec<Value> {
    let subjects = json!([{"kind": "ServiceAccount", "name": "signer", "namespace": "default"}]);
    let bind = |name: &str| {
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}, "subjects": subjects})
    };
    let role = |name: &str, rules: Value| json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules});
    let requests = json!([{"apiGroups": ["certificates.k8s.io"], "verbs": ["get", "list", "watch", "patch"],
        "resources": ["podcertificaterequests", "podcertificaterequests/status"]}]);
    let sign = json!([{"apiGroups": ["certificates.k8s.io"], "verbs": ["sign"], "resources": ["signers"],
        "resourceNames": ["example.com/team"]}]);
    vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "signer"}}),
        role("answers", requests),
        bind("answers"),
        role("signs", sign),
        bind("signs"),
    ]
}

/// What an authority of the test says to a request.
fn signed(request: &Value) -> Value {
    let begins = Timestamp::from_second(Timestamp::now().as_second()).unwrap();
    let (refresh, ends) = (
        begins + SignedDuration::from_mins(30),
        begins + SignedDuration::from_hours(1),
    );
    let stub = request["spec"]["stubPKCS10Request"].as_str().unwrap();
    let stub = base64::engine::general_purpose::STANDARD
        .decode(stub)
        .unwrap();
    let mut asked = CertificateSigningRequestParams::from_der(&stub.into()).unwrap();
    let time = |at: Timestamp| time::OffsetDateTime::from_unix_timestamp(at.as_second()).unwrap();
    asked.params.not_before = time(begins);
    asked.params.not_after = time(ends);
    let authority = Issuer::new(CertificateParams::default(), KeyPair::generate().unwrap());
    let chain = asked.signed_by(&authority).unwrap().pem();
    json!({"status": {"certificateChain": chain, "notBefore": begins.to_string(), "notAfter": ends.to_string(),
        "beginRefreshAt": refresh.to_string(), "conditions": [{"type": "Issued", "status": "True", "reason": "Known",
            "message": "", "lastTransitionTime": begins.to_string()}]}})
}

#[test]
fn containers_of_both_kinds_have_a_key_and_the_certificate_of_a_signer() {
    let test = "containers_of_both_kinds_have_a_key_and_the_certificate_of_a_signer";
    let Some(node) = MixedCluster::start(test, COX, &["examples/mixed/files.wasm"]) else {
        return;
    };
    let cluster = &node.cluster;
    let account = signer_account();
    let (sign, others) = account.split_last().unwrap();
    others.iter().for_each(|object| apply(cluster, object));
    let mounted = json!([{"name": "v", "mountPath": "/data"}]);
    apply(
        cluster,
        &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"terminationGracePeriodSeconds": 1,
            "volumes": [{"name": "v", "projected": {"sources": [{"podCertificate": {"signerName": "example.com/team", "keyType": "ED25519",
                "credentialBundlePath": "lines.txt"}}]}}],
            "containers": [
                {"name": "guest", "image": "cox.local/files:latest", "imagePullPolicy": "IfNotPresent", "args": ["read"], "volumeMounts": mounted},
                {"name": "linux", "image": "docker.io/library/busybox:latest", "imagePullPolicy": "IfNotPresent", "volumeMounts": mounted,
                    "command": ["sh", "-c", "cat /data/lines.txt; exec sleep 1000"]}]}}),
    );
    let request = eventually("the node to ask for a certificate", || {
        let all = cluster.json(&["get", "podcertificaterequests"]);
        all["items"][0]
            .is_object()
            .then(|| all["items"][0].clone())
            .ok_or(all)
    });
    let name = request["metadata"]["name"].as_str().unwrap();
    let status = signed(&request);
    let patch = || {
        cluster.kubectl(&[
            "patch",
            "podcertificaterequest",
            name,
            "--subresource=status",
            "--type=merge",
            "--as=system:serviceaccount:default:signer",
            "-p",
            &status.to_string(),
        ])
    };
    let refused = patch().refused();
    assert!(refused.contains("not permitted to sign"), "{refused}");
    apply(cluster, sign);
    patch().ok();
    cluster.wait("condition=Ready", "pod/p");
    let table = cluster.kubectl(&["get", "podcertificaterequests"]).ok();
    assert!(table.contains("Issued"), "{table}");
    let chain = status["status"]["certificateChain"].as_str().unwrap();
    let last = chain.trim().lines().rev().nth(1).unwrap();
    for container in ["guest", "linux"] {
        eventually("the container to show what it has", || {
            let log = cluster.kubectl(&["logs", "p", "-c", container]).stdout;
            if log.contains("-----BEGIN PRIVATE KEY-----") && log.contains(last) {
                Ok(())
            } else {
                Err(log)
            }
        });
    }
    // Requests go with their Pod.
    cluster.kubectl(&["delete", "pod", "p", "--now"]).ok();
    eventually("the request to go", || {
        let left = cluster.json(&["get", "podcertificaterequests"])["items"].clone();
        if left == json!([]) { Ok(()) } else { Err(left) }
    });
}
