//! PodSecurity: what Pods of a namespace may ask of their node, as its labels say: `enforce`, `audit` and `warn`, each with a level and
//! the version of the rules.

mod checks;
mod config;
mod policy;

use std::collections::BTreeMap;

use cox_api::meta;
use cox_api::status::ApiStatus;
use cox_store::Snapshot;
use serde_json::Value;

use super::decoded::known;
use super::{Operation, Request, items};
use checks::violations;
pub(crate) use config::PodSecurity;
use policy::{Level, Mode, Policy};

const ANNOTATION: &str = "pod-security.kubernetes.io/";
/// As many Pods are looked at when a namespace's level changes.
const PODS_MAX: usize = 3000;
/// Subresources that change nothing of what a Pod may do.
const HARMLESS: [&str; 8] = [
    "exec",
    "attach",
    "binding",
    "eviction",
    "log",
    "portforward",
    "proxy",
    "status",
];

pub(super) fn validate(
    request: &Request<'_>,
    snapshot: &Snapshot,
    config: &PodSecurity,
) -> Result<(), ApiStatus> {
    if !matches!(request.operation, Operation::Create | Operation::Update) {
        return Ok(());
    }
    let resource = request.resource;
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "namespaces") if request.subresource.is_empty() => {
            namespace(request, snapshot, config)
        }
        ("", "pods") if !HARMLESS.contains(&request.subresource) => pod(request, snapshot, config),
        ("" | "apps" | "batch", _) if request.subresource.is_empty() => {
            template(request, snapshot, config);
            Ok(())
        }
        _ => Ok(()),
    }
}

fn policy_of(snapshot: &Snapshot, namespace: &str, config: &PodSecurity) -> Option<Policy> {
    let namespace = known(snapshot, "namespaces", namespace)?;
    Some(Policy::read(&namespace, &config.defaults))
}

/// Whether the namespace, the user or the runtime of the Pod (`spec` is its) is left alone; that is noted.
fn is_exempt(request: &Request<'_>, spec: &Value, config: &PodSecurity) -> bool {
    let exempt = &config.exempt;
    let has = |names: &[String], name: &str| names.iter().any(|one| one == name);
    let runtime = spec["runtimeClassName"].as_str();
    let why = if has(&exempt.namespaces, request.namespace) {
        "namespace"
    } else if has(&exempt.usernames, &request.user.name) {
        "user"
    } else if runtime.is_some_and(|runtime| has(&exempt.runtime_classes, runtime)) {
        "runtimeClass"
    } else {
        return false;
    };
    request
        .notes
        .audit(format!("{ANNOTATION}exempt"), why.to_owned());
    true
}

fn pod(request: &Request<'_>, snapshot: &Snapshot, config: &PodSecurity) -> Result<(), ApiStatus> {
    let Some(pod) = &request.object else {
        return Ok(());
    };
    if is_exempt(request, &pod["spec"], config) {
        return Ok(());
    }
    let Some(policy) = policy_of(snapshot, request.namespace, config) else {
        let why = format!("failed to lookup namespace {:?}", request.namespace);
        return Err(ApiStatus::internal(why));
    };
    let same = |old: &Value| !is_significant(&pod["spec"], &old["spec"]);
    if policy.is_privileged() || request.old.is_some_and(same) {
        return Ok(());
    }
    judge(request, &policy, pod, true)
}

/// Images or containers are others than before.
fn is_significant(new: &Value, old: &Value) -> bool {
    let of = |spec: &Value, list: &str| -> Vec<(String, String)> {
        let all = items(&spec[list]);
        all.map(|one| {
            let text = |field: &str| one[field].as_str().unwrap_or_default().to_owned();
            (text("name"), text("image"))
        })
        .collect()
    };
    let images = |spec: &Value, list: &str| -> Vec<String> {
        of(spec, list).into_iter().map(|(_, image)| image).collect()
    };
    ["containers", "initContainers"]
        .iter()
        .any(|list| images(new, list) != images(old, list))
        || of(new, "ephemeralContainers")
            .iter()
            .any(|one| !of(old, "ephemeralContainers").contains(one))
}

/// Whatever makes Pods is told early; only its Pods are refused.
fn template(request: &Request<'_>, snapshot: &Snapshot, config: &PodSecurity) {
    let Some(object) = &request.object else {
        return;
    };
    let template = match request.resource.kind.as_str() {
        "PodTemplate" => &object["template"],
        "CronJob" => &object["spec"]["jobTemplate"]["spec"]["template"],
        "ReplicationController"
        | "ReplicaSet"
        | "Deployment"
        | "StatefulSet"
        | "DaemonSet"
        | "Job" => &object["spec"]["template"],
        _ => return,
    };
    if !template.is_object() || is_exempt(request, &template["spec"], config) {
        return;
    }
    let Some(policy) = policy_of(snapshot, request.namespace, config) else {
        return;
    };
    // Nothing is enforced, so nothing is refused.
    if judge(request, &policy, template, false).is_err() {
        tracing::error!("A template was refused");
    }
}

fn judge(
    request: &Request<'_>,
    policy: &Policy,
    pod: &Value,
    enforce: bool,
) -> Result<(), ApiStatus> {
    let notes = &request.notes;
    if !policy.errors.is_empty() {
        let texts: Vec<String> = policy.errors.iter().map(ToString::to_string).collect();
        let text = format!(
            "Failed to parse policy: {}",
            super::limit_ranger::aggregate(&texts)
        );
        notes.audit(format!("{ANNOTATION}error"), text);
    }
    let found = |mode: &Mode| violations(mode, pod);
    let shown = |mode: &Mode, details: &[checks::Violation]| {
        let details: Vec<String> = details.iter().map(ToString::to_string).collect();
        format!(
            "violate PodSecurity {:?}: {}",
            mode.to_string(),
            details.join(", ")
        )
    };
    let enforced = if enforce {
        notes.audit(
            format!("{ANNOTATION}enforce-policy"),
            policy.enforce.to_string(),
        );
        found(&policy.enforce)
    } else {
        Vec::new()
    };
    let audited = found(&policy.audit);
    if !audited.is_empty() {
        let text = format!("would {}", shown(&policy.audit, &audited));
        notes.audit(format!("{ANNOTATION}audit-violations"), text);
    }
    if !enforced.is_empty() {
        let text = shown(&policy.enforce, &enforced).replacen("violate", "violates", 1);
        return Err(request.forbidden(text));
    }
    let warned = found(&policy.warn);
    if !warned.is_empty() {
        notes.warn(format!("would {}", shown(&policy.warn, &warned)));
    }
    Ok(())
}

/// Labels must make sense, and who raises a level is told which Pods would not be let in any more.
fn namespace(
    request: &Request<'_>,
    snapshot: &Snapshot,
    config: &PodSecurity,
) -> Result<(), ApiStatus> {
    let Some(object) = &request.object else {
        return Ok(());
    };
    let read = |namespace: &Value| Policy::read(namespace, &config.defaults);
    let new = read(object);
    let old = request.old.map(read);
    let exempt = config
        .exempt
        .namespaces
        .iter()
        .any(|name| name == request.name);
    let known = |old: &Policy| old.errors == new.errors;
    if !new.errors.is_empty() && !old.as_ref().is_some_and(known) {
        let name = meta::name(object);
        return Err(ApiStatus::invalid("", "Namespace", name, new.errors));
    }
    let Some(old) = old else {
        if exempt {
            warn_of_exemption(request, object, &new, config);
        }
        return Ok(());
    };
    let raised = new.enforce != old.enforce
        && new.enforce.level != Level::Privileged
        && !(new.enforce.version == old.enforce.version && new.enforce.level <= old.enforce.level);
    if raised && exempt {
        warn_of_exemption(request, object, &new, config);
    } else if raised {
        for warning in existing(snapshot, request.name, &new.enforce) {
            request.notes.warn(warning);
        }
    }
    Ok(())
}

/// Labels that nobody will look at.
fn warn_of_exemption(
    request: &Request<'_>,
    namespace: &Value,
    policy: &Policy,
    config: &PodSecurity,
) {
    let said = |mode: &str| {
        let label = |suffix: &str| meta::label(namespace, &format!("{ANNOTATION}{mode}{suffix}"));
        label("").is_some() || label("-version").is_some()
    };
    let ignored: Vec<String> = policy
        .modes()
        .into_iter()
        .filter(|(name, mode)| mode.level != Level::Privileged && said(name))
        .map(|(name, mode)| format!("{name}={mode}"))
        .collect();
    if !ignored.is_empty() && policy.modes() != config.defaults.modes() {
        request.notes.warn(format!(
            "namespace {:?} is exempt from Pod Security, and the policy ({}) will be ignored",
            request.name,
            ignored.join(", ")
        ));
    }
}

fn existing(snapshot: &Snapshot, namespace: &str, enforce: &Mode) -> Vec<String> {
    let prefix = format!("{namespace}/");
    let mut by_reason: BTreeMap<String, (String, usize)> = BTreeMap::new();
    let pods = snapshot.range("pods", &prefix, None);
    for object in pods.take(PODS_MAX) {
        let Ok(pod) = serde_json::from_slice::<Value>(&object.json) else {
            continue;
        };
        let found = violations(enforce, &pod);
        if found.is_empty() {
            continue;
        }
        let reasons: Vec<&str> = found.iter().map(|one| one.reason.as_str()).collect();
        let name = meta::name(&pod).to_owned();
        by_reason
            .entry(reasons.join(", "))
            .and_modify(|(_, count)| *count += 1)
            .or_insert((name, 1));
    }
    let mut warnings = Vec::new();
    let all = snapshot.count("pods", &prefix);
    if all > PODS_MAX {
        warnings.push(format!(
            "new PodSecurity enforce level only checked against the first {PODS_MAX} of {all} existing pods"
        ));
    }
    if !by_reason.is_empty() {
        warnings.push(format!(
            "existing pods in namespace {namespace:?} violate the new PodSecurity enforce level {:?}",
            enforce.to_string()
        ));
    }
    let mut of_pods: Vec<String> = by_reason
        .into_iter()
        .map(|(reason, (name, count))| match count {
            1 => format!("{name}: {reason}"),
            2 => format!("{name} (and 1 other pod): {reason}"),
            more => format!("{name} (and {} other pods): {reason}", more - 1),
        })
        .collect();
    of_pods.sort();
    warnings.extend(of_pods);
    warnings
}
