//! Names that are not the cluster's: asked of the servers in the node's resolv.conf, or of those that a stub domain names, and kept
//! as long as their records say.
//!
//! A server that does not answer is left alone for a while, so that questions fail at once instead of waiting for it; then one
//! question tries it again. As long as nobody answers, what was kept is told beyond its time (RFC 8767).

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::Instant;

const DNS_PORT: u16 = 53;
/// Per server and try.
const PATIENCE: Duration = Duration::from_secs(2);
/// The same where there is something older to tell.
const PATIENCE_WITH_STALE: Duration = Duration::from_millis(500);
/// How long a server that did not answer is left alone: at first, and at most.
const DOWN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(4));
const MESSAGE_BYTES_MAX: usize = 4096;
const CACHE_MAX: usize = 10_000;
/// No answer counts as new for longer, none without a time at all.
const KEEP_MAX: Duration = Duration::from_secs(30);
/// How much longer it is told while nobody answers, and for how long clients may keep it then.
const STALE_MAX: Duration = Duration::from_secs(3600);
const STALE_TTL_SECS: u32 = 5;

type Question = (Name, RecordType);

/// A domain whose names others know: all names that end in it are asked of these servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StubDomain {
    domain: Name,
    servers: Vec<SocketAddr>,
}

/// A text that is no stub domain.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{0:?} is not written as DOMAIN=SERVER[,SERVER], such as example.org=10.0.0.1 or corp.internal=10.0.0.1:5353"
)]
pub struct StubDomainError(String);

impl std::str::FromStr for StubDomain {
    type Err = StubDomainError;

    fn from_str(text: &str) -> Result<Self, StubDomainError> {
        let wrong = || StubDomainError(text.to_owned());
        let (domain, servers) = text.split_once('=').ok_or_else(wrong)?;
        let mut domain = Name::from_ascii(domain.trim()).map_err(|_| wrong())?;
        domain.set_fqdn(true);
        let servers: Option<Vec<SocketAddr>> =
            servers.split(',').map(|one| server(one.trim())).collect();
        let servers = servers.ok_or_else(wrong)?;
        if domain.is_root() || servers.is_empty() {
            return Err(wrong());
        }
        Ok(Self {
            domain: domain.to_lowercase(),
            servers,
        })
    }
}

/// The way to other servers.
#[derive(Debug)]
pub(crate) struct Forwarder {
    resolv_conf: PathBuf,
    stubs: Vec<StubDomain>,
    kept: Mutex<HashMap<Question, Kept>>,
    down: Mutex<HashMap<SocketAddr, Down>>,
}

#[derive(Clone, Debug)]
struct Kept {
    until: Instant,
    message: Message,
}

/// A server that did not answer.
#[derive(Clone, Copy, Debug)]
struct Down {
    until: Instant,
    pause: Duration,
}

impl Forwarder {
    /// `stubs` count before the servers of `resolv_conf`.
    pub(crate) fn new(resolv_conf: PathBuf, stubs: Vec<StubDomain>) -> Self {
        Self {
            resolv_conf,
            stubs,
            kept: Mutex::default(),
            down: Mutex::default(),
        }
    }

    /// Asks; `None` when nobody answers.
    pub(crate) async fn ask(&self, name: &Name, kind: RecordType) -> Option<Message> {
        let question = (name.to_lowercase(), kind);
        let now = Instant::now();
        let kept = self.kept.lock().get(&question).cloned();
        let kept = kept.filter(|kept| kept.until + STALE_MAX > now);
        if let Some(kept) = &kept
            && kept.until > now
        {
            let left = u32::try_from((kept.until - now).as_secs()).unwrap_or(u32::MAX);
            return Some(with_ttl(kept.message.clone(), left.max(1)));
        }
        let patience = match kept {
            Some(_) => PATIENCE_WITH_STALE,
            None => PATIENCE,
        };
        for server in self.servers(&question.0).await {
            if !self.may_try(server, patience) {
                continue;
            }
            match tokio::time::timeout(patience, exchange(server, name, kind)).await {
                Ok(Ok(message)) => {
                    self.down.lock().remove(&server);
                    if message.metadata.response_code != ResponseCode::ServFail {
                        self.keep(question, &message, now);
                        return Some(message);
                    }
                }
                Ok(Err(error)) => {
                    tracing::debug!(%error, %server, "A name server gave no answer");
                    self.leave_alone(server);
                }
                Err(_) => {
                    tracing::debug!(%server, "A name server did not answer in time");
                    self.leave_alone(server);
                }
            }
        }
        kept.map(|kept| with_ttl(kept.message, STALE_TTL_SECS))
    }

    /// Whom to ask about a name.
    async fn servers(&self, name: &Name) -> Vec<SocketAddr> {
        let stub = self.stubs.iter().filter(|stub| stub.domain.zone_of(name));
        if let Some(stub) = stub.max_by_key(|stub| stub.domain.num_labels()) {
            return stub.servers.clone();
        }
        // Read each time: the machine may have joined another network.
        let text = tokio::fs::read_to_string(&self.resolv_conf).await;
        servers(&text.unwrap_or_default())
    }

    /// Whether a server is to be asked now. One that was left alone long enough is tried by a single question; the others do not wait
    /// for it.
    fn may_try(&self, server: SocketAddr, patience: Duration) -> bool {
        let now = Instant::now();
        match self.down.lock().get_mut(&server) {
            None => true,
            Some(down) if down.until > now => false,
            Some(down) => {
                down.until = now + patience;
                true
            }
        }
    }

    fn leave_alone(&self, server: SocketAddr) {
        let now = Instant::now();
        let mut all = self.down.lock();
        let pause = match all.get(&server) {
            // Questions that were under way together are one failure.
            Some(down) if down.until > now + DOWN.0 => return,
            Some(down) => (down.pause * 2).min(DOWN.1),
            None => {
                tracing::warn!(%server, "A name server does not answer: it is left alone for a while");
                DOWN.0
            }
        };
        let until = now + pause;
        all.insert(server, Down { until, pause });
    }

    fn keep(&self, question: Question, message: &Message, now: Instant) {
        let secs = if message.answers.is_empty() {
            let soa = message
                .authorities
                .iter()
                .find_map(|record| match &record.data {
                    RData::SOA(soa) => Some(soa.minimum.min(record.ttl)),
                    _ => None,
                });
            soa.unwrap_or(0)
        } else {
            message
                .answers
                .iter()
                .map(|record| record.ttl)
                .min()
                .unwrap_or(0)
        };
        let keep = Duration::from_secs(secs.into()).min(KEEP_MAX);
        if keep.is_zero() {
            return;
        }
        let mut kept = self.kept.lock();
        if kept.len() >= CACHE_MAX {
            kept.retain(|_, kept| kept.until > now);
        }
        if kept.len() < CACHE_MAX {
            let until = now + keep;
            let message = message.clone();
            kept.insert(question, Kept { until, message });
        }
    }
}

/// No record is to be kept for longer than `secs`.
fn with_ttl(mut message: Message, secs: u32) -> Message {
    for record in message.answers.iter_mut().chain(&mut message.authorities) {
        record.ttl = record.ttl.min(secs);
    }
    message
}

/// The servers of a resolv.conf.
fn servers(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| server(rest.split_whitespace().next()?))
        .collect()
}

/// An address, with the port of DNS unless it says another.
fn server(text: &str) -> Option<SocketAddr> {
    let ip: Option<IpAddr> = text.parse().ok();
    ip.map(|ip| SocketAddr::new(ip, DNS_PORT))
        .or_else(|| text.parse().ok())
}

async fn exchange(server: SocketAddr, name: &Name, kind: RecordType) -> io::Result<Message> {
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name.clone(), kind));
    let bytes = query.to_vec().map_err(io::Error::other)?;
    let any: SocketAddr = if server.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    // A socket per question: its port is as hard to guess as the id.
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(&bytes).await?;
    let mut buffer = vec![0; MESSAGE_BYTES_MAX];
    loop {
        let len = socket.recv(&mut buffer).await?;
        match Message::from_vec(&buffer[..len]) {
            Ok(message) if answers(&message, &query) => {
                if message.metadata.truncation {
                    return over_tcp(server, &bytes, &query).await;
                }
                return Ok(message);
            }
            // Not ours: the answer may still come.
            Ok(_) | Err(_) => {}
        }
    }
}

fn answers(message: &Message, query: &Message) -> bool {
    message.metadata.id == query.metadata.id && message.queries == query.queries
}

async fn over_tcp(server: SocketAddr, bytes: &[u8], query: &Message) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let len = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&len.to_be_bytes()).await?;
    stream.write_all(bytes).await?;
    let len = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(len)];
    stream.read_exact(&mut answer).await?;
    let message = Message::from_vec(&answer).map_err(io::Error::other)?;
    if answers(&message, query) {
        Ok(message)
    } else {
        Err(io::Error::other("the answer is for another question"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn servers_of_a_resolv_conf() {
        let text = "# note\nsearch x\nnameserver 192.0.2.1\nnameserver 127.0.0.1:5353\nnameserver\noptions ndots:2\n";
        let expected: Vec<SocketAddr> = vec![
            "192.0.2.1:53".parse().unwrap(),
            "127.0.0.1:5353".parse().unwrap(),
        ];
        assert_eq!(servers(text), expected);
    }

    #[test]
    fn stub_domains_are_read() {
        let stub: StubDomain = "Example.org=10.0.0.1,[fd00::1]:5353".parse().unwrap();
        assert_eq!(stub.domain.to_string(), "example.org.");
        let expected = ["10.0.0.1:53", "[fd00::1]:5353"].map(|one| one.parse().unwrap());
        assert_eq!(stub.servers, expected);
        for wrong in [
            "",
            "example.org",
            "example.org=",
            "=10.0.0.1",
            "x=ten",
            ".=10.0.0.1",
        ] {
            assert!(wrong.parse::<StubDomain>().is_err(), "{wrong}");
        }
    }

    /// Answers every question with one address, as long as it is on.
    struct Upstream {
        addr: SocketAddr,
        on: Arc<AtomicBool>,
        asked: Arc<AtomicUsize>,
    }

    async fn upstream(ip: [u8; 4], ttl: u32) -> Upstream {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let addr = socket.local_addr().unwrap();
        let (on, asked) = (
            Arc::new(AtomicBool::new(true)),
            Arc::new(AtomicUsize::new(0)),
        );
        let (is_on, count) = (Arc::clone(&on), Arc::clone(&asked));
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            loop {
                let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                if !is_on.load(Ordering::Relaxed) {
                    continue;
                }
                let query = Message::from_vec(&buffer[..len]).unwrap();
                let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
                let name = query.queries[0].name().clone();
                answer.add_queries(query.queries);
                let data = RData::A(std::net::Ipv4Addr::from(ip).into());
                answer.add_answer(hickory_proto::rr::Record::from_rdata(name, ttl, data));
                socket
                    .send_to(&answer.to_vec().unwrap(), from)
                    .await
                    .unwrap();
            }
        });
        Upstream { addr, on, asked }
    }

    fn told(message: Option<Message>) -> Option<String> {
        message.map(|message| message.answers[0].data.to_string())
    }

    fn forwarder(servers: &[SocketAddr], stubs: Vec<StubDomain>) -> (tempfile::TempDir, Forwarder) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        let lines: Vec<String> = servers
            .iter()
            .map(|one| format!("nameserver {one}\n"))
            .collect();
        std::fs::write(&file, lines.concat()).unwrap();
        (dir, Forwarder::new(file, stubs))
    }

    async fn ask(forwarder: &Forwarder, name: &str) -> Option<String> {
        let name = Name::from_ascii(name).unwrap();
        told(forwarder.ask(&name, RecordType::A).await)
    }

    #[tokio::test]
    async fn stub_domains_have_servers_of_their_own() {
        let (all, corp, lab) = (
            upstream([192, 0, 2, 1], 60).await,
            upstream([192, 0, 2, 2], 60).await,
            upstream([192, 0, 2, 3], 60).await,
        );
        let stubs = [
            format!("corp.test={}", corp.addr),
            format!("lab.corp.test={}", lab.addr),
        ];
        let stubs = stubs.iter().map(|stub| stub.parse().unwrap()).collect();
        let (_dir, forwarder) = forwarder(&[all.addr], stubs);
        for (name, expected) in [
            ("example.org.", "192.0.2.1"),
            ("corp.test.", "192.0.2.2"),
            ("Db.Corp.test.", "192.0.2.2"),
            ("a.lab.corp.test.", "192.0.2.3"),
            ("mycorp.test.", "192.0.2.1"),
        ] {
            assert_eq!(
                ask(&forwarder, name).await.as_deref(),
                Some(expected),
                "{name}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_dies_is_left_alone_and_found_again() {
        let upstream = upstream([192, 0, 2, 1], 10).await;
        let (_dir, forwarder) = forwarder(&[upstream.addr], Vec::new());
        let address = Some("192.0.2.1".to_owned());
        assert_eq!(ask(&forwarder, "kept.test.").await, address);
        assert_eq!(ask(&forwarder, "kept.test.").await, address);
        assert_eq!(upstream.asked.load(Ordering::Relaxed), 1, "kept");
        upstream.on.store(false, Ordering::Relaxed);
        assert_eq!(ask(&forwarder, "kept.test.").await, address, "still new");
        let begun = Instant::now();
        assert_eq!(ask(&forwarder, "other.test.").await, None);
        assert_eq!(begun.elapsed().as_secs(), 2, "the first one waits");
        let begun = Instant::now();
        for _ in 0..100 {
            assert_eq!(ask(&forwarder, "other.test.").await, None);
        }
        assert_eq!(begun.elapsed().as_millis(), 0, "the others do not");
        tokio::time::sleep(Duration::from_secs(20)).await;
        let begun = Instant::now();
        assert_eq!(
            ask(&forwarder, "kept.test.").await,
            address,
            "old, and better than nothing"
        );
        assert!(begun.elapsed() < Duration::from_secs(1));
        upstream.on.store(true, Ordering::Relaxed);
        tokio::time::sleep(DOWN.1).await;
        assert_eq!(
            ask(&forwarder, "other.test.").await,
            address,
            "it is tried again"
        );
        assert_eq!(ask(&forwarder, "another.test.").await, address);
    }

    #[tokio::test]
    async fn the_next_server_answers_for_one_that_does_not() {
        let closed = UdpSocket::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap();
        let upstream = upstream([192, 0, 2, 1], 0).await;
        let (_dir, forwarder) = forwarder(&[closed, upstream.addr], Vec::new());
        for _ in 0..3 {
            assert_eq!(
                ask(&forwarder, "x.test.").await.as_deref(),
                Some("192.0.2.1")
            );
        }
        assert_eq!(
            upstream.asked.load(Ordering::Relaxed),
            3,
            "no time to be kept for"
        );
    }
}
