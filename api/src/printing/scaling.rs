//! HorizontalPodAutoscalers, in both versions.

use super::cell::{age, items, name, number, scalar, scalar_or, text};
use super::{AGE, NAME, Printer, text as column};
use serde_json::{Value, json};

/// Metrics beyond these are only counted.
const METRICS_LISTED_MAX: usize = 2;

static AUTOSCALER: Printer = Printer {
    columns: &[
        NAME,
        column("Reference", "What is scaled."),
        column(
            "Targets",
            "Metrics, each with its present and its wanted value.",
        ),
        column("MinPods", "Fewest pods."),
        column("MaxPods", "Most pods."),
        column("Replicas", "Pods at the last look."),
        AGE,
    ],
    cells: |object, now| {
        let target = format!(
            "{}/{}",
            text(object, "/spec/scaleTargetRef/kind"),
            text(object, "/spec/scaleTargetRef/name")
        );
        vec![
            name(object),
            json!(target),
            json!(metrics(object)),
            json!(scalar_or(object, "/spec/minReplicas", "<unset>")),
            json!(number(object, "/spec/maxReplicas")),
            json!(number(object, "/status/currentReplicas")),
            age(object, now),
        ]
    },
};

pub(super) fn printer(kind: &str) -> Option<&'static Printer> {
    (kind == "HorizontalPodAutoscaler").then_some(&AUTOSCALER)
}

fn metrics(autoscaler: &Value) -> String {
    // autoscaling/v1 knows the CPU only.
    if let Some(wanted) = scalar(autoscaler, "/spec/targetCPUUtilizationPercentage") {
        let current = percent(scalar(
            autoscaler,
            "/status/currentCPUUtilizationPercentage",
        ));
        return format!("cpu: {current}/{wanted}%");
    }
    let statuses = items(autoscaler, "/status/currentMetrics");
    let specs = items(autoscaler, "/spec/metrics");
    let all: Vec<String> = specs
        .iter()
        .enumerate()
        .map(|(at, spec)| metric(spec, statuses.get(at).unwrap_or(&Value::Null)))
        .collect();
    if all.is_empty() {
        return "<none>".to_owned();
    }
    let listed = all[..all.len().min(METRICS_LISTED_MAX)].join(", ");
    match all.len().saturating_sub(METRICS_LISTED_MAX) {
        0 => listed,
        more => format!("{listed} + {more} more..."),
    }
}

fn metric(spec: &Value, status: &Value) -> String {
    let (field, by_name) = match text(spec, "/type") {
        "External" => ("external", false),
        "Pods" => ("pods", false),
        "Object" => ("object", false),
        "Resource" => ("resource", true),
        "ContainerResource" => ("containerResource", true),
        _ => return "<unknown type>".to_owned(),
    };
    let target = |of: &str| scalar(spec, &format!("/{field}/target/{of}"));
    let current = |of: &str| scalar(status, &format!("/{field}/current/{of}"));
    let known = |value: Option<String>| value.unwrap_or_else(|| "<unknown>".to_owned());
    let label = if by_name {
        format!("{}: ", text(spec, &format!("/{field}/name")))
    } else {
        String::new()
    };
    if let Some(wanted) = target("averageValue") {
        let mark = if by_name || field == "pods" {
            ""
        } else {
            " (avg)"
        };
        return format!("{label}{}/{wanted}{mark}", known(current("averageValue")));
    }
    if by_name {
        let wanted = target("averageUtilization")
            .map_or_else(|| "<auto>".to_owned(), |value| format!("{value}%"));
        return format!("{label}{}/{wanted}", percent(current("averageUtilization")));
    }
    format!(
        "{}/{}",
        known(current("value")),
        target("value").unwrap_or_else(|| "0".to_owned())
    )
}

fn percent(value: Option<String>) -> String {
    value.map_or_else(|| "<unknown>".to_owned(), |value| format!("{value}%"))
}
