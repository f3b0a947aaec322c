//! What a client sends and what it wants back, from the `Content-Type`, `Accept` and `Accept-Encoding` headers.

use cox_api::status::ApiStatus;
use http::HeaderMap;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE};

use crate::refuse;

/// How an answer is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// The object itself.
    Object,
    /// `meta.k8s.io` Table of this version.
    Table(&'static str),
    /// PartialObjectMetadata of this version.
    Metadata(&'static str),
}

/// How a body came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// `application/json`
    Json,
    /// `application/yaml`
    Yaml,
    /// `application/vnd.kubernetes.protobuf`
    Protobuf,
}

/// The kinds of patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PatchType {
    /// `application/json-patch+json`
    Json,
    /// `application/merge-patch+json`
    Merge,
    /// `application/strategic-merge-patch+json`
    Strategic,
    /// `application/apply-patch+yaml`
    Apply,
}

/// Picks the first form of the Accept header that the server has. Nothing asked for is JSON.
pub(crate) fn accepted(headers: &HeaderMap) -> Result<Form, ApiStatus> {
    let mut asked = false;
    for value in headers.get_all(ACCEPT) {
        for range in value
            .to_str()
            .unwrap_or_default()
            .split(',')
            .map(str::trim)
            .filter(|range| !range.is_empty())
        {
            asked = true;
            if let Some(form) = form(range) {
                return Ok(form);
            }
        }
    }
    if asked {
        Err(refuse::not_acceptable())
    } else {
        Ok(Form::Object)
    }
}

fn form(range: &str) -> Option<Form> {
    let mut parts = range.split(';').map(str::trim);
    if !matches!(parts.next()?, "application/json" | "*/*" | "application/*") {
        return None;
    }
    let (mut kind, mut group, mut version) = ("", "", "");
    for part in parts {
        match part.split_once('=') {
            Some(("as", value)) => kind = value,
            Some(("g", value)) => group = value,
            Some(("v", value)) => version = value,
            _ => {}
        }
    }
    let version = match version {
        "v1" => "v1",
        "v1beta1" => "v1beta1",
        _ if kind.is_empty() => "",
        _ => return None,
    };
    match (kind, group) {
        ("", _) => Some(Form::Object),
        ("Table", "meta.k8s.io") => Some(Form::Table(version)),
        ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io") => {
            Some(Form::Metadata(version))
        }
        _ => None,
    }
}

/// The format of a request's body. No header is JSON, as upstream has it.
pub(crate) fn format(headers: &HeaderMap) -> Result<Format, ApiStatus> {
    match media_type(headers) {
        "" | "application/json" | "*/*" => Ok(Format::Json),
        "application/yaml" | "application/x-yaml" | "text/yaml" => Ok(Format::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(Format::Protobuf),
        _ => Err(refuse::unsupported_media_type(&[
            "application/json",
            "application/yaml",
            "application/vnd.kubernetes.protobuf",
        ])),
    }
}

/// The kind of patch in a request's body.
pub(crate) fn patch_type(headers: &HeaderMap) -> Result<PatchType, ApiStatus> {
    match media_type(headers) {
        "application/json-patch+json" => Ok(PatchType::Json),
        "application/merge-patch+json" => Ok(PatchType::Merge),
        "application/strategic-merge-patch+json" => Ok(PatchType::Strategic),
        "application/apply-patch+yaml" => Ok(PatchType::Apply),
        _ => Err(refuse::unsupported_media_type(&[
            "application/json-patch+json",
            "application/merge-patch+json",
            "application/strategic-merge-patch+json",
            "application/apply-patch+yaml",
        ])),
    }
}

fn media_type(headers: &HeaderMap) -> &str {
    let value = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

/// The client takes gzip.
#[must_use]
pub(crate) fn takes_gzip(headers: &HeaderMap) -> bool {
    headers.get_all(ACCEPT_ENCODING).iter().any(|value| {
        value.to_str().unwrap_or_default().split(',').any(|one| {
            let mut parts = one.trim().split(';');
            parts.next() == Some("gzip") && parts.all(|weight| weight.trim() != "q=0")
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_form_that_the_server_has_is_picked() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        let cases = [
            ("", Some(Form::Object)),
            ("*/*", Some(Form::Object)),
            (kubectl, Some(Form::Table("v1"))),
            (
                "application/vnd.kubernetes.protobuf,application/json",
                Some(Form::Object),
            ),
            (
                "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
                Some(Form::Metadata("v1")),
            ),
            ("application/json;as=Table;g=meta.k8s.io;v=v9", None),
            ("text/html", None),
        ];
        for (accept, expected) in cases {
            let mut headers = HeaderMap::new();
            if !accept.is_empty() {
                headers.insert(ACCEPT, accept.parse().unwrap());
            }
            assert_eq!(accepted(&headers).ok(), expected, "case: {accept:?}");
        }
    }

    #[test]
    fn bodies_of_unknown_types_are_refused() {
        let mut headers = HeaderMap::new();
        assert_eq!(format(&headers).ok(), Some(Format::Json));
        headers.insert(
            CONTENT_TYPE,
            "application/yaml; charset=utf-8".parse().unwrap(),
        );
        assert_eq!(format(&headers).ok(), Some(Format::Yaml));
        headers.insert(CONTENT_TYPE, "image/png".parse().unwrap());
        assert!(format(&headers).is_err());
        assert!(patch_type(&headers).is_err());
        headers.insert(
            CONTENT_TYPE,
            "application/apply-patch+yaml".parse().unwrap(),
        );
        assert_eq!(patch_type(&headers).ok(), Some(PatchType::Apply));
    }
}
