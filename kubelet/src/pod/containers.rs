//! Reading a Pod's containers: order, kind, identity of a definition, and whether an exit is followed by a restart.

use k8s_openapi::api::core::v1::{
    Container, ContainerRestartRule, EphemeralContainer, Pod, PodSpec,
};
use sha2::{Digest, Sha256};
use std::borrow::Cow;

/// The Pod's restart policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    /// The policy of a Pod; upstream's default is Always.
    #[must_use]
    pub fn of(spec: &PodSpec) -> Self {
        Self::parse(spec.restart_policy.as_deref()).unwrap_or(Self::Always)
    }

    fn parse(text: Option<&str>) -> Option<Self> {
        match text? {
            "Never" => Some(Self::Never),
            "OnFailure" => Some(Self::OnFailure),
            "Always" => Some(Self::Always),
            _ => None,
        }
    }

    fn restarts_after(self, code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => code != 0,
            Self::Never => false,
        }
    }
}

/// The spec of a Pod that comes from the API server, which never stores one without.
pub(crate) fn spec(pod: &Pod) -> &PodSpec {
    static EMPTY: std::sync::OnceLock<PodSpec> = std::sync::OnceLock::new();
    pod.spec
        .as_ref()
        .unwrap_or_else(|| EMPTY.get_or_init(PodSpec::default))
}

/// Init containers in order, sidecars among them.
pub(crate) fn inits(pod: &Pod) -> &[Container] {
    spec(pod).init_containers.as_deref().unwrap_or_default()
}

/// Main containers in order.
pub(crate) fn mains(pod: &Pod) -> &[Container] {
    &spec(pod).containers
}

/// Init containers, then main containers.
pub(crate) fn all(pod: &Pod) -> impl Iterator<Item = &Container> {
    inits(pod).iter().chain(mains(pod))
}

/// The ephemeral containers as containers like any other, in the order in which they were added.
pub(crate) fn ephemerals(pod: &Pod) -> impl Iterator<Item = Container> {
    spec(pod).ephemeral_containers.iter().flatten().map(plain)
}

fn plain(debugger: &EphemeralContainer) -> Container {
    let debugger = debugger.clone();
    Container {
        args: debugger.args,
        command: debugger.command,
        env: debugger.env,
        env_from: debugger.env_from,
        image: debugger.image,
        image_pull_policy: debugger.image_pull_policy,
        name: debugger.name,
        resources: debugger.resources,
        security_context: debugger.security_context,
        stdin: debugger.stdin,
        stdin_once: debugger.stdin_once,
        termination_message_path: debugger.termination_message_path,
        termination_message_policy: debugger.termination_message_policy,
        tty: debugger.tty,
        volume_devices: debugger.volume_devices,
        volume_mounts: debugger.volume_mounts,
        working_dir: debugger.working_dir,
        ..Container::default()
    }
}

/// The container of a name, ephemeral ones among them.
#[must_use]
pub fn any_named<'a>(pod: &'a Pod, name: &str) -> Option<Cow<'a, Container>> {
    named(pod, name).map(Cow::Borrowed).or_else(|| {
        let found = ephemerals(pod).find(|container| container.name == name);
        found.map(Cow::Owned)
    })
}

/// The container whose processes an ephemeral one asks to see.
#[must_use]
pub fn target_of<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    let debuggers = spec(pod).ephemeral_containers.iter().flatten();
    let debugger = debuggers
        .into_iter()
        .find(|debugger| debugger.name == name)?;
    debugger
        .target_container_name
        .as_deref()
        .filter(|target| !target.is_empty())
}

/// The container of a name.
#[must_use]
pub fn named<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    all(pod).find(|container| container.name == name)
}

/// A native sidecar: an init container that keeps running (restartPolicy Always).
#[must_use]
pub fn is_sidecar(pod: &Pod, container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
        && inits(pod).iter().any(|init| init.name == container.name)
}

/// What starts again after the end of a container, by a rule of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    One,
    /// All containers of the Pod.
    All,
}

/// What the first rule says that speaks of this exit code.
#[must_use]
pub fn matching_rule(container: &Container, code: i32) -> Option<Restart> {
    let rules = container.restart_policy_rules.iter().flatten();
    let says = |rule: &ContainerRestartRule| {
        let codes = rule.exit_codes.as_ref()?;
        let listed = codes.values.as_deref().unwrap_or_default().contains(&code);
        let matches = match codes.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        };
        match rule.action.as_str() {
            "Restart" if matches => Some(Restart::One),
            "RestartAllContainers" if matches => Some(Restart::All),
            _ => None,
        }
    };
    rules.into_iter().find_map(says)
}

/// Whether a container that ended with `code` runs again: the container's rules first, then its own policy, then the Pod's.
#[must_use]
pub fn restarts(pod: &Pod, container: &Container, code: i32) -> bool {
    if is_sidecar(pod, container) {
        return true;
    }
    let debuggers = spec(pod).ephemeral_containers.iter().flatten();
    if debuggers
        .into_iter()
        .any(|debugger| debugger.name == container.name)
    {
        return false;
    }
    if matching_rule(container, code).is_some() {
        return true;
    }
    let policy = RestartPolicy::parse(container.restart_policy.as_deref())
        .unwrap_or(RestartPolicy::of(spec(pod)));
    let is_init = inits(pod).iter().any(|init| init.name == container.name);
    match policy {
        // An init container that succeeded is done, whatever the policy.
        RestartPolicy::Always if is_init => code != 0,
        policy => policy.restarts_after(code),
    }
}

/// Identity of what needs a new container when it changes in place: name and image, as upstream.
#[must_use]
pub fn spec_hash(container: &Container) -> String {
    let mut hash = Sha256::new();
    hash.update(container.name.as_bytes());
    hash.update([0]);
    hash.update(container.image.as_deref().unwrap_or_default().as_bytes());
    hash.finalize()
        .iter()
        .take(8)
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// `name_namespace(uid)`, as upstream names a Pod in messages.
#[must_use]
pub fn display(pod: &Pod) -> String {
    let meta = &pod.metadata;
    format!(
        "{}_{}({})",
        meta.name.as_deref().unwrap_or_default(),
        meta.namespace.as_deref().unwrap_or_default(),
        meta.uid.as_deref().unwrap_or_default()
    )
}

/// The extended resources for which the scheduler has made a claim: no device plugin gives them.
pub fn claimed_resources(pod: &Pod) -> impl Iterator<Item = &String> {
    let status = pod.status.as_ref();
    let claim = status.and_then(|status| status.extended_resource_claim_status.as_ref());
    let mappings = claim.into_iter().flat_map(|claim| &claim.request_mappings);
    mappings.map(|one| &one.resource_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(json: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({ "metadata": {"name": "p"}, "spec": json }))
            .unwrap()
    }

    #[test]
    fn restarts_table() {
        let cases = [
            (
                "Always restarts a success",
                "Always",
                serde_json::json!({"name": "c"}),
                0,
                true,
            ),
            (
                "OnFailure leaves a success",
                "OnFailure",
                serde_json::json!({"name": "c"}),
                0,
                false,
            ),
            (
                "OnFailure restarts a failure",
                "OnFailure",
                serde_json::json!({"name": "c"}),
                1,
                true,
            ),
            (
                "Never leaves a failure",
                "Never",
                serde_json::json!({"name": "c"}),
                1,
                false,
            ),
            (
                "the container's own policy wins",
                "Never",
                serde_json::json!({"name": "c", "restartPolicy": "OnFailure"}),
                1,
                true,
            ),
            (
                "a rule wins over the policy",
                "Always",
                serde_json::json!({"name": "c", "restartPolicy": "Never",
                    "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]}),
                42,
                true,
            ),
            (
                "a rule that does not match leaves it to the policy",
                "Always",
                serde_json::json!({"name": "c", "restartPolicy": "Never",
                    "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "NotIn", "values": [1]}}]}),
                1,
                false,
            ),
        ];
        for (name, policy, container, code, expected) in cases {
            let pod =
                pod(serde_json::json!({ "restartPolicy": policy, "containers": [container] }));
            assert_eq!(
                restarts(&pod, &mains(&pod)[0], code),
                expected,
                "case: {name}"
            );
        }
    }

    #[test]
    fn an_init_container_that_succeeded_is_done_and_a_sidecar_never_is() {
        let pod = pod(serde_json::json!({ "containers": [],
            "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}] }));
        assert!(!restarts(&pod, &inits(&pod)[0], 0));
        assert!(restarts(&pod, &inits(&pod)[0], 1));
        assert!(restarts(&pod, &inits(&pod)[1], 0));
    }
}
