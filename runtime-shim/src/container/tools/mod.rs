//! What the shim itself offers to an exec in a Wasm container, whose image has no shell and no tools: `tar`, which `kubectl cp`
//! is made of, and `test`, which it asks about its target.
//!
//! They see the container's mounts and nothing else, with the mounts' read-only flags, as the guest does. An image that has a file
//! of that name keeps it. They run on threads that may block, a bounded number at a time.

mod paths;
mod tar;

use std::io::{self, Read, Write};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;

use crate::engine::GuestContext;
use crate::streaming::{Input, Io, Output};
use paths::Root;

/// Exit codes as those of the programs they stand for.
const USAGE: i32 = 2;
const BUFFER_BYTES: usize = 64 << 10;

/// A command that the shim carries out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tool {
    Tar(Vec<String>),
    Test(Vec<String>),
}

impl Tool {
    /// The tool that a command names.
    pub(super) fn of(cmd: &[String]) -> Option<Self> {
        let (name, args) = cmd.split_first()?;
        match name.as_str() {
            "tar" | "/bin/tar" | "/usr/bin/tar" => Some(Self::Tar(args.to_vec())),
            "test" | "/bin/test" | "/usr/bin/test" => Some(Self::Test(args.to_vec())),
            _ => None,
        }
    }

    /// Runs it to its end; blocks. Ends early when the client's streams do.
    pub(super) fn run(&self, context: &GuestContext, io: Io, handle: &Handle) -> i32 {
        let root = Root::new(&context.preopens, context.cwd.as_deref());
        let mut stdin = Reader {
            input: io.stdin,
            handle: handle.clone(),
        };
        let writer = |output| Writer {
            output,
            handle: handle.clone(),
        };
        let mut stdout = io::BufWriter::with_capacity(BUFFER_BYTES, writer(io.stdout));
        let mut stderr = writer(io.stderr);
        let code = match self {
            Self::Tar(args) => tar::run(args, &root, &mut stdin, &mut stdout, &mut stderr),
            Self::Test(args) => test(args, &root, &mut stderr),
        };
        let flushed = stdout.flush();
        let ended = stdout.get_mut().end().and_then(|()| stderr.end());
        match flushed.and(ended) {
            Ok(()) => code,
            Err(err) => {
                tracing::debug!(error = %err, "A client was gone before the end");
                code
            }
        }
    }
}

/// The file that a command names in a mount, if it is one there: a path, or a `.wasm` file of the working folder.
pub(super) fn open_program(context: &GuestContext, name: &str) -> Option<std::fs::File> {
    use rustix::fs::OFlags;
    if !name.contains('/') && !name.ends_with(".wasm") {
        return None;
    }
    let root = Root::new(&context.preopens, context.cwd.as_deref());
    let place = root.place(&root.absolute(name)).ok()?;
    // A pipe in its place must not hold the caller.
    let file = place.open(OFlags::RDONLY | OFlags::NONBLOCK).ok()?;
    file.metadata().ok()?.is_file().then_some(file)
}

/// `test -d PATH`, `-e` and `-f`, following links as far as they stay in the mount.
fn test(args: &[String], root: &Root<'_>, stderr: &mut impl Write) -> i32 {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let found = match args[..] {
        ["-d", path] => root.is_dir(path),
        ["-f", path] => root.is_file(path),
        ["-e", path] => root.is_dir(path) || root.is_file(path),
        _ => {
            complain(
                stderr,
                "test: only -d, -e and -f with one path are offered to Wasm containers",
            );
            return USAGE;
        }
    };
    i32::from(!found)
}

/// Writes a line of complaint; a client that does not listen misses it.
fn complain(stderr: &mut impl Write, text: &str) {
    if let Err(err) = writeln!(stderr, "{text}") {
        tracing::debug!(error = %err, text, "Nobody hears this");
    }
}

/// A client's stdin for code that blocks.
struct Reader {
    input: Option<Input>,
    handle: Handle,
}

impl Read for Reader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match &mut self.input {
            Some(input) => self.handle.block_on(input.read(buf)),
            None => Ok(0),
        }
    }
}

/// A client's stdout or stderr for code that blocks; nowhere without one.
struct Writer {
    output: Option<Output>,
    handle: Handle,
}

impl Writer {
    fn end(&mut self) -> io::Result<()> {
        match &mut self.output {
            Some(output) => self.handle.block_on(output.shutdown()),
            None => Ok(()),
        }
    }
}

impl Write for Writer {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match &mut self.output {
            Some(output) => self.handle.block_on(output.write(buf)),
            None => Ok(buf.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.output {
            Some(output) => self.handle.block_on(output.flush()),
            None => Ok(()),
        }
    }
}
