//! `cox agent`: a node alone, joined to a control plane elsewhere: by a token at its first start, or by a kubeconfig with the node's
//! certificate. From then on it keeps credentials of its own and renews them.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine;
use cox_apiserver::pki::PemPair;
use cox_client::Informers;
use cox_kubelet::ServingPair;
use serde_json::Value;
use tokio::sync::watch;

use crate::cli::{AgentArgs, AgentPart};
use crate::components::Components;
use crate::console::Console;
use crate::join::{self, JoinToken, Wanted};
use crate::node::{self, Identity, Runtime};
use crate::paths::Paths;
use crate::pod_range;
use crate::renewal::{self, Access, Replaceable};
use crate::signals;

/// How long the kubelet may take to let go of its Pods; they go on in the runtime.
const STOP_PATIENCE: Duration = Duration::from_secs(60);

/// Runs until Ctrl-C, or until a component fails.
pub(crate) async fn run(mut args: AgentArgs) -> Result<()> {
    let paths = Paths::resolve(&args.common)?;
    let _lock = paths.take()?;
    let name = node::node_name(&args.node)?;
    let access = access(&paths, &args, &name).await?;
    let kept = paths.node_kubeconfig();
    access.keep(&kept)?;
    let replaceable = Replaceable::new(cox_client::from_kubeconfig(&kept).await?);
    let client = replaceable.client();
    let known = paths.known();
    pod_range::ensure(&client, &mut args.node, &known).await?;
    let runtime = Runtime::start(&paths, &args.node).await?;
    let mut components = Components::new();
    let cancel = components.cancellation();
    let names = node::sans(&name, &args.node);
    let serving = renewal::first_serving(&paths.serving_pair(), &access.pair, &names)?;
    let (updates, serving_updates) = watch::channel(ServingPair::default());
    let identity = Identity {
        informers: Informers::new(client.clone(), &cancel),
        client: client.clone(),
        serving: serving.clone(),
        serving_updates: Some(serving_updates),
        client_ca_pem: access.ca_pem.clone(),
    };
    let cluster_dns = pod_range::cluster_dns(&identity.client, &known).await;
    let isolation = node::run_network(&paths, &args.node, &identity, &mut components)?;
    run_gateway(&args, &identity, &mut components)?;
    let kubelet = node::run_kubelet(
        &paths,
        &args.node,
        identity,
        cluster_dns,
        isolation,
        &mut components,
    )?;
    let renew = renewal::keep_client(name.clone(), access, replaceable, kept, cancel.clone());
    components.spawn("client certificate", async move {
        renew.await;
        Ok(())
    });
    let place = paths.serving_pair();
    let renew = renewal::keep_serving(name.clone(), names, client, serving, place, updates, cancel);
    components.spawn("serving certificate", async move {
        renew.await;
        Ok(())
    });
    Console::stdout().line(&format!("✓ agent is ready as node {name}"));
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

/// The way in for requests from outside, where it is asked for. The node acts as itself: its user has to be let.
fn run_gateway(args: &AgentArgs, identity: &Identity, components: &mut Components) -> Result<()> {
    let client = identity.client.clone();
    if args.enable.is_empty() {
        return node::retire_gateway(&args.node, client, components);
    }
    let gateway_api = args.enable.contains(&AgentPart::GatewayApi);
    let informers = identity.informers.clone();
    node::run_gateway(
        &args.node,
        gateway_api,
        false,
        client,
        informers,
        components,
    )
}

/// How the node reaches the API server: as it did before, by what the flags say, or by joining now.
async fn access(paths: &Paths, args: &AgentArgs, node: &str) -> Result<Access> {
    let subject = format!("system:node:{node}");
    let known = paths.node_kubeconfig();
    let known = known.exists().then(|| read(&known)).transpose()?;
    let known = known.filter(|access| is_of(access, &subject));
    if let Some(file) = &args.kubeconfig {
        let given = read(file)?;
        // A renewed certificate counts for more than the one that it began with, for the same cluster.
        let newer = known.filter(|known| {
            known.ca_pem == given.ca_pem
                && ends(known) > ends(&given)
                && renewal::holds(&known.pair.certificate)
        });
        return Ok(match newer {
            Some(known) => Access {
                server: given.server,
                ..known
            },
            None => given,
        });
    }
    if let Some(known) = known.filter(|known| renewal::holds(&known.pair.certificate)) {
        return Ok(Access {
            server: args.server.clone().unwrap_or(known.server),
            ..known
        });
    }
    let (Some(server), Some(token)) = (&args.server, &args.token) else {
        bail!(
            "this node has not joined a cluster: run `cox token` on the control plane and what it prints here, or give --kubeconfig"
        );
    };
    let token = JoinToken::parse(token)?;
    let ca_pem = join::authority(server, &token, args.ca_file.as_deref()).await?;
    let client = join::client_with_token(server, &ca_pem, &token)?;
    let pair = join::certificate(client, node, Wanted::Client)
        .await
        .with_context(|| format!("{node} could not join {server}"))?;
    Console::stdout().line(&format!("✓ {node} joined {server}"));
    Ok(Access {
        server: server.clone(),
        ca_pem,
        pair,
    })
}

fn is_of(access: &Access, subject: &str) -> bool {
    let seen = cox_apiserver::pki::inspect(&access.pair.certificate);
    seen.is_some_and(|seen| seen.common_name == subject)
}

fn ends(access: &Access) -> i64 {
    cox_apiserver::pki::inspect(&access.pair.certificate).map_or(0, |seen| seen.not_after)
}

/// The credentials of a kubeconfig with everything inside it.
fn read(path: &Path) -> Result<Access> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("{} cannot be read", path.display()))?;
    let config: Value = serde_saphyr::from_str(&text)
        .with_context(|| format!("{} is not a kubeconfig", path.display()))?;
    let missing = |name: &str| {
        format!(
            "{} has no {name}: make it with `cox kubeconfig --node NAME` on the control plane",
            path.display()
        )
    };
    let field = |object: &Value, name: &str| -> Result<String> {
        let data = object[name].as_str().with_context(|| missing(name))?;
        Ok(String::from_utf8(
            base64::engine::general_purpose::STANDARD.decode(data)?,
        )?)
    };
    let user = &config["users"][0]["user"];
    let cluster = &config["clusters"][0]["cluster"];
    Ok(Access {
        server: cluster["server"]
            .as_str()
            .with_context(|| missing("server"))?
            .to_owned(),
        pair: PemPair {
            certificate: field(user, "client-certificate-data")?,
            key: field(user, "client-key-data")?,
        },
        ca_pem: field(cluster, "certificate-authority-data")?,
    })
}
