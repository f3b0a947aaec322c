//! What devices of the Container Device Interface change about a specification.

use std::path::Path;

use oci_spec::runtime::{Hook, HookBuilder, Hooks, LinuxDevice, Mount, MountBuilder, Spec};

use super::incomplete;
use crate::cdi::{Bind, Call, Edits, Node};
use crate::oci::client::OciError;

impl Edits {
    /// Everything but the device nodes.
    pub(super) fn apply(&self, spec: &mut Spec) -> Result<(), OciError> {
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        let mut hooks = spec.hooks().clone().unwrap_or_default();
        for part in &self.parts {
            for bind in &part.mounts {
                mounts.push(mount(bind)?);
            }
            for call in &part.hooks {
                add_hook(&mut hooks, call)?;
            }
            if let Some(process) = spec.process_mut() {
                let mut env = process.env().clone().unwrap_or_default();
                for pair in &part.env {
                    let name = pair.split('=').next().unwrap_or(pair);
                    env.retain(|other| other.split('=').next() != Some(name));
                    env.push(pair.clone());
                }
                process.set_env(Some(env));
                let mut user = process.user().clone();
                let mut groups = user.additional_gids().clone().unwrap_or_default();
                groups.extend(part.additional_gids.iter().filter(|gid| **gid != 0));
                user.set_additional_gids(Some(groups).filter(|groups| !groups.is_empty()));
                process.set_user(user);
            }
            if let Some(linux) = spec.linux_mut() {
                let mut devices = linux.devices().clone().unwrap_or_default();
                for node in &part.device_nodes {
                    devices
                        .iter_mut()
                        .filter(|device| device.path() == Path::new(&node.path))
                        .for_each(|device| own(device, node));
                }
                linux.set_devices(Some(devices));
            }
        }
        spec.set_mounts(Some(mounts));
        if hooks != Hooks::default() {
            spec.set_hooks(Some(hooks));
        }
        Ok(())
    }
}

fn own(device: &mut LinuxDevice, node: &Node) {
    if let Some(mode) = node.file_mode {
        device.set_file_mode(Some(mode));
    }
    if let Some(uid) = node.uid {
        device.set_uid(Some(uid));
    }
    if let Some(gid) = node.gid {
        device.set_gid(Some(gid));
    }
}

fn mount(bind: &Bind) -> Result<Mount, OciError> {
    let mut options = bind.options.clone();
    if !options
        .iter()
        .any(|option| option == "bind" || option == "rbind")
    {
        options.push("rbind".into());
    }
    let kind = if bind.r#type.is_empty() {
        "bind"
    } else {
        &bind.r#type
    };
    MountBuilder::default()
        .destination(&bind.container_path)
        .source(&bind.host_path)
        .typ(kind)
        .options(options)
        .build()
        .map_err(incomplete)
}

fn add_hook(hooks: &mut Hooks, call: &Call) -> Result<(), OciError> {
    let mut hook = HookBuilder::default();
    hook = hook
        .path(&call.path)
        .args(call.args.clone())
        .env(call.env.clone());
    if let Some(timeout) = call.timeout {
        hook = hook.timeout(timeout);
    }
    let hook = hook.build().map_err(incomplete)?;
    let with = |list: &Option<Vec<Hook>>| {
        let mut list = list.clone().unwrap_or_default();
        list.push(hook.clone());
        Some(list)
    };
    match call.hook_name.as_str() {
        "prestart" | "createRuntime" => {
            let list = with(hooks.create_runtime());
            hooks.set_create_runtime(list);
        }
        "createContainer" => {
            let list = with(hooks.create_container());
            hooks.set_create_container(list);
        }
        "startContainer" => {
            let list = with(hooks.start_container());
            hooks.set_start_container(list);
        }
        "poststart" => {
            let list = with(hooks.poststart());
            hooks.set_poststart(list);
        }
        "poststop" => {
            let list = with(hooks.poststop());
            hooks.set_poststop(list);
        }
        other => {
            return Err(OciError::Refused(format!(
                "a device description asks for the unknown hook {other:?}"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cox_cri::v1::CdiDevice;
    use oci_spec::runtime::{LinuxBuilder, ProcessBuilder};

    const VENDOR: &str = "cdiVersion: 0.6.0\nkind: vendor.com/gpu\n\
        containerEdits: {env: [DRIVER=1], hooks: [{hookName: createContainer, path: /bin/true, args: [true]}]}\n\
        devices:\n- name: '0'\n  containerEdits: {env: [GPU=0], deviceNodes: [{path: /dev/gpu0, hostPath: /dev/null, permissions: rw}], \
        additionalGids: [44]}\n- name: all\n  containerEdits: {mounts: [{hostPath: /lib, containerPath: /gpu, options: [ro]}]}\n";

    fn device(name: &str) -> CdiDevice {
        CdiDevice { name: name.into() }
    }

    #[test]
    fn a_device_is_what_its_vendor_wrote() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("vendor.yaml"), VENDOR).unwrap();
        std::fs::write(dir.path().join("broken.json"), "{").unwrap();
        let found = crate::cdi::edits_in(
            &[dir.path()],
            &[device("vendor.com/gpu=0"), device("vendor.com/gpu=all")],
        )
        .unwrap();
        let devices = found.devices();
        assert_eq!(devices.len(), 1);
        assert_eq!(
            (
                devices[0].container_path.as_str(),
                devices[0].host_path.as_str(),
                devices[0].permissions.as_str()
            ),
            ("/dev/gpu0", "/dev/null", "rw")
        );
        let mut spec = Spec::default();
        spec.set_process(Some(
            ProcessBuilder::default()
                .env(["GPU=x".to_owned()])
                .build()
                .unwrap(),
        ));
        spec.set_mounts(Some(Vec::new()));
        spec.set_linux(Some(LinuxBuilder::default().build().unwrap()));
        found.apply(&mut spec).unwrap();
        let process = spec.process().as_ref().unwrap();
        assert_eq!(
            process.env().as_ref().unwrap(),
            &["DRIVER=1", "GPU=0"],
            "what the kind needs once, and what was there replaced"
        );
        assert_eq!(process.user().additional_gids().as_ref().unwrap(), &[44]);
        let mount = &spec.mounts().as_ref().unwrap()[0];
        assert_eq!(mount.options().as_ref().unwrap(), &["ro", "rbind"]);
        assert_eq!(
            spec.hooks()
                .as_ref()
                .unwrap()
                .create_container()
                .as_ref()
                .unwrap()
                .len(),
            1
        );
    }
}
