//! What a route asks of a request. Pure.

use std::borrow::Cow;

use http::{HeaderMap, Method};
use regex::Regex;

use super::Conditions;

/// What of a request decides its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    /// In lower case, without its port.
    pub(crate) host: &'a str,
    pub(crate) path: &'a str,
    pub(crate) query: Option<&'a str>,
    pub(crate) method: &'a Method,
    pub(crate) headers: &'a HeaderMap,
}

/// One match of a route: all of it has to hold.
#[derive(Clone, Debug)]
pub(crate) struct Match {
    pub(crate) path: PathMatch,
    pub(crate) conditions: Conditions,
}

/// Which paths.
#[derive(Clone, Debug)]
pub(crate) enum PathMatch {
    Exact(String),
    /// By elements: `/a` takes `/a` and `/a/b`, not `/ab`. Without a slash at its end.
    Prefix(String),
    /// From the path's begin.
    Regex(Regex),
}

impl PathMatch {
    pub(crate) fn prefix(path: &str) -> Self {
        Self::Prefix(path.trim_end_matches('/').to_owned())
    }

    /// A pattern that has to hold from the path's begin, as nginx's locations do.
    pub(crate) fn regex(pattern: &str, ignore_case: bool) -> Result<Self, regex::Error> {
        let pattern = pattern.strip_prefix('^').unwrap_or(pattern);
        let built = regex::RegexBuilder::new(&format!("^(?:{pattern})"))
            .case_insensitive(ignore_case)
            .size_limit(1 << 20)
            .build();
        built.map(Self::Regex)
    }

    pub(crate) fn holds(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => exact == path,
            Self::Prefix(prefix) => path
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
            Self::Regex(pattern) => pattern.is_match(path),
        }
    }
}

/// How a header or a query parameter is compared.
#[derive(Clone, Debug)]
pub(crate) enum ValueMatch {
    Exact(String),
    Regex(Regex),
}

impl ValueMatch {
    fn holds(&self, value: &str) -> bool {
        match self {
            Self::Exact(exact) => exact == value,
            Self::Regex(pattern) => pattern.is_match(value),
        }
    }
}

impl Match {
    pub(crate) fn path(path: PathMatch) -> Self {
        Self {
            path,
            conditions: Conditions::default(),
        }
    }

    pub(crate) fn holds(&self, facts: &Facts<'_>) -> bool {
        let Conditions {
            method,
            headers,
            query,
        } = &self.conditions;
        self.path.holds(facts.path)
            && method.as_ref().is_none_or(|method| method == facts.method)
            && headers.iter().all(|(name, wanted)| {
                let mut values = facts.headers.get_all(name).iter();
                values.any(|value| value.to_str().is_ok_and(|value| wanted.holds(value)))
            })
            && query.iter().all(|(name, wanted)| {
                parameter(facts.query, name).is_some_and(|value| wanted.holds(&value))
            })
    }

    /// The greater is asked first: exact paths, longer paths, a method, more headers, more parameters.
    pub(crate) fn weight(&self) -> (bool, usize, bool, usize, usize) {
        let (exact, len) = match &self.path {
            PathMatch::Exact(path) => (true, path.len()),
            PathMatch::Prefix(path) => (false, path.len()),
            PathMatch::Regex(pattern) => (false, pattern.as_str().len()),
        };
        let Conditions {
            method,
            headers,
            query,
        } = &self.conditions;
        (exact, len, method.is_some(), headers.len(), query.len())
    }
}

/// The first value of a query parameter.
fn parameter<'a>(query: Option<&'a str>, name: &str) -> Option<Cow<'a, str>> {
    query?.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(key) == name).then(|| decoded(value))
    })
}

fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
    }
    let spaced = text.replace('+', " ");
    let decoded = percent_encoding::percent_decode_str(&spaced).decode_utf8_lossy();
    Cow::Owned(decoded.into_owned())
}
