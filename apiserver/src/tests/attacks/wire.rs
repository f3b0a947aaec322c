//! What is no proper HTTP, too large or too slow; paths and headers that mean one thing to us and another to somebody before us.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::super::sockets::secured;
use super::*;

/// Sends bytes over TLS and reads until the server closes the connection, or has nothing more to say for a moment.
async fn raw(server: &Server, pair: Option<&PemPair>, bytes: &[u8]) -> String {
    let mut stream = secured(server, pair).await;
    stream.write_all(bytes).await.ok();
    let mut answer = vec![0; 1 << 16];
    let mut text = String::new();
    let mut wait = ANSWER_TIME_MAX;
    while let Ok(Ok(count)) = tokio::time::timeout(wait, stream.read(&mut answer)).await {
        if count == 0 {
            break;
        }
        text.push_str(&String::from_utf8_lossy(&answer[..count]));
        wait = Duration::from_millis(300);
    }
    text
}

fn codes(answers: &str) -> Vec<u16> {
    let lines = answers.split("HTTP/1.1 ").skip(1);
    lines.map(|line| line[..3].parse().unwrap()).collect()
}

#[tokio::test]
async fn paths_mean_what_they_say() {
    let server = Server::with_namespace().await;
    grant(&server, "jane", json!([{"verbs": ["get", "list"], "apiGroups": [""], "resources": ["configmaps", "services/proxy", "pods/proxy"]}])).await;
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"k": "hidden"}});
    server.post(SECRETS, &secret).await.ok(201);
    let jane = server.pki.issue_client("jane", &[]).unwrap();
    // As somebody who may read ConfigMaps and nothing else, and as nobody.
    let paths = [
        "/api/v1/namespaces/a/configmaps/../secrets/s",
        "/api/v1/namespaces/a/configmaps/%2e%2e/secrets/s",
        "/api/v1/namespaces/a/configmaps%2f..%2fsecrets%2fs",
        "/api/v1/namespaces/a/configmaps/..%2fsecrets/s",
        "/api/v1/namespaces/a/configmaps/.%00./secrets/s",
        "/api/v1/namespaces/a/configmaps/x/../../secrets/s",
        "/api/v1/namespaces/a/configmaps;/../secrets/s",
        "//api/v1/namespaces/a//secrets//s",
        "/api/v1/namespaces/a/secrets/s/",
        "/api/v1/./namespaces/a/secrets/s",
        "/api/v1/namespaces/a/%73ecrets/s",
        "/api/v1/namespaces/a/%2573ecrets/s",
        "/api/v1/namespaces/a/SECRETS/s",
        "/healthz/../api/v1/namespaces/a/secrets/s",
        "/healthz/%2e%2e/api/v1/namespaces/a/secrets/s",
        "/healthz%2f..%2fapi/v1/namespaces/a/secrets/s",
        "/version/../api/v1/namespaces/a/secrets/s",
        "/api/v1/watch/namespaces/a/secrets/s",
        "/api/v1/namespaces/a/services/x/proxy/../../../secrets/s",
        "/api/v1/namespaces/a/pods/x:80/proxy/..%2f..%2f..%2fsecrets/s",
        "/api/v1/namespaces/a/services/https:169.254.169.254:80/proxy/latest",
        "/apis/../api/v1/namespaces/a/secrets/s",
        "/apis//v1/namespaces/a/secrets/s",
        "https://elsewhere/api/v1/namespaces/a/secrets/s",
        "/api/v1/namespaces/a/secrets/s?watch=1&fieldSelector=metadata.name%3Ds",
        "/api/v1/namespaces/a/configmaps?fieldSelector=metadata.namespace%3Dkube-system",
        "/api/v1/configmaps?fieldSelector=metadata.namespace%3Da",
    ];
    for path in paths {
        let mut client = Client::new(&server, Some(&jane)).await;
        let answer = client.ask("GET", path, "").await;
        assert!(!answer.text().contains("aGlkZGVu"), "{path}");
        let own = path.starts_with("/api/v1/namespaces/a/configmaps?");
        let good = if own {
            answer.code == 200
        } else {
            matches!(answer.code, 400 | 403 | 404 | 503)
        };
        assert!(good, "jane, {path}: {} {}", answer.code, answer.text());
        let mut nobody = Client::new(&server, None).await;
        let answer = nobody.ask("GET", path, "").await;
        assert!(
            matches!(answer.code, 400 | 401),
            "nobody, {path}: {}",
            answer.code
        );
    }
    for name in ["../s", "a/b", "a%2fb", "..", ".", "a\u{0}b", ""] {
        let mut object = config_map(name);
        object["metadata"]["name"] = name.into();
        assert_eq!(
            server.post(CONFIG_MAPS, &object).await.code,
            422,
            "{name:?}"
        );
    }
}

#[tokio::test]
async fn requests_cannot_be_smuggled() {
    let server = Server::with_namespace().await;
    let jane = server.pki.issue_client("jane", &[]).unwrap();
    let inner = "GET /version HTTP/1.1\r\nhost: x\r\n\r\n";
    // How many answers there may be, and with which codes.
    let cases: Vec<(&str, String, &[u16])> = vec![
        ("two lengths", format!("POST /apis HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\ncontent-length: {}\r\n\r\n{inner}", inner.len()), &[400]),
        ("a length that is a list", format!("POST /apis HTTP/1.1\r\nhost: x\r\ncontent-length: 0, {}\r\n\r\n{inner}", inner.len()), &[400]),
        ("a length with a sign", format!("POST /apis HTTP/1.1\r\nhost: x\r\ncontent-length: +{}\r\n\r\n{inner}", inner.len()), &[400]),
        ("a length below nothing", format!("POST /apis HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n{inner}"), &[400]),
        ("chunks of a coding that is none", format!("POST /apis HTTP/1.1\r\nhost: x\r\ntransfer-encoding: xchunked\r\n\r\n{inner}"), &[400]),
        ("chunked, but not at the end", format!("POST /apis HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, identity\r\n\r\n{inner}"), &[400]),
        ("a space before the colon", "GET /apis HTTP/1.1\r\nhost: x\r\nauthorization : Bearer x\r\n\r\n".to_owned(), &[400]),
        ("a line that goes on", "GET /apis HTTP/1.1\r\nhost: x\r\nx: a\r\n b\r\n\r\n".to_owned(), &[400]),
        ("a bare line feed in a header", "GET /apis HTTP/1.1\r\nhost: x\r\nx: a\nimpersonate-user: root\r\n\r\n".to_owned(), &[400, 403]),
        ("a zero in a header", "GET /apis HTTP/1.1\r\nhost: x\r\nx: a\0b\r\n\r\n".to_owned(), &[400]),
        ("a space in the path", "GET /apis /x HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(), &[400]),
        ("a version that is none", "GET /apis HTTP/9.9\r\nhost: x\r\n\r\n".to_owned(), &[400]),
        ("a chunk of a length that overflows", "POST /apis HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffffffff\r\n".to_owned(), &[400, 403, 405]),
        ("CONNECT", "CONNECT 169.254.169.254:80 HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(), &[400, 403, 404, 405]),
        ("TRACE", "TRACE /apis HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(), &[403, 405]),
    ];
    for (case, bytes, expected) in &cases {
        let answers = raw(&server, Some(&jane), bytes.as_bytes()).await;
        let found = codes(&answers);
        assert!(found.len() <= 1, "{case}: more than one answer: {found:?}");
        assert!(
            found.iter().all(|code| expected.contains(code)),
            "{case}: {found:?} {answers}"
        );
    }
    // Length and chunks at once: whatever was chosen, the rest is no request of its own.
    let both = format!(
        "POST /apis HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{inner}",
        5 + inner.len()
    );
    let found = codes(&raw(&server, Some(&jane), both.as_bytes()).await);
    assert!(found.len() <= 1, "length and chunks: {found:?}");
    let headers = [
        ("x-remote-user", "admin"),
        ("x-remote-group", "system:masters"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-original-url", "/healthz"),
        ("x-http-method-override", "DELETE"),
        ("authorization", "Basic YWRtaW46YWRtaW4="),
    ];
    let mut client = Client::new(&server, Some(&jane)).await;
    for header in headers {
        let answer = client.ask_with("GET", SECRETS, &[header], "").await;
        assert_eq!(answer.code, 403, "{header:?}");
    }
}

#[tokio::test]
async fn heads_without_end_are_cut_off() {
    let server = Server::with_namespace().await;
    let before = peak_bytes();
    let line = |len: usize| {
        format!(
            "GET /apis HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n",
            "a".repeat(len)
        )
    };
    let many = format!(
        "GET /apis HTTP/1.1\r\nhost: x\r\n{}\r\n",
        "x: y\r\n".repeat(100_000)
    );
    let long = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(4 << 20));
    for (case, bytes) in [
        ("a header of 4 MiB", line(4 << 20)),
        ("100,000 headers", many),
        ("a path of 4 MiB", long),
    ] {
        let found = codes(&raw(&server, None, bytes.as_bytes()).await);
        assert!(
            found
                .iter()
                .all(|code| matches!(code, 400 | 401 | 414 | 431)),
            "{case}: {found:?}"
        );
    }
    assert!(peak_bytes() - before < GROWTH_BYTES_MAX);
    assert_eq!(
        Client::new(&server, None)
            .await
            .ask("GET", "/healthz", "")
            .await
            .code,
        200
    );
}

/// Slowloris in its forms: each connection ends by itself, and meanwhile others are served.
#[tokio::test]
async fn the_slow_do_not_hold_the_server() {
    let server = Server::configured(|config| {
        config.handshake_timeout = Duration::from_secs(2);
        config.headers_timeout = Duration::from_secs(2);
        config.request_timeout = Duration::from_secs(2);
    })
    .await;
    let admin = server.pki.issue_admin().unwrap();
    let (mut silent, mut halves) = (Vec::new(), Vec::new());
    for at in 0..100 {
        let mut tcp = TcpStream::connect(server.server.addr()).await.unwrap();
        if at % 2 == 0 {
            tcp.write_all(&[0x16, 3, 1]).await.unwrap();
        }
        silent.push(tcp);
        let mut stream = secured(&server, Some(&admin)).await;
        let head = if at % 2 == 0 {
            "GET /apis HTTP/1.1\r\nhost: x\r\nx-a: "
        } else {
            "POST /api/v1/namespaces HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{\"met"
        };
        stream.write_all(head.as_bytes()).await.unwrap();
        halves.push((at, stream));
    }
    let mut client = Client::new(&server, Some(&admin)).await;
    let begun = Instant::now();
    assert_eq!(client.ask("GET", "/api/v1/namespaces", "").await.code, 200);
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "others wait: {:?}",
        begun.elapsed()
    );
    for mut tcp in silent {
        let read = tokio::time::timeout(ANSWER_TIME_MAX, tcp.read_to_end(&mut Vec::new())).await;
        read.expect("a handshake that never ends is ended").ok();
    }
    for (at, mut stream) in halves {
        let mut answer = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            // A drop now and then does not keep the connection.
            stream.write_all(b"a").await.ok();
            match tokio::time::timeout(ANSWER_TIME_MAX, stream.read(&mut buffer)).await {
                Ok(Ok(count)) if count > 0 => answer.extend_from_slice(&buffer[..count]),
                Ok(_) => break,
                Err(_) => panic!("the connection is still open"),
            }
            if answer.windows(12).any(|one| one == b"HTTP/1.1 504") {
                break;
            }
        }
        let text = String::from_utf8_lossy(&answer).into_owned();
        let expected: &[u16] = if at % 2 == 0 { &[408] } else { &[504, 400] };
        assert!(
            codes(&text).iter().all(|code| expected.contains(code)),
            "{at}: {text}"
        );
    }
}

/// Requests that are taken back at once (HTTP/2's rapid reset) end the connection, not the server.
#[tokio::test]
async fn streams_opened_and_reset_cost_their_sender() {
    let server = Server::with_namespace().await;
    let before = peak_bytes();
    let jane = server.pki.issue_client("jane", &[]).unwrap();
    let stream = hyper_util::rt::TokioIo::new(secured(&server, Some(&jane)).await);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, stream)
        .await
        .unwrap();
    tokio::spawn(connection);
    let mut sent = 0;
    for _ in 0..20_000 {
        if sender.ready().await.is_err() {
            break;
        }
        let request = Request::get("https://test/apis")
            .body(Full::<Bytes>::default())
            .unwrap();
        // Dropped before it is answered.
        drop(sender.send_request(request));
        sent += 1;
        if sent % 50 == 0 {
            tokio::task::yield_now().await;
        }
    }
    assert!(peak_bytes() - before < GROWTH_BYTES_MAX);
    assert_eq!(
        Client::new(&server, None)
            .await
            .ask("GET", "/healthz", "")
            .await
            .code,
        200
    );
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![len[1], len[2], len[3], kind, flags, 0, 0, 0, stream];
    bytes.extend_from_slice(payload);
    bytes
}

/// Frames that cost nothing to send (HTTP/2's floods): the connection ends or stands still, and the server goes on.
#[tokio::test]
async fn floods_of_frames_drown_nobody() {
    const FLOOD_LEN: usize = 24 << 20;
    let server = Server::with_namespace().await;
    let before = peak_bytes();
    let jane = server.pki.issue_client("jane", &[]).unwrap();
    // POST / of host x, whose head or body is to come.
    let head: &[u8] = &[0x83, 0x87, 0x84, 0x01, 0x01, b'x'];
    let unending = [0x00, 0x01, b'a', 0x01, b'b'].repeat(200);
    let cases: [(&str, Vec<u8>, Vec<u8>, bool); 6] = [
        (
            "a head that goes on",
            frame(1, 0, 1, head),
            frame(9, 0, 1, &unending),
            true,
        ),
        (
            "a head that goes on with nothing",
            frame(1, 0, 1, head),
            frame(9, 0, 1, &[]),
            true,
        ),
        ("pings", Vec::new(), frame(6, 0, 0, &[0; 8]), false),
        ("settings", Vec::new(), frame(4, 0, 0, &[]), false),
        (
            "a body of nothing",
            frame(1, 4, 1, head),
            frame(0, 0, 1, &[]),
            false,
        ),
        (
            "priorities",
            Vec::new(),
            frame(2, 0, 1, &[0, 0, 0, 0, 1]),
            false,
        ),
    ];
    for (case, first, each, must_end) in cases {
        let mut stream = secured(&server, Some(&jane)).await;
        let mut begin = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        begin.extend(frame(4, 0, 0, &[]));
        begin.extend(first);
        stream.write_all(&begin).await.unwrap();
        let block = each.repeat((64 << 10) / each.len());
        let (mut sent, mut ended) = (0, false);
        while sent < FLOOD_LEN {
            match tokio::time::timeout(Duration::from_secs(3), stream.write_all(&block)).await {
                Ok(Ok(())) => sent += block.len(),
                Ok(Err(_)) => {
                    ended = true;
                    break;
                }
                // The server reads no more: whoever floods waits for their own answers to be read.
                Err(_) => break,
            }
        }
        assert!(ended || !must_end, "{case}: {sent} bytes were taken");
        let mut other = Client::new(&server, None).await;
        assert_eq!(other.ask("GET", "/healthz", "").await.code, 200, "{case}");
        let grown = peak_bytes() - before;
        assert!(grown < GROWTH_BYTES_MAX, "{case}: {grown} bytes");
    }
}
