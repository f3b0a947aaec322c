//! The query string as list, watch and write options.
//!
//! One pass over `a=b&c=d`; values borrow from the request unless they are percent-encoded. Unknown keys are ignored, as
//! upstream ignores them; numbers that are none are refused.

use std::borrow::Cow;

/// All options that any verb reads.
#[derive(Debug, Default)]
pub(crate) struct Query<'a> {
    /// The query as sent.
    pub(crate) raw: &'a str,
    /// `labelSelector`
    pub(crate) label_selector: Option<Cow<'a, str>>,
    /// `fieldSelector`
    pub(crate) field_selector: Option<Cow<'a, str>>,
    /// `limit`; 0 is no limit.
    pub(crate) limit: usize,
    /// `continue`
    pub(crate) continue_token: Option<Cow<'a, str>>,
    /// `resourceVersion`
    pub(crate) resource_version: Option<Cow<'a, str>>,
    /// `resourceVersionMatch`
    pub(crate) resource_version_match: Option<Cow<'a, str>>,
    /// `watch`
    pub(crate) watch: bool,
    /// `allowWatchBookmarks`
    pub(crate) allow_watch_bookmarks: bool,
    /// `sendInitialEvents`
    pub(crate) send_initial_events: Option<bool>,
    /// `timeoutSeconds`
    pub(crate) timeout_seconds: Option<u64>,
    /// `dryRun`, every value given.
    pub(crate) dry_run: Vec<Cow<'a, str>>,
    /// `fieldManager`
    pub(crate) field_manager: Option<Cow<'a, str>>,
    /// `fieldValidation`
    pub(crate) field_validation: Option<Cow<'a, str>>,
    /// `force`
    pub(crate) force: Option<bool>,
    /// `gracePeriodSeconds`
    pub(crate) grace_period_seconds: Option<i64>,
    /// `propagationPolicy`
    pub(crate) propagation_policy: Option<Cow<'a, str>>,
    /// `orphanDependents`
    pub(crate) orphan_dependents: Option<bool>,
    /// `includeObject`, for tables.
    pub(crate) include_object: Option<Cow<'a, str>>,
}

/// A value that does not parse; the text is what upstream answers.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("strconv.ParseInt: parsing {value:?}: invalid syntax")]
pub(crate) struct QueryError {
    value: String,
}

impl<'a> Query<'a> {
    /// Reads the part after `?` (empty when there is none).
    pub(crate) fn parse(raw: &'a str) -> Result<Self, QueryError> {
        let mut query = Query {
            raw,
            ..Query::default()
        };
        for pair in raw.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            query.set(key, decode(value))?;
        }
        Ok(query)
    }

    fn set(&mut self, key: &str, value: Cow<'a, str>) -> Result<(), QueryError> {
        match key {
            "labelSelector" => self.label_selector = non_empty(value),
            "fieldSelector" => self.field_selector = non_empty(value),
            "limit" => self.limit = usize::try_from(integer(&value)?.max(0)).unwrap_or(usize::MAX),
            "continue" => self.continue_token = non_empty(value),
            "resourceVersion" => self.resource_version = non_empty(value),
            "resourceVersionMatch" => self.resource_version_match = non_empty(value),
            "watch" => self.watch = boolean(&value),
            "allowWatchBookmarks" => self.allow_watch_bookmarks = boolean(&value),
            "sendInitialEvents" => self.send_initial_events = Some(boolean(&value)),
            "timeoutSeconds" => self.timeout_seconds = Some(integer(&value)?.max(0).unsigned_abs()),
            "dryRun" => self.dry_run.push(value),
            "fieldManager" => self.field_manager = non_empty(value),
            "fieldValidation" => self.field_validation = non_empty(value),
            "force" => self.force = Some(boolean(&value)),
            "gracePeriodSeconds" => self.grace_period_seconds = Some(integer(&value)?),
            "propagationPolicy" => self.propagation_policy = non_empty(value),
            "orphanDependents" => self.orphan_dependents = Some(boolean(&value)),
            "includeObject" => self.include_object = non_empty(value),
            _ => {}
        }
        Ok(())
    }

    /// The name that `fieldSelector` narrows to, when it asks for exactly one name.
    #[must_use]
    pub(crate) fn name_selector(&self) -> Option<&str> {
        let selector = self.field_selector.as_deref()?;
        selector.split(',').find_map(|term| {
            let name = term.strip_prefix("metadata.name=")?;
            let name = name.strip_prefix('=').unwrap_or(name);
            (!name.is_empty()).then_some(name)
        })
    }

    /// A parameter that is not one of the common options (`container`, `follow`, ...), decoded.
    #[must_use]
    pub(crate) fn param(&self, key: &str) -> Option<Cow<'a, str>> {
        self.raw.split('&').find_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (name == key).then(|| decode(value))
        })
    }
}

pub(crate) fn decode(value: &str) -> Cow<'_, str> {
    if !value.contains(['%', '+']) {
        return Cow::Borrowed(value);
    }
    let spaced = value.replace('+', " ");
    Cow::Owned(
        percent_encoding::percent_decode_str(&spaced)
            .decode_utf8_lossy()
            .into_owned(),
    )
}

fn non_empty(value: Cow<'_, str>) -> Option<Cow<'_, str>> {
    (!value.is_empty()).then_some(value)
}

fn integer(value: &str) -> Result<i64, QueryError> {
    value.parse().map_err(|_| QueryError {
        value: value.to_owned(),
    })
}

/// Upstream's reading: present means true unless it says false.
fn boolean(value: &str) -> bool {
    !(value.eq_ignore_ascii_case("false") || value == "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_decoded() {
        let query = Query::parse(
            "labelSelector=app%3Dweb%2Ctier+in+(a,b)&limit=5&watch=1&allowWatchBookmarks=true&dryRun=All&x=y&follow",
        )
        .unwrap();
        assert_eq!(
            query.label_selector.as_deref(),
            Some("app=web,tier in (a,b)")
        );
        assert_eq!(
            (query.limit, query.watch, query.allow_watch_bookmarks),
            (5, true, true)
        );
        assert_eq!(query.dry_run, ["All"]);
        assert_eq!(query.param("x").as_deref(), Some("y"));
        assert_eq!(query.param("follow").as_deref(), Some(""));
        assert_eq!(query.param("missing"), None);
    }

    #[test]
    fn a_limit_that_is_no_number_is_refused() {
        let error = Query::parse("limit=many").unwrap_err();
        assert_eq!(
            error.to_string(),
            "strconv.ParseInt: parsing \"many\": invalid syntax"
        );
    }

    #[test]
    fn a_selector_on_one_name_is_seen() {
        let cases = [
            ("fieldSelector=metadata.name%3Da", Some("a")),
            ("fieldSelector=metadata.name==a,x=y", Some("a")),
            ("fieldSelector=spec.nodeName=a", None),
            ("fieldSelector=metadata.name!=a", None),
            ("", None),
        ];
        for (raw, expected) in cases {
            assert_eq!(
                Query::parse(raw).unwrap().name_selector(),
                expected,
                "case: {raw}"
            );
        }
    }
}
