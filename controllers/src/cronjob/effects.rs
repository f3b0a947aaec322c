//! Carries out a plan: deletes, creates, tells, writes the status. Decides nothing.

use std::collections::BTreeMap;

use cox_client::events::EventType;
use cox_client::owners;
use cox_client::runner::ObjectName;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use kube::api::{DeleteParams, ObjectMeta, PostParams};

use super::plan::{self, Plan};
use super::{Controller, zone};
use crate::owned_pods::reply;

/// Tells the time that a job stands for.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

impl Controller {
    pub(super) async fn carry_out(
        &self,
        key: &ObjectName,
        cron: &CronJob,
        plan: Plan,
    ) -> Result<(), kube::Error> {
        let events = &self.context.events;
        for tell in &plan.tell {
            events.event_on(cron, tell.kind, tell.reason, tell.message.clone());
        }
        for job in &plan.forget {
            let name = job.metadata.name.as_deref().unwrap_or_default();
            self.delete(key, cron, name).await?;
        }
        let mut status = plan.status;
        for running in &plan.replace {
            self.delete(key, cron, running.name.as_deref().unwrap_or_default())
                .await?;
            let active = status.active.get_or_insert_default();
            active.retain(|one| one.uid != running.uid);
        }
        let mut failed = None;
        if let Some(at) = plan.start {
            match self.start(key, cron, at).await {
                Ok(Some(job)) => plan::started(&mut status, &job, at),
                Ok(None) => {}
                Err(error) => failed = Some(error),
            }
        }
        if status.active.as_ref().is_some_and(Vec::is_empty) {
            status.active = None;
        }
        if cron.status.clone().unwrap_or_default() != status {
            let mut next = cron.clone();
            next.status = Some(status);
            self.context.replace_status(&next).await?;
        }
        failed.map_or(Ok(()), Err)
    }

    async fn delete(&self, key: &ObjectName, cron: &CronJob, job: &str) -> Result<(), kube::Error> {
        let events = &self.context.events;
        let api = self.context.api::<Job>(&key.namespace);
        match api.delete(job, &DeleteParams::background()).await {
            Err(error) if cox_client::is_not_found(&error) => Ok(()),
            Err(error) => {
                let message = format!("Deleted job: {}", reply(&error));
                events.event_on(cron, EventType::Warning, "FailedDelete", message);
                Err(error)
            }
            Ok(_) => {
                let message = format!("Deleted job {job}");
                events.event_on(cron, EventType::Normal, "SuccessfulDelete", message);
                Ok(())
            }
        }
    }

    /// The job of this time; none where somebody else's has its name.
    async fn start(
        &self,
        key: &ObjectName,
        cron: &CronJob,
        at: Timestamp,
    ) -> Result<Option<Job>, kube::Error> {
        let events = &self.context.events;
        let api = self.context.api::<Job>(&key.namespace);
        let job = job_of(cron, at);
        match api.create(&PostParams::default(), &job).await {
            Ok(job) => {
                let name = job.metadata.name.as_deref().unwrap_or_default();
                let message = format!("Created job {name}");
                events.event_on(cron, EventType::Normal, "SuccessfulCreate", message);
                Ok(Some(job))
            }
            Err(error) if cox_client::has_code(&error, 409) => {
                let name = job.metadata.name.as_deref().unwrap_or_default();
                let there = api.get_opt(name).await?;
                let is_ours = |job: &Job| {
                    owners::controller_of(job)
                        .is_some_and(|owner| Some(&owner.uid) == cron.metadata.uid.as_ref())
                };
                Ok(there.filter(is_ours))
            }
            // Nothing can be made in a namespace that ends; its end ends the cron job too.
            Err(error) => {
                if !cox_client::is_not_found(&error) {
                    let message = format!("Error creating job: {}", reply(&error));
                    events.event_on(cron, EventType::Warning, "FailedCreate", message);
                }
                Err(error)
            }
        }
    }
}

/// The job that a cron job starts at a time.
pub(super) fn job_of(cron: &CronJob, at: Timestamp) -> Job {
    let spec = cron.spec.clone();
    let template = spec.job_template;
    let meta = template.metadata.unwrap_or_default();
    let mut annotations: BTreeMap<String, String> = meta.annotations.unwrap_or_default();
    let zone = spec.time_zone.as_deref().and_then(zone::load);
    annotations.insert(
        SCHEDULED.to_owned(),
        stamp(at, zone.unwrap_or(TimeZone::UTC)),
    );
    Job {
        metadata: ObjectMeta {
            name: Some(plan::job_name(cron, at)),
            namespace: cron.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![owners::controller_ref(cron)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

fn stamp(at: Timestamp, zone: TimeZone) -> String {
    let zoned = at.to_zoned(zone);
    if zoned.offset().is_zero() {
        return zoned.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    }
    zoned.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}
