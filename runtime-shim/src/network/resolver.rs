//! Names to addresses, the Pod's way: its hosts, then the servers of its DNS configuration with their search list; the host's
//! resolver only for Pods whose configuration names no server (`dnsPolicy: Default`).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};

use super::Protocol;
use super::dns::{self, Answer, RecordType};
use super::netns::Netns;

const DNS_PORT: u16 = 53;
const DNS_MESSAGE_BYTES_MAX: usize = 4096;
/// Per server and try, as in resolv.conf(5).
const PATIENCE: Duration = Duration::from_secs(5);
const TRIES: usize = 2;
const NDOTS_DEFAULT: usize = 1;

/// What resolv.conf would say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DnsConfig {
    pub(crate) servers: Vec<String>,
    pub(crate) searches: Vec<String>,
    pub(crate) options: Vec<String>,
}

impl DnsConfig {
    /// Reads a resolv.conf.
    pub(crate) fn parse(text: &str) -> Self {
        let mut config = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace().map(str::to_owned);
            match words.next().as_deref() {
                Some("nameserver") => config.servers.extend(words.next()),
                // The last one counts, as resolv.conf(5) has it.
                Some("search" | "domain") => config.searches = words.collect(),
                Some("options") => config.options.extend(words),
                _ => {}
            }
        }
        config
    }
}

/// Why a name gave no address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ResolveError {
    #[error("not a name")]
    BadName,
    #[error("no such name")]
    NotFound,
    #[error("no server answered")]
    Unreachable,
}

/// Resolves names for one sandbox.
#[derive(Debug, Default)]
pub(crate) struct Resolver {
    hosts: HashMap<String, Vec<IpAddr>>,
    servers: Vec<SocketAddr>,
    searches: Vec<String>,
    ndots: usize,
}

impl Resolver {
    /// `hostname` is the Pod's own name, `ips` its addresses.
    pub(crate) fn new(config: &DnsConfig, hostname: &str, ips: &[IpAddr]) -> Self {
        let mut hosts = HashMap::new();
        if !ips.is_empty() && !hostname.is_empty() {
            hosts.insert(hostname.to_ascii_lowercase(), ips.to_vec());
        }
        let servers = config
            .servers
            .iter()
            .filter_map(|server| parse_server(server))
            .collect();
        let ndots = config
            .options
            .iter()
            .find_map(|option| option.strip_prefix("ndots:")?.parse().ok());
        Self {
            hosts,
            servers,
            searches: config.searches.clone(),
            ndots: ndots.unwrap_or(NDOTS_DEFAULT),
        }
    }

    /// As [`Self::resolve_via`], where servers are at their own addresses.
    #[cfg(test)]
    pub(crate) async fn resolve(
        &self,
        name: &str,
        netns: Option<&Netns>,
    ) -> Result<Vec<IpAddr>, ResolveError> {
        self.resolve_via(name, netns, &|server, _| server).await
    }

    /// Addresses of `name`, in the order to try them. The servers are asked from inside `netns`, where there is one; `place` says
    /// where a server really is.
    pub(crate) async fn resolve_via(
        &self,
        name: &str,
        netns: Option<&Netns>,
        place: &(dyn Fn(SocketAddr, Protocol) -> SocketAddr + Sync),
    ) -> Result<Vec<IpAddr>, ResolveError> {
        let literal = name
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(name);
        if let Ok(ip) = literal.parse() {
            return Ok(vec![ip]);
        }
        let name = name.to_ascii_lowercase();
        if name == "localhost" || name.ends_with(".localhost") {
            return Ok(vec![Ipv4Addr::LOCALHOST.into()]);
        }
        if let Some(found) = self.hosts.get(name.trim_end_matches('.')) {
            return Ok(found.clone());
        }
        if self.servers.is_empty() {
            let found = tokio::net::lookup_host((name.as_str(), 0))
                .await
                .map_err(|_| ResolveError::NotFound)?;
            return Ok(found.map(|addr| addr.ip()).collect());
        }
        let mut last = ResolveError::NotFound;
        for candidate in candidates(&name, &self.searches, self.ndots) {
            match self.ask(&candidate, netns, place).await {
                Ok(found) => return Ok(found),
                Err(ResolveError::NotFound) => {}
                Err(other) => last = other,
            }
        }
        Err(last)
    }

    async fn ask(
        &self,
        name: &str,
        netns: Option<&Netns>,
        place: &(dyn Fn(SocketAddr, Protocol) -> SocketAddr + Sync),
    ) -> Result<Vec<IpAddr>, ResolveError> {
        let (v4, v6) = tokio::join!(
            self.ask_type(name, RecordType::A, netns, place),
            self.ask_type(name, RecordType::Aaaa, netns, place)
        );
        match (v4, v6) {
            (Ok(mut v4), v6) => {
                v4.extend(v6.unwrap_or_default());
                Ok(v4)
            }
            (Err(_), Ok(v6)) => Ok(v6),
            (Err(err), Err(_)) => Err(err),
        }
    }

    async fn ask_type(
        &self,
        name: &str,
        record: RecordType,
        netns: Option<&Netns>,
        place: &(dyn Fn(SocketAddr, Protocol) -> SocketAddr + Sync),
    ) -> Result<Vec<IpAddr>, ResolveError> {
        // Unpredictable ids: std's hasher keys come from the system's randomness.
        let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), name);
        let id = u16::try_from(random & 0xffff).expect("masked to 16 bits");
        let question = dns::question(id, name, record).ok_or(ResolveError::BadName)?;
        for server in std::iter::repeat_n(&self.servers, TRIES).flatten() {
            let answer = match tokio::time::timeout(
                PATIENCE,
                over_udp(place(*server, Protocol::Udp), &question, netns),
            )
            .await
            {
                Ok(Ok(Answer::Truncated)) => {
                    let server = place(*server, Protocol::Tcp);
                    tokio::time::timeout(PATIENCE, over_tcp(server, &question, netns)).await
                }
                answer => answer,
            };
            match answer {
                Ok(Ok(Answer::Addresses(found))) => return Ok(found),
                Ok(Ok(Answer::Nothing)) => return Err(ResolveError::NotFound),
                // Timeouts, broken answers and failing servers: the next one may know.
                Ok(Ok(Answer::Truncated | Answer::Failed(_)) | Err(_)) | Err(_) => {}
            }
        }
        Err(ResolveError::Unreachable)
    }
}

/// The addresses that a hosts file has for `name`.
pub(super) fn in_hosts(text: &str, name: &str) -> Vec<IpAddr> {
    let name = name.trim_end_matches('.');
    let lines = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default());
    lines
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let ip = words.next()?.parse().ok()?;
            words
                .any(|word| word.eq_ignore_ascii_case(name))
                .then_some(ip)
        })
        .collect()
}

/// Runs `make`, which makes a socket and does not wait, inside `netns` where there is one.
fn inside<T>(
    netns: Option<&Netns>,
    make: impl FnOnce() -> std::io::Result<T>,
) -> std::io::Result<T> {
    match netns {
        Some(netns) => netns.run(make)?,
        None => make(),
    }
}

fn parse_server(server: &str) -> Option<SocketAddr> {
    server
        .parse()
        .ok()
        .or_else(|| Some(SocketAddr::new(server.parse().ok()?, DNS_PORT)))
}

/// The full names to try, in order: as in resolv.conf(5), a name with enough dots is tried as it is first.
fn candidates(name: &str, searches: &[String], ndots: usize) -> Vec<String> {
    if let Some(absolute) = name.strip_suffix('.') {
        return vec![absolute.to_owned()];
    }
    let mut all: Vec<String> = searches
        .iter()
        .map(|domain| format!("{name}.{domain}"))
        .collect();
    if name.matches('.').count() >= ndots {
        all.insert(0, name.to_owned());
    } else {
        all.push(name.to_owned());
    }
    all
}

async fn over_udp(
    server: SocketAddr,
    question: &[u8],
    netns: Option<&Netns>,
) -> std::io::Result<Answer> {
    let any: SocketAddr = if server.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0u16; 8], 0).into()
    };
    let socket = inside(netns, || {
        let socket = std::net::UdpSocket::bind(any)?;
        socket.set_nonblocking(true)?;
        UdpSocket::from_std(socket)
    })?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; DNS_MESSAGE_BYTES_MAX];
    loop {
        let len = socket.recv(&mut buffer).await?;
        // Anything that is not the answer to this question is dropped, as if it had not come.
        if let Ok(answer) = dns::answer(question, &buffer[..len]) {
            return Ok(answer);
        }
    }
}

async fn over_tcp(
    server: SocketAddr,
    question: &[u8],
    netns: Option<&Netns>,
) -> std::io::Result<Answer> {
    let socket = inside(netns, || {
        if server.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        }
    })?;
    let mut stream = socket.connect(server).await?;
    let len = u16::try_from(question.len()).map_err(std::io::Error::other)?;
    stream
        .write_all(&[&len.to_be_bytes(), question].concat())
        .await?;
    let len = stream.read_u16().await?;
    let mut buffer = vec![0; usize::from(len)];
    stream.read_exact(&mut buffer).await?;
    dns::answer(question, &buffer).map_err(std::io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn search_lists_follow_ndots() {
        let searches = [
            "default.svc.cluster.local".to_owned(),
            "cluster.local".to_owned(),
        ];
        assert_eq!(
            candidates("web", &searches, 5),
            ["web.default.svc.cluster.local", "web.cluster.local", "web"]
        );
        assert_eq!(candidates("a.b", &searches, 1)[0], "a.b");
        assert_eq!(candidates("a.b.", &searches, 5), ["a.b"]);
    }

    #[test]
    fn hosts_and_resolv_conf_are_read_as_their_manuals_say() {
        let text = "127.0.0.1\tlocalhost\n# 1.1.1.1 web\n10.0.0.7 web.local Web # the Pod\nfd00::7 web\nnot-an-ip web\n";
        let found: Vec<_> = in_hosts(text, "web")
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(found, ["10.0.0.7", "fd00::7"]);
        assert!(in_hosts(text, "other").is_empty());
        let text = "domain old\nsearch a.local b.local\nnameserver 10.0.0.10\nnameserver 10.0.0.11\noptions ndots:5 edns0\n; comment\n";
        let expected = DnsConfig {
            servers: vec!["10.0.0.10".into(), "10.0.0.11".into()],
            searches: vec!["a.local".into(), "b.local".into()],
            options: vec!["ndots:5".into(), "edns0".into()],
        };
        assert_eq!(DnsConfig::parse(text), expected);
    }

    #[tokio::test]
    async fn a_server_is_asked_with_the_search_list() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let config = DnsConfig {
            servers: vec![server.local_addr().unwrap().to_string()],
            searches: vec!["svc.local".into()],
            options: vec!["ndots:5".into()],
        };
        let resolver = Resolver::new(&config, "pod-0", &[Ipv4Addr::new(127, 64, 0, 3).into()]);
        let serve = async {
            let mut buffer = [0; 512];
            loop {
                let (len, from) = server.recv_from(&mut buffer).await.unwrap();
                let mut reply = buffer[..len].to_vec();
                let known =
                    reply.windows(4).any(|window| window == b"\x03svc") && reply[len - 3] == 1;
                reply[2] = 0x81;
                reply[3] = if known { 0x80 } else { 0x83 };
                if known {
                    reply[7] = 1;
                    reply.extend_from_slice(&[
                        0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 127, 64, 0, 9,
                    ]);
                }
                server.send_to(&reply, from).await.unwrap();
            }
        };
        let ask = async {
            assert_eq!(
                resolver.resolve("web", None).await,
                Ok(vec![Ipv4Addr::new(127, 64, 0, 9).into()])
            );
            assert_eq!(
                resolver.resolve("web.", None).await,
                Err(ResolveError::NotFound)
            );
            assert_eq!(
                resolver.resolve("pod-0", None).await,
                Ok(vec![Ipv4Addr::new(127, 64, 0, 3).into()])
            );
            assert_eq!(
                resolver.resolve("localhost", None).await,
                Ok(vec![Ipv4Addr::LOCALHOST.into()])
            );
            assert_eq!(
                resolver.resolve("10.1.2.3", None).await,
                Ok(vec![Ipv4Addr::new(10, 1, 2, 3).into()])
            );
        };
        tokio::select! { () = ask => {}, () = serve => {} }
    }
}
