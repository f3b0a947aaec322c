//! Empties namespaces that are being deleted, then lets them go.
//!
//! Watched: namespaces; pods, because a namespace waits longest for them. Written: deletions of everything namespaced that
//! discovery lists (pods first, so that nothing they use goes before them), the conditions and the phase of the namespace, and
//! its `spec.finalizers` when nothing is left. Invariant: the finalizer goes only after a pass that found nothing, asked of the
//! server and not of a cache.

mod content;
mod status;

use std::sync::Arc;
use std::time::Duration;

use cox_client::runner::{ObjectName, Verdict};
use cox_client::{BoxError, Informer};
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, Pod};
use kube::api::{DeleteParams, PostParams, Preconditions};

use crate::context::{Context, Loop};
use crate::discovery::Catalog;
use content::Pass;

const FINALIZER: &str = "kubernetes";
/// What has finalizers is looked at again after this time: nothing tells when it goes.
const FINALIZER_PAUSE: Duration = Duration::from_secs(5);
/// Pods tell when they go; this is for the case that nothing does.
const PODS_PAUSE_MAX: Duration = Duration::from_secs(30);

struct Controller {
    context: Context,
    namespaces: Informer<Namespace>,
}

pub(crate) async fn run(context: Context) {
    let namespaces = context.informers.of::<Namespace>();
    let pods = context.informers.of::<Pod>();
    let mut frame = Loop::new("namespace");
    frame.feed(&namespaces, |namespace, keys| {
        if namespace.metadata.deletion_timestamp.is_some() {
            keys.push(ObjectName::of(namespace));
        }
    });
    let known = namespaces.clone();
    frame.feed(&pods, move |pod, keys| {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        if known
            .get(None, namespace)
            .is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_some())
        {
            keys.push(ObjectName::cluster(namespace));
        }
    });
    let cancel = context.cancel.clone();
    let controller = Arc::new(Controller {
        context,
        namespaces,
    });
    let reconcile = move |key: ObjectName| {
        let controller = controller.clone();
        async move {
            match controller.reconcile(&key.name).await {
                Ok(verdict) => verdict,
                Err(error) => Verdict::Backoff(error),
            }
        }
    };
    frame.run(10, reconcile, cancel).await;
}

impl Controller {
    async fn reconcile(&self, name: &str) -> Result<Verdict, BoxError> {
        let cached = self.namespaces.get(None, name);
        let Some(cached) = cached.filter(|cached| cached.metadata.deletion_timestamp.is_some())
        else {
            return Ok(Verdict::Done);
        };
        let api = self.context.cluster_api::<Namespace>();
        // The cache may be behind what the last pass wrote.
        let live = api
            .get_opt(name)
            .await?
            .filter(|live| live.metadata.uid == cached.metadata.uid);
        let Some(live) = live else {
            return Ok(Verdict::Done);
        };
        if !finalizers(&live)
            .iter()
            .any(|finalizer| finalizer == FINALIZER)
        {
            return self.let_go(&live).await;
        }
        let live = self.mark_terminating(live).await?;
        let client = self.context.client();
        let (pass, discovered) = match Catalog::discover(&client).await {
            Ok(catalog) => (content::delete_all(&client, name, &catalog).await, Ok(())),
            Err(error) => (Pass::default(), Err(error)),
        };
        let conditions = status::conditions(
            &live,
            discovered.as_ref().err(),
            &pass,
            self.context.clock.now(),
        );
        let live = self.publish(live, conditions).await?;
        discovered?;
        if !pass.errors.is_empty() {
            return Ok(Verdict::Backoff(pass.errors.join("; ").into()));
        }
        if !pass.remaining.is_empty() {
            return Ok(Verdict::After(pause(&pass)));
        }
        self.finalize(live).await?;
        Ok(Verdict::Done)
    }

    /// Nothing of ours is left to do; a server that has not removed it yet is asked to.
    async fn let_go(&self, live: &Namespace) -> Result<Verdict, BoxError> {
        let waits = !finalizers(live).is_empty()
            || live
                .metadata
                .finalizers
                .as_ref()
                .is_some_and(|list| !list.is_empty());
        if waits {
            return Ok(Verdict::WaitForChange);
        }
        let preconditions = Preconditions {
            uid: live.metadata.uid.clone(),
            resource_version: None,
        };
        let name = live.metadata.name.as_deref().unwrap_or_default();
        let params = DeleteParams::default().preconditions(preconditions);
        match self
            .context
            .cluster_api::<Namespace>()
            .delete(name, &params)
            .await
        {
            Ok(_) => Ok(Verdict::Done),
            Err(error) if cox_client::is_not_found(&error) || cox_client::is_conflict(&error) => {
                Ok(Verdict::Done)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn mark_terminating(&self, mut live: Namespace) -> Result<Namespace, kube::Error> {
        let status = live.status.get_or_insert_default();
        if status.phase.as_deref() == Some("Terminating") {
            return Ok(live);
        }
        status.phase = Some("Terminating".to_owned());
        self.write_status(&live).await
    }

    async fn publish(
        &self,
        mut live: Namespace,
        conditions: Vec<NamespaceCondition>,
    ) -> Result<Namespace, kube::Error> {
        let status = live.status.get_or_insert_default();
        if status.conditions.as_deref().unwrap_or_default() == conditions {
            return Ok(live);
        }
        status.conditions = Some(conditions);
        self.write_status(&live).await
    }

    /// An update, not a patch: upstream's role for this controller grants no more.
    async fn write_status(&self, namespace: &Namespace) -> Result<Namespace, kube::Error> {
        let name = namespace.metadata.name.as_deref().unwrap_or_default();
        let api = self.context.cluster_api::<Namespace>();
        api.replace_status(name, &PostParams::default(), namespace)
            .await
    }

    async fn finalize(&self, mut live: Namespace) -> Result<(), kube::Error> {
        let name = live.metadata.name.clone().unwrap_or_default();
        let finalizers = live
            .spec
            .get_or_insert_default()
            .finalizers
            .get_or_insert_default();
        finalizers.retain(|finalizer| finalizer != FINALIZER);
        let api = self.context.cluster_api::<Namespace>();
        match api
            .replace_subresource("finalize", &name, &PostParams::default(), &live)
            .await
        {
            Err(error) if cox_client::is_not_found(&error) => Ok(()),
            result => result.map(drop),
        }
    }
}

fn finalizers(namespace: &Namespace) -> &[String] {
    namespace
        .spec
        .as_ref()
        .and_then(|spec| spec.finalizers.as_deref())
        .unwrap_or_default()
}

/// How long to wait when nothing tells of progress.
fn pause(pass: &Pass) -> Duration {
    match pass.pod_grace {
        Some(grace) => (grace + Duration::from_secs(1)).min(PODS_PAUSE_MAX),
        None => FINALIZER_PAUSE,
    }
}
