//! Bad input and bad circumstances: one clear sentence, the right status, and a cluster that goes on.
#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    clippy::type_complexity,
    reason = "tests are tables and stories, and fail by panicking"
)]

use std::net::TcpListener;

use cox_testkit::http::Admin;
use cox_testkit::{Cluster, Output};
use serde_json::{Value, json};

const COX: &str = env!("CARGO_BIN_EXE_cox");

/// `cox up` that must refuse: exit code 1, and one line on standard error that starts with `cox: `.
#[track_caller]
fn refusal(cluster: &Cluster, args: &[&str]) -> String {
    let output = Output::of(
        cluster
            .command("up")
            .args(["--no-merge-kubeconfig", "--no-follow"])
            .args(args),
    );
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    // Clusters of other tests have this one's Service addresses on the same loopback, of which the log warns.
    let is_other = |line: &&str| line.contains("A Service's address cannot be listened on");
    let lines: Vec<&str> = output
        .stderr
        .lines()
        .filter(|line| !is_other(line))
        .collect();
    assert!(
        lines.len() == 1 && lines[0].starts_with("cox: "),
        "one sentence, not: {}",
        output.stderr
    );
    lines[0].to_owned()
}

#[track_caller]
fn says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
}

#[test]
fn a_busy_port_is_named_with_the_mend() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let cluster = Cluster::prepare(COX, &[]);
    says(&refusal(&cluster, &["--port", &port]), &[&port, "--port"]);
    assert_eq!(cluster.shim_pid(), None, "nothing stays behind");
}

#[test]
fn a_data_folder_that_cannot_be_written_is_named() {
    let cluster = Cluster::prepare(COX, &[]);
    // A file where the folder should be: that stops root, too.
    std::fs::write(cluster.data_dir(), "not a folder").unwrap();
    says(
        &refusal(&cluster, &["--port", "0"]),
        &["the data folder", "cannot be written", "--data-dir"],
    );
}

#[test]
fn a_second_up_on_the_same_folder_names_the_first() {
    let cluster = Cluster::up(COX, &["--no-follow"]);
    says(
        &refusal(&cluster, &["--port", "0"]),
        &[
            "in use by another cox",
            &cluster.pid().to_string(),
            "--data-dir",
        ],
    );
    cluster.kubectl(&["get", "nodes"]).ok();
}

#[test]
fn a_damaged_store_is_named_and_left_as_it_is() {
    let mut cluster = Cluster::up(COX, &["--no-follow"]);
    cluster
        .kubectl(&["create", "configmap", "precious", "--from-literal=a=1"])
        .ok();
    cluster.interrupt();
    let store = cluster.data_dir().join("store");
    let largest = files_below(&store)
        .into_iter()
        .max_by_key(|path| std::fs::metadata(path).unwrap().len())
        .unwrap();
    let mut bytes = std::fs::read(&largest).unwrap();
    let good = bytes.clone();
    // Zeroes where there was content: what a torn write or a bad block leaves.
    let content: Vec<usize> = (0..bytes.len())
        .filter(|index| bytes[*index] != 0)
        .collect();
    for index in &content[content.len() / 4..content.len() * 3 / 4] {
        bytes[*index] = 0;
    }
    std::fs::write(&largest, &bytes).unwrap();
    says(&refusal(&cluster, &["--port", "0"]), &["store", "damaged"]);
    assert!(
        std::fs::read(&largest).unwrap().len() >= bytes.len(),
        "it is not emptied"
    );

    std::fs::write(&largest, good).unwrap();
    cluster.start();
    assert_eq!(
        cluster.json(&["get", "configmap", "precious"])["data"]["a"],
        "1"
    );
}

#[test]
fn nothing_to_run_is_said_before_anything_starts() {
    let cluster = Cluster::prepare(COX, &[]);
    let empty = cluster.scratch().join("empty");
    std::fs::create_dir(&empty).unwrap();
    says(
        &refusal(&cluster, &["--port", "0", empty.to_str().unwrap()]),
        &["nothing to run"],
    );
    let broken = cluster.scratch().join("broken.yaml");
    std::fs::write(&broken, "kind: [").unwrap();
    says(
        &refusal(&cluster, &["--port", "0", broken.to_str().unwrap()]),
        &["broken.yaml", "is not a manifest"],
    );
    assert!(!cluster.data_dir().exists(), "nothing was started");
}

#[test]
fn a_manifest_that_the_api_refuses_ends_up_with_the_servers_sentence() {
    let cluster = Cluster::prepare(COX, &[]);
    let path = cluster.scratch().join("pod.yaml");
    std::fs::write(
        &path,
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c}]}\n",
    )
    .unwrap();
    says(
        &refusal(&cluster, &["--port", "0", path.to_str().unwrap()]),
        &[
            "pod/p",
            "pod.yaml",
            "spec.containers[0].image: Required value",
        ],
    );
}

#[test]
fn requests_that_make_no_sense_get_a_status_and_a_sentence() {
    let cluster = Cluster::up(COX, &["--no-follow"]);
    let admin = Admin::of(&cluster.kubeconfig());
    let configmaps = "/api/v1/namespaces/default/configmaps";
    let named = |name: &str| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}).to_string()
    };
    let pods = "/api/v1/namespaces/default/pods";
    let big = named(&"x".repeat(10 << 20));
    let cases: &[(&str, &str, &str, &[u8], u16, &[&str])] = &[
        ("malformed JSON", configmaps, "application/json", b"{\"kind\": ", 400, &["BadRequest"]),
        ("malformed YAML", configmaps, "application/yaml", b"kind: [", 400, &["BadRequest"]),
        ("a wrong type", configmaps, "application/json", br#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":[]}"#, 400, &["cannot unmarshal"]),
        ("another kind", configmaps, "application/json", br#"{"apiVersion":"v1","kind":"Secret","metadata":{"name":"a"}}"#, 400, &["BadRequest"]),
        ("an unknown media type", configmaps, "text/plain", b"hello", 415, &["UnsupportedMediaType"]),
        ("a name that is no DNS label", configmaps, "application/json", named("Not_A_Name").leak().as_bytes(), 422, &["metadata.name: Invalid value", "RFC 1123"]),
        ("a body of 10 MB", configmaps, "application/json", big.as_bytes(), 413, &["RequestEntityTooLarge"]),
        (
            "a Pod without a container's name",
            pods,
            "application/json",
            br#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"containers":[{"image":"x"}]}}"#,
            422,
            &["spec.containers[0].name: Required value", "FieldValueRequired"],
        ),
        (
            "an unknown field under strict validation",
            "/api/v1/namespaces/default/configmaps?fieldValidation=Strict",
            "application/json",
            br#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"dta":{}}"#,
            400,
            &["strict decoding error", "unknown field \\\"dta\\\""],
        ),
        ("no such resource", "/api/v1/namespaces/default/widgets", "application/json", b"{}", 404, &["could not find the requested resource"]),
    ];
    for (name, path, content_type, body, status, words) in cases {
        let (answered, text) = admin
            .request("POST", path, content_type, body)
            .unwrap_or_else(|err| panic!("{name}: {err}"));
        assert_eq!(answered, *status, "{name}: {text}");
        let parsed: Value =
            serde_json::from_str(&text).unwrap_or_else(|err| panic!("{name}: {err}: {text}"));
        assert_eq!(parsed["kind"], "Status", "{name}");
        for word in *words {
            assert!(text.contains(word), "{name}: no {word:?} in {text}");
        }
    }
    let warned = cluster.scratch().join("warned.yaml");
    std::fs::write(
        &warned,
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: warned}\ndta: {}\n",
    )
    .unwrap();
    let output = cluster.kubectl(&["apply", "--validate=warn", "-f", warned.to_str().unwrap()]);
    assert!(
        output.stderr.contains(r#"unknown field "dta""#),
        "{output:?}"
    );
    output.ok();
    cluster.kubectl(&["get", "configmap", "warned"]).ok();
}

fn files_below(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path))
        } else {
            files.push(path)
        }
    }
    files
}
