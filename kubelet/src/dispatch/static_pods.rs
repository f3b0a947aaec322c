//! Static Pods: those of the folder and those of the URL. What cannot be read is told once: log, event, gauge.

use super::{Dispatcher, uid};
use crate::pod::PodUid;
use crate::sources::{manifest, url};
use cox_client::events::EventType;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What is remembered between two looks.
#[derive(Debug, Default)]
pub(super) struct StaticPods {
    reported: HashSet<String>,
    /// The last good answer of the URL: a server that is away takes no Pods away.
    fetched: Vec<Pod>,
}

impl Dispatcher {
    /// Looks at all sources of static Pods.
    pub(super) async fn read_static(self: &Arc<Self>, memory: &mut StaticPods) {
        let config = &self.shared.config;
        if config.static_pod_dir.is_none() && config.static_pod_url.is_none() {
            return;
        }
        let mut problems = HashSet::new();
        let mut pods = Vec::new();
        if let Some(dir) = config.static_pod_dir.clone() {
            let node = config.node_name.clone();
            let read = tokio::task::spawn_blocking(move || manifest::read_folder(&dir, &node));
            let Ok(folder) = read.await else { return };
            problems.extend(folder.errors.iter().map(ToString::to_string));
            pods.extend(folder.pods);
        }
        if let Some(from) = &config.static_pod_url {
            match url::fetch(from, &config.node_name).await {
                Ok(fetched) => {
                    problems.extend(fetched.errors.iter().map(ToString::to_string));
                    memory.fetched = fetched.pods;
                }
                Err(error) => drop(problems.insert(format!("{from}: {error}"))),
            }
            pods.extend(memory.fetched.iter().cloned());
        }
        for problem in problems.difference(&memory.reported) {
            self.tell_bad_manifest(problem);
        }
        self.bad_manifests.store(problems.len(), Ordering::Relaxed);
        memory.reported = problems;
        self.take_static(pods);
    }

    fn tell_bad_manifest(&self, problem: &str) {
        tracing::warn!(problem, "Static manifest is left out");
        let node = &self.shared.config.node_name;
        let about = ObjectReference {
            kind: Some("Node".to_owned()),
            api_version: Some("v1".to_owned()),
            name: Some(node.clone()),
            uid: Some(node.clone()),
            ..ObjectReference::default()
        };
        let recorder = &self.shared.recorder;
        recorder.event(&about, EventType::Warning, "InvalidStaticPod", problem);
    }

    /// Starts what is new and ends what is not there any more.
    fn take_static(self: &Arc<Self>, pods: Vec<Pod>) {
        let here: HashSet<PodUid> = pods.iter().map(uid).collect();
        for (uid, known) in self.lock().iter() {
            if known.is_static && !here.contains(uid) {
                known.mailbox.put(|mail| mail.gone = true);
            }
        }
        for pod in pods {
            let uid = uid(&pod);
            if self.lock().contains_key(&uid) {
                continue;
            }
            let pod = Arc::new(pod);
            self.start(uid, pod.clone(), true, false);
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let mirror = self.pods.get(pod.metadata.namespace.as_deref(), name);
            if let Some(mirror) = mirror {
                self.mirror_changed(&pod, Some(mirror));
            }
        }
    }
}
