//! Conditional defaults of everything outside the core group.

use super::{Hook, Object, child, child_or_new, items, set_default, text};
use serde_json::{Value, json};

pub(super) const HOOKS: &[(&str, Hook)] = &[
    ("k8s.io/api/apps/v1.DeploymentStrategy", deployment_strategy),
    (
        "k8s.io/api/apps/v1.DaemonSetUpdateStrategy",
        daemon_set_strategy,
    ),
    (
        "k8s.io/api/apps/v1.StatefulSetUpdateStrategy",
        stateful_set_strategy,
    ),
    ("k8s.io/api/apps/v1.StatefulSetSpec", stateful_set),
    ("k8s.io/api/batch/v1.Job", job),
    (
        "k8s.io/api/autoscaling/v2.HorizontalPodAutoscalerSpec",
        autoscaler,
    ),
    ("k8s.io/api/networking/v1.NetworkPolicySpec", network_policy),
    ("k8s.io/api/rbac/v1.Subject", subject),
    (
        "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1.CustomResourceDefinitionNames",
        resource_names,
    ),
    ("k8s.io/api/resource/v1.ExactDeviceRequest", device_count),
    ("k8s.io/api/resource/v1.DeviceSubRequest", device_count),
    (
        "k8s.io/api/resource/v1beta2.ExactDeviceRequest",
        device_count,
    ),
    ("k8s.io/api/resource/v1beta2.DeviceSubRequest", device_count),
    (
        "k8s.io/api/resource/v1beta1.DeviceRequest",
        device_request_v1beta1,
    ),
    ("k8s.io/api/resource/v1beta1.DeviceSubRequest", device_count),
];

fn deployment_strategy(strategy: &mut Object) {
    if text(strategy, "type") == "RollingUpdate" {
        let rolling = child_or_new(strategy, "rollingUpdate");
        set_default(rolling, "maxUnavailable", || Value::from("25%"));
        set_default(rolling, "maxSurge", || Value::from("25%"));
    }
}

fn daemon_set_strategy(strategy: &mut Object) {
    if text(strategy, "type") == "RollingUpdate" {
        let rolling = child_or_new(strategy, "rollingUpdate");
        set_default(rolling, "maxUnavailable", || Value::from(1));
        set_default(rolling, "maxSurge", || Value::from(0));
    }
}

fn stateful_set_strategy(strategy: &mut Object) {
    if text(strategy, "type") == "RollingUpdate" {
        set_default(child_or_new(strategy, "rollingUpdate"), "partition", || {
            Value::from(0)
        });
    }
}

/// A claim in a StatefulSet says what it is.
fn stateful_set(spec: &mut Object) {
    for claim in items(spec, "volumeClaimTemplates") {
        claim.insert("apiVersion".to_owned(), Value::from("v1"));
        claim.insert("kind".to_owned(), Value::from("PersistentVolumeClaim"));
    }
}

fn job(job: &mut Object) {
    let labels = job
        .get("spec")
        .and_then(|s| s.pointer("/template/metadata/labels"))
        .filter(|l| l.as_object().is_some_and(|l| !l.is_empty()))
        .cloned();
    if let Some(labels) = labels {
        set_default(child_or_new(job, "metadata"), "labels", || labels);
    }
    let spec = child_or_new(job, "spec");
    if !spec.contains_key("completions") && !spec.contains_key("parallelism") {
        spec.insert("completions".to_owned(), Value::from(1));
    }
    set_default(spec, "parallelism", || Value::from(1));
    let per_index = spec.contains_key("backoffLimitPerIndex");
    set_default(spec, "backoffLimit", || {
        Value::from(if per_index { i32::MAX } else { 6 })
    });
    set_default(spec, "completionMode", || Value::from("NonIndexed"));
    set_default(spec, "suspend", || Value::Bool(false));
    set_default(spec, "manualSelector", || Value::Bool(false));
    let replacement = if spec.contains_key("podFailurePolicy") {
        "Failed"
    } else {
        "TerminatingOrFailed"
    };
    set_default(spec, "podReplacementPolicy", || Value::from(replacement));
}

fn autoscaler(spec: &mut Object) {
    if spec
        .get("metrics")
        .and_then(Value::as_array)
        .is_none_or(Vec::is_empty)
    {
        let cpu =
            json!({"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}});
        spec.insert(
            "metrics".to_owned(),
            json!([{"type": "Resource", "resource": cpu}]),
        );
    }
    let Some(behavior) = child(spec, "behavior") else {
        return;
    };
    let up = child_or_new(behavior, "scaleUp");
    set_default(up, "stabilizationWindowSeconds", || Value::from(0));
    set_default(up, "selectPolicy", || Value::from("Max"));
    set_default(
        up,
        "policies",
        || json!([{"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}]),
    );
    let down = child_or_new(behavior, "scaleDown");
    set_default(down, "selectPolicy", || Value::from("Max"));
    set_default(
        down,
        "policies",
        || json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]),
    );
}

/// A policy is about ingress, and about egress if it has egress rules.
fn network_policy(spec: &mut Object) {
    if spec
        .get("policyTypes")
        .and_then(Value::as_array)
        .is_none_or(Vec::is_empty)
    {
        let egress = spec
            .get("egress")
            .and_then(Value::as_array)
            .is_some_and(|rules| !rules.is_empty());
        let types = if egress {
            json!(["Ingress", "Egress"])
        } else {
            json!(["Ingress"])
        };
        spec.insert("policyTypes".to_owned(), types);
    }
}

/// Users and groups are of the RBAC group, service accounts of the core group.
fn subject(subject: &mut Object) {
    if matches!(text(subject, "kind"), "User" | "Group") {
        set_default(subject, "apiGroup", || {
            Value::from("rbac.authorization.k8s.io")
        });
    }
}

fn resource_names(names: &mut Object) {
    let kind = text(names, "kind").to_owned();
    if kind.is_empty() {
        return;
    }
    set_default(names, "singular", || Value::from(kind.to_lowercase()));
    set_default(names, "listKind", || Value::from(format!("{kind}List")));
}

fn device_count(request: &mut Object) {
    if text(request, "allocationMode") == "ExactCount" {
        set_count(request);
    }
}

/// In v1beta1 a request with alternatives has no mode of its own.
fn device_request_v1beta1(request: &mut Object) {
    if items(request, "firstAvailable").next().is_none() {
        set_default(request, "allocationMode", || Value::from("ExactCount"));
        device_count(request);
    }
}

fn set_count(request: &mut Object) {
    if request.get("count").and_then(Value::as_i64).unwrap_or(0) == 0 {
        request.insert("count".to_owned(), Value::from(1));
    }
}
