//! Which writes a start needs: compares what a cluster must hold with a snapshot. Pure; a settled cluster needs none.
//!
//! Objects of the bootstrap policy are reconciled as upstream does: what is missing in them is added, what somebody added
//! stays, and one whose annotation `rbac.authorization.kubernetes.io/autoupdate` is not `true` is left alone. Other
//! objects are made once; only what follows from how the server was started (addresses, the CA) is kept current.

use std::net::{IpAddr, SocketAddr};

use cox_api::meta;
use cox_store::Snapshot;
use serde_json::{Value, json};

use super::policy;
use crate::aggregator::FRONT_PROXY;
use crate::auth::rbac::PolicyRule;
use crate::fairness::defaults;
use crate::services::{DEFAULT_CIDR_NAME, cidr::Cidr};

const RBAC: &str = "rbac.authorization.k8s.io";
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
/// At which offset of the service range the cluster's DNS has its address, as elsewhere.
const DNS_OFFSET: u128 = 10;
/// The label of nodes that can run Wasm containers; their kubelets set it.
pub const WASM_NODE_LABEL: &str = "coxswain.dev/wasm";
const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// What the plan depends on beside the store.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the API server is reached from inside the cluster.
    pub advertise: SocketAddr,
    /// The CA that client certificates are issued by.
    pub ca_pem: String,
    /// Whether the cluster has a default StorageClass that makes volumes on the nodes' own disks.
    pub local_path: bool,
    /// Ranges of Service addresses, the default first.
    pub service_cidrs: Vec<Cidr>,
    /// Whether the cluster has a Service for its DNS.
    pub dns_service: bool,
}

/// One object to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// Its group.
    pub group: &'static str,
    /// Its resource.
    pub plural: &'static str,
    /// The object as it is to be.
    pub object: Value,
}

/// A resource and where the store keeps it.
#[derive(Clone, Copy, Debug)]
struct Place {
    group: &'static str,
    plural: &'static str,
    prefix: &'static str,
}

impl Place {
    const fn new(group: &'static str, plural: &'static str) -> Self {
        Self {
            group,
            plural,
            prefix: plural,
        }
    }

    fn write(self, object: Value) -> Write {
        Write {
            group: self.group,
            plural: self.plural,
            object,
        }
    }
}

/// All writes that are needed.
pub fn plan(snapshot: &Snapshot, settings: &Settings) -> Vec<Write> {
    let mut writes = Vec::new();
    for name in NAMESPACES {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        writes.extend(absent(snapshot, Place::new("", "namespaces"), object));
    }
    writes.extend(plan_policy(snapshot));
    writes.extend(reconcile(
        snapshot,
        Place::new(RBAC, "clusterrolebindings"),
        node_proxies(),
        add_subjects,
    ));
    writes.extend(reconcile(
        snapshot,
        Place::new(RBAC, "clusterroles"),
        gateways(),
        add_rules,
    ));
    writes.extend(plan_classes(snapshot, settings));
    writes.extend(plan_flow_control(snapshot));
    writes.extend(current(
        snapshot,
        Place::new("", "configmaps"),
        &client_ca(settings),
        &["/data/client-ca-file"],
    ));
    let services = Place {
        group: "",
        plural: "services",
        prefix: "services/specs",
    };
    writes.extend(current(
        snapshot,
        services,
        &service(settings),
        &["/spec/ports/0/targetPort"],
    ));
    let slices = Place::new("discovery.k8s.io", "endpointslices");
    writes.extend(current(
        snapshot,
        slices,
        &endpoints(settings),
        &["/endpoints/0/addresses", "/ports/0/port"],
    ));
    let old_endpoints = Place {
        group: "",
        plural: "endpoints",
        prefix: "services/endpoints",
    };
    writes.extend(current(
        snapshot,
        old_endpoints,
        &plain_endpoints(settings),
        &["/subsets/0/addresses", "/subsets/0/ports"],
    ));
    let cidrs = Place::new("networking.k8s.io", "servicecidrs");
    writes.extend(absent(snapshot, cidrs, service_cidr(settings)));
    if settings.dns_service {
        writes.extend(absent(snapshot, services, dns_service(settings)));
    }
    writes
}

/// Classes that Pods and claims may name.
fn plan_classes(snapshot: &Snapshot, settings: &Settings) -> Vec<Write> {
    let priorities = Place::new("scheduling.k8s.io", "priorityclasses");
    let runtimes = Place::new("node.k8s.io", "runtimeclasses");
    let storage = Place::new("storage.k8s.io", "storageclasses");
    let mut classes: Vec<(Place, Value)> = Vec::new();
    classes.extend(
        priority_classes()
            .into_iter()
            .map(|class| (priorities, class)),
    );
    classes.push((runtimes, wasm_class()));
    if settings.local_path {
        classes.push((storage, local_path_class()));
    }
    let missing = classes
        .into_iter()
        .filter_map(|(place, class)| absent(snapshot, place, class));
    missing.collect()
}

/// Classes of requests and what they get. One whose annotation is not `true` belongs to whoever changed it.
fn plan_flow_control(snapshot: &Snapshot) -> Vec<Write> {
    let levels = Place::new(defaults::GROUP, "prioritylevelconfigurations");
    let schemas = Place::new(defaults::GROUP, "flowschemas");
    let of = |place, objects: Vec<Value>| objects.into_iter().map(move |object| (place, object));
    of(levels, defaults::levels())
        .chain(of(schemas, defaults::schemas()))
        .filter_map(|(place, object)| {
            let Some(mut existing) = read(snapshot, place, &object) else {
                return Some(place.write(object));
            };
            let ours = meta::annotation(&existing, defaults::AUTOUPDATE) == Some("true");
            if !ours || holds(&existing["spec"], &object["spec"]) {
                return None;
            }
            existing["spec"] = object["spec"].clone();
            Some(place.write(existing))
        })
        .collect()
}

/// Whether everything that is wanted is there; what defaults have added may be too.
fn holds(existing: &Value, wanted: &Value) -> bool {
    match (existing, wanted) {
        (Value::Object(existing), Value::Object(wanted)) => wanted.iter().all(|(key, wanted)| {
            existing
                .get(key)
                .is_some_and(|existing| holds(existing, wanted))
        }),
        (Value::Array(existing), Value::Array(wanted)) => {
            existing.len() == wanted.len()
                && existing
                    .iter()
                    .zip(wanted)
                    .all(|(one, other)| holds(one, other))
        }
        (existing, wanted) => existing == wanted,
    }
}

fn path(object: &Value) -> String {
    match meta::namespace(object) {
        "" => meta::name(object).to_owned(),
        namespace => format!("{namespace}/{}", meta::name(object)),
    }
}

fn read(snapshot: &Snapshot, place: Place, object: &Value) -> Option<Value> {
    serde_json::from_slice(&snapshot.get(place.prefix, &path(object))?.json).ok()
}

/// A write where there is no such object.
fn absent(snapshot: &Snapshot, place: Place, object: Value) -> Option<Write> {
    snapshot
        .get(place.prefix, &path(&object))
        .is_none()
        .then(|| place.write(object))
}

/// A write where there is no such object, or where it differs from `object` in one of the places `pointers`.
fn current(snapshot: &Snapshot, place: Place, object: &Value, pointers: &[&str]) -> Option<Write> {
    let Some(existing) = read(snapshot, place, object) else {
        return Some(place.write(object.clone()));
    };
    let mut next = existing.clone();
    for pointer in pointers {
        let wanted = object.pointer(pointer).cloned().unwrap_or_default();
        match next.pointer_mut(pointer) {
            Some(value) => *value = wanted,
            // Somebody took the part away that this stands in: the whole object is wanted back.
            None => return Some(place.write(object.clone())),
        }
    }
    (next != existing).then(|| place.write(next))
}

fn plan_policy(snapshot: &Snapshot) -> Vec<Write> {
    let policy = policy::builtin();
    let mut writes = Vec::new();
    for (place, kind, roles) in [
        (
            Place::new(RBAC, "clusterroles"),
            "ClusterRole",
            &policy.cluster_roles,
        ),
        (Place::new(RBAC, "roles"), "Role", &policy.roles),
    ] {
        writes.extend(
            roles
                .iter()
                .filter_map(|role| reconcile(snapshot, place, role.object(kind), add_rules)),
        );
    }
    for (place, kind, bindings) in [
        (
            Place::new(RBAC, "clusterrolebindings"),
            "ClusterRoleBinding",
            &policy.cluster_role_bindings,
        ),
        (
            Place::new(RBAC, "rolebindings"),
            "RoleBinding",
            &policy.role_bindings,
        ),
    ] {
        writes.extend(
            bindings
                .iter()
                .filter_map(|one| reconcile(snapshot, place, one.object(kind), add_subjects)),
        );
    }
    writes
}

/// A write where the object is absent, or where `add` finds something to add to it.
fn reconcile(
    snapshot: &Snapshot,
    place: Place,
    wanted: Value,
    add: fn(&mut Value, &Value),
) -> Option<Write> {
    let Some(existing) = read(snapshot, place, &wanted) else {
        return Some(place.write(wanted));
    };
    if meta::annotation(&existing, AUTOUPDATE) != Some("true") {
        return None;
    }
    let mut next = existing.clone();
    for (key, value) in meta::labels(&wanted) {
        next["metadata"]["labels"][key] = value.into();
    }
    add(&mut next, &wanted);
    (next != existing).then(|| place.write(next))
}

fn add_rules(next: &mut Value, wanted: &Value) {
    if wanted["aggregationRule"].is_object() {
        // Its rules are the aggregation's to write.
        if next["aggregationRule"] != wanted["aggregationRule"]
            && !next["aggregationRule"].is_object()
        {
            next["aggregationRule"] = wanted["aggregationRule"].clone();
        }
        return;
    }
    let parse = |role: &Value| -> Vec<PolicyRule> {
        serde_json::from_value(role["rules"].clone()).unwrap_or_default()
    };
    let held = parse(next);
    let missing = parse(wanted)
        .into_iter()
        .filter(|rule| !crate::auth::rbac::covers(&held, rule));
    let missing: Vec<Value> = missing.map(|rule| json!(rule)).collect();
    if !missing.is_empty() {
        append(&mut next["rules"], missing);
    }
}

fn add_subjects(next: &mut Value, wanted: &Value) {
    let same = |one: &Value, other: &Value| {
        ["kind", "name", "namespace"]
            .iter()
            .all(|field| one[field].as_str() == other[field].as_str())
    };
    let empty = Vec::new();
    let present = next["subjects"].as_array().unwrap_or(&empty);
    let wanted = wanted["subjects"].as_array().unwrap_or(&empty);
    let missing: Vec<Value> = wanted
        .iter()
        .filter(|subject| !present.iter().any(|one| same(one, subject)))
        .cloned()
        .collect();
    if !missing.is_empty() {
        append(&mut next["subjects"], missing);
    }
}

fn append(list: &mut Value, more: Vec<Value>) {
    match list {
        Value::Array(all) => all.extend(more),
        other => *other = Value::Array(more),
    }
}

/// Nodes proxy for Services with their own identity: there is no account for a proxy of its own.
fn node_proxies() -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "coxswain:node-proxies", "annotations": {AUTOUPDATE: "true"},
            "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}},
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": "system:node-proxier"},
        "subjects": [{"apiGroup": RBAC, "kind": "Group", "name": "system:nodes"}],
    })
}

/// What a node needs that takes requests from outside. Nobody has it unless its user is bound to it: it reads all Secrets.
fn gateways() -> Value {
    const GROUP: &str = "gateway.networking.k8s.io";
    let rule = |groups: &[&str], resources: &[&str], verbs: &[&str]| json!({"apiGroups": groups, "resources": resources, "verbs": verbs});
    let read = ["get", "list", "watch"];
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": "coxswain:gateway", "annotations": {AUTOUPDATE: "true"},
            "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}},
        "rules": [
            rule(&[""], &["namespaces", "nodes", "secrets", "services"], &read),
            rule(&["discovery.k8s.io"], &["endpointslices"], &read),
            rule(&["networking.k8s.io"], &["ingresses", "ingressclasses"], &read),
            rule(&["networking.k8s.io"], &["ingressclasses"], &["create", "patch"]),
            rule(&["networking.k8s.io"], &["ingresses/status"], &["patch"]),
            rule(&[GROUP], &["*"], &read),
            rule(&[GROUP], &["gatewayclasses"], &["create"]),
            rule(&[GROUP], &["gatewayclasses/status", "gateways/status", "grpcroutes/status", "httproutes/status"], &["patch"]),
            rule(&["apiextensions.k8s.io"], &["customresourcedefinitions"], &["create", "get"]),
            rule(&["", "events.k8s.io"], &["events"], &["create", "patch"]),
        ],
    })
}

fn priority_classes() -> [Value; 2] {
    let class = |name: &str, value: i64, description: &str| {
        json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
            "value": value, "description": description,
        })
    };
    [
        class(
            "system-cluster-critical",
            2_000_000_000,
            "The cluster needs these pods, on whichever node.",
        ),
        class(
            "system-node-critical",
            2_000_001_000,
            "Their node needs these pods; they go nowhere else.",
        ),
    ]
}

fn wasm_class() -> Value {
    json!({
        "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "wasm"}, "handler": "wasm",
        "scheduling": {"nodeSelector": {WASM_NODE_LABEL: "true"}},
    })
}

/// The default class: folders on the node of a claim's first Pod, made by the controller of the same name.
fn local_path_class() -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {"name": "local-path", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": "coxswain.dev/local-path", "reclaimPolicy": "Delete", "volumeBindingMode": "WaitForFirstConsumer",
    })
}

fn client_ca(settings: &Settings) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"namespace": "kube-system", "name": "extension-apiserver-authentication"},
        // Aggregated API servers read here whom they may take users' names from.
        "data": {
            "client-ca-file": settings.ca_pem,
            "requestheader-client-ca-file": settings.ca_pem,
            "requestheader-allowed-names": format!("[{FRONT_PROXY:?}]"),
            "requestheader-extra-headers-prefix": "[\"X-Remote-Extra-\"]",
            "requestheader-group-headers": "[\"X-Remote-Group\"]",
            "requestheader-uid-headers": "[\"X-Remote-Uid\"]",
            "requestheader-username-headers": "[\"X-Remote-User\"]",
        },
    })
}

fn service_cidr(settings: &Settings) -> Value {
    let cidrs: Vec<String> = settings
        .service_cidrs
        .iter()
        .map(ToString::to_string)
        .collect();
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": DEFAULT_CIDR_NAME}, "spec": {"cidrs": cidrs},
    })
}

/// Address and family at an offset of the default range.
fn service_ip(settings: &Settings, offset: u128) -> (String, &'static str) {
    let range = settings.service_cidrs.first();
    range.map_or_else(Default::default, |range| {
        (range.at(offset).to_string(), range.family())
    })
}

/// Has no selector and no endpoints: each node answers for itself.
fn dns_service(settings: &Settings) -> Value {
    let (ip, family) = service_ip(settings, DNS_OFFSET);
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "kube-system", "name": "kube-dns", "labels": {
            "k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"}},
        "spec": {
            "type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip],
            "ipFamilies": [family], "ipFamilyPolicy": "SingleStack", "sessionAffinity": "None",
            "internalTrafficPolicy": "Cluster",
            "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
            ],
        },
    })
}

fn service(settings: &Settings) -> Value {
    let (ip, family) = service_ip(settings, 1);
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "default", "name": "kubernetes",
            "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip],
            "ipFamilies": [family], "ipFamilyPolicy": "SingleStack", "sessionAffinity": "None",
            "internalTrafficPolicy": "Cluster",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": settings.advertise.port()}],
        },
    })
}

fn endpoints(settings: &Settings) -> Value {
    let family = match settings.advertise.ip() {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": "default", "name": "kubernetes",
            "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": family,
        "endpoints": [{"addresses": [settings.advertise.ip().to_string()], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": settings.advertise.port(), "protocol": "TCP"}],
    })
}

/// The same for those who read the older kind.
fn plain_endpoints(settings: &Settings) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"namespace": "default", "name": "kubernetes",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{
            "addresses": [{"ip": settings.advertise.ip().to_string()}],
            "ports": [{"name": "https", "port": settings.advertise.port(), "protocol": "TCP"}],
        }],
    })
}
