//! Pods and templates of Pods.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde_json::Value;

use super::{items, keys, old_label};
use crate::names;
use crate::quantity::Quantity;

/// Volumes that no longer work, with what is said about them.
pub(super) const DEAD_VOLUMES: [(&str, &str); 9] = [
    (
        "photonPersistentDisk",
        "deprecated in v1.11, non-functional in v1.16+",
    ),
    (
        "gitRepo",
        "deprecated in v1.11, and disabled by default in v1.33+",
    ),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
];
const OLD_ANNOTATIONS: [(&str, &str); 3] = [
    (
        "scheduler.alpha.kubernetes.io/critical-pod",
        "non-functional in v1.16+; use the \"priorityClassName\" field instead",
    ),
    (
        "security.alpha.kubernetes.io/sysctls",
        "non-functional in v1.11+; use the \"sysctls\" field instead",
    ),
    (
        "security.alpha.kubernetes.io/unsafe-sysctls",
        "non-functional in v1.11+; use the \"sysctls\" field instead",
    ),
];
const NO_SELECTOR: &str = "a null labelSelector results in matching no pod";
const OLD_SECCOMP: &str = "seccomp.security.alpha.kubernetes.io/pod";
const OLD_SECCOMP_OF: &str = "container.seccomp.security.alpha.kubernetes.io/";
const OLD_APPARMOR_OF: &str = "container.apparmor.security.beta.kubernetes.io/";

/// A Pod's name is its host name.
pub(super) fn name(pod: &Value, warnings: &mut Vec<String>) {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let problems = names::dns_label(name);
    if !name.is_empty() && !problems.is_empty() {
        warnings.push(format!(
            "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: [{}]",
            problems.join(" ")
        ));
    }
}

/// All that a Pod or template holds in vain; `at` is the path of a template, with a dot.
pub(super) fn warn(pod: &Value, at: &str, template: bool, warnings: &mut Vec<String>) {
    let spec = &pod["spec"];
    placement(spec, at, warnings);
    annotations(pod, at, warnings);
    volumes(spec, at, warnings);
    duplicates(spec, at, warnings);
    for name in ["memory", "ephemeral-storage"] {
        let path = format_args!("{at}spec.overhead[{name}]");
        fraction(&spec["overhead"][name], path, warnings);
    }
    security(pod, at, template, warnings);
    for (path, container) in containers(spec, at) {
        for field in ["memory", "ephemeral-storage"] {
            for list in ["limits", "requests"] {
                fraction(
                    &container["resources"][list][field],
                    format_args!("{path}.resources.{list}[{field}]"),
                    warnings,
                );
            }
        }
        environment(container, path, warnings);
    }
    ports(spec, at, warnings);
    if spec["terminationGracePeriodSeconds"]
        .as_i64()
        .is_some_and(|secs| secs < 0)
    {
        warnings.push(format!(
            "{at}spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1"
        ));
    }
    affinity(spec, at, warnings);
}

/// Where a container stands; written out only for those that are warned of.
#[derive(Clone, Copy)]
struct Place<'a> {
    at: &'a str,
    list: &'static str,
    number: usize,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { at, list, number } = self;
        write!(f, "{at}spec.{list}[{number}]")
    }
}

fn containers<'v>(spec: &'v Value, at: &'v str) -> impl Iterator<Item = (Place<'v>, &'v Value)> {
    let lists = ["initContainers", "containers", "ephemeralContainers"];
    lists.into_iter().flat_map(move |list| {
        let found = items(&spec[list]).enumerate();
        found.map(move |(number, one)| (Place { at, list, number }, one))
    })
}

fn placement(spec: &Value, at: &str, warnings: &mut Vec<String>) {
    for key in keys(&spec["nodeSelector"]) {
        if let Some(why) = old_label(key) {
            warnings.push(format!("{at}spec.nodeSelector[{key}]: {why}"));
        }
    }
    let affinity = &spec["affinity"]["nodeAffinity"];
    let required = &affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"];
    let preferred = &affinity["preferredDuringSchedulingIgnoredDuringExecution"];
    let hard = items(required).enumerate().map(|(number, term)| {
        let path = format!(
            "{at}spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[{number}]"
        );
        (path, term)
    });
    let soft = items(preferred).enumerate().map(|(number, term)| {
        let path = format!(
            "{at}spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[{number}].preference"
        );
        (path, &term["preference"])
    });
    for (path, term) in hard.chain(soft) {
        for (number, expression) in items(&term["matchExpressions"]).enumerate() {
            let key = expression["key"].as_str().unwrap_or_default();
            if let Some(why) = old_label(key) {
                warnings.push(format!(
                    "{path}.matchExpressions[{number}].key: {key} is {why}"
                ));
            }
        }
    }
    for (number, constraint) in items(&spec["topologySpreadConstraints"]).enumerate() {
        let path = format!("{at}spec.topologySpreadConstraints[{number}]");
        let key = constraint["topologyKey"].as_str().unwrap_or_default();
        if let Some(why) = old_label(key) {
            warnings.push(format!("{path}.topologyKey: {key} is {why}"));
        }
        if constraint["labelSelector"].is_null() {
            warnings.push(format!("{path}.labelSelector: {NO_SELECTOR}"));
        }
    }
}

fn annotations(pod: &Value, at: &str, warnings: &mut Vec<String>) {
    for (key, why) in OLD_ANNOTATIONS {
        if pod["metadata"]["annotations"][key].is_string() {
            warnings.push(format!("{at}metadata.annotations[{key}]: {why}"));
        }
    }
}

fn volumes(spec: &Value, at: &str, warnings: &mut Vec<String>) {
    for (number, volume) in items(&spec["volumes"]).enumerate() {
        let path = format!("{at}spec.volumes[{number}]");
        for (field, why) in DEAD_VOLUMES {
            if volume[field].is_object() {
                let shown = if field == "storageos" {
                    "storageOS"
                } else {
                    field
                };
                warnings.push(format!("{path}.{shown}: {why}"));
            }
        }
        let template = &volume["ephemeral"]["volumeClaimTemplate"]["spec"];
        let of_template = format!("{path}.ephemeral.volumeClaimTemplate.spec");
        super::claim(template, &of_template, warnings);
    }
}

fn duplicates(spec: &Value, at: &str, warnings: &mut Vec<String>) {
    for (list, field) in [("hostAliases", "ip"), ("imagePullSecrets", "name")] {
        let mut seen = HashSet::new();
        for (number, item) in items(&spec[list]).enumerate() {
            let text = item[field].as_str().unwrap_or_default();
            if !seen.insert(text) {
                warnings.push(format!(
                    "{at}spec.{list}[{number}].{field}: duplicate {field} {text:?}"
                ));
            }
            if list == "imagePullSecrets" && text.is_empty() {
                warnings.push(format!(
                    "{at}spec.{list}[{number}].name: invalid empty name \"\""
                ));
            }
        }
    }
}

/// A number of bytes with a fraction.
pub(super) fn fraction(amount: &Value, path: impl fmt::Display, warnings: &mut Vec<String>) {
    let Some(amount) = amount.as_str().and_then(|text| Quantity::parse(text).ok()) else {
        return;
    };
    if amount.as_millis() % 1000 != 0 {
        let shown = amount.to_string();
        warnings.push(format!(
            "{path}: fractional byte value {shown:?} is invalid, must be an integer"
        ));
    }
}

fn security(pod: &Value, at: &str, template: bool, warnings: &mut Vec<String>) {
    let spec = &pod["spec"];
    let annotation = |key: &str| pod["metadata"]["annotations"][key].is_string();
    let no_profile = |context: &Value| context["seccompProfile"].is_null();
    let instead = "non-functional in v1.27+; use the \"seccompProfile\" field instead";
    if no_profile(&spec["securityContext"]) && annotation(OLD_SECCOMP) {
        warnings.push(format!(
            "{at}metadata.annotations[{OLD_SECCOMP}]: {instead}"
        ));
    }
    if !pod["metadata"]["annotations"].is_object() {
        return;
    }
    for (_, container) in containers(spec, at) {
        let name = container["name"].as_str().unwrap_or_default();
        let context = &container["securityContext"];
        let key = format!("{OLD_SECCOMP_OF}{name}");
        if no_profile(context) && annotation(&key) {
            warnings.push(format!("{at}metadata.annotations[{key}]: {instead}"));
        }
        let key = format!("{OLD_APPARMOR_OF}{name}");
        let has_field = |context: &Value| context["appArmorProfile"].is_object();
        if template
            && annotation(&key)
            && !has_field(context)
            && !has_field(&spec["securityContext"])
        {
            warnings.push(format!(
                "{at}metadata.annotations[{key}]: deprecated since v1.30; use the \"appArmorProfile\" field instead"
            ));
        }
    }
}

fn environment(container: &Value, path: Place<'_>, warnings: &mut Vec<String>) {
    let mut seen = HashSet::new();
    for (number, variable) in items(&container["env"]).enumerate() {
        let name = variable["name"].as_str().unwrap_or_default();
        if seen.insert(name) {
            continue;
        }
        // `PATH=$(PATH):more` builds on what was there.
        let value = variable["value"].as_str().unwrap_or_default();
        let reference = format!("$({name})");
        let builds_on =
            variable["valueFrom"].is_null() && value != reference && value.contains(&reference);
        if !builds_on {
            warnings.push(format!(
                "{path}.env[{number}]: hides previous definition of {name:?}, which may be dropped when using apply"
            ));
        }
    }
}

/// Where a port stands.
#[derive(Clone, Copy)]
struct PortPlace<'a>(Place<'a>, usize);

impl fmt::Display for PortPlace<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.ports[{}]", self.0, self.1)
    }
}

fn host_ip(port: &Value) -> &str {
    port["hostIP"].as_str().unwrap_or_default()
}

fn ports(spec: &Value, at: &str, warnings: &mut Vec<String>) {
    let mut by_number: BTreeMap<(i64, &str), Vec<(PortPlace<'_>, &Value)>> = BTreeMap::new();
    let mut by_name: BTreeMap<&str, PortPlace<'_>> = BTreeMap::new();
    let mut of_names = Vec::new();
    for (path, container) in containers(spec, at) {
        for (number, port) in items(&container["ports"]).enumerate() {
            let place = PortPlace(path, number);
            let host_port = |port: &Value| port["hostPort"].as_i64().unwrap_or(0);
            let protocol = port["protocol"].as_str().unwrap_or_default();
            let others = by_number
                .entry((port["containerPort"].as_i64().unwrap_or(0), protocol))
                .or_default();
            for (other_place, other) in others.iter() {
                let (own, its) = (host_port(port), host_port(other));
                let what = if host_ip(port) == host_ip(other) && own == its {
                    "duplicate"
                } else if own == 0 || its == 0 {
                    "overlapping"
                } else if own == its && (host_ip(port).is_empty() != host_ip(other).is_empty()) {
                    "dangerously ambiguous"
                } else {
                    continue;
                };
                warnings.push(format!(
                    "{place}: {what} port definition with {other_place}"
                ));
            }
            others.push((place, port));
            let Some(name) = port["name"].as_str().filter(|name| !name.is_empty()) else {
                continue;
            };
            match by_name.get(name) {
                Some(other) => of_names.push(format!(
                    "{place}: duplicate port name {name:?} with {other}, services and probes that select ports by name will use {other}"
                )),
                None => {
                    by_name.insert(name, place);
                }
            }
        }
    }
    warnings.extend(of_names);
}

fn affinity(spec: &Value, at: &str, warnings: &mut Vec<String>) {
    for kind in ["podAffinity", "podAntiAffinity"] {
        let of_kind = &spec["affinity"][kind];
        for (list, inner) in [
            ("requiredDuringSchedulingIgnoredDuringExecution", ""),
            (
                "preferredDuringSchedulingIgnoredDuringExecution",
                ".podAffinityTerm",
            ),
        ] {
            for (number, term) in items(&of_kind[list]).enumerate() {
                let term = if inner.is_empty() {
                    term
                } else {
                    &term["podAffinityTerm"]
                };
                if term["labelSelector"].is_null() {
                    warnings.push(format!(
                        "{at}spec.affinity.{kind}.{list}[{number}]{inner}.labelSelector: {NO_SELECTOR}"
                    ));
                }
            }
        }
    }
}
