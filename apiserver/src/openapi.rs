//! OpenAPI: version 3 with a document for each group and version, version 2 as one document.
//!
//! Built when first asked for, never at start: definitions and descriptions from the types of k8s-openapi, everything else
//! from the schema's tables. Finished documents are kept compressed (about a megabyte together), nothing else is.

mod definitions;
mod form;
mod kinds;
mod paths;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use cox_api::schema::{self, Schema};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, IF_NONE_MATCH,
    VARY,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use form::Form;

/// A finished document.
#[derive(Debug)]
struct Document {
    gzip: Bytes,
    etag: String,
}

/// Answers a GET below `/openapi/`; `None` when there is nothing at that path.
pub fn respond(path: &str, headers: &HeaderMap) -> Option<Response<Bytes>> {
    match path.trim_end_matches('/') {
        "/openapi/v2" if wants_only_protobuf(headers) => Some(plain(StatusCode::NOT_ACCEPTABLE)),
        "/openapi/v2" => Some(answer(&document("", "", Form::V2), headers)),
        "/openapi/v3" => Some(index_answer()),
        path => {
            let (group, version) = group_version(path.strip_prefix("/openapi/v3/")?)?;
            let served = |one: &schema::Resource| one.group == group && one.version == version;
            schema::builtin()
                .resources()
                .iter()
                .any(served)
                .then(|| answer(&document(group, version, Form::V3), headers))
        }
    }
}

fn group_version(path: &str) -> Option<(&str, &str)> {
    match path.split('/').collect::<Vec<_>>().as_slice() {
        ["api", version] => Some(("", version)),
        ["apis", group, version] => Some((group, version)),
        _ => None,
    }
}

/// There is no protobuf form; whoever takes JSON too gets that.
fn wants_only_protobuf(headers: &HeaderMap) -> bool {
    let Some(accept) = headers.get(ACCEPT).and_then(|value| value.to_str().ok()) else {
        return false;
    };
    !accept.split(',').any(|one| {
        let media = one.split(';').next().unwrap_or_default().trim();
        matches!(media, "application/json" | "application/*" | "*/*" | "")
    })
}

/// The index: one entry for each group and version, with a hash that changes when what is served does.
fn index_answer() -> Response<Bytes> {
    static INDEX: OnceLock<Bytes> = OnceLock::new();
    let body = INDEX.get_or_init(|| Bytes::from(index(schema::builtin()).to_string()));
    let mut response = Response::new(body.clone());
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn index(schema: &Schema) -> Value {
    let mut paths = Map::new();
    for (group, version) in group_versions(schema) {
        let path = if group.is_empty() {
            format!("api/{version}")
        } else {
            format!("apis/{group}/{version}")
        };
        let url = format!(
            "/openapi/v3/{path}?hash={}",
            fingerprint(schema, group, version)
        );
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

/// Tells builds apart without building the document: the program's version, how documents are made, and the resources.
fn fingerprint(schema: &Schema, group: &str, version: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(env!("CARGO_PKG_VERSION"));
    for source in [
        include_str!("openapi/definitions.rs"),
        include_str!("openapi/form.rs"),
        include_str!("openapi/kinds.rs"),
        include_str!("openapi/paths.rs"),
    ] {
        hash.update(source);
    }
    for resource in schema
        .resources()
        .iter()
        .filter(|one| one.group == group && one.version == version)
    {
        hash.update(format!("{resource:?}"));
    }
    hex(&hash.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

fn group_versions(schema: &Schema) -> Vec<(&str, &str)> {
    let mut all: Vec<(&str, &str)> = Vec::new();
    for resource in schema.resources() {
        let one = (resource.group.as_str(), resource.version.as_str());
        if !all.contains(&one) {
            all.push(one);
        }
    }
    all
}

/// A document, from memory or made now. Empty group and version with [`Form::V2`] is everything.
fn document(group: &str, version: &str, form: Form) -> Arc<Document> {
    static KEPT: OnceLock<Mutex<HashMap<String, Arc<Document>>>> = OnceLock::new();
    let kept = KEPT.get_or_init(Mutex::default);
    let key = format!("{form:?} {group}/{version}");
    if let Some(document) = kept.lock().get(&key) {
        return document.clone();
    }
    // Two who ask at the same time both make it, which is rare and harmless; the lock is not held for so long.
    let text = build(schema::builtin(), group, version, form).to_string();
    let document = Arc::new(Document {
        gzip: compress(text.as_bytes()),
        etag: format!("\"{}\"", hex(&Sha256::digest(text.as_bytes()))),
    });
    kept.lock().insert(key, document.clone());
    document
}

fn build(schema: &Schema, group: &str, version: &str, form: Form) -> Value {
    let served = match form {
        Form::V2 => group_versions(schema),
        Form::V3 => vec![(group, version)],
    };
    let mut definitions = kinds::definitions(served.iter().copied(), form.references());
    definitions::complete(&mut definitions, schema, &served, form);
    let paths: Map<String, Value> = served
        .iter()
        .flat_map(|(group, version)| paths::paths(schema, group, version, form))
        .collect();
    let info = json!({"title": "Kubernetes", "version": "v1.36.0"});
    match form {
        Form::V2 => {
            json!({"swagger": "2.0", "info": info, "paths": paths, "definitions": definitions})
        }
        Form::V3 => {
            json!({"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": definitions}})
        }
    }
}

fn compress(text: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text).expect("writing into memory");
    Bytes::from(encoder.finish().expect("writing into memory"))
}

fn answer(document: &Document, headers: &HeaderMap) -> Response<Bytes> {
    let mut response = if header_holds(headers, IF_NONE_MATCH, &document.etag) {
        plain(StatusCode::NOT_MODIFIED)
    } else if header_holds(headers, ACCEPT_ENCODING, "gzip") {
        let mut response = Response::new(document.gzip.clone());
        response
            .headers_mut()
            .insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response
    } else {
        let mut text = Vec::new();
        GzDecoder::new(&*document.gzip)
            .read_to_end(&mut text)
            .expect("this is what was compressed into memory");
        Response::new(Bytes::from(text))
    };
    let fields = response.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    fields.insert(VARY, HeaderValue::from_static("Accept-Encoding, Accept"));
    fields.insert(
        ETAG,
        HeaderValue::from_str(&document.etag).expect("hexadecimal digits in quotes"),
    );
    response
}

fn header_holds(headers: &HeaderMap, name: http::HeaderName, wanted: &str) -> bool {
    let values = headers.get_all(name);
    values
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|one| one.split(';').next().unwrap_or_default().trim() == wanted)
}

fn plain(status: StatusCode) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = status;
    response
}
