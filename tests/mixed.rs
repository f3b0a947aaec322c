//! Pods whose containers are Wasm components and Linux containers in one: init containers, sidecars, volumes, localhost, restarts.
#![allow(
    clippy::unwrap_used,
    reason = "tests are stories, and fail by panicking"
)]

use cox_testkit::linux::MixedCluster;
use cox_testkit::{Output, eventually};
use serde_json::{Value, json};

const COX: &str = env!("CARGO_BIN_EXE_cox");

const COMPONENTS: [&str; 3] = [
    "examples/mixed/files.wasm",
    "examples/mixed/http.wasm",
    "runtime-shim/tests/guests/sockets/sockets.wasm",
];

struct Node(MixedCluster);

impl Node {
    fn start(test: &str) -> Option<Self> {
        MixedCluster::start(test, COX, &COMPONENTS).map(Self)
    }

    /// Applies a Pod whose containers share an emptyDir at /data, and waits until it is ready.
    fn run(&self, name: &str, init: &[Value], containers: &[Value]) {
        let manifest = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {
                "terminationGracePeriodSeconds": 1,
                "volumes": [{"name": "data", "emptyDir": {}}],
                "initContainers": init,
                "containers": containers,
            },
        });
        self.0.cluster.apply(&manifest.to_string()).ok();
        self.0
            .cluster
            .wait("condition=Ready", &format!("pod/{name}"));
    }

    fn log(&self, pod: &str, container: &str) -> String {
        self.0
            .cluster
            .kubectl(&["logs", pod, "-c", container])
            .stdout
    }

    fn logs(&self, pod: &str, container: &str, wanted: &str) {
        eventually(&format!("{container} of {pod} to print {wanted:?}"), || {
            let log = self.log(pod, container);
            if log.contains(wanted) {
                Ok(())
            } else {
                Err(log)
            }
        });
    }

    fn sh(&self, pod: &str, container: &str, line: &str) -> Output {
        self.0
            .cluster
            .kubectl(&["exec", pod, "-c", container, "--", "sh", "-c", line])
    }

    fn restarts(&self, pod: &str, container: &str) -> u64 {
        let pod = self.0.cluster.json(&["get", "pod", pod]);
        let kinds = ["initContainerStatuses", "containerStatuses"];
        let statuses = kinds
            .iter()
            .filter_map(|kind| pod["status"][kind].as_array())
            .flatten();
        let mut found = statuses.filter(|status| status["name"] == container);
        found.next().unwrap()["restartCount"].as_u64().unwrap()
    }
}

fn container(name: &str, image: &str) -> Value {
    json!({
        "name": name, "image": image, "imagePullPolicy": "IfNotPresent",
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    })
}

/// A Wasm component with arguments.
fn wasm(name: &str, image: &str, args: &[&str]) -> Value {
    let mut made = container(name, &format!("cox.local/{image}:latest"));
    made["args"] = json!(args);
    made
}

/// A Linux container that runs a line of the shell.
fn linux(name: &str, line: &str) -> Value {
    let mut made = container(name, "docker.io/library/busybox:latest");
    made["command"] = json!(["sh", "-c", line]);
    made
}

fn sidecar(mut container: Value) -> Value {
    container["restartPolicy"] = json!("Always");
    container
}

#[test]
fn an_init_container_of_one_kind_prepares_for_a_container_of_the_other() {
    let Some(node) =
        Node::start("an_init_container_of_one_kind_prepares_for_a_container_of_the_other")
    else {
        return;
    };
    node.0
        .cluster
        .kubectl(&[
            "create",
            "configmap",
            "greeting",
            "--from-literal=greeting=hello from Wasm",
        ])
        .ok();
    let manifest = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "wasm-first"},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "volumes": [{"name": "data", "emptyDir": {}}, {"name": "config", "configMap": {"name": "greeting"}}],
            "initContainers": [{
                "name": "init", "image": "cox.local/files:latest", "imagePullPolicy": "IfNotPresent", "args": ["init"],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "config", "mountPath": "/config", "readOnly": true}],
            }],
            "containers": [linux("main", "cat /data/lines.txt; exec sleep 1000")],
        },
    });
    node.0.cluster.apply(&manifest.to_string()).ok();
    node.run(
        "linux-first",
        &[linux("init", "echo hello from Linux >/data/lines.txt")],
        &[wasm("main", "files", &["read"])],
    );
    node.logs("linux-first", "main", "read: hello from Linux");
    node.0.cluster.wait("condition=Ready", "pod/wasm-first");
    node.logs("wasm-first", "main", "hello from Wasm");
}

#[test]
fn variables_of_a_file_reach_containers_of_both_kinds() {
    let Some(node) = Node::start("variables_of_a_file_reach_containers_of_both_kinds") else {
        return;
    };
    let hello = "examples/hello/hello.wasm";
    Output::of(node.0.cluster.command("image load").arg(hello)).ok();
    let from_file = |name: &str| json!({"name": name, "valueFrom": {"fileKeyRef": {"volumeName": "data", "path": "config.env", "key": name}}});
    let reading = |mut container: Value| {
        container["env"] = json!([from_file("WHO"), from_file("HOSTNAME")]);
        // Who reads a variable needs no mount of its file.
        container["volumeMounts"] = json!([]);
        container
    };
    let write = "printf \"# for the others\\nWHO='a file'\\nHOSTNAME='a volume' # both\\n\" >/data/config.env";
    node.run(
        "told",
        &[linux("init", write)],
        &[
            reading(wasm("wasm", "hello", &["$(WHO)"])),
            reading(linux(
                "linux",
                "echo \"$WHO in $HOSTNAME\"; exec sleep 1000",
            )),
        ],
    );
    node.logs(
        "told",
        "wasm",
        "Hello, a file! This is a Wasm component in a volume.",
    );
    node.logs("told", "linux", "a file in a volume");
}

#[test]
fn a_sidecar_of_one_kind_passes_on_what_comes_for_the_other() {
    let Some(node) = Node::start("a_sidecar_of_one_kind_passes_on_what_comes_for_the_other") else {
        return;
    };
    // The service of the Linux container is on the Pod's loopback only: who is not in the Pod gets to it through the sidecar.
    node.run(
        "wasm-proxy",
        &[sidecar(wasm("proxy", "sockets", &["proxy", "9000", "127.0.0.1", "8000"]))],
        &[linux(
            "main",
            "mkdir /www; echo served by Linux >/www/index.html; exec httpd -f -p 127.0.0.1:8000 -h /www",
        )],
    );
    node.run(
        "linux-proxy",
        &[sidecar(linux(
            "proxy",
            "exec nc -ll -p 9000 -e nc 127.0.0.1 8080",
        ))],
        &[wasm("main", "http", &[])],
    );
    for (pod, from, asked, expected) in [
        ("wasm-proxy", "main", "127.0.0.1", "served by Linux"),
        (
            "linux-proxy",
            "proxy",
            "127.0.0.1",
            "Hello from linux-proxy, you asked for /",
        ),
        (
            "wasm-proxy",
            "main",
            "linux-proxy",
            "Hello from linux-proxy, you asked for /",
        ),
        ("linux-proxy", "proxy", "wasm-proxy", "served by Linux"),
    ] {
        let host = if asked == "127.0.0.1" {
            asked.to_owned()
        } else {
            let pod = node.0.cluster.json(&["get", "pod", asked]);
            pod["status"]["podIP"].as_str().unwrap().to_owned()
        };
        let line = format!("wget -q -O - http://{host}:9000/");
        eventually(
            &format!("{from} of {pod} to reach port 9000 of {asked}"),
            || {
                let answer = node.sh(pod, from, &line);
                if answer.stdout.trim() == expected {
                    Ok(())
                } else {
                    Err(format!("{}{}", answer.stdout, answer.stderr))
                }
            },
        );
    }
    node.logs("wasm-proxy", "proxy", "passing on to 127.0.0.1:8000");
}

#[test]
fn both_kinds_follow_one_file_and_each_is_restarted_alone() {
    let Some(node) = Node::start("both_kinds_follow_one_file_and_each_is_restarted_alone") else {
        return;
    };
    node.run(
        "pair",
        &[linux("init", "echo first >/data/lines.txt")],
        &[
            linux(
                "linux",
                "trap 'exit 7' TERM; tail -f /data/lines.txt & wait $!",
            ),
            wasm("wasm", "files", &["read"]),
        ],
    );
    node.sh("pair", "linux", "echo second >>/data/lines.txt")
        .ok();
    node.logs("pair", "linux", "second");
    node.logs("pair", "wasm", "read: second");
    // The Linux container's process is told to end: it comes back, its neighbour has noticed nothing.
    // What becomes of the exec itself is a race: its container goes.
    node.sh("pair", "linux", "kill -TERM 1");
    eventually("the Linux container to be restarted", || {
        match node.restarts("pair", "linux") {
            0 => Err("not yet"),
            _ => Ok(()),
        }
    });
    node.0.cluster.wait("condition=Ready", "pod/pair");
    let pod = node.0.cluster.json(&["get", "pod", "pair"]);
    let linux = pod["status"]["containerStatuses"]
        .as_array()
        .unwrap()
        .iter()
        .find(|status| status["name"] == "linux")
        .unwrap();
    assert_eq!(linux["lastState"]["terminated"]["exitCode"], 7);
    assert_eq!(node.restarts("pair", "wasm"), 0);
    // The component fails when its file is gone: now it is restarted, and the Linux container goes on.
    let before = node.restarts("pair", "linux");
    node.sh("pair", "linux", "mv /data/lines.txt /data/away")
        .ok();
    eventually("the component to have failed", || {
        match node.restarts("pair", "wasm") {
            0 => Err("not yet"),
            _ => Ok(()),
        }
    });
    node.sh(
        "pair",
        "linux",
        "mv /data/away /data/lines.txt; echo third >>/data/lines.txt",
    )
    .ok();
    node.logs("pair", "wasm", "read: third");
    node.0.cluster.wait("condition=Ready", "pod/pair");
    assert_eq!(node.restarts("pair", "linux"), before);
}

#[test]
fn a_virtual_pod_and_a_pod_with_a_namespace_reach_each_other() {
    let Some(node) = Node::start("a_virtual_pod_and_a_pod_with_a_namespace_reach_each_other")
    else {
        return;
    };
    let address = |pod: &str| {
        let pod = node.0.cluster.json(&["get", "pod", pod]);
        pod["status"]["podIP"].as_str().unwrap().to_owned()
    };
    node.run("virtual", &[], &[wasm("main", "http", &[])]);
    node.run(
        "linux",
        &[],
        &[linux(
            "main",
            "while true; do echo hello from Linux | nc -l -p 9000; done",
        )],
    );
    let (virtual_ip, linux_ip) = (address("virtual"), address("linux"));
    let line = format!("wget -q -O - http://{virtual_ip}:8080/from-linux");
    assert_eq!(
        node.sh("linux", "main", &line).ok().trim(),
        "Hello from virtual, you asked for /from-linux"
    );
    // All Wasm: a virtual Pod, whose address is of the node's other half.
    node.run(
        "client",
        &[],
        &[wasm(
            "main",
            "sockets",
            &["proxy", "9000", &linux_ip, "9000"],
        )],
    );
    let client = address("client");
    let line = format!("nc -w 5 {client} 9000 </dev/null");
    eventually("the virtual Pod to pass on what Linux says", || {
        let answer = node.sh("linux", "main", &line);
        if answer.stdout.trim() == "hello from Linux" {
            Ok(())
        } else {
            Err(format!("{}{}", answer.stdout, answer.stderr))
        }
    });
}
