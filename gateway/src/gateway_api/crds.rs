//! The CustomResourceDefinitions of the Gateway API: our own compact ones, with the fields that we serve and room for the rest.
//! They are made where the cluster has none; upstream's can take their place at any time.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};
use std::time::Duration;

use super::types::GROUP;

const POLL: Duration = Duration::from_millis(50);

/// Makes those that are missing, and waits until all are served.
pub(crate) async fn ensure(client: &kube::Client) -> Result<(), kube::Error> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in all() {
        let crd: CustomResourceDefinition =
            serde_json::from_value(crd).map_err(kube::Error::SerdeError)?;
        let name = crd.metadata.name.clone().unwrap_or_default();
        if api.get_opt(&name).await?.is_none() {
            match api.create(&PostParams::default(), &crd).await {
                Err(error) if !cox_client::is_already_exists(&error) => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        while !api.get(&name).await.is_ok_and(|crd| is_established(&crd)) {
            tokio::time::sleep(POLL).await;
        }
    }
    Ok(())
}

fn is_established(crd: &CustomResourceDefinition) -> bool {
    let conditions = crd
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let mut all = conditions.into_iter().flatten();
    all.any(|one| one.type_ == "Established" && one.status == "True")
}

fn all() -> [Value; 5] {
    let age = json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"});
    let column = |name: &str, path: &str| json!({"name": name, "type": "string", "jsonPath": path});
    [
        crd(
            "GatewayClass",
            "gatewayclasses",
            "gc",
            "Cluster",
            "v1",
            class(),
            json!([
                column("Controller", ".spec.controllerName"),
                column(
                    "Accepted",
                    ".status.conditions[?(@.type==\"Accepted\")].status"
                ),
                age,
            ]),
        ),
        crd(
            "Gateway",
            "gateways",
            "gtw",
            "Namespaced",
            "v1",
            gateway(),
            json!([
                column("Class", ".spec.gatewayClassName"),
                column("Address", ".status.addresses[*].value"),
                column(
                    "Programmed",
                    ".status.conditions[?(@.type==\"Programmed\")].status"
                ),
                age,
            ]),
        ),
        crd(
            "HTTPRoute",
            "httproutes",
            "",
            "Namespaced",
            "v1",
            route(),
            json!([column("Hostnames", ".spec.hostnames"), age,]),
        ),
        crd(
            "GRPCRoute",
            "grpcroutes",
            "",
            "Namespaced",
            "v1",
            grpc_route(),
            json!([column("Hostnames", ".spec.hostnames"), age,]),
        ),
        crd(
            "ReferenceGrant",
            "referencegrants",
            "refgrant",
            "Namespaced",
            "v1beta1",
            grant(),
            json!([age]),
        ),
    ]
}

fn crd(
    kind: &str,
    plural: &str,
    short: &str,
    scope: &str,
    version: &str,
    spec: Value,
    columns: Value,
) -> Value {
    let short: Vec<&str> = Some(short)
        .filter(|short| !short.is_empty())
        .into_iter()
        .collect();
    let mut properties = json!({"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"},
        "spec": spec});
    let mut served = json!({"name": version, "served": true, "storage": true, "additionalPrinterColumns": columns});
    if kind != "ReferenceGrant" {
        properties["status"] = free();
        served["subresources"] = json!({"status": {}});
    }
    served["schema"] = json!({"openAPIV3Schema": {"type": "object", "required": ["spec"], "properties": properties}});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{plural}.{GROUP}"),
            // What upstream asks of every definition in a group of its own.
            "annotations": {"api-approved.kubernetes.io": "unapproved, a compact form that comes with coxswain"},
        },
        "spec": {
            "group": GROUP,
            "scope": scope,
            "names": {"kind": kind, "listKind": format!("{kind}List"), "plural": plural,
                "singular": kind.to_ascii_lowercase(), "shortNames": short, "categories": ["gateway-api"]},
            "versions": [served],
        },
    })
}

/// Anything, kept as it is.
fn free() -> Value {
    json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

fn object(required: &[&str], properties: Value) -> Value {
    json!({"type": "object", "required": required, "properties": properties, "x-kubernetes-preserve-unknown-fields": true})
}

fn list(items: Value, max: u32) -> Value {
    json!({"type": "array", "maxItems": max, "items": items})
}

fn text(max: u32) -> Value {
    json!({"type": "string", "maxLength": max})
}

fn one_of(values: &[&str]) -> Value {
    json!({"type": "string", "enum": values})
}

fn port() -> Value {
    json!({"type": "integer", "format": "int32", "minimum": 1, "maximum": 65535})
}

fn name() -> Value {
    json!({"type": "string", "minLength": 1, "maxLength": 253})
}

fn hostname() -> Value {
    let pattern = r"^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
    json!({"type": "string", "minLength": 1, "maxLength": 253, "pattern": pattern})
}

fn with_default(mut schema: Value, default: Value) -> Value {
    schema["default"] = default;
    schema
}

fn class() -> Value {
    let controller = json!({"type": "string", "minLength": 1, "maxLength": 253, "x-kubernetes-validations": [
        {"rule": "self == oldSelf", "message": "Value is immutable"}]});
    object(
        &["controllerName"],
        json!({"controllerName": controller, "description": text(64), "parametersRef": free()}),
    )
}

fn gateway() -> Value {
    let reference = object(
        &["name"],
        json!({
        "group": with_default(text(253), json!("")), "kind": with_default(text(63), json!("Secret")),
        "namespace": text(63), "name": name()}),
    );
    let tls = object(
        &[],
        json!({
        "mode": with_default(one_of(&["Terminate", "Passthrough"]), json!("Terminate")),
        "certificateRefs": list(reference, 64)}),
    );
    let namespaces = object(
        &[],
        json!({
        "from": with_default(one_of(&["All", "Selector", "Same", "None"]), json!("Same")), "selector": free()}),
    );
    let kinds = object(
        &["kind"],
        json!({"group": with_default(text(253), json!(GROUP)), "kind": text(63)}),
    );
    let allowed = object(
        &[],
        json!({
        "namespaces": with_default(namespaces, json!({"from": "Same"})), "kinds": list(kinds, 8)}),
    );
    let listener = object(
        &["name", "port", "protocol"],
        json!({
        "name": name(), "hostname": hostname(), "port": port(), "protocol": text(255), "tls": tls,
        "allowedRoutes": with_default(allowed, json!({"namespaces": {"from": "Same"}}))}),
    );
    let listeners = json!({"type": "array", "minItems": 1, "maxItems": 64, "items": listener,
        "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]});
    object(
        &["gatewayClassName", "listeners"],
        json!({
        "gatewayClassName": name(), "listeners": listeners, "addresses": list(free(), 16), "infrastructure": free()}),
    )
}

fn modifier() -> Value {
    object(
        &["type"],
        json!({
        "type": one_of(&["ReplaceFullPath", "ReplacePrefixMatch"]), "replaceFullPath": text(1024),
        "replacePrefixMatch": text(1024)}),
    )
}

/// What filters of HTTPRoutes may be.
const FILTERS: [&str; 8] = [
    "RequestHeaderModifier",
    "ResponseHeaderModifier",
    "RequestMirror",
    "RequestRedirect",
    "URLRewrite",
    "ExtensionRef",
    "CORS",
    "ExternalAuth",
];
/// The same of GRPCRoutes.
const GRPC_FILTERS: [&str; 4] = [
    "RequestHeaderModifier",
    "ResponseHeaderModifier",
    "RequestMirror",
    "ExtensionRef",
];

fn filter(kinds: &[&str]) -> Value {
    let header = object(
        &["name", "value"],
        json!({"name": text(256), "value": text(4096)}),
    );
    let headers = object(
        &[],
        json!({
        "set": list(header.clone(), 16), "add": list(header, 16), "remove": list(text(256), 16)}),
    );
    let redirect = object(
        &[],
        json!({
        "scheme": one_of(&["http", "https"]), "hostname": hostname(), "path": modifier(), "port": port(),
        "statusCode": with_default(json!({"type": "integer", "enum": [301, 302, 303, 307, 308]}), json!(302))}),
    );
    let rewrite = object(&[], json!({"hostname": hostname(), "path": modifier()}));
    let fraction = object(
        &["numerator"],
        json!({
        "numerator": {"type": "integer", "format": "int32", "minimum": 0},
        "denominator": with_default(json!({"type": "integer", "format": "int32", "minimum": 1}), json!(100))}),
    );
    let target = object(
        &["name"],
        json!({
        "group": with_default(text(253), json!("")), "kind": with_default(text(63), json!("Service")), "namespace": text(63),
        "name": name(), "port": port()}),
    );
    let mirror = object(
        &["backendRef"],
        json!({
        "backendRef": target, "fraction": fraction,
        "percent": {"type": "integer", "format": "int32", "minimum": 0, "maximum": 100}}),
    );
    let cors = object(
        &[],
        json!({
        "allowOrigins": list(text(253), 64), "allowCredentials": {"type": "boolean"},
        "allowMethods": list(text(16), 9), "allowHeaders": list(text(256), 64), "exposeHeaders": list(text(256), 64),
        "maxAge": with_default(json!({"type": "integer", "format": "int32", "minimum": 1}), json!(5))}),
    );
    object(
        &["type"],
        json!({
        "type": one_of(kinds), "requestHeaderModifier": headers, "responseHeaderModifier": headers,
        "requestRedirect": redirect, "urlRewrite": rewrite, "requestMirror": mirror, "cors": cors, "extensionRef": free()}),
    )
}

fn parent() -> Value {
    object(
        &["name"],
        json!({
        "group": with_default(text(253), json!(GROUP)), "kind": with_default(text(63), json!("Gateway")),
        "namespace": text(63), "name": name(), "sectionName": name(), "port": port()}),
    )
}

/// A header or a parameter.
fn named_value() -> Value {
    object(
        &["name", "value"],
        json!({
        "type": with_default(one_of(&["Exact", "RegularExpression"]), json!("Exact")), "name": text(256), "value": text(4096)}),
    )
}

fn backend(filters: &[&str]) -> Value {
    object(
        &["name"],
        json!({
        "group": with_default(text(253), json!("")), "kind": with_default(text(63), json!("Service")), "namespace": text(63),
        "name": name(), "port": port(), "filters": list(filter(filters), 16),
        "weight": with_default(json!({"type": "integer", "format": "int32", "minimum": 0, "maximum": 1_000_000}), json!(1))}),
    )
}

fn grpc_route() -> Value {
    let method = object(
        &[],
        json!({
        "type": with_default(one_of(&["Exact", "RegularExpression"]), json!("Exact")), "service": text(1024), "method": text(1024)}),
    );
    let one_match = object(
        &[],
        json!({"method": method, "headers": list(named_value(), 16)}),
    );
    let rule = object(
        &[],
        json!({
        "name": name(), "matches": list(one_match, 64), "filters": list(filter(&GRPC_FILTERS), 16),
        "backendRefs": list(backend(&GRPC_FILTERS), 16)}),
    );
    object(
        &[],
        json!({"parentRefs": list(parent(), 32), "hostnames": list(hostname(), 16), "rules": list(rule, 16)}),
    )
}

fn route() -> Value {
    let path = object(
        &[],
        json!({
        "type": with_default(one_of(&["Exact", "PathPrefix", "RegularExpression"]), json!("PathPrefix")),
        "value": with_default(text(1024), json!("/"))}),
    );
    let value = named_value();
    let methods = [
        "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
    ];
    let one_match = object(
        &[],
        json!({
        "path": with_default(path, json!({"type": "PathPrefix", "value": "/"})), "headers": list(value.clone(), 16),
        "queryParams": list(value, 16), "method": one_of(&methods)}),
    );
    let rule = object(
        &[],
        json!({
        "name": name(), "filters": list(filter(&FILTERS), 16), "backendRefs": list(backend(&FILTERS), 16),
        "matches": with_default(list(one_match, 64), json!([{"path": {"type": "PathPrefix", "value": "/"}}])),
        "timeouts": object(&[], json!({"request": text(32), "backendRequest": text(32)}))}),
    );
    let rules = with_default(
        list(rule, 16),
        json!([{"matches": [{"path": {"type": "PathPrefix", "value": "/"}}]}]),
    );
    object(
        &[],
        json!({"parentRefs": list(parent(), 32), "hostnames": list(hostname(), 16), "rules": rules}),
    )
}

fn grant() -> Value {
    let from = object(
        &["group", "kind", "namespace"],
        json!({"group": text(253), "kind": text(63), "namespace": text(63)}),
    );
    let to = object(
        &["group", "kind"],
        json!({"group": text(253), "kind": text(63), "name": name()}),
    );
    object(
        &["from", "to"],
        json!({"from": list(from, 16), "to": list(to, 16)}),
    )
}
