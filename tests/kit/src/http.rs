//! HTTP over loopback, as plain as it gets: one request, one connection, the raw answer. For Pods, and for what kubectl would not
//! send to an API server.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::access::Access;

/// Longer than any answer takes that is not lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// What a server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// Status line and headers, as they came.
    pub head: String,
    pub body: String,
}

impl Answer {
    /// The value of a header, whatever the case of its name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(':'));
        fields.find_map(|(field, value)| field.eq_ignore_ascii_case(name).then(|| value.trim()))
    }
}

/// Status and body of `GET http://ADDRESS/PATH`.
///
/// # Errors
/// When nobody answers in time.
pub fn get(address: &str, path: &str) -> Result<(u16, String)> {
    let answer = send(address, "GET", path, &[], b"")?;
    Ok((answer.status, answer.body))
}

/// Any request over plain HTTP.
///
/// # Errors
/// When nobody answers in time.
pub fn send(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Answer> {
    exchange(connect(address)?, address, method, path, headers, body)
}

/// An administrator, or somebody else, who speaks to the API server byte by byte.
#[derive(Clone, Debug)]
pub struct Admin {
    access: Access,
    token: Option<String>,
}

impl Admin {
    /// With the credentials of a kubeconfig.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn of(kubeconfig: &Path) -> Self {
        Self {
            access: Access::read(kubeconfig).expect("a kubeconfig with certificates"),
            token: None,
        }
    }

    /// Nobody in particular, or whoever has this token.
    ///
    /// # Panics
    /// When it is no kubeconfig.
    #[must_use]
    pub fn without_certificate(kubeconfig: &Path, token: Option<&str>) -> Self {
        Self {
            access: Access::of_nobody(kubeconfig).expect("a kubeconfig with certificates"),
            token: token.map(str::to_owned),
        }
    }

    /// Where the server is, and how its certificate is checked.
    #[must_use]
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Posts an object; status and the answer.
    ///
    /// # Errors
    /// When the server is gone, or answers with something else than JSON.
    pub fn post(&self, path: &str, object: &Value) -> Result<(u16, Value)> {
        let (status, body) = self.request(
            "POST",
            path,
            "application/json",
            object.to_string().as_bytes(),
        )?;
        Ok((status, serde_json::from_str(&body)?))
    }

    /// Any request with any body.
    ///
    /// # Errors
    /// When the server is gone.
    pub fn request(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: &[u8],
    ) -> Result<(u16, String)> {
        let tcp = connect(&self.access.authority)?;
        let tls =
            rustls::ClientConnection::new(self.access.tls.clone(), self.access.server_name.clone())
                .map_err(Error::other)?;
        let bearer = self.token.as_ref().map(|token| format!("Bearer {token}"));
        let mut headers = vec![
            ("Content-Type", content_type),
            ("Accept", "application/json"),
        ];
        headers.extend(bearer.as_ref().map(|bearer| ("Authorization", &**bearer)));
        let answer = exchange(
            rustls::StreamOwned::new(tls, tcp),
            &self.access.authority,
            method,
            path,
            &headers,
            body,
        )?;
        Ok((answer.status, answer.body))
    }
}

fn connect(address: &str) -> Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    Ok(stream)
}

/// HTTP/1.0 on purpose: the answer ends with the connection and is never chunked.
fn exchange(
    mut stream: impl Read + Write,
    host: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Answer> {
    let mut head = format!(
        "{method} {path} HTTP/1.0\r\nHost: {host}\r\nContent-Length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    // A server that refuses a large body answers before it was read: the answer counts, not the broken pipe.
    stream.write_all(body).and_then(|()| stream.flush()).ok();
    let mut answer = Vec::new();
    let mut chunk = [0; 16 * 1024];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&chunk[..count]),
            Err(_) if !answer.is_empty() => break,
            Err(error) => return Err(error),
        }
    }
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    match (status, answer.split_once("\r\n\r\n")) {
        (Some(status), Some((head, body))) => Ok(Answer {
            status,
            head: head.to_owned(),
            body: body.to_owned(),
        }),
        _ => Err(Error::new(
            ErrorKind::UnexpectedEof,
            format!("no HTTP answer: {answer:?}"),
        )),
    }
}
