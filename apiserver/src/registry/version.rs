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
use super::{Entry, Registry, decode_stored, prepare};

impl Registry {
    /// A stored object as writes see it: decoded, in the version that the entry works on.
    pub(crate) async fn current(
        &self,
        entry: &Entry,
        object: &Arc<Object>,
    ) -> Result<Arc<Value>, ApiStatus> {
        if let Some(custom) = &entry.custom {
            let value = decode_stored(&object.json)?;
            let value = self.to_version(custom, &entry.api_version, value).await?;
            return Ok(Arc::new(value));
        }
        if let Some(value) = self.decoded.find(object) {
            return Ok(value);
        }
        let value = Arc::new(decode_stored(&object.json)?);
        self.decoded.keep(object, &value);
        Ok(value)
    }

    /// Remembers what was stored for whoever writes it next.
    pub(crate) fn keep_decoded(&self, entry: &Entry, object: &Arc<Object>, mut value: Value) {
        if entry.custom.is_some() {
            return;
        }
        let metadata = prepare::metadata(&mut value);
        metadata.remove("selfLink");
        let revision = Value::from(object.revision.0.to_string());
        metadata.insert("resourceVersion".to_owned(), revision);
        debug_assert_eq!(
            Some(&value),
            serde_json::from_slice(&object.json).ok().as_ref(),
            "what was stored is not what was to be stored"
        );
        self.decoded.keep(object, &Arc::new(value));
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
