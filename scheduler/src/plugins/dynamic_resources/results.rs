//! What was picked, as claims say it. Pure.

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::api::resource::v1::{
    AllocationResult, DeviceAllocationConfiguration, DeviceAllocationResult,
    DeviceRequestAllocationResult,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::allocate::{Candidate, Failure, Picked, Search, Wanted, shown};

/// One for each claim.
pub(super) fn build(
    search: &Search<'_>,
    share_id: &mut dyn FnMut() -> String,
) -> Result<Vec<AllocationResult>, Failure> {
    let claims = 0..search.claims.len();
    claims
        .map(|claim| of_claim(search, claim, share_id))
        .collect()
}

fn of_claim(
    search: &Search<'_>,
    claim: usize,
    share_id: &mut dyn FnMut() -> String,
) -> Result<AllocationResult, Failure> {
    let picked = &search.picked[claim];
    let results = picked.iter().map(|picked| {
        let wanted = &search.wanted[claim][picked.request][picked.alternative];
        result(
            wanted,
            &search.candidates[picked.candidate],
            picked,
            share_id,
        )
    });
    let results: Vec<_> = results.collect();
    let config = config(search, claim);
    let devices = picked
        .iter()
        .map(|picked| &search.candidates[picked.candidate]);
    Ok(AllocationResult {
        allocation_timestamp: None,
        devices: Some(DeviceAllocationResult {
            config: (!config.is_empty()).then_some(config),
            results: Some(results),
        }),
        node_selector: node_selector(devices, search).map_err(|why| {
            let claim = shown(&search.claims[claim]);
            Failure::Claims(format!("create NodeSelector for claim {claim}: {why}"))
        })?,
    })
}

fn result(
    wanted: &Wanted<'_>,
    candidate: &Candidate<'_>,
    picked: &Picked,
    share_id: &mut dyn FnMut() -> String,
) -> DeviceRequestAllocationResult {
    let written = |(name, amount): (&String, &cox_api::quantity::Quantity)| {
        (name.clone(), Quantity(amount.to_string()))
    };
    let consumed = picked.share.as_ref().filter(|share| !share.is_empty());
    DeviceRequestAllocationResult {
        request: wanted.name(),
        driver: candidate.id.driver.clone(),
        pool: candidate.id.pool.clone(),
        device: candidate.id.device.clone(),
        admin_access: wanted.administers.then_some(true),
        tolerations: wanted.tolerations.cloned(),
        share_id: picked.share.as_ref().map(|_| share_id()),
        consumed_capacity: consumed.map(|share| share.iter().map(written).collect()),
        binding_conditions: candidate.device.binding_conditions.clone(),
        binding_failure_conditions: candidate.device.binding_failure_conditions.clone(),
    }
}

/// Of each class once, with the requests that it is for, then of the claim where it is for what was picked.
fn config(search: &Search<'_>, claim: usize) -> Vec<DeviceAllocationConfiguration> {
    // The alternative that was picked; a request that got no device has but one.
    let chosen = |request: usize| {
        let mut picked = search.picked[claim].iter();
        let found = picked.find(|picked| picked.request == request);
        let alternative = found.map_or(0, |picked| picked.alternative);
        search.wanted[claim][request].get(alternative)
    };
    let wanted = || (0..search.wanted[claim].len()).filter_map(chosen);
    let mut config: Vec<DeviceAllocationConfiguration> = Vec::new();
    let mut seen: Vec<(Option<&String>, std::ops::Range<usize>)> = Vec::new();
    for wanted in wanted() {
        let class = wanted.class.metadata.name.as_ref();
        if let Some((_, range)) = seen.iter().find(|(known, _)| *known == class) {
            for own in &mut config[range.clone()] {
                own.requests.get_or_insert_default().push(wanted.name());
            }
            continue;
        }
        let start = config.len();
        let of_class = wanted.class.spec.config.iter().flatten();
        config.extend(of_class.map(|own| DeviceAllocationConfiguration {
            source: "FromClass".to_owned(),
            requests: Some(vec![wanted.name()]),
            opaque: own.opaque.clone(),
        }));
        seen.push((class, start..config.len()));
    }
    let devices = search.claims[claim].spec.devices.as_ref();
    let of_claim = devices.and_then(|devices| devices.config.as_ref());
    for own in of_claim.into_iter().flatten() {
        let requests = own.requests.as_deref().unwrap_or_default();
        let is_for = |wanted: &Wanted<'_>| {
            let name = wanted.name();
            requests
                .iter()
                .any(|own| *own == name || own == wanted.request)
        };
        if requests.is_empty() || wanted().any(is_for) {
            config.push(DeviceAllocationConfiguration {
                source: "FromClaim".to_owned(),
                requests: own.requests.clone(),
                opaque: own.opaque.clone(),
            });
        }
    }
    config
}

/// Where the devices can be used from; none: everywhere.
fn node_selector<'a, 's: 'a>(
    devices: impl Iterator<Item = &'a Candidate<'s>>,
    search: &Search<'_>,
) -> Result<Option<NodeSelector>, String> {
    let mut term = NodeSelectorTerm::default();
    for candidate in devices {
        let (spec, device) = (&candidate.slice.spec, candidate.device);
        let (name, selector) = if spec.per_device_node_selection == Some(true) {
            (&device.node_name, &device.node_selector)
        } else {
            (&spec.node_name, &spec.node_selector)
        };
        if name.is_some() || device.binds_to_node == Some(true) {
            let node = search.node.metadata.name.clone().unwrap_or_default();
            return Ok(Some(only(node)));
        }
        let Some(selector) = selector else {
            continue;
        };
        match selector.node_selector_terms.as_slice() {
            [] => {}
            [own] => {
                add(&mut term.match_fields, own.match_fields.as_ref());
                add(&mut term.match_expressions, own.match_expressions.as_ref());
            }
            more => {
                let count = more.len();
                return Err(format!(
                    "unsupported ResourceSlice.NodeSelector with {count} terms"
                ));
            }
        }
    }
    let is_empty = term == NodeSelectorTerm::default();
    Ok((!is_empty).then(|| NodeSelector {
        node_selector_terms: vec![term],
    }))
}

fn only(node: String) -> NodeSelector {
    NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm {
            match_fields: Some(vec![NodeSelectorRequirement {
                key: "metadata.name".to_owned(),
                operator: "In".to_owned(),
                values: Some(vec![node]),
            }]),
            match_expressions: None,
        }],
    }
}

fn add(to: &mut Option<Vec<NodeSelectorRequirement>>, more: Option<&Vec<NodeSelectorRequirement>>) {
    for one in more.into_iter().flatten() {
        let known = to.get_or_insert_default();
        if !known.contains(one) {
            known.push(one.clone());
        }
    }
}
