//! Nobody writes a role with rights they do not hold, or binds a role they neither hold nor may bind.
//!
//! Upstream checks this where RBAC objects are stored; here it is the last validating plugin, which is the same moment.

use cox_api::meta;
use cox_api::status::ApiStatus;
use serde_json::Value;

use super::{Operation, Request};
use crate::auth::rbac::PolicyRule;
use crate::auth::{Attributes, Authorizer, MASTERS};

const GROUP: &str = "rbac.authorization.k8s.io";

pub(super) fn validate(request: &Request<'_>, authorizer: &Authorizer) -> Result<(), ApiStatus> {
    if request.resource.group != GROUP
        || !matches!(request.operation, Operation::Create | Operation::Update)
        || request.user.in_group(MASTERS)
    {
        return Ok(());
    }
    let Some(object) = &request.object else {
        return Ok(());
    };
    match request.resource.plural.as_str() {
        "roles" | "clusterroles" => check_role(request, authorizer, object),
        "rolebindings" | "clusterrolebindings" => check_binding(request, authorizer, object),
        _ => Ok(()),
    }
}

fn check_role(
    request: &Request<'_>,
    authorizer: &Authorizer,
    role: &Value,
) -> Result<(), ApiStatus> {
    let same = |field: &str| {
        request
            .old
            .is_some_and(|old| is_same(&old[field], &role[field]))
    };
    if same("rules") && same("aggregationRule") {
        return Ok(());
    }
    if authorizer
        .authorize(&ask(
            request,
            "escalate",
            &request.resource.plural,
            object_name(request, role),
        ))
        .is_allowed()
    {
        return Ok(());
    }
    let mut rules = rules_of(role);
    if role["aggregationRule"].is_object() && !same("aggregationRule") {
        // What will be aggregated is not known now: it takes everything.
        rules.extend(everything());
    }
    authorizer
        .rbac()
        .confirm_no_escalation(request.user, request.namespace, &rules)
        .map_err(|why| request.forbidden(why))
}

fn check_binding(
    request: &Request<'_>,
    authorizer: &Authorizer,
    binding: &Value,
) -> Result<(), ApiStatus> {
    let same = |field: &str| {
        request
            .old
            .is_some_and(|old| is_same(&old[field], &binding[field]))
    };
    if same("roleRef") && same("subjects") {
        return Ok(());
    }
    let text = |field: &str| binding["roleRef"][field].as_str().unwrap_or_default();
    let (kind, name) = (text("kind"), text("name"));
    let plural = if kind == "ClusterRole" {
        "clusterroles"
    } else {
        "roles"
    };
    if authorizer
        .authorize(&ask(request, "bind", plural, name))
        .is_allowed()
    {
        return Ok(());
    }
    let rules = authorizer
        .rbac()
        .role(request.namespace, kind, name)
        .ok_or_else(|| ApiStatus::not_found(GROUP, plural, name))?;
    authorizer
        .rbac()
        .confirm_no_escalation(request.user, request.namespace, &rules)
        .map_err(|why| request.forbidden(why))
}

fn ask<'a>(
    request: &'a Request<'_>,
    verb: &'a str,
    plural: &'a str,
    name: &'a str,
) -> Attributes<'a> {
    let mut asked = Attributes::for_resource(request.user, verb, GROUP, plural);
    asked.version = "v1";
    asked.namespace = request.namespace;
    asked.name = name;
    asked
}

fn object_name<'a>(request: &'a Request<'_>, object: &'a Value) -> &'a str {
    if request.name.is_empty() {
        meta::name(object)
    } else {
        request.name
    }
}

/// Rules that do not parse were refused when the object was decoded; here they count as none.
fn rules_of(role: &Value) -> Vec<PolicyRule> {
    serde_json::from_value(role["rules"].clone()).unwrap_or_default()
}

fn everything() -> [PolicyRule; 2] {
    let all = || vec!["*".to_owned()];
    [
        PolicyRule {
            verbs: all(),
            api_groups: all(),
            resources: all(),
            ..PolicyRule::default()
        },
        PolicyRule {
            verbs: all(),
            non_resource_urls: all(),
            ..PolicyRule::default()
        },
    ]
}

/// An absent list and an empty one are the same.
fn is_same(one: &Value, other: &Value) -> bool {
    let empty = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    one == other || (empty(one) && empty(other))
}
