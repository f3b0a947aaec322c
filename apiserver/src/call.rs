//! One request on its way through the verbs: what it addresses, who sends it, what it may write.

use bytes::Bytes;
use cox_api::schema::Subresource;
use cox_api::status::ApiStatus;
use http::HeaderMap;
use jiff::Timestamp;

use crate::admission::Notes;
use crate::api::Api;
use crate::auth::UserInfo;
use crate::content::{Encoding, Form};
use crate::query::Query;
use crate::refuse;
use crate::registry::EntryRef;
use crate::request::RequestInfo;

/// An authorized request for a resource.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) api: &'a Api,
    pub(crate) entry: &'a EntryRef,
    pub(crate) sub: Option<&'a Subresource>,
    pub(crate) info: &'a RequestInfo<'a>,
    pub(crate) query: &'a Query<'a>,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) method: &'a http::Method,
    /// The request's path as it came, not decoded.
    pub(crate) path: &'a str,
    /// The connection, for requests that take it over.
    pub(crate) upgrade: Option<hyper::upgrade::OnUpgrade>,
    pub(crate) user: &'a UserInfo,
    pub(crate) form: Form,
    pub(crate) encoding: Encoding,
    /// The request's body; empty for reads.
    pub(crate) body: Bytes,
    pub(crate) now: Timestamp,
    /// Sent as `Warning` headers.
    pub(crate) warnings: Vec<String>,
    /// What admission says beside the answer.
    pub(crate) notes: Notes,
}

/// What to do about unknown and duplicate fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

impl Call<'_> {
    /// Namespace of the object, empty for cluster scope.
    pub(crate) fn namespace(&self) -> &str {
        if self.entry.resource.namespaced {
            self.info.namespace
        } else {
            ""
        }
    }

    /// The name of the subresource, empty for the object itself.
    pub(crate) fn sub_name(&self) -> &str {
        self.sub.map_or("", |sub| sub.name.as_str())
    }

    /// The write is to be tried but not made. `kind` is the options' kind, for the error.
    pub(crate) fn dry_run(&self, kind: &str) -> Result<bool, ApiStatus> {
        check_dry_run(kind, self.query.dry_run.iter().map(AsRef::as_ref))
    }

    /// How unknown fields are answered.
    pub(crate) fn field_validation(&self, kind: &str) -> Result<FieldValidation, ApiStatus> {
        match self.query.field_validation.as_deref() {
            None | Some("Warn") => Ok(FieldValidation::Warn),
            Some("Ignore") => Ok(FieldValidation::Ignore),
            Some("Strict") => Ok(FieldValidation::Strict),
            Some(other) => Err(refuse::option_unsupported(
                kind,
                "fieldValidation",
                other,
                &["Ignore", "Strict", "Warn"],
            )),
        }
    }

    /// Who is recorded as the fields' owner: what the client says, or its program's name.
    pub(crate) fn manager(&self) -> String {
        if let Some(manager) = &self.query.field_manager {
            return manager.to_string();
        }
        let agent = self
            .headers
            .get(http::header::USER_AGENT)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let name: String = agent
            .split('/')
            .next()
            .unwrap_or_default()
            .chars()
            .filter(|c| !c.is_control())
            .take(128)
            .collect();
        if name.is_empty() {
            "unknown".to_owned()
        } else {
            name
        }
    }
}

/// `All` is the only dry run there is.
pub(crate) fn check_dry_run<'a>(
    kind: &str,
    values: impl Iterator<Item = &'a str>,
) -> Result<bool, ApiStatus> {
    let mut dry = false;
    for value in values {
        if value != "All" {
            return Err(refuse::option_unsupported(kind, "dryRun", value, &["All"]));
        }
        dry = true;
    }
    Ok(dry)
}
