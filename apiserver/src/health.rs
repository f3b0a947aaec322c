//! `/healthz`, `/livez`, `/readyz` and their single checks, in upstream's text form; `/version`.

use http::{HeaderValue, Response, StatusCode};
use serde_json::{Value, json};

use crate::api::Api;
use crate::body::Body;
use crate::query::Query;
use crate::render;

/// The Kubernetes release whose API this server speaks.
pub(crate) const MINOR: &str = "36";
const GIT_VERSION: &str = concat!("v1.36.2+cox", env!("CARGO_PKG_VERSION"));

type Check = (&'static str, fn(&Api) -> bool);

const LIVE: &[Check] = &[("ping", |_| true), ("store", store_open)];
const READY: &[Check] = &[
    ("ping", |_| true),
    ("store", store_open),
    ("poststarthook/bootstrap", |api| {
        api.ready.load(std::sync::atomic::Ordering::Acquire)
    }),
    ("shutdown", |api| !api.draining.is_cancelled()),
];

fn store_open(api: &Api) -> bool {
    !api.store_closed.load(std::sync::atomic::Ordering::Acquire)
}

/// Answers a health path, if it is one.
pub(crate) fn respond(api: &Api, path: &str, query: &Query<'_>) -> Option<Response<Body>> {
    let (root, single) = match path[1..].split_once('/') {
        Some((root, single)) => (root, Some(single)),
        None => (path.trim_start_matches('/'), None),
    };
    let checks = match root {
        "healthz" | "livez" => LIVE,
        "readyz" => READY,
        _ => return None,
    };
    let excluded = query.param("exclude");
    let checks: Vec<&Check> = match single {
        Some(name) => vec![checks.iter().find(|(one, _)| *one == name)?],
        None => checks
            .iter()
            .filter(|(name, _)| excluded.as_deref() != Some(*name))
            .collect(),
    };
    let mut lines = String::new();
    let mut failed = false;
    for (name, check) in checks {
        if check(api) {
            lines.push_str(&format!("[+]{name} ok\n"));
        } else {
            failed = true;
            lines.push_str(&format!("[-]{name} failed: reason withheld\n"));
        }
    }
    let verbose = query
        .param("verbose")
        .is_some_and(|value| value != "false" && value != "0");
    Some(match (failed, verbose) {
        (true, _) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("{lines}{root} check failed\n"),
        ),
        (false, true) => text(StatusCode::OK, format!("{lines}{root} check passed\n")),
        (false, false) => text(StatusCode::OK, "ok".to_owned()),
    })
}

/// A plain text answer.
pub(crate) fn text(status: StatusCode, body: String) -> Response<Body> {
    let mut response = render::json_response(status, body.into_bytes());
    let headers = response.headers_mut();
    headers.insert(
        http::header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(
        "x-content-type-options",
        HeaderValue::from_static("nosniff"),
    );
    response
}

/// What `/version` says.
pub(crate) fn version() -> Value {
    json!({
        "major": "1", "minor": MINOR, "gitVersion": GIT_VERSION,
        "emulationMajor": "1", "emulationMinor": MINOR, "minCompatibilityMajor": "1", "minCompatibilityMinor": "35",
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "", "compiler": "rustc", "platform": format!("linux/{}", arch()),
    })
}

/// The architecture under Go's name.
fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
