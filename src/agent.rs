//! `cox agent`: a node alone, joined to a control plane elsewhere by a kubeconfig with the node's certificate.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine;
use cox_apiserver::pki::PemPair;
use cox_client::Informers;
use serde_json::Value;

use crate::cli::AgentArgs;
use crate::components::Components;
use crate::console::Console;
use crate::node::{self, Identity, Runtime};
use crate::paths::Paths;
use crate::signals;

/// How long the kubelet may take to let go of its Pods; they go on in the runtime.
const STOP_PATIENCE: Duration = Duration::from_secs(60);

/// Runs until Ctrl-C, or until a component fails.
pub(crate) async fn run(args: AgentArgs) -> Result<()> {
    let paths = Paths::resolve(&args.common)?;
    let _lock = paths.take()?;
    let credentials = Credentials::read(&args.kubeconfig)?;
    let client = cox_client::from_kubeconfig(&args.kubeconfig).await?;
    let runtime = Runtime::start(&paths, &args.node).await?;
    let mut components = Components::new();
    let identity = Identity {
        informers: Informers::new(client.clone(), &components.cancellation()),
        client,
        serving: credentials.pair,
        client_ca_pem: credentials.ca_pem,
    };
    let cluster_dns = match cox_network::cluster_dns(&identity.client).await {
        Ok(ip) => ip,
        Err(error) => {
            tracing::warn!(%error, "The cluster's DNS is not known: Pods that start now resolve as the node does");
            None
        }
    };
    node::run_network(&paths, &args.node, &identity, &mut components)?;
    let kubelet = node::run_kubelet(&paths, &args.node, identity, cluster_dns, &mut components)?;
    Console::stdout().line(&format!(
        "✓ agent is ready as node {}",
        node::node_name(&args.node)?
    ));
    let outcome = tokio::select! {
        () = signals::terminated() => Ok(()),
        error = components.first_end() => Err(error),
    };
    if tokio::time::timeout(STOP_PATIENCE, kubelet.stop_pods())
        .await
        .is_err()
    {
        tracing::warn!("Some Pods did not stop in time");
    }
    components.stop().await;
    runtime.stop().await;
    outcome
}

/// The node's certificate: it is shown to the API server, and to the API server when that asks for logs.
struct Credentials {
    pair: PemPair,
    ca_pem: String,
}

impl Credentials {
    fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("{} cannot be read", path.display()))?;
        let config: Value = serde_saphyr::from_str(&text)
            .with_context(|| format!("{} is not a kubeconfig", path.display()))?;
        let field = |object: &Value, name: &str| -> Result<String> {
            let data = object[name].as_str().with_context(|| {
                format!("{} has no {name}: make it with `cox kubeconfig --node NAME` on the control plane", path.display())
            })?;
            Ok(String::from_utf8(
                base64::engine::general_purpose::STANDARD.decode(data)?,
            )?)
        };
        let user = &config["users"][0]["user"];
        Ok(Self {
            pair: PemPair {
                certificate: field(user, "client-certificate-data")?,
                key: field(user, "client-key-data")?,
            },
            ca_pem: field(
                &config["clusters"][0]["cluster"],
                "certificate-authority-data",
            )?,
        })
    }
}
