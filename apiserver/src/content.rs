//! What a client sends and what it wants back, from the `Content-Type`, `Accept` and `Accept-Encoding` headers.

use cox_api::status::ApiStatus;
use http::HeaderMap;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE};

use crate::refuse;

/// How an answer is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Form {
    /// The object itself.
    Object,
    /// `meta.k8s.io` Table of this version.
    Table(&'static str),
    /// PartialObjectMetadata of this version.
    Metadata(&'static str),
    /// PartialObjectMetadataList of this version, for lists.
    MetadataList(&'static str),
}

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Encoding {
    /// `application/json`
    Json,
    /// `application/yaml`
    Yaml,
    /// `application/vnd.kubernetes.protobuf`
    Protobuf,
}

/// What an Accept header comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Accepted {
    pub(crate) form: Form,
    pub(crate) encoding: Encoding,
}

impl Default for Accepted {
    fn default() -> Self {
        Accepted {
            form: Form::Object,
            encoding: Encoding::Json,
        }
    }
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

/// The media types of answers, in the order in which a wildcard picks them.
const MEDIA_TYPES: [(&str, Encoding); 3] = [
    ("application/json", Encoding::Json),
    ("application/yaml", Encoding::Yaml),
    ("application/vnd.kubernetes.protobuf", Encoding::Protobuf),
];

/// What a kind can be sent as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offers {
    /// It has a protobuf message (its metadata always has).
    pub(crate) protobuf: bool,
    /// It can be printed as a table: questions and answers cannot.
    pub(crate) table: bool,
}

impl Offers {
    /// Everything there is.
    pub(crate) const ALL: Self = Offers {
        protobuf: true,
        table: true,
    };
}

/// Picks the form and encoding that the Accept header prefers and the server has. Nothing asked for is JSON.
pub(crate) fn accepted(headers: &HeaderMap, offers: Offers) -> Result<Accepted, ApiStatus> {
    let Some(accept) = headers.get(ACCEPT) else {
        return Ok(Accepted::default());
    };
    let accept = accept.to_str().unwrap_or_default();
    if accept.is_empty() || accept == "application/json" {
        return Ok(Accepted::default());
    }
    let mut ranges: Vec<Range<'_>> = accept.split(',').filter_map(Range::parse).collect();
    ranges.sort_by(Range::preference);
    ranges
        .iter()
        .find_map(|range| range.pick(offers))
        .ok_or_else(|| {
            let types: Vec<&str> = MEDIA_TYPES
                .iter()
                .filter(|(_, encoding)| offers.protobuf || *encoding != Encoding::Protobuf)
                .map(|(name, _)| *name)
                .collect();
            ApiStatus::not_acceptable(&types)
        })
}

/// The encoding for answers that have but one form: errors, documents.
pub(crate) fn encoding(headers: &HeaderMap) -> Encoding {
    accepted(headers, Offers::ALL).unwrap_or_default().encoding
}

/// The encoding of answers of which the server has these.
pub(crate) fn encoding_of(headers: &HeaderMap, offers: Offers) -> Encoding {
    accepted(headers, offers).unwrap_or_default().encoding
}

/// Streams have no YAML.
pub(crate) fn not_streamable() -> ApiStatus {
    ApiStatus::not_acceptable(&[
        "application/json;stream=watch",
        "application/vnd.kubernetes.protobuf;stream=watch",
    ])
}

/// One part of an Accept header.
struct Range<'a> {
    media: &'a str,
    quality: f32,
    parameters: &'a str,
}

impl<'a> Range<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (media, parameters) = text.split_once(';').unwrap_or((text, ""));
        let media = media.trim();
        let quality = pairs(parameters).find_map(|(key, value)| (key == "q").then_some(value));
        (!media.is_empty()).then(|| Range {
            media: if media == "*" { "*/*" } else { media },
            quality: quality.map_or(1.0, |text| text.parse().unwrap_or(0.0)),
            parameters,
        })
    }

    /// By quality; among equals what is spelled out goes before wildcards.
    fn preference(&self, other: &Self) -> std::cmp::Ordering {
        let wild = |range: &Self| range.media.bytes().filter(|byte| *byte == b'*').count();
        other
            .quality
            .total_cmp(&self.quality)
            .then_with(|| wild(self).cmp(&wild(other)))
    }

    fn pick(&self, offers: Offers) -> Option<Accepted> {
        MEDIA_TYPES
            .iter()
            .filter(|(name, _)| {
                matches!(self.media, "*/*" | "application/*") || self.media == *name
            })
            .find_map(|(_, encoding)| {
                let form = self.form(*encoding, offers)?;
                Some(Accepted {
                    form,
                    encoding: *encoding,
                })
            })
    }

    /// The form that the parameters ask for, if there is one in this encoding.
    fn form(&self, encoding: Encoding, offers: Offers) -> Option<Form> {
        let (mut kind, mut group, mut version, mut asked) = ("", "", "", false);
        for (key, value) in pairs(self.parameters) {
            match key {
                "as" => (kind, asked) = (value, true),
                "g" => (group, asked) = (value, true),
                "v" => (version, asked) = (value, true),
                "stream" if value != "watch" || encoding == Encoding::Yaml => return None,
                _ => {}
            }
        }
        let protobuf = encoding == Encoding::Protobuf;
        if !asked {
            return (offers.protobuf || !protobuf).then_some(Form::Object);
        }
        let version = match version {
            "v1" => "v1",
            "v1beta1" => "v1beta1",
            _ => return None,
        };
        match (kind, group) {
            ("Table", "meta.k8s.io") if offers.table && !protobuf => Some(Form::Table(version)),
            ("PartialObjectMetadata", "meta.k8s.io") => Some(Form::Metadata(version)),
            ("PartialObjectMetadataList", "meta.k8s.io") => Some(Form::MetadataList(version)),
            _ => None,
        }
    }
}

/// `;key=value` parameters.
fn pairs(parameters: &str) -> impl Iterator<Item = (&str, &str)> {
    parameters
        .split(';')
        .filter_map(|part| part.split_once('='))
        .map(|(key, value)| (key.trim(), value.trim().trim_matches('"')))
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

/// The types of patches; the last one is for kinds that the server was built with, custom ones do not say how lists merge.
const PATCH_TYPES: [(&str, PatchType); 4] = [
    ("application/json-patch+json", PatchType::Json),
    ("application/merge-patch+json", PatchType::Merge),
    ("application/apply-patch+yaml", PatchType::Apply),
    (
        "application/strategic-merge-patch+json",
        PatchType::Strategic,
    ),
];

/// The kind of patch in a request's body.
pub(crate) fn patch_type(headers: &HeaderMap, is_custom: bool) -> Result<PatchType, ApiStatus> {
    let types = &PATCH_TYPES[..PATCH_TYPES.len() - usize::from(is_custom)];
    let asked = media_type(headers);
    match types.iter().find(|(name, _)| *name == asked) {
        Some((_, kind)) => Ok(*kind),
        None => {
            // In upstream's order.
            let mut names: Vec<&str> = types.iter().map(|(name, _)| *name).collect();
            if !is_custom {
                names.swap(2, 3);
            }
            Err(refuse::unsupported_media_type(&names))
        }
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
    fn the_preferred_form_that_the_server_has_is_picked() {
        use Encoding::{Json, Protobuf, Yaml};
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        let cases = [
            ("", Some((Form::Object, Json))),
            ("*/*", Some((Form::Object, Json))),
            ("*", Some((Form::Object, Json))),
            (kubectl, Some((Form::Table("v1"), Json))),
            (
                "application/vnd.kubernetes.protobuf,application/json",
                Some((Form::Object, Protobuf)),
            ),
            (
                "application/vnd.kubernetes.protobuf;q=0.5, application/json",
                Some((Form::Object, Json)),
            ),
            ("*/*, application/yaml", Some((Form::Object, Yaml))),
            (
                "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
                Some((Form::MetadataList("v1"), Json)),
            ),
            (
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
                Some((Form::Metadata("v1"), Protobuf)),
            ),
            (
                "application/vnd.kubernetes.protobuf;as=Table;g=meta.k8s.io;v=v1",
                None,
            ),
            (
                "application/vnd.kubernetes.protobuf;as=Table;g=meta.k8s.io;v=v1,application/json",
                Some((Form::Object, Json)),
            ),
            ("application/json;stream=watch", Some((Form::Object, Json))),
            ("application/json;stream=other", None),
            ("application/json;as=Table;g=meta.k8s.io;v=v9", None),
            ("text/html", None),
        ];
        for (accept, expected) in cases {
            let mut headers = HeaderMap::new();
            if !accept.is_empty() {
                headers.insert(ACCEPT, accept.parse().unwrap());
            }
            let picked = accepted(&headers, Offers::ALL).ok();
            assert_eq!(
                picked.map(|one| (one.form, one.encoding)),
                expected,
                "case: {accept:?}"
            );
        }
        let mut headers = HeaderMap::new();
        headers.insert(
            ACCEPT,
            "application/vnd.kubernetes.protobuf".parse().unwrap(),
        );
        let custom = Offers {
            protobuf: false,
            table: true,
        };
        assert_eq!(
            accepted(&headers, custom).unwrap_err().message,
            "only the following media types are accepted: application/json, application/yaml"
        );
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
        assert!(patch_type(&headers, false).is_err());
        headers.insert(
            CONTENT_TYPE,
            "application/apply-patch+yaml".parse().unwrap(),
        );
        assert_eq!(patch_type(&headers, true).ok(), Some(PatchType::Apply));
        headers.insert(
            CONTENT_TYPE,
            "application/strategic-merge-patch+json".parse().unwrap(),
        );
        assert_eq!(patch_type(&headers, false).ok(), Some(PatchType::Strategic));
        let refused = patch_type(&headers, true).unwrap_err();
        assert_eq!(refused.code, 415);
        assert!(
            refused.message.ends_with(
                "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
            ),
            "{}",
            refused.message
        );
    }
}
