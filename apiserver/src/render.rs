//! Answers: stored bytes as they are, and tables, partial metadata and other versions made from them on demand.

use std::borrow::Cow;

use bytes::Bytes;
use cox_api::printing;
use cox_api::schema::Schema;
use cox_api::status::ApiStatus;
use cox_store::Object;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use jiff::Timestamp;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::body::Body;
use crate::call::Call;
use crate::content::{Encoding, Form};
use crate::forms::Wanted;
use crate::refuse;
use crate::registry::{Entry, decode_stored};
use crate::transcode;

pub(crate) const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// Answers at least this long are compressed for clients that ask.
const GZIP_BYTES_MIN: u64 = 128 * 1024;

/// An answer with a JSON body.
pub(crate) fn json_response(status: StatusCode, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

/// The answer to a request that failed.
pub(crate) fn status_response(status: &ApiStatus) -> Response<Body> {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json_response(code, to_bytes(&status.to_value()));
    if let Some(seconds) = status
        .details
        .as_ref()
        .and_then(|details| details.retry_after_secs)
    {
        response
            .headers_mut()
            .insert(http::header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Compresses a long answer.
pub(crate) fn compress(response: Response<Body>) -> Response<Body> {
    if response.body().len().is_none_or(|len| len < GZIP_BYTES_MIN)
        || response.headers().contains_key(CONTENT_ENCODING)
    {
        return response;
    }
    let mut response = response.map(Body::gzip);
    response.headers_mut().remove(CONTENT_LENGTH);
    response
        .headers_mut()
        .insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    response.headers_mut().insert(
        http::header::VARY,
        HeaderValue::from_static("Accept-Encoding"),
    );
    response
}

/// Serializes into memory.
pub(crate) fn to_bytes(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).expect("a value with string keys serializes into memory")
}

/// One stored object as the client wants it.
pub(crate) fn object(
    call: &Call<'_>,
    status: StatusCode,
    object: &Object,
) -> Result<Response<Body>, ApiStatus> {
    Ok(json_response(status, one(call, object)?))
}

/// PartialObjectMetadataList is for lists.
fn no_list(entry: &Entry) -> ApiStatus {
    refuse::not_acceptable(format!(
        "you requested PartialObjectMetadataList, but the requested object is not a list (*{}.{})",
        entry.resource.version, entry.resource.kind
    ))
}

/// An object that is not stored (dry run, scale, ...), as the client wants it.
pub(crate) fn value(call: &Call<'_>, status: StatusCode, value: &Value) -> Response<Body> {
    let bytes = match call.form {
        Form::MetadataList(_) => return status_response(&no_list(call.entry)),
        Form::Object => to_bytes(value),
        Form::Metadata(version) => to_bytes(&partial(value, version)),
        Form::Table(version) => {
            let include = include_object(call);
            let rows = vec![row(call.entry, value, include, version, call.now)];
            to_bytes(&table(
                call.entry,
                version,
                &value["metadata"]["resourceVersion"],
                rows,
            ))
        }
    };
    json_response(status, bytes)
}

fn one(call: &Call<'_>, object: &Object) -> Result<Bytes, ApiStatus> {
    match call.form {
        Form::Object => served(call.entry, object),
        Form::Metadata(version) => metadata_bytes(object, version),
        Form::MetadataList(_) => Err(no_list(call.entry)),
        Form::Table(version) => {
            table_of_one(call.entry, object, include_object(call), version, call.now)
        }
    }
}

/// The object's bytes in the entry's version.
pub(crate) fn served(entry: &Entry, object: &Object) -> Result<Bytes, ApiStatus> {
    if entry.as_stored {
        return Ok(object.json.clone());
    }
    if let Some(custom) = &entry.custom {
        return custom.served(object);
    }
    if let Some(renamed) = entry.renamed(&object.json) {
        return Ok(renamed.into());
    }
    let encoded = cox_api::codec::encode_stored(&decoded(entry, object)?);
    let mut json = encoded.json;
    let digits = object.revision.0.to_string();
    json.splice(
        encoded.revision_at..encoded.revision_at,
        digits.into_bytes(),
    );
    Ok(json.into())
}

/// The object decoded, in the entry's version.
pub(crate) fn decoded(entry: &Entry, object: &Object) -> Result<Value, ApiStatus> {
    match &entry.custom {
        Some(custom) => custom.decoded(object),
        None => Ok(entry.from_storage(decode_stored(&object.json)?)),
    }
}

/// A table with one row.
pub(crate) fn table_of_one(
    entry: &Entry,
    object: &Object,
    include: Include,
    version: &str,
    now: Timestamp,
) -> Result<Bytes, ApiStatus> {
    let value = decoded(entry, object)?;
    let rows = vec![row(entry, &value, include, version, now)];
    Ok(to_bytes(&table(
        entry,
        version,
        &value["metadata"]["resourceVersion"],
        rows,
    ))
    .into())
}

/// One event's object in a form and encoding other than its stored bytes.
pub(crate) fn event_object(
    entry: &Entry,
    schema: &Schema,
    object: &Object,
    wanted: Wanted,
    now: Timestamp,
) -> Result<Bytes, ApiStatus> {
    let json = match wanted.form {
        Form::Object => served(entry, object)?,
        Form::Metadata(version) | Form::MetadataList(version) => metadata_bytes(object, version)?,
        Form::Table(version) => {
            let value = decoded(entry, object)?;
            let row = row(entry, &value, wanted.include, version, now);
            let revision = &value["metadata"]["resourceVersion"];
            to_bytes(&table_without_columns(version, revision, vec![row])).into()
        }
    };
    encoded(schema, json, wanted.encoding)
}

/// JSON in the encoding of a stream.
pub(crate) fn encoded(
    schema: &Schema,
    json: Bytes,
    encoding: Encoding,
) -> Result<Bytes, ApiStatus> {
    match encoding {
        Encoding::Json | Encoding::Yaml => Ok(json),
        Encoding::Protobuf => {
            transcode::whole(schema, &json).ok_or_else(crate::content::not_streamable)
        }
    }
}

/// PartialObjectMetadata: the metadata's bytes are copied, nothing is decoded.
pub(crate) fn metadata_bytes(object: &Object, version: &str) -> Result<Bytes, ApiStatus> {
    #[derive(serde::Deserialize)]
    struct Metadata<'a> {
        #[serde(borrow)]
        metadata: &'a RawValue,
    }
    let parsed: Metadata<'_> = serde_json::from_slice(&object.json).map_err(|error| {
        crate::refuse::internal(&format!("stored object does not parse: {error}"))
    })?;
    let head = format!(
        "{{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/{version}\",\"metadata\":"
    );
    Ok([head.as_bytes(), parsed.metadata.get().as_bytes(), b"}"]
        .concat()
        .into())
}

fn partial(value: &Value, version: &str) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": value["metadata"]})
}

/// What a table's rows carry besides their cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Include {
    Nothing,
    Metadata,
    Object,
}

impl Include {
    /// What a bookmark's row carries: it is nothing without its metadata.
    pub(crate) fn or_metadata(self) -> Self {
        match self {
            Include::Nothing => Include::Metadata,
            Include::Metadata | Include::Object => self,
        }
    }
}

/// `includeObject`; metadata unless it says otherwise.
pub(crate) fn include_object(call: &Call<'_>) -> Include {
    match call.query.include_object.as_deref() {
        Some("None") => Include::Nothing,
        Some("Object") => Include::Object,
        _ => Include::Metadata,
    }
}

/// One row of a table.
pub(crate) fn row(
    entry: &Entry,
    value: &Value,
    include: Include,
    version: &str,
    now: Timestamp,
) -> Value {
    let cells = entry.cells(value, now);
    let object = match include {
        Include::Nothing => Value::Null,
        Include::Metadata => partial(value, version),
        Include::Object => value.clone(),
    };
    let mut row = json!({"cells": cells, "object": object});
    let conditions = printing::row_conditions(&entry.resource, value);
    if !conditions.is_empty() {
        row["conditions"] = conditions.into();
    }
    row
}

/// A table around rows.
pub(crate) fn table(entry: &Entry, version: &str, revision: &Value, rows: Vec<Value>) -> Value {
    json!({
        "kind": "Table",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": {"resourceVersion": revision},
        "columnDefinitions": column_definitions(entry),
        "rows": rows,
    })
}

/// A table of a watch after its first: the columns are known.
pub(crate) fn table_without_columns(version: &str, revision: &Value, rows: Vec<Value>) -> Value {
    json!({
        "kind": "Table",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": {"resourceVersion": revision},
        "columnDefinitions": null,
        "rows": rows,
    })
}

/// The columns of a kind's table.
pub(crate) fn column_definitions(entry: &Entry) -> Value {
    if let Some(custom) = &entry.custom {
        return custom.version().column_definitions();
    }
    printing::columns(&entry.resource)
        .iter()
        .map(|column| {
            json!({
                "name": column.name, "type": column.type_, "format": column.format,
                "description": column.description, "priority": column.priority,
            })
        })
        .collect()
}

/// Text as a JSON string.
pub(crate) fn quoted(text: &str) -> Cow<'_, str> {
    if text
        .bytes()
        .any(|byte| byte < b' ' || byte == b'"' || byte == b'\\')
    {
        Cow::Owned(Value::from(text).to_string())
    } else {
        Cow::Owned(format!("\"{text}\""))
    }
}
