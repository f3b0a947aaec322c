use http::{HeaderMap, Method};
use k8s_openapi::api::core::v1::{Secret, Service};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::*;
use crate::backend::Registry;
use crate::resolve::{Certificates, Named};
use crate::table::{Action, Facts, PortTable, Target};

/// What a test says of a cluster.
struct Cluster {
    gateways: Vec<Arc<Gateway>>,
    routes: Vec<Arc<HTTPRoute>>,
    grpc_routes: Vec<Arc<GRPCRoute>>,
    grants: Vec<Arc<ReferenceGrant>>,
}

fn of<K: serde::de::DeserializeOwned>(namespace: &str, name: &str, spec: Value) -> Arc<K> {
    let object = json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec});
    Arc::new(serde_json::from_value(object).unwrap())
}

fn service(namespace: &str, name: &str) -> Option<Arc<Service>> {
    if name == "alias" {
        let spec = json!({"type": "ExternalName", "externalName": "a.other.svc.cluster.local"});
        return Some(of(namespace, name, spec));
    }
    (["a", "b"].contains(&name)).then(|| of(namespace, name, json!({"ports": [{"port": 80}]})))
}

fn secret(_: &str, name: &str) -> Option<Arc<Secret>> {
    (name == "good").then(|| {
        let made = rcgen::generate_simple_self_signed(["s.example".to_owned()]).unwrap();
        let data = [
            ("tls.crt", made.cert.pem()),
            ("tls.key", made.signing_key.serialize_pem()),
        ];
        let data =
            data.map(|(key, pem)| (key.to_owned(), k8s_openapi::ByteString(pem.into_bytes())));
        Arc::new(Secret {
            data: Some(data.into_iter().collect()),
            ..Secret::default()
        })
    })
}

impl Cluster {
    fn new(listeners: Value) -> Self {
        let spec = json!({"gatewayClassName": "coxswain", "listeners": listeners});
        Self {
            gateways: vec![of("infra", "g", spec)],
            routes: Vec::new(),
            grpc_routes: Vec::new(),
            grants: Vec::new(),
        }
    }

    fn route(mut self, namespace: &str, name: &str, mut spec: Value) -> Self {
        if spec["parentRefs"].is_null() {
            spec["parentRefs"] = json!([{"name": "g", "namespace": "infra"}]);
        }
        self.routes.push(of(namespace, name, spec));
        self
    }

    fn compile(&self) -> (Table, Output) {
        let (registry, certificates) = (Registry::default(), Certificates::default());
        let resolver = Resolver {
            services: &service,
            secrets: &secret,
            registry: &registry,
            certificates: &certificates,
            named: Mutex::new(Named::default()),
        };
        let labels = |namespace: &str| match namespace {
            "friend" => Labels::from([("team".to_owned(), "friends".to_owned())]),
            _ => Labels::new(),
        };
        let input = Input {
            gateways: &self.gateways,
            routes: &self.routes,
            grpc_routes: &self.grpc_routes,
            grants: &self.grants,
            labels: &labels,
        };
        let mut table = Table::default();
        let output = add(&mut table, &input, &resolver);
        table.ports.values_mut().for_each(PortTable::settle);
        (table, output)
    }
}

/// What becomes of a request, in a word.
fn fate(table: &Table, port: Port, host: &str, path: &str, header: &str) -> String {
    let mut headers = HeaderMap::new();
    if !header.is_empty() {
        headers.insert("x-canary", header.parse().unwrap());
    }
    let facts = Facts {
        host,
        path,
        query: None,
        method: &Method::GET,
        headers: &headers,
    };
    let Some(route) = table.ports.get(&port).and_then(|port| port.find(&facts)) else {
        return "404".into();
    };
    let rewrite = route.edits.path.as_ref().map_or(String::new(), |rewrite| {
        format!(" as {}", rewrite.apply(path, &route.matches[0].path))
    });
    let action = match &*route.action {
        Action::Forward(targets) => {
            let targets = targets.iter().map(|one| match &one.target {
                Target::Backend(backend) => format!("{}*{}", backend.key.service, one.weight),
                Target::Missing(status, why) => format!("{} {why}", status.as_u16()),
            });
            targets.collect::<Vec<_>>().join(" ")
        }
        Action::Redirect(redirect) => format!(
            "{} to {:?}",
            redirect.status.as_u16(),
            redirect.scheme.unwrap_or("same")
        ),
        Action::Refuse(status, why) => format!("{} {why}", status.as_u16()),
    };
    format!("{action}{rewrite}")
}

/// The key of an HTTPRoute.
fn http(namespace: &str, name: &str) -> (Kind, (String, String)) {
    (Kind::Http, (namespace.to_owned(), name.to_owned()))
}

/// The conditions, in words.
fn said(conditions: &[Condition]) -> String {
    let words = conditions.iter().map(|one| {
        format!(
            "{}{}:{}",
            if one.holds { "" } else { "!" },
            one.kind,
            one.reason
        )
    });
    words.collect::<Vec<_>>().join(" ")
}

fn all() -> Value {
    json!([{"name": "web", "port": 80, "protocol": "HTTP", "allowedRoutes": {"namespaces": {"from": "All"}}}])
}

#[test]
fn matches_filters_and_weights() {
    let to = |name: &str, weight: u32| json!({"name": name, "port": 80, "weight": weight});
    let rules = json!([
        {"backendRefs": [to("a", 9), to("b", 1)]},
        {"matches": [{"path": {"type": "PathPrefix", "value": "/api"}}, {"headers": [{"name": "X-Canary", "value": "yes"}]}],
         "filters": [{"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/v2"}}}],
         "backendRefs": [to("b", 1)]},
        {"matches": [{"path": {"type": "Exact", "value": "/old"}}],
         "filters": [{"type": "RequestRedirect", "requestRedirect": {"scheme": "https", "statusCode": 301}}]},
        {"matches": [{"path": {"value": "/gone"}}], "backendRefs": [to("c", 1)]},
        {"matches": [{"path": {"value": "/nowhere"}}]},
        {"matches": [{"path": {"type": "RegularExpression", "value": "/[0-9]+/x"}}], "backendRefs": [to("a", 1)]},
    ]);
    let cluster = Cluster::new(all()).route(
        "default",
        "r",
        json!({"hostnames": ["a.example"], "rules": rules}),
    );
    let (table, output) = cluster.compile();
    for (case, path, header, expected) in [
        ("what no match narrows", "/x", "", "default/a*9 default/b*1"),
        (
            "a prefix that is rewritten",
            "/api/users",
            "",
            "default/b*1 as /v2/users",
        ),
        (
            "one of two matches of a rule",
            "/y",
            "yes",
            "default/b*1 as /v2/y",
        ),
        ("a redirect", "/old", "", "301 to \"https\""),
        (
            "a Service that is not there",
            "/gone",
            "",
            "500 Service default/c does not exist.",
        ),
        ("nobody at all", "/nowhere", "", ""),
        ("a pattern", "/42/x", "", "default/a*1"),
    ] {
        assert_eq!(
            fate(&table, Port::Http, "a.example", path, header),
            expected,
            "{case}"
        );
    }
    assert_eq!(fate(&table, Port::Http, "b.example", "/", ""), "404");
    let states = &output.routes[&http("default", "r")];
    assert_eq!(
        said(&states[0].conditions),
        "Accepted:Accepted !ResolvedRefs:BackendNotFound"
    );
    let listener = &output.gateways[&("infra".to_owned(), "g".to_owned())][0];
    assert_eq!(listener.attached, 1);
    assert_eq!(
        said(&listener.conditions),
        "Accepted:Accepted !Conflicted:NoConflicts ResolvedRefs:ResolvedRefs"
    );
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn who_may_attach_where() {
    let listeners = json!([
        {"name": "same", "port": 80, "protocol": "HTTP", "hostname": "*.same.example"},
        {"name": "friends", "port": 8080, "protocol": "HTTP",
         "allowedRoutes": {"namespaces": {"from": "Selector", "selector": {"matchLabels": {"team": "friends"}}}}},
        {"name": "grpc", "port": 80, "protocol": "HTTP", "hostname": "g.example", "allowedRoutes": {"kinds": [{"kind": "GRPCRoute"}]}},
    ]);
    let rules = json!([{"backendRefs": [{"name": "a", "port": 80}]}]);
    for (case, namespace, parent, hosts, expected) in [
        (
            "its own namespace, a host below",
            "infra",
            json!({"name": "g", "sectionName": "same"}),
            json!(["x.same.example"]),
            "Accepted:Accepted ResolvedRefs:ResolvedRefs",
        ),
        (
            "no host in common",
            "infra",
            json!({"name": "g", "sectionName": "same"}),
            json!(["x.example"]),
            "!Accepted:NoMatchingListenerHostname ResolvedRefs:ResolvedRefs",
        ),
        (
            "another namespace",
            "default",
            json!({"name": "g", "namespace": "infra", "sectionName": "same"}),
            json!([]),
            "!Accepted:NotAllowedByListeners ResolvedRefs:ResolvedRefs",
        ),
        (
            "a namespace by its label",
            "friend",
            json!({"name": "g", "namespace": "infra"}),
            json!([]),
            "Accepted:Accepted ResolvedRefs:ResolvedRefs",
        ),
        (
            "no such listener",
            "infra",
            json!({"name": "g", "sectionName": "none"}),
            json!([]),
            "!Accepted:NoMatchingParent ResolvedRefs:ResolvedRefs",
        ),
        (
            "no such port",
            "infra",
            json!({"name": "g", "port": 81}),
            json!([]),
            "!Accepted:NoMatchingParent ResolvedRefs:ResolvedRefs",
        ),
        (
            "a listener for other kinds",
            "infra",
            json!({"name": "g", "sectionName": "grpc"}),
            json!([]),
            "!Accepted:NotAllowedByListeners ResolvedRefs:ResolvedRefs",
        ),
    ] {
        let spec = json!({"parentRefs": [parent], "hostnames": hosts, "rules": rules});
        let (_, output) = Cluster::new(listeners.clone())
            .route(namespace, "r", spec)
            .compile();
        let states = &output.routes[&http(namespace, "r")];
        assert_eq!(said(&states[0].conditions), expected, "{case}");
    }
    let (_, output) = Cluster::new(all())
        .route(
            "default",
            "r",
            json!({"parentRefs": [{"name": "other", "namespace": "infra"}]}),
        )
        .compile();
    assert!(
        output.routes.is_empty(),
        "a parent that is not ours is not our business"
    );
}

#[test]
fn listeners_that_cannot_be_served() {
    let tls = |name: &str, namespace: &str| json!({"certificateRefs": [{"name": name, "namespace": namespace}]});
    let listeners = json!([
        {"name": "good", "port": 443, "protocol": "HTTPS", "hostname": "s.example", "tls": tls("good", "infra")},
        {"name": "gone", "port": 443, "protocol": "HTTPS", "hostname": "t.example", "tls": tls("gone", "infra")},
        {"name": "foreign", "port": 443, "protocol": "HTTPS", "hostname": "u.example", "tls": tls("good", "other")},
        {"name": "twin", "port": 443, "protocol": "HTTPS", "hostname": "s.example", "tls": tls("good", "infra")},
        {"name": "mixed", "port": 443, "protocol": "HTTP"},
        {"name": "tcp", "port": 9000, "protocol": "TCP"},
    ]);
    let mut cluster = Cluster::new(listeners);
    let (table, output) = cluster.compile();
    let states = &output.gateways[&("infra".to_owned(), "g".to_owned())];
    let found: Vec<String> = states
        .iter()
        .map(|one| format!("{} {}", one.name, said(&one.conditions)))
        .collect();
    assert_eq!(
        found,
        [
            "good Accepted:Accepted !Conflicted:NoConflicts ResolvedRefs:ResolvedRefs",
            "gone Accepted:Accepted !Conflicted:NoConflicts !ResolvedRefs:InvalidCertificateRef",
            "foreign Accepted:Accepted !Conflicted:NoConflicts !ResolvedRefs:RefNotPermitted",
            "twin !Accepted:HostnameConflict Conflicted:HostnameConflict ResolvedRefs:ResolvedRefs",
            "mixed !Accepted:ProtocolConflict Conflicted:ProtocolConflict ResolvedRefs:ResolvedRefs",
            "tcp !Accepted:UnsupportedProtocol ResolvedRefs:ResolvedRefs",
        ]
    );
    assert!(
        table.ports[&Port::Https]
            .certificates
            .get("s.example")
            .is_some()
    );
    assert!(
        table.ports[&Port::Https]
            .certificates
            .get("t.example")
            .is_none()
    );
    cluster.grants.push(of("other", "grant", json!({
        "from": [{"group": GROUP, "kind": "Gateway", "namespace": "infra"}], "to": [{"group": "", "kind": "Secret"}]})));
    let (table, _) = cluster.compile();
    assert!(
        table.ports[&Port::Https]
            .certificates
            .get("u.example")
            .is_some(),
        "a grant lets it"
    );
}

#[test]
fn backends_of_other_namespaces_need_a_grant() {
    let rules = json!([{"backendRefs": [{"name": "a", "namespace": "other", "port": 80}]}]);
    let mut cluster = Cluster::new(all()).route("default", "r", json!({"rules": rules}));
    let (table, output) = cluster.compile();
    assert_eq!(
        fate(&table, Port::Http, "h", "/", ""),
        "500 No ReferenceGrant lets HTTPRoutes of default use Service other/a."
    );
    let key = http("default", "r");
    assert_eq!(
        said(&output.routes[&key][0].conditions),
        "Accepted:Accepted !ResolvedRefs:RefNotPermitted"
    );
    cluster.grants.push(of("other", "grant", json!({
        "from": [{"group": GROUP, "kind": "HTTPRoute", "namespace": "default"}], "to": [{"group": "", "kind": "Service", "name": "a"}]})));
    let (table, _) = cluster.compile();
    assert_eq!(fate(&table, Port::Http, "h", "/", ""), "other/a*1");
}

#[test]
fn a_filter_that_is_not_served_lets_nothing_through() {
    let rules = json!([{"filters": [{"type": "ExtensionRef"}], "backendRefs": [{"name": "a", "port": 80}]}]);
    let (table, output) = Cluster::new(all())
        .route("default", "r", json!({"rules": rules}))
        .compile();
    assert_eq!(
        fate(&table, Port::Http, "h", "/", ""),
        "500 Filter ExtensionRef is not served."
    );
    let key = http("default", "r");
    assert_eq!(
        said(&output.routes[&key][0].conditions),
        "!Accepted:UnsupportedValue ResolvedRefs:ResolvedRefs"
    );
}

#[test]
fn methods_of_grpc_are_routed_over_http2() {
    let to = |name: &str| json!([{"name": name, "port": 80}]);
    let mut cluster = Cluster::new(all());
    let rules = json!([
        {"matches": [{"method": {"service": "shop.Stock", "method": "Count"}}], "backendRefs": to("a")},
        {"matches": [{"method": {"service": "shop.Stock"}}], "backendRefs": to("b")},
    ]);
    let parents = json!([{"name": "g", "namespace": "infra"}]);
    let spec = json!({"parentRefs": parents, "hostnames": ["g.example"], "rules": rules});
    cluster.grpc_routes.push(of("default", "r", spec));
    let (table, output) = cluster.compile();
    for (path, expected) in [
        ("/shop.Stock/Count", "default/a*1"),
        ("/shop.Stock/Add", "default/b*1"),
        ("/shop.Stocks/Add", "404"),
    ] {
        assert_eq!(fate(&table, Port::Http, "g.example", path, ""), expected);
    }
    let (facts_path, headers) = ("/shop.Stock/Add", HeaderMap::new());
    let facts = Facts {
        host: "g.example",
        path: facts_path,
        query: None,
        method: &Method::POST,
        headers: &headers,
    };
    let route = table.ports[&Port::Http].find(&facts).unwrap();
    let Action::Forward(targets) = &*route.action else {
        panic!("it leads nowhere");
    };
    let Target::Backend(backend) = &targets[0].target else {
        panic!("it leads to nobody");
    };
    assert!(backend.key.protocol.is_http2());
    let key = (Kind::Grpc, ("default".to_owned(), "r".to_owned()));
    assert_eq!(
        said(&output.routes[&key][0].conditions),
        "Accepted:Accepted ResolvedRefs:ResolvedRefs"
    );
}

#[test]
fn of_two_kinds_of_routes_the_older_holds_a_host() {
    let rules = json!([{"backendRefs": [{"name": "a", "port": 80}]}]);
    let parents = json!([{"name": "g", "namespace": "infra"}]);
    for (case, host, expected) in [
        ("the same host", "a.example", "!Accepted:HostnameConflict"),
        (
            "one that holds it",
            "*.example",
            "!Accepted:HostnameConflict",
        ),
        ("another one", "b.example", "Accepted:Accepted"),
    ] {
        let spec = json!({"hostnames": ["a.example"], "rules": rules});
        let mut cluster = Cluster::new(all()).route("default", "r", spec);
        // Of the same age: the one whose place comes first counts as the older.
        let spec = json!({"parentRefs": parents, "hostnames": [host], "rules": rules});
        cluster.grpc_routes.push(of("default", "s", spec));
        let (_, output) = cluster.compile();
        let key = (Kind::Grpc, ("default".to_owned(), "s".to_owned()));
        let expected = format!("{expected} ResolvedRefs:ResolvedRefs");
        assert_eq!(said(&output.routes[&key][0].conditions), expected, "{case}");
        let listener = &output.gateways[&("infra".to_owned(), "g".to_owned())][0];
        let attached = 1 + usize::from(!expected.starts_with('!'));
        assert_eq!(listener.attached, attached, "{case}");
    }
}

#[test]
fn a_mere_name_of_a_service_elsewhere_needs_the_grant_too() {
    let rules = json!([{"backendRefs": [{"name": "alias", "port": 80}]}]);
    let mut cluster = Cluster::new(all()).route("default", "r", json!({"rules": rules}));
    let (table, _) = cluster.compile();
    assert_eq!(
        fate(&table, Port::Http, "h", "/", ""),
        "500 No ReferenceGrant lets HTTPRoutes of default use Service other/a."
    );
    cluster.grants.push(of("other", "grant", json!({
        "from": [{"group": GROUP, "kind": "HTTPRoute", "namespace": "default"}], "to": [{"group": "", "kind": "Service"}]})));
    let (table, _) = cluster.compile();
    assert_eq!(fate(&table, Port::Http, "h", "/", ""), "other/a*1");
}

#[test]
fn a_mirror_that_is_not_there_is_said_and_stops_nobody() {
    let mirror = |name: &str| json!({"type": "RequestMirror", "requestMirror": {"backendRef": {"name": name, "port": 80}, "percent": 50}});
    for (name, mirrors, said_of) in [
        ("b", 1, "Accepted:Accepted ResolvedRefs:ResolvedRefs"),
        ("gone", 0, "Accepted:Accepted !ResolvedRefs:BackendNotFound"),
    ] {
        let rules =
            json!([{"filters": [mirror(name)], "backendRefs": [{"name": "a", "port": 80}]}]);
        let (table, output) = Cluster::new(all())
            .route("default", "r", json!({"rules": rules}))
            .compile();
        assert_eq!(fate(&table, Port::Http, "h", "/", ""), "default/a*1");
        let headers = HeaderMap::new();
        let facts = Facts {
            host: "h",
            path: "/",
            query: None,
            method: &Method::GET,
            headers: &headers,
        };
        let route = table.ports[&Port::Http].find(&facts).unwrap();
        assert_eq!(route.edits.mirrors.len(), mirrors, "{name}");
        assert!(route.edits.mirrors.iter().all(|one| one.share == (50, 100)));
        let state = &output.routes[&http("default", "r")][0];
        assert_eq!(said(&state.conditions), said_of, "{name}");
    }
}
