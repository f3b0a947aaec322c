//! What kubectl reads in the documents: explain, patch strategies, support for server-side validation.

use super::*;

fn get(path: &str, headers: &[(&str, &str)]) -> Option<Response<Bytes>> {
    let headers: HeaderMap = headers
        .iter()
        .map(|(name, value)| {
            (
                http::HeaderName::try_from(*name).expect("a name"),
                HeaderValue::from_str(value).expect("a value"),
            )
        })
        .collect();
    respond(path, &headers)
}

fn json_of(path: &str) -> Value {
    let response = get(path, &[]).expect("a document");
    assert_eq!(response.status(), StatusCode::OK, "{path}");
    serde_json::from_slice(response.body()).expect("JSON")
}

/// All references of a document.
fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get("$ref") {
                found.push(reference.clone());
            }
            map.values().for_each(|inner| references(inner, found));
        }
        Value::Array(list) => list.iter().for_each(|inner| references(inner, found)),
        _ => {}
    }
}

#[test]
fn the_index_leads_to_every_group_and_version() {
    let index = json_of("/openapi/v3");
    let paths = index["paths"].as_object().expect("paths");
    for path in [
        "api/v1",
        "apis/apps/v1",
        "apis/rbac.authorization.k8s.io/v1",
    ] {
        let url = paths[path]["serverRelativeURL"].as_str().expect("a URL");
        let (document, hash) = url.split_once("?hash=").expect("a hash");
        assert_eq!(
            (document, hash.len()),
            (format!("/openapi/v3/{path}").as_str(), 64)
        );
    }
    assert_eq!(json_of("/openapi/v3/"), index);
    for nowhere in [
        "/openapi/v3/api/v2",
        "/openapi/v3/apis/apps",
        "/openapi/v4",
        "/openapi/v3/apis/none/v1",
    ] {
        assert!(get(nowhere, &[]).is_none(), "{nowhere}");
    }
}

#[test]
fn every_document_holds_what_it_refers_to() {
    let index = json_of("/openapi/v3");
    for path in index["paths"].as_object().expect("paths").keys() {
        let document = json_of(&format!("/openapi/v3/{path}"));
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(!found.is_empty(), "{path}");
        for reference in found {
            let pointer = reference.strip_prefix('#').expect("a local reference");
            assert!(document.pointer(pointer).is_some(), "{path}: {reference}");
        }
    }
}

#[test]
fn a_pod_is_described_with_its_merge_keys() {
    let document = json_of("/openapi/v3/api/v1");
    let schemas = &document["components"]["schemas"];
    let pod = &schemas["io.k8s.api.core.v1.Pod"];
    let kind = json!([{"group": "", "version": "v1", "kind": "Pod"}]);
    assert_eq!(pod["x-kubernetes-group-version-kind"], kind);
    assert!(pod["required"].is_null());
    assert_eq!(
        pod["properties"]["spec"]["allOf"][0]["$ref"],
        "#/components/schemas/io.k8s.api.core.v1.PodSpec"
    );
    let spec = &schemas["io.k8s.api.core.v1.PodSpec"];
    assert_eq!(spec["required"], json!(["containers"]));
    let containers = &spec["properties"]["containers"];
    assert!(
        containers["description"]
            .as_str()
            .is_some_and(|text| text.contains("containers"))
    );
    for (key, expected) in [
        ("x-kubernetes-list-type", json!("map")),
        ("x-kubernetes-list-map-keys", json!(["name"])),
        ("x-kubernetes-patch-strategy", json!("merge")),
        ("x-kubernetes-patch-merge-key", json!("name")),
    ] {
        assert_eq!(containers[key], expected, "{key}");
    }
    let volumes = &spec["properties"]["volumes"];
    assert_eq!(volumes["x-kubernetes-patch-strategy"], "merge,retainKeys");
    assert_eq!(
        spec["properties"]["nodeSelector"]["x-kubernetes-map-type"],
        "atomic"
    );
    assert_eq!(
        schemas["io.k8s.api.core.v1.LocalObjectReference"]["x-kubernetes-map-type"],
        "atomic"
    );
}

#[test]
fn kubectl_finds_kinds_and_server_side_validation_by_the_paths() {
    let document = json_of("/openapi/v3/apis/apps/v1");
    let item = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"];
    let kind = json!({"group": "apps", "version": "v1", "kind": "Deployment"});
    for (method, action) in [
        ("get", "get"),
        ("put", "put"),
        ("patch", "patch"),
        ("delete", "delete"),
    ] {
        assert_eq!(item[method]["x-kubernetes-action"], action);
        assert_eq!(item[method]["x-kubernetes-group-version-kind"], kind);
    }
    let parameters = item["patch"]["parameters"].as_array().expect("parameters");
    for name in ["fieldValidation", "dryRun", "force"] {
        assert!(parameters.iter().any(|one| one["name"] == name), "{name}");
    }
    assert!(
        item["patch"]["requestBody"]["content"]["application/strategic-merge-patch+json"]
            .is_object()
    );
    let list = &document["paths"]["/apis/apps/v1/deployments"]["get"];
    assert_eq!(list["operationId"], "listAppsV1DeploymentForAllNamespaces");
    let scale =
        &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"]["get"];
    assert_eq!(
        scale["x-kubernetes-group-version-kind"]["group"],
        "autoscaling"
    );
}

#[test]
fn compression_and_revalidation() {
    let path = "/openapi/v3/apis/node.k8s.io/v1";
    let plain = get(path, &[]).expect("a document");
    let small = get(path, &[("accept-encoding", "br, gzip")]).expect("a document");
    assert_eq!(small.headers()[CONTENT_ENCODING], "gzip");
    let (small_len, plain_len) = (small.body().len(), plain.body().len());
    assert!(small_len * 2 < plain_len, "{small_len} of {plain_len}");
    let mut text = Vec::new();
    GzDecoder::new(&**small.body())
        .read_to_end(&mut text)
        .expect("gzip");
    assert_eq!(text, **plain.body());
    let etag = plain.headers()[ETAG].to_str().expect("text");
    let same = get(path, &[("if-none-match", etag)]).expect("an answer");
    assert_eq!(
        (same.status(), same.body().len()),
        (StatusCode::NOT_MODIFIED, 0)
    );
}

#[test]
fn version_2_is_one_document_in_json_or_protobuf() {
    let protobuf = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    let taken = get("/openapi/v2", &[("accept", protobuf)]).expect("an answer");
    assert_eq!(
        taken.headers()[CONTENT_TYPE],
        "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
    );
    assert!(taken.body().starts_with(b"\x0a\x032.0\x12"));
    let refused = get("/openapi/v2", &[("accept", "text/html")]).expect("an answer");
    assert_eq!(refused.status(), StatusCode::NOT_ACCEPTABLE);
    let both = format!("application/json, {protobuf}");
    let taken = get("/openapi/v2", &[("accept", &both)]).expect("an answer");
    let document: Value = serde_json::from_slice(taken.body()).expect("JSON");
    assert_eq!(document["swagger"], "2.0");
    let mut found = Vec::new();
    references(&document, &mut found);
    for reference in found {
        let pointer = reference.strip_prefix('#').expect("a local reference");
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
    assert!(document["definitions"]["io.k8s.api.apps.v1.Deployment"].is_object());
    assert!(
        document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"]["consumes"]
            .is_array()
    );
}
