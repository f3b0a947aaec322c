//! Requests from outside, through the whole program, with curl as a user has it.
#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "tests are tables and stories, and fail by panicking"
)]

use std::path::Path;
use std::process::Command;

use cox_testkit::linux::{Network, can_make_networks};
use cox_testkit::{Cluster, Output, Process, eventually};
use serde_json::Value;

const COX: &str = env!("CARGO_BIN_EXE_cox");

const INGRESS: &str = r#"
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: front}
spec:
  rules:
  - host: a.example
    http:
      paths:
      - {path: /api, pathType: Prefix, backend: {service: {name: http, port: {name: web}}}}
      - {path: /gone, pathType: Prefix, backend: {service: {name: gone, port: {number: 80}}}}
  - host: s.example
    http:
      paths:
      - {path: /, pathType: Prefix, backend: {service: {name: http, port: {number: 80}}}}
  tls:
  - {hosts: [s.example], secretName: s}
"#;

/// A cluster whose ports for Ingresses are any that are free.
fn cluster(args: &[&str]) -> Cluster {
    let own = [
        "--no-follow",
        "--ingress-http-port=0",
        "--ingress-https-port=0",
    ];
    Cluster::up(COX, &[args, &own].concat())
}

/// The ports in the status of an Ingress, once they are there.
fn ports(cluster: &Cluster, ingress: &str, count: usize) -> Vec<u64> {
    let mut ports = Vec::new();
    eventually("the Ingress to have ports", || {
        let status = cluster.json(&["get", "ingress", ingress])["status"].clone();
        let shown = &status["loadBalancer"]["ingress"][0];
        let listed = shown["ports"].as_array().cloned().unwrap_or_default();
        ports = listed
            .iter()
            .filter_map(|one| one["port"].as_u64())
            .collect();
        match ports.len() == count && shown["ip"] == "127.0.0.1" {
            true => Ok(()),
            false => Err(status.to_string()),
        }
    });
    ports
}

/// A Secret with a certificate for a host; where the certificate stands.
fn secret(cluster: &Cluster, namespace: &str, name: &str, host: &str) -> String {
    let dir = cluster.scratch();
    let file = |part: &str| {
        let path = dir.join(format!("{namespace}-{name}-{part}.pem"));
        path.to_str().unwrap().to_owned()
    };
    let (certificate, key) = (file("crt"), file("key"));
    let made = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    let (subject, names) = (format!("/CN={host}"), format!("subjectAltName=DNS:{host}"));
    Output::of(
        Command::new("openssl")
            .args(made.split(' '))
            .args(["-keyout", &key, "-out", &certificate])
            .args(["-subj", &subject, "-addext", &names]),
    )
    .ok();
    let (cert, key) = (format!("--cert={certificate}"), format!("--key={key}"));
    cluster
        .kubectl(&[
            "create", "secret", "tls", name, "-n", namespace, &cert, &key,
        ])
        .ok();
    certificate
}

/// What curl prints: the body, and the status on a line of its own.
fn curl(args: &[&str]) -> Output {
    Output::of(
        Command::new("curl")
            .args(["-sS", "--max-time", "20", "-w", "%{http_code}\n"])
            .args(args),
    )
}

#[test]
fn an_ingress_leads_to_a_service() {
    let cluster = cluster(&["examples/http"]);
    let class = cluster.json(&["get", "ingressclass", "coxswain"]);
    assert_eq!(class["spec"]["controller"], "coxswain.dev/ingress");
    assert_eq!(
        class["metadata"]["annotations"]["ingressclass.kubernetes.io/is-default-class"],
        "true"
    );
    cluster.apply(INGRESS).ok();
    let ports = ports(&cluster, "front", 2);
    let (http, https) = (ports[0], ports[1]);
    let get = |host: &str, path: &str| {
        let (host, url) = (
            format!("Host: {host}"),
            format!("http://127.0.0.1:{http}{path}"),
        );
        curl(&["-H", &host, &url]).ok()
    };
    let answer = get("a.example", "/api/x?y=1");
    assert!(
        answer.starts_with("Hello from http-")
            && answer.ends_with("you asked for /api/x?y=1\n200\n"),
        "{answer}"
    );
    assert_eq!(
        get("a.example", "/apix"),
        "No route takes this host and path.\n404\n"
    );
    assert_eq!(
        get("b.example", "/api"),
        "No route takes this host and path.\n404\n"
    );
    assert_eq!(
        get("a.example", "/gone"),
        "Service default/gone does not exist.\n503\n"
    );
    let redirect = curl(&[
        "-o",
        "/dev/null",
        "-H",
        "Host: s.example",
        "-w",
        "%{redirect_url} ",
        &format!("http://127.0.0.1:{http}/x?y"),
    ]);
    assert_eq!(redirect.ok(), format!("https://s.example:{https}/x?y "));

    eventually("the owner to be told", || {
        let events = cluster.json(&[
            "get",
            "events",
            "--field-selector=involvedObject.kind=Ingress",
        ]);
        let said: Vec<&str> = events["items"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|one| one["message"].as_str())
            .collect();
        let expected = [
            "Service default/gone does not exist.",
            "Secret default/s of type kubernetes.io/tls does not exist.",
        ];
        match expected.iter().all(|one| said.contains(one)) {
            true => Ok(()),
            false => Err(format!("{said:?}")),
        }
    });

    let certificate = &secret(&cluster, "default", "s", "s.example");
    let (resolve, url) = (
        format!("s.example:{https}:127.0.0.1"),
        format!("https://s.example:{https}/deep"),
    );
    eventually("the certificate to be shown", || {
        let answer = curl(&[
            "--cacert",
            certificate,
            "--resolve",
            &resolve,
            "-w",
            "%{http_code} %{http_version}\n",
            &url,
        ]);
        let good = answer.stdout.ends_with("you asked for /deep\n200 2\n");
        if good {
            Ok(())
        } else {
            Err(format!("{}{}", answer.stdout, answer.stderr))
        }
    });

    cluster.kubectl(&["delete", "ingress", "front"]).ok();
    eventually("the port to be closed", || {
        let answer = curl(&[&format!("http://127.0.0.1:{http}/")]);
        if answer.status.success() {
            Err(answer.stdout)
        } else {
            Ok(())
        }
    });
    let left: Value = cluster.json(&["get", "ingressclass"]);
    assert_eq!(left["items"].as_array().unwrap().len(), 1);
}

const GATEWAY: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: front}
spec:
  gatewayClassName: coxswain
  listeners:
  - {name: web, port: 80, protocol: HTTP, hostname: "*.example"}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: front}
spec:
  parentRefs: [{name: front}]
  hostnames: [a.example]
  rules:
  - matches: [{path: {type: PathPrefix, value: /api}}]
    filters:
    - {type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /v2}}}
    - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-served-by, value: front}]}}
    backendRefs: [{name: http, port: 80}]
  - matches: [{path: {type: Exact, value: /old}}]
    filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /new}, statusCode: 301}}]
  - matches: [{path: {value: /gone}}]
    backendRefs: [{name: gone, port: 80}]
  - matches: [{path: {value: /open}}]
    filters:
    - {type: CORS, cors: {allowOrigins: ["https://*.example"], allowMethods: [GET, PUT], allowCredentials: true, maxAge: 60}}
    - {type: RequestMirror, requestMirror: {backendRef: {name: http, port: 80}, fraction: {numerator: 1, denominator: 2}}}
    backendRefs: [{name: http, port: 80}]
"#;

/// The condition of this type, as `STATUS reason message`.
fn condition(conditions: &Value, kind: &str) -> String {
    let all = conditions.as_array().cloned().unwrap_or_default();
    let one = all
        .into_iter()
        .find(|one| one["type"] == kind)
        .unwrap_or_default();
    let text = |field: &str| one[field].as_str().unwrap_or_default().to_owned();
    format!("{} {} {}", text("status"), text("reason"), text("message"))
}

/// Definitions and class are made after the cluster says that it is ready.
fn gateway_api_is_served(cluster: &Cluster) {
    eventually("the class of Gateways to be accepted", || {
        let class = cluster.kubectl(&["get", "gatewayclass", "coxswain", "-o", "json"]);
        let class: Value = serde_json::from_str(&class.stdout).map_err(|_| class.stderr)?;
        let said = condition(&class["status"]["conditions"], "Accepted");
        match said.starts_with("True") {
            true => Ok(()),
            false => Err(said),
        }
    });
}

/// Where a listener of a Gateway takes requests.
fn taken_at(cluster: &Cluster, gateway: &str, listener: usize) -> String {
    let status = cluster.json(&["get", "gateway", gateway])["status"].clone();
    let said = condition(&status["listeners"][listener]["conditions"], "Programmed");
    said.strip_prefix("True Programmed Requests are taken at ")
        .unwrap_or_else(|| panic!("{status}"))
        .trim_end_matches('.')
        .to_owned()
}

#[test]
fn a_gateway_leads_to_a_service() {
    let cluster = cluster(&["examples/http"]);
    gateway_api_is_served(&cluster);
    cluster.apply(GATEWAY).ok();
    cluster.wait("condition=Programmed", "gateway/front");
    let at = taken_at(&cluster, "front", 0);
    eventually("the route to be attached", || {
        let status = cluster.json(&["get", "gateway", "front"])["status"].clone();
        if status["listeners"][0]["attachedRoutes"] == 1 {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
    let get =
        |path: &str| curl(&["-i", "-H", "Host: a.example", &format!("http://{at}{path}")]).ok();
    // The Pod is ready before its endpoint stands in a slice.
    let answer = eventually("an endpoint to answer", || {
        let answer = get("/api/x");
        match answer.ends_with("503\n") {
            true => Err(answer),
            false => Ok(answer),
        }
    });
    assert!(
        answer.contains("x-served-by: front") && answer.ends_with("you asked for /v2/x\n200\n"),
        "{answer}"
    );
    assert!(get("/old").contains("location: http://a.example/new"));
    assert!(get("/gone").ends_with("Service default/gone does not exist.\n500\n"));
    let url = format!("http://{at}/open");
    let page = [
        "-i",
        "-H",
        "Host: a.example",
        "-H",
        "Origin: https://shop.example",
        &url,
    ];
    let question = ["-X", "OPTIONS", "-H", "Access-Control-Request-Method: PUT"];
    let told = curl(&[&page[..], &question].concat()).ok();
    for line in [
        "access-control-allow-origin: https://shop.example\r\n",
        "access-control-allow-methods: GET, PUT\r\n",
        "access-control-max-age: 60\r\n",
    ] {
        assert!(told.contains(line) && told.ends_with("204\n"), "{told}");
    }
    for _ in 0..10 {
        let answer = curl(&page).ok();
        assert!(
            answer.contains("access-control-allow-credentials: true\r\n")
                && answer.ends_with("you asked for /open\n200\n"),
            "{answer}"
        );
    }
    let route = cluster.json(&["get", "httproute", "front"])["status"]["parents"][0].clone();
    assert_eq!(route["controllerName"], "coxswain.dev/gateway");
    assert_eq!(
        condition(&route["conditions"], "Accepted"),
        "True Accepted "
    );
    assert_eq!(
        condition(&route["conditions"], "ResolvedRefs"),
        "False BackendNotFound Service default/gone does not exist."
    );
    cluster.kubectl(&["delete", "gateway", "front"]).ok();
    eventually("the route to be nobody's, and the port closed", || {
        let route = cluster.json(&["get", "httproute", "front"])["status"].clone();
        let answer = curl(&[&format!("http://{at}/api")]);
        let gone =
            route["parents"].as_array().is_some_and(Vec::is_empty) && !answer.status.success();
        if gone {
            Ok(())
        } else {
            Err(format!("{route} {}", answer.stdout))
        }
    });
}

const SECURE: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: secure}
spec:
  gatewayClassName: coxswain
  listeners:
  - {name: own, port: 443, protocol: HTTPS, hostname: s.example, tls: {certificateRefs: [{name: s}]}}
  - {name: foreign, port: 443, protocol: HTTPS, hostname: t.example, tls: {certificateRefs: [{name: t, namespace: certs}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: secure}
spec:
  parentRefs: [{name: secure}]
  rules:
  - backendRefs: [{name: http, port: 80}]
"#;

const GRANT: &str = r#"
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: gateways, namespace: certs}
spec:
  from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: default}]
  to: [{group: "", kind: Secret, name: t}]
"#;

#[test]
fn a_gateway_ends_tls_with_the_certificates_that_it_may_use() {
    let cluster = cluster(&["examples/http"]);
    gateway_api_is_served(&cluster);
    cluster.kubectl(&["create", "namespace", "certs"]).ok();
    let own = secret(&cluster, "default", "s", "s.example");
    let foreign = secret(&cluster, "certs", "t", "t.example");
    cluster.apply(SECURE).ok();
    cluster.wait("condition=Programmed", "gateway/secure");
    let at = taken_at(&cluster, "secure", 0);
    let (ip, port) = at.rsplit_once(':').unwrap();
    let ask = |host: &str, trusted: &str| {
        let (resolve, url) = (
            format!("{host}:{port}:{ip}"),
            format!("https://{host}:{port}/x"),
        );
        let format = "%{http_code} %{http_version}\n";
        curl(&[
            "--cacert",
            trusted,
            "--resolve",
            &resolve,
            "-w",
            format,
            &url,
        ])
    };
    let good = "you asked for /x\n200 2\n";
    let answered = |host: &str, trusted: &str| {
        let answer = ask(host, trusted);
        match answer.stdout.ends_with(good) {
            true => Ok(()),
            false => Err(format!("{}{}", answer.stdout, answer.stderr)),
        }
    };
    eventually("the certificate of the Gateway's own namespace", || {
        answered("s.example", &own)
    });
    let said = |kind: &str| {
        let status = cluster.json(&["get", "gateway", "secure"])["status"].clone();
        condition(&status["listeners"][1]["conditions"], kind)
    };
    let refused =
        "False RefNotPermitted No ReferenceGrant lets Gateways of default use Secret certs/t.";
    assert_eq!(said("ResolvedRefs"), refused);
    assert_eq!(
        said("Programmed"),
        "False Invalid The listener is not valid."
    );
    let unknown = ask("t.example", &foreign);
    assert!(
        !unknown.status.success(),
        "a name without a certificate ends the handshake: {}",
        unknown.stdout
    );
    // Past the name of the handshake: the listener that is not served has no routes either.
    let (resolve, url) = (
        format!("s.example:{port}:{ip}"),
        format!("https://s.example:{port}/x"),
    );
    let other = curl(&[
        "--cacert",
        &own,
        "--resolve",
        &resolve,
        "-H",
        "Host: t.example",
        &url,
    ]);
    assert!(other.ok().ends_with("404\n"));

    cluster.apply(GRANT).ok();
    eventually("the certificate of the other namespace", || {
        answered("t.example", &foreign)
    });
    eventually("the listener to be told so", || {
        match said("ResolvedRefs").as_str() {
            "True ResolvedRefs " => Ok(()),
            other => Err(other.to_owned()),
        }
    });
    answered("s.example", &own).unwrap();
    cluster
        .kubectl(&["delete", "referencegrant", "-n", "certs", "gateways"])
        .ok();
    eventually("the certificate to be withdrawn", || {
        match ask("t.example", &foreign).status.success() {
            true => Err("still shown"),
            false => Ok(()),
        }
    });
    answered("s.example", &own).unwrap();
}

const METHODS: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: front}
spec:
  gatewayClassName: coxswain
  listeners:
  - {name: web, port: 80, protocol: HTTP}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: stock}
spec:
  parentRefs: [{name: front}]
  hostnames: [stock.example]
  rules:
  - matches: [{method: {service: shop.Stock, method: Count}}]
    backendRefs: [{name: http, port: 80}]
"#;

#[test]
fn a_grpcroute_leads_to_a_method_over_http2() {
    let cluster = cluster(&["examples/http"]);
    gateway_api_is_served(&cluster);
    cluster.apply(METHODS).ok();
    cluster.wait("condition=Programmed", "gateway/front");
    let at = taken_at(&cluster, "front", 0);
    let call = |method: &str| {
        let url = format!("http://{at}/shop.Stock/{method}");
        let format = "%{http_code} %{http_version}\n";
        let host = "Host: stock.example";
        curl(&[
            "--http2-prior-knowledge",
            "-d",
            "x",
            "-H",
            host,
            "-w",
            format,
            &url,
        ])
        .stdout
    };
    eventually("the method to be answered", || {
        let answer = call("Count");
        match answer.ends_with("you asked for /shop.Stock/Count\n200 2\n") {
            true => Ok(()),
            false => Err(answer),
        }
    });
    assert!(call("Add").ends_with("404 2\n"));
    // What serves and what tells of it are two.
    eventually("the route to be told so", || {
        let route = cluster.json(&["get", "grpcroute", "stock"])["status"]["parents"][0].clone();
        let said = |kind: &str| condition(&route["conditions"], kind);
        match (said("Accepted").as_str(), said("ResolvedRefs").as_str()) {
            ("True Accepted ", "True ResolvedRefs ") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

const NAMES: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: neighbour}
spec: {type: ExternalName, externalName: http.default.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: away}
spec: {type: ExternalName, externalName: 192.0.2.7}
---
apiVersion: v1
kind: Service
metadata: {name: here}
spec: {type: ExternalName, externalName: localhost}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: names}
spec:
  rules:
  - http:
      paths:
      - {path: /neighbour, pathType: Prefix, backend: {service: {name: neighbour, port: {number: 80}}}}
      - {path: /away, pathType: Prefix, backend: {service: {name: away, port: {number: 8000}}}}
      - {path: /here, pathType: Prefix, backend: {service: {name: here, port: {number: 8000}}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: names}
spec:
  gatewayClassName: coxswain
  listeners: [{name: web, port: 8099, protocol: HTTP}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: names}
spec:
  parentRefs: [{name: names}]
  rules:
  - matches: [{path: {value: /neighbour}}]
    backendRefs: [{name: neighbour, port: 80}]
  - backendRefs: [{name: away, port: 8000}]
"#;

/// Says which path it was asked for.
const ELSEWHERE: &str = r#"
import http.server
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"elsewhere, {self.path}\n".encode())
    def log_message(self, *_): pass
http.server.HTTPServer(("", 8000), Answer).serve_forever()
"#;

#[test]
fn mere_names_lead_to_services_and_out_of_the_cluster() {
    let test = "mere_names_lead_to_services_and_out_of_the_cluster";
    if !can_make_networks(test) {
        return;
    }
    let args = ["examples/http", "--no-follow"];
    let mut cluster = Cluster::prepare(COX, &args).in_network(Network::new());
    cluster.start();
    let mut address = cluster.inside(Path::new("ip"));
    Output::of(address.args(["address", "add", "192.0.2.7/32", "dev", "lo"])).ok();
    let mut server = cluster.inside(Path::new("python3"));
    let _server = Process::interrupted(server.args(["-c", ELSEWHERE]).spawn().unwrap());
    gateway_api_is_served(&cluster);
    cluster.apply(NAMES).ok();
    let port = ports(&cluster, "names", 1)[0];
    cluster.wait("condition=Programmed", "gateway/names");
    let get = |port: u64, path: &str| {
        let url = format!("http://127.0.0.1:{port}{path}");
        let mut curl = cluster.inside(Path::new("curl"));
        let quiet = ["-sS", "--max-time", "20", "-w", "%{http_code}\n", &url];
        Output::of(curl.args(quiet)).stdout
    };
    for (port, path, end) in [
        (port, "/neighbour/x", "you asked for /neighbour/x\n200\n"),
        (port, "/away/x", "elsewhere, /away/x\n200\n"),
        (8099, "/neighbour/y", "you asked for /neighbour/y\n200\n"),
        (8099, "/away/y", "elsewhere, /away/y\n200\n"),
    ] {
        eventually("an answer by name", || {
            let answer = get(port, path);
            match answer.ends_with(end) {
                true => Ok(()),
                false => Err(format!("{path}: {answer}")),
            }
        });
    }
    // The same server, by a name that leads into the node.
    assert_eq!(
        get(port, "/here"),
        "No endpoint of Service default/here answers.\n502\n"
    );
}

const FRONT: &str = r#"
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: all}
spec: {ingressClassName: coxswain, defaultBackend: {service: {name: http, port: {name: web}}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: front}
spec:
  gatewayClassName: coxswain
  listeners: [{name: web, port: 8099, protocol: HTTP}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: front}
spec:
  parentRefs: [{name: front}]
  rules:
  - backendRefs: [{name: http, port: 80}]
"#;

#[test]
fn joined_nodes_take_requests_too() {
    if !can_make_networks("joined_nodes_take_requests_too") {
        return;
    }
    let switch = Network::new();
    let machine = |address: &str| {
        let network = Network::new();
        network.plug_into(&switch, address);
        Cluster::prepare(COX, &[]).in_network(network)
    };
    let server = machine("192.0.2.1/24");
    let nodes = [("a", "192.0.2.11"), ("b", "192.0.2.12")];
    let agents = nodes.map(|(_, ip)| machine(&format!("{ip}/24")));
    let _control_plane = server.part("server", &["--port", "0", "--bind", "192.0.2.1"]);
    let line = Output::of(&mut server.command("token")).ok();
    let joining: Vec<&str> = line.split_whitespace().skip(2).collect();
    let mut running = Vec::new();
    for ((name, ip), agent) in nodes.iter().zip(&agents) {
        let own = [
            "--node-name",
            name,
            "--node-ip",
            ip,
            "--enable",
            "gateway-api",
        ];
        let alone = ["--containerd-socket", "/nonexistent/c.sock"];
        running.push(agent.part("agent", &[&joining[..], &own, &alone].concat()));
        server.wait("condition=Ready", &format!("node/{name}"));
        Output::of(agent.command("image load").arg("examples/http/http.wasm")).ok();
    }
    eventually("a node that was not let to say so", || {
        let printed = agents[0].printed();
        match printed.contains("bind its user to ClusterRole coxswain:gateway") {
            true => Ok(()),
            false => Err(printed),
        }
    });
    let users = ["--user=system:node:a", "--user=system:node:b"];
    let bind = [
        "create",
        "clusterrolebinding",
        "gateways",
        "--clusterrole=coxswain:gateway",
    ];
    server.kubectl(&[&bind[..], &users].concat()).ok();
    gateway_api_is_served(&server);
    server
        .kubectl(&["apply", "-f", "examples/http/http.yaml"])
        .ok();
    server.apply(FRONT).ok();
    let told = |expected: &[&str]| {
        eventually("both statuses to name the gateways", || {
            let addresses = |object: &str, place: &str, field: &str| -> Vec<String> {
                let status = server.json(&["get", object]);
                let all = status.pointer(place).and_then(Value::as_array).cloned();
                let all = all.unwrap_or_default();
                all.iter()
                    .filter_map(|one| Some(one[field].as_str()?.to_owned()))
                    .collect()
            };
            let ingress = addresses("ingress/all", "/status/loadBalancer/ingress", "ip");
            let gateway = addresses("gateway/front", "/status/addresses", "value");
            match ingress == expected && gateway == expected {
                true => Ok(()),
                false => Err(format!("{ingress:?} {gateway:?}")),
            }
        });
    };
    told(&["192.0.2.11", "192.0.2.12"]);
    let ask = |url: &str| {
        eventually("an answer at a node", || {
            let mut curl = server.inside(Path::new("curl"));
            let answer = Output::of(curl.args(["-sS", "--max-time", "20", url]));
            match answer.stdout.starts_with("Hello from http-") {
                true => Ok(()),
                false => Err(format!("{url}: {}{}", answer.stdout, answer.stderr)),
            }
        });
    };
    for (_, ip) in nodes {
        ask(&format!("http://{ip}/"));
        ask(&format!("http://{ip}:8099/"));
    }
    // Settled: neither takes back what the other says.
    let version = || {
        let version =
            |object: &str| server.json(&["get", object])["metadata"]["resourceVersion"].clone();
        (version("ingress/all"), version("gateway/front"))
    };
    let before = version();
    for _ in 0..20 {
        ask("http://192.0.2.11/");
    }
    assert_eq!(version(), before);
    // The first, which spoke for both, is gone.
    drop(running.remove(0));
    server.kubectl(&["delete", "node", "a"]).ok();
    told(&["192.0.2.12"]);
    ask("http://192.0.2.12/");
}

#[test]
fn a_gateway_elsewhere_asks_at_the_door_of_one_that_sleeps() {
    if !can_make_networks("a_gateway_elsewhere_asks_at_the_door_of_one_that_sleeps") {
        return;
    }
    let switch = Network::new();
    let network = |address: &str| {
        let network = Network::new();
        network.plug_into(&switch, address);
        network
    };
    let args = [
        "examples/http",
        "--no-follow",
        "--bind=192.0.2.1",
        "--node-ip=192.0.2.1",
        "--pod-cidr=10.64.0.0/20",
        "--service-cidr=10.96.0.0/16",
    ];
    let mut up = Cluster::prepare(COX, &args).in_network(network("192.0.2.1/24"));
    up.start();
    let agent = Cluster::prepare(COX, &[]).in_network(network("192.0.2.11/24"));
    let bind = [
        "create",
        "clusterrolebinding",
        "gateways",
        "--clusterrole=coxswain:gateway",
    ];
    up.kubectl(&[&bind[..], &["--user=system:node:a"]].concat())
        .ok();
    let line = Output::of(&mut up.command("token")).ok();
    let joining: Vec<&str> = line.split_whitespace().skip(2).collect();
    let own = ["--node-name=a", "--node-ip=192.0.2.11", "--enable=ingress"];
    let alone = ["--containerd-socket", "/nonexistent/c.sock"];
    let running = agent.part("agent", &[&joining[..], &own, &alone].concat());
    // The Pod that is woken may run on either node.
    Output::of(agent.command("image load").arg("examples/http/http.wasm")).ok();
    let everything = "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: all}\n\
                      spec: {defaultBackend: {service: {name: http, port: {name: web}}}}\n";
    up.apply(everything).ok();
    let ask = || {
        let mut curl = agent.inside(Path::new("curl"));
        let url = "http://192.0.2.11/x";
        Output::of(curl.args(["-sS", "--max-time", "30", "-w", "%{http_code}\n", url]))
    };
    let good = |answer: &Output| answer.stdout.ends_with("you asked for /x\n200\n");
    eventually("an answer while somebody is awake", || {
        let answer = ask();
        match good(&answer) {
            true => Ok(()),
            false => Err(format!("{}{}", answer.stdout, answer.stderr)),
        }
    });
    up.kubectl(&[
        "annotate",
        "service",
        "http",
        "coxswain.dev/scale-to-zero=1s",
    ])
    .ok();
    eventually("all Pods to be gone", || {
        let pods = up.json(&["get", "pods", "-l", "app=http"]);
        match pods["items"].as_array().unwrap().len() {
            0 => Ok(()),
            left => Err(left),
        }
    });
    let answer = ask();
    assert!(good(&answer), "{}{}", answer.stdout, answer.stderr);
    // A node that takes requests no more says so at its next start.
    let labels = || up.json(&["get", "node", "a"])["metadata"]["labels"].clone();
    assert_eq!(labels()["coxswain.dev/gateway"], "true");
    drop(running);
    let _running = agent.part("agent", &[&own[..2], &alone].concat());
    eventually("the node's mark to be gone, and its address", || {
        let shown = up.json(&["get", "ingress", "all"])["status"]["loadBalancer"].clone();
        let marked = !labels()["coxswain.dev/gateway"].is_null();
        match marked || shown.to_string().contains("192.0.2.11") {
            true => Err(format!("{marked} {shown}")),
            false => Ok(()),
        }
    });
}

#[test]
fn a_service_sleeps_and_the_next_request_wakes_it() {
    let cluster = cluster(&["examples/http"]);
    let everything = "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: all}\n\
                      spec: {defaultBackend: {service: {name: http, port: {name: web}}}}\n";
    cluster.apply(everything).ok();
    let port = ports(&cluster, "all", 1)[0];
    cluster
        .kubectl(&[
            "annotate",
            "service",
            "http",
            "coxswain.dev/scale-to-zero=1s",
        ])
        .ok();
    let asleep = || {
        eventually("all Pods to be gone", || {
            let pods = cluster.json(&["get", "pods", "-l", "app=http"]);
            let left = pods["items"].as_array().unwrap().len();
            if left == 0 {
                Ok(())
            } else {
                Err(format!("{left} Pods"))
            }
        });
        assert_eq!(
            cluster.json(&["get", "deployment", "http"])["spec"]["replicas"],
            0
        );
    };
    asleep();
    let service = cluster.json(&["get", "service", "http"]);
    let address = service["spec"]["clusterIP"].as_str().unwrap();
    let node_port = service["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
    // Through the gateway, to the Service's address (whose port 80 a user without root cannot have: then the node port stands for it).
    let gateway = format!("http://127.0.0.1:{port}/first");
    let node = format!("http://127.0.0.1:{node_port}/second");
    for url in [&gateway, &node] {
        let answer = curl(&[url]).ok();
        assert!(
            answer.starts_with("Hello from http-") && answer.ends_with("200\n"),
            "{url} ({address}): {answer}"
        );
        assert_eq!(
            cluster.json(&["get", "deployment", "http"])["spec"]["replicas"],
            1
        );
        asleep();
    }
    // Many at once: all are answered, by one Pod.
    let clients: Vec<_> = (0..20)
        .map(|_| {
            let url = gateway.clone();
            std::thread::spawn(move || curl(&[&url]).ok())
        })
        .collect();
    let answers: Vec<String> = clients
        .into_iter()
        .map(|client| client.join().unwrap())
        .collect();
    assert!(
        answers
            .iter()
            .all(|answer| *answer == answers[0] && answer.ends_with("200\n")),
        "{answers:?}"
    );
    cluster
        .kubectl(&["annotate", "service", "http", "coxswain.dev/scale-to-zero-"])
        .ok();
    eventually("the way to wake it to be gone", || {
        let slices = cluster.json(&[
            "get",
            "endpointslices",
            "-l",
            "endpointslice.kubernetes.io/managed-by=activator.coxswain.dev",
        ]);
        let left = slices["items"].as_array().unwrap().len();
        if left == 0 {
            Ok(())
        } else {
            Err(slices.to_string())
        }
    });
}
