//! Rows as kubectl prints them, all columns joined by ` | `.

use super::*;
use crate::schema::builtin;

const NOW: &str = "2026-01-10T12:00:00Z";

fn row(kind: &str, group: &str, version: &str, mut object: Value) -> String {
    let resource = builtin()
        .resource_of_kind(group, version, kind)
        .expect(kind);
    object["metadata"]["name"] = json!("x");
    object["metadata"]["creationTimestamp"] = json!("2026-01-10T11:54:48Z");
    let cells = cells(resource, &object, NOW.parse().unwrap());
    assert_eq!(
        cells.len(),
        columns(resource).len(),
        "{kind}: one cell per column"
    );
    let text = |cell: &Value| {
        cell.as_str()
            .map_or_else(|| cell.to_string(), str::to_owned)
    };
    cells.iter().map(text).collect::<Vec<_>>().join(" | ")
}

#[test]
fn every_kind_has_as_many_cells_as_columns() {
    for resource in builtin().resources() {
        let empty = cells(resource, &json!({}), NOW.parse().unwrap());
        assert_eq!(empty.len(), columns(resource).len(), "{}", resource.kind);
        let names = columns(resource)
            .iter()
            .filter(|column| column.format == "name")
            .count();
        // A VolumeAttachment names its driver in the same form.
        let expected = if resource.kind == "VolumeAttachment" {
            2
        } else {
            1
        };
        assert_eq!(names, expected, "{} has one name column", resource.kind);
    }
}

#[test]
fn kinds_without_columns_of_their_own_show_when_they_were_created() {
    assert_eq!(
        row("Role", "rbac.authorization.k8s.io", "v1", json!({})),
        "x | 2026-01-10T11:54:48Z"
    );
    assert_eq!(
        row(
            "CustomResourceDefinition",
            "apiextensions.k8s.io",
            "v1",
            json!({})
        ),
        "x | 2026-01-10T11:54:48Z"
    );
}

/// READY, STATUS and RESTARTS of a pod with these parts.
fn pod(spec: Value, status: Value, metadata: Value) -> String {
    let text = row(
        "Pod",
        "",
        "v1",
        json!({"metadata": metadata, "spec": spec, "status": status}),
    );
    text.split(" | ")
        .skip(1)
        .take(3)
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn pod_status_table() {
    let one = || json!({"containers": [{"name": "a"}]});
    let two = || json!({"containers": [{"name": "a"}, {"name": "b"}]});
    let init =
        || json!({"containers": [{"name": "a"}], "initContainers": [{"name": "i"}, {"name": "j"}]});
    let sidecar = || json!({"containers": [{"name": "a"}], "initContainers": [{"name": "s", "restartPolicy": "Always"}]});
    let running =
        || json!({"name": "a", "ready": true, "state": {"running": {}}, "restartCount": 0});
    let ended = |reason: &str, code: i64| json!({"name": "b", "state": {"terminated": {"reason": reason, "exitCode": code}}});
    let ready = || json!([{"type": "Ready", "status": "True"}]);
    let cases: &[(&str, Value, Value, Value, &str)] = &[
        (
            "pending",
            one(),
            json!({"phase": "Pending"}),
            json!({}),
            "0/1 Pending 0",
        ),
        (
            "running",
            one(),
            json!({"phase": "Running", "containerStatuses": [running()]}),
            json!({}),
            "1/1 Running 0",
        ),
        (
            "waiting",
            one(),
            json!({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]}),
            json!({}),
            "0/1 ContainerCreating 0",
        ),
        (
            "crashing, restarted five minutes ago",
            one(),
            json!({"phase": "Running", "containerStatuses": [{"restartCount": 3,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {"finishedAt": "2026-01-10T11:55:00Z"}}}]}),
            json!({}),
            "0/1 CrashLoopBackOff 3 (5m ago)",
        ),
        (
            "completed",
            one(),
            json!({"phase": "Succeeded", "containerStatuses": [ended("Completed", 0)]}),
            json!({}),
            "0/1 Completed 0",
        ),
        (
            "exit code without a reason",
            one(),
            json!({"phase": "Failed", "containerStatuses": [ended("", 3)]}),
            json!({}),
            "0/1 ExitCode:3 0",
        ),
        (
            "one done, one running, ready",
            two(),
            json!({"phase": "Running", "conditions": ready(),
            "containerStatuses": [ended("Completed", 0), running()]}),
            json!({}),
            "1/2 Running 0",
        ),
        (
            "one done, one running, not ready",
            two(),
            json!({"phase": "Running",
            "containerStatuses": [ended("Completed", 0), running()]}),
            json!({}),
            "1/2 NotReady 0",
        ),
        (
            "first init container runs",
            init(),
            json!({"phase": "Pending", "initContainerStatuses": [{"state": {"running": {}}}]}),
            json!({}),
            "0/1 Init:0/2 0",
        ),
        (
            "second init container runs",
            init(),
            json!({"phase": "Pending", "initContainerStatuses": [
            {"state": {"terminated": {"exitCode": 0}}}, {"state": {"waiting": {"reason": "PodInitializing"}}}]}),
            json!({}),
            "0/1 Init:1/2 0",
        ),
        (
            "init container failed",
            init(),
            json!({"phase": "Pending", "initContainerStatuses": [
            {"restartCount": 2, "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]}),
            json!({}),
            "0/1 Init:Error 2",
        ),
        (
            "init container crashes",
            init(),
            json!({"phase": "Pending", "initContainerStatuses": [
            {"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}),
            json!({}),
            "0/1 Init:CrashLoopBackOff 0",
        ),
        (
            "sidecar counts",
            sidecar(),
            json!({"phase": "Running", "initContainerStatuses": [{"name": "s", "started": true, "ready": true,
            "restartCount": 1, "state": {"running": {}}}], "containerStatuses": [running()]}),
            json!({}),
            "2/2 Running 1",
        ),
        (
            "terminating",
            one(),
            json!({"phase": "Running", "containerStatuses": [running()]}),
            json!({"deletionTimestamp": NOW}),
            "1/1 Terminating 0",
        ),
        (
            "a finished pod is not terminating",
            one(),
            json!({"phase": "Succeeded", "containerStatuses": [ended("Completed", 0)]}),
            json!({"deletionTimestamp": NOW}),
            "0/1 Completed 0",
        ),
        (
            "lost node",
            one(),
            json!({"phase": "Running", "reason": "NodeLost"}),
            json!({"deletionTimestamp": NOW}),
            "0/1 Unknown 0",
        ),
        (
            "evicted",
            one(),
            json!({"phase": "Failed", "reason": "Evicted"}),
            json!({}),
            "0/1 Evicted 0",
        ),
        (
            "gated",
            one(),
            json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}),
            json!({}),
            "0/1 SchedulingGated 0",
        ),
    ];
    for (name, spec, status, metadata, expected) in cases {
        assert_eq!(
            &pod(spec.clone(), status.clone(), metadata.clone()),
            expected,
            "case: {name}"
        );
    }
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn rows_as_upstream_prints_them() {
    let template = json!({"spec": {"containers": [{"name": "a", "image": "i:1"}, {"name": "b", "image": "j"}]}});
    let selector = json!({"matchLabels": {"app": "x"}, "matchExpressions": [{"key": "tier", "operator": "In", "values": ["b", "a"]}]});
    let cases: &[(&str, &str, &str, Value, &str)] = &[
        (
            "Pod",
            "",
            "v1",
            json!({"spec": {"nodeName": "n", "containers": [{}], "readinessGates": [{"conditionType": "g"}]},
            "status": {"phase": "Pending", "podIPs": [{"ip": "10.0.0.1"}]}}),
            "x | 0/1 | Pending | 0 | 5m12s | 10.0.0.1 | n | <none> | 0/1",
        ),
        (
            "Deployment",
            "apps",
            "v1",
            json!({"spec": {"replicas": 3, "selector": selector, "template": template},
            "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 1}}),
            "x | 2/3 | 3 | 1 | 5m12s | a,b | i:1,j | app=x,tier in (a,b)",
        ),
        (
            "ReplicaSet",
            "apps",
            "v1",
            json!({"spec": {"replicas": 3, "template": template}, "status": {"replicas": 2}}),
            "x | 3 | 2 | 0 | 5m12s | a,b | i:1,j | <none>",
        ),
        (
            "DaemonSet",
            "apps",
            "v1",
            json!({"spec": {"template": {"spec": {"nodeSelector": {"a": "b"}}}}, "status": {"desiredNumberScheduled": 2}}),
            "x | 2 | 0 | 0 | 0 | 0 | a=b | 5m12s |  |  | <none>",
        ),
        (
            "StatefulSet",
            "apps",
            "v1",
            json!({"spec": {"replicas": 2}, "status": {"readyReplicas": 1}}),
            "x | 1/2 | 5m12s |  | ",
        ),
        (
            "Job",
            "batch",
            "v1",
            json!({"spec": {"completions": 2}, "status": {"succeeded": 1, "startTime": "2026-01-10T11:59:00Z"}}),
            "x | Running | 1/2 | 60s | 5m12s |  |  | <none>",
        ),
        (
            "CronJob",
            "batch",
            "v1",
            json!({"spec": {"schedule": "* * * * *", "suspend": false}, "status": {"active": [{}]}}),
            "x | * * * * * | <none> | False | 1 | <none> | 5m12s |  |  | <none>",
        ),
        (
            "Node",
            "",
            "v1",
            json!({"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}, "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "10.0.0.2"}],
            "nodeInfo": {"kubeletVersion": "v1.36.2", "osImage": "Debian", "kernelVersion": "6.18", "containerRuntimeVersion": "cox://0.1"}}}),
            "x | Ready,SchedulingDisabled | control-plane | 5m12s | v1.36.2 | 10.0.0.2 | <none> | Debian | 6.18 | cox://0.1",
        ),
        (
            "Namespace",
            "",
            "v1",
            json!({"status": {"phase": "Active"}}),
            "x | Active | 5m12s",
        ),
        (
            "ConfigMap",
            "",
            "v1",
            json!({"data": {"a": "1"}, "binaryData": {"b": ""}}),
            "x | 2 | 5m12s",
        ),
        (
            "Secret",
            "",
            "v1",
            json!({"type": "Opaque", "data": {"a": "1"}}),
            "x | Opaque | 1 | 5m12s",
        ),
        ("ServiceAccount", "", "v1", json!({}), "x | 5m12s"),
        (
            "Service",
            "",
            "v1",
            json!({"spec": {"type": "NodePort", "clusterIPs": ["10.96.0.1"], "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}]}}),
            "x | NodePort | 10.96.0.1 | <none> | 80:30080/TCP | 5m12s | <none>",
        ),
        (
            "Service",
            "",
            "v1",
            json!({"spec": {"type": "LoadBalancer"}}),
            "x | LoadBalancer | <none> | <pending> | <none> | 5m12s | <none>",
        ),
        (
            "Endpoints",
            "",
            "v1",
            json!({"subsets": [{"addresses": [{"ip": "1.1.1.1"}, {"ip": "::1"}], "ports": [{"port": 1}, {"port": 2}]}]}),
            "x | 1.1.1.1:1,[::1]:1,1.1.1.1:2 + 1 more... | 5m12s",
        ),
        (
            "Event",
            "",
            "v1",
            json!({"type": "Normal", "reason": "Started", "message": " done \n", "count": 4, "lastTimestamp": "2026-01-10T11:59:30Z",
            "firstTimestamp": "2026-01-10T11:00:00Z", "involvedObject": {"kind": "Pod", "name": "p", "fieldPath": "spec"}, "source": {"component": "kubelet", "host": "n"}}),
            "30s | Normal | Started | pod/p | spec | kubelet, n | done | 60m | 4 | x",
        ),
        (
            "Event",
            "events.k8s.io",
            "v1",
            json!({"type": "Warning", "reason": "Failed", "note": "no", "eventTime": "2026-01-10T11:59:30.000000Z",
            "regarding": {"kind": "Node", "name": "n"}, "reportingController": "c"}),
            "30s | Warning | Failed | node/n |  | c | no | 30s | 1 | x",
        ),
        (
            "Lease",
            "coordination.k8s.io",
            "v1",
            json!({"spec": {"holderIdentity": "n"}}),
            "x | n | 5m12s",
        ),
        (
            "PersistentVolumeClaim",
            "",
            "v1",
            json!({"spec": {"volumeName": "v", "storageClassName": "fast"},
            "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany", "ReadWriteOnce"]}}),
            "x | Bound | v | 1Gi | RWO,RWX | fast | <unset> | 5m12s | <unset>",
        ),
        (
            "PersistentVolume",
            "",
            "v1",
            json!({"spec": {"capacity": {"storage": "1Gi"}, "claimRef": {"namespace": "d", "name": "c"}}, "status": {"phase": "Bound"}}),
            "x | 1Gi |  |  | Bound | d/c |  | <unset> |  | 5m12s | <unset>",
        ),
        (
            "StorageClass",
            "storage.k8s.io",
            "v1",
            json!({"metadata": {"annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}, "provisioner": "p"}),
            "x (default) | p | Delete | Immediate | false | 5m12s",
        ),
        (
            "Ingress",
            "networking.k8s.io",
            "v1",
            json!({"spec": {"rules": [{"host": "a"}, {}], "tls": [{}]}}),
            "x | <none> | a |  | 80, 443 | 5m12s",
        ),
        (
            "RuntimeClass",
            "node.k8s.io",
            "v1",
            json!({"handler": "wasm"}),
            "x | wasm | 5m12s",
        ),
        (
            "PriorityClass",
            "scheduling.k8s.io",
            "v1",
            json!({"value": 1000}),
            "x | 1000 | false | 5m12s | PreemptLowerPriority",
        ),
        (
            "RoleBinding",
            "rbac.authorization.k8s.io",
            "v1",
            json!({"roleRef": {"kind": "Role", "name": "r"},
            "subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "namespace": "d", "name": "s"}]}),
            "x | Role/r | 5m12s | u |  | d/s",
        ),
        (
            "HorizontalPodAutoscaler",
            "autoscaling",
            "v2",
            json!({"spec": {"scaleTargetRef": {"kind": "Deployment", "name": "d"}, "maxReplicas": 5,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": 50}}}]}}),
            "x | Deployment/d | cpu: <unknown>/50% | <unset> | 5 | 0 | 5m12s",
        ),
        (
            "PodDisruptionBudget",
            "policy",
            "v1",
            json!({"spec": {"minAvailable": "50%"}}),
            "x | 50% | N/A | 0 | 5m12s",
        ),
        (
            "ResourceQuota",
            "",
            "v1",
            json!({"status": {"hard": {"cpu": "2", "limits.cpu": "4"}, "used": {"cpu": "1"}}}),
            "x | cpu: 1/2 | limits.cpu: 0/4 | 5m12s",
        ),
        (
            "APIService",
            "apiregistration.k8s.io",
            "v1",
            json!({"status": {"conditions": [{"type": "Available", "status": "True"}]}}),
            "x | Local | True | 5m12s",
        ),
        (
            "CertificateSigningRequest",
            "certificates.k8s.io",
            "v1",
            json!({"spec": {"signerName": "s", "username": "u", "expirationSeconds": 3600},
            "status": {"conditions": [{"type": "Approved"}], "certificate": "YQ=="}}),
            "x | 5m12s | s | u | 60m | Approved,Issued",
        ),
    ];
    for (kind, group, version, object, expected) in cases {
        assert_eq!(
            &row(kind, group, version, object.clone()),
            expected,
            "case: {kind}"
        );
    }
}

#[test]
fn finished_pods_are_marked() {
    let pods = builtin().resource("", "v1", "pods").unwrap();
    let of = |phase: &str| row_conditions(pods, &json!({"status": {"phase": phase}}));
    assert_eq!(of("Running"), Vec::<Value>::new());
    assert_eq!(of("Failed")[0]["reason"], "Failed");
    assert_eq!(of("Succeeded")[0]["type"], "Completed");
}
