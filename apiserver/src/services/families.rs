//! The address families of a Service: what follows from what its author said and from what the cluster has. Pure.

use cox_api::validation::FieldError;
use serde_json::{Map, Value, json};

const POLICY: &str = "spec.ipFamilyPolicy";

fn texts(spec: &Map<String, Value>, field: &str) -> Vec<String> {
    let list = spec.get(field).and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(|one| one.as_str().map(str::to_owned))
        .collect()
}

fn family_of(ip: &str) -> &'static str {
    if ip.contains(':') { "IPv6" } else { "IPv4" }
}

fn other(family: &str) -> &'static str {
    if family == "IPv4" { "IPv6" } else { "IPv4" }
}

/// Fills in `ipFamilyPolicy` and `ipFamilies`; `configured` are the cluster's families, its default first.
pub(super) fn complete(
    service: &mut Value,
    old: Option<&Value>,
    configured: &[&str],
) -> Vec<FieldError> {
    let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) else {
        return Vec::new();
    };
    if spec.get("type").and_then(Value::as_str) == Some("ExternalName") {
        return Vec::new();
    }
    let old_spec = old.and_then(|old| old.get("spec")?.as_object());
    let selectorless = spec
        .get("selector")
        .and_then(Value::as_object)
        .is_none_or(Map::is_empty);
    let headless = spec.get("clusterIP").and_then(Value::as_str) == Some("None");
    if spec.get("ipFamilyPolicy").is_none_or(Value::is_null) {
        let before = old_spec.and_then(|old| old.get("ipFamilyPolicy")?.as_str());
        let policy = before.unwrap_or(if headless && selectorless {
            "RequireDualStack"
        } else {
            "SingleStack"
        });
        spec.insert("ipFamilyPolicy".to_owned(), Value::from(policy));
    }
    let policy = spec["ipFamilyPolicy"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let single = policy == "SingleStack";
    if let Some(old) = old_spec.filter(|_| single) {
        // Going back to one family is said by the policy alone.
        for field in ["clusterIPs", "ipFamilies"] {
            let list = texts(spec, field);
            if list.len() > 1 && list == texts(old, field) {
                spec.insert(field.to_owned(), json!([list[0]]));
            }
        }
    }
    let mut errors = Vec::new();
    let (ips, mut families) = (texts(spec, "clusterIPs"), texts(spec, "ipFamilies"));
    if single {
        for (count, what) in [(ips.len(), "cluster IPs"), (families.len(), "IP families")] {
            if count == 2 {
                errors.push(FieldError::invalid(POLICY, policy.as_str(), format!("must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified")));
            }
        }
    }
    for (at, ip) in ips.iter().enumerate().take_while(|(_, ip)| *ip != "None") {
        let family = family_of(ip);
        if at < families.len() {
            continue;
        }
        if configured.contains(&family) {
            families.push(family.to_owned());
        } else {
            errors.push(FieldError::invalid(
                format!("spec.clusterIPs[{at}]"),
                json!(ips),
                format!("{family} is not configured on this cluster"),
            ));
        }
    }
    if errors.is_empty() {
        errors = choose(&mut families, &policy, configured, headless && selectorless);
    }
    spec.insert("ipFamilies".to_owned(), json!(families));
    errors
}

fn choose(
    families: &mut Vec<String>,
    policy: &str,
    configured: &[&str],
    free: bool,
) -> Vec<FieldError> {
    let default = configured.first().copied().unwrap_or("IPv4");
    if free {
        // Nobody gives such a Service addresses, so it may have families that the cluster has not.
        if families.is_empty() {
            families.push(default.to_owned());
        }
        if families.len() < 2 && policy != "SingleStack" {
            families.push(other(&families[0]).to_owned());
        }
        return Vec::new();
    }
    let mut errors = Vec::new();
    if policy == "RequireDualStack" && configured.len() < 2 {
        errors.push(FieldError::invalid(
            POLICY,
            policy,
            "this cluster is not configured for dual-stack services",
        ));
    }
    for (at, family) in families.iter().enumerate() {
        if !configured.contains(&family.as_str()) {
            errors.push(FieldError::invalid(
                format!("spec.ipFamilies[{at}]"),
                family.as_str(),
                "not configured on this cluster",
            ));
        }
    }
    if !errors.is_empty() {
        return errors;
    }
    if families.is_empty() {
        families.push(default.to_owned());
    }
    if policy != "SingleStack" && families.len() == 1 && configured.len() == 2 {
        families.push(other(&families[0]).to_owned());
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::too_many_lines, reason = "one table")]
    fn families_table() {
        let both: &[&str] = &["IPv4", "IPv6"];
        let one: &[&str] = &["IPv4"];
        type Case<'a> = (
            &'a str,
            Value,
            &'a [&'a str],
            Result<(&'a str, &'a str), &'a str>,
        );
        let cases: &[Case<'_>] = &[
            (
                "a plain Service",
                json!({"selector": {"a": "b"}}),
                one,
                Ok(("SingleStack", "IPv4")),
            ),
            (
                "headless without selector has both",
                json!({"clusterIP": "None"}),
                one,
                Ok(("RequireDualStack", "IPv4 IPv6")),
            ),
            (
                "headless with selector",
                json!({"clusterIP": "None", "selector": {"a": "b"}}),
                one,
                Ok(("SingleStack", "IPv4")),
            ),
            (
                "prefers both and gets both",
                json!({"ipFamilyPolicy": "PreferDualStack"}),
                both,
                Ok(("PreferDualStack", "IPv4 IPv6")),
            ),
            (
                "prefers both and gets one",
                json!({"ipFamilyPolicy": "PreferDualStack"}),
                one,
                Ok(("PreferDualStack", "IPv4")),
            ),
            (
                "requires both",
                json!({"ipFamilyPolicy": "RequireDualStack"}),
                one,
                Err("this cluster is not configured for dual-stack services"),
            ),
            (
                "a family that the cluster has not",
                json!({"ipFamilies": ["IPv6"]}),
                one,
                Err("not configured on this cluster"),
            ),
            (
                "the address says the family",
                json!({"clusterIP": "fd00::5", "clusterIPs": ["fd00::5"]}),
                both,
                Ok(("SingleStack", "IPv6")),
            ),
        ];
        for (case, spec, configured, expected) in cases {
            let mut service = json!({"spec": spec});
            let errors = complete(&mut service, None, configured);
            match expected {
                Ok((policy, families)) => {
                    assert!(errors.is_empty(), "case: {case}: {errors:?}");
                    assert_eq!(service["spec"]["ipFamilyPolicy"], *policy, "case: {case}");
                    let list = texts(service["spec"].as_object().unwrap(), "ipFamilies");
                    assert_eq!(list.join(" "), *families, "case: {case}");
                }
                Err(why) => assert!(
                    errors.iter().any(|error| error.to_string().contains(why)),
                    "case: {case}: {errors:?}"
                ),
            }
        }
    }
}
