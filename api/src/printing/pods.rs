//! Pods: the one kind whose status column is worked out rather than read.

use super::cell::{age, condition, flag, has_condition, items, name, number, text, text_or, time};
use super::duration::since;
use super::{AGE, NAME, Printer, text as column, wide};
use crate::meta;
use jiff::Timestamp;
use serde_json::{Value, json};

static POD: Printer = Printer {
    columns: &[
        NAME,
        column(
            "Ready",
            "Containers that are ready and containers that should be.",
        ),
        column("Status", "What the pod is doing, or why it is not."),
        column(
            "Restarts",
            "How often containers were restarted, and when the last time was.",
        ),
        AGE,
        wide("IP", "Address of the pod."),
        wide("Node", "Node the pod runs on."),
        wide("Nominated Node", "Node that is being cleared for the pod."),
        wide(
            "Readiness Gates",
            "Readiness gates that are met and that there are.",
        ),
    ],
    cells: |pod, now| {
        let state = PodState::of(pod);
        vec![
            name(pod),
            json!(format!("{}/{}", state.ready, state.total)),
            json!(state.reason),
            json!(state.restarts_text(now)),
            age(pod, now),
            json!(
                items(pod, "/status/podIPs")
                    .first()
                    .map_or("<none>", |ip| text_or(ip, "/ip", "<none>"))
            ),
            json!(text_or(pod, "/spec/nodeName", "<none>")),
            json!(text_or(pod, "/status/nominatedNodeName", "<none>")),
            json!(readiness_gates(pod)),
        ]
    },
};

pub(super) fn printer(kind: &str) -> Option<&'static Printer> {
    (kind == "Pod").then_some(&POD)
}

pub(super) fn row_conditions(pod: &Value) -> Vec<Value> {
    let (reason, message) = match text(pod, "/status/phase") {
        "Succeeded" => ("Succeeded", "The pod has completed successfully."),
        "Failed" => ("Failed", "The pod failed."),
        _ => return Vec::new(),
    };
    vec![json!({"type": "Completed", "status": "True", "reason": reason, "message": message})]
}

/// What the cells say about the containers.
#[derive(Default)]
struct PodState {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

/// What the init containers leave to say.
enum Init {
    Done,
    Running(String),
}

impl PodState {
    fn of(pod: &Value) -> Self {
        let phase = text(pod, "/status/phase");
        let mut state = Self {
            reason: text_or(pod, "/status/reason", phase).to_owned(),
            ..Self::default()
        };
        if condition(pod, "PodScheduled")
            .is_some_and(|scheduled| text(scheduled, "/reason") == "SchedulingGated")
        {
            state.reason = "SchedulingGated".to_owned();
        }
        let sidecars = items(pod, "/spec/initContainers")
            .iter()
            .filter(|container| is_sidecar(container))
            .count();
        state.total = items(pod, "/spec/containers").len() + sidecars;
        let (init, sidecar_restarts) = state.init_containers(pod);
        let initialized = has_condition(pod, "Initialized");
        let done = matches!(init, Init::Done);
        if let Init::Running(reason) = init {
            state.reason = reason;
        }
        if done || initialized {
            (state.restarts, state.last_restart) = sidecar_restarts;
            state.main_containers(pod);
        }
        let deleting = meta::is_deleting(pod);
        if deleting && text(pod, "/status/reason") == "NodeLost" {
            state.reason = "Unknown".to_owned();
        } else if deleting && !matches!(phase, "Succeeded" | "Failed") {
            state.reason = "Terminating".to_owned();
        }
        state
    }

    /// Counts the init containers up to the first that is not through, and says how that one is.
    fn init_containers(&mut self, pod: &Value) -> (Init, (i64, Option<Timestamp>)) {
        let specs = items(pod, "/spec/initContainers");
        let mut sidecar_restarts = (0, None);
        for (at, status) in items(pod, "/status/initContainerStatuses")
            .iter()
            .enumerate()
        {
            let restarts = number(status, "/restartCount");
            let last = time(status, "/lastState/terminated/finishedAt");
            self.restarts += restarts;
            self.last_restart = self.last_restart.max(last);
            let sidecar = specs
                .iter()
                .any(|spec| text(spec, "/name") == text(status, "/name") && is_sidecar(spec));
            if sidecar {
                sidecar_restarts.0 += restarts;
                sidecar_restarts.1 = sidecar_restarts.1.max(last);
            }
            let terminated = status.pointer("/state/terminated");
            if terminated.is_some_and(|terminated| number(terminated, "/exitCode") == 0) {
                continue;
            }
            if sidecar && flag(status, "/started") {
                self.ready += usize::from(flag(status, "/ready"));
                continue;
            }
            let waiting = text(status, "/state/waiting/reason");
            let reason = match terminated {
                Some(terminated) => format!("Init:{}", exit_text(terminated)),
                None if !waiting.is_empty() && waiting != "PodInitializing" => {
                    format!("Init:{waiting}")
                }
                None => format!("Init:{at}/{}", specs.len()),
            };
            return (Init::Running(reason), sidecar_restarts);
        }
        (Init::Done, sidecar_restarts)
    }

    /// Counts the main containers; the first one that is not running decides the reason.
    fn main_containers(&mut self, pod: &Value) {
        let mut running = false;
        for status in items(pod, "/status/containerStatuses").iter().rev() {
            self.restarts += number(status, "/restartCount");
            self.last_restart = self
                .last_restart
                .max(time(status, "/lastState/terminated/finishedAt"));
            let waiting = text(status, "/state/waiting/reason");
            if !waiting.is_empty() {
                self.reason = waiting.to_owned();
            } else if let Some(terminated) = status.pointer("/state/terminated") {
                self.reason = exit_text(terminated);
            } else if flag(status, "/ready") && status.pointer("/state/running").is_some() {
                running = true;
                self.ready += 1;
            }
        }
        if self.reason == "Completed" && running {
            let ready = has_condition(pod, "Ready");
            self.reason = if ready { "Running" } else { "NotReady" }.to_owned();
        }
    }

    fn restarts_text(&self, now: Timestamp) -> String {
        match self.last_restart.filter(|_| self.restarts != 0) {
            Some(last) => format!("{} ({} ago)", self.restarts, since(Some(last), now)),
            None => self.restarts.to_string(),
        }
    }
}

/// A container that restarts for as long as the pod lives, though it is started with the init containers.
fn is_sidecar(container: &Value) -> bool {
    text(container, "/restartPolicy") == "Always"
}

fn exit_text(terminated: &Value) -> String {
    let reason = text(terminated, "/reason");
    if !reason.is_empty() {
        return reason.to_owned();
    }
    match number(terminated, "/signal") {
        0 => format!("ExitCode:{}", number(terminated, "/exitCode")),
        signal => format!("Signal:{signal}"),
    }
}

fn readiness_gates(pod: &Value) -> String {
    let gates = items(pod, "/spec/readinessGates");
    if gates.is_empty() {
        return "<none>".to_owned();
    }
    let met = gates
        .iter()
        .filter(|gate| has_condition(pod, text(gate, "/conditionType")))
        .count();
    format!("{met}/{}", gates.len())
}
