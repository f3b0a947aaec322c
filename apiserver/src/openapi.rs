//! OpenAPI: version 3 with a document for each group and version, version 2 as one document.
//!
//! Built when first asked for, never at start: definitions and descriptions from the types of k8s-openapi, everything else
//! from the schema's tables. Finished documents are kept compressed (about a megabyte together), nothing else is.

mod custom;
mod definitions;
mod form;
mod kinds;
mod paths;
mod proto;
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

pub(crate) use custom::Documents;
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
        "/openapi/v2" => Some(match wanted_v2(headers) {
            Some(encoding) => answer(&document("", "", Form::V2, encoding), headers, encoding),
            None => plain(StatusCode::NOT_ACCEPTABLE),
        }),
        "/openapi/v3" => Some(index_answer()),
        path => {
            let (group, version) = group_version(path.strip_prefix("/openapi/v3/")?)?;
            let served = |one: &schema::Resource| one.group == group && one.version == version;
            schema::builtin().resources().iter().any(served).then(|| {
                let document = document(group, version, Form::V3, Encoding::Json);
                answer(&document, headers, Encoding::Json)
            })
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

/// How a document is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Json,
    Protobuf,
}

impl Encoding {
    fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Encoding::Json => "application/json",
            Encoding::Protobuf => "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
        })
    }
}

/// The first encoding of the Accept header that version 2 has. Two spellings of the protobuf one are known, as upstream.
fn wanted_v2(headers: &HeaderMap) -> Option<Encoding> {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    accept.unwrap_or("*/*").split(',').find_map(|one| {
        match one.split(';').next().unwrap_or_default().trim() {
            "application/json" | "application/*" | "*/*" | "*" | "" => Some(Encoding::Json),
            "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
            | "application/com.github.proto-openapi.spec.v2.v1.0+protobuf" => {
                Some(Encoding::Protobuf)
            }
            _ => None,
        }
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
fn document(group: &str, version: &str, form: Form, encoding: Encoding) -> Arc<Document> {
    static KEPT: OnceLock<Mutex<HashMap<String, Arc<Document>>>> = OnceLock::new();
    let kept = KEPT.get_or_init(Mutex::default);
    let key = format!("{form:?} {encoding:?} {group}/{version}");
    if let Some(document) = kept.lock().get(&key) {
        return document.clone();
    }
    // Two who ask at the same time both make it, which is rare and harmless; the lock is not held for so long.
    let built = build(schema::builtin(), group, version, form);
    let bytes = match encoding {
        Encoding::Json => built.to_string().into_bytes(),
        Encoding::Protobuf => proto::encode(&built),
    };
    let document = Arc::new(Document {
        gzip: compress(&bytes),
        etag: format!("\"{}\"", hex(&Sha256::digest(&bytes))),
    });
    kept.lock().insert(key, document.clone());
    document
}

/// The document of version 2 about the built-in kinds.
fn built_v2() -> Value {
    build(schema::builtin(), "", "", Form::V2)
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

fn answer(document: &Document, headers: &HeaderMap, encoding: Encoding) -> Response<Bytes> {
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
    fields.insert(CONTENT_TYPE, encoding.content_type());
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
