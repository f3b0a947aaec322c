//! A cluster of IPv6 alone, through the whole program: the node, its Pods of both networks and its Services have no other addresses.
#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "tests are stories, and fail by panicking"
)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use cox_testkit::linux::{MixedCluster, Network};
use cox_testkit::sockets::{SOCKETS, once, server};
use cox_testkit::{Cluster, Output, Process, eventually};

const COX: &str = env!("CARGO_BIN_EXE_cox");

/// Says over TCP and over UDP who asks.
const OUTSIDE: &str = r#"
import socket, threading
tcp = socket.create_server(('fd01::9', 7777), family=socket.AF_INET6)
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
udp.bind(('fd01::9', 7777))
def datagrams():
    while True:
        _, peer = udp.recvfrom(100)
        udp.sendto(f'seen {peer[0]}'.encode(), peer)
threading.Thread(target=datagrams, daemon=True).start()
print('up', flush=True)
while True:
    stream, peer = tcp.accept()
    stream.sendall(f'seen {peer[0]}\n'.encode())
    stream.close()
"#;

/// A machine beside the node, which knows no way to its Pods.
struct Outside {
    network: Network,
    _server: Process,
}

impl Outside {
    fn on(switch: &Network) -> Self {
        let network = Network::new();
        network.plug_into(switch, "fd01::9/64");
        let mut server = network.command(Path::new("python3"), &["-c", OUTSIDE]);
        let mut server = server.stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        let mut out = BufReader::new(server.stdout.take().unwrap());
        out.read_line(&mut said).unwrap();
        assert_eq!(said, "up\n");
        Self {
            network,
            _server: Process::killed(server),
        }
    }

    fn get(&self, target: &str, port: &str) -> String {
        let args = ["nc", "-w", "5", target, port];
        said(Output::of(
            &mut self.network.command(Path::new("/bin/busybox"), &args),
        ))
    }

    fn curl(&self, args: &[&str]) -> String {
        let args = [&["-gsS", "-m", "5"], args].concat();
        said(Output::of(
            &mut self.network.command(Path::new("curl"), &args),
        ))
    }
}

fn said(output: Output) -> String {
    format!("{}{}", output.stdout, output.stderr)
}

#[track_caller]
fn reached(case: &str, wanted: &str, ask: &dyn Fn() -> String) {
    eventually(case, || {
        let said = ask();
        if said.starts_with(wanted) {
            Ok(())
        } else {
            Err(said)
        }
    });
}

const PODS: &str = r"apiVersion: v1
kind: Pod
metadata: {name: shell, labels: {app: shell}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [nc, -ll, -p, '8080', -e, /bin/echo, 'from linux']
    ports: [{containerPort: 8080, hostPort: 8089}]
    readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: shell}
spec: {type: NodePort, selector: {app: shell}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: host-port}
spec:
  runtimeClassName: wasm
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: cox.local/sockets:latest
    imagePullPolicy: IfNotPresent
    args: [serve, '::', '8080']
    ports: [{containerPort: 8080, hostPort: 8088}]
";

/// A web server behind an Ingress with a certificate, and Services with addresses for outside.
const FRONT: &str = r"apiVersion: v1
kind: Pod
metadata: {name: http, labels: {app: http}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [httpd, -f, -p, '8080', -h, /etc]
    readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: http}
spec: {selector: {app: http}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: balanced}
spec: {type: LoadBalancer, selector: {app: http}, ports: [{port: 8090, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: balanced-local}
spec: {type: LoadBalancer, externalTrafficPolicy: Local, selector: {app: http}, ports: [{port: 8091, targetPort: 8080}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: front}
spec:
  rules:
  - host: a.example
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: http, port: {number: 80}}}}]}
  - host: s.example
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: http, port: {number: 80}}}}]}
  tls:
  - {hosts: [s.example], secretName: s}
";

/// Requests from outside: Services of type LoadBalancer, and an Ingress without and with TLS.
fn comes_in(cluster: &Cluster, outside: &Outside) {
    let (key, certificate) = (
        cluster.scratch().join("s.key"),
        cluster.scratch().join("s.crt"),
    );
    let mut openssl = Command::new("openssl");
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
    ]);
    openssl.args([
        "-subj",
        "/CN=s.example",
        "-addext",
        "subjectAltName=DNS:s.example",
    ]);
    openssl
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate);
    Output::of(&mut openssl).ok();
    let (key, certificate) = (key.display().to_string(), certificate.display().to_string());
    cluster
        .kubectl(&[
            "create",
            "secret",
            "tls",
            "s",
            "--key",
            &key,
            "--cert",
            &certificate,
        ])
        .ok();
    cluster.apply(FRONT).ok();
    cluster.wait("condition=Ready", "pod/http");
    for (name, port) in [("balanced", 8090), ("balanced-local", 8091)] {
        eventually("the balancer's address", || {
            let service = cluster.json(&["get", "service", name]);
            let shown = service["status"]["loadBalancer"]["ingress"].clone();
            let wanted = serde_json::json!([{"ip": "fd01::1", "ipMode": "VIP"}]);
            if shown == wanted {
                Ok(())
            } else {
                Err(shown.to_string())
            }
        });
        reached(&format!("{name} from outside"), "root:x:0:0", &|| {
            outside.curl(&[&format!("http://[fd01::1]:{port}/passwd")])
        });
    }
    let mut ports = Vec::new();
    eventually("the Ingress's address", || {
        let ingress = cluster.json(&["get", "ingress", "front"]);
        let shown = ingress["status"]["loadBalancer"]["ingress"].clone();
        ports = shown[0]["ports"].as_array().cloned().unwrap_or_default();
        if shown[0]["ip"] == "fd01::1" && ports.len() == 2 {
            Ok(())
        } else {
            Err(shown.to_string())
        }
    });
    let port = |at: usize| ports[at]["port"].as_u64().unwrap();
    let plain = format!("http://[fd01::1]:{}/passwd", port(0));
    reached("an Ingress from outside", "root:x:0:0", &|| {
        outside.curl(&["-H", "Host: a.example", &plain])
    });
    let resolved = format!("s.example:{}:[fd01::1]", port(1));
    let secure = format!("https://s.example:{}/passwd", port(1));
    reached("an Ingress with TLS", "root:x:0:0", &|| {
        outside.curl(&["--cacert", &certificate, "--resolve", &resolved, &secure])
    });
}

/// All of it with one mode of the proxy. Endpoints of the one in user space see the node, so policies of Pods do not go by it.
fn everything_works(test: &str, mode: &str) {
    let flags = [
        "--pod-cidr=fd64:7::/64",
        "--service-cidr=fd96::/112",
        "--cluster-cidr=fd64::/48",
        "--node-ip=fd01::1",
        "--bind=fd01::1",
        &format!("--proxy-mode={mode}"),
    ];
    let mut switch = None;
    let network = || {
        let (network, link) = (Network::new(), Network::new());
        network.plug_into(&link, "fd01::1/64");
        switch = Some(link);
        network
    };
    let Some(node) = MixedCluster::start_in(test, COX, &[SOCKETS], &flags, network) else {
        return;
    };
    let switch = switch.unwrap();
    let outside = Outside::on(&switch);
    let cluster = &node.cluster;
    let port = "{port: 80, targetPort: 8080}";
    cluster
        .apply(&server(
            "web",
            "[serve, '::', '8080']",
            port,
            "  type: NodePort",
        ))
        .ok();
    let udp = "{port: 7, targetPort: 9000, protocol: UDP}";
    cluster
        .apply(&server("echo", "[echo, '::', '9000']", udp, ""))
        .ok();
    cluster.apply(PODS).ok();
    cluster.wait("condition=Ready", "pod/shell");
    cluster.wait("condition=Ready", "pod/host-port");
    for name in ["web", "echo"] {
        let target = format!("deployment/{name}");
        cluster
            .kubectl(&["rollout", "status", &target, "--timeout=60s"])
            .ok();
    }
    let own_ip = |pod: &serde_json::Value| {
        let ips = pod["status"]["podIPs"].as_array().unwrap();
        assert_eq!(ips.len(), 1, "{ips:?}");
        ips[0]["ip"].as_str().unwrap().to_owned()
    };
    let pods = cluster.json(&["get", "pods"]);
    let mut web = None;
    for pod in pods["items"].as_array().unwrap() {
        let ip = own_ip(pod);
        assert!(ip.starts_with("fd64:7::"), "{ip}");
        if pod["metadata"]["labels"]["app"] == "web" {
            web = Some(ip);
        }
    }
    let web = web.unwrap();
    let shell = own_ip(&cluster.json(&["get", "pod", "shell"]));
    let service = |name: &str| {
        let service = cluster.json(&["get", "service", name]);
        assert_eq!(service["spec"]["ipFamilies"], serde_json::json!(["IPv6"]));
        let ip = service["spec"]["clusterIP"].as_str().unwrap().to_owned();
        assert!(ip.starts_with("fd96::"), "{ip}");
        (ip, service["spec"]["ports"][0]["nodePort"].to_string())
    };
    let (web_service, web_port) = service("web");
    let (shell_service, shell_port) = service("shell");
    let in_shell =
        |args: &[&str]| said(cluster.kubectl(&[&["exec", "shell", "--"], args].concat()));
    let linux = |target: &str, port: &str| in_shell(&["nc", "-w", "5", target, port]);
    let on_node = |target: &str, port: &str| {
        let mut command = cluster.inside(Path::new("/bin/busybox"));
        said(Output::of(command.args(["nc", "-w", "5", target, port])))
    };
    let wasm = |target: &str, port: &str| {
        once(cluster, "client", &format!("[get6, '{target}', '{port}']"))
    };
    for (who, ask) in [
        ("a Linux Pod", &linux as &dyn Fn(&str, &str) -> String),
        ("the node", &on_node),
        ("a Wasm Pod", &wasm),
    ] {
        reached(&format!("{who} to a Wasm Pod"), "from [", &|| {
            ask(&web, "8080")
        });
        reached(&format!("{who} to a Linux Pod"), "from linux", &|| {
            ask(&shell, "8080")
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
    let ask_outside = |port: &str| outside.get("fd01::1", port);
    reached("a node port of Wasm Pods", "from [", &|| {
        ask_outside(&web_port)
    });
    reached("a node port of a Linux Pod", "from linux", &|| {
        ask_outside(&shell_port)
    });
    reached("the host port of a Wasm Pod", "from [", &|| {
        ask_outside("8088")
    });
    reached("the host port of a Linux Pod", "from linux", &|| {
        ask_outside("8089")
    });

    comes_in(cluster, &outside);

    // Names, from the cluster's DNS at its well-known address.
    let service = cluster.json(&["get", "service", "kube-dns", "-n", "kube-system"]);
    let dns = service["spec"]["clusterIP"].as_str().unwrap().to_owned();
    assert_eq!(dns, "fd96::a");
    eventually("names in a Linux Pod", || {
        let said = in_shell(&["nslookup", "web.default.svc.cluster.local"]);
        if said.contains("[fd96::a]:53") && said.contains(&web_service) {
            Ok(())
        } else {
            Err(said)
        }
    });
    for name in ["web", "web.default.svc.cluster.local"] {
        reached("a Wasm Pod by name", "from [fd64:7::", &|| wasm(name, "80"));
    }
    reached("datagrams by name", "ping from [fd64:7::", &|| {
        once(cluster, "client", "[send6, echo, '7']")
    });
    eventually("the API server by its Service", || {
        let url = "https://kubernetes.default/livez";
        let said = in_shell(&["wget", "-O", "-", "--no-check-certificate", url]);
        // busybox speaks no TLS that the API server would: it is its refusal that comes back.
        if said.contains("TLS error from peer") {
            Ok(())
        } else {
            Err(said)
        }
    });

    // Beyond the cluster nobody knows a way back to Pods: they are seen as the node.
    reached("a Linux Pod to outside", "seen fd01::1", &|| {
        linux("fd01::9", "7777")
    });
    reached("a Wasm Pod to outside", "seen fd01::1", &|| {
        wasm("fd01::9", "7777")
    });
    reached("datagrams to outside", "seen fd01::1", &|| {
        once(cluster, "client", "[send6, 'fd01::9', '7777']")
    });

    // Friends only.
    cluster
        .apply(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: friends}\nspec: {podSelector: {matchExpressions: \
             [{key: app, operator: In, values: [web, shell]}]}, ingress: [{from: [{podSelector: {matchLabels: {app: shell}}}]}]}\n",
        )
        .ok();
    for target in [&web, &shell] {
        reached("a stranger is kept out", "connection-refused", &|| {
            let said = wasm(target, "8080");
            said.split("name: \"").last().unwrap_or_default().to_owned()
        });
    }
    reached("a friend is let in", "from [", &|| linux(&web, "8080"));
    reached("the node always may", "from [", &|| on_node(&web, "8080"));
    reached("also to a Linux Pod", "from linux", &|| {
        on_node(&shell, "8080")
    });
    cluster
        .kubectl(&["delete", "networkpolicy", "friends"])
        .ok();

    cluster
        .kubectl(&["scale", "deployment", "web", "--replicas=0"])
        .ok();
    eventually("a Service without Pods to refuse", || {
        let said = linux(&web_service, "80");
        if said.contains("refused") {
            Ok(())
        } else {
            Err(said)
        }
    });
}

#[test]
fn a_cluster_of_ipv6_alone_works_in_the_kernel() {
    everything_works("a_cluster_of_ipv6_alone_works_in_the_kernel", "nftables");
}

#[test]
fn a_cluster_of_ipv6_alone_works_in_user_space() {
    everything_works("a_cluster_of_ipv6_alone_works_in_user_space", "userspace");
}

#[test]
fn a_cluster_of_ipv6_alone_works_with_iptables() {
    everything_works("a_cluster_of_ipv6_alone_works_with_iptables", "iptables");
}
