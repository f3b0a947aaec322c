//! The runtime's answers in our words. Pure, except [`all_pods`], which lists everything at start and after a gap in the events.

use super::client::{CriError, Runtime};
use super::labels;
use crate::pod::plan::NETWORK_ANNOTATION;
use crate::pod::view::{ContainerPhase, ContainerView, Exit, PodView, SandboxView};
use crate::pod::{ContainerId, PodUid, SandboxId};
use cox_cri::v1;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerUser, LinuxContainerUser};
use std::collections::HashMap;

/// A Pod found in the runtime.
#[derive(Clone, Debug, Default)]
pub struct FoundPod {
    pub namespace: String,
    pub name: String,
    pub view: PodView,
}

/// News of one Pod from the event stream.
#[derive(Clone, Debug)]
pub struct PodNews {
    pub uid: PodUid,
    pub sandbox: Option<SandboxView>,
    pub containers: Vec<ContainerView>,
    /// A container that was removed.
    pub removed: Option<ContainerId>,
}

fn time(nanos: i64) -> Option<Timestamp> {
    if nanos <= 0 {
        None
    } else {
        Timestamp::from_nanosecond(i128::from(nanos)).ok()
    }
}

/// One sandbox.
#[must_use]
pub fn sandbox(status: &v1::PodSandboxStatus) -> SandboxView {
    let network = status.network.as_ref();
    let primary = network.map(|network| network.ip.clone()).into_iter();
    let more = network
        .into_iter()
        .flat_map(|network| &network.additional_ips)
        .map(|ip| ip.ip.clone());
    SandboxView {
        id: SandboxId(status.id.clone()),
        attempt: status
            .metadata
            .as_ref()
            .map_or(0, |metadata| metadata.attempt),
        ready: status.state == v1::PodSandboxState::SandboxReady as i32,
        created_at: time(status.created_at).unwrap_or(Timestamp::UNIX_EPOCH),
        ips: primary.chain(more).filter(|ip| !ip.is_empty()).collect(),
        is_virtual: status
            .annotations
            .get(NETWORK_ANNOTATION)
            .is_some_and(|network| network == "virtual"),
    }
}

/// One container of a sandbox.
#[must_use]
pub fn container(sandbox: &SandboxId, status: &v1::ContainerStatus) -> ContainerView {
    let metadata = status.metadata.clone().unwrap_or_default();
    let started_at = time(status.started_at);
    let state = match v1::ContainerState::try_from(status.state) {
        Ok(v1::ContainerState::ContainerCreated) => ContainerPhase::Created,
        Ok(v1::ContainerState::ContainerRunning) => ContainerPhase::Running {
            started_at: started_at
                .or(time(status.created_at))
                .unwrap_or(Timestamp::UNIX_EPOCH),
        },
        Ok(v1::ContainerState::ContainerExited) => ContainerPhase::Exited(Exit {
            code: status.exit_code,
            reason: status.reason.clone(),
            message: status.message.clone(),
            started_at,
            finished_at: time(status.finished_at)
                .or(started_at)
                .unwrap_or(Timestamp::UNIX_EPOCH),
        }),
        Ok(v1::ContainerState::ContainerUnknown) | Err(_) => ContainerPhase::Unknown,
    };
    let image = status.image.clone().unwrap_or_default();
    let image_name = if image.user_specified_image.is_empty() {
        image.image
    } else {
        image.user_specified_image
    };
    let image_id = if status.image_ref.is_empty() {
        status.image_id.clone()
    } else {
        status.image_ref.clone()
    };
    ContainerView {
        id: ContainerId(status.id.clone()),
        sandbox: sandbox.clone(),
        name: metadata.name,
        attempt: metadata.attempt,
        state,
        created_at: time(status.created_at).unwrap_or(Timestamp::UNIX_EPOCH),
        image: image_name,
        image_ref: status.image_ref.clone(),
        image_id,
        spec_hash: status
            .annotations
            .get(labels::CONTAINER_HASH)
            .cloned()
            .unwrap_or_default(),
        user: user(status.user.as_ref()),
    }
}

fn user(user: Option<&v1::ContainerUser>) -> Option<ContainerUser> {
    let linux = user?.linux.as_ref()?;
    let groups = &linux.supplemental_groups;
    Some(ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: linux.uid,
            gid: linux.gid,
            supplemental_groups: (!groups.is_empty()).then(|| groups.clone()),
        }),
    })
}

/// What an event tells; `None` for a sandbox that is not a kubelet's.
#[must_use]
pub fn news(event: &v1::ContainerEventResponse) -> Option<PodNews> {
    let status = event.pod_sandbox_status.as_ref()?;
    let uid = status
        .labels
        .get(labels::POD_UID)
        .or(status.metadata.as_ref().map(|m| &m.uid))?;
    let id = SandboxId(status.id.clone());
    let kind = v1::ContainerEventType::try_from(event.container_event_type);
    let deleted = kind == Ok(v1::ContainerEventType::ContainerDeletedEvent);
    Some(PodNews {
        uid: PodUid(uid.clone()),
        sandbox: Some(sandbox(status)),
        containers: event
            .containers_statuses
            .iter()
            .filter(|status| !(deleted && status.id == event.container_id))
            .map(|status| container(&id, status))
            .collect(),
        removed: deleted.then(|| ContainerId(event.container_id.clone())),
    })
}

/// Everything that runs on the node, by Pod.
pub async fn all_pods(runtime: &Runtime) -> Result<HashMap<PodUid, FoundPod>, CriError> {
    let mut found: HashMap<PodUid, FoundPod> = HashMap::new();
    let mut owner: HashMap<String, PodUid> = HashMap::new();
    for item in runtime.sandboxes().await? {
        let Some(metadata) = &item.metadata else {
            continue;
        };
        let uid = PodUid(metadata.uid.clone());
        let id = SandboxId(item.id.clone());
        let status = match runtime.sandbox_status(&id).await {
            Ok(status) => status,
            Err(error) if error.is_not_found() => continue,
            Err(error) => return Err(error),
        };
        owner.insert(item.id.clone(), uid.clone());
        let pod = found.entry(uid).or_default();
        pod.namespace.clone_from(&metadata.namespace);
        pod.name.clone_from(&metadata.name);
        pod.view.merge_sandbox(sandbox(&status));
    }
    for item in runtime.containers().await? {
        let uid = item
            .labels
            .get(labels::POD_UID)
            .map(|uid| PodUid(uid.clone()));
        let Some(uid) = uid.or_else(|| owner.get(&item.pod_sandbox_id).cloned()) else {
            continue;
        };
        let status = match runtime
            .container_status(&ContainerId(item.id.clone()))
            .await
        {
            Ok(status) => status,
            Err(error) if error.is_not_found() => continue,
            Err(error) => return Err(error),
        };
        let pod = found.entry(uid).or_default();
        if pod.name.is_empty() {
            pod.name = item
                .labels
                .get(labels::POD_NAME)
                .cloned()
                .unwrap_or_default();
            pod.namespace = item
                .labels
                .get(labels::POD_NAMESPACE)
                .cloned()
                .unwrap_or_default();
        }
        pod.view
            .merge_container(container(&SandboxId(item.pod_sandbox_id.clone()), &status));
    }
    Ok(found)
}
