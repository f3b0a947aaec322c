use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::write::{Progress, Written, progress};
use super::*;
use crate::fixture::{node, node_with};
use crate::plugins::node_volume_limits::NodeVolumeLimits;
use crate::plugins::volume_restrictions::VolumeRestrictions;
use crate::plugins::volume_zone::VolumeZone;
use crate::storage::StorageObjects;

fn object<K: DeserializeOwned>(value: Value) -> Arc<K> {
    Arc::new(serde_json::from_value(value).unwrap())
}

fn class(name: &str, provisioner: &str, mode: &str) -> Value {
    json!({"metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode})
}

/// A claim for 2Gi of a class.
fn claim(name: &str, class: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "default", "uid": name},
        "spec": {"storageClassName": class, "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}}})
}

fn bound(name: &str, volume: &str) -> Value {
    let mut bound = claim(name, "late");
    bound["spec"]["volumeName"] = volume.into();
    bound["metadata"]["annotations"] = json!({"pv.kubernetes.io/bind-completed": "yes"});
    bound
}

/// A free volume of the class `late`, on one host.
fn volume(name: &str, size: &str, host: &str) -> Value {
    json!({"metadata": {"name": name}, "status": {"phase": "Available"},
        "spec": {"storageClassName": "late", "capacity": {"storage": size}, "accessModes": ["ReadWriteOnce", "ReadWriteOncePod"],
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "host", "operator": "In", "values": [host]}]}]}}}})
}

fn merged(mut base: Value, with: Value) -> Value {
    fn merge(base: &mut Value, with: Value) {
        match (base, with) {
            (Value::Object(base), Value::Object(with)) => {
                for (key, value) in with {
                    merge(base.entry(key).or_insert(Value::Null), value);
                }
            }
            (base, with) => *base = with,
        }
    }
    merge(&mut base, with);
    base
}

fn storage(claims: Vec<Value>, volumes: Vec<Value>) -> StorageObjects {
    let mut topologies = class("zoned", "csi.example", "WaitForFirstConsumer");
    topologies["allowedTopologies"] =
        json!([{"matchLabelExpressions": [{"key": "zone", "values": ["b"]}]}]);
    StorageObjects {
        claims: claims.into_iter().map(object).collect(),
        volumes: volumes.into_iter().map(object).collect(),
        classes: [
            class(
                "late",
                "kubernetes.io/no-provisioner",
                "WaitForFirstConsumer",
            ),
            class("made", "csi.example", "WaitForFirstConsumer"),
            class("counted", "csi.counted", "WaitForFirstConsumer"),
            class("now", "csi.example", "Immediate"),
            topologies,
        ]
        .into_iter()
        .map(object)
        .collect(),
        drivers: vec![object(
            json!({"metadata": {"name": "csi.counted"}, "spec": {"storageCapacity": true}}),
        )],
        ..StorageObjects::default()
    }
}

fn pod_named(name: &str, claims: &[&str]) -> PodInfo {
    let volumes: Vec<Value> = claims
        .iter()
        .map(|claim| json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}}))
        .collect();
    PodInfo::new(&object(
        json!({"metadata": {"name": name, "namespace": "default", "uid": name},
        "spec": {"containers": [{"name": "c"}], "volumes": volumes}}),
    ))
}

fn pod(claims: &[&str]) -> PodInfo {
    pod_named("p", claims)
}

/// What comes of a Pod on the node `a` (host=a zone=a): what it gets, or why it cannot.
fn on_a(plugin: &VolumeBinding, pod: &PodInfo) -> String {
    on(plugin, pod, "a label=host=a label=zone=a")
}

fn on(plugin: &VolumeBinding, pod: &PodInfo, node_text: &str) -> String {
    let node = node(node_text);
    match plugin.pre_filter(pod, &ClaimUses::default()) {
        PreFilter::Skip => return "skip".into(),
        PreFilter::Reject(why) => return why,
        _ => {}
    }
    if let Err(Rejection(reasons)) = plugin.filter(pod, &node) {
        return reasons.join("; ");
    }
    plugin.reserve(pod, &node).unwrap();
    let Some(planned) = plugin.planned(&pod.uid) else {
        return "nothing to do".into();
    };
    let name = |meta: &kube::api::ObjectMeta| meta.name.clone().unwrap();
    let bindings = planned
        .bindings
        .iter()
        .map(|(volume, claim)| format!("{}={}", name(&claim.metadata), name(&volume.metadata)));
    let provisions = planned
        .provisions
        .iter()
        .map(|claim| format!("make {}", name(&claim.metadata)));
    bindings.chain(provisions).collect::<Vec<_>>().join(" ")
}

#[test]
#[allow(clippy::too_many_lines, reason = "one table of cases")]
fn what_claims_come_to_on_a_node() {
    let selected = |claim: Value, node: &str| {
        merged(
            claim,
            json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": node}}}),
        )
    };
    let reserved = |volume: Value| {
        merged(
            volume,
            json!({"spec": {"claimRef": {"namespace": "default", "name": "c"}}}),
        )
    };
    let taken = |volume: Value| {
        merged(
            volume,
            json!({"status": {"phase": "Bound"}, "spec": {"claimRef": {"namespace": "default", "name": "x", "uid": "x"}}}),
        )
    };
    let cases: Vec<(&str, Vec<Value>, Vec<Value>, &str)> = vec![
        (
            "the claim is not there",
            vec![],
            vec![],
            "persistentvolumeclaim \"c\" not found",
        ),
        (
            "a claim that does not wait is not bound",
            vec![claim("c", "now")],
            vec![],
            "pod has unbound immediate PersistentVolumeClaims",
        ),
        (
            "a claim without a class is not bound",
            vec![claim("c", "")],
            vec![],
            "pod has unbound immediate PersistentVolumeClaims",
        ),
        (
            "the class is not there",
            vec![claim("c", "gone")],
            vec![],
            "storageclass.storage.k8s.io \"gone\" not found",
        ),
        (
            "the claim goes",
            vec![merged(
                claim("c", "late"),
                json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
            )],
            vec![],
            "persistentvolumeclaim \"c\" is being deleted",
        ),
        (
            "the claim has lost its volume",
            vec![merged(
                bound("c", "v"),
                json!({"status": {"phase": "Lost"}}),
            )],
            vec![],
            "persistentvolumeclaim \"c\" bound to non-existent persistentvolume \"v\"",
        ),
        (
            "bound, and the volume is here",
            vec![bound("c", "v")],
            vec![volume("v", "2Gi", "a")],
            "nothing to do",
        ),
        (
            "bound, and the volume is elsewhere",
            vec![bound("c", "v")],
            vec![volume("v", "2Gi", "b")],
            "node(s) didn't match PersistentVolume's node affinity",
        ),
        (
            "bound, and the volume is gone",
            vec![bound("c", "v")],
            vec![],
            "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)",
        ),
        (
            "the smallest volume of the node that is large enough",
            vec![claim("c", "late")],
            vec![
                volume("small", "1Gi", "a"),
                volume("large", "9Gi", "a"),
                volume("right", "2Gi", "a"),
                volume("far", "2Gi", "b"),
            ],
            "c=right",
        ),
        (
            "the node has no volume",
            vec![claim("c", "late")],
            vec![volume("far", "2Gi", "b")],
            "node(s) didn't find available persistent volumes to bind",
        ),
        (
            "a volume whose state nobody has looked at yet",
            vec![claim("c", "late")],
            vec![merged(
                volume("v", "2Gi", "a"),
                json!({"status": {"phase": null}}),
            )],
            "node(s) didn't find available persistent volumes to bind",
        ),
        (
            "the volume is another's",
            vec![claim("c", "late")],
            vec![taken(volume("v", "2Gi", "a"))],
            "node(s) didn't find available persistent volumes to bind",
        ),
        (
            "a volume that is reserved for the claim goes before a smaller one",
            vec![claim("c", "late")],
            vec![
                volume("v", "2Gi", "a"),
                reserved(volume("mine", "9Gi", "a")),
            ],
            "c=mine",
        ),
        (
            "a volume that is reserved for the claim binds it to where it is",
            vec![claim("c", "late")],
            vec![
                volume("v", "2Gi", "a"),
                reserved(volume("mine", "9Gi", "b")),
            ],
            "node(s) didn't find available persistent volumes to bind",
        ),
        (
            "a volume can be made",
            vec![claim("c", "made")],
            vec![],
            "make c",
        ),
        (
            "a volume is being made for this node",
            vec![selected(claim("c", "made"), "a")],
            vec![],
            "make c",
        ),
        (
            "a volume is being made for another node",
            vec![selected(claim("c", "made"), "b")],
            vec![],
            "node(s) didn't find available persistent volumes to bind",
        ),
        (
            "the class makes volumes in another zone only",
            vec![claim("c", "zoned")],
            vec![],
            "node(s) didn't find available persistent volumes to bind",
        ),
        (
            "the driver tells of room, and there is none here",
            vec![claim("c", "counted")],
            vec![],
            "node(s) did not have enough free storage",
        ),
    ];
    for (name, claims, volumes, expected) in cases {
        let plugin = VolumeBinding::new(Arc::new(storage(claims, volumes)));
        assert_eq!(on_a(&plugin, &pod(&["c"])), expected, "case: {name}");
    }
    let plugin = VolumeBinding::new(Arc::new(storage(vec![], vec![])));
    assert_eq!(on_a(&plugin, &pod(&[])), "skip");
}

#[test]
fn room_is_what_the_driver_tells_for_the_nodes_labels() {
    let capacity = |of: &str, zone: &str, fields: Value| {
        merged(
            json!({"metadata": {"name": "x"}, "storageClassName": of, "nodeTopology": {"matchLabels": {"zone": zone}}}),
            fields,
        )
    };
    let cases = [
        (
            "enough",
            capacity("counted", "a", json!({"capacity": "2Gi"})),
            true,
        ),
        (
            "too little",
            capacity("counted", "a", json!({"capacity": "1Gi"})),
            false,
        ),
        (
            "elsewhere",
            capacity("counted", "b", json!({"capacity": "9Gi"})),
            false,
        ),
        (
            "of another class",
            capacity("made", "a", json!({"capacity": "9Gi"})),
            false,
        ),
        (
            "enough, but not for one volume",
            capacity(
                "counted",
                "a",
                json!({"capacity": "9Gi", "maximumVolumeSize": "1Gi"}),
            ),
            false,
        ),
        ("nothing told", capacity("counted", "a", json!({})), false),
    ];
    for (name, capacity, expected) in cases {
        let mut storage = storage(vec![claim("c", "counted")], vec![]);
        storage.capacities = vec![object(capacity)];
        let found = on_a(&VolumeBinding::new(Arc::new(storage)), &pod(&["c"]));
        assert_eq!(found == "make c", expected, "case: {name}: {found}");
    }
}

#[test]
fn what_one_pod_was_promised_another_does_not_get() {
    let claims = vec![claim("c", "late"), claim("d", "late"), claim("e", "made")];
    let volumes = vec![volume("v", "2Gi", "a"), volume("w", "3Gi", "a")];
    let plugin = VolumeBinding::new(Arc::new(storage(claims, volumes)));
    let (one, other) = (pod_named("one", &["c"]), pod_named("other", &["d"]));
    assert_eq!(on_a(&plugin, &one), "c=v");
    assert_eq!(on_a(&plugin, &other), "d=w");
    assert_eq!(
        on_a(&plugin, &pod_named("same", &["c"])),
        "c=v",
        "two Pods with one claim share its volume"
    );
    let full = "node(s) didn't find available persistent volumes to bind";
    plugin.unreserve(&other, "a");
    plugin.bound("same");
    assert_eq!(on_a(&plugin, &pod_named("both", &["c", "d"])), "c=v d=w");
    plugin.bound("both");
    assert_eq!(on_a(&plugin, &pod_named("maker", &["e"])), "make e");
    assert_eq!(
        on(&plugin, &pod_named("far", &["e"]), "b label=host=b"),
        full,
        "its volume is made for a"
    );
}

#[test]
fn a_claim_for_one_pod_alone_is_for_one() {
    let alone = merged(
        claim("c", "late"),
        json!({"spec": {"accessModes": ["ReadWriteOncePod"]}}),
    );
    let plugin =
        VolumeRestrictions::new(Arc::new(storage(vec![alone, claim("d", "late")], vec![])));
    let mut uses = ClaimUses::default();
    assert_eq!(plugin.pre_filter(&pod(&["c"]), &uses), PreFilter::Skip);
    for claims in [&["c"][..], &["d"]] {
        uses.add(pod(claims).volumes.as_ref().unwrap());
    }
    assert!(
        matches!(plugin.pre_filter(&pod(&["c"]), &uses), PreFilter::Nowhere(why) if why.contains("ReadWriteOncePod"))
    );
    assert_eq!(
        plugin.pre_filter(&pod(&["d"]), &uses),
        PreFilter::Skip,
        "others share"
    );
    uses.subtract(pod(&["c"]).volumes.as_ref().unwrap());
    assert_eq!(plugin.pre_filter(&pod(&["c"]), &uses), PreFilter::Skip);
    let missing = plugin.pre_filter(&pod(&["x"]), &uses);
    assert_eq!(
        missing,
        PreFilter::Reject("persistentvolumeclaim \"x\" not found".into())
    );
}

#[test]
fn disks_that_pods_name_are_not_had_twice() {
    let with = |volume: Value| -> PodInfo {
        PodInfo::new(&object(
            json!({"metadata": {"name": "p"}, "spec": {"containers": [], "volumes": [merged(json!({"name": "v"}), volume)]}}),
        ))
    };
    let iscsi = |read_only: bool| {
        with(json!({"iscsi": {"iqn": "i", "lun": 0, "targetPortal": "t", "readOnly": read_only}}))
    };
    let rbd = |monitors: Value| with(json!({"rbd": {"image": "i", "monitors": monitors}}));
    let cases = [
        ("one writes", iscsi(false), iscsi(true), false),
        ("both read", iscsi(true), iscsi(true), true),
        (
            "the same monitor",
            rbd(json!(["a", "b"])),
            rbd(json!(["b"])),
            false,
        ),
        ("other monitors", rbd(json!(["a"])), rbd(json!(["b"])), true),
        ("another kind", iscsi(false), rbd(json!(["b"])), true),
    ];
    let plugin = VolumeRestrictions::new(Arc::new(storage(vec![], vec![])));
    for (name, wanted, there, expected) in cases {
        let mut node = node("n");
        node.usage.add(&crate::node_info::Taken::by(&there));
        assert_eq!(
            plugin.filter(&wanted, &node).is_ok(),
            expected,
            "case: {name}"
        );
    }
}

#[test]
fn a_driver_has_so_many_volumes_on_a_node() {
    let csi = |name: &str| {
        merged(
            volume(name, "2Gi", "a"),
            json!({"spec": {"csi": {"driver": "csi.example", "volumeHandle": name}}}),
        )
    };
    let mut storage = storage(
        vec![
            bound("a", "va"),
            bound("b", "vb"),
            bound("c", "vc"),
            claim("new", "made"),
            bound("plain", "local"),
        ],
        vec![
            csi("va"),
            csi("vb"),
            csi("vc"),
            csi("lone"),
            volume("local", "2Gi", "a"),
        ],
    );
    storage.csi_nodes = vec![object(
        json!({"metadata": {"name": "n"}, "spec": {"drivers": [
        {"name": "csi.example", "nodeID": "n", "allocatable": {"count": 2}}]}}),
    )];
    let attached: Value = json!({"metadata": {"name": "x"}, "spec": {"attacher": "csi.example", "nodeName": "n",
        "source": {"persistentVolumeName": "lone"}}});
    let look = |storage: &StorageObjects, there: &[&[&str]], wanted: &[&str], node_name: &str| {
        let mut node = node_with(node_name, &[]);
        for claims in there {
            node.usage.add(&crate::node_info::Taken::by(&pod(claims)));
        }
        let plugin = NodeVolumeLimits::new(Arc::new(storage.clone()));
        plugin.filter(&pod(wanted), &node).is_ok()
    };
    assert!(look(&storage, &[&["a"]], &["b"], "n"), "the second");
    assert!(!look(&storage, &[&["a"], &["b"]], &["c"], "n"), "the third");
    assert!(
        look(&storage, &[&["a"], &["a"], &["b"]], &["a"], "n"),
        "it is there already"
    );
    assert!(
        !look(&storage, &[&["a"], &["b"]], &["new"], "n"),
        "one that is not made yet counts"
    );
    assert!(!look(&storage, &[], &["a", "b", "c"], "n"), "three at once");
    assert!(
        look(&storage, &[&["a"], &["b"]], &["plain"], "n"),
        "no driver has to do with it"
    );
    assert!(
        look(&storage, &[&["a"], &["b"]], &["c"], "other"),
        "a node without a limit"
    );
    storage.attachments = vec![object(attached)];
    assert!(
        !look(&storage, &[&["a"]], &["b"], "n"),
        "what is attached without a Pod counts"
    );
}

#[test]
fn zones_of_volumes_and_nodes_agree() {
    let zoned = merged(
        volume("v", "2Gi", "a"),
        json!({"metadata": {"labels": {"topology.kubernetes.io/zone": "z1__z2"}}}),
    );
    let plugin = VolumeZone::new(Arc::new(storage(vec![bound("c", "v")], vec![zoned])));
    let cases = [
        ("n label=topology.kubernetes.io/zone=z2", true),
        ("n label=failure-domain.beta.kubernetes.io/zone=z1", true),
        ("n label=topology.kubernetes.io/zone=z3", false),
        ("n label=topology.kubernetes.io/region=r", false),
        ("n", true),
    ];
    for (text, expected) in cases {
        assert_eq!(
            plugin.filter(&pod(&["c"]), &node(text)).is_ok(),
            expected,
            "{text}"
        );
    }
}

#[test]
#[allow(clippy::too_many_lines, reason = "one table of cases")]
fn bindings_are_whole_when_both_sides_are_seen() {
    let late = claim("c", "late");
    let v = volume("v", "2Gi", "a");
    let made = claim("d", "made");
    let names_c = json!({"metadata": {"resourceVersion": "7"}, "spec": {"claimRef": {"namespace": "default", "name": "c", "uid": "c"}}});
    let chosen = |node: &str| json!({"metadata": {"resourceVersion": "8", "annotations": {"volume.kubernetes.io/selected-node": node}}});
    let done = |claim: Value, volume: &str| {
        merged(
            claim,
            json!({"spec": {"volumeName": volume}, "metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
                "status": {"phase": "Bound"}}),
        )
    };
    let unsaid = |claim: Value| merged(claim, json!({"status": {"phase": "Pending"}}));
    let bound_d = done(merged(made.clone(), chosen("a")), "w");
    let bound_c = done(late.clone(), "v");
    let v_named = merged(v.clone(), names_c);
    let pod = pod(&["c", "d"]);
    let planned = Planned {
        node: Arc::clone(&node("a label=host=a").facts.node),
        bindings: vec![(object(v.clone()), object(late.clone()))],
        provisions: vec![object(made.clone())],
    };
    let written = Written {
        volumes: vec![("v".into(), 7)],
        claims: vec![8],
    };
    let failed = |why: &str| Progress::Failed(why.into());
    let cases: Vec<(&str, Vec<Value>, Vec<Value>, Progress)> = vec![
        (
            "what was written is not seen yet",
            vec![late.clone(), made.clone()],
            vec![v.clone()],
            Progress::Waiting,
        ),
        (
            "the controllers are at it",
            vec![late.clone(), merged(made.clone(), chosen("a"))],
            vec![v_named.clone()],
            Progress::Waiting,
        ),
        (
            "one is bound",
            vec![bound_c.clone(), merged(made.clone(), chosen("a"))],
            vec![v_named.clone()],
            Progress::Waiting,
        ),
        (
            "both are bound",
            vec![bound_c.clone(), bound_d.clone()],
            vec![v_named.clone(), volume("w", "2Gi", "a")],
            Progress::Bound,
        ),
        (
            "one is bound, and its status does not say so yet",
            vec![unsaid(bound_c.clone()), bound_d.clone()],
            vec![v_named.clone(), volume("w", "2Gi", "a")],
            Progress::Waiting,
        ),
        (
            "the provisioner gave the node back",
            vec![
                bound_c.clone(),
                merged(made.clone(), json!({"metadata": {"resourceVersion": "9"}})),
            ],
            vec![v_named.clone()],
            failed("provisioning failed for PVC \"d\""),
        ),
        (
            "what was made is elsewhere",
            vec![bound_c.clone(), bound_d.clone()],
            vec![v_named.clone(), volume("w", "2Gi", "b")],
            failed("pv \"w\" node affinity doesn't match node \"a\""),
        ),
        (
            "somebody freed the volume",
            vec![late.clone(), merged(made.clone(), chosen("a"))],
            vec![merged(v, json!({"metadata": {"resourceVersion": "9"}}))],
            failed("ClaimRef got reset for pv \"v\""),
        ),
        (
            "the claim is gone",
            vec![made],
            vec![v_named],
            failed("persistentvolumeclaim \"c\" not found"),
        ),
    ];
    for (name, claims, volumes, expected) in cases {
        let mut storage = storage(claims, volumes);
        storage.pods = vec![Arc::clone(&pod.pod)];
        assert_eq!(
            progress(&pod, &planned, &written, &storage),
            expected,
            "case: {name}"
        );
        storage.pods.clear();
        let gone = progress(&pod, &planned, &written, &storage);
        assert_eq!(gone, failed("pod does not exist any more"));
    }
}
