//! Server-side apply of a Deployment with about a hundred owned fields: CPU of the server per request, over the wire.
//!
//! A Deployment that is stored wakes controllers, whose work would be counted too; so Deployments are applied as a dry run and
//! unchanged, and what is stored is a PodTemplate of the same size, which nobody watches.

use anyhow::{Context, Result};
use bytes::Bytes;
use hyper::Method;
use serde_json::{Value, json};

use super::api::{Connection, connect};
use super::load::NAMESPACE;
use super::memory::cpu_seconds;
use super::{Figure, Subject, figure};

const REQUESTS: u32 = 3000;

/// The figures of one cluster.
pub(crate) async fn measure(subject: &Subject) -> Result<Vec<Figure>> {
    let Some(pid) = subject.pids.first().copied() else {
        return Ok(Vec::new());
    };
    let mut connection = connect(&subject.access).await?;
    let deployment =
        format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments/applied?fieldManager=bench");
    let stored = connection
        .call(Method::PATCH, &deployment, configuration("Deployment", 0))
        .await?;
    let fields = owned_fields(&serde_json::from_slice(&stored)?);
    let dry = format!("{deployment}&dryRun=All");
    let template =
        format!("/api/v1/namespaces/{NAMESPACE}/podtemplates/applied?fieldManager=bench");
    let cases = [
        ("changed, dry run", dry.as_str(), "Deployment", true),
        ("unchanged", deployment.as_str(), "Deployment", false),
        (
            "PodTemplate, changed, stored",
            template.as_str(),
            "PodTemplate",
            true,
        ),
    ];
    let mut figures = Vec::new();
    for (name, path, kind, changes) in cases {
        // Controllers that still look at the Deployment must be done.
        run(&mut connection, path, kind, changes, REQUESTS / 10).await?;
        let before = cpu_seconds(pid)?;
        run(&mut connection, path, kind, changes, REQUESTS).await?;
        let micros = (cpu_seconds(pid)? - before) * 1e6 / f64::from(REQUESTS);
        let title = format!("apply, {fields} owned fields: {name}, CPU each");
        figures.push(figure(&title, "us", "200", micros, false));
    }
    Ok(figures)
}

async fn run(
    connection: &mut Connection,
    path: &str,
    kind: &str,
    changes: bool,
    count: u32,
) -> Result<()> {
    for number in 0..count {
        let number = if changes { number + 1 } else { 0 };
        connection
            .call(Method::PATCH, path, configuration(kind, number))
            .await?;
    }
    Ok(())
}

/// Ten containers with nine owned fields each, and ten more fields around them.
fn configuration(kind: &str, number: u32) -> Bytes {
    let image = format!("registry.example/app:{number}");
    let containers: Vec<Value> = (0..10)
        .map(|at| {
            json!({"name": format!("c{at}"), "image": image, "imagePullPolicy": "Always",
                "env": [{"name": "A", "value": "1"}], "ports": [{"containerPort": 80 + at, "protocol": "TCP"}]})
        })
        .collect();
    let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": containers, "restartPolicy": "Always"}});
    let metadata = json!({"name": "applied", "labels": {"app": "web", "tier": "front"}});
    let object = if kind == "Deployment" {
        json!({"apiVersion": "apps/v1", "kind": kind, "metadata": metadata,
            "spec": {"replicas": 0, "paused": true, "minReadySeconds": 5, "revisionHistoryLimit": 4,
                "selector": {"matchLabels": {"app": "web"}}, "template": template}})
    } else {
        json!({"apiVersion": "v1", "kind": kind, "metadata": metadata, "template": template})
    };
    object.to_string().into()
}

/// How many leaves the applier owns.
fn owned_fields(object: &Value) -> usize {
    let entries = object["metadata"]["managedFields"].as_array();
    let own = entries
        .into_iter()
        .flatten()
        .find(|entry| entry["operation"] == "Apply");
    own.map_or(0, |entry| leaves(&entry["fieldsV1"]))
}

fn leaves(set: &Value) -> usize {
    let Some(map) = set.as_object().filter(|map| !map.is_empty()) else {
        return 1;
    };
    map.iter()
        .filter(|(name, _)| *name != ".")
        .map(|(_, below)| leaves(below))
        .sum()
}

/// Reads a number that must be there.
pub(crate) fn number(value: &Value) -> Result<u64> {
    value
        .as_str()
        .and_then(|text| text.parse().ok())
        .context("not a number")
}
