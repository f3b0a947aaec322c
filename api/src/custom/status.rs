//! The status of a definition: the names it is granted and its conditions.
//!
//! Input: the definition, the other definitions of its group, the time. Output: the definition with the status that it should
//! have, or nothing when it has it. Running it on its own output gives nothing.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::check::{self, Approval};
use crate::meta::strings;

/// The finalizer that keeps a definition until its objects are gone.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

/// One condition as it should be.
struct Condition {
    type_: &'static str,
    status: bool,
    reason: &'static str,
    message: String,
}

/// The names that definitions of a group hold.
#[derive(Default)]
struct Held {
    resources: HashSet<String>,
    kinds: HashSet<String>,
}

/// The definition with names granted and conditions set, if that changes it. `others` are the other definitions, of
/// whatever group; `now` is the time as objects write it.
pub fn plan<'v>(
    definition: &Value,
    others: impl Iterator<Item = &'v Value>,
    now: &str,
) -> Option<Value> {
    let mut planned = definition.clone();
    let group = &definition["spec"]["group"];
    let mut held = Held::default();
    for other in others.filter(|other| other["spec"]["group"] == *group) {
        held.add(&other["status"]["acceptedNames"]);
    }
    let accepted = grant(&mut planned, &held);
    let names_good = accepted.status;
    set(&mut planned, accepted, now);
    let established = check::is_true(definition, "Established");
    let deleting = definition["metadata"]["deletionTimestamp"].is_string();
    if !established && !deleting {
        set(&mut planned, established_condition(names_good), now);
    }
    non_structural(&mut planned, now);
    approved(&mut planned, now);
    (planned["status"] != definition["status"]).then_some(planned)
}

/// The definition with its Terminating condition.
pub fn terminating(definition: &Value, done: bool, now: &str) -> Value {
    let mut planned = definition.clone();
    let condition = if done {
        Condition {
            type_: "Terminating",
            status: false,
            reason: "InstanceDeletionCompleted",
            message: "removed all instances".to_owned(),
        }
    } else {
        Condition {
            type_: "Terminating",
            status: true,
            reason: "InstanceDeletionInProgress",
            message: "CustomResource deletion is in progress".to_owned(),
        }
    };
    set(&mut planned, condition, now);
    planned
}

impl Held {
    fn add(&mut self, names: &Value) {
        let text = |field: &str| names[field].as_str().unwrap_or_default().to_owned();
        self.resources.extend([text("plural"), text("singular")]);
        self.resources.extend(strings(&names["shortNames"]));
        self.kinds.extend([text("kind"), text("listKind")]);
    }
}

/// Grants the names that nobody else holds; says how that went.
fn grant(planned: &mut Value, held: &Held) -> Condition {
    let wanted = planned["spec"]["names"].clone();
    let mut granted = match &planned["status"]["acceptedNames"] {
        Value::Object(names) => Value::Object(names.clone()),
        _ => json!({"plural": "", "kind": ""}),
    };
    let mut conflict: Option<(&'static str, String)> = None;
    let taken = |name: &str| format!("{name:?} is already in use");
    for (field, reason, kinds) in [
        ("plural", "PluralConflict", false),
        ("singular", "SingularConflict", false),
        ("shortNames", "ShortNamesConflict", false),
        ("kind", "KindConflict", true),
        ("listKind", "ListKindConflict", true),
    ] {
        let held = if kinds { &held.kinds } else { &held.resources };
        if wanted[field] == granted[field] {
            continue;
        }
        let mine = strings(&granted["shortNames"]);
        let names = match &wanted[field] {
            Value::String(name) => vec![name.clone()],
            list => strings(list),
        };
        let clashes: Vec<String> = names
            .iter()
            .filter(|name| held.contains(*name) && !(field == "shortNames" && mine.contains(name)))
            .map(|name| taken(name))
            .collect();
        if clashes.is_empty() {
            put(&mut granted, field, &wanted[field]);
        } else {
            let message = match clashes.as_slice() {
                [only] => only.clone(),
                all => format!("[{}]", all.join(", ")),
            };
            conflict = Some((reason, message));
        }
    }
    put(&mut granted, "categories", &wanted["categories"]);
    planned["status"]["acceptedNames"] = granted;
    match conflict {
        None => Condition {
            type_: "NamesAccepted",
            status: true,
            reason: "NoConflicts",
            message: "no conflicts found".to_owned(),
        },
        Some((reason, message)) => Condition {
            type_: "NamesAccepted",
            status: false,
            reason,
            message,
        },
    }
}

fn put(object: &mut Value, field: &str, value: &Value) {
    if let Some(map) = object.as_object_mut() {
        if value.is_null() {
            map.remove(field);
        } else {
            map.insert(field.to_owned(), value.clone());
        }
    }
}

fn established_condition(names_good: bool) -> Condition {
    if names_good {
        Condition {
            type_: "Established",
            status: true,
            reason: "InitialNamesAccepted",
            message: "the initial names have been accepted".to_owned(),
        }
    } else {
        Condition {
            type_: "Established",
            status: false,
            reason: "NotAccepted",
            message: "not all names are accepted".to_owned(),
        }
    }
}

fn non_structural(planned: &mut Value, now: &str) {
    let mut errors = Vec::new();
    if planned["spec"]["preserveUnknownFields"] == true {
        errors.push("spec.preserveUnknownFields: Invalid value: true: must be false".to_owned());
    }
    let versions = planned["spec"]["versions"].as_array().into_iter().flatten();
    for (at, version) in versions.enumerate() {
        let schema = &version["schema"]["openAPIV3Schema"];
        if schema.is_object() {
            let field = format!("spec.versions[{at}].schema.openAPIV3Schema");
            let found = check::structural_errors(schema, &field);
            errors.extend(found.iter().map(ToString::to_string));
        }
    }
    if errors.is_empty() {
        return remove(planned, "NonStructuralSchema");
    }
    let message = match errors.as_slice() {
        [only] => only.clone(),
        all => format!("[{}]", all.join(", ")),
    };
    let condition = Condition {
        type_: "NonStructuralSchema",
        status: true,
        reason: "Violations",
        message,
    };
    set(planned, condition, now);
}

fn approved(planned: &mut Value, now: &str) {
    let group = planned["spec"]["group"].as_str().unwrap_or_default();
    if !check::is_protected(group) {
        return;
    }
    let (state, message) = check::approval(planned);
    let (status, reason) = match state {
        Approval::Approved => (true, "ApprovedAnnotation"),
        Approval::Bypassed => (false, "UnapprovedAnnotation"),
        Approval::Invalid => (false, "InvalidAnnotation"),
        Approval::Missing => (false, "MissingAnnotation"),
    };
    let condition = Condition {
        type_: "KubernetesAPIApprovalPolicyConformant",
        status,
        reason,
        message,
    };
    set(planned, condition, now);
}

fn remove(planned: &mut Value, type_: &str) {
    if let Some(all) = planned["status"]["conditions"].as_array_mut() {
        all.retain(|one| one["type"] != type_);
    }
}

fn set(planned: &mut Value, condition: Condition, now: &str) {
    let status = if condition.status { "True" } else { "False" };
    let fresh = json!({
        "type": condition.type_, "status": status, "lastTransitionTime": now,
        "reason": condition.reason, "message": condition.message,
    });
    if !planned["status"]["conditions"].is_array() {
        planned["status"]["conditions"] = json!([]);
    }
    let Some(all) = planned["status"]["conditions"].as_array_mut() else {
        return;
    };
    let Some(present) = all.iter_mut().find(|one| one["type"] == condition.type_) else {
        all.push(fresh);
        return;
    };
    if present["status"] != status {
        *present = fresh;
    } else {
        present["reason"] = fresh["reason"].clone();
        present["message"] = fresh["message"].clone();
    }
}
