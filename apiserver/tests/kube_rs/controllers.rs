//! A definition, typed objects of it, a controller over both with finalizers and owned objects; leader election.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cox_client::leader::{Config as Election, Ended, lead};
use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::controller::Action;
use kube::runtime::finalizer::{self, finalizer};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::{Controller, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::home::{Home, PATIENCE, soon};

/// What kube's derive makes, by hand: one macro crate less.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Widget {
    #[serde(rename = "apiVersion")]
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
    spec: WidgetSpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<WidgetStatus>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct WidgetSpec {
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    copies: Option<i64>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
struct WidgetStatus {
    observed_generation: i64,
}

impl Resource for Widget {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Widget".into()
    }
    fn group((): &()) -> Cow<'_, str> {
        "example.com".into()
    }
    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }
    fn plural((): &()) -> Cow<'_, str> {
        "widgets".into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

fn definition() -> CustomResourceDefinition {
    serde_json::from_value(json!({
        "metadata": {"name": "widgets.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget"},
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "required": ["text"], "properties": {
                        "text": {"type": "string", "maxLength": 20},
                        "copies": {"type": "integer", "default": 1, "minimum": 1}}},
                    "status": {"type": "object", "properties": {"observedGeneration": {"type": "integer"}}}}}}}]}
    }))
    .unwrap()
}

fn widget(name: &str, text: &str) -> serde_json::Value {
    json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": {"text": text}})
}

#[derive(Debug, thiserror::Error)]
enum ReconcileError {
    #[error(transparent)]
    Kube(#[from] kube::Error),
    #[error(transparent)]
    Finalizer(#[from] Box<finalizer::Error<kube::Error>>),
}

const FINALIZER: &str = "example.com/cleanup";

/// Keeps a ConfigMap beside each Widget and says so in its status.
async fn reconcile(widget: Arc<Widget>, client: Arc<Client>) -> Result<Action, ReconcileError> {
    let widgets: Api<Widget> = Api::default_namespaced(client.as_ref().clone());
    let maps: Api<ConfigMap> = Api::default_namespaced(client.as_ref().clone());
    let (to, of) = (&maps, &widgets);
    let outcome = finalizer(of, FINALIZER, widget, |event| async move {
        match event {
            finalizer::Event::Apply(widget) => {
                let owner = widget.controller_owner_ref(&()).unwrap();
                let wanted = json!({"apiVersion": "v1", "kind": "ConfigMap",
                    "metadata": {"name": widget.name_any(), "ownerReferences": [owner]}, "data": {"text": widget.spec.text}});
                let params = PatchParams::apply("widgets").force();
                to.patch(&widget.name_any(), &params, &Patch::Apply(wanted))
                    .await?;
                let status = json!({"apiVersion": "example.com/v1", "kind": "Widget",
                    "status": {"observedGeneration": widget.metadata.generation}});
                of.patch_status(&widget.name_any(), &params, &Patch::Apply(status))
                    .await?;
                Ok(Action::await_change())
            }
            finalizer::Event::Cleanup(widget) => {
                let gone = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "last"}, "data": {"gone": widget.name_any()}});
                to.patch(
                    "last",
                    &PatchParams::apply("widgets").force(),
                    &Patch::Apply(gone),
                )
                .await?;
                Ok(Action::await_change())
            }
        }
    });
    Ok(outcome.await.map_err(Box::new)?)
}

#[tokio::test]
async fn a_controller_works_on_a_kind_that_it_has_registered() {
    let home = Home::new();
    let running = home.serve().await;
    let client = running.client().await;
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let params = PatchParams::apply("installer");
    definitions
        .patch("widgets.example.com", &params, &Patch::Apply(definition()))
        .await
        .unwrap();
    let established = await_condition(
        definitions.clone(),
        "widgets.example.com",
        conditions::is_crd_established(),
    );
    tokio::time::timeout(PATIENCE, established)
        .await
        .unwrap()
        .unwrap();

    let widgets: Api<Widget> = Api::default_namespaced(client.clone());
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let controller = Controller::new(widgets.clone(), watcher::Config::default())
        .owns(maps.clone(), watcher::Config::default().streaming_lists())
        .graceful_shutdown_on(async move { stopped.cancelled().await })
        .run(
            reconcile,
            |_, _, _| Action::requeue(Duration::from_millis(100)),
            Arc::new(client.clone()),
        )
        .for_each(|_| std::future::ready(()));
    let controller = tokio::spawn(controller);

    let first: Widget = serde_json::from_value(widget("one", "hello")).unwrap();
    let made = widgets
        .create(&PostParams::default(), &first)
        .await
        .unwrap();
    assert_eq!(made.spec.copies, Some(1), "defaulted");
    let long: Widget =
        serde_json::from_value(widget("long", "much longer than twenty letters")).unwrap();
    let error = widgets
        .create(&PostParams::default(), &long)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, kube::Error::Api(status) if status.code == 422),
        "{error}"
    );
    let shows = async |text: &str| {
        maps.get_opt("one")
            .await
            .unwrap()
            .and_then(|map| map.data)
            .is_some_and(|data| data["text"] == text)
    };
    soon("the owned ConfigMap", async || shows("hello").await).await;
    soon("the status", async || {
        widgets.get_status("one").await.unwrap().status
            == Some(WidgetStatus {
                observed_generation: 1,
            })
    })
    .await;
    // What is owned comes back, and follows.
    maps.delete("one", &DeleteParams::default()).await.unwrap();
    soon("the ConfigMap again", async || shows("hello").await).await;
    widgets
        .patch(
            "one",
            &PatchParams::apply("user").force(),
            &Patch::Apply(widget("one", "bye")),
        )
        .await
        .unwrap();
    soon("the new text", async || shows("bye").await).await;
    soon("the new generation", async || {
        widgets.get_status("one").await.unwrap().status
            == Some(WidgetStatus {
                observed_generation: 2,
            })
    })
    .await;
    // Gone only after the finalizer has run.
    widgets
        .delete("one", &DeleteParams::default())
        .await
        .unwrap();
    soon("the end", async || {
        widgets.get_opt("one").await.unwrap().is_none()
    })
    .await;
    assert_eq!(maps.get("last").await.unwrap().data.unwrap()["gone"], "one");
    stop.cancel();
    tokio::time::timeout(PATIENCE, controller)
        .await
        .unwrap()
        .unwrap();
    running.stop().await;
}

/// Told to end: either the election sees it first or the work does.
fn gave_up(ended: Ended) -> bool {
    matches!(ended, Ended::Cancelled | Ended::Finished)
}

#[tokio::test]
async fn one_of_two_leads_until_it_gives_up() {
    let home = Home::new();
    let running = home.serve().await;
    let client = running.client().await;
    let candidate = |identity: &str| {
        let election = Election {
            lease_duration: Duration::from_secs(3),
            renew_deadline: Duration::from_secs(2),
            retry_period: Duration::from_millis(100),
            ..Election::new("default", "lock", identity)
        };
        let (leads, cancel) = (Arc::new(AtomicBool::new(false)), CancellationToken::new());
        let (client, cancelled, leading) = (client.clone(), cancel.clone(), Arc::clone(&leads));
        let task = tokio::spawn(async move {
            let clock = Arc::new(cox_client::SystemClock);
            lead(client, election, clock, cancelled, |end| async move {
                leading.store(true, Ordering::SeqCst);
                end.cancelled().await;
                leading.store(false, Ordering::SeqCst);
            })
            .await
        });
        (leads, cancel, task)
    };
    let (first_leads, first_cancel, first) = candidate("first");
    soon("the first to lead", async || {
        first_leads.load(Ordering::SeqCst)
    })
    .await;
    let (second_leads, second_cancel, second) = candidate("second");
    let leases: Api<Lease> = Api::default_namespaced(client.clone());
    let holder = async || leases.get("lock").await.unwrap().spec.unwrap();
    let renewed = holder().await.renew_time;
    soon("a renewal", async || holder().await.renew_time > renewed).await;
    assert!(!second_leads.load(Ordering::SeqCst), "one leads");
    first_cancel.cancel();
    assert!(gave_up(
        tokio::time::timeout(PATIENCE, first)
            .await
            .unwrap()
            .unwrap()
    ));
    soon("the second to lead", async || {
        second_leads.load(Ordering::SeqCst)
    })
    .await;
    let spec = holder().await;
    assert_eq!(spec.holder_identity.as_deref(), Some("second"));
    assert!(spec.lease_transitions >= Some(1));
    second_cancel.cancel();
    assert!(gave_up(
        tokio::time::timeout(PATIENCE, second)
            .await
            .unwrap()
            .unwrap()
    ));
    running.stop().await;
}
