//! kube-rs, unmodified, over HTTPS against a server of its own: what programs written with it do all day.
#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    clippy::tests_outside_test_module,
    reason = "an integration test: stories that fail by panicking"
)]

#[path = "kube_rs/controllers.rs"]
mod controllers;
#[path = "kube_rs/home.rs"]
mod home;
#[path = "kube_rs/informers.rs"]
mod informers;

use home::{Home, soon};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams,
};
use kube::core::PartialObjectMeta;
use kube::core::params::ValidationDirective;
use kube::discovery::{Discovery, Scope, pinned_kind, verbs};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

#[tokio::test]
async fn a_dynamic_client_finds_every_kind_and_works_with_it() {
    let home = Home::new();
    let running = home.serve().await;
    let client = running.client().await;
    let discovery = Discovery::new(client.clone()).run().await.unwrap();
    let mut kinds = 0;
    for group in discovery.groups() {
        for (resource, capabilities) in group.recommended_resources() {
            kinds += 1;
            if !capabilities.supports_operation(verbs::LIST) {
                continue;
            }
            let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
            let list = api.list(&ListParams::default().limit(2)).await;
            assert!(list.is_ok(), "{}: {:?}", resource.kind, list.err());
        }
    }
    assert!(kinds > 50, "{kinds} kinds");

    let gvk = kube::core::GroupVersionKind::gvk("apps", "v1", "Deployment");
    let (resource, capabilities) = pinned_kind(&client, &gvk).await.unwrap();
    assert_eq!(
        (resource.plural.as_str(), &capabilities.scope),
        ("deployments", &Scope::Namespaced)
    );
    let api: Api<DynamicObject> = Api::namespaced_with(client, "default", &resource);
    let mut deployment = DynamicObject::new("web", &resource).data(json!({"spec": {
        "replicas": 2, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}}));
    deployment
        .labels_mut()
        .insert("tier".into(), "front".into());
    let made = api
        .create(&PostParams::default(), &deployment)
        .await
        .unwrap();
    assert_eq!(
        made.data["spec"]["revisionHistoryLimit"], 10,
        "defaults are there"
    );
    let patch =
        json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "j"}]}}}});
    let patched = api
        .patch("web", &PatchParams::default(), &Patch::Strategic(patch))
        .await
        .unwrap();
    assert_eq!(
        patched.data["spec"]["template"]["spec"]["containers"][0]["image"],
        "j"
    );
    let patched = api
        .patch(
            "web",
            &PatchParams::default(),
            &Patch::Merge(json!({"spec": {"replicas": 3}})),
        )
        .await
        .unwrap();
    assert_eq!(patched.metadata.generation, Some(3));
    let scale = api.get_scale("web").await.unwrap();
    assert_eq!(scale.spec.unwrap().replicas, Some(3));
    let selected = api
        .list(&ListParams::default().labels("tier in (front)"))
        .await
        .unwrap();
    assert_eq!(selected.items.len(), 1);
    let mut stale = made;
    stale.data["spec"]["replicas"] = json!(9);
    let error = api
        .replace("web", &PostParams::default(), &stale)
        .await
        .unwrap_err();
    assert!(
        matches!(error, kube::Error::Api(ref status) if status.reason == "Conflict"),
        "{error}"
    );
    let strict = PatchParams {
        field_validation: Some(ValidationDirective::Strict),
        ..PatchParams::default()
    };
    let error = api
        .patch("web", &strict, &Patch::Merge(json!({"spec": {"nope": 1}})))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("nope"), "{error}");
    api.delete("web", &DeleteParams::background())
        .await
        .unwrap();
    assert!(api.get_opt("web").await.unwrap().is_none());
    running.stop().await;
}

#[tokio::test]
async fn appliers_meet() {
    let home = Home::new();
    let running = home.serve().await;
    let api: Api<ConfigMap> = Api::default_namespaced(running.client().await);
    let with = |data: Value| {
        Patch::Apply(
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shared"}, "data": data}),
        )
    };
    let as_manager = PatchParams::apply;
    let made = api
        .patch(
            "shared",
            &as_manager("alice"),
            &with(json!({"a": "1", "b": "1"})),
        )
        .await
        .unwrap();
    assert_eq!(made.managed_fields().len(), 1);
    let again = api
        .patch(
            "shared",
            &as_manager("alice"),
            &with(json!({"a": "1", "b": "1"})),
        )
        .await
        .unwrap();
    assert_eq!(
        again.resource_version(),
        made.resource_version(),
        "twice is once"
    );
    let error = api
        .patch("shared", &as_manager("bob"), &with(json!({"b": "2"})))
        .await
        .unwrap_err();
    let kube::Error::Api(status) = error else {
        panic!("{error}")
    };
    assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
    let cause = &status.details.as_ref().unwrap().causes[0];
    assert_eq!(
        (cause.reason.as_str(), cause.field.as_str()),
        ("FieldManagerConflict", ".data.b")
    );
    assert_eq!(cause.message, "conflict with \"alice\"");
    let forced = api
        .patch(
            "shared",
            &as_manager("bob").force(),
            &with(json!({"b": "2"})),
        )
        .await
        .unwrap();
    assert_eq!(forced.data.as_ref().unwrap()["b"], "2");
    // Alice gives up what she no longer applies; what Bob has stays.
    let left = api
        .patch("shared", &as_manager("alice"), &with(json!({})))
        .await
        .unwrap();
    assert_eq!(
        left.data.unwrap().into_iter().collect::<Vec<_>>(),
        [("b".to_owned(), "2".to_owned())]
    );
    running.stop().await;
}

#[tokio::test]
async fn metadata_and_tables() {
    let home = Home::new();
    let running = home.serve().await;
    let client = running.client().await;
    let full: Api<ConfigMap> = Api::default_namespaced(client.clone());
    for name in ["a", "b"] {
        let map: ConfigMap = serde_json::from_value(
            json!({"metadata": {"name": name, "labels": {"of": "test"}}, "data": {"k": "v"}}),
        )
        .unwrap();
        full.create(&PostParams::default(), &map).await.unwrap();
    }
    let metadata: Api<PartialObjectMeta<ConfigMap>> = Api::default_namespaced(client.clone());
    let list = metadata
        .list(&ListParams::default().labels("of=test"))
        .await
        .unwrap();
    let names: Vec<String> = list.items.iter().map(ResourceExt::name_any).collect();
    assert_eq!(names, ["a", "b"]);
    let one = metadata.get("a").await.unwrap();
    assert_eq!(
        one.types.as_ref().map(|types| types.kind.as_str()),
        Some("PartialObjectMetadata")
    );

    let request =
        http::Request::get("/api/v1/namespaces/default/configmaps?labelSelector=of%3Dtest")
            .header(
                "accept",
                "application/json;as=Table;g=meta.k8s.io;v=v1,application/json",
            )
            .body(Vec::new())
            .unwrap();
    let table: Value = client.request(request).await.unwrap();
    assert_eq!(table["kind"], "Table");
    assert_eq!(table["rows"][0]["cells"][0], "a");
    assert_eq!(table["columnDefinitions"][1]["name"], "Data");

    let resource = ApiResource::erase::<ConfigMap>(&());
    let dynamic: Api<DynamicObject> = Api::namespaced_with(client, "default", &resource);
    dynamic
        .delete_collection(
            &DeleteParams::default(),
            &ListParams::default().labels("of=test"),
        )
        .await
        .unwrap();
    soon("both to be gone", async || {
        metadata.get_opt("b").await.unwrap().is_none()
    })
    .await;
    running.stop().await;
}
