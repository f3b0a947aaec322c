//! Extended resources that classes of devices stand behind: what containers ask for by amount, as requests of one claim that the
//! scheduler makes for the Pod. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use cox_client::placement::is_sidecar;
use k8s_openapi::api::core::v1::{Container, ContainerExtendedResourceRequest, Pod, PodSpec};
use k8s_openapi::api::resource::v1::{
    DeviceClass, DeviceRequest, ExactDeviceRequest, ResourceClaim, ResourceClaimSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::ObjectMeta;

use crate::devices::Devices;
use crate::pod_info::PodInfo;

/// Marks the claim.
const ANNOTATION: &str = "resource.kubernetes.io/extended-resource-claim";

/// Every class is a resource of this name and its own.
const IMPLICIT: &str = "deviceclass.resource.kubernetes.io/";

/// The class behind a resource. Where several name it, the newest, and of those the first by name.
pub(crate) fn class_of(resource: &str, devices: &dyn Devices) -> Option<Arc<DeviceClass>> {
    if let Some(name) = resource.strip_prefix(IMPLICIT) {
        return devices.class(name);
    }
    if !resource.contains('/') {
        return None;
    }
    let all = devices.classes().into_iter();
    let named = all.filter(|class| class.spec.extended_resource_name.as_deref() == Some(resource));
    named.max_by_key(|class| {
        let meta = &class.metadata;
        let made = meta.creation_timestamp.as_ref().map(|made| made.0);
        (made, std::cmp::Reverse(meta.name.clone()))
    })
}

/// What a Pod asks for that classes stand behind.
pub(super) fn classes(pod: &PodInfo, devices: &dyn Devices) -> BTreeMap<String, Arc<DeviceClass>> {
    let asked = pod.requests.asked.scalars.iter();
    let asked = asked.filter(|(_, amount)| *amount > 0);
    asked
        .filter_map(|(name, _)| Some((name.to_string(), class_of(name, devices)?)))
        .collect()
}

/// Whether a claim was made for extended resources.
pub(crate) fn is_marked(claim: &ResourceClaim) -> bool {
    let annotations = claim.metadata.annotations.as_ref();
    let marked = annotations.and_then(|annotations| annotations.get(ANNOTATION));
    marked.is_some_and(|marked| marked == "true")
}

/// Whether a claim is the one that was made for the Pod's extended resources.
pub(super) fn is_for(claim: &ResourceClaim, pod: &Pod) -> bool {
    is_marked(claim) && super::claims::is_owned(claim, pod)
}

/// The claim to be made for a Pod.
pub(super) fn claim(pod: &Pod, requests: Vec<DeviceRequest>) -> ResourceClaim {
    let meta = &pod.metadata;
    let name = meta.name.clone().unwrap_or_default();
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        name: name.clone(),
        uid: meta.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: None,
    };
    let mut spec = ResourceClaimSpec::default();
    spec.devices.get_or_insert_default().requests = Some(requests);
    ResourceClaim {
        metadata: ObjectMeta {
            namespace: meta.namespace.clone(),
            generate_name: Some(format!("{name}-extended-resources-")),
            owner_references: Some(vec![owner]),
            annotations: Some([(ANNOTATION.to_owned(), "true".to_owned())].into()),
            ..ObjectMeta::default()
        },
        spec,
        status: None,
    }
}

/// Which container gets which request.
pub(super) type Mappings = Vec<ContainerExtendedResourceRequest>;

/// A request in the making.
struct Asked {
    name: String,
    count: i64,
}

/// The requests for the containers of a Pod, by names of resources and their classes. Containers that run at the same time have
/// requests of their own. Init containers come before: they use what later containers will have, and share what they need beyond.
pub(super) fn requests(
    spec: &PodSpec,
    resources: &BTreeMap<&str, &str>,
) -> (Vec<DeviceRequest>, Mappings) {
    let init = spec.init_containers.as_deref().unwrap_or_default();
    let containers: Vec<&Container> = init.iter().chain(&spec.containers).collect();
    let is_short = |index: usize| index < init.len() && !is_sidecar(containers[index]);
    let (mut requests, mut mappings) = (Vec::new(), Mappings::new());
    for (resource, class) in resources {
        let map = |container: &Container, request: &str| ContainerExtendedResourceRequest {
            container_name: container.name.clone(),
            resource_name: (*resource).to_owned(),
            request_name: request.to_owned(),
        };
        let mut long: Vec<Option<Asked>> = Vec::new();
        for (index, container) in containers.iter().enumerate() {
            let asked = asked(index, container, resource).filter(|_| !is_short(index));
            mappings.extend(asked.as_ref().map(|asked| map(container, &asked.name)));
            long.push(asked);
        }
        let mut most: Option<Asked> = None;
        let mut beyond = Vec::new();
        for index in (0..init.len()).filter(|index| is_short(*index)) {
            let container = containers[index];
            let Some(mut own) = asked(index, container, resource) else {
                continue;
            };
            for later in long[index..].iter().flatten() {
                if own.count <= 0 {
                    break;
                }
                own.count -= later.count;
                mappings.push(map(container, &later.name));
            }
            if own.count > 0 {
                beyond.push((mappings.len(), container));
                // Its name is known when all have been seen.
                mappings.push(map(container, &own.name));
                if most.as_ref().is_none_or(|most| most.count < own.count) {
                    most = Some(own);
                }
            }
        }
        if let Some(most) = &most {
            for (place, container) in beyond {
                mappings[place] = map(container, &most.name);
            }
        }
        let all = most.into_iter().chain(long.into_iter().flatten());
        requests.extend(all.map(|own| DeviceRequest {
            name: own.name,
            exactly: Some(ExactDeviceRequest {
                device_class_name: (*class).to_owned(),
                allocation_mode: Some("ExactCount".to_owned()),
                count: Some(own.count),
                ..ExactDeviceRequest::default()
            }),
            first_available: None,
        }));
    }
    requests.sort_by(|a, b| a.name.cmp(&b.name));
    (requests, mappings)
}

/// What a container asks for of a resource. Requests are named by the places of the container and of the resource in it.
fn asked(index: usize, container: &Container, resource: &str) -> Option<Asked> {
    let all = container.resources.as_ref()?.requests.as_ref()?;
    let (place, (_, amount)) = all
        .iter()
        .enumerate()
        .find(|(_, (name, _))| *name == resource)?;
    let amount = super::capacity::amount(amount);
    (amount.is_integer() && amount.as_i64() > 0).then(|| Asked {
        name: format!("container-{index}-request-{place}"),
        count: amount.as_i64(),
    })
}

/// Resources that a node has not, so that devices have to stand in.
pub(super) fn missing(
    classes: &BTreeMap<String, Arc<DeviceClass>>,
    has: impl Fn(&str) -> i64,
) -> BTreeMap<&str, &str> {
    let names = classes.iter();
    let names = names.filter(|(resource, _)| has(resource) == 0);
    names
        .map(|(resource, class)| {
            let class = class.metadata.name.as_deref().unwrap_or_default();
            (resource.as_str(), class)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// `name=amount`, sidecars as `name+=amount`; init containers before the bar.
    fn made(text: &str) -> String {
        let container = |text: &str| {
            let (name, amount) = text.split_once('=').unwrap();
            let (name, sidecar) = match name.strip_suffix('+') {
                Some(name) => (name, Some("Always")),
                None => (name, None),
            };
            json!({"name": name, "restartPolicy": sidecar,
                "resources": {"requests": {"cpu": "1", "example.com/gpu": amount}}})
        };
        let containers = |text: &str| text.split_whitespace().map(container).collect::<Vec<_>>();
        let (init, rest) = text.split_once('|').unwrap();
        let spec: PodSpec = serde_json::from_value(
            json!({"initContainers": containers(init), "containers": containers(rest)}),
        )
        .unwrap();
        let resources = BTreeMap::from([("example.com/gpu", "class")]);
        let (requests, mappings) = requests(&spec, &resources);
        let short = |name: &str| name.split('-').nth(1).unwrap().to_owned();
        let requests = requests.iter().map(|request| {
            assert!(request.name.ends_with("-request-1"));
            let count = request.exactly.as_ref().unwrap().count.unwrap();
            format!("{}:{count}", short(&request.name))
        });
        let mappings = mappings
            .iter()
            .map(|own| format!("{}>{}", own.container_name, short(&own.request_name)));
        let join = |all: Vec<String>| all.join(" ");
        format!(
            "{} / {}",
            join(requests.collect()),
            join(mappings.collect())
        )
    }

    #[test]
    fn requests_table() {
        let cases = [
            ("containers have their own", "|a=1 b=2", "0:1 1:2 / a>0 b>1"),
            ("nothing asked for", "|a=0 b=1", "1:1 / b>1"),
            (
                "an init container uses what comes later",
                "i=2|a=1 b=2",
                "1:1 2:2 / a>1 b>2 i>1 i>2",
            ),
            (
                "and no more than it needs",
                "i=1|a=1 b=2",
                "1:1 2:2 / a>1 b>2 i>1",
            ),
            (
                "and gets what it needs beyond",
                "i=4|a=1 b=2",
                "0:1 1:1 2:2 / a>1 b>2 i>1 i>2 i>0",
            ),
            (
                "init containers share what is beyond",
                "i=2 j=3|a=1",
                "1:2 2:1 / a>2 i>2 i>1 j>2 j>1",
            ),
            (
                "sidecars have their own",
                "s+=1 i=1|a=1",
                "0:1 2:1 / s>0 a>2 i>2",
            ),
        ];
        for (name, text, expected) in cases {
            assert_eq!(made(text), expected, "case: {name}");
        }
    }
}
