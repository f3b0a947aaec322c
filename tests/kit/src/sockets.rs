//! The guest `sockets`, whose source lies beside it: `serve [ADDRESS] PORT` says who asked and where, `get HOST PORT` (over IPv6 `get6`)
//! prints such an answer; `echo` and `send` (`send6`) do the same over UDP.

use crate::{Cluster, eventually};

/// The component, from the root of the repository.
pub const SOCKETS: &str = "runtime-shim/tests/guests/sockets/sockets.wasm";

/// A Deployment of two of the guest, and a Service of the same name in front of it with `more` in its spec.
#[must_use]
pub fn server(name: &str, args: &str, port: &str, more: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\nspec:\n  replicas: 2\n  \
         selector: {{matchLabels: {{app: {name}}}}}\n  template:\n    metadata: {{labels: {{app: {name}}}}}\n    \
         spec:\n      runtimeClassName: wasm\n      terminationGracePeriodSeconds: 0\n      containers:\n      \
         - {{name: c, image: 'cox.local/sockets:latest', imagePullPolicy: IfNotPresent, args: {args}}}\n\
         ---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: {name}}}\n  \
         ports: [{port}]\n{more}\n"
    )
}

/// Runs the guest once as a Pod; answers what it printed.
///
/// # Panics
/// When the Pod does not end in time.
#[track_caller]
pub fn once(cluster: &Cluster, name: &str, args: &str) -> String {
    let pod = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  runtimeClassName: wasm\n  restartPolicy: Never\n  \
         containers:\n  - {{name: c, image: 'cox.local/sockets:latest', imagePullPolicy: IfNotPresent, args: {args}}}\n"
    );
    cluster.apply(&pod).ok();
    eventually("the client to end", || {
        let pod = cluster.json(&["get", "pod", name]);
        match pod["status"]["phase"].as_str() {
            Some("Succeeded" | "Failed") => Ok(()),
            phase => Err(format!("{phase:?}")),
        }
    });
    let log = cluster.kubectl(&["logs", name]).ok();
    let delete = ["delete", "pod", name, "--force", "--grace-period=0"];
    cluster.kubectl(&delete).ok();
    log.trim().to_owned()
}
