//! From Ingresses to the routing table. Pure but for what the resolver looks up.

use std::sync::Arc;

use http::StatusCode;
use k8s_openapi::api::networking::v1::{HTTPIngressPath, Ingress, IngressBackend, IngressSpec};

use super::annotations::Wishes;
use crate::resolve::{PortRef, Problem, Resolver};
use crate::table::{
    Action, Age, Edits, HostPattern, Match, PathMatch, PathRewrite, Port, Redirect, Route, Table,
    Target, Weighted,
};

/// Adds an Ingress to the table; the caller settles it when all are in. What is wrong with it.
pub(crate) fn add(table: &mut Table, ingress: &Ingress, resolver: &Resolver<'_>) -> Vec<Problem> {
    let Some(spec) = &ingress.spec else {
        return Vec::new();
    };
    let meta = &ingress.metadata;
    let mut compiling = Compiling {
        table,
        resolver,
        namespace: meta.namespace.as_deref().unwrap_or_default(),
        name: meta.name.as_deref().unwrap_or_default(),
        created: meta
            .creation_timestamp
            .as_ref()
            .map(|at| at.0.to_string())
            .unwrap_or_default(),
        wishes: Wishes::read(meta.annotations.as_ref()),
        rules: 0,
        problems: Vec::new(),
    };
    for message in std::mem::take(&mut compiling.wishes.problems) {
        compiling.problems.push(("InvalidAnnotation", message));
    }
    compiling.certificates(spec);
    compiling.rules(spec);
    let object = cox_client::events::reference(ingress);
    let problem = |(reason, message)| Problem {
        object: object.clone(),
        reason,
        message,
    };
    compiling.problems.into_iter().map(problem).collect()
}

/// Whether an Ingress has anything to do with TLS.
pub(crate) fn has_tls(ingress: &Ingress) -> bool {
    let spec = ingress.spec.as_ref();
    spec.and_then(|spec| spec.tls.as_ref())
        .is_some_and(|tls| !tls.is_empty())
}

struct Compiling<'a> {
    table: &'a mut Table,
    resolver: &'a Resolver<'a>,
    namespace: &'a str,
    name: &'a str,
    created: String,
    wishes: Wishes,
    rules: usize,
    problems: Vec<(&'static str, String)>,
}

impl Compiling<'_> {
    fn certificates(&mut self, spec: &IngressSpec) {
        for tls in spec.tls.iter().flatten() {
            // Without a Secret the hosts have TLS all the same, with a certificate that nobody knows.
            let Some(name) = tls.secret_name.as_deref().filter(|name| !name.is_empty()) else {
                continue;
            };
            let certificate = match self.resolver.certificate(self.namespace, name) {
                Ok(certificate) => certificate,
                Err(message) => {
                    self.problems.push(("InvalidCertificate", message));
                    continue;
                }
            };
            let https = self.table.ports.entry(Port::Https).or_default();
            let hosts = tls.hosts.as_deref().unwrap_or_default();
            if hosts.is_empty() {
                https
                    .certificates
                    .insert_first(HostPattern::Any, Arc::clone(&certificate));
            }
            for host in hosts {
                https
                    .certificates
                    .insert_first(HostPattern::of_ingress(host), Arc::clone(&certificate));
            }
        }
    }

    fn rules(&mut self, spec: &IngressSpec) {
        for rule in spec.rules.iter().flatten() {
            let host = rule.host.as_deref().unwrap_or_default();
            let tls = self.https_only(spec, host);
            let paths = rule.http.iter().flat_map(|http| &http.paths);
            for path in paths {
                self.path(host, path, tls);
            }
            if let Some(root) = self.wishes.app_root.clone() {
                let to_root = Redirect {
                    path: Some(PathRewrite::Full(root)),
                    ..Redirect::default()
                };
                let taken = Match::path(PathMatch::Exact("/".into()));
                let route = self.route(taken, Action::Redirect(to_root), Edits::default(), tls);
                self.put(Some(host), route);
            }
        }
        if let Some(backend) = &spec.default_backend {
            let action = self.forward(backend);
            let edits = self.edits();
            let tls = self.https_only(spec, "");
            let route = self.route(Match::path(PathMatch::prefix("/")), action, edits, tls);
            self.put(None, route);
        }
    }

    /// Whether the clients of a host are sent to TLS: where it has some, unless the annotation says otherwise.
    fn https_only(&self, spec: &IngressSpec, host: &str) -> bool {
        let covers = |pattern: &String| {
            let wildcard = pattern.strip_prefix("*.");
            pattern == host
                || wildcard.is_some_and(|suffix| {
                    host.split_once('.').is_some_and(|(_, rest)| rest == suffix)
                })
        };
        let has_tls = spec.tls.iter().flatten().any(|tls| {
            let hosts = tls.hosts.as_deref().unwrap_or_default();
            hosts.is_empty() || hosts.iter().any(covers)
        });
        self.wishes.https_only.unwrap_or(has_tls)
    }

    fn path(&mut self, host: &str, path: &HTTPIngressPath, tls: bool) {
        let text = path.path.as_deref().unwrap_or("/");
        let taken = match path.path_type.as_str() {
            "Exact" => PathMatch::Exact(text.to_owned()),
            _ if self.wishes.use_regex => match PathMatch::regex(text, true) {
                Ok(pattern) => pattern,
                Err(_) => {
                    let message =
                        format!("Path {text} is not a regular expression that can be used.");
                    self.problems.push(("InvalidPath", message));
                    return;
                }
            },
            _ => PathMatch::prefix(text),
        };
        let action = self.forward(&path.backend);
        let edits = self.edits();
        let route = self.route(Match::path(taken), action, edits, tls);
        self.put(Some(host), route);
    }

    fn edits(&self) -> Edits {
        let path = self
            .wishes
            .rewrite
            .as_ref()
            .map(|rewrite| match rewrite.contains('$') {
                true => PathRewrite::Captures(rewrite.clone()),
                false => PathRewrite::Full(rewrite.clone()),
            });
        Edits {
            host: self.wishes.upstream_host.clone(),
            path,
            cors: self.wishes.cors.clone(),
            ..Edits::default()
        }
    }

    fn forward(&mut self, backend: &IngressBackend) -> Action {
        if let Some(redirect) = &self.wishes.redirect {
            return Action::Redirect(redirect.clone());
        }
        let Some(service) = &backend.service else {
            let kind = backend
                .resource
                .as_ref()
                .map_or("nothing", |resource| resource.kind.as_str());
            let message =
                format!("A backend that is {kind} and not a Service cannot be routed to.");
            self.problems.push(("UnsupportedBackend", message.clone()));
            return Action::Refuse(StatusCode::SERVICE_UNAVAILABLE, message.into());
        };
        let port = service.port.as_ref();
        let port = match port
            .and_then(|port| port.name.clone())
            .filter(|name| !name.is_empty())
        {
            Some(name) => PortRef::Name(name),
            None => PortRef::Number(port.and_then(|port| port.number).unwrap_or_default()),
        };
        let protocol = |said| self.wishes.protocol.unwrap_or(said);
        let found = self
            .resolver
            .backend(self.namespace, &service.name, &port, &protocol);
        let target = found.unwrap_or_else(|message| {
            self.problems.push(("BackendNotFound", message.clone()));
            Target::Missing(StatusCode::SERVICE_UNAVAILABLE, message.into())
        });
        Action::Forward(vec![Weighted {
            weight: 1,
            target,
            edits: Edits::default(),
        }])
    }

    fn route(
        &mut self,
        taken: Match,
        action: Action,
        edits: Edits,
        https_only: bool,
    ) -> Arc<Route> {
        self.rules += 1;
        Arc::new(Route {
            matches: vec![taken],
            age: Age {
                created: self.created.clone(),
                namespace: self.namespace.to_owned(),
                name: self.name.to_owned(),
                rule: self.rules,
            },
            edits,
            action: Arc::new(action),
            https_only,
            limits: self.wishes.limits,
        })
    }

    /// Puts a route on both ports; without a host it is for what nobody else takes.
    fn put(&mut self, host: Option<&str>, route: Arc<Route>) {
        for port in [Port::Http, Port::Https] {
            let served = self.table.ports.entry(port).or_default();
            match host {
                Some(host) => served
                    .hosts
                    .entry(HostPattern::of_ingress(host))
                    .push(Arc::clone(&route)),
                None => served.fallback.push(Arc::clone(&route)),
            }
        }
    }
}

#[cfg(test)]
mod tests;
