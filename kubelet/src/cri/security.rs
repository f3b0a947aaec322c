//! Security contexts of the Pod and the container as one message. Pure: fields are passed on, the runtime enforces them.

use crate::pod::containers::spec;
use crate::pod::history::ImageUser;
use cox_cri::v1;
use k8s_openapi::api::core::v1::{AppArmorProfile, Container, Pod, SELinuxOptions, SeccompProfile};

/// Paths that a container does not see unless it asks for an unmasked /proc.
const MASKED: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
];
/// Paths that a container may only read.
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// The namespaces that a Pod shares with the host or within itself.
#[must_use]
pub fn namespaces(pod: &Pod) -> v1::NamespaceOption {
    let spec = spec(pod);
    let host = |asked: Option<bool>| {
        if asked.unwrap_or(false) {
            v1::NamespaceMode::Node
        } else {
            v1::NamespaceMode::Pod
        }
    };
    let pid = if spec.host_pid.unwrap_or(false) {
        v1::NamespaceMode::Node
    } else if spec.share_process_namespace.unwrap_or(false) {
        v1::NamespaceMode::Pod
    } else {
        v1::NamespaceMode::Container
    };
    // Without a range of ids: a runtime that would have to make the namespace refuses, and none drops the wish silently.
    let own_users = spec.host_users == Some(false);
    v1::NamespaceOption {
        userns_options: own_users.then(|| v1::UserNamespace {
            mode: v1::NamespaceMode::Pod.into(),
            ..v1::UserNamespace::default()
        }),
        network: host(spec.host_network).into(),
        pid: pid.into(),
        ipc: host(spec.host_ipc).into(),
        ..v1::NamespaceOption::default()
    }
}

/// Lets a container see the processes of another one, unless the Pod shares them all.
pub fn see_processes_of(security: &mut v1::LinuxContainerSecurityContext, target: &str) {
    let namespaces = security.namespace_options.get_or_insert_default();
    if namespaces.pid() == v1::NamespaceMode::Container {
        namespaces.set_pid(v1::NamespaceMode::Target);
        namespaces.target_id = target.to_owned();
    }
}

fn int(value: Option<i64>) -> Option<v1::Int64Value> {
    value.map(|value| v1::Int64Value { value })
}

fn selinux(options: Option<&SELinuxOptions>) -> Option<v1::SeLinuxOption> {
    let options = options?;
    Some(v1::SeLinuxOption {
        user: options.user.clone().unwrap_or_default(),
        role: options.role.clone().unwrap_or_default(),
        r#type: options.type_.clone().unwrap_or_default(),
        level: options.level.clone().unwrap_or_default(),
    })
}

/// A profile of seccomp or AppArmor by the API's name of its kind.
fn profile(kind: &str, localhost: Option<&String>) -> v1::SecurityProfile {
    use v1::security_profile::ProfileType;
    let kind = match kind {
        "RuntimeDefault" => ProfileType::RuntimeDefault,
        "Localhost" => ProfileType::Localhost,
        _ => ProfileType::Unconfined,
    };
    v1::SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: localhost.cloned().unwrap_or_default(),
    }
}

fn seccomp(asked: Option<&SeccompProfile>) -> v1::SecurityProfile {
    asked.map_or_else(
        || profile("Unconfined", None),
        |asked| profile(&asked.type_, asked.localhost_profile.as_ref()),
    )
}

/// `None`: nobody said anything, and the runtime takes what it usually does.
fn apparmor(asked: Option<&AppArmorProfile>) -> Option<v1::SecurityProfile> {
    asked.map(|asked| profile(&asked.type_, asked.localhost_profile.as_ref()))
}

/// Whether the image's groups come on top of the Pod's, or are kept away.
fn groups_policy(pod: &Pod) -> v1::SupplementalGroupsPolicy {
    let context = spec(pod).security_context.as_ref();
    match context.and_then(|context| context.supplemental_groups_policy.as_deref()) {
        Some("Strict") => v1::SupplementalGroupsPolicy::Strict,
        _ => v1::SupplementalGroupsPolicy::Merge,
    }
}

/// The Pod's supplemental groups, its fsGroup among them.
fn groups(pod: &Pod) -> Vec<i64> {
    let context = spec(pod).security_context.as_ref();
    let listed = context
        .and_then(|context| context.supplemental_groups.clone())
        .unwrap_or_default();
    listed
        .into_iter()
        .chain(context.and_then(|context| context.fs_group))
        .collect()
}

/// The sandbox's part.
#[must_use]
pub fn of_sandbox(pod: &Pod) -> v1::LinuxSandboxSecurityContext {
    let context = spec(pod).security_context.as_ref();
    let privileged = |container: &Container| {
        container
            .security_context
            .as_ref()
            .and_then(|security| security.privileged)
            .unwrap_or(false)
    };
    v1::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod)),
        selinux_options: selinux(context.and_then(|context| context.se_linux_options.as_ref())),
        run_as_user: int(context.and_then(|context| context.run_as_user)),
        run_as_group: int(context.and_then(|context| context.run_as_group)),
        supplemental_groups: groups(pod),
        supplemental_groups_policy: groups_policy(pod).into(),
        privileged: crate::pod::containers::all(pod).any(privileged),
        seccomp: Some(seccomp(
            context.and_then(|context| context.seccomp_profile.as_ref()),
        )),
        ..v1::LinuxSandboxSecurityContext::default()
    }
}

/// The container's part; its own fields win over the Pod's.
#[must_use]
pub fn of_container(pod: &Pod, container: &Container) -> v1::LinuxContainerSecurityContext {
    let outer = spec(pod).security_context.as_ref();
    let own = container.security_context.as_ref();
    let privileged = own.and_then(|own| own.privileged).unwrap_or(false);
    let unmasked = privileged || own.and_then(|own| own.proc_mount.as_deref()) == Some("Unmasked");
    let paths = |paths: &[&str]| {
        if unmasked {
            Vec::new()
        } else {
            paths.iter().map(|&path| path.to_owned()).collect()
        }
    };
    let capabilities = own
        .and_then(|own| own.capabilities.as_ref())
        .map(|capabilities| v1::Capability {
            add_capabilities: capabilities.add.clone().unwrap_or_default(),
            drop_capabilities: capabilities.drop.clone().unwrap_or_default(),
            add_ambient_capabilities: Vec::new(),
        });
    let user = own
        .and_then(|own| own.run_as_user)
        .or(outer.and_then(|outer| outer.run_as_user));
    let group = own
        .and_then(|own| own.run_as_group)
        .or(outer.and_then(|outer| outer.run_as_group));
    let escalation = own
        .and_then(|own| own.allow_privilege_escalation)
        .unwrap_or(true);
    v1::LinuxContainerSecurityContext {
        capabilities,
        privileged,
        namespace_options: Some(namespaces(pod)),
        selinux_options: selinux(
            own.and_then(|own| own.se_linux_options.as_ref())
                .or(outer.and_then(|outer| outer.se_linux_options.as_ref())),
        ),
        run_as_user: int(user),
        run_as_group: int(group),
        readonly_rootfs: own
            .and_then(|own| own.read_only_root_filesystem)
            .unwrap_or(false),
        supplemental_groups: groups(pod),
        supplemental_groups_policy: groups_policy(pod).into(),
        apparmor: apparmor(
            own.and_then(|own| own.app_armor_profile.as_ref())
                .or(outer.and_then(|outer| outer.app_armor_profile.as_ref())),
        ),
        no_new_privs: !escalation,
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READ_ONLY),
        seccomp: Some(seccomp(
            own.and_then(|own| own.seccomp_profile.as_ref())
                .or(outer.and_then(|outer| outer.seccomp_profile.as_ref())),
        )),
        ..v1::LinuxContainerSecurityContext::default()
    }
}

/// Why the container may not run as asked, in upstream's words.
#[must_use]
pub fn refusal(pod: &Pod, container: &Container, image: &ImageUser) -> Option<String> {
    let outer = spec(pod).security_context.as_ref();
    let own = container.security_context.as_ref();
    let non_root = own
        .and_then(|own| own.run_as_non_root)
        .or(outer.and_then(|outer| outer.run_as_non_root));
    if non_root != Some(true) {
        return None;
    }
    let user = own
        .and_then(|own| own.run_as_user)
        .or(outer.and_then(|outer| outer.run_as_user));
    let who = format!(
        "(pod: \"{}\", container: {})",
        crate::pod::containers::display(pod),
        container.name
    );
    match (user, image) {
        (Some(0), _) => Some(format!(
            "container's runAsUser breaks non-root policy {who}"
        )),
        (None, ImageUser::Uid(0)) => Some(format!(
            "container has runAsNonRoot and image will run as root {who}"
        )),
        (None, ImageUser::Name(name)) => Some(format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root {who}"
        )),
        (Some(_), _) | (None, ImageUser::None | ImageUser::Uid(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_and_the_image_s_groups_are_as_asked_for() {
        use v1::security_profile::ProfileType;
        let pod = |context: serde_json::Value| -> Pod {
            let container = serde_json::json!({"name": "a"});
            let own = serde_json::json!({"name": "b", "securityContext": {
                "appArmorProfile": {"type": "Localhost", "localhostProfile": "mine"}}});
            let spec =
                serde_json::json!({"securityContext": context, "containers": [container, own]});
            serde_json::from_value(serde_json::json!({"metadata": {}, "spec": spec})).unwrap()
        };
        let of =
            |pod: &Pod, at: usize| of_container(pod, &pod.spec.as_ref().unwrap().containers[at]);
        let silent = pod(serde_json::json!({}));
        assert_eq!(of(&silent, 0).apparmor, None, "the runtime's usual one");
        let merges = of(&silent, 0).supplemental_groups_policy();
        assert_eq!(merges, v1::SupplementalGroupsPolicy::Merge);
        let strict = pod(serde_json::json!({
            "supplementalGroupsPolicy": "Strict", "appArmorProfile": {"type": "Unconfined"}}));
        let policies = [
            of(&strict, 0).supplemental_groups_policy(),
            of_sandbox(&strict).supplemental_groups_policy(),
        ];
        assert_eq!(policies, [v1::SupplementalGroupsPolicy::Strict; 2]);
        let profile = |at: usize| of(&strict, at).apparmor.unwrap();
        assert_eq!(profile(0).profile_type(), ProfileType::Unconfined);
        assert_eq!(profile(1).profile_type(), ProfileType::Localhost);
        assert_eq!(profile(1).localhost_ref, "mine");
    }

    #[test]
    fn the_container_wins_over_the_pod() {
        let pod: Pod = serde_json::from_value(serde_json::json!({ "metadata": {"name": "p"}, "spec": {
            "securityContext": {"runAsUser": 1, "runAsGroup": 2, "fsGroup": 3, "supplementalGroups": [4], "runAsNonRoot": true},
            "containers": [
                {"name": "a", "securityContext": {"runAsUser": 0, "allowPrivilegeEscalation": false}},
                {"name": "b", "securityContext": {"privileged": true}}
            ]}}))
        .unwrap();
        let containers = &pod.spec.as_ref().unwrap().containers;
        let a = of_container(&pod, &containers[0]);
        assert_eq!(a.run_as_user.unwrap().value, 0);
        assert_eq!(a.run_as_group.unwrap().value, 2);
        assert_eq!(a.supplemental_groups, [4, 3]);
        assert!(a.no_new_privs && !a.masked_paths.is_empty());
        assert!(refusal(&pod, &containers[0], &ImageUser::None).is_some());
        let b = of_container(&pod, &containers[1]);
        assert!(b.privileged && b.masked_paths.is_empty());
        assert!(refusal(&pod, &containers[1], &ImageUser::Uid(1000)).is_none());
        let pod: Pod =
            serde_json::from_value(serde_json::json!({ "metadata": {"name": "p"}, "spec": {
            "securityContext": {"runAsNonRoot": true}, "containers": [{"name": "c"}]}}))
            .unwrap();
        let verdicts = [
            (ImageUser::None, None),
            (ImageUser::Uid(65534), None),
            (ImageUser::Uid(0), Some("image will run as root")),
            (
                ImageUser::Name("web".into()),
                Some("image has non-numeric user (web)"),
            ),
        ];
        for (user, expected) in verdicts {
            let found = refusal(&pod, &pod.spec.as_ref().unwrap().containers[0], &user);
            match expected {
                Some(text) => assert!(found.unwrap().contains(text), "{user:?}"),
                None => assert_eq!(found, None, "{user:?}"),
            }
        }
    }
}
