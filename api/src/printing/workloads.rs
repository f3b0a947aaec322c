//! Deployments, ReplicaSets, ReplicationControllers, DaemonSets, StatefulSets, Jobs, CronJobs, ControllerRevisions, PodTemplates.

use super::cell::{
    age, containers, flag, has_condition, items, labels, name, number, resource_name, selector,
    text, text_or, time, true_or_false,
};
use super::duration::{human_duration, since};
use super::{AGE, CONTAINERS, IMAGES, NAME, Printer, SELECTOR, boolean, integer, text as column};
use crate::meta;
use jiff::Timestamp;
use serde_json::{Value, json};

const DESIRED: super::Column = integer("Desired", "Pods that there should be.");
const CURRENT: super::Column = integer("Current", "Pods that there are.");
const READY: super::Column = integer("Ready", "Pods that are ready.");

static DEPLOYMENT: Printer = Printer {
    columns: &[
        NAME,
        column("Ready", "Pods that are ready and that there should be."),
        column("Up-to-date", "Pods of the present template."),
        column("Available", "Pods that have been ready for long enough."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    cells: |object, now| {
        let (names, images) = containers(object, "/spec/template/spec/containers");
        vec![
            name(object),
            json!(format!(
                "{}/{}",
                number(object, "/status/readyReplicas"),
                replicas(object)
            )),
            json!(number(object, "/status/updatedReplicas")),
            json!(number(object, "/status/availableReplicas")),
            age(object, now),
            json!(names),
            json!(images),
            json!(selector(object, "/spec/selector")),
        ]
    },
};

static REPLICA_SET: Printer = Printer {
    columns: &[
        NAME, DESIRED, CURRENT, READY, AGE, CONTAINERS, IMAGES, SELECTOR,
    ],
    cells: |object, now| replica_set(object, now, selector(object, "/spec/selector")),
};

static REPLICATION_CONTROLLER: Printer = Printer {
    columns: &[
        NAME, DESIRED, CURRENT, READY, AGE, CONTAINERS, IMAGES, SELECTOR,
    ],
    cells: |object, now| replica_set(object, now, labels(object, "/spec/selector")),
};

static DAEMON_SET: Printer = Printer {
    columns: &[
        NAME,
        DESIRED,
        CURRENT,
        READY,
        integer("Up-to-date", "Pods of the present template."),
        integer("Available", "Pods that have been ready for long enough."),
        column(
            "Node Selector",
            "Labels of the nodes that run a pod of the set.",
        ),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    cells: |object, now| {
        let (names, images) = containers(object, "/spec/template/spec/containers");
        vec![
            name(object),
            json!(number(object, "/status/desiredNumberScheduled")),
            json!(number(object, "/status/currentNumberScheduled")),
            json!(number(object, "/status/numberReady")),
            json!(number(object, "/status/updatedNumberScheduled")),
            json!(number(object, "/status/numberAvailable")),
            json!(labels(object, "/spec/template/spec/nodeSelector")),
            age(object, now),
            json!(names),
            json!(images),
            json!(selector(object, "/spec/selector")),
        ]
    },
};

static STATEFUL_SET: Printer = Printer {
    columns: &[
        NAME,
        column("Ready", "Pods that are ready and that there should be."),
        AGE,
        CONTAINERS,
        IMAGES,
    ],
    cells: |object, now| {
        let (names, images) = containers(object, "/spec/template/spec/containers");
        let ready = format!(
            "{}/{}",
            number(object, "/status/readyReplicas"),
            replicas(object)
        );
        vec![
            name(object),
            json!(ready),
            age(object, now),
            json!(names),
            json!(images),
        ]
    },
};

static CONTROLLER_REVISION: Printer = Printer {
    columns: &[
        NAME,
        column("Controller", "Controller that keeps the revision."),
        column("Revision", "Number of the revision."),
        AGE,
    ],
    cells: |object, now| {
        let owner = meta::owner_references(object).find(|owner| owner.controller);
        let controller = owner.map_or_else(
            || "<none>".to_owned(),
            |owner| resource_name(owner.api_version, owner.kind, owner.name),
        );
        vec![
            name(object),
            json!(controller),
            json!(number(object, "/revision")),
            age(object, now),
        ]
    },
};

static JOB: Printer = Printer {
    columns: &[
        NAME,
        column("Status", "State of the job."),
        column("Completions", "Pods that succeeded and that must."),
        column("Duration", "Time the job took, or takes so far."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    cells: |object, now| {
        let (names, images) = containers(object, "/spec/template/spec/containers");
        vec![
            name(object),
            json!(job_status(object)),
            json!(job_completions(object)),
            json!(job_duration(object, now)),
            age(object, now),
            json!(names),
            json!(images),
            json!(selector(object, "/spec/selector")),
        ]
    },
};

static CRON_JOB: Printer = Printer {
    columns: &[
        NAME,
        column("Schedule", "When jobs are started, in cron's format."),
        column("Timezone", "Time zone of the schedule."),
        boolean("Suspend", "No further jobs are started."),
        integer("Active", "Jobs that run now."),
        column("Last Schedule", "Time since a job was last started."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    cells: |object, now| {
        let (names, images) = containers(object, "/spec/jobTemplate/spec/template/spec/containers");
        let suspend = if object.pointer("/spec/suspend").is_some() {
            true_or_false(flag(object, "/spec/suspend"))
        } else {
            "<unset>"
        };
        let last = time(object, "/status/lastScheduleTime");
        vec![
            name(object),
            json!(text(object, "/spec/schedule")),
            json!(text_or(object, "/spec/timeZone", "<none>")),
            json!(suspend),
            json!(items(object, "/status/active").len()),
            json!(last.map_or_else(|| "<none>".to_owned(), |last| since(Some(last), now))),
            age(object, now),
            json!(names),
            json!(images),
            json!(selector(object, "/spec/jobTemplate/spec/selector")),
        ]
    },
};

static POD_TEMPLATE: Printer = Printer {
    columns: &[
        NAME,
        column("Containers", "Names of the containers."),
        column("Images", "Images of the containers."),
        column("Pod Labels", "Labels of pods made from the template."),
    ],
    cells: |object, _| {
        let (names, images) = containers(object, "/template/spec/containers");
        vec![
            name(object),
            json!(names),
            json!(images),
            json!(labels(object, "/template/metadata/labels")),
        ]
    },
};

pub(super) fn printer(kind: &str) -> Option<&'static Printer> {
    Some(match kind {
        "Deployment" => &DEPLOYMENT,
        "ReplicaSet" => &REPLICA_SET,
        "DaemonSet" => &DAEMON_SET,
        "StatefulSet" => &STATEFUL_SET,
        "ControllerRevision" => &CONTROLLER_REVISION,
        "Job" => &JOB,
        "CronJob" => &CRON_JOB,
        _ => return None,
    })
}

pub(super) fn core_printer(kind: &str) -> Option<&'static Printer> {
    match kind {
        "ReplicationController" => Some(&REPLICATION_CONTROLLER),
        "PodTemplate" => Some(&POD_TEMPLATE),
        _ => None,
    }
}

/// `spec.replicas`; always set after defaulting.
fn replicas(object: &Value) -> i64 {
    number(object, "/spec/replicas")
}

fn replica_set(object: &Value, now: Timestamp, selector: String) -> Vec<Value> {
    let (names, images) = containers(object, "/spec/template/spec/containers");
    vec![
        name(object),
        json!(replicas(object)),
        json!(number(object, "/status/replicas")),
        json!(number(object, "/status/readyReplicas")),
        age(object, now),
        json!(names),
        json!(images),
        json!(selector),
    ]
}

fn job_status(job: &Value) -> &'static str {
    match () {
        () if has_condition(job, "Complete") => "Complete",
        () if has_condition(job, "Failed") => "Failed",
        () if meta::is_deleting(job) => "Terminating",
        () if has_condition(job, "Suspended") => "Suspended",
        () if has_condition(job, "FailureTarget") => "FailureTarget",
        () if has_condition(job, "SuccessCriteriaMet") => "SuccessCriteriaMet",
        () => "Running",
    }
}

fn job_completions(job: &Value) -> String {
    let succeeded = number(job, "/status/succeeded");
    if let Some(wanted) = job.pointer("/spec/completions").and_then(Value::as_i64) {
        return format!("{succeeded}/{wanted}");
    }
    match number(job, "/spec/parallelism") {
        parallelism if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        _ => format!("{succeeded}/1"),
    }
}

fn job_duration(job: &Value, now: Timestamp) -> String {
    let Some(start) = time(job, "/status/startTime") else {
        return String::new();
    };
    let end = time(job, "/status/completionTime").unwrap_or(now);
    human_duration(end.as_second() - start.as_second())
}
