//! Judges CustomResourceDefinitions themselves: names, versions, conversion, and that each schema is structural.
//!
//! Input: a definition in canonical form, and on updates the one before. Output: complaints with upstream's fields and words.
//! Where all versions say the same, upstream speaks of one place at the top (`spec.validation`); so does this.

pub(super) mod keywords;
mod schema;

use serde_json::Value;

pub(super) use schema::structural_errors;

use super::structural::{Structural, Type};
use crate::meta::strings;
use crate::names;
use crate::validation::FieldError;

/// The annotation by which a group of the project says that it was reviewed.
pub const APPROVED: &str = "api-approved.kubernetes.io";
const SELECTABLE_MAX: usize = 8;

type Errors = Vec<FieldError>;

/// Complaints about a new definition.
pub fn create(definition: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = &definition["spec"];
    let wanted = format!("{}.{}", text(&spec["names"], "plural"), text(spec, "group"));
    let name = text(&definition["metadata"], "name");
    if name != wanted {
        errors.push(FieldError::invalid(
            "metadata.name",
            name,
            "must be spec.names.plural+\".\"+spec.group",
        ));
    }
    check_spec(definition, None, &mut errors);
    check_stored_versions(definition, &mut errors);
    check_approval(definition, None, &mut errors);
    errors
}

/// Complaints about a changed definition.
pub fn update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    check_spec(new, Some(old), &mut errors);
    let (spec, before) = (&new["spec"], &old["spec"]);
    let mut frozen = vec!["/group", "/names/plural"];
    if is_true(old, "Established") {
        frozen.extend(["/scope", "/names/kind"]);
    }
    for pointer in frozen {
        let (new, old) = (spec.pointer(pointer), before.pointer(pointer));
        if new != old {
            errors.push(FieldError::invalid(
                format!("spec{}", pointer.replace('/', ".")),
                new.cloned().unwrap_or_default(),
                "field is immutable",
            ));
        }
    }
    check_stored_versions(new, &mut errors);
    check_approval(new, Some(old), &mut errors);
    errors
}

/// The condition of this type is true.
pub fn is_true(definition: &Value, condition: &str) -> bool {
    let all = definition["status"]["conditions"].as_array();
    all.into_iter()
        .flatten()
        .any(|one| one["type"] == condition && one["status"] == "True")
}

/// Upstream's groups, whose definitions must have been reviewed.
pub fn is_protected(group: &str) -> bool {
    ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|domain| group == *domain || group.ends_with(&format!(".{domain}")))
}

/// What the approval annotation of a definition comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Approval {
    /// A link to the review.
    Approved,
    /// It says that there was none.
    Bypassed,
    /// Neither.
    Invalid,
    /// No annotation.
    Missing,
}

/// Reads the approval annotation, with the sentence about it.
pub fn approval(definition: &Value) -> (Approval, String) {
    let annotation = definition["metadata"]["annotations"][APPROVED]
        .as_str()
        .unwrap_or_default();
    let see = "see https://github.com/kubernetes/enhancements/pull/1111";
    if annotation.is_empty() {
        let why = format!("protected groups must have approval annotation {APPROVED:?}, {see}");
        return (Approval::Missing, why);
    }
    if annotation.starts_with("unapproved") {
        return (Approval::Bypassed, format!("not approved: {annotation:?}"));
    }
    let is_url = annotation
        .split_once("://")
        .is_some_and(|(scheme, host)| !scheme.is_empty() && !host.is_empty());
    if is_url {
        return (Approval::Approved, format!("approved in {annotation}"));
    }
    let why = format!(
        "protected groups must have approval annotation {APPROVED:?} with either a URL or a reason starting with \"unapproved\", {see}"
    );
    (Approval::Invalid, why)
}

fn check_approval(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    if !is_protected(text(&new["spec"], "group")) {
        return;
    }
    let (state, why) = approval(new);
    if old.is_some_and(|old| approval(old).0 == state) {
        return;
    }
    let field = format!("metadata.annotations[{APPROVED}]");
    match state {
        Approval::Invalid => {
            let value = new["metadata"]["annotations"][APPROVED].clone();
            errors.push(FieldError::invalid(field, value, why));
        }
        Approval::Missing => errors.push(FieldError::required(field, why)),
        Approval::Approved | Approval::Bypassed => {}
    }
}

fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value[field].as_str().unwrap_or_default()
}

fn list<'v>(value: &'v Value, field: &str) -> &'v [Value] {
    value[field]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
}

fn check_spec(definition: &Value, old: Option<&Value>, errors: &mut Errors) {
    let spec = &definition["spec"];
    let group = text(spec, "group");
    if group.is_empty() {
        errors.push(FieldError::required("spec.group", ""));
    } else {
        let why = names::dns_subdomain(group);
        if !why.is_empty() {
            errors.push(FieldError::invalid("spec.group", group, why.join(",")));
        } else if !group.contains('.') {
            errors.push(FieldError::invalid(
                "spec.group",
                group,
                "should be a domain with at least one dot",
            ));
        }
    }
    one_of(
        spec,
        "scope",
        "spec.scope",
        &["Cluster", "Namespaced"],
        errors,
    );
    check_versions(spec, old, errors);
    for name in ["plural", "singular", "kind", "listKind"] {
        if text(&spec["names"], name).is_empty() {
            errors.push(FieldError::required(format!("spec.names.{name}"), ""));
        }
    }
    check_names(&spec["names"], "spec.names", errors);
    check_conversion(definition, old, errors);
}

fn one_of(value: &Value, name: &str, field: &str, allowed: &[&str], errors: &mut Errors) {
    match text(value, name) {
        "" => errors.push(FieldError::required(field, "")),
        given if allowed.contains(&given) => {}
        given => errors.push(FieldError::not_supported(field, given, allowed)),
    }
}

#[expect(
    clippy::too_many_lines,
    reason = "a list of complaints, one after the other"
)]
fn check_versions(spec: &Value, old: Option<&Value>, errors: &mut Errors) {
    let versions = list(spec, "versions");
    let defaults = versions.iter().any(|one| {
        Structural::parse(&one["schema"]["openAPIV3Schema"]).any(&|one| one.default.is_some())
    });
    if spec["preserveUnknownFields"] == true {
        let was = old.is_some_and(|old| old["spec"]["preserveUnknownFields"] == true);
        if defaults {
            errors.push(FieldError::invalid(
                "spec.preserveUnknownFields",
                true,
                "must be false in order to use defaults in the schema",
            ));
        } else if !was {
            errors.push(FieldError::invalid(
                "spec.preserveUnknownFields",
                true,
                "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
            ));
        }
    }
    for (at, version) in versions.iter().enumerate() {
        let field = format!("spec.versions[{at}]");
        let name = text(version, "name");
        let why = names::dns1035_label(name);
        if !why.is_empty() {
            errors.push(FieldError::invalid(
                format!("{field}.name"),
                name,
                why.join(","),
            ));
        }
        check_deprecation(version, &field, errors);
        if !version["schema"]["openAPIV3Schema"].is_object() {
            errors.push(FieldError::required(
                format!("{field}.schema.openAPIV3Schema"),
                "",
            ));
        }
        // What all versions share stands at the top and is judged once.
        let place = |name: &str, own: &str, top: &str| {
            let same = versions
                .iter()
                .all(|other| other.get(name) == version.get(name));
            match (same, at) {
                (true, 0) => Some(format!("spec.{top}")),
                (true, _) => None,
                (false, _) => Some(format!("{field}.{own}")),
            }
        };
        let before = old.and_then(|old| {
            let all = list(&old["spec"], "versions").iter();
            all.into_iter().find(|one| text(one, "name") == name)
        });
        if let Some(place) = place("schema", "schema", "validation") {
            let has_status = version["subresources"]["status"].is_object();
            let before = before.map(|one| &one["schema"]["openAPIV3Schema"]);
            schema::check(
                &version["schema"]["openAPIV3Schema"],
                &format!("{place}.openAPIV3Schema"),
                has_status,
                before,
                errors,
            );
        }
        if let Some(place) = place("subresources", "subresources", "subresources") {
            check_scale(&version["subresources"]["scale"], &place, errors);
        }
        if let Some(place) = place(
            "additionalPrinterColumns",
            "additionalPrinterColumns",
            "additionalPrinterColumns",
        ) {
            for (at, column) in list(version, "additionalPrinterColumns").iter().enumerate() {
                check_column(column, &format!("{place}[{at}]"), errors);
            }
        }
        if let Some(place) = place("selectableFields", "selectableFields", "selectableFields") {
            check_selectable(version, before, &place, errors);
        }
    }
    let mut seen: Vec<&str> = versions.iter().map(|one| text(one, "name")).collect();
    seen.sort_unstable();
    if seen.windows(2).any(|pair| pair[0] == pair[1]) {
        errors.push(FieldError::invalid(
            "spec.versions",
            spec["versions"].clone(),
            "must contain unique version names",
        ));
    }
    if versions.iter().filter(|one| one["storage"] == true).count() != 1 {
        errors.push(FieldError::invalid(
            "spec.versions",
            spec["versions"].clone(),
            "must have exactly one version marked as storage version",
        ));
    }
}

fn check_deprecation(version: &Value, field: &str, errors: &mut Errors) {
    let Some(warning) = version["deprecationWarning"].as_str() else {
        return;
    };
    let mut why = Vec::new();
    if version["deprecated"] != true {
        why.push("can only be set for deprecated versions".to_owned());
    } else {
        if warning.len() > 256 {
            why.push("must be <= 256 characters long".to_owned());
        }
        if warning.is_empty() {
            why.push("must not be an empty string".to_owned());
        }
        if let Some((at, _)) = warning.char_indices().find(|(_, c)| c.is_control()) {
            why.push(format!(
                "must only contain printable UTF-8 characters; non-printable character found at index {at}"
            ));
        }
    }
    errors.extend(
        why.into_iter()
            .map(|why| FieldError::invalid(format!("{field}.deprecationWarning"), warning, why)),
    );
}

fn check_names(given: &Value, field: &str, errors: &mut Errors) {
    let label = |text: &str| names::dns1035_label(text).join(",");
    for name in ["plural", "singular"] {
        let value = text(given, name);
        if !value.is_empty() && !label(value).is_empty() {
            errors.push(FieldError::invalid(
                format!("{field}.{name}"),
                value,
                label(value),
            ));
        }
    }
    for name in ["kind", "listKind"] {
        let value = text(given, name);
        let why = label(&value.to_lowercase());
        if !value.is_empty() && !why.is_empty() {
            let why = format!("may have mixed case, but should otherwise match: {why}");
            errors.push(FieldError::invalid(format!("{field}.{name}"), value, why));
        }
    }
    for name in ["shortNames", "categories"] {
        for (at, value) in strings(&given[name]).iter().enumerate() {
            if !label(value).is_empty() {
                errors.push(FieldError::invalid(
                    format!("{field}.{name}[{at}]"),
                    value.as_str(),
                    label(value),
                ));
            }
        }
    }
    let (kind, list_kind) = (text(given, "kind"), text(given, "listKind"));
    if !kind.is_empty() && kind == list_kind {
        errors.push(FieldError::invalid(
            format!("{field}.listKind"),
            list_kind,
            "kind and listKind may not be the same",
        ));
    }
}

fn check_scale(scale: &Value, field: &str, errors: &mut Errors) {
    if !scale.is_object() {
        return;
    }
    for (name, below, required) in [
        ("specReplicasPath", &[".spec."][..], true),
        ("statusReplicasPath", &[".status."], true),
        ("labelSelectorPath", &[".spec.", ".status."], false),
    ] {
        let (path, field) = (text(scale, name), format!("{field}.scale.{name}"));
        if path.is_empty() {
            if required {
                errors.push(FieldError::required(field, ""));
            }
        } else if !path.starts_with('.') {
            errors.push(FieldError::invalid(
                field,
                path,
                "must be a simple json path starting with .",
            ));
        } else if !below.iter().any(|below| path.starts_with(below)) {
            let where_ = match name {
                "specReplicasPath" => "under .spec",
                "statusReplicasPath" => "under .status",
                _ => "under either .spec or .status",
            };
            errors.push(FieldError::invalid(
                field,
                path,
                format!("should be a json path {where_}"),
            ));
        }
    }
}

fn check_column(column: &Value, field: &str, errors: &mut Errors) {
    const TYPES: &str = "boolean,date,integer,number,string";
    const FORMATS: &str = "byte,date,date-time,double,float,int32,int64,password";
    if text(column, "name").is_empty() {
        errors.push(FieldError::required(format!("{field}.name"), ""));
    }
    let why = format!("must be one of {TYPES}");
    match text(column, "type") {
        "" => errors.push(FieldError::required(format!("{field}.type"), why)),
        type_ if TYPES.split(',').any(|one| one == type_) => {}
        type_ => errors.push(FieldError::invalid(format!("{field}.type"), type_, why)),
    }
    let format = text(column, "format");
    if !format.is_empty() && !FORMATS.split(',').any(|one| one == format) {
        errors.push(FieldError::invalid(
            format!("{field}.format"),
            format,
            format!("must be one of {FORMATS}"),
        ));
    }
    match text(column, "jsonPath") {
        "" => errors.push(FieldError::required(format!("{field}.JSONPath"), "")),
        path if path.starts_with('.') => {}
        path => errors.push(FieldError::invalid(
            format!("{field}.JSONPath"),
            path,
            "must be a simple json path starting with .",
        )),
    }
}

fn check_selectable(version: &Value, before: Option<&Value>, field: &str, errors: &mut Errors) {
    let fields = list(version, "selectableFields");
    let root = Structural::parse(&version["schema"]["openAPIV3Schema"]);
    let mut seen: Vec<&str> = Vec::new();
    for (at, one) in fields.iter().enumerate() {
        let (path, field) = (text(one, "jsonPath"), format!("{field}[{at}].jsonPath"));
        if path.is_empty() {
            errors.push(FieldError::required(field, ""));
            continue;
        }
        let found = match keywords::follow(&root, path, false) {
            Ok(found) => found,
            Err(why) => {
                let why = format!("is an invalid path: {why}");
                errors.push(FieldError::invalid(field, path, why));
                continue;
            }
        };
        if path == ".metadata" || path.starts_with(".metadata.") {
            errors.push(FieldError::invalid(
                field.as_str(),
                path,
                "must not point to fields in metadata",
            ));
        }
        if !matches!(found.type_, Type::String | Type::Boolean | Type::Integer) {
            errors.push(FieldError::invalid(
                field.as_str(),
                path,
                "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.",
            ));
        }
        if seen.contains(&path) {
            errors.push(FieldError::duplicate(field, path));
        } else {
            seen.push(path);
        }
    }
    let unchanged =
        before.is_some_and(|one| one["selectableFields"] == version["selectableFields"]);
    if seen.len() > SELECTABLE_MAX && !unchanged {
        errors.push(FieldError::too_many(field, seen.len(), SELECTABLE_MAX));
    }
}

fn check_conversion(definition: &Value, old: Option<&Value>, errors: &mut Errors) {
    let conversion = &definition["spec"]["conversion"];
    if !conversion.is_object() {
        return;
    }
    let field = "spec.conversion";
    let strategy = text(conversion, "strategy");
    one_of(
        conversion,
        "strategy",
        "spec.conversion.strategy",
        &["None", "Webhook"],
        errors,
    );
    let webhook = &conversion["webhook"];
    if strategy != "Webhook" {
        if webhook.is_object() {
            errors.push(FieldError::forbidden(
                format!("{field}.webhookClientConfig"),
                "should not be set when strategy is not set to Webhook",
            ));
        }
        return;
    }
    if definition["spec"]["preserveUnknownFields"] == true {
        errors.push(FieldError::invalid(
            "spec.conversion.strategy",
            strategy,
            "must be None if spec.preserveUnknownFields is true",
        ));
    }
    check_client(
        &webhook["clientConfig"],
        &format!("{field}.webhookClientConfig"),
        errors,
    );
    let versions = strings(&webhook["conversionReviewVersions"]);
    let field = format!("{field}.conversionReviewVersions");
    if versions.is_empty() {
        errors.push(FieldError::required(field, ""));
        return;
    }
    for (at, version) in versions.iter().enumerate() {
        if versions[..at].contains(version) {
            errors.push(FieldError::invalid(
                format!("{field}[{at}]"),
                version.as_str(),
                "duplicate version",
            ));
            continue;
        }
        errors.extend(
            names::dns1035_label(version)
                .into_iter()
                .map(|why| FieldError::invalid(format!("{field}[{at}]"), version.as_str(), why)),
        );
    }
    let recognized = |list: &[String]| list.iter().any(|one| one == "v1" || one == "v1beta1");
    let before =
        old.map(|old| strings(&old["spec"]["conversion"]["webhook"]["conversionReviewVersions"]));
    let was_fine = before.is_none_or(|list| list.is_empty() || recognized(&list));
    if was_fine && !recognized(&versions) {
        let value = webhook["conversionReviewVersions"].clone();
        errors.push(FieldError::invalid(
            field,
            value,
            "must include at least one of v1, v1beta1",
        ));
    }
}

/// Complaints about where a webhook is reached.
pub fn check_client(client: &Value, field: &str, errors: &mut Errors) {
    let (url, service) = (&client["url"], &client["service"]);
    match (url.as_str(), service.is_object()) {
        (None, false) | (Some(_), true) => errors.push(FieldError::required(
            field,
            "exactly one of url or service is required",
        )),
        (Some(url), false) => check_url(url, &format!("{field}.url"), errors),
        (None, true) => {
            for name in ["name", "namespace"] {
                if text(service, name).is_empty() {
                    errors.push(FieldError::required(
                        format!("{field}.service.{name}"),
                        format!("service {name} is required"),
                    ));
                }
            }
            let port = service["port"].as_i64().unwrap_or(443);
            if !(1..=65535).contains(&port) {
                errors.push(FieldError::invalid(
                    format!("{field}.service.port"),
                    port,
                    "port is not valid: must be between 1 and 65535, inclusive",
                ));
            }
            let path = text(service, "path");
            if !path.is_empty() && !path.starts_with('/') {
                errors.push(FieldError::invalid(
                    format!("{field}.service.path"),
                    path,
                    "must start with a '/'",
                ));
            }
        }
    }
}

fn check_url(url: &str, field: &str, errors: &mut Errors) {
    const FORM: &str = "; desired format: https://host[/path]";
    let Some((scheme, rest)) = url.split_once("://") else {
        errors.push(FieldError::required(
            field,
            format!("url must be a valid URL: {url:?}{FORM}"),
        ));
        return;
    };
    if scheme != "https" {
        errors.push(FieldError::invalid(
            field,
            scheme,
            format!("'https' is the only allowed URL scheme{FORM}"),
        ));
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.is_empty() {
        errors.push(FieldError::invalid(
            field,
            "",
            format!("host must be specified{FORM}"),
        ));
    }
    if authority.contains('@') {
        errors.push(FieldError::invalid(
            field,
            authority.split('@').next().unwrap_or_default(),
            "user information is not permitted in the URL",
        ));
    }
    for (mark, what) in [('#', "fragments"), ('?', "query parameters")] {
        if let Some((_, value)) = rest.split_once(mark) {
            errors.push(FieldError::invalid(
                field,
                value,
                format!("{what} are not permitted in the URL"),
            ));
        }
    }
}

fn check_stored_versions(definition: &Value, errors: &mut Errors) {
    let field = "status.storedVersions";
    let stored = strings(&definition["status"]["storedVersions"]);
    let value = || definition["status"]["storedVersions"].clone();
    if stored.is_empty() {
        errors.push(FieldError::invalid(
            field,
            serde_json::json!([]),
            "must have at least one stored version",
        ));
        return;
    }
    let versions = list(&definition["spec"], "versions");
    for version in versions.iter().filter(|one| one["storage"] == true) {
        let name = text(version, "name");
        if !stored.iter().any(|one| one == name) {
            errors.push(FieldError::invalid(
                field,
                value(),
                format!("must have the storage version {name}"),
            ));
        }
    }
    for (at, name) in stored.iter().enumerate() {
        if !versions.iter().any(|one| text(one, "name") == name) {
            errors.push(FieldError::invalid(
                format!("{field}[{at}]"),
                name.as_str(),
                format!("missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {name} and removes {name} from status.storedVersions"),
            ));
        }
    }
}
