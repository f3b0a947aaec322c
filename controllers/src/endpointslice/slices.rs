//! Brings EndpointSlices to a wished set of endpoints with few writes. Pure; shared with the mirroring controller.
//!
//! Endpoints stay in the slice that they are in. What is new fills slices that have room, changed ones first, then new slices.
//! Invariant: planning on the outcome of a plan gives no change.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::ObjectMeta;

/// A slice is small, so that a change of one endpoint costs little to send around.
pub(crate) const ENDPOINTS_MAX: usize = 100;

/// Endpoints that share a slice: one family, one list of ports.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Group {
    pub(crate) family: String,
    pub(crate) ports: Vec<EndpointPort>,
    pub(crate) endpoints: Vec<Endpoint>,
}

/// What all slices of one owner have in common.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    pub(crate) namespace: String,
    pub(crate) service: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: Option<BTreeMap<String, String>>,
    pub(crate) owner: OwnerReference,
}

/// Writes to make.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Changes {
    pub(crate) delete: Vec<String>,
    pub(crate) update: Vec<EndpointSlice>,
    pub(crate) create: Vec<EndpointSlice>,
}

/// Who an endpoint is: the Pod behind it, or its address.
fn identity(endpoint: &Endpoint) -> String {
    let uid = endpoint
        .target_ref
        .as_ref()
        .and_then(|target| target.uid.clone());
    let address = || endpoint.addresses.first().cloned().unwrap_or_default();
    uid.filter(|uid| !uid.is_empty()).unwrap_or_else(address)
}

fn by_name(ports: &[EndpointPort]) -> Vec<EndpointPort> {
    let mut sorted = ports.to_vec();
    sorted.sort_by(|a, b| (&a.name, a.port, &a.protocol).cmp(&(&b.name, b.port, &b.protocol)));
    sorted
}

/// Plans.
pub(crate) fn plan(
    groups: Vec<Group>,
    existing: &[Arc<EndpointSlice>],
    template: &Template,
) -> Changes {
    let mut changes = Changes::default();
    let mut existing: Vec<&EndpointSlice> = existing
        .iter()
        .map(|slice| &**slice)
        .filter(|slice| slice.metadata.deletion_timestamp.is_none())
        .collect();
    existing.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    for group in groups {
        let ports = by_name(&group.ports);
        let (own, rest): (Vec<_>, Vec<_>) = existing.into_iter().partition(|slice| {
            slice.address_type == group.family
                && by_name(slice.ports.as_deref().unwrap_or_default()) == ports
        });
        existing = rest;
        plan_group(group, &own, template, &mut changes);
    }
    changes.delete.extend(
        existing
            .into_iter()
            .filter_map(|slice| slice.metadata.name.clone()),
    );
    changes
}

/// A slice on its way to what it will be.
struct Draft<'a> {
    was: Option<&'a EndpointSlice>,
    endpoints: Vec<Endpoint>,
}

impl Draft<'_> {
    fn is_changed(&self, template: &Template) -> bool {
        self.was.is_none_or(|was| {
            was.endpoints.as_deref().unwrap_or_default() != self.endpoints
                || was.metadata.labels.as_ref() != Some(&template.labels)
                || template.annotations.is_some()
                    && was.metadata.annotations != template.annotations
        })
    }
}

fn plan_group(group: Group, own: &[&EndpointSlice], template: &Template, changes: &mut Changes) {
    let mut wished: HashMap<String, Endpoint> = HashMap::new();
    let mut order = Vec::new();
    for endpoint in group.endpoints {
        let identity = identity(&endpoint);
        if wished.insert(identity.clone(), endpoint).is_none() {
            order.push(identity);
        }
    }
    let mut drafts: Vec<Draft<'_>> = Vec::new();
    for slice in own {
        let present = slice.endpoints.iter().flatten();
        let endpoints = present
            .filter_map(|endpoint| wished.remove(&identity(endpoint)))
            .collect();
        drafts.push(Draft {
            was: Some(slice),
            endpoints,
        });
    }
    let mut new: Vec<Endpoint> = order
        .iter()
        .filter_map(|identity| wished.remove(identity))
        .collect();
    // Those that are written anyway first, and of them the fullest: fewer slices in the end.
    drafts.sort_by_key(|draft| {
        (
            !draft.is_changed(template),
            std::cmp::Reverse(draft.endpoints.len()),
        )
    });
    for draft in &mut drafts {
        let room = ENDPOINTS_MAX
            .saturating_sub(draft.endpoints.len())
            .min(new.len());
        draft.endpoints.extend(new.drain(..room));
    }
    for chunk in new.chunks(ENDPOINTS_MAX) {
        drafts.push(Draft {
            was: None,
            endpoints: chunk.to_vec(),
        });
    }
    write(drafts, &group.family, &group.ports, template, changes);
}

/// Says what has to be written for the slices to be as drafted.
fn write(
    mut drafts: Vec<Draft<'_>>,
    family: &str,
    ports: &[EndpointPort],
    template: &Template,
    changes: &mut Changes,
) {
    // One empty slice says that somebody has looked; more of them say nothing.
    let filled = drafts
        .iter()
        .filter(|draft| !draft.endpoints.is_empty())
        .count();
    let mut keep_empty = usize::from(filled == 0);
    if drafts.is_empty() {
        drafts.push(Draft {
            was: None,
            endpoints: Vec::new(),
        });
    }
    for draft in drafts {
        if draft.endpoints.is_empty() {
            if keep_empty == 0 {
                changes
                    .delete
                    .extend(draft.was.and_then(|was| was.metadata.name.clone()));
                continue;
            }
            keep_empty -= 1;
        }
        if !draft.is_changed(template) {
            continue;
        }
        match draft.was {
            Some(was) => {
                let mut slice = was.clone();
                slice.metadata.labels = Some(template.labels.clone());
                if template.annotations.is_some() {
                    slice.metadata.annotations.clone_from(&template.annotations);
                }
                slice.endpoints = Some(draft.endpoints);
                changes.update.push(slice);
            }
            None => {
                changes
                    .create
                    .push(make(template, family, ports, draft.endpoints));
            }
        }
    }
}

fn make(
    template: &Template,
    family: &str,
    ports: &[EndpointPort],
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    EndpointSlice {
        address_type: family.to_owned(),
        endpoints: Some(endpoints),
        ports: Some(ports.to_vec()),
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", template.service)),
            namespace: Some(template.namespace.clone()),
            labels: Some(template.labels.clone()),
            annotations: template.annotations.clone(),
            owner_references: Some(vec![template.owner.clone()]),
            ..ObjectMeta::default()
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template() -> Template {
        Template {
            namespace: "ns".into(),
            service: "web".into(),
            labels: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
            annotations: None,
            owner: OwnerReference::default(),
        }
    }

    fn group(ips: impl IntoIterator<Item = u32>) -> Group {
        Group {
            family: "IPv4".into(),
            ports: vec![EndpointPort {
                port: Some(80),
                ..EndpointPort::default()
            }],
            endpoints: ips
                .into_iter()
                .map(|ip| Endpoint {
                    addresses: vec![format!("10.0.{}.{}", ip / 256, ip % 256)],
                    ..Endpoint::default()
                })
                .collect(),
        }
    }

    /// What the server would hold after the changes.
    fn after(existing: &[Arc<EndpointSlice>], changes: Changes) -> Vec<Arc<EndpointSlice>> {
        let mut slices: Vec<EndpointSlice> =
            existing.iter().map(|slice| (**slice).clone()).collect();
        slices.retain(|slice| {
            !changes
                .delete
                .contains(slice.metadata.name.as_ref().unwrap())
        });
        for update in changes.update {
            let name = update.metadata.name.clone();
            *slices
                .iter_mut()
                .find(|slice| slice.metadata.name == name)
                .unwrap() = update;
        }
        let count = slices.len();
        for (at, mut made) in changes.create.into_iter().enumerate() {
            made.metadata.name = Some(format!("web-{:03}", count + at));
            slices.push(made);
        }
        slices.into_iter().map(Arc::new).collect()
    }

    fn sizes(slices: &[Arc<EndpointSlice>]) -> Vec<usize> {
        slices
            .iter()
            .map(|slice| slice.endpoints.as_ref().unwrap().len())
            .collect()
    }

    #[test]
    fn slices_follow_what_is_wished() {
        let cases: &[(&str, Vec<u32>, &[usize])] = &[
            ("nothing is one empty slice", vec![], &[0]),
            ("the empty slice is used", (0..3).collect(), &[3]),
            (
                "a slice holds a hundred",
                (0..250).collect(),
                &[100, 100, 50],
            ),
            (
                "those that stay stay where they are",
                (50..250).collect(),
                &[50, 100, 50],
            ),
            (
                "new ones fill the room",
                (50..280).collect(),
                &[80, 100, 50],
            ),
            ("empty slices go", (240..243).collect(), &[3]),
            ("back to nothing", vec![], &[0]),
        ];
        let mut slices = Vec::new();
        for (case, ips, expected) in cases {
            let wished = group(ips.clone());
            let changes = plan(vec![wished.clone()], &slices, &template());
            slices = after(&slices, changes);
            assert_eq!(sizes(&slices), *expected, "case: {case}");
            let again = plan(vec![wished], &slices, &template());
            assert_eq!(again, Changes::default(), "silent: {case}");
        }
        let other = plan(vec![], &slices, &template());
        assert_eq!(other.delete.len(), 1, "what belongs to no group goes");
    }
}
