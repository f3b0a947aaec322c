//! create and update, and the way that every write goes: admission, strategy, validation, managed fields, one encoding, commit.

use std::sync::Arc;

use cox_api::managed::{self, Writer};
use cox_api::status::ApiStatus;
use cox_api::{strategy, validation, warnings};
use cox_store::{CommitError, Object, Precondition};
use http::{Response, StatusCode};
use serde_json::{Map, Value};

use crate::admission::{Operation, Options, Request};
use crate::body::Body;
use crate::call::Call;
use crate::input::{self, Expected};
use crate::refuse;
use crate::registry::prepare;
use crate::render;
use crate::services::{self, Held};

/// Attempts at a generated name before the client is told to try again.
const NAME_ATTEMPTS: usize = 8;
/// Attempts at a write without a precondition of its own while others write the same object.
pub(crate) const RACE_ATTEMPTS: usize = 64;

/// What a write came to.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Committed, or found to change nothing.
    Stored(Arc<Object>),
    /// What would have been stored (in the stored version).
    Dry(Value),
}

/// Why a write did not happen.
#[derive(Debug)]
pub(crate) enum WriteError {
    /// Tell the client.
    Refused(ApiStatus),
    /// Somebody else wrote between read and commit; another attempt may succeed.
    Raced,
}

impl From<ApiStatus> for WriteError {
    fn from(status: ApiStatus) -> Self {
        WriteError::Refused(status)
    }
}

/// Whose fields a write makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ownership {
    /// What changed belongs to the writer.
    Record,
    /// An apply has written the owners already.
    Settled,
}

/// POST to a collection.
pub(crate) async fn create(call: &mut Call<'_>) -> Result<Response<Body>, ApiStatus> {
    let dry_run = call.dry_run("CreateOptions")?;
    let value = input::decode(call, Expected::object(call), "CreateOptions")?;
    let outcome = create_value(call, value, dry_run, Ownership::Record).await?;
    respond(call, StatusCode::CREATED, outcome).await
}

/// PUT of an object or of one of its parts.
pub(crate) async fn update(call: &mut Call<'_>) -> Result<Response<Body>, ApiStatus> {
    let dry_run = call.dry_run("UpdateOptions")?;
    let value = input::decode(call, Expected::object(call), "UpdateOptions")?;
    let (outcome, status) = update_value(call, value, dry_run).await?;
    respond(call, status, outcome).await
}

async fn update_value(
    call: &mut Call<'_>,
    mut value: Value,
    dry_run: bool,
) -> Result<(Outcome, StatusCode), ApiStatus> {
    check_names(call, &mut value)?;
    let entry = call.entry;
    let wanted = value["metadata"]["resourceVersion"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    for _ in 0..RACE_ATTEMPTS {
        let snapshot = call.api.registry.store().snapshot();
        let path = entry.path(call.namespace(), call.info.name);
        let Some(old) = snapshot.get(&entry.prefix, &path) else {
            if entry.create_on_update && call.sub.is_none() && wanted.is_empty() {
                let outcome = create_value(call, value, dry_run, Ownership::Record).await?;
                return Ok((outcome, StatusCode::CREATED));
            }
            return Err(refuse::not_found(entry, call.info.name));
        };
        drop(snapshot);
        if wanted.is_empty() {
            if !entry.unconditional_update {
                return Err(refuse::must_be_specified_for_update(entry, call.info.name));
            }
        } else if wanted != old.revision.0.to_string() {
            return Err(refuse::modified(entry, call.info.name));
        }
        let new = entry.to_storage(value.clone());
        let old_value = call.api.registry.current(entry, &old).await?;
        match change(call, &old, &old_value, new, dry_run, Ownership::Record).await {
            Ok(outcome) => return Ok((outcome, StatusCode::OK)),
            Err(WriteError::Refused(status)) => return Err(status),
            Err(WriteError::Raced) if !wanted.is_empty() => {
                return Err(refuse::modified(entry, call.info.name));
            }
            Err(WriteError::Raced) => {}
        }
    }
    Err(refuse::modified(entry, call.info.name))
}

/// Name and namespace of the body must be those of the URL; absent ones are filled in.
pub(crate) fn check_names(call: &Call<'_>, value: &mut Value) -> Result<(), ApiStatus> {
    let url_name = call.info.name;
    let namespace = call.namespace();
    let metadata = prepare::metadata(value);
    let name = metadata
        .get("name")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if name.is_empty() && !url_name.is_empty() {
        metadata.insert("name".to_owned(), Value::from(url_name));
    } else if !url_name.is_empty() && name != url_name {
        return Err(refuse::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({url_name})"
        )));
    }
    check_namespace(metadata, namespace)
}

fn check_namespace(metadata: &mut Map<String, Value>, namespace: &str) -> Result<(), ApiStatus> {
    let given = metadata
        .get("namespace")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if given == namespace {
        return Ok(());
    }
    if namespace.is_empty() {
        // An object of the whole cluster has none; that it names one does no harm, as upstream.
        metadata.remove("namespace");
        return Ok(());
    }
    if !given.is_empty() {
        return Err(refuse::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request"
                .to_owned(),
        ));
    }
    metadata.insert("namespace".to_owned(), Value::from(namespace));
    Ok(())
}

/// Creates an object that came in the version of the URL.
pub(crate) async fn create_value(
    call: &mut Call<'_>,
    mut value: Value,
    dry_run: bool,
    ownership: Ownership,
) -> Result<Outcome, ApiStatus> {
    let entry = call.entry;
    check_names(call, &mut value)?;
    let metadata = prepare::metadata(&mut value);
    if metadata
        .get("resourceVersion")
        .and_then(Value::as_str)
        .is_some_and(|version| !version.is_empty())
    {
        return Err(refuse::bad_request(
            "resourceVersion should not be set on objects to be created".to_owned(),
        ));
    }
    let base = match (
        metadata.get("name").and_then(Value::as_str),
        metadata.get("generateName").and_then(Value::as_str),
    ) {
        (Some(name), _) if !name.is_empty() => None,
        (_, Some(base)) if !base.is_empty() => Some(base.to_owned()),
        // Validation says `name or generateName is required`.
        _ => None,
    };
    let value = entry.to_storage(value);
    let Some(base) = base else {
        return create_named(call, value, dry_run, ownership)
            .await
            .map_err(|(status, _)| status);
    };
    for attempt in 1.. {
        let mut named = value.clone();
        prepare::metadata(&mut named).insert(
            "name".to_owned(),
            Value::from(prepare::generated_name(&base)),
        );
        match create_named(call, named, dry_run, ownership).await {
            Err((_, true)) if attempt < NAME_ATTEMPTS => {}
            Err((_, true)) => return Err(refuse::generated_name_taken(entry, &base)),
            Err((status, false)) => return Err(status),
            Ok(outcome) => return Ok(outcome),
        }
    }
    Err(refuse::generated_name_taken(entry, &base))
}

/// The error says beside the status whether the name was taken.
async fn create_named(
    call: &mut Call<'_>,
    value: Value,
    dry_run: bool,
    ownership: Ownership,
) -> Result<Outcome, (ApiStatus, bool)> {
    let mut held = Held::default();
    let created = create_holding(call, value, dry_run, ownership, &mut held).await;
    if created.is_err() {
        services::release(&call.api.registry, &held).await;
    }
    created
}

/// `held` is what has to be given back on failure.
async fn create_holding(
    call: &mut Call<'_>,
    value: Value,
    dry_run: bool,
    ownership: Ownership,
    held: &mut Held,
) -> Result<Outcome, (ApiStatus, bool)> {
    let entry = call.entry;
    let refused = |status: ApiStatus| (status, false);
    let value = prepare_new(call, value, dry_run, ownership, held)
        .await
        .map_err(refused)?;
    let (namespace, name) = prepare::names(entry, &value);
    let registry = &call.api.registry;
    let stored = registry.stored_form(entry, &value).await.map_err(refused)?;
    if dry_run {
        let taken = registry
            .store()
            .snapshot()
            .get(&entry.prefix, &entry.path(&namespace, &name))
            .is_some();
        return if taken {
            Err((refuse::already_exists(entry, &name), true))
        } else {
            Ok(Outcome::Dry(value))
        };
    }
    match registry
        .commit_put(entry, &namespace, &name, &stored, Precondition::Absent)
        .await
    {
        Ok(object) => Ok(Outcome::Stored(object)),
        Err(CommitError::Exists(_)) => Err((refuse::already_exists(entry, &name), true)),
        Err(error) => Err(refused(refuse::commit(entry, &name, error))),
    }
}

async fn prepare_new(
    call: &mut Call<'_>,
    mut value: Value,
    dry_run: bool,
    ownership: Ownership,
    held: &mut Held,
) -> Result<Value, ApiStatus> {
    let entry = call.entry;
    entry.apply_defaults(&mut value);
    value = admit(call, Operation::Create, value, None, dry_run, Phase::Mutate).await?;
    prepare::stamp_new(&mut value, call.now);
    strategy::prepare_create(&entry.storage, &mut value);
    if entry.storage.kind == "CertificateSigningRequest" {
        name_requester(call, &mut value);
    }
    refuse::invalid_if(entry, &value, entry.validate_create(&value))?;
    if services::is_service(entry) {
        let (namespace, name) = prepare::names(entry, &value);
        // A name that is taken is said first: its own address would otherwise be in the way.
        let registry = &call.api.registry;
        if registry
            .store()
            .snapshot()
            .get(&entry.prefix, &entry.path(&namespace, &name))
            .is_none()
        {
            *held = services::reserve(registry, entry, &mut value, None, dry_run).await?;
        }
    }
    warn(call, &value, None);
    value = admit(
        call,
        Operation::Create,
        value,
        None,
        dry_run,
        Phase::Validate,
    )
    .await?;
    if ownership == Ownership::Record {
        record(call, None, &mut value);
    }
    Ok(value)
}

/// Tells the client what the object holds in vain.
pub(crate) fn warn(call: &Call<'_>, value: &Value, old: Option<&Value>) {
    if call.entry.custom.is_some() || call.sub.is_some() {
        return;
    }
    for warning in warnings::of_object(&call.entry.storage, value, old) {
        call.notes.warn(warning);
    }
}

/// A request for a certificate says who made it, and nobody can say so for another.
fn name_requester(call: &Call<'_>, request: &mut Value) {
    let Some(spec) = request.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    for field in ["username", "uid", "groups", "extra"] {
        spec.remove(field);
    }
    spec.insert("username".to_owned(), Value::from(call.user.name.as_str()));
    if !call.user.uid.is_empty() {
        spec.insert("uid".to_owned(), Value::from(call.user.uid.as_str()));
    }
    let groups: Vec<Value> = call
        .user
        .groups
        .iter()
        .map(|group| Value::from(group.as_str()))
        .collect();
    if !groups.is_empty() {
        spec.insert("groups".to_owned(), Value::from(groups));
    }
    let extra: Map<String, Value> = call
        .user
        .extra
        .iter()
        .map(|(key, values)| {
            (
                key.clone(),
                values
                    .iter()
                    .map(|value| Value::from(value.as_str()))
                    .collect(),
            )
        })
        .collect();
    if !extra.is_empty() {
        spec.insert("extra".to_owned(), Value::Object(extra));
    }
}

/// Writes `new` (in the stored version) over `old`.
pub(crate) async fn change(
    call: &mut Call<'_>,
    old: &Arc<Object>,
    old_value: &Value,
    mut new: Value,
    dry_run: bool,
    ownership: Ownership,
) -> Result<Outcome, WriteError> {
    let entry = call.entry;
    let uid = new["metadata"]["uid"].as_str().unwrap_or_default();
    let old_uid = old_value["metadata"]["uid"].as_str().unwrap_or_default();
    if !uid.is_empty() && uid != old_uid {
        let why = format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {old_uid}"
        );
        return Err(refuse::conflict(entry, call.info.name, &why).into());
    }
    prepare::carry_over(&mut new, old_value);
    entry.apply_defaults(&mut new);
    new = admit(
        call,
        Operation::Update,
        new,
        Some(old_value),
        dry_run,
        Phase::Mutate,
    )
    .await?;
    let mut new = part::prepare(call, new, old_value)?;
    let mut held = Held::default();
    let is_service = services::is_service(entry) && call.sub.is_none();
    if is_service {
        let registry = &call.api.registry;
        held = services::reserve(registry, entry, &mut new, Some(old_value), dry_run).await?;
    }
    let changed = admit_and_commit(call, old, old_value, new, dry_run, ownership).await;
    let registry = &call.api.registry;
    match &changed {
        Err(_) => services::release(registry, &held).await,
        Ok(Outcome::Stored(object)) if is_service => {
            if let Ok(new) = registry.current(entry, object).await {
                services::settle(registry, old_value, Some(&new)).await;
            }
        }
        Ok(_) => {}
    }
    changed
}

/// The second half of [`change`]: what is left when the object is as it will be.
async fn admit_and_commit(
    call: &mut Call<'_>,
    old: &Arc<Object>,
    old_value: &Value,
    new: Value,
    dry_run: bool,
    ownership: Ownership,
) -> Result<Outcome, WriteError> {
    warn(call, &new, Some(old_value));
    let mut new = admit(
        call,
        Operation::Update,
        new,
        Some(old_value),
        dry_run,
        Phase::Validate,
    )
    .await?;
    if ownership == Ownership::Record {
        record(call, Some(old_value), &mut new);
    }
    commit_change(call, old, old_value, new, dry_run).await
}

async fn commit_change(
    call: &Call<'_>,
    old: &Arc<Object>,
    old_value: &Value,
    new: Value,
    dry_run: bool,
) -> Result<Outcome, WriteError> {
    let entry = call.entry;
    let registry = &call.api.registry;
    let goes = ready_to_go(&new);
    let sealed_anew = registry.is_sealed_anew(old);
    if !goes && !sealed_anew && managed::same_but_for_times(&new, old_value) {
        return Ok(Outcome::Stored(Arc::clone(old)));
    }
    if dry_run {
        return Ok(Outcome::Dry(new));
    }
    let (namespace, name) = prepare::names(entry, &new);
    let at = Precondition::Revision(old.revision);
    let committed = if goes {
        registry.commit_delete(entry, &namespace, &name, at).await
    } else {
        let stored = registry.stored_form(entry, &new).await?;
        registry
            .commit_put(entry, &namespace, &name, &stored, at)
            .await
    };
    match committed {
        Ok(object) => {
            if !goes {
                registry.keep_decoded(entry, &object, new);
            }
            Ok(Outcome::Stored(object))
        }
        Err(CommitError::Conflict(_) | CommitError::NotFound(_)) => Err(WriteError::Raced),
        Err(error) => Err(refuse::commit(entry, &name, error).into()),
    }
}

/// The object was only waiting for its finalizers, and they are gone.
fn ready_to_go(value: &Value) -> bool {
    let metadata = &value["metadata"];
    let none = |list: &Value| list.as_array().is_none_or(Vec::is_empty);
    metadata["deletionTimestamp"].is_string()
        && metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && none(&metadata["finalizers"])
        && (value["kind"] != "Namespace" || none(&value["spec"]["finalizers"]))
}

/// Which of the two admission phases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Mutate,
    Validate,
}

/// Takes an object through admission.
pub(crate) async fn admit(
    call: &Call<'_>,
    operation: Operation,
    object: Value,
    old: Option<&Value>,
    dry_run: bool,
    phase: Phase,
) -> Result<Value, ApiStatus> {
    // A Binding has gone through admission itself.
    if call.sub_name() == "binding" {
        return Ok(object);
    }
    let name = object["metadata"]["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let mut request = request(call, operation, &name, dry_run);
    (request.object, request.old) = (Some(object), old);
    match phase {
        Phase::Mutate => call.api.admission.mutate(&mut request).await?,
        Phase::Validate => call.api.admission.validate(&request).await?,
    }
    Ok(request.object.unwrap_or_default())
}

/// Takes something that is not the stored object itself through both phases: a Binding, an Eviction, the options of a connection.
pub(crate) async fn admit_other(
    call: &Call<'_>,
    operation: Operation,
    object: Option<Value>,
    old: Option<&Value>,
    dry_run: bool,
) -> Result<Option<Value>, ApiStatus> {
    let mut request = request(call, operation, call.info.name, dry_run);
    (request.object, request.old) = (object, old);
    let admission = &call.api.admission;
    admission.mutate(&mut request).await?;
    admission.validate(&request).await?;
    Ok(request.object)
}

/// What admission is told of a call.
pub(crate) fn request<'a>(
    call: &'a Call<'_>,
    operation: Operation,
    name: &'a str,
    dry_run: bool,
) -> Request<'a> {
    let kind = match operation {
        _ if call.method == http::Method::PATCH => "PatchOptions",
        Operation::Create => "CreateOptions",
        Operation::Update => "UpdateOptions",
        Operation::Delete => "DeleteOptions",
        Operation::Connect => "",
    };
    let options = if kind.is_empty() {
        Options::None
    } else {
        Options::of_query(kind, call.query)
    };
    Request {
        operation,
        entry: call.entry,
        resource: &call.entry.storage,
        subresource: call.sub_name(),
        namespace: call.namespace(),
        name,
        object: None,
        old: None,
        user: call.user,
        dry_run,
        options,
        notes: call.notes.clone(),
    }
}

fn record(call: &Call<'_>, old: Option<&Value>, new: &mut Value) {
    let manager = call.manager();
    let writer = writer(call, &manager);
    managed::record_update(
        call.entry.schema(),
        call.entry.storage.type_id,
        old,
        new,
        &writer,
    );
}

/// Who writes, as managed fields know it.
pub(crate) fn writer<'a>(call: &'a Call<'_>, manager: &'a str) -> Writer<'a> {
    Writer {
        manager,
        subresource: call.sub_name(),
        api_version: &call.entry.api_version,
        now: call.now,
    }
}

/// The answer to a write.
pub(crate) async fn respond(
    call: &Call<'_>,
    status: StatusCode,
    outcome: Outcome,
) -> Result<Response<Body>, ApiStatus> {
    match outcome {
        Outcome::Stored(object) => {
            let object = call.api.registry.in_version(call.entry, object).await?;
            render::object(call, status, &object)
        }
        Outcome::Dry(value) => Ok(render::value(call, status, &call.entry.from_storage(value))),
    }
}

mod part {
    //! Which part of an object an update through a subresource may change, and the checks on it.

    use super::{ApiStatus, Call, Value, refuse, strategy, validation};

    /// Applies the strategy of the part and validates the outcome.
    pub(super) fn prepare(
        call: &Call<'_>,
        mut new: Value,
        old: &Value,
    ) -> Result<Value, ApiStatus> {
        let entry = call.entry;
        let (resource, part) = (&entry.storage, call.sub_name());
        // A binding is made by the server itself, with its own checks.
        if part == "binding" {
            return Ok(new);
        }
        if !strategy::prepare_part(resource, part, &mut new, old, call.now) {
            return Err(refuse::internal(&format!(
                "no update through the subresource {part:?}"
            )));
        }
        let errors = match part {
            // Custom resources have rules of their own.
            "" | "scale" => entry.validate_update(&new, old),
            "status" => entry.validate_status(&new, old),
            _ => validation::update_part(resource, part, &new, old),
        };
        refuse::invalid_if(entry, &new, errors)?;
        Ok(new)
    }
}
