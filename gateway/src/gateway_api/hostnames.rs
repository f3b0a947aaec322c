//! Which hosts a route has on a listener. Pure.

use crate::table::HostPattern;

/// The hosts that both mean, the more specific of each two; empty: they have nothing in common.
pub(crate) fn intersect(listener: Option<&str>, route: &[String]) -> Vec<HostPattern> {
    let listener = listener.map_or(HostPattern::Any, HostPattern::of_gateway);
    if route.is_empty() {
        return vec![listener];
    }
    let mut all: Vec<HostPattern> = route
        .iter()
        .filter_map(|host| both(&listener, &HostPattern::of_gateway(host)))
        .collect();
    all.sort();
    all.dedup();
    all
}

/// Whether some host is one of both.
pub(crate) fn overlap(a: &HostPattern, b: &HostPattern) -> bool {
    both(a, b).is_some()
}

fn both(a: &HostPattern, b: &HostPattern) -> Option<HostPattern> {
    if covers(a, b) {
        Some(b.clone())
    } else if covers(b, a) {
        Some(a.clone())
    } else {
        None
    }
}

/// Whether all hosts of the second are hosts of the first.
fn covers(wide: &HostPattern, narrow: &HostPattern) -> bool {
    let below = |host: &str, suffix: &str| {
        host.strip_suffix(suffix)
            .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
    };
    match (wide, narrow) {
        (HostPattern::Any, _) => true,
        (HostPattern::Exact(a), HostPattern::Exact(b)) => a == b,
        (HostPattern::Labels(suffix), HostPattern::Exact(host)) => below(host, suffix),
        (HostPattern::Labels(suffix), HostPattern::Labels(narrow)) => {
            narrow == suffix || below(narrow, suffix)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_both_mean() {
        let exact = |host: &str| HostPattern::Exact(host.into());
        let wild = |suffix: &str| HostPattern::Labels(suffix.into());
        for (listener, route, expected) in [
            (None, &[][..], vec![HostPattern::Any]),
            (None, &["a.example"], vec![exact("a.example")]),
            (Some("a.example"), &[], vec![exact("a.example")]),
            (
                Some("a.example"),
                &["a.example", "b.example"],
                vec![exact("a.example")],
            ),
            (
                Some("*.example"),
                &["a.example", "b.a.example", "example"],
                vec![exact("a.example"), exact("b.a.example")],
            ),
            (Some("a.example"), &["*.example"], vec![exact("a.example")]),
            (Some("*.example"), &["*.a.example"], vec![wild("a.example")]),
            (Some("*.a.example"), &["*.example"], vec![wild("a.example")]),
            (Some("*.example"), &["*.example"], vec![wild("example")]),
            (Some("*.example"), &["*.other", "xexample"], vec![]),
        ] {
            let route: Vec<String> = route.iter().map(ToString::to_string).collect();
            assert_eq!(
                intersect(listener, &route),
                expected,
                "{listener:?} and {route:?}"
            );
        }
    }
}
