//! Requests from outside, through the whole program, with curl as a user has it.
#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "tests are tables and stories, and fail by panicking"
)]

use std::process::Command;

use cox_testkit::{Cluster, Output, eventually};
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
        "--service-cidr=127.131.0.0/16",
        "--pod-cidr=127.67.0.0/18",
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

    let dir = cluster.scratch();
    let (certificate, key) = (dir.join("crt.pem"), dir.join("key.pem"));
    let (certificate, key) = (certificate.to_str().unwrap(), key.to_str().unwrap());
    Output::of(
        Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
            ])
            .args([
                "-keyout",
                key,
                "-out",
                certificate,
                "-days",
                "2",
                "-subj",
                "/CN=s.example",
                "-addext",
                "subjectAltName=DNS:s.example",
            ]),
    )
    .ok();
    cluster
        .kubectl(&[
            "create",
            "secret",
            "tls",
            "s",
            "--cert",
            certificate,
            "--key",
            key,
        ])
        .ok();
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

#[test]
fn a_gateway_leads_to_a_service() {
    let cluster = cluster(&["examples/http"]);
    cluster.wait("condition=Accepted", "gatewayclass/coxswain");
    cluster.apply(GATEWAY).ok();
    cluster.wait("condition=Programmed", "gateway/front");
    let status = cluster.json(&["get", "gateway", "front"])["status"].clone();
    let listener = &status["listeners"][0];
    let said = condition(&listener["conditions"], "Programmed");
    let at = said
        .strip_prefix("True Programmed Requests are taken at ")
        .unwrap()
        .trim_end_matches('.')
        .to_owned();
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
    let answer = get("/api/x");
    assert!(
        answer.contains("x-served-by: front") && answer.ends_with("you asked for /v2/x\n200\n"),
        "{answer}"
    );
    assert!(get("/old").contains("location: http://a.example/new"));
    assert!(get("/gone").ends_with("Service default/gone does not exist.\n500\n"));
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
