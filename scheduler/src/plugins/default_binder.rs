//! DefaultBinder: posts the Pod's `binding` subresource.

use futures::FutureExt as _;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::PostParams;
use serde_json::json;

use crate::framework::{BindPlugin, Plugin};

/// See the module's description.
#[derive(Clone)]
pub struct DefaultBinder {
    client: kube::Client,
}

impl std::fmt::Debug for DefaultBinder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DefaultBinder").finish_non_exhaustive()
    }
}

impl DefaultBinder {
    /// Binds through this client.
    #[must_use]
    pub fn new(client: kube::Client) -> Self {
        Self { client }
    }
}

impl Plugin for DefaultBinder {
    fn name(&self) -> &'static str {
        "DefaultBinder"
    }
}

impl BindPlugin for DefaultBinder {
    fn bind<'a>(&'a self, pod: &'a Pod, node: &'a str) -> BoxFuture<'a, Result<(), kube::Error>> {
        let (name, namespace) = (
            pod.metadata.name.as_deref(),
            pod.metadata.namespace.as_deref(),
        );
        let (name, namespace) = (name.unwrap_or_default(), namespace.unwrap_or_default());
        // The uid makes sure that a Pod of the same name that came meanwhile is not bound instead.
        let binding = json!({
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": name, "namespace": namespace, "uid": pod.metadata.uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        async move {
            let answer: Result<serde_json::Value, _> = api
                .create_subresource("binding", name, &PostParams::default(), &binding)
                .await;
            answer.map(|_status| ())
        }
        .boxed()
    }
}
