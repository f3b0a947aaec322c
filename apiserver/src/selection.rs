//! Which objects a list or watch wants: label and field selectors over the attributes that travel with each object.

use std::borrow::Cow;

use cox_api::selector::{FieldRequirement, FieldSelector, LabelSelector};
use cox_api::status::ApiStatus;
use cox_store::Object;

use crate::query::Query;
use crate::refuse;
use crate::registry::{Entry, EntryRef};

/// A parsed pair of selectors.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    labels: Option<LabelSelector>,
    fields: Vec<FieldRequirement>,
    /// The entry whose definition says where fields stand, when some are asked for.
    custom: Option<EntryRef>,
}

impl Selection {
    /// Reads the selectors of a request; refuses labels of fields that the resource does not index.
    pub(crate) fn parse(entry: &EntryRef, query: &Query<'_>) -> Result<Self, ApiStatus> {
        let labels = match query.label_selector.as_deref() {
            Some(text) => Some(LabelSelector::parse(text).map_err(|error| {
                refuse::bad_request(format!("unable to parse requirement: {error}"))
            })?),
            None => None,
        };
        let mut fields = Vec::new();
        if let Some(text) = query.field_selector.as_deref() {
            let parsed = FieldSelector::parse(text)
                .map_err(|error| refuse::bad_request(error.to_string()))?;
            fields = parsed.requirements;
            for requirement in &mut fields {
                // The name that v1 clients of long ago used.
                if requirement.field == "spec.host" && entry.prefix.as_ref() == "pods" {
                    "spec.nodeName".clone_into(&mut requirement.field);
                }
                check_field(entry, &requirement.field)?;
            }
        }
        let custom = (entry.custom.is_some() && !fields.is_empty()).then(|| entry.clone());
        Ok(Selection {
            labels,
            fields,
            custom,
        })
    }

    /// The same, narrowed to one name unless it is empty.
    pub(crate) fn named(mut self, name: &str) -> Self {
        if !name.is_empty() && self.name().is_none() {
            self.fields.push(FieldRequirement {
                field: "metadata.name".to_owned(),
                value: name.to_owned(),
                equal: true,
            });
        }
        self
    }

    /// Wants everything.
    pub(crate) fn is_empty(&self) -> bool {
        self.labels.is_none() && self.fields.is_empty()
    }

    /// The one name that can match, if the selector says so.
    pub(crate) fn name(&self) -> Option<&str> {
        self.fields
            .iter()
            .find(|field| field.equal && field.field == "metadata.name")
            .map(|field| field.value.as_str())
    }

    /// Whether objects must be brought to the version of the request before they can be judged: fields that a definition names
    /// stand in a version of its own, and a webhook knows where they are in the stored one.
    pub(crate) fn needs_version(&self) -> bool {
        let entry = self.custom.as_ref();
        entry.is_some_and(|entry| entry.needs_webhook())
            && self.fields.iter().any(|field| !is_metadata(&field.field))
    }

    /// Wants this object as far as its stored bytes can tell: for [`Self::needs_version`], the rest is to be asked of the converted one.
    pub(crate) fn may_match(&self, object: &Object) -> bool {
        self.judge(object, |field| is_metadata(&field.field))
    }

    /// Wants this object.
    pub(crate) fn matches(&self, object: &Object) -> bool {
        self.judge(object, |_| true)
    }

    fn judge(&self, object: &Object, ask: impl Fn(&FieldRequirement) -> bool) -> bool {
        self.fields
            .iter()
            .filter(|field| ask(field))
            .all(|field| (self.value_of(object, &field.field) == field.value) == field.equal)
            && self.labels.as_ref().is_none_or(|selector| {
                selector.matches(
                    object
                        .attrs
                        .labels
                        .iter()
                        .map(|(key, value)| (key.as_ref(), value.as_ref())),
                )
            })
    }
}

fn is_metadata(field: &str) -> bool {
    field.starts_with("metadata.")
}

fn check_field(entry: &Entry, field: &str) -> Result<(), ApiStatus> {
    if entry.fields.iter().any(|known| known == field) {
        return Ok(());
    }
    let own = entry.fields.iter().any(|field| !is_metadata(field));
    Err(refuse::bad_request(if own {
        format!("field label not supported: {field}")
    } else {
        format!(
            "{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        )
    }))
}

impl Selection {
    fn value_of<'a>(&self, object: &'a Object, name: &str) -> Cow<'a, str> {
        match self.custom.as_ref().and_then(|entry| entry.custom.as_ref()) {
            Some(custom) if !is_metadata(name) => {
                let value = serde_json::from_slice(&object.json).unwrap_or_default();
                Cow::Owned(custom.version().selectable_value(name, &value))
            }
            _ => Cow::Borrowed(field_of(object, name)),
        }
    }
}

fn field_of<'a>(object: &'a Object, name: &str) -> &'a str {
    let path = &object.key.path;
    match name {
        "metadata.name" => path.rsplit_once('/').map_or(&**path, |(_, name)| name),
        "metadata.namespace" => path.rsplit_once('/').map_or("", |(namespace, _)| namespace),
        _ => object
            .attrs
            .fields
            .iter()
            .find(|(key, _)| **key == *name)
            .map_or("", |(_, value)| value),
    }
}
