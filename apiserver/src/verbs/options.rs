//! Which list and watch options go together, in upstream's words. Looks at nothing but the query.

use cox_api::status::ApiStatus;
use cox_api::validation::FieldError;

use crate::query::Query;
use crate::refuse;

const MATCH: &str = "resourceVersionMatch";

/// Refuses options of a list that contradict each other.
pub(crate) fn check_list(query: &Query<'_>) -> Result<(), ApiStatus> {
    let mut errors = Vec::new();
    if let Some(matching) = query.resource_version_match.as_deref() {
        if query.resource_version.is_none() {
            errors.push(FieldError::forbidden(
                MATCH,
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            ));
        }
        if query.continue_token.is_some() {
            errors.push(not_with_continue());
        }
        if !matches!(matching, "Exact" | "NotOlderThan") {
            let supported = ["Exact", "NotOlderThan", ""];
            errors.push(FieldError::not_supported(MATCH, matching, &supported));
        }
        if matching == "Exact" && query.resource_version.as_deref() == Some("0") {
            errors.push(FieldError::forbidden(
                MATCH,
                "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            ));
        }
    }
    if query.send_initial_events.is_some() {
        errors.push(FieldError::forbidden(
            "sendInitialEvents",
            "sendInitialEvents is forbidden for list",
        ));
    }
    refuse::options_if("ListOptions", errors)
}

/// Refuses options of a watch that contradict each other.
pub(crate) fn check_watch(query: &Query<'_>) -> Result<(), ApiStatus> {
    let mut errors = Vec::new();
    let matching = query.resource_version_match.as_deref();
    if query.send_initial_events.is_some() && matching != Some("NotOlderThan") {
        errors.push(FieldError::forbidden(
            MATCH,
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ));
    }
    if let Some(matching) = matching {
        if query.send_initial_events.is_none() {
            errors.push(FieldError::forbidden(
                MATCH,
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ));
        }
        if matching != "NotOlderThan" {
            errors.push(FieldError::not_supported(
                MATCH,
                matching,
                &["NotOlderThan"],
            ));
        }
        if query.continue_token.is_some() {
            errors.push(not_with_continue());
        }
    }
    refuse::options_if("ListOptions", errors)
}

fn not_with_continue() -> FieldError {
    FieldError::forbidden(
        MATCH,
        "resourceVersionMatch is forbidden when continue is provided",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(raw: &str, check: fn(&Query<'_>) -> Result<(), ApiStatus>) -> String {
        let query = Query::parse(raw).unwrap();
        check(&query).map_or_else(|status| status.message, |()| "fine".to_owned())
    }

    #[test]
    fn lists_are_told_what_does_not_go_together() {
        let cases = [
            ("resourceVersion=5&resourceVersionMatch=Exact", "fine"),
            (
                "resourceVersionMatch=Exact",
                "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
            ),
            (
                "resourceVersion=0&resourceVersionMatch=Exact",
                "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            ),
            (
                "resourceVersion=1&resourceVersionMatch=foo",
                "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Unsupported value: \"foo\": supported values: \"Exact\", \"NotOlderThan\", \"\"",
            ),
            (
                "sendInitialEvents=true",
                "ListOptions.meta.k8s.io \"\" is invalid: sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list",
            ),
        ];
        for (raw, expected) in cases {
            assert_eq!(says(raw, check_list), expected, "case: {raw}");
        }
    }

    #[test]
    fn watches_are_told_what_does_not_go_together() {
        let cases = [
            (
                "sendInitialEvents=true&resourceVersionMatch=NotOlderThan",
                "fine",
            ),
            (
                "sendInitialEvents=true",
                "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            ),
            (
                "resourceVersionMatch=NotOlderThan",
                "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ),
        ];
        for (raw, expected) in cases {
            assert_eq!(says(raw, check_watch), expected, "case: {raw}");
        }
    }
}
