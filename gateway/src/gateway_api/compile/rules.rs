//! The rules of one route as routes of the table. Pure but for what the resolver looks up.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};

use super::super::conditions::Condition;
use super::super::types::{
    BackendRef, CorsSpec, Filter, GROUP, HeaderModifier, MirrorSpec, PathModifier, ReferenceGrant,
    RouteMatch, Rule, ValueSpec,
};
use super::{Kind, granted};
use crate::backend::{Protocol, ServiceKey};
use crate::resolve::{PortRef, Resolver, duration_millis};
use crate::table::{
    Action, Age, Conditions, Cors, Edits, HeaderEdits, Limits, Match, Mirror, PathMatch,
    PathRewrite, Redirect, Route, Target, ValueMatch, Weighted,
};

/// What became of the rules.
pub(super) struct Built {
    pub(super) routes: Vec<Arc<Route>>,
    /// Whether all of it is understood.
    pub(super) accepted: Condition,
    /// Whether what they name is there.
    pub(super) resolved: Condition,
}

/// All rules.
pub(super) fn build(
    route: &super::Route<'_>,
    grants: &[Arc<ReferenceGrant>],
    resolver: &Resolver<'_>,
) -> Built {
    let meta = route.metadata;
    let mut building = Building {
        kind: route.kind,
        namespace: meta.namespace.as_deref().unwrap_or_default(),
        grants,
        resolver,
        unsupported: None,
        unresolved: None,
    };
    let mut routes = Vec::new();
    for (index, rule) in route.spec.rules.iter().enumerate() {
        let age = Age {
            created: meta
                .creation_timestamp
                .as_ref()
                .map(|at| at.0.to_string())
                .unwrap_or_default(),
            namespace: building.namespace.to_owned(),
            name: meta.name.clone().unwrap_or_default(),
            rule: index,
        };
        routes.extend(building.rule(rule, &age));
    }
    let accepted = match building.unsupported {
        Some(message) => Condition::fails("Accepted", "UnsupportedValue", message),
        None => Condition::holds("Accepted", "Accepted"),
    };
    let resolved = building
        .unresolved
        .unwrap_or_else(|| Condition::holds("ResolvedRefs", "ResolvedRefs"));
    Built {
        routes,
        accepted,
        resolved,
    }
}

struct Building<'a> {
    kind: Kind,
    namespace: &'a str,
    grants: &'a [Arc<ReferenceGrant>],
    resolver: &'a Resolver<'a>,
    unsupported: Option<String>,
    unresolved: Option<Condition>,
}

impl Building<'_> {
    fn rule(&mut self, rule: &Rule, age: &Age) -> Vec<Arc<Route>> {
        let filters = self.filters(&rule.filters);
        let action = match &filters {
            Err(why) => Action::Refuse(StatusCode::INTERNAL_SERVER_ERROR, why.as_str().into()),
            Ok((_, Some(redirect))) => Action::Redirect(redirect.clone()),
            Ok((_, None)) => Action::Forward(
                rule.backend_refs
                    .iter()
                    .map(|one| self.backend(one))
                    .collect(),
            ),
        };
        let edits = filters.map(|(edits, _)| edits).unwrap_or_default();
        let limits = self.limits(rule);
        let action = Arc::new(action);
        let everything = [RouteMatch::default()];
        let matches = match rule.matches.is_empty() {
            true => &everything[..],
            false => &rule.matches[..],
        };
        let mut routes = Vec::new();
        for one in matches {
            let Some(taken) = self.matching(one) else {
                continue;
            };
            routes.push(Arc::new(Route {
                matches: vec![taken],
                age: age.clone(),
                edits: edits.clone(),
                action: Arc::clone(&action),
                https_only: false,
                limits,
            }));
        }
        routes
    }

    fn limits(&mut self, rule: &Rule) -> Limits {
        let mut limits = Limits::default();
        let Some(timeouts) = &rule.timeouts else {
            return limits;
        };
        let Some(text) = timeouts
            .backend_request
            .as_ref()
            .or(timeouts.request.as_ref())
        else {
            return limits;
        };
        match duration_millis(text) {
            // Zero means none.
            Some(0) => limits.answer = Duration::from_secs(24 * 3600),
            Some(millis) => limits.answer = Duration::from_millis(millis),
            None => self.unsupported = Some(format!("{text} is not a duration.")),
        }
        limits
    }

    /// `None`: it cannot be understood, and takes nothing.
    fn matching(&mut self, one: &RouteMatch) -> Option<Match> {
        let path = one.path.clone().unwrap_or_default();
        let value = path.value.as_deref().unwrap_or("/");
        let path = match path.r#type.as_deref().unwrap_or("PathPrefix") {
            "Exact" => PathMatch::Exact(value.to_owned()),
            "PathPrefix" => PathMatch::prefix(value),
            _ => match PathMatch::regex(value, false) {
                Ok(pattern) => pattern,
                Err(_) => {
                    return self.unclear(format!("Path {value} is not a regular expression."));
                }
            },
        };
        let method = match one.method.as_deref().map(str::parse::<Method>) {
            None => None,
            Some(Ok(method)) => Some(method),
            Some(Err(_)) => return self.unclear("A method is none.".into()),
        };
        let mut conditions = Conditions {
            method,
            ..Conditions::default()
        };
        for spec in &one.headers {
            let Ok(name) = spec.name.parse::<HeaderName>() else {
                return self.unclear(format!("{} is not the name of a header.", spec.name));
            };
            // Of two of the same name the first counts.
            if conditions.headers.iter().all(|(known, _)| *known != name) {
                conditions.headers.push((name, self.value(spec)?));
            }
        }
        for spec in &one.query_params {
            if conditions
                .query
                .iter()
                .all(|(known, _)| *known != spec.name)
            {
                conditions
                    .query
                    .push((spec.name.clone(), self.value(spec)?));
            }
        }
        Some(Match { path, conditions })
    }

    fn value(&mut self, spec: &ValueSpec) -> Option<ValueMatch> {
        if spec.r#type.as_deref() != Some("RegularExpression") {
            return Some(ValueMatch::Exact(spec.value.clone()));
        }
        let built = regex::RegexBuilder::new(&format!("^(?:{})$", spec.value))
            .size_limit(1 << 20)
            .build();
        match built {
            Ok(pattern) => Some(ValueMatch::Regex(pattern)),
            Err(_) => self.unclear(format!("{} is not a regular expression.", spec.value)),
        }
    }

    fn unclear<T>(&mut self, message: String) -> Option<T> {
        self.unsupported.get_or_insert(message);
        None
    }

    /// What filters change, and where they send the client; the reason where one cannot be had.
    fn filters(&mut self, filters: &[Filter]) -> Result<(Edits, Option<Redirect>), String> {
        let mut edits = Edits::default();
        let mut redirect = None;
        for filter in filters {
            match filter.r#type.as_str() {
                "RequestHeaderModifier" => {
                    self.headers(&filter.request_header_modifier, &mut edits.request)
                }
                "ResponseHeaderModifier" => {
                    self.headers(&filter.response_header_modifier, &mut edits.response)
                }
                "URLRewrite" => {
                    let rewrite = &filter.url_rewrite;
                    edits.host = rewrite
                        .hostname
                        .as_deref()
                        .and_then(|host| HeaderValue::try_from(host).ok());
                    edits.path = rewrite.path.as_ref().and_then(rewritten);
                }
                "RequestMirror" => edits.mirrors.extend(self.mirror(&filter.request_mirror)),
                "CORS" => edits.cors = Some(cors(&filter.cors)),
                "RequestRedirect" => {
                    let spec = &filter.request_redirect;
                    let scheme = match spec.scheme.as_deref() {
                        Some("http") => Some("http"),
                        Some("https") => Some("https"),
                        _ => None,
                    };
                    let status = spec
                        .status_code
                        .and_then(|code| StatusCode::from_u16(code).ok());
                    redirect = Some(Redirect {
                        scheme,
                        host: spec.hostname.clone(),
                        port: spec.port,
                        path: spec.path.as_ref().and_then(rewritten),
                        whole: None,
                        status: status.unwrap_or(StatusCode::FOUND),
                    });
                }
                other => {
                    let why = format!("Filter {other} is not served.");
                    self.unsupported.get_or_insert(why.clone());
                    return Err(why);
                }
            }
        }
        Ok((edits, redirect))
    }

    /// `None`: there is nobody to have a copy, which the route's status says; requests go their way all the same.
    fn mirror(&mut self, spec: &MirrorSpec) -> Option<Mirror> {
        let share = match (&spec.fraction, spec.percent) {
            (Some(fraction), _) => (fraction.numerator, fraction.denominator.unwrap_or(100)),
            (None, percent) => (percent.unwrap_or(100), 100),
        };
        match self.target(&spec.backend_ref) {
            Ok(Target::Backend(backend)) => Some(Mirror { backend, share }),
            Ok(Target::Missing(..)) => None,
            Err(failed) => {
                self.unresolved.get_or_insert(failed);
                None
            }
        }
    }

    fn headers(&mut self, modifier: &HeaderModifier, edits: &mut HeaderEdits) {
        let mut pairs =
            |all: &[super::super::types::NamedValue]| -> Vec<(HeaderName, HeaderValue)> {
                let parsed = all.iter().filter_map(|one| {
                    let pair = one
                        .name
                        .parse()
                        .ok()
                        .zip(HeaderValue::try_from(&one.value).ok());
                    if pair.is_none() {
                        self.unsupported
                            .get_or_insert(format!("Header {} cannot be set so.", one.name));
                    }
                    pair
                });
                parsed.collect()
            };
        edits.set.extend(pairs(&modifier.set));
        edits.add.extend(pairs(&modifier.add));
        edits
            .remove
            .extend(modifier.remove.iter().filter_map(|name| name.parse().ok()));
    }

    fn backend(&mut self, reference: &BackendRef) -> Weighted {
        let target = self.target(reference).unwrap_or_else(|failed| {
            let why: Arc<str> = failed.message.as_str().into();
            self.unresolved.get_or_insert(failed);
            Target::Missing(StatusCode::INTERNAL_SERVER_ERROR, why)
        });
        let edits = match self.filters(&reference.filters) {
            Ok((edits, redirect)) => {
                if redirect.is_some() || edits.cors.is_some() {
                    let message =
                        "RequestRedirect and CORS are for rules, not for one of their backends.";
                    self.unsupported.get_or_insert(message.to_owned());
                }
                edits
            }
            Err(_) => Edits::default(),
        };
        Weighted {
            weight: reference.weight.unwrap_or(1),
            target,
            edits,
        }
    }

    fn permitted(&self, service: &ServiceKey) -> Result<(), String> {
        let from = (GROUP, self.kind.name(), self.namespace);
        let to = ("Service", &*service.namespace, &*service.name);
        match granted(self.grants, from, to) {
            true => Ok(()),
            false => Err(format!(
                "No ReferenceGrant lets {}s of {} use Service {service}.",
                self.kind.name(),
                self.namespace
            )),
        }
    }

    fn target(&self, reference: &BackendRef) -> Result<Target, Condition> {
        let fails = |reason, message: String| Condition::fails("ResolvedRefs", reason, message);
        let kind = reference.kind.as_deref().unwrap_or("Service");
        if kind != "Service" || !reference.group.as_deref().unwrap_or_default().is_empty() {
            let message =
                format!("A backend that is {kind} and not a Service cannot be routed to.");
            return Err(fails("InvalidKind", message));
        }
        let namespace = reference.namespace.as_deref().unwrap_or(self.namespace);
        let name = &reference.name;
        // A mere name of a Service elsewhere does not save the grant.
        let meant = self.resolver.stands_for(namespace, name);
        for service in [Some(ServiceKey::new(namespace, name)), meant]
            .into_iter()
            .flatten()
        {
            self.permitted(&service)
                .map_err(|message| fails("RefNotPermitted", message))?;
        }
        let Some(port) = reference.port else {
            return Err(fails(
                "BackendNotFound",
                format!("The reference to Service {namespace}/{name} names no port."),
            ));
        };
        let protocol: &dyn Fn(Protocol) -> Protocol = match self.kind {
            Kind::Http => &|said| said,
            Kind::Grpc => &Protocol::over_http2,
        };
        let found = self
            .resolver
            .backend(namespace, name, &PortRef::Number(port), protocol);
        found.map_err(|message| fails("BackendNotFound", message))
    }
}

fn cors(spec: &CorsSpec) -> Cors {
    Cors {
        origins: spec.allow_origins.clone(),
        credentials: spec.allow_credentials.unwrap_or(false),
        methods: spec.allow_methods.clone(),
        headers: spec.allow_headers.clone(),
        exposed: spec.expose_headers.clone(),
        max_age_secs: spec.max_age.unwrap_or(5),
    }
}

fn rewritten(modifier: &PathModifier) -> Option<PathRewrite> {
    match modifier.r#type.as_str() {
        "ReplaceFullPath" => modifier.replace_full_path.clone().map(PathRewrite::Full),
        "ReplacePrefixMatch" => modifier
            .replace_prefix_match
            .clone()
            .map(PathRewrite::Prefix),
        _ => None,
    }
}
