//! What reaches a worker from outside: newer objects, news of the runtime, config maps that changed, the wish to end.

use super::{Actor, BoxStream, Target};
use crate::cri::container_config::log_path;
use crate::cri::sandbox_config::log_dir;
use crate::pod::containers::any_named;
use crate::pod::history::{Ending, EndingCause, Volumes};
use crate::pod::plan::grace_of;
use crate::pod::view::{ContainerPhase, PodView};
use crate::volumes::References;
use crate::volumes::objects::Known;
use crate::worker::last_words;
use crate::worker::mailbox::{Failing, Mail};
use crate::worker::publish;
use cox_client::events::EventType;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;

impl Actor {
    /// Wakes the worker when a config map or secret of the Pod changes.
    pub(super) fn follow_objects(&mut self) {
        let namespace = self.pod.metadata.namespace.clone().unwrap_or_default();
        let references = References::of(&self.pod);
        for name in references.config_maps {
            let states = self.shared.volumes.config_maps.follow(&namespace, &name);
            self.followed.push(changes(states));
        }
        for name in references.secrets {
            let states = self.shared.volumes.secrets.follow(&namespace, &name);
            self.followed.push(changes(states));
        }
    }

    /// A config map or secret changed: files may be old, and what waited for it may go on at once.
    pub(super) fn objects_changed(&mut self) {
        self.refresh = true;
        self.keep = true;
        let now = self.shared.clock.now();
        if let Volumes::Failed(retry) = &mut self.history.volumes {
            retry.not_before = now;
        }
        for history in self.history.containers.values_mut() {
            if let Some(failure) = &mut history.start_failure
                && failure.reason == "CreateContainerConfigError"
            {
                failure.retry.not_before = now;
            }
        }
    }

    /// Takes in what came.
    pub(super) fn read(&mut self, mail: Mail) {
        if let Some(pod) = mail.pod {
            self.take_object(pod);
        }
        if let Some(mirror) = mail.mirror {
            self.object = Some(mirror);
        } else if mail.mirror_gone {
            self.object = None;
        }
        if let Some(listing) = mail.listing {
            self.take_listing(listing);
        }
        for id in &mail.removed {
            self.view.forget_container(id);
        }
        for sandbox in mail.news.sandboxes {
            self.view.merge_sandbox(sandbox);
        }
        for container in mail.news.containers {
            self.view.merge_container(container);
        }
        if mail.objects_changed {
            self.objects_changed();
        }
        if mail.gone {
            self.object_gone = true;
            if !self.is_static {
                self.object = None;
            }
            self.end(EndingCause::Deleted, grace_of(&self.pod));
        }
        if let Some(failing) = mail.fails
            && self.history.ending.is_none()
        {
            let Failing {
                reason,
                message,
                grace_secs,
                disruption,
            } = failing;
            self.events
                .pod(EventType::Warning, &reason, message.clone());
            let cause = EndingCause::Failed {
                reason,
                message,
                disruption,
            };
            self.end(cause, grace_secs);
        }
        let waits = self.history.resize_refused.as_ref();
        if mail.room && waits.is_some_and(|refused| refused.is_deferred) {
            self.history.resize_refused = None;
        }
        if let Some(limit_secs) = mail.node_stops {
            let grace_secs = grace_of(&self.pod).min(limit_secs);
            self.end(EndingCause::NodeStops, grace_secs);
        }
    }

    pub(super) fn take_object(&mut self, pod: Arc<Pod>) {
        let is_older = self
            .object
            .as_ref()
            .is_some_and(|known| publish::revision(&pod) < publish::revision(known));
        if is_older && !self.is_static {
            return;
        }
        let meta = (&pod.metadata.labels, &pod.metadata.annotations);
        self.refresh |= meta != (&self.pod.metadata.labels, &self.pod.metadata.annotations);
        if pod.metadata.deletion_timestamp.is_some() {
            self.end(EndingCause::Deleted, grace_of(&pod));
        }
        self.keep = true;
        if !self.is_static {
            self.object = Some(pod.clone());
        }
        self.pod = pod;
    }

    /// Gives containers that ended the message that they left.
    pub(super) fn hear_last_words(&mut self) {
        let uid = self.pod.metadata.uid.as_deref().unwrap_or_default();
        let dir = self.shared.volumes.pod_dir(uid).join("containers");
        let logs = log_dir(&self.shared.config, &self.pod);
        let containers = &self.view.containers;
        self.last_words
            .retain(|id, _| containers.iter().any(|view| &view.id == id));
        for view in &mut self.view.containers {
            let ContainerPhase::Exited(exit) = &mut view.state else {
                continue;
            };
            let Some(spec) = any_named(&self.pod, &view.name).filter(|_| exit.message.is_empty())
            else {
                continue;
            };
            let words = self.last_words.entry(view.id.clone()).or_insert_with(|| {
                let log = logs.join(log_path(&view.name, view.attempt));
                last_words::read(&dir, &spec, view.attempt, exit, &log)
            });
            exit.message.clone_from(words);
        }
    }

    /// Replaces the view by a full listing, except for what is being made at this moment.
    fn take_listing(&mut self, listing: PodView) {
        let making =
            self.busy.contains_key(&Target::Start) || self.busy.contains_key(&Target::NewSandbox);
        if !making {
            self.view
                .containers
                .retain(|known| listing.containers.iter().any(|c| c.id == known.id));
            self.view
                .sandboxes
                .retain(|known| listing.sandboxes.iter().any(|s| s.id == known.id));
        }
        for sandbox in listing.sandboxes {
            self.view.merge_sandbox(sandbox);
        }
        for container in listing.containers {
            self.view.merge_container(container);
        }
    }

    /// The Pod has to end. A deletion wins over any other cause, and a shorter grace over a longer one.
    pub(super) fn end(&mut self, cause: EndingCause, grace_secs: i64) {
        let since = self.shared.clock.now();
        let fresh = Ending {
            cause,
            since,
            grace_secs,
        };
        let ending = match self.history.ending.take() {
            None => fresh,
            Some(known) if known.cause == EndingCause::Deleted => Ending {
                grace_secs: known.grace_secs.min(fresh.grace_secs),
                ..known
            },
            Some(_) if fresh.cause == EndingCause::Deleted => fresh,
            // What was over before is cleared away too; its object says that it is over.
            Some(known) if fresh.cause == EndingCause::NodeStops => Ending {
                cause: fresh.cause,
                ..known
            },
            Some(known) => known,
        };
        self.history.ending = Some(ending);
        // A pull may take an hour, a postStart hook any time; nothing needs them any more.
        let idle = self
            .busy
            .iter()
            .filter(|(target, _)| matches!(target, Target::Image(_) | Target::Hook(_)));
        idle.for_each(|(_, busy)| busy.abort.abort());
        let uid = self.pod.metadata.uid.as_deref().unwrap_or_default();
        self.shared.volumes.certificates.give_up(uid);
    }
}

/// Each change of a followed object after its first known state, which the first mount has seen.
fn changes<K: Clone + Send + Sync + 'static>(states: watch::Receiver<Known<K>>) -> BoxStream {
    let mut is_first = true;
    let is_change = move |state: &Known<K>| {
        let was_first = is_first;
        is_first &= matches!(state, Known::Loading);
        std::future::ready(!was_first)
    };
    WatchStream::new(states).filter(is_change).map(drop).boxed()
}
