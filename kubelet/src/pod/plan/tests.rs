//! Plan tables. A Pod is `POLICY | init sidecar* | main main!` (one with `!` has a rule: all start again when it ends with 42); the runtime is words like `s0` (ready sandbox), `s0!` (not ready),
//! `a#1+` (attempt 1 of a runs), `a#0=1` (ended with 1, ten seconds ago), `a#0=1@40` (ended at 40), `a#0.` (made, not started).
//! It is second 100. Volumes are mounted and all images are Wasm unless the history says otherwise.
#![allow(
    clippy::too_many_lines,
    reason = "a table of cases is as long as it has cases"
)]

use super::*;
use crate::dice::Dice;
use crate::pod::containers::all;
use crate::pod::history::{
    ContainerHistory, Ending, ImageKind, ImageState, PostStart, ResizeRefused, ResolvedImage,
    Retry, StartFailure,
};
use crate::pod::probe::ProbeState;
use crate::pod::status::{NodeFacts, plan_status};
use crate::pod::view::{ContainerPhase, Exit, SandboxView};
use k8s_openapi::api::core::v1::{Container, ResourceRequirements};
use serde_json::{Value, json};

const NOW: i64 = 100;

fn at(secs: i64) -> Timestamp {
    Timestamp::from_second(secs).unwrap()
}

fn pod(text: &str) -> Pod {
    let parts: Vec<&str> = text.split('|').map(str::trim).collect();
    let container = |word: &str| {
        let name = word.trim_end_matches(['*', '!']);
        let mut container = json!({"name": name, "image": format!("img-{name}")});
        if word.contains('*') {
            container["restartPolicy"] = json!("Always");
        }
        if word.contains('!') {
            container["restartPolicyRules"] = json!([{"action": "RestartAllContainers",
                "exitCodes": {"operator": "In", "values": [42]}}]);
        }
        container
    };
    let list = |text: &str| -> Vec<Value> { text.split_whitespace().map(container).collect() };
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 1},
        "spec": {"restartPolicy": parts[0], "initContainers": list(parts[1]), "containers": list(parts[2]),
            "terminationGracePeriodSeconds": 30}}))
    .unwrap()
}

fn state(text: &str) -> ContainerPhase {
    match text.as_bytes().first() {
        Some(b'+') => ContainerPhase::Running { started_at: at(50) },
        Some(b'=') => {
            let (code, end) = text[1..].split_once('@').unwrap_or((&text[1..], "90"));
            ContainerPhase::Exited(Exit {
                code: code.parse().unwrap(),
                reason: String::new(),
                message: String::new(),
                started_at: None,
                finished_at: at(end.parse().unwrap()),
            })
        }
        _ => ContainerPhase::Created,
    }
}

fn view(text: &str) -> PodView {
    let mut view = PodView::default();
    let mut sandbox = SandboxId::default();
    for word in text.split_whitespace() {
        if let Some(attempt) = word
            .strip_prefix('s')
            .filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        {
            let ready = !attempt.ends_with('!');
            let is_virtual = attempt.ends_with('v');
            let attempt: u32 = attempt.trim_end_matches(['!', 'v']).parse().unwrap();
            sandbox = SandboxId(format!("s{attempt}"));
            let id = sandbox.clone();
            view.merge_sandbox(SandboxView {
                id,
                attempt,
                ready,
                created_at: at(0),
                ips: vec!["10.0.0.2".into()],
                is_virtual,
            });
            continue;
        }
        let (name, rest) = word.split_once('#').unwrap();
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap();
        let attempt: u32 = rest[..end].parse().unwrap();
        view.merge_container(ContainerView {
            id: ContainerId(format!("{name}#{attempt}")),
            sandbox: sandbox.clone(),
            name: name.to_owned(),
            attempt,
            state: state(&rest[end..]),
            created_at: at(i64::from(attempt)),
            image: format!("img-{name}"),
            image_ref: "r".into(),
            image_id: "r".into(),
            spec_hash: String::new(),
            user: None,
        });
    }
    view
}

fn wasm() -> ImageState {
    ImageState::Resolved(ResolvedImage {
        image_ref: "r".into(),
        image_id: "r".into(),
        kind: ImageKind::Wasm,
        user: Default::default(),
    })
}

fn history(pod: &Pod) -> History {
    let entry = |container: &Container| {
        (
            container.name.clone(),
            ContainerHistory {
                image: wasm(),
                ..ContainerHistory::default()
            },
        )
    };
    History {
        containers: all(pod).map(entry).collect(),
        volumes: Volumes::Mounted,
        ..History::default()
    }
}

fn show(plan: &Plan) -> String {
    let step = |step: &Step| match step {
        Step::MountVolumes => "volumes".to_owned(),
        Step::UnmountVolumes => "unmount".to_owned(),
        Step::ResolveImage { container } => format!("image {container}"),
        Step::CreateSandbox { attempt, network } => format!("sandbox {attempt} {network:?}"),
        Step::StartContainer { container, attempt } => format!("start {container}#{attempt}"),
        Step::Resize { id, .. } => format!("resize {id}"),
        Step::ResizePod => "resize".to_owned(),
        Step::PostStart { id, .. } => format!("hook {id}"),
        Step::Probe { id, kind, .. } => format!("{kind:?} {id}"),
        Step::StopContainer { id, grace_secs, .. } => format!("stop {id} {grace_secs}"),
        Step::StopSandbox { id } => format!("stop {id}"),
        Step::RemoveContainer { id } => format!("remove {id}"),
        Step::RemoveSandbox { id } => format!("remove {id}"),
    };
    let mut words: Vec<String> = plan.steps.iter().map(step).collect();
    words.extend(
        plan.waiting
            .iter()
            .map(|(name, waiting)| format!("{name}: {}", waiting.reason)),
    );
    words.extend(plan.wake_at.map(|at| format!("wake {}", at.as_second())));
    words.extend(plan.end.as_ref().map(|cause| match cause {
        EndingCause::Failed { reason, .. } => format!("end {reason}"),
        cause => format!("end {cause:?}"),
    }));
    if plan.gone {
        words.push("gone".to_owned());
    }
    words.join(", ")
}

#[test]
fn all_containers_start_again_after_one_that_ended_as_its_rule_says() {
    let pod = pod("Never | i s* | a! b");
    let history = history(&pod);
    let mut previous = None;
    let mut turn = |runtime: &str| {
        let view = view(runtime);
        let input = PlanInput {
            pod: &pod,
            view: &view,
            history: &history,
            previous: previous.as_ref(),
            now: at(NOW),
        };
        let plan = plan_pod(input);
        let status = plan_status(input, &plan, &NodeFacts::default());
        let conditions = status.conditions.iter().flatten();
        let restarting = conditions
            .filter(|condition| condition.type_ == reset::CONDITION)
            .map(|condition| condition.status.as_str())
            .collect::<String>();
        let all = [&status.init_container_statuses, &status.container_statuses];
        let counts: Vec<_> = all
            .into_iter()
            .flatten()
            .flatten()
            .map(|one| one.restart_count)
            .collect();
        let phase = status.phase.clone().unwrap();
        let shown = format!("{} / {phase} {restarting} {counts:?}", show(&plan));
        previous = Some(status);
        shown
    };
    let cases = [
        ("s0 i#0=0 s#0+ a#0+ b#0+", " / Running  [0, 0, 0, 0]"),
        (
            "s0 i#0=0 s#0+ a#0=42 b#0+",
            "stop b#0 0, stop s#0 0 / Running True [0, 0, 0, 0]",
        ),
        (
            "s0 i#0=0 s#0=137 a#0=42 b#0=137",
            "remove b#0, remove s#0, remove i#0 / Running True [0, 0, 0, 0]",
        ),
        ("s0 a#0=42", "remove a#0 / Running True [0, 0, 0, 0]"),
        // The kubelet may die here: the status alone knows what goes on.
        ("s0", "start i#1 / Running True [0, 0, 0, 0]"),
        ("s0 i#1=0", "start s#1 / Running True [1, 0, 0, 0]"),
        ("s0 i#1=0 s#1+", "start a#1 / Running True [1, 1, 0, 0]"),
        (
            "s0 i#1=0 s#1+ a#1+",
            "start b#1 / Running True [1, 1, 1, 0]",
        ),
        ("s0 i#1=0 s#1+ a#1+ b#1+", " / Running False [1, 1, 1, 1]"),
        // Once more, with another code: the Pod's own policy says that it is over.
        (
            "s0 i#1=0 s#1+ a#1=1 b#1=0",
            "end Finished / Running False [1, 1, 1, 1]",
        ),
    ];
    for (runtime, expected) in cases {
        assert_eq!(turn(runtime), expected, "runtime: {runtime}");
    }
}

#[test]
fn a_container_that_ended_is_not_removed_before_the_status_says_why() {
    check("nobody has heard of it", "Never || a! b", "s0 a#0=42", "");
    check(
        "one that ended otherwise",
        "Never || a! b",
        "s0 a#0=1 b#0+",
        "",
    );
    check(
        "an init container that says so",
        "Never | s* i! | a",
        "s0 s#0+ i#0=42",
        "stop s#0 0",
    );
    check(
        "with the sandbox gone there is nothing to clear but the sandbox",
        "Never || a! b",
        "s0! a#0=42 b#0=137",
        "remove s0",
    );
}

#[test]
fn a_pod_as_a_whole_is_resized_once_it_runs() {
    let resources = |cpu: &str| -> ResourceRequirements {
        serde_json::from_value(json!({"requests": {"cpu": cpu}, "limits": {"cpu": cpu}})).unwrap()
    };
    let asks = |pod: &mut Pod| pod.spec.as_mut().unwrap().resources = Some(resources("2"));
    let spec = "Always || a b";
    check_with(
        "it has what it asks for",
        spec,
        "s0 a#0+ b#0+",
        "",
        |pod, history| {
            asks(pod);
            history.resources = Some(Some(resources("2000m")));
        },
    );
    check_with(
        "it has less",
        spec,
        "s0 a#0+ b#0+",
        "resize",
        |pod, history| {
            asks(pod);
            history.resources = Some(Some(resources("1")));
        },
    );
    check_with(
        "it has nothing",
        spec,
        "s0 a#0+ b#0+",
        "resize",
        |pod, history| {
            asks(pod);
            history.resources = Some(None);
        },
    );
    check_with(
        "the node does not give it",
        spec,
        "s0 a#0+ b#0+",
        "",
        |pod, history| {
            asks(pod);
            history.resources = Some(Some(resources("1")));
            history.resize_refused = Some(ResizeRefused {
                generation: Some(1),
                is_deferred: false,
                why: String::new(),
            });
        },
    );
}

#[track_caller]
fn check_with(
    name: &str,
    spec: &str,
    runtime: &str,
    expected: &str,
    change: impl FnOnce(&mut Pod, &mut History),
) {
    let mut pod = pod(spec);
    let mut history = history(&pod);
    change(&mut pod, &mut history);
    let view = view(runtime);
    let plan = plan_pod(PlanInput {
        pod: &pod,
        view: &view,
        history: &history,
        previous: None,
        now: at(NOW),
    });
    assert_eq!(show(&plan), expected, "case: {name}");
}

#[track_caller]
fn check(name: &str, spec: &str, runtime: &str, expected: &str) {
    check_with(name, spec, runtime, expected, |_, _| {});
}

#[test]
fn from_nothing_to_running() {
    check_with(
        "everything is missing",
        "Always || a b",
        "",
        "volumes, image a, image b",
        |_, history| {
            *history = History::default();
        },
    );
    check_with(
        "no sandbox before the volumes stand",
        "Always || a",
        "",
        "volumes",
        |_, history| {
            history.volumes = Volumes::Absent;
        },
    );
    check(
        "a sandbox for Wasm alone is virtual",
        "Always || a",
        "",
        "sandbox 0 Virtual",
    );
    check(
        "the first main container",
        "Always || a b",
        "s0",
        "start a#0",
    );
    check(
        "one after the other",
        "Always || a b",
        "s0 a#0+",
        "start b#0",
    );
    check("settled", "Always || a b", "s0 a#0+ b#0+", "");
}

#[test]
fn the_network_follows_the_images() {
    let oci = || {
        ImageState::Resolved(ResolvedImage {
            image_ref: "r".into(),
            image_id: "r".into(),
            kind: ImageKind::Oci,
            user: Default::default(),
        })
    };
    let failed = |not_before| ImageState::Failed {
        reason: "ErrImagePull".into(),
        retry: Retry {
            message: "no".into(),
            failures: 1,
            not_before: at(not_before),
        },
        failed_at: at(99),
    };
    check_with(
        "one OCI container needs a namespace",
        "Always || a b",
        "",
        "sandbox 0 Namespace",
        |_, history| {
            history.containers.get_mut("b").unwrap().image = oci();
        },
    );
    check_with(
        "an image that came late and is no Wasm: what runs in the virtual sandbox ends",
        "Always || a b",
        "s0v a#0+",
        "stop a#0 30",
        |_, history| {
            history.containers.get_mut("b").unwrap().image = oci();
        },
    );
    check_with(
        "then the sandbox goes",
        "Always || a b",
        "s0v a#0.0",
        "remove s0",
        |_, history| {
            history.containers.get_mut("b").unwrap().image = oci();
        },
    );
    check_with(
        "a Pod that never restarts keeps its sandbox",
        "Never || a b",
        "s0v a#0+",
        "start b#0",
        |_, history| {
            history.containers.get_mut("b").unwrap().image = oci();
        },
    );
    check_with(
        "the user may ask for a namespace",
        "Always || a",
        "",
        "sandbox 0 Namespace",
        |pod, _| {
            pod.metadata.annotations = Some(BTreeMap::from([(
                NETWORK_ANNOTATION.to_owned(),
                "netns".to_owned(),
            )]));
        },
    );
    check_with(
        "the host's network is not virtual",
        "Always || a",
        "",
        "sandbox 0 Namespace",
        |pod, _| {
            pod.spec.as_mut().unwrap().host_network = Some(true);
        },
    );
    check_with(
        "no sandbox before every image was looked at",
        "Always || a b",
        "",
        "image b",
        |_, history| {
            history.containers.get_mut("b").unwrap().image = ImageState::Unknown;
        },
    );
    let shown = "sandbox 0 Virtual, b: ErrImagePull, wake 101";
    check_with(
        "a bad image does not keep the others",
        "Always || a b",
        "",
        shown,
        |_, history| {
            history.containers.get_mut("b").unwrap().image = failed(110);
        },
    );
    let shown = "a: ErrImagePull, wake 101";
    check_with(
        "nothing but a bad image: no sandbox",
        "Always || a",
        "",
        shown,
        |_, history| {
            history.containers.get_mut("a").unwrap().image = failed(110);
        },
    );
    let shown = "image a, a: ImagePullBackOff";
    check_with(
        "a bad image is tried again when due",
        "Always || a",
        "s0",
        shown,
        |_, history| {
            let retry = Retry {
                message: "no".into(),
                failures: 1,
                not_before: at(100),
            };
            history.containers.get_mut("a").unwrap().image = ImageState::Failed {
                reason: "ErrImagePull".into(),
                retry,
                failed_at: at(90),
            };
        },
    );
}

#[test]
fn init_containers_run_in_order() {
    check("the first one", "Always | i j | a", "s0", "start i#0");
    check("it runs: wait", "Always | i j | a", "s0 i#0+", "");
    check("the next one", "Always | i j | a", "s0 i#0=0", "start j#0");
    check(
        "then the main container",
        "Always | i j | a",
        "s0 i#0=0 j#0=0",
        "start a#0",
    );
    check(
        "a failed one starts again",
        "Always | i | a",
        "s0 i#0=1",
        "start i#1",
    );
    check(
        "or ends the Pod",
        "Never | i | a",
        "s0 i#0=1",
        "end Finished",
    );
    check(
        "they do not run again beside main containers",
        "Always | i | a",
        "s0 a#0+",
        "",
    );
    check(
        "a new sandbox runs them again",
        "Always | i | a",
        "s1",
        "start i#0",
    );
}

#[test]
fn sidecars_start_before_what_follows_and_stay() {
    check("the sidecar first", "Always | s* i | a", "s0", "start s#0");
    check(
        "then the next init container",
        "Always | s* i | a",
        "s0 s#0+",
        "start i#0",
    );
    check(
        "a sidecar that ended does not hold up what began",
        "Always | s* i | a",
        "s0 s#0=0 i#0+",
        "start s#1",
    );
    check(
        "it restarts beside main containers",
        "Never | s* | a",
        "s0 s#0=1 a#0+",
        "start s#1",
    );
    check(
        "it does not keep a finished Pod",
        "Never | s* | a",
        "s0 s#0+ a#0=0",
        "end Finished",
    );
}

#[test]
fn restarts_follow_policy_and_back_off() {
    check(
        "Always, the first time at once",
        "Always || a",
        "s0 a#0=0",
        "start a#1",
    );
    check(
        "OnFailure after a failure",
        "OnFailure || a",
        "s0 a#0=1",
        "start a#1",
    );
    check(
        "OnFailure after a success",
        "OnFailure || a",
        "s0 a#0=0",
        "end Finished",
    );
    check("Never", "Never || a", "s0 a#0=1", "end Finished");
    check("one of two goes on", "Never || a b", "s0 a#0=1 b#0+", "");
    let shown = "a: CrashLoopBackOff, wake 105";
    check_with(
        "the second time after ten seconds",
        "Always || a",
        "s0 a#1=1@95",
        shown,
        |_, history| {
            history
                .containers
                .get_mut("a")
                .unwrap()
                .restarts
                .advance(at(80), at(80));
        },
    );
    check_with(
        "and then it starts",
        "Always || a",
        "s0 a#1=1@90",
        "start a#2",
        |_, history| {
            history
                .containers
                .get_mut("a")
                .unwrap()
                .restarts
                .advance(at(80), at(80));
        },
    );
    check_with(
        "others are not held up",
        "Always || a b",
        "s0 a#1=1@95",
        "start b#0, a: CrashLoopBackOff, wake 105",
        |_, history| {
            history
                .containers
                .get_mut("a")
                .unwrap()
                .restarts
                .advance(at(80), at(80));
        },
    );
    check(
        "one that was made and never started is made anew",
        "Always || a",
        "s0 a#0.",
        "start a#1",
    );
    let shown = "a: CreateContainerConfigError, wake 110";
    check_with(
        "a start that failed waits",
        "Always || a",
        "s0",
        shown,
        |_, history| {
            let retry = Retry {
                message: "configmap \"m\" not found".into(),
                failures: 1,
                not_before: at(110),
            };
            history.containers.get_mut("a").unwrap().start_failure = Some(StartFailure {
                reason: "CreateContainerConfigError".into(),
                retry,
            });
        },
    );
}

#[test]
fn dead_containers_are_cleared_away_but_the_last_one() {
    check("two stay", "Always || a", "s0 a#0=1 a#1+", "");
    check(
        "the third goes",
        "Always || a",
        "s0 a#0=1 a#1=1 a#2+",
        "remove a#0",
    );
}

#[test]
fn a_lost_sandbox_is_replaced() {
    check(
        "what still runs in it is stopped first",
        "Always || a",
        "s0! a#0+",
        "stop a#0 30",
    );
    check("then it goes", "Always || a", "s0! a#0=137", "remove s0");
    check_with(
        "then the next one comes",
        "Always || a",
        "",
        "sandbox 1 Virtual",
        |_, history| history.sandboxes_made = 1,
    );
    check(
        "a Pod that never restarts is over",
        "Never || a b",
        "s0! a#0=137",
        "end Finished",
    );
    check(
        "one that had done its work is over",
        "OnFailure || a",
        "s0! a#0=0",
        "end Finished",
    );
    check(
        "an old one beside the new is removed",
        "Always || a",
        "s0! s1 a#0+",
        "remove s0",
    );
}

#[test]
fn the_published_status_remembers_what_the_runtime_forgot() {
    let status = |state: Value| -> PodStatus {
        serde_json::from_value(json!({"phase": "Running", "containerStatuses": [
            {"name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 2, "state": state}]}))
        .unwrap()
    };
    let cases = [
        (
            "a lost container counts as failed",
            "Always",
            json!({"running": {}}),
            "s0",
            "start a#3",
        ),
        (
            "a Pod that never restarts is over",
            "Never",
            json!({"running": {}}),
            "",
            "end Finished",
        ),
        (
            "work that was done is not done again",
            "OnFailure",
            json!({"terminated": {"exitCode": 0}}),
            "",
            "end Finished",
        ),
        (
            "one that never ran starts as it would have",
            "Never",
            json!({"waiting": {}}),
            "s0",
            "start a#2",
        ),
    ];
    for (name, policy, state, runtime, expected) in cases {
        let pod = pod(&format!("{policy} || a"));
        let previous = status(state);
        let (history, view) = (history(&pod), view(runtime));
        let input = PlanInput {
            pod: &pod,
            view: &view,
            history: &history,
            previous: Some(&previous),
            now: at(NOW),
        };
        assert_eq!(show(&plan_pod(input)), expected, "case: {name}");
    }
}

#[test]
fn a_deadline_ends_the_pod() {
    for (secs, expected) in [(60, "wake 110"), (50, "end DeadlineExceeded")] {
        let mut pod = pod("Always || a");
        pod.spec.as_mut().unwrap().active_deadline_seconds = Some(secs);
        let previous: PodStatus =
            serde_json::from_value(json!({"startTime": "1970-01-01T00:00:50Z"})).unwrap();
        let (history, view) = (history(&pod), view("s0 a#0+"));
        let input = PlanInput {
            pod: &pod,
            view: &view,
            history: &history,
            previous: Some(&previous),
            now: at(NOW),
        };
        assert_eq!(show(&plan_pod(input)), expected, "deadline {secs}");
    }
}

#[track_caller]
fn check_ending(name: &str, spec: &str, runtime: &str, cause: EndingCause, expected: &str) {
    check_with(name, spec, runtime, expected, |_, history| {
        history.ending = Some(Ending {
            cause,
            since: at(90),
            grace_secs: 30,
        });
    });
}

#[test]
fn ending_takes_everything_down_in_order() {
    use EndingCause::{Deleted, Finished, NodeStops};
    let spec = "Always | s* t* | a b";
    check_ending(
        "main containers together, with the grace that is left",
        spec,
        "s0 s#0+ t#0+ a#0+ b#0+",
        Deleted,
        "stop a#0 20, stop b#0 20",
    );
    check_ending(
        "then the last sidecar",
        spec,
        "s0 s#0+ t#0+ a#0=0 b#0=0",
        Deleted,
        "stop t#0 20",
    );
    check_ending(
        "then the first",
        spec,
        "s0 s#0+ t#0=0 a#0=0",
        Deleted,
        "stop s#0 20",
    );
    check_ending(
        "then the sandbox",
        spec,
        "s0 s#0=0 a#0=0",
        Deleted,
        "stop s0",
    );
    check_ending(
        "then all is removed",
        spec,
        "s0! a#0=0",
        Deleted,
        "remove s0, unmount",
    );
    check_ending(
        "a finished Pod keeps its containers for their logs",
        spec,
        "s0! a#0=0",
        Finished,
        "unmount",
    );
    check_ending(
        "a node that stops keeps the volumes",
        spec,
        "s0! a#0=0",
        NodeStops,
        "remove s0",
    );
    check_ending(
        "a Pod that never began",
        "Always || a",
        "",
        Deleted,
        "unmount",
    );
    check_with(
        "and then it is gone",
        "Always || a",
        "",
        "gone",
        |_, history| {
            history.ending = Some(Ending {
                cause: Deleted,
                since: at(90),
                grace_secs: 30,
            });
            history.volumes = Volumes::Removed;
        },
    );
    check_with(
        "no time left: two seconds all the same",
        "Always || a",
        "s0 a#0+",
        "stop a#0 2",
        |_, history| {
            history.ending = Some(Ending {
                cause: Deleted,
                since: at(10),
                grace_secs: 30,
            });
        },
    );
    check_with(
        "unless the deletion says zero",
        "Always || a",
        "s0 a#0+",
        "stop a#0 0",
        |pod, history| {
            pod.metadata.deletion_grace_period_seconds = Some(0);
            history.ending = Some(Ending {
                cause: Deleted,
                since: at(90),
                grace_secs: 0,
            });
        },
    );
}

#[test]
fn a_changed_definition_stops_the_container() {
    let pod = pod("Always || a");
    let mut view = view("s0 a#0+");
    view.containers[0].spec_hash = "another".into();
    let history = history(&pod);
    let plan = plan_pod(PlanInput {
        pod: &pod,
        view: &view,
        history: &history,
        previous: None,
        now: at(NOW),
    });
    assert_eq!(show(&plan), "stop a#0 30");
}

#[test]
fn sick_containers_are_stopped_and_what_waits_for_them_waits() {
    let verdicts = |verdict: bool, kind: ProbeKind| {
        move |pod: &mut Pod, history: &mut History| {
            probe_all(pod);
            for name in ["a", "s"] {
                let mut probed = ProbeState::new(ContainerId(format!("{name}#0")), at(NOW));
                probed.verdict = Some(verdict);
                history.probes.insert((name.to_owned(), kind), probed);
            }
        }
    };
    check_with(
        "a container that just started is probed for its start alone",
        "Always || a",
        "s0 a#0+",
        "Startup a#0",
        |pod, _| probe_all(pod),
    );
    check_with(
        "one that has started is probed for the rest",
        "Always || a",
        "s0 a#0+",
        "Liveness a#0, Readiness a#0",
        verdicts(true, ProbeKind::Startup),
    );
    check_with(
        "one that does not start is stopped",
        "Always || a",
        "s0 a#0+",
        "stop a#0 30",
        verdicts(false, ProbeKind::Startup),
    );
    check_with(
        "main containers wait for the start of a sidecar",
        "Always | s* | a",
        "s0 s#0+",
        "Startup s#0",
        |pod, _| probe_all(pod),
    );
    check_with(
        "a postStart hook runs before anything else starts",
        "Always || a b",
        "s0 a#0+",
        "hook a#0",
        |_, history| {
            let history = history.containers.get_mut("a").unwrap();
            history.post_start = PostStart::Due("a#0".into());
        },
    );
    check_with(
        "a failed one stops its container",
        "Always || a",
        "s0 a#0+",
        "stop a#0 30",
        |_, history| {
            let history = history.containers.get_mut("a").unwrap();
            history.post_start = PostStart::Failed("a#0".into());
        },
    );
    check_with(
        "what was stopped to be replaced runs again whatever its policy says",
        "OnFailure || a",
        "s0 a#0=0",
        "start a#1",
        |_, history| {
            let history = history.containers.get_mut("a").unwrap();
            history.replaced = Some("a#0".into());
        },
    );
}

/// Carries a plan out in memory, the way a perfect runtime would.
fn apply(step: &Step, view: &mut PodView, history: &mut History, code: i32) {
    match step {
        Step::MountVolumes => history.volumes = Volumes::Mounted,
        Step::UnmountVolumes => history.volumes = Volumes::Removed,
        Step::ResolveImage { container } => {
            history
                .containers
                .entry(container.clone())
                .or_default()
                .image = wasm()
        }
        Step::CreateSandbox { attempt, .. } => {
            history.sandboxes_made = attempt + 1;
            let id = SandboxId(format!("s{attempt}"));
            view.merge_sandbox(SandboxView {
                id,
                attempt: *attempt,
                ready: true,
                created_at: at(NOW),
                ips: vec![],
                is_virtual: false,
            });
        }
        Step::StartContainer { container, attempt } => {
            let sandbox = view.ready_sandbox().unwrap().id.clone();
            let init = container.starts_with('i');
            let state = if init {
                state("=0")
            } else {
                ContainerPhase::Running {
                    started_at: at(NOW),
                }
            };
            view.merge_container(ContainerView {
                id: ContainerId(format!("{container}#{attempt}")),
                sandbox,
                name: container.clone(),
                attempt: *attempt,
                state,
                created_at: at(NOW),
                image: String::new(),
                image_ref: String::new(),
                image_id: String::new(),
                spec_hash: String::new(),
                user: None,
            });
        }
        Step::PostStart { container, .. } => {
            history
                .containers
                .entry(container.clone())
                .or_default()
                .post_start = PostStart::Over;
        }
        // Nothing here has resources to change.
        Step::Resize { .. } | Step::ResizePod => {}
        Step::Probe {
            id,
            container,
            kind,
        } => {
            let mut probed = ProbeState::new(id.clone(), at(NOW));
            probed.verdict = Some(true);
            history.probes.insert((container.clone(), *kind), probed);
        }
        Step::StopContainer {
            id,
            container,
            replace,
            ..
        } => {
            if *replace {
                history
                    .containers
                    .entry(container.clone())
                    .or_default()
                    .replaced = Some(id.clone());
            }
            for container in view
                .containers
                .iter_mut()
                .filter(|container| &container.id == id)
            {
                container.state = state(&format!("={code}"));
            }
        }
        Step::StopSandbox { id } => {
            for sandbox in view
                .sandboxes
                .iter_mut()
                .filter(|sandbox| &sandbox.id == id)
            {
                sandbox.ready = false;
            }
        }
        Step::RemoveContainer { id } => view.forget_container(id),
        Step::RemoveSandbox { id } => view.forget_sandbox(id),
    }
}

#[test]
fn carrying_out_the_plan_ends_in_silence_from_any_beginning() {
    let specs = [
        "Always | i s* | a b",
        "OnFailure | s* i | a",
        "Never | i | a b",
    ];
    let beginnings = [
        "",
        "s0",
        "s0!",
        "s0! a#0+",
        "s0 a#0+",
        "s0 i#0=0 a#0=1",
        "s0 a#0=1 a#1=1 a#2=0",
        "s0! s1 s#0+ a#3.",
    ];
    for spec in specs {
        for beginning in beginnings {
            for deleted in [false, true] {
                let pod = pod(spec);
                let (mut view, mut history) = (view(beginning), History::default());
                if deleted {
                    history.ending = Some(Ending {
                        cause: EndingCause::Deleted,
                        since: at(NOW),
                        grace_secs: 30,
                    });
                }
                let mut rounds = 0;
                loop {
                    let plan = plan_pod(PlanInput {
                        pod: &pod,
                        view: &view,
                        history: &history,
                        previous: None,
                        now: at(NOW),
                    });
                    if let Some(cause) = plan.end {
                        history.ending = Some(Ending {
                            cause,
                            since: at(NOW),
                            grace_secs: 30,
                        });
                    } else if plan.steps.is_empty() {
                        assert_eq!(plan.gone, deleted, "{spec} from {beginning}: {view:?}");
                        break;
                    }
                    for step in &plan.steps {
                        apply(step, &mut view, &mut history, 0);
                    }
                    rounds += 1;
                    assert!(
                        rounds < 50,
                        "{spec} from {beginning} does not settle: {}",
                        show(&plan_pod(PlanInput {
                            pod: &pod,
                            view: &view,
                            history: &history,
                            previous: None,
                            now: at(NOW)
                        }))
                    );
                }
            }
        }
    }
}

/// Something that happens to a Pod without being asked for.
fn misfortune(dice: &mut Dice, view: &mut PodView, history: &mut History, now: Timestamp) {
    match dice.roll(7) {
        6 => {
            for container in view.containers.iter().filter(|one| one.is_running()) {
                let mut probed = ProbeState::new(container.id.clone(), now);
                probed.verdict = Some(false);
                let key = (container.name.clone(), ProbeKind::Liveness);
                history.probes.insert(key, probed);
            }
        }
        0 | 1 => {
            let code = i32::try_from(dice.roll(3)).unwrap();
            if let Some(container) = view
                .containers
                .iter_mut()
                .find(|container| container.is_running())
            {
                let exit = Exit {
                    code,
                    reason: String::new(),
                    message: String::new(),
                    started_at: None,
                    finished_at: now,
                };
                container.state = ContainerPhase::Exited(exit);
            }
        }
        2 => view
            .sandboxes
            .iter_mut()
            .for_each(|sandbox| sandbox.ready = false),
        3 => *view = PodView::default(),
        4 => {
            for history in history.containers.values_mut() {
                let retry = Retry::after(None, "no".into(), now);
                history.image = ImageState::Failed {
                    reason: "ErrImagePull".into(),
                    retry,
                    failed_at: now,
                };
            }
        }
        _ => {
            history.sandbox_failure = Some(Retry::after(
                history.sandbox_failure.as_ref(),
                "no".into(),
                now,
            ))
        }
    }
}

/// Gives probes of all kinds to each container that stays.
fn probe_all(pod: &mut Pod) {
    let probe: k8s_openapi::api::core::v1::Probe =
        serde_json::from_value(json!({"tcpSocket": {"port": 1}, "periodSeconds": 1})).unwrap();
    let spec = pod.spec.as_mut().unwrap();
    let sidecars = spec.init_containers.iter_mut().flatten();
    let sidecars = sidecars.filter(|init| init.restart_policy.is_some());
    for container in spec.containers.iter_mut().chain(sidecars) {
        container.startup_probe = Some(probe.clone());
        container.liveness_probe = Some(probe.clone());
        container.readiness_probe = Some(probe.clone());
    }
}

/// One life: misfortunes for a while, then peace. Steps get lost now and then, as after a crash.
fn live(seed: u64) {
    let mut dice = Dice(seed);
    let specs = [
        "Always | i s* | a b",
        "OnFailure | s* i | a",
        "Never | i | a b",
        "Always || a",
        "Never | s* | a",
    ];
    let mut pod = pod(specs[usize::try_from(dice.roll(specs.len() as u64)).unwrap()]);
    let is_probed = dice.roll(2) == 0;
    if is_probed {
        probe_all(&mut pod);
    }
    let mut calm = 0;
    let (mut view, mut history) = (PodView::default(), History::default());
    let mut now = at(NOW);
    let mut previous: Option<PodStatus> = None;
    let node = NodeFacts {
        host_ip: "10.0.0.1".into(),
        runtime_name: "cox".into(),
        read_only_below: false,
        ..NodeFacts::default()
    };
    let deleted_in_round = dice.roll(80);
    for round in 0..600_u64 {
        if round < 40 && dice.roll(4) == 0 {
            misfortune(&mut dice, &mut view, &mut history, now);
        }
        if round == deleted_in_round && dice.roll(2) == 0 {
            history.ending = Some(Ending {
                cause: EndingCause::Deleted,
                since: now,
                grace_secs: 30,
            });
        }
        let input = PlanInput {
            pod: &pod,
            view: &view,
            history: &history,
            previous: previous.as_ref(),
            now,
        };
        let plan = plan_pod(input);
        previous = Some(crate::pod::status::plan_status(input, &plan, &node));
        if let Some(cause) = plan.end.clone() {
            history.ending = Some(Ending {
                cause,
                since: now,
                grace_secs: 30,
            });
            continue;
        }
        let is_calm = plan
            .steps
            .iter()
            .all(|step| matches!(step, Step::Probe { .. }));
        calm = if is_calm { calm + 1 } else { 0 };
        // Probes go on for ever; nothing else does.
        let is_over = plan.wake_at.is_none() && plan.steps.is_empty() || is_probed && calm > 30;
        let is_quiet = round > 80 && is_calm && is_over;
        if is_quiet {
            let again = PlanInput {
                pod: &pod,
                view: &view,
                history: &history,
                previous: previous.as_ref(),
                now,
            };
            let plan = plan_pod(again);
            assert!(
                plan.steps
                    .iter()
                    .all(|step| matches!(step, Step::Probe { .. })),
                "seed {seed}: not silent: {}",
                show(&plan)
            );
            let status = crate::pod::status::plan_status(again, &plan, &node);
            assert_eq!(
                Some(status),
                previous,
                "seed {seed}: the status does not settle"
            );
            return;
        }
        for step in &plan.steps {
            let is_lost = round < 40 && dice.roll(5) == 0;
            // Two starts at the same time, or one without a sandbox, would be a mistake of the plan.
            if !is_lost {
                if let Step::StartContainer { container, .. } = step {
                    let previous_end = view
                        .latest(container)
                        .and_then(|view| view.exit())
                        .map(|exit| exit.finished_at);
                    let history = history.containers.entry(container.clone()).or_default();
                    if let Some(finished_at) = previous_end {
                        history.restarts.advance(finished_at, now);
                    }
                }
                apply(step, &mut view, &mut history, 143);
            }
        }
        now = match plan.wake_at {
            Some(at) if plan.steps.is_empty() => at.max(now),
            _ => now.saturating_add(SignedDuration::from_secs(1)).unwrap(),
        };
    }
    panic!("seed {seed} never becomes quiet");
}

#[test]
fn after_any_misfortune_the_plan_becomes_silent() {
    let seeds = std::env::var("COX_SIM_SEEDS").ok();
    let seeds = seeds.map_or(2000, |seeds| {
        seeds.parse().expect("COX_SIM_SEEDS is a number")
    });
    for seed in 0..seeds {
        live(seed);
    }
}
