//! From layers to snapshots: each layer is applied on top of the one below and named by the chain of all uncompressed digests.

use containerd_client::services::v1::ApplyRequest;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, ListSnapshotsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest,
    StatSnapshotRequest, UsageRequest,
};
use containerd_client::types::Descriptor;
use sha2::{Digest as _, Sha256};
use tonic::Code;

use super::client::{Containerd, Lease, OciError, leased, request};
use crate::images::Digest;

/// The names of an image's snapshots, lowest first.
pub(super) fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let id = match chain.last() {
            None => diff_id.clone(),
            Some(below) => {
                let hasher = Sha256::new_with_prefix(format!("{below} {diff_id}"));
                Digest::from_hasher(hasher).to_string()
            }
        };
        chain.push(id);
    }
    chain
}

/// One layer to put on top of `parent`.
pub(super) struct Layer<'a> {
    pub(super) descriptor: Descriptor,
    pub(super) diff_id: &'a str,
    pub(super) chain_id: &'a str,
    /// Empty for the lowest.
    pub(super) parent: &'a str,
}

impl Containerd {
    pub(super) async fn has_snapshot(
        &self,
        snapshotter: &str,
        key: &str,
    ) -> Result<bool, OciError> {
        let stat = StatSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
        };
        match self.snapshots().stat(request(stat)).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(self.failed("look for a snapshot")(status)),
        }
    }

    /// Applies one layer; one that is there already costs a look.
    pub(super) async fn unpack_layer(
        &self,
        lease: &Lease,
        snapshotter: &str,
        layer: Layer<'_>,
    ) -> Result<(), OciError> {
        if self.has_snapshot(snapshotter, layer.chain_id).await? {
            return self
                .adopt_snapshot(lease, snapshotter, layer.chain_id)
                .await;
        }
        let key = format!(
            "extract-{} {}",
            uuid::Uuid::new_v4().simple(),
            layer.chain_id
        );
        let prepare = PrepareSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.clone(),
            parent: layer.parent.to_owned(),
            labels: [(
                "containerd.io/snapshot.ref".to_owned(),
                layer.chain_id.to_owned(),
            )]
            .into(),
        };
        let mounts = self
            .snapshots()
            .prepare(leased(prepare, lease))
            .await
            .map_err(self.failed("prepare a snapshot"))?
            .into_inner()
            .mounts;
        let applied = self.apply(lease, &layer, mounts).await;
        let committed = match applied {
            Ok(()) => {
                self.commit_layer(lease, snapshotter, &key, layer.chain_id)
                    .await
            }
            Err(err) => Err(err),
        };
        if committed.is_err() {
            self.remove_snapshot(snapshotter, &key).await?;
        }
        committed
    }

    async fn apply(
        &self,
        lease: &Lease,
        layer: &Layer<'_>,
        mounts: Vec<containerd_client::types::Mount>,
    ) -> Result<(), OciError> {
        let apply = ApplyRequest {
            diff: Some(layer.descriptor.clone()),
            mounts,
            ..ApplyRequest::default()
        };
        let applied = self
            .diff()
            .apply(leased(apply, lease))
            .await
            .map_err(self.failed("unpack a layer"))?
            .into_inner()
            .applied
            .unwrap_or_default();
        if applied.digest == layer.diff_id {
            return Ok(());
        }
        Err(OciError::damaged(
            format!("layer {}", layer.descriptor.digest),
            format!(
                "its content is {}, the image says {}",
                applied.digest, layer.diff_id
            ),
        ))
    }

    async fn commit_layer(
        &self,
        lease: &Lease,
        snapshotter: &str,
        key: &str,
        chain_id: &str,
    ) -> Result<(), OciError> {
        let commit = CommitSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            name: chain_id.to_owned(),
            key: key.to_owned(),
            labels: [("containerd.io/snapshot.ref".to_owned(), chain_id.to_owned())].into(),
        };
        match self.snapshots().commit(leased(commit, lease)).await {
            Ok(_) => Ok(()),
            // Another client unpacked the same layer meanwhile.
            Err(status) if status.code() == Code::AlreadyExists => {
                self.remove_snapshot(snapshotter, key).await?;
                self.adopt_snapshot(lease, snapshotter, chain_id).await
            }
            Err(status) => Err(self.failed("commit a snapshot")(status)),
        }
    }

    async fn adopt_snapshot(
        &self,
        lease: &Lease,
        snapshotter: &str,
        key: &str,
    ) -> Result<(), OciError> {
        use containerd_client::services::v1::{AddResourceRequest, Resource};
        let add = AddResourceRequest {
            id: lease.id(),
            resource: Some(Resource {
                id: key.to_owned(),
                r#type: format!("snapshots/{snapshotter}"),
            }),
        };
        match self.leases().add_resource(request(add)).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => Ok(()),
            Err(status) => Err(self.failed("lease a snapshot")(status)),
        }
    }

    /// Bytes and files of all snapshots.
    pub(super) async fn snapshots_usage(&self, snapshotter: &str) -> Result<(u64, u64), OciError> {
        let list = ListSnapshotsRequest {
            snapshotter: snapshotter.to_owned(),
            filters: Vec::new(),
        };
        let mut parts = self
            .snapshots()
            .list(request(list))
            .await
            .map_err(self.failed("list snapshots"))?
            .into_inner();
        let (mut bytes, mut files) = (0, 0);
        while let Some(part) = parts
            .message()
            .await
            .map_err(self.failed("list snapshots"))?
        {
            for info in part.info {
                let usage = UsageRequest {
                    snapshotter: snapshotter.to_owned(),
                    key: info.name,
                };
                // It may be gone by now.
                if let Ok(usage) = self.snapshots().usage(request(usage)).await {
                    let usage = usage.into_inner();
                    bytes += u64::try_from(usage.size).unwrap_or(0);
                    files += u64::try_from(usage.inodes).unwrap_or(0);
                }
            }
        }
        Ok((bytes, files))
    }

    /// Removes a snapshot; one that is not there is removed already.
    pub(super) async fn remove_snapshot(
        &self,
        snapshotter: &str,
        key: &str,
    ) -> Result<(), OciError> {
        let remove = RemoveSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
        };
        match self.snapshots().remove(request(remove)).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(self.failed("remove a snapshot")(status)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_named_by_all_layers_below() {
        let diff = |text: &str| Digest::of(text.as_bytes()).to_string();
        let diffs = [diff("a"), diff("b"), diff("c")];
        let chain = chain_ids(&diffs);
        assert_eq!(chain[0], diffs[0]);
        let second = Digest::of(format!("{} {}", diffs[0], diffs[1]).as_bytes());
        assert_eq!(chain[1], second.as_str());
        let third = Digest::of(format!("{} {}", chain[1], diffs[2]).as_bytes());
        assert_eq!(chain[2], third.as_str());
        assert!(chain_ids(&[]).is_empty());
    }
}
