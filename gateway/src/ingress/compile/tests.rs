use std::sync::Arc;

use http::{HeaderMap, Method};
use k8s_openapi::api::core::v1::{Secret, Service};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::*;
use crate::backend::Registry;
use crate::resolve::{Certificates, Named};
use crate::table::Facts;

fn services(namespace: &str, name: &str) -> Option<Arc<Service>> {
    let ports = match (namespace, name) {
        ("default", "web") => {
            json!([{"name": "http", "port": 80}, {"name": "grpc", "port": 9000, "appProtocol": "grpc"}])
        }
        ("default", "one") => json!([{"port": 8080}]),
        _ => return None,
    };
    let service =
        json!({"metadata": {"name": name, "namespace": namespace}, "spec": {"ports": ports}});
    Some(Arc::new(serde_json::from_value(service).unwrap()))
}

fn secrets(_: &str, name: &str) -> Option<Arc<Secret>> {
    (name == "good").then(|| {
        let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        let data = [
            (
                "tls.crt".to_owned(),
                k8s_openapi::ByteString(made.cert.pem().into_bytes()),
            ),
            (
                "tls.key".to_owned(),
                k8s_openapi::ByteString(made.signing_key.serialize_pem().into_bytes()),
            ),
        ];
        Arc::new(Secret {
            data: Some(data.into_iter().collect()),
            ..Secret::default()
        })
    })
}

fn compiled(annotations: Value, spec: Value) -> (Table, Vec<String>) {
    let ingress = json!({"metadata": {"name": "i", "namespace": "default", "annotations": annotations}, "spec": spec});
    let ingress: Ingress = serde_json::from_value(ingress).unwrap();
    let (registry, certificates) = (Registry::default(), Certificates::default());
    let resolver = Resolver {
        services: &services,
        secrets: &secrets,
        registry: &registry,
        certificates: &certificates,
        named: Mutex::new(Named::default()),
    };
    let mut table = Table::default();
    let problems = add(&mut table, &ingress, &resolver);
    table
        .ports
        .values_mut()
        .for_each(crate::table::PortTable::settle);
    (
        table,
        problems
            .into_iter()
            .map(|one| format!("{}: {}", one.reason, one.message))
            .collect(),
    )
}

/// What becomes of a request, in a word.
fn fate(table: &Table, host: &str, path: &str) -> String {
    let headers = HeaderMap::new();
    let facts = Facts {
        host,
        path,
        query: None,
        method: &Method::GET,
        headers: &headers,
    };
    let Some(route) = table.ports[&Port::Http].find(&facts) else {
        return "404".into();
    };
    let tls = if route.https_only { " over TLS" } else { "" };
    let path = route.edits.path.as_ref().map_or(String::new(), |rewrite| {
        let taken_by = route.matches.iter().find(|one| one.holds(&facts)).unwrap();
        format!(" as {}", rewrite.apply(path, &taken_by.path))
    });
    let action = match &*route.action {
        Action::Forward(targets) => match &targets[0].target {
            Target::Backend(backend) => format!(
                "{}:{} {:?}",
                backend.key.service, backend.key.port, backend.key.protocol
            ),
            Target::Missing(_, why) => why.to_string(),
        },
        Action::Redirect(redirect) => format!("{} elsewhere", redirect.status.as_u16()),
        Action::Refuse(status, why) => format!("{status} {why}"),
    };
    format!("{action}{path}{tls}")
}

fn to(name: &str, port: Value) -> Value {
    json!({"service": {"name": name, "port": port}})
}

fn rule(host: &str, paths: &[(&str, &str, Value)]) -> Value {
    let paths: Vec<Value> = paths
        .iter()
        .map(|(path, kind, backend)| json!({"path": path, "pathType": kind, "backend": backend}))
        .collect();
    json!({"host": host, "http": {"paths": paths}})
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn hosts_paths_and_backends() {
    let web = to("web", json!({"number": 80}));
    let (table, problems) = compiled(
        json!({}),
        json!({"defaultBackend": to("one", json!({"number": 8080})), "rules": [
            rule("a.example", &[
                ("/", "Prefix", web.clone()),
                ("/rpc", "ImplementationSpecific", to("web", json!({"name": "grpc"}))),
                ("/gone", "Prefix", to("gone", json!({"number": 80}))),
                ("/port", "Prefix", to("web", json!({"number": 81}))),
                ("/bucket", "Prefix", json!({"resource": {"kind": "Bucket", "name": "b"}})),
            ]),
            rule("*.b.example", &[("/only", "Exact", web)]),
        ]}),
    );
    for (case, host, path, expected) in [
        (
            "a port by number",
            "a.example",
            "/x",
            "default/web:http Http",
        ),
        (
            "a port by name, and what it says of itself",
            "a.example",
            "/rpc/Call",
            "default/web:grpc H2c",
        ),
        (
            "a Service that is not there",
            "a.example",
            "/gone",
            "Service default/gone does not exist.",
        ),
        (
            "a port that is not there",
            "a.example",
            "/port",
            "Service default/web has no port 81.",
        ),
        (
            "a backend that is no Service",
            "a.example",
            "/bucket",
            "503 Service Unavailable A backend that is Bucket and not a Service cannot be routed to.",
        ),
        (
            "a wildcard",
            "x.b.example",
            "/only",
            "default/web:http Http",
        ),
        (
            "what no path takes goes to the default",
            "x.b.example",
            "/other",
            "default/one: Http",
        ),
        (
            "what no host takes as well",
            "c.example",
            "/",
            "default/one: Http",
        ),
    ] {
        assert_eq!(fate(&table, host, path), expected, "{case}");
    }
    assert_eq!(
        problems,
        [
            "BackendNotFound: Service default/gone does not exist.",
            "BackendNotFound: Service default/web has no port 81.",
            "UnsupportedBackend: A backend that is Bucket and not a Service cannot be routed to.",
        ]
    );
}

#[test]
fn tls_and_annotations() {
    let web = to("web", json!({"number": 80}));
    let rules = json!([
        rule("a.example", &[("/", "Prefix", web.clone())]),
        rule(
            "b.example",
            &[("/api(/|$)(.*)", "ImplementationSpecific", web)]
        ),
    ]);
    let tls = json!([{"hosts": ["a.example"], "secretName": "good"}, {"hosts": ["x.example"], "secretName": "gone"}]);
    let (table, problems) = compiled(json!({}), json!({"tls": tls, "rules": rules}));
    assert_eq!(
        fate(&table, "a.example", "/"),
        "default/web:http Http over TLS"
    );
    let https = &table.ports[&Port::Https];
    assert!(
        https.certificates.get("a.example").is_some()
            && https.certificates.get("x.example").is_none()
    );
    assert_eq!(
        problems,
        ["InvalidCertificate: Secret default/gone of type kubernetes.io/tls does not exist."]
    );
    let annotations = json!({
        "nginx.ingress.kubernetes.io/rewrite-target": "/$2", "nginx.ingress.kubernetes.io/ssl-redirect": "false",
        "nginx.ingress.kubernetes.io/app-root": "/app"});
    let (table, _) = compiled(annotations, json!({"tls": tls, "rules": rules}));
    for (case, host, path, expected) in [
        (
            "no redirect where none is wanted",
            "a.example",
            "/x",
            "default/web:http Http as /",
        ),
        (
            "what the groups found",
            "b.example",
            "/API/v1/x",
            "default/web:http Http as /v1/x",
        ),
        (
            "patterns hold from the begin",
            "b.example",
            "/x/api/",
            "404",
        ),
        (
            "the root of the application",
            "b.example",
            "/",
            "302 elsewhere",
        ),
    ] {
        assert_eq!(fate(&table, host, path), expected, "{case}");
    }
    let redirect = json!({"coxswain.dev/permanent-redirect": "https://new.example/"});
    let (table, _) = compiled(redirect, json!({"rules": rules}));
    assert_eq!(fate(&table, "a.example", "/x"), "301 elsewhere");
}
