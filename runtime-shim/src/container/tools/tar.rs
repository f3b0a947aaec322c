//! `tar cf - PATH...` and `tar xf - [-C DIR]` over a container's mounts, with the words that `kubectl cp` and people use.
//!
//! What comes in is not trusted: names with `..`, links that lead out, hard links and devices are refused one by one, the rest is
//! written; long names are bounded before they are read.

use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FileType, OFlags};
use tar::{Archive, Builder, EntryType, Header};

use super::paths::{Place, Root};
use super::{USAGE, complain};

/// Name and attributes of one file that precede it in an archive.
const EXTENSION_BYTES_MAX: u64 = 64 << 10;
/// Folders inside folders.
const DEPTH_MAX: usize = 256;

/// What the words of a command say.
#[derive(Debug, Default, PartialEq, Eq)]
struct Request {
    action: Option<Action>,
    dir: Option<String>,
    paths: Vec<String>,
    /// Files get the time of the copy, not the archive's.
    keeps_no_time: bool,
    verbose: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Create,
    Extract,
}

impl Request {
    fn parse(args: &[String]) -> Result<Self, String> {
        let mut request = Self::default();
        let mut file = None;
        let mut args = args.iter().map(String::as_str).enumerate();
        let mut only_paths = false;
        while let Some((index, arg)) = args.next() {
            let letters = match arg {
                _ if only_paths => None,
                "--" => {
                    only_paths = true;
                    continue;
                }
                "--no-same-permissions" | "--no-same-owner" | "--numeric-owner" => continue,
                long if long.starts_with("--") => {
                    return Err(format!(
                        "tar: option '{long}' is not offered to Wasm containers"
                    ));
                }
                "-" => None,
                short if short.starts_with('-') => Some(&short[1..]),
                bundle if index == 0 => Some(bundle),
                _ => None,
            };
            let Some(letters) = letters else {
                request.paths.push(arg.to_owned());
                continue;
            };
            for letter in letters.chars() {
                match letter {
                    'c' => request.action = Some(Action::Create),
                    'x' => request.action = Some(Action::Extract),
                    'f' => file = args.next().map(|(_, name)| name.to_owned()),
                    'C' => request.dir = args.next().map(|(_, dir)| dir.to_owned()),
                    'm' => request.keeps_no_time = true,
                    'v' => request.verbose = true,
                    'p' | 'o' => {}
                    other => {
                        return Err(format!(
                            "tar: option '-{other}' is not offered to Wasm containers"
                        ));
                    }
                }
            }
        }
        match (request.action, file.as_deref()) {
            (None, _) => Err("tar: one of -c and -x must be given".into()),
            (_, Some("-")) => Ok(request),
            _ => Err("tar: the archive must be a stream here: -f -".into()),
        }
    }
}

/// Runs the command; the exit code is 2 when anything went wrong, as GNU tar's is.
pub(super) fn run(
    args: &[String],
    root: &Root<'_>,
    stdin: &mut impl Read,
    stdout: &mut impl Write,
    stderr: &mut impl Write,
) -> i32 {
    let request = match Request::parse(args) {
        Ok(request) => request,
        Err(usage) => {
            complain(stderr, &usage);
            return USAGE;
        }
    };
    let base = root.absolute(request.dir.as_deref().unwrap_or("."));
    if request.dir.is_some() && !root.is_dir(&base) {
        complain(
            stderr,
            &format!("tar: {base}: Cannot open: No such file or directory"),
        );
        return USAGE;
    }
    let mut task = Task {
        root,
        stderr,
        failed: false,
    };
    let done = match request.action {
        Some(Action::Extract) => task.extract(&request, &base, stdin),
        _ => task.create(&request, &base, stdout),
    };
    if let Err(err) = done {
        task.fail(&format!("tar: {err}"));
    }
    if task.failed {
        complain(
            task.stderr,
            "tar: Exiting with failure status due to previous errors",
        );
        return USAGE;
    }
    0
}

struct Task<'a, W> {
    root: &'a Root<'a>,
    stderr: &'a mut W,
    failed: bool,
}

impl<W: Write> Task<'_, W> {
    fn fail(&mut self, text: &str) {
        self.failed = true;
        complain(self.stderr, text);
    }

    fn create(&mut self, request: &Request, base: &str, stdout: &mut impl Write) -> io::Result<()> {
        let mut archive = Builder::new(stdout);
        archive.sparse(false);
        for path in &request.paths {
            let absolute = match path.starts_with('/') {
                true => self.root.absolute(path),
                false => self.root.absolute(&format!("{base}/{path}")),
            };
            let name = member_name(path);
            if let Err(err) = self.root.place(&absolute).and_then(|place| place.stat())
                && self.root.mounts_below(&absolute).is_empty()
            {
                self.fail(&format!("tar: {path}: Cannot stat: {}", plain(&err)));
                continue;
            }
            self.add(&mut archive, &absolute, &name, 0)?;
        }
        archive.finish()
    }

    /// Adds what lies at an absolute path, with all that is below. An error is the stream's; what is wrong with files is told.
    fn add(
        &mut self,
        archive: &mut Builder<impl Write>,
        absolute: &str,
        name: &str,
        depth: usize,
    ) -> io::Result<()> {
        if depth > DEPTH_MAX {
            self.fail(&format!("tar: {absolute}: too deep"));
            return Ok(());
        }
        let mounts = self.root.mounts_below(absolute);
        let found = self
            .root
            .place(absolute)
            .and_then(|place| Ok((place.stat()?, place)));
        let (stat, place) = match found {
            Ok((stat, place)) => (Some(stat), Some(place)),
            // Folders that only lead to mounts.
            Err(_) if !mounts.is_empty() => (None, None),
            Err(err) => {
                self.fail(&format!("tar: {absolute}: Cannot stat: {}", plain(&err)));
                return Ok(());
            }
        };
        let mut header = Header::new_gnu();
        header.set_mode(stat.map_or(0o755, |stat| stat.st_mode & 0o7777));
        header.set_uid(stat.map_or(0, |stat| stat.st_uid.into()));
        header.set_gid(stat.map_or(0, |stat| stat.st_gid.into()));
        header.set_mtime(stat.map_or(0, |stat| u64::try_from(stat.st_mtime).unwrap_or(0)));
        header.set_size(0);
        let kind = stat.map_or(FileType::Directory, |stat| {
            FileType::from_raw_mode(stat.st_mode)
        });
        match (kind, place) {
            // A mount's own folder may be reached by a link of the kubelet's.
            (FileType::Directory, place) => {
                self.add_dir(archive, header, absolute, name, place, depth)
            }
            (FileType::RegularFile, Some(place)) => {
                self.add_file(archive, header, absolute, name, &place)
            }
            (FileType::Symlink, Some(place)) => match place.read_link() {
                Ok(target) => {
                    header.set_entry_type(EntryType::Symlink);
                    archive.append_link(&mut header, name, target)
                }
                Err(err) => {
                    self.fail(&format!(
                        "tar: {absolute}: Cannot readlink: {}",
                        plain(&err)
                    ));
                    Ok(())
                }
            },
            _ => {
                complain(
                    self.stderr,
                    &format!("tar: {absolute}: neither file nor folder, ignored"),
                );
                Ok(())
            }
        }
    }

    fn add_dir(
        &mut self,
        archive: &mut Builder<impl Write>,
        mut header: Header,
        absolute: &str,
        name: &str,
        place: Option<Place<'_>>,
        depth: usize,
    ) -> io::Result<()> {
        header.set_entry_type(EntryType::Directory);
        if !name.is_empty() {
            archive.append_data(&mut header, format!("{name}/"), io::empty())?;
        }
        let mut names = match place.map_or(Ok(Vec::new()), |place| place.names()) {
            Ok(names) => names,
            Err(err) => {
                self.fail(&format!("tar: {absolute}: Cannot open: {}", plain(&err)));
                return Ok(());
            }
        };
        names.extend(self.root.mounts_below(absolute));
        names.sort_unstable();
        names.dedup();
        for below in names {
            let path = format!("{}/{below}", absolute.trim_end_matches('/'));
            let name = match name.is_empty() {
                true => below,
                false => format!("{name}/{below}"),
            };
            self.add(archive, &path, &name, depth + 1)?;
        }
        Ok(())
    }

    fn add_file(
        &mut self,
        archive: &mut Builder<impl Write>,
        mut header: Header,
        absolute: &str,
        name: &str,
        place: &Place<'_>,
    ) -> io::Result<()> {
        // What was a file a moment ago may be a pipe now: opening it must not wait.
        let opened = place
            .open(OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK)
            .and_then(|file| Ok((file.metadata()?, file)));
        let (meta, file) = match opened {
            Ok((meta, file)) if meta.is_file() => (meta, file),
            Ok(_) => {
                self.fail(&format!("tar: {absolute}: file changed as we read it"));
                return Ok(());
            }
            Err(err) => {
                self.fail(&format!("tar: {absolute}: Cannot open: {}", plain(&err)));
                return Ok(());
            }
        };
        header.set_entry_type(EntryType::Regular);
        header.set_size(meta.len());
        // A file that shrinks meanwhile is filled up: the header has said its length.
        archive.append_data(
            &mut header,
            name,
            file.chain(io::repeat(0)).take(meta.len()),
        )
    }

    fn extract(&mut self, request: &Request, base: &str, stdin: &mut impl Read) -> io::Result<()> {
        let mut archive = Archive::new(stdin);
        let mut extension = Extension::default();
        // Raw, so that what precedes a file is read here, within a bound.
        for entry in archive.entries()?.raw(true) {
            let mut entry = entry?;
            let kind = entry.header().entry_type();
            if extension.take(kind, &mut entry)? {
                continue;
            }
            let Extension { path, link } = std::mem::take(&mut extension);
            let name = match path {
                Some(name) => name,
                None => entry.path()?.into_owned(),
            };
            let target = match link {
                Some(target) => Some(target),
                None => entry.link_name()?.map(std::borrow::Cow::into_owned),
            };
            let shown = name.display().to_string();
            if !request.paths.is_empty()
                && !request
                    .paths
                    .iter()
                    .any(|path| name.starts_with(member_name(path)))
            {
                continue;
            }
            if request.verbose {
                complain(self.stderr, &shown);
            }
            match self.write(request, base, &name, target.as_deref(), &mut entry) {
                Ok(()) => {}
                Err(Trouble::File(err)) => self.fail(&format!("tar: {shown}: {err}")),
                Err(Trouble::Stream(err)) => return Err(err),
            }
        }
        Ok(())
    }

    fn write(
        &mut self,
        request: &Request,
        base: &str,
        name: &Path,
        target: Option<&Path>,
        entry: &mut tar::Entry<'_, impl Read>,
    ) -> Result<(), Trouble> {
        let mut below = String::new();
        for part in name.components() {
            match part {
                Component::Normal(part) => {
                    below.push('/');
                    below.push_str(
                        part.to_str()
                            .ok_or_else(|| Trouble::file("its name is not UTF-8"))?,
                    );
                }
                Component::CurDir | Component::RootDir => {}
                Component::ParentDir | Component::Prefix(_) => {
                    return Err(Trouble::file("Member name contains '..', not written"));
                }
            }
        }
        let place = self
            .root
            .place(&self.root.absolute(&format!("{base}{below}")))?;
        let kind = entry.header().entry_type();
        if place.is_mount() {
            return match kind {
                EntryType::Directory => Ok(()),
                _ => Err(Trouble::file("it is a mount")),
            };
        }
        if place.is_readonly() {
            return Err(Trouble::file("Cannot write: Read-only file system"));
        }
        match kind {
            EntryType::Directory => Ok(place.make_dirs()?),
            EntryType::Regular | EntryType::Continuous => {
                self.make_parent(&place)?;
                let mut file = place.create()?;
                copy(entry, &mut file)?;
                let mode = entry.header().mode().unwrap_or(0o644) & 0o777;
                rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(mode))
                    .map_err(io::Error::from)?;
                if !request.keeps_no_time
                    && let Ok(seconds) = entry.header().mtime()
                {
                    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
                    time.map_or(Ok(()), |time| file.set_modified(time))?;
                }
                Ok(())
            }
            EntryType::Symlink => {
                let target = target.ok_or_else(|| Trouble::file("a link without a target"))?;
                if leads_out(target, place.depth()) {
                    return Err(Trouble::file(
                        "a link that leads out of the mount, not written",
                    ));
                }
                self.make_parent(&place)?;
                Ok(place.link_to(target)?)
            }
            _ => Err(Trouble::file(
                "neither file, folder nor symbolic link, not written",
            )),
        }
    }

    fn make_parent(&self, place: &Place<'_>) -> io::Result<()> {
        match place.parent_and_name() {
            Ok(_) => Ok(()),
            Err(err) if err.kind() == io::ErrorKind::NotFound => place.parent().make_dirs(),
            Err(err) => Err(err),
        }
    }
}

/// What went wrong with one member.
enum Trouble {
    /// It is not written; the others are.
    File(String),
    /// The archive cannot be read on.
    Stream(io::Error),
}

impl Trouble {
    fn file(text: &str) -> Self {
        Self::File(text.to_owned())
    }
}

impl From<io::Error> for Trouble {
    fn from(err: io::Error) -> Self {
        Self::File(format!("Cannot write: {}", plain(&err)))
    }
}

/// Copies a member, telling the archive's errors from the file's.
fn copy(from: &mut impl Read, to: &mut impl Write) -> Result<(), Trouble> {
    let mut piece = vec![0; 64 << 10];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(len) => to.write_all(&piece[..len])?,
            Err(err) => return Err(Trouble::Stream(err)),
        }
    }
}

/// Name and link of the next member where the header's own fields are too short.
#[derive(Debug, Default)]
struct Extension {
    path: Option<PathBuf>,
    link: Option<PathBuf>,
}

impl Extension {
    /// Takes a member that says something about the next one; false for a real member.
    fn take(&mut self, kind: EntryType, entry: &mut tar::Entry<'_, impl Read>) -> io::Result<bool> {
        if !matches!(
            kind,
            EntryType::GNULongName
                | EntryType::GNULongLink
                | EntryType::XHeader
                | EntryType::XGlobalHeader
        ) {
            return Ok(false);
        }
        if entry.header().entry_size()? > EXTENSION_BYTES_MAX {
            return Err(io::Error::other("a member's name is too long"));
        }
        let mut bytes = Vec::new();
        entry.take(EXTENSION_BYTES_MAX).read_to_end(&mut bytes)?;
        let path = |bytes: &[u8]| {
            let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
            let text = std::str::from_utf8(text).map_err(io::Error::other)?;
            Ok::<_, io::Error>(Some(PathBuf::from(text)))
        };
        match kind {
            EntryType::GNULongName => self.path = path(&bytes)?,
            EntryType::GNULongLink => self.link = path(&bytes)?,
            EntryType::XHeader => {
                for pair in tar::PaxExtensions::new(&bytes) {
                    let pair = pair?;
                    match pair.key_bytes() {
                        b"path" => self.path = path(pair.value_bytes())?,
                        b"linkpath" => self.link = path(pair.value_bytes())?,
                        b"size" => {
                            return Err(io::Error::other("files over 8 GiB are not supported"));
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        Ok(true)
    }
}

/// Whether a link `depth` names below its mount points outside of it.
fn leads_out(target: &Path, depth: usize) -> bool {
    let mut depth = depth.saturating_sub(1);
    for part in target.components() {
        match part {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir if depth > 0 => depth -= 1,
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return true,
        }
    }
    false
}

/// Names in an archive are relative.
fn member_name(path: &str) -> String {
    let parts = path
        .split('/')
        .filter(|part| !matches!(*part, "" | "." | ".."));
    parts.collect::<Vec<_>>().join("/")
}

/// The kernel's words for an error, as programs say them.
fn plain(err: &io::Error) -> String {
    match err.raw_os_error() {
        // openat2's word for a path that leaves the mount.
        Some(code) if code == rustix::io::Errno::XDEV.raw_os_error() => {
            "it leads out of the mount".into()
        }
        _ => {
            let text = err.to_string();
            text.split(" (os error")
                .next()
                .unwrap_or_default()
                .to_owned()
        }
    }
}

#[cfg(test)]
mod tests;
