//! Events of `audit.k8s.io/v1`: what is known when a request comes, and what its answer adds.

use std::collections::BTreeMap;
use std::net::IpAddr;

use cox_api::meta::format_micro_time;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};

use super::Asked;
use super::policy::{Level, Stage};
use crate::auth::{Attributes, UserInfo};

/// What all events of a request say.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Head {
    kind: &'static str,
    api_version: &'static str,
    level: &'static str,
    #[serde(rename = "auditID")]
    id: String,
    #[serde(rename = "requestURI")]
    request_uri: String,
    verb: String,
    user: User,
    #[serde(skip_serializing_if = "Option::is_none")]
    impersonated_user: Option<User>,
    #[serde(rename = "sourceIPs", skip_serializing_if = "Option::is_none")]
    source_ips: Option<[IpAddr; 1]>,
    #[serde(skip_serializing_if = "String::is_empty")]
    user_agent: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    object_ref: Option<Reference>,
    request_received_timestamp: String,
    #[serde(rename = "requestObject", skip_serializing_if = "Option::is_none")]
    sent: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<Decision>,
}

#[derive(Debug, Serialize)]
struct User {
    username: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    groups: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    extra: BTreeMap<String, Vec<String>>,
}

/// Which object; what a request does not say is empty.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Reference {
    #[serde(skip_serializing_if = "String::is_empty")]
    resource: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    api_group: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    api_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    subresource: String,
}

#[derive(Debug, Serialize)]
struct Decision {
    #[serde(rename = "authorization.k8s.io/decision")]
    decision: &'static str,
    #[serde(rename = "authorization.k8s.io/reason")]
    reason: String,
}

/// What the answer adds.
#[derive(Debug, Default, Serialize)]
pub(super) struct Answer {
    #[serde(rename = "responseStatus", skip_serializing_if = "Option::is_none")]
    status: Option<Outcome>,
    #[serde(rename = "responseObject", skip_serializing_if = "Option::is_none")]
    pub(super) object: Option<Value>,
}

#[derive(Debug, Serialize)]
struct Outcome {
    metadata: Map<String, Value>,
    code: u16,
    /// What a Status says besides.
    #[serde(flatten)]
    said: Map<String, Value>,
}

/// One line.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Event<'a> {
    #[serde(flatten)]
    head: &'a Head,
    stage: &'static str,
    stage_timestamp: String,
    #[serde(flatten)]
    answer: &'a Answer,
}

impl Answer {
    pub(super) fn code(code: u16) -> Self {
        let status = Outcome {
            metadata: Map::new(),
            code,
            said: Map::new(),
        };
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
                status.said.insert(field.to_owned(), value.clone());
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
        let asker = asked.impersonator.unwrap_or(attributes.user);
        Self {
            kind: "Event",
            api_version: "audit.k8s.io/v1",
            level: level.name(),
            id,
            request_uri: asked.uri.to_owned(),
            verb: attributes.verb.to_owned(),
            user: User::of(asker),
            impersonated_user: asked.impersonator.map(|_| User::of(attributes.user)),
            source_ips: asked.source.map(|source| [source]),
            user_agent: asked.user_agent.to_owned(),
            object_ref: attributes.is_resource().then(|| Reference::of(attributes)),
            request_received_timestamp: format_micro_time(now),
            sent: None,
            annotations: None,
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn decided(&mut self, allowed: bool, reason: &str) {
        self.annotations = Some(Decision {
            decision: if allowed { "allow" } else { "forbid" },
            reason: reason.to_owned(),
        });
    }

    /// Whether it says which object is meant, as far as it can be said.
    pub(super) fn is_named(&self) -> bool {
        let reference = self.object_ref.as_ref();
        reference.is_none_or(|reference| !reference.name.is_empty())
    }

    /// Says it by the object that was sent, where the path did not.
    pub(super) fn name(&mut self, name: &str) {
        if let Some(reference) = &mut self.object_ref
            && reference.name.is_empty()
        {
            name.clone_into(&mut reference.name);
        }
    }

    pub(super) fn sent(&mut self, object: Value) {
        self.sent = Some(object);
    }

    /// One line.
    pub(super) fn event(&self, stage: Stage, answer: &Answer, now: Timestamp) -> Vec<u8> {
        let event = Event {
            head: self,
            stage: stage.name(),
            stage_timestamp: format_micro_time(now),
            answer,
        };
        let mut line = serde_json::to_vec(&event).expect("an event is plain data");
        line.push(b'\n');
        line
    }
}

impl User {
    fn of(user: &UserInfo) -> Self {
        Self {
            username: user.name.clone(),
            uid: user.uid.clone(),
            groups: user.groups.clone(),
            extra: user.extra.clone(),
        }
    }
}

impl Reference {
    fn of(attributes: &Attributes<'_>) -> Self {
        Self {
            resource: attributes.resource.to_owned(),
            namespace: attributes.namespace.to_owned(),
            name: attributes.name.to_owned(),
            api_group: attributes.group.to_owned(),
            api_version: attributes.version.to_owned(),
            subresource: attributes.subresource.to_owned(),
        }
    }
}
