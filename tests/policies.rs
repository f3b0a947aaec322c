//! NetworkPolicies through the whole program: Wasm Pods without root, and Wasm and Linux Pods on both sides of a policy.
#![allow(
    clippy::unwrap_used,
    reason = "tests are tables and stories, and fail by panicking"
)]

use cox_testkit::linux::MixedCluster;
use cox_testkit::sockets::SOCKETS;
use cox_testkit::{Cluster, Output, eventually};

const COX: &str = env!("CARGO_BIN_EXE_cox");

const LINUX_SERVER: &str = "{name: c, image: busybox, imagePullPolicy: IfNotPresent, \
     command: [nc, -ll, -p, '8080', -e, /bin/echo, 'from linux']}";
const LINUX_CLIENT: &str =
    "{name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, '3600']}";

fn wasm(args: &str) -> String {
    format!(
        "{{name: c, image: 'cox.local/sockets:latest', imagePullPolicy: IfNotPresent, args: {args}}}"
    )
}

fn pod(name: &str, app: &str, more: &str, container: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {app}}}}}\nspec:\n  \
         terminationGracePeriodSeconds: 0\n{more}  containers:\n  - {container}\n"
    )
}

const VIRTUAL: &str = "  runtimeClassName: wasm\n";

/// Runs a Wasm client of this label once; answers what it printed.
fn ask_from_wasm(cluster: &Cluster, app: &str, target: &str) -> String {
    let container = wasm(&format!("[get, '{target}', '8080']"));
    ask_once(cluster, app, VIRTUAL, &container)
}

/// The same of a Linux client, which asks with the first thing that it does.
fn ask_from_linux(cluster: &Cluster, app: &str, target: &str) -> String {
    let container = format!(
        "{{name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [nc, -w, '5', '{target}', '8080']}}"
    );
    ask_once(cluster, app, "", &container)
}

fn ask_once(cluster: &Cluster, app: &str, network: &str, container: &str) -> String {
    let name = format!("{app}-client");
    let more = format!("{network}  restartPolicy: Never\n");
    cluster.apply(&pod(&name, app, &more, container)).ok();
    eventually("the client to end", || {
        let pod = cluster.json(&["get", "pod", &name]);
        match pod["status"]["phase"].as_str() {
            Some("Succeeded" | "Failed") => Ok(()),
            _ => Err(pod["status"].to_string()),
        }
    });
    let log = cluster.kubectl(&["logs", &name]).ok();
    cluster
        .kubectl(&["delete", "pod", &name, "--force", "--grace-period=0"])
        .ok();
    log
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    )
}

/// Waits until asking gives, or does not give, an answer `from` somebody.
fn reaches(case: &str, wanted: bool, ask: impl Fn() -> String) {
    eventually(case, || {
        let said = ask();
        if said.starts_with("from ") == wanted {
            Ok(())
        } else {
            Err(said)
        }
    });
}

/// Friends only, without a second try.
fn meet_policies_at_once(servers: &[(&str, String)], ask: impl Fn(&str, &str) -> String) {
    for (name, server) in servers {
        for (client, wanted) in [("friend", true), ("stranger", false)] {
            let said = ask(client, server);
            assert_eq!(
                said.starts_with("from "),
                wanted,
                "a {client} that has just started asks {name}: {said}"
            );
        }
    }
}

fn ip(cluster: &Cluster, pod: &str) -> String {
    let pod = cluster.json(&["get", "pod", pod]);
    pod["status"]["podIP"].as_str().unwrap().to_owned()
}

const FRIENDS_ONLY: &str = "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}], ports: [{port: 8080}]}]}";

#[test]
fn wasm_pods_keep_policies_without_root() {
    let cluster = Cluster::up(COX, &["--no-follow"]);
    Output::of(cluster.command("image load").arg(SOCKETS)).ok();
    cluster
        .apply(&pod("web", "web", VIRTUAL, &wasm("[serve, '8080']")))
        .ok();
    cluster.wait("condition=Ready", "pod/web");
    let web = ip(&cluster, "web");
    reaches("everybody is let in where no policy is", true, || {
        ask_from_wasm(&cluster, "stranger", &web)
    });
    cluster.apply(&policy("friends", FRIENDS_ONLY)).ok();
    reaches("a stranger is kept out", false, || {
        ask_from_wasm(&cluster, "stranger", &web)
    });
    reaches("a friend is let in", true, || {
        ask_from_wasm(&cluster, "friend", &web)
    });
    for _ in 0..5 {
        meet_policies_at_once(&[("web", web.clone())], |client, server| {
            ask_from_wasm(&cluster, client, server)
        });
    }
    let port = "{podSelector: {matchLabels: {app: friend}}, policyTypes: [Egress], egress: [{ports: [{port: 9}]}]}";
    cluster.apply(&policy("one-port", port)).ok();
    reaches("a friend that may only send elsewhere", false, || {
        ask_from_wasm(&cluster, "friend", &web)
    });
    cluster
        .kubectl(&["delete", "networkpolicy", "one-port", "friends"])
        .ok();
    reaches("everybody is let in again", true, || {
        ask_from_wasm(&cluster, "stranger", &web)
    });
}

#[test]
fn linux_and_wasm_pods_keep_the_same_policies() {
    let test = "linux_and_wasm_pods_keep_the_same_policies";
    let Some(node) = MixedCluster::start(test, COX, &[SOCKETS]) else {
        return;
    };
    let cluster = &node.cluster;
    for manifest in [
        pod("linux", "web", "", LINUX_SERVER),
        pod("wasm", "web", VIRTUAL, &wasm("[serve, '8080']")),
        pod("friend", "friend", "", LINUX_CLIENT),
        pod("stranger", "stranger", "", LINUX_CLIENT),
    ] {
        cluster.apply(&manifest).ok();
    }
    for name in ["linux", "wasm", "friend", "stranger"] {
        cluster.wait("condition=Ready", &format!("pod/{name}"));
    }
    let servers = ["linux", "wasm"].map(|name| (name, ip(cluster, name)));
    let from_linux = |client: &str, server: &str| {
        let asked = ["exec", client, "--", "nc", "-w", "5", server, "8080"];
        let output = cluster.kubectl(&asked);
        format!("{}{}", output.stdout, output.stderr)
    };
    let all_reach = |case: &str, strangers: bool| {
        for (name, server) in &servers {
            for (client, wanted) in [("friend", true), ("stranger", strangers)] {
                reaches(
                    &format!("{case}: {name} by a Linux {client}"),
                    wanted,
                    || from_linux(client, server),
                );
                reaches(
                    &format!("{case}: {name} by a Wasm {client}"),
                    wanted,
                    || ask_from_wasm(cluster, client, server),
                );
            }
        }
    };
    all_reach("no policy", true);
    cluster.apply(&policy("friends", FRIENDS_ONLY)).ok();
    all_reach("friends only", false);
    meet_policies_at_once(&servers, |who, server| ask_from_linux(cluster, who, server));
    for (name, server) in &servers {
        let mut command = cluster.inside(std::path::Path::new("/bin/busybox"));
        let said = Output::of(command.args(["nc", "-w", "5", server, "8080"])).stdout;
        assert!(
            said.starts_with("from "),
            "the node reaches its Pods: {name}: {said}"
        );
    }
    cluster
        .kubectl(&["delete", "networkpolicy", "friends"])
        .ok();
    let names_only = "{podSelector: {matchLabels: {app: stranger}}, policyTypes: [Egress]}";
    cluster.apply(&policy("quiet", names_only)).ok();
    all_reach("strangers send nothing", false);
    let names = [
        "exec",
        "stranger",
        "--",
        "nslookup",
        "kubernetes.default.svc.cluster.local",
    ];
    let said = cluster.kubectl(&names).ok();
    assert!(
        said.contains("10.96.0.1"),
        "names are answered all the same: {said}"
    );
    cluster.kubectl(&["delete", "networkpolicy", "quiet"]).ok();
    all_reach("no policy any more", true);
}
