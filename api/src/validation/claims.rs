//! Resource claims of a Pod: what it asks for, and what its status says it got.

use super::FieldError;
use super::node::{Errors, Node};
use crate::names;
use std::collections::HashSet;

const SOURCES: [&str; 2] = ["resourceClaimName", "resourceClaimTemplateName"];

/// Rules of `spec.resourceClaims`.
pub(super) fn all(spec: &Node<'_>, errors: &mut Errors) {
    let mut taken = HashSet::new();
    for claim in spec.items("resourceClaims") {
        if claim.need("name", errors) {
            let name = claim.get("name");
            if taken.insert(claim.text("name")) {
                name.all_invalid(names::dns_label(name.as_text()), errors);
            } else {
                name.duplicate(errors);
            }
        }
        match SOURCES.iter().filter(|source| claim.has(source)).count() {
            0 => claim.invalid(
                "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
                errors,
            ),
            1 => {}
            _ => claim.invalid(
                "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified",
                errors,
            ),
        }
        for source in SOURCES.into_iter().filter_map(|source| claim.some(source)) {
            source.all_invalid(names::dns_subdomain(source.as_text()), errors);
        }
    }
}

/// Devices that a container's `resources` refer to: claims of the Pod, or single requests of them, each once.
pub(super) fn of_container(resources: &Node<'_>, known: &HashSet<&str>, errors: &mut Errors) {
    let mut taken: HashSet<String> = HashSet::new();
    for claim in resources.items("claims") {
        let (name, request) = (claim.text("name"), claim.text("request"));
        if name.is_empty() {
            claim.required("", errors);
            continue;
        }
        let part = format!("{name}/");
        let key = match request {
            "" => name.to_owned(),
            request => format!("{part}{request}"),
        };
        // Who has the whole claim has each of its requests.
        if taken.contains(name) {
            errors.push(FieldError::duplicate(claim.path(), name));
        } else {
            claim.get("request").check_if_set(names::dns_label, errors);
            if taken.contains(&key) {
                errors.push(FieldError::duplicate(claim.path(), key.as_str()));
            } else if request.is_empty() {
                let parts = taken.iter().filter(|taken| taken.starts_with(&part));
                errors.extend(parts.map(|_| FieldError::duplicate(claim.path(), name)));
            }
            taken.insert(key);
        }
        if !known.contains(name) {
            let mut names: Vec<&str> = known.iter().copied().collect();
            names.sort_unstable();
            let list = if names.is_empty() {
                " which is empty".to_owned()
            } else {
                format!(": {}", names.join(", "))
            };
            let mut error = FieldError::not_found(claim.path(), name);
            error.detail = format!("must be one of the names in pod.spec.resourceClaims{list}");
            errors.push(error);
        }
    }
}

/// Rules of `status.resourceClaimStatuses` and `status.extendedResourceClaimStatus`.
pub(super) fn of_status(pod: &Node<'_>, errors: &mut Errors) {
    let (spec, status) = (pod.get("spec"), pod.get("status"));
    let asked: HashSet<&str> = spec
        .items("resourceClaims")
        .map(|claim| claim.text("name"))
        .collect();
    let mut taken = HashSet::new();
    for claim in status.items("resourceClaimStatuses") {
        let name = claim.get("name");
        if !asked.contains(claim.text("name")) {
            let why = "must match the name of an entry in `spec.resourceClaims`";
            name.invalid(why, errors);
        }
        if !taken.insert(claim.text("name")) {
            name.duplicate(errors);
        }
        claim
            .get("resourceClaimName")
            .check_given(names::dns_subdomain, errors);
    }
    if let Some(extended) = status.some("extendedResourceClaimStatus") {
        extended_status(&spec, &extended, errors);
    }
}

/// The claim that the scheduler made for extended resources of containers.
fn extended_status(spec: &Node<'_>, extended: &Node<'_>, errors: &mut Errors) {
    const MAPPED: [&str; 3] = ["containerName", "resourceName", "requestName"];
    if extended.len("requestMappings") == 0 {
        extended
            .get("requestMappings")
            .required("at least one request mapping is required", errors);
    }
    let containers = || spec.items("initContainers").chain(spec.items("containers"));
    let mut taken = HashSet::new();
    for mapping in extended.items("requestMappings") {
        let (container, resource) = (mapping.get("containerName"), mapping.get("resourceName"));
        match containers().find(|found| found.text("name") == container.as_text()) {
            None => container.invalid("must match the name of an entry in spec.initContainers.name or spec.containers.name", errors),
            Some(found) => {
                let requests = found.value.pointer("/resources/requests");
                if requests.and_then(|all| all.get(resource.as_text())).is_none() {
                    resource.invalid("must match the extended resource name of an entry in spec.initContainers.resources.requests or spec.containers.resources.requests", errors);
                }
            }
        }
        for detail in names::dns_label(mapping.text("requestName")) {
            let path = extended.get("requestName").path();
            errors.push(FieldError::invalid(
                path,
                mapping.text("requestName"),
                detail,
            ));
        }
        if !taken.insert(MAPPED.map(|field| mapping.text(field))) {
            for field in MAPPED {
                mapping.get(field).duplicate(errors);
            }
        }
    }
    extended
        .get("resourceClaimName")
        .need_format(names::dns_subdomain, errors);
}
