//! Objects that another server wrote to the store: upstream's JSON and protobuf, in any version, into the form in which this server
//! keeps them. Knows which keys are objects and which are other things that upstream keeps beside them.

mod definitions;

use cox_api::{codec, defaults, schema};
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
        let mut value = protobuf(catalog, key, stored, bytes)?;
        // Upstream sets these anew with each reading, and some of them have no place in the messages.
        defaults::apply(&stored.resource, &mut value);
        value
    } else {
        let mut value = json(bytes)?;
        if value["apiVersion"] == definitions::OLD && value["kind"] == "CustomResourceDefinition" {
            value = definitions::of_json(value);
        }
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

    /// Values of upstream's own server, in both of its media types; CustomResourceDefinitions it keeps in `v1beta1`.
    #[test]
    fn what_upstream_wrote_is_read_in_both_media_types() {
        use base64::Engine as _;
        let mut read: std::collections::BTreeMap<&str, Vec<Value>> =
            std::collections::BTreeMap::new();
        for line in include_str!("adopt/upstream.tsv").lines() {
            let Some((key, value)) = line.split_once('\t').filter(|_| !line.starts_with('#'))
            else {
                continue;
            };
            let bytes = if value.starts_with('{') {
                value.as_bytes().to_vec()
            } else {
                let bytes = base64::engine::general_purpose::STANDARD
                    .decode(value)
                    .unwrap();
                assert!(bytes.starts_with(PROTOBUF), "{key}");
                bytes
            };
            let (resource, _) = split(builtin(), key).unwrap();
            let mut object = adopted(resource, &bytes).unwrap_or_else(|why| panic!("{key}: {why}"));
            // What the server chose by chance, and when.
            for field in ["uid", "creationTimestamp", "managedFields"] {
                object["metadata"].as_object_mut().unwrap().remove(field);
            }
            for field in ["clusterIP", "clusterIPs"] {
                if let Some(spec) = object["spec"].as_object_mut() {
                    spec.remove(field);
                }
            }
            if resource == "services/specs" {
                assert!(object["spec"]["ports"][0]["nodePort"].take().is_u64());
            }
            read.entry(key).or_default().push(object);
        }
        for (key, forms) in &read {
            if !key.starts_with("apiextensions") {
                assert_eq!(forms.len(), 2, "{key}");
                assert_eq!(forms[0], forms[1], "{key}");
            }
        }
        let pod = &read["pods/ns-a/pod"][0]["spec"];
        assert_eq!(
            pod["containers"][0]["resources"]["requests"],
            json!({"cpu": "100m", "memory": "64Mi"})
        );
        assert_eq!(read["secrets/ns-a/sec"][0]["data"]["bin"], "//79AAEC");
        assert_eq!(
            read["leases/ns-a/lease"][0]["spec"]["renewTime"],
            "2026-01-02T03:04:05.678901Z"
        );
        let definition = &read["apiextensions.k8s.io/customresourcedefinitions/widgets.ex.io"][0];
        assert_eq!(definition["apiVersion"], "apiextensions.k8s.io/v1");
        let version = &definition["spec"]["versions"][0];
        assert_eq!(
            version["schema"]["openAPIV3Schema"]["properties"]["spec"]["type"],
            "object"
        );
        assert_eq!(version["subresources"], json!({"status": {}}));
        assert!(definition["spec"].get("validation").is_none());
    }

    #[test]
    fn definitions_of_the_old_version_lose_nothing() {
        let old = json!({"kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1beta1", "metadata": {"name": "x"},
            "spec": {"group": "g", "version": "v1", "names": {"plural": "xs", "kind": "X"}, "scope": "Cluster",
                "validation": {"openAPIV3Schema": {"type": "object"}}, "selectableFields": [{"jsonPath": ".spec.a"}],
                "additionalPrinterColumns": [{"name": "A", "type": "string", "JSONPath": ".spec.a"}],
                "conversion": {"strategy": "Webhook", "conversionReviewVersions": ["v1"], "webhookClientConfig": {"url": "https://x"}},
                "versions": [{"name": "v1", "served": true, "storage": true},
                    {"name": "v2", "served": true, "storage": false, "schema": {"openAPIV3Schema": {"type": "object", "description": "own"}}}]}});
        let prefix = "apiextensions.k8s.io/customresourcedefinitions";
        let new = adopted(prefix, old.to_string().as_bytes()).unwrap();
        let spec = &new["spec"];
        assert_eq!(
            spec["conversion"],
            json!({"strategy": "Webhook", "webhook": {"clientConfig": {"url": "https://x"}, "conversionReviewVersions": ["v1"]}})
        );
        assert_eq!(
            spec["versions"][1]["schema"]["openAPIV3Schema"]["description"],
            "own"
        );
        for version in spec["versions"].as_array().unwrap() {
            assert_eq!(
                version["additionalPrinterColumns"][0]["jsonPath"],
                ".spec.a"
            );
            assert_eq!(
                version["selectableFields"],
                json!([{"jsonPath": ".spec.a"}])
            );
        }
        let mut single = old;
        single["spec"].as_object_mut().unwrap().remove("versions");
        let new = adopted(prefix, single.to_string().as_bytes()).unwrap();
        assert_eq!(new["spec"]["versions"][0]["name"], "v1");
        assert_eq!(new["spec"]["versions"][0]["storage"], true);
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
