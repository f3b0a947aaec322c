//! The message that makes a container, from its spec and what was resolved for it. Pure.

use super::{env, labels, resources, sandbox_config, security};
use crate::pod::ContainerId;
use crate::pod::containers::{spec, spec_hash};
use crate::pod::history::ResolvedImage;
use crate::pod::plan::grace_of;
use cox_cri::v1;
use k8s_openapi::api::core::v1::{Container, Pod};
use std::collections::HashMap;

/// What was found out for a container before it can be made.
#[derive(Clone, Debug)]
pub struct Resolved<'a> {
    pub attempt: u32,
    pub image: &'a ResolvedImage,
    pub env: Vec<(String, String)>,
    pub mounts: Vec<v1::Mount>,
    pub devices: Vec<v1::Device>,
    pub cdi: Vec<v1::CdiDevice>,
    /// The container whose processes this one sees.
    pub target: Option<ContainerId>,
    /// Memory of the node, for the kernel's choice of victims.
    pub node_memory: i64,
}

/// The log file of an attempt, below the Pod's log folder.
#[must_use]
pub fn log_path(container: &str, attempt: u32) -> String {
    format!("{container}/{attempt}.log")
}

/// Makes the message.
#[must_use]
pub fn container_config(
    pod: &Pod,
    container: &Container,
    resolved: Resolved<'_>,
) -> v1::ContainerConfig {
    let lookup = |name: &str| {
        let found = resolved.env.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    };
    let expanded = |words: &Option<Vec<String>>| -> Vec<String> {
        words
            .iter()
            .flatten()
            .map(|word| env::expand(word, lookup))
            .collect()
    };
    let mut container_labels = sandbox_config::pod_labels(pod);
    container_labels.insert(labels::CONTAINER_NAME.to_owned(), container.name.clone());
    let user_image = container.image.clone().unwrap_or_default();
    let command = expanded(&container.command);
    let args = expanded(&container.args);
    let envs = resolved.env.iter();
    let mut security_context = security::of_container(pod, container);
    if let Some(target) = &resolved.target {
        security::see_processes_of(&mut security_context, target.as_str());
    }
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata {
            name: container.name.clone(),
            attempt: resolved.attempt,
        }),
        image: Some(v1::ImageSpec {
            image: resolved.image.image_ref.clone(),
            user_specified_image: user_image,
            runtime_handler: spec(pod).runtime_class_name.clone().unwrap_or_default(),
            ..v1::ImageSpec::default()
        }),
        command,
        args,
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: envs
            .map(|(key, value)| v1::KeyValue {
                key: key.clone(),
                value: value.clone().into_bytes(),
            })
            .collect(),
        mounts: resolved.mounts,
        devices: resolved.devices,
        cdi_devices: resolved.cdi,
        labels: container_labels,
        annotations: annotations(pod, container, resolved.attempt),
        log_path: log_path(&container.name, resolved.attempt),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        stop_signal: stop_signal(container).into(),
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(resources::linux(pod, container, resolved.node_memory)),
            security_context: Some(security_context),
        }),
        ..v1::ContainerConfig::default()
    }
}

/// The signal that asks the container to end; the image's, or SIGTERM, unless the Pod names another.
fn stop_signal(container: &Container) -> v1::Signal {
    let asked = container
        .lifecycle
        .as_ref()
        .and_then(|lifecycle| lifecycle.stop_signal.as_deref());
    let name = asked.map(|name| name.replace('+', "PLUS").replace('-', "MINUS"));
    name.and_then(|name| v1::Signal::from_str_name(&name))
        .unwrap_or(v1::Signal::RuntimeDefault)
}

fn annotations(pod: &Pod, container: &Container, attempt: u32) -> HashMap<String, String> {
    let path = container
        .termination_message_path
        .as_deref()
        .unwrap_or("/dev/termination-log");
    let policy = container
        .termination_message_policy
        .as_deref()
        .unwrap_or("File");
    let mut annotations = HashMap::from([
        (labels::CONTAINER_HASH.to_owned(), spec_hash(container)),
        (labels::RESTART_COUNT.to_owned(), attempt.to_string()),
        (labels::TERMINATION_PATH.to_owned(), path.to_owned()),
        (labels::TERMINATION_POLICY.to_owned(), policy.to_owned()),
        (labels::GRACE_PERIOD.to_owned(), grace_of(pod).to_string()),
    ]);
    if let Some(ports) = container.ports.as_ref().filter(|ports| !ports.is_empty()) {
        let ports = serde_json::to_string(ports).expect("ports are plain data");
        annotations.insert(labels::PORTS.to_owned(), ports);
    }
    annotations
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::history::ImageKind;

    #[test]
    fn command_and_args_are_expanded_and_the_attempt_shows_everywhere() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [{"name": "c", "image": "cox.local/hello", "command": ["run"], "args": ["--to=$(WHO)"]}]}}))
        .unwrap();
        let image = ResolvedImage {
            image_ref: "sha256:1".into(),
            image_id: "sha256:1".into(),
            kind: ImageKind::Wasm,
            user: Default::default(),
        };
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let made = container_config(
            &pod,
            container,
            Resolved {
                attempt: 3,
                image: &image,
                env: vec![("WHO".into(), "you".into())],
                mounts: Vec::new(),
                devices: Vec::new(),
                cdi: Vec::new(),
                target: None,
                node_memory: 1 << 30,
            },
        );
        assert_eq!(
            (made.command, made.args),
            (vec!["run".to_owned()], vec!["--to=you".to_owned()])
        );
        assert_eq!(made.log_path, "c/3.log");
        assert_eq!(made.annotations[labels::RESTART_COUNT], "3");
        assert_eq!(
            made.annotations[labels::CONTAINER_HASH],
            spec_hash(container)
        );
        let spec = made.image.unwrap();
        assert_eq!(
            (spec.image.as_str(), spec.user_specified_image.as_str()),
            ("sha256:1", "cox.local/hello")
        );
    }
}
