//! Resource claims from end to end: a driver offers devices, the scheduler allocates them to Pods by their claims, the node has them
//! prepared, containers of both kinds get them, and when their Pods are gone others have them.
#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "tests are stories, and fail by panicking"
)]

#[path = "../kubelet/tests/support/driver.rs"]
mod driver;

use cox_kubelet::claims::proto::{Claim, Device};
use cox_testkit::eventually;
use cox_testkit::linux::MixedCluster;
use driver::{DRIVER, Driver};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;

const COX: &str = env!("CARGO_BIN_EXE_cox");
/// Where runtimes look for descriptions of devices.
const CDI: &str = "/var/run/cdi";

/// A vendor's description of its devices, there as long as the test.
struct Vendor {
    file: PathBuf,
    kind: String,
}

impl Vendor {
    fn new() -> Self {
        let id = std::process::id();
        let kind = format!("cox-test-{id}.example.com/oar");
        let oar = |name: &str| json!({"name": name, "containerEdits": {"env": [format!("HOSTNAME={name}")]}});
        let node = json!({"path": "/dev/engine", "hostPath": "/dev/null"});
        let engine = json!({"name": "engine", "containerEdits": {"deviceNodes": [node]}});
        let devices = [oar("left"), oar("right"), engine];
        let text = json!({"cdiVersion": "0.6.0", "kind": kind, "devices": devices}).to_string();
        std::fs::create_dir_all(CDI).unwrap();
        let file = PathBuf::from(CDI).join(format!("cox-test-{id}.json"));
        std::fs::write(&file, text).unwrap();
        Self { file, kind }
    }
}

impl Drop for Vendor {
    fn drop(&mut self) {
        std::fs::remove_file(&self.file).ok();
    }
}

/// A request for one device with these words in its selector.
fn template(name: &str, selector: &str) -> Value {
    let selectors = json!([{"cel": {"expression": selector}}]);
    let exactly = json!({"deviceClassName": "boats", "selectors": selectors});
    json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaimTemplate", "metadata": {"name": name},
        "spec": {"spec": {"devices": {"requests": [{"name": "one", "exactly": exactly}]}}}})
}

/// Both containers use the Pod's claim.
fn pod_spec(template: &str) -> Value {
    let container = |name: &str, image: &str| {
        json!({"name": name, "image": image, "imagePullPolicy": "IfNotPresent",
            "resources": {"claims": [{"name": "mine"}]}})
    };
    let mut linux = container("linux", "docker.io/library/busybox:latest");
    linux["command"] = json!(["sh", "-c", "echo I am $HOSTNAME; exec sleep 1000"]);
    json!({"terminationGracePeriodSeconds": 1,
        "resourceClaims": [{"name": "mine", "resourceClaimTemplateName": template}],
        "containers": [linux, container("wasm", "cox.local/hello:latest")]})
}

fn pod(name: &str, template: &str) -> String {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod_spec(template)}).to_string()
}

#[test]
fn devices_are_offered_allocated_used_by_both_kinds_and_given_back() {
    let test = "devices_are_offered_allocated_used_by_both_kinds_and_given_back";
    let Some(node) = MixedCluster::start(test, COX, &["examples/hello/hello.wasm"]) else {
        return;
    };
    let node = Arc::new(node);
    let (cluster, asked) = (&node.cluster, node.clone());
    let vendor = Vendor::new();
    let kind = vendor.kind.clone();
    // As drivers do: what was allocated stands in the claim.
    let devices = move |claim: &Claim| {
        let (namespace, name) = (claim.namespace.as_str(), claim.name.as_str());
        let found = (asked.cluster).json(&["get", "resourceclaim", "-n", namespace, name]);
        let results = found["status"]["allocation"]["devices"]["results"]
            .as_array()
            .unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let device = |result: &Value| Device {
            request_names: vec![text(&result["request"])],
            pool_name: text(&result["pool"]),
            device_name: text(&result["device"]),
            cdi_device_ids: vec![format!("{kind}={}", text(&result["device"]))],
            share_id: None,
        };
        results.iter().map(device).collect()
    };
    let threads = tokio::runtime::Runtime::new().unwrap();
    let (driver, _tasks) = {
        let _inside = threads.enter();
        Driver::serve(&cluster.data_dir().join("kubelet"), "boat", devices)
    };
    let name = cluster.json(&["get", "nodes"])["items"][0]["metadata"]["name"].clone();
    let device =
        |name: &str, kind: &str| json!({"name": name, "attributes": {"kind": {"string": kind}}});
    let slice = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": "boat"},
        "spec": {"driver": DRIVER, "nodeName": name, "pool": {"name": name, "generation": 1, "resourceSliceCount": 1},
            "devices": [device("left", "oar"), device("right", "oar"), device("engine", "engine")]}});
    let class = json!({"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": "boats"},
        "spec": {"selectors": [{"cel": {"expression": format!("device.driver == '{DRIVER}'")}}]}});
    for object in [
        &slice,
        &class,
        &template(
            "oar",
            &format!("device.attributes['{DRIVER}'].kind == 'oar'"),
        ),
        &template(
            "engine",
            &format!("device.attributes['{DRIVER}'].kind == 'engine'"),
        ),
    ] {
        cluster.apply(&object.to_string()).ok();
    }

    // A Deployment of two, with an oar for each; its containers of both kinds see the same one.
    let labels = json!({"app": "rowers"});
    let rowers = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "rowers"},
        "spec": {"replicas": 2, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod_spec("oar")}}});
    cluster.apply(&rowers.to_string()).ok();
    cluster
        .kubectl(&["rollout", "status", "deployment/rowers", "--timeout=120s"])
        .ok();
    let names = || -> Vec<String> {
        let pods = cluster.json(&["get", "pods", "-l", "app=rowers"]);
        let pods = pods["items"].as_array().unwrap().iter();
        pods.map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let has = |pod: &str| -> String {
        let said = eventually("the container says which oar it has", || {
            let log = cluster.kubectl(&["logs", pod, "-c", "linux"]).stdout;
            let said = log.trim().strip_prefix("I am ").map(str::to_owned);
            said.ok_or(log)
        });
        eventually("the guest says the same", || {
            let log = cluster.kubectl(&["logs", pod, "-c", "wasm"]).stdout;
            if log.contains(&said) {
                Ok(())
            } else {
                Err(log)
            }
        });
        said
    };
    let mut oars: Vec<String> = names().iter().map(|pod| has(pod)).collect();
    oars.sort();
    assert_eq!(oars, ["left", "right"]);

    // A third waits, until the others are gone; what was made for them goes with them.
    cluster.apply(&pod("late", "oar")).ok();
    eventually("the third is told why it waits", || {
        let pod = cluster.json(&["get", "pod", "late"]);
        let conditions = pod["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let waits = |one: &Value| {
            one["reason"] == "Unschedulable"
                && one["message"]
                    .as_str()
                    .is_some_and(|why| why.contains("cannot allocate all claims"))
        };
        if conditions.iter().any(waits) {
            Ok(())
        } else {
            Err(pod["status"].clone())
        }
    });
    cluster.kubectl(&["delete", "deployment", "rowers"]).ok();
    cluster.wait("condition=Ready", "pod/late");
    assert!(["left", "right"].contains(&has("late").as_str()));
    eventually("the claims of the others are gone", || {
        let claims = cluster.json(&["get", "resourceclaims"]);
        match claims["items"].as_array().unwrap().len() {
            1 => Ok(()),
            _ => Err(claims),
        }
    });
    let unprepared = driver
        .calls()
        .iter()
        .filter(|call| call.starts_with("unprepare"))
        .count();
    assert_eq!(unprepared, 2);

    // What cannot reach a guest is not left out in silence.
    cluster.apply(&pod("motor", "engine")).ok();
    eventually("the guest is refused", || {
        let pod = cluster.json(&["get", "pod", "motor"]);
        let waiting = &pod["status"]["containerStatuses"][1]["state"]["waiting"];
        let said = waiting["message"].as_str().unwrap_or_default();
        if said.contains("a Wasm container cannot have the device node /dev/engine") {
            Ok(())
        } else {
            Err(pod["status"].clone())
        }
    });
    let seen = cluster.kubectl(&[
        "exec",
        "motor",
        "-c",
        "linux",
        "--",
        "test",
        "-c",
        "/dev/engine",
    ]);
    seen.ok();
}
