//! What expressions of webhooks and policies may name: the request, its objects, and what its sender may do.

use std::sync::Arc;

use cox_api::cel::admission::AUTHORIZER;
use cox_api::cel::{Budget, CALL_COST_MAX, Cel, EvalError, Expression, Opaque};
use serde_json::{Value, json};

use super::Request;
use crate::auth::{Attributes, Authorizer, Decision, UserInfo};

/// What all expressions of one policy, or the match conditions of one webhook, may cost for one request.
pub(super) const REQUEST_COST_MAX: u64 = cox_api::cel::OBJECT_COST_MAX / 4;
/// `request`, as `AdmissionRequest` has it, less the objects.
pub(super) fn request_value(request: &Request<'_>, entry: &crate::registry::Entry) -> Value {
    let user = request.user;
    let asked = &request.entry.resource;
    let shown = &entry.resource;
    let kind_of = |resource: &cox_api::schema::Resource| match resource
        .subresource(request.subresource)
    {
        Some(sub) if request.subresource == "scale" => {
            json!({"group": sub.group, "version": sub.version, "kind": sub.kind})
        }
        _ => match request
            .object
            .as_ref()
            .filter(|_| !request.subresource.is_empty())
        {
            Some(object) if object["kind"].is_string() => {
                let api_version = object["apiVersion"].as_str().unwrap_or_default();
                let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
                json!({"group": group, "version": version, "kind": object["kind"]})
            }
            _ => {
                json!({"group": resource.group, "version": resource.version, "kind": resource.kind})
            }
        },
    };
    let resource_of = |resource: &cox_api::schema::Resource| json!({"group": resource.group, "version": resource.version, "resource": resource.plural});
    let mut info = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        info["uid"] = user.uid.as_str().into();
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    let mut value = json!({
        "kind": kind_of(shown), "resource": resource_of(shown),
        "requestKind": kind_of(asked), "requestResource": resource_of(asked),
        "operation": request.operation.text(), "userInfo": info, "dryRun": request.dry_run,
    });
    if !request.subresource.is_empty() {
        value["subResource"] = request.subresource.into();
        value["requestSubResource"] = request.subresource.into();
    }
    for (field, text) in [("name", request.name), ("namespace", request.namespace)] {
        if !text.is_empty() {
            value[field] = text.into();
        }
    }
    let options = request.options.to_value();
    if !options.is_null() {
        value["options"] = options;
    }
    value
}

/// A condition of `matchConditions`.
#[derive(Clone, Debug)]
pub(super) struct Condition {
    pub(super) name: String,
    pub(super) expression: Result<Expression, String>,
}

/// Reads `matchConditions`.
pub(super) fn conditions(list: &Value) -> Vec<Condition> {
    let all = super::items(list);
    all.map(|one| Condition {
        name: one["name"].as_str().unwrap_or_default().to_owned(),
        expression: Expression::parse(one["expression"].as_str().unwrap_or_default()),
    })
    .collect()
}

/// Whether all conditions hold. One that is false decides whatever others come to; the error names what went wrong.
pub(super) fn all_hold(
    conditions: &[Condition],
    variables: &[(&str, Cel)],
    budget: &mut Budget,
) -> Result<bool, String> {
    let mut wrong = Vec::new();
    for condition in conditions {
        let outcome = match &condition.expression {
            Ok(expression) => evaluate(expression, variables, budget),
            Err(why) => Err(EvalError::Failed(why.clone())),
        };
        match outcome {
            Ok(Cel::Bool(true)) => {}
            Ok(Cel::Bool(false)) => return Ok(false),
            Ok(other) => wrong.push(format!(
                "cel expression '{}' evaluated to {}, not bool",
                condition.name,
                other.type_name()
            )),
            Err(error) => wrong.push(format!(
                "matchCondition '{}' error: {error}",
                condition.name
            )),
        }
    }
    if wrong.is_empty() {
        Ok(true)
    } else {
        Err(wrong.join(", "))
    }
}

/// Evaluates one expression within its own limit and that of all together.
pub(super) fn evaluate(
    expression: &Expression,
    variables: &[(&str, Cel)],
    budget: &mut Budget,
) -> Result<Cel, EvalError> {
    let granted = budget.left().min(CALL_COST_MAX);
    let mut own = Budget::new(granted);
    let value = expression.evaluate(variables, &mut own);
    budget.take(granted - own.left())?;
    value
}

/// `authorizer`: asks what the sender of the request may do.
#[derive(Clone, Debug)]
pub(super) struct Asking {
    authorizer: Authorizer,
    user: Arc<UserInfo>,
    question: Question,
    /// What `requestResource` asks about.
    own: Arc<Question>,
}

#[derive(Clone, Debug, Default)]
struct Question {
    stage: Stage,
    group: String,
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
    path: String,
    field_selector: String,
    label_selector: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Authorizer,
    Group,
    Resource,
    Path,
}

impl Asking {
    /// For the sender of a request.
    pub(super) fn new(authorizer: &Authorizer, request: &Request<'_>) -> Self {
        let own = Question {
            stage: Stage::Resource,
            group: request.resource.group.clone(),
            resource: request.resource.plural.clone(),
            subresource: request.subresource.to_owned(),
            namespace: request.namespace.to_owned(),
            name: request.name.to_owned(),
            ..Question::default()
        };
        Asking {
            authorizer: authorizer.clone(),
            user: Arc::new(request.user.clone()),
            question: Question::default(),
            own: Arc::new(own),
        }
    }

    /// As a value.
    pub(super) fn value(self) -> Cel {
        Cel::Opaque(Arc::new(self))
    }

    fn with(&self, edit: impl FnOnce(&mut Question)) -> Cel {
        let mut next = self.clone();
        edit(&mut next.question);
        next.value()
    }

    fn check(&self, verb: &str) -> Cel {
        let asked = &self.question;
        let decision = if asked.stage == Stage::Path {
            self.authorizer
                .authorize(&Attributes::for_path(&self.user, verb, &asked.path))
        } else {
            self.authorizer.authorize(&Attributes {
                version: "*",
                subresource: &asked.subresource,
                namespace: &asked.namespace,
                name: &asked.name,
                field_selector: &asked.field_selector,
                label_selector: &asked.label_selector,
                ..Attributes::for_resource(&self.user, verb, &asked.group, &asked.resource)
            })
        };
        Cel::Opaque(Arc::new(Answer(decision)))
    }
}

impl Opaque for Asking {
    fn type_name(&self) -> &'static str {
        match self.question.stage {
            Stage::Authorizer => AUTHORIZER,
            Stage::Group => "kubernetes.authorization.GroupCheck",
            Stage::Resource => "kubernetes.authorization.ResourceCheck",
            Stage::Path => "kubernetes.authorization.PathCheck",
        }
    }

    fn call(&self, method: &str, args: &[Cel]) -> Option<Result<Cel, EvalError>> {
        let texts: Option<Vec<&str>> = args
            .iter()
            .map(|arg| match arg {
                Cel::Text(text) => Some(&**text),
                _ => None,
            })
            .collect();
        let texts = texts?;
        let value = match (self.question.stage, method, texts.as_slice()) {
            (Stage::Authorizer, "path", [path]) => self.with(|next| {
                next.stage = Stage::Path;
                next.path = (*path).to_owned();
            }),
            (Stage::Authorizer, "group", [group]) => self.with(|next| {
                next.stage = Stage::Group;
                next.group = (*group).to_owned();
            }),
            (Stage::Authorizer, "serviceAccount", [namespace, name]) => {
                let mut next = self.clone();
                next.user = Arc::new(UserInfo::service_account(namespace, name, ""));
                next.value()
            }
            (Stage::Group, "resource", [resource]) => self.with(|next| {
                next.stage = Stage::Resource;
                next.resource = (*resource).to_owned();
            }),
            (Stage::Resource, "subresource", [text]) => {
                self.with(|next| next.subresource = (*text).to_owned())
            }
            (Stage::Resource, "namespace", [text]) => {
                self.with(|next| next.namespace = (*text).to_owned())
            }
            (Stage::Resource, "name", [text]) => self.with(|next| next.name = (*text).to_owned()),
            (Stage::Resource, "fieldSelector", [text]) => {
                self.with(|next| next.field_selector = (*text).to_owned())
            }
            (Stage::Resource, "labelSelector", [text]) => {
                self.with(|next| next.label_selector = (*text).to_owned())
            }
            (Stage::Resource | Stage::Path, "check", [verb]) => self.check(verb),
            _ => return None,
        };
        Some(Ok(value))
    }

    fn select(self: Arc<Self>, field: &str, _: &mut Budget) -> Option<Result<Cel, EvalError>> {
        if self.question.stage != Stage::Authorizer || field != "requestResource" {
            return None;
        }
        let own = (*self.own).clone();
        Some(Ok(self.with(|next| *next = own)))
    }

    fn has(&self, field: &str) -> bool {
        field == "requestResource"
    }
}

/// What an authorizer said.
#[derive(Debug)]
struct Answer(Decision);

impl Opaque for Answer {
    fn type_name(&self) -> &'static str {
        "kubernetes.authorization.Decision"
    }

    fn call(&self, method: &str, args: &[Cel]) -> Option<Result<Cel, EvalError>> {
        let value = match (method, args) {
            ("allowed", []) => Cel::Bool(self.0.is_allowed()),
            ("reason", []) => match &self.0 {
                Decision::Deny(reason) => Cel::text(reason),
                Decision::Allow | Decision::Failed(_) => Cel::text(""),
            },
            ("errored", []) => Cel::Bool(matches!(self.0, Decision::Failed(_))),
            ("error", []) => match &self.0 {
                Decision::Failed(why) => Cel::text(why),
                Decision::Allow | Decision::Deny(_) => Cel::text(""),
            },
            _ => return None,
        };
        Some(Ok(value))
    }

    fn select(self: Arc<Self>, _: &str, _: &mut Budget) -> Option<Result<Cel, EvalError>> {
        None
    }

    fn has(&self, _: &str) -> bool {
        false
    }
}
