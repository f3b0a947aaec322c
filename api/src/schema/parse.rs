//! Reads the two tables. The grammar stands in the first lines of each table.

use super::{
    Declared, Field, ListKind, MapKind, Patch, Proto, Resource, Schema, Shape, Subresource,
    TypeDef, TypeId, Wire,
};
use std::borrow::Cow;
use std::collections::HashMap;

/// The verbs of an ordinary resource, written `*` in the table.
const USUAL_VERBS: &str = "create,delete,deletecollection,get,list,patch,update,watch";

/// A line that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("table line {line:?}: {what}")]
pub(super) struct TableError {
    line: String,
    what: &'static str,
}

fn bad(line: &str, what: &'static str) -> TableError {
    TableError {
        line: line.to_owned(),
        what,
    }
}

/// What one type line and its field lines say, before inlined structs are flattened.
struct RawType {
    fields: Vec<RawField>,
}

enum RawField {
    Field(Field),
    Inline { number: u32, type_id: TypeId },
}

pub(super) fn read(types: &'static str, resources: &'static str) -> Result<Schema, TableError> {
    let mut schema = Schema::default();
    let short = declare_types(&mut schema, types)?;
    let raw = read_fields(&schema, &short, types)?;
    for index in 0..raw.len() {
        flatten(&mut schema, &raw, index);
    }
    read_resources(&mut schema, resources)?;
    Ok(schema)
}

/// First pass: every type gets its id, so that fields can refer forward. Answers ids by short name.
fn declare_types(
    schema: &mut Schema,
    table: &'static str,
) -> Result<HashMap<(&'static str, &'static str), TypeId>, TableError> {
    let mut short_ids = HashMap::with_capacity(1024);
    let mut package = ("", "");
    for line in table.lines() {
        if let Some(rest) = line.strip_prefix("@ ") {
            let mut words = rest.split(' ');
            let (Some(full), Some(short), Some(group)) = (words.next(), words.next(), words.next())
            else {
                return Err(bad(line, "a package line has three words"));
            };
            let version = short.rsplit('/').next().unwrap_or(short);
            schema
                .packages
                .insert((core_is_empty(group), version), full);
            package = (full, short);
        } else if let Some(rest) = line.strip_prefix("+ ") {
            let (name, atomic) = match rest.strip_suffix(" A") {
                Some(name) => (name, true),
                None => (rest, false),
            };
            let id =
                TypeId(u32::try_from(schema.types.len()).map_err(|_| bad(line, "too many types"))?);
            let full: Box<str> = format!("{}.{name}", package.0).into();
            schema.by_name.insert(full.clone(), id);
            short_ids.insert((package.1, name), id);
            schema.types.push(TypeDef {
                name: full,
                atomic,
                ..TypeDef::default()
            });
        }
    }
    Ok(short_ids)
}

fn core_is_empty(group: &'static str) -> &'static str {
    if group == "-" { "" } else { group }
}

type ShortIds = HashMap<(&'static str, &'static str), TypeId>;

fn read_fields(
    schema: &Schema,
    short: &ShortIds,
    table: &'static str,
) -> Result<Vec<RawType>, TableError> {
    let mut raw: Vec<RawType> = Vec::with_capacity(schema.types.len());
    for line in table.lines() {
        match line.as_bytes().first() {
            None | Some(b'#' | b'@') => {}
            Some(b'+') => raw.push(RawType { fields: Vec::new() }),
            Some(_) => {
                let field = read_field(schema, short, line)?;
                raw.last_mut()
                    .ok_or_else(|| bad(line, "a field before any type"))?
                    .fields
                    .push(field);
            }
        }
    }
    Ok(raw)
}

fn read_field(
    schema: &Schema,
    short: &ShortIds,
    line: &'static str,
) -> Result<RawField, TableError> {
    let mut words = line.split(' ');
    let (Some(json), Some(shape), Some(flags), Some(number)) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(bad(line, "a field line has four words"));
    };
    let number: u32 = number
        .parse()
        .map_err(|_| bad(line, "the protobuf number is no number"))?;
    let shape = read_shape(short, shape).ok_or_else(|| bad(line, "unknown shape"))?;
    if json == "-" {
        let Shape::Struct(type_id) = shape else {
            return Err(bad(line, "only structs are inlined"));
        };
        return Ok(RawField::Inline { number, type_id });
    }
    let wire = match shape {
        Shape::Bool | Shape::Int32 | Shape::Int64 => Wire::Varint,
        Shape::Float => Wire::Fixed64,
        _ => Wire::Bytes,
    };
    // A struct that is atomic by type is atomic wherever it stands.
    let atomic_type = matches!(shape, Shape::Struct(id) if schema.def(id).atomic);
    let mut field = Field {
        json: Cow::Borrowed(json),
        shape,
        pointer: flags.contains('*'),
        omit_empty: flags.contains('o'),
        omit_zero: flags.contains('z'),
        required: flags.contains('r'),
        proto: (number != 0).then_some(Proto {
            number,
            wire,
            name: Cow::Borrowed(json),
        }),
        list: ListKind::Atomic,
        map: if atomic_type {
            MapKind::Atomic
        } else {
            MapKind::Granular
        },
        patch: Patch::default(),
    };
    for word in words {
        read_mark(&mut field, word).ok_or_else(|| bad(line, "unknown mark"))?;
    }
    Ok(RawField::Field(field))
}

fn read_mark(field: &mut Field, word: &'static str) -> Option<()> {
    let (mark, rest) = word.split_at_checked(1)?;
    match mark {
        "L" => field.list = ListKind::Map(rest.split(',').map(Cow::Borrowed).collect()),
        "S" => field.list = ListKind::Set,
        "A" => field.map = MapKind::Atomic,
        "P" => {
            let (strategy, key) = rest
                .split_once(':')
                .map_or((rest, None), |(s, k)| (s, Some(k)));
            field.patch = Patch {
                merge: strategy.contains('m'),
                retain_keys: strategy.contains('k'),
                merge_key: key.map(Cow::Borrowed),
            };
        }
        "N" => field.proto.as_mut()?.name = Cow::Borrowed(rest),
        _ => return None,
    }
    Some(())
}

fn read_shape(short: &ShortIds, text: &'static str) -> Option<Shape> {
    if let Some(rest) = text.strip_prefix('[') {
        return Some(Shape::List(Box::new(read_shape(short, rest)?)));
    }
    if let Some(rest) = text.strip_prefix('{') {
        return Some(Shape::Map(Box::new(read_shape(short, rest)?)));
    }
    Some(match text {
        "bool" => Shape::Bool,
        "i32" => Shape::Int32,
        "i64" => Shape::Int64,
        "f64" => Shape::Float,
        "str" => Shape::String,
        "bytes" => Shape::Bytes,
        "time" => Shape::Time,
        "micro" => Shape::MicroTime,
        "dur" => Shape::Duration,
        "qty" => Shape::Quantity,
        "intstr" => Shape::IntOrString,
        "raw" => Shape::RawObject,
        "any" => Shape::AnyJson,
        "fieldsv1" => Shape::FieldsV1,
        name => Shape::Struct(*short.get(&name.split_once('.')?)?),
    })
}

/// Fills the flattened and the declared fields of one type.
fn flatten(schema: &mut Schema, raw: &[RawType], index: usize) {
    let mut fields = Vec::new();
    collect(raw, index, &mut fields);
    fields.sort_by(|a, b| a.json.cmp(&b.json));
    let mut declared: Vec<Declared> = raw[index]
        .fields
        .iter()
        .map(|entry| match entry {
            RawField::Inline { number, type_id } => Declared::Inline {
                number: *number,
                type_id: *type_id,
            },
            RawField::Field(field) => {
                let at = fields.binary_search_by(|f| f.json.cmp(&field.json));
                Declared::Field(at.expect("every declared field was just collected"))
            }
        })
        .collect();
    declared.sort_by_key(|declared| match declared {
        Declared::Inline { number, .. } => *number,
        Declared::Field(at) => fields[*at].proto.as_ref().map_or(0, |proto| proto.number),
    });
    let always = (0..fields.len())
        .filter(|at| written_when_zero(&fields[*at]))
        .collect();
    let def = &mut schema.types[index];
    def.fields = fields;
    def.declared = declared;
    def.always = always;
}

fn collect(raw: &[RawType], index: usize, fields: &mut Vec<Field>) {
    for entry in &raw[index].fields {
        match entry {
            RawField::Field(field) => fields.push(field.clone()),
            RawField::Inline { type_id, .. } => collect(raw, type_id.0 as usize, fields),
        }
    }
}

/// Go's `omitempty` never leaves out a struct value, and a quantity or an int-or-string is a struct there.
fn written_when_zero(field: &Field) -> bool {
    if field.pointer || field.omit_zero {
        return false;
    }
    match field.shape {
        Shape::Struct(_) | Shape::Quantity | Shape::IntOrString | Shape::Duration => true,
        Shape::Bool | Shape::Int32 | Shape::Int64 | Shape::Float | Shape::String => {
            !field.omit_empty
        }
        // Zero times, bytes, lists and maps are null in Go's JSON; null and absent are one in ours.
        _ => false,
    }
}

fn read_resources(schema: &mut Schema, table: &'static str) -> Result<(), TableError> {
    let mut resources: Vec<Resource> = Vec::with_capacity(96);
    for line in table.lines().filter(|line| !line.starts_with('#')) {
        let columns: Vec<&'static str> = line.split('\t').collect();
        let [
            group,
            version,
            name,
            kind,
            singular,
            scope,
            verbs,
            short,
            categories,
            prefix,
            storage,
        ] = columns[..]
        else {
            return Err(bad(line, "a resource line has eleven columns"));
        };
        let group = core_is_empty(group);
        let verbs = list(if verbs == "*" { USUAL_VERBS } else { verbs });
        if let Some((parent, sub)) = name.split_once('/') {
            let parent = resources
                .iter_mut()
                .rev()
                .find(|r| r.plural == parent && r.group == group && r.version == version);
            let parent = parent.ok_or_else(|| bad(line, "a subresource before its resource"))?;
            let (group, version, kind) = subresource_kind(group, version, kind);
            let type_id = schema.kind_type(group, version, kind);
            parent.subresources.push(Subresource {
                name: sub.to_owned(),
                group: group.to_owned(),
                version: version.to_owned(),
                kind: kind.to_owned(),
                verbs,
                type_id,
            });
            continue;
        }
        let (storage_group, storage_version) = if storage == "-" {
            (group, version)
        } else {
            storage.split_once('/').unwrap_or(("", storage))
        };
        resources.push(Resource {
            group: group.to_owned(),
            version: version.to_owned(),
            plural: name.to_owned(),
            kind: kind.to_owned(),
            singular: singular.to_owned(),
            namespaced: scope == "N",
            verbs,
            short_names: list(short),
            categories: list(categories),
            storage_prefix: prefix.to_owned(),
            storage_group: storage_group.to_owned(),
            storage_version: storage_version.to_owned(),
            preferred: resources
                .iter()
                .find(|r| r.group == group)
                .is_none_or(|first| first.version == version),
            type_id: schema
                .kind_type(group, version, kind)
                .ok_or_else(|| bad(line, "the kind has no type"))?,
            subresources: Vec::new(),
        });
    }
    schema.resources = resources;
    Ok(())
}

/// `policy/v1 Eviction` names another group's kind; a bare kind is of the resource's own group.
fn subresource_kind(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
) -> (&'static str, &'static str, &'static str) {
    match kind.split_once(' ') {
        Some((group_version, kind)) => {
            let (group, version) = group_version.split_once('/').unwrap_or(("", group_version));
            (group, version, kind)
        }
        None => (group, version, kind),
    }
}

fn list(text: &str) -> Vec<String> {
    if text == "-" {
        Vec::new()
    } else {
        text.split(',').map(str::to_owned).collect()
    }
}
