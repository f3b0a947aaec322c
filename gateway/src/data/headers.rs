//! Headers between two connections: what belongs to one hop stays there, and the backend learns who asked. Pure.

use std::net::SocketAddr;

use http::header::{CONNECTION, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Whom the request came from, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    pub(crate) addr: SocketAddr,
    pub(crate) tls: bool,
    /// The port that it asked.
    pub(crate) port: u16,
}

/// Takes away what is for one connection only.
pub(crate) fn strip_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let trailers = headers
        .get_all(TE)
        .iter()
        .any(|value| value.to_str().is_ok_and(|value| value.contains("trailers")));
    let fixed = [
        CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        TE,
        TRANSFER_ENCODING,
        UPGRADE,
    ];
    for name in named.into_iter().chain(fixed) {
        headers.remove(name);
    }
    // gRPC asks for it on every hop.
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// What the client wants to change the connection to, such as `websocket`.
pub(crate) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = headers.get_all(CONNECTION).iter().any(|value| {
        let tokens = value.to_str().unwrap_or_default();
        tokens
            .split(',')
            .any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
    });
    headers.get(UPGRADE).filter(|_| asked).cloned()
}

/// Tells the backend who asked. What the client claims of itself counts for nothing.
pub(crate) fn forwarded(headers: &mut HeaderMap, peer: Peer, host: &str) {
    const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
    const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
    const HOST_: HeaderName = HeaderName::from_static("x-forwarded-host");
    const PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
    const REAL: HeaderName = HeaderName::from_static("x-real-ip");
    headers.remove(http::header::FORWARDED);
    let ip = HeaderValue::try_from(peer.addr.ip().to_string());
    if let Ok(ip) = ip {
        headers.insert(FOR, ip.clone());
        headers.insert(REAL, ip);
    }
    let scheme = if peer.tls { "https" } else { "http" };
    headers.insert(PROTO, HeaderValue::from_static(scheme));
    headers.insert(PORT, HeaderValue::from(peer.port));
    match HeaderValue::try_from(host) {
        Ok(host) => headers.insert(HOST_, host),
        Err(_) => headers.remove(HOST_),
    };
}

/// The host that was asked for as the client wrote it: of HTTP/2's `:authority`, else of `Host`.
pub(crate) fn host<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    let authority = uri.authority().map(http::uri::Authority::as_str);
    authority.or_else(|| headers.get(HOST)?.to_str().ok())
}

/// A host without its port.
pub(crate) fn without_port(host: &str) -> &str {
    if host.starts_with('[') {
        return host.split_inclusive(']').next().unwrap_or(host);
    }
    host.split(':').next().unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn what_is_for_one_hop_stays_there() {
        let mut headers = map(&[
            ("connection", "close, X-Secret"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("te", "gzip, trailers"),
            ("accept", "*/*"),
        ]);
        strip_hop(&mut headers);
        assert_eq!(headers, map(&[("accept", "*/*"), ("te", "trailers")]));
    }

    #[test]
    fn a_connection_changes_only_when_both_headers_say_so() {
        let asked = |pairs| upgrade(&map(pairs)).map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(
            asked(&[
                ("connection", "keep-alive, Upgrade"),
                ("upgrade", "websocket")
            ])
            .as_deref(),
            Some("websocket")
        );
        assert_eq!(asked(&[("upgrade", "websocket")]), None);
        assert_eq!(asked(&[("connection", "upgrade")]), None);
    }

    #[test]
    fn the_backend_learns_who_asked_and_not_who_the_client_claims_to_be() {
        let mut headers = map(&[
            ("x-forwarded-for", "1.2.3.4"),
            ("forwarded", "for=1.2.3.4"),
            ("x-forwarded-for", "5.6.7.8"),
        ]);
        let peer = Peer {
            addr: "192.0.2.7:4711".parse().unwrap(),
            tls: true,
            port: 8443,
        };
        forwarded(&mut headers, peer, "shop.example:8443");
        let expected = map(&[
            ("x-forwarded-for", "192.0.2.7"),
            ("x-real-ip", "192.0.2.7"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-port", "8443"),
            ("x-forwarded-host", "shop.example:8443"),
        ]);
        assert_eq!(headers, expected);
    }

    #[test]
    fn hosts() {
        for (host, expected) in [
            ("a.b:80", "a.b"),
            ("a.b", "a.b"),
            ("[::1]:80", "[::1]"),
            ("", ""),
        ] {
            assert_eq!(without_port(host), expected);
        }
    }
}
