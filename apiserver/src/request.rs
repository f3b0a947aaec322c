//! What a request asks for: one pass over method, path and query, borrowing from both.
//!
//! Owns the path grammar (`/api/v1/...`, `/apis/GROUP/VERSION/...`) and the mapping from method to verb, both as upstream's.
//! Allocates nothing; the caller percent-decodes the path beforehand ([`decode_path`], which allocates only when it must).

use std::borrow::Cow;

use http::Method;

/// The attributes of one request that routing, authorization, metrics and admission look at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo<'a> {
    /// Addresses a resource (`/api/v1/pods`), not a plain path (`/healthz`).
    pub is_resource: bool,
    /// The whole (decoded) path.
    pub path: &'a str,
    /// `get list watch create update patch delete deletecollection` for resources, otherwise the lower-case method.
    pub verb: &'static str,
    /// API group; empty for the core group.
    pub group: &'a str,
    /// API version, such as `v1`.
    pub version: &'a str,
    /// Plural resource name, such as `pods`.
    pub resource: &'a str,
    /// Subresource, such as `status`; empty for the object itself.
    pub subresource: &'a str,
    /// Namespace; empty for cluster scope. For `/api/v1/namespaces/NAME` it is NAME, as upstream has it.
    pub namespace: &'a str,
    /// Object name; empty for collections.
    pub name: &'a str,
    /// What follows the subresource, without the leading slash (for `proxy`).
    pub rest: &'a str,
}

/// Percent-decodes a path. Invalid UTF-8 is refused; a path without `%` is borrowed.
#[must_use]
pub fn decode_path(path: &str) -> Option<Cow<'_, str>> {
    if path.contains('%') {
        percent_encoding::percent_decode_str(path)
            .decode_utf8()
            .ok()
    } else {
        Some(Cow::Borrowed(path))
    }
}

impl<'a> RequestInfo<'a> {
    /// Reads the request line. `watch` and `name_selector` come from the query (see [`crate::query`]): a list with `watch=true`
    /// is a watch, and a selector on `metadata.name` narrows what is authorized to that name.
    #[must_use]
    pub fn parse(
        method: &Method,
        path: &'a str,
        watch: bool,
        name_selector: Option<&'a str>,
    ) -> Self {
        let mut info = RequestInfo {
            path,
            verb: method_verb(method),
            ..Self::default()
        };
        let mut parts = Segments::new(path);
        match parts.next() {
            Some("api") => {}
            Some("apis") => match parts.next() {
                Some(group) => info.group = group,
                None => return info,
            },
            _ => return info,
        }
        let (Some(version), Some(mut segment)) = (parts.next(), parts.next()) else {
            info.group = "";
            return info;
        };
        info.version = version;
        let mut legacy_watch = false;
        if segment == "watch" {
            match parts.next() {
                Some(next) => {
                    legacy_watch = true;
                    segment = next;
                }
                None => {
                    return RequestInfo {
                        path,
                        verb: method_verb(method),
                        ..Self::default()
                    };
                }
            }
        }
        info.is_resource = true;
        info.resource = segment;
        if segment == "namespaces" {
            if let Some(namespace) = parts.next() {
                info.namespace = namespace;
                match parts.next() {
                    // `namespaces/NAME/status` and `/finalize` are subresources of the namespace, everything else is inside it.
                    Some(sub @ ("status" | "finalize")) => {
                        info.name = namespace;
                        info.subresource = sub;
                        info.rest = parts.rest();
                    }
                    Some(inner) => {
                        info.resource = inner;
                        info.read_name(&mut parts);
                    }
                    None => info.name = namespace,
                }
            }
        } else {
            info.read_name(&mut parts);
        }
        let collection = info.name.is_empty();
        info.verb = resource_verb(method, collection, (watch && collection) || legacy_watch);
        if info.name.is_empty() && matches!(info.verb, "list" | "watch" | "deletecollection") {
            info.name = name_selector.unwrap_or_default();
        }
        info
    }

    /// Whether this addresses the collection: no name in the path itself (a name selector does not count).
    #[must_use]
    pub fn is_collection(&self) -> bool {
        matches!(self.verb, "list" | "watch" | "deletecollection")
            || (self.verb == "create" && self.name.is_empty())
    }

    fn read_name(&mut self, parts: &mut Segments<'a>) {
        self.name = parts.next().unwrap_or_default();
        self.subresource = parts.next().unwrap_or_default();
        self.rest = parts.rest();
    }
}

/// The parts of a path between slashes; empty parts do not count, as upstream splits it.
struct Segments<'a>(&'a str);

impl<'a> Segments<'a> {
    fn new(path: &'a str) -> Self {
        Segments(path.trim_matches('/'))
    }

    fn next(&mut self) -> Option<&'a str> {
        if self.0.is_empty() {
            return None;
        }
        let (head, tail) = self.0.split_once('/').unwrap_or((self.0, ""));
        self.0 = tail;
        Some(head)
    }

    fn rest(&self) -> &'a str {
        self.0
    }
}

fn method_verb(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "get",
        "HEAD" => "head",
        "POST" => "post",
        "PUT" => "put",
        "PATCH" => "patch",
        "DELETE" => "delete",
        "OPTIONS" => "options",
        _ => "other",
    }
}

fn resource_verb(method: &Method, collection: bool, watch: bool) -> &'static str {
    match method.as_str() {
        "POST" => "create",
        "GET" | "HEAD" if watch => "watch",
        "GET" | "HEAD" if collection => "list",
        "GET" | "HEAD" => "get",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" if collection => "deletecollection",
        "DELETE" => "delete",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `METHOD path`, with `?` at its end for a watch; then what is read.
    const LINES: &[(&str, &str)] = &[
        ("GET /api/v1/pods", "list /v1 pods/ ns= name="),
        ("GET /api/v1/pods?", "watch /v1 pods/ ns= name="),
        (
            "GET /api/v1/namespaces/a/pods/b",
            "get /v1 pods/ ns=a name=b",
        ),
        (
            "PUT /api/v1/namespaces/a/pods/b/status",
            "update /v1 pods/status ns=a name=b",
        ),
        ("GET /api/v1/namespaces", "list /v1 namespaces/ ns= name="),
        (
            "DELETE /api/v1/namespaces/a",
            "delete /v1 namespaces/ ns=a name=a",
        ),
        (
            "PUT /api/v1/namespaces/a/finalize",
            "update /v1 namespaces/finalize ns=a name=a",
        ),
        (
            "POST /apis/apps/v1/namespaces/a/deployments",
            "create apps/v1 deployments/ ns=a name=",
        ),
        (
            "PATCH /apis/apps/v1/namespaces/a/deployments/d/scale/",
            "patch apps/v1 deployments/scale ns=a name=d",
        ),
        (
            "DELETE /apis/apps/v1/namespaces/a/deployments",
            "deletecollection apps/v1 deployments/ ns=a name=",
        ),
        (
            "GET /apis/rbac/v1/clusterroles/x",
            "get rbac/v1 clusterroles/ ns= name=x",
        ),
        (
            "GET /api/v1/watch/namespaces/a/pods",
            "watch /v1 pods/ ns=a name=",
        ),
    ];

    #[test]
    fn request_lines_are_read_as_upstream_reads_them() {
        for (line, expected) in LINES {
            let (method, path) = line.split_once(' ').unwrap();
            let (path, watch) = path
                .strip_suffix('?')
                .map_or((path, false), |path| (path, true));
            let info = RequestInfo::parse(&method.parse().unwrap(), path, watch, None);
            let got = format!(
                "{} {}/{} {}/{} ns={} name={}",
                info.verb,
                info.group,
                info.version,
                info.resource,
                info.subresource,
                info.namespace,
                info.name
            );
            assert!(info.is_resource, "case: {line}");
            assert_eq!(got, *expected, "case: {line}");
        }
    }

    #[test]
    fn other_paths_are_not_resources() {
        for path in [
            "/",
            "/api",
            "/api/v1",
            "/apis",
            "/apis/apps",
            "/apis/apps/v1",
            "/healthz",
            "/openapi/v3/apis/apps/v1",
        ] {
            let info = RequestInfo::parse(&Method::GET, path, false, None);
            assert!(!info.is_resource, "case: {path}");
            assert_eq!((info.verb, info.path), ("get", path));
        }
    }

    #[test]
    fn a_name_selector_narrows_what_is_authorized() {
        let info = RequestInfo::parse(
            &Method::GET,
            "/api/v1/namespaces/a/secrets",
            true,
            Some("s"),
        );
        assert_eq!(
            (info.verb, info.name, info.is_collection()),
            ("watch", "s", true)
        );
    }
}
