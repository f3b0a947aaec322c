//! Cores that belong to one container alone: upstream's static CPU policy.
//!
//! A container of a guaranteed Pod that asks for whole cores gets them for itself; all others share the rest. Init containers have
//! cores of their own too, which those that come after them in the Pod use again. What was given away is
//! written down in `cpu_manager_state`, as upstream writes it, so that a kubelet that starts anew takes nothing back. Guests (Wasm) run
//! inside of the runtime and have no cores of their own.

mod plan;
mod set;

use crate::cri::client::Runtime;
use crate::cri::observe;
use crate::files;
use crate::pod::containers::{inits, is_sidecar, mains};
use cox_cri::v1::LinuxContainerResources;
use k8s_openapi::api::core::v1::Pod;
pub use plan::Core;
use plan::State;
pub use set::CpuSet;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

/// The cores of a node cannot be given away as wished.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// The policy needs a core for everybody else.
    #[error("the static CPU policy needs cores for the system: give some with --reserved cpu=1")]
    NothingReserved,
    /// The file of an earlier start does not fit this machine or this policy.
    #[error("{} does not fit this machine ({why}): drain the node, then remove the file", .file.display())]
    State {
        /// Which.
        file: PathBuf,
        /// Why.
        why: String,
    },
}

/// Gives cores away.
#[derive(Debug)]
pub struct CpuManager {
    file: PathBuf,
    state: Mutex<State>,
    writes: files::Writes,
}

impl CpuManager {
    /// Over the cores `all`, of which so many stay shared.
    pub fn open(
        data_dir: &Path,
        all: &[plan::Core],
        reserved_millis: i64,
    ) -> Result<Self, CpuError> {
        let reserved = usize::try_from((reserved_millis + 999) / 1000).unwrap_or(0);
        if reserved == 0 {
            return Err(CpuError::NothingReserved);
        }
        let file = data_dir.join("cpu_manager_state");
        let mut state = State::new(all, reserved);
        match std::fs::read_to_string(&file) {
            Ok(text) => state.restore(&text).map_err(|why| CpuError::State {
                file: file.clone(),
                why,
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(CpuError::State {
                    file,
                    why: error.to_string(),
                });
            }
        }
        Ok(Self {
            file,
            state: Mutex::new(state),
            writes: files::Writes::default(),
        })
    }

    /// The cores of this machine.
    #[must_use]
    pub fn cores() -> Vec<plan::Core> {
        plan::cores(Path::new("/sys/devices/system/cpu"))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no panic happens while this lock is held")
    }

    /// Gives each container of the Pod its cores; doing it twice changes nothing. The answer says whether anything was given.
    pub fn allocate(&self, pod: &Pod) -> Result<bool, String> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let mut state = self.state();
        let before = state.clone();
        // What init containers had is free again for who comes after them; sidecars and main containers keep what they get.
        let mut reusable = BTreeSet::new();
        for container in inits(pod).iter().chain(mains(pod)) {
            let wanted = plan::exclusive(pod, container);
            if wanted == 0 {
                continue;
            }
            let own = match state.take(uid, &container.name, wanted, &reusable) {
                Ok(own) => own.0,
                Err(why) => {
                    // All of the Pod or nothing.
                    *state = before;
                    return Err(why);
                }
            };
            let is_init = inits(pod).iter().any(|init| init.name == container.name);
            if is_init && !is_sidecar(pod, container) {
                reusable.extend(own);
            } else {
                reusable.retain(|core| !own.contains(core));
            }
        }
        let changed = *state != before;
        if changed {
            self.write(&state);
        }
        Ok(changed)
    }

    /// Takes back what a Pod had. The answer says whether that was anything.
    pub fn release(&self, uid: &str) -> bool {
        let mut state = self.state();
        let had = state.give_back(uid);
        if had {
            self.write(&state);
        }
        had
    }

    /// The cores that a container may run on.
    #[must_use]
    pub fn of(&self, uid: &str, container: &str) -> CpuSet {
        self.state().of(uid, container)
    }

    /// The cores that are a container's own.
    #[must_use]
    pub fn own(&self, uid: &str, container: &str) -> CpuSet {
        self.state()
            .own(uid, container)
            .cloned()
            .unwrap_or_default()
    }

    /// The cores that can be somebody's own.
    #[must_use]
    pub fn allocatable(&self) -> CpuSet {
        self.state().allocatable()
    }

    /// How often what was given was written down.
    pub(crate) fn writes(&self) -> u64 {
        self.writes.count()
    }

    fn write(&self, state: &State) {
        self.writes.note();
        if let Err(error) = files::replace(&self.file, state.text()) {
            tracing::error!(file = %self.file.display(), %error, "Cores that were given away cannot be written down");
        }
    }

    /// Moves every running container that shares onto the cores that are shared now.
    pub async fn move_others(&self, runtime: &Runtime) {
        let pods = match observe::all_pods(runtime).await {
            Ok(pods) => pods,
            Err(error) => {
                tracing::warn!(%error, "The runtime does not say what runs: cores of others stay as they are");
                return;
            }
        };
        for (uid, found) in pods {
            let in_guests = found
                .view
                .ready_sandbox()
                .is_none_or(|sandbox| sandbox.is_virtual);
            if in_guests {
                continue;
            }
            for container in found.view.containers.iter().filter(|one| one.is_running()) {
                let wanted = LinuxContainerResources {
                    cpuset_cpus: self.of(uid.as_str(), &container.name).to_string(),
                    ..LinuxContainerResources::default()
                };
                if let Err(error) = runtime.update_resources(&container.id, wanted).await {
                    tracing::debug!(container = container.name, %error, "Cores of a container stay as they are");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(uid: &str, cpu: &str) -> Pod {
        let amounts = json!({"cpu": cpu, "memory": "1Mi"});
        serde_json::from_value(json!({"metadata": {"uid": uid}, "spec": {"containers": [
            {"name": "c", "resources": {"requests": amounts, "limits": amounts}}]}}))
        .unwrap()
    }

    fn open(dir: &Path) -> Result<CpuManager, CpuError> {
        let cores: Vec<plan::Core> = (0..4).map(plan::Core::alone).collect();
        CpuManager::open(dir, &cores, 500)
    }

    #[test]
    fn cores_are_given_away_once_and_a_restart_takes_none_back() {
        let dir = tempfile::tempdir().unwrap();
        let cpus = open(dir.path()).unwrap();
        assert!(cpus.allocate(&pod("a", "2")).unwrap());
        assert!(!cpus.allocate(&pod("a", "2")).unwrap());
        assert!(!cpus.allocate(&pod("half", "1500m")).unwrap());
        assert_eq!(cpus.of("a", "c").to_string(), "1-2");
        assert_eq!(cpus.of("half", "c").to_string(), "0,3");
        let cpus = open(dir.path()).unwrap();
        assert_eq!(cpus.of("a", "c").to_string(), "1-2");
        let why = cpus.allocate(&pod("b", "2")).unwrap_err();
        assert!(why.contains("requested=2, available=1"), "{why}");
        assert!(cpus.release("a") && !cpus.release("a"));
        assert!(cpus.allocate(&pod("b", "3")).unwrap());
        assert_eq!(
            cpus.of("x", "c").to_string(),
            "0",
            "what is reserved stays shared"
        );
        assert_eq!(cpus.own("b", "c").to_string(), "1-3");
        assert_eq!(
            cpus.own("x", "c").to_string(),
            "",
            "shared cores are nobody's own"
        );
        assert_eq!(cpus.allocatable().to_string(), "1-3");
    }

    #[test]
    fn main_containers_use_the_cores_of_init_containers_again() {
        let dir = tempfile::tempdir().unwrap();
        let cores: Vec<plan::Core> = (0..6).map(plan::Core::alone).collect();
        let cpus = CpuManager::open(dir.path(), &cores, 1000).unwrap();
        let container = |name: &str, cpu: &str, restarts: Option<&str>| {
            let amounts = json!({"cpu": cpu, "memory": "1Mi"});
            json!({"name": name, "restartPolicy": restarts, "resources": {"requests": amounts, "limits": amounts}})
        };
        let pod: Pod = serde_json::from_value(json!({"metadata": {"uid": "a"}, "spec": {
            "initContainers": [container("i", "3", None), container("s", "1", Some("Always")), container("j", "2", None),
                container("part", "1500m", None)],
            "containers": [container("m", "2", None), container("n", "2", None)]}}))
        .unwrap();
        assert!(cpus.allocate(&pod).unwrap());
        let own = |name: &str| cpus.own("a", name).to_string();
        // The sidecar keeps a core of the first one, so the second main container needs two that nobody had.
        assert_eq!(
            ["i", "s", "j", "part", "m", "n"].map(own),
            ["1-3", "1", "2-3", "", "2-3", "4-5"]
        );
        assert!(!cpus.allocate(&pod).unwrap(), "twice changes nothing");
        let why = cpus.allocate(&self::pod("b", "1")).unwrap_err();
        assert!(why.contains("requested=1, available=0"), "{why}");
        assert!(cpus.release("a"));
        assert!(cpus.allocate(&self::pod("b", "5")).unwrap());
    }

    #[test]
    fn a_state_of_another_machine_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let other = r#"{"policyName":"static","defaultCpuSet":"0","entries":{"a":{"c":"9"}}}"#;
        std::fs::write(dir.path().join("cpu_manager_state"), other).unwrap();
        assert!(matches!(open(dir.path()), Err(CpuError::State { .. })));
        let cores = [plan::Core::alone(0)];
        assert!(matches!(
            CpuManager::open(dir.path(), &cores, 0),
            Err(CpuError::NothingReserved)
        ));
    }
}
