//! Services and names, through the whole program: on a laptop without root, and in the kernel with Linux containers.
#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "tests are tables and stories, and fail by panicking"
)]

use std::collections::BTreeSet;
use std::io::Read;
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use cox_testkit::linux::MixedCluster;
use cox_testkit::sockets::{SOCKETS, once, server};
use cox_testkit::{Cluster, Output, eventually};

const COX: &str = env!("CARGO_BIN_EXE_cox");

/// What the server at `addr` says.
fn ask(addr: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn wasm_pods_reach_services_by_name_without_root() {
    let cluster = Cluster::up(COX, &["--no-follow"]);
    Output::of(cluster.command("image load").arg(SOCKETS)).ok();
    let web = server(
        "web",
        "[serve, '8080']",
        "{port: 80, targetPort: 8080}",
        "  type: NodePort",
    );
    cluster.apply(&web).ok();
    let echo = server(
        "echo",
        "[echo, '9000']",
        "{port: 7, targetPort: 9000, protocol: UDP}",
        "",
    );
    cluster.apply(&echo).ok();
    for name in ["web", "echo"] {
        let target = format!("deployment/{name}");
        cluster
            .kubectl(&["rollout", "status", &target, "--timeout=60s"])
            .ok();
    }
    eventually("both Pods to be endpoints", || {
        let slices = cluster.json(&[
            "get",
            "endpointslices",
            "-l",
            "kubernetes.io/service-name=web",
        ]);
        let endpoints = slices["items"][0]["endpoints"]
            .as_array()
            .map_or(0, Vec::len);
        if endpoints == 2 {
            Ok(())
        } else {
            Err(slices.to_string())
        }
    });
    for (case, name) in [
        ("in its namespace", "web"),
        ("by its whole name", "web.default.svc.cluster.local"),
    ] {
        eventually(case, || {
            let said = once(&cluster, "client", &format!("[get, {name}, '80']"));
            if said.starts_with("from 127.") && said.ends_with(":8080") {
                Ok(())
            } else {
                Err(said)
            }
        });
    }
    let said = once(&cluster, "client", "[send, echo, '7']");
    assert!(said.starts_with("ping from 127."), "{said}");
    let service = cluster.json(&["get", "service", "web"]);
    let ip = service["spec"]["clusterIP"].as_str().unwrap();
    assert!(ip.starts_with("127."), "{ip}");
    let port = &service["spec"]["ports"][0]["nodePort"];
    let mut seen = BTreeSet::new();
    eventually(
        "programs of the machine to reach both Pods by the node port",
        || {
            let said = ask(&format!("127.0.0.1:{port}")).map_err(|error| error.to_string())?;
            seen.extend(said.split(" at ").nth(1).map(str::to_owned));
            if seen.len() == 2 {
                Ok(())
            } else {
                Err(format!("{seen:?}"))
            }
        },
    );
    cluster
        .kubectl(&["scale", "deployment", "web", "--replicas=0"])
        .ok();
    eventually("a Service without Pods to refuse", || {
        let said = once(&cluster, "client", "[get, web, '80']");
        if said.contains("connection-refused") {
            Ok(())
        } else {
            Err(said)
        }
    });
    let said = once(&cluster, "client", "[get, nobody, '80']");
    assert!(said.contains("name-unresolvable"), "{said}");
}

#[test]
fn linux_containers_reach_services_through_the_kernel() {
    let test = "linux_containers_reach_services_through_the_kernel";
    let Some(node) = MixedCluster::start(test, COX, &["examples/http/http.wasm"]) else {
        return;
    };
    let cluster = &node.cluster;
    cluster
        .kubectl(&["apply", "-f", "examples/http/http.yaml"])
        .ok();
    cluster
        .apply(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: shell, labels: {app: shell}}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
             containers:\n  - {name: c, image: busybox, imagePullPolicy: IfNotPresent, \
             command: [sh, -c, 'mkdir /www; echo served by shell >/www/index.html; exec httpd -f -p 8080 -h /www']}\n\
             ---\napiVersion: v1\nkind: Service\nmetadata: {name: shell}\nspec:\n  selector: {app: shell}\n  \
             ports: [{port: 80, targetPort: 8080}]\n\
             ---\napiVersion: v1\nkind: Service\nmetadata: {name: sticky}\nspec:\n  selector: {app: http}\n  type: NodePort\n  \
             sessionAffinity: ClientIP\n  ports: [{port: 80, targetPort: 8080}]\n",
        )
        .ok();
    cluster.wait("condition=Ready", "pod/shell");
    cluster
        .kubectl(&["rollout", "status", "deployment/http", "--timeout=60s"])
        .ok();
    let ip = |name: &str| {
        let service = cluster.json(&["get", "service", name]);
        service["spec"]["clusterIP"].as_str().unwrap().to_owned()
    };
    let in_pod = |args: &[&str]| {
        let output = cluster.kubectl(&[&["exec", "shell", "--"], args].concat());
        format!("{}{}", output.stdout, output.stderr)
    };
    eventually("the name to be known in the Pod", || {
        let said = in_pod(&["nslookup", "http.default.svc.cluster.local"]);
        if said.contains(&ip("http")) {
            Ok(())
        } else {
            Err(said)
        }
    });
    let get = |ip: &str| in_pod(&["wget", "-q", "-O", "-", &format!("http://{ip}:80/x")]);
    let mut seen = BTreeSet::new();
    eventually("the Linux container to reach all Wasm Pods", || {
        let said = get(&ip("http"));
        if said.starts_with("Hello from http-") {
            seen.insert(said.clone());
        }
        if seen.len() == 3 { Ok(()) } else { Err(said) }
    });
    let first = get(&ip("sticky"));
    assert!(first.starts_with("Hello from http-"), "{first}");
    for _ in 0..10 {
        assert_eq!(get(&ip("sticky")), first, "a client keeps its endpoint");
    }
    let own = in_pod(&[
        "wget",
        "-q",
        "-O",
        "-",
        &format!("http://{}:80/", ip("shell")),
    ]);
    assert_eq!(
        own.trim(),
        "served by shell",
        "a Pod reaches itself through its Service"
    );
    let on_node = |url: String| {
        let mut command = cluster.inside(Path::new("/bin/busybox"));
        let output = Output::of(command.args(["wget", "-q", "-O", "-", &url]));
        format!("{}{}", output.stdout, output.stderr)
    };
    assert_eq!(
        on_node(format!("http://{}:80/", ip("shell"))).trim(),
        "served by shell"
    );
    let service = cluster.json(&["get", "service", "sticky"]);
    let port = &service["spec"]["ports"][0]["nodePort"];
    let said = on_node(format!("http://127.0.0.1:{port}/x"));
    assert!(
        said.starts_with("Hello from http-"),
        "the node port: {said}"
    );
    cluster
        .kubectl(&["delete", "pod", "shell", "--force", "--grace-period=0"])
        .ok();
    eventually("a Service without Pods to refuse", || {
        let said = on_node(format!("http://{}:80/", ip("shell")));
        if said.contains("refused") {
            Ok(())
        } else {
            Err(said)
        }
    });
}

/// Names and addresses, ranges and Services of both kinds: Wasm Pods that are virtual, a Linux Pod on the bridge, and the node.
#[test]
fn pods_of_both_networks_have_addresses_of_both_kinds() {
    let test = "pods_of_both_networks_have_addresses_of_both_kinds";
    let flags = [
        "--pod-cidr=fd64:7::/64,10.64.0.0/18",
        "--service-cidr=fd96::/112,10.96.0.0/16",
    ];
    let components = [SOCKETS, "examples/http/http.wasm"];
    let Some(node) = MixedCluster::start_with(test, COX, &components, &flags) else {
        return;
    };
    let cluster = &node.cluster;
    let both = "  ipFamilyPolicy: RequireDualStack";
    let port = "{port: 80, targetPort: 8080}";
    cluster
        .apply(&server("web", "[serve, '::', '8080']", port, both))
        .ok();
    cluster
        .apply(&server(
            "echo",
            "[echo, '::', '9000']",
            "{port: 7, targetPort: 9000, protocol: UDP}",
            both,
        ))
        .ok();
    cluster
        .apply(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: shell, labels: {app: shell}}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
             containers:\n  - {name: c, image: busybox, imagePullPolicy: IfNotPresent, \
             command: [nc, -ll, -p, '8080', -e, /bin/echo, 'from linux']}\n\
             ---\napiVersion: v1\nkind: Service\nmetadata: {name: shell}\nspec:\n  ipFamilyPolicy: RequireDualStack\n  \
             selector: {app: shell}\n  ports: [{port: 80, targetPort: 8080}]\n",
        )
        .ok();
    cluster.wait("condition=Ready", "pod/shell");
    for name in ["web", "echo"] {
        let target = format!("deployment/{name}");
        cluster
            .kubectl(&["rollout", "status", &target, "--timeout=60s"])
            .ok();
    }
    let pods = cluster.json(&["get", "pods"]);
    let pod_ips = |pod: &serde_json::Value| -> Vec<String> {
        let ips = pod["status"]["podIPs"].as_array().unwrap().iter();
        ips.map(|ip| ip["ip"].as_str().unwrap().to_owned())
            .collect()
    };
    for pod in pods["items"].as_array().unwrap() {
        let ips = pod_ips(pod);
        assert!(
            ips.len() == 2 && ips[0].starts_with("fd64:7::") && ips[1].starts_with("10.64."),
            "in the ranges' order: {ips:?}"
        );
    }
    let web = pods["items"].as_array().unwrap().iter();
    let mut web = web.filter(|pod| pod["metadata"]["labels"]["app"] == "web");
    let web6 = pod_ips(web.next().unwrap())[0].clone();
    let ip6 = |name: &str| {
        let service = cluster.json(&["get", "service", name]);
        let ips = service["spec"]["clusterIPs"].as_array().unwrap().iter();
        let ips: Vec<&str> = ips.map(|ip| ip.as_str().unwrap()).collect();
        ips.into_iter()
            .find(|ip| ip.starts_with("fd96::"))
            .unwrap()
            .to_owned()
    };
    let linux = |target: &str, port: &str| {
        let asked = ["exec", "shell", "--", "nc", "-w", "5", target, port];
        let output = cluster.kubectl(&asked);
        format!("{}{}", output.stdout, output.stderr)
    };
    let on_node = |target: &str, port: &str| {
        let mut command = cluster.inside(Path::new("/bin/busybox"));
        let output = Output::of(command.args(["nc", "-w", "5", target, port]));
        format!("{}{}", output.stdout, output.stderr)
    };
    let wasm = |target: &str, port: &str| {
        once(cluster, "client", &format!("[get6, '{target}', '{port}']"))
    };
    let reached = |case: &str, wanted: &str, ask: &dyn Fn() -> String| {
        eventually(case, || {
            let said = ask();
            if said.starts_with(wanted) {
                Ok(())
            } else {
                Err(said)
            }
        });
    };
    let (web_service, shell_service) = (ip6("web"), ip6("shell"));
    for (who, ask) in [
        ("a Linux Pod", &linux as &dyn Fn(&str, &str) -> String),
        ("the node", &on_node),
        ("a Wasm Pod", &wasm),
    ] {
        reached(&format!("{who} to a Wasm Pod"), "from [", &|| {
            ask(&web6, "8080")
        });
        reached(
            &format!("{who} to the Service of Wasm Pods"),
            "from [",
            &|| ask(&web_service, "80"),
        );
        reached(
            &format!("{who} to the Service of a Linux Pod"),
            "from linux",
            &|| ask(&shell_service, "80"),
        );
    }
    for name in ["web", "web.default.svc.cluster.local"] {
        reached("by name, IPv6 of it", "from [fd64:7::", &|| {
            wasm(name, "80")
        });
    }
    reached("datagrams", "ping from [fd64:7::", &|| {
        once(cluster, "client", "[send6, echo, '7']")
    });
    // Friends only, by IPv6 as by IPv4.
    cluster
        .apply(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: friends}\nspec: {podSelector: {matchLabels: {app: web}}, \
             ingress: [{from: [{podSelector: {matchLabels: {app: shell}}}]}]}\n",
        )
        .ok();
    reached("a stranger is kept out", "connection-refused", &|| {
        let said = wasm(&web6, "8080");
        said.split("name: \"").last().unwrap_or_default().to_owned()
    });
    reached("also by the Service", "connection-refused", &|| {
        let said = wasm("web", "80");
        said.split("name: \"").last().unwrap_or_default().to_owned()
    });
    reached("a friend is let in", "from [", &|| linux(&web6, "8080"));
    reached("a friend by the Service", "from [", &|| {
        linux(&web_service, "80")
    });
    reached("the node always may", "from [", &|| on_node(&web6, "8080"));
}
