//! Host names to values: exact names first, then wildcards from the longest suffix to the shortest, then what is for every host.

use std::collections::HashMap;

/// Which hosts something is for. Names are in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum HostPattern {
    Any,
    Exact(String),
    /// `*.example.com` where the star is one label (Ingress, certificates): the suffix.
    OneLabel(String),
    /// The same where it is one or more (Gateway).
    Labels(String),
}

impl HostPattern {
    /// As an Ingress means it.
    pub(crate) fn of_ingress(host: &str) -> Self {
        Self::parse(host, Self::OneLabel)
    }

    /// As a Gateway or an HTTPRoute means it.
    pub(crate) fn of_gateway(host: &str) -> Self {
        Self::parse(host, Self::Labels)
    }

    fn parse(host: &str, wildcard: impl Fn(String) -> Self) -> Self {
        let host = host.to_ascii_lowercase();
        match host.strip_prefix("*.") {
            Some(suffix) => wildcard(suffix.to_owned()),
            None if host.is_empty() || host == "*" => Self::Any,
            None => Self::Exact(host),
        }
    }
}

/// Values by host.
#[derive(Debug)]
pub(crate) struct Hosts<T> {
    exact: HashMap<String, T>,
    one_label: HashMap<String, T>,
    labels: HashMap<String, T>,
    any: Option<T>,
}

impl<T> Default for Hosts<T> {
    fn default() -> Self {
        Self {
            exact: HashMap::new(),
            one_label: HashMap::new(),
            labels: HashMap::new(),
            any: None,
        }
    }
}

impl<T> Hosts<T> {
    /// All values for a host, the most specific first.
    pub(crate) fn candidates<'t, 'h>(
        &'t self,
        host: &'h str,
    ) -> impl Iterator<Item = &'t T> + use<'t, 'h, T> {
        let parent = host.split_once('.').map(|(_, rest)| rest);
        let suffixes =
            std::iter::successors(parent, |rest| rest.split_once('.').map(|(_, rest)| rest));
        let wild = suffixes.flat_map(move |suffix| {
            let direct = Some(suffix) == parent;
            let one = direct.then(|| self.one_label.get(suffix)).flatten();
            [one, self.labels.get(suffix)].into_iter().flatten()
        });
        self.exact
            .get(host)
            .into_iter()
            .chain(wild)
            .chain(&self.any)
    }

    /// The most specific value for a host.
    pub(crate) fn get(&self, host: &str) -> Option<&T> {
        self.candidates(host).next()
    }

    pub(crate) fn entry(&mut self, pattern: HostPattern) -> &mut T
    where
        T: Default,
    {
        match pattern {
            HostPattern::Any => self.any.get_or_insert_default(),
            HostPattern::Exact(host) => self.exact.entry(host).or_default(),
            HostPattern::OneLabel(suffix) => self.one_label.entry(suffix).or_default(),
            HostPattern::Labels(suffix) => self.labels.entry(suffix).or_default(),
        }
    }

    /// Keeps what is there already.
    pub(crate) fn insert_first(&mut self, pattern: HostPattern, value: T) {
        match pattern {
            HostPattern::Any => {
                self.any.get_or_insert(value);
            }
            HostPattern::Exact(host) => {
                self.exact.entry(host).or_insert(value);
            }
            HostPattern::OneLabel(suffix) => {
                self.one_label.entry(suffix).or_insert(value);
            }
            HostPattern::Labels(suffix) => {
                self.labels.entry(suffix).or_insert(value);
            }
        }
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        let maps = [&mut self.exact, &mut self.one_label, &mut self.labels];
        let mapped = maps.into_iter().flat_map(HashMap::values_mut);
        mapped.chain(&mut self.any)
    }
}
