//! What the cgroup of a Pod or of a class of Pods is set to, from what the Pods ask for. Pure.

use crate::cri::resources::{milli_value, value};
use crate::pod::containers::{inits, is_sidecar, mains, spec};
use crate::pod::status::qos;
use crate::resources::of_pod;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// The CFS period that quotas are made for.
pub(super) const CPU_PERIOD_US: i64 = 100_000;
const CPU_QUOTA_MIN_US: i64 = 1_000;
const CPU_SHARES_MIN: i64 = 2;
const CPU_SHARES_MAX: i64 = 262_144;

/// Settings of one cgroup; `None`: no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub cpu_shares: i64,
    pub cpu_quota_us: Option<i64>,
    pub memory_bytes: Option<i64>,
    /// By the page size as the kernel spells it, such as `2MB`.
    pub huge_pages: BTreeMap<String, i64>,
    pub pids: Option<i64>,
}

/// The weight of so many thousandths of a core.
#[must_use]
pub fn shares(milli: i64) -> i64 {
    (milli.max(0).saturating_mul(1024) / 1000).clamp(CPU_SHARES_MIN, CPU_SHARES_MAX)
}

fn limit_of<'a>(resources: Option<&'a ResourceRequirements>, name: &str) -> Option<&'a Quantity> {
    resources?.limits.as_ref()?.get(name)
}

/// The limit of all containers together; `None`: one of them has none. What the Pod as a whole says goes first.
fn limit(pod: &Pod, name: &str, amount: fn(&Quantity) -> Option<i64>) -> Option<i64> {
    if let Some(whole) = limit_of(spec(pod).resources.as_ref(), name) {
        return amount(whole);
    }
    let of = |container: &Container| amount(limit_of(container.resources.as_ref(), name)?);
    let mut running: i64 = mains(pod)
        .iter()
        .map(of)
        .try_fold(0_i64, |sum, one| Some(sum.saturating_add(one?)))?;
    let (mut sidecars, mut starting) = (0_i64, 0_i64);
    for init in inits(pod) {
        let own = of(init)?;
        if is_sidecar(pod, init) {
            sidecars = sidecars.saturating_add(own);
            starting = starting.max(sidecars);
        } else {
            starting = starting.max(sidecars.saturating_add(own));
        }
    }
    running = running.saturating_add(sidecars).max(starting);
    let overhead = spec(pod)
        .overhead
        .as_ref()
        .and_then(|overhead| amount(overhead.get(name)?));
    Some(running.saturating_add(overhead.unwrap_or(0))).filter(|limit| *limit > 0)
}

/// `hugepages-2Mi` as the kernel spells the size: `2MB`.
#[must_use]
pub fn page_size(resource: &str) -> Option<String> {
    let size = resource.strip_prefix("hugepages-")?;
    let bytes = value(&Quantity(size.to_owned()))?;
    Some(match bytes {
        bytes if bytes >= 1 << 30 => format!("{}GB", bytes >> 30),
        bytes if bytes >= 1 << 20 => format!("{}MB", bytes >> 20),
        bytes => format!("{}KB", bytes >> 10),
    })
}

/// The settings of a Pod's cgroup.
#[must_use]
pub fn of(pod: &Pod, pids: Option<i64>) -> Settings {
    let asked = of_pod(pod);
    let cpu = asked.get("cpu").copied().unwrap_or(0);
    let mut settings = Settings {
        cpu_shares: shares(cpu),
        pids,
        ..Settings::default()
    };
    for (name, amount) in &asked {
        if let Some(size) = page_size(name) {
            settings.huge_pages.insert(size, *amount);
        }
    }
    if qos::of(spec(pod)) == "BestEffort" {
        settings.cpu_shares = CPU_SHARES_MIN;
        return settings;
    }
    let quota = limit(pod, "cpu", milli_value);
    settings.cpu_quota_us =
        quota.map(|milli| (milli.saturating_mul(CPU_PERIOD_US) / 1000).max(CPU_QUOTA_MIN_US));
    settings.memory_bytes = limit(pod, "memory", value);
    settings
}

/// For the time of a resize: nothing of either is too little.
#[must_use]
pub fn widest(one: &Settings, other: &Settings) -> Settings {
    let both = |a: Option<i64>, b: Option<i64>| Some(a?.max(b?));
    let mut huge_pages = one.huge_pages.clone();
    for (size, bytes) in &other.huge_pages {
        let known = huge_pages.entry(size.clone()).or_default();
        *known = (*known).max(*bytes);
    }
    Settings {
        cpu_shares: one.cpu_shares.max(other.cpu_shares),
        cpu_quota_us: both(one.cpu_quota_us, other.cpu_quota_us),
        memory_bytes: both(one.memory_bytes, other.memory_bytes),
        huge_pages,
        pids: both(one.pids, other.pids),
    }
}

/// Where the cgroup of a Pod is below that of all Pods.
#[must_use]
pub fn path(pod: &Pod) -> String {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    match qos::of(spec(pod)) {
        "BestEffort" => format!("besteffort/pod{uid}"),
        "Burstable" => format!("burstable/pod{uid}"),
        _ => format!("pod{uid}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"uid": "u"}, "spec": spec})).unwrap()
    }

    #[test]
    fn settings_table() {
        let limited = |cpu: &str, memory: &str| json!({"name": "c", "resources": {"limits": {"cpu": cpu, "memory": memory}}});
        let asks =
            json!({"name": "a", "resources": {"requests": {"cpu": "500m", "memory": "1Mi"}}});
        let sidecar = json!({"name": "s", "restartPolicy": "Always", "resources": {"limits": {"cpu": "100m", "memory": "1Mi"}}});
        let cases = [
            (
                "best effort",
                json!({"containers": [{"name": "a"}]}),
                "besteffort/podu",
                (2, None, None),
            ),
            (
                "burstable without limits",
                json!({"containers": [asks]}),
                "burstable/podu",
                (512, None, None),
            ),
            (
                "one container without a limit leaves the Pod without",
                json!({"containers": [asks, limited("1", "1Mi")]}),
                "burstable/podu",
                (1536, None, None),
            ),
            (
                "limits add up, with those of sidecars",
                json!({"containers": [limited("1", "1Mi"), limited("500m", "2Mi")], "initContainers": [sidecar]}),
                "podu",
                (1638, Some(160_000), Some(4 << 20)),
            ),
            (
                "the Pod as a whole",
                json!({"containers": [{"name": "a"}], "resources": {"limits": {"cpu": "2", "memory": "8Mi"}, "requests": {"cpu": "1", "memory": "8Mi"}}}),
                "burstable/podu",
                (1024, Some(200_000), Some(8 << 20)),
            ),
        ];
        for (name, spec, place, expected) in cases {
            let pod = pod(spec);
            let found = of(&pod, None);
            assert_eq!(path(&pod), place, "case: {name}");
            let found = (found.cpu_shares, found.cpu_quota_us, found.memory_bytes);
            assert_eq!(found, expected, "case: {name}");
        }
    }

    #[test]
    fn huge_pages_are_spelled_as_the_kernel_does() {
        let sizes = ["hugepages-2Mi", "hugepages-1Gi", "hugepages-64Ki", "memory"];
        assert_eq!(
            sizes.map(page_size),
            [
                Some("2MB".into()),
                Some("1GB".into()),
                Some("64KB".into()),
                None
            ]
        );
    }

    #[test]
    fn while_a_pod_is_resized_neither_size_is_too_little() {
        let settings = |memory| Settings {
            memory_bytes: memory,
            ..Settings::default()
        };
        assert_eq!(
            widest(&settings(Some(1)), &settings(Some(2))).memory_bytes,
            Some(2)
        );
        assert_eq!(
            widest(&settings(None), &settings(Some(2))).memory_bytes,
            None
        );
    }
}
