//! `pods/binding`: gives a Pod its node, once.

use cox_api::status::ApiStatus;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::admission::Operation;
use crate::body::Body;
use crate::call::Call;
use crate::input::{self, Expected};
use crate::refuse;
use crate::registry::{Entry, EntryRef, decode_stored, prepare};
use crate::render;
use crate::request::RequestInfo;
use crate::verbs::write::{self, Outcome, Ownership, RACE_ATTEMPTS, WriteError};

/// POST of a Binding, to `pods/NAME/binding` or to `bindings`.
pub(crate) async fn create(call: &mut Call<'_>) -> Result<Response<Body>, ApiStatus> {
    let dry_run = call.dry_run("CreateOptions")?;
    let schema = call.api.registry.schema();
    let type_id = schema
        .kind_type("", "v1", "Binding")
        .ok_or_else(|| refuse::internal("the schema has no Binding"))?;
    let expected = Expected {
        kind: "Binding",
        api_version: "v1",
        type_id,
    };
    let mut binding = input::decode(call, expected, "CreateOptions")?;
    write::check_names(call, &mut binding)?;
    let pods = call
        .api
        .registry
        .catalog()
        .stored("", "pods")
        .ok_or_else(|| refuse::internal("the schema has no Pods"))?;
    let name = binding["metadata"]["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let info = RequestInfo {
        resource: "pods",
        subresource: "binding",
        name: &name,
        ..*call.info
    };
    let pods_ref = EntryRef::Builtin(pods);
    let mut on_pod = Call {
        api: call.api,
        entry: &pods_ref,
        sub: pods.subresource("binding"),
        info: &info,
        query: call.query,
        headers: call.headers,
        method: call.method,
        path: call.path,
        upgrade: None,
        user: call.user,
        form: call.form,
        encoding: call.encoding,
        body: bytes::Bytes::new(),
        now: call.now,
        warnings: Vec::new(),
        notes: call.notes.clone(),
    };
    let object = Some(binding.clone());
    write::admit_other(&on_pod, Operation::Create, object, None, dry_run).await?;
    bind(&mut on_pod, pods, &name, &binding, dry_run).await?;
    let success = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(render::json_response(
        StatusCode::CREATED,
        render::to_bytes(&success),
    ))
}

async fn bind(
    call: &mut Call<'_>,
    pods: &'static Entry,
    name: &str,
    binding: &Value,
    dry_run: bool,
) -> Result<(), ApiStatus> {
    let node = binding["target"]["name"].as_str().unwrap_or_default();
    if node.is_empty() {
        return Err(refuse::option_required("Binding", "target.name", ""));
    }
    if binding["target"]["kind"]
        .as_str()
        .is_some_and(|kind| !kind.is_empty() && kind != "Node")
    {
        let kind = binding["target"]["kind"].as_str().unwrap_or_default();
        return Err(refuse::option_unsupported(
            "Binding",
            "target.kind",
            kind,
            &["Node", "<empty>"],
        ));
    }
    let registry = call.api.registry.clone();
    let path = pods.path(call.namespace(), name);
    for _ in 0..RACE_ATTEMPTS {
        let old = registry
            .store()
            .snapshot()
            .get(&pods.prefix, &path)
            .ok_or_else(|| refuse::not_found(pods, name))?;
        let old_value = decode_stored(&old.json)?;
        let new = bound(pods, &old_value, name, node, binding, call.now)?;
        match write::change(call, &old, &old_value, new, dry_run, Ownership::Record).await {
            Ok(Outcome::Stored(_) | Outcome::Dry(_)) => return Ok(()),
            Err(WriteError::Refused(status)) => return Err(status),
            Err(WriteError::Raced) => {}
        }
    }
    Err(refuse::modified(pods, name))
}

/// The Pod with its node; refuses Pods that are going or have one.
fn bound(
    pods: &Entry,
    old: &Value,
    name: &str,
    node: &str,
    binding: &Value,
    now: jiff::Timestamp,
) -> Result<Value, ApiStatus> {
    let uid = binding["metadata"]["uid"].as_str().unwrap_or_default();
    let found = old["metadata"]["uid"].as_str().unwrap_or_default();
    if !uid.is_empty() && uid != found {
        let why =
            format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {found}");
        return Err(refuse::conflict(pods, name, &why));
    }
    if old["metadata"]["deletionTimestamp"].is_string() {
        return Err(refuse::conflict(
            pods,
            name,
            &format!("pod {name} is being deleted, cannot be assigned to a host"),
        ));
    }
    if let Some(present) = old["spec"]["nodeName"]
        .as_str()
        .filter(|present| !present.is_empty())
    {
        return Err(refuse::conflict(
            pods,
            name,
            &format!("pod {name} is already assigned to node {present:?}"),
        ));
    }
    if old["spec"]["schedulingGates"]
        .as_array()
        .is_some_and(|gates| !gates.is_empty())
    {
        return Err(refuse::conflict(
            pods,
            name,
            &format!("pod {name} has non-empty .spec.schedulingGates"),
        ));
    }
    let mut new = old.clone();
    new["spec"]["nodeName"] = node.into();
    if let Some(annotations) = binding["metadata"]["annotations"].as_object() {
        let metadata = prepare::metadata(&mut new);
        let merged = metadata.entry("annotations").or_insert_with(|| json!({}));
        for (key, value) in annotations {
            merged[key] = value.clone();
        }
    }
    scheduled(&mut new, now);
    Ok(new)
}

/// Sets the condition that tells the Pod has its node.
fn scheduled(pod: &mut Value, now: jiff::Timestamp) {
    let mut condition = json!({"type": "PodScheduled", "status": "True", "lastTransitionTime": prepare::time_text(now)});
    if let Some(generation) = pod["metadata"]["generation"].as_i64() {
        condition["observedGeneration"] = generation.into();
    }
    let status = &mut pod["status"];
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let Some(conditions) = status["conditions"].as_array_mut() else {
        return;
    };
    match conditions
        .iter_mut()
        .find(|one| one["type"] == "PodScheduled")
    {
        Some(present) if present["status"] == "True" => {}
        Some(present) => *present = condition,
        None => conditions.push(condition),
    }
}
