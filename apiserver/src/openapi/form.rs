//! The two spellings of OpenAPI that clients ask for: how each writes parameters, bodies, answers and references.

use serde_json::{Map, Value, json};

/// Which version of OpenAPI a document is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Swagger 2.0, one document for everything.
    V2,
    /// OpenAPI 3.0, a document for each group and version.
    V3,
}

impl Form {
    /// Where definitions stand in the document.
    pub(super) fn references(self) -> &'static str {
        match self {
            Self::V2 => "/definitions",
            Self::V3 => "/components/schemas",
        }
    }

    /// A reference to a definition.
    pub(super) fn reference(self, definition: &str) -> Value {
        json!({"$ref": format!("#{}/{definition}", self.references())})
    }

    /// A query parameter.
    pub(super) fn query(self, name: &str, kind: &str) -> Value {
        self.parameter(name, "query", kind)
    }

    /// A parameter.
    pub(super) fn parameter(self, name: &str, place: &str, kind: &str) -> Value {
        let mut parameter = json!({"name": name, "in": place, "description": explain(name)});
        match self {
            Self::V2 => {
                parameter["type"] = kind.into();
                parameter["uniqueItems"] = true.into();
            }
            Self::V3 => parameter["schema"] = json!({"type": kind, "uniqueItems": true}),
        }
        if place == "path" {
            parameter["required"] = true.into();
        }
        parameter
    }

    /// Adds the body that an operation takes.
    pub(super) fn put_body(
        self,
        operation: &mut Value,
        parameters: &mut Vec<Value>,
        definition: &str,
        types: &[&str],
        verb: &str,
    ) {
        let required = !verb.starts_with("delete");
        match self {
            Self::V2 => {
                operation["consumes"] = json!(types);
                let mut body =
                    json!({"name": "body", "in": "body", "schema": self.reference(definition)});
                if required {
                    body["required"] = true.into();
                }
                parameters.insert(0, body);
            }
            Self::V3 => {
                let mut body = json!({"content": self.content(definition, types)});
                if required {
                    body["required"] = true.into();
                }
                operation["requestBody"] = body;
            }
        }
    }

    fn content(self, definition: &str, types: &[&str]) -> Value {
        let of_type = |one: &&str| {
            (
                (*one).to_owned(),
                json!({"schema": self.reference(definition)}),
            )
        };
        Value::Object(types.iter().map(of_type).collect::<Map<String, Value>>())
    }

    /// An answer; without a definition it is text.
    pub(super) fn response(self, meaning: &str, definition: Option<&str>, types: &[&str]) -> Value {
        let mut response = json!({"description": meaning});
        match (self, definition) {
            (Self::V2, Some(definition)) => response["schema"] = self.reference(definition),
            (Self::V2, None) => response["schema"] = json!({"type": "string"}),
            (Self::V3, Some(definition)) => response["content"] = self.content(definition, types),
            (Self::V3, None) => {
                response["content"] = json!({"*/*": {"schema": {"type": "string"}}})
            }
        }
        response
    }
}

/// What a parameter does.
fn explain(name: &str) -> &'static str {
    match name {
        "name" => "The object's name.",
        "namespace" => "The namespace of the object, or of the objects.",
        "pretty" => "If 'true', the answer is indented for people.",
        "allowWatchBookmarks" => {
            "Send BOOKMARK events now and then that tell how far the watch has come."
        }
        "continue" => "The token of a list's previous page, from which the next page is asked for.",
        "fieldSelector" => "Restricts the objects by their fields.",
        "labelSelector" => "Restricts the objects by their labels.",
        "limit" => "The most objects that one page of a list holds.",
        "resourceVersion" => {
            "The state of the cluster that the answer is to show, or that a watch starts from."
        }
        "resourceVersionMatch" => {
            "How resourceVersion applies to a list: 'Exact' or 'NotOlderThan'."
        }
        "sendInitialEvents" => {
            "Begin a watch with the present objects, and mark their end with a bookmark."
        }
        "timeoutSeconds" => "Ends a list or watch after so many seconds.",
        "watch" => "Keep the answer open and send changes as they happen.",
        "dryRun" => "With 'All', goes all the way but writes nothing.",
        "fieldManager" => {
            "A name for whoever makes the change, under which the changed fields are owned."
        }
        "fieldValidation" => {
            "What to do about unknown and duplicate fields: 'Ignore', 'Warn' or 'Strict'."
        }
        "force" => "Take fields over from other managers that own them. For apply patches only.",
        "gracePeriodSeconds" => "How long the object may take to end; zero is at once.",
        "orphanDependents" => "Superseded by propagationPolicy: whether dependents stay.",
        "propagationPolicy" => {
            "What happens to dependents: 'Orphan', 'Background' or 'Foreground'."
        }
        _ => "",
    }
}
