//! Variables in files that containers wrote into a Pod's `emptyDir` (`fileKeyRef`). What is in there belongs to containers: a file is
//! opened strictly beneath its volume, and only a plain one, of a bounded size, is read.
//!
//! A file is a small part of what a POSIX shell reads: `NAME='value'`, where the value is taken as it is and may have several
//! lines. Blank lines and those that begin with `#` say nothing, nor does a comment behind a value.

use super::{Placed, Volumes, sub_path};
use crate::pod::containers::spec;
use k8s_openapi::api::core::v1::{Pod, Volume};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// As much as a ConfigMap can hold.
const FILE_BYTES_MAX: u64 = 1 << 20;

impl Volumes {
    /// What a file in one of the Pod's empty directories says; `None`: there is no such file.
    pub async fn env_file(
        &self,
        pod: &Pod,
        volume: &str,
        path: &str,
    ) -> Result<Option<String>, String> {
        let base = self.env_dir(pod, volume)?;
        let (file, volume) = (path.to_owned(), volume.to_owned());
        let read = tokio::task::spawn_blocking(move || read(&base, &file));
        let read = read.await.unwrap_or_else(|error| Err(error.to_string()));
        read.map_err(|why| {
            format!("couldn't read env file \"{path}\" in volume \"{volume}\": {why}")
        })
    }

    fn env_dir(&self, pod: &Pod, name: &str) -> Result<PathBuf, String> {
        let cannot = || format!("cannot find the volume \"{name}\" referenced by FileKeyRef");
        let mut volumes = spec(pod).volumes.iter().flatten();
        let volume = volumes.find(|volume| volume.name == name);
        // One without any source is an empty directory too; a Pod of a file may say so.
        let bare = Volume {
            name: name.to_owned(),
            ..Volume::default()
        };
        let volume = volume.ok_or_else(cannot)?;
        if volume.empty_dir.is_none() && *volume != bare {
            return Err(format!(
                "the volume \"{name}\" referenced by FileKeyRef is not an emptyDir"
            ));
        }
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let all = self.placed();
        match all.get(uid).and_then(|placed| placed.get(name)) {
            Some(Placed::At { path, .. }) => Ok(path.clone()),
            _ => Err(cannot()),
        }
    }
}

/// Reads a file beneath a folder. API servers of upstream's let a path begin with a slash: it means the volume's root.
fn read(base: &Path, path: &str) -> Result<Option<String>, String> {
    let inside = match path.trim_start_matches('/') {
        "" => ".",
        inside => inside,
    };
    let fails = |error: Errno| match error {
        Errno::XDEV => "it leads out of the volume".to_owned(),
        error => error.to_string(),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(base, flags, Mode::empty()).map_err(fails)?;
    let found = match sub_path::beneath(&root, Path::new(inside)) {
        Err(Errno::NOENT) => return Ok(None),
        found => found.map_err(fails)?,
    };
    // Before it is opened for reading: a pipe would wait for a writer, a device might do anything.
    let stat = rustix::fs::fstat(&found).map_err(fails)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err("it is not a regular file".into());
    }
    let of_kernel = format!("/proc/self/fd/{}", found.as_raw_fd());
    let file = std::fs::File::open(of_kernel).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| error.to_string())?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("it has more than {FILE_BYTES_MAX} bytes"));
    }
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// The value of the first variable of this name; what comes after it is not looked at.
///
/// # Errors
/// The line that is not as it must be, and why.
pub(crate) fn variable(text: &str, name: &str) -> Result<Option<String>, String> {
    let mut lines = (1..).zip(text.lines());
    while let Some((number, line)) = lines.next() {
        let fails = |why: &str| Err(format!("line {number}: {why}"));
        let line = line.trim_start_matches(BLANKS);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((key, value)) = line.split_once('=') else {
            return fails("missing '='");
        };
        if key.is_empty() {
            return fails("empty variable name");
        }
        if key.ends_with(BLANKS) {
            return fails("whitespace before '=' is not allowed");
        }
        // As in a shell, what stands apart is another word: the value is empty.
        if value.starts_with(BLANKS) {
            if key == name {
                return Ok(Some(String::new()));
            }
            continue;
        }
        let Some(value) = value.strip_prefix('\'') else {
            return fails("the value must be enclosed in single quotes");
        };
        let mut quoted = value.to_owned();
        let rest = loop {
            if let Some(end) = quoted.find('\'') {
                let rest = quoted.split_off(end);
                break rest;
            }
            let Some((_, next)) = lines.next() else {
                return fails("unclosed single quote");
            };
            quoted.push('\n');
            quoted.push_str(next);
        };
        let rest = rest[1..].trim_start_matches(BLANKS);
        if !rest.is_empty() && !rest.starts_with('#') {
            return fails("unexpected content after the closing quote");
        }
        if key == name {
            return if quoted.contains('\0') {
                fails("a value cannot have a NUL byte")
            } else {
                Ok(Some(quoted))
            };
        }
    }
    Ok(None)
}

const BLANKS: [char; 2] = [' ', '\t'];

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn variables_table() {
        let file = "# about\n\n  A='1'\n\tB='two words' # why\nC='x=y#z'\nD='first\n  # second\n\nlast'\r\nE=''\nF= 'apart'\nA='again'\nG='\"$A\\n\"'#end\n";
        let cases = [
            ("A", Some("1")),
            ("B", Some("two words")),
            ("C", Some("x=y#z")),
            ("D", Some("first\n  # second\n\nlast")),
            ("E", Some("")),
            ("F", Some("")),
            ("G", Some("\"$A\\n\"")),
            ("about", None),
            ("second", None),
            ("a", None),
        ];
        for (name, expected) in cases {
            let found = variable(file, name);
            assert_eq!(found.as_ref().map(Option::as_deref), Ok(expected), "{name}");
        }
        assert_eq!(variable("", "A"), Ok(None));
    }

    #[test]
    fn what_is_not_as_it_must_be_is_told_with_its_line() {
        let cases = [
            ("A", "line 1: missing '='"),
            ("\n='x'", "line 2: empty variable name"),
            ("A ='x'", "line 1: whitespace before '=' is not allowed"),
            ("A=x", "line 1: the value must be enclosed in single quotes"),
            ("A=", "line 1: the value must be enclosed in single quotes"),
            (
                "A=\"x\"",
                "line 1: the value must be enclosed in single quotes",
            ),
            ("B='x'\nA='x\ny\n", "line 2: unclosed single quote"),
            (
                "A='x'y",
                "line 1: unexpected content after the closing quote",
            ),
            ("A='x\0'", "line 1: a value cannot have a NUL byte"),
        ];
        for (text, expected) in cases {
            assert_eq!(variable(text, "A").unwrap_err(), expected, "{text:?}");
        }
        let early = variable("A='x'\nrubbish", "A");
        assert_eq!(early, Ok(Some("x".to_owned())), "the rest is not looked at");
    }

    #[test]
    fn only_plain_files_of_the_volume_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("v");
        std::fs::create_dir_all(base.join("d")).unwrap();
        std::fs::write(base.join("d/env"), "A='1'").unwrap();
        std::fs::write(dir.path().join("secret"), "A='stolen'").unwrap();
        symlink("d/env", base.join("inside")).unwrap();
        symlink("../secret", base.join("above")).unwrap();
        symlink("/etc/passwd", base.join("absolute")).unwrap();
        symlink("..", base.join("up")).unwrap();
        symlink("/proc/self/fd/0", base.join("magic")).unwrap();
        let pipe = base.join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).unwrap();
        let big = vec![b'#'; usize::try_from(FILE_BYTES_MAX).unwrap() + 1];
        std::fs::write(base.join("big"), &big).unwrap();
        std::fs::write(base.join("full"), &big[1..]).unwrap();
        for path in ["d/env", "inside", "/d/env", "./d/env"] {
            assert_eq!(read(&base, path), Ok(Some("A='1'".to_owned())), "{path}");
        }
        assert!(read(&base, "full").unwrap().is_some());
        for path in ["none", "d/none", "none/env"] {
            assert_eq!(read(&base, path), Ok(None), "{path}");
        }
        for (path, why) in [
            ("above", "leads out"),
            ("absolute", "leads out"),
            ("up/secret", "leads out"),
            ("../secret", "leads out"),
            ("magic", "leads out"),
            ("pipe", "not a regular file"),
            ("d", "not a regular file"),
            ("", "not a regular file"),
            ("big", "more than 1048576 bytes"),
        ] {
            let error = read(&base, path).unwrap_err();
            assert!(error.contains(why), "{path}: {error}");
        }
    }
}
