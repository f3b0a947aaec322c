//! Events of `audit.k8s.io/v1`: what is known when a request comes, and what its answer adds.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::Asked;
use super::policy::{Level, Stage};
use crate::auth::UserInfo;

/// What all events of a request say.
#[derive(Debug)]
pub(super) struct Head {
    fields: Map<String, Value>,
    id: String,
    annotations: Map<String, Value>,
    sent: Option<Value>,
}

/// What the answer adds.
#[derive(Debug, Default)]
pub(super) struct Answer {
    status: Option<Map<String, Value>>,
    pub(super) object: Option<Value>,
}

impl Answer {
    pub(super) fn code(code: u16) -> Self {
        let mut status = Map::new();
        status.insert("metadata".to_owned(), json!({}));
        status.insert("code".to_owned(), code.into());
        Self {
            status: Some(status),
            object: None,
        }
    }

    /// Takes over what a Status says.
    pub(super) fn explain(&mut self, object: &Value) {
        if object["kind"] != "Status" {
            return;
        }
        let Some(status) = &mut self.status else {
            return;
        };
        for field in ["status", "message", "reason", "details"] {
            if let Some(value) = object.get(field) {
                status.insert(field.to_owned(), value.clone());
            }
        }
    }
}

impl Head {
    pub(super) fn new(asked: &Asked<'_>, level: Level, now: Timestamp) -> Self {
        let attributes = asked.attributes;
        let id = match asked.audit_id {
            // As upstream: what a client calls it, unless that is too long.
            Some(id) if !id.is_empty() && id.len() <= 64 => id.to_owned(),
            _ => uuid::Uuid::new_v4().to_string(),
        };
        let mut fields = Map::new();
        let mut set = |name: &str, value: Value| {
            fields.insert(name.to_owned(), value);
        };
        set("kind", "Event".into());
        set("apiVersion", "audit.k8s.io/v1".into());
        set("level", level.name().into());
        set("auditID", id.as_str().into());
        set("requestURI", asked.uri.into());
        set("verb", attributes.verb.into());
        match asked.impersonator {
            None => set("user", user(attributes.user)),
            Some(impersonator) => {
                set("user", user(impersonator));
                set("impersonatedUser", user(attributes.user));
            }
        }
        if let Some(source) = asked.source {
            set("sourceIPs", json!([source.to_string()]));
        }
        if !asked.user_agent.is_empty() {
            set("userAgent", asked.user_agent.into());
        }
        if attributes.is_resource() {
            let mut reference = Map::new();
            for (name, value) in [
                ("resource", attributes.resource),
                ("namespace", attributes.namespace),
                ("name", attributes.name),
                ("apiGroup", attributes.group),
                ("apiVersion", attributes.version),
                ("subresource", attributes.subresource),
            ] {
                if !value.is_empty() {
                    reference.insert(name.to_owned(), value.into());
                }
            }
            set("objectRef", reference.into());
        }
        set("requestReceivedTimestamp", micros(now).into());
        Self {
            fields,
            id,
            annotations: Map::new(),
            sent: None,
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn decided(&mut self, allowed: bool, reason: &str) {
        let decision = if allowed { "allow" } else { "forbid" };
        self.annotations
            .insert("authorization.k8s.io/decision".to_owned(), decision.into());
        self.annotations
            .insert("authorization.k8s.io/reason".to_owned(), reason.into());
    }

    /// Whether it says which object is meant, as far as it can be said.
    pub(super) fn is_named(&self) -> bool {
        let reference = self.fields.get("objectRef");
        reference.is_none_or(|reference| reference["name"].is_string())
    }

    /// Says it by the object that was sent, where the path did not.
    pub(super) fn name(&mut self, object: &Value) {
        if self.is_named() {
            return;
        }
        if let (Some(reference), Some(name)) = (
            self.fields.get_mut("objectRef"),
            object["metadata"]["name"].as_str(),
        ) {
            reference["name"] = name.into();
        }
    }

    pub(super) fn sent(&mut self, object: Value) {
        self.sent = Some(object);
    }

    /// One line.
    pub(super) fn event(&self, stage: Stage, answer: &Answer, now: Timestamp) -> String {
        let mut event = self.fields.clone();
        event.insert("stage".to_owned(), stage.name().into());
        event.insert("stageTimestamp".to_owned(), micros(now).into());
        if let Some(status) = &answer.status {
            event.insert("responseStatus".to_owned(), status.clone().into());
        }
        if let Some(sent) = &self.sent {
            event.insert("requestObject".to_owned(), sent.clone());
        }
        if let Some(object) = &answer.object {
            event.insert("responseObject".to_owned(), object.clone());
        }
        if !self.annotations.is_empty() {
            event.insert("annotations".to_owned(), self.annotations.clone().into());
        }
        let mut line = Value::Object(event).to_string();
        line.push('\n');
        line
    }
}

fn user(user: &UserInfo) -> Value {
    let mut fields = Map::new();
    fields.insert("username".to_owned(), user.name.as_str().into());
    if !user.uid.is_empty() {
        fields.insert("uid".to_owned(), user.uid.as_str().into());
    }
    if !user.groups.is_empty() {
        fields.insert("groups".to_owned(), json!(user.groups));
    }
    if !user.extra.is_empty() {
        fields.insert("extra".to_owned(), json!(user.extra));
    }
    fields.into()
}

/// Kubernetes' MicroTime.
fn micros(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}
