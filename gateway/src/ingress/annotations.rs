//! What Ingresses ask for beyond their fields. Names are `coxswain.dev/NAME`, or those of ingress-nginx, which most charts know.
//! Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{HeaderValue, StatusCode};

use crate::backend::Protocol;
use crate::table::{Cors, Limits, Redirect};

const PREFIXES: [&str; 2] = ["coxswain.dev/", "nginx.ingress.kubernetes.io/"];

const REDIRECTS: [(&str, StatusCode); 2] = [
    ("permanent-redirect", StatusCode::MOVED_PERMANENTLY),
    ("temporal-redirect", StatusCode::FOUND),
];

/// The wishes of one Ingress.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wishes {
    pub(crate) rewrite: Option<String>,
    pub(crate) use_regex: bool,
    /// Whether clients without TLS are sent to TLS; `None`: where the host has a certificate.
    pub(crate) https_only: Option<bool>,
    pub(crate) protocol: Option<Protocol>,
    pub(crate) app_root: Option<String>,
    pub(crate) redirect: Option<Redirect>,
    pub(crate) upstream_host: Option<HeaderValue>,
    pub(crate) limits: Limits,
    pub(crate) cors: Option<Cors>,
    /// What cannot be understood, in sentences.
    pub(crate) problems: Vec<String>,
}

impl Wishes {
    pub(crate) fn read(annotations: Option<&BTreeMap<String, String>>) -> Self {
        let mut wishes = Self::default();
        let Some(annotations) = annotations else {
            return wishes;
        };
        let get = |name: &str| {
            let mut keys = PREFIXES.iter().map(|prefix| format!("{prefix}{name}"));
            keys.find_map(|key| Some((annotations.get(&key)?.trim(), key)))
        };
        let is = |name: &str| get(name).map(|(value, _)| value == "true");
        wishes.rewrite = get("rewrite-target").map(|(value, _)| value.to_owned());
        let captures = wishes
            .rewrite
            .as_deref()
            .is_some_and(|rewrite| rewrite.contains('$'));
        wishes.use_regex = is("use-regex").unwrap_or(captures);
        wishes.https_only = is("ssl-redirect");
        if is("force-ssl-redirect") == Some(true) {
            wishes.https_only = Some(true);
        }
        wishes.app_root = get("app-root").map(|(value, _)| value.to_owned());
        if is("enable-cors") == Some(true) {
            wishes.cors = Some(cors(&|name| get(name).map(|(value, _)| value)));
        }
        let mut problems = Vec::new();
        let mut unclear = |(value, key): (&str, String), expected: &str| {
            problems.push(format!("Annotation {key}: \"{value}\" is not {expected}."));
        };
        if let Some(found) = get("backend-protocol") {
            match found.0.to_ascii_uppercase().as_str() {
                "HTTP" => wishes.protocol = Some(Protocol::Http),
                "HTTPS" => wishes.protocol = Some(Protocol::Https),
                "GRPC" | "H2C" => wishes.protocol = Some(Protocol::H2c),
                "GRPCS" => wishes.protocol = Some(Protocol::H2),
                _ => unclear(found, "one of HTTP, HTTPS, GRPC, GRPCS"),
            }
        }
        if let Some(found) = get("upstream-vhost") {
            match HeaderValue::try_from(found.0) {
                Ok(host) => wishes.upstream_host = Some(host),
                Err(_) => unclear(found, "a host"),
            }
        }
        if let Some(found) = get("proxy-read-timeout") {
            match found.0.trim_end_matches('s').parse::<u64>() {
                Ok(secs) if secs > 0 => wishes.limits.answer = Duration::from_secs(secs),
                _ => unclear(found, "a number of seconds"),
            }
        }
        if let Some(found) = get("proxy-body-size") {
            match size(found.0) {
                Some(bytes) => {
                    wishes.limits.body_bytes_max = Some(bytes).filter(|bytes| *bytes > 0)
                }
                None => unclear(found, "a size such as 8m"),
            }
        }
        for (name, status) in REDIRECTS {
            let Some(found) = get(name) else { continue };
            match redirect(found.0, status) {
                Some(redirect) => wishes.redirect = Some(redirect),
                None => unclear(found, "an address"),
            }
        }
        wishes.problems = problems;
        wishes
    }
}

/// What pages of other origins may do, where nothing is said as ingress-nginx has it.
fn cors<'a>(get: &dyn Fn(&str) -> Option<&'a str>) -> Cors {
    const HEADERS: &str = "DNT, Keep-Alive, User-Agent, X-Requested-With, If-Modified-Since, Cache-Control, Content-Type, Range, \
                           Authorization";
    let list = |name: &str, usual: &str| -> Vec<String> {
        let all = get(name).unwrap_or(usual).split(',').map(str::trim);
        all.filter(|one| !one.is_empty())
            .map(str::to_owned)
            .collect()
    };
    Cors {
        origins: list("cors-allow-origin", "*"),
        credentials: get("cors-allow-credentials") != Some("false"),
        methods: list(
            "cors-allow-methods",
            "GET, PUT, POST, DELETE, PATCH, OPTIONS",
        ),
        headers: list("cors-allow-headers", HEADERS),
        exposed: list("cors-expose-headers", ""),
        max_age_secs: get("cors-max-age")
            .and_then(|text| text.parse().ok())
            .unwrap_or(1_728_000),
    }
}

/// To an address of its own.
fn redirect(address: &str, status: StatusCode) -> Option<Redirect> {
    let whole = HeaderValue::try_from(address).ok()?;
    Some(Redirect {
        whole: Some(whole),
        status,
        ..Redirect::default()
    })
}

/// nginx's sizes: bytes, or with k, m or g.
fn size(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches(['k', 'm', 'g']);
    let factor: u64 = match &lower[digits.len()..] {
        "" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Wishes {
        let map = pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Wishes::read(Some(&map.collect()))
    }

    #[test]
    fn what_is_understood() {
        let wishes = read(&[
            ("nginx.ingress.kubernetes.io/rewrite-target", "/$2"),
            ("nginx.ingress.kubernetes.io/backend-protocol", "grpc"),
            ("nginx.ingress.kubernetes.io/proxy-body-size", "8m"),
            ("nginx.ingress.kubernetes.io/proxy-read-timeout", "5"),
            ("coxswain.dev/ssl-redirect", "false"),
            ("nginx.ingress.kubernetes.io/ssl-redirect", "true"),
        ]);
        assert!(wishes.use_regex, "a rewrite with groups needs patterns");
        assert_eq!(wishes.protocol, Some(Protocol::H2c));
        assert_eq!(wishes.https_only, Some(false), "our own name goes first");
        assert_eq!(wishes.limits.answer, Duration::from_secs(5));
        assert_eq!(wishes.limits.body_bytes_max, Some(8 << 20));
        assert!(wishes.problems.is_empty());
    }

    #[test]
    fn pages_of_other_origins() {
        assert_eq!(read(&[("coxswain.dev/cors-allow-origin", "*")]).cors, None);
        let wishes = read(&[
            ("nginx.ingress.kubernetes.io/enable-cors", "true"),
            (
                "nginx.ingress.kubernetes.io/cors-allow-origin",
                "https://a.example, https://*.b.example",
            ),
            ("nginx.ingress.kubernetes.io/cors-max-age", "60"),
        ]);
        let cors = wishes.cors.unwrap();
        assert_eq!(cors.origins, ["https://a.example", "https://*.b.example"]);
        assert_eq!(
            (cors.credentials, cors.max_age_secs, cors.methods.len()),
            (true, 60, 6)
        );
        assert!(cors.headers.contains(&"Authorization".to_owned()) && cors.exposed.is_empty());
    }

    #[test]
    fn what_is_not_is_said() {
        let wishes = read(&[
            ("nginx.ingress.kubernetes.io/backend-protocol", "AJP"),
            ("coxswain.dev/proxy-body-size", "much"),
        ]);
        assert_eq!(
            wishes.problems,
            [
                "Annotation nginx.ingress.kubernetes.io/backend-protocol: \"AJP\" is not one of HTTP, HTTPS, GRPC, GRPCS.",
                "Annotation coxswain.dev/proxy-body-size: \"much\" is not a size such as 8m.",
            ]
        );
    }
}
