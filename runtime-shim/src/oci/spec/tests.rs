//! What the kernel is told for what a Pod says, clause by clause, as the JSON that runc reads.

use super::*;
use crate::oci::images::RunConfig;
use cox_cri::v1::{
    ContainerMetadata, Int64Value, KeyValue, LinuxContainerConfig, LinuxContainerResources,
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, UserNamespace,
};
use serde_json::{Value, json};

/// A container of an image with an entrypoint, on a machine with cgroup version 2, in a Pod with namespaces of its own.
struct Case {
    config: ContainerConfig,
    pod: PodSandboxConfig,
    host: Host,
    namespaces: Namespaces,
    target_pid: Option<u32>,
}

impl Case {
    fn new() -> Self {
        Self {
            config: ContainerConfig {
                metadata: Some(ContainerMetadata {
                    name: "app".into(),
                    attempt: 0,
                }),
                linux: Some(LinuxContainerConfig::default()),
                ..ContainerConfig::default()
            },
            pod: PodSandboxConfig {
                hostname: "web-0".into(),
                linux: Some(LinuxPodSandboxConfig {
                    security_context: Some(LinuxSandboxSecurityContext::default()),
                    ..LinuxPodSandboxConfig::default()
                }),
                ..PodSandboxConfig::default()
            },
            host: Host {
                cgroup_v2: true,
                capabilities: capabilities::from_mask(u64::MAX >> 23),
                ..Host::default()
            },
            namespaces: Namespaces {
                net: Some("/pod/net".into()),
                ipc: Some("/pod/ipc".into()),
                uts: Some("/pod/uts".into()),
                pid: None,
            },
            target_pid: None,
        }
    }

    fn security(&mut self) -> &mut LinuxContainerSecurityContext {
        let linux = self.config.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default()
    }

    fn pid(mut self, mode: NamespaceMode) -> Self {
        self.security().namespace_options = Some(NamespaceOption {
            pid: mode.into(),
            ..NamespaceOption::default()
        });
        self
    }

    fn spec(&self) -> Result<Value, String> {
        let image = OciImage {
            config: RunConfig {
                entrypoint: Some(vec!["/entry".into()]),
                cmd: Some(vec!["of-image".into()]),
                env: Some(vec!["A=image".into(), "B=image".into()]),
                working_dir: Some("/srv".into()),
                ..RunConfig::default()
            },
            ..OciImage::default()
        };
        let made = spec(&Wanted {
            id: "c1",
            config: &self.config,
            sandbox_id: "s1",
            pod: &self.pod,
            image: &image,
            namespaces: &self.namespaces,
            files: &PodFiles::below(Path::new("/pod"), &self.namespaces),
            target_pid: self.target_pid,
            accounts: &Accounts::default(),
            volumes: &[],
            host: &self.host,
        });
        let (spec, _) = made.map_err(|err| err.to_string())?;
        Ok(serde_json::to_value(spec).unwrap())
    }

    fn json(&self) -> Value {
        self.spec().unwrap()
    }
}

fn namespace(spec: &Value, kind: &str) -> Option<Value> {
    let list = spec["linux"]["namespaces"].as_array().unwrap();
    let found = list.iter().find(|namespace| namespace["type"] == kind);
    found.map(|namespace| namespace["path"].clone())
}

#[test]
fn command_environment_and_folder() {
    let mut case = Case::new();
    let process = |case: &Case| case.json()["process"].clone();
    assert_eq!(process(&case)["args"], json!(["/entry", "of-image"]));
    assert_eq!(process(&case)["cwd"], "/srv");
    case.config.args = vec!["mine".into()];
    assert_eq!(process(&case)["args"], json!(["/entry", "mine"]));
    case.config.command = vec!["/own".into()];
    assert_eq!(process(&case)["args"], json!(["/own", "mine"]));
    case.config.args.clear();
    assert_eq!(
        process(&case)["args"],
        json!(["/own"]),
        "the image's args go with its entrypoint"
    );
    case.config.working_dir = "/here".into();
    case.config.tty = true;
    case.config.envs = vec![KeyValue {
        key: "B".into(),
        value: "pod".into(),
    }];
    let process = process(&case);
    assert_eq!(
        (&process["cwd"], &process["terminal"]),
        (&json!("/here"), &json!(true))
    );
    let env = process["env"].as_array().unwrap();
    for pair in ["A=image", "B=pod", "HOSTNAME=web-0", "TERM=xterm"] {
        assert!(env.contains(&pair.into()), "{pair} is not in {env:?}");
    }
    assert!(!env.contains(&"B=image".into()), "each name once: {env:?}");
    assert!(
        process["rlimits"].is_null(),
        "limits of processes are containerd's own"
    );
}

#[test]
fn namespaces_of_the_pod_the_container_the_node_and_another_container() {
    let case = Case::new().pid(NamespaceMode::Container);
    let own = case.json();
    for kind in ["network", "ipc", "uts"] {
        let path = namespace(&own, kind).unwrap();
        assert!(
            path.as_str().unwrap().starts_with("/pod/"),
            "{kind}: {path}"
        );
    }
    for kind in ["mount", "pid", "cgroup"] {
        assert_eq!(namespace(&own, kind), Some(Value::Null), "{kind} is new");
    }
    assert!(
        own["hostname"].is_null(),
        "the Pod's host name is its namespace's"
    );
    let on_node = Case::new().pid(NamespaceMode::Node).json();
    assert_eq!(namespace(&on_node, "pid"), None);
    let mut shared = Case::new().pid(NamespaceMode::Pod);
    shared.namespaces.pid = Some("/pod/pid".into());
    assert_eq!(namespace(&shared.json(), "pid"), Some("/pod/pid".into()));
    let mut target = Case::new().pid(NamespaceMode::Target);
    assert!(target.spec().unwrap_err().contains("does not run"));
    target.target_pid = Some(77);
    assert_eq!(
        namespace(&target.json(), "pid"),
        Some("/proc/77/ns/pid".into())
    );
    let mut host = Case::new();
    host.namespaces = Namespaces::default();
    host.host.cgroup_v2 = false;
    let host = host.json();
    for kind in ["network", "ipc", "uts", "cgroup"] {
        assert_eq!(namespace(&host, kind), None, "{kind} is the node's");
    }
    let mut user = Case::new();
    user.security().namespace_options = Some(NamespaceOption {
        userns_options: Some(UserNamespace {
            mode: NamespaceMode::Pod.into(),
            ..UserNamespace::default()
        }),
        ..NamespaceOption::default()
    });
    let refused = user.spec().unwrap_err();
    assert!(
        refused.contains("ID-mapped mounts") && refused.contains("runc 1.1"),
        "{refused}"
    );
}

#[test]
fn what_a_privileged_container_may_and_another_may_not() {
    let mut case = Case::new();
    let security = case.security();
    security.masked_paths = vec!["/proc/kcore".into()];
    security.readonly_paths = vec!["/proc/sys".into()];
    security.readonly_rootfs = true;
    security.no_new_privs = true;
    security.run_as_user = Some(Int64Value { value: 1000 });
    security.supplemental_groups = vec![7];
    let spec = case.json();
    assert_eq!(spec["linux"]["maskedPaths"], json!(["/proc/kcore"]));
    assert_eq!(spec["linux"]["readonlyPaths"], json!(["/proc/sys"]));
    assert_eq!(spec["root"]["readonly"], true);
    assert_eq!(spec["process"]["noNewPrivileges"], true);
    assert_eq!(spec["process"]["user"]["uid"], 1000);
    assert_eq!(spec["process"]["user"]["additionalGids"], json!([0, 7]));
    let devices = &spec["linux"]["resources"]["devices"];
    assert_eq!(
        devices[0]["allow"], false,
        "nothing but what is listed: {devices}"
    );
    case.security().privileged = true;
    let refused = case.spec().unwrap_err();
    assert!(
        refused.contains("sandbox that is not privileged"),
        "{refused}"
    );
    let pod = case.pod.linux.as_mut().unwrap();
    pod.security_context.as_mut().unwrap().privileged = true;
    let spec = case.json();
    assert!(spec["linux"]["maskedPaths"].is_null() && spec["linux"]["readonlyPaths"].is_null());
    assert!(spec["linux"]["seccomp"].is_null());
    assert_eq!(namespace(&spec, "cgroup"), None);
    assert_eq!(spec["linux"]["resources"]["devices"][0]["allow"], true);
    let bounding = spec["process"]["capabilities"]["bounding"]
        .as_array()
        .unwrap();
    assert!(bounding.contains(&"CAP_SYS_ADMIN".into()), "{bounding:?}");
}

#[test]
fn limits_scores_and_places() {
    let mut case = Case::new();
    case.host.swap_accounting = true;
    case.host.oom_score_adj_min = 100;
    case.config.linux.as_mut().unwrap().resources = Some(LinuxContainerResources {
        memory_limit_in_bytes: 64 << 20,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        cpu_shares: 512,
        oom_score_adj: -998,
        unified: [("memory.high".to_owned(), "1000".to_owned())].into(),
        ..LinuxContainerResources::default()
    });
    let spec = case.json();
    let resources = &spec["linux"]["resources"];
    assert_eq!(
        resources["memory"],
        json!({"limit": 64 << 20, "swap": 64 << 20})
    );
    assert_eq!(
        resources["cpu"],
        json!({"shares": 512, "quota": 50_000, "period": 100_000})
    );
    assert_eq!(resources["unified"], json!({"memory.high": "1000"}));
    assert_eq!(
        spec["process"]["oomScoreAdj"], 100,
        "not below what this process may set"
    );
    assert_eq!(spec["linux"]["cgroupsPath"], "/k8s.io/c1");
    case.host.oom_score_adj_min = -1000;
    case.host.systemd_cgroup = true;
    let spec = case.json();
    assert_eq!(spec["process"]["oomScoreAdj"], -998);
    assert_eq!(
        spec["linux"]["cgroupsPath"],
        "k8s.io.slice:cri-containerd:c1"
    );
}
