//! Webhook configurations and admission policies.

use super::cell::{age, count, name, selector, text};
use super::{AGE, NAME, Printer, integer, text as column};
use serde_json::{Value, json};

static WEBHOOKS: Printer = Printer {
    columns: &[NAME, integer("Webhooks", "Number of webhooks."), AGE],
    cells: |object, now| {
        vec![
            name(object),
            json!(count(object, "/webhooks")),
            age(object, now),
        ]
    },
};

static VALIDATING_POLICY: Printer = Printer {
    columns: &[
        NAME,
        integer("Validations", "Number of validations."),
        column("ParamKind", "Kind of the parameters."),
        AGE,
    ],
    cells: |object, now| {
        vec![
            name(object),
            json!(count(object, "/spec/validations")),
            json!(param_kind(object)),
            age(object, now),
        ]
    },
};

static MUTATING_POLICY: Printer = Printer {
    columns: &[
        NAME,
        integer("Mutations", "Number of mutations."),
        column("ParamKind", "Kind of the parameters."),
        AGE,
    ],
    cells: |object, now| {
        vec![
            name(object),
            json!(count(object, "/spec/mutations")),
            json!(param_kind(object)),
            age(object, now),
        ]
    },
};

static POLICY_BINDING: Printer = Printer {
    columns: &[
        NAME,
        column("PolicyName", "Policy that is bound."),
        column("ParamRef", "Parameters it is bound with."),
        AGE,
    ],
    cells: |object, now| {
        vec![
            name(object),
            json!(text(object, "/spec/policyName")),
            json!(param_ref(object)),
            age(object, now),
        ]
    },
};

pub(super) fn printer(kind: &str) -> Option<&'static Printer> {
    Some(match kind {
        "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration" => &WEBHOOKS,
        "ValidatingAdmissionPolicy" => &VALIDATING_POLICY,
        "MutatingAdmissionPolicy" => &MUTATING_POLICY,
        "ValidatingAdmissionPolicyBinding" | "MutatingAdmissionPolicyBinding" => &POLICY_BINDING,
        _ => return None,
    })
}

fn param_kind(policy: &Value) -> String {
    policy.pointer("/spec/paramKind").map_or_else(
        || "<unset>".to_owned(),
        |kind| format!("{}/{}", text(kind, "/apiVersion"), text(kind, "/kind")),
    )
}

fn param_ref(binding: &Value) -> String {
    let Some(reference) = binding.pointer("/spec/paramRef") else {
        return "<unset>".to_owned();
    };
    match (text(reference, "/namespace"), text(reference, "/name")) {
        (_, "") => selector(reference, "/selector"),
        ("", name) => name.to_owned(),
        (namespace, name) => format!("{namespace}/{name}"),
    }
}
