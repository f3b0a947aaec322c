//! Mounts on the host: tmpfs for memory, bind mounts for sub paths. As upstream, through the system's `mount` and `umount`; the
//! table of what is mounted is read from /proc. All of it needs root; who calls has looked.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mounted {
    pub(super) target: PathBuf,
    pub(super) kind: String,
}

/// Reads a table like `/proc/self/mountinfo`. Pure.
#[must_use]
pub(super) fn parse(table: &str) -> Vec<Mounted> {
    let line = |line: &str| {
        let (place, source) = line.split_once(" - ")?;
        Some(Mounted {
            target: PathBuf::from(unescape(place.split(' ').nth(4)?)),
            kind: source.split(' ').next()?.to_owned(),
        })
    };
    table.lines().filter_map(line).collect()
}

/// The table writes blanks, tabs, line ends and backslashes as octal numbers.
fn unescape(path: &str) -> String {
    path.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

fn table() -> io::Result<Vec<Mounted>> {
    Ok(parse(&std::fs::read_to_string("/proc/self/mountinfo")?))
}

/// What is mounted exactly there, the topmost one.
pub(super) fn at(target: &Path) -> io::Result<Option<Mounted>> {
    let target = target.canonicalize()?;
    Ok(table()?.into_iter().rfind(|mount| mount.target == target))
}

fn run(program: &str, arguments: &[&OsStr]) -> Result<(), String> {
    run_named(program, Path::new(program), arguments)
}

/// Runs a program, which is called `name` in what is said of it.
fn run_named(name: &str, program: &Path, arguments: &[&OsStr]) -> Result<(), String> {
    let done = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| format!("{name} cannot be run: {error}"))?;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr);
    Err(format!("{name} failed: {}", said.trim()))
}

/// Mounts what a helper program knows how to mount. How long it may take is the helper's to say.
pub(super) fn mount_by(
    helper: &Path,
    source: &str,
    target: &Path,
    options: &str,
) -> Result<(), String> {
    let mut arguments = vec![OsStr::new(source), target.as_os_str()];
    if !options.is_empty() {
        arguments.extend([OsStr::new("-o"), OsStr::new(options)]);
    }
    let name = helper.file_name().unwrap_or_default().to_string_lossy();
    run_named(&name, helper, &arguments)
}

/// Mounts a file system without a device on a folder.
pub(super) fn mount(kind: &str, target: &Path, options: &str) -> Result<(), String> {
    let mut arguments = vec![OsStr::new("-t"), OsStr::new(kind)];
    if !options.is_empty() {
        arguments.extend([OsStr::new("-o"), OsStr::new(options)]);
    }
    arguments.extend([OsStr::new(kind), target.as_os_str()]);
    run("mount", &arguments)
}

/// Shows a file or folder at a second place.
pub(super) fn bind(source: &Path, target: &Path) -> Result<(), String> {
    let arguments = [
        OsStr::new("--no-canonicalize"),
        OsStr::new("--bind"),
        source.as_os_str(),
        target.as_os_str(),
    ];
    run("mount", &arguments)
}

/// Takes one mount away, at once for new users and later for those that still have it open.
pub(super) fn unmount(target: &Path) -> Result<(), String> {
    run("umount", &[OsStr::new("-l"), target.as_os_str()])
}

/// Takes away everything that is mounted at or below a folder, innermost first. An error if anything is left: what is below must
/// then not be deleted, it may be another's data.
pub(super) fn unmount_below(folder: &Path) -> Result<(), String> {
    let Ok(folder) = folder.canonicalize() else {
        return Ok(());
    };
    let below = || -> Result<Vec<Mounted>, String> {
        let all = table().map_err(|error| error.to_string())?;
        Ok(all
            .into_iter()
            .filter(|mount| mount.target.starts_with(&folder))
            .collect())
    };
    for mount in below()?.iter().rev() {
        unmount(&mount.target)?;
    }
    match below()?.first() {
        None => Ok(()),
        Some(left) => Err(format!("{} is still mounted", left.target.display())),
    }
}

/// Whether mounts can be made.
#[must_use]
pub(super) fn can_mount() -> bool {
    rustix::process::geteuid().is_root()
}

/// For tests that mount: answers false where that takes rights that this process has not.
///
/// # Panics
/// With `CI` set: there every test runs.
#[cfg(test)]
pub(super) fn may_test_mounts() -> bool {
    assert!(
        can_mount() || std::env::var_os("CI").is_none(),
        "mounts cannot be tested: this takes root"
    );
    can_mount()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read() {
        let table = "36 35 98:0 / /mnt/a\\040b rw,noatime master:1 - ext4 /dev/root rw\n\
                     37 36 0:40 / /mnt/a\\040b/mem rw - tmpfs tmpfs rw,size=64k\nnonsense\n";
        let mount = |target: &str, kind: &str| Mounted {
            target: target.into(),
            kind: kind.into(),
        };
        assert_eq!(
            parse(table),
            [mount("/mnt/a b", "ext4"), mount("/mnt/a b/mem", "tmpfs")]
        );
    }

    #[test]
    fn what_is_mounted_below_a_folder_goes_before_the_folder() {
        if !may_test_mounts() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (memory, data, view) = (
            dir.path().join("pod/memory"),
            dir.path().join("data"),
            dir.path().join("pod/view"),
        );
        for folder in [&memory, &data, &view] {
            std::fs::create_dir_all(folder).unwrap();
        }
        std::fs::write(data.join("kept"), "x").unwrap();
        mount("tmpfs", &memory, "size=64k").unwrap();
        bind(&data, &view).unwrap();
        assert_eq!(at(&memory).unwrap().unwrap().kind, "tmpfs");
        assert!(view.join("kept").exists());
        unmount_below(&dir.path().join("pod")).unwrap();
        assert!(!view.join("kept").exists() && data.join("kept").exists());
        assert_eq!(at(&memory).unwrap(), None);
    }
}
