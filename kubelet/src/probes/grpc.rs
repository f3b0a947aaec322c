//! gRPC probes: the standard health service answers SERVING.

use super::{Found, authority};
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

const SERVING: i32 = 1;

fn status_name(status: i32) -> &'static str {
    match status {
        SERVING => "SERVING",
        2 => "NOT_SERVING",
        3 => "SERVICE_UNKNOWN",
        _ => "UNKNOWN",
    }
}

pub(super) async fn probe(host: &str, port: u16, service: &str, timeout: Duration) -> Found {
    let address = authority(host, port);
    let secs = timeout.as_secs();
    let deadline = tokio::time::Instant::now() + timeout;
    let channel = match tokio::time::timeout_at(deadline, dial(&address)).await {
        Ok(Ok(channel)) => channel,
        // Upstream dials until the time is up, whatever the reason.
        Ok(Err(_)) | Err(_) => {
            return Found::Failure(format!(
                "timeout: failed to connect service \"{address}\" within {secs}s: context deadline exceeded"
            ));
        }
    };
    let answer = tokio::time::timeout_at(deadline, check(channel, service)).await;
    Found::Failure(match answer {
        Err(_) => format!("timeout: health rpc did not complete within {secs}s"),
        Ok(Ok(SERVING)) => return Found::Success,
        Ok(Ok(status)) => {
            format!(
                "service unhealthy (responded with \"{}\")",
                status_name(status)
            )
        }
        Ok(Err(status)) => match status.code() {
            tonic::Code::Unimplemented => format!(
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
                status.message()
            ),
            tonic::Code::DeadlineExceeded => {
                format!("timeout: health rpc did not complete within {secs}s")
            }
            code => format!(
                "error: health rpc probe failed: rpc error: code = {code:?} desc = {}",
                status.message()
            ),
        },
    })
}

async fn dial(address: &str) -> Result<Channel, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .and_then(|endpoint| endpoint.user_agent("kube-probe/1.36"))
        .map_err(|error| error.to_string())?;
    endpoint.connect().await.map_err(|error| error.to_string())
}

async fn check(channel: Channel, service: &str) -> Result<i32, tonic::Status> {
    let mut client = tonic::client::Grpc::new(channel);
    client
        .ready()
        .await
        .map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    let answer = client
        .unary(tonic::Request::new(request), path, codec)
        .await?;
    Ok(answer.into_inner().status)
}
