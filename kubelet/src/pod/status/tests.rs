//! Status tables: the whole status of a Pod as one line.
#![allow(
    clippy::too_many_lines,
    reason = "a table of cases is as long as it has cases"
)]

use super::*;
use crate::pod::ContainerId;
use crate::pod::history::{Ending, History, Volumes};
use crate::pod::plan::{Waiting, plan_pod};
use crate::pod::view::{ContainerPhase, ContainerView, Exit, PodView, SandboxView};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn at(secs: i64) -> Timestamp {
    Timestamp::from_second(secs).unwrap()
}

fn pod(policy: &str, inits: Value, mains: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 3},
        "spec": {"restartPolicy": policy, "initContainers": inits, "containers": mains}}))
    .unwrap()
}

fn sandbox(ready: bool) -> SandboxView {
    SandboxView {
        id: "s".into(),
        attempt: 0,
        ready,
        created_at: at(0),
        ips: vec!["10.0.0.2".into()],
        is_virtual: false,
    }
}

fn container(name: &str, attempt: u32, state: ContainerPhase) -> ContainerView {
    ContainerView {
        id: ContainerId(format!("{name}{attempt}")),
        sandbox: "s".into(),
        name: name.into(),
        attempt,
        state,
        created_at: at(i64::from(attempt)),
        image: "img".into(),
        image_ref: "img@sha256:1".into(),
        image_id: "img@sha256:1".into(),
        spec_hash: String::new(),
        user: None,
    }
}

fn running() -> ContainerPhase {
    ContainerPhase::Running { started_at: at(50) }
}

fn ended(code: i32, reason: &str) -> ContainerPhase {
    ContainerPhase::Exited(Exit {
        code,
        reason: reason.into(),
        message: String::new(),
        started_at: Some(at(50)),
        finished_at: at(90),
    })
}

fn show_container(status: &ContainerStatus) -> String {
    let state = |state: &k8s_openapi::api::core::v1::ContainerState| {
        if state.running.is_some() {
            "running".to_owned()
        } else if let Some(end) = &state.terminated {
            format!(
                "{}({})",
                end.reason.clone().unwrap_or_default(),
                end.exit_code
            )
        } else if let Some(wait) = &state.waiting {
            wait.reason.clone().unwrap_or_default()
        } else {
            String::new()
        }
    };
    let last = status
        .last_state
        .as_ref()
        .map(state)
        .filter(|last| !last.is_empty());
    let last = last.map_or(String::new(), |last| format!(" after {last}"));
    let ready = if status.ready { " ready" } else { "" };
    format!(
        "{}#{} {}{last}{ready}",
        status.name,
        status.restart_count,
        state(status.state.as_ref().unwrap())
    )
}

fn show(status: &PodStatus) -> String {
    let containers = status
        .init_container_statuses
        .iter()
        .flatten()
        .chain(status.container_statuses.iter().flatten());
    let containers: Vec<_> = containers.map(show_container).collect();
    let conditions = status
        .conditions
        .iter()
        .flatten()
        .filter(|c| c.type_ != "PodScheduled");
    let conditions: Vec<_> = conditions
        .map(|c| {
            let short = match c.type_.as_str() {
                "PodReadyToStartContainers" => "sandbox",
                "Initialized" => "init",
                "ContainersReady" => "containers",
                "Ready" => "ready",
                other => other,
            };
            let reason = c
                .reason
                .clone()
                .map_or(String::new(), |reason| format!("({reason})"));
            format!(
                "{}{short}{reason}",
                if c.status == "True" { "+" } else { "-" }
            )
        })
        .collect();
    format!(
        "{} | {} | {}",
        status.phase.clone().unwrap_or_default(),
        containers.join(", "),
        conditions.join(" ")
    )
}

struct Case<'a> {
    pod: &'a Pod,
    view: PodView,
    history: History,
    previous: Option<PodStatus>,
}

impl Case<'_> {
    fn status_with(&self, waiting: &BTreeMap<String, Waiting>) -> PodStatus {
        let input = PlanInput {
            pod: self.pod,
            view: &self.view,
            history: &self.history,
            previous: self.previous.as_ref(),
            now: at(100),
        };
        let mut plan = plan_pod(input);
        plan.waiting.extend(waiting.clone());
        plan_status(
            input,
            &plan,
            &NodeFacts {
                host_ip: "10.0.0.1".into(),
                runtime_name: "cox".into(),
                read_only_below: true,
                ..NodeFacts::default()
            },
        )
    }

    fn status(&self) -> PodStatus {
        self.status_with(&BTreeMap::new())
    }
}

fn case<'a>(pod: &'a Pod, sandboxes: Vec<SandboxView>, containers: Vec<ContainerView>) -> Case<'a> {
    let history = History {
        volumes: Volumes::Mounted,
        ..History::default()
    };
    Case {
        pod,
        view: PodView {
            sandboxes,
            containers,
        },
        history,
        previous: None,
    }
}

#[test]
fn the_life_of_a_pod_table() {
    let two = pod("Always", json!([]), json!([{"name": "a"}, {"name": "b"}]));
    let with_init = pod("Always", json!([{"name": "i"}]), json!([{"name": "a"}]));
    let with_sidecar = pod(
        "Always",
        json!([{"name": "s", "restartPolicy": "Always"}]),
        json!([{"name": "a"}]),
    );
    let cases: Vec<(&str, Case<'_>, &str)> = vec![
        (
            "just seen",
            case(&two, vec![], vec![]),
            "Pending | a#0 ContainerCreating, b#0 ContainerCreating | -sandbox +init -ready(ContainersNotReady) -containers(ContainersNotReady)",
        ),
        (
            "one of two runs",
            case(
                &two,
                vec![sandbox(true)],
                vec![container("a", 0, running())],
            ),
            "Pending | a#0 running ready, b#0 ContainerCreating | +sandbox +init -ready(ContainersNotReady) -containers(ContainersNotReady)",
        ),
        (
            "both run",
            case(
                &two,
                vec![sandbox(true)],
                vec![container("a", 0, running()), container("b", 0, running())],
            ),
            "Running | a#0 running ready, b#0 running ready | +sandbox +init +ready +containers",
        ),
        (
            "initializing",
            case(
                &with_init,
                vec![sandbox(true)],
                vec![container("i", 0, running())],
            ),
            "Pending | i#0 running, a#0 PodInitializing | +sandbox -init(ContainersNotInitialized) -ready(ContainersNotReady) -containers(ContainersNotReady)",
        ),
        (
            "initialized",
            case(
                &with_init,
                vec![sandbox(true)],
                vec![
                    container("i", 0, ended(0, "")),
                    container("a", 0, running()),
                ],
            ),
            "Running | i#0 Completed(0) ready, a#0 running ready | +sandbox +init +ready +containers",
        ),
        (
            "a sidecar counts for readiness",
            case(
                &with_sidecar,
                vec![sandbox(true)],
                vec![
                    container("s", 1, ended(1, "")),
                    container("a", 0, running()),
                ],
            ),
            "Running | s#1 Error(1), a#0 running ready | +sandbox +init -ready(ContainersNotReady) -containers(ContainersNotReady)",
        ),
        (
            "killed for memory",
            case(
                &two,
                vec![sandbox(true)],
                vec![
                    container("a", 0, ended(137, "OOMKilled")),
                    container("b", 0, running()),
                ],
            ),
            "Running | a#0 OOMKilled(137), b#0 running ready | +sandbox +init -ready(ContainersNotReady) -containers(ContainersNotReady)",
        ),
        (
            "running again",
            case(
                &two,
                vec![sandbox(true)],
                vec![
                    container("a", 1, running()),
                    container("a", 0, ended(2, "")),
                    container("b", 0, running()),
                ],
            ),
            "Running | a#1 running after Error(2) ready, b#0 running ready | +sandbox +init +ready +containers",
        ),
    ];
    for (name, case, expected) in cases {
        assert_eq!(show(&case.status()), expected, "case: {name}");
    }
}

#[test]
fn a_container_that_waits_shows_its_last_end() {
    let pod = pod("Always", json!([]), json!([{"name": "a"}]));
    let case = case(
        &pod,
        vec![sandbox(true)],
        vec![container("a", 1, ended(1, ""))],
    );
    let waiting = Waiting {
        reason: "CrashLoopBackOff".into(),
        message: Some("back-off 10s".into()),
    };
    let status = case.status_with(&BTreeMap::from([("a".to_owned(), waiting)]));
    assert_eq!(
        show(&status),
        "Running | a#1 CrashLoopBackOff after Error(1) | +sandbox +init -ready(ContainersNotReady) -containers(ContainersNotReady)"
    );
}

#[test]
fn final_phases_table() {
    let cases = [
        ("all succeeded", "Never", vec![0, 0], "Succeeded"),
        ("one failed", "Never", vec![0, 1], "Failed"),
        (
            "all succeeded under OnFailure",
            "OnFailure",
            vec![0, 0],
            "Succeeded",
        ),
        (
            "a deleted Pod that ended well",
            "Always",
            vec![0, 0],
            "Succeeded",
        ),
        (
            "a deleted Pod that was killed",
            "Always",
            vec![137, 0],
            "Failed",
        ),
    ];
    for (name, policy, codes, expected) in cases {
        let pod = pod(policy, json!([]), json!([{"name": "a"}, {"name": "b"}]));
        let containers = vec![
            container("a", 0, ended(codes[0], "")),
            container("b", 0, ended(codes[1], "")),
        ];
        let mut case = case(&pod, vec![sandbox(false)], containers);
        case.history.ending = Some(Ending {
            cause: EndingCause::Deleted,
            since: at(90),
            grace_secs: 30,
        });
        assert_eq!(
            case.status().phase.as_deref(),
            Some(expected),
            "case: {name}"
        );
    }
}

#[test]
fn a_final_phase_waits_for_the_last_container() {
    let pod = pod("Always", json!([]), json!([{"name": "a"}]));
    let mut case = case(
        &pod,
        vec![sandbox(true)],
        vec![container("a", 0, running())],
    );
    let cause = EndingCause::Failed {
        reason: "DeadlineExceeded".into(),
        message: "too long".into(),
        disruption: None,
    };
    case.history.ending = Some(Ending {
        cause,
        since: at(90),
        grace_secs: 30,
    });
    assert_eq!(case.status().phase.as_deref(), Some("Running"));
    case.view.containers[0].state = ended(143, "");
    let status = case.status();
    assert_eq!(
        (status.phase.as_deref(), status.reason.as_deref()),
        (Some("Failed"), Some("DeadlineExceeded"))
    );
    assert!(show(&status).contains("-ready(PodFailed)"));
}

#[test]
fn what_the_runtime_forgot_is_kept_from_the_last_status() {
    let pod = pod("Always", json!([]), json!([{"name": "a"}]));
    let mut case = case(
        &pod,
        vec![sandbox(true)],
        vec![container("a", 2, running())],
    );
    case.previous = Some(case.status());
    case.view.containers.clear();
    assert!(
        show(&case.status()).contains("a#2 ContainerCreating after ContainerStatusUnknown(137)"),
        "{}",
        show(&case.status())
    );
    case.history.ending = Some(Ending {
        cause: EndingCause::Deleted,
        since: at(90),
        grace_secs: 30,
    });
    assert!(show(&case.status()).contains("a#2 ContainerStatusUnknown(137)"));
}

#[test]
fn computing_twice_says_the_same_and_times_stay() {
    let pod = pod("Always", json!([]), json!([{"name": "a"}]));
    let mut case = case(
        &pod,
        vec![sandbox(true)],
        vec![container("a", 0, running())],
    );
    let first = case.status();
    case.previous = Some(first.clone());
    assert_eq!(case.status(), first);
    assert_eq!(first.pod_ip.as_deref(), Some("10.0.0.2"));
    assert_eq!(first.host_ip.as_deref(), Some("10.0.0.1"));
    assert_eq!(first.observed_generation, Some(3));
    assert_eq!(first.qos_class.as_deref(), Some("BestEffort"));
    assert_eq!(
        first.container_statuses.unwrap()[0].container_id.as_deref(),
        Some("cox://a0")
    );
}

#[test]
fn conditions_of_others_stay_and_readiness_gates_count() {
    let mut pod = pod("Always", json!([]), json!([{"name": "a"}]));
    pod.spec.as_mut().unwrap().readiness_gates =
        serde_json::from_value(json!([{"conditionType": "x/y"}])).unwrap();
    let gate = case(
        &pod,
        vec![sandbox(true)],
        vec![container("a", 0, running())],
    )
    .status();
    assert!(
        show(&gate).contains("-ready(ReadinessGatesNotReady) +containers"),
        "{}",
        show(&gate)
    );
    pod.status =
        serde_json::from_value(json!({"conditions": [{"type": "x/y", "status": "True"}]})).unwrap();
    let open = case(
        &pod,
        vec![sandbox(true)],
        vec![container("a", 0, running())],
    )
    .status();
    assert!(
        show(&open).ends_with("+ready +containers +x/y"),
        "{}",
        show(&open)
    );
}

#[test]
fn a_resize_lasts_until_what_has_to_start_again_for_it_has() {
    let pod = pod("Always", json!([]), json!([{"name": "a"}]));
    for (name, containers, expected) in [
        ("runs still", vec![container("a", 0, running())], true),
        ("has ended", vec![container("a", 0, ended(0, ""))], true),
        (
            "runs again",
            vec![
                container("a", 0, ended(0, "")),
                container("a", 1, running()),
            ],
            false,
        ),
    ] {
        let mut case = case(&pod, vec![sandbox(true)], containers);
        let history = case.history.containers.entry("a".to_owned()).or_default();
        history.resize_restart = Some(ContainerId("a0".to_owned()));
        let shown = show(&case.status());
        assert_eq!(
            shown.contains("+PodResizeInProgress"),
            expected,
            "{name}: {shown}"
        );
    }
}

#[test]
fn a_pod_has_what_its_containers_have_together() {
    let amounts = |cpu: &str, memory: &str| json!({"cpu": cpu, "memory": memory});
    let asks = |name: &str, limits: Value| json!({"name": name, "resources": {"requests": amounts("250m", "64Mi"), "limits": limits}});
    let limits = amounts("500m", "128Mi");
    let status = |inits: Value, mains: Value| {
        let pod = pod("Always", inits, mains);
        let status = case(&pod, vec![], vec![]).status();
        json!([status.allocated_resources, status.resources])
    };
    let both = status(
        json!([]),
        json!([asks("a", limits.clone()), asks("b", limits.clone())]),
    );
    let requests = amounts("500m", "128Mi");
    assert_eq!(
        both,
        json!([requests, {"requests": requests, "limits": amounts("1", "256Mi")}])
    );
    let one_is_free = status(
        json!([]),
        json!([asks("a", limits), asks("b", json!({"cpu": "1"}))]),
    );
    assert_eq!(
        one_is_free,
        json!([requests, {"requests": requests, "limits": {"cpu": "1500m"}}])
    );
    let other =
        json!({"name": "i", "resources": {"requests": {"cpu": "2", "example.com/oar": "1"}}});
    let start = status(json!([other]), json!([{"name": "a"}]));
    assert_eq!(
        start,
        json!([{"cpu": "2", "example.com/oar": "1"}, {"requests": {"cpu": "2"}}])
    );
    let nothing = status(json!([]), json!([{"name": "a"}]));
    assert_eq!(nothing, json!([null, null]));
}
