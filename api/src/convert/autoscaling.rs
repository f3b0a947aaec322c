//! HorizontalPodAutoscalers: v1 knows only the CPU target; v2, which is stored, has metrics.

use super::{Object, To};
use serde_json::{Value, json};

/// What v1 has no fields for travels in annotations with these prefixes, as upstream's v1 does.
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";

pub(super) fn convert(autoscaler: &mut Object, to: To) {
    match to {
        To::Storage => to_v2(autoscaler),
        To::Served => to_v1(autoscaler),
    }
}

fn is_cpu(metric: &Value) -> bool {
    metric["type"] == "Resource" && metric["resource"]["name"] == "cpu"
}

fn is_cpu_target(metric: &Value) -> bool {
    is_cpu(metric) && metric["resource"]["target"]["type"] == "Utilization"
}

fn child<'o>(object: &'o mut Object, field: &str) -> Option<&'o mut Object> {
    object.get_mut(field)?.as_object_mut()
}

fn annotate(autoscaler: &mut Object, key: &str, value: &Value) {
    let metadata = autoscaler.entry("metadata").or_insert_with(|| json!({}));
    metadata["annotations"][key] = Value::String(value.to_string());
}

/// Takes an annotation out and reads its JSON; what a client wrote there that does not fit the type stays where it is.
fn take_annotation(autoscaler: &mut Object, key: &str, of: &str) -> Option<Value> {
    let annotations = child(child(autoscaler, "metadata")?, "annotations")?;
    let value: Value = serde_json::from_str(annotations.get(key)?.as_str()?).ok()?;
    let schema = crate::schema::builtin();
    let type_id = schema.type_named(&format!("k8s.io/api/autoscaling/v2.{of}"))?;
    let fits = |value: &Value| {
        value.is_object() && crate::codec::canonicalize(schema, type_id, value.clone()).is_ok()
    };
    let all_fit = match &value {
        Value::Array(items) => items.iter().all(fits),
        one => of == "HorizontalPodAutoscalerBehavior" && fits(one),
    };
    if !all_fit {
        return None;
    }
    annotations.remove(key);
    if annotations.is_empty() {
        child(autoscaler, "metadata")?.remove("annotations");
    }
    Some(value)
}

fn list(value: Option<Value>) -> Vec<Value> {
    match value {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    }
}

fn to_v2(autoscaler: &mut Object) {
    let mut metrics = list(take_annotation(autoscaler, METRICS, "MetricSpec"));
    let behavior = take_annotation(autoscaler, BEHAVIOR, "HorizontalPodAutoscalerBehavior")
        .filter(Value::is_object);
    let mut current = list(take_annotation(autoscaler, CURRENT, "MetricStatus"));
    let conditions = list(take_annotation(
        autoscaler,
        CONDITIONS,
        "HorizontalPodAutoscalerCondition",
    ));
    if let Some(spec) = child(autoscaler, "spec") {
        if let Some(percent) = spec.remove("targetCPUUtilizationPercentage") {
            let cpu = json!({"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}});
            metrics.insert(0, json!({"type": "Resource", "resource": cpu}));
        }
        put(spec, "metrics", metrics);
        if let Some(behavior) = behavior {
            spec.insert("behavior".to_owned(), behavior);
        }
    }
    let Some(status) = child(autoscaler, "status") else {
        return;
    };
    if let Some(percent) = status.remove("currentCPUUtilizationPercentage") {
        let cpu = json!({"name": "cpu", "current": {"averageUtilization": percent}});
        current.insert(0, json!({"type": "Resource", "resource": cpu}));
    }
    put(status, "currentMetrics", current);
    put(status, "conditions", conditions);
}

fn put(object: &mut Object, field: &str, items: Vec<Value>) {
    if !items.is_empty() {
        object.insert(field.to_owned(), Value::Array(items));
    }
}

fn to_v1(autoscaler: &mut Object) {
    let mut kept: Vec<(&str, Value)> = Vec::new();
    if let Some(spec) = child(autoscaler, "spec") {
        let mut metrics = list(spec.remove("metrics"));
        if let Some(at) = metrics.iter().position(is_cpu_target) {
            let cpu = metrics.remove(at);
            spec.insert(
                "targetCPUUtilizationPercentage".to_owned(),
                cpu["resource"]["target"]["averageUtilization"].clone(),
            );
        }
        if !metrics.is_empty() {
            kept.push((METRICS, Value::Array(metrics)));
        }
        kept.extend(spec.remove("behavior").map(|behavior| (BEHAVIOR, behavior)));
    }
    if let Some(status) = child(autoscaler, "status") {
        let mut current = list(status.remove("currentMetrics"));
        let simple = |metric: &Value| {
            is_cpu(metric)
                && metric["resource"]["current"]
                    .as_object()
                    .is_some_and(|c| c.len() == 1 && c.contains_key("averageUtilization"))
        };
        if let Some(at) = current.iter().position(simple) {
            let cpu = current.remove(at);
            status.insert(
                "currentCPUUtilizationPercentage".to_owned(),
                cpu["resource"]["current"]["averageUtilization"].clone(),
            );
        }
        if !current.is_empty() {
            kept.push((CURRENT, Value::Array(current)));
        }
        kept.extend(
            status
                .remove("conditions")
                .map(|conditions| (CONDITIONS, conditions)),
        );
    }
    for (key, value) in kept {
        annotate(autoscaler, key, &value);
    }
}
