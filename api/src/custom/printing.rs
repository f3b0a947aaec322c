//! The table of a custom resource: its name, the columns that its definition names, or its age.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::path::JsonPath;
use crate::meta;
use crate::printing::human_duration;

/// One additional column.
#[derive(Clone, Debug)]
pub(super) struct Column {
    name: String,
    type_: String,
    format: String,
    description: String,
    priority: i64,
    path: Option<JsonPath>,
}

impl Column {
    /// The columns that a version names; without any, the age.
    pub(super) fn all(version: &Value) -> Vec<Self> {
        let named = version["additionalPrinterColumns"].as_array();
        let named: Vec<Self> = named.into_iter().flatten().map(Column::parse).collect();
        if !named.is_empty() {
            return named;
        }
        vec![Column {
            name: "Age".to_owned(),
            type_: "date".to_owned(),
            format: String::new(),
            description: "Time since the object was created.".to_owned(),
            priority: 0,
            path: JsonPath::parse(".metadata.creationTimestamp"),
        }]
    }

    fn parse(column: &Value) -> Self {
        let text = |field: &str| column[field].as_str().unwrap_or_default().to_owned();
        let name = text("name");
        let description = match text("description") {
            text if text.is_empty() => format!(
                "Custom resource definition column (in JSONPath format): {}",
                column["jsonPath"].as_str().unwrap_or_default()
            ),
            text => text,
        };
        Column {
            name,
            type_: text("type"),
            format: text("format"),
            description,
            priority: column["priority"].as_i64().unwrap_or(0),
            path: JsonPath::parse(&text("jsonPath")),
        }
    }

    fn cell(&self, object: &Value, now: Timestamp) -> Value {
        let found = self.path.as_ref().and_then(|path| path.first(object));
        let Some(found) = found.filter(|value| !value.is_null()) else {
            return Value::Null;
        };
        match (self.type_.as_str(), found) {
            ("integer", Value::Number(number)) => {
                #[expect(clippy::cast_possible_truncation, reason = "as upstream cuts it")]
                let whole = number
                    .as_i64()
                    .or(number.as_f64().map(|float| float as i64));
                whole.map_or(Value::Null, Value::from)
            }
            ("number", Value::Number(number)) => Value::Number(number.clone()),
            ("boolean", Value::Bool(flag)) => Value::Bool(*flag),
            ("date", Value::String(text)) => match text.parse::<Timestamp>() {
                Ok(at) => Value::from(human_duration(now.duration_since(at).as_secs())),
                Err(_) => Value::from("<invalid>"),
            },
            ("string", Value::String(text)) => Value::from(text.as_str()),
            ("string", other) => Value::from(other.to_string()),
            _ => Value::Null,
        }
    }
}

/// The definitions of all columns, as a Table has them.
pub(super) fn definitions(columns: &[Column]) -> Value {
    let name = json!({
        "name": "Name", "type": "string", "format": "name", "priority": 0,
        "description": "Name of the object, unique among its kind in its namespace.",
    });
    let rest = columns.iter().map(|column| {
        json!({
            "name": column.name, "type": column.type_, "format": column.format,
            "description": column.description, "priority": column.priority,
        })
    });
    std::iter::once(name).chain(rest).collect()
}

/// The cells of one object.
pub(super) fn cells(columns: &[Column], object: &Value, now: Timestamp) -> Vec<Value> {
    let name = Value::from(meta::name(object));
    let rest = columns.iter().map(|column| column.cell(object, now));
    std::iter::once(name).chain(rest).collect()
}
