//! The tree of cgroups in which the Linux containers of Pods run: one for all Pods, one per class of service below it, one per Pod.
//!
//! `kubepods` holds guaranteed Pods and the classes `burstable` and `besteffort`, as upstream lays them out. The runtime puts
//! containers below their Pod's. Guests (Wasm) run inside of the runtime and have none. Both versions of the kernel's interface
//! are spoken; a controller that is missing is named once, and its limits are not kept. Where systemd makes the cgroups they are
//! slices of its own, with the same settings.

pub mod plan;
mod systemd;
mod tree;

use k8s_openapi::api::core::v1::Pod;
use plan::Settings;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use tree::Tree;

/// The cgroup of all Pods.
const ROOT: &str = "kubepods";

/// Controllers without which limits of Pods are not kept.
pub const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];

/// Who makes cgroups on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Driver {
    /// The kubelet and the runtime do.
    #[default]
    Files,
    /// systemd does, as this program (`systemctl`) tells it.
    Systemd(PathBuf),
}

/// A Pod that has a cgroup.
#[derive(Clone, Debug)]
struct Known {
    path: String,
    cpu_millis: i64,
    settings: Settings,
}

/// The cgroups of one kubelet.
#[derive(Debug)]
pub struct Cgroups {
    tree: Option<Tree>,
    pids_per_pod: Option<i64>,
    pods: Mutex<BTreeMap<String, Known>>,
}

impl Cgroups {
    /// None are made: containers run where the runtime puts them.
    #[must_use]
    pub fn off() -> Self {
        Self {
            tree: None,
            pids_per_pod: None,
            pods: Mutex::default(),
        }
    }

    /// Below the mounted hierarchies of `root` (`/sys/fs/cgroup`). `all`: what all Pods together may use.
    pub fn on(
        root: &Path,
        driver: &Driver,
        pids_per_pod: Option<i64>,
        all: &Settings,
    ) -> io::Result<Self> {
        let tree = match driver {
            Driver::Files => Tree::at(root)?,
            Driver::Systemd(systemctl) => Tree::of_systemd(root, systemctl)?,
        };
        tree.set(ROOT, all)?;
        let least = Settings {
            cpu_shares: plan::shares(0),
            ..Settings::default()
        };
        for class in ["burstable", "besteffort"] {
            tree.set(&format!("{ROOT}/{class}"), &least)?;
        }
        Ok(Self {
            tree: Some(tree),
            pids_per_pod,
            pods: Mutex::default(),
        })
    }

    /// Controllers that this kernel does not offer.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        let tree = self.tree.as_ref();
        let missing = NEEDED
            .into_iter()
            .filter(|controller| tree.is_some_and(|tree| !tree.has(controller)));
        missing.collect()
    }

    fn pods(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Known>> {
        self.pods
            .lock()
            .expect("no panic happens while this lock is held")
    }

    /// What the runtime is told of where a Pod's containers belong; empty: it decides itself.
    #[must_use]
    pub fn parent(&self, pod: &Pod) -> String {
        match &self.tree {
            Some(tree) => {
                let place = format!("{ROOT}/{}", plan::path(pod));
                format!("/{}", tree.folder(&place))
            }
            None => String::new(),
        }
    }

    /// Makes or adjusts the cgroup of a Pod.
    pub fn ensure(&self, pod: &Pod) -> io::Result<()> {
        self.set(pod, plan::of(pod, self.pids_per_pod))
    }

    /// Takes over the cgroup that an earlier kubelet made for a Pod.
    pub fn take_over(&self, pod: &Pod) -> io::Result<()> {
        let place = format!("{ROOT}/{}", plan::path(pod));
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let is_there = self.tree.as_ref().is_some_and(|tree| tree.is_there(&place));
        if is_there && !self.pods().contains_key(uid) {
            return self.ensure(pod);
        }
        Ok(())
    }

    /// Widens the cgroup of a Pod that is about to be resized, so that neither its old nor its new size is too little.
    pub fn widen(&self, pod: &Pod) -> io::Result<()> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let Some(known) = self.pods().get(&uid).cloned() else {
            return Ok(());
        };
        let wanted = plan::of(pod, self.pids_per_pod);
        self.set(pod, plan::widest(&known.settings, &wanted))
    }

    /// Fits the cgroup of a Pod that was resized.
    pub fn refit(&self, pod: &Pod) -> io::Result<()> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        if self.pods().contains_key(&uid) {
            self.ensure(pod)?;
        }
        Ok(())
    }

    fn set(&self, pod: &Pod, settings: Settings) -> io::Result<()> {
        let Some(tree) = &self.tree else {
            return Ok(());
        };
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        // The class of a Pod never changes, so neither does its place.
        let path = format!("{ROOT}/{}", plan::path(pod));
        tree.set(&path, &settings)?;
        tree.start(&path)?;
        let cpu_millis = crate::resources::of_pod(pod).get("cpu").copied();
        let known = Known {
            path,
            cpu_millis: cpu_millis.unwrap_or(0),
            settings,
        };
        self.pods().insert(uid, known);
        self.weigh_burstable(tree)
    }

    /// Removes the cgroup of a Pod whose containers are gone.
    pub fn remove(&self, pod: &Pod) -> io::Result<()> {
        let Some(tree) = &self.tree else {
            return Ok(());
        };
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let known = self.pods().remove(&uid);
        let path = known.map_or_else(|| format!("{ROOT}/{}", plan::path(pod)), |known| known.path);
        tree.remove(&path)?;
        self.weigh_burstable(tree)
    }

    /// All burstable Pods together weigh what they ask for; those of best effort get what is left.
    fn weigh_burstable(&self, tree: &Tree) -> io::Result<()> {
        let burstable = format!("{ROOT}/burstable");
        let millis = self
            .pods()
            .values()
            .filter(|known| known.path.starts_with(&burstable))
            .map(|known| known.cpu_millis)
            .sum();
        tree.weigh(&burstable, plan::shares(millis))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(uid: &str, cpu: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"uid": uid}, "spec": {"containers": [
            {"name": "c", "resources": {"requests": {"cpu": cpu}}}]}}))
        .unwrap()
    }

    fn read(path: std::path::PathBuf) -> String {
        std::fs::read_to_string(path).unwrap_or_default()
    }

    #[test]
    fn a_pod_has_a_cgroup_below_its_class_and_the_class_weighs_what_its_pods_ask_for() {
        let root = tempfile::tempdir().unwrap();
        for controller in ["cpu", "memory"] {
            std::fs::create_dir(root.path().join(controller)).unwrap();
        }
        let cgroups =
            Cgroups::on(root.path(), &Driver::Files, Some(100), &Settings::default()).unwrap();
        assert_eq!(
            cgroups.missing(),
            ["pids"],
            "what the kernel lacks is named"
        );
        let (a, b) = (pod("a", "1"), pod("b", "500m"));
        assert_eq!(cgroups.parent(&a), "/kubepods/burstable/poda");
        cgroups.ensure(&a).unwrap();
        cgroups.ensure(&b).unwrap();
        let shares = || read(root.path().join("cpu/kubepods/burstable/cpu.shares"));
        assert_eq!(shares(), "1536");
        assert_eq!(
            read(root.path().join("cpu/kubepods/burstable/poda/cpu.shares")),
            "1024"
        );
        // The kernel's files go with their folder; these do not.
        for controller in ["cpu", "memory"] {
            let folder = root.path().join(controller).join("kubepods/burstable/poda");
            for file in std::fs::read_dir(folder).unwrap() {
                std::fs::remove_file(file.unwrap().path()).unwrap();
            }
        }
        cgroups.remove(&a).unwrap();
        assert!(!root.path().join("cpu/kubepods/burstable/poda").exists());
        assert_eq!(shares(), "512");
        cgroups.remove(&a).unwrap();
    }

    #[test]
    fn the_unified_hierarchy_has_names_of_its_own() {
        let root = tempfile::tempdir().unwrap();
        let file = |name: &str| root.path().join(name);
        std::fs::write(file("cgroup.controllers"), "cpu memory pids\n").unwrap();
        let cgroups =
            Cgroups::on(root.path(), &Driver::Files, Some(100), &Settings::default()).unwrap();
        assert!(cgroups.missing().is_empty());
        let limited: Pod =
            serde_json::from_value(json!({"metadata": {"uid": "g"}, "spec": {"containers": [
            {"name": "c", "resources": {"limits": {"cpu": "1", "memory": "1Mi"}}}]}}))
            .unwrap();
        cgroups.ensure(&limited).unwrap();
        let of = |name: &str| read(file(&format!("kubepods/podg/{name}")));
        assert_eq!(
            [
                of("cpu.max"),
                of("memory.max"),
                of("pids.max"),
                of("cpu.weight")
            ],
            ["100000 100000", "1048576", "100", "39"].map(str::to_owned)
        );
        assert_eq!(
            read(file("kubepods/cgroup.subtree_control")),
            "+cpu +memory +pids"
        );
    }

    #[test]
    fn systemd_is_told_of_a_slice_for_each_class_and_pod_and_of_nothing_twice() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        let (program, told) = (root.path().join("systemctl"), root.path().join("told"));
        let script = format!("#!/bin/sh\nshift\necho \"$@\" >>{}\n", told.display());
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let all = Settings {
            cpu_shares: 2048,
            memory_bytes: Some(1 << 30),
            ..Settings::default()
        };
        let driver = Driver::Systemd(program.clone());
        let cgroups = Cgroups::on(root.path(), &driver, Some(100), &all).unwrap();
        let (a, b) = (pod("a-1", "1"), pod("b-1", "500m"));
        assert_eq!(
            cgroups.parent(&a),
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-poda_1.slice"
        );
        cgroups.ensure(&a).unwrap();
        cgroups.ensure(&a).unwrap();
        cgroups.ensure(&b).unwrap();
        cgroups.remove(&a).unwrap();
        let free = "CPUQuota= MemoryMax=infinity";
        let set = "set-property --runtime kubepods";
        let expected = [
            format!("{set}.slice CPUWeight=79 CPUQuota= MemoryMax=1073741824 TasksMax=infinity"),
            format!("{set}-burstable.slice CPUWeight=1 {free} TasksMax=infinity"),
            format!("{set}-besteffort.slice CPUWeight=1 {free} TasksMax=infinity"),
            format!("{set}-burstable-poda_1.slice CPUWeight=39 {free} TasksMax=100"),
            "start kubepods-burstable-poda_1.slice".to_owned(),
            format!("{set}-burstable.slice CPUWeight=39"),
            format!("{set}-burstable-podb_1.slice CPUWeight=20 {free} TasksMax=100"),
            "start kubepods-burstable-podb_1.slice".to_owned(),
            format!("{set}-burstable.slice CPUWeight=59"),
            "stop kubepods-burstable-poda_1.slice".to_owned(),
            format!("{set}-burstable.slice CPUWeight=20"),
        ];
        assert_eq!(read(told).lines().collect::<Vec<_>>(), expected);
        std::fs::write(&program, "#!/bin/sh\necho 'no bus' >&2; exit 1\n").unwrap();
        let error = cgroups.remove(&b).unwrap_err().to_string();
        assert_eq!(
            error,
            "systemctl stop kubepods-burstable-podb_1.slice: no bus"
        );
    }

    #[test]
    fn without_cgroups_nothing_is_asked_of_the_runtime() {
        let off = Cgroups::off();
        off.ensure(&pod("a", "1")).unwrap();
        assert_eq!(off.parent(&pod("a", "1")), "");
        off.remove(&pod("a", "1")).unwrap();
    }
}
