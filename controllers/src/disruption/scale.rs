//! How many pods the owners of some pods want: the number of a replica set is its deployment's; of what else has `scale`, that.

use std::collections::BTreeMap;
use std::sync::Arc;

use cox_client::{Informer, owners};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::core::GroupVersionKind;

use super::plan::Expected;
use crate::context::Context;
use crate::owned_pods::reply;

/// The uid of the owner that says a number, and the number.
type Said = Option<(String, i32)>;

/// Asks owners.
pub(super) struct Scales {
    context: Context,
    sets: Informer<ReplicaSet>,
    deployments: Informer<Deployment>,
    stateful: Informer<StatefulSet>,
    controllers: Informer<ReplicationController>,
}

impl Scales {
    pub(super) fn new(context: &Context) -> Self {
        let informers = &context.informers;
        Self {
            sets: informers.of(),
            deployments: informers.of(),
            stateful: informers.of(),
            controllers: informers.of(),
            context: context.clone(),
        }
    }

    /// The sum over all owners of these pods. The error says which pod's owner says no number.
    pub(super) async fn expected(
        &self,
        namespace: &str,
        pods: &[Arc<Pod>],
    ) -> Result<Expected, String> {
        let mut expected = Expected::default();
        let mut by_owner: BTreeMap<String, Said> = BTreeMap::new();
        for pod in pods {
            let Some(owner) = owners::controller_of(&**pod) else {
                expected.unmanaged = true;
                continue;
            };
            if !by_owner.contains_key(&owner.uid) {
                let said = self.said(namespace, owner).await?;
                by_owner.insert(owner.uid.clone(), said);
            }
            if by_owner.get(&owner.uid).is_none_or(Option::is_none) {
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                return Err(format!("found no controllers for pod {name:?}"));
            }
        }
        let numbers: BTreeMap<String, i32> = by_owner.into_values().flatten().collect();
        expected.count = numbers.values().sum();
        Ok(expected)
    }

    async fn said(&self, namespace: &str, owner: &OwnerReference) -> Result<Said, String> {
        let group = owner
            .api_version
            .split_once('/')
            .map_or("", |(group, _)| group);
        let (at, name) = (Some(namespace), owner.name.as_str());
        let is = |uid: &Option<String>| uid.as_ref() == Some(&owner.uid);
        let said = |replicas: Option<i32>| Some((owner.uid.clone(), replicas.unwrap_or(1)));
        let found = match (group, owner.kind.as_str()) {
            ("apps", "ReplicaSet") => {
                let set = self.sets.get(at, name).filter(|set| is(&set.metadata.uid));
                let Some(set) = set else { return Ok(None) };
                let above = owners::controller_of(&*set).filter(|above| above.kind == "Deployment");
                let deployment = above.and_then(|above| {
                    let found = self.deployments.get(at, &above.name)?;
                    (found.metadata.uid.as_ref() == Some(&above.uid)).then_some(found)
                });
                match deployment {
                    Some(deployment) => {
                        let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas);
                        let uid = deployment.metadata.uid.clone().unwrap_or_default();
                        Some((uid, replicas.unwrap_or(1)))
                    }
                    None => said(set.spec.as_ref().and_then(|spec| spec.replicas)),
                }
            }
            ("apps", "StatefulSet") => {
                let set = self
                    .stateful
                    .get(at, name)
                    .filter(|set| is(&set.metadata.uid));
                set.and_then(|set| said(set.spec.as_ref().and_then(|spec| spec.replicas)))
            }
            ("", "ReplicationController") => {
                let found = self.controllers.get(at, name);
                let found = found.filter(|found| is(&found.metadata.uid));
                found.and_then(|found| said(found.spec.as_ref().and_then(|spec| spec.replicas)))
            }
            _ => return self.by_scale(namespace, owner).await,
        };
        Ok(found)
    }

    /// Any other kind, by its subresource `scale`.
    async fn by_scale(&self, namespace: &str, owner: &OwnerReference) -> Result<Said, String> {
        let (group, version) = owner
            .api_version
            .split_once('/')
            .unwrap_or(("", &owner.api_version));
        let kind = GroupVersionKind::gvk(group, version, &owner.kind);
        let client = self.context.client();
        let (resource, _) = kube::discovery::pinned_kind(&client, &kind)
            .await
            .map_err(|error| reply(&error))?;
        let plural = &resource.plural;
        let path = format!(
            "/apis/{}/namespaces/{namespace}/{plural}/{}/scale",
            owner.api_version, owner.name
        );
        let request = http::Request::get(path)
            .body(Vec::new())
            .map_err(|error| error.to_string())?;
        match client.request::<Scale>(request).await {
            Ok(scale) if scale.metadata.uid.as_ref() == Some(&owner.uid) => {
                let replicas = scale.spec.and_then(|spec| spec.replicas);
                Ok(Some((owner.uid.clone(), replicas.unwrap_or_default())))
            }
            Ok(_) => Ok(None),
            Err(error) if cox_client::is_not_found(&error) => Err(format!(
                "{plural}.{group} does not implement the scale subresource"
            )),
            Err(error) => Err(reply(&error)),
        }
    }
}
