//! containerd's content store: reading blobs, and writing them so that a cut-off download goes on where it ended.

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};
use containerd_client::services::v1::{
    Info, InfoRequest, ReadContentRequest, UpdateRequest, WriteAction, WriteContentRequest,
    WriteContentResponse,
};
use futures::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::client::{Containerd, Lease, OciError, leased, request};

/// Manifests and configurations; larger ones are no such thing.
const DOCUMENT_BYTES_MAX: usize = 8 << 20;
/// Bytes per message of a write.
const CHUNK_BYTES: usize = 512 << 10;

/// A blob on its way in.
pub(super) struct Incoming<'a> {
    pub(super) digest: &'a str,
    pub(super) size: u64,
    pub(super) labels: HashMap<String, String>,
}

/// An open write: containerd has `offset` bytes of the blob already.
pub(super) struct Ingest {
    containerd: Containerd,
    requests: mpsc::Sender<WriteContentRequest>,
    responses: Streaming<WriteContentResponse>,
    template: WriteContentRequest,
    offset: i64,
    pending: BytesMut,
}

impl Containerd {
    /// A small blob as a whole.
    pub(super) async fn document(&self, digest: &str) -> Result<Vec<u8>, OciError> {
        let read = ReadContentRequest {
            digest: digest.to_owned(),
            offset: 0,
            size: 0,
        };
        let mut parts = self
            .content()
            .read(request(read))
            .await
            .map_err(self.failed("read content"))?
            .into_inner();
        let mut bytes = Vec::new();
        while let Some(part) = parts.message().await.map_err(self.failed("read content"))? {
            bytes.extend_from_slice(&part.data);
            if bytes.len() > DOCUMENT_BYTES_MAX {
                return Err(OciError::damaged(digest, "it is too large for a manifest"));
            }
        }
        Ok(bytes)
    }

    /// What containerd knows of a blob; `None` when it has none.
    pub(super) async fn blob_info(&self, digest: &str) -> Result<Option<Info>, OciError> {
        let info = InfoRequest {
            digest: digest.to_owned(),
        };
        match self.content().info(request(info)).await {
            Ok(found) => Ok(found.into_inner().info),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(self.failed("look for content")(status)),
        }
    }

    /// Adds labels to a blob that is there. Content that another client brought has to be tied to what it belongs to as well.
    pub(super) async fn label_blob(
        &self,
        digest: &str,
        labels: &HashMap<String, String>,
    ) -> Result<(), OciError> {
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let update = UpdateRequest {
            info: Some(Info {
                digest: digest.to_owned(),
                labels: labels.clone(),
                ..Info::default()
            }),
            update_mask: Some(prost_types::FieldMask { paths }),
        };
        self.content()
            .update(request(update))
            .await
            .map_err(self.failed("label content"))?;
        Ok(())
    }

    /// Writes a small blob.
    pub(super) async fn put_document(
        &self,
        lease: &Lease,
        blob: Incoming<'_>,
        bytes: Bytes,
    ) -> Result<(), OciError> {
        let labels = blob.labels.clone();
        let digest = blob.digest;
        if self.blob_info(digest).await?.is_none()
            && let Some(mut ingest) = self.ingest(lease, blob).await?
        {
            if ingest.offset() > 0 {
                ingest.restart().await?;
            }
            ingest.write(&bytes).await?;
            ingest.commit().await?;
        }
        self.adopt_blob(lease, digest).await?;
        if labels.is_empty() {
            return Ok(());
        }
        self.label_blob(digest, &labels).await
    }

    /// Puts a blob that was there already under the lease.
    pub(super) async fn adopt_blob(&self, lease: &Lease, digest: &str) -> Result<(), OciError> {
        use containerd_client::services::v1::{AddResourceRequest, Resource};
        let add = AddResourceRequest {
            id: lease.id(),
            resource: Some(Resource {
                id: digest.to_owned(),
                r#type: "content".into(),
            }),
        };
        match self.leases().add_resource(request(add)).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => Ok(()),
            Err(status) => Err(self.failed("lease content")(status)),
        }
    }

    /// Opens a write, where an earlier one of the same blob may have got some way. `None`: the blob is there already.
    pub(super) async fn ingest(
        &self,
        lease: &Lease,
        blob: Incoming<'_>,
    ) -> Result<Option<Ingest>, OciError> {
        let template = WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: format!("layer-{}", blob.digest),
            total: i64::try_from(blob.size).unwrap_or(0),
            expected: blob.digest.to_owned(),
            offset: 0,
            data: Vec::new(),
            labels: blob.labels,
        };
        // One message waits while one is under way: the download waits for containerd, not the memory.
        let (requests, queue) = mpsc::channel(1);
        requests
            .try_send(template.clone())
            .expect("the queue is new and empty");
        let opened = self
            .content()
            .write(leased(ReceiverStream::new(queue), lease))
            .await;
        let mut responses = match opened {
            Ok(responses) => responses.into_inner(),
            Err(status) => return self.unless_present(status),
        };
        let first = match responses.message().await {
            Ok(first) => first,
            Err(status) => return self.unless_present(status),
        };
        let offset = first.map_or(0, |first| first.offset);
        Ok(Some(Ingest {
            containerd: self.clone(),
            requests,
            responses,
            template,
            offset,
            pending: BytesMut::new(),
        }))
    }

    fn unless_present(&self, status: Status) -> Result<Option<Ingest>, OciError> {
        if status.code() == Code::AlreadyExists {
            return Ok(None);
        }
        Err(self.failed("write content")(status))
    }
}

impl Ingest {
    pub(super) fn offset(&self) -> u64 {
        u64::try_from(self.offset).unwrap_or(0)
    }

    /// Begins anew: the source cannot go on in the middle.
    pub(super) async fn restart(&mut self) -> Result<(), OciError> {
        // A write at zero truncates what was there.
        self.offset = 0;
        self.send(WriteAction::Write, Bytes::new()).await
    }

    /// Writes everything that comes, and tells how much is here after each piece.
    pub(super) async fn write_all<E: std::fmt::Display>(
        &mut self,
        mut source: impl Stream<Item = Result<Bytes, E>> + Unpin,
        tell: impl Fn(u64),
    ) -> Result<(), OciError> {
        while let Some(part) = source.next().await {
            let part =
                part.map_err(|err| OciError::Refused(format!("the download broke: {err}")))?;
            self.write(&part).await?;
            tell(self.offset() + self.pending.len() as u64);
        }
        Ok(())
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), OciError> {
        self.pending.extend_from_slice(bytes);
        while self.pending.len() >= CHUNK_BYTES {
            let chunk = self.pending.split_to(CHUNK_BYTES).freeze();
            self.send(WriteAction::Write, chunk).await?;
        }
        Ok(())
    }

    /// Ends the write; containerd checks the digest.
    pub(super) async fn commit(mut self) -> Result<(), OciError> {
        let rest = self.pending.split().freeze();
        if !rest.is_empty() {
            self.send(WriteAction::Write, rest).await?;
        }
        self.send(WriteAction::Commit, Bytes::new()).await
    }

    async fn send(&mut self, action: WriteAction, data: Bytes) -> Result<(), OciError> {
        let len = i64::try_from(data.len()).unwrap_or(0);
        let message = WriteContentRequest {
            action: action.into(),
            offset: self.offset,
            data: data.to_vec(),
            ..self.template.clone()
        };
        // When the queue is closed the stream has ended, and its response says why.
        let queued = self.requests.send(message).await;
        match self.responses.message().await {
            Ok(Some(_)) if queued.is_ok() => {
                self.offset += len;
                Ok(())
            }
            Ok(_) => Err(OciError::damaged(
                &self.template.expected,
                "containerd ended the write early",
            )),
            Err(status)
                if action == WriteAction::Commit && status.code() == Code::AlreadyExists =>
            {
                Ok(())
            }
            Err(status) => Err(self.containerd.failed("write content")(status)),
        }
    }
}
