#![expect(clippy::too_many_lines, reason = "tables of cases")]

mod devices;

use super::*;
use crate::{codec, defaults, schema};
use serde_json::json;

fn resource(group: &str, plural: &str) -> &'static Resource {
    schema::builtin().resource(group, "v1", plural).unwrap()
}

/// Decodes and defaults, as the server does before it validates.
fn prepared(resource: &Resource, body: &Value) -> Value {
    let mut value = codec::canonicalize(schema::builtin(), resource.type_id, body.clone())
        .unwrap()
        .value;
    defaults::apply(resource, &mut value);
    value
}

fn texts(errors: &[FieldError]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

/// Changes made to a valid object: a JSON pointer and what to put there (null removes).
type Change = (&'static str, Value);

fn with(base: &Value, changes: &[Change]) -> Value {
    let mut value = base.clone();
    for (pointer, new) in changes {
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        match value
            .pointer_mut(parent)
            .unwrap_or_else(|| panic!("{parent}"))
        {
            Value::Object(object) if new.is_null() => {
                object.remove(field);
            }
            Value::Object(object) => {
                object.insert(field.to_owned(), new.clone());
            }
            Value::Array(items) if field == "-" => items.push(new.clone()),
            Value::Array(items) => items[field.parse::<usize>().unwrap()] = new.clone(),
            other => panic!("{pointer} in {other}"),
        }
    }
    value
}

/// One rule: the change that breaks it and every complaint expected.
fn check_create(resource: &Resource, base: &Value, cases: &[(&[Change], &[&str])]) {
    assert_eq!(
        texts(&create(resource, &prepared(resource, base))),
        [""; 0],
        "the base object is valid"
    );
    for (changes, expected) in cases {
        let found = create(resource, &prepared(resource, &with(base, changes)));
        assert_eq!(texts(&found), *expected, "{changes:?}");
    }
}

fn pod() -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "n", "labels": {}},
        "spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}], "env": [{"name": "E"}], "resources": {"limits": {}, "requests": {}}, "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
            "volumes": [{"name": "v", "emptyDir": {}}]}})
}

#[test]
fn metadata_rules_hold_for_every_kind() {
    let long = "x".repeat(64);
    let cases: &[(&[Change], &[&str])] = &[
        (
            &[("/metadata/name", json!("A"))],
            &[
                "metadata.name: Invalid value: \"A\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
            ],
        ),
        (
            &[("/metadata/name", json!(null))],
            &["metadata.name: Required value: name or generateName is required"],
        ),
        (
            &[("/metadata/namespace", json!(null))],
            &["metadata.namespace: Required value"],
        ),
        (
            &[("/metadata/labels", json!({"a": long}))],
            &[
                "metadata.labels: Invalid value: \"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\": must be no more than 63 bytes",
            ],
        ),
        (
            &[("/metadata/annotations", json!({"a": "x".repeat(300_000)}))],
            &["metadata.annotations: Too long: may not be more than 262144 bytes"],
        ),
        (
            &[(
                "/metadata/ownerReferences",
                json!([{"apiVersion": "v1", "kind": "Pod", "name": "o", "uid": ""}]),
            )],
            &["metadata.ownerReferences[0].uid: Invalid value: \"\": must not be empty"],
        ),
    ];
    check_create(
        resource("", "configmaps"),
        &json!({"metadata": {"name": "a", "namespace": "n"}}),
        cases,
    );
    let namespaced = json!({"metadata": {"name": "a", "namespace": "n"}});
    assert_eq!(
        texts(&create(resource("", "namespaces"), &namespaced)),
        ["metadata.namespace: Forbidden: not allowed on this type"]
    );
}

#[test]
fn immutable_metadata_stays() {
    let old = json!({"metadata": {"name": "a", "namespace": "n", "uid": "u", "finalizers": ["x/y"], "deletionTimestamp": "2024-01-01T00:00:00Z"}});
    let new = with(
        &old,
        &[
            ("/metadata/uid", json!("v")),
            ("/metadata/finalizers", json!(["x/y", "x/z"])),
        ],
    );
    assert_eq!(
        texts(&update(resource("", "configmaps"), &new, &old)),
        [
            "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"x/z\"}",
            "metadata.uid: Invalid value: \"v\": field is immutable",
        ]
    );
    let lease = json!({"metadata": {"name": "a", "namespace": "n"}});
    assert_eq!(
        texts(&update(
            resource("coordination.k8s.io", "leases"),
            &lease,
            &lease
        )),
        ["metadata.resourceVersion: Invalid value: \"\": must be specified for an update"]
    );
}

#[test]
fn pod_containers_are_checked() {
    check_create(
        resource("", "pods"),
        &pod(),
        &[
            (
                &[("/spec/containers", json!([]))],
                &["spec.containers: Required value"],
            ),
            (
                &[("/spec/containers/0/name", json!(null))],
                &["spec.containers[0].name: Required value"],
            ),
            (
                &[("/spec/containers/0/image", json!(null))],
                &["spec.containers[0].image: Required value"],
            ),
            (
                &[("/spec/containers/0/image", json!(" i"))],
                &[
                    "spec.containers[0].image: Invalid value: \" i\": must not have leading or trailing whitespace",
                ],
            ),
            (
                &[("/spec/containers/-", json!({"name": "c", "image": "i"}))],
                &["spec.containers[1].name: Duplicate value: \"c\""],
            ),
            (
                &[("/spec/containers/0/imagePullPolicy", json!("x"))],
                &[
                    "spec.containers[0].imagePullPolicy: Unsupported value: \"x\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
                ],
            ),
            (
                &[("/spec/containers/0/ports/0/containerPort", json!(70000))],
                &[
                    "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
                ],
            ),
            (
                &[("/spec/containers/0/ports/0/protocol", json!("X"))],
                &[
                    "spec.containers[0].ports[0].protocol: Unsupported value: \"X\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
                ],
            ),
            (
                &[("/spec/containers/0/env/0/name", json!("a=b"))],
                &[
                    "spec.containers[0].env[0].name: Invalid value: \"a=b\": a valid environment variable name must consist only of printable ASCII characters other than '='",
                ],
            ),
            (
                &[(
                    "/spec/containers/0/env/0/valueFrom",
                    json!({"fieldRef": {"fieldPath": "spec.x"}}),
                )],
                &[
                    "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"spec.x\": error converting fieldPath: field label not supported: spec.x",
                ],
            ),
            (
                &[("/spec/containers/0/volumeMounts/0/name", json!("w"))],
                &["spec.containers[0].volumeMounts[0].name: Not found: \"w\""],
            ),
            (
                &[("/spec/containers/0/volumeMounts/0/subPath", json!("a/../b"))],
                &[
                    "spec.containers[0].volumeMounts[0].subPath: Invalid value: \"a/../b\": must not contain '..'",
                ],
            ),
            (
                &[
                    ("/spec/containers/0/resources/limits", json!({"cpu": "1"})),
                    ("/spec/containers/0/resources/requests", json!({"cpu": "2"})),
                ],
                &[
                    "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
                ],
            ),
            (
                &[(
                    "/spec/containers/0/resources/requests",
                    json!({"memory": "-1"}),
                )],
                &[
                    "spec.containers[0].resources.requests[memory]: Invalid value: \"-1\": must be greater than or equal to 0",
                ],
            ),
            (
                &[("/spec/containers/0/livenessProbe", json!({}))],
                &["spec.containers[0].livenessProbe: Required value: must specify a handler type"],
            ),
            (
                &[(
                    "/spec/containers/0/livenessProbe",
                    json!({"tcpSocket": {"port": 0}, "successThreshold": 2}),
                )],
                &[
                    "spec.containers[0].livenessProbe.tcpSocket.port: Invalid value: 0: must be between 1 and 65535, inclusive",
                    "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
                ],
            ),
            (
                &[(
                    "/spec/initContainers",
                    json!([{"name": "i", "image": "i", "readinessProbe": {"exec": {"command": ["x"]}}}]),
                )],
                &[
                    "spec.initContainers[0].readinessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
                ],
            ),
            (
                &[(
                    "/spec/ephemeralContainers",
                    json!([{"name": "e", "image": "i"}]),
                )],
                &["spec.ephemeralContainers: Forbidden: cannot be set on create"],
            ),
            (
                &[(
                    "/spec/containers/0/securityContext",
                    json!({"runAsUser": -1}),
                )],
                &[
                    "spec.containers[0].securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
                ],
            ),
        ],
    );
}

#[test]
fn pod_specs_are_checked() {
    check_create(
        resource("", "pods"),
        &pod(),
        &[
            (
                &[("/spec/restartPolicy", json!("x"))],
                &[
                    "spec.restartPolicy: Unsupported value: \"x\": supported values: \"Always\", \"OnFailure\", \"Never\"",
                ],
            ),
            (
                &[("/spec/activeDeadlineSeconds", json!(0))],
                &[
                    "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
                ],
            ),
            (
                &[("/spec/volumes/-", json!({"name": "v", "emptyDir": {}}))],
                &["spec.volumes[1].name: Duplicate value: \"v\""],
            ),
            (
                &[(
                    "/spec/volumes/-",
                    json!({"name": "w", "emptyDir": {}, "secret": {"secretName": "s"}}),
                )],
                &["spec.volumes[1].secret: Forbidden: may not specify more than 1 volume type"],
            ),
            (
                &[("/spec/volumes/-", json!({"name": "w", "secret": {}}))],
                &["spec.volumes[1].secret.secretName: Required value"],
            ),
            (
                &[(
                    "/spec/volumes/-",
                    json!({"name": "w", "configMap": {"name": "c", "defaultMode": 512}}),
                )],
                &[
                    "spec.volumes[1].configMap.defaultMode: Invalid value: 512: must be a number between 0 and 0777 (octal), both inclusive",
                ],
            ),
            (
                &[(
                    "/spec/volumes/-",
                    json!({"name": "w", "projected": {"sources": [{}]}}),
                )],
                &[
                    "spec.volumes[1].projected.sources[0]: Required value: must specify a volume type",
                ],
            ),
            (
                &[(
                    "/spec/tolerations",
                    json!([{"effect": "x", "operator": "Exists"}]),
                )],
                &[
                    "spec.tolerations[0].effect: Unsupported value: \"x\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\"",
                ],
            ),
            (
                &[(
                    "/spec/affinity",
                    json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {}}}),
                )],
                &[
                    "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms: Required value: must have at least one node selector term",
                ],
            ),
            (
                &[(
                    "/spec/topologySpreadConstraints",
                    json!([{"maxSkew": 0, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule"}]),
                )],
                &[
                    "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero",
                ],
            ),
            (
                &[
                    ("/spec/hostNetwork", json!(true)),
                    ("/spec/containers/0/ports/0/hostPort", json!(81)),
                ],
                &[
                    "spec.containers[0].ports[0].containerPort: Invalid value: 80: must match `hostPort` when `hostNetwork` is true",
                ],
            ),
            (
                &[("/spec/hostAliases", json!([{"ip": "x"}]))],
                &[
                    "spec.hostAliases[0].ip: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                ],
            ),
            (
                &[("/spec/dnsPolicy", json!("None"))],
                &[
                    "spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None",
                ],
            ),
            (
                &[("/spec/priorityClassName", json!("A"))],
                &[
                    "spec.priorityClassName: Invalid value: \"A\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
                ],
            ),
        ],
    );
}

#[test]
fn of_a_pod_only_few_fields_change() {
    let pods = resource("", "pods");
    let old = prepared(
        pods,
        &with(
            &pod(),
            &[
                (
                    "/spec/tolerations",
                    json!([{"key": "a", "operator": "Exists"}]),
                ),
                ("/spec/activeDeadlineSeconds", json!(10)),
            ],
        ),
    );
    for (changes, expected) in [
        (vec![("/spec/containers/0/image", json!("j"))], None),
        (vec![("/spec/activeDeadlineSeconds", json!(5))], None),
        (
            vec![(
                "/spec/tolerations/-",
                json!({"key": "b", "operator": "Exists"}),
            )],
            None,
        ),
        (vec![("/metadata/labels", json!({"a": "b"}))], None),
        (
            vec![("/spec/activeDeadlineSeconds", json!(50))],
            Some(
                "spec.activeDeadlineSeconds: Invalid value: 50: must be less than or equal to previous value",
            ),
        ),
        (
            vec![("/spec/tolerations", json!([]))],
            Some(
                "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds",
            ),
        ),
        (
            vec![("/spec/containers/-", json!({"name": "d", "image": "i"}))],
            Some("spec.containers: Forbidden: pod updates may not add or remove containers"),
        ),
        (
            vec![("/spec/nodeName", json!("x"))],
            Some(
                "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n  spec.nodeName differs\n",
            ),
        ),
        (
            vec![("/spec/containers/0/image", json!(null))],
            Some("spec.containers[0].image: Required value"),
        ),
    ] {
        let found = update(pods, &with(&old, &changes), &old);
        assert_eq!(
            texts(&found),
            expected.into_iter().collect::<Vec<_>>(),
            "{changes:?}"
        );
    }
}

fn deployment() -> Value {
    json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {"selector": {"matchLabels": {"app": "a"}}, "strategy": {},
        "template": {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
}

#[test]
fn deployments_are_checked() {
    let deployments = resource("apps", "deployments");
    check_create(
        deployments,
        &deployment(),
        &[
            (
                &[("/spec/replicas", json!(-1))],
                &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
            ),
            (
                &[("/spec/selector", json!(null))],
                &["spec.selector: Required value"],
            ),
            (
                &[("/spec/selector", json!({}))],
                &["spec.selector: Invalid value: {}: empty selector is invalid for deployment"],
            ),
            (
                &[("/spec/selector/matchLabels/app", json!("b"))],
                &[
                    "spec.template.metadata.labels: Invalid value: {\"app\":\"a\"}: `selector` does not match template `labels`",
                ],
            ),
            (
                &[("/spec/strategy", json!({"type": "x"}))],
                &[
                    "spec.strategy.type: Unsupported value: \"x\": supported values: \"Recreate\", \"RollingUpdate\"",
                ],
            ),
            (
                &[(
                    "/spec/strategy",
                    json!({"type": "Recreate", "rollingUpdate": {}}),
                )],
                &[
                    "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
                ],
            ),
            (
                &[(
                    "/spec/strategy",
                    json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}}),
                )],
                &[
                    "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0",
                ],
            ),
            (
                &[("/spec/template/spec/restartPolicy", json!("Never"))],
                &[
                    "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
                ],
            ),
            (
                &[("/spec/template/spec/containers/0/image", json!(null))],
                &["spec.template.spec.containers[0].image: Required value"],
            ),
            (
                &[
                    ("/spec/progressDeadlineSeconds", json!(5)),
                    ("/spec/minReadySeconds", json!(5)),
                ],
                &[
                    "spec.progressDeadlineSeconds: Invalid value: 5: must be greater than minReadySeconds",
                ],
            ),
        ],
    );
    let old = prepared(deployments, &deployment());
    let new = with(
        &old,
        &[
            ("/spec/selector/matchLabels/b", json!("c")),
            ("/spec/template/metadata/labels/b", json!("c")),
        ],
    );
    assert_eq!(
        texts(&update(deployments, &new, &old)),
        [
            "spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"a\",\"b\":\"c\"}}: field is immutable"
        ]
    );
}

#[test]
fn config_maps_and_secrets_are_checked() {
    let maps = resource("", "configmaps");
    let base = json!({"metadata": {"name": "a", "namespace": "n"}, "data": {"a": "b"}});
    check_create(
        maps,
        &base,
        &[
            (
                &[("/data", json!({"a b": ""}))],
                &[
                    "data[a b]: Invalid value: \"a b\": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
                ],
            ),
            (
                &[("/binaryData", json!({"a": "eA=="}))],
                &["data[a]: Invalid value: \"a\": duplicate of key present in binaryData"],
            ),
        ],
    );
    let frozen = with(&base, &[("/immutable", json!(true))]);
    assert_eq!(
        texts(&update(
            maps,
            &with(&base, &[("/data/a", json!("c"))]),
            &frozen
        )),
        [
            "immutable: Forbidden: field is immutable when `immutable` is set",
            "data: Forbidden: field is immutable when `immutable` is set"
        ]
    );
    let secrets = resource("", "secrets");
    let base = json!({"metadata": {"name": "a", "namespace": "n"}, "data": {}});
    check_create(
        secrets,
        &base,
        &[
            (
                &[("/type", json!("kubernetes.io/tls"))],
                &[
                    "data[tls.crt]: Required value",
                    "data[tls.key]: Required value",
                ],
            ),
            (
                &[
                    ("/type", json!("kubernetes.io/dockerconfigjson")),
                    ("/data", json!({".dockerconfigjson": "eA=="})),
                ],
                &[
                    "data[.dockerconfigjson]: Invalid value: \"<secret contents redacted>\": expected value at line 1 column 1",
                ],
            ),
            (
                &[("/type", json!("kubernetes.io/service-account-token"))],
                &["metadata.annotations[kubernetes.io/service-account.name]: Required value"],
            ),
        ],
    );
    let old = prepared(secrets, &base);
    assert_eq!(
        texts(&update(
            secrets,
            &with(&old, &[("/type", json!("x"))]),
            &old
        )),
        ["type: Invalid value: \"x\": field is immutable"]
    );
}

#[test]
fn cluster_kinds_are_checked() {
    check_create(
        resource("", "nodes"),
        &json!({"metadata": {"name": "a"}, "spec": {}}),
        &[
            (
                &[("/spec/taints", json!([{"key": "a", "effect": "x"}]))],
                &[
                    "metadata.taints[0].effect: Unsupported value: \"x\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\"",
                ],
            ),
            (
                &[("/spec/podCIDRs", json!(["x"]))],
                &[
                    "spec.podCIDRs[0]: Invalid value: \"x\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
                ],
            ),
        ],
    );
    check_create(
        resource("node.k8s.io", "runtimeclasses"),
        &json!({"metadata": {"name": "a"}, "handler": "wasm"}),
        &[(
            &[("/handler", json!("a.b"))],
            &["handler: Invalid value: \"a.b\": must not contain dots"],
        )],
    );
    check_create(
        resource("scheduling.k8s.io", "priorityclasses"),
        &json!({"metadata": {"name": "a"}, "value": 1}),
        &[
            (
                &[("/value", json!(2_000_000_000))],
                &[
                    "value: Forbidden: maximum allowed value of a user defined priority is 1000000000",
                ],
            ),
            (
                &[
                    ("/metadata/name", json!("system-node-critical")),
                    ("/value", json!(2_000_001_000)),
                ],
                &[],
            ),
        ],
    );
    check_create(
        schema::builtin()
            .resource("certificates.k8s.io", "v1beta1", "clustertrustbundles")
            .unwrap(),
        &json!({"metadata": {"name": "example.com:s:a"}, "spec": {"signerName": "example.com/s",
            "trustBundle": "-----BEGIN CERTIFICATE-----\nMAMCAQE=\n-----END CERTIFICATE-----\n"}}),
        &[
            (
                &[("/metadata/name", json!("a"))],
                &[
                    "metadata.name: Invalid value: \"a\": ClusterTrustBundle for signerName example.com/s must be named with prefix example.com:s:",
                ],
            ),
            (
                &[("/spec/signerName", json!(""))],
                &[
                    "metadata.name: Invalid value: \"example.com:s:a\": ClusterTrustBundle without signer name must not have \":\" in its name",
                ],
            ),
            (
                &[
                    ("/spec/signerName", json!("")),
                    ("/metadata/name", json!("a.b")),
                ],
                &[],
            ),
            (
                &[("/spec/trustBundle", json!(""))],
                &[
                    "spec.trustBundle: Invalid value: \"<value omitted>\": at least one trust anchor must be provided",
                ],
            ),
        ],
    );
    check_create(
        resource("rbac.authorization.k8s.io", "clusterroles"),
        &json!({"metadata": {"name": "system:a"}, "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]}),
        &[
            (
                &[("/rules/0/verbs", json!([]))],
                &["rules[0].verbs: Required value: verbs must contain at least one value"],
            ),
            (
                &[("/rules/0/nonResourceURLs", json!(["/x"]))],
                &[
                    "rules[0].nonResourceURLs: Invalid value: [\"/x\"]: rules cannot apply to both regular resources and non-resource URLs",
                ],
            ),
        ],
    );
    check_create(
        resource("rbac.authorization.k8s.io", "rolebindings"),
        &json!({"metadata": {"name": "a", "namespace": "n"}, "roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}]}),
        &[
            (
                &[("/roleRef/kind", json!("x"))],
                &[
                    "roleRef.kind: Unsupported value: \"x\": supported values: \"Role\", \"ClusterRole\"",
                ],
            ),
            (
                &[("/subjects/0/kind", json!("x"))],
                &[
                    "subjects[0].kind: Unsupported value: \"x\": supported values: \"ServiceAccount\", \"User\", \"Group\"",
                ],
            ),
        ],
    );
}

#[test]
fn a_finished_container_that_may_not_restart_stays_finished() {
    let pods = resource("", "pods");
    let mut old = prepared(
        pods,
        &with(&pod(), &[("/spec/restartPolicy", json!("Never"))]),
    );
    old["status"] =
        json!({"containerStatuses": [{"name": "c", "state": {"terminated": {"exitCode": 1}}}]});
    let mut new = old.clone();
    assert_eq!(texts(&update_status(pods, &new, &old)), [""; 0]);
    new["status"] = json!({"containerStatuses": [{"name": "c", "state": {"running": {}}}]});
    assert_eq!(
        texts(&update_status(pods, &new, &old)),
        [
            "status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state"
        ]
    );
}

#[test]
fn parts_that_few_pods_use_are_checked() {
    check_create(
        resource("", "pods"),
        &pod(),
        &[
            (
                &[(
                    "/metadata/annotations",
                    json!({"kubernetes.io/config.mirror": "x"}),
                )],
                &[
                    "metadata.annotations[kubernetes.io/config.mirror]: Invalid value: \"x\": must set spec.nodeName if mirror pod annotation is set",
                ],
            ),
            (
                &[(
                    "/metadata/annotations",
                    json!({"controller.kubernetes.io/pod-deletion-cost": "+1"}),
                )],
                &[
                    "metadata.annotations[controller.kubernetes.io/pod-deletion-cost]: Invalid value: \"+1\": must be a 32bit integer",
                ],
            ),
            (
                &[(
                    "/spec/resourceClaims",
                    json!([{"name": "c", "resourceClaimName": "r"}, {"name": "c"}]),
                )],
                &[
                    "spec.resourceClaims[1].name: Duplicate value: \"c\"",
                    "spec.resourceClaims[1]: Invalid value: {\"name\":\"c\"}: must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
                ],
            ),
            (
                &[
                    ("/spec/os", json!({"name": "windows"})),
                    ("/spec/hostPID", json!(true)),
                    (
                        "/spec/containers/0/securityContext",
                        json!({"privileged": true}),
                    ),
                ],
                &[
                    "spec.hostPID: Forbidden: cannot be set for a windows pod",
                    "spec.containers[0].securityContext.privileged: Forbidden: cannot be set for a windows pod",
                ],
            ),
            (
                &[
                    ("/spec/os", json!({"name": "linux"})),
                    (
                        "/spec/containers/0/securityContext",
                        json!({"windowsOptions": {}}),
                    ),
                ],
                &[
                    "spec.containers[0].securityContext.windowsOptions: Forbidden: windows options cannot be set for a linux pod",
                ],
            ),
            (
                &[(
                    "/spec/containers/0/restartPolicyRules",
                    json!([{"action": "Restart"}]),
                )],
                &[
                    "spec.containers[0].restartPolicy: Required value: must specify restartPolicy when restart rules are used",
                    "spec.containers[0].restartPolicyRules[0].exitCodes: Required value: must be specified",
                ],
            ),
            (
                &[("/spec/volumes/-", json!({"name": "w", "image": {}}))],
                &["spec.volumes[1].image.reference: Required value"],
            ),
            (
                &[(
                    "/spec/topologySpreadConstraints",
                    json!([{"maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule", "matchLabelKeys": ["a"]}]),
                )],
                &[
                    "spec.topologySpreadConstraints[0].matchLabelKeys: Forbidden: must not be specified when labelSelector is not set",
                ],
            ),
        ],
    );
}

#[test]
fn certificates_that_pods_show_are_checked() {
    let mut base = pod();
    base["spec"]["containers"][0]["volumeMounts"] = json!([]);
    base["spec"]["volumes"] = json!([{"name": "v", "projected": {"sources": [{"podCertificate": {
        "signerName": "example.com/s", "keyType": "ED25519", "keyPath": "key", "certificateChainPath": "chain"}}]}}]);
    macro_rules! at {
        ($field:literal) => {
            concat!("/spec/volumes/0/projected/sources/0/podCertificate", $field)
        };
    }
    let (kind, signer, key) = (at!("/keyType"), at!("/signerName"), at!("/keyPath"));
    let (life, notes) = (at!("/maxExpirationSeconds"), at!("/userAnnotations"));
    let certificate = "spec.volumes[0].projected.sources[0].podCertificate";
    let says = |rest: &str| format!("{certificate}{rest}");
    let wrong = [
        says(
            ".keyType: Unsupported value: \"DSA\": supported values: \"RSA3072\", \"RSA4096\", \"ECDSAP256\", \"ECDSAP384\", \"ECDSAP521\", \"ED25519\"",
        ),
        says(
            ".signerName: Invalid value: \"s\": must be a fully qualified domain and path of the form 'example.com/signer-name'",
        ),
        says(".keyPath: Invalid value: \"../key\": must not contain '..'"),
        says(
            ".maxExpirationSeconds: Invalid value: 60: if provided, maxExpirationSeconds must be >= 3600",
        ),
        says(
            ".maxExpirationSeconds: Invalid value: 7862401: if provided, maxExpirationSeconds must be <= 7862400",
        ),
        says(
            ".maxExpirationSeconds: Invalid value: 86401: if provided, maxExpirationSeconds must be <= 86400",
        ),
        says(
            ".userAnnotations: Invalid value: \"bare\": must be a domain-prefixed key (such as \"acme.io/foo\")",
        ),
        says(
            ": Required value: specify at least one of credentialBundlePath, keyPath, and certificateChainPath",
        ),
        "spec.volumes[0].projected.sources[0]: Invalid value: \"chain\": conflicting duplicate paths"
            .to_owned(),
    ];
    let [
        of_kind,
        of_signer,
        of_path,
        short,
        long,
        own,
        bare,
        none,
        twice,
    ] = wrong.each_ref().map(String::as_str);
    check_create(
        resource("", "pods"),
        &base,
        &[
            (&[], &[]),
            (&[(kind, json!("RSA4096")), (life, json!(7200))], &[]),
            (&[(notes, json!({"acme.io/Foo": "x"}))], &[]),
            (&[(kind, json!("DSA"))], &[of_kind]),
            (&[(signer, json!("s"))], &[of_signer]),
            (&[(key, json!("../key"))], &[of_path]),
            (&[(life, json!(60))], &[short]),
            (&[(life, json!(7_862_401))], &[long]),
            (
                &[(signer, json!("kubernetes.io/s")), (life, json!(86_401))],
                &[own],
            ),
            (&[(notes, json!({"bare": "x"}))], &[bare]),
            (
                &[(
                    at!(""),
                    json!({"signerName": "example.com/s", "keyType": "ED25519"}),
                )],
                &[none],
            ),
            (&[(key, json!("chain"))], &[twice]),
        ],
    );
}

#[test]
fn a_mirror_pod_stays_one() {
    let pods = resource("", "pods");
    let plain = prepared(pods, &with(&pod(), &[("/spec/nodeName", json!("node"))]));
    let mirror = with(
        &plain,
        &[(
            "/metadata/annotations",
            json!({"kubernetes.io/config.mirror": "x"}),
        )],
    );
    assert_eq!(texts(&update(pods, &mirror, &mirror)), [""; 0]);
    assert_eq!(
        texts(&update(pods, &mirror, &plain)),
        [
            "metadata.annotations[kubernetes.io/config.mirror]: Forbidden: may not add mirror pod annotation"
        ]
    );
    assert_eq!(
        texts(&update(pods, &plain, &mirror)),
        [
            "metadata.annotations[kubernetes.io/config.mirror]: Forbidden: may not remove or update mirror pod annotation"
        ]
    );
}

#[test]
fn status_of_namespaces_and_deployments_is_checked() {
    let namespaces = resource("", "namespaces");
    let namespace = |phase: &str| json!({"metadata": {"name": "a", "resourceVersion": "1"}, "status": {"phase": phase}});
    let old = namespace("Active");
    assert_eq!(texts(&update_status(namespaces, &old, &old)), [""; 0]);
    assert_eq!(
        texts(&update_status(namespaces, &namespace("Terminating"), &old)),
        [
            "status.Phase: Invalid value: \"Terminating\": may only be 'Active' if `deletionTimestamp` is empty"
        ]
    );
    let deployments = resource("apps", "deployments");
    let status = |status: Value| {
        with(
            &prepared(deployments, &deployment()),
            &[("/status", status)],
        )
    };
    let old = status(json!({"collisionCount": 2}));
    let cases = [
        (
            json!({"collisionCount": 3, "replicas": 2, "readyReplicas": 1}),
            None,
        ),
        (
            json!({}),
            Some("status.collisionCount: Invalid value: 0: cannot be decremented"),
        ),
        (
            json!({"collisionCount": 2, "replicas": 1, "readyReplicas": 2}),
            Some("status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas"),
        ),
    ];
    for (new, expected) in cases {
        let found = update_status(deployments, &status(new.clone()), &old);
        assert_eq!(
            texts(&found),
            expected.into_iter().collect::<Vec<_>>(),
            "{new}"
        );
    }
}

#[test]
fn services_and_policies_are_checked() {
    let services = resource("", "services");
    let base =
        json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {"ports": [{"port": 80}]}});
    check_create(
        services,
        &base,
        &[
            (
                &[("/spec/ports", json!([]))],
                &["spec.ports: Required value"],
            ),
            (
                &[
                    ("/spec/clusterIP", json!("None")),
                    ("/spec/clusterIPs", json!(["None"])),
                    ("/spec/ports", json!([])),
                ],
                &[],
            ),
            (
                &[("/spec/type", json!("x"))],
                &[
                    "spec.type: Unsupported value: \"x\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
                ],
            ),
            (
                &[
                    ("/spec/ports/0/port", json!(0)),
                    ("/spec/ports/0/targetPort", json!(80)),
                ],
                &["spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive"],
            ),
            (
                &[("/spec/ports/-", json!({"port": 81, "name": "b"}))],
                &["spec.ports[0].name: Required value"],
            ),
            (
                &[("/spec/ports/0/nodePort", json!(30000))],
                &["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"],
            ),
            (
                &[("/spec/type", json!("ExternalName"))],
                &["spec.externalName: Required value"],
            ),
            (
                &[("/metadata/name", json!("a.b"))],
                &["metadata.name: Invalid value: \"a.b\": must not contain dots"],
            ),
        ],
    );
    let old = prepared(
        services,
        &with(
            &base,
            &[
                ("/spec/clusterIP", json!("10.0.0.1")),
                ("/spec/clusterIPs", json!(["10.0.0.1"])),
            ],
        ),
    );
    let new = with(
        &old,
        &[
            ("/spec/clusterIP", json!("10.0.0.2")),
            ("/spec/clusterIPs", json!(["10.0.0.2"])),
        ],
    );
    assert_eq!(
        texts(&update(services, &new, &old)),
        ["spec.clusterIPs[0]: Invalid value: [\"10.0.0.2\"]: may not change once set"]
    );
    let policy = json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": 80}]}]}});
    check_create(
        resource("networking.k8s.io", "networkpolicies"),
        &policy,
        &[
            (
                &[("/spec/ingress/0/from/0", json!({}))],
                &["spec.ingress[0].from[0]: Required value: must specify a peer"],
            ),
            (
                &[("/spec/ingress/0/from/0", json!({"ipBlock": {"cidr": "x"}}))],
                &[
                    "spec.ingress[0].from[0].ipBlock.cidr: Invalid value: \"x\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
                ],
            ),
            (
                &[("/spec/ingress/0/ports/0/endPort", json!(79))],
                &[
                    "spec.ingress[0].ports[0].endPort: Invalid value: 79: must be greater than or equal to `port`",
                ],
            ),
        ],
    );
}

#[test]
fn claims_budgets_and_autoscalers_are_checked() {
    let claim = json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    check_create(
        resource("", "persistentvolumeclaims"),
        &claim,
        &[
            (
                &[("/spec/accessModes", json!([]))],
                &["spec.accessModes: Required value: at least 1 access mode is required"],
            ),
            (
                &[("/spec/resources", json!({}))],
                &["spec.resources.requests[storage]: Required value"],
            ),
            (
                &[("/spec/resources/requests/storage", json!("0"))],
                &[
                    "spec.resources.requests[storage]: Invalid value: \"0\": must be greater than zero",
                ],
            ),
        ],
    );
    let budget = json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {"minAvailable": 1}});
    check_create(
        resource("policy", "poddisruptionbudgets"),
        &budget,
        &[(
            &[("/spec/maxUnavailable", json!(1))],
            &[
                "spec: Invalid value: {\"maxUnavailable\":1,\"minAvailable\":1}: minAvailable and maxUnavailable cannot be both set",
            ],
        )],
    );
    let scaler = json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {"maxReplicas": 2, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}}});
    check_create(
        resource("autoscaling", "horizontalpodautoscalers"),
        &scaler,
        &[
            (
                &[("/spec/maxReplicas", json!(0))],
                &[
                    "spec.maxReplicas: Required value: must be set and greater than 0",
                    "spec.maxReplicas: Invalid value: 0: must be greater than or equal to `minReplicas`",
                ],
            ),
            (
                &[("/spec/scaleTargetRef/name", json!(""))],
                &["spec.scaleTargetRef.name: Required value"],
            ),
        ],
    );
    check_create(
        resource("storage.k8s.io", "storageclasses"),
        &json!({"metadata": {"name": "a"}, "provisioner": "x/y"}),
        &[(
            &[("/provisioner", json!(""))],
            &["provisioner: Required value"],
        )],
    );
}

/// The test's Pod with these containers and init containers, and resources of its own.
fn sized(containers: Value, init: Value, own: Value) -> Value {
    with(
        &pod(),
        &[
            ("/spec/containers", containers),
            ("/spec/initContainers", init),
            ("/spec/resources", own),
        ],
    )
}

#[test]
fn resources_of_a_pod_as_a_whole_are_checked() {
    let pods = resource("", "pods");
    let container = json!([{"name": "c", "image": "i", "resources": {
        "requests": {"cpu": "2", "memory": "1Gi"}, "limits": {"cpu": "4", "memory": "1Gi"}}}]);
    let none = json!([]);
    let cases: &[(Value, &[&str])] = &[
        (
            json!({"requests": {"cpu": "2"}, "limits": {"cpu": "4", "memory": "1Gi"}}),
            &[],
        ),
        (
            json!({"requests": {"cpu": "1500m"}, "limits": {"cpu": "3"}}),
            &[
                "spec.resources.requests[cpu]: Invalid value: \"1500m\": must be greater than or equal to aggregate container requests of 2",
                "spec.resources.containers[0][cpu].limits: Invalid value: \"4\": must be less than or equal to pod limits of 3",
            ],
        ),
        (
            json!({"requests": {"cpu": "2", "ephemeral-storage": "1Gi"}}),
            &[
                "spec.resources.requests[ephemeral-storage]: Unsupported value: \"ephemeral-storage\": supported values: \"cpu\", \"hugepages-\", \"memory\"",
            ],
        ),
        (
            json!({"requests": {"cpu": "2"}, "claims": [{"name": "gpu"}]}),
            &[
                "spec.resources.claims: Forbidden: claims may not be set for Resources at pod-level",
                "spec.resources.claims[0]: Not found: \"gpu\": must be one of the names in pod.spec.resourceClaims which is empty",
            ],
        ),
    ];
    for (own, expected) in cases {
        let object = prepared(pods, &sized(container.clone(), none.clone(), own.clone()));
        assert_eq!(texts(&create(pods, &object)), *expected, "{own}");
    }
}

#[test]
fn a_resize_changes_cpu_and_memory_alone() {
    let pods = resource("", "pods");
    let amounts = |cpu: &str| json!({"requests": {"cpu": cpu}, "limits": {"cpu": "1"}});
    let policy = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
    let mut old = prepared(
        pods,
        &sized(
            json!([{"name": "c", "image": "i", "resources": amounts("100m")}]),
            json!([{"name": "once", "image": "i", "resources": amounts("100m")},
                {"name": "old", "image": "i", "resources": amounts("100m"), "resizePolicy": policy},
                {"name": "side", "image": "i", "restartPolicy": "Always", "resources": amounts("100m")}]),
            json!({"requests": {"cpu": "500m"}, "limits": {"cpu": "1"}}),
        ),
    );
    old["metadata"]["resourceVersion"] = json!("1");
    let cases: &[(&[Change], &[&str])] = &[
        (&[], &[]),
        (
            &[
                ("/spec/containers/0/resources/requests/cpu", json!("200m")),
                (
                    "/spec/initContainers/0/resources/requests/cpu",
                    json!("300m"),
                ),
                (
                    "/spec/initContainers/2/resources/requests/cpu",
                    json!("200m"),
                ),
                ("/spec/resources/requests/cpu", json!("600m")),
                ("/spec/resources/limits/cpu", json!("2")),
            ],
            &[],
        ),
        (&[("/spec/resources/requests/memory", json!("1Gi"))], &[]),
        (
            &[("/spec/containers/0/resources/requests/cpu", json!("700m"))],
            &[
                "spec.resources.requests[cpu]: Invalid value: \"500m\": must be greater than or equal to aggregate container requests of 800m",
            ],
        ),
        (
            &[
                ("/spec/initContainers/0/resources/requests", json!(null)),
                (
                    "/spec/initContainers/0/resources/limits/ephemeral-storage",
                    json!("1Gi"),
                ),
            ],
            &[
                "spec.initContainers[0].resources.requests: Forbidden: resource requests cannot be removed",
                "spec.initContainers[0]: Forbidden: only cpu and memory resources for init or sidecar containers are mutable",
            ],
        ),
        (
            &[(
                "/spec/initContainers/1/resources/requests/cpu",
                json!("200m"),
            )],
            &[
                "spec.initContainers[1]: Forbidden: non-sidecar init containers with a resize policy of RestartContainer cannot be resized",
            ],
        ),
        (
            &[("/spec/resources/limits", json!(null))],
            &["spec.resources.limits: Forbidden: pod-level resource limits cannot be removed"],
        ),
        (
            &[("/spec/resources", json!(null))],
            &["spec.resources: Forbidden: pod-level resources cannot be removed"],
        ),
    ];
    for (changes, expected) in cases {
        let found = update_part(pods, "resize", &with(&old, changes), &old);
        assert_eq!(texts(&found), *expected, "{changes:?}");
    }
    let running =
        |resources: Value| json!([{"name": "c", "state": {"running": {}}, "resources": resources}]);
    for (resources, expected) in [
        (
            json!(null),
            vec!["spec: Forbidden: Pod running on node without support for resize"],
        ),
        (json!({}), vec![]),
    ] {
        let mut known = old.clone();
        known["status"] = json!({"containerStatuses": running(resources)});
        assert_eq!(
            texts(&update_part(pods, "resize", &known, &known)),
            expected
        );
    }
}

#[test]
fn resize_policies_fit_the_container() {
    let pods = resource("", "pods");
    let policy = json!([{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]);
    let once = json!([{"name": "once", "image": "i", "resizePolicy": policy}]);
    check_create(
        pods,
        &pod(),
        &[
            (
                &[("/spec/initContainers", once)],
                &[
                    "spec.initContainers[0].resizePolicy[0].restartPolicy: Invalid value: \"RestartContainer\": must not be set to 'RestartContainer' for non-sidecar initContainers",
                ],
            ),
            (
                &[
                    ("/spec/containers/0/resizePolicy", policy),
                    ("/spec/restartPolicy", json!("Never")),
                ],
                &[
                    "spec.containers[0].resizePolicy: Invalid value: \"RestartContainer\": must be 'NotRequired' when pod `restartPolicy` is 'Never'",
                ],
            ),
        ],
    );
}

#[test]
fn variables_from_files_are_checked() {
    let source = json!({"volumeName": "v", "path": "d/config.env", "key": "KEY", "optional": true});
    let mut base = pod();
    base["spec"]["containers"][0]["env"] =
        json!([{"name": "E", "valueFrom": {"fileKeyRef": source}}]);
    base["spec"]["volumes"] =
        json!([{"name": "v", "emptyDir": {}}, {"name": "host", "hostPath": {"path": "/etc"}}]);
    const AT: &str = "/spec/containers/0/env/0/valueFrom/fileKeyRef";
    check_create(
        resource("", "pods"),
        &base,
        &[
            (
                &[(AT, json!({}))],
                &[
                    "spec.containers[0].env[0].valueFrom.fileKeyRef.key: Required value",
                    "spec.containers[0].env[0].valueFrom.fileKeyRef.volumeName: Required value",
                    "spec.containers[0].env[0].valueFrom.fileKeyRef.path: Required value",
                    "spec.containers[0].env[0].valueFrom.fileKeyRef.volumeName: Not found: \"\"",
                ],
            ),
            (
                &[(
                    AT,
                    json!({"volumeName": "host", "path": "/passwd", "key": "A=B"}),
                )],
                &[
                    "spec.containers[0].env[0].valueFrom.fileKeyRef.key: Invalid value: \"A=B\": a valid environment variable name must consist only of printable ASCII characters other than '='",
                    "spec.containers[0].env[0].valueFrom.fileKeyRef.path: Invalid value: \"/passwd\": must be a relative path",
                    "spec.containers[0].env[0].valueFrom.fileKeyRef.volumeName: Invalid value: \"host\": referenced volume must be of type emptyDir",
                ],
            ),
            (
                &[(
                    AT,
                    json!({"volumeName": "none", "path": "../x", "key": "A"}),
                )],
                &[
                    "spec.containers[0].env[0].valueFrom.fileKeyRef.path: Invalid value: \"../x\": must not contain '..'",
                    "spec.containers[0].env[0].valueFrom.fileKeyRef.volumeName: Not found: \"none\"",
                ],
            ),
            (
                &[(
                    "/spec/containers/0/env/0/valueFrom/fieldRef",
                    json!({"apiVersion": "v1", "fieldPath": "metadata.name"}),
                )],
                &[
                    "spec.containers[0].env[0].valueFrom: Invalid value: \"\": may not have more than one field specified at a time",
                ],
            ),
            (
                &[("/spec/containers/0/env/0/value", json!("x"))],
                &[
                    "spec.containers[0].env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
                ],
            ),
        ],
    );
}

#[test]
fn features_of_a_node_have_names_in_order() {
    let nodes = resource("", "nodes");
    let name = "must start with an UpperCamelCase segment, with subsequent segments separated by '/' (e.g., MyFeature or MyFeature/mySubFeature), and contain only alphanumeric characters and slashes";
    let cases: [(Value, &[String]); 4] = [
        (json!(["A", "A/bC", "B1"]), &[]),
        (
            json!(["B", "A"]),
            &["status.declaredFeatures[1]: Invalid value: \"A\": list must be sorted alphabetically".to_owned()],
        ),
        (
            json!(["A", "A"]),
            &["status.declaredFeatures[1]: Duplicate value: \"A\"".to_owned()],
        ),
        (
            json!(["A_b", "a"]),
            &[
                format!("status.declaredFeatures[0]: Invalid value: \"A_b\": invalid feature name \"A_b\": {name}"),
                format!("status.declaredFeatures[1]: Invalid value: \"a\": invalid feature name \"a\": {name}"),
            ],
        ),
    ];
    for (features, expected) in cases {
        let old =
            json!({"metadata": {"name": "n", "resourceVersion": "1"}, "spec": {}, "status": {}});
        let new = with(&old, &[("/status/declaredFeatures", features.clone())]);
        assert_eq!(
            texts(&update_part(nodes, "status", &new, &old)),
            expected,
            "{features}"
        );
    }
}
