//! What stands between a write and the store costs so much CPU: authorization, admission and audit, without webhooks and with the
//! policies that a cluster comes with; then the same with 10,000 role bindings.
//!
//! `cargo bench -p cox-apiserver --bench gate`; the promise is 30 µs for all three. Audit is the difference between writes with and
//! without it, on servers of their own. Not a timed test.

#![allow(
    clippy::print_stdout,
    reason = "printing figures is what a bench is for"
)]

use std::sync::Arc;

use bytes::Bytes;
use cox_apiserver::admission::{Admission, Notes, Operation, Options, Request as Asked};
use cox_apiserver::audit;
use cox_apiserver::auth::{Attributes, Authorizer, UserInfo};
use cox_apiserver::pki::Pki;
use cox_apiserver::{ApiServer, BuiltinIndexer, Config, Deps, LocalService, start};
use cox_store::{Backend, Store};
use http::Request;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower_service::Service;

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const CALLS: u32 = 20_000;
const BINDINGS: usize = 10_000;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// CPU time of this thread, in microseconds; everything that is measured runs in it.
fn cpu_us() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = stat
        .split(' ')
        .next()
        .and_then(|text| text.parse::<f64>().ok());
    nanos.unwrap_or_default() / 1000.0
}

async fn send(service: &mut LocalService, path: &str, body: &Value) {
    let request = Request::post(path)
        .header("content-type", "application/json")
        .body(Full::<Bytes>::from(body.to_string()))
        .expect("a valid request");
    let response = service.call(request).await.expect("it answers everything");
    assert!(
        response.status().is_success(),
        "{path}: {}",
        response.status()
    );
    response.into_body().collect().await.expect("in memory");
}

/// A server over memory, with a namespace `a` in which `jane` may edit.
async fn server(
    keys: &std::path::Path,
    audit: Option<audit::Config>,
    cancel: &CancellationToken,
) -> Outcome<(ApiServer, Store)> {
    let pki = Arc::new(Pki::load_or_create(keys)?);
    let store = Store::open(
        cox_store::Config::new(Backend::Memory),
        Arc::new(BuiltinIndexer),
    )?;
    let mut config = Config::new("127.0.0.1:0".parse()?, pki);
    config.audit = audit;
    let server = start(config, Deps::new(store.clone()), cancel.clone()).await?;
    let mut root = server.service(UserInfo::new("root", ["system:masters"]));
    send(
        &mut root,
        "/api/v1/namespaces",
        &json!({"metadata": {"name": "a"}}),
    )
    .await;
    let account = json!({"metadata": {"name": "default"}});
    send(&mut root, "/api/v1/namespaces/a/serviceaccounts", &account).await;
    let bindings = format!("{RBAC}/namespaces/a/rolebindings");
    send(&mut root, &bindings, &binding("jane", "jane")).await;
    Ok((server, store))
}

fn binding(name: &str, user: &str) -> Value {
    json!({"metadata": {"name": name}, "subjects": [{"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"}})
}

fn pod() -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "a"}, "spec": {"containers": [
        {"name": "c", "image": "i", "resources": {"requests": {"cpu": "100m"}}}]}})
}

fn config_map() -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "a"}, "data": {"k": "x".repeat(1024)}})
}

/// Microseconds of one decision.
async fn authorization(authorizer: &Authorizer, jane: &UserInfo) -> f64 {
    let mut asked = Attributes::for_resource(jane, "create", "", "configmaps");
    asked.namespace = "a";
    asked.version = "v1";
    assert!(authorizer.decide(&asked).await.is_allowed());
    let begun = cpu_us();
    for _ in 0..CALLS {
        std::hint::black_box(authorizer.decide(&asked).await);
    }
    (cpu_us() - begun) / f64::from(CALLS)
}

/// Microseconds that the chain takes for one object, less its copying.
async fn admission(
    admission: &Admission,
    server: &ApiServer,
    jane: &UserInfo,
    plural: &str,
    object: &Value,
) -> f64 {
    let entry = server
        .registry()
        .lookup("", "v1", plural)
        .expect("a resource");
    let request = |object: Value| Asked {
        operation: Operation::Create,
        entry: &entry,
        resource: &entry.resource,
        subresource: "",
        namespace: "a",
        name: "p",
        object: Some(object),
        old: None,
        user: jane,
        dry_run: false,
        options: Options::None,
        notes: Notes::default(),
    };
    let begun = cpu_us();
    for _ in 0..CALLS {
        std::hint::black_box(request(object.clone()));
    }
    let copying = cpu_us() - begun;
    let begun = cpu_us();
    for _ in 0..CALLS {
        let mut request = request(object.clone());
        admission
            .mutate(&mut request)
            .await
            .expect("it is admitted");
        admission.validate(&request).await.expect("it is admitted");
    }
    (cpu_us() - begun - copying) / f64::from(CALLS)
}

/// Microseconds of one whole write.
async fn write(server: &ApiServer, jane: &UserInfo, round: usize) -> f64 {
    let mut service = server.service(jane.clone());
    let mut object = config_map();
    let begun = cpu_us();
    for at in 0..CALLS {
        object["metadata"]["name"] = format!("c-{round}-{at}").into();
        send(&mut service, "/api/v1/namespaces/a/configmaps", &object).await;
    }
    (cpu_us() - begun) / f64::from(CALLS)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let (keys, cancel) = (tempfile::tempdir()?, CancellationToken::new());
    let policy = keys.path().join("policy.yaml");
    std::fs::write(
        &policy,
        "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules: [{level: Metadata}]\n",
    )?;
    let log = audit::Config {
        policy_file: policy,
        path: keys.path().join("audit.log"),
        rotation: audit::Rotation {
            size_mib: 100,
            backups: 1,
            age_days: 0,
        },
    };
    let (plain, store) = server(keys.path(), None, &cancel).await?;
    let (audited, _) = server(keys.path(), Some(log), &cancel).await?;
    let jane = UserInfo::new("jane", ["dev"]);
    let authorizer = Authorizer::new(store);
    let chain = Admission::new(plain.registry().clone(), authorizer.clone());
    let (mut without, mut with) = (f64::MAX, f64::MAX);
    // In turn, and the best of three: what else the machine does is not to count as audit.
    for round in 0..3 {
        without = without.min(write(&plain, &jane, round).await);
        with = with.min(write(&audited, &jane, round).await);
    }
    let audit = with - without;
    println!(
        "a write of a ConfigMap of 1 KB: {without:.1} µs of this thread's CPU, audited {with:.1} µs"
    );
    for bindings in [1, BINDINGS] {
        if bindings > 1 {
            let mut root = plain.service(UserInfo::new("root", ["system:masters"]));
            let path = format!("{RBAC}/namespaces/a/rolebindings");
            for at in 0..BINDINGS {
                send(
                    &mut root,
                    &path,
                    &binding(&format!("b-{at}"), &format!("user-{at}")),
                )
                .await;
            }
        }
        let asking = authorization(&authorizer, &jane).await;
        for (plural, object) in [("configmaps", config_map()), ("pods", pod())] {
            let admitting = admission(&chain, &plain, &jane, plural, &object).await;
            println!(
                "{bindings:>6} role bindings, {plural:<10} authorization {asking:>6.2} + admission {admitting:>6.2} + audit {audit:>6.2} = {:>6.2} µs (promise: 30)",
                asking + admitting + audit
            );
        }
    }
    cancel.cancel();
    Ok(())
}
