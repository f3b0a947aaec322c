//! Calls to the members of an etcd cluster: one connection to each, made when needed; calls go to one member until it fails.
//!
//! A failure says what is known of the request: that it was not carried out, or that nobody can tell. What may be repeated is
//! the caller's decision.

use std::error::Error as _;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use http::uri::PathAndQuery;
use tokio::time::Instant;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::tls::{self, Tls};
use super::wire::{
    Headed, Header, StatusRequest, StatusResponse, WatchCreateRequest, WatchRequest, WatchResponse,
};

/// One attempt. A member that is paused or cut off answers nothing at all; another one may.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
/// An attempt that takes longer may wait for a leader that has died: its member is asked how things are.
const DOUBT_AFTER: Duration = Duration::from_millis(400);
/// And asked again after so long.
const DOUBT_AGAIN: Duration = Duration::from_millis(200);
/// How long a member may take to say how it is; that costs it nothing, so one that takes longer is not there.
const STATUS_TIMEOUT: Duration = Duration::from_millis(700);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// etcd takes pings more often than every five seconds for an attack.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(100);
/// What a member sends in one message: catching up after a break can bring a thousand revisions at once.
const MESSAGE_LEN_MAX: usize = 2 * 1024 * 1024 * 1024 - 1;

/// Why a call gave no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// The request was certainly not carried out; another attempt may succeed.
    NotDone(Status),
    /// It may have been carried out.
    Unknown(Status),
    /// etcd said no, and would again.
    Refused(Status),
}

impl Failure {
    pub(super) fn message(&self) -> String {
        let (Self::NotDone(status) | Self::Unknown(status) | Self::Refused(status)) = self;
        match status.source() {
            // A refused connection hides what happened in its sources.
            Some(source) => format!("{}: {}", status.message(), root(source)),
            None => status.message().to_owned(),
        }
    }
}

fn root(mut error: &(dyn std::error::Error + 'static)) -> String {
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// The members.
#[derive(Debug)]
pub(super) struct Client {
    members: Vec<Channel>,
    names: Vec<String>,
    /// The one that calls go to.
    current: AtomicUsize,
    /// The last election that an answer told of.
    term: AtomicU64,
}

impl Client {
    /// Connects to nobody yet. Must be called in the runtime that is to serve the connections.
    pub(super) fn new(endpoints: &[String], tls: Option<&Tls>) -> Result<Self, String> {
        let connector = tls.map(tls::Connector::new).transpose()?;
        let mut members = Vec::new();
        for name in endpoints {
            members.push(member(name, connector.as_ref())?);
        }
        if members.is_empty() {
            return Err("no etcd server is named".to_owned());
        }
        Ok(Self {
            members,
            names: endpoints.to_vec(),
            current: AtomicUsize::new(0),
            term: AtomicU64::new(0),
        })
    }

    /// The members as they were named.
    pub(super) fn names(&self) -> String {
        self.names.join(", ")
    }

    /// One attempt at a call.
    pub(super) async fn call<Q, R>(&self, path: &'static str, request: Q) -> Result<R, Failure>
    where
        Q: prost::Message + Send + Sync + 'static,
        R: prost::Message + Default + Headed + Send + Sync + 'static,
    {
        let at = self.current.load(Ordering::Relaxed);
        let attempt = async {
            let mut grpc = grpc(self.members[at].clone());
            grpc.ready().await.map_err(not_ready)?;
            let codec = ProstCodec::<Q, R>::default();
            grpc.unary(led(request), PathAndQuery::from_static(path), codec)
                .await
        };
        let term = self.term.load(Ordering::Relaxed);
        let outcome = tokio::select! {
            // The first that is done; the attempt is given up with the others, which is what a failure of unknown outcome says.
            biased;
            outcome = attempt => outcome.map(tonic::Response::into_inner),
            why = self.too_long(at, term) => Err(Status::unavailable(why)),
        };
        let status = match outcome {
            Ok(answer) => {
                let said: Option<&Header> = R::header(&answer);
                self.heard_of(said.map_or(0, |header| header.raft_term));
                return Ok(answer);
            }
            Err(status) => status,
        };
        let failure = classify(status);
        if !matches!(failure, Failure::Refused(_)) {
            self.leave(at);
        }
        Err(failure)
    }

    /// A call that changes nothing: repeated until it succeeds, is refused, or the deadline has come.
    pub(super) async fn read<Q, R>(
        &self,
        path: &'static str,
        request: Q,
        deadline: Instant,
    ) -> Result<R, Failure>
    where
        Q: prost::Message + Clone + Send + Sync + 'static,
        R: prost::Message + Default + Headed + Send + Sync + 'static,
    {
        loop {
            match self.call(path, request.clone()).await {
                Err(failure @ (Failure::NotDone(_) | Failure::Unknown(_))) => {
                    if Instant::now() + PAUSE > deadline {
                        return Err(failure);
                    }
                    self.pause().await;
                }
                outcome => return outcome,
            }
        }
    }

    fn heard_of(&self, term: u64) {
        self.term.fetch_max(term, Ordering::Relaxed);
    }

    /// Ends when an attempt that was begun in `term` is to be given up. Nearly all are answered before the first of these times is over.
    async fn too_long(&self, at: usize, term: u64) -> String {
        tokio::time::sleep(DOUBT_AFTER).await;
        let rest = ATTEMPT_TIMEOUT.saturating_sub(DOUBT_AFTER);
        match tokio::time::timeout(rest, self.hopeless(at, term)).await {
            Ok(why) => why,
            Err(_) => format!("{} does not answer", self.names[at]),
        }
    }

    /// Ends when an attempt that was begun in `term` will not be answered: the member is not there, or another leader was elected
    /// since, and what was on its way to the old one is lost. etcd itself tells that only after seven seconds.
    async fn hopeless(&self, at: usize, term: u64) -> String {
        let mut term = term;
        loop {
            let asked = async {
                let mut grpc = grpc(self.members[at].clone());
                grpc.ready().await.map_err(not_ready)?;
                let codec = ProstCodec::<StatusRequest, StatusResponse>::default();
                let path = PathAndQuery::from_static("/etcdserverpb.Maintenance/Status");
                let request = Request::new(StatusRequest {});
                grpc.unary(request, path, codec).await
            };
            let name = &self.names[at];
            match tokio::time::timeout(STATUS_TIMEOUT, asked).await {
                Err(_) => return format!("{name} does not even say how it is"),
                Ok(Err(status)) => {
                    // Whoever may not ask this has to wait until the attempt's own time is up.
                    tracing::debug!(%status, member = %name, "Member does not tell how it is");
                    return std::future::pending().await;
                }
                Ok(Ok(answer)) => {
                    let answer = answer.into_inner();
                    let now = answer.header.map_or(0, |header| header.raft_term);
                    if term != 0 && now > term && answer.leader != 0 {
                        self.heard_of(now);
                        return format!("{name} has another leader since");
                    }
                    if term == 0 {
                        term = now;
                    }
                }
            }
            tokio::time::sleep(DOUBT_AGAIN).await;
        }
    }

    /// Waits before another attempt.
    pub(super) async fn pause(&self) {
        tokio::time::sleep(PAUSE).await;
    }

    /// Opens a watch at the present member, and says which one that is. Ends when the member goes, or no longer knows a leader.
    pub(super) async fn watch(
        &self,
        create: WatchCreateRequest,
    ) -> Result<(Streaming<WatchResponse>, usize), Failure> {
        let at = self.current.load(Ordering::Relaxed);
        let attempt = async {
            let mut grpc = grpc(self.members[at].clone());
            grpc.ready().await.map_err(not_ready)?;
            let request = WatchRequest {
                create: Some(create),
            };
            // The stream of requests stays open: its end would end the watch.
            let requests = tokio_stream::StreamExt::chain(
                tokio_stream::once(request),
                tokio_stream::pending(),
            );
            let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
            let codec = ProstCodec::<WatchRequest, WatchResponse>::default();
            grpc.streaming(led(requests), path, codec).await
        };
        match tokio::time::timeout(ATTEMPT_TIMEOUT, attempt).await {
            Ok(Ok(answer)) => Ok((answer.into_inner(), at)),
            Ok(Err(status)) => {
                self.leave(at);
                Err(classify(status))
            }
            Err(_) => {
                self.leave(at);
                Err(Failure::NotDone(Status::unavailable(format!(
                    "{} opens no watch",
                    self.names[at]
                ))))
            }
        }
    }

    /// Calls that go to this member go to the next one from now on.
    pub(super) fn leave(&self, at: usize) {
        let next = (at + 1) % self.members.len();
        // If somebody else has left it already, nothing is to be done.
        self.current
            .compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed)
            .ok();
    }
}

fn grpc(channel: Channel) -> tonic::client::Grpc<Channel> {
    tonic::client::Grpc::new(channel)
        .max_decoding_message_size(MESSAGE_LEN_MAX)
        .max_encoding_message_size(MESSAGE_LEN_MAX)
}

fn not_ready(error: tonic::transport::Error) -> Status {
    Status::from_error(Box::new(error))
}

/// A member without a leader is to say so at once, before it does anything.
fn led<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("hasleader", MetadataValue::from_static("true"));
    request
}

fn member(name: &str, tls: Option<&tls::Connector>) -> Result<Channel, String> {
    let wrong = |why: String| format!("etcd server {name:?}: {why}");
    let (scheme, host) = name
        .split_once("://")
        .filter(|(scheme, _)| matches!(*scheme, "http" | "https"))
        .ok_or_else(|| wrong("must begin with http:// or https://".into()))?;
    let host = host.trim_end_matches('/');
    let endpoint = Endpoint::from_shared(format!("http://{host}"))
        .map_err(|error| wrong(root(&error)))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .initial_stream_window_size(4 * 1024 * 1024)
        .initial_connection_window_size(16 * 1024 * 1024);
    match (scheme, tls) {
        ("https", Some(connector)) => {
            let connector = connector.clone();
            let connect = tower::service_fn(move |uri| {
                let connector = connector.clone();
                async move { connector.connect(uri).await }
            });
            Ok(endpoint.connect_with_connector_lazy(connect))
        }
        ("https", None) => Err(wrong(
            "needs the authority that signed its certificate (--etcd-cafile)".into(),
        )),
        _ => Ok(endpoint.connect_lazy()),
    }
}

/// What a status says of the request.
fn classify(status: Status) -> Failure {
    let never_sent = {
        let mut source = status.source();
        let mut found = false;
        while let Some(error) = source {
            found = found || error.is::<tonic::ConnectError>();
            source = error.source();
        }
        found
    };
    match status.code() {
        _ if never_sent => Failure::NotDone(status),
        Code::Unavailable if status.message() == "etcdserver: no leader" => {
            Failure::NotDone(status)
        }
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Unauthenticated => Failure::Refused(status),
        _ => Failure::Unknown(status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_status_says_of_the_request() {
        let cases: &[(&str, Status, &str)] = &[
            (
                "nobody leads, so nothing was proposed",
                Status::unavailable("etcdserver: no leader"),
                "not done",
            ),
            (
                "the leader went while it was on its way",
                Status::unavailable("etcdserver: leader changed"),
                "unknown",
            ),
            (
                "the connection broke",
                Status::unknown("transport error"),
                "unknown",
            ),
            (
                "a full database",
                Status::resource_exhausted("etcdserver: mvcc: database space exceeded"),
                "refused",
            ),
            (
                "a revision that is compacted",
                Status::out_of_range("etcdserver: mvcc: required revision has been compacted"),
                "refused",
            ),
        ];
        for (name, status, expected) in cases {
            let said = match classify(status.clone()) {
                Failure::NotDone(_) => "not done",
                Failure::Unknown(_) => "unknown",
                Failure::Refused(_) => "refused",
            };
            assert_eq!(said, *expected, "case: {name}");
        }
    }

    #[tokio::test]
    async fn nobody_at_the_address_means_that_nothing_was_done() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", free.local_addr().unwrap());
        drop(free);
        let client = Client::new(&[address], None).unwrap();
        let request = super::super::wire::RangeRequest::default();
        let outcome: Result<super::super::wire::RangeResponse, _> =
            client.call("/etcdserverpb.KV/Range", request).await;
        let failure = outcome.unwrap_err();
        assert!(matches!(failure, Failure::NotDone(_)), "{failure:?}");
        assert!(
            failure.message().contains("refused"),
            "{}",
            failure.message()
        );
    }

    #[test]
    fn addresses_are_checked_before_anything_is_started() {
        for (address, expected) in [
            ("127.0.0.1:2379", "must begin with http:// or https://"),
            ("unix:///x", "must begin with http:// or https://"),
            ("https://127.0.0.1:2379", "--etcd-cafile"),
        ] {
            let error = Client::new(&[address.to_owned()], None).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        assert!(Client::new(&[], None).is_err());
    }
}
