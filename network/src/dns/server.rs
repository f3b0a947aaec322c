//! The server: UDP and TCP on the same port, one task for each, one more for each question that others must answer.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use parking_lot::RwLock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use super::forward::Forwarder;
use super::zone::{Answer, Zone};
use crate::plan::Protocol;
use crate::sockets::{self, OwnRanges};
use crate::view::View;

const MESSAGE_BYTES_MAX: usize = 4096;
/// What a client without EDNS takes.
const PLAIN_BYTES_MAX: u16 = 512;
/// Questions to others and TCP connections at the same time; more are dropped, and their clients ask again.
const WORK_MAX: usize = 512;
const TCP_IDLE: Duration = Duration::from_secs(30);

/// Sockets of the server.
#[derive(Debug)]
pub(crate) struct Listeners {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Listeners {
    /// Opens both; port 0 picks one that is free for both.
    pub(crate) fn open(addr: SocketAddr, own: &OwnRanges) -> io::Result<Self> {
        for _ in 0..8 {
            let tcp = sockets::listen(Protocol::Tcp, addr, own)?;
            match sockets::receive(tcp.local_addr()?, own) {
                Ok(udp) => return Ok(Self { udp, tcp }),
                Err(error) if addr.port() != 0 => return Err(error),
                Err(_) => {}
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    }

    pub(crate) fn addr(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }
}

/// Answers questions.
#[derive(Debug)]
pub(crate) struct Dns {
    pub(crate) view: Arc<RwLock<Arc<View>>>,
    pub(crate) domain: String,
    pub(crate) forwarder: Forwarder,
}

impl Dns {
    /// Serves until dropped.
    pub(crate) async fn serve(self: Arc<Self>, listeners: Listeners) {
        let work = Arc::new(Semaphore::new(WORK_MAX));
        let Listeners { udp, tcp } = listeners;
        let udp = Arc::new(udp);
        tokio::join!(
            Arc::clone(&self).serve_udp(udp, Arc::clone(&work)),
            self.serve_tcp(tcp, work)
        );
    }

    async fn serve_udp(self: Arc<Self>, socket: Arc<UdpSocket>, work: Arc<Semaphore>) {
        let mut buffer = vec![0; MESSAGE_BYTES_MAX];
        loop {
            let (len, from) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    tracing::debug!(%error, "A question could not be received");
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    continue;
                }
            };
            let Ok(question) = Message::from_vec(&buffer[..len]) else {
                continue;
            };
            let limit = question.max_payload().max(PLAIN_BYTES_MAX);
            if let Some(answer) = self.answer_now(&question) {
                send(&socket, from, &answer, limit).await;
                continue;
            }
            let Ok(place) = Arc::clone(&work).try_acquire_owned() else {
                continue;
            };
            let (dns, socket) = (Arc::clone(&self), Arc::clone(&socket));
            tokio::spawn(async move {
                let answer = dns.answer(&question).await;
                send(&socket, from, &answer, limit).await;
                drop(place);
            });
        }
    }

    async fn serve_tcp(self: Arc<Self>, listener: TcpListener, work: Arc<Semaphore>) {
        loop {
            let Ok(place) = Arc::clone(&work).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let dns = Arc::clone(&self);
                    tokio::spawn(async move {
                        if let Err(error) = dns.serve_connection(stream).await {
                            tracing::debug!(%error, "A connection for names broke");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "A connection for names could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn serve_connection(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let len = match tokio::time::timeout(TCP_IDLE, stream.read_u16()).await {
                Ok(Ok(len)) => len,
                // The client has gone, or has nothing more to ask.
                Ok(Err(_)) | Err(_) => return Ok(()),
            };
            let mut bytes = vec![0; usize::from(len)];
            stream.read_exact(&mut bytes).await?;
            let Ok(question) = Message::from_vec(&bytes) else {
                return Ok(());
            };
            let answer = match self.answer_now(&question) {
                Some(answer) => answer,
                None => self.answer(&question).await,
            };
            let bytes = answer.to_vec().map_err(io::Error::other)?;
            let len = u16::try_from(bytes.len()).map_err(io::Error::other)?;
            let mut framed = len.to_be_bytes().to_vec();
            framed.extend_from_slice(&bytes);
            stream.write_all(&framed).await?;
        }
    }

    /// The answer, unless somebody else has to be asked.
    fn answer_now(&self, question: &Message) -> Option<Message> {
        let mut answer = reply(question);
        let Some(query) = asked(question) else {
            answer.metadata.response_code = ResponseCode::NotImp;
            return Some(answer);
        };
        let view = Arc::clone(&self.view.read());
        let zone = Zone::new(&view, &self.domain);
        match zone.answer(query.name(), query.query_type()) {
            Answer::Found {
                records,
                additionals,
            } => {
                answer.metadata.authoritative = true;
                if records.is_empty() {
                    answer.add_authorities(zone.authority());
                }
                answer.add_answers(shuffled(records));
                answer.add_additionals(additionals);
            }
            Answer::Absent => {
                answer.metadata.authoritative = true;
                answer.metadata.response_code = ResponseCode::NXDomain;
                answer.add_authorities(zone.authority());
            }
            Answer::Alias(record, _) if query.query_type() == RecordType::CNAME => {
                answer.metadata.authoritative = true;
                answer.add_answer(*record);
            }
            Answer::Alias(..) | Answer::Elsewhere => return None,
        }
        Some(answer)
    }

    /// The answer, with what others know.
    async fn answer(&self, question: &Message) -> Message {
        let mut answer = reply(question);
        let Some(query) = asked(question) else {
            answer.metadata.response_code = ResponseCode::NotImp;
            return answer;
        };
        let (name, kind) = (query.name().clone(), query.query_type());
        let alias = {
            let view = Arc::clone(&self.view.read());
            match Zone::new(&view, &self.domain).answer(&name, kind) {
                Answer::Alias(record, target) => Some((record, target)),
                Answer::Found { .. } | Answer::Absent | Answer::Elsewhere => None,
            }
        };
        match alias {
            None => self.add_foreign(&mut answer, &name, kind).await,
            Some((record, target)) => {
                answer.metadata.authoritative = true;
                answer.add_answer(*record);
                let inside = {
                    let view = Arc::clone(&self.view.read());
                    Zone::new(&view, &self.domain).answer(&target, kind)
                };
                match inside {
                    Answer::Found { records, .. } => {
                        answer.add_answers(records);
                    }
                    Answer::Elsewhere => self.add_foreign(&mut answer, &target, kind).await,
                    Answer::Absent | Answer::Alias(..) => {}
                }
            }
        }
        answer
    }

    async fn add_foreign(&self, answer: &mut Message, name: &Name, kind: RecordType) {
        match self.forwarder.ask(name, kind).await {
            Some(found) => {
                answer.metadata.response_code = found.metadata.response_code;
                answer.add_answers(found.answers);
                answer.add_authorities(found.authorities);
            }
            None => answer.metadata.response_code = ResponseCode::ServFail,
        }
    }
}

/// Clients take the first address: let it be another one each time.
fn shuffled<T>(mut records: Vec<T>) -> Vec<T> {
    if records.len() > 1 {
        let first = rand::random_range(0..records.len());
        records.rotate_left(first);
    }
    records
}

/// The one question that a message may ask.
fn asked(question: &Message) -> Option<&Query> {
    if question.metadata.op_code != OpCode::Query {
        return None;
    }
    question.queries.first()
}

fn reply(question: &Message) -> Message {
    let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
    answer.metadata.recursion_desired = question.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.add_queries(question.queries.iter().cloned());
    if question.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(u16::try_from(MESSAGE_BYTES_MAX).unwrap_or(PLAIN_BYTES_MAX));
        answer.set_edns(edns);
    }
    answer
}

async fn send(socket: &UdpSocket, to: SocketAddr, answer: &Message, limit: u16) {
    let Ok(mut bytes) = answer.to_vec() else {
        return;
    };
    if bytes.len() > usize::from(limit) {
        // The client asks again over TCP.
        let Ok(short) = answer.truncate().to_vec() else {
            return;
        };
        bytes = short;
    }
    if let Err(error) = socket.send_to(&bytes, to).await {
        tracing::debug!(%error, %to, "An answer could not be sent");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::NodeFacts;
    use serde_json::json;

    async fn server(count: usize) -> SocketAddr {
        let endpoints: Vec<_> = (0..count)
            .map(|at| json!({"addresses": [format!("10.0.{}.{}", at / 250, at % 250 + 1)]}))
            .collect();
        let slice = json!({"addressType": "IPv4", "metadata": {"namespace": "ns", "name": "s", "labels": {"kubernetes.io/service-name": "x"}},
            "endpoints": endpoints});
        let service =
            json!({"metadata": {"namespace": "ns", "name": "x"}, "spec": {"clusterIP": "None"}});
        let view = View::new(
            vec![Arc::new(serde_json::from_value(service).unwrap())],
            vec![Arc::new(serde_json::from_value(slice).unwrap())],
            NodeFacts::default(),
        );
        let dns = Arc::new(Dns {
            view: Arc::new(RwLock::new(Arc::new(view))),
            domain: "cluster.local".into(),
            forwarder: Forwarder::new("/nonexistent".into(), Vec::new()),
        });
        let listeners =
            Listeners::open("127.0.0.1:0".parse().unwrap(), &OwnRanges::default()).unwrap();
        let addr = listeners.addr().unwrap();
        tokio::spawn(dns.serve(listeners));
        addr
    }

    fn question(name: &str) -> Message {
        let mut query = Message::query();
        query.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        query
    }

    async fn ask(server: SocketAddr, name: &str) -> Message {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let bytes = question(name).to_vec().unwrap();
        socket.send_to(&bytes, server).await.unwrap();
        let mut buffer = vec![0; 4096];
        let len = socket.recv(&mut buffer).await.unwrap();
        Message::from_vec(&buffer[..len]).unwrap()
    }

    #[tokio::test]
    async fn names_are_answered() {
        let server = server(2).await;
        let answer = ask(server, "x.ns.svc.cluster.local.").await;
        assert_eq!(
            (answer.answers.len(), answer.metadata.authoritative),
            (2, true)
        );
        let absent = ask(server, "y.ns.svc.cluster.local.").await;
        assert_eq!(absent.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(absent.authorities.len(), 1);
        let foreign = ask(server, "example.org.").await;
        assert_eq!(
            foreign.metadata.response_code,
            ResponseCode::ServFail,
            "nobody to ask"
        );
    }

    #[tokio::test]
    async fn what_is_too_long_comes_over_tcp() {
        let server = server(100).await;
        let short = ask(server, "x.ns.svc.cluster.local.").await;
        assert!(short.metadata.truncation && short.answers.is_empty());
        let mut stream = TcpStream::connect(server).await.unwrap();
        let bytes = question("x.ns.svc.cluster.local.").to_vec().unwrap();
        stream
            .write_u16(u16::try_from(bytes.len()).unwrap())
            .await
            .unwrap();
        stream.write_all(&bytes).await.unwrap();
        let len = stream.read_u16().await.unwrap();
        let mut answer = vec![0; usize::from(len)];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(Message::from_vec(&answer).unwrap().answers.len(), 100);
    }
}
