//! Exec and attach: what the client wants is put together from its streams, served, and its end told.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::Io;
use super::resize::Resizes;
use super::spdy::{self, Accepted, Incoming};
use super::status::End;
use super::tokens::{Asked, Wanted};
use crate::error::VerbError;
use crate::shim::Shim;

/// A client must have opened its streams by then, as upstream has it.
const STREAMS_WITHIN: Duration = Duration::from_secs(30);

/// Versions of the protocol over SPDY, newest first.
pub(super) const SPDY_PROTOCOLS: [&str; 4] = [
    "v4.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
    "channel.k8s.io",
];

/// Serves what was asked for with the client's streams; dropping it ends the command.
pub(super) async fn serve(shim: &Arc<Shim>, asked: Asked, io: Io) -> End {
    let served = match asked {
        Asked::Exec {
            container,
            cmd,
            wanted,
        } => shim.exec(&container, cmd, wanted.tty, io).await,
        Asked::Attach { container, .. } => shim.attach(&container, io).await.map(|()| 0),
        Asked::PortForward { .. } => Err(VerbError::Invalid("not a command".into())),
    };
    served.into()
}

/// The session over SPDY. Returns when the client has the end of it, or has gone.
pub(super) async fn over_spdy<T>(
    shim: &Arc<Shim>,
    asked: Asked,
    wanted: Wanted,
    protocol: &str,
    io: T,
) -> io::Result<()>
where
    T: AsyncRead + AsyncWrite,
{
    let (driver, mut incoming) = spdy::connection(io);
    let session = async {
        let streams =
            tokio::time::timeout(STREAMS_WITHIN, streams(&mut incoming, wanted, protocol)).await;
        let Ok(Some(streams)) = streams else {
            tracing::debug!("A client did not open its streams");
            incoming.close().await;
            return;
        };
        let (mut error, io, resizing) = streams.connect();
        let end = tokio::select! {
            end = serve(shim, asked, io) => end,
            never = resizing => match never {},
        };
        let message = end.message(protocol == SPDY_PROTOCOLS[0]);
        let told = async {
            error.write_all(&message).await?;
            error.shutdown().await
        };
        if let Err(err) = told.await {
            tracing::debug!(error = %err, "A client was gone before the end");
        }
        incoming.close().await;
    };
    tokio::select! {
        driven = driver => driven,
        never = endless(session) => match never {},
    }
}

async fn endless(work: impl Future<Output = ()>) -> std::convert::Infallible {
    work.await;
    std::future::pending().await
}

/// The client's streams by type.
#[derive(Default)]
struct Streams {
    error: Option<Accepted>,
    stdin: Option<Accepted>,
    stdout: Option<Accepted>,
    stderr: Option<Accepted>,
    resize: Option<Accepted>,
}

/// Waits until the client has opened all it must.
async fn streams(incoming: &mut Incoming, wanted: Wanted, protocol: &str) -> Option<Streams> {
    let mut streams = Streams::default();
    let resizes = wanted.tty && SPDY_PROTOCOLS[..2].contains(&protocol);
    loop {
        let missing = streams.error.is_none()
            || (wanted.stdin && streams.stdin.is_none())
            || (wanted.stdout && streams.stdout.is_none())
            || (wanted.stderr && streams.stderr.is_none())
            || (resizes && streams.resize.is_none());
        if !missing {
            return Some(streams);
        }
        let stream = incoming.next().await?;
        let place = match stream.header("streamtype") {
            Some("error") => &mut streams.error,
            Some("stdin") => &mut streams.stdin,
            Some("stdout") => &mut streams.stdout,
            Some("stderr") => &mut streams.stderr,
            Some("resize") => &mut streams.resize,
            _ => {
                incoming.reset(stream.id, 1).await;
                continue;
            }
        };
        *place = Some(stream);
    }
}

impl Streams {
    /// The error stream, what the container sees, and what reads the terminal's sizes.
    fn connect(
        self,
    ) -> (
        impl AsyncWrite + Unpin,
        Io,
        impl Future<Output = std::convert::Infallible>,
    ) {
        let error = self.error.expect("it was waited for").writer;
        let (mut resizes, sizes) = Resizes::new();
        let has_resize = self.resize.is_some();
        let io = Io {
            stdin: self
                .stdin
                .map(|stream| Box::pin(stream.reader) as super::Input),
            stdout: self
                .stdout
                .map(|stream| Box::pin(stream.writer) as super::Output),
            stderr: self
                .stderr
                .map(|stream| Box::pin(stream.writer) as super::Output),
            resize: has_resize.then_some(sizes),
        };
        let resize = self.resize;
        let resizing = endless(async move {
            let Some(mut stream) = resize else { return };
            let mut piece = vec![0; 1024];
            while let Ok(len @ 1..) = stream.reader.read(&mut piece).await {
                resizes.take(&piece[..len]).await;
            }
        });
        (error, io, resizing)
    }
}
