//! Ranges of Pod addresses for nodes.

use std::collections::BTreeSet;
use std::sync::Arc;

use cox_controllers::NodeRanges;
use k8s_openapi::api::core::v1::{Event, Node};
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use super::kit::Cluster;

fn range(node: &Node) -> Option<String> {
    let spec = node.spec.as_ref()?;
    let ranges = spec.pod_cidrs.clone()?;
    assert_eq!(ranges.first(), spec.pod_cidr.as_ref());
    Some(ranges.join(","))
}

fn ranges(nodes: &[Arc<Node>]) -> BTreeSet<String> {
    nodes.iter().filter_map(|node| range(node)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_get_ranges_of_their_own_until_none_is_left() {
    let cluster = Cluster::start().await;
    let clusters = ["10.64.0.0/22".to_owned(), "fd64::/48".to_owned()];
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    cluster.create_node("own").await;
    let own = json!({"spec": {"podCIDR": "10.64.1.0/24", "podCIDRs": ["10.64.1.0/24"]}});
    nodes
        .patch("own", &PatchParams::default(), &Patch::Merge(own))
        .await
        .unwrap();
    let controllers = cluster
        .run_controllers(|config| config.node_ranges = NodeRanges::new(&clusters, 24, 64).unwrap());
    for name in ["a", "b", "c"] {
        cluster.create_node(name).await;
    }
    cluster
        .wait_for::<Node>("all nodes to have ranges", |nodes| ranges(nodes).len() == 4)
        .await;
    let given = ranges(
        &nodes
            .list(&Default::default())
            .await
            .unwrap()
            .items
            .into_iter()
            .map(Arc::new)
            .collect::<Vec<_>>(),
    );
    let expected = [
        "10.64.0.0/24,fd64::/64",
        "10.64.1.0/24",
        "10.64.2.0/24,fd64:0:0:1::/64",
        "10.64.3.0/24,fd64:0:0:2::/64",
    ];
    assert_eq!(given, expected.map(str::to_owned).into());
    // Nothing is left for one more, and it says so; one that goes makes room.
    cluster.create_node("late").await;
    cluster
        .wait_for::<Event>("the event", |events| {
            events.iter().any(|event| {
                event.reason.as_deref() == Some("CIDRNotAvailable")
                    && event.involved_object.name.as_deref() == Some("late")
            })
        })
        .await;
    let left = range(&nodes.get("b").await.unwrap());
    nodes.delete("b", &DeleteParams::default()).await.unwrap();
    cluster
        .wait_for::<Node>("the late one to get what was left", |nodes| {
            let late = nodes.iter().find(|node| node.name_any() == "late");
            late.and_then(|node| range(node)) == left
        })
        .await;
    controllers.stop().await;
    // Another leader knows what was given.
    let controllers = cluster
        .run_controllers(|config| config.node_ranges = NodeRanges::new(&clusters, 24, 64).unwrap());
    nodes.delete("own", &DeleteParams::default()).await.unwrap();
    cluster.create_node("again").await;
    cluster
        .wait_for::<Node>("the newcomer to get the only free one", |nodes| {
            let found = nodes.iter().find(|node| node.name_any() == "again");
            found
                .and_then(|node| range(node))
                .is_some_and(|range| range.starts_with("10.64.1.0/24,"))
        })
        .await;
    controllers.stop().await;
}
