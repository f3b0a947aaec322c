//! Names that are not the cluster's: asked of the servers in the node's resolv.conf, and kept as long as their records say.

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
const MESSAGE_BYTES_MAX: usize = 4096;
const CACHE_MAX: usize = 10_000;
/// No answer is kept longer, none without a time at all.
const KEEP_MAX: Duration = Duration::from_secs(30);

type Question = (Name, RecordType);

/// The way to other servers.
#[derive(Debug)]
pub(crate) struct Forwarder {
    resolv_conf: PathBuf,
    kept: Mutex<HashMap<Question, (Instant, Message)>>,
}

impl Forwarder {
    pub(crate) fn new(resolv_conf: PathBuf) -> Self {
        Self {
            resolv_conf,
            kept: Mutex::default(),
        }
    }

    /// Asks; `None` when nobody answers.
    pub(crate) async fn ask(&self, name: &Name, kind: RecordType) -> Option<Message> {
        let question = (name.to_lowercase(), kind);
        let now = Instant::now();
        if let Some((until, message)) = self.kept.lock().get(&question)
            && *until > now
        {
            return Some(message.clone());
        }
        // Read each time: the machine may have joined another network.
        let text = tokio::fs::read_to_string(&self.resolv_conf).await.ok()?;
        for server in servers(&text) {
            match tokio::time::timeout(PATIENCE, exchange(server, name, kind)).await {
                Ok(Ok(message)) if message.metadata.response_code != ResponseCode::ServFail => {
                    self.keep(question, &message, now);
                    return Some(message);
                }
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::debug!(%error, %server, "A name server gave no answer"),
                Err(_) => tracing::debug!(%server, "A name server did not answer in time"),
            }
        }
        None
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
            kept.retain(|_, (until, _)| *until > now);
        }
        if kept.len() < CACHE_MAX {
            kept.insert(question, (now + keep, message.clone()));
        }
    }
}

/// The servers of a resolv.conf.
fn servers(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| {
            let server = rest.split_whitespace().next()?;
            let ip = server
                .parse::<IpAddr>()
                .ok()
                .map(|ip| SocketAddr::new(ip, DNS_PORT));
            ip.or_else(|| server.parse().ok())
        })
        .collect()
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
}
