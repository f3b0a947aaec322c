//! TCP probes: the port accepts a connection.

use super::{Found, authority, connect, dial_error};
use std::time::Duration;

pub(super) async fn probe(host: &str, port: u16, timeout: Duration) -> Found {
    let address = authority(host, port);
    match tokio::time::timeout(timeout, connect(&address)).await {
        Ok(Ok(_)) => Found::Success,
        Ok(Err(error)) => Found::Failure(dial_error(&address, &error)),
        Err(_) => Found::Failure(format!("dial tcp {address}: i/o timeout")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_open_port_is_success_and_a_closed_one_is_refused() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let second = Duration::from_secs(5);
        assert_eq!(probe("127.0.0.1", port, second).await, Found::Success);
        drop(listener);
        let refused = format!("dial tcp 127.0.0.1:{port}: connect: connection refused");
        assert_eq!(
            probe("127.0.0.1", port, second).await,
            Found::Failure(refused)
        );
    }
}
