//! ConfigMaps, Secrets, ServiceAccounts, ResourceQuotas and ComponentStatuses.

use super::cell::{age, count, items, name, scalar_or, text};
use super::{AGE, NAME, Printer, text as column};
use serde_json::{Value, json};

static CONFIG_MAP: Printer = Printer {
    columns: &[NAME, column("Data", "Number of entries."), AGE],
    cells: |object, now| {
        vec![
            name(object),
            json!(count(object, "/data") + count(object, "/binaryData")),
            age(object, now),
        ]
    },
};

static SECRET: Printer = Printer {
    columns: &[
        NAME,
        column("Type", "What the secret is for."),
        column("Data", "Number of entries."),
        AGE,
    ],
    cells: |object, now| {
        vec![
            name(object),
            json!(text(object, "/type")),
            json!(count(object, "/data")),
            age(object, now),
        ]
    },
};

static SERVICE_ACCOUNT: Printer = Printer {
    columns: &[NAME, AGE],
    cells: |object, now| vec![name(object), age(object, now)],
};

static RESOURCE_QUOTA: Printer = Printer {
    columns: &[
        NAME,
        column("Request", "Requests used and allowed."),
        column("Limit", "Limits used and allowed."),
        AGE,
    ],
    cells: |object, now| {
        let (requests, limits) = quota(object);
        vec![
            name(object),
            json!(requests),
            json!(limits),
            age(object, now),
        ]
    },
};

static COMPONENT_STATUS: Printer = Printer {
    columns: &[
        NAME,
        column("Status", "Health."),
        column("Message", "What the component says."),
        column("Error", "What is wrong."),
    ],
    cells: |object, _| {
        let health = items(object, "/conditions")
            .iter()
            .find(|condition| text(condition, "/type") == "Healthy");
        let status = match health.map(|condition| text(condition, "/status")) {
            Some("True") => "Healthy",
            Some("False") => "Unhealthy",
            _ => "Unknown",
        };
        let of = |field: &str| health.map_or("", |condition| text(condition, field));
        vec![
            name(object),
            json!(status),
            json!(of("/message")),
            json!(of("/error")),
        ]
    },
};

pub(super) fn printer(kind: &str) -> Option<&'static Printer> {
    Some(match kind {
        "ConfigMap" => &CONFIG_MAP,
        "Secret" => &SECRET,
        "ServiceAccount" => &SERVICE_ACCOUNT,
        "ResourceQuota" => &RESOURCE_QUOTA,
        "ComponentStatus" => &COMPONENT_STATUS,
        _ => return None,
    })
}

/// `cpu: 1/2, memory: 1Gi/4Gi` for requests and for limits.
fn quota(object: &Value) -> (String, String) {
    let Some(Value::Object(hard)) = object.pointer("/status/hard") else {
        return Default::default();
    };
    let used = object.pointer("/status/used").unwrap_or(&Value::Null);
    let entry = |resource: &str| {
        let pointer = format!("/{}", resource.replace('~', "~0").replace('/', "~1"));
        let hard = scalar_or(
            object.pointer("/status/hard").unwrap_or(&Value::Null),
            &pointer,
            "0",
        );
        format!("{resource}: {}/{hard}", scalar_or(used, &pointer, "0"))
    };
    let of = |limits: bool| {
        let resources = hard
            .keys()
            .filter(|resource| resource.starts_with("limits.") == limits);
        resources
            .map(|resource| entry(resource))
            .collect::<Vec<_>>()
            .join(", ")
    };
    (of(false), of(true))
}
