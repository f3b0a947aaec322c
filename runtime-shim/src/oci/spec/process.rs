//! The process: command, environment, terminal, user, and what the kernel lets it do.

use std::collections::HashMap;
use std::path::PathBuf;

use cox_cri::v1::{LinuxContainerSecurityContext, security_profile::ProfileType};
use oci_spec::runtime::{Process, User};

use super::{Host, Identity, Wanted, capabilities};
use crate::oci::client::OciError;

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The profile that containerd and its packages load for containers.
const APPARMOR_DEFAULT: &str = "cri-containerd.apparmor.d";
const APPARMOR_LOADED: &str = "/sys/kernel/security/apparmor/profiles";

/// The container's first process.
pub(super) fn process(
    wanted: &Wanted<'_>,
    security: &LinuxContainerSecurityContext,
    identity: &Identity,
) -> Result<Process, OciError> {
    let config = wanted.config;
    let mut user = User::default();
    user.set_uid(identity.uid)
        .set_gid(identity.gid)
        .set_additional_gids(Some(identity.groups.clone()));
    let image_dir = wanted
        .image
        .config
        .working_dir
        .as_deref()
        .unwrap_or_default();
    let cwd = [config.working_dir.as_str(), image_dir, "/"]
        .into_iter()
        .find(|dir| !dir.is_empty())
        .expect("the last one is not empty");
    let mut process = Process::default();
    process
        .set_terminal(Some(config.tty))
        .set_user(user)
        .set_args(Some(args(wanted)?))
        .set_env(Some(environment(wanted, identity)))
        .set_cwd(PathBuf::from(cwd))
        .set_capabilities(Some(capabilities::capabilities(security, wanted.host)?))
        .set_no_new_privileges(Some(security.no_new_privs))
        .set_rlimits(None)
        .set_apparmor_profile(apparmor(wanted.host, security, is_loaded)?)
        .set_oom_score_adj(Some(oom_score(wanted)));
    if wanted.host.selinux {
        process.set_selinux_label(selinux_label(security));
    }
    Ok(process)
}

/// A further process in a running container: as the first one, with another command.
pub(in crate::oci) fn exec_process(first: &Process, cmd: Vec<String>, tty: bool) -> Process {
    let mut process = first.clone();
    let mut env = process.env().clone().unwrap_or_default();
    if tty && !env.iter().any(|pair| pair.starts_with("TERM=")) {
        env.push("TERM=xterm".into());
    }
    process
        .set_terminal(Some(tty))
        .set_env(Some(env))
        .set_args(Some(cmd));
    process
}

/// The Pod's command goes before the image's entrypoint, its args before the image's; a command alone drops the image's args.
fn args(wanted: &Wanted<'_>) -> Result<Vec<String>, OciError> {
    let (config, image) = (wanted.config, &wanted.image.config);
    let mut argv = if config.command.is_empty() {
        image.entrypoint.clone().unwrap_or_default()
    } else {
        config.command.clone()
    };
    if !config.args.is_empty() {
        argv.extend_from_slice(&config.args);
    } else if config.command.is_empty() {
        argv.extend(image.cmd.clone().unwrap_or_default());
    }
    if argv.is_empty() {
        return Err(OciError::Refused(format!(
            "no command: {} has no entrypoint and the container names none",
            wanted.image.name()
        )));
    }
    Ok(argv)
}

/// The image's environment under the container's; each name once.
fn environment(wanted: &Wanted<'_>, identity: &Identity) -> Vec<String> {
    let mut env: Vec<String> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut put = |pair: String| {
        let name = pair.split('=').next().unwrap_or_default().to_owned();
        match places.get(&name) {
            Some(at) => env[*at] = pair,
            None => {
                places.insert(name, env.len());
                env.push(pair);
            }
        }
    };
    put(PATH.into());
    if wanted.config.tty {
        put("TERM=xterm".into());
    }
    if !wanted.pod.hostname.is_empty() {
        put(format!("HOSTNAME={}", wanted.pod.hostname));
    }
    if let Some(home) = &identity.home {
        put(format!("HOME={}", home.display()));
    }
    for pair in wanted.image.config.env.iter().flatten() {
        put(pair.clone());
    }
    for pair in &wanted.config.envs {
        put(format!(
            "{}={}",
            pair.key,
            String::from_utf8_lossy(&pair.value)
        ));
    }
    env
}

/// Never below what this process may set.
fn oom_score(wanted: &Wanted<'_>) -> i32 {
    let asked = wanted
        .config
        .linux
        .as_ref()
        .and_then(|linux| linux.resources.as_ref())
        .map_or(0, |resources| resources.oom_score_adj);
    let asked = i32::try_from(asked).unwrap_or(0);
    asked.clamp(wanted.host.oom_score_adj_min.clamp(-1000, 1000), 1000)
}

/// Whether the kernel has this AppArmor profile now.
fn is_loaded(name: &str) -> bool {
    std::fs::read_to_string(APPARMOR_LOADED).is_ok_and(|profiles| {
        profiles
            .lines()
            .any(|line| line.split(' ').next() == Some(name))
    })
}

/// What the Pod asks for, else the usual profile where it is loaded. A profile of the Pod's own that is not there is no profile at
/// all, so it is refused.
fn apparmor(
    host: &Host,
    security: &LinuxContainerSecurityContext,
    loaded: impl Fn(&str) -> bool,
) -> Result<Option<String>, OciError> {
    let profile = match &security.apparmor {
        Some(profile) => Some((profile.profile_type(), profile.localhost_ref.clone())),
        None => match security.apparmor_profile.as_str() {
            "" => None,
            "unconfined" => Some((ProfileType::Unconfined, String::new())),
            "runtime/default" => Some((ProfileType::RuntimeDefault, String::new())),
            name => Some((ProfileType::Localhost, name.to_owned())),
        },
    };
    Ok(match profile {
        Some((ProfileType::Localhost, name)) => {
            let name = name.trim_start_matches("localhost/").to_owned();
            if !host.apparmor {
                return Err(OciError::Refused(format!(
                    "AppArmor profile {name:?} cannot be used: this node has no AppArmor"
                )));
            }
            if !loaded(&name) {
                return Err(OciError::Refused(format!(
                    "AppArmor profile {name:?} is not loaded on this node"
                )));
            }
            Some(name)
        }
        Some((ProfileType::Unconfined, _)) => None,
        Some((ProfileType::RuntimeDefault, _)) | None => {
            let usual = host.apparmor && !security.privileged && loaded(APPARMOR_DEFAULT);
            usual.then(|| APPARMOR_DEFAULT.to_owned())
        }
    })
}

/// `user:role:type:level`, as far as the Pod says.
pub(super) fn selinux_label(security: &LinuxContainerSecurityContext) -> Option<String> {
    let options = security.selinux_options.as_ref()?;
    if security.privileged || options.r#type.is_empty() {
        return None;
    }
    let or = |value: &str, usual: &str| {
        if value.is_empty() {
            usual.to_owned()
        } else {
            value.to_owned()
        }
    };
    Some(format!(
        "{}:{}:{}:{}",
        or(&options.user, "system_u"),
        or(&options.role, "system_r"),
        options.r#type,
        or(&options.level, "s0"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cox_cri::v1::{SeLinuxOption, SecurityProfile};

    fn profile(kind: ProfileType, name: &str) -> LinuxContainerSecurityContext {
        LinuxContainerSecurityContext {
            apparmor: Some(SecurityProfile {
                profile_type: kind.into(),
                localhost_ref: name.into(),
            }),
            ..LinuxContainerSecurityContext::default()
        }
    }

    #[test]
    #[allow(clippy::too_many_lines, reason = "a table")]
    fn apparmor_profiles() {
        use ProfileType::{Localhost, RuntimeDefault, Unconfined};
        let old = |text: &str| LinuxContainerSecurityContext {
            apparmor_profile: text.into(),
            ..LinuxContainerSecurityContext::default()
        };
        let privileged = LinuxContainerSecurityContext {
            privileged: true,
            ..LinuxContainerSecurityContext::default()
        };
        let (on, off) = (
            Host {
                apparmor: true,
                ..Host::default()
            },
            Host::default(),
        );
        let usual = Ok(Some(APPARMOR_DEFAULT));
        for (case, host, security, expected) in [
            ("nothing said", &on, old(""), usual),
            ("nothing said, no AppArmor", &off, old(""), Ok(None)),
            ("the default", &on, profile(RuntimeDefault, ""), usual),
            (
                "the default in the old spelling",
                &on,
                old("runtime/default"),
                usual,
            ),
            ("privileged", &on, privileged, Ok(None)),
            ("unconfined", &on, profile(Unconfined, ""), Ok(None)),
            (
                "unconfined in the old spelling",
                &on,
                old("unconfined"),
                Ok(None),
            ),
            (
                "one of the node's",
                &on,
                profile(Localhost, "mine"),
                Ok(Some("mine")),
            ),
            (
                "in the old spelling",
                &on,
                old("localhost/mine"),
                Ok(Some("mine")),
            ),
            (
                "one that is not loaded",
                &on,
                profile(Localhost, "x"),
                Err("not loaded"),
            ),
            (
                "one, and no AppArmor",
                &off,
                profile(Localhost, "mine"),
                Err("no AppArmor"),
            ),
        ] {
            let found = apparmor(host, &security, |name| {
                [APPARMOR_DEFAULT, "mine"].contains(&name)
            });
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found.as_deref(), expected, "{case}"),
                (Err(err), Err(expected)) => {
                    assert!(err.to_string().contains(expected), "{case}: {err}");
                }
                (found, expected) => panic!("{case}: {found:?}, not {expected:?}"),
            }
        }
        let bare = apparmor(&on, &old(""), |_| false).unwrap();
        assert_eq!(bare, None, "where nobody loaded the default there is none");
    }

    #[test]
    fn selinux_labels() {
        let of = |typ: &str, level: &str, privileged| {
            selinux_label(&LinuxContainerSecurityContext {
                privileged,
                selinux_options: Some(SeLinuxOption {
                    r#type: typ.into(),
                    level: level.into(),
                    ..SeLinuxOption::default()
                }),
                ..LinuxContainerSecurityContext::default()
            })
        };
        let label = of("container_t", "s0:c1,c2", false);
        assert_eq!(
            label.as_deref(),
            Some("system_u:system_r:container_t:s0:c1,c2")
        );
        assert_eq!(
            of("spc_t", "", false).as_deref(),
            Some("system_u:system_r:spc_t:s0")
        );
        assert_eq!(
            of("", "s0:c1", false),
            None,
            "no type: the node's own label"
        );
        assert_eq!(of("container_t", "", true), None, "privileged");
        assert_eq!(
            selinux_label(&LinuxContainerSecurityContext::default()),
            None
        );
    }
}
