//! Objects that the typed view refuses though the server holds them: decoded all the same where it can be, left out where not.
//!
//! The server takes what upstream's Go takes, such as a condition without `lastTransitionTime` (Go's zero time). One such object
//! must not blind every component of the process to its whole kind.

use kube::Resource;
use kube::api::ListParams;
use kube::core::{ListMeta, Request};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::reflect::Source;

/// What Go's zero time becomes.
const ZERO_TIME: &str = "1970-01-01T00:00:00Z";

/// A page of a list, its objects as they came.
#[derive(Debug, Deserialize)]
struct Page {
    #[serde(default)]
    metadata: ListMeta,
    #[serde(default)]
    items: Vec<Value>,
}

/// The page of a list, with what can be decoded of it.
pub(super) async fn page<K>(
    source: &Source<K>,
    params: &ListParams,
) -> Result<(Vec<K>, ListMeta), kube::Error>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    let collection = source.api.resource_url();
    let request = Request::new(collection)
        .list(params)
        .map_err(kube::Error::BuildRequest)?;
    let page: Page = source.api.clone().into_client().request(request).await?;
    let decoded = page.items.into_iter().filter_map(|item| {
        let name = item["metadata"]["name"].as_str().map(str::to_owned);
        let namespace = item["metadata"]["namespace"].as_str().map(str::to_owned);
        decode(item)
            .inspect_err(|error| {
                tracing::warn!(collection, namespace, name, %error, "Object cannot be decoded and is not seen");
            })
            .ok()
    });
    Ok((decoded.collect(), page.metadata))
}

/// One object, mended where it is known how.
fn decode<K: DeserializeOwned>(mut item: Value) -> Result<K, serde_json::Error> {
    mend(&mut item);
    serde_json::from_value(item)
}

/// Gives times to conditions that have none.
fn mend(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                if name == "conditions" {
                    let conditions = field.as_array_mut().into_iter().flatten();
                    for condition in conditions.filter_map(Value::as_object_mut) {
                        let time = condition.entry("lastTransitionTime").or_insert(Value::Null);
                        if time.is_null() {
                            *time = ZERO_TIME.into();
                        }
                    }
                }
                mend(field);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(mend),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
