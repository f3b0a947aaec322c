//! Status of claims, what Pods say of their claims, slices.

use super::*;

const UNKNOWN: &str = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
const SHARE: &str = "20000000-aaaa-4000-8000-000000000001";

fn claim() -> Value {
    let class = |name: &str| json!({"name": name, "deviceClassName": "c"});
    json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
        "metadata": {"name": "a", "namespace": "n", "resourceVersion": "1", "uid": "u"},
        "spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "c"}},
            {"name": "either", "firstAvailable": [class("one"), class("two")]}]}},
        "status": {}})
}

fn device() -> Value {
    json!({"driver": "d.example", "pool": "p", "device": "x"})
}

fn allocated() -> Value {
    let mut result = device();
    result["request"] = json!("r");
    let mut claim = claim();
    claim["status"] = json!({"allocation": {"devices": {"results": [result]}}});
    claim
}

fn user(uid: &str) -> Value {
    json!({"resource": "pods", "name": "p", "uid": uid})
}

/// What is said of a status, after another.
fn said(old: &Value, changes: &[Change]) -> Vec<String> {
    let claims = resource("resource.k8s.io", "resourceclaims");
    let old = prepared(claims, old);
    let new = prepared(claims, &with(&old, changes));
    texts(&update_status(claims, &new, &old))
}

#[test]
fn users_of_a_claim_have_something_to_use() {
    let mut leaving = allocated();
    leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    leaving["metadata"]["finalizers"] = json!(["example.com/f"]);
    leaving["status"]["reservedFor"] = json!([user("1"), user("2")]);
    let many: Vec<Value> = (0..257).map(|uid| user(&uid.to_string())).collect();
    let field = "/status/reservedFor";
    let cases: Vec<(Value, Vec<Change>, Vec<&str>)> = vec![
        (
            allocated(),
            vec![(field, json!([user("1"), user("2")]))],
            vec![],
        ),
        (
            claim(),
            vec![(field, json!([user("1")]))],
            vec!["status.reservedFor: Forbidden: may not be specified when `allocated` is not set"],
        ),
        (
            allocated(),
            vec![(field, json!(many))],
            vec!["status.reservedFor: Too many: 257: must have at most 256 items"],
        ),
        (
            allocated(),
            vec![(field, json!([user("1"), user("1")]))],
            vec!["status.reservedFor[1]: Duplicate value: \"1\""],
        ),
        (
            allocated(),
            vec![(field, json!([{"resource": "", "name": "", "uid": ""}]))],
            vec![
                "status.reservedFor[0].resource: Required value",
                "status.reservedFor[0].name: Required value",
                "status.reservedFor[0].uid: Required value",
            ],
        ),
        // While it goes, users may leave but none comes.
        (leaving.clone(), vec![(field, json!([user("2")]))], vec![]),
        (
            leaving.clone(),
            vec![(field, json!([user("1"), user("3")]))],
            vec![
                "status.reservedFor: Forbidden: new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set",
            ],
        ),
        // Devices are not given back under anybody's hands.
        (
            leaving,
            vec![("/status/allocation", Value::Null)],
            vec!["status.reservedFor: Forbidden: may not be specified when `allocated` is not set"],
        ),
    ];
    for (old, changes, expected) in cases {
        assert_eq!(said(&old, &changes), expected, "{changes:?}");
    }
}

#[test]
fn an_allocation_fits_the_claim_and_stays() {
    let result = |changes: &[Change]| {
        let base = allocated();
        let base = base["status"]["allocation"]["devices"]["results"][0].clone();
        json!({"devices": {"results": [with(&base, changes)]}})
    };
    let config = |source: &str, request: &str| {
        json!({"devices": {"config": [{"source": source, "requests": [request],
            "opaque": {"driver": "d.example", "parameters": {"a": 1}}}]}})
    };
    let path = "status.allocation.devices.results[0]";
    let conditions = |list: &[&str]| json!(list);
    let cases: Vec<(Value, Vec<String>)> = vec![
        (json!({}), vec![]),
        (result(&[]), vec![]),
        (result(&[("/request", json!("either/two"))]), vec![]),
        (
            result(&[("/request", json!("either/three"))]),
            vec![format!("{path}.request: Invalid value: \"either/three\": {UNKNOWN}")],
        ),
        (
            result(&[("/request", json!("a/b/c"))]),
            vec![format!("{path}.request: Invalid value: \"a/b/c\": {UNKNOWN}")],
        ),
        (result(&[("/shareID", json!(SHARE))]), vec![]),
        (
            result(&[("/shareID", json!("x"))]),
            vec![format!("{path}.shareID: Invalid value: \"x\": uid must be in RFC 4122 normalized form, `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` with lowercase hexadecimal characters")],
        ),
        (
            result(&[("/bindingConditions", conditions(&["a"]))]),
            vec![format!("{path}.bindingFailureConditions: Invalid value: null: bindingFailureConditions are required to use bindingConditions")],
        ),
        (
            result(&[
                ("/bindingConditions", conditions(&["a", "b"])),
                ("/bindingFailureConditions", conditions(&["b"])),
            ]),
            vec![format!("{path}.bindingFailureConditions[0]: Invalid value: \"b\": bindingFailureConditions must not overlap with bindingConditions")],
        ),
        (config("FromClass", "r"), vec![]),
        (
            config("", "r"),
            vec!["status.allocation.devices.config[0].source: Required value".to_owned()],
        ),
        (
            config("FromClaim", "s"),
            vec![format!("status.allocation.devices.config[0].requests[0]: Invalid value: \"s\": {UNKNOWN}")],
        ),
        (
            json!({"nodeSelector": {"nodeSelectorTerms": []}}),
            vec!["status.allocation.nodeSelector.nodeSelectorTerms: Required value: must have at least one node selector term".to_owned()],
        ),
    ];
    for (allocation, expected) in cases {
        let changes = [("/status/allocation", allocation)];
        assert_eq!(said(&claim(), &changes), expected, "{changes:?}");
    }
    let field = "/status/allocation/devices/results/0/driver";
    let changed = said(&allocated(), &[(field, json!("e.example"))]);
    assert!(
        changed.len() == 1
            && changed[0].starts_with("status.allocation: Invalid value")
            && changed[0].ends_with("field is immutable"),
        "{changed:?}"
    );
}

#[test]
fn drivers_tell_of_allocated_devices_only() {
    let told = |changes: &[Change]| {
        let told = with(&device(), changes);
        said(&allocated(), &[("/status/devices", json!([told]))])
    };
    let condition = |kind: usize| {
        json!({"type": format!("t{kind}"), "status": "True", "reason": "R", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z"})
    };
    let conditions: Vec<Value> = (0..9).map(condition).collect();
    let network =
        |ips: Value| json!({"interfaceName": "eth1", "hardwareAddress": "00:11", "ips": ips});
    let path = "status.devices[0]";
    let cases: Vec<(Change, Vec<String>)> = vec![
        (("/conditions", json!(conditions[..8])), vec![]),
        (
            ("/conditions", json!(conditions)),
            vec![format!(
                "{path}.conditions: Too many: 9: must have at most 8 items"
            )],
        ),
        (
            ("/device", json!("y")),
            vec![format!(
                "{path}: Invalid value: \"d.example/p/y\": must be an allocated device in the claim"
            )],
        ),
        (
            ("/shareID", json!(SHARE)),
            vec![format!(
                "{path}: Invalid value: \"d.example/p/x/{SHARE}\": must be an allocated device in the claim"
            )],
        ),
        (("/data", json!({"a": [1]})), vec![]),
        (
            ("/data", json!([1])),
            vec![format!(
                "{path}.data: Invalid value: \"<value omitted>\": must be a valid JSON object"
            )],
        ),
        (
            ("/data", json!({"a": "x".repeat(10 * 1024)})),
            vec![format!(
                "{path}.data: Too long: may not be more than 10240 bytes"
            )],
        ),
        (
            (
                "/networkData",
                network(json!(["10.9.8.7/24", "2001:db8::1/64"])),
            ),
            vec![],
        ),
        (
            (
                "/networkData",
                network(json!([
                    "300.9.8.0/24",
                    "010.009.008.000/24",
                    "2001:0db8::1/64",
                    "::ffff:192.168.0.1/120"
                ])),
            ),
            vec![
                format!(
                    "{path}.networkData.ips[0]: Invalid value: \"300.9.8.0/24\": must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)"
                ),
                format!(
                    "{path}.networkData.ips[1]: Invalid value: \"010.009.008.000/24\": must be in canonical form (\"10.9.8.0/24\")"
                ),
                format!(
                    "{path}.networkData.ips[2]: Invalid value: \"2001:0db8::1/64\": must be in canonical form (\"2001:db8::1/64\")"
                ),
                format!(
                    "{path}.networkData.ips[3]: Invalid value: \"::ffff:192.168.0.1/120\": must be in canonical form (\"192.168.0.1/24\")"
                ),
            ],
        ),
        (
            (
                "/networkData",
                network(json!(["10.9.8.7/24", "10.9.8.7/24"])),
            ),
            vec![format!(
                "{path}.networkData.ips[1]: Duplicate value: \"10.9.8.7/24\""
            )],
        ),
        (
            (
                "/networkData",
                json!({"interfaceName": "x".repeat(257), "hardwareAddress": "x".repeat(129)}),
            ),
            vec![
                format!(
                    "{path}.networkData.interfaceName: Too long: may not be more than 256 bytes"
                ),
                format!(
                    "{path}.networkData.hardwareAddress: Too long: may not be more than 128 bytes"
                ),
            ],
        ),
    ];
    for (change, expected) in cases {
        assert_eq!(told(std::slice::from_ref(&change)), expected, "{change:?}");
    }
    let twice = said(
        &allocated(),
        &[("/status/devices", json!([device(), device()]))],
    );
    assert_eq!(
        twice,
        ["status.devices[1]: Duplicate value: \"d.example/p/x\""]
    );
}

#[test]
fn a_pod_says_which_claims_are_its_own() {
    let pods = resource("", "pods");
    let mut old = pod();
    old["metadata"]["resourceVersion"] = json!("1");
    old["metadata"]["uid"] = json!("u");
    old["spec"]["resourceClaims"] = json!([{"name": "gpu", "resourceClaimTemplateName": "t"}]);
    old["spec"]["containers"][0]["resources"] =
        json!({"requests": {"example.com/gpu": "1"}, "limits": {"example.com/gpu": "1"}});
    old["status"] = json!({});
    let old = prepared(pods, &old);
    let extended = |container: &str, resource: &str, request: &str, claim: &str| {
        json!({"requestMappings": [{"containerName": container, "resourceName": resource, "requestName": request}],
            "resourceClaimName": claim})
    };
    let (made, ext) = (
        "/status/resourceClaimStatuses",
        "/status/extendedResourceClaimStatus",
    );
    let path = "status.extendedResourceClaimStatus";
    let cases: Vec<(Change, Vec<String>)> = vec![
        ((made, json!([{"name": "gpu", "resourceClaimName": "c"}])), vec![]),
        ((made, json!([{"name": "gpu"}])), vec![]),
        (
            (made, json!([{"name": "other", "resourceClaimName": "c"}])),
            vec!["status.resourceClaimStatuses[0].name: Invalid value: \"other\": must match the name of an entry in `spec.resourceClaims`".to_owned()],
        ),
        (
            (made, json!([{"name": "gpu"}, {"name": "gpu"}])),
            vec!["status.resourceClaimStatuses[1].name: Duplicate value: \"gpu\"".to_owned()],
        ),
        ((ext, extended("c", "example.com/gpu", "r", "c")), vec![]),
        (
            (ext, extended("c", "example.com/net", "r", "c")),
            vec![format!("{path}.requestMappings[0].resourceName: Invalid value: \"example.com/net\": must match the extended resource name of an entry in spec.initContainers.resources.requests or spec.containers.resources.requests")],
        ),
        (
            (ext, extended("d", "example.com/gpu", "r", "c")),
            vec![format!("{path}.requestMappings[0].containerName: Invalid value: \"d\": must match the name of an entry in spec.initContainers.name or spec.containers.name")],
        ),
        (
            (ext, extended("c", "example.com/gpu", "r", "")),
            vec![format!("{path}.resourceClaimName: Required value")],
        ),
    ];
    for (change, expected) in cases {
        let new = prepared(pods, &with(&old, std::slice::from_ref(&change)));
        assert_eq!(
            texts(&update_status(pods, &new, &old)),
            expected,
            "{change:?}"
        );
    }
}

#[test]
fn containers_use_each_request_of_a_claim_once() {
    let mut base = pod();
    base["spec"]["resourceClaims"] = json!([{"name": "gpu", "resourceClaimName": "x"}]);
    let claims = "/spec/containers/0/resources/claims";
    let used = |list: Value| [(claims, list)];
    let path = "spec.containers[0].resources.claims";
    let duplicate = format!("{path}[1]: Duplicate value: \"gpu\"");
    let cases: Vec<(Value, Vec<String>)> = vec![
        (
            json!([{"name": "gpu", "request": "a"}, {"name": "gpu", "request": "b"}]),
            vec![],
        ),
        (
            json!([{"name": "gpu", "request": "a"}, {"name": "gpu", "request": "a"}]),
            vec![format!("{path}[1]: Duplicate value: \"gpu/a\"")],
        ),
        (
            json!([{"name": "gpu", "request": "a"}, {"name": "gpu"}]),
            vec![duplicate.clone()],
        ),
        (
            json!([{"name": "gpu"}, {"name": "gpu", "request": "a"}]),
            vec![duplicate],
        ),
        (
            json!([{"name": "net"}]),
            vec![format!(
                "{path}[0]: Not found: \"net\": must be one of the names in pod.spec.resourceClaims: gpu"
            )],
        ),
    ];
    let pods = resource("", "pods");
    for (list, expected) in cases {
        let found = create(pods, &prepared(pods, &with(&base, &used(list.clone()))));
        assert_eq!(texts(&found), expected, "{list}");
    }
}

#[test]
fn a_static_pod_has_no_claims() {
    let mut mirror = pod();
    mirror["spec"]["resourceClaims"] = json!([{"name": "gpu", "resourceClaimName": "x"}]);
    let pods = resource("", "pods");
    assert_eq!(texts(&create(pods, &prepared(pods, &mirror))), [""; 0]);
    mirror["spec"]["nodeName"] = json!("node");
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
    assert_eq!(
        texts(&create(pods, &prepared(pods, &mirror))),
        ["[]: Forbidden: static pods do not support resource claims"]
    );
}

fn slice() -> Value {
    json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": "s"}, "spec": {
        "driver": "d.example", "nodeName": "n", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1},
        "devices": [{"name": "x", "taints": [{"key": "k", "effect": "NoExecute"}]}]}})
}

#[test]
fn devices_of_a_slice_are_checked() {
    let device = "/spec/devices/0";
    let shared = |policy: Value| {
        json!({"name": "x", "allowMultipleAllocations": true,
            "capacity": {"memory": {"value": "10", "requestPolicy": policy}}})
    };
    let path = "spec.devices[0].capacity[memory].requestPolicy";
    let single = json!({"name": "x", "capacity": {"memory": {"value": "10", "requestPolicy": {"default": "1"}}}});
    let used = |set: &str| json!({"counterSet": set, "counters": {"c": {"value": "1"}}});
    let consumed = |count: usize| {
        let sets = ["a", "b", "c"];
        json!({"name": "x", "consumesCounters": sets[..count].iter().map(|set| used(set)).collect::<Vec<_>>()})
    };
    let forbidden = format!("{path}: Forbidden: allowMultipleAllocations must be true");
    let not_valid = format!(
        "{path}.validValues: Invalid value: \"3\": default value is not valid according to the requestPolicy"
    );
    let unsorted = format!(
        "{path}.validValues[1]: Invalid value: \"1\": values must be sorted in ascending order"
    );
    let step = format!(
        "{path}.validRange.step: Invalid value: \"4\": value is not a multiple of a given step (2) from (1)"
    );
    let cases: &[(&[Change], &[&str])] = &[
        (&[(device, single)], &[&forbidden]),
        (
            &[(
                device,
                shared(json!({"default": "1", "validValues": ["1", "2"]})),
            )],
            &[],
        ),
        (
            &[(
                device,
                shared(json!({"default": "3", "validValues": ["1", "2"]})),
            )],
            &[&not_valid],
        ),
        (
            &[(
                device,
                shared(json!({"default": "1", "validValues": ["2", "1"]})),
            )],
            &[&unsorted],
        ),
        (
            &[(
                device,
                shared(
                    json!({"default": "3", "validRange": {"min": "1", "max": "9", "step": "2"}}),
                ),
            )],
            &[],
        ),
        (
            &[(
                device,
                shared(json!({"default": "4", "validRange": {"min": "1", "step": "2"}})),
            )],
            &[&step],
        ),
        (&[(device, consumed(2))], &[]),
        (
            &[(device, consumed(3))],
            &["spec.devices[0].consumesCounters: Too many: 3: must have at most 2 items"],
        ),
        (
            &[
                ("/spec/nodeName", Value::Null),
                ("/spec/perDeviceNodeSelection", json!(true)),
            ],
            &[
                "spec.devices[0]: Required value: exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec",
            ],
        ),
        (
            &[(
                device,
                json!({"name": "x", "bindingFailureConditions": ["a"]}),
            )],
            &[
                "spec.devices[0].bindingConditions: Invalid value: null: bindingConditions are required to use bindingFailureConditions",
            ],
        ),
        (
            &[(
                device,
                json!({"name": "x", "taints": [{"key": "k", "effect": "Other"}]}),
            )],
            &[
                "spec.devices[0].taints[0].effect: Unsupported value: \"Other\": supported values: \"NoExecute\", \"NoSchedule\", \"None\"",
            ],
        ),
    ];
    check_create(
        resource("resource.k8s.io", "resourceslices"),
        &slice(),
        cases,
    );
}

#[test]
fn whose_slice_it_is_never_changes_and_old_taints_are_not_looked_at() {
    let slices = resource("resource.k8s.io", "resourceslices");
    let mut old = slice();
    old["metadata"]["resourceVersion"] = json!("1");
    old["spec"]["devices"][0]["taints"][0]["effect"] = json!("OfLaterVersion");
    let old = prepared(slices, &old);
    let cases: &[(&[Change], &[&str])] = &[
        (&[("/spec/pool/generation", json!(2))], &[]),
        (
            &[("/spec/driver", json!("e.example"))],
            &["spec.driver: Invalid value: \"e.example\": field is immutable"],
        ),
        (
            &[("/spec/nodeName", json!("m"))],
            &["spec.nodeName: Invalid value: \"m\": field is immutable"],
        ),
        (
            &[("/spec/pool/name", json!("q"))],
            &["spec.pool.name: Invalid value: \"q\": field is immutable"],
        ),
    ];
    for (changes, expected) in cases {
        let new = prepared(slices, &with(&old, changes));
        assert_eq!(texts(&update(slices, &new, &old)), *expected, "{changes:?}");
    }
}
