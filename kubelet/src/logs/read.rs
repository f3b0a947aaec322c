//! Reads container logs in the CRI format: `TIME STREAM TAG CONTENT`, where tag `F` ends a line and `P` leaves it open.
//!
//! [`follow`] streams a log: from the wished start, then (if asked) on as it grows, over rotations, until the container has ended.
//! It waits on inotify and never polls.

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use jiff::{SignedDuration, Timestamp};
use rustix::fs::inotify;
use std::io::{self, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tokio::fs::File;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncSeekExt, BufReader};
use tokio::net::unix::pipe;

/// Output is handed on in pieces of about this size.
const CHUNK: usize = 16 << 10;
/// A line longer than this is handed on in pieces; runtimes break lines at 16 KiB anyway.
const LINE_MAX: u64 = 1 << 20;

/// What of a log is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub follow: bool,
    pub previous: bool,
    pub timestamps: bool,
    pub tail_lines: Option<usize>,
    pub since: Option<Timestamp>,
    pub limit_bytes: Option<usize>,
    /// `stdout` or `stderr` alone.
    pub stream: Option<&'static str>,
}

/// A query that asks for nonsense; the text is for the client.
#[derive(Debug, PartialEq, Eq)]
pub struct OptionsError(pub String);

impl Options {
    /// Reads a query string.
    pub fn parse(query: &str, now: Timestamp) -> Result<Self, OptionsError> {
        let mut options = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decode(value);
            let wrong = || OptionsError(format!("invalid value \"{value}\" for {key}"));
            let number = || value.parse::<i64>().map_err(|_| wrong());
            let positive = || number().and_then(|n| usize::try_from(n).map_err(|_| wrong()));
            let flag = matches!(
                value.as_str(),
                "" | "1" | "true" | "t" | "T" | "TRUE" | "True"
            );
            match key {
                "follow" => options.follow = flag,
                "previous" => options.previous = flag,
                "timestamps" => options.timestamps = flag,
                "tailLines" => options.tail_lines = Some(positive()?),
                "limitBytes" => options.limit_bytes = Some(positive()?),
                "sinceSeconds" => {
                    let ago = SignedDuration::from_secs(number()?);
                    options.since = now.checked_sub(ago).ok();
                }
                "sinceTime" => options.since = Some(value.parse().map_err(|_| wrong())?),
                "stream" => {
                    options.stream = match value.as_str() {
                        "Stdout" => Some("stdout"),
                        "Stderr" => Some("stderr"),
                        "" | "All" => None,
                        _ => return Err(wrong()),
                    };
                }
                _ => {}
            }
        }
        Ok(options)
    }
}

/// Undoes percent-encoding.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        match (first, hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            (b'+', _) => {
                bytes.push(b' ');
                rest = tail;
            }
            (byte, _) => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// One line of the file.
#[derive(Debug, PartialEq, Eq)]
struct Record<'a> {
    time: &'a str,
    stream: &'a str,
    is_partial: bool,
    content: &'a [u8],
}

/// Takes a line of the CRI format apart; `None`: it is not one.
fn record(line: &[u8]) -> Option<Record<'_>> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = std::str::from_utf8(parts.next()?).ok()?;
    let tag = parts.next()?;
    Some(Record {
        time,
        stream,
        is_partial: tag.starts_with(b"P"),
        content: parts.next().unwrap_or_default(),
    })
}

/// Turns lines of the file into output.
#[derive(Debug)]
struct Renderer {
    options: Options,
    left: usize,
    /// The next content continues a line.
    in_line: bool,
}

impl Renderer {
    fn new(options: Options) -> Self {
        let left = options.limit_bytes.unwrap_or(usize::MAX);
        Self {
            options,
            left,
            in_line: false,
        }
    }

    /// Appends what a line of the file gives. False: the limit is reached.
    fn add(&mut self, line: &[u8], out: &mut BytesMut) -> bool {
        let Some(record) = record(line) else {
            return true;
        };
        if self
            .options
            .stream
            .is_some_and(|stream| stream != record.stream)
        {
            return true;
        }
        if let Some(since) = self.options.since
            && record
                .time
                .parse::<Timestamp>()
                .is_ok_and(|time| time < since)
        {
            return true;
        }
        if self.options.timestamps && !self.in_line {
            self.put(record.time.as_bytes(), out);
            self.put(b" ", out);
        }
        self.put(record.content, out);
        self.in_line = record.is_partial;
        if !record.is_partial {
            self.put(b"\n", out);
        }
        self.left > 0
    }

    fn put(&mut self, bytes: &[u8], out: &mut BytesMut) {
        let bytes = &bytes[..bytes.len().min(self.left)];
        out.extend_from_slice(bytes);
        self.left -= bytes.len();
    }
}

/// Where the last `lines` lines of a file begin.
async fn tail_start(file: &mut File, lines: usize) -> io::Result<u64> {
    let mut end = file.seek(SeekFrom::End(0)).await?;
    if lines == 0 {
        return Ok(end);
    }
    let mut found = 0;
    let mut block = vec![0; 64 << 10];
    let size = end;
    while end > 0 {
        let begin = end.saturating_sub(block.len() as u64);
        let len = usize::try_from(end - begin).unwrap_or(block.len());
        file.seek(SeekFrom::Start(begin)).await?;
        file.read_exact(&mut block[..len]).await?;
        for (index, byte) in block[..len].iter().enumerate().rev() {
            let at = begin + index as u64;
            // The newline that ends the file ends the last line; it does not begin one.
            if *byte == b'\n' && at + 1 != size {
                found += 1;
                if found == lines {
                    return Ok(at + 1);
                }
            }
        }
        end = begin;
    }
    Ok(0)
}

/// Wakes when something happens in a folder.
#[derive(Debug)]
pub(crate) struct FolderWatch(pipe::Receiver);

impl FolderWatch {
    pub(crate) fn new(folder: &Path) -> io::Result<Self> {
        let fd = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        let events = inotify::WatchFlags::MODIFY
            | inotify::WatchFlags::CREATE
            | inotify::WatchFlags::DELETE
            | inotify::WatchFlags::MOVED_TO
            | inotify::WatchFlags::MOVED_FROM;
        inotify::add_watch(&fd, folder, events)?;
        // Not a pipe, but read like one: tokio's only safe door to a descriptor of ours that becomes readable.
        Ok(Self(pipe::Receiver::from_owned_fd_unchecked(fd)?))
    }

    /// Waits for something to have happened since the last call.
    ///
    /// # Cancel safety
    /// What happened stays until it is returned.
    pub(crate) async fn changed(&self) -> io::Result<()> {
        let mut events = [0_u8; 4096];
        loop {
            self.0.readable().await?;
            let mut seen = false;
            loop {
                match self.0.try_read(&mut events) {
                    Ok(0) => return Ok(()),
                    Ok(_) => seen = true,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
            if seen {
                return Ok(());
            }
        }
    }
}

/// A log being streamed.
struct Reading {
    path: PathBuf,
    file: BufReader<File>,
    inode: u64,
    /// A newer file is there, and this one was read to its end since.
    is_drained: bool,
    renderer: Renderer,
    /// A line whose end is not written yet.
    pending: Vec<u8>,
    watch: Option<FolderWatch>,
    over: Option<BoxFuture<'static, ()>>,
    is_done: bool,
}

/// Streams a log. `over` completes when nothing more will be written to it.
pub async fn follow(
    path: PathBuf,
    options: Options,
    over: BoxFuture<'static, ()>,
) -> io::Result<BoxStream<'static, io::Result<Bytes>>> {
    // First the watch, then the file: what is written in between wakes us.
    let watch = match path.parent() {
        Some(folder) if options.follow => Some(FolderWatch::new(folder)?),
        _ => None,
    };
    let mut file = File::open(&path).await?;
    let start = match options.tail_lines {
        Some(lines) => tail_start(&mut file, lines).await?,
        None => 0,
    };
    file.seek(SeekFrom::Start(start)).await?;
    let inode = file.metadata().await?.ino();
    let reading = Reading {
        path,
        file: BufReader::with_capacity(CHUNK, file),
        inode,
        is_drained: false,
        renderer: Renderer::new(options),
        pending: Vec::new(),
        over: watch.is_some().then_some(over),
        watch,
        is_done: false,
    };
    let stream = futures::stream::unfold(reading, |mut reading| async move {
        match reading.next_chunk().await {
            Ok(Some(chunk)) => Some((Ok(chunk), reading)),
            Ok(None) => None,
            Err(error) => {
                reading.is_done = true;
                Some((Err(error), reading))
            }
        }
    });
    Ok(Box::pin(stream))
}

impl Reading {
    /// The next piece of output; `None`: that was all.
    async fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if self.is_done {
                return Ok(None);
            }
            let mut out = BytesMut::new();
            let at_end = self.fill(&mut out).await?;
            if at_end && out.is_empty() {
                if !self.reopen().await? {
                    self.wait().await?;
                }
                continue;
            }
            if !out.is_empty() {
                return Ok(Some(out.freeze()));
            }
        }
    }

    /// Renders lines until the piece is large enough. True: the file has no more complete line.
    async fn fill(&mut self, out: &mut BytesMut) -> io::Result<bool> {
        while out.len() < CHUNK {
            let room = LINE_MAX.saturating_sub(self.pending.len() as u64).max(1);
            let read = (&mut self.file)
                .take(room)
                .read_until(b'\n', &mut self.pending)
                .await?;
            let is_complete =
                self.pending.ends_with(b"\n") || self.pending.len() as u64 >= LINE_MAX;
            if !is_complete && read == 0 {
                return Ok(true);
            }
            if is_complete {
                let more = self.renderer.add(&self.pending, out);
                self.pending.clear();
                if !more {
                    self.is_done = true;
                    return Ok(false);
                }
            }
        }
        Ok(false)
    }

    /// Goes over to the new file after a rotation. True: there is one, or the old one still had something.
    async fn reopen(&mut self) -> io::Result<bool> {
        if self.watch.is_none() {
            return Ok(false);
        }
        let inode = match tokio::fs::metadata(&self.path).await {
            Ok(metadata) => metadata.ino(),
            // Between the rename and the runtime's opening anew.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        if inode == self.inode {
            return Ok(false);
        }
        if !self.is_drained {
            // The old file gets nothing any more once the new one is there: one more look finds its last lines.
            self.is_drained = true;
            return Ok(true);
        }
        let file = File::open(&self.path).await?;
        self.inode = file.metadata().await?.ino();
        self.file = BufReader::with_capacity(CHUNK, file);
        self.is_drained = false;
        Ok(true)
    }

    /// Waits for news, or ends.
    async fn wait(&mut self) -> io::Result<()> {
        let Some(watch) = &self.watch else {
            self.is_done = true;
            return Ok(());
        };
        let Some(over) = &mut self.over else {
            self.is_done = true;
            return Ok(());
        };
        tokio::select! {
            // What happened stays in the kernel's queue until it is returned.
            changed = watch.changed() => changed,
            () = over => {
                // One more look at the file: the last lines may have come with the end.
                self.over = None;
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests;
