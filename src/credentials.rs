//! `cox kubeconfig`: credentials signed by the cluster's authority, made from its keys and without asking the API server.

use std::io::Write;

use anyhow::{Context, Result, bail};
use cox_apiserver::pki::Pki;
use kube::config::Kubeconfig;

use crate::cli::KubeconfigArgs;
use crate::paths::Paths;

pub(crate) fn run(args: &KubeconfigArgs) -> Result<()> {
    let paths = Paths::resolve(&args.common)?;
    if !paths.pki().exists() {
        bail!(
            "there is no cluster in {}: start one with `cox up` or `cox server`",
            paths.data.display()
        );
    }
    let pki = Pki::load_or_create(&paths.pki())?;
    let pair = match (&args.node, &args.user) {
        (Some(node), _) => pki.issue_node(
            node,
            &[node.clone(), "127.0.0.1".into(), "localhost".into()],
        )?,
        (None, Some(user)) => pki.issue_client(
            user,
            &args.groups.iter().map(String::as_str).collect::<Vec<_>>(),
        )?,
        (None, None) => pki.issue_admin()?,
    };
    let server = match &args.server {
        Some(url) => url.clone(),
        None => last_server(&paths)?,
    };
    std::io::stdout().write_all(pki.kubeconfig(&server, &pair).as_bytes())?;
    Ok(())
}

/// The URL that the last start wrote down.
pub(crate) fn last_server(paths: &Paths) -> Result<String> {
    let path = paths.kubeconfig();
    let config = Kubeconfig::read_from(&path).with_context(|| {
        format!(
            "{} cannot be read: say where the API server is with --server",
            path.display()
        )
    })?;
    config
        .clusters
        .into_iter()
        .find_map(|named| named.cluster?.server)
        .context("it names no server: say where it is with --server")
}
