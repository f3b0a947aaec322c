use http::HeaderMap;

use super::*;

fn route(name: &str, one: Match) -> Arc<Route> {
    Arc::new(Route {
        matches: vec![one],
        age: Age {
            name: name.into(),
            ..Age::default()
        },
        edits: Edits::default(),
        action: Arc::new(Action::Refuse(StatusCode::NOT_FOUND, "".into())),
        https_only: false,
        limits: Limits::default(),
    })
}

fn found(table: &PortTable, host: &str, path: &str) -> String {
    let headers = HeaderMap::new();
    let facts = Facts {
        host,
        path,
        query: None,
        method: &Method::GET,
        headers: &headers,
    };
    table
        .find(&facts)
        .map_or("-".into(), |route| route.age.name.clone())
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn the_most_specific_host_and_then_the_longest_path_win() {
    let mut table = PortTable::default();
    let mut add = |name: &str, host: HostPattern, path: PathMatch| {
        table.hosts.entry(host).push(route(name, Match::path(path)));
    };
    let exact = |path: &str| PathMatch::Exact(path.into());
    add("any", HostPattern::Any, PathMatch::prefix("/"));
    add("any-deep", HostPattern::Any, PathMatch::prefix("/deep/er"));
    add(
        "a",
        HostPattern::of_ingress("a.example"),
        PathMatch::prefix("/shop/"),
    );
    add(
        "a-cart",
        HostPattern::of_ingress("A.example"),
        PathMatch::prefix("/shop/cart"),
    );
    add(
        "a-exact",
        HostPattern::of_ingress("a.example"),
        exact("/shop/cart"),
    );
    add(
        "one",
        HostPattern::of_ingress("*.example"),
        PathMatch::prefix("/star"),
    );
    add(
        "many",
        HostPattern::of_gateway("*.example"),
        PathMatch::prefix("/stars"),
    );
    table
        .fallback
        .push(route("default", Match::path(PathMatch::prefix("/"))));
    table.settle();
    for (case, host, path, expected) in [
        ("a host of its own", "a.example", "/shop", "a"),
        ("with a slash", "a.example", "/shop/", "a"),
        ("below", "a.example", "/shop/x/y", "a"),
        ("elements, not letters", "a.example", "/shopping", "any"),
        ("the longer prefix", "a.example", "/shop/cart/1", "a-cart"),
        (
            "exact goes before prefix",
            "a.example",
            "/shop/cart",
            "a-exact",
        ),
        ("exact means exact", "a.example", "/shop/cart/", "a-cart"),
        (
            "a path that the host does not have is asked of the wildcard",
            "a.example",
            "/star",
            "one",
        ),
        ("a wildcard", "b.example", "/star", "one"),
        (
            "a wildcard is one label for an Ingress",
            "c.b.example",
            "/star",
            "any",
        ),
        (
            "and any number for a Gateway",
            "c.b.example",
            "/stars",
            "many",
        ),
        ("not none", "example", "/stars", "any"),
        ("no host of ours", "other", "/deep/er/still", "any-deep"),
    ] {
        assert_eq!(found(&table, host, path), expected, "{case}");
    }
    let mut empty = PortTable::default();
    assert_eq!(found(&empty, "a", "/"), "-");
    empty
        .fallback
        .push(route("default", Match::path(PathMatch::prefix("/"))));
    assert_eq!(found(&empty, "a", "/"), "default");
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn methods_headers_and_parameters_decide() {
    let regex = |text: &str| ValueMatch::Regex(regex::Regex::new(text).unwrap());
    let of = |conditions: Conditions| Match {
        path: PathMatch::prefix("/"),
        conditions,
    };
    let mut table = PortTable::default();
    let routes = table.hosts.entry(HostPattern::Any);
    routes.push(route("plain", of(Conditions::default())));
    routes.push(route(
        "post",
        of(Conditions {
            method: Some(Method::POST),
            ..Conditions::default()
        }),
    ));
    routes.push(route(
        "canary",
        of(Conditions {
            headers: vec![(
                HeaderName::from_static("x-canary"),
                ValueMatch::Exact("yes".into()),
            )],
            ..Conditions::default()
        }),
    ));
    routes.push(route(
        "query",
        of(Conditions {
            query: vec![("a b".into(), regex("^[0-9]+$"))],
            ..Conditions::default()
        }),
    ));
    table.settle();
    for (case, method, header, query, expected) in [
        ("nothing special", Method::GET, None, None, "plain"),
        ("a method", Method::POST, None, None, "post"),
        ("a header", Method::GET, Some("yes"), None, "canary"),
        ("another value", Method::GET, Some("no"), None, "plain"),
        (
            "a method goes before a header",
            Method::POST,
            Some("yes"),
            None,
            "post",
        ),
        (
            "a parameter, encoded",
            Method::GET,
            None,
            Some("x=1&a%20b=42"),
            "query",
        ),
        (
            "a parameter that does not fit",
            Method::GET,
            None,
            Some("a+b=4x"),
            "plain",
        ),
        (
            "the first of two counts",
            Method::GET,
            None,
            Some("a+b=x&a+b=1"),
            "plain",
        ),
    ] {
        let mut headers = HeaderMap::new();
        if let Some(value) = header {
            headers.insert("x-canary", HeaderValue::from_static(value));
        }
        let facts = Facts {
            host: "h",
            path: "/",
            query,
            method: &method,
            headers: &headers,
        };
        assert_eq!(table.find(&facts).unwrap().age.name, expected, "{case}");
    }
}
