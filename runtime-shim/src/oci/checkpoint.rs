//! Checkpoints of running containers: criu, below runc, writes memory and open files; with the container's own files, its
//! specification and its log they become one archive, in the form that other runtimes write and `checkpointctl` reads.
//!
//! The container goes on. A machine whose kernel criu does not know refuses in criu's words.

use std::collections::HashMap;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::services::v1::snapshots::{
    MountsRequest, StatSnapshotRequest, ViewSnapshotRequest,
};
use containerd_client::services::v1::{CheckpointTaskRequest, DiffRequest, ReadContentRequest};
use prost::Message;
use serde_json::json;

use super::Backend;
use super::client::{Lease, OciError, leased, request};
use super::task::OciContainer;

/// As containerd's diff service writes a layer that nobody compresses.
const DIFF_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
/// What criu says last, in an error.
const CRIU_LINES: usize = 3;

/// Options of runc's checkpoint (`containerd.runc.v1.CheckpointOptions`), as far as they are set here.
#[derive(Clone, PartialEq, Message)]
struct CheckpointOptions {
    #[prost(bool, tag = "5")]
    file_locks: bool,
    #[prost(string, tag = "8")]
    image_path: String,
    #[prost(string, tag = "9")]
    work_path: String,
}

/// What a checkpoint is made of, besides what containerd knows.
pub(crate) struct Checkpoint<'a> {
    pub(crate) id: &'a str,
    pub(crate) name: &'a str,
    pub(crate) image: &'a str,
    pub(crate) image_ref: &'a str,
    /// RFC 3339.
    pub(crate) created: String,
    pub(crate) now: String,
    pub(crate) started_nanos: i64,
    /// The archive to write.
    pub(crate) location: &'a Path,
    pub(crate) log: Option<PathBuf>,
    /// How long criu may take; zero: any time.
    pub(crate) timeout: Duration,
}

impl Backend {
    /// Writes a checkpoint of a container that runs.
    pub(crate) async fn checkpoint(
        &self,
        wanted: &Checkpoint<'_>,
        container: &OciContainer,
    ) -> Result<(), OciError> {
        let folder = wanted.location.parent().filter(|dir| dir.is_absolute());
        let folder = folder.ok_or_else(|| {
            OciError::Refused(format!(
                "a checkpoint is written to an absolute path, not to {:?}",
                wanted.location.display().to_string()
            ))
        })?;
        // Beside the archive, where there is room for the container's memory; the state folder is memory itself.
        let work = tempfile::Builder::new()
            .prefix(".checkpoint")
            .tempdir_in(folder)
            .map_err(OciError::io("make a folder for the checkpoint"))?;
        self.dump(wanted, work.path()).await?;
        let lease = self.containerd.lease().await?;
        let described = self.describe(wanted, container, work.path(), &lease).await;
        self.containerd.end_lease(lease).await;
        described?;
        let (dir, location) = (work.path().to_owned(), wanted.location.to_owned());
        let log = wanted.log.clone();
        let packed = tokio::task::spawn_blocking(move || pack(&dir, log.as_deref(), &location));
        packed
            .await
            .map_err(std::io::Error::other)
            .and_then(|packed| packed)
            .map_err(OciError::io("write the checkpoint's archive"))
    }

    /// Has criu write the processes.
    async fn dump(&self, wanted: &Checkpoint<'_>, work: &Path) -> Result<(), OciError> {
        let (image, logs) = (work.join("checkpoint"), work.join("criu"));
        for dir in [&image, &logs] {
            std::fs::create_dir(dir).map_err(OciError::io("make a folder for the checkpoint"))?;
        }
        let options = CheckpointOptions {
            file_locks: true,
            image_path: image.display().to_string(),
            work_path: logs.display().to_string(),
        };
        let ask = CheckpointTaskRequest {
            container_id: wanted.id.to_owned(),
            options: Some(prost_types::Any {
                type_url: "containerd.runc.v1.CheckpointOptions".into(),
                value: options.encode_to_vec(),
            }),
            ..CheckpointTaskRequest::default()
        };
        let mut tasks = self.containerd.tasks();
        let asked = tasks.checkpoint(request(ask));
        let answered = match wanted.timeout.is_zero() {
            true => asked.await,
            false => tokio::time::timeout(wanted.timeout, asked)
                .await
                .map_err(|_| {
                    OciError::Checkpoint(format!("it was not done after {:?}", wanted.timeout))
                })?,
        };
        let Err(status) = answered else {
            return Ok(());
        };
        if let err @ OciError::Unavailable { .. } =
            self.containerd.failed("checkpoint the container")(status.clone())
        {
            return Err(err);
        }
        let log = std::fs::read_to_string(logs.join("dump.log")).unwrap_or_default();
        Err(OciError::Checkpoint(why(status.message(), &log)))
    }

    /// The files beside criu's: what the container is, how it stands, and what it has written.
    async fn describe(
        &self,
        wanted: &Checkpoint<'_>,
        container: &OciContainer,
        work: &Path,
        lease: &Lease,
    ) -> Result<(), OciError> {
        let (record, _) = self.spec_of(wanted.id).await?;
        let config = json!({
            "id": wanted.id,
            "name": wanted.name,
            "rootfsImage": wanted.image,
            "rootfsImageRef": wanted.image_ref,
            "rootfsImageName": record.image,
            "runtime": record.runtime.map(|runtime| runtime.name).unwrap_or_default(),
            "createdTime": wanted.created,
            "checkpointedTime": wanted.now,
            "restoredTime": "0001-01-01T00:00:00Z",
            "restored": false,
        });
        let status = json!({
            "StartedAt": wanted.started_nanos,
            "FinishedAt": 0,
            "ExitCode": 0,
            "Pid": container.pid(),
        });
        let spec = record.spec.map(|spec| spec.value).unwrap_or_default();
        let write = |name: &str, bytes: &[u8]| {
            std::fs::write(work.join(name), bytes).map_err(OciError::io("write the checkpoint"))
        };
        write("config.dump", config.to_string().as_bytes())?;
        write("status.dump", status.to_string().as_bytes())?;
        write("spec.dump", &spec)?;
        let snapshotter = container.snapshotter();
        let view = format!("checkpoint-{}", uuid::Uuid::new_v4().simple());
        let written = self.written_files(wanted.id, snapshotter, &view, work, lease);
        let written = written.await;
        self.containerd.remove_snapshot(snapshotter, &view).await?;
        written
    }

    /// What the container has changed of its image's files, as a layer.
    async fn written_files(
        &self,
        id: &str,
        snapshotter: &str,
        view: &str,
        work: &Path,
        lease: &Lease,
    ) -> Result<(), OciError> {
        const VERB: &str = "compare the container's files with its image's";
        let stat = StatSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: id.to_owned(),
        };
        let found = self.containerd.snapshots().stat(request(stat)).await;
        let found = found.map_err(self.containerd.failed(VERB))?.into_inner();
        let below = ViewSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: view.to_owned(),
            parent: found.info.unwrap_or_default().parent,
            labels: HashMap::new(),
        };
        let below = self.containerd.snapshots().view(leased(below, lease)).await;
        let below = below.map_err(self.containerd.failed(VERB))?.into_inner();
        let own = MountsRequest {
            snapshotter: snapshotter.to_owned(),
            key: id.to_owned(),
        };
        let own = self.containerd.snapshots().mounts(request(own)).await;
        let own = own.map_err(self.containerd.failed(VERB))?.into_inner();
        let diff = DiffRequest {
            left: below.mounts,
            right: own.mounts,
            media_type: DIFF_TYPE.into(),
            r#ref: view.to_owned(),
            ..DiffRequest::default()
        };
        let diff = self.containerd.diff().diff(leased(diff, lease)).await;
        let diff = diff.map_err(self.containerd.failed(VERB))?.into_inner();
        let digest = diff.diff.unwrap_or_default().digest;
        let mut file = std::fs::File::create(work.join("rootfs-diff.tar"))
            .map_err(OciError::io("write the checkpoint"))?;
        let read = ReadContentRequest {
            digest,
            offset: 0,
            size: 0,
        };
        let parts = self.containerd.content().read(request(read)).await;
        let mut parts = parts.map_err(self.containerd.failed(VERB))?.into_inner();
        while let Some(part) = parts
            .message()
            .await
            .map_err(self.containerd.failed(VERB))?
        {
            file.write_all(&part.data)
                .map_err(OciError::io("write the checkpoint"))?;
        }
        Ok(())
    }
}

/// runc's sentence, and the last errors that criu wrote down.
fn why(message: &str, log: &str) -> String {
    let errors: Vec<&str> = log
        .lines()
        .filter_map(|line| line.split_once("Error (").map(|(_, rest)| rest))
        .collect();
    let last = errors.iter().skip(errors.len().saturating_sub(CRIU_LINES));
    let said: Vec<String> = last.map(|line| format!("({line}")).collect();
    // Where the log was is of no use: the folder is gone with the attempt.
    let message = message.split(" path= ").next().unwrap_or(message);
    match said.is_empty() {
        true => message.to_owned(),
        false => format!("{message}; criu: {}", said.join("; ")),
    }
}

/// Puts everything into one archive, readable by nobody else: it holds the container's memory.
fn pack(work: &Path, log: Option<&Path>, location: &Path) -> std::io::Result<()> {
    let draft = tempfile::NamedTempFile::new_in(work)?;
    let mut archive = tar::Builder::new(draft);
    archive.follow_symlinks(false);
    for name in ["config.dump", "spec.dump", "status.dump", "rootfs-diff.tar"] {
        archive.append_path_with_name(work.join(name), name)?;
    }
    archive.append_dir_all("checkpoint", work.join("checkpoint"))?;
    for name in ["dump.log", "stats-dump"] {
        let file = work.join("criu").join(name);
        if file.exists() {
            archive.append_path_with_name(file, name)?;
        }
    }
    if let Some(log) = log.filter(|log| log.exists()) {
        // The log grows meanwhile: as much as is there now, which the archive's header says.
        let mut file = std::fs::File::open(log)?;
        let len = file.seek(SeekFrom::End(0))?;
        file.rewind()?;
        let mut header = tar::Header::new_gnu();
        header.set_size(len);
        header.set_mode(0o600);
        header.set_cksum();
        let part = std::io::Read::take(&mut file, len);
        archive.append_data(&mut header, "container.log", part)?;
    }
    let draft = archive.into_inner()?;
    draft.as_file().sync_all()?;
    draft.persist(location).map_err(|err| err.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_in_criu_s_words() {
        let log =
            "(00.01) ok\n(00.02) Error (criu/vdso.c:1): one\n(00.03) Error (criu/mem.c:2): two\n";
        assert_eq!(
            why(
                "criu failed: type NOTIFY errno 0 path= /run/x/criu-dump.log: unknown",
                log
            ),
            "criu failed: type NOTIFY errno 0; criu: (criu/vdso.c:1): one; (criu/mem.c:2): two"
        );
        assert_eq!(why("criu is not there", ""), "criu is not there");
    }

    #[test]
    fn an_archive_holds_the_whole_log_and_replaces_an_older_one() {
        let dir = tempfile::tempdir().unwrap();
        let work = dir.path().join("work");
        std::fs::create_dir_all(work.join("checkpoint")).unwrap();
        for name in ["config.dump", "spec.dump", "status.dump", "rootfs-diff.tar"] {
            std::fs::write(work.join(name), name).unwrap();
        }
        std::fs::write(work.join("checkpoint/pages-1.img"), "pages").unwrap();
        let log = dir.path().join("0.log");
        std::fs::write(&log, "line\n").unwrap();
        let location = dir.path().join("c.tar");
        std::fs::write(&location, "older").unwrap();
        pack(&work, Some(&log), &location).unwrap();
        let mut archive = tar::Archive::new(std::fs::File::open(&location).unwrap());
        let mut found: Vec<(String, u64)> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                (entry.path().unwrap().display().to_string(), entry.size())
            })
            .collect();
        found.sort();
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            [
                "checkpoint/",
                "checkpoint/pages-1.img",
                "config.dump",
                "container.log",
                "rootfs-diff.tar",
                "spec.dump",
                "status.dump"
            ]
        );
        assert!(found.contains(&("container.log".into(), 5)));
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(&location).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
