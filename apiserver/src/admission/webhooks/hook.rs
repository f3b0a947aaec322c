//! One webhook of a configuration, read.

use std::time::Duration;

use serde_json::Value;

use crate::admission::expressions::{self, Condition};
use crate::admission::items;
use crate::admission::matching::Matcher;

const TIMEOUT_SECS: u64 = 10;

/// A webhook.
#[derive(Clone, Debug)]
pub(super) struct Hook {
    pub(super) name: String,
    pub(super) matcher: Matcher,
    pub(super) conditions: Vec<Condition>,
    /// A webhook that cannot be asked counts as a refusal.
    pub(super) fails_closed: bool,
    /// It is called again when the object changes after it.
    pub(super) reinvoked: bool,
    pub(super) timeout: Duration,
    pub(super) dry_run: bool,
    /// `v1` or `v1beta1`.
    pub(super) review_version: &'static str,
    pub(super) client: Value,
}

impl Hook {
    /// The webhooks of a configuration, in their order.
    pub(super) fn read_all(configuration: &Value) -> Vec<Hook> {
        items(&configuration["webhooks"]).map(Hook::read).collect()
    }

    fn read(hook: &Value) -> Hook {
        let version = items(&hook["admissionReviewVersions"]).find_map(|one| match one.as_str() {
            Some("v1") => Some("v1"),
            Some("v1beta1") => Some("v1beta1"),
            _ => None,
        });
        Hook {
            name: hook["name"].as_str().unwrap_or_default().to_owned(),
            matcher: Matcher::read(hook, "rules"),
            conditions: expressions::conditions(&hook["matchConditions"]),
            fails_closed: hook["failurePolicy"] != "Ignore",
            reinvoked: hook["reinvocationPolicy"] == "IfNeeded",
            timeout: Duration::from_secs(hook["timeoutSeconds"].as_u64().unwrap_or(TIMEOUT_SECS)),
            dry_run: matches!(hook["sideEffects"].as_str(), Some("None" | "NoneOnDryRun")),
            review_version: version.unwrap_or("v1"),
            client: hook["clientConfig"].clone(),
        }
    }
}
