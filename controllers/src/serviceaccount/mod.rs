//! Sees to it that each namespace has the ServiceAccount `default`.
//!
//! Watched: namespaces; service accounts of that name. Written: the missing ones. Invariant: a namespace that is not being
//! deleted has it; one that is gets nothing. It never changes one that exists.

use std::sync::Arc;

use cox_client::Informer;
use cox_client::runner::{ObjectName, Verdict};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::{ObjectMeta, PostParams};

use crate::context::{Context, Loop};

const NAME: &str = "default";

pub(crate) async fn run(context: Context) {
    let namespaces = context.informers.of::<Namespace>();
    let accounts = context
        .informers
        .of_selected::<ServiceAccount>(&format!("metadata.name={NAME}"));
    let mut frame = Loop::new("serviceaccount");
    frame.feed(&namespaces, |namespace, keys| {
        keys.push(ObjectName::of(namespace))
    });
    frame.feed(&accounts, |account, keys| {
        keys.extend(
            account
                .metadata
                .namespace
                .as_deref()
                .map(ObjectName::cluster),
        );
    });
    let cancel = context.cancel.clone();
    let state = Arc::new((context, namespaces, accounts));
    let reconcile = move |key: ObjectName| {
        let state = state.clone();
        async move { reconcile(&state.0, &state.1, &state.2, &key.name).await }
    };
    frame.run(2, reconcile, cancel).await;
}

async fn reconcile(
    context: &Context,
    namespaces: &Informer<Namespace>,
    accounts: &Informer<ServiceAccount>,
    namespace: &str,
) -> Verdict {
    let active = namespaces
        .get(None, namespace)
        .is_some_and(|namespace| is_active(&namespace));
    if !active || accounts.get(Some(namespace), NAME).is_some() {
        return Verdict::Done;
    }
    let metadata = ObjectMeta {
        name: Some(NAME.to_owned()),
        namespace: Some(namespace.to_owned()),
        ..ObjectMeta::default()
    };
    let account = ServiceAccount {
        metadata,
        ..ServiceAccount::default()
    };
    match context
        .api(namespace)
        .create(&PostParams::default(), &account)
        .await
    {
        Ok(_) => Verdict::Done,
        Err(error) if is_settled(&error) => Verdict::Done,
        Err(error) => Verdict::Backoff(error.into()),
    }
}

/// Whether objects may still be created in the namespace.
pub(crate) fn is_active(namespace: &Namespace) -> bool {
    let phase = namespace
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    namespace.metadata.deletion_timestamp.is_none() && phase != Some("Terminating")
}

/// The creation failed because there is nothing left to do.
pub(crate) fn is_settled(error: &kube::Error) -> bool {
    cox_client::is_already_exists(error)
        || cox_client::is_namespace_terminating(error)
        || cox_client::is_not_found(error)
}
