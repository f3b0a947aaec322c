//! Lives of random Pods by the hundred: what the runtime truly holds and what the kubelet believes are two things here. Containers
//! end and sandboxes die unasked, calls fail, events are lost or come again late, the kubelet dies after any step, the spec changes.
//! Then there is peace, and the Pod has to come to rest: no more steps but probes, and a status that stays.
//!
//! `COX_SIM_SEEDS=10000` runs that many seeds, `COX_SIM_FIRST=7` begins with another one than the first.

use super::*;
use crate::dice::Dice;
use crate::pod::containers::{inits, is_sidecar, named, spec, spec_hash};
use crate::pod::history::{
    Ending, ImageKind, ImageState, PostStart, ResolvedImage, Retry, StartFailure,
};
use crate::pod::probe::ProbeState;
use crate::pod::status::{NodeFacts, plan_status};
use crate::pod::view::{ContainerPhase, Exit, SandboxView};
use serde_json::{Value, json};

/// Rounds of misfortune, then rounds until it must have come to rest, then rounds that it has to stay at rest.
const BAD: u64 = 60;
const PATIENCE: u64 = 2000;
const REST: u64 = 30;
/// How old an event that comes again may be, in rounds.
const PAST: usize = 8;

#[derive(Clone, Copy, PartialEq)]
enum Role {
    Init,
    Sidecar,
    Main,
}

fn random_container(dice: &mut Dice, name: &str, role: Role) -> Value {
    let mut one = json!({"name": name, "image": "one"});
    match role {
        Role::Init => return one,
        Role::Sidecar => one["restartPolicy"] = json!("Always"),
        Role::Main => {}
    }
    if dice.one_in(4) {
        if role == Role::Main {
            one["restartPolicy"] = json!(dice.pick(&["Always", "OnFailure", "Never"]));
        }
        one["restartPolicyRules"] = json!([
            {"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}},
            {"action": "Restart", "exitCodes": {"operator": "In", "values": [1]}},
        ]);
    }
    for kind in ["startupProbe", "livenessProbe", "readinessProbe"] {
        if dice.one_in(3) {
            one[kind] =
                json!({"tcpSocket": {"port": 1}, "periodSeconds": 1, "failureThreshold": 1});
        }
    }
    if dice.one_in(4) {
        one["lifecycle"] = json!({"postStart": {"exec": {"command": ["x"]}}});
    }
    one
}

/// A Pod of any shape.
fn random_pod(dice: &mut Dice) -> Pod {
    use Role::{Init, Sidecar};
    let shapes: [(&[Role], usize); 6] = [
        (&[], 1),
        (&[], 3),
        (&[Init], 1),
        (&[Sidecar], 2),
        (&[Init, Sidecar, Init], 1),
        (&[Sidecar, Sidecar], 1),
    ];
    let (roles, mains) = *dice.pick(&shapes);
    let mut inits = Vec::new();
    for (at, role) in roles.iter().enumerate() {
        inits.push(random_container(dice, &format!("i{at}"), *role));
    }
    let mut containers = Vec::new();
    for at in 0..mains {
        containers.push(random_container(dice, &format!("m{at}"), Role::Main));
    }
    let policy = *dice.pick(&["Always", "OnFailure", "Never"]);
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 1},
        "spec": {"restartPolicy": policy, "initContainers": inits, "containers": containers,
            "terminationGracePeriodSeconds": 5}}))
    .unwrap()
}

/// One Pod, its runtime, its kubelet.
struct Life {
    seed: u64,
    dice: Dice,
    pod: Pod,
    /// What is really there.
    truth: PodView,
    /// What was there in the rounds before: an event may tell of it once more.
    past: Vec<PodView>,
    /// What the kubelet believes.
    view: PodView,
    history: History,
    previous: Option<PodStatus>,
    now: Timestamp,
    round: u64,
    deleted: bool,
    made: u32,
}

impl Life {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        Self {
            seed,
            pod: random_pod(&mut dice),
            dice,
            truth: PodView::default(),
            past: Vec::new(),
            view: PodView::default(),
            history: History::default(),
            previous: None,
            now: Timestamp::from_second(1_000_000).unwrap(),
            round: 0,
            deleted: false,
            made: 0,
        }
    }

    fn input(&self) -> PlanInput<'_> {
        PlanInput {
            pod: &self.pod,
            view: &self.view,
            history: &self.history,
            previous: self.previous.as_ref(),
            now: self.now,
        }
    }

    fn is_bad(&self) -> bool {
        self.round < BAD
    }

    fn fails(&mut self) -> bool {
        self.is_bad() && self.dice.one_in(6)
    }

    fn end(&mut self, cause: EndingCause) {
        let wins = match &self.history.ending {
            None => true,
            Some(known) => cause == EndingCause::Deleted && known.cause != EndingCause::Deleted,
        };
        if wins {
            self.history.ending = Some(Ending {
                cause,
                since: self.now,
                grace_secs: 5,
            });
        }
    }

    /// The kubelet dies and comes back: it knows what the runtime and the API server tell it.
    fn crash(&mut self) {
        self.view = self.truth.clone();
        let made = self
            .truth
            .sandboxes
            .iter()
            .map(|sandbox| sandbox.attempt + 1);
        self.history = History {
            sandboxes_made: made.max().unwrap_or(0),
            since: Some(self.now),
            ..History::default()
        };
        if self.deleted {
            self.end(EndingCause::Deleted);
        }
    }

    fn exit(&mut self, id: &ContainerId, code: i32) {
        let now = self.now;
        for container in self.truth.containers.iter_mut().filter(|one| &one.id == id) {
            if container.is_running() {
                container.state = ContainerPhase::Exited(Exit {
                    code,
                    reason: String::new(),
                    message: String::new(),
                    started_at: None,
                    finished_at: now,
                });
            }
        }
    }

    fn misfortune(&mut self) {
        match self.dice.roll(9) {
            0..3 => {
                let running: Vec<_> = self
                    .truth
                    .containers
                    .iter()
                    .filter(|one| one.is_running())
                    .map(|one| one.id.clone())
                    .collect();
                if !running.is_empty() {
                    let (id, code) = (
                        self.dice.pick(&running).clone(),
                        *self.dice.pick(&[0, 0, 1, 42, 137]),
                    );
                    self.exit(&id, code);
                }
            }
            3 => self
                .truth
                .sandboxes
                .iter_mut()
                .for_each(|sandbox| sandbox.ready = false),
            4 => self.truth = PodView::default(),
            5 => self.crash(),
            6 => {
                let spec = self.pod.spec.as_mut().unwrap();
                let image = if self.dice.one_in(2) { "one" } else { "two" };
                spec.containers[0].image = Some(image.to_owned());
                self.pod.metadata.generation = self.pod.metadata.generation.map(|known| known + 1);
            }
            7 if self.dice.one_in(3) => {
                self.deleted = true;
                self.pod.metadata.deletion_grace_period_seconds = Some(5);
                self.end(EndingCause::Deleted);
            }
            _ => {}
        }
    }

    /// What the runtime tells of itself; events get lost in bad times, a listing tells all.
    fn hear(&mut self) {
        if self.is_bad() && self.dice.one_in(3) {
            return;
        }
        if self.is_bad() && !self.past.is_empty() && self.dice.one_in(5) {
            let old = self.dice.pick(&self.past).clone();
            self.hear_of(&old);
        }
        if self.past.len() == PAST {
            self.past.remove(0);
        }
        self.past.push(self.truth.clone());
        if !self.is_bad() || self.dice.one_in(4) {
            self.view
                .containers
                .retain(|known| self.truth.containers.iter().any(|one| one.id == known.id));
            self.view
                .sandboxes
                .retain(|known| self.truth.sandboxes.iter().any(|one| one.id == known.id));
        }
        self.hear_all();
    }

    fn hear_of(&mut self, told: &PodView) {
        for sandbox in told.sandboxes.clone() {
            self.view.merge_sandbox(sandbox);
        }
        for container in told.containers.clone() {
            self.view.merge_container(container);
        }
    }

    /// Carries out one step. True when the kubelet died of it: the step is done, and nobody remembers.
    fn carry_out(&mut self, step: &Step) -> bool {
        let failed = self.fails();
        self.act(step, failed);
        if self.is_bad() && self.dice.one_in(12) {
            self.crash();
            return true;
        }
        self.fold(step, failed);
        false
    }

    /// What a step does to the runtime.
    fn act(&mut self, step: &Step, failed: bool) {
        match step {
            _ if failed => {}
            Step::CreateSandbox { attempt, .. } => {
                self.made += 1;
                self.truth.merge_sandbox(SandboxView {
                    id: SandboxId(format!("s{}", self.made)),
                    attempt: *attempt,
                    ready: true,
                    created_at: self.now,
                    ips: vec!["10.0.0.2".into()],
                    is_virtual: false,
                });
            }
            Step::StartContainer { container, attempt } => self.start(container, *attempt),
            Step::StopContainer { id, .. } => self.exit(id, 143),
            Step::StopSandbox { id } => {
                self.truth
                    .sandboxes
                    .iter_mut()
                    .filter(|one| &one.id == id)
                    .for_each(|one| one.ready = false);
            }
            Step::RemoveContainer { id } => self.truth.forget_container(id),
            Step::RemoveSandbox { id } => self.truth.forget_sandbox(id),
            Step::MountVolumes
            | Step::UnmountVolumes
            | Step::ResolveImage { .. }
            | Step::Resize { .. }
            | Step::ResizePod
            | Step::PostStart { .. }
            | Step::Probe { .. } => {}
        }
    }

    fn start(&mut self, name: &str, attempt: u32) {
        // A step before this one, of the same plan, may have heard that the sandbox is gone.
        let Some(sandbox) = self.view.ready_sandbox().map(|sandbox| sandbox.id.clone()) else {
            return;
        };
        // The kubelet may not know yet that the sandbox is gone: then the runtime refuses.
        if !self
            .truth
            .sandboxes
            .iter()
            .any(|one| one.id == sandbox && one.ready)
        {
            return;
        }
        let spec = named(&self.pod, name).unwrap();
        let ends_at_once =
            inits(&self.pod).iter().any(|init| init.name == name) && !is_sidecar(&self.pod, spec);
        self.made += 1;
        let id = ContainerId(format!("c{}", self.made));
        self.truth.merge_container(ContainerView {
            id: id.clone(),
            sandbox,
            name: name.to_owned(),
            attempt,
            state: ContainerPhase::Running {
                started_at: self.now,
            },
            created_at: self.now,
            image: spec.image.clone().unwrap_or_default(),
            image_ref: "r".into(),
            image_id: "r".into(),
            spec_hash: spec_hash(spec),
            user: None,
        });
        if ends_at_once {
            let code = if self.is_bad() && self.dice.one_in(4) {
                1
            } else {
                0
            };
            self.exit(&id, code);
        }
    }

    /// What the kubelet takes from a step that it saw through.
    #[allow(clippy::too_many_lines, reason = "one arm per kind of step")]
    fn fold(&mut self, step: &Step, failed: bool) {
        let now = self.now;
        let retry = Retry::after(None, "no".into(), now);
        match step {
            Step::MountVolumes if failed => self.history.volumes = Volumes::Failed(retry),
            Step::MountVolumes => self.history.volumes = Volumes::Mounted,
            Step::UnmountVolumes if !failed => self.history.volumes = Volumes::Removed,
            Step::ResolveImage { container } => {
                let history = self
                    .history
                    .containers
                    .entry(container.clone())
                    .or_default();
                history.image = if failed {
                    ImageState::Failed {
                        reason: "ErrImagePull".into(),
                        retry,
                        failed_at: now,
                    }
                } else {
                    ImageState::Resolved(ResolvedImage {
                        image_ref: "r".into(),
                        image_id: "r".into(),
                        kind: ImageKind::Oci,
                        user: Default::default(),
                    })
                };
            }
            Step::CreateSandbox { attempt, .. } => {
                self.history.sandboxes_made = self.history.sandboxes_made.max(attempt + 1);
                self.history.sandbox_failure = failed.then_some(retry);
                self.hear_all();
            }
            Step::StartContainer { container, .. } => self.fold_start(container, failed, retry),
            Step::PostStart { id, container } => {
                let history = self
                    .history
                    .containers
                    .entry(container.clone())
                    .or_default();
                if history.post_start.holds(id) {
                    history.post_start = if failed {
                        PostStart::Failed(id.clone())
                    } else {
                        PostStart::Over
                    };
                }
            }
            Step::Probe {
                id,
                container,
                kind,
            } => {
                let Some(probe) = named(&self.pod, container)
                    .and_then(|spec| kind.of(spec))
                    .cloned()
                else {
                    return;
                };
                let key = (container.clone(), *kind);
                let known = self
                    .history
                    .probes
                    .remove(&key)
                    .filter(|known| &known.container == id);
                let mut state = known.unwrap_or_else(|| ProbeState::new(id.clone(), now));
                state.record(Some(!failed), now, &probe);
                self.history.probes.insert(key, state);
            }
            Step::StopContainer {
                id,
                container,
                replace,
                ..
            } => {
                if *replace {
                    self.history
                        .containers
                        .entry(container.clone())
                        .or_default()
                        .replaced = Some(id.clone());
                }
                if !failed {
                    self.hear_all();
                }
            }
            Step::RemoveContainer { id } if !failed => self.view.forget_container(id),
            Step::RemoveSandbox { id } if !failed => self.view.forget_sandbox(id),
            Step::StopSandbox { .. } => self.hear_all(),
            Step::ResizePod => self.history.resources = Some(spec(&self.pod).resources.clone()),
            Step::UnmountVolumes
            | Step::Resize { .. }
            | Step::RemoveContainer { .. }
            | Step::RemoveSandbox { .. } => {}
        }
    }

    fn fold_start(&mut self, name: &str, failed: bool, retry: Retry) {
        let now = self.now;
        let ended = self
            .view
            .latest(name)
            .and_then(ContainerView::exit)
            .map(|exit| exit.finished_at);
        let hooked = named(&self.pod, name).is_some_and(|spec| spec.lifecycle.is_some());
        let newest = self.truth.latest(name).map(|view| view.id.clone());
        let history = self.history.containers.entry(name.to_owned()).or_default();
        if let Some(ended) = ended {
            history.restarts.advance(ended, now);
        }
        history.start_failure = failed.then(|| StartFailure {
            reason: "CreateContainerError".into(),
            retry,
        });
        history.image = ImageState::Unknown;
        history.post_start = match newest.filter(|_| hooked && !failed) {
            Some(id) => PostStart::Due(id),
            None => PostStart::Over,
        };
        self.hear_all();
    }

    /// The answer of a call tells as much as an event.
    fn hear_all(&mut self) {
        let truth = self.truth.clone();
        self.hear_of(&truth);
    }

    /// What must hold at any time.
    fn check(&self) {
        for (at, container) in self.truth.containers.iter().enumerate() {
            let twin = self.truth.containers[at + 1..].iter().find(|other| {
                other.name == container.name
                    && other.is_running()
                    && container.is_running()
                    && other.sandbox == container.sandbox
            });
            assert!(
                twin.is_none(),
                "seed {}: {} runs twice: {:?}",
                self.seed,
                container.name,
                self.truth
            );
        }
    }

    /// One round. True when the Pod did nothing but probe.
    fn round(&mut self, node: &NodeFacts) -> bool {
        if self.is_bad() && self.dice.one_in(3) {
            self.misfortune();
        }
        self.hear();
        let plan = plan_pod(self.input());
        let status = plan_status(self.input(), &plan, node);
        let same = self.previous.as_ref() == Some(&status);
        self.previous = Some(status);
        if let Some(cause) = plan.end.clone() {
            self.end(cause);
            return false;
        }
        if plan.gone {
            assert!(
                self.is_bad() || self.truth.is_empty(),
                "seed {}: left behind: {:?}",
                self.seed,
                self.truth
            );
        }
        let starts = |step: &Step| matches!(step, Step::StartContainer { .. });
        assert!(
            self.view.ready_sandbox().is_some() || !plan.steps.iter().any(starts),
            "seed {}: started without a sandbox: {:?}",
            self.seed,
            plan.steps
        );
        for step in &plan.steps {
            if self.carry_out(step) {
                break;
            }
            self.check();
        }
        let calm = plan
            .steps
            .iter()
            .all(|step| matches!(step, Step::Probe { .. }));
        let next = self
            .now
            .saturating_add(SignedDuration::from_secs(1))
            .unwrap();
        self.now = match plan.wake_at {
            Some(at) if plan.steps.is_empty() => at.max(next),
            _ => next,
        };
        calm && same && !self.waits(&plan)
    }

    /// A container that waits for its next start is no rest.
    fn waits(&self, plan: &Plan) -> bool {
        !plan.waiting.is_empty()
    }
}

fn live(seed: u64, node: &NodeFacts) {
    let mut life = Life::new(seed);
    let mut rest = 0;
    while life.round < BAD + PATIENCE {
        let calm = life.round(node);
        life.round += 1;
        rest = if calm && !life.is_bad() { rest + 1 } else { 0 };
        if rest >= REST {
            return;
        }
    }
    let plan = plan_pod(life.input());
    panic!(
        "seed {seed} finds no rest: {plan:?}\n{:?}\n{:?}\n{:?}",
        life.truth, life.history, life.previous
    );
}

#[test]
fn any_pod_comes_to_rest_after_any_misfortune() {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse::<u64>().expect("a number of seeds"))
    };
    let first = number("COX_SIM_FIRST").unwrap_or(0);
    let count = number("COX_SIM_SEEDS").unwrap_or(500);
    let node = NodeFacts {
        host_ip: "10.0.0.1".into(),
        runtime_name: "cox".into(),
        read_only_below: false,
        ..NodeFacts::default()
    };
    for seed in first..first + count {
        live(seed, &node);
    }
}
