use super::*;
use crate::codec;
use crate::schema::{Schema, Shape, TypeId, builtin};
use serde_json::json;
use std::collections::HashSet;

/// Do two shapes look the same in JSON?
fn same(schema: &Schema, a: &Shape, b: &Shape, seen: &mut HashSet<(TypeId, TypeId)>) -> bool {
    match (a, b) {
        (Shape::Struct(a), Shape::Struct(b)) => {
            if a == b || !seen.insert((*a, *b)) {
                return true;
            }
            let (a, b) = (&schema.def(*a).fields, &schema.def(*b).fields);
            a.len() == b.len()
                && a.iter()
                    .zip(b)
                    .all(|(a, b)| a.json == b.json && same(schema, &a.shape, &b.shape, seen))
        }
        (Shape::List(a), Shape::List(b)) | (Shape::Map(a), Shape::Map(b)) => {
            same(schema, a, b, seen)
        }
        (a, b) => a == b,
    }
}

#[test]
fn every_version_that_is_only_renamed_has_the_stored_shape() {
    let schema = builtin();
    for resource in schema.resources() {
        let stored = schema
            .resource(
                &resource.storage_group,
                &resource.storage_version,
                &resource.plural,
            )
            .unwrap();
        let alike = same(
            schema,
            &Shape::Struct(resource.type_id),
            &Shape::Struct(stored.type_id),
            &mut HashSet::new(),
        );
        assert!(
            alike || !is_rename_only(resource),
            "{} differs from what is stored",
            resource.api_version() + " " + &resource.kind
        );
    }
}

/// Served, stored, and served again.
fn check(group: &str, version: &str, plural: &str, served: Value, stored: Value) {
    let schema = builtin();
    let resource = schema.resource(group, version, plural).unwrap();
    let storage = schema
        .resource(&resource.storage_group, &resource.storage_version, plural)
        .unwrap();
    let served = codec::canonicalize(schema, resource.type_id, served).unwrap();
    assert_eq!(served.problems, vec![]);
    let mut object = served.value.clone();
    to_storage(resource, &mut object);
    let canonical = codec::canonicalize(schema, storage.type_id, object.clone()).unwrap();
    assert_eq!(
        (&canonical.value, &canonical.problems),
        (&object, &vec![]),
        "{plural} is canonical when stored"
    );
    let stored = codec::canonicalize(schema, storage.type_id, stored)
        .unwrap()
        .value;
    assert_eq!(object, stored, "{plural} stored");
    from_storage(resource, &mut object);
    assert_eq!(object, served.value, "{plural} served again");
}

#[test]
fn events_change_their_names() {
    check(
        "events.k8s.io",
        "v1",
        "events",
        json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"}, "note": "n", "reason": "r", "regarding": {"kind": "Pod"}, "deprecatedCount": 2, "reportingController": "c"}),
        json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "message": "n", "reason": "r", "involvedObject": {"kind": "Pod"}, "count": 2, "reportingComponent": "c", "reportingInstance": ""}),
    );
}

#[test]
fn autoscalers_keep_what_v1_cannot_say() {
    check(
        "autoscaling",
        "v1",
        "horizontalpodautoscalers",
        json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"}, "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 50, "scaleTargetRef": {"kind": "D", "name": "d"}}, "status": {"currentCPUUtilizationPercentage": 7}}),
        json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
            "spec": {"maxReplicas": 3, "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}], "scaleTargetRef": {"kind": "D", "name": "d"}},
            "status": {"currentMetrics": [{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 7}}}]}}),
    );
    let resource = builtin()
        .resource("autoscaling", "v1", "horizontalpodautoscalers")
        .unwrap();
    let v2 = builtin()
        .resource("autoscaling", "v2", "horizontalpodautoscalers")
        .unwrap();
    let stored = json!({"apiVersion": "autoscaling/v2", "spec": {"metrics": [{"type": "Pods", "pods": {"metric": {"name": "m"}}}], "behavior": {"scaleUp": {}}}});
    let stored = codec::canonicalize(builtin(), v2.type_id, stored)
        .unwrap()
        .value;
    let mut object = stored.clone();
    from_storage(resource, &mut object);
    assert!(
        object["metadata"]["annotations"]
            .as_object()
            .is_some_and(|a| a.len() == 2),
        "{object}"
    );
    to_storage(resource, &mut object);
    assert_eq!(object, stored);
    let mut odd = json!({"apiVersion": "autoscaling/v1", "metadata": {"annotations": {"autoscaling.alpha.kubernetes.io/metrics": "[1]"}}, "spec": {}});
    to_storage(resource, &mut odd);
    assert!(
        odd["metadata"].get("annotations").is_some() && odd["spec"].get("metrics").is_none(),
        "what does not fit stays"
    );
}

#[test]
fn device_requests_are_nested_when_stored() {
    check(
        "resource.k8s.io",
        "v1beta1",
        "resourceclaims",
        json!({"apiVersion": "resource.k8s.io/v1beta1", "kind": "ResourceClaim", "metadata": {"name": "c"}, "spec": {"devices": {"requests": [{"name": "r", "deviceClassName": "gpu", "count": 2}]}}}),
        json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": "c"}, "spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "gpu", "count": 2}}]}}}),
    );
    check(
        "resource.k8s.io",
        "v1beta1",
        "resourceslices",
        json!({"apiVersion": "resource.k8s.io/v1beta1", "kind": "ResourceSlice", "metadata": {"name": "s"}, "spec": {"driver": "d", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}, "devices": [{"name": "x", "basic": {"attributes": {"a": {"bool": true}}}}]}}),
        json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": "s"}, "spec": {"driver": "d", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}, "devices": [{"name": "x", "attributes": {"a": {"bool": true}}}]}}),
    );
}
