#![expect(clippy::too_many_lines, reason = "tables of cases")]

use super::*;
use crate::codec;
use serde_json::json;

fn defaulted(group: &str, version: &str, plural: &str, body: Value) -> Value {
    let schema = schema::builtin();
    let resource = schema.resource(group, version, plural).unwrap();
    let mut value = codec::canonicalize(schema, resource.type_id, body)
        .unwrap()
        .value;
    apply(resource, &mut value);
    let once = value.clone();
    apply(resource, &mut value);
    assert_eq!(once, value, "a second run changes nothing");
    let again = codec::canonicalize(schema, resource.type_id, value.clone()).unwrap();
    assert_eq!(
        (again.value, again.problems),
        (value.clone(), vec![]),
        "defaults keep the canonical form"
    );
    value
}

#[test]
fn every_line_of_the_table_names_a_field_and_fits_it() {
    let schema = schema::builtin();
    let mut current = None;
    for line in include_str!("../../tables/defaults.txt")
        .lines()
        .filter(|l| !l.starts_with('#'))
    {
        if let Some(name) = line.strip_prefix("+ ") {
            current = Some(schema.def(schema.type_named(name).unwrap_or_else(|| panic!("{name}"))));
        } else {
            let (field, json) = line.split_once(' ').unwrap();
            assert!(current.unwrap().field(field).is_some(), "{line}");
            serde_json::from_str::<Value>(json).unwrap();
        }
    }
    for (name, _) in core::HOOKS.iter().chain(workloads::HOOKS) {
        assert!(schema.type_named(name).is_some(), "{name}");
    }
}

#[test]
fn a_pod_is_filled_in_as_upstream_does() {
    let body = json!({"metadata": {"name": "a"}, "spec": {
        "containers": [{"name": "c", "image": "nginx", "ports": [{"containerPort": 80}], "resources": {"limits": {"cpu": "1"}},
            "livenessProbe": {"httpGet": {"port": 80}}, "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "F", "valueFrom": {"fileKeyRef": {"volumeName": "e", "path": "f", "key": "K"}}}]}],
        "volumes": [{"name": "e"}, {"name": "s", "secret": {"secretName": "x"}}, {"name": "h", "hostPath": {"path": "/"}}]}});
    let spec = &defaulted("", "v1", "pods", body)["spec"];
    assert_eq!(
        *spec,
        json!({"containers": [{"name": "c", "image": "nginx", "imagePullPolicy": "Always", "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                "ports": [{"containerPort": 80, "protocol": "TCP"}], "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}},
                "livenessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
                "env": [{"name": "N", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}},
                    {"name": "F", "valueFrom": {"fileKeyRef": {"volumeName": "e", "path": "f", "key": "K", "optional": false}}}]}],
            "volumes": [{"name": "e", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "x", "defaultMode": 420}}, {"name": "h", "hostPath": {"path": "/", "type": ""}}],
            "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler", "securityContext": {}, "terminationGracePeriodSeconds": 30, "enableServiceLinks": true})
    );
}

#[test]
fn a_template_gets_no_requests_and_no_service_links() {
    let body = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "a:1", "resources": {"limits": {"cpu": "1"}}}]}}}});
    let value = defaulted("apps", "v1", "deployments", body);
    assert_eq!(
        value["spec"]["strategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}})
    );
    assert_eq!(
        (
            &value["spec"]["replicas"],
            &value["spec"]["revisionHistoryLimit"],
            &value["spec"]["progressDeadlineSeconds"]
        ),
        (&json!(1), &json!(10), &json!(600))
    );
    let spec = &value["spec"]["template"]["spec"];
    assert_eq!(
        spec["containers"][0]["resources"],
        json!({"limits": {"cpu": "1"}})
    );
    assert_eq!(
        (
            spec.get("enableServiceLinks"),
            &spec["containers"][0]["imagePullPolicy"]
        ),
        (None, &json!("IfNotPresent"))
    );
}

#[test]
fn host_network_ports_are_ports_of_the_host() {
    let body = json!({"spec": {"hostNetwork": true, "containers": [{"name": "c", "ports": [{"containerPort": 80}]}]}});
    assert_eq!(
        defaulted("", "v1", "pods", body)["spec"]["containers"][0]["ports"][0]["hostPort"],
        80
    );
}

#[test]
fn other_kinds_get_theirs() {
    for (group, version, plural, body, pointer, expected) in [
        (
            "",
            "v1",
            "namespaces",
            json!({"metadata": {"name": "n"}}),
            "/metadata/labels",
            json!({"kubernetes.io/metadata.name": "n"}),
        ),
        (
            "",
            "v1",
            "namespaces",
            json!({}),
            "/status/phase",
            json!("Active"),
        ),
        ("", "v1", "secrets", json!({}), "/type", json!("Opaque")),
        (
            "",
            "v1",
            "services",
            json!({"spec": {"ports": [{"port": 80}]}}),
            "/spec/ports/0",
            json!({"port": 80, "protocol": "TCP", "targetPort": 80}),
        ),
        (
            "",
            "v1",
            "services",
            json!({"spec": {"type": "LoadBalancer"}}),
            "/spec/allocateLoadBalancerNodePorts",
            json!(true),
        ),
        (
            "",
            "v1",
            "nodes",
            json!({"status": {"capacity": {"cpu": "2"}}}),
            "/status/allocatable",
            json!({"cpu": "2"}),
        ),
        (
            "",
            "v1",
            "replicationcontrollers",
            json!({"spec": {"template": {"metadata": {"labels": {"a": "b"}}}}}),
            "/spec/selector",
            json!({"a": "b"}),
        ),
        (
            "batch",
            "v1",
            "jobs",
            json!({}),
            "/spec/backoffLimit",
            json!(6),
        ),
        (
            "batch",
            "v1",
            "jobs",
            json!({"spec": {"completions": 3}}),
            "/spec/parallelism",
            json!(1),
        ),
        (
            "apps",
            "v1",
            "statefulsets",
            json!({}),
            "/spec/updateStrategy",
            json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}),
        ),
        (
            "rbac.authorization.k8s.io",
            "v1",
            "rolebindings",
            json!({"subjects": [{"kind": "User", "name": "u"}]}),
            "/subjects/0/apiGroup",
            json!("rbac.authorization.k8s.io"),
        ),
        (
            "rbac.authorization.k8s.io",
            "v1",
            "rolebindings",
            json!({}),
            "/roleRef/apiGroup",
            json!("rbac.authorization.k8s.io"),
        ),
        (
            "networking.k8s.io",
            "v1",
            "networkpolicies",
            json!({"spec": {"egress": [{}]}}),
            "/spec/policyTypes",
            json!(["Ingress", "Egress"]),
        ),
        (
            "autoscaling",
            "v2",
            "horizontalpodautoscalers",
            json!({}),
            "/spec/minReplicas",
            json!(1),
        ),
        (
            "apiextensions.k8s.io",
            "v1",
            "customresourcedefinitions",
            json!({"spec": {"names": {"kind": "Foo", "plural": "foos"}}}),
            "/spec/names/listKind",
            json!("FooList"),
        ),
        (
            "resource.k8s.io",
            "v1",
            "resourceclaims",
            json!({"spec": {"devices": {"requests": [{"exactly": {}}]}}}),
            "/spec/devices/requests/0/exactly/count",
            json!(1),
        ),
    ] {
        let value = defaulted(group, version, plural, body);
        assert_eq!(
            value.pointer(pointer),
            Some(&expected),
            "{plural} {pointer} in {value}"
        );
    }
}
