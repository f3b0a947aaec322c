//! Leader election over a Lease, as upstream's components do it: of several copies of a component one works.
//!
//! A candidate takes the lease when it is free or was not renewed for its whole duration, measured from when this candidate
//! last saw it change (clocks of other machines are never compared). The leader renews; when it cannot for the renew
//! deadline it must stop working before anybody else may start.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Api;
use kube::api::PostParams;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Clock;

/// Who wants to lead what. Durations default to upstream's 15 s, 10 s and 2 s.
#[derive(Clone, Debug)]
pub struct Config {
    /// The Lease's namespace.
    pub namespace: String,
    /// The Lease's name.
    pub name: String,
    /// This candidate's unique name.
    pub identity: String,
    /// How long a lease that is not renewed protects its holder.
    pub lease_duration: Duration,
    /// How long the leader tries to renew before it steps down. Shorter than `lease_duration`.
    pub renew_deadline: Duration,
    /// Between two tries.
    pub retry_period: Duration,
}

impl Config {
    /// Upstream's durations.
    #[must_use]
    pub fn new(namespace: &str, name: &str, identity: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            identity: identity.to_owned(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

/// How leading ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The work ended by itself.
    Finished,
    /// Cancelled; the lease was given back if it was held.
    Cancelled,
    /// The lease could not be renewed in time or somebody else has it. The work was told to stop.
    Lost,
}

/// Waits to become the leader, then runs `work` (which gets a token that is cancelled when leadership ends) while renewing.
pub async fn lead<F, Fut>(
    client: kube::Client,
    config: Config,
    clock: Arc<dyn Clock>,
    cancel: CancellationToken,
    work: F,
) -> Ended
where
    F: FnOnce(CancellationToken) -> Fut,
    Fut: Future<Output = ()>,
{
    let mut candidate = Candidate {
        api: Api::namespaced(client, &config.namespace),
        config,
        clock,
        seen: None,
    };
    while !candidate.try_hold().await {
        tokio::select! {
            // Nothing is held yet.
            () = cancel.cancelled() => return Ended::Cancelled,
            () = tokio::time::sleep(candidate.config.retry_period) => {}
        }
    }
    tracing::info!(
        lease = candidate.config.name,
        identity = candidate.config.identity,
        "Became leader"
    );
    let leading = cancel.child_token();
    let mut work = std::pin::pin!(work(leading.clone()));
    let ended = tokio::select! {
        // The work is waited for below unless it has ended.
        () = &mut work => Ended::Finished,
        () = candidate.hold() => Ended::Lost,
        () = cancel.cancelled() => Ended::Cancelled,
    };
    leading.cancel();
    if ended != Ended::Finished {
        // Bounded by what is left of the lease: after it another leader may be at work.
        let spare = candidate
            .config
            .lease_duration
            .saturating_sub(candidate.config.renew_deadline);
        if tokio::time::timeout(spare, work).await.is_err() {
            tracing::warn!(
                lease = candidate.config.name,
                "Work did not stop in time and was dropped"
            );
        }
    }
    if ended != Ended::Lost {
        candidate.release().await;
    }
    ended
}

struct Candidate {
    api: Api<Lease>,
    config: Config,
    clock: Arc<dyn Clock>,
    /// The lease as last seen, and when it was first seen so.
    seen: Option<(LeaseSpec, Instant)>,
}

#[derive(Debug, PartialEq)]
enum Step {
    Wait,
    Write(LeaseSpec),
}

impl Candidate {
    /// One try to acquire or renew. Errors count as not held: the next try follows soon.
    async fn try_hold(&mut self) -> bool {
        match self.step().await {
            Ok(held) => held,
            Err(error) => {
                tracing::debug!(lease = self.config.name, error = %crate::runner::chain(&error), "Lease could not be read or written");
                false
            }
        }
    }

    async fn step(&mut self) -> Result<bool, kube::Error> {
        let present = self.api.get_opt(&self.config.name).await?;
        let spec = present.as_ref().and_then(|lease| lease.spec.clone());
        if let Some(spec) = &spec
            && self.seen.as_ref().is_none_or(|(seen, _)| seen != spec)
        {
            self.seen = Some((spec.clone(), Instant::now()));
        }
        let expired = self
            .seen
            .as_ref()
            .is_none_or(|(spec, at)| at.elapsed() >= duration_of(spec, &self.config));
        let Step::Write(spec) = plan(spec.as_ref(), expired, &self.config, self.clock.now()) else {
            return Ok(false);
        };
        let written = match present {
            Some(lease) => {
                // The resourceVersion that was read makes the write lose against any other.
                let lease = Lease {
                    spec: Some(spec),
                    ..lease
                };
                self.api
                    .replace(&self.config.name, &PostParams::default(), &lease)
                    .await?
            }
            None => {
                let metadata = ObjectMeta {
                    name: Some(self.config.name.clone()),
                    namespace: Some(self.config.namespace.clone()),
                    ..ObjectMeta::default()
                };
                let lease = Lease {
                    metadata,
                    spec: Some(spec),
                };
                self.api.create(&PostParams::default(), &lease).await?
            }
        };
        self.seen = written.spec.map(|spec| (spec, Instant::now()));
        Ok(true)
    }

    /// Renews until it fails for the whole renew deadline or somebody else holds the lease.
    async fn hold(&mut self) {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(self.config.retry_period).await;
            let left = self.config.renew_deadline.saturating_sub(renewed.elapsed());
            if tokio::time::timeout(left, self.try_hold()).await == Ok(true) {
                renewed = Instant::now();
            } else if renewed.elapsed() >= self.config.renew_deadline || self.is_anothers() {
                tracing::warn!(
                    lease = self.config.name,
                    identity = self.config.identity,
                    "Lost leadership"
                );
                return;
            }
        }
    }

    fn is_anothers(&self) -> bool {
        let holder = self
            .seen
            .as_ref()
            .and_then(|(spec, _)| spec.holder_identity.as_deref());
        holder.is_some_and(|holder| holder != self.config.identity)
    }

    /// Gives the lease back so that the next leader need not wait.
    async fn release(&mut self) {
        let result = async {
            let Some(lease) = self.api.get_opt(&self.config.name).await? else {
                return Ok(());
            };
            let Some(spec) = lease.spec.clone() else {
                return Ok(());
            };
            if spec.holder_identity.as_deref() != Some(&self.config.identity) {
                return Ok(());
            }
            let spec = LeaseSpec {
                holder_identity: Some(String::new()),
                lease_duration_seconds: Some(1),
                ..spec
            };
            let lease = Lease {
                spec: Some(spec),
                ..lease
            };
            self.api
                .replace(&self.config.name, &PostParams::default(), &lease)
                .await
                .map(drop)
        };
        let result: Result<(), kube::Error> = result.await;
        if let Err(error) = result {
            tracing::debug!(lease = self.config.name, error = %crate::runner::chain(&error), "Lease was not given back");
        }
    }
}

fn duration_of(spec: &LeaseSpec, config: &Config) -> Duration {
    let secs = spec
        .lease_duration_seconds
        .and_then(|secs| u64::try_from(secs).ok());
    secs.map_or(config.lease_duration, Duration::from_secs)
}

/// What to write now, given the lease and whether it has not changed for its whole duration.
fn plan(present: Option<&LeaseSpec>, expired: bool, config: &Config, now: Timestamp) -> Step {
    let holder = present
        .and_then(|spec| spec.holder_identity.as_deref())
        .unwrap_or_default();
    let ours = holder == config.identity;
    if !ours && !holder.is_empty() && !expired {
        return Step::Wait;
    }
    let transitions = present.map_or(0, |spec| {
        spec.lease_transitions.unwrap_or_default() + i32::from(!ours)
    });
    let acquired = present
        .and_then(|spec| spec.acquire_time.clone())
        .filter(|_| ours);
    Step::Write(LeaseSpec {
        holder_identity: Some(config.identity.clone()),
        lease_duration_seconds: Some(
            i32::try_from(config.lease_duration.as_secs()).unwrap_or(i32::MAX),
        ),
        acquire_time: Some(acquired.unwrap_or(MicroTime(now))),
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(transitions),
        ..LeaseSpec::default()
    })
}

#[cfg(test)]
mod tests;
