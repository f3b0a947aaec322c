//! Container events for `GetContainerEvents`: bounded; a client that falls behind is cut off, so that it lists again.

use cox_cri::v1::{ContainerEventResponse, ContainerEventType};
use tokio::sync::broadcast;

use crate::clock::now_nanos;
use crate::shim::Shim;

/// Events that the slowest client may be behind.
const BEHIND_MAX: usize = 4096;

#[derive(Debug)]
pub(crate) struct Events {
    sender: broadcast::Sender<ContainerEventResponse>,
}

impl Events {
    pub(crate) fn new() -> Self {
        Self {
            sender: broadcast::Sender::new(BEHIND_MAX),
        }
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<ContainerEventResponse> {
        self.sender.subscribe()
    }
}

impl Shim {
    /// Tells every client that `id` (of a container, or of the sandbox itself) changed, with the sandbox's state as it is now.
    pub(crate) fn emit(
        &self,
        kind: ContainerEventType,
        id: &str,
        sandbox: &crate::sandbox::Sandbox,
    ) {
        // Building the statuses costs; without a listener nobody pays.
        if self.events.sender.receiver_count() == 0 {
            return;
        }
        let containers = self.containers_of(&sandbox.id);
        let event = ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind.into(),
            created_at: now_nanos(),
            pod_sandbox_status: Some(sandbox.status()),
            containers_statuses: containers
                .iter()
                .map(|container| container.status())
                .collect(),
        };
        // The last listener may have left meanwhile.
        drop(self.events.sender.send(event));
    }
}
