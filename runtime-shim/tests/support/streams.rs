//! A client of the streaming server: WebSockets with numbered channels, as kubectl's are.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::large_futures,
    clippy::too_many_lines,
    reason = "shared by test files that each use a part"
)]

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

/// What a test waits for must come by then.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Client {
    pub socket: WebSocketStream<TcpStream>,
    pub protocol: String,
}

/// The answer to an upgrade: its head, what came after it, and the connection.
pub async fn upgrade(url: &str, headers: &str) -> (String, Vec<u8>, TcpStream) {
    let rest = url.strip_prefix("http://").unwrap();
    let (authority, path) = rest.split_once('/').unwrap();
    let mut stream = TcpStream::connect(authority).await.unwrap();
    let request = format!(
        "GET /{path} HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\n{headers}\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return (String::from_utf8(bytes).unwrap(), rest, stream);
        }
        if stream.read_buf(&mut bytes).await.unwrap() == 0 {
            return (String::from_utf8(bytes).unwrap(), Vec::new(), stream);
        }
    }
}

impl Client {
    /// Connects with the subprotocols of `offered`.
    pub async fn connect(url: &str, offered: &str) -> Self {
        let headers = format!(
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {offered}\r\n"
        );
        let (head, rest, stream) = upgrade(url, &headers).await;
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        let protocol = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("sec-websocket-protocol")
                .then(|| value.trim().to_owned())
        });
        let socket = WebSocketStream::from_partially_read(stream, rest, Role::Client, None).await;
        Self {
            socket,
            protocol: protocol.unwrap_or_default(),
        }
    }

    pub async fn send(&mut self, channel: u8, bytes: &[u8]) {
        let message = [&[channel], bytes].concat();
        self.socket
            .send(Message::Binary(message.into()))
            .await
            .unwrap();
    }

    /// Says the end of stdin, as version 5 does.
    pub async fn end_stdin(&mut self) {
        self.send(255, &[0]).await;
    }

    /// The next message with something in it: its channel and bytes; `None` when the server has hung up.
    pub async fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            let message = tokio::time::timeout(PATIENCE, self.socket.next()).await;
            match message.expect("the server sends something")? {
                Ok(Message::Binary(bytes)) if bytes.len() > 1 => {
                    return Some((bytes[0], bytes[1..].to_vec()));
                }
                Ok(Message::Binary(_) | Message::Ping(_) | Message::Pong(_)) => {}
                Ok(_) | Err(_) => return None,
            }
        }
    }

    /// Everything until the server hangs up: stdout, stderr, and what the error channel says.
    pub async fn finish(mut self) -> (Vec<u8>, Vec<u8>, serde_json::Value) {
        let (mut out, mut err, mut status) = (Vec::new(), Vec::new(), Vec::new());
        while let Some((channel, bytes)) = self.next().await {
            match channel {
                1 => out.extend(bytes),
                2 => err.extend(bytes),
                3 => status.extend(bytes),
                other => panic!("channel {other}"),
            }
        }
        let status = serde_json::from_slice(&status).unwrap_or(serde_json::Value::Null);
        (out, err, status)
    }

    /// Reads stdout until it holds `text`.
    pub async fn expect(&mut self, text: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(text) {
            let (channel, bytes) = self
                .next()
                .await
                .unwrap_or_else(|| panic!("ended after {seen:?}"));
            assert_eq!(channel, 1, "{}", String::from_utf8_lossy(&bytes));
            seen.push_str(&String::from_utf8_lossy(&bytes));
        }
        seen
    }
}
