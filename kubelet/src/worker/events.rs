//! Events about one Pod and its containers, in upstream's reasons and sentences.

use crate::pod::containers::{any_named, inits, mains};
use crate::pod::plan::Waiting;
use cox_client::events::{EventType, Recorder, reference};
use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod};
use std::collections::BTreeMap;

/// Records events about one Pod.
#[derive(Clone, Debug)]
pub struct PodEvents {
    recorder: Recorder,
    pod: ObjectReference,
    inits: Vec<String>,
    mains: Vec<String>,
}

impl PodEvents {
    /// For a Pod; a static one is known to the API server as its mirror.
    #[must_use]
    pub fn new(recorder: Recorder, pod: &Pod) -> Self {
        let names = |list: &[Container]| list.iter().map(|one| one.name.clone()).collect();
        Self {
            recorder,
            pod: reference(pod),
            inits: names(inits(pod)),
            mains: names(mains(pod)),
        }
    }

    /// About the Pod as a whole.
    pub fn pod(&self, kind: EventType, reason: &str, message: impl Into<String>) {
        self.recorder.event(&self.pod, kind, reason, message);
    }

    /// About one container.
    pub fn container(&self, name: &str, kind: EventType, reason: &str, message: impl Into<String>) {
        let list = if self.inits.iter().any(|init| init == name) {
            "initContainers"
        } else if self.mains.iter().any(|main| main == name) {
            "containers"
        } else {
            "ephemeralContainers"
        };
        let mut object = self.pod.clone();
        object.field_path = Some(format!("spec.{list}{{{name}}}"));
        self.recorder.event(&object, kind, reason, message);
    }

    /// What has to be said about containers that began to wait for another reason than before.
    pub fn waiting_changed(
        &self,
        pod: &Pod,
        before: &BTreeMap<String, Waiting>,
        now: &BTreeMap<String, Waiting>,
    ) {
        for (name, waiting) in now {
            if before
                .get(name)
                .is_some_and(|known| known.reason == waiting.reason)
            {
                continue;
            }
            match waiting.reason.as_str() {
                "CrashLoopBackOff" => {
                    let pod = crate::pod::containers::display(pod);
                    let message =
                        format!("Back-off restarting failed container {name} in pod {pod}");
                    self.container(name, EventType::Warning, "BackOff", message);
                }
                "ImagePullBackOff" => {
                    let image = any_named(pod, name).and_then(|c| c.image.clone());
                    let message =
                        format!("Back-off pulling image \"{}\"", image.unwrap_or_default());
                    self.container(name, EventType::Normal, "BackOff", message);
                    self.container(
                        name,
                        EventType::Warning,
                        "Failed",
                        "Error: ImagePullBackOff",
                    );
                }
                _ => {}
            }
        }
    }
}
