//! Objects between the versions of one resource.
//!
//! Most versions of a resource have the same fields, so only `apiVersion` changes. Here are the ones that rename or reshape:
//! Events (core and events.k8s.io) and HorizontalPodAutoscalers (v1 and v2).

use cox_api::schema::Resource;
use serde_json::{Map, Value, json};

/// core name, events.k8s.io name.
const EVENT_FIELDS: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// An object of `from`'s version as one of `to`'s.
pub(crate) fn convert(mut value: Value, from: &Resource, to: &Resource) -> Value {
    if std::ptr::eq(from, to) {
        return value;
    }
    let Some(object) = value.as_object_mut() else {
        return value;
    };
    let api_version = to.api_version();
    if object.get("apiVersion").and_then(Value::as_str) == Some(api_version.as_str()) {
        return value;
    }
    object.insert("apiVersion".to_owned(), Value::String(api_version));
    match (
        from.kind.as_str(),
        from.group.as_str(),
        from.version.as_str(),
        to.group.as_str(),
        to.version.as_str(),
    ) {
        ("Event", "", _, "events.k8s.io", _) => rename(object, |(core, new)| (core, new)),
        ("Event", "events.k8s.io", _, "", _) => rename(object, |(core, new)| (new, core)),
        ("HorizontalPodAutoscaler", _, "v1", _, "v2") => hpa_to_v2(object),
        ("HorizontalPodAutoscaler", _, "v2", _, "v1") => hpa_to_v1(object),
        _ => {}
    }
    value
}

fn rename(
    object: &mut Map<String, Value>,
    direction: impl Fn(&(&'static str, &'static str)) -> (&'static str, &'static str),
) {
    for pair in EVENT_FIELDS {
        let (from, to) = direction(pair);
        if let Some(value) = object.remove(from) {
            object.insert(to.to_owned(), value);
        }
    }
}

fn hpa_to_v2(object: &mut Map<String, Value>) {
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut)
        && let Some(percent) = spec.remove("targetCPUUtilizationPercentage")
    {
        let target = json!({"type": "Utilization", "averageUtilization": percent});
        spec.insert(
            "metrics".to_owned(),
            json!([{"type": "Resource", "resource": {"name": "cpu", "target": target}}]),
        );
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut)
        && let Some(percent) = status.remove("currentCPUUtilizationPercentage")
    {
        let current = json!({"averageUtilization": percent});
        status.insert(
            "currentMetrics".to_owned(),
            json!([{"type": "Resource", "resource": {"name": "cpu", "current": current}}]),
        );
    }
}

/// v1 knows the CPU utilization only; what else v2 says is left out.
fn hpa_to_v1(object: &mut Map<String, Value>) {
    let cpu = |metrics: Option<Value>, of: &str| -> Option<Value> {
        let metrics = metrics?;
        let metric = metrics
            .as_array()?
            .iter()
            .find(|metric| metric["resource"]["name"] == "cpu")?;
        metric["resource"][of].get("averageUtilization").cloned()
    };
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        spec.remove("behavior");
        if let Some(percent) = cpu(spec.remove("metrics"), "target") {
            spec.insert("targetCPUUtilizationPercentage".to_owned(), percent);
        }
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        status.remove("conditions");
        if let Some(percent) = cpu(status.remove("currentMetrics"), "current") {
            status.insert("currentCPUUtilizationPercentage".to_owned(), percent);
        }
    }
}

#[cfg(test)]
mod tests {
    use cox_api::schema;

    use super::*;

    #[test]
    fn events_and_autoscalers_survive_the_way_there_and_back() {
        let schema = schema::builtin();
        let cases = [
            (
                ("", "v1", "events"),
                ("events.k8s.io", "v1", "events"),
                json!({"kind": "Event", "apiVersion": "v1", "message": "m", "involvedObject": {"name": "p"}, "count": 2}),
                json!({"kind": "Event", "apiVersion": "events.k8s.io/v1", "note": "m", "regarding": {"name": "p"}, "deprecatedCount": 2}),
            ),
            (
                ("autoscaling", "v1", "horizontalpodautoscalers"),
                ("autoscaling", "v2", "horizontalpodautoscalers"),
                json!({"apiVersion": "autoscaling/v1", "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 80}}),
                json!({"apiVersion": "autoscaling/v2", "spec": {"maxReplicas": 3, "metrics": [
                    {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]}}),
            ),
        ];
        for (one, other, first, second) in cases {
            let one = schema.resource(one.0, one.1, one.2).unwrap();
            let other = schema.resource(other.0, other.1, other.2).unwrap();
            assert_eq!(convert(first.clone(), one, other), second);
            assert_eq!(convert(second, other, one), first);
        }
    }
}
