//! From CRI's container configuration to the OCI runtime specification. Decisions only: what they need to know of the machine is in
//! [`Host`], of the image's users in [`Accounts`].

mod capabilities;
mod cdi;
mod devices;
mod host;
mod mounts;
mod process;
mod resources;
mod seccomp;
mod users;

use std::path::{Path, PathBuf};

use cox_cri::v1::{
    ContainerConfig, LinuxContainerSecurityContext, NamespaceMode, NamespaceOption,
    PodSandboxConfig,
};
use oci_spec::runtime::{
    Linux, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxResources, Mount, Root,
    Spec,
};

pub(super) use host::Host;
pub(super) use process::exec_process;
pub(super) use resources::{cgroups_path, is_systemd, limits};
pub(super) use users::{Accounts, Identity};

use super::client::OciError;
use super::images::OciImage;
use crate::sandbox::{Namespaces, PodFiles};

/// Version of the specification that runc 1.1 and everything newer understands.
const OCI_VERSION: &str = "1.0.2";

/// What a specification is made of.
pub(super) struct Wanted<'a> {
    pub(super) id: &'a str,
    pub(super) config: &'a ContainerConfig,
    pub(super) sandbox_id: &'a str,
    pub(super) pod: &'a PodSandboxConfig,
    pub(super) image: &'a OciImage,
    pub(super) namespaces: &'a Namespaces,
    pub(super) files: &'a PodFiles,
    /// Of the container whose processes this one sees, in PID mode TARGET.
    pub(super) target_pid: Option<u32>,
    pub(super) accounts: &'a Accounts,
    /// For the mounts that name an image, in their order.
    pub(super) volumes: &'a [Mount],
    pub(super) host: &'a Host,
}

impl Wanted<'_> {
    fn security(&self) -> LinuxContainerSecurityContext {
        self.config
            .linux
            .as_ref()
            .and_then(|linux| linux.security_context.clone())
            .unwrap_or_default()
    }
}

/// Builder errors are of this module's own making: a field that it forgot.
fn incomplete(err: impl std::fmt::Display) -> OciError {
    OciError::damaged("the container's specification", err)
}

/// The specification of a container, and as whom it runs.
pub(super) fn spec(wanted: &Wanted<'_>) -> Result<(Spec, Identity), OciError> {
    let security = wanted.security();
    if security.privileged && pod_is_unprivileged(wanted.pod) {
        return Err(OciError::Refused(
            "a privileged container cannot run in a sandbox that is not privileged".into(),
        ));
    }
    let edits = crate::cdi::edits(&wanted.config.cdi_devices).map_err(OciError::Refused)?;
    let identity = users::identity(&security, wanted.image, wanted.accounts)?;
    let process = process::process(wanted, &security, &identity)?;
    let mounts = mounts::mounts(wanted, &security)?;
    let mut root = Root::default();
    root.set_path(PathBuf::from("rootfs"))
        .set_readonly(Some(security.readonly_rootfs));
    let mut spec = Spec::default();
    spec.set_version(OCI_VERSION.into())
        .set_root(Some(root))
        .set_hostname(None)
        .set_mounts(Some(mounts.mounts))
        .set_process(Some(process))
        .set_annotations(Some(annotations(wanted)))
        .set_linux(Some(linux(
            wanted,
            &security,
            &edits,
            mounts.rootfs_propagation,
        )?));
    edits.apply(&mut spec)?;
    Ok((spec, identity))
}

fn pod_is_unprivileged(pod: &PodSandboxConfig) -> bool {
    let security = pod
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref());
    security.is_none_or(|security| !security.privileged)
}

fn annotations(wanted: &Wanted<'_>) -> std::collections::HashMap<String, String> {
    let metadata = wanted.config.metadata.clone().unwrap_or_default();
    let pod = wanted.pod.metadata.clone().unwrap_or_default();
    // The second one makes the containers of a Pod share one process of containerd's.
    [
        ("io.kubernetes.cri.container-type", "container"),
        ("io.kubernetes.cri.sandbox-id", wanted.sandbox_id),
        ("io.kubernetes.cri.container-name", &metadata.name),
        ("io.kubernetes.cri.sandbox-name", &pod.name),
        ("io.kubernetes.cri.sandbox-namespace", &pod.namespace),
        ("io.kubernetes.cri.sandbox-uid", &pod.uid),
        ("io.kubernetes.cri.image-name", wanted.image.name()),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

fn linux(
    wanted: &Wanted<'_>,
    security: &LinuxContainerSecurityContext,
    edits: &crate::cdi::Edits,
    rootfs_propagation: Option<String>,
) -> Result<Linux, OciError> {
    let privileged = security.privileged;
    let mut resources: LinuxResources = limits(
        wanted
            .config
            .linux
            .as_ref()
            .and_then(|linux| linux.resources.as_ref()),
        wanted.host,
    )?;
    let asked = [wanted.config.devices.clone(), edits.devices()].concat();
    let (devices, allowed) = devices::devices(&asked, privileged)?;
    resources.set_devices(Some(allowed));
    let some = |paths: &[String]| (!privileged && !paths.is_empty()).then(|| paths.to_vec());
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces(wanted, security)?))
        .set_resources(Some(resources))
        .set_devices(Some(devices))
        .set_cgroups_path(Some(cgroups_path(wanted.pod, wanted.id, wanted.host)))
        .set_masked_paths(some(&security.masked_paths))
        .set_readonly_paths(some(&security.readonly_paths))
        .set_seccomp(seccomp::seccomp(security)?)
        .set_rootfs_propagation(rootfs_propagation);
    if wanted.host.selinux
        && let Some(label) = process::selinux_label(security)
    {
        linux.set_mount_label(Some(label));
    }
    Ok(linux)
}

/// Which namespaces are the Pod's, the container's own, or the host's.
fn namespaces(
    wanted: &Wanted<'_>,
    security: &LinuxContainerSecurityContext,
) -> Result<Vec<LinuxNamespace>, OciError> {
    let options: NamespaceOption = security.namespace_options.clone().unwrap_or_default();
    if options
        .userns_options
        .as_ref()
        .is_some_and(|userns| userns.mode() == NamespaceMode::Pod)
    {
        return Err(OciError::Refused(
            "user namespaces (hostUsers: false) need a runtime with ID-mapped mounts for the Pod's volumes; runc 1.1 has none"
                .into(),
        ));
    }
    let new = |typ| {
        LinuxNamespaceBuilder::default()
            .typ(typ)
            .build()
            .map_err(incomplete)
    };
    let joined = |typ, path: &Path| {
        LinuxNamespaceBuilder::default()
            .typ(typ)
            .path(path)
            .build()
            .map_err(incomplete)
    };
    let mut list = vec![new(LinuxNamespaceType::Mount)?];
    let shared = wanted.namespaces;
    for (typ, path) in [
        (LinuxNamespaceType::Network, &shared.net),
        (LinuxNamespaceType::Ipc, &shared.ipc),
        (LinuxNamespaceType::Uts, &shared.uts),
    ] {
        if let Some(path) = path {
            list.push(joined(typ, path)?);
        }
    }
    match options.pid() {
        NamespaceMode::Node => {}
        NamespaceMode::Container => list.push(new(LinuxNamespaceType::Pid)?),
        NamespaceMode::Pod => match &shared.pid {
            Some(path) => list.push(joined(LinuxNamespaceType::Pid, path)?),
            // A caller that says nothing asks for this too; the sandbox was made without, so nothing is there to share.
            None => list.push(new(LinuxNamespaceType::Pid)?),
        },
        NamespaceMode::Target => {
            let pid = wanted.target_pid.ok_or_else(|| {
                OciError::Refused(format!(
                    "target container {} does not run: its processes cannot be shared",
                    options.target_id
                ))
            })?;
            let path = PathBuf::from(format!("/proc/{pid}/ns/pid"));
            list.push(joined(LinuxNamespaceType::Pid, &path)?);
        }
    }
    // A cgroup namespace shows a container its own cgroup as the root; with version 1 it would see nothing of use.
    if wanted.host.cgroup_v2 && !security.privileged {
        list.push(new(LinuxNamespaceType::Cgroup)?);
    }
    Ok(list)
}

#[cfg(test)]
mod tests;
