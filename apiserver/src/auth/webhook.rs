//! The webhook authorizer: a server outside is asked with a SubjectAccessReview, and its answers are remembered for a while.
//!
//! Input: a question. Output: an opinion. Conditions (CEL over the review's spec) say which questions go there at all. What a
//! server that cannot be asked means is for the configuration to say.

use std::path::PathBuf;
use std::time::Duration;

use cox_api::cel::admission::{Gives, compile};
use cox_api::cel::{Budget, CALL_COST_MAX, Cel, Expression, Type, builtin};
use cox_api::selector::{FieldSelector, LabelSelector, Operator};
use serde_json::{Map, Value, json};

use super::Attributes;
use super::authorizer::Opinion;
use super::remembered::Remembered;
use super::remote::{Remote, RemoteError};

/// Answers remembered.
const CACHE_LEN_MAX: usize = 8192;
/// Questions whose parts are longer than this together are not remembered: their sender chose them.
const CACHED_BYTES_MAX: usize = 10_000;

/// How a webhook is asked.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// Its name, for messages and metrics.
    pub(super) name: String,
    /// Where it is.
    pub(super) kubeconfig: PathBuf,
    /// The version of the SubjectAccessReview.
    pub(super) version: ReviewVersion,
    /// How long a yes is remembered; none for not at all.
    pub(super) authorized_ttl: Option<Duration>,
    /// How long anything else is.
    pub(super) unauthorized_ttl: Option<Duration>,
    /// How long all tries may take together.
    pub(super) timeout: Duration,
    /// What it means when it cannot be asked.
    pub(super) on_failure: OnFailure,
    /// Expressions that all must hold for a question to go there.
    pub(super) conditions: Vec<String>,
}

/// Versions of the review objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReviewVersion {
    /// `v1`
    V1,
    /// `v1beta1`
    V1beta1,
}

/// What it means when a webhook cannot be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnFailure {
    /// The authorizers after it decide.
    NoOpinion,
    /// Nobody may.
    Deny,
}

impl ReviewVersion {
    /// As files and flags name it.
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "v1" => Some(Self::V1),
            "v1beta1" => Some(Self::V1beta1),
            _ => None,
        }
    }

    pub(super) fn of_group(self, group: &str) -> String {
        match self {
            Self::V1 => format!("{group}/v1"),
            Self::V1beta1 => format!("{group}/v1beta1"),
        }
    }
}

/// Why a webhook cannot be configured so.
#[derive(Debug, thiserror::Error)]
pub(super) enum WebhookError {
    /// It cannot be found.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// An expression is none.
    #[error("matchConditions: {0}")]
    Condition(String),
}

/// A webhook.
#[derive(Debug)]
pub(super) struct Webhook {
    settings: Settings,
    remote: Remote,
    conditions: Vec<Expression>,
    known: Remembered<String, Opinion>,
}

impl Webhook {
    pub(super) fn open(settings: Settings) -> Result<Self, WebhookError> {
        let remote = Remote::of_kubeconfig(&settings.kubeconfig)?;
        let types = [("request", request_type())];
        let parse = |source: &String| {
            compile(source, &types, Gives::Bool)?;
            Expression::parse(source)
        };
        let conditions = settings.conditions.iter().map(parse);
        Ok(Self {
            conditions: conditions
                .collect::<Result<_, _>>()
                .map_err(WebhookError::Condition)?,
            remote,
            settings,
            known: Remembered::new(CACHE_LEN_MAX),
        })
    }

    /// What the webhook thinks of it.
    pub(super) async fn opinion(&self, asked: &Attributes<'_>) -> Opinion {
        let spec = spec(asked);
        match self.concerns(&spec) {
            Ok(true) => {}
            Ok(false) => return Opinion::None(String::new()),
            Err(why) => return self.failed(why),
        }
        let key = spec.to_string();
        if let Some(known) = self.known.get(&key) {
            return known;
        }
        let review = review(self.settings.version, spec);
        let answered = match self.remote.post(&review, self.settings.timeout).await {
            Ok(answer) => read(&answer),
            Err(why) => Err(why),
        };
        let opinion = match answered {
            Ok(opinion) => opinion,
            Err(why) => {
                tracing::warn!(webhook = %self.settings.name, %why, "The authorization webhook could not be asked");
                return self.failed(why);
            }
        };
        if length(asked) < CACHED_BYTES_MAX {
            self.remember(key, &opinion);
        }
        opinion
    }

    fn failed(&self, why: String) -> Opinion {
        match self.settings.on_failure {
            OnFailure::NoOpinion => Opinion::Failed(why),
            OnFailure::Deny => Opinion::FailedAndDenied(why),
        }
    }

    /// Whether all conditions hold. One that is false decides whatever others come to.
    fn concerns(&self, spec: &Value) -> Result<bool, String> {
        if self.conditions.is_empty() {
            return Ok(true);
        }
        let variables = [("request", Cel::from_json(spec))];
        let mut wrong = Vec::new();
        for condition in &self.conditions {
            match condition.evaluate(&variables, &mut Budget::new(CALL_COST_MAX)) {
                Ok(Cel::Bool(true)) => {}
                Ok(Cel::Bool(false)) => return Ok(false),
                Ok(other) => wrong.push(format!("it gives {}", other.type_name())),
                Err(error) => {
                    wrong.push(format!("cel evaluation error: {error}"));
                }
            }
        }
        if wrong.is_empty() {
            Ok(true)
        } else {
            Err(wrong.join(", "))
        }
    }

    fn remember(&self, key: String, opinion: &Opinion) {
        let ttl = if matches!(opinion, Opinion::Allow) {
            self.settings.authorized_ttl
        } else {
            self.settings.unauthorized_ttl
        };
        self.known
            .put(key, opinion.clone(), ttl.unwrap_or_default());
    }
}

/// `request` in conditions: the spec of a SubjectAccessReview.
fn request_type() -> Type {
    let schema = cox_api::schema::builtin();
    schema
        .type_named("k8s.io/api/authorization/v1.SubjectAccessReviewSpec")
        .map_or(Type::Dyn, |id| builtin::type_of(schema, id))
}

fn length(asked: &Attributes<'_>) -> usize {
    let parts = [
        asked.namespace,
        asked.verb,
        asked.group,
        asked.version,
        asked.resource,
        asked.subresource,
        asked.name,
        asked.path,
        asked.field_selector,
        asked.label_selector,
    ];
    parts.iter().map(|part| part.len()).sum()
}

fn review(version: ReviewVersion, mut spec: Value) -> Value {
    if version == ReviewVersion::V1beta1
        && let Some(fields) = spec.as_object_mut()
        && let Some(groups) = fields.remove("groups")
    {
        // Its name there.
        fields.insert("group".to_owned(), groups);
    }
    json!({
        "kind": "SubjectAccessReview", "apiVersion": version.of_group("authorization.k8s.io"),
        "metadata": {}, "spec": spec, "status": {"allowed": false},
    })
}

/// The spec of the review that asks this. What is empty is left out.
fn spec(asked: &Attributes<'_>) -> Value {
    let mut about = Map::new();
    let mut put = |field: &str, text: &str| {
        if !text.is_empty() {
            about.insert(field.to_owned(), text.into());
        }
    };
    let which = if asked.is_resource() {
        for (field, text) in [
            ("namespace", asked.namespace),
            ("verb", asked.verb),
            ("group", asked.group),
            ("version", asked.version),
            ("resource", asked.resource),
            ("subresource", asked.subresource),
            ("name", asked.name),
        ] {
            put(field, text);
        }
        for (field, requirements) in [
            ("fieldSelector", of_fields(asked.field_selector)),
            ("labelSelector", of_labels(asked.label_selector)),
        ] {
            if !requirements.is_empty() {
                about.insert(field.to_owned(), json!({"requirements": requirements}));
            }
        }
        "resourceAttributes"
    } else {
        put("path", asked.path);
        put("verb", asked.verb);
        "nonResourceAttributes"
    };
    let user = asked.user;
    let mut spec = Map::new();
    spec.insert(which.to_owned(), about.into());
    if !user.name.is_empty() {
        spec.insert("user".to_owned(), user.name.as_str().into());
    }
    if !user.groups.is_empty() {
        spec.insert("groups".to_owned(), json!(user.groups));
    }
    if !user.extra.is_empty() {
        spec.insert("extra".to_owned(), json!(user.extra));
    }
    if !user.uid.is_empty() {
        spec.insert("uid".to_owned(), user.uid.as_str().into());
    }
    spec.into()
}

/// Selectors only narrow what is asked, so one that cannot be read asks for more, never for less.
fn of_fields(selector: &str) -> Vec<Value> {
    let parsed = FieldSelector::parse(selector).unwrap_or_default();
    let one = |requirement: &cox_api::selector::FieldRequirement| {
        let operator = if requirement.equal { "In" } else { "NotIn" };
        json!({"key": requirement.field, "operator": operator, "values": [requirement.value]})
    };
    parsed.requirements.iter().map(one).collect()
}

fn of_labels(selector: &str) -> Vec<Value> {
    if selector.is_empty() {
        return Vec::new();
    }
    let Ok(parsed) = LabelSelector::parse(selector) else {
        return Vec::new();
    };
    let one = |requirement: &cox_api::selector::Requirement| {
        let operator = match requirement.operator {
            Operator::In => "In",
            Operator::NotIn => "NotIn",
            Operator::Exists => "Exists",
            Operator::DoesNotExist => "DoesNotExist",
            Operator::GreaterThan | Operator::LessThan => return None,
        };
        let mut value = json!({"key": requirement.key, "operator": operator});
        if !requirement.values.is_empty() {
            value["values"] = json!(requirement.values);
        }
        Some(value)
    };
    parsed.requirements.iter().filter_map(one).collect()
}

fn read(answer: &Value) -> Result<Opinion, String> {
    let status = &answer["status"];
    if answer["kind"] != "SubjectAccessReview" || !status.is_object() {
        return Err("the answer is no SubjectAccessReview with a status".to_owned());
    }
    let reason = status["reason"].as_str().unwrap_or_default().to_owned();
    let flag = |field: &str| status[field] == true;
    match (flag("denied"), flag("allowed")) {
        (true, true) => Ok(Opinion::FailedAndDenied(
            "webhook subject access review returned both allow and deny response".to_owned(),
        )),
        (true, false) => Ok(Opinion::Deny(reason)),
        (false, true) => Ok(Opinion::Allow),
        (false, false) => Ok(Opinion::None(reason)),
    }
}
