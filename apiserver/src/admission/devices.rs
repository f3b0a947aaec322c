//! Devices: administrative access only in namespaces that are for it, and who may write which part of a claim's status.
//!
//! Permission for `resourceclaims/status` alone says nothing: who changes the allocation or the users of a claim needs
//! `resourceclaims/binding` too, and who tells of a driver's devices `resourceclaims/driver` with that driver's name, with one verb
//! for the node that the claim is allocated on and another for all nodes. Upstream has these checks in its registry, so the
//! refusals are those of an invalid object.

use std::collections::{BTreeMap, BTreeSet};

use cox_api::meta;
use cox_api::names;
use cox_api::status::ApiStatus;
use cox_api::validation::FieldError;
use cox_store::Snapshot;
use serde_json::Value;

use super::decoded::stored;
use super::{Operation, Options, Request, items};
use crate::auth::{Attributes, Authorizer, Decision, UserInfo, forbidden};

const GROUP: &str = "resource.k8s.io";
/// Namespaces with this label may have administrative access to devices.
const ADMIN_ACCESS: &str = "resource.kubernetes.io/admin-access";
/// The node that a service account's token is bound to.
const TOKEN_NODE: &str = "authentication.kubernetes.io/node-name";
/// Verbs for whoever runs on the node of the claim, and for whoever runs anywhere.
const ASSOCIATED: &str = "associated-node:";
const ARBITRARY: &str = "arbitrary-node:";

pub(super) async fn validate(
    request: &Request<'_>,
    snapshot: &Snapshot,
    authorizer: &Authorizer,
) -> Result<(), ApiStatus> {
    let Some(new) = &request.object else {
        return Ok(());
    };
    if request.resource.group != GROUP {
        return Ok(());
    }
    let plural = request.resource.plural.as_str();
    let errors = match (plural, request.operation, request.subresource) {
        ("resourceclaims", Operation::Create, "") => {
            admin_requests(request, snapshot, &new["spec"])
        }
        ("resourceclaimtemplates", Operation::Create, "") => {
            admin_requests(request, snapshot, &new["spec"]["spec"])
        }
        ("resourceclaims", Operation::Update, "status") => {
            let old = request.old.unwrap_or(&Value::Null);
            let (new, old) = (&new["status"], &old["status"]);
            let mut errors = admin_results(request, snapshot, new, old);
            errors.extend(may_bind(request, authorizer, new, old).await);
            errors.extend(may_tell(request, authorizer, new, old).await);
            errors
        }
        _ => return Ok(()),
    };
    if errors.is_empty() {
        return Ok(());
    }
    let resource = request.resource;
    Err(ApiStatus::invalid(
        &resource.group,
        &resource.kind,
        meta::name(new),
        errors,
    ))
}

fn admin_requests(request: &Request<'_>, snapshot: &Snapshot, spec: &Value) -> Vec<FieldError> {
    let wants = |asked: &Value| asked["exactly"]["adminAccess"] == true;
    let first = items(&spec["devices"]["requests"]).position(wants);
    let path = |at| format!("spec.devices.requests[{at}].adminAccess");
    first
        .and_then(|at| admin_namespace(request, snapshot, path(at)))
        .into_iter()
        .collect()
}

fn admin_results(
    request: &Request<'_>,
    snapshot: &Snapshot,
    new: &Value,
    old: &Value,
) -> Vec<FieldError> {
    let granted = |status: &Value| {
        items(&status["allocation"]["devices"]["results"])
            .position(|result| result["adminAccess"] == true)
    };
    // What was granted stays, whatever became of the label.
    let first = granted(new).filter(|_| granted(old).is_none());
    let path = |at| format!("status.allocation.devices.results[{at}].adminAccess");
    first
        .and_then(|at| admin_namespace(request, snapshot, path(at)))
        .into_iter()
        .collect()
}

fn admin_namespace(request: &Request<'_>, snapshot: &Snapshot, path: String) -> Option<FieldError> {
    let namespace = stored(snapshot, "namespaces", request.namespace);
    let labelled = namespace.is_some_and(|namespace| {
        meta::labels(&namespace).any(|(key, value)| key == ADMIN_ACCESS && value == "true")
    });
    (!labelled).then(|| {
        let why = format!(
            "admin access to devices requires the `{ADMIN_ACCESS}: true` label on the containing namespace"
        );
        FieldError::forbidden(path, why)
    })
}

/// How the claim is written.
fn verb(request: &Request<'_>) -> &'static str {
    match request.options {
        Options::Query("PatchOptions", _) => "patch",
        _ => "update",
    }
}

/// Asks for a permission that stands for a part of the status; the refusal's sentence if there is none.
async fn ask(authorizer: &Authorizer, asked: &Attributes<'_>) -> Option<String> {
    match authorizer.decide(asked).await {
        Decision::Allow => None,
        Decision::Deny(why) => Some(forbidden(asked, &why).message),
        Decision::Failed(why) => Some(why),
    }
}

async fn may_bind(
    request: &Request<'_>,
    authorizer: &Authorizer,
    new: &Value,
    old: &Value,
) -> Option<FieldError> {
    if ["allocation", "reservedFor"]
        .iter()
        .all(|field| is_same(&new[field], &old[field]))
    {
        return None;
    }
    let verb = verb(request);
    // For all namespaces and names: claims of one namespace take devices from all others.
    let asked = Attributes {
        version: &request.entry.resource.version,
        subresource: "binding",
        ..Attributes::for_resource(request.user, verb, GROUP, "resourceclaims")
    };
    let why = ask(authorizer, &asked).await?;
    let detail = format!(
        "changing status.allocation or status.reservedFor requires resource=\"resourceclaims/binding\", verb=\"{verb}\" permission: {why}"
    );
    Some(FieldError::forbidden("status.allocation", detail))
}

/// Absent and empty are one.
fn is_same(new: &Value, old: &Value) -> bool {
    let is_empty = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    new == old || is_empty(new) && is_empty(old)
}

async fn may_tell(
    request: &Request<'_>,
    authorizer: &Authorizer,
    new: &Value,
    old: &Value,
) -> Vec<FieldError> {
    // Without an allocation there is nothing to tell: what was told goes with it.
    if new["allocation"].is_null() {
        return Vec::new();
    }
    let mut verbs = vec![format!("{ARBITRARY}{}", verb(request))];
    if is_on_node(request.user, allocated_node(&new["allocation"])) {
        verbs.insert(0, format!("{ASSOCIATED}{}", verb(request)));
    }
    let mut errors = Vec::new();
    'drivers: for driver in changed_drivers(new, old) {
        let mut first = None;
        for verb in &verbs {
            let asked = Attributes {
                version: &request.entry.resource.version,
                subresource: "driver",
                name: driver,
                namespace: request.namespace,
                ..Attributes::for_resource(request.user, verb, GROUP, "resourceclaims")
            };
            match ask(authorizer, &asked).await {
                None => continue 'drivers,
                Some(why) => first = first.or(Some(why)),
            }
        }
        let detail = format!(
            "changing status.devices requires resource=\"resourceclaims/driver\", verb=\"[{}]\" permission: {}",
            verbs.join(" "),
            first.unwrap_or_default()
        );
        errors.push(FieldError::forbidden("status.devices", detail));
    }
    errors
}

/// The drivers of what was added, taken away or changed.
fn changed_drivers<'a>(new: &'a Value, old: &'a Value) -> BTreeSet<&'a str> {
    type Key<'a> = [&'a str; 4];
    let key = |device: &'a Value| -> Key<'a> {
        ["driver", "pool", "device", "shareID"]
            .map(|field| device[field].as_str().unwrap_or_default())
    };
    let by_key = |status: &'a Value| -> BTreeMap<Key<'a>, &'a Value> {
        items(&status["devices"])
            .map(|device| (key(device), device))
            .collect()
    };
    let (new, old) = (by_key(new), by_key(old));
    let changed = new.keys().chain(old.keys()).copied();
    changed
        .filter(|key| new.get(key) != old.get(key))
        .map(|[driver, ..]| driver)
        .collect()
}

/// The one node that an allocation is for, if it is for one by name.
fn allocated_node(allocation: &Value) -> Option<&str> {
    let [term] = allocation["nodeSelector"]["nodeSelectorTerms"]
        .as_array()?
        .as_slice()
    else {
        return None;
    };
    if items(&term["matchExpressions"]).next().is_some() {
        return None;
    }
    let [field] = term["matchFields"].as_array()?.as_slice() else {
        return None;
    };
    let [node] = field["values"].as_array()?.as_slice() else {
        return None;
    };
    let by_name = field["key"] == "metadata.name" && field["operator"] == "In";
    node.as_str().filter(|_| by_name)
}

/// Whether this is a service account whose token is bound to the node.
fn is_on_node(user: &UserInfo, node: Option<&str>) -> bool {
    let bound = user.extra.get(TOKEN_NODE).map(Vec::as_slice);
    match (user.service_account_name(), bound, node) {
        (Some(_), Some([bound]), Some(node)) => {
            bound == node && names::dns_subdomain(bound).is_empty()
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_allocation_is_for_one_node_only_if_it_names_it() {
        let of = |terms: Value| {
            let allocation = json!({"nodeSelector": {"nodeSelectorTerms": terms}});
            allocated_node(&allocation).map(str::to_owned)
        };
        let field = |key: &str, operator: &str, values: Value| json!({"key": key, "operator": operator, "values": values});
        let name = |values: Value| field("metadata.name", "In", values);
        let one = json!([{"matchFields": [name(json!(["n"]))]}]);
        assert_eq!(of(one).as_deref(), Some("n"));
        for (case, terms) in [
            (
                "two nodes",
                json!([{"matchFields": [name(json!(["n", "m"]))]}]),
            ),
            (
                "two terms",
                json!([{"matchFields": [name(json!(["n"]))]}, {}]),
            ),
            (
                "not that node",
                json!([{"matchFields": [field("metadata.name", "NotIn", json!(["n"]))]}]),
            ),
            (
                "by label too",
                json!([{"matchFields": [name(json!(["n"]))], "matchExpressions": [field("a", "In", json!(["n"]))]}]),
            ),
            (
                "by label",
                json!([{"matchExpressions": [field("metadata.name", "In", json!(["n"]))]}]),
            ),
        ] {
            assert_eq!(of(terms), None, "case: {case}");
        }
    }

    #[test]
    fn drivers_are_asked_for_that_tell_something_else() {
        let device = |driver: &str, name: &str, data: i32| json!({"driver": driver, "pool": "p", "device": name, "data": {"v": data}});
        let status = |devices: Value| json!({ "devices": devices });
        let base = status(json!([device("a", "1", 0), device("b", "1", 0)]));
        for (case, new, expected) in [
            (
                "the same in another order",
                json!([device("b", "1", 0), device("a", "1", 0)]),
                vec![],
            ),
            (
                "changed",
                json!([device("a", "1", 1), device("b", "1", 0)]),
                vec!["a"],
            ),
            ("taken away", json!([device("a", "1", 0)]), vec!["b"]),
            (
                "added",
                json!([
                    device("a", "1", 0),
                    device("b", "1", 0),
                    device("c", "1", 0)
                ]),
                vec!["c"],
            ),
            (
                "another device",
                json!([device("a", "2", 0), device("b", "1", 0)]),
                vec!["a"],
            ),
        ] {
            let new = status(new);
            let found: Vec<_> = changed_drivers(&new, &base).into_iter().collect();
            assert_eq!(found, expected, "case: {case}");
        }
    }

    #[test]
    fn only_a_service_account_whose_token_is_of_the_node_is_on_it() {
        let mut account = UserInfo::service_account("n", "driver", "");
        assert!(!is_on_node(&account, Some("node")));
        account
            .extra
            .insert(TOKEN_NODE.to_owned(), vec!["node".to_owned()]);
        assert!(is_on_node(&account, Some("node")));
        assert!(!is_on_node(&account, Some("other")));
        assert!(!is_on_node(&account, None));
        let mut human = UserInfo::new("jane", []);
        human.extra.clone_from(&account.extra);
        assert!(!is_on_node(&human, Some("node")));
    }
}
