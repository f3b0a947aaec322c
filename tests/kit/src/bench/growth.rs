//! How speed and memory change with the number of stored objects, and how long a start takes with all of them.

use std::time::Instant;

use anyhow::Result;
use cox_testkit::Cluster;
use cox_testkit::access::Access;

use super::load::{self, Load};
use super::memory::resident_mb;
use super::{Figure, api, figure};

/// Figures at each count, which must grow, and of a start with the last.
pub(crate) async fn measure(binary: &str, counts: &[usize]) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let mut cluster = tokio::task::block_in_place(|| Cluster::up(binary, &["--no-follow"]));
    let mut access = Access::read(&cluster.kubeconfig())?;
    let mut connection = api::connect(&access).await?;
    load::make_namespace(&mut connection).await?;
    let mut stored = 0;
    for count in counts.iter().copied() {
        let fresh = count.saturating_sub(stored);
        let creates =
            load::rate(&access, Load::CreateConfigMap { from: stored }, 32, fresh).await?;
        stored = count;
        let gets = load::rate(&access, Load::GetConfigMap { among: count }, 32, 50_000).await?;
        let lists = load::rate(&access, Load::ListConfigMaps, 8, 1000).await?;
        let memory = resident_mb(cluster.pid())?.0;
        let with = |what: &str| format!("{count} objects stored: {what}");
        figures.push(figure(&with("creates up to here"), "/s", "", creates, true));
        figures.push(figure(&with("GET"), "/s", "", gets, true));
        figures.push(figure(&with("LIST 500"), "/s", "", lists, true));
        figures.push(figure(&with("memory"), "MB", "", memory, false));
    }
    drop(connection);
    for (what, promise) in [("interrupted", "2"), ("killed", "2")] {
        tokio::task::block_in_place(|| {
            if what == "killed" {
                cluster.kill();
            } else {
                cluster.interrupt();
            }
        });
        let start = Instant::now();
        tokio::task::block_in_place(|| cluster.start_watching_for_ready());
        let seconds = start.elapsed().as_secs_f64();
        figures.push(figure(
            &format!("start to Ready with {stored} objects, {what} before"),
            "s",
            promise,
            seconds,
            false,
        ));
    }
    access = Access::read(&cluster.kubeconfig())?;
    let mut connection = api::connect(&access).await?;
    let start = Instant::now();
    let all = format!("/api/v1/namespaces/{}/configmaps", load::NAMESPACE);
    connection
        .call(hyper::Method::DELETE, &all, bytes::Bytes::new())
        .await?;
    figures.push(figure(
        &format!("deletecollection of {stored} objects"),
        "s",
        "",
        start.elapsed().as_secs_f64(),
        false,
    ));
    Ok(figures)
}
