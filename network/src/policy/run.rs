//! The task that keeps policies: nothing beside a watch of them as long as there are none.

use std::net::SocketAddr;
use std::path::PathBuf;

use cox_client::{Informer, Informers};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;

use super::compile::{Cluster, compile};
use super::isolation::{Isolation, NewPod, with_new};
use super::kernel::Kernel;
use super::{Policy, table};
use crate::table::TableFile;
use crate::{RETRY_PAUSE, SYNC_PAUSE, SyncError, drain};

/// What it is told.
pub(crate) struct Config {
    pub(crate) node: String,
    /// Where the runtime shim looks.
    pub(crate) file: PathBuf,
    /// Whether Pods with a namespace may run here, and this process may change the node's network.
    pub(crate) in_kernel: bool,
    /// Where the node answers for names.
    pub(crate) dns: Option<SocketAddr>,
    /// By which Pods that start are told of.
    pub(crate) isolation: Isolation,
}

/// All Pods and namespaces: read only where there are policies to understand.
struct Members {
    pods: Informer<Pod>,
    namespaces: Informer<Namespace>,
}

/// Runs until it is dropped.
pub(crate) async fn run(config: Config, informers: Informers) {
    let policies = informers.of::<NetworkPolicy>();
    policies.synced().await;
    let mut changes = policies.subscribe();
    let mut held = Held {
        kernel: config
            .in_kernel
            .then(|| Kernel::new(config.dns.map(|addr| addr.ip()))),
        file: TableFile::new(config.file.clone()),
        dns: config.dns,
    };
    held.bring(&[], &Cluster::new(Vec::new(), Vec::new(), &config.node))
        .await;
    while policies.is_empty() {
        tokio::select! {
            change = changes.next() => if change.is_none() {
                return std::future::pending().await;
            },
            // Nothing to wait for: to be dropped is an answer.
            () = config.isolation.asked() => drop(config.isolation.take()),
        }
    }
    let members = Members {
        pods: informers.of(),
        namespaces: informers.of(),
    };
    tokio::join!(members.pods.synced(), members.namespaces.synced());
    let mut pods = members.pods.subscribe();
    let mut namespaces = members.namespaces.subscribe();
    let mut new: Vec<NewPod> = Vec::new();
    loop {
        drain(&mut changes);
        drain(&mut pods);
        drain(&mut namespaces);
        new.extend(config.isolation.take());
        let all = with_new(members.pods.list(), &mut new);
        let cluster = Cluster::new(all, members.namespaces.list(), &config.node);
        let compiled = compile(&policies.list(), &cluster);
        held.bring(&compiled, &cluster).await;
        new.iter_mut().for_each(NewPod::done);
        tokio::time::sleep(SYNC_PAUSE).await;
        let open = tokio::select! {
            change = changes.next() => change.is_some(),
            change = pods.next(), if !policies.is_empty() => change.is_some(),
            change = namespaces.next(), if !policies.is_empty() => change.is_some(),
            () = config.isolation.asked() => true,
        };
        if !open {
            // Informers end only when everything does.
            return std::future::pending().await;
        }
    }
}

/// Where policies are kept.
struct Held {
    kernel: Option<Kernel>,
    file: TableFile,
    dns: Option<SocketAddr>,
}

impl Held {
    /// Tries until it is done: what was allowed before must not stay so.
    async fn bring(&mut self, policies: &[Policy], cluster: &Cluster) {
        while let Err(error) = self.sync(policies, cluster).await {
            tracing::warn!(%error, "Network policies could not be brought up to date; trying again");
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        tracing::debug!(policies = policies.len(), "Network policies are up to date");
    }

    async fn sync(&mut self, policies: &[Policy], cluster: &Cluster) -> Result<(), SyncError> {
        self.file.replace(table::render(policies, self.dns))?;
        if let Some(kernel) = &mut self.kernel {
            kernel.sync(policies, &cluster.local()).await?;
        }
        Ok(())
    }
}
