//! DefaultIngressClass: an Ingress that names no class gets the default one.

use cox_api::meta;
use cox_store::Snapshot;

use super::decoded::all_known;
use super::storage::default_of;
use super::{Operation, Request};

const IS_DEFAULT: [&str; 1] = ["ingressclass.kubernetes.io/is-default-class"];
/// How Ingresses named their class before there was a field for it.
const OLD_CLASS: &str = "kubernetes.io/ingress.class";

pub(super) fn admit(request: &mut Request<'_>, snapshot: &Snapshot) {
    if request.operation != Operation::Create || !request.is("networking.k8s.io", "ingresses") {
        return;
    }
    let Some(ingress) = &mut request.object else {
        return;
    };
    if ingress["spec"]["ingressClassName"].is_string()
        || meta::annotation(ingress, OLD_CLASS).is_some()
    {
        return;
    }
    if let Some(class) = default_of(all_known(snapshot, "ingressclasses"), &IS_DEFAULT) {
        ingress["spec"]["ingressClassName"] = class.into();
    }
}
