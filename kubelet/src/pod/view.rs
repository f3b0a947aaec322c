//! What the runtime shows of one Pod, in our own words, and how news from it is merged.
//!
//! The view only moves forward: news may arrive late (an event written before our own call was answered), so a container never
//! goes from Exited back to Running, nor from Running back to Created. A repeated or reordered event changes nothing.

use super::{ContainerId, SandboxId};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ContainerUser;

/// Everything the runtime knows of one Pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodView {
    /// Sandboxes, newest attempt first.
    pub sandboxes: Vec<SandboxView>,
    /// Containers in no particular order; several of one name are successive attempts.
    pub containers: Vec<ContainerView>,
}

/// One sandbox of a Pod.
#[derive(Clone, Debug, PartialEq)]
pub struct SandboxView {
    pub id: SandboxId,
    pub attempt: u32,
    pub ready: bool,
    pub created_at: Timestamp,
    /// Pod addresses, the primary one first; empty for host network.
    pub ips: Vec<String>,
    /// It has no network namespace: Wasm containers alone can run in it.
    pub is_virtual: bool,
}

/// One container of a Pod.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerView {
    pub id: ContainerId,
    pub sandbox: SandboxId,
    pub name: String,
    /// How many containers of this name came before: the restart count.
    pub attempt: u32,
    pub state: ContainerPhase,
    pub created_at: Timestamp,
    pub image: String,
    pub image_ref: String,
    pub image_id: String,
    /// Hash of the part of the spec that needs a new container when it changes; empty when unknown.
    pub spec_hash: String,
    /// Who its first process runs as, where the runtime says so.
    pub user: Option<ContainerUser>,
}

/// Where a container is in its life.
#[derive(Clone, Debug, PartialEq)]
pub enum ContainerPhase {
    /// Made but not started: the start failed or is under way.
    Created,
    /// Running since the given time.
    Running { started_at: Timestamp },
    /// Ended.
    Exited(Exit),
    /// The runtime lost track of it; it is treated as dead.
    Unknown,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Exit {
    pub code: i32,
    pub reason: String,
    pub message: String,
    pub started_at: Option<Timestamp>,
    pub finished_at: Timestamp,
}

impl ContainerPhase {
    fn rank(&self) -> u8 {
        match self {
            Self::Created => 0,
            Self::Running { .. } => 1,
            Self::Unknown => 2,
            Self::Exited(_) => 3,
        }
    }
}

impl ContainerView {
    /// Whether it runs now.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self.state, ContainerPhase::Running { .. })
    }

    /// How it ended, if it did.
    #[must_use]
    pub fn exit(&self) -> Option<&Exit> {
        match &self.state {
            ContainerPhase::Exited(exit) => Some(exit),
            ContainerPhase::Created | ContainerPhase::Running { .. } | ContainerPhase::Unknown => {
                None
            }
        }
    }
}

impl PodView {
    /// The newest sandbox, ready or not.
    #[must_use]
    pub fn latest_sandbox(&self) -> Option<&SandboxView> {
        self.sandboxes
            .iter()
            .max_by_key(|sandbox| (sandbox.attempt, sandbox.created_at))
    }

    /// The newest sandbox if it is ready.
    #[must_use]
    pub fn ready_sandbox(&self) -> Option<&SandboxView> {
        self.latest_sandbox().filter(|sandbox| sandbox.ready)
    }

    /// The newest container of a name over all sandboxes.
    #[must_use]
    pub fn latest(&self, name: &str) -> Option<&ContainerView> {
        self.attempts(name).into_iter().next()
    }

    /// The newest container of a name in one sandbox.
    #[must_use]
    pub fn latest_in(&self, sandbox: &SandboxId, name: &str) -> Option<&ContainerView> {
        self.attempts(name)
            .into_iter()
            .find(|container| &container.sandbox == sandbox)
    }

    /// All containers of a name, newest first.
    #[must_use]
    pub fn attempts(&self, name: &str) -> Vec<&ContainerView> {
        let mut found: Vec<_> = self
            .containers
            .iter()
            .filter(|container| container.name == name)
            .collect();
        found.sort_by_key(|container| std::cmp::Reverse((container.attempt, container.created_at)));
        found
    }

    /// Nothing is left in the runtime.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sandboxes.is_empty() && self.containers.is_empty()
    }

    /// Takes in news of one container; older news than what is known changes nothing.
    pub fn merge_container(&mut self, news: ContainerView) {
        match self.containers.iter_mut().find(|known| known.id == news.id) {
            None => self.containers.push(news),
            Some(known) if news.state.rank() < known.state.rank() => {}
            Some(known) => {
                let state = match (&known.state, news.state) {
                    // The start time that was published first stays, so that a second opinion causes no write.
                    (ContainerPhase::Running { started_at }, ContainerPhase::Running { .. }) => {
                        ContainerPhase::Running {
                            started_at: *started_at,
                        }
                    }
                    (_, state) => state,
                };
                let image_ref = if news.image_ref.is_empty() {
                    known.image_ref.clone()
                } else {
                    news.image_ref
                };
                let image_id = if news.image_id.is_empty() {
                    known.image_id.clone()
                } else {
                    news.image_id
                };
                let spec_hash = if news.spec_hash.is_empty() {
                    known.spec_hash.clone()
                } else {
                    news.spec_hash
                };
                let image = if news.image.is_empty() {
                    known.image.clone()
                } else {
                    news.image
                };
                let user = news.user.or_else(|| known.user.take());
                *known = ContainerView {
                    state,
                    user,
                    image_ref,
                    image_id,
                    spec_hash,
                    image,
                    ..news
                };
            }
        }
    }

    /// Takes in news of one sandbox; a sandbox that was seen stopped stays stopped.
    pub fn merge_sandbox(&mut self, news: SandboxView) {
        match self.sandboxes.iter_mut().find(|known| known.id == news.id) {
            None => self.sandboxes.push(news),
            Some(known) => {
                let ready = known.ready && news.ready;
                let ips = if news.ips.is_empty() {
                    std::mem::take(&mut known.ips)
                } else {
                    news.ips
                };
                *known = SandboxView { ready, ips, ..news };
            }
        }
        self.sandboxes
            .sort_by_key(|sandbox| std::cmp::Reverse((sandbox.attempt, sandbox.created_at)));
    }

    /// Forgets a container that was removed.
    pub fn forget_container(&mut self, id: &ContainerId) {
        self.containers.retain(|container| &container.id != id);
    }

    /// Forgets a sandbox that was removed, and its containers with it.
    pub fn forget_sandbox(&mut self, id: &SandboxId) {
        self.sandboxes.retain(|sandbox| &sandbox.id != id);
        self.containers.retain(|container| &container.sandbox != id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_second(secs).unwrap()
    }

    fn container(id: &str, attempt: u32, state: ContainerPhase) -> ContainerView {
        ContainerView {
            id: id.into(),
            sandbox: "s".into(),
            name: "a".into(),
            attempt,
            state,
            created_at: at(0),
            image: "i".into(),
            image_ref: String::new(),
            image_id: String::new(),
            spec_hash: String::new(),
            user: None,
        }
    }

    #[test]
    fn late_news_never_move_a_container_back() {
        let exit = Exit {
            code: 1,
            reason: "Error".into(),
            message: String::new(),
            started_at: None,
            finished_at: at(5),
        };
        let mut view = PodView::default();
        view.merge_container(container("c", 0, ContainerPhase::Exited(exit.clone())));
        view.merge_container(container(
            "c",
            0,
            ContainerPhase::Running { started_at: at(1) },
        ));
        view.merge_container(container("c", 0, ContainerPhase::Created));
        assert_eq!(view.latest("a").unwrap().exit(), Some(&exit));
    }

    #[test]
    fn the_first_start_time_stays() {
        let mut view = PodView::default();
        view.merge_container(container(
            "c",
            0,
            ContainerPhase::Running { started_at: at(1) },
        ));
        view.merge_container(container(
            "c",
            0,
            ContainerPhase::Running { started_at: at(2) },
        ));
        assert_eq!(
            view.latest("a").unwrap().state,
            ContainerPhase::Running { started_at: at(1) }
        );
    }

    #[test]
    fn the_newest_attempt_is_found_whatever_the_order() {
        let mut view = PodView::default();
        for (id, attempt) in [("c2", 2), ("c0", 0), ("c1", 1)] {
            view.merge_container(container(id, attempt, ContainerPhase::Created));
        }
        let ids: Vec<_> = view
            .attempts("a")
            .iter()
            .map(|c| c.id.as_str().to_owned())
            .collect();
        assert_eq!(ids, ["c2", "c1", "c0"]);
    }

    #[test]
    fn a_stopped_sandbox_stays_stopped_and_keeps_its_address() {
        let sandbox = |ready, ips: &[&str]| SandboxView {
            id: "s".into(),
            attempt: 0,
            ready,
            created_at: at(0),
            ips: ips.iter().map(|ip| (*ip).to_owned()).collect(),
            is_virtual: false,
        };
        let mut view = PodView::default();
        view.merge_sandbox(sandbox(true, &["127.64.0.2"]));
        view.merge_sandbox(sandbox(false, &[]));
        view.merge_sandbox(sandbox(true, &[]));
        assert!(view.ready_sandbox().is_none());
        assert_eq!(view.latest_sandbox().unwrap().ips, ["127.64.0.2"]);
    }
}
