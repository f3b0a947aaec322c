//! When a container is started again by rules of its own.

use super::FieldError;
use super::node::{Errors, Node};

const RULES_MAX: usize = 20;
const EXIT_CODES_MAX: usize = 255;

/// Rules of a container's `restartPolicy` and `restartPolicyRules`.
pub(super) fn all(container: &Node<'_>, errors: &mut Errors) {
    let policy = container.get("restartPolicy");
    policy.one_of_if_set(&["Always", "Never", "OnFailure"], errors);
    let count = container.len("restartPolicyRules");
    if count > 0 && policy.as_text().is_empty() {
        policy.required(
            "must specify restartPolicy when restart rules are used",
            errors,
        );
    }
    if count > RULES_MAX {
        let path = container.get("restartPolicyRules").path();
        errors.push(FieldError::too_many(path, count, RULES_MAX));
    }
    for rule in container.items("restartPolicyRules") {
        rule.get("action")
            .supported(&["Restart", "RestartAllContainers"], errors);
        let Some(codes) = rule.some("exitCodes") else {
            rule.get("exitCodes").required("must be specified", errors);
            continue;
        };
        codes.get("operator").supported(&["In", "NotIn"], errors);
        if codes.len("values") > EXIT_CODES_MAX {
            let path = codes.get("values").path();
            errors.push(FieldError::too_many(
                path,
                codes.len("values"),
                EXIT_CODES_MAX,
            ));
        }
    }
}
