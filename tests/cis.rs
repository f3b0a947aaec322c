//! What `docs/cis-benchmark.md` says, row by row where a machine can tell, against a running `cox server`: files, flags, TLS, who is let in,
//! what is bound, what the roles that come with it give away. A case is named after its row, and the row must be there.
#![allow(
    clippy::unwrap_used,
    clippy::type_complexity,
    clippy::print_stdout,
    reason = "tests are tables and stories, fail by panicking, and say which row they are at"
)]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use cox_testkit::cluster::binary;
use cox_testkit::http::Admin;
use cox_testkit::{Output, eventually};
use serde_json::{Value, json};

const COX: &str = env!("CARGO_BIN_EXE_cox");
const TABLE: &str = include_str!("../docs/cis-benchmark.md");
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// A `cox server`, killed when dropped.
struct Server {
    dir: PathBuf,
    process: Child,
}

impl Server {
    fn start(dir: &Path, flags: &[&str]) -> Self {
        fs::create_dir_all(dir).unwrap();
        let log = File::create(dir.join("log")).unwrap();
        let process = command(dir)
            .args(flags)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let server = Self {
            dir: dir.to_owned(),
            process,
        };
        eventually("cox server to be ready", || {
            let printed = fs::read_to_string(server.dir.join("log")).unwrap();
            if printed.contains("control plane is ready") {
                Ok(())
            } else {
                Err(printed)
            }
        });
        server
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn kubeconfig(&self) -> PathBuf {
        self.data().join("kubeconfig")
    }

    fn admin(&self) -> Admin {
        Admin::of(&self.kubeconfig())
    }

    fn nobody(&self) -> Admin {
        Admin::without_certificate(&self.kubeconfig(), None)
    }

    fn get(&self, path: &str) -> Value {
        let (code, body) = send(&self.admin(), "GET", path, &Value::Null);
        assert_eq!(code, 200, "{path}: {body}");
        body
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new(binary(COX));
    command
        .args(["server", "--port", "0", "--data-dir"])
        .arg(dir.join("data"))
        .arg("--state-dir")
        .arg(dir.join("state"))
        .stdin(Stdio::null());
    command
}

/// What a server says that does not start.
fn refusal(flags: &[&str]) -> String {
    let dir = home();
    let output = Output::of(command(dir.path()).args(flags));
    output.refused()
}

fn home() -> tempfile::TempDir {
    let made = tempfile::Builder::new().prefix("cox-t").tempdir_in("/tmp");
    made.unwrap()
}

fn send(who: &Admin, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let text = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let kind = if method == "PATCH" {
        "application/merge-patch+json"
    } else {
        "application/json"
    };
    let (code, body) = who.request(method, path, kind, text.as_bytes()).unwrap();
    (code, serde_json::from_str(&body).unwrap_or(Value::Null))
}

/// Mode of a file as `ls` would give it.
fn mode(path: &Path) -> u32 {
    let read = fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    read.permissions().mode() & 0o777
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path);
        }
    }
    found
}

fn holds(dir: &Path, text: &str) -> bool {
    let holds = |path: &PathBuf| {
        let bytes = fs::read(path).unwrap();
        bytes
            .windows(text.len())
            .any(|part| part == text.as_bytes())
    };
    files_below(dir).iter().any(holds)
}

/// What a table of rows does not find as it is said to be.
fn check<W>(world: &W, cases: &[(&str, &str, fn(&W))]) {
    for (row, what, case) in cases {
        let begins = |line: &str| {
            let id = line.strip_prefix("| ").unwrap_or_default();
            let rest = id.strip_prefix(row);
            rest.is_some_and(|rest| rest.starts_with([' ', ',']))
        };
        assert!(TABLE.lines().any(begins), "the table has no row {row}");
        println!("{row} {what}");
        case(world);
    }
}

fn token(server: &Server, path: &str, spec: Value) -> String {
    let (code, made) = send(&server.admin(), "POST", path, &json!({"spec": spec}));
    assert_eq!(code, 201, "{made}");
    made["status"]["token"].as_str().unwrap().to_owned()
}

fn claims(token: &str) -> Value {
    let part = token.split('.').nth(1).unwrap();
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part);
    serde_json::from_slice(&bytes.unwrap()).unwrap()
}

/// Names of the cluster roles with a rule of which this is true.
fn roles(server: &Server, is: impl Fn(&Value) -> bool) -> BTreeSet<String> {
    let list = server.get(&format!("{RBAC}/clusterroles"));
    let roles = list["items"].as_array().unwrap().iter();
    let has = |role: &&Value| {
        role["rules"]
            .as_array()
            .is_some_and(|rules| rules.iter().any(&is))
    };
    roles
        .filter(has)
        .map(|role| role["metadata"]["name"].as_str().unwrap().to_owned())
        .collect()
}

fn names(list: &[&str]) -> BTreeSet<String> {
    list.iter().map(ToString::to_string).collect()
}

fn any(rule: &Value, field: &str, words: &[&str]) -> bool {
    let found = rule[field].as_array().into_iter().flatten();
    found
        .into_iter()
        .any(|one| words.contains(&one.as_str().unwrap()))
}

fn pod(name: &str, account: &str, privileged: bool) -> Value {
    json!({"metadata": {"name": name}, "spec": {"serviceAccountName": account,
        "containers": [{"name": "c", "image": "i", "securityContext": {"privileged": privileged}}]}})
}

/// The addresses on which a process listens.
fn listening(pid: u32) -> Vec<String> {
    let of_process: BTreeSet<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .map(|target| target.display().to_string())
        .collect();
    let mut found = Vec::new();
    for table in ["tcp", "tcp6"] {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields[3] == "0A" && of_process.contains(&format!("socket:[{}]", fields[9])) {
                found.push(fields[1].to_owned());
            }
        }
    }
    found
}

/// The certificate that a server shows.
fn shown(server: &Server) -> Vec<u8> {
    let admin = server.admin();
    let access = admin.access();
    let mut tls =
        rustls::ClientConnection::new(access.tls.clone(), access.server_name.clone()).unwrap();
    let mut tcp = TcpStream::connect(&access.authority).unwrap();
    while tls.is_handshaking() {
        tls.complete_io(&mut tcp).unwrap();
    }
    let version = tls.protocol_version();
    assert_eq!(version, Some(rustls::ProtocolVersion::TLSv1_3));
    tls.peer_certificates().unwrap()[0].to_vec()
}

/// The answer to the head of a handshake.
fn hello(server: &Server, bytes: &[u8]) -> Vec<u8> {
    let mut tcp = TcpStream::connect(&server.admin().access().authority).unwrap();
    tcp.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    tcp.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    // A reset is an answer too.
    tcp.read_to_end(&mut answer).ok();
    answer
}

#[test]
fn as_it_comes() {
    let home = home();
    let dir = home.path();
    // Folders and keys that others may read, before the first start.
    for name in ["data", "data/store", "data/pki"] {
        fs::create_dir_all(dir.join(name)).unwrap();
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    drop(Server::start(dir, &[]));
    let key = dir.join("data/pki/sa.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let before = fs::read(dir.join("data/pki/apiserver.crt")).unwrap();
    let server = Server::start(dir, &["--tls-san", "of-another-name"]);
    assert_ne!(
        fs::read(dir.join("data/pki/apiserver.crt")).unwrap(),
        before,
        "1.2.24: the serving certificate is made anew when it does not fit"
    );
    check(&server, FILES);
    check(&server, WHO);
    check(&server, ADMISSION);
    check(&server, PROCESS);
    check(&server, ROLES);
}

const FILES: &[(&str, &str, fn(&Server))] = &[
    ("1.1.1 to 1.1.8", "there are no manifests", |server| {
        let manifests: Vec<PathBuf> = files_below(&server.data())
            .into_iter()
            .filter(|path| path.extension().is_some_and(|one| one == "yaml"))
            .collect();
        assert_eq!(manifests, Vec::<PathBuf>::new());
    }),
    (
        "1.1.11",
        "folders are closed, also those that were not",
        |server| {
            for name in ["", "store"] {
                assert_eq!(mode(&server.data().join(name)), 0o700, "{name:?}");
            }
        },
    ),
    ("1.1.12", "all is its user's who started it", |server| {
        let user = fs::metadata("/proc/self").unwrap().uid();
        for path in files_below(&server.data()) {
            assert_eq!(
                fs::metadata(&path).unwrap().uid(),
                user,
                "{}",
                path.display()
            );
        }
    }),
    ("1.1.13", "the kubeconfig is its user's alone", |server| {
        assert_eq!(mode(&server.kubeconfig()), 0o600);
    }),
    (
        "1.1.15 to 1.1.18",
        "there is no other kubeconfig",
        |server| {
            let has_key = |path: &&PathBuf| {
                let bytes = fs::read(path).unwrap();
                String::from_utf8_lossy(&bytes).contains("client-key-data")
            };
            let found = files_below(&server.data());
            let found: Vec<&PathBuf> = found.iter().filter(has_key).collect();
            assert_eq!(found, [&server.kubeconfig()]);
        },
    ),
    ("1.1.19", "the folder of keys is closed", |server| {
        assert_eq!(mode(&server.data().join("pki")), 0o700);
    }),
    ("1.1.20", "certificates", |server| of_pki(server, "crt")),
    (
        "1.1.21",
        "keys, also one that others could read",
        |server| {
            of_pki(server, "key");
        },
    ),
];

fn of_pki(server: &Server, extension: &str) {
    let files = files_below(&server.data().join("pki"));
    let of_kind = files
        .iter()
        .filter(|path| path.extension().is_some_and(|one| one == extension));
    assert!(of_kind.clone().count() >= 2);
    for path in of_kind {
        assert_eq!(mode(path), 0o600, "{}", path.display());
    }
}

const WHO: &[(&str, &str, fn(&Server))] = &[
    (
        "1.2.1",
        "who is nobody learns of health and version alone",
        |server| {
            let nobody = server.nobody();
            for path in ["/healthz", "/livez", "/readyz", "/version"] {
                assert_eq!(send(&nobody, "GET", path, &Value::Null).0, 200, "{path}");
            }
            for path in [
                "/",
                "/api",
                "/apis",
                "/api/v1/nodes",
                "/metrics",
                "/openapi/v3",
                "/openid/v1/jwks",
            ] {
                assert_eq!(send(&nobody, "GET", path, &Value::Null).0, 401, "{path}");
            }
        },
    ),
    ("1.2.2", "there are no token files", |_| {
        let said = refusal(&["--token-auth-file", "/dev/null"]);
        assert!(
            said.contains("unexpected argument '--token-auth-file'"),
            "{said}"
        );
    }),
    ("1.2.6 to 1.2.8", "who has no right is refused", |server| {
        let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
        let token = token(server, path, json!({}));
        let account = Admin::without_certificate(&server.kubeconfig(), Some(&token));
        assert_eq!(send(&account, "GET", "/apis", &Value::Null).0, 200);
        for path in ["/api/v1/secrets", CONFIG_MAPS, "/api/v1/nodes"] {
            assert_eq!(send(&account, "GET", path, &Value::Null).0, 403, "{path}");
        }
    }),
    (
        "1.2.10",
        "there is no plugin that admits everything",
        |_| {
            let said = refusal(&["--enable-admission-plugins", "AlwaysAdmit"]);
            assert!(said.contains("unexpected argument"), "{said}");
        },
    ),
    ("1.2.21", "a token ends with its account", |server| {
        let accounts = "/api/v1/namespaces/default/serviceaccounts";
        let made = json!({"metadata": {"name": "short"}});
        assert_eq!(server.admin().post(accounts, &made).unwrap().0, 201);
        let token = token(server, &format!("{accounts}/short/token"), json!({}));
        let account = Admin::without_certificate(&server.kubeconfig(), Some(&token));
        assert_eq!(send(&account, "GET", "/apis", &Value::Null).0, 200);
        let path = format!("{accounts}/short");
        assert_eq!(send(&server.admin(), "DELETE", &path, &Value::Null).0, 200);
        assert_eq!(send(&account, "GET", "/apis", &Value::Null).0, 401);
    }),
    ("1.2.22", "accounts have a key of their own", |server| {
        let read = |name: &str| fs::read(server.data().join("pki").join(name)).unwrap();
        assert_ne!(read("sa.key"), read("ca.key"));
        let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
        let token = token(server, path, json!({}));
        let head = token.split('.').next().unwrap();
        let head = base64::engine::general_purpose::URL_SAFE_NO_PAD
            .decode(head)
            .unwrap();
        let head: Value = serde_json::from_slice(&head).unwrap();
        assert_eq!(head["alg"], "ES256");
    }),
    ("1.2.23", "a member of etcd must show whom it is", |_| {
        let said = refusal(&["--etcd-servers", "https://127.0.0.1:1"]);
        assert!(said.contains("--etcd-cafile"), "{said}");
    }),
    ("1.2.29", "TLS 1.3 and nothing older", |server| {
        shown(server);
        // A handshake of TLS 1.2 at most: it names no versions.
        let mut old = vec![0x16, 3, 1, 0, 45, 1, 0, 0, 41, 3, 3];
        old.extend([7; 32]);
        old.extend([0, 0, 2, 0xc0, 0x2f, 1, 0]);
        let answer = hello(server, &old);
        assert!(
            answer.is_empty() || answer[0] == 0x15,
            "no alert: {answer:?}"
        );
    }),
    (
        "1.2.30",
        "a token lives as long as was asked for",
        |server| {
            let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
            for (asked, expected) in [(json!({}), 3600), (json!({"expirationSeconds": 900}), 900)] {
                let claims = claims(&token(server, path, asked));
                let lives = claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap();
                assert_eq!(lives, expected);
            }
        },
    ),
];

const ADMISSION: &[(&str, &str, fn(&Server))] = &[
    (
        "1.2.3",
        "an external IP is served with a warning",
        |server| {
            let service = json!({"metadata": {"name": "outside"}, "spec": {"ports": [{"port": 80}], "externalIPs": ["203.0.113.7"]}});
            let made = server
                .admin()
                .post("/api/v1/namespaces/default/services", &service);
            assert_eq!(made.unwrap().0, 201);
        },
    ),
    ("1.2.12", "a Pod has an account that is there", |server| {
        let pods = "/api/v1/namespaces/default/pods";
        let (code, said) = server
            .admin()
            .post(pods, &pod("a", "missing", false))
            .unwrap();
        assert_eq!(code, 403, "{said}");
        let made = || {
            let (code, made) = server.admin().post(pods, &pod("b", "", false)).unwrap();
            if code == 201 { Ok(made) } else { Err(made) }
        };
        let made = eventually("the default account to be there", made);
        assert_eq!(made["spec"]["serviceAccountName"], "default");
    }),
    (
        "1.2.13",
        "nothing is made in a namespace that is not there",
        |server| {
            let (code, said) = server
                .admin()
                .post(
                    "/api/v1/namespaces/missing/configmaps",
                    &json!({"metadata": {"name": "c"}}),
                )
                .unwrap();
            assert_eq!(code, 404, "{said}");
        },
    ),
    ("1.2.14", "a node writes of itself alone", |server| {
        let home = home();
        let output = Output::of(
            Command::new(binary(COX))
                .args([
                    "kubeconfig",
                    "--user",
                    "system:node:n1",
                    "--group",
                    "system:nodes",
                    "--data-dir",
                ])
                .arg(server.data())
                .arg("--state-dir")
                .arg(server.dir.join("state")),
        );
        let path = home.path().join("node");
        fs::write(&path, output.ok()).unwrap();
        let node = Admin::of(&path);
        let lease = |name: &str| json!({"metadata": {"name": name}, "spec": {}});
        let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
        let made = || {
            let (code, said) = node.post(leases, &lease("n1")).unwrap();
            if code == 201 {
                Ok(())
            } else {
                Err((code, said))
            }
        };
        eventually("the namespace of leases", made);
        assert_eq!(node.post(leases, &lease("n2")).unwrap().0, 403);
    }),
    ("1.3.5", "every namespace has the authority", |server| {
        let made = json!({"metadata": {"name": "late"}});
        assert_eq!(
            server.admin().post("/api/v1/namespaces", &made).unwrap().0,
            201
        );
        let authority = fs::read_to_string(server.data().join("pki/ca.crt")).unwrap();
        for namespace in ["default", "kube-system", "late"] {
            let path = format!("/api/v1/namespaces/{namespace}/configmaps/kube-root-ca.crt");
            eventually("kube-root-ca.crt", || {
                let (_, found) = send(&server.admin(), "GET", &path, &Value::Null);
                if found["data"]["ca.crt"] == authority {
                    Ok(())
                } else {
                    Err(found)
                }
            });
        }
    }),
    (
        "5.2.1",
        "what Pods may is enforced where a namespace says so",
        |server| {
            let label = json!({"metadata": {"name": "strict", "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
            assert_eq!(
                server.admin().post("/api/v1/namespaces", &label).unwrap().0,
                201
            );
            let pods = "/api/v1/namespaces/strict/pods";
            let said = eventually("a refusal that is not about the account", || {
                let (code, said) = server.admin().post(pods, &pod("p", "", true)).unwrap();
                let text = said["message"].as_str().unwrap_or_default().to_owned();
                if code == 403 && text.contains("PodSecurity") {
                    Ok(text)
                } else {
                    Err(said)
                }
            });
            assert!(said.contains("privileged"), "{said}");
        },
    ),
    ("5.2.2 to 5.2.12", "and not where it does not", |server| {
        let made = server
            .admin()
            .post("/api/v1/namespaces/default/pods", &pod("free", "", true));
        assert_eq!(made.unwrap().0, 201);
    }),
];

const PROCESS: &[(&str, &str, fn(&Server))] = &[
    ("1.2.15", "no profiling", |server| {
        for path in ["/debug/pprof", "/debug/pprof/profile", "/debug/flags/v"] {
            assert_eq!(
                send(&server.admin(), "GET", path, &Value::Null).0,
                404,
                "{path}"
            );
        }
    }),
    ("1.3.2", "nothing listens but the API server", |server| {
        let admin = server.admin();
        let port: u16 = admin
            .access()
            .authority
            .rsplit_once(':')
            .unwrap()
            .1
            .parse()
            .unwrap();
        let found = listening(server.process.id());
        assert_eq!(found, [format!("0100007F:{port:04X}")]);
    }),
    (
        "1.3.7",
        "and that on loopback, unless told otherwise",
        |server| {
            let found = listening(server.process.id());
            assert!(
                found.iter().all(|one| one.starts_with("0100007F:")),
                "{found:?}"
            );
        },
    ),
];

const ROLES: &[(&str, &str, fn(&Server))] = &[
    (
        "5.1.1",
        "cluster-admin is bound to system:masters alone",
        |server| {
            let list = server.get(&format!("{RBAC}/clusterrolebindings"));
            let bound: Vec<&Value> = list["items"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|one| one["roleRef"]["name"] == "cluster-admin")
                .flat_map(|one| one["subjects"].as_array().unwrap())
                .collect();
            assert_eq!(bound.len(), 1, "{bound:?}");
            assert_eq!(bound[0]["kind"], "Group");
            assert_eq!(bound[0]["name"], "system:masters");
        },
    ),
    ("5.1.2", "who may read secrets", |server| {
        let reads = |rule: &Value| {
            any(rule, "resources", &["secrets", "*"])
                && any(rule, "apiGroups", &["", "*"])
                && any(rule, "verbs", &["get", "list", "watch", "*"])
        };
        let expected = [
            "admin",
            "cluster-admin",
            "coxswain:gateway",
            "edit",
            "system:aggregate-to-edit",
            "system:controller:generic-garbage-collector",
            "system:controller:namespace-controller",
            "system:controller:resourcequota-controller",
            "system:kube-controller-manager",
            "system:node",
        ];
        assert_eq!(roles(server, reads), names(&expected));
    }),
    ("5.1.3", "who has a wildcard", |server| {
        let wild = |rule: &Value| {
            ["verbs", "resources", "nonResourceURLs"]
                .iter()
                .any(|field| any(rule, field, &["*"]))
        };
        let expected = [
            "cluster-admin",
            "coxswain:gateway",
            "system:controller:generic-garbage-collector",
            "system:controller:horizontal-pod-autoscaler",
            "system:controller:namespace-controller",
            "system:controller:resourcequota-controller",
            "system:kube-controller-manager",
            "system:kubelet-api-admin",
        ];
        assert_eq!(roles(server, wild), names(&expected));
    }),
    (
        "5.1.5",
        "an account may nothing but look for what there is",
        |server| {
            let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
            let token = token(server, path, json!({}));
            let account = Admin::without_certificate(&server.kubeconfig(), Some(&token));
            let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": "default"}});
            let (code, said) = account
                .post(
                    "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
                    &review,
                )
                .unwrap();
            assert_eq!(code, 201, "{said}");
            for rule in said["status"]["resourceRules"].as_array().unwrap() {
                assert_eq!(rule["verbs"], json!(["create"]), "{rule}");
                for resource in rule["resources"].as_array().unwrap() {
                    assert!(
                        resource.as_str().unwrap().starts_with("selfsubject"),
                        "{rule}"
                    );
                }
            }
            for rule in said["status"]["nonResourceRules"].as_array().unwrap() {
                assert_eq!(rule["verbs"], json!(["get"]), "{rule}");
            }
        },
    ),
    ("5.1.9 to 5.1.13", "who may what leads further", |server| {
        let write = ["create", "update", "patch", "*"];
        let cases: [(&str, &str, &[&str], &[&str]); 5] = [
            (
                "",
                "persistentvolumes",
                &["create", "*"],
                &[
                    "cluster-admin",
                    "system:controller:persistent-volume-binder",
                    "system:persistent-volume-provisioner",
                ],
            ),
            (
                "",
                "nodes/proxy",
                &["*", "create", "delete", "get", "patch", "update"],
                &[
                    "cluster-admin",
                    "coxswain:local-path",
                    "system:kubelet-api-admin",
                ],
            ),
            (
                "certificates.k8s.io",
                "certificatesigningrequests/approval",
                &write,
                &[
                    "cluster-admin",
                    "system:controller:certificate-controller",
                    "system:controller:generic-garbage-collector",
                ],
            ),
            (
                "admissionregistration.k8s.io",
                "mutatingwebhookconfigurations",
                &["create", "*"],
                &["cluster-admin"],
            ),
            (
                "",
                "serviceaccounts/token",
                &["create", "*"],
                &[
                    "admin",
                    "cluster-admin",
                    "edit",
                    "system:aggregate-to-edit",
                    "system:kube-controller-manager",
                    "system:node",
                ],
            ),
        ];
        for (group, resource, verbs, expected) in cases {
            let gives = |rule: &Value| {
                any(rule, "apiGroups", &[group, "*"])
                    && any(rule, "resources", &[resource, "*"])
                    && any(rule, "verbs", verbs)
            };
            let mut found = roles(server, gives);
            // What these may with everything that there is stands in 5.1.3.
            for controller in ["generic-garbage-collector", "namespace-controller"] {
                let name = format!("system:controller:{controller}");
                if !expected.contains(&&*name) {
                    found.remove(&name);
                }
            }
            assert_eq!(found, names(expected), "{resource}");
        }
    }),
];

const POLICY: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- level: Metadata\n";
const ENCRYPTION: &str = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  \
     providers:\n  - aescbc: {keys: [{name: k, secret: AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=}]}\n  - identity: {}\n";

#[test]
fn with_the_flags_that_it_names() {
    let home = home();
    let dir = home.path();
    let (policy, keys) = (dir.join("policy.yaml"), dir.join("keys.yaml"));
    fs::write(&policy, POLICY).unwrap();
    fs::write(&keys, ENCRYPTION).unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let server = Server::start(
        dir,
        &[
            "--anonymous-auth=false",
            "--audit-policy-file",
            &text(&policy),
            "--audit-log-path",
            &text(&dir.join("audit")),
            "--audit-log-maxage",
            "30",
            "--audit-log-maxbackup",
            "10",
            "--audit-log-maxsize",
            "100",
            "--encryption-provider-config",
            &text(&keys),
        ],
    );
    check(&server, FLAGS);
}

const FLAGS: &[(&str, &str, fn(&Server))] = &[
    ("1.2.1", "nobody gets nothing", |server| {
        for path in ["/healthz", "/livez", "/readyz", "/version", "/api"] {
            assert_eq!(
                send(&server.nobody(), "GET", path, &Value::Null).0,
                401,
                "{path}"
            );
        }
    }),
    (
        "1.2.16",
        "what happens is written, for its user alone",
        |server| {
            let path = server.dir.join("audit");
            assert_eq!(mode(&path), 0o600);
            let object = json!({"metadata": {"name": "noted"}});
            assert_eq!(server.admin().post(CONFIG_MAPS, &object).unwrap().0, 201);
            eventually("the audit log", || {
                let noted = |event: &Value| {
                    event["objectRef"]["resource"] == "configmaps"
                        && event["user"]["username"] == "kubernetes-admin"
                        && event["verb"] == "create"
                };
                if audited(server).iter().any(noted) {
                    Ok(())
                } else {
                    Err("not noted")
                }
            });
        },
    ),
    (
        "1.2.27",
        "secrets are not to be read on the disk",
        |server| {
            let secret = json!({"metadata": {"name": "s"}, "stringData": {"k": "not-to-be-found"}});
            let path = "/api/v1/namespaces/default/secrets";
            assert_eq!(server.admin().post(path, &secret).unwrap().0, 201);
            let plain = json!({"metadata": {"name": "c"}, "data": {"k": "to-be-found"}});
            assert_eq!(server.admin().post(CONFIG_MAPS, &plain).unwrap().0, 201);
            let encoded = base64::engine::general_purpose::STANDARD.encode("not-to-be-found");
            let store = server.data().join("store");
            assert!(holds(&store, "to-be-found"), "other objects can be found");
            assert!(!holds(&store, &encoded));
            assert!(holds(&store, "k8s:enc:aescbc:v1:k:"));
            let read = server.get(&format!("{path}/s"));
            assert_eq!(read["data"]["k"], encoded);
        },
    ),
    (
        "1.3.3",
        "each controller acts under its own name",
        |server| {
            let expected = ["root-ca-cert-publisher", "service-account-controller"];
            for name in expected {
                let account = format!("system:serviceaccount:kube-system:{name}");
                eventually("a write of a controller", || {
                    let own = |event: &Value| {
                        event["user"]["username"] == *account && event["verb"] == "create"
                    };
                    if audited(server).iter().any(own) {
                        Ok(())
                    } else {
                        Err(account.clone())
                    }
                });
            }
            let is_ours = |name: &str| {
                // Whose credentials were refused is nobody.
                name.is_empty()
                    || name == "kubernetes-admin"
                    || name == "cox:informers"
                    || name.starts_with("system:serviceaccount:kube-system:")
            };
            for event in audited(server) {
                let user = event["user"]["username"].as_str().unwrap().to_owned();
                assert!(is_ours(&user), "{event}");
                let reads = ["get", "list", "watch"]
                    .map(Value::from)
                    .contains(&event["verb"]);
                assert!(user != "cox:informers" || reads, "{event}");
            }
        },
    ),
];

fn audited(server: &Server) -> Vec<Value> {
    let text = fs::read_to_string(server.dir.join("audit")).unwrap();
    // The last line may be on its way.
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}
