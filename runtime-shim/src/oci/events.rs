//! What containerd tells: ends of processes and changes of images. After every gap (a start of this shim, a restart of containerd)
//! everything is compared once, so nothing that happened meanwhile is missed. What containerd still made for an earlier shim, which
//! died waiting for it, may come after that: so beginnings are looked at, too.

use std::sync::Arc;
use std::time::Duration;

use containerd_client::events::{ContainerCreate, TaskExit, TaskStart};
use containerd_client::services::v1::{
    DeleteContainerRequest, ListContainersRequest, PublishRequest, SubscribeRequest,
};
use containerd_client::types::Envelope;
use prost::Message;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use super::Backend;
use super::client::{OWNER, OciError, request};
use super::task::TaskState;
use crate::container::{Container, Exit};
use crate::shim::Shim;

/// Why a container has ended whose process went while nobody looked.
pub(crate) const UNKNOWN: &str = "Unknown";
/// The first event of each subscription is our own: it shows that the subscription stands.
const HELLO: &str = "/coxswain/hello";
const HELLO_PAUSE: Duration = Duration::from_millis(20);
/// A containerd that is not there is looked for this often, at first and later.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Follows containerd until `cancel`. `settled` becomes true when everything was compared for the first time.
pub(crate) async fn watch(
    shim: Arc<Shim>,
    settled: watch::Sender<bool>,
    cancel: CancellationToken,
) {
    let following = async {
        let mut pause = RETRY_MIN;
        let mut told = false;
        loop {
            let backend = Arc::clone(shim.images.oci());
            match backend.follow(&shim, &settled).await {
                Ok(()) => {
                    tracing::warn!("The connection to containerd ended, connecting again");
                    (pause, told) = (RETRY_MIN, false);
                }
                Err(err) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::info!(reason = %err, "No containerd: Wasm containers only until there is one");
                    }
                    pause = (pause * 2).min(RETRY_MAX);
                }
            }
            tokio::time::sleep(pause).await;
        }
    };
    tokio::select! {
        () = cancel.cancelled() => {}
        // Everything it does can be done again by the next shim.
        () = following => {}
    }
}

impl Backend {
    /// Subscribes, compares everything, then follows until the connection breaks.
    async fn follow(
        self: &Arc<Self>,
        shim: &Arc<Shim>,
        settled: &watch::Sender<bool>,
    ) -> Result<(), OciError> {
        let mut events = self.subscribe().await?;
        self.index.refresh(&self.containerd).await?;
        self.compare(shim).await?;
        tracing::info!(socket = %self.socket().display(), "Connected to containerd");
        settled.send_replace(true);
        if let Err(err) = self.containerd.end_left_leases().await {
            tracing::warn!(error = %err, "What an earlier runtime had half made stays in containerd for a day");
        }
        loop {
            match events.message().await {
                Ok(Some(event)) => self.take(shim, &event).await,
                Ok(None) => return Ok(()),
                Err(err) => {
                    tracing::debug!(error = %err, "The events of containerd broke off");
                    return Ok(());
                }
            }
        }
    }

    /// The stream of events opens with its first event, so one is sent until it does.
    async fn subscribe(&self) -> Result<Streaming<Envelope>, OciError> {
        let filter = |topic: &str| format!("namespace==k8s.io,topic{topic}");
        let subscribe = SubscribeRequest {
            filters: vec![
                filter("==\"/tasks/exit\""),
                filter("==\"/tasks/start\""),
                filter("==\"/containers/create\""),
                filter("~=\"^/images/\""),
                filter(&format!("==\"{HELLO}\"")),
            ],
        };
        let mut client = self.containerd.events();
        let opening = client.subscribe(request(subscribe));
        let greeting = async {
            loop {
                let hello = PublishRequest {
                    topic: HELLO.into(),
                    event: Some(prost_types::Any {
                        type_url: "google.protobuf.Empty".into(),
                        value: Vec::new(),
                    }),
                };
                if let Err(status) = self.containerd.events().publish(request(hello)).await {
                    return self.containerd.failed("send an event")(status);
                }
                tokio::time::sleep(HELLO_PAUSE).await;
            }
        };
        tokio::select! {
            opened = opening => match opened {
                Ok(stream) => Ok(stream.into_inner()),
                Err(status) => Err(self.containerd.failed("send events")(status)),
            },
            err = greeting => Err(err),
        }
    }

    /// Work is a task of its own: what one container needs must not delay the news of others.
    async fn take(self: &Arc<Self>, shim: &Arc<Shim>, event: &Envelope) {
        let bytes = event.event.as_ref().map_or(&[][..], |event| &event.value);
        let taken = match event.topic.as_str() {
            "/tasks/exit" => TaskExit::decode(bytes).map(|exit| {
                // The end of an exec has the exec's id.
                let is_main = exit.id == exit.container_id;
                let container = is_main.then(|| shim.oci_container(&exit.id)).flatten();
                self.with(shim, container, async move |backend, shim, container| {
                    let code = super::task::exit_code(exit.exit_status);
                    backend.ended(&shim, &container, code).await;
                });
            }),
            "/tasks/start" => TaskStart::decode(bytes).map(|start| {
                let container = shim.oci_container(&start.container_id);
                self.with(shim, container, async |backend, _, container| {
                    backend.end_late(&container).await;
                });
            }),
            "/containers/create" => ContainerCreate::decode(bytes).map(|create| {
                let unknown = !is_known(shim, &create.id);
                self.with(shim, unknown.then_some(create.id), async |backend, shim, id| {
                    if let Err(err) = backend.remove_orphans(&shim, Some(&id)).await {
                        tracing::warn!(error = %err, container = id, "A container that nobody knows could not be looked at");
                    }
                });
            }),
            topic if topic.starts_with("/images/") => {
                if let Err(err) = self.index.refresh(&self.containerd).await {
                    tracing::warn!(error = %err, "The images could not be read again");
                }
                Ok(())
            }
            _ => Ok(()),
        };
        if let Err(err) = taken {
            tracing::warn!(error = %err, topic = event.topic, "An event of containerd's cannot be read");
        }
    }

    fn with<T, F>(
        self: &Arc<Self>,
        shim: &Arc<Shim>,
        subject: Option<T>,
        work: impl FnOnce(Arc<Self>, Arc<Shim>, T) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        if let Some(subject) = subject {
            let work = work(Arc::clone(self), Arc::clone(shim), subject);
            shim.tasks.spawn(work);
        }
    }

    /// Ends a process that began after its container was given up: an earlier shim had asked for it and died.
    async fn end_late(&self, container: &Container) {
        let Some(oci) = &container.oci else { return };
        let _turn = oci.turn.lock().await;
        if container.record().phase.name() != "exited" {
            return;
        }
        let id = container.id.as_str();
        let ended = match self.task_state(id).await {
            Ok(TaskState::Absent) => return,
            Ok(_) => self.clear_away(id, oci).await.map(drop),
            Err(err) => Err(err),
        };
        match ended {
            Ok(()) => {
                tracing::info!(container = id, "A process that began too late is ended");
            }
            Err(err) => {
                tracing::warn!(error = %err, container = id, "A process that began too late could not be ended");
            }
        }
    }

    /// The process has ended: clears away and tells.
    pub(crate) async fn ended(
        self: &Arc<Self>,
        shim: &Arc<Shim>,
        container: &Arc<Container>,
        code: i32,
    ) {
        let Some(oci) = &container.oci else { return };
        let _turn = oci.turn.lock().await;
        if !container.is_running() {
            return;
        }
        let (deleted, out_of_memory) = match self.clear_away(container.id.as_str(), oci).await {
            Ok(cleared) => cleared,
            Err(err) => {
                tracing::warn!(error = %err, container = %container.id, "An ended container could not be cleared away in containerd");
                (None, false)
            }
        };
        let code = deleted.unwrap_or(code);
        let exit = Exit {
            code,
            reason: match (out_of_memory, code) {
                (true, code) if code != 0 => "OOMKilled",
                (_, 0) => "Completed",
                _ => "Error",
            }
            .into(),
            message: String::new(),
        };
        shim.finish(container, exit).await;
    }

    /// Brings every container of this shim in line with what containerd has.
    async fn compare(self: &Arc<Self>, shim: &Arc<Shim>) -> Result<(), OciError> {
        for container in shim.oci_containers() {
            if let Err(err) = self.compare_one(shim, &container).await {
                if matches!(err, OciError::Unavailable { .. }) {
                    return Err(err);
                }
                tracing::warn!(error = %err, container = %container.id, "A container could not be taken over");
            }
        }
        self.remove_orphans(shim, None).await?;
        self.remove_torn().await
    }

    async fn compare_one(
        self: &Arc<Self>,
        shim: &Arc<Shim>,
        container: &Arc<Container>,
    ) -> Result<(), OciError> {
        let Some(oci) = &container.oci else {
            return Ok(());
        };
        let starting = {
            let _turn = oci.turn.lock().await;
            container.record().phase.name() == "starting"
        };
        if !container.is_running() && !starting {
            return Ok(());
        }
        let id = container.id.as_str();
        match self.task_state(id).await? {
            TaskState::Running(pid) if !starting => {
                let _turn = oci.turn.lock().await;
                if Self::is_attended(oci) || !container.is_running() {
                    return Ok(());
                }
                let log = shim.open_log(container).map_err(OciError::Refused)?;
                let dir = shim.container_state.path(id);
                self.readopt(oci, &container.config, &dir, &log, pid)?;
                container.take_log(log);
                shim.feed_stdin(container, oci);
                tracing::info!(container = id, pid, "Container is taken over");
            }
            TaskState::Stopped(code) if !starting => self.ended(shim, container, code).await,
            // A shim died in the middle of the start, or the process went while nobody looked.
            state => {
                let _turn = oci.turn.lock().await;
                if state != TaskState::Absent {
                    self.clear_away(id, oci).await?;
                }
                let exit = Exit {
                    code: 255,
                    reason: UNKNOWN.into(),
                    message: "the process was gone when the container runtime came back".into(),
                };
                shim.finish(container, exit).await;
            }
        }
        Ok(())
    }

    /// Removes what an earlier shim began to make and did not live to write down: all of it, or only container `id`.
    async fn remove_orphans(&self, shim: &Shim, id: Option<&str>) -> Result<(), OciError> {
        let id = id.map_or_else(String::new, |id| format!("id==\"{id}\","));
        let list = ListContainersRequest {
            filters: vec![format!("{id}labels.\"{OWNER}\"==\"{}\"", self.owner)],
        };
        let records = self
            .containerd
            .containers()
            .list(request(list))
            .await
            .map_err(self.containerd.failed("list containers"))?
            .into_inner()
            .containers;
        for record in records {
            // Asked after the list: whatever is in it and being made holds its name from before.
            if is_known(shim, &record.id) {
                continue;
            }
            tracing::info!(
                container = record.id,
                "A container that nobody knows is removed"
            );
            if let Err(err) = self
                .delete_thoroughly(&record.id, &record.snapshotter)
                .await
            {
                tracing::warn!(error = %err, container = record.id, "A container that nobody knows could not be removed");
                let delete = DeleteContainerRequest { id: record.id };
                if let Err(err) = self.containerd.containers().delete(request(delete)).await {
                    tracing::debug!(error = %err, "Nor could its record");
                }
            }
        }
        Ok(())
    }
}

/// Whether a container stands or is being made.
fn is_known(shim: &Shim, id: &str) -> bool {
    shim.oci_container(id).is_some() || shim.names.is_holder(id)
}
