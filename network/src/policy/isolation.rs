//! Pods that are about to start: policies hold for them before their first container runs, though the API does not show their
//! addresses yet. <https://kubernetes.io/docs/concepts/services-networking/network-policies/#pod-lifecycle>

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Pod, PodIP};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::compile::addresses;

/// Whoever waits goes on after this: a node starts its Pods without the API server, too, and then nobody knows the policies.
const PATIENCE: Duration = Duration::from_secs(2);
/// A Pod whose address never comes by the API is remembered for so long.
const MEMORY: Duration = Duration::from_mins(1);

/// The way from whoever starts Pods on this node to whoever holds policies there.
#[derive(Clone, Debug, Default)]
pub struct Isolation {
    asked: Arc<Asked>,
}

#[derive(Debug, Default)]
struct Asked {
    pods: Mutex<Vec<NewPod>>,
    news: Notify,
}

/// A Pod with the addresses that it is going to have.
#[derive(Debug)]
pub(super) struct NewPod {
    pod: Arc<Pod>,
    since: Instant,
    waiting: Option<oneshot::Sender<()>>,
}

impl Isolation {
    /// Waits until the policies of this node hold for a Pod, two seconds at most.
    pub async fn isolate(&self, pod: &Pod, ips: &[IpAddr]) {
        let mut pod = pod.clone();
        let all = ips.iter().map(|ip| PodIP { ip: ip.to_string() });
        pod.status.get_or_insert_default().pod_ips = Some(all.collect());
        let (waiting, done) = oneshot::channel();
        let new = NewPod {
            pod: Arc::new(pod),
            since: Instant::now(),
            waiting: Some(waiting),
        };
        let name = new.pod.metadata.name.clone().unwrap_or_default();
        self.asked.pods.lock().push(new);
        self.asked.news.notify_one();
        // Dropped: there are no policies.
        if tokio::time::timeout(PATIENCE, done).await.is_err() {
            tracing::warn!(
                pod = name,
                "A Pod starts before it is known which network policies hold for it"
            );
        }
    }

    /// Somebody may have asked since [`Self::take`].
    pub(super) async fn asked(&self) {
        self.asked.news.notified().await;
    }

    pub(super) fn take(&self) -> Vec<NewPod> {
        std::mem::take(&mut self.asked.pods.lock())
    }
}

impl NewPod {
    /// Tells whoever waits that the policies hold.
    pub(super) fn done(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            // Whoever asked may have lost patience.
            waiting.send(()).ok();
        }
    }

    fn is(&self, other: &Pod) -> bool {
        let (own, other) = (&self.pod.metadata, &other.metadata);
        own.name == other.name && own.namespace == other.namespace
    }
}

/// The Pods as the API shows them, with those instead whose addresses it does not show yet; forgets the others of `new`.
pub(super) fn with_new(mut pods: Vec<Arc<Pod>>, new: &mut Vec<NewPod>) -> Vec<Arc<Pod>> {
    new.retain(|one| {
        let ips = |pod: &Pod| addresses(pod).into_iter().collect::<BTreeSet<IpAddr>>();
        let shown = pods.iter().find(|pod| one.is(pod));
        let is_shown = shown.is_some_and(|pod| ips(pod) == ips(&one.pod));
        !is_shown && (one.waiting.is_some() || one.since.elapsed() < MEMORY)
    });
    if !new.is_empty() {
        pods.retain(|pod| !new.iter().any(|one| one.is(pod)));
        pods.extend(new.iter().map(|one| Arc::clone(&one.pod)));
    }
    pods
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, ip: Option<&str>) -> Pod {
        let ips: Vec<_> = ip.map(|ip| json!({"ip": ip})).into_iter().collect();
        let pod =
            json!({"metadata": {"namespace": "default", "name": name}, "status": {"podIPs": ips}});
        serde_json::from_value(pod).unwrap()
    }

    fn shown(all: &[Arc<Pod>]) -> Vec<String> {
        let show = |pod: &Arc<Pod>| {
            format!(
                "{} {:?}",
                pod.metadata.name.as_deref().unwrap(),
                addresses(pod)
            )
        };
        all.iter().map(show).collect()
    }

    #[tokio::test]
    async fn a_pod_counts_from_before_the_api_shows_its_address() {
        let isolation = Isolation::default();
        let asking = isolation.clone();
        let started = tokio::spawn(async move {
            let ip = "10.0.0.7".parse().unwrap();
            asking.isolate(&pod("new", None), &[ip]).await;
        });
        isolation.asked().await;
        let mut new = isolation.take();
        let without: Vec<_> = [pod("old", Some("10.0.0.1")), pod("new", None)]
            .map(Arc::new)
            .into();
        let expected = ["old [10.0.0.1]", "new [10.0.0.7]"];
        assert_eq!(shown(&with_new(without.clone(), &mut new)), expected);
        assert!(!started.is_finished());
        new.iter_mut().for_each(NewPod::done);
        started.await.unwrap();
        assert_eq!(
            shown(&with_new(without, &mut new)),
            expected,
            "it stays until the API shows it"
        );
        let with = vec![Arc::new(pod("new", Some("10.0.0.7")))];
        assert_eq!(shown(&with_new(with, &mut new)), ["new [10.0.0.7]"]);
        assert!(new.is_empty(), "the API shows it");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_where_there_are_no_policies_or_for_ever() {
        let isolation = Isolation::default();
        let (one, ip) = (pod("new", None), ["10.0.0.7".parse().unwrap()]);
        let nobody_takes = tokio::time::Instant::now();
        isolation.isolate(&one, &ip).await;
        assert_eq!(nobody_takes.elapsed(), PATIENCE);
        let answered = tokio::time::Instant::now();
        drop(isolation.take());
        tokio::join!(isolation.isolate(&one, &ip), async {
            isolation.asked().await;
            drop(isolation.take());
        });
        assert_eq!(answered.elapsed(), Duration::ZERO);
    }
}
