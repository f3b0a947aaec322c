//! The routing table: which request goes where. Ingresses and Gateways compile to it; the data plane only reads it.
//!
//! A table is never changed: a new one takes its place, and requests under way go on with the one they began with.

mod cors;
mod hosts;
mod matching;
mod rewrite;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use rustls::sign::CertifiedKey;

use crate::backend::Backend;

pub(crate) use cors::Cors;
pub(crate) use hosts::{HostPattern, Hosts};
pub(crate) use matching::{Facts, Match, PathMatch, ValueMatch};
pub(crate) use rewrite::PathRewrite;

/// A port as routes know it: the two that Ingresses are served on, and further ones that Gateways ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Port {
    Http,
    Https,
    /// Another port of the node; `true`: with TLS.
    Other(u16, bool),
}

impl Port {
    pub(crate) fn is_tls(self) -> bool {
        match self {
            Self::Http => false,
            Self::Https => true,
            Self::Other(_, tls) => tls,
        }
    }
}

/// Everything that is served, by port.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) ports: BTreeMap<Port, PortTable>,
}

/// What is served on one port.
#[derive(Debug, Default)]
pub(crate) struct PortTable {
    /// For each host its routes, the one that is asked first in front.
    pub(crate) hosts: Hosts<Vec<Arc<Route>>>,
    /// For what no route takes, the oldest first.
    pub(crate) fallback: Vec<Arc<Route>>,
    pub(crate) certificates: Hosts<Arc<CertifiedKey>>,
    /// What is shown to a client that names no host, or one without a certificate.
    pub(crate) default_certificate: Option<Arc<CertifiedKey>>,
}

impl PortTable {
    /// The route of a request.
    pub(crate) fn find(&self, facts: &Facts<'_>) -> Option<&Arc<Route>> {
        self.hosts
            .candidates(facts.host)
            .flatten()
            .chain(&self.fallback)
            .find(|route| route.matches.iter().any(|one| one.holds(facts)))
    }

    /// Puts routes into the order in which they are asked.
    pub(crate) fn settle(&mut self) {
        for routes in self.hosts.values_mut() {
            routes.sort_by(|a, b| Route::order(a, b));
        }
        self.fallback.sort_by(|a, b| a.age.cmp(&b.age));
    }
}

/// Who came first wins where two say the same: creation, namespace, name, rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Age {
    pub(crate) created: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) rule: usize,
}

/// One way through: what it takes, what is changed on the way, where it goes.
#[derive(Debug)]
pub(crate) struct Route {
    /// One match of a rule each; a route stands once in the table for every match, so this has one entry there.
    pub(crate) matches: Vec<Match>,
    pub(crate) age: Age,
    pub(crate) edits: Edits,
    /// Shared by the matches of one rule.
    pub(crate) action: Arc<Action>,
    /// A client that came without TLS is sent to where there is some.
    pub(crate) https_only: bool,
    pub(crate) limits: Limits,
}

impl Route {
    fn order(a: &Self, b: &Self) -> std::cmp::Ordering {
        let weight = |route: &Self| route.matches.first().map(Match::weight);
        weight(b).cmp(&weight(a)).then_with(|| a.age.cmp(&b.age))
    }
}

/// How long and how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Until the answer begins.
    pub(crate) answer: Duration,
    pub(crate) body_bytes_max: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(60),
            body_bytes_max: None,
        }
    }
}

/// What is changed on the way.
#[derive(Clone, Debug, Default)]
pub(crate) struct Edits {
    pub(crate) request: HeaderEdits,
    pub(crate) response: HeaderEdits,
    pub(crate) host: Option<HeaderValue>,
    pub(crate) path: Option<PathRewrite>,
    pub(crate) cors: Option<Cors>,
    pub(crate) mirrors: Vec<Mirror>,
}

/// Somebody who gets a copy of requests, and whose answers nobody reads.
#[derive(Clone, Debug)]
pub(crate) struct Mirror {
    pub(crate) backend: Arc<Backend>,
    /// Of so many requests so many are copied: the second, the first.
    pub(crate) share: (u32, u32),
}

/// Headers that are changed, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HeaderEdits {
    pub(crate) set: Vec<(HeaderName, HeaderValue)>,
    pub(crate) add: Vec<(HeaderName, HeaderValue)>,
    pub(crate) remove: Vec<HeaderName>,
}

impl HeaderEdits {
    pub(crate) fn apply(&self, headers: &mut http::HeaderMap) {
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }
}

/// Where a request ends.
#[derive(Debug)]
pub(crate) enum Action {
    /// At one of these, by weight; those with weight 0 take nothing.
    Forward(Vec<Weighted>),
    Redirect(Redirect),
    /// Here: what was asked for cannot be had.
    Refuse(StatusCode, Arc<str>),
}

#[derive(Debug)]
pub(crate) struct Weighted {
    pub(crate) weight: u32,
    pub(crate) target: Target,
    pub(crate) edits: Edits,
}

#[derive(Debug)]
pub(crate) enum Target {
    Backend(Arc<Backend>),
    /// Named, but not there: what the client is told.
    Missing(StatusCode, Arc<str>),
}

/// A client is sent elsewhere. What is not said stays as it was asked.
#[derive(Clone, Debug)]
pub(crate) struct Redirect {
    pub(crate) scheme: Option<&'static str>,
    pub(crate) host: Option<String>,
    pub(crate) port: Option<u16>,
    pub(crate) path: Option<PathRewrite>,
    /// The whole address, where there is nothing to keep.
    pub(crate) whole: Option<HeaderValue>,
    pub(crate) status: StatusCode,
}

impl Default for Redirect {
    fn default() -> Self {
        Self {
            scheme: None,
            host: None,
            port: None,
            path: None,
            whole: None,
            status: StatusCode::FOUND,
        }
    }
}

/// What a match asks of a request beside its path.
#[derive(Clone, Debug, Default)]
pub(crate) struct Conditions {
    pub(crate) method: Option<Method>,
    pub(crate) headers: Vec<(HeaderName, ValueMatch)>,
    pub(crate) query: Vec<(String, ValueMatch)>,
}
