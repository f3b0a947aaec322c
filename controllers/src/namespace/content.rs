//! One pass over everything in a namespace: deletes, then counts what is still there.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use kube::api::{DeleteParams, ListParams};
use kube::core::PartialObjectMeta;
use kube::{Api, api::DynamicObject};

use crate::discovery::{Catalog, Served};

/// Resources that are handled at once.
const CONCURRENT_MAX: usize = 8;

/// What a pass left.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pass {
    /// Objects by `resource.group`.
    pub(super) remaining: BTreeMap<String, usize>,
    /// Objects by finalizer.
    pub(super) finalizers: BTreeMap<String, usize>,
    /// The longest grace period of the pods that remain; absent when there are none.
    pub(super) pod_grace: Option<Duration>,
    /// Resources that could not be deleted or counted, and why.
    pub(super) errors: Vec<String>,
}

/// Pods first; the rest follows in the pass in which no pod is left.
pub(super) async fn delete_all(client: &kube::Client, namespace: &str, catalog: &Catalog) -> Pass {
    let mut pass = Pass::default();
    let deletable = catalog
        .preferred
        .iter()
        .filter(|served| served.namespaced && served.supports("list") && served.supports("delete"));
    let (pods, others): (Vec<_>, Vec<_>) = deletable.partition(|served| is_pods(served));
    for group in [pods, others] {
        // Boxed one by one: the compiler cannot see that a closure over borrowed resources is general enough here.
        let mut deletions: Vec<BoxFuture<'_, _>> = Vec::with_capacity(group.len());
        for served in group {
            deletions.push(Box::pin(async move {
                (served, delete(client, namespace, served).await)
            }));
        }
        let mut results = futures::stream::iter(deletions).buffer_unordered(CONCURRENT_MAX);
        while let Some((served, result)) = results.next().await {
            match result {
                Ok(left) => pass.add(served, &left),
                Err(error) => pass.errors.push(format!("{}: {error}", label(served))),
            }
        }
        if !pass.remaining.is_empty() || !pass.errors.is_empty() {
            break;
        }
    }
    pass.errors.sort();
    pass
}

/// Deletes what there is of a resource and returns what is left after that.
async fn delete(
    client: &kube::Client,
    namespace: &str,
    served: &Served,
) -> Result<Vec<PartialObjectMeta>, kube::Error> {
    let api = Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &served.resource);
    let present = list(&api).await?;
    let fresh: Vec<_> = present
        .iter()
        .filter(|object| object.metadata.deletion_timestamp.is_none())
        .collect();
    if fresh.is_empty() {
        return Ok(present);
    }
    let params = DeleteParams::background();
    if served.supports("deletecollection") {
        api.delete_collection(&params, &ListParams::default())
            .await
            .map(drop)?;
    } else {
        for object in fresh {
            let name = object.metadata.name.as_deref().unwrap_or_default();
            match api.delete(name, &params).await {
                Ok(_) => {}
                Err(error) if cox_client::is_not_found(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
    list(&api).await
}

async fn list(api: &Api<DynamicObject>) -> Result<Vec<PartialObjectMeta>, kube::Error> {
    match api.list_metadata(&ListParams::default()).await {
        Ok(list) => Ok(list.items),
        // A resource that is no longer served has nothing left.
        Err(error) if cox_client::is_not_found(&error) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

impl Pass {
    fn add(&mut self, served: &Served, left: &[PartialObjectMeta]) {
        if left.is_empty() {
            return;
        }
        self.remaining.insert(label(served), left.len());
        for object in left {
            for finalizer in object.metadata.finalizers.iter().flatten() {
                *self.finalizers.entry(finalizer.clone()).or_default() += 1;
            }
            if is_pods(served) {
                let secs = object
                    .metadata
                    .deletion_grace_period_seconds
                    .unwrap_or_default();
                let grace = Duration::from_secs(u64::try_from(secs).unwrap_or_default());
                self.pod_grace = self.pod_grace.max(Some(grace));
            }
        }
    }
}

fn is_pods(served: &Served) -> bool {
    served.resource.group.is_empty() && served.resource.plural == "pods"
}

/// `pods.` and `deployments.apps`, as upstream's conditions name them.
fn label(served: &Served) -> String {
    format!("{}.{}", served.resource.plural, served.resource.group)
}
