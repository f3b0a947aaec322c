//! `cox up`: a whole cluster in one process, the given workloads applied to it, their logs followed.

mod apply;
mod follow;
mod progress;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cox_apiserver::auth::UserInfo;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};

use crate::cli::{Part, UpArgs};
use crate::components::Components;
use crate::console::Console;
use crate::control_plane::ControlPlane;
use crate::manifests::{self, Workload};
use crate::node::{self, Identity, PodRanges, Runtime};
use crate::paths::Paths;
use crate::{image, kubeconfig, signals};

/// How long the Pods together may take to stop: the longest grace period that people set, and a little.
const PODS_STOP_PATIENCE: Duration = Duration::from_secs(60);

/// Where Pods have IPv6 alone, as unlikely to be somebody else's as 10.96.0.0/16.
const SERVICE_CIDR_V6: &str = "fd00:10:96::/112";

/// Runs until Ctrl-C, or until a component fails.
pub(crate) async fn run(args: UpArgs) -> Result<()> {
    let begun = Instant::now();
    let workload = manifests::read(&args.paths)?;
    let paths = Paths::resolve(&args.common)?;
    let _lock = paths.take()?;
    let console = Arc::new(Console::stdout());
    let interrupted = signals::terminated();
    tokio::pin!(interrupted);

    let (runtime, plane) = tokio::join!(
        Runtime::start(&paths, &args.node),
        ControlPlane::start(
            &paths,
            (&args.listen, &args.node.ranges),
            service_cidr(&args)?,
            Some(args.node.node_ip)
        )
    );
    let (runtime, plane) = both(runtime, plane).await?;
    let mut components = Components::new();
    plane.run_components(&mut components);
    let name = node::node_name(&args.node)?;
    let identity = identity(&plane, &name, &args)?;
    let cluster_dns = cox_network::cluster_dns(&identity.client).await?;
    let isolation = node::run_network(&paths, &args.node, &identity, &mut components)?;
    run_gateway(&args, &plane, &mut components)?;
    let kubelet = node::run_kubelet(
        &paths,
        &args.node,
        identity,
        cluster_dns,
        isolation,
        &mut components,
    )?;

    let work = serve(
        &args,
        &paths,
        &plane,
        &name,
        workload,
        Arc::clone(&console),
        begun,
    );
    let outcome = tokio::select! {
        // Dropping `work` only stops talking to the user: the cluster itself is the components'.
        () = &mut interrupted => Ok(()),
        error = components.first_end() => Err(error),
        done = work => done,
    };
    console.settle();
    console.line("Stopping the Pods; the data stays. Ctrl-C again to stop at once.");
    tokio::select! {
        // A second Ctrl-C gives up the grace periods, nothing else.
        () = signals::terminated() => {}
        late = tokio::time::timeout(PODS_STOP_PATIENCE, kubelet.stop_pods()) => {
            if late.is_err() {
                tracing::warn!("Some Pods did not stop in time");
            }
        }
    }
    components.stop().await;
    plane.stop().await;
    runtime.stop().await;
    outcome
}

/// Both, or neither: what started alone is stopped.
async fn both(
    runtime: Result<Runtime>,
    plane: Result<ControlPlane>,
) -> Result<(Runtime, ControlPlane)> {
    match (runtime, plane) {
        (Ok(runtime), Ok(plane)) => Ok((runtime, plane)),
        (Err(error), plane) => {
            if let Ok(plane) = plane {
                plane.stop().await;
            }
            Err(error)
        }
        (Ok(runtime), Err(error)) => {
            runtime.stop().await;
            Err(error)
        }
    }
}

/// The way in for requests from outside, unless it is left out.
fn run_gateway(args: &UpArgs, plane: &ControlPlane, components: &mut Components) -> Result<()> {
    let has = |part: Part| !args.listen.disable.contains(&part);
    if !has(Part::Ingress) {
        return node::retire_gateway(&args.node, plane.gateway(), components);
    }
    let (client, informers) = (plane.gateway(), plane.informers());
    node::run_gateway(
        &args.node,
        has(Part::GatewayApi),
        true,
        client,
        informers,
        components,
    )
}

/// Service addresses on loopback need no root and no rules in the kernel; Linux containers cannot reach such. Pods with IPv6 addresses
/// alone reach no others.
fn service_cidr(args: &UpArgs) -> Result<&'static str> {
    let has_ipv4 = PodRanges::of(&args.node)?.ipv4().is_some();
    Ok(match (has_ipv4, node::runs_linux_containers(&args.node)) {
        (false, _) => SERVICE_CIDR_V6,
        (true, true) => cox_apiserver::SERVICE_CIDR,
        (true, false) => "127.128.0.0/16",
    })
}

/// The kubelet of this process: it acts as its node, in process, and serves with a certificate of the cluster's authority.
fn identity(plane: &ControlPlane, name: &str, args: &UpArgs) -> Result<Identity> {
    let user = UserInfo::new(
        format!("system:node:{name}"),
        ["system:nodes", "system:authenticated"],
    );
    Ok(Identity {
        client: plane.client_as(user, "kubelet"),
        informers: plane.informers(),
        serving: plane.pki.issue_node(name, &node::sans(name, &args.node))?,
        serving_updates: None,
        client_ca_pem: plane.pki.ca_pem().to_owned(),
    })
}

/// All that the user sees: readiness, what was applied, logs. Does not end by itself unless something cannot be done.
async fn serve(
    args: &UpArgs,
    paths: &Paths,
    plane: &ControlPlane,
    name: &str,
    workload: Workload,
    console: Arc<Console>,
    begun: Instant,
) -> Result<()> {
    let client = plane.admin();
    wait_node_ready(&client, name).await?;
    console.line(&format!(
        "✓ node {name} is ready at {} after {:.2} s",
        plane.url,
        begun.elapsed().as_secs_f64()
    ));
    let merged = merge_kubeconfig(args, paths);
    for file in &workload.images {
        let entry = image::load(&paths.images_socket(), file).await?;
        console.line(&format!("✓ image {}", entry.name));
    }
    let applied = apply::apply_all(&client, &workload.objects, &console).await?;
    apply::wait_ready(&applied, &console).await?;
    say_what_next(&console, paths, merged);
    if !args.no_follow && !applied.is_empty() {
        follow::follow(client, applied, console).await?;
    }
    std::future::pending().await
}

async fn wait_node_ready(client: &Client, name: &str) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut changes = watcher(nodes, config)
        .default_backoff()
        .applied_objects()
        .boxed();
    while let Some(node) = changes.next().await {
        let conditions = node
            .context("the node cannot be watched")?
            .status
            .and_then(|status| status.conditions)
            .unwrap_or_default();
        if conditions
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
        {
            return Ok(());
        }
    }
    anyhow::bail!("the cluster ended before its node was ready")
}

/// Merges the context into the user's kubeconfig; a file that cannot be merged into is the user's, and only worth a word.
fn merge_kubeconfig(args: &UpArgs, paths: &Paths) -> bool {
    if args.no_merge_kubeconfig {
        return false;
    }
    let Some(path) = kubeconfig::user_path() else {
        return false;
    };
    let merge = || kubeconfig::merge_into(&path, &std::fs::read_to_string(paths.kubeconfig())?);
    match merge() {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!("The kubeconfig {error:#}");
            false
        }
    }
}

fn say_what_next(console: &Console, paths: &Paths, merged: bool) {
    let kubectl = if merged {
        "kubectl".to_owned()
    } else {
        format!("kubectl --kubeconfig {}", paths.kubeconfig().display())
    };
    console.line("");
    let commands = [
        (format!("{kubectl} get pods -A"), "what runs"),
        (format!("{kubectl} apply -f FILE"), "run more"),
        (
            "Ctrl-C".to_owned(),
            "stops the Pods; the next `cox up` starts them again",
        ),
    ];
    let width = commands.iter().map(|(command, _)| command.len()).max();
    let width = width.unwrap_or_default();
    for (command, what) in commands {
        console.line(&format!("  {command:width$}   {what}"));
    }
    console.line("");
}
