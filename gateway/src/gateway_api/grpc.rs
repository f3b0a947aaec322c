//! GRPCRoutes as what they are on the wire: requests over HTTP/2 to the path `/SERVICE/METHOD`. Pure.

use super::types::{GrpcMatch, GrpcMethod, GrpcSpec, PathSpec, RouteMatch, RouteSpec, Rule};

/// The same as an HTTPRoute would say it.
pub(crate) fn as_http(spec: &GrpcSpec) -> RouteSpec {
    let rules = spec.rules.iter().map(|rule| Rule {
        matches: rule.matches.iter().map(one_match).collect(),
        filters: rule.filters.clone(),
        backend_refs: rule.backend_refs.clone(),
        timeouts: None,
    });
    RouteSpec {
        parent_refs: spec.parent_refs.clone(),
        hostnames: spec.hostnames.clone(),
        rules: rules.collect(),
    }
}

fn one_match(one: &GrpcMatch) -> RouteMatch {
    RouteMatch {
        path: one.method.as_ref().and_then(path),
        headers: one.headers.clone(),
        ..RouteMatch::default()
    }
}

/// `None`: every method of every service.
fn path(method: &GrpcMethod) -> Option<PathSpec> {
    let is_pattern = method.r#type.as_deref() == Some("RegularExpression");
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let (kind, value) = match (given(&method.service), given(&method.method)) {
        (None, None) => return None,
        (Some(service), Some(name)) if !is_pattern => ("Exact", format!("/{service}/{name}")),
        (Some(service), None) if !is_pattern => ("PathPrefix", format!("/{service}")),
        (service, name) => {
            let pattern = |text: Option<String>| match text {
                None => "[^/]+".to_owned(),
                Some(text) if is_pattern => format!("(?:{text})"),
                Some(text) => regex::escape(&text),
            };
            let value = format!("/{}/{}$", pattern(service), pattern(name));
            ("RegularExpression", value)
        }
    };
    Some(PathSpec {
        r#type: Some(kind.to_owned()),
        value: Some(value),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn methods_are_paths() {
        for (case, method, expected) in [
            (
                "a method of a service",
                json!({"service": "a.B", "method": "Get"}),
                json!({"type": "Exact", "value": "/a.B/Get"}),
            ),
            (
                "a service",
                json!({"type": "Exact", "service": "a.B"}),
                json!({"type": "PathPrefix", "value": "/a.B"}),
            ),
            (
                "a method wherever it is",
                json!({"method": "Get"}),
                json!({"type": "RegularExpression", "value": "/[^/]+/Get$"}),
            ),
            (
                "patterns",
                json!({"type": "RegularExpression", "service": "a[.].*", "method": "Get|Put"}),
                json!({"type": "RegularExpression", "value": "/(?:a[.].*)/(?:Get|Put)$"}),
            ),
            ("everything", json!({}), Value::Null),
        ] {
            let spec = json!({"rules": [{"matches": [{"method": method}]}]});
            let spec: GrpcSpec = serde_json::from_value(spec).unwrap();
            let path = &as_http(&spec).rules[0].matches[0].path;
            assert_eq!(json!(path), expected, "{case}");
        }
    }
}
