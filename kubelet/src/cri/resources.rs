//! Requests and limits as the runtime wants them. Pure.

use cox_cri::v1::{HugepageLimit, LinuxContainerResources};
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// The CFS period that quotas are made for.
const CPU_PERIOD_US: i64 = 100_000;
/// The kernel takes no smaller quota.
const CPU_QUOTA_MIN_US: i64 = 1_000;
/// The kernel takes no fewer shares.
const CPU_SHARES_MIN: i64 = 2;
const CPU_SHARES_MAX: i64 = 262_144;
/// Scale of sums, as `10^9`: exact for every quantity that an API server accepts.
const NANO: i128 = 1_000_000_000;

/// The value of a quantity in billionths, or `None` if it is not one.
fn nanos(quantity: &Quantity) -> Option<i128> {
    let text = quantity.0.trim();
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-')))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let factor: i128 = match suffix {
        "n" => 1,
        "u" => 1_000,
        "m" => 1_000_000,
        "" => NANO,
        "k" => NANO * 1_000,
        "M" => NANO * 1_000_000,
        "G" => NANO * 1_000_000_000,
        "T" => NANO * 1_000_000_000_000,
        "P" => NANO * 1_000_000_000_000_000,
        "E" => NANO * 1_000_000_000_000_000_000,
        "Ki" => NANO << 10,
        "Mi" => NANO << 20,
        "Gi" => NANO << 30,
        "Ti" => NANO << 40,
        "Pi" => NANO << 50,
        "Ei" => NANO << 60,
        exponent => {
            let power: u32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            NANO.checked_mul(10_i128.checked_pow(power)?)?
        }
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let negative = whole.starts_with('-');
    let whole: i128 = if whole.trim_start_matches(['+', '-']).is_empty() {
        0
    } else {
        whole.parse().ok()?
    };
    let mut value = whole.checked_mul(factor)?;
    let mut scale = factor;
    for digit in fraction.chars() {
        scale /= 10;
        let part = i128::from(digit.to_digit(10)?) * scale;
        value += if negative { -part } else { part };
    }
    Some(value)
}

/// Whole units, rounded up as upstream rounds.
#[must_use]
pub fn value(quantity: &Quantity) -> Option<i64> {
    i64::try_from(ceil(nanos(quantity)?, NANO)).ok()
}

/// Thousandths, rounded up.
#[must_use]
pub fn milli_value(quantity: &Quantity) -> Option<i64> {
    i64::try_from(ceil(nanos(quantity)?, 1_000_000)).ok()
}

fn ceil(value: i128, unit: i128) -> i128 {
    value.div_euclid(unit) + i128::from(value.rem_euclid(unit) != 0)
}

fn get<'a>(map: Option<&'a BTreeMap<String, Quantity>>, name: &str) -> Option<&'a Quantity> {
    map?.get(name)
}

/// What the runtime enforces for a container. `node_memory` scales the score by which the kernel picks victims.
#[must_use]
pub fn linux(pod: &Pod, container: &Container, node_memory: i64) -> LinuxContainerResources {
    let resources = container.resources.as_ref();
    let limits = resources.and_then(|resources| resources.limits.as_ref());
    let requests = resources.and_then(|resources| resources.requests.as_ref());
    // A container without a limit has that of the Pod as a whole.
    let whole = crate::pod::containers::spec(pod).resources.as_ref();
    let whole = whole.and_then(|resources| resources.limits.as_ref());
    let limit = |name| get(limits, name).or(get(whole, name));
    let cpu_limit = limit("cpu").and_then(milli_value);
    let cpu_request = get(requests, "cpu")
        .and_then(milli_value)
        .or(cpu_limit)
        .unwrap_or(0);
    let memory_request = get(requests, "memory")
        .or(get(limits, "memory"))
        .and_then(value)
        .unwrap_or(0);
    LinuxContainerResources {
        cpu_period: CPU_PERIOD_US,
        cpu_quota: cpu_limit.filter(|milli| *milli > 0).map_or(0, |milli| {
            (milli * CPU_PERIOD_US / 1000).max(CPU_QUOTA_MIN_US)
        }),
        cpu_shares: (cpu_request * 1024 / 1000).clamp(CPU_SHARES_MIN, CPU_SHARES_MAX),
        memory_limit_in_bytes: limit("memory").and_then(value).unwrap_or(0),
        oom_score_adj: oom_score_adj(pod, memory_request, node_memory),
        hugepage_limits: hugepages(limits.filter(|own| has_pages(own)).or(whole)),
        ..LinuxContainerResources::default()
    }
}

fn has_pages(limits: &BTreeMap<String, Quantity>) -> bool {
    limits.keys().any(|name| name.starts_with("hugepages-"))
}

fn hugepages(limits: Option<&BTreeMap<String, Quantity>>) -> Vec<HugepageLimit> {
    let limits = limits.into_iter().flatten();
    let one = |(name, limit): (&String, &Quantity)| {
        Some(HugepageLimit {
            page_size: crate::cgroups::plan::page_size(name)?,
            limit: u64::try_from(value(limit)?).ok()?,
        })
    };
    limits.filter_map(one).collect()
}

/// Guaranteed Pods go last, best effort first, the others by their share of the node's memory.
fn oom_score_adj(pod: &Pod, memory_request: i64, node_memory: i64) -> i64 {
    let spec = crate::pod::containers::spec(pod);
    if spec.priority.unwrap_or(0) >= 2_000_000_000 {
        return -997;
    }
    match crate::pod::status::qos::of(spec) {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => (1000 - 1000 * memory_request / node_memory.max(1)).clamp(3, 999),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_round_up() {
        let cases = [
            ("1", 1, 1000),
            ("100m", 1, 100),
            ("1.5", 2, 1500),
            ("64Mi", 64 << 20, 1000 * (64 << 20)),
            ("1k", 1000, 1_000_000),
            ("2e3", 2000, 2_000_000),
            ("0.5Gi", 512 << 20, 1000 * (512 << 20)),
            ("1u", 1, 1),
            ("0", 0, 0),
        ];
        for (text, whole, milli) in cases {
            let quantity = Quantity(text.into());
            assert_eq!(
                (value(&quantity), milli_value(&quantity)),
                (Some(whole), Some(milli)),
                "{text}"
            );
        }
        assert_eq!(value(&Quantity("12 apples".into())), None);
    }

    #[test]
    fn a_container_without_a_limit_has_that_of_its_pod() {
        let pod: Pod = serde_json::from_value(serde_json::json!({ "metadata": {}, "spec": {
            "resources": {"limits": {"cpu": "2", "memory": "1Gi", "hugepages-2Mi": "4Mi"}},
            "containers": [
                {"name": "a", "resources": {"limits": {"memory": "64Mi"}}},
                {"name": "b", "resources": {"limits": {"cpu": "1", "hugepages-2Mi": "2Mi"}}}
        ]}}))
        .unwrap();
        let shown = |index: usize| {
            let container = &pod.spec.as_ref().unwrap().containers[index];
            let found = linux(&pod, container, 1 << 30);
            let pages = found.hugepage_limits[0].limit >> 20;
            (found.cpu_quota, found.memory_limit_in_bytes >> 20, pages)
        };
        assert_eq!([shown(0), shown(1)], [(200_000, 64, 4), (100_000, 1024, 2)]);
    }

    #[test]
    fn limits_become_quota_and_bytes() {
        let pod: Pod = serde_json::from_value(serde_json::json!({ "metadata": {}, "spec": { "containers": [
            {"name": "a", "resources": {"limits": {"cpu": "250m", "memory": "64Mi"}, "requests": {"cpu": "100m"}}},
            {"name": "b"}
        ]}}))
        .unwrap();
        let spec = pod.spec.as_ref().unwrap();
        let limited = linux(&pod, &spec.containers[0], 1 << 30);
        assert_eq!(
            (
                limited.cpu_quota,
                limited.cpu_shares,
                limited.memory_limit_in_bytes
            ),
            (25_000, 102, 64 << 20)
        );
        assert_eq!(limited.oom_score_adj, 1000 - 1000 * (64 << 20) / (1 << 30));
        let free = linux(&pod, &spec.containers[1], 1 << 30);
        assert_eq!(
            (free.cpu_quota, free.cpu_shares, free.memory_limit_in_bytes),
            (0, 2, 0)
        );
    }
}
