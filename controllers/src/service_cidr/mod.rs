//! Says when a ServiceCIDR may be used, and holds one that is being deleted while Services have addresses in it.
//!
//! Watched: service CIDRs, IP addresses. Written: the finalizer and the condition `Ready` of service CIDRs. The API server gives out
//! addresses of ready ones only.

use std::net::IpAddr;
use std::sync::Arc;

use cox_client::Informer;
use cox_client::runner::{ObjectName, Verdict};
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::context::{Context, Loop};

const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";

struct Controller {
    context: Context,
    cidrs: Informer<ServiceCIDR>,
    addresses: Informer<IPAddress>,
}

pub(crate) async fn run(context: Context) {
    let cidrs = context.informers.of::<ServiceCIDR>();
    let addresses = context.informers.of::<IPAddress>();
    let mut frame = Loop::new("service-cidr");
    frame.feed(&cidrs, |cidr, keys| keys.push(ObjectName::of(cidr)));
    let known = cidrs.clone();
    frame.feed(&addresses, move |_, keys| {
        // Only one that waits for its last address is interested.
        let going = known.list().into_iter();
        let going = going.filter(|cidr| cidr.metadata.deletion_timestamp.is_some());
        keys.extend(going.map(|cidr| ObjectName::of(&*cidr)));
    });
    let cancel = context.cancel.clone();
    let controller = Arc::new(Controller {
        context,
        cidrs,
        addresses,
    });
    let reconcile = move |key: ObjectName| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    };
    frame.run(1, reconcile, cancel).await;
}

/// What a ServiceCIDR needs.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    Nothing,
    AddFinalizer,
    Ready,
    Waiting,
    RemoveFinalizer,
}

impl Controller {
    async fn reconcile(&self, key: &ObjectName) -> Verdict {
        let Some(cidr) = self.cidrs.get(None, &key.name) else {
            return Verdict::Done;
        };
        let plan = plan(&cidr, &self.cidrs.list(), &self.addresses.list());
        let finalizers = |wanted: bool| {
            let present = cidr.metadata.finalizers.clone().unwrap_or_default();
            let mut all: Vec<String> = present.into_iter().filter(|one| one != FINALIZER).collect();
            if wanted {
                all.push(FINALIZER.to_owned());
            }
            json!({"metadata": {"finalizers": all, "resourceVersion": cidr.metadata.resource_version}})
        };
        let api = self.context.cluster_api::<ServiceCIDR>();
        let params = PatchParams::default();
        let written = match plan {
            Plan::Nothing => return Verdict::Done,
            Plan::AddFinalizer => {
                api.patch(&key.name, &params, &Patch::Merge(finalizers(true)))
                    .await
            }
            Plan::RemoveFinalizer => {
                api.patch(&key.name, &params, &Patch::Merge(finalizers(false)))
                    .await
            }
            Plan::Ready => {
                api.patch_status(
                    &key.name,
                    &params,
                    &Patch::Merge(self.condition("True", "", "Kubernetes Service CIDR is ready")),
                )
                .await
            }
            Plan::Waiting => {
                let why = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";
                api.patch_status(
                    &key.name,
                    &params,
                    &Patch::Merge(self.condition("False", "Terminating", why)),
                )
                .await
            }
        };
        match written {
            Ok(_) => Verdict::Done,
            Err(error) if cox_client::is_not_found(&error) => Verdict::Done,
            Err(error) => Verdict::Backoff(error.into()),
        }
    }

    fn condition(&self, status: &str, reason: &str, message: &str) -> Value {
        let time = Time(self.context.clock.now());
        json!({"status": {"conditions": [{"type": "Ready", "status": status, "reason": reason,
            "message": message, "lastTransitionTime": time}]}})
    }
}

fn plan(cidr: &ServiceCIDR, all: &[Arc<ServiceCIDR>], addresses: &[Arc<IPAddress>]) -> Plan {
    let held = cidr
        .metadata
        .finalizers
        .iter()
        .flatten()
        .any(|one| one == FINALIZER);
    let conditions = cidr
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let ready = conditions
        .into_iter()
        .flatten()
        .find(|one| one.type_ == "Ready");
    let status = ready.map_or("", |one| one.status.as_str());
    if cidr.metadata.deletion_timestamp.is_none() {
        return match (held, status) {
            (false, _) => Plan::AddFinalizer,
            (true, "True") => Plan::Nothing,
            (true, _) => Plan::Ready,
        };
    }
    if !held {
        return Plan::Nothing;
    }
    let others: Vec<&Arc<ServiceCIDR>> = all
        .iter()
        .filter(|other| {
            other.metadata.name != cidr.metadata.name && other.metadata.deletion_timestamp.is_none()
        })
        .collect();
    let needed = addresses.iter().any(|address| {
        let ip = address
            .metadata
            .name
            .as_deref()
            .unwrap_or_default()
            .parse::<IpAddr>();
        ip.is_ok_and(|ip| holds(cidr, ip) && !others.iter().any(|other| holds(other, ip)))
    });
    match (needed, status) {
        (false, _) => Plan::RemoveFinalizer,
        (true, "False") => Plan::Nothing,
        (true, _) => Plan::Waiting,
    }
}

fn holds(cidr: &ServiceCIDR, ip: IpAddr) -> bool {
    let cidrs = cidr.spec.as_ref().and_then(|spec| spec.cidrs.as_ref());
    cidrs.into_iter().flatten().any(|text| contains(text, ip))
}

fn contains(cidr: &str, ip: IpAddr) -> bool {
    let Some((base, prefix)) = cidr.split_once('/') else {
        return false;
    };
    let (Ok(base), Ok(prefix)) = (base.parse::<IpAddr>(), prefix.parse::<u32>()) else {
        return false;
    };
    let (base, ip, bits) = match (base, ip) {
        (IpAddr::V4(base), IpAddr::V4(ip)) => (
            u128::from(u32::from(base)),
            u128::from(u32::from(ip)),
            32_u32,
        ),
        (IpAddr::V6(base), IpAddr::V6(ip)) => (u128::from(base), u128::from(ip), 128),
        _ => return false,
    };
    let host = bits.saturating_sub(prefix);
    base.checked_shr(host).unwrap_or(0) == ip.checked_shr(host).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_held_as_long_as_it_is_needed() {
        let cidr = |name: &str, extra: Value| -> Arc<ServiceCIDR> {
            let mut cidr = json!({"metadata": {"name": name}, "spec": {"cidrs": ["10.1.0.0/24"]}});
            cidr["metadata"]["finalizers"] = extra["finalizers"].clone();
            cidr["metadata"]["deletionTimestamp"] = extra["deleted"].clone();
            cidr["status"] = json!({"conditions": [{"type": "Ready", "status": extra["ready"].as_str().unwrap_or("Unknown"),
                "reason": "", "message": "", "lastTransitionTime": "2026-06-01T12:00:00Z"}]});
            Arc::new(serde_json::from_value(cidr).unwrap())
        };
        let address: Arc<IPAddress> = Arc::new(
            serde_json::from_value(json!({"metadata": {"name": "10.1.0.7"},
            "spec": {"parentRef": {"resource": "services", "name": "x"}}}))
            .unwrap(),
        );
        let deleted = "2026-06-01T12:00:00Z";
        let (new, held) = (
            cidr("a", json!({})),
            cidr("a", json!({"finalizers": [FINALIZER]})),
        );
        let ready = cidr("a", json!({"finalizers": [FINALIZER], "ready": "True"}));
        let going = cidr(
            "a",
            json!({"finalizers": [FINALIZER], "ready": "True", "deleted": deleted}),
        );
        let told = cidr(
            "a",
            json!({"finalizers": [FINALIZER], "ready": "False", "deleted": deleted}),
        );
        let other = cidr("b", json!({}));
        let used = [address];
        for (case, cidr, all, addresses, expected) in [
            (
                "a new one is held",
                &new,
                &[][..],
                &used[..],
                Plan::AddFinalizer,
            ),
            ("then it is ready", &held, &[], &used, Plan::Ready),
            ("and settled", &ready, &[], &used, Plan::Nothing),
            ("one that goes waits", &going, &[], &used, Plan::Waiting),
            ("and says so once", &told, &[], &used, Plan::Nothing),
            (
                "until nobody needs it",
                &told,
                &[],
                &[],
                Plan::RemoveFinalizer,
            ),
            (
                "or another has the same addresses",
                &told,
                std::slice::from_ref(&other),
                &used,
                Plan::RemoveFinalizer,
            ),
        ] {
            assert_eq!(plan(cidr, all, addresses), expected, "case: {case}");
        }
    }
}
