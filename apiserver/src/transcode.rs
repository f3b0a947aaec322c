//! Finished JSON answers in the other encodings: YAML, and protobuf along the schema.
//!
//! Verbs answer in JSON, which is what is stored; whoever asked for another encoding pays for it here, at the end of the
//! request. Watches are no answers in one piece and encode their events themselves.

use bytes::Bytes;
use cox_api::codec;
use cox_api::schema::{Schema, Shape, TypeId};
use http::Response;
use http::header::{CONTENT_TYPE, HeaderValue};
use serde_json::Value;

use crate::body::{Body, ListBody};
use crate::content::Encoding;
use crate::render;

/// The content type of protobuf answers.
pub(crate) const PROTOBUF: HeaderValue =
    HeaderValue::from_static("application/vnd.kubernetes.protobuf");
const YAML: HeaderValue = HeaderValue::from_static("application/yaml");

/// Field numbers of every list's message.
const LIST_METADATA: u32 = 1;
const LIST_ITEMS: u32 = 2;

/// The answer in an encoding, if it is JSON.
pub(crate) fn response(
    schema: &Schema,
    response: Response<Body>,
    encoding: Encoding,
) -> Response<Body> {
    if encoding == Encoding::Json || response.headers().get(CONTENT_TYPE) != Some(&render::JSON) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let written = match (encoding, &body) {
        (Encoding::Yaml, Body::Full(Some(json))) => yaml(json),
        (Encoding::Yaml, Body::List(list)) => yaml(&list.bytes()),
        (Encoding::Protobuf, Body::Full(Some(json))) => whole(schema, json),
        (Encoding::Protobuf, Body::List(list)) => items(schema, list),
        _ => None,
    };
    // What has no such form (`/version`) stays JSON: clients read the content type.
    let Some(written) = written else {
        return Response::from_parts(parts, body);
    };
    let content_type = match encoding {
        Encoding::Yaml => YAML,
        Encoding::Json | Encoding::Protobuf => PROTOBUF,
    };
    parts.headers.insert(CONTENT_TYPE, content_type);
    Response::from_parts(parts, written.into())
}

fn yaml(json: &[u8]) -> Option<Bytes> {
    let value: Value = serde_json::from_slice(json).ok()?;
    codec::encode_yaml(&value).map(Bytes::from)
}

/// One object, whatever kind it says it is.
pub(crate) fn whole(schema: &Schema, json: &[u8]) -> Option<Bytes> {
    let value: Value = serde_json::from_slice(json).ok()?;
    let type_id = type_of(schema, &value)?;
    Some(codec::encode_proto(schema, type_id, &value).into())
}

/// A list: its items are read one by one, so that no more than one of them is a value at a time.
fn items(schema: &Schema, list: &ListBody) -> Option<Bytes> {
    let items = list.items();
    let head: Value = serde_json::from_slice(&list.bytes_without_items()).ok()?;
    let list_type = schema.def(type_of(schema, &head)?);
    let type_of_field = |name: &str| match &list_type.field(name)?.shape {
        Shape::Struct(type_id) => Some(*type_id),
        Shape::List(item) => match **item {
            Shape::Struct(type_id) => Some(type_id),
            _ => None,
        },
        _ => None,
    };
    let (metadata_type, item_type) = (type_of_field("metadata")?, type_of_field("items")?);
    let mut out = Vec::with_capacity(items.iter().map(|item| item.bytes().len()).sum());
    let mut message = Vec::with_capacity(4096);
    codec::proto_message(schema, metadata_type, &head["metadata"], &mut message);
    out.extend_from_slice(&codec::proto_header(LIST_METADATA, message.len()));
    out.extend_from_slice(&message);
    for item in items {
        let value: Value = serde_json::from_slice(item.bytes()).ok()?;
        message.clear();
        codec::proto_message(schema, item_type, &value, &mut message);
        out.extend_from_slice(&codec::proto_header(LIST_ITEMS, message.len()));
        out.extend_from_slice(&message);
    }
    let text = |field: &str| head[field].as_str().unwrap_or_default();
    Some(codec::proto_body(text("apiVersion"), text("kind"), &[&out]).into())
}

/// The type of an object by what it says it is.
pub(crate) fn type_of(schema: &Schema, object: &Value) -> Option<TypeId> {
    let api_version = object["apiVersion"].as_str().unwrap_or_default();
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    schema.kind_type(group, version, object["kind"].as_str()?)
}
