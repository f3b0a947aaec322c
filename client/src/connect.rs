//! Makes a [`kube::Client`]: over a tower service in the same process (no socket, no TLS), or over HTTPS from a kubeconfig.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::HeaderValue;
use http::header::USER_AGENT;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use tower::{BoxError, Service, ServiceExt};

/// How long an answer's head may take. Bodies are not bounded: a watch lives for minutes.
const RESPONSE_HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// Why no client could be made from a kubeconfig.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The file is missing, unreadable or not a kubeconfig.
    #[error("cannot read the kubeconfig {path}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: KubeconfigError,
    },
    /// The kubeconfig was read, but its credentials or certificates cannot be used.
    #[error("cannot make a client from the kubeconfig {path}")]
    Client {
        /// The file.
        path: PathBuf,
        /// What is wrong with its contents.
        #[source]
        source: kube::Error,
    },
}

/// A client that calls `service` directly. The service decides who the caller is (an identity of its own); it gets requests
/// whose URI is only a path and a query. Must be called inside a tokio runtime, because the client's buffer is a task.
pub fn in_process<S, B>(service: S) -> kube::Client
where
    S: Service<http::Request<Body>, Response = http::Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    in_process_as(service, HeaderValue::from_static("cox"))
}

/// Like [`in_process`], with a User-Agent: the API server names the owner of fields in `managedFields` by it.
pub fn in_process_as<S, B>(service: S, user_agent: HeaderValue) -> kube::Client
where
    S: Service<http::Request<Body>, Response = http::Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let service = service
        .map_request(move |mut request: http::Request<Body>| {
            request.headers_mut().insert(USER_AGENT, user_agent.clone());
            request
        })
        .map_err(Into::<BoxError>::into)
        .map_future(|call| async move {
            match tokio::time::timeout(RESPONSE_HEAD_TIMEOUT, call).await {
                Ok(answer) => answer,
                Err(elapsed) => Err(elapsed.into()),
            }
        });
    kube::Client::new(service, "default")
}

/// A client for the current context of the kubeconfig at `path`, over HTTPS.
pub async fn from_kubeconfig(path: impl AsRef<Path>) -> Result<kube::Client, ConnectError> {
    let path = path.as_ref().to_path_buf();
    let kubeconfig = Kubeconfig::read_from(&path).map_err(|source| ConnectError::Kubeconfig {
        path: path.clone(),
        source,
    })?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|source| ConnectError::Kubeconfig {
            path: path.clone(),
            source,
        })?;
    kube::Client::try_from(config).map_err(|source| ConnectError::Client { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::Api;

    #[tokio::test]
    async fn an_in_process_client_reaches_its_service_by_path() {
        let service = tower::service_fn(|request: http::Request<Body>| async move {
            assert_eq!(
                request.uri().to_string(),
                "/api/v1/namespaces/default/configmaps/x"
            );
            assert_eq!(request.headers()[USER_AGENT], "cox");
            let body = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"}}"#;
            Ok::<_, std::convert::Infallible>(http::Response::new(body.to_owned()))
        });
        let client = in_process(service);
        let found = Api::<ConfigMap>::default_namespaced(client)
            .get("x")
            .await
            .unwrap();
        assert_eq!(found.metadata.name.as_deref(), Some("x"));
    }

    #[tokio::test]
    async fn a_missing_kubeconfig_is_named_in_the_error() {
        let error = from_kubeconfig("/nonexistent/kubeconfig")
            .await
            .err()
            .unwrap();
        assert_eq!(
            error.to_string(),
            "cannot read the kubeconfig /nonexistent/kubeconfig"
        );
    }
}
