//! A container's life in containerd: its snapshot and record, its task, its end. The state machine is the one of all containers
//! ([`crate::container`]); here are the effects.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use containerd_client::services::v1::container::Runtime;
use containerd_client::services::v1::snapshots::{
    MountsRequest, PrepareSnapshotRequest, UsageRequest,
};
use containerd_client::services::v1::{
    Container as ContainerRecord, CreateContainerRequest, CreateTaskRequest,
    DeleteContainerRequest, DeleteTaskRequest, GetContainerRequest, GetRequest, KillRequest,
    StartRequest, UpdateContainerRequest, UpdateTaskRequest, WaitRequest,
};
use containerd_client::types::Mount;
use containerd_client::types::v1::Status as TaskStatus;
use cox_cri::v1::{ContainerConfig, LinuxContainerResources, PodSandboxConfig};
use oci_spec::runtime::Spec;
use parking_lot::Mutex;
use prost::Message;
use serde::{Deserialize, Serialize};
use tonic::{Code, Status};

use super::Backend;
use super::cgroup::{Cgroups, Usage};
use super::client::{OWNER, OciError, leased, request};
use super::images::OciImage;
use super::io::{Fifos, Pumps};
use super::spec::{self, Accounts, Host, Identity, Wanted};
use super::volumes::ImageVolumes;
use crate::logs::ContainerLog;
use crate::sandbox::{Namespaces, PodFiles};

const RUNTIME: &str = "io.containerd.runc.v2";
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
const RESOURCES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";
pub(super) const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
/// How long an ended container's execs may take to be told their end.
const EXEC_PATIENCE: Duration = Duration::from_secs(2);
/// How often, and how far apart, a killed process is looked at until its task can go.
const DELETE_LOOKS: u32 = 100;
const DELETE_PAUSE: Duration = Duration::from_millis(20);
/// How often, and how far apart, a process is asked for that found no shim of containerd's.
const CREATE_TRIES: u32 = 20;
const CREATE_PAUSE: Duration = Duration::from_millis(25);
/// The writable layer's size is read again after this.
const WRITABLE_AGE_MAX: Duration = Duration::from_secs(10);

/// Options of the runc shim, as far as they are set here (`containerd.runc.v1.Options`).
#[derive(Clone, PartialEq, Message)]
struct RuncOptions {
    #[prost(bool, tag = "9")]
    systemd_cgroup: bool,
}

/// containerd has no code of its own for it.
fn is_ending_shim(status: &Status) -> bool {
    let message = status.message();
    message.contains("failed to start shim") && message.contains("dial unix")
}

/// The checkpointed part of an OCI container.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct OciRecord {
    snapshotter: String,
    pub(crate) identity: Identity,
    /// The signal that the image names for stopping it; empty for the usual one.
    pub(crate) stop_signal: String,
}

/// What an OCI container is while this process knows it.
#[derive(Debug, Default)]
pub(crate) struct OciContainer {
    pub(crate) record: OciRecord,
    live: Mutex<OciLive>,
    /// Start and end of a container do not overlap: a process that ends at once is seen to have run.
    pub(crate) turn: tokio::sync::Mutex<()>,
    /// Held shared by each exec from its start until containerd has told its end: removing the task takes that along.
    pub(crate) execs: Arc<tokio::sync::RwLock<()>>,
}

#[derive(Debug, Default)]
struct OciLive {
    pid: Option<u32>,
    cgroups: Cgroups,
    pumps: Option<Pumps>,
    stdin: Option<tokio::net::unix::pipe::Sender>,
    writable: Option<(Instant, u64, u64)>,
}

impl OciContainer {
    pub(crate) fn new(record: OciRecord) -> Self {
        Self {
            record,
            ..Self::default()
        }
    }

    pub(crate) fn snapshotter(&self) -> &str {
        &self.record.snapshotter
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.live.lock().pid
    }

    /// Where its controllers are; nowhere unless it runs.
    pub(crate) fn cgroups(&self) -> Cgroups {
        self.live.lock().cgroups.clone()
    }

    /// The way into the container's stdin, once.
    pub(crate) fn take_stdin(&self) -> Option<tokio::net::unix::pipe::Sender> {
        self.live.lock().stdin.take()
    }

    /// What the container uses now; `writable` is as old as the last look.
    pub(crate) fn usage(&self) -> Usage {
        let (cgroups, writable) = {
            let live = self.live.lock();
            (live.cgroups.clone(), live.writable)
        };
        let (_, writable_bytes, writable_inodes) = writable.unwrap_or((Instant::now(), 0, 0));
        Usage {
            writable_bytes,
            writable_inodes,
            ..cgroups.usage()
        }
    }

    fn running(&self, pid: u32, pumps: Pumps, stdin: Option<tokio::net::unix::pipe::Sender>) {
        let cgroups = Cgroups::of(pid).unwrap_or_default();
        let mut live = self.live.lock();
        live.pid = Some(pid);
        live.cgroups = cgroups;
        live.pumps = Some(pumps);
        live.stdin = stdin;
    }

    fn out_of_memory(&self) -> bool {
        let cgroups = self.live.lock().cgroups.clone();
        cgroups.was_out_of_memory()
    }
}

/// What a container is made of.
pub(crate) struct NewContainer<'a> {
    pub(crate) id: &'a str,
    pub(crate) config: &'a ContainerConfig,
    pub(crate) sandbox_id: &'a str,
    pub(crate) pod: &'a PodSandboxConfig,
    pub(crate) namespaces: &'a Namespaces,
    pub(crate) files: &'a PodFiles,
    pub(crate) target_pid: Option<u32>,
}

/// How a task stands in containerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TaskState {
    Absent,
    /// Made and not started.
    Created,
    Running(u32),
    Stopped(i32),
}

fn any(type_url: &str, value: &impl Serialize) -> prost_types::Any {
    prost_types::Any {
        type_url: type_url.to_owned(),
        value: serde_json::to_vec(value).expect("a specification is plain data"),
    }
}

pub(super) fn process_any(value: &impl Serialize) -> prost_types::Any {
    any(PROCESS_TYPE, value)
}

/// CRI's exit codes are signed, containerd's are not; both mean the byte of `wait`.
pub(super) fn exit_code(status: u32) -> i32 {
    i32::try_from(status).unwrap_or(255)
}

impl Backend {
    /// Makes snapshot and record of a container; no process yet.
    pub(crate) async fn create(
        &self,
        image: &OciImage,
        new: &NewContainer<'_>,
    ) -> Result<OciRecord, OciError> {
        self.ensure_unpacked(image).await?;
        let snapshotter = self.snapshotter().await?;
        let made = self.make(image, new, &snapshotter).await;
        if made.is_err()
            && let Err(err) = self.remove_snapshots(new.id, &snapshotter).await
        {
            tracing::debug!(error = %err, container = new.id, "What was half made is removed when containerd answers again");
            self.torn.lock().push((new.id.to_owned(), snapshotter));
        }
        made
    }

    async fn make(
        &self,
        image: &OciImage,
        new: &NewContainer<'_>,
        snapshotter: &str,
    ) -> Result<OciRecord, OciError> {
        let lease = self.making().await?;
        let prepare = PrepareSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: new.id.to_owned(),
            parent: image.chain_id(),
            labels: HashMap::new(),
        };
        let mounts = self
            .containerd
            .snapshots()
            .prepare(leased(prepare, &lease))
            .await
            .map_err(
                self.containerd
                    .failed("prepare the container's file system"),
            )?
            .into_inner()
            .mounts;
        let volumes = self.volumes(new.id, new.config, &lease).await?;
        self.create_record(image, new, snapshotter, &mounts, &volumes)
            .await
    }

    /// The container's file system and those of its image volumes; none there is fine.
    async fn remove_snapshots(&self, id: &str, snapshotter: &str) -> Result<(), OciError> {
        self.remove_volumes(id, snapshotter).await?;
        self.containerd.remove_snapshot(snapshotter, id).await
    }

    /// Removes what was half made when containerd went away. The lease that holds it lives as long as this process.
    pub(super) async fn remove_torn(&self) -> Result<(), OciError> {
        let torn = std::mem::take(&mut *self.torn.lock());
        let mut torn = torn.into_iter();
        while let Some((id, snapshotter)) = torn.next() {
            match self.remove_snapshots(&id, &snapshotter).await {
                Ok(()) => {}
                Err(err @ OciError::Unavailable { .. }) => {
                    let mut left = self.torn.lock();
                    left.push((id, snapshotter));
                    left.extend(torn);
                    return Err(err);
                }
                Err(err) => {
                    tracing::warn!(error = %err, container = id, "What was half made of a container stays in containerd until this runtime ends");
                }
            }
        }
        Ok(())
    }

    async fn create_record(
        &self,
        image: &OciImage,
        new: &NewContainer<'_>,
        snapshotter: &str,
        mounts: &[Mount],
        volumes: &ImageVolumes,
    ) -> Result<OciRecord, OciError> {
        let accounts = Accounts {
            passwd: file_of(mounts, "etc/passwd"),
            group: file_of(mounts, "etc/group"),
        };
        let (spec, identity) = spec::spec(&Wanted {
            id: new.id,
            config: new.config,
            sandbox_id: new.sandbox_id,
            pod: new.pod,
            image,
            namespaces: new.namespaces,
            files: new.files,
            target_pid: new.target_pid,
            accounts: &accounts,
            volumes: &volumes.mounts,
            host: self.host(),
        })?;
        let options = RuncOptions {
            systemd_cgroup: spec::is_systemd(new.pod, self.host()),
        };
        let mut labels = self.labels(new);
        for (at, key) in volumes.keys.iter().enumerate() {
            // The view lives as long as the container's record.
            let label = format!("containerd.io/gc.ref.snapshot.{snapshotter}/{at}");
            labels.insert(label, key.clone());
        }
        let record = ContainerRecord {
            id: new.id.to_owned(),
            labels,
            image: image.name().to_owned(),
            runtime: Some(Runtime {
                name: RUNTIME.into(),
                options: Some(prost_types::Any {
                    type_url: "containerd.runc.v1.Options".into(),
                    value: options.encode_to_vec(),
                }),
            }),
            spec: Some(any(SPEC_TYPE, &spec)),
            snapshotter: snapshotter.to_owned(),
            snapshot_key: new.id.to_owned(),
            ..ContainerRecord::default()
        };
        let create = CreateContainerRequest {
            container: Some(record),
        };
        self.containerd
            .containers()
            .create(request(create))
            .await
            .map_err(self.containerd.failed("create the container"))?;
        Ok(OciRecord {
            snapshotter: snapshotter.to_owned(),
            identity,
            stop_signal: image.config.stop_signal.clone().unwrap_or_default(),
        })
    }

    fn labels(&self, new: &NewContainer<'_>) -> HashMap<String, String> {
        let pod = new.pod.metadata.clone().unwrap_or_default();
        let container = new.config.metadata.clone().unwrap_or_default();
        // containerd refuses labels beyond 4096 bytes, so the Pod's own stay with this runtime.
        HashMap::from([
            (OWNER.to_owned(), self.owner.clone()),
            ("io.kubernetes.pod.name".to_owned(), pod.name),
            ("io.kubernetes.pod.namespace".to_owned(), pod.namespace),
            ("io.kubernetes.pod.uid".to_owned(), pod.uid),
            ("io.kubernetes.container.name".to_owned(), container.name),
        ])
    }

    fn host(&self) -> &Host {
        self.host.get_or_init(|| Host {
            systemd_cgroup: self.cgroup_driver.is_systemd(),
            ..Host::look()
        })
    }

    /// Makes and starts the process; its output goes to `log` from the first byte.
    pub(crate) async fn start(
        &self,
        id: &str,
        container: &OciContainer,
        config: &ContainerConfig,
        dir: &Path,
        log: &Arc<ContainerLog>,
    ) -> Result<(), OciError> {
        let fifos = Fifos::below(&dir.join("io"), config.stdin, config.tty);
        let mut ends = fifos.make()?;
        let mounts = MountsRequest {
            snapshotter: container.record.snapshotter.clone(),
            key: id.to_owned(),
        };
        let rootfs = self
            .containerd
            .snapshots()
            .mounts(request(mounts))
            .await
            .map_err(self.containerd.failed("find the container's file system"))?
            .into_inner()
            .mounts;
        let create = CreateTaskRequest {
            container_id: id.to_owned(),
            rootfs,
            stdin: fifos.stdin.clone(),
            stdout: fifos.stdout.clone(),
            stderr: fifos.stderr.clone(),
            terminal: config.tty,
            ..CreateTaskRequest::default()
        };
        let created = self.create_task(create).await;
        let pid = created.map_err(self.containerd.failed("create the container's process"))?;
        ends.let_go();
        let pumps = Pumps::start(&mut ends, log);
        container.running(pid, pumps, ends.stdin.take());
        let start = StartRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
        };
        let started = self
            .containerd
            .tasks()
            .start(request(start))
            .await
            .map_err(self.containerd.failed("start the container's process"));
        if let Err(err) = started {
            self.delete_task(id).await?;
            return Err(err);
        }
        Ok(())
    }

    /// Makes a process that waits for its start; answers its number.
    ///
    /// One shim of containerd's looks after all containers of a Pod and ends with the last of them. A container that comes while it
    /// ends is led to an address where nobody is any more; nothing was made then, and the next one brings a shim of its own.
    async fn create_task(&self, create: CreateTaskRequest) -> Result<u32, Status> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self
                .containerd
                .tasks()
                .create(request(create.clone()))
                .await
            {
                Err(status) if is_ending_shim(&status) && tries < CREATE_TRIES => {
                    tracing::debug!(container = create.container_id, %status, "containerd's shim of the Pod is ending");
                    tokio::time::sleep(CREATE_PAUSE).await;
                }
                answer => return answer.map(|answer| answer.into_inner().pid),
            }
        }
    }

    /// Takes up a process that an earlier shim started.
    pub(super) fn readopt(
        &self,
        container: &OciContainer,
        config: &ContainerConfig,
        dir: &Path,
        log: &Arc<ContainerLog>,
        pid: u32,
    ) -> Result<(), OciError> {
        let fifos = Fifos::below(&dir.join("io"), config.stdin, config.tty);
        let mut ends = fifos.reopen()?;
        let pumps = Pumps::start(&mut ends, log);
        container.running(pid, pumps, ends.stdin.take());
        Ok(())
    }

    /// Whether this process reads the container's output already.
    pub(super) fn is_attended(container: &OciContainer) -> bool {
        container.live.lock().pumps.is_some()
    }

    /// What is left to do when the process has ended: returns its code and whether memory was the reason.
    pub(super) async fn clear_away(
        &self,
        id: &str,
        container: &OciContainer,
    ) -> Result<(Option<i32>, bool), OciError> {
        // The cgroup goes with the task.
        let out_of_memory = container.out_of_memory();
        // The processes of execs die with the container's first one; who waits for them is told before the task is gone.
        if tokio::time::timeout(EXEC_PATIENCE, container.execs.write())
            .await
            .is_err()
        {
            tracing::debug!(container = id, "An exec outlives its container");
        }
        let code = self.delete_task(id).await?;
        let pumps = {
            let mut live = container.live.lock();
            live.pid = None;
            live.stdin = None;
            live.pumps.take()
        };
        if let Some(pumps) = pumps {
            pumps.drained().await;
        }
        Ok((code, out_of_memory))
    }

    /// A start that failed half way: no task is left, and the log may be closed.
    pub(crate) async fn abandon(&self, id: &str, container: &OciContainer) -> Result<(), OciError> {
        self.clear_away(id, container).await?;
        Ok(())
    }

    /// Ends a task's entry in containerd; `None` when there was none.
    async fn delete_task(&self, id: &str) -> Result<Option<i32>, OciError> {
        match self.try_delete_task(id).await? {
            Deleted::Gone => return Ok(None),
            Deleted::Ended(code) => return Ok(Some(code)),
            // It was made and never ran, or runs still.
            Deleted::NotYet => {}
        }
        self.signal(id, libc::SIGKILL.unsigned_abs(), true).await?;
        self.wait(id).await?;
        let mut looks = 0;
        loop {
            match self.try_delete_task(id).await? {
                Deleted::Gone => return Ok(None),
                Deleted::Ended(code) => return Ok(Some(code)),
                // containerd's shim tells the end before it counts the process as ended.
                Deleted::NotYet if looks < DELETE_LOOKS => looks += 1,
                Deleted::NotYet => {
                    return Err(OciError::Refused(format!(
                        "container {id} was killed and does not end"
                    )));
                }
            }
            tokio::time::sleep(DELETE_PAUSE).await;
        }
    }

    async fn try_delete_task(&self, id: &str) -> Result<Deleted, OciError> {
        let delete = DeleteTaskRequest {
            container_id: id.to_owned(),
        };
        match self.containerd.tasks().delete(request(delete)).await {
            Ok(deleted) => Ok(Deleted::Ended(exit_code(deleted.into_inner().exit_status))),
            Err(status) if is_gone(&status) => Ok(Deleted::Gone),
            Err(status) if still_runs(&status) => Ok(Deleted::NotYet),
            Err(status) => Err(self.containerd.failed("end the container's task")(status)),
        }
    }

    /// Sends a signal; to a process that has ended already it is none.
    pub(crate) async fn signal(&self, id: &str, signal: u32, all: bool) -> Result<(), OciError> {
        let kill = KillRequest {
            container_id: id.to_owned(),
            signal,
            all,
            ..KillRequest::default()
        };
        match self.containerd.tasks().kill(request(kill)).await {
            Ok(_) => Ok(()),
            Err(status) if is_gone(&status) => Ok(()),
            Err(status) => Err(self.containerd.failed("signal the container")(status)),
        }
    }

    /// Waits for the end of the process; returns at once when there is none.
    pub(crate) async fn wait(&self, id: &str) -> Result<(), OciError> {
        let wait = WaitRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
        };
        match self.containerd.tasks().wait(request(wait)).await {
            Ok(_) => Ok(()),
            Err(status) if is_gone(&status) => Ok(()),
            Err(status) => Err(self.containerd.failed("wait for the container")(status)),
        }
    }

    pub(super) async fn task_state(&self, id: &str) -> Result<TaskState, OciError> {
        let get = GetRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
        };
        let process = match self.containerd.tasks().get(request(get)).await {
            Ok(found) => found.into_inner().process.unwrap_or_default(),
            Err(status) if is_gone(&status) => return Ok(TaskState::Absent),
            Err(status) => {
                return Err(self.containerd.failed("look at the container's task")(
                    status,
                ));
            }
        };
        Ok(match process.status() {
            TaskStatus::Created => TaskState::Created,
            TaskStatus::Running | TaskStatus::Paused | TaskStatus::Pausing => {
                TaskState::Running(process.pid)
            }
            TaskStatus::Stopped => TaskState::Stopped(exit_code(process.exit_status)),
            TaskStatus::Unknown => TaskState::Absent,
        })
    }

    /// Removes everything of a container from containerd; what is not there is removed already.
    pub(crate) async fn delete(&self, id: &str, snapshotter: &str) -> Result<(), OciError> {
        self.delete_task(id).await?;
        let delete = DeleteContainerRequest { id: id.to_owned() };
        match self.containerd.containers().delete(request(delete)).await {
            Ok(_) => {}
            Err(status) if status.code() == Code::NotFound => {}
            Err(status) => return Err(self.containerd.failed("remove the container")(status)),
        }
        self.remove_snapshots(id, snapshotter).await
    }

    pub(crate) async fn delete_container(
        &self,
        id: &str,
        container: &OciContainer,
    ) -> Result<(), OciError> {
        self.delete(id, &container.record.snapshotter).await
    }

    /// The same for one whose start went wrong, perhaps because containerd died over it: what it does not remember goes as well.
    pub(crate) async fn delete_thoroughly(
        &self,
        id: &str,
        snapshotter: &str,
    ) -> Result<(), OciError> {
        self.delete_task(id).await?;
        self.sweep(id).await?;
        self.delete(id, snapshotter).await
    }

    /// What runc was told of a container; nothing when containerd does not answer.
    pub(crate) async fn specification(&self, id: &str) -> Option<Spec> {
        let (_, spec) = self.spec_of(id).await.ok()?;
        Some(spec)
    }

    pub(super) async fn spec_of(&self, id: &str) -> Result<(ContainerRecord, Spec), OciError> {
        let get = GetContainerRequest { id: id.to_owned() };
        let record = self
            .containerd
            .containers()
            .get(request(get))
            .await
            .map_err(self.containerd.failed("find the container"))?
            .into_inner()
            .container
            .unwrap_or_default();
        let bytes = record.spec.as_ref().map_or(&[][..], |spec| &spec.value);
        let spec = serde_json::from_slice(bytes)
            .map_err(|err| OciError::damaged(format!("container {id}"), err))?;
        Ok((record, spec))
    }

    /// New limits: for the process that runs, and for the one that is yet to be made.
    pub(crate) async fn update(
        &self,
        id: &str,
        limits: &LinuxContainerResources,
        runs: bool,
    ) -> Result<(), OciError> {
        let resources = spec::limits(Some(limits), self.host())?;
        if runs {
            let update = UpdateTaskRequest {
                container_id: id.to_owned(),
                resources: Some(any(RESOURCES_TYPE, &resources)),
                annotations: HashMap::new(),
            };
            self.containerd
                .tasks()
                .update(request(update))
                .await
                .map_err(self.containerd.failed("change the container's limits"))?;
            return Ok(());
        }
        let (mut record, mut spec) = self.spec_of(id).await?;
        if let Some(linux) = spec.linux_mut() {
            let mut resources = resources;
            if let Some(before) = linux.resources() {
                resources.set_devices(before.devices().clone());
            }
            linux.set_resources(Some(resources));
        }
        record.spec = Some(any(SPEC_TYPE, &spec));
        let update = UpdateContainerRequest {
            container: Some(record),
            update_mask: Some(prost_types::FieldMask {
                paths: vec!["spec".into()],
            }),
        };
        self.containerd
            .containers()
            .update(request(update))
            .await
            .map_err(self.containerd.failed("change the container's limits"))?;
        Ok(())
    }

    /// Looks how much a container has written, unless it was looked a moment ago.
    pub(crate) async fn measure(&self, id: &str, container: &OciContainer) {
        let fresh = |at: &Instant| at.elapsed() < WRITABLE_AGE_MAX;
        if container
            .live
            .lock()
            .writable
            .as_ref()
            .is_some_and(|(at, _, _)| fresh(at))
        {
            return;
        }
        let usage = UsageRequest {
            snapshotter: container.record.snapshotter.clone(),
            key: id.to_owned(),
        };
        match self.containerd.snapshots().usage(request(usage)).await {
            Ok(usage) => {
                let usage = usage.into_inner();
                let unsigned = |value: i64| u64::try_from(value).unwrap_or(0);
                container.live.lock().writable =
                    Some((Instant::now(), unsigned(usage.size), unsigned(usage.inodes)));
            }
            Err(err) => {
                tracing::debug!(error = %err, container = id, "The writable layer could not be measured");
            }
        }
    }
}

/// What came of deleting a task.
enum Deleted {
    Gone,
    Ended(i32),
    NotYet,
}

/// containerd says it by the code, its shim by a sentence alone.
fn still_runs(status: &tonic::Status) -> bool {
    status.code() == Code::FailedPrecondition
        || status.message().contains("cannot delete a running process")
}

/// There is no such task, or its shim is just leaving: the connection to it closes between its last answer and its end.
fn is_gone(status: &tonic::Status) -> bool {
    status.code() == Code::NotFound || status.message().starts_with("ttrpc: closed")
}

/// A file of a container's root file system before it is mounted, found in its layers from the top. Empty when there is none.
fn file_of(mounts: &[Mount], path: &str) -> String {
    layers_of(mounts)
        .iter()
        .find_map(|layer| inside(layer, path))
        .unwrap_or_default()
}

/// The folders of a snapshot that is not mounted, the highest first.
pub(super) fn layers_of(mounts: &[Mount]) -> Vec<PathBuf> {
    let mut layers: Vec<PathBuf> = Vec::new();
    for mount in mounts {
        match mount.r#type.as_str() {
            "bind" | "rbind" => layers.push(PathBuf::from(&mount.source)),
            _ => {
                let option = |name: &str| {
                    mount
                        .options
                        .iter()
                        .find_map(|option| option.strip_prefix(name))
                };
                layers.extend(option("upperdir=").map(PathBuf::from));
                layers.extend(
                    option("lowerdir=")
                        .into_iter()
                        .flat_map(|dirs| dirs.split(':'))
                        .map(PathBuf::from),
                );
            }
        }
    }
    layers
}

/// Reads a file below `root`, whose links lead nowhere else.
fn inside(root: &Path, path: &str) -> Option<String> {
    use rustix::fs::{Mode, OFlags, ResolveFlags};
    use std::io::Read;
    const ACCOUNTS_BYTES_MAX: u64 = 4 << 20;
    let dir = std::fs::File::open(root).ok()?;
    let file = rustix::fs::openat2(
        &dir,
        path,
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK,
        Mode::empty(),
        ResolveFlags::IN_ROOT,
    )
    .ok()?;
    let file = std::fs::File::from(file);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(ACCOUNTS_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn account_files_come_from_the_highest_layer_and_no_link_leads_out() {
        let dir = tempfile::tempdir().unwrap();
        let layer = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.join("etc")).unwrap();
            path
        };
        let (top, low) = (layer("top"), layer("low"));
        std::fs::write(low.join("etc/passwd"), "low").unwrap();
        std::fs::write(low.join("etc/group"), "low").unwrap();
        std::fs::write(top.join("etc/passwd"), "top").unwrap();
        let mounts = [Mount {
            r#type: "overlay".into(),
            options: vec![
                "index=off".into(),
                format!("lowerdir={}:{}", top.display(), low.display()),
            ],
            ..Mount::default()
        }];
        assert_eq!(file_of(&mounts, "etc/passwd"), "top");
        assert_eq!(file_of(&mounts, "etc/group"), "low");
        assert_eq!(file_of(&mounts, "etc/shadow"), "");
        std::fs::write(dir.path().join("secret"), "secret").unwrap();
        std::os::unix::fs::symlink("../../secret", top.join("etc/shadow")).unwrap();
        assert_eq!(file_of(&mounts, "etc/shadow"), "");
    }
}
