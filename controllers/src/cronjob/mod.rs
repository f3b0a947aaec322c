//! Starts jobs by the clock.
//!
//! Watched: cron jobs, jobs. Written: jobs (created, deleted when the history is full or one is replaced), the status of cron
//! jobs, events. Invariants: the job of a time has one name, so it is started once whatever is known of it; the list of running
//! jobs is checked with the server before one is taken for gone or for unknown.

mod effects;
mod plan;
mod schedule;
#[cfg(test)]
mod tests;
mod zone;

use std::sync::Arc;

use cox_client::Informer;
use cox_client::events::EventType;
use cox_client::owners;
use cox_client::runner::{ObjectName, Verdict};
use k8s_openapi::api::batch::v1::{CronJob, Job};

use crate::context::{Context, Loop};
use plan::Tell;
use schedule::Schedule;

const WORKERS: usize = 5;

struct Controller {
    context: Context,
    crons: Informer<CronJob>,
    jobs: Informer<Job>,
}

pub(crate) async fn run(context: Context) {
    let crons = context.informers.of::<CronJob>();
    let jobs = context.informers.of::<Job>();
    let mut frame = Loop::new("cronjob");
    frame.feed(&crons, |cron, keys| keys.push(ObjectName::of(cron)));
    frame.feed(&jobs, |job: &Job, keys| {
        if let Some(owner) = owners::controller_of(job).filter(|owner| owner.kind == "CronJob") {
            let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
            keys.push(ObjectName::namespaced(namespace, &owner.name));
        }
    });
    let cancel = context.cancel.clone();
    let controller = Arc::new(Controller {
        context,
        crons,
        jobs,
    });
    let reconcile = move |key: ObjectName| {
        let controller = Arc::clone(&controller);
        async move { controller.reconcile(&key).await }
    };
    frame.run(WORKERS, reconcile, cancel).await;
}

/// The schedule in its zone, or what to tell of it.
fn schedule_of(cron: &CronJob) -> Result<Schedule, Tell> {
    let spec = cron.spec.clone();
    let unparseable = |error: String| {
        let message = format!("unparseable schedule: {:?} : {error}", spec.schedule);
        Tell::new(EventType::Warning, "UnparseableSchedule", message)
    };
    let (own_zone, text) = cox_api::cron::split_zone(&spec.schedule).map_err(unparseable)?;
    let zone = match spec.time_zone.as_deref().or(own_zone) {
        None => zone::local(),
        Some(name) => zone::load(name).ok_or_else(|| {
            let message = format!("invalid timeZone: {name:?}: unknown time zone {name}");
            Tell::new(EventType::Warning, "UnknownTimeZone", message)
        })?,
    };
    Schedule::parse(text, zone).map_err(unparseable)
}

impl Controller {
    async fn reconcile(&self, key: &ObjectName) -> Verdict {
        let Some(cron) = self.crons.get(Some(&key.namespace), &key.name) else {
            return Verdict::Done;
        };
        match self.update(key, cron).await {
            Ok(Some(again)) => Verdict::After(again),
            Ok(None) => Verdict::Done,
            Err(error) => Verdict::Backoff(error.into()),
        }
    }

    async fn update(
        &self,
        key: &ObjectName,
        mut cron: Arc<CronJob>,
    ) -> Result<Option<std::time::Duration>, kube::Error> {
        let uid = cron.metadata.uid.clone().unwrap_or_default();
        let jobs = self.jobs.controlled_by(&key.namespace, &uid);
        let is_unknown = |job: &Arc<Job>| {
            let uid = job.metadata.uid.as_deref().unwrap_or_default();
            plan::end_of(job).is_none() && !plan::lists(cron.status.as_ref(), uid)
        };
        if jobs.iter().any(is_unknown) {
            // Our own write may not have come back yet.
            let live = self.context.api::<CronJob>(&key.namespace);
            match live.get_opt(&key.name).await? {
                Some(live) if live.metadata.uid.as_deref() == Some(&uid) => cron = Arc::new(live),
                _ => return Ok(None),
            }
        }
        let gone = self.gone(key, &cron, &jobs).await?;
        let schedule = schedule_of(&cron);
        let now = self.context.clock.now();
        let plan = plan::plan(
            &cron,
            &jobs,
            &gone,
            schedule.as_ref().map_err(Clone::clone),
            now,
        );
        let again = plan.again;
        self.carry_out(key, &cron, plan).await?;
        Ok(again)
    }

    /// Listed jobs that are neither in the cache nor at the server.
    async fn gone(
        &self,
        key: &ObjectName,
        cron: &CronJob,
        jobs: &[Arc<Job>],
    ) -> Result<Vec<String>, kube::Error> {
        let mut gone = Vec::new();
        let active = cron
            .status
            .as_ref()
            .and_then(|status| status.active.as_deref());
        for one in active.unwrap_or_default() {
            let (Some(uid), Some(name)) = (&one.uid, &one.name) else {
                continue;
            };
            if jobs
                .iter()
                .any(|job| job.metadata.uid.as_ref() == Some(uid))
            {
                continue;
            }
            let live = self
                .context
                .api::<Job>(&key.namespace)
                .get_opt(name)
                .await?;
            if live.is_none_or(|job| job.metadata.uid.as_ref() != Some(uid)) {
                gone.push(uid.clone());
            }
        }
        Ok(gone)
    }
}
