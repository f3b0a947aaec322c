//! Probes and lifecycle hooks: one handler each, and sane numbers.

use super::node::{Errors, Node};
use crate::names;

/// Rules of the three probes and the two hooks of a container.
pub(super) fn all(container: &Node<'_>, grace_secs: Option<i64>, errors: &mut Errors) {
    if let Some(lifecycle) = container.some("lifecycle") {
        for hook in ["postStart", "preStop"]
            .into_iter()
            .filter_map(|name| lifecycle.some(name))
        {
            handler(&hook, grace_secs, errors);
        }
        if let Some(signal) = lifecycle.some("stopSignal")
            && !signal.as_text().starts_with("SIG")
        {
            signal.invalid("must be a signal name that begins with SIG", errors);
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = container.some(name) else {
            continue;
        };
        numbers(&probe, errors);
        handler(&probe, grace_secs, errors);
        if name != "readinessProbe" && probe.int("successThreshold").is_some_and(|n| n != 1) {
            probe.get("successThreshold").invalid("must be 1", errors);
        }
        if name == "readinessProbe" && probe.has("terminationGracePeriodSeconds") {
            probe
                .get("terminationGracePeriodSeconds")
                .invalid("must not be set for readinessProbes", errors);
        }
    }
}

fn numbers(probe: &Node<'_>, errors: &mut Errors) {
    probe.non_negative(
        &[
            "initialDelaySeconds",
            "timeoutSeconds",
            "periodSeconds",
            "successThreshold",
            "failureThreshold",
        ],
        errors,
    );
    if probe
        .int("terminationGracePeriodSeconds")
        .is_some_and(|secs| secs <= 0)
    {
        probe
            .get("terminationGracePeriodSeconds")
            .invalid("must be greater than 0", errors);
    }
}

fn handler(parent: &Node<'_>, grace_secs: Option<i64>, errors: &mut Errors) {
    let mut found = 0;
    for name in ["exec", "httpGet", "tcpSocket", "grpc", "sleep"] {
        let Some(handler) = parent.some(name) else {
            continue;
        };
        found += 1;
        if found > 1 {
            handler.forbidden("may not specify more than 1 handler type", errors);
            continue;
        }
        match name {
            "exec" if handler.len("command") == 0 => handler.get("command").required("", errors),
            "httpGet" => http_get(&handler, errors),
            "tcpSocket" => port(&handler.get("port"), errors),
            "grpc" => handler
                .get("port")
                .all_invalid(names::port_number(handler.int("port").unwrap_or(0)), errors),
            "sleep" => sleep(&handler, grace_secs, errors),
            _ => {}
        }
    }
    if found == 0 {
        parent.required("must specify a handler type", errors);
    }
}

fn http_get(get: &Node<'_>, errors: &mut Errors) {
    get.need("path", errors);
    port(&get.get("port"), errors);
    get.get("scheme").one_of(&["HTTP", "HTTPS"], errors);
    for header in get.items("httpHeaders") {
        let name = header.text("name");
        for detail in names::http_header_name(name) {
            // Upstream names the list, not the item.
            let path = get.get("httpHeaders").path();
            errors.push(super::FieldError::invalid(path, name, detail));
        }
    }
}

/// A number, or the name of a container port.
pub(super) fn port(port: &Node<'_>, errors: &mut Errors) {
    match port.value.as_str() {
        Some(name) => port.all_invalid(names::port_name(name), errors),
        None => port.all_invalid(names::port_number(port.value.as_i64().unwrap_or(0)), errors),
    }
}

fn sleep(sleep: &Node<'_>, grace_secs: Option<i64>, errors: &mut Errors) {
    let (secs, grace) = (sleep.int("seconds").unwrap_or(0), grace_secs.unwrap_or(30));
    if secs < 0 || secs > grace {
        sleep.invalid(
            format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})"),
            errors,
        );
    }
}
