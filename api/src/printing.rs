//! The tables that kubectl prints: columns and cells of `meta.k8s.io/v1` Table for every built-in kind.
//!
//! Inputs are a resource, an object and the time; the output is what upstream's `kubectl get` and `get -o wide` show. Columns of
//! priority 1 are the wide ones. Kinds without columns of their own show name and creation time. It never fails: what an object
//! does not say prints as upstream prints it (`<none>`, `<unknown>`, `<unset>`).

mod admission;
mod cell;
mod cluster;
mod config;
mod duration;
mod network;
mod pods;
mod policy;
mod scaling;
mod storage;
#[cfg(test)]
mod tests;
mod workloads;

pub use duration::human_duration;

use crate::schema::Resource;
use jiff::Timestamp;
use serde_json::{Value, json};

/// A column of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Heading.
    pub name: &'static str,
    /// `string`, `integer`, `boolean` or `date`.
    pub type_: &'static str,
    /// `name` for the column that names the object, else empty.
    pub format: &'static str,
    /// What it shows.
    pub description: &'static str,
    /// 0 is always shown, 1 with `-o wide`.
    pub priority: i32,
}

/// How one kind prints.
struct Printer {
    columns: &'static [Column],
    cells: fn(&Value, Timestamp) -> Vec<Value>,
}

/// A text column that is always shown.
const fn text(name: &'static str, description: &'static str) -> Column {
    Column {
        name,
        type_: "string",
        format: "",
        description,
        priority: 0,
    }
}

/// A text column of the wide table.
const fn wide(name: &'static str, description: &'static str) -> Column {
    Column {
        name,
        type_: "string",
        format: "",
        description,
        priority: 1,
    }
}

/// A column of numbers.
const fn integer(name: &'static str, description: &'static str) -> Column {
    Column {
        name,
        type_: "integer",
        format: "",
        description,
        priority: 0,
    }
}

/// A column of booleans.
const fn boolean(name: &'static str, description: &'static str) -> Column {
    Column {
        name,
        type_: "boolean",
        format: "",
        description,
        priority: 0,
    }
}

const NAME: Column = Column {
    name: "Name",
    type_: "string",
    format: "name",
    description: "Name of the object, unique among its kind in its namespace.",
    priority: 0,
};
const AGE: Column = text("Age", "Time since the object was created.");
const CREATED_AT: Column = Column {
    name: "Created At",
    type_: "date",
    format: "",
    description: "When the object was created.",
    priority: 0,
};
const CONTAINERS: Column = wide("Containers", "Names of the containers in the template.");
const IMAGES: Column = wide("Images", "Images of the containers in the template.");
const SELECTOR: Column = wide(
    "Selector",
    "Label selector for the pods that belong to the object.",
);

static DEFAULT: Printer = Printer {
    columns: &[NAME, CREATED_AT],
    cells: |object, _| {
        vec![
            cell::name(object),
            json!(cell::text(object, "/metadata/creationTimestamp")),
        ]
    },
};

/// The columns of a resource's table, wide ones included.
pub fn columns(resource: &Resource) -> Vec<Column> {
    printer(&resource.group, &resource.kind).columns.to_vec()
}

/// The cells of one object, as many as there are columns.
pub fn cells(resource: &Resource, object: &Value, now: Timestamp) -> Vec<Value> {
    (printer(&resource.group, &resource.kind).cells)(object, now)
}

/// The `conditions` of a row: finished Pods are marked, so that clients can tell them from those that run.
pub fn row_conditions(resource: &Resource, object: &Value) -> Vec<Value> {
    if !resource.group.is_empty() || resource.kind != "Pod" {
        return Vec::new();
    }
    pods::row_conditions(object)
}

fn printer(group: &str, kind: &str) -> &'static Printer {
    let of_group = match group {
        "" => pods::printer(kind)
            .or_else(|| workloads::core_printer(kind))
            .or_else(|| network::core_printer(kind))
            .or_else(|| storage::core_printer(kind))
            .or_else(|| cluster::core_printer(kind))
            .or_else(|| config::printer(kind)),
        "apps" | "batch" => workloads::printer(kind),
        "autoscaling" => scaling::printer(kind),
        "networking.k8s.io" | "discovery.k8s.io" => network::printer(kind),
        "storage.k8s.io" => storage::printer(kind),
        "admissionregistration.k8s.io" => admission::printer(kind),
        "rbac.authorization.k8s.io" | "certificates.k8s.io" | "policy" => policy::printer(kind),
        _ => cluster::printer(kind),
    };
    of_group.unwrap_or(&DEFAULT)
}
