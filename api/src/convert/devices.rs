//! resource.k8s.io/v1beta1: a request is flat there and under `exactly` in v1; a device's facts are under `basic` there.

use super::{Object, To};
use serde_json::{Map, Value};

/// What v1beta1 keeps beside the name of a request that asks for one kind of device.
const EXACT: [&str; 7] = [
    "deviceClassName",
    "selectors",
    "allocationMode",
    "count",
    "adminAccess",
    "tolerations",
    "capacity",
];

fn child<'o>(object: &'o mut Object, field: &str) -> Option<&'o mut Object> {
    object.get_mut(field)?.as_object_mut()
}

fn items<'o>(object: &'o mut Object, field: &str) -> impl Iterator<Item = &'o mut Object> {
    object
        .get_mut(field)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
}

pub(super) fn convert_claim(claim: &mut Object, to: To) {
    if let Some(spec) = child(claim, "spec") {
        convert_claim_spec(spec, to);
    }
}

pub(super) fn convert_template(template: &mut Object, to: To) {
    if let Some(spec) = child(template, "spec").and_then(|outer| child(outer, "spec")) {
        convert_claim_spec(spec, to);
    }
}

fn convert_claim_spec(spec: &mut Object, to: To) {
    let Some(devices) = child(spec, "devices") else {
        return;
    };
    for request in items(devices, "requests") {
        match to {
            To::Storage => nest(request),
            To::Served => flatten(request, "exactly"),
        }
    }
}

fn nest(request: &mut Object) {
    let alternatives = request
        .get("firstAvailable")
        .and_then(Value::as_array)
        .is_some_and(|list| !list.is_empty());
    let mut exact = Map::new();
    for field in EXACT {
        if let Some(value) = request.remove(field) {
            exact.insert(field.to_owned(), value);
        }
    }
    // An empty class name is what Go writes for none: with alternatives there is no exact request.
    let meant = exact.iter().any(|(_, value)| value != "");
    if meant || !alternatives {
        request.insert("exactly".to_owned(), Value::Object(exact));
    }
}

fn flatten(object: &mut Object, field: &str) {
    if let Some(Value::Object(inner)) = object.remove(field) {
        object.extend(inner);
    }
}

pub(super) fn convert_slice(slice: &mut Object, to: To) {
    let Some(spec) = child(slice, "spec") else {
        return;
    };
    for device in items(spec, "devices") {
        match to {
            To::Storage => flatten(device, "basic"),
            To::Served => {
                let name = device.remove("name");
                let facts = std::mem::take(device);
                device.insert("basic".to_owned(), Value::Object(facts));
                device.extend(name.map(|name| ("name".to_owned(), name)));
            }
        }
    }
}
