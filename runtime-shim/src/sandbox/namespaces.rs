//! The namespaces that the containers of a Pod share: made by a thread that moves into them and ends, pinned by bind mounts below
//! the sandbox's state folder. OCI containers join by path. Also the Pod's `/dev/shm`.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::SandboxError;
use super::pause::{self, Unsettled};
use super::plan::Isolation;
use crate::network::{BridgeNetwork, Links};

/// As other runtimes and kubelets have it.
const SHM_OPTIONS: &str = "mode=1777,size=65536k";

/// The pinned namespaces of one sandbox. `None`: the host's, or for `pid` as each container asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Namespaces {
    pub(crate) net: Option<PathBuf>,
    pub(crate) ipc: Option<PathBuf>,
    pub(crate) uts: Option<PathBuf>,
    /// The Pod's shared PID namespace (`shareProcessNamespace`), in which a process of ours is PID 1.
    pub(crate) pid: Option<PathBuf>,
}

/// Files of one sandbox that its containers mount where they bring none of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodFiles {
    pub(crate) hosts: PathBuf,
    pub(crate) hostname: PathBuf,
    pub(crate) resolv_conf: PathBuf,
    /// The Pod's `/dev/shm`; the host's own where the IPC namespace is the host's.
    pub(crate) shm: PathBuf,
}

impl PodFiles {
    /// Below the sandbox's state folder.
    pub(crate) fn below(dir: &Path, namespaces: &Namespaces) -> Self {
        Self {
            hosts: dir.join("hosts"),
            hostname: dir.join("hostname"),
            resolv_conf: dir.join("resolv.conf"),
            shm: match namespaces.ipc {
                Some(_) => dir.join("shm"),
                None => PathBuf::from("/dev/shm"),
            },
        }
    }
}

impl Namespaces {
    /// Where the namespaces of `isolation` will be pinned.
    pub(super) fn planned(dir: &Path, isolation: &Isolation) -> Self {
        let at = |wanted: bool, name: &str| wanted.then(|| dir.join("ns").join(name));
        Self {
            net: at(isolation.net, "net"),
            ipc: at(isolation.ipc, "ipc"),
            uts: at(isolation.uts, "uts"),
            pid: at(isolation.pid, "pid"),
        }
    }

    fn paths(&self) -> impl Iterator<Item = &Path> {
        [&self.net, &self.ipc, &self.uts, &self.pid]
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
    }

    /// Whether everything is still pinned: mounts are gone when somebody cleared the state folder's file system.
    pub(super) fn are_pinned(&self) -> bool {
        const NSFS_MAGIC: i64 = 0x6e73_6673;
        self.paths()
            .all(|path| rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type == NSFS_MAGIC))
    }

    /// Lets go of whatever is pinned; what is not is fine.
    pub(super) fn unpin(&self, dir: &Path) -> Result<(), SandboxError> {
        let shm = dir.join("shm");
        for path in self.paths().chain([shm.as_path()]) {
            unmount(path).map_err(|source| SandboxError::Unpin {
                path: path.display().to_string(),
                source,
            })?;
        }
        Ok(())
    }
}

/// What the thread needs to know.
pub(super) struct Making<'a> {
    pub(super) dir: &'a Path,
    pub(super) isolation: &'a Isolation,
    pub(super) namespaces: &'a Namespaces,
    pub(super) pause_command: &'a [OsString],
    /// With the built-in network: the bridge, the name of the host's end and the address.
    pub(super) bridge: Option<(&'a BridgeNetwork, &'a str, std::net::Ipv4Addr)>,
}

/// Makes and pins everything. The calling thread is of no use afterwards: it stays in the Pod's namespaces and must end.
pub(super) fn make(making: &Making<'_>) -> Result<Option<Unsettled>, SandboxError> {
    let Making {
        dir,
        isolation,
        namespaces,
        ..
    } = making;
    std::fs::create_dir_all(dir.join("ns")).map_err(failed("make the folder of the namespaces"))?;
    // Opened first: a netlink socket stays in the namespace it was made in.
    let mut host = Links::open().map_err(failed("open netlink"))?;
    if let Some((bridge, ..)) = making.bridge {
        bridge.ensure(&mut host)?;
    }
    unshare(isolation).map_err(failed("make the Pod's namespaces"))?;
    for (path, own) in [
        (&namespaces.net, "net"),
        (&namespaces.ipc, "ipc"),
        (&namespaces.uts, "uts"),
    ] {
        if let Some(path) = path {
            pin(&Path::new("/proc/thread-self/ns").join(own), path)?;
        }
    }
    if isolation.ipc {
        mount_shm(&dir.join("shm"))?;
    }
    if isolation.uts && !isolation.hostname.is_empty() {
        rustix::system::sethostname(isolation.hostname.as_bytes()).map_err(|err| {
            SandboxError::Make {
                what: "set the Pod's host name".into(),
                source: err.into(),
            }
        })?;
    }
    if isolation.net {
        connect(making, host)?;
    }
    for (path, value) in &isolation.sysctls {
        // `/proc/sys` shows the namespaces of the thread that opens it.
        std::fs::write(Path::new("/proc/sys").join(path), value).map_err(failed(&format!(
            "set sysctl {} to {value:?}",
            path.replace('/', ".")
        )))?;
    }
    let Some(pinned) = &namespaces.pid else {
        return Ok(None);
    };
    let pause = pause::start(making.pause_command)?;
    pin(Path::new(&format!("/proc/{}/ns/pid", pause.pid())), pinned)?;
    Ok(Some(pause))
}

fn connect(making: &Making<'_>, mut host: Links) -> Result<(), SandboxError> {
    let mut pod = Links::open().map_err(failed("open netlink"))?;
    pod.loopback_up()
        .map_err(failed("bring the Pod's loopback up"))?;
    let Some((bridge, veth, ip)) = making.bridge else {
        return Ok(());
    };
    let own = File::open("/proc/thread-self/ns/net")
        .map_err(failed("open the Pod's network namespace"))?;
    bridge.attach(&mut host, &mut pod, &own, veth, ip)?;
    Ok(())
}

fn failed(what: &str) -> impl FnOnce(io::Error) -> SandboxError {
    let what = what.to_owned();
    move |source| SandboxError::Make { what, source }
}

/// Moves the calling thread into new namespaces; a new PID namespace is for the processes it starts.
#[allow(
    unsafe_code,
    reason = "std and rustix have no safe call for leaving namespaces"
)]
fn unshare(isolation: &Isolation) -> io::Result<()> {
    let flags = [
        (isolation.net, libc::CLONE_NEWNET),
        (isolation.ipc, libc::CLONE_NEWIPC),
        (isolation.uts, libc::CLONE_NEWUTS),
        (isolation.pid, libc::CLONE_NEWPID),
    ];
    let flags = flags
        .iter()
        .filter(|(wanted, _)| *wanted)
        .fold(0, |all, (_, flag)| all | flag);
    // SAFETY: unshare(2) takes flags and touches no memory. Only namespaces of the calling thread change, which is a thread of its
    // own; file descriptors and memory stay shared, so nothing that std or tokio rely on is affected.
    let done = unsafe { libc::unshare(flags) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Keeps the namespace `own` alive at `path`.
fn pin(own: &Path, path: &Path) -> Result<(), SandboxError> {
    let what = || format!("pin a namespace at {}", path.display());
    File::create(path).map_err(failed(&what()))?;
    mount(own, path, None, libc::MS_BIND, None).map_err(failed(&what()))
}

fn mount_shm(path: &Path) -> Result<(), SandboxError> {
    std::fs::create_dir(path).map_err(failed("make the folder of the Pod's shared memory"))?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    mount(
        Path::new("shm"),
        path,
        Some("tmpfs"),
        flags,
        Some(SHM_OPTIONS),
    )
    .map_err(failed("mount the Pod's shared memory"))
}

#[allow(unsafe_code, reason = "std has no safe call for mounting")]
fn mount(
    source: &Path,
    target: &Path,
    kind: Option<&str>,
    flags: libc::c_ulong,
    options: Option<&str>,
) -> io::Result<()> {
    let text = |bytes: &[u8]| CString::new(bytes).map_err(io::Error::other);
    let (source, target) = (
        text(source.as_os_str().as_bytes())?,
        text(target.as_os_str().as_bytes())?,
    );
    let kind = kind.map(|kind| text(kind.as_bytes())).transpose()?;
    let options = options
        .map(|options| text(options.as_bytes()))
        .transpose()?;
    let pointer =
        |text: &Option<CString>| text.as_ref().map_or(std::ptr::null(), |text| text.as_ptr());
    // SAFETY: all pointers are null or end in a zero byte, and the texts live until the call has returned.
    let done = unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            pointer(&kind),
            flags,
            pointer(&options).cast(),
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Unmounts everything that a sandbox may have mounted in its state folder, for folders whose record is lost.
pub(crate) fn unmount_below(dir: &Path) -> io::Result<()> {
    ["ns/net", "ns/ipc", "ns/uts", "ns/pid", "shm"]
        .iter()
        .try_for_each(|name| unmount(&dir.join(name)))
}

/// Unmounts `path` if something is mounted there, at once: what still uses it keeps it, nobody finds it any more.
#[allow(unsafe_code, reason = "std has no safe call for unmounting")]
fn unmount(path: &Path) -> io::Result<()> {
    let target = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    loop {
        // SAFETY: the path ends in a zero byte and lives until the call has returned.
        let done =
            unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) };
        if done == 0 {
            // Once more: mounts may lie on each other.
            continue;
        }
        let err = io::Error::last_os_error();
        return match err.raw_os_error() {
            Some(libc::EINVAL | libc::ENOENT) => Ok(()),
            // Without rights nothing was ever mounted.
            Some(libc::EPERM) if !path.exists() => Ok(()),
            _ => Err(err),
        };
    }
}
