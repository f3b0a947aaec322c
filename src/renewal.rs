//! Keeps a node's certificates fresh: asks for new ones when most of the life of the old ones is over, as upstream's kubelet does.
//!
//! The client certificate is replaced under a client that goes on: requests from then on show the new one. The serving certificate
//! is handed to the kubelet's server. Both are kept on disk for the next start.

use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use cox_apiserver::pki::{self, Inspected, PemPair, inspect};
use cox_kubelet::ServingPair;
use http::HeaderValue;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::join::{self, Wanted};
use crate::paths::write_private;

/// The clock may jump and the machine may sleep: nobody sleeps longer than this at once.
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_secs(3600);
/// After a certificate could not be had.
const RETRY: Duration = Duration::from_secs(30);
/// The part of a certificate's life after which it is renewed, in percent.
const RENEW_AT_PERCENT: i64 = 80;

/// What a node shows the API server, and where that is.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    pub(crate) server: String,
    pub(crate) ca_pem: String,
    pub(crate) pair: PemPair,
}

impl Access {
    /// Keeps it for the next start.
    pub(crate) fn keep(&self, path: &Path) -> Result<()> {
        if let Some(dir) = path.parent() {
            crate::paths::private_dir(dir)?;
        }
        write_private(
            path,
            &pki::kubeconfig(&self.server, &self.ca_pem, &self.pair),
        )
    }
}

/// A client whose credentials can be replaced while it is used.
#[derive(Clone)]
pub(crate) struct Replaceable(Arc<RwLock<kube::Client>>);

impl Replaceable {
    pub(crate) fn new(client: kube::Client) -> Self {
        Self(Arc::new(RwLock::new(client)))
    }

    fn current(&self) -> kube::Client {
        self.0
            .read()
            .expect("no panic happens while this lock is held")
            .clone()
    }

    fn replace(&self, client: kube::Client) {
        *self
            .0
            .write()
            .expect("no panic happens while this lock is held") = client;
    }

    /// The client that all parts of the node use.
    pub(crate) fn client(&self) -> kube::Client {
        let current = self.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let client = current.current();
            async move { client.send(request).await }
        });
        cox_client::in_process_as(service, HeaderValue::from_static("kubelet"))
    }
}

/// When a certificate wants to be renewed, in seconds since 1970.
fn renew_at(seen: &Inspected) -> i64 {
    seen.not_before + (seen.not_after - seen.not_before) / 100 * RENEW_AT_PERCENT
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    })
}

/// Whether a certificate holds now.
pub(crate) fn holds(pem: &str) -> bool {
    inspect(pem).is_some_and(|seen| seen.not_before <= now() && now() < seen.not_after)
}

/// Sleeps until a certificate wants to be renewed.
async fn until_due(pem: &str) {
    loop {
        let due = inspect(pem).map_or(0, |seen| renew_at(&seen));
        let left = u64::try_from(due - now()).unwrap_or(0);
        if left == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_secs(left).min(LOOK_AT_LEAST_EVERY)).await;
    }
}

/// Renews the client certificate until cancelled.
pub(crate) async fn keep_client(
    node: String,
    mut access: Access,
    replaceable: Replaceable,
    path: PathBuf,
    cancel: CancellationToken,
) {
    let work = async {
        loop {
            until_due(&access.pair.certificate).await;
            let renewed = async {
                let client = replaceable.current();
                let pair = join::certificate(client, &node, Wanted::Client).await?;
                let fresh = Access {
                    pair,
                    ..access.clone()
                };
                fresh.keep(&path)?;
                let client = cox_client::from_kubeconfig(&path).await?;
                anyhow::Ok((fresh, client))
            };
            match renewed.await {
                Ok((fresh, client)) => {
                    replaceable.replace(client);
                    access = fresh;
                    tracing::info!("Client certificate was renewed");
                }
                Err(error) => {
                    tracing::warn!("Client certificate could not be renewed: {error:#}");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    };
    tokio::select! {
        // What was asked for and not fetched is asked for anew by the next start.
        () = work => {}
        () = cancel.cancelled() => {}
    }
}

/// The serving pair to begin with, and whether it should be replaced at once.
pub(crate) fn first_serving(path: &Path, client: &PemPair, names: &[String]) -> Result<PemPair> {
    if let Ok(text) = std::fs::read_to_string(path)
        && holds(&text)
    {
        return Ok(PemPair {
            certificate: text.clone(),
            key: text,
        });
    }
    // `cox kubeconfig --node` makes one certificate for both.
    if inspect(&client.certificate).is_some_and(|seen| seen.is_for_servers) {
        return Ok(client.clone());
    }
    Ok(pki::Pki::self_signed(names)?)
}

/// Whether an authority vouches for it.
fn is_vouched_for(pem: &str) -> bool {
    inspect(pem).is_some_and(|seen| seen.common_name.starts_with("system:node:"))
}

/// Renews the serving certificate until cancelled; one that nobody vouches for is replaced at once.
pub(crate) async fn keep_serving(
    node: String,
    names: Vec<String>,
    client: kube::Client,
    first: PemPair,
    path: PathBuf,
    updates: watch::Sender<ServingPair>,
    cancel: CancellationToken,
) {
    let work = async {
        let mut shown = first.certificate;
        loop {
            if is_vouched_for(&shown) {
                until_due(&shown).await;
            }
            let renewed = async {
                let wanted = Wanted::Serving(&names);
                let pair = join::certificate(client.clone(), &node, wanted).await?;
                write_private(&path, &format!("{}{}", pair.certificate, pair.key))
                    .context("the serving certificate cannot be kept")?;
                anyhow::Ok(pair)
            };
            match renewed.await {
                Ok(pair) => {
                    shown.clone_from(&pair.certificate);
                    updates.send_replace(ServingPair {
                        certificate_pem: pair.certificate,
                        key_pem: pair.key,
                    });
                }
                Err(error) => {
                    tracing::warn!("Serving certificate could not be had: {error:#}");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    };
    tokio::select! {
        // As above.
        () = work => {}
        () = cancel.cancelled() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_after_four_fifths_of_its_life() {
        let seen = Inspected {
            not_before: 1000,
            not_after: 2000,
            common_name: String::new(),
            is_for_servers: false,
        };
        assert_eq!(renew_at(&seen), 1800);
    }

    #[test]
    fn what_no_authority_vouches_for_is_replaced() {
        let pair = pki::Pki::self_signed(&["n".to_owned()]).unwrap();
        assert!(holds(&pair.certificate) && !is_vouched_for(&pair.certificate));
    }
}
