//! Where objects are kept: backups and damage on a folder, several servers on one etcd, encryption, audit and fairness as a user
//! sees them.
#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    unreachable_pub,
    reason = "tests are tables and stories, and fail by panicking; etcd's kit is that of several test crates"
)]

#[path = "../store/tests/etcd_kit/mod.rs"]
mod etcd_kit;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use cox_testkit::cluster::{binary, kubectl_binary};
use cox_testkit::{Cluster, Output, eventually};

const COX: &str = env!("CARGO_BIN_EXE_cox");

/// A `cox server`, killed when dropped.
struct Server {
    dir: PathBuf,
    args: Vec<String>,
    process: Option<Child>,
}

impl Server {
    fn new(home: &Path, name: &str, args: &[&str]) -> Self {
        Self {
            dir: home.join(name),
            args: args.iter().map(ToString::to_string).collect(),
            process: None,
        }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(binary(COX));
        command
            .args(words)
            .arg("--data-dir")
            .arg(&self.dir)
            .arg("--state-dir")
            .arg(self.dir.join("state"))
            .stdin(Stdio::null());
        command
    }

    fn start(&mut self) {
        std::fs::create_dir_all(&self.dir).unwrap();
        let log_path = self.dir.join("log");
        let log = File::create(&log_path).unwrap();
        let child = self
            .command(&["server", "--port", "0"])
            .args(&self.args)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(child);
        eventually("cox server to be ready", || {
            let printed = std::fs::read_to_string(&log_path).unwrap();
            let ended = self.process.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "cox server ended: {printed}");
            if printed.contains("control plane is ready") {
                Ok(())
            } else {
                Err(printed)
            }
        });
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.process.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn interrupt(&mut self) {
        let mut child = self.process.take().unwrap();
        let pid = child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-INT", &pid])
                .status()
                .unwrap()
                .success()
        );
        assert!(child.wait().unwrap().success());
    }

    fn kubectl(&self, args: &[&str]) -> Output {
        let mut command = Command::new(kubectl_binary());
        command
            .arg("--kubeconfig")
            .arg(self.dir.join("kubeconfig"))
            .args(args);
        Output::of(&mut command)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.process.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

#[test]
fn a_damaged_store_is_named_and_the_last_backup_brings_it_back() {
    let home = tempfile::Builder::new()
        .prefix("cox-t")
        .tempdir_in("/tmp")
        .unwrap();
    let mut server = Server::new(home.path(), "a", &[]);
    server.start();
    server
        .kubectl(&["create", "configmap", "kept", "--from-literal=a=1"])
        .ok();
    let saved = Output::of(&mut server.command(&["store", "backup"])).ok();
    assert!(saved.contains("backup of"), "{saved}");
    server
        .kubectl(&["create", "configmap", "later", "--from-literal=a=1"])
        .ok();
    let busy = Output::of(&mut server.command(&["store", "check"])).refused();
    assert!(busy.contains("in use by another cox"), "{busy}");
    server.interrupt();

    let checked = Output::of(&mut server.command(&["store", "check"])).ok();
    assert!(checked.contains("is whole"), "{checked}");
    let compacted = Output::of(&mut server.command(&["store", "compact"])).ok();
    assert!(compacted.contains("objects in"), "{compacted}");
    let database = server.dir.join("store/db");
    let len = std::fs::metadata(&database).unwrap().len();
    File::options()
        .write(true)
        .open(&database)
        .unwrap()
        .set_len(len / 3)
        .unwrap();
    for words in [&["store", "check"][..], &["server", "--port", "0"]] {
        let named = Output::of(&mut server.command(words)).refused();
        assert!(named.contains("is damaged"), "{named}");
    }
    let restored = Output::of(&mut server.command(&["store", "restore"])).ok();
    assert!(
        restored.contains("objects restored") && restored.contains("what was there is in"),
        "{restored}"
    );
    server.start();
    server.kubectl(&["get", "configmap", "kept"]).ok();
    let gone = server.kubectl(&["get", "configmap", "later"]).refused();
    assert!(gone.contains("NotFound"), "{gone}");
    server
        .kubectl(&["create", "configmap", "new", "--from-literal=a=1"])
        .ok();
}

#[test]
fn two_servers_work_on_one_etcd_and_either_may_die() {
    if !etcd_kit::installed("two_servers_work_on_one_etcd_and_either_may_die") {
        return;
    }
    let etcd = etcd_kit::Cluster::start(1);
    let home = tempfile::Builder::new()
        .prefix("cox-t")
        .tempdir_in("/tmp")
        .unwrap();
    let args = ["--etcd-servers", &etcd.endpoint(0)];
    let mut one = Server::new(home.path(), "a", &args);
    one.start();
    let mut two = Server::new(home.path(), "b", &args);
    std::fs::create_dir_all(two.dir.join("pki")).unwrap();
    for entry in std::fs::read_dir(one.dir.join("pki")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, two.dir.join("pki").join(path.file_name().unwrap())).unwrap();
    }
    two.start();
    for round in 0..5 {
        let name = format!("shared-{round}");
        one.kubectl(&["create", "configmap", &name, "--from-literal=a=1"])
            .ok();
        two.kubectl(&["patch", "configmap", &name, "-p", r#"{"data":{"a":"2"}}"#])
            .ok();
        let read = one
            .kubectl(&["get", "configmap", &name, "-o", "jsonpath={.data.a}"])
            .ok();
        assert_eq!(read, "2");
    }
    let raw = etcd.etcdctl(&[
        "get",
        "--print-value-only",
        "/registry/configmaps/default/shared-1",
    ]);
    let raw: serde_json::Value = serde_json::from_slice(&raw).unwrap();
    assert_eq!(
        (&raw["kind"], &raw["data"]["a"]),
        (&"ConfigMap".into(), &"2".into())
    );
    let leader = || {
        let holder = [
            "get",
            "lease",
            "kube-controller-manager",
            "-n",
            "kube-system",
            "-o",
            "jsonpath={.spec.holderIdentity}",
        ];
        two.kubectl(&holder).ok()
    };
    assert!(!leader().is_empty());
    one.kill();
    two.kubectl(&[
        "create",
        "deployment",
        "web",
        "--image=none",
        "--replicas=2",
    ])
    .ok();
    eventually("the other server's controllers to take over", || {
        let pods = two.kubectl(&["get", "pods", "-o", "name"]).ok();
        if pods.lines().count() == 2 {
            Ok(())
        } else {
            Err(pods)
        }
    });
}

#[test]
fn secrets_are_encrypted_where_they_are_kept_and_requests_are_written_down() {
    let home = tempfile::Builder::new()
        .prefix("cox-t")
        .tempdir_in("/tmp")
        .unwrap();
    let file = |name: &str, text: &str| {
        let path = home.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let encryption = |keys: &str| {
        format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers:\n{keys}  - identity: {{}}\n"
        )
    };
    let (old, new) = (
        "  - aescbc: {keys: [{name: one, secret: MDEyMzQ1Njc4OWFiY2RlZg==}]}\n",
        "  - secretbox: {keys: [{name: two, secret: MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=}]}\n",
    );
    let keys = file("keys.yaml", &encryption(old));
    let policy = file(
        "policy.yaml",
        "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n- level: Metadata\n  resources: [{group: '', resources: [secrets]}]\n",
    );
    let log = home.path().join("audit.log");
    let args = [
        "--encryption-provider-config",
        &keys,
        "--audit-policy-file",
        &policy,
        "--audit-log-path",
        log.to_str().unwrap(),
    ];
    let mut server = Server::new(home.path(), "a", &args);
    server.start();
    let secret = "a-very-secret-text";
    let encoded = "YS12ZXJ5LXNlY3JldC10ZXh0";
    server
        .kubectl(&[
            "create",
            "secret",
            "generic",
            "s",
            &format!("--from-literal=k={secret}"),
        ])
        .ok();
    let read = ["get", "secret", "s", "-o", "jsonpath={.data.k}"];
    assert_eq!(server.kubectl(&read).ok(), encoded);
    server.interrupt();
    let database = server.dir.join("store/db");
    let holds = |text: &str| {
        let bytes = std::fs::read(&database).unwrap();
        bytes
            .windows(text.len())
            .any(|part| part == text.as_bytes())
    };
    assert!(!holds(encoded) && holds("k8s:enc:aescbc:v1:one:"));
    let events = std::fs::read_to_string(&log).unwrap();
    let created: serde_json::Value = events
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .find(|event| event["verb"] == "create")
        .unwrap();
    assert_eq!(created["objectRef"]["name"], "s");
    assert_eq!(
        (&created["responseStatus"]["code"], &created["level"]),
        (&201.into(), &"Metadata".into())
    );
    assert!(!events.contains(encoded));

    file("keys.yaml", &encryption(&format!("{new}{old}")));
    server.start();
    assert_eq!(server.kubectl(&read).ok(), encoded);
    let object = server.kubectl(&["get", "secret", "s", "-o", "json"]).ok();
    let path = file("s.json", &object);
    server.kubectl(&["replace", "-f", &path]).ok();
    server.interrupt();
    assert!(holds("k8s:enc:secretbox:v1:two:"));
    file("keys.yaml", &encryption(new));
    server.start();
    assert_eq!(
        server.kubectl(&read).ok(),
        encoded,
        "the old key is no longer needed"
    );
}

#[test]
fn answers_say_how_requests_were_classified() {
    let home = tempfile::Builder::new()
        .prefix("cox-t")
        .tempdir_in("/tmp")
        .unwrap();
    let mut server = Server::new(home.path(), "a", &[]);
    server.start();
    let conditions = r#"jsonpath={.status.conditions[?(@.type=="Dangling")].status}"#;
    eventually("the status of a FlowSchema", || {
        let status = server
            .kubectl(&["get", "flowschema", "global-default", "-o", conditions])
            .ok();
        if status == "False" {
            Ok(())
        } else {
            Err(status)
        }
    });
    let listed = server
        .kubectl(&["get", "prioritylevelconfigurations", "-o", "name"])
        .ok();
    assert_eq!(listed.lines().count(), 8, "{listed}");
    let uid = server
        .kubectl(&[
            "get",
            "flowschema",
            "exempt",
            "-o",
            "jsonpath={.metadata.uid}",
        ])
        .ok();
    let traced = server.kubectl(&["get", "namespaces", "-v=8"]);
    assert!(
        traced
            .stderr
            .to_lowercase()
            .contains("x-kubernetes-pf-flowschema-uid"),
        "{}",
        traced.stderr
    );
    assert!(traced.stderr.contains(&uid), "an administrator is exempt");
    let figures = server.kubectl(&["get", "--raw", "/metrics"]).ok();
    assert!(
        figures
            .contains("apiserver_flowcontrol_nominal_limit_seats{priority_level=\"workload-low\"}")
    );
}

/// Without a server there is nothing to back up, and the sentence says what to do.
#[test]
fn a_backup_of_nothing_is_refused() {
    let cluster = Cluster::prepare(COX, &[]);
    let refused = Output::of(&mut cluster.command("store backup")).refused();
    assert!(refused.contains("there is no cluster in"), "{refused}");
}
