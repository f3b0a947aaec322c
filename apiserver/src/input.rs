//! Request bodies as canonical values: decoding, field validation, and whether they are of the kind that the URL speaks of.

use cox_api::codec::{self, DecodeError, Decoded, FieldProblem};
use cox_api::schema::TypeId;
use cox_api::status::ApiStatus;
use serde_json::{Map, Value};

use crate::call::{Call, FieldValidation};
use crate::content::{self, Format};
use crate::refuse;

/// The kind that a body must have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected<'a> {
    pub(crate) kind: &'a str,
    pub(crate) api_version: &'a str,
    pub(crate) type_id: TypeId,
}

impl<'a> Expected<'a> {
    /// The kind of the resource itself.
    pub(crate) fn object(call: &Call<'a>) -> Self {
        let entry = call.entry;
        Expected {
            kind: &entry.resource.kind,
            api_version: &entry.api_version,
            type_id: entry.resource.type_id,
        }
    }
}

/// Decodes the body of a create or update. `options` is the kind of the options, for errors about them.
pub(crate) fn decode(
    call: &mut Call<'_>,
    expected: Expected<'_>,
    options: &str,
) -> Result<Value, ApiStatus> {
    let validation = call.field_validation(options)?;
    let schema = call.api.registry.schema();
    let format = content::format(call.headers)?;
    // The body is the custom resource itself, not a Scale or options.
    let custom = call.entry.custom.as_ref();
    let custom = custom.filter(|_| expected.kind == call.entry.resource.kind);
    let decoded = match (format, custom) {
        (Format::Protobuf, Some(_)) => {
            return Err(refuse::unsupported_media_type(&[
                "application/json",
                "application/yaml",
            ]));
        }
        (_, Some(custom)) => custom.version().decode(&call.body, format == Format::Yaml),
        (Format::Json, None) => codec::decode_json(schema, expected.type_id, &call.body),
        (Format::Yaml, None) => codec::decode_yaml(schema, expected.type_id, &call.body),
        (Format::Protobuf, None) => codec::decode_proto(schema, expected.type_id, &call.body),
    };
    let Decoded {
        mut value,
        problems,
    } = decoded.map_err(|error| decode_error(&call.body, expected, &error))?;
    complete_type(&mut value, expected)?;
    judge(call, validation, expected, &problems)?;
    Ok(value)
}

/// Fills in kind and apiVersion where the body leaves them out, and refuses others than those of the URL.
pub(crate) fn complete_type(value: &mut Value, expected: Expected<'_>) -> Result<(), ApiStatus> {
    let Some(object) = value.as_object_mut() else {
        return Err(refuse::bad_request("the body must be an object".to_owned()));
    };
    check_type(object, expected)?;
    for (field, text) in [
        ("kind", expected.kind),
        ("apiVersion", expected.api_version),
    ] {
        if object.get(field).and_then(Value::as_str) != Some(text) {
            object.insert(field.to_owned(), Value::from(text));
        }
    }
    Ok(())
}

fn check_type(object: &Map<String, Value>, expected: Expected<'_>) -> Result<(), ApiStatus> {
    let text = |field: &str| {
        object
            .get(field)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let (kind, api_version) = (text("kind"), text("apiVersion"));
    if !api_version.is_empty() && api_version != expected.api_version {
        return Err(refuse::bad_request(format!(
            "the API version in the data ({api_version}) does not match the expected API version ({})",
            expected.api_version
        )));
    }
    if !kind.is_empty() && kind != expected.kind {
        return Err(refuse::bad_request(format!(
            "{kind} in version {:?} cannot be handled as a {}: the kind in the data ({kind}) does not match the expected kind ({})",
            expected.api_version, expected.kind, expected.kind
        )));
    }
    Ok(())
}

/// Warns about unknown and duplicate fields, or refuses them.
pub(crate) fn judge(
    call: &mut Call<'_>,
    validation: FieldValidation,
    expected: Expected<'_>,
    problems: &[FieldProblem],
) -> Result<(), ApiStatus> {
    if problems.is_empty() {
        return Ok(());
    }
    let texts = problems.iter().map(ToString::to_string);
    match validation {
        FieldValidation::Ignore => {}
        FieldValidation::Warn => call.warnings.extend(texts),
        FieldValidation::Strict => {
            let all: Vec<String> = texts.collect();
            return Err(cannot_be_handled(
                expected,
                &format!("strict decoding error: {}", all.join(", ")),
            ));
        }
    }
    Ok(())
}

/// Upstream's sentence about a body that is not of its type. A body of quite another kind is told so instead.
pub(crate) fn decode_error(body: &[u8], expected: Expected<'_>, error: &DecodeError) -> ApiStatus {
    if let Ok(Value::Object(object)) = serde_json::from_slice(body)
        && let Err(status) = check_type(&object, expected)
    {
        return status;
    }
    cannot_be_handled(expected, &error.to_string())
}

pub(crate) fn cannot_be_handled(expected: Expected<'_>, why: &str) -> ApiStatus {
    let version = expected.api_version.rsplit('/').next().unwrap_or_default();
    refuse::bad_request(format!(
        "{} in version {version:?} cannot be handled as a {}: {why}",
        expected.kind, expected.kind
    ))
}
