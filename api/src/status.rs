//! The one error type of the API's edge: `metav1.Status` with upstream's reasons, codes and texts.

use crate::text::quote;
use crate::validation::FieldError;
use serde_json::{Map, Value, json};
use std::fmt;

/// `reason` of a Status, each with its HTTP code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// 400.
    BadRequest,
    /// 401.
    Unauthorized,
    /// 403.
    Forbidden,
    /// 404.
    NotFound,
    /// 405.
    MethodNotAllowed,
    /// 406.
    NotAcceptable,
    /// 409.
    AlreadyExists,
    /// 409.
    Conflict,
    /// 410.
    Gone,
    /// 410, for resource versions and continue tokens.
    Expired,
    /// 413.
    RequestEntityTooLarge,
    /// 415.
    UnsupportedMediaType,
    /// 422.
    Invalid,
    /// 429.
    TooManyRequests,
    /// 500.
    InternalError,
    /// 500, try again.
    ServerTimeout,
    /// 503.
    ServiceUnavailable,
    /// 504.
    Timeout,
    /// None is given; the code says it.
    Unspecified,
}

impl Reason {
    /// As written in a Status.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::BadRequest => "BadRequest",
            Reason::Unauthorized => "Unauthorized",
            Reason::Forbidden => "Forbidden",
            Reason::NotFound => "NotFound",
            Reason::MethodNotAllowed => "MethodNotAllowed",
            Reason::NotAcceptable => "NotAcceptable",
            Reason::AlreadyExists => "AlreadyExists",
            Reason::Conflict => "Conflict",
            Reason::Gone => "Gone",
            Reason::Expired => "Expired",
            Reason::RequestEntityTooLarge => "RequestEntityTooLarge",
            Reason::UnsupportedMediaType => "UnsupportedMediaType",
            Reason::Invalid => "Invalid",
            Reason::TooManyRequests => "TooManyRequests",
            Reason::InternalError => "InternalError",
            Reason::ServerTimeout => "ServerTimeout",
            Reason::ServiceUnavailable => "ServiceUnavailable",
            Reason::Timeout => "Timeout",
            Reason::Unspecified => "",
        }
    }

    /// The reason of that name.
    pub fn parse(text: &str) -> Option<Self> {
        const ALL: [Reason; 19] = [
            Reason::BadRequest,
            Reason::Unauthorized,
            Reason::Forbidden,
            Reason::NotFound,
            Reason::MethodNotAllowed,
            Reason::NotAcceptable,
            Reason::AlreadyExists,
            Reason::Conflict,
            Reason::Gone,
            Reason::Expired,
            Reason::RequestEntityTooLarge,
            Reason::UnsupportedMediaType,
            Reason::Invalid,
            Reason::TooManyRequests,
            Reason::InternalError,
            Reason::ServerTimeout,
            Reason::ServiceUnavailable,
            Reason::Timeout,
            Reason::Unspecified,
        ];
        ALL.into_iter().find(|reason| reason.as_str() == text)
    }

    /// The HTTP code.
    pub fn code(self) -> u16 {
        match self {
            Reason::BadRequest | Reason::Unspecified => 400,
            Reason::Unauthorized => 401,
            Reason::Forbidden => 403,
            Reason::NotFound => 404,
            Reason::MethodNotAllowed => 405,
            Reason::NotAcceptable => 406,
            Reason::AlreadyExists | Reason::Conflict => 409,
            Reason::Gone | Reason::Expired => 410,
            Reason::RequestEntityTooLarge => 413,
            Reason::UnsupportedMediaType => 415,
            Reason::Invalid => 422,
            Reason::TooManyRequests => 429,
            Reason::InternalError | Reason::ServerTimeout => 500,
            Reason::ServiceUnavailable => 503,
            Reason::Timeout => 504,
        }
    }
}

/// One entry of `details.causes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// Machine-readable, e.g. `FieldValueRequired`.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Path of the field.
    pub field: String,
}

/// `details` of a Status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// Object name.
    pub name: String,
    /// API group.
    pub group: String,
    /// Resource, or kind for Invalid.
    pub kind: String,
    /// Object uid.
    pub uid: String,
    /// What led to it.
    pub causes: Vec<Cause>,
    /// When to try again.
    pub retry_after_secs: Option<u32>,
    /// Where a list whose revision is gone can go on; stands in the Status' metadata, not in its details.
    pub continue_token: String,
}

/// A failure as the client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiStatus {
    /// HTTP code.
    pub code: u16,
    /// Reason.
    pub reason: Reason,
    /// For people.
    pub message: String,
    /// What it is about.
    pub details: Option<Box<Details>>,
}

impl fmt::Display for ApiStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ApiStatus {}

/// `pods` or `deployments.apps`.
fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() {
        resource.to_owned()
    } else {
        format!("{resource}.{group}")
    }
}

fn about(group: &str, kind: &str, name: &str) -> Option<Box<Details>> {
    Some(Box::new(Details {
        name: name.to_owned(),
        group: group.to_owned(),
        kind: kind.to_owned(),
        ..Details::default()
    }))
}

impl ApiStatus {
    /// Any reason with a message of its own.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        ApiStatus {
            code: reason.code(),
            reason,
            message: message.into(),
            details: None,
        }
    }

    fn with(reason: Reason, message: String, details: Option<Box<Details>>) -> Self {
        ApiStatus {
            code: reason.code(),
            reason,
            message,
            details,
        }
    }

    /// `pods "a" not found`.
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        Self::with(
            Reason::NotFound,
            format!("{} {} not found", qualified(group, resource), quote(name)),
            about(group, resource, name),
        )
    }

    /// What an unknown path answers.
    pub fn unknown_path() -> Self {
        Self::with(
            Reason::NotFound,
            "the server could not find the requested resource".to_owned(),
            Some(Box::default()),
        )
    }

    /// `pods "a" already exists`.
    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        Self::with(
            Reason::AlreadyExists,
            format!(
                "{} {} already exists",
                qualified(group, resource),
                quote(name)
            ),
            about(group, resource, name),
        )
    }

    /// generateName met an existing name.
    pub fn generate_name_conflict(group: &str, resource: &str, name: &str) -> Self {
        let message = format!(
            "{} {} already exists, the server was not able to generate a unique name for the object",
            qualified(group, resource),
            quote(name)
        );
        Self::with(Reason::AlreadyExists, message, about(group, resource, name)).retry_after(1)
    }

    /// `Operation cannot be fulfilled on ...` with any cause.
    pub fn conflict_because(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} {}: {why}",
            qualified(group, resource),
            quote(name)
        );
        Self::with(Reason::Conflict, message, about(group, resource, name))
    }

    /// The stored revision is another than the client's.
    pub fn conflict(group: &str, resource: &str, name: &str) -> Self {
        Self::conflict_because(
            group,
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// Server-side apply met other managers; the causes are the fields.
    pub fn apply_conflict(message: impl Into<String>, causes: Vec<Cause>) -> Self {
        Self::with(
            Reason::Conflict,
            message.into(),
            Some(Box::new(Details {
                causes,
                ..Details::default()
            })),
        )
    }

    /// `Pod "a" is invalid: ...` with one cause per field.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: Vec<FieldError>) -> Self {
        let mut texts: Vec<String> = Vec::with_capacity(errors.len());
        for text in errors.iter().map(ToString::to_string) {
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        let all = match &texts[..] {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let message = format!(
            "{} {} is invalid: {all}",
            qualified(group, kind),
            quote(name)
        );
        let causes = errors
            .iter()
            .map(|e| Cause {
                reason: e.kind.reason().to_owned(),
                message: e.body(),
                field: e.field.clone(),
            })
            .collect();
        let details = Details {
            name: name.to_owned(),
            group: group.to_owned(),
            kind: kind.to_owned(),
            causes,
            ..Details::default()
        };
        Self::with(Reason::Invalid, message, Some(Box::new(details)))
    }

    /// The request makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(Reason::BadRequest, message)
    }

    /// `pods "a" is forbidden: why`.
    pub fn forbidden(group: &str, resource: &str, name: &str, why: impl fmt::Display) -> Self {
        let what = qualified(group, resource);
        let message = match (what.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {why}"),
            (false, true) => format!("{what} is forbidden: {why}"),
            (false, false) => format!("{what} {} is forbidden: {why}", quote(name)),
        };
        Self::with(Reason::Forbidden, message, about(group, resource, name))
    }

    /// No or bad credentials.
    pub fn unauthorized() -> Self {
        Self::new(Reason::Unauthorized, "Unauthorized")
    }

    /// `create is not supported on resources of kind "pods"`.
    pub fn method_not_supported(group: &str, resource: &str, verb: &str) -> Self {
        let message = format!(
            "{verb} is not supported on resources of kind {}",
            quote(&qualified(group, resource))
        );
        Self::with(
            Reason::MethodNotAllowed,
            message,
            about(group, resource, ""),
        )
    }

    /// What an HTTP method that the path does not take answers.
    pub fn method_not_allowed() -> Self {
        Self::with(
            Reason::MethodNotAllowed,
            "the server does not allow this method on the requested resource".to_owned(),
            Some(Box::default()),
        )
    }

    /// A resource version or continue token that is too old.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(Reason::Expired, message)
    }

    /// The resource version asked for is gone.
    pub fn gone_expired(requested: u64, oldest: u64) -> Self {
        Self::expired(format!("too old resource version: {requested} ({oldest})"))
    }

    /// A resource version that is not there yet.
    pub fn too_large_resource_version(requested: u64, current: u64) -> Self {
        let mut status = Self::new(
            Reason::Timeout,
            format!("Too large resource version: {requested}, current: {current}"),
        );
        let cause = Cause {
            reason: "ResourceVersionTooLarge".into(),
            message: "Too large resource version".into(),
            field: String::new(),
        };
        status.details = Some(Box::new(Details {
            causes: vec![cause],
            retry_after_secs: Some(1),
            ..Details::default()
        }));
        status
    }

    /// Slow down.
    pub fn too_many_requests(message: impl Into<String>, retry_after_secs: u32) -> Self {
        Self::new(Reason::TooManyRequests, message).retry_after(retry_after_secs)
    }

    /// Our fault.
    pub fn internal(error: impl fmt::Display) -> Self {
        let cause = Cause {
            reason: String::new(),
            message: error.to_string(),
            field: String::new(),
        };
        let details = Details {
            causes: vec![cause],
            ..Details::default()
        };
        Self::with(
            Reason::InternalError,
            format!("Internal error occurred: {error}"),
            Some(Box::new(details)),
        )
    }

    /// A body in a format that is not read here.
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        Self::new(
            Reason::UnsupportedMediaType,
            format!(
                "the body of the request was in an unknown format - accepted media types include: {}",
                accepted.join(", ")
            ),
        )
    }

    /// An Accept header that cannot be satisfied.
    pub fn not_acceptable(accepted: &[&str]) -> Self {
        Self::new(
            Reason::NotAcceptable,
            format!(
                "only the following media types are accepted: {}",
                accepted.join(", ")
            ),
        )
    }

    /// A body over the limit.
    pub fn request_entity_too_large(limit_bytes: usize) -> Self {
        Self::new(
            Reason::RequestEntityTooLarge,
            format!("Request entity is too large: limit is {limit_bytes}"),
        )
    }

    /// Not now.
    pub fn service_unavailable(message: impl Into<String>) -> Self {
        Self::new(Reason::ServiceUnavailable, message)
    }

    /// Took too long.
    pub fn timeout(message: impl fmt::Display, retry_after_secs: u32) -> Self {
        Self::new(Reason::Timeout, format!("Timeout: {message}")).retry_after(retry_after_secs)
    }

    /// Adds when to try again.
    #[must_use]
    pub fn retry_after(mut self, secs: u32) -> Self {
        self.details.get_or_insert_default().retry_after_secs = Some(secs);
        self
    }

    /// The Status object.
    pub fn to_value(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason.as_str(), "code": self.code,
        });
        if self.reason == Reason::Unspecified
            && let Some(map) = status.as_object_mut()
        {
            map.remove("reason");
        }
        if let Some(details) = &self.details {
            status["details"] = details.to_value();
            if !details.continue_token.is_empty() {
                status["metadata"] = json!({ "continue": details.continue_token });
            }
        }
        status
    }

    /// The Status that a delete answers when no object is left to show.
    pub fn success(group: &str, resource: &str, name: &str, uid: &str) -> Value {
        let details = Details {
            name: name.to_owned(),
            group: group.to_owned(),
            kind: resource.to_owned(),
            uid: uid.to_owned(),
            ..Details::default()
        };
        json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details.to_value() })
    }
}

impl Details {
    fn to_value(&self) -> Value {
        let mut out = Map::new();
        for (key, text) in [
            ("name", &self.name),
            ("group", &self.group),
            ("kind", &self.kind),
            ("uid", &self.uid),
        ] {
            if !text.is_empty() {
                out.insert(key.to_owned(), Value::from(text.as_str()));
            }
        }
        if !self.causes.is_empty() {
            let causes = self.causes.iter().map(Cause::to_value).collect();
            out.insert("causes".to_owned(), Value::Array(causes));
        }
        if let Some(secs) = self.retry_after_secs {
            out.insert("retryAfterSeconds".to_owned(), Value::from(secs));
        }
        Value::Object(out)
    }
}

impl Cause {
    fn to_value(&self) -> Value {
        let mut out = Map::new();
        for (key, text) in [
            ("reason", &self.reason),
            ("message", &self.message),
            ("field", &self.field),
        ] {
            if !text.is_empty() {
                out.insert(key.to_owned(), Value::from(text.as_str()));
            }
        }
        Value::Object(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_upstreams() {
        for (status, code, message) in [
            (
                ApiStatus::not_found("apps", "deployments", "a"),
                404,
                "deployments.apps \"a\" not found",
            ),
            (
                ApiStatus::already_exists("", "pods", "a"),
                409,
                "pods \"a\" already exists",
            ),
            (
                ApiStatus::forbidden("", "pods", "", "no"),
                403,
                "pods is forbidden: no",
            ),
            (
                ApiStatus::forbidden("", "pods", "a", "no"),
                403,
                "pods \"a\" is forbidden: no",
            ),
            (ApiStatus::internal("x"), 500, "Internal error occurred: x"),
            (
                ApiStatus::gone_expired(1, 5),
                410,
                "too old resource version: 1 (5)",
            ),
        ] {
            assert_eq!((status.code, status.message.as_str()), (code, message));
        }
    }

    #[test]
    fn invalid_lists_every_field_once_in_the_message_and_as_a_cause() {
        let errors = vec![
            FieldError::required("spec.containers[0].name", ""),
            FieldError::not_supported("spec.restartPolicy", "x", &["Always", "Never"]),
        ];
        let value = ApiStatus::invalid("", "Pod", "a", errors).to_value();
        assert_eq!(
            value["message"],
            "Pod \"a\" is invalid: [spec.containers[0].name: Required value, spec.restartPolicy: Unsupported value: \"x\": supported values: \"Always\", \"Never\"]"
        );
        assert_eq!(value["details"]["kind"], "Pod");
        assert_eq!(
            value["details"]["causes"][0],
            json!({"reason": "FieldValueRequired", "message": "Required value", "field": "spec.containers[0].name"})
        );
        assert_eq!(value["code"], 422);
    }
}
