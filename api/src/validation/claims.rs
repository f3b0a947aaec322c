//! Resource claims of a Pod.

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
