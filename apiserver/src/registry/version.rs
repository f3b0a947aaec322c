//! Between the version of a custom resource that a request speaks and the one that is stored.
//!
//! Built-in kinds pass through untouched: their conversions are the catalog's. Where the versions differ in nothing but their
//! name nothing is asked of anybody; otherwise the definition's webhook converts.

use std::borrow::Cow;
use std::sync::Arc;

use cox_api::custom;
use cox_api::status::ApiStatus;
use cox_store::{Attrs, Object};
use serde_json::Value;

use super::customs::{Custom, encode};
use super::{Entry, Registry, decode_stored};

impl Registry {
    /// A stored object as writes see it: decoded, in the version that the entry works on.
    pub(crate) async fn current(&self, entry: &Entry, object: &Object) -> Result<Value, ApiStatus> {
        match &entry.custom {
            None => decode_stored(&object.json),
            Some(custom) => {
                let value = decode_stored(&object.json)?;
                self.to_version(custom, &entry.api_version, value).await
            }
        }
    }

    /// An object of the version that the entry works on, as it is stored.
    pub(crate) async fn stored_form<'v>(
        &self,
        entry: &Entry,
        value: &'v Value,
    ) -> Result<Cow<'v, Value>, ApiStatus> {
        let Some(custom) = &entry.custom else {
            return Ok(Cow::Borrowed(value));
        };
        let definition = custom.definition();
        if definition.storage_version == entry.resource.version {
            return Ok(Cow::Borrowed(value));
        }
        let wanted = entry.resource.storage_api_version();
        let mut value = value.clone();
        if custom.needs_webhook() {
            value = self.webhook_convert(custom, &wanted, value).await?;
        } else {
            custom::rename(&mut value, &definition.group, &definition.storage_version);
        }
        if let Some(stored) = definition.version(&definition.storage_version) {
            stored.renew(&mut value);
        }
        Ok(Cow::Owned(value))
    }

    /// A stored object such that its bytes are those of the entry's version, if a webhook is needed for that.
    pub(crate) async fn in_version(
        &self,
        entry: &Entry,
        object: Arc<Object>,
    ) -> Result<Arc<Object>, ApiStatus> {
        match &entry.custom {
            Some(custom) if custom.needs_webhook() && !custom.is_own_version(&object) => {
                let value = decode_stored(&object.json)?;
                let value = self.to_version(custom, &entry.api_version, value).await?;
                Ok(Arc::new(with_value(&object, &value)))
            }
            _ => Ok(object),
        }
    }

    /// A custom resource in the version of an entry; built-in kinds as they are.
    pub(crate) async fn in_entry(&self, entry: &Entry, value: Value) -> Result<Value, ApiStatus> {
        match &entry.custom {
            Some(custom) => self.to_version(custom, &entry.api_version, value).await,
            None => Ok(value),
        }
    }

    async fn to_version(
        &self,
        custom: &Custom,
        api_version: &str,
        mut value: Value,
    ) -> Result<Value, ApiStatus> {
        if custom.needs_webhook() && value["apiVersion"] != api_version {
            // Defaults of the stored version come before the conversion, as upstream has it.
            let definition = custom.definition();
            let stored = value["apiVersion"].as_str().unwrap_or_default();
            let stored = stored.rsplit('/').next().unwrap_or_default();
            if let Some(stored) = definition.version(stored) {
                stored.renew(&mut value);
            }
            value = self.webhook_convert(custom, api_version, value).await?;
        }
        custom.renew(&mut value);
        Ok(value)
    }
}

fn with_value(object: &Object, value: &Value) -> Object {
    Object {
        key: object.key.clone(),
        json: encode(value, object.revision).into(),
        revision: object.revision,
        created: object.created,
        revision_at: object.revision_at,
        attrs: Attrs {
            labels: object.attrs.labels.clone(),
            fields: object.attrs.fields.clone(),
        },
    }
}
