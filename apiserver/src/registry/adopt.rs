//! Objects that another server wrote to the store: upstream's JSON and protobuf, in any version, into the form in which this server
//! keeps them. Knows which keys are objects and which are other things that upstream keeps beside them.

use cox_api::{codec, schema};
use cox_store::{NewObject, ObjectKey};
use serde_json::Value;

use super::catalog::{Catalog, Entry, labels_only};

/// What upstream's protobuf values begin with.
const PROTOBUF: &[u8] = b"k8s\0";

/// Resource and path of a key. A first word with a dot that is no resource's is a group of custom resources.
pub(super) fn split<'a>(catalog: &Catalog, key: &'a str) -> Option<(&'a str, &'a str)> {
    let first = key.find('/')?;
    let second = key[first + 1..].find('/').map(|at| first + 1 + at);
    if let Some(second) = second
        && catalog.at_prefix(&key[..second]).is_some()
    {
        return Some((&key[..second], &key[second + 1..]));
    }
    if catalog.at_prefix(&key[..first]).is_some() {
        return Some((&key[..first], &key[first + 1..]));
    }
    let second = second.filter(|_| key[..first].contains('.'))?;
    Some((&key[..second], &key[second + 1..]))
}

/// The object that a value is.
pub(super) fn adopt(catalog: &Catalog, key: &ObjectKey, bytes: &[u8]) -> Result<NewObject, String> {
    let Some(stored) = catalog.at_prefix(&key.resource) else {
        // A custom resource: what it looks like is known only to its definition.
        let value = json(bytes)?;
        return Ok(finish(labels_only(&value), &value));
    };
    let value = if bytes.starts_with(PROTOBUF) {
        protobuf(catalog, key, stored, bytes)?
    } else {
        let value = json(bytes)?;
        let version = value["apiVersion"].as_str().unwrap_or_default();
        let entry = catalog.in_version(&key.resource, version).unwrap_or(stored);
        let decoded = codec::canonicalize(schema::builtin(), entry.resource.type_id, value)
            .map_err(|error| error.to_string())?;
        entry.to_storage(decoded.value)
    };
    Ok(finish(stored.attrs(&value), &value))
}

fn json(bytes: &[u8]) -> Result<Value, String> {
    let value: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if value["metadata"].is_object() {
        Ok(value)
    } else {
        Err("it is no object".to_owned())
    }
}

/// The version stands in the envelope and says which message is inside; it is nearly always the one that is stored here too.
fn protobuf(
    catalog: &Catalog,
    key: &ObjectKey,
    stored: &Entry,
    bytes: &[u8],
) -> Result<Value, String> {
    let decode = |entry: &Entry| {
        codec::decode_proto(schema::builtin(), entry.resource.type_id, bytes)
            .map(|decoded| decoded.value)
            .map_err(|error| error.to_string())
    };
    let value = decode(stored)?;
    let version = value["apiVersion"].as_str().unwrap_or_default();
    match catalog.in_version(&key.resource, version) {
        Some(other) if other.api_version != stored.api_version => {
            decode(other).map(|value| other.to_storage(value))
        }
        _ => Ok(value),
    }
}

fn finish(attrs: cox_store::Attrs, value: &Value) -> NewObject {
    let encoded = codec::encode_stored(value);
    NewObject {
        json: encoded.json,
        revision_at: encoded.revision_at,
        attrs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::catalog::builtin;
    use serde_json::json;

    #[test]
    fn keys_of_upstream_table() {
        let cases = [
            ("pods/default/web", Some(("pods", "default/web"))),
            ("minions/node-1", Some(("minions", "node-1"))),
            (
                "services/specs/default/kubernetes",
                Some(("services/specs", "default/kubernetes")),
            ),
            (
                "services/endpoints/default/kubernetes",
                Some(("services/endpoints", "default/kubernetes")),
            ),
            (
                "apiregistration.k8s.io/apiservices/v1.",
                Some(("apiregistration.k8s.io/apiservices", "v1.")),
            ),
            (
                "apiextensions.k8s.io/customresourcedefinitions/widgets.example.com",
                Some((
                    "apiextensions.k8s.io/customresourcedefinitions",
                    "widgets.example.com",
                )),
            ),
            (
                "example.com/widgets/default/one",
                Some(("example.com/widgets", "default/one")),
            ),
            ("ranges/serviceips", None),
            ("ranges/servicenodeports", None),
            ("masterleases/10.0.0.1", None),
            ("peerserverleases/apiserver-x", None),
            ("health", None),
        ];
        for (key, expected) in cases {
            assert_eq!(split(builtin(), key), expected, "{key}");
        }
    }

    /// Every built-in resource finds itself.
    #[test]
    fn keys_of_all_resources_go_both_ways() {
        for resource in schema::builtin().resources() {
            let Some(stored) = builtin().stored(&resource.group, &resource.plural) else {
                continue;
            };
            if stored.prefix.is_empty() {
                continue;
            }
            let key = stored.key("ns", "name");
            let whole = format!("{}/{}", key.resource, key.path);
            assert_eq!(
                split(builtin(), &whole),
                Some((&*key.resource, &*key.path)),
                "{whole}"
            );
        }
    }

    fn adopted(resource: &str, bytes: &[u8]) -> Result<Value, String> {
        let key = ObjectKey::new(resource, "default/x");
        let new = adopt(builtin(), &key, bytes)?;
        let mut json = new.json.clone();
        json.insert(new.revision_at, b'7');
        let value: Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(value["metadata"]["resourceVersion"], "7");
        Ok(value)
    }

    #[test]
    fn json_and_protobuf_of_one_object_are_the_same_object() {
        let object = json!({
            "kind": "ConfigMap", "apiVersion": "v1",
            "metadata": {"name": "x", "namespace": "default", "uid": "1b2c", "creationTimestamp": "2026-01-02T03:04:05Z",
                "labels": {"app": "web"}},
            "data": {"key": "value"}
        });
        let type_id = builtin().at_prefix("configmaps").unwrap().resource.type_id;
        let protobuf = codec::encode_proto(schema::builtin(), type_id, &object);
        assert!(protobuf.starts_with(PROTOBUF));
        let of_json = adopted("configmaps", object.to_string().as_bytes()).unwrap();
        let of_protobuf = adopted("configmaps", &protobuf).unwrap();
        assert_eq!(of_json, of_protobuf);
        assert_eq!(of_json["data"]["key"], "value");
        let key = ObjectKey::new("configmaps", "default/x");
        let attrs = adopt(builtin(), &key, &protobuf).unwrap().attrs;
        assert_eq!(attrs.labels[0], ("app".into(), "web".into()));
    }

    #[test]
    fn what_this_server_wrote_comes_back_byte_for_byte() {
        let object = json!({
            "kind": "Pod", "apiVersion": "v1",
            "metadata": {"name": "x", "namespace": "default", "resourceVersion": "12"},
            "spec": {"containers": [{"name": "c", "image": "i"}]}
        });
        let type_id = builtin().at_prefix("pods").unwrap().resource.type_id;
        let object = codec::canonicalize(schema::builtin(), type_id, object).unwrap();
        let first = codec::encode_stored(&object.value);
        let key = ObjectKey::new("pods", "default/x");
        let again = adopt(builtin(), &key, &first.json).unwrap();
        assert_eq!(again.json, first.json);
        assert_eq!(again.revision_at, first.revision_at);
    }

    #[test]
    fn an_older_version_is_converted_and_custom_resources_are_taken_as_they_are() {
        let old = json!({
            "kind": "HorizontalPodAutoscaler", "apiVersion": "autoscaling/v1",
            "metadata": {"name": "x", "namespace": "default"},
            "spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d"}, "targetCPUUtilizationPercentage": 50}
        });
        let value = adopted("horizontalpodautoscalers", old.to_string().as_bytes()).unwrap();
        assert_eq!(value["apiVersion"], "autoscaling/v2");
        assert_eq!(
            value["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"],
            50
        );
        let custom = json!({"kind": "Widget", "apiVersion": "example.com/v1", "metadata": {"name": "x"}, "size": 3});
        assert_eq!(
            adopted("example.com/widgets", custom.to_string().as_bytes()).unwrap()["size"],
            3
        );
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for bytes in [
            &b""[..],
            b"{}",
            b"[]",
            b"k8s\0\xff\xff",
            b"k8s:enc:aescbc:v1:key1:xxxx",
            b"null",
        ] {
            assert!(adopted("pods", bytes).is_err(), "{bytes:?}");
        }
    }
}
