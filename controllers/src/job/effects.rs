//! Carries out a plan: deletes, creates, writes the status, then lets go of the pods that it counts. Decides nothing but when to
//! stop after a failure.

use cox_client::BoxError;
use cox_client::conditions;
use cox_client::events::EventType;
use cox_client::owners;
use cox_client::runner::ObjectName;
use futures::future::join_all;
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use kube::api::PostParams;

use super::plan::{Plan, Wanted};
use super::{Controller, failure, indexes, pods, status};
use crate::owned_pods;

const INDEX_ENV: &str = "JOB_COMPLETION_INDEX";

impl Controller {
    pub(super) async fn carry_out(
        &self,
        key: &ObjectName,
        job: &Job,
        plan: Plan,
    ) -> Result<(), BoxError> {
        let mut failure = self.owned.delete_all(key, job, &plan.delete).await;
        if failure.is_none() && !plan.create.is_empty() {
            let pods: Vec<Pod> = plan
                .create
                .iter()
                .map(|wanted| pod_from(job, wanted))
                .collect();
            failure = self.owned.create_batch(key, job, &pods).await;
        }
        if let Some(failure) = failure {
            // What was counted must be written all the same, but not numbers of pods that there are not.
            let mut status = plan.status;
            let before = job.status.as_ref();
            status.active = before.and_then(|before| before.active);
            self.publish(job, &status).await?;
            self.let_go(&plan.let_go).await?;
            return Err(failure.into());
        }
        self.publish(job, &plan.status).await?;
        self.let_go(&plan.let_go).await?;
        Ok(())
    }

    async fn publish(&self, job: &Job, status: &JobStatus) -> Result<(), kube::Error> {
        if job.status.as_ref().map(status::normal).unwrap_or_default() == status::normal(status) {
            return Ok(());
        }
        let key = ObjectName::of(job);
        let next = Job {
            status: Some(status.clone()),
            ..job.clone()
        };
        let api = self.context.api::<Job>(&key.namespace);
        match api
            .replace_status(&key.name, &PostParams::default(), &next)
            .await
        {
            Err(error) if cox_client::is_not_found(&error) => return Ok(()),
            result => drop(result?),
        }
        self.tell(job, status);
        Ok(())
    }

    /// Events for conditions that are new.
    fn tell(&self, job: &Job, status: &JobStatus) {
        let before = job
            .status
            .as_ref()
            .and_then(|status| status.conditions.as_deref());
        let is_new = |kind: &str, value: &str| {
            let value_of = |conditions: Option<&[_]>| {
                let found = conditions::find::<k8s_openapi::api::batch::v1::JobCondition>(
                    conditions?,
                    kind,
                )?;
                Some(found.status == value)
            };
            value_of(status.conditions.as_deref()) == Some(true) && value_of(before) != Some(true)
        };
        let events = &self.context.events;
        if is_new("Complete", "True") {
            events.event_on(job, EventType::Normal, "Completed", "Job completed");
        }
        if is_new("Suspended", "True") {
            events.event_on(job, EventType::Normal, "Suspended", "Job suspended");
        }
        if is_new("Suspended", "False") {
            events.event_on(job, EventType::Normal, "Resumed", "Job resumed");
        }
        let conditions = status.conditions.as_deref().unwrap_or_default();
        if is_new("Failed", "True")
            && let Some(failed) = conditions::find(conditions, "Failed")
        {
            let (reason, message) = (failed.reason.clone(), failed.message.clone());
            events.event_on(
                job,
                EventType::Warning,
                &reason.unwrap_or_default(),
                message.unwrap_or_default(),
            );
        }
    }

    async fn let_go(&self, counted: &[std::sync::Arc<Pod>]) -> Result<(), kube::Error> {
        let tracked = counted.iter().filter(|pod| pods::is_tracked(pod));
        let all = join_all(tracked.map(|pod| self.owned.let_go(pod))).await;
        all.into_iter().collect()
    }
}

/// The pod that the template describes; an Indexed job's knows its index.
fn pod_from(job: &Job, wanted: &Wanted) -> Pod {
    let template = job
        .spec
        .as_ref()
        .map(|spec| spec.template.clone())
        .unwrap_or_default();
    let mut pod = owned_pods::pod_from(job, template);
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let meta = &mut pod.metadata;
    meta.owner_references = Some(vec![owners::controller_ref(job)]);
    meta.finalizers
        .get_or_insert_default()
        .push(pods::FINALIZER.to_owned());
    meta.generate_name = Some(format!("{name}-"));
    let Some(index) = wanted.index else {
        return pod;
    };
    meta.generate_name = Some(format!("{name}-{index}-"));
    let annotations = meta.annotations.get_or_insert_default();
    annotations.insert(indexes::INDEX.to_owned(), index.to_string());
    if let Some((failures, ignored)) = wanted.failures {
        annotations.insert(failure::FAILURE_COUNT.to_owned(), failures.to_string());
        if ignored > 0 {
            annotations.insert(failure::IGNORED_COUNT.to_owned(), ignored.to_string());
        }
    }
    meta.labels
        .get_or_insert_default()
        .insert(indexes::INDEX.to_owned(), index.to_string());
    if let Some(spec) = &mut pod.spec {
        spec.hostname
            .get_or_insert_with(|| format!("{name}-{index}"));
        let init = spec.init_containers.iter_mut().flatten();
        spec.containers.iter_mut().chain(init).for_each(tell_index);
    }
    pod
}

fn tell_index(container: &mut Container) {
    let env = container.env.get_or_insert_default();
    if env.iter().any(|variable| variable.name == INDEX_ENV) {
        return;
    }
    env.push(EnvVar {
        name: INDEX_ENV.to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: None,
                field_path: format!("metadata.labels['{}']", indexes::INDEX),
            }),
            ..EnvVarSource::default()
        }),
    });
}
