//! Probes as decisions: when one is due, what a row of results means, whether a container counts as started, ready or failed. Pure.
//!
//! A container starts ready only without a readiness probe, and started only without a startup probe. Liveness and readiness wait
//! for the startup probe. A liveness or startup probe that reached its verdict rests until there is a new container. A kubelet that
//! takes over a running container goes by the status published last until the first result of its own.

use super::ContainerId;
use super::plan::{PlanInput, previous_container};
use super::view::{ContainerPhase, ContainerView};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Probe};

/// Which of the three probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProbeKind {
    /// Holds the others back until it succeeds once.
    Startup,
    /// Its failure restarts the container.
    Liveness,
    /// Its failure takes the Pod out of its services.
    Readiness,
}

impl ProbeKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Startup, Self::Liveness, Self::Readiness];

    /// As it begins a sentence in events, and as metrics are labelled.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }

    /// The container's probe of this kind.
    #[must_use]
    pub fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
        }
    }
}

/// What is known from the probes of one kind of one container.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeState {
    /// The container that was probed; a later one of the same name starts afresh.
    pub container: ContainerId,
    /// The verdict in force; `None` before the first.
    pub verdict: Option<bool>,
    /// When the last run began.
    pub ran_at: Timestamp,
    last: Option<bool>,
    run: i32,
}

impl ProbeState {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(container: ContainerId, ran_at: Timestamp) -> Self {
        Self {
            container,
            verdict: None,
            ran_at,
            last: None,
            run: 0,
        }
    }

    /// Takes in one result; `None`: the probe itself could not be made, which says nothing.
    pub fn record(&mut self, result: Option<bool>, ran_at: Timestamp, probe: &Probe) {
        self.ran_at = ran_at;
        let Some(result) = result else { return };
        if self.last == Some(result) {
            self.run = self.run.saturating_add(1);
        } else {
            self.last = Some(result);
            self.run = 1;
        }
        let threshold = if result {
            probe.success_threshold.unwrap_or(1)
        } else {
            probe.failure_threshold.unwrap_or(3)
        };
        if self.run >= threshold {
            self.verdict = Some(result);
        }
    }
}

fn seconds(value: Option<i32>, default: i64) -> SignedDuration {
    let value = value.map_or(default, i64::from).max(0);
    SignedDuration::from_secs(value)
}

/// How long one run may take.
#[must_use]
pub fn timeout(probe: &Probe) -> std::time::Duration {
    let secs = probe.timeout_seconds.filter(|secs| *secs > 0).unwrap_or(1);
    std::time::Duration::from_secs(u64::from(secs.unsigned_abs()))
}

fn state<'a>(
    input: PlanInput<'a>,
    container: &ContainerView,
    kind: ProbeKind,
) -> Option<&'a ProbeState> {
    input
        .history
        .probes
        .get(&(container.name.clone(), kind))
        .filter(|state| state.container == container.id)
}

fn verdict(input: PlanInput<'_>, container: &ContainerView, kind: ProbeKind) -> Option<bool> {
    state(input, container, kind).and_then(|state| state.verdict)
}

/// The status published last, if it is about this very container.
fn published<'a>(input: PlanInput<'a>, container: &ContainerView) -> Option<&'a ContainerStatus> {
    let known = previous_container(input.previous?, &container.name)?;
    let id = known.container_id.as_deref()?.rsplit("://").next()?;
    (id == container.id.as_str()).then_some(known)
}

/// Whether the container runs and its postStart hook, if any, is over.
fn is_up(input: PlanInput<'_>, container: &ContainerView) -> bool {
    let hooked = input
        .history
        .containers
        .get(&container.name)
        .is_some_and(|history| history.post_start.holds(&container.id));
    container.is_running() && !hooked
}

/// Whether the container has started.
#[must_use]
pub fn is_started(input: PlanInput<'_>, spec: &Container, container: &ContainerView) -> bool {
    if !is_up(input, container) {
        return false;
    }
    if spec.startup_probe.is_none() {
        return true;
    }
    verdict(input, container, ProbeKind::Startup).unwrap_or_else(|| {
        published(input, container).is_some_and(|known| known.started == Some(true))
    })
}

/// Whether the container is ready.
#[must_use]
pub fn is_ready(input: PlanInput<'_>, spec: &Container, container: &ContainerView) -> bool {
    if !is_started(input, spec, container) {
        return false;
    }
    if spec.readiness_probe.is_none() {
        return true;
    }
    verdict(input, container, ProbeKind::Readiness)
        .unwrap_or_else(|| published(input, container).is_some_and(|known| known.ready))
}

/// The probe whose verdict is that the container has to be killed.
#[must_use]
pub fn failed<'a>(
    input: PlanInput<'_>,
    spec: &'a Container,
    container: &ContainerView,
) -> Option<(ProbeKind, &'a Probe)> {
    [ProbeKind::Startup, ProbeKind::Liveness]
        .into_iter()
        .filter(|kind| verdict(input, container, *kind) == Some(false))
        .find_map(|kind| kind.of(spec).map(|probe| (kind, probe)))
}

/// When the probe has to run next; `None`: not before something else happens.
#[must_use]
pub fn due(
    input: PlanInput<'_>,
    spec: &Container,
    container: &ContainerView,
    kind: ProbeKind,
) -> Option<Timestamp> {
    let probe = kind.of(spec)?;
    let ContainerPhase::Running { started_at } = container.state else {
        return None;
    };
    let wants_started = kind != ProbeKind::Startup;
    if !is_up(input, container) || is_started(input, spec, container) != wants_started {
        return None;
    }
    let period = seconds(probe.period_seconds.filter(|secs| *secs > 0), 10);
    if let Some(state) = state(input, container, kind) {
        let rests = match kind {
            ProbeKind::Startup => state.verdict.is_some(),
            ProbeKind::Liveness => state.verdict == Some(false),
            ProbeKind::Readiness => false,
        };
        // A run in the future means that the clock was set back.
        let next = if state.ran_at > input.now {
            input.now
        } else {
            later(state.ran_at, period)
        };
        return (!rests).then_some(next);
    }
    let first = later(started_at, seconds(probe.initial_delay_seconds, 0));
    let since = input.history.since;
    // A kubelet that just started spreads the first probes of what it found running over one period.
    if since.is_some_and(|since| started_at < since) {
        let spread = SignedDuration::from_millis(jitter_ms(container.id.as_str(), period));
        return since.map(|since| first.max(later(since, spread)));
    }
    Some(
        if started_at > later(input.now, SignedDuration::from_secs(2)) {
            input.now
        } else {
            first
        },
    )
}

fn later(time: Timestamp, by: SignedDuration) -> Timestamp {
    time.saturating_add(by).unwrap_or(Timestamp::MAX)
}

/// A share of the period that is the same for the same container, and spread over many (FNV-1a).
fn jitter_ms(id: &str, period: SignedDuration) -> i64 {
    let hash = id.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    let period_ms = i64::try_from(period.as_millis()).unwrap_or(i64::MAX).max(1);
    i64::from(hash) % period_ms
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_second(secs).unwrap()
    }

    #[test]
    fn thresholds_count_results_in_a_row() {
        let probe = Probe {
            success_threshold: Some(2),
            failure_threshold: Some(3),
            ..Probe::default()
        };
        type Case<'a> = (&'a str, &'a [Option<bool>], Option<bool>);
        let cases: &[Case<'_>] = &[
            ("one success is not two", &[Some(true)], None),
            ("two are", &[Some(true), Some(true)], Some(true)),
            (
                "an interrupted row starts again",
                &[Some(true), Some(false), Some(true)],
                None,
            ),
            (
                "three failures turn it",
                &[
                    Some(true),
                    Some(true),
                    Some(false),
                    Some(false),
                    Some(false),
                ],
                Some(false),
            ),
            (
                "two failures do not",
                &[Some(true), Some(true), Some(false), Some(false)],
                Some(true),
            ),
            (
                "a probe that could not be made says nothing",
                &[Some(true), None, Some(true)],
                Some(true),
            ),
        ];
        for (name, results, expected) in cases {
            let mut state = ProbeState::new("c".into(), at(0));
            for result in *results {
                state.record(*result, at(1), &probe);
            }
            assert_eq!(state.verdict, *expected, "case: {name}");
        }
    }

    #[test]
    fn first_probes_after_a_restart_of_the_kubelet_are_spread() {
        let spread: std::collections::BTreeSet<i64> = (0..20)
            .map(|n| jitter_ms(&format!("container-{n}"), SignedDuration::from_secs(10)))
            .collect();
        assert!(spread.len() > 15 && spread.iter().all(|ms| (0..10_000).contains(ms)));
    }
}
