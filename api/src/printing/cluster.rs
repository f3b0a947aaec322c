//! Nodes, Namespaces, Events, Leases, classes of runtime and priority, flow control, resource claims, and the API's own kinds.

use super::cell::{age, condition, flag, items, name, number, text, text_or, time};
use super::duration::since;
use super::{AGE, Column, NAME, Printer, boolean, integer, text as column, wide};
use crate::meta;
use jiff::Timestamp;
use serde_json::{Value, json};

static NAMESPACE: Printer = Printer {
    columns: &[NAME, column("Status", "Phase."), AGE],
    cells: |object, now| {
        vec![
            name(object),
            json!(text(object, "/status/phase")),
            age(object, now),
        ]
    },
};

static NODE: Printer = Printer {
    columns: &[
        NAME,
        column("Status", "Whether the node is ready and takes pods."),
        column("Roles", "Roles that its labels give it."),
        AGE,
        column("Version", "Version of its kubelet."),
        wide("Internal-IP", "Address inside the cluster."),
        wide("External-IP", "Address outside the cluster."),
        wide("OS-Image", "Operating system."),
        wide("Kernel-Version", "Kernel."),
        wide("Container-Runtime", "Runtime and its version."),
    ],
    cells: |object, now| {
        let info = |field: &str| {
            json!(text_or(
                object,
                &format!("/status/nodeInfo/{field}"),
                "<unknown>"
            ))
        };
        vec![
            name(object),
            json!(node_status(object)),
            json!(node_roles(object)),
            age(object, now),
            json!(text(object, "/status/nodeInfo/kubeletVersion")),
            json!(node_address(object, "InternalIP")),
            json!(node_address(object, "ExternalIP")),
            info("osImage"),
            json!(kernel(object)),
            info("containerRuntimeVersion"),
        ]
    },
};

const EVENT_COLUMNS: &[Column] = &[
    column("Last Seen", "Time since it last happened."),
    column("Type", "Normal or Warning."),
    column("Reason", "What happened, in one word."),
    column("Object", "What it happened to."),
    wide("Subobject", "Part of that object."),
    wide("Source", "Who says so."),
    column("Message", "What happened."),
    wide("First Seen", "Time since it first happened."),
    Column {
        name: "Count",
        type_: "string",
        format: "",
        description: "How often it happened.",
        priority: 1,
    },
    Column {
        priority: 1,
        ..NAME
    },
];

static EVENT: Printer = Printer {
    columns: EVENT_COLUMNS,
    cells: event,
};

static LEASE: Printer = Printer {
    columns: &[NAME, column("Holder", "Who holds it."), AGE],
    cells: |object, now| {
        vec![
            name(object),
            json!(text(object, "/spec/holderIdentity")),
            age(object, now),
        ]
    },
};

static LEASE_CANDIDATE: Printer = Printer {
    columns: &[
        NAME,
        column("LeaseName", "Lease it wants."),
        column("BinaryVersion", "Version of the program."),
        column("EmulationVersion", "Version it behaves like."),
        AGE,
    ],
    cells: |object, now| {
        vec![
            name(object),
            json!(text(object, "/spec/leaseName")),
            json!(text(object, "/spec/binaryVersion")),
            json!(text(object, "/spec/emulationVersion")),
            age(object, now),
        ]
    },
};

static RUNTIME_CLASS: Printer = Printer {
    columns: &[
        NAME,
        column("Handler", "Handler in the container runtime."),
        AGE,
    ],
    cells: |object, now| {
        vec![
            name(object),
            json!(text(object, "/handler")),
            age(object, now),
        ]
    },
};

static PRIORITY_CLASS: Printer = Printer {
    columns: &[
        NAME,
        integer("Value", "Priority."),
        boolean("Global-Default", "Priority of pods that name none."),
        AGE,
        column(
            "PreemptionPolicy",
            "Whether pods of the class displace others.",
        ),
    ],
    cells: |object, now| {
        vec![
            name(object),
            json!(number(object, "/value")),
            json!(flag(object, "/globalDefault")),
            age(object, now),
            json!(text_or(object, "/preemptionPolicy", "PreemptLowerPriority")),
        ]
    },
};

static API_SERVICE: Printer = Printer {
    columns: &[
        NAME,
        column("Service", "Service that answers, or Local."),
        column("Available", "Whether it answers."),
        AGE,
    ],
    cells: |object, now| {
        let service = object.pointer("/spec/service").map_or_else(
            || "Local".to_owned(),
            |service| format!("{}/{}", text(service, "/namespace"), text(service, "/name")),
        );
        let available = match condition(object, "Available") {
            None => "Unknown".to_owned(),
            Some(condition) if text(condition, "/status") == "True" => "True".to_owned(),
            Some(condition) => format!(
                "{} ({})",
                text(condition, "/status"),
                text(condition, "/reason")
            ),
        };
        vec![
            name(object),
            json!(service),
            json!(available),
            age(object, now),
        ]
    },
};

static FLOW_SCHEMA: Printer = Printer {
    columns: &[
        NAME,
        column("PriorityLevel", "Level that its requests go to."),
        column("MatchingPrecedence", "Lower ones are tried first."),
        column("DistinguisherMethod", "What tells flows apart."),
        AGE,
        column("MissingPL", "The level does not exist."),
    ],
    cells: |object, now| {
        let missing =
            condition(object, "Dangling").map_or("?", |condition| text(condition, "/status"));
        vec![
            name(object),
            json!(text_or(
                object,
                "/spec/priorityLevelConfiguration/name",
                "<none>"
            )),
            json!(number(object, "/spec/matchingPrecedence")),
            json!(text_or(object, "/spec/distinguisherMethod/type", "<none>")),
            age(object, now),
            json!(missing),
        ]
    },
};

static PRIORITY_LEVEL: Printer = Printer {
    columns: &[
        NAME,
        column("Type", "Exempt or Limited."),
        column("NominalConcurrencyShares", "Share of the server's seats."),
        column("Queues", "Number of queues."),
        column("HandSize", "Queues that one flow may use."),
        column("QueueLengthLimit", "Requests that fit into one queue."),
        AGE,
    ],
    cells: |object, now| {
        let number = |pointer: &str| object.pointer(pointer).cloned().unwrap_or(json!("<none>"));
        let queuing = |field: &str| number(&format!("/spec/limited/limitResponse/queuing/{field}"));
        vec![
            name(object),
            json!(text(object, "/spec/type")),
            number("/spec/limited/nominalConcurrencyShares"),
            queuing("queues"),
            queuing("handSize"),
            queuing("queueLengthLimit"),
            age(object, now),
        ]
    },
};

static RESOURCE_CLAIM: Printer = Printer {
    columns: &[
        NAME,
        column("State", "Whether it is allocated and used."),
        AGE,
    ],
    cells: |object, now| {
        let deleting = meta::is_deleting(object);
        let allocated = object.pointer("/status/allocation").is_some();
        let states = [
            (deleting, "deleted"),
            (!allocated && !deleting, "pending"),
            (allocated, "allocated"),
            (
                allocated && !items(object, "/status/reservedFor").is_empty(),
                "reserved",
            ),
        ];
        let states: Vec<&str> = states
            .iter()
            .filter(|(is, _)| *is)
            .map(|(_, state)| *state)
            .collect();
        vec![name(object), json!(states.join(",")), age(object, now)]
    },
};

static RESOURCE_SLICE: Printer = Printer {
    columns: &[
        NAME,
        column("Node", "Node with the devices."),
        column("Driver", "Driver of the devices."),
        column("Pool", "Pool of the devices."),
        AGE,
    ],
    cells: |object, now| {
        vec![
            name(object),
            json!(text(object, "/spec/nodeName")),
            json!(text(object, "/spec/driver")),
            json!(text(object, "/spec/pool/name")),
            age(object, now),
        ]
    },
};

static NAME_AND_AGE: Printer = Printer {
    columns: &[NAME, AGE],
    cells: |object, now| vec![name(object), age(object, now)],
};

static STORAGE_VERSION: Printer = Printer {
    columns: &[
        NAME,
        column("CommonEncodingVersion", "Version that all servers write."),
        column("StorageVersions", "Version that each server writes."),
        AGE,
    ],
    cells: |object, now| {
        let versions: Vec<String> = items(object, "/status/storageVersions")
            .iter()
            .map(|version| {
                format!(
                    "{}={}",
                    text(version, "/apiServerID"),
                    text(version, "/encodingVersion")
                )
            })
            .collect();
        vec![
            name(object),
            json!(text_or(object, "/status/commonEncodingVersion", "<unset>")),
            json!(super::cell::first_few(&versions)),
            age(object, now),
        ]
    },
};

pub(super) fn core_printer(kind: &str) -> Option<&'static Printer> {
    match kind {
        "Namespace" => Some(&NAMESPACE),
        "Node" => Some(&NODE),
        "Event" => Some(&EVENT),
        _ => None,
    }
}

pub(super) fn printer(kind: &str) -> Option<&'static Printer> {
    Some(match kind {
        "Event" => &EVENT,
        "Lease" => &LEASE,
        "LeaseCandidate" => &LEASE_CANDIDATE,
        "RuntimeClass" => &RUNTIME_CLASS,
        "PriorityClass" => &PRIORITY_CLASS,
        "APIService" => &API_SERVICE,
        "FlowSchema" => &FLOW_SCHEMA,
        "PriorityLevelConfiguration" => &PRIORITY_LEVEL,
        "ResourceClaim" => &RESOURCE_CLAIM,
        "ResourceSlice" => &RESOURCE_SLICE,
        "ResourceClaimTemplate" | "DeviceClass" => &NAME_AND_AGE,
        "StorageVersion" => &STORAGE_VERSION,
        _ => return None,
    })
}

/// The kernel and what it runs on.
fn kernel(node: &Value) -> String {
    let version = text_or(node, "/status/nodeInfo/kernelVersion", "<unknown>");
    match text(node, "/status/nodeInfo/architecture") {
        "" => version.to_owned(),
        architecture => format!("{version} ({architecture})"),
    }
}

fn node_status(node: &Value) -> String {
    let mut status = match condition(node, "Ready").map(|ready| text(ready, "/status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if flag(node, "/spec/unschedulable") {
        status.push_str(",SchedulingDisabled");
    }
    status
}

fn node_roles(node: &Value) -> String {
    let mut roles: Vec<&str> = meta::labels(node)
        .filter_map(|(key, value)| match key {
            "kubernetes.io/role" => Some(value),
            _ => key.strip_prefix("node-role.kubernetes.io/"),
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    super::cell::or_none(roles.join(","))
}

fn node_address<'v>(node: &'v Value, kind: &str) -> &'v str {
    let mut addresses = items(node, "/status/addresses").iter();
    addresses
        .find(|address| text(address, "/type") == kind)
        .map_or("<none>", |address| text(address, "/address"))
}

/// One event, of the core group or of `events.k8s.io`, which names the same things differently.
fn event(event: &Value, now: Timestamp) -> Vec<Value> {
    let either = |new: &str, old: &str| {
        let name = text(event, new);
        if name.is_empty() {
            text(event, old)
        } else {
            name
        }
        .to_owned()
    };
    let object = |field: &str| {
        either(
            &format!("/regarding/{field}"),
            &format!("/involvedObject/{field}"),
        )
    };
    let first = time(event, "/firstTimestamp")
        .or_else(|| time(event, "/deprecatedFirstTimestamp"))
        .or_else(|| time(event, "/eventTime"));
    let last = time(event, "/series/lastObservedTime")
        .or_else(|| time(event, "/lastTimestamp"))
        .or_else(|| time(event, "/deprecatedLastTimestamp"))
        .or(first);
    let count = [
        number(event, "/series/count"),
        number(event, "/count"),
        number(event, "/deprecatedCount"),
        1,
    ];
    let count = count.into_iter().find(|count| *count != 0);
    let kind = object("kind").to_lowercase();
    let target = match object("name") {
        name if name.is_empty() => kind,
        name => format!("{kind}/{name}"),
    };
    let source = |fields: [&str; 4]| {
        fields
            .into_iter()
            .map(|field| text(event, field))
            .find(|text| !text.is_empty())
            .unwrap_or_default()
    };
    let component = source([
        "/source/component",
        "/deprecatedSource/component",
        "/reportingComponent",
        "/reportingController",
    ]);
    let instance = source([
        "/source/host",
        "/deprecatedSource/host",
        "/reportingInstance",
        "/reportingInstance",
    ]);
    let comma = if instance.is_empty() { "" } else { ", " };
    vec![
        json!(since(last, now)),
        json!(text(event, "/type")),
        json!(text(event, "/reason")),
        json!(target),
        json!(object("fieldPath")),
        json!(format!("{component}{comma}{instance}")),
        json!(either("/note", "/message").trim()),
        json!(since(first, now)),
        json!(count),
        name(event),
    ]
}
