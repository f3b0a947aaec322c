//! APIServices: which API server serves a group and version.

use super::FieldError;
use crate::names;
use serde_json::Value;

/// Complaints about an APIService, new or changed.
pub(super) fn check(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = &object["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (group, version) = (text(&spec["group"]), text(&spec["version"]));
    let name = text(&object["metadata"]["name"]);
    let wanted = format!("{version}.{group}");
    if name != wanted {
        let why = format!("must be `spec.version+\".\"+spec.group`: {wanted:?}");
        errors.push(FieldError::invalid("metadata.name", name, why));
    }
    if version.is_empty() {
        errors.push(FieldError::required("spec.version", ""));
    } else {
        let why = names::dns1035_label(&version).into_iter();
        errors.extend(why.map(|why| FieldError::invalid("spec.version", version.as_str(), why)));
    }
    if !group.is_empty() {
        let why = names::dns_subdomain(&group).into_iter();
        errors.extend(why.map(|why| FieldError::invalid("spec.group", group.as_str(), why)));
    } else if version != "v1" {
        errors.push(FieldError::required(
            "spec.group",
            "only v1 may have an empty group and it better be legacy kube",
        ));
    }
    for (field, max) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1_000)] {
        let value = spec[field].as_i64().unwrap_or(0);
        if value <= 0 || value > max {
            let why = format!("must be positive and less than {max}");
            errors.push(FieldError::invalid(format!("spec.{field}"), value, why));
        }
    }
    let insecure = spec["insecureSkipTLSVerify"] == true;
    let bundle = spec["caBundle"]
        .as_str()
        .is_some_and(|text| !text.is_empty());
    if !spec["service"].is_object() {
        if insecure {
            let why = "local APIServices may not have insecureSkipTLSVerify";
            errors.push(FieldError::invalid("spec.insecureSkipTLSVerify", true, why));
        }
        if bundle {
            let why = "local APIServices may not have a caBundle";
            errors.push(FieldError::invalid("spec.caBundle", "<bytes>", why));
        }
        return errors;
    }
    for field in ["namespace", "name"] {
        if text(&spec["service"][field]).is_empty() {
            errors.push(FieldError::required(format!("spec.service.{field}"), ""));
        }
    }
    let port = spec["service"]["port"].as_i64().unwrap_or(443);
    if !(1..=65535).contains(&port) {
        let why = format!("port is not valid: {}", names::port_number(port).join(","));
        errors.push(FieldError::invalid("spec.service.port", port, why));
    }
    if insecure && bundle {
        let why = "may not be true if caBundle is present";
        errors.push(FieldError::invalid("spec.insecureSkipTLSVerify", true, why));
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn api_services_are_named_after_what_they_serve() {
        let good = json!({"metadata": {"name": "v1.apps"}, "spec": {"group": "apps", "version": "v1", "groupPriorityMinimum": 1, "versionPriority": 1}});
        assert_eq!(check(&good), []);
        for (pointer, value, text) in [
            (
                "/metadata/name",
                json!("x"),
                "metadata.name: Invalid value: \"x\": must be `spec.version+\".\"+spec.group`: \"v1.apps\"",
            ),
            (
                "/spec/versionPriority",
                json!(0),
                "spec.versionPriority: Invalid value: 0: must be positive and less than 1000",
            ),
        ] {
            let mut bad = good.clone();
            *bad.pointer_mut(pointer).unwrap() = value;
            assert_eq!(check(&bad)[0].to_string(), text, "case: {pointer}");
        }
    }
}
