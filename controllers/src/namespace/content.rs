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

/// Objects listed and deleted at a time: a namespace may hold more than fits in memory twice.
const PAGE_LEN: u32 = 500;

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
                Ok(left) => pass.add(served, left),
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

/// Deletes what there is of a resource, page by page, and returns what is left after that.
async fn delete(
    client: &kube::Client,
    namespace: &str,
    served: &Served,
) -> Result<Left, kube::Error> {
    let api = Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &served.resource);
    let mut left = Left::default();
    let mut deleted = false;
    let mut pages = Pages::of(&api);
    while let Some((page, present)) = pages.next().await? {
        let fresh: Vec<_> = present
            .iter()
            .filter(|object| object.metadata.deletion_timestamp.is_none())
            .collect();
        if !fresh.is_empty() {
            deleted = true;
            delete_page(&api, served, &page, &fresh).await?;
        }
        left.add(&present);
    }
    if !deleted {
        return Ok(left);
    }
    let mut left = Left::default();
    let mut pages = Pages::of(&api);
    while let Some((_, present)) = pages.next().await? {
        left.add(&present);
    }
    Ok(left)
}

async fn delete_page(
    api: &Api<DynamicObject>,
    served: &Served,
    page: &ListParams,
    fresh: &[&PartialObjectMeta],
) -> Result<(), kube::Error> {
    let params = DeleteParams::background();
    if served.supports("deletecollection") {
        return api.delete_collection(&params, page).await.map(drop);
    }
    for object in fresh {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        match api.delete(name, &params).await {
            Ok(_) => {}
            Err(error) if cox_client::is_not_found(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A walk over the metadata of a resource's objects.
struct Pages<'a> {
    api: &'a Api<DynamicObject>,
    /// `None`: the last page was read.
    page: Option<ListParams>,
}

impl<'a> Pages<'a> {
    fn of(api: &'a Api<DynamicObject>) -> Self {
        Self {
            api,
            page: Some(ListParams::default().limit(PAGE_LEN)),
        }
    }

    /// The next page, and what to ask for to get it again.
    async fn next(&mut self) -> Result<Option<(ListParams, Vec<PartialObjectMeta>)>, kube::Error> {
        let Some(page) = self.page.take() else {
            return Ok(None);
        };
        match self.api.list_metadata(&page).await {
            Ok(list) => {
                let next = list.metadata.continue_.filter(|token| !token.is_empty());
                self.page = next.map(|token| page.clone().continue_token(&token));
                Ok(Some((page, list.items)))
            }
            // A resource that is no longer served has nothing left.
            Err(error) if cox_client::is_not_found(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// What is left of one resource.
#[derive(Debug, Default)]
struct Left {
    objects: usize,
    finalizers: BTreeMap<String, usize>,
    /// The longest grace period.
    grace: Duration,
}

impl Left {
    fn add(&mut self, objects: &[PartialObjectMeta]) {
        self.objects += objects.len();
        for object in objects {
            for finalizer in object.metadata.finalizers.iter().flatten() {
                *self.finalizers.entry(finalizer.clone()).or_default() += 1;
            }
            let secs = object
                .metadata
                .deletion_grace_period_seconds
                .unwrap_or_default();
            let grace = Duration::from_secs(u64::try_from(secs).unwrap_or_default());
            self.grace = self.grace.max(grace);
        }
    }
}

impl Pass {
    fn add(&mut self, served: &Served, left: Left) {
        if left.objects == 0 {
            return;
        }
        self.remaining.insert(label(served), left.objects);
        for (finalizer, count) in left.finalizers {
            *self.finalizers.entry(finalizer).or_default() += count;
        }
        if is_pods(served) {
            self.pod_grace = self.pod_grace.max(Some(left.grace));
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
