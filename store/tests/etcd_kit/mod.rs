//! etcd for tests: members of their own, on free ports of the loopback, gone when dropped.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// Whether etcd is installed. Without it a test is skipped and counted, or fails where CI runs it.
pub fn installed(test: &str) -> bool {
    let found = Command::new("etcd")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if found.is_ok_and(|status| status.success()) {
        return true;
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "{test} cannot run: etcd is not installed"
    );
    eprintln!("skipped: {test}: etcd is not installed");
    if let Some(path) = std::env::var_os("COX_TEST_SKIPS") {
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .unwrap();
        writeln!(file, "{test}: etcd is not installed").unwrap();
    }
    false
}

/// A cluster.
#[derive(Debug)]
pub struct Cluster {
    members: Vec<Member>,
    dir: PathBuf,
    _dir: tempfile::TempDir,
    extra: Vec<String>,
}

#[derive(Debug)]
struct Member {
    client_port: u16,
    peer_port: u16,
    child: Option<Child>,
}

/// Ports that nobody has at the moment.
fn free_ports(count: usize) -> Vec<u16> {
    let held: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    held.iter()
        .map(|listener| listener.local_addr().unwrap().port())
        .collect()
}

#[allow(dead_code, reason = "each test crate uses some of it")]
impl Cluster {
    pub fn start(count: usize) -> Self {
        Self::start_with(count, &[])
    }

    /// With more flags for each member.
    pub fn start_with(count: usize, extra: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ports = free_ports(2 * count);
        let members = ports
            .chunks(2)
            .map(|ports| Member {
                client_port: ports[0],
                peer_port: ports[1],
                child: None,
            })
            .collect();
        let mut cluster = Self {
            members,
            dir: dir.path().to_owned(),
            _dir: dir,
            extra: extra.iter().map(ToString::to_string).collect(),
        };
        for at in 0..count {
            cluster.run(at);
        }
        cluster
    }

    pub fn endpoints(&self) -> Vec<String> {
        (0..self.members.len())
            .map(|at| self.endpoint(at))
            .collect()
    }

    pub fn endpoint(&self, at: usize) -> String {
        let scheme = if self
            .extra
            .iter()
            .any(|flag| flag.starts_with("--cert-file"))
        {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://127.0.0.1:{}", self.members[at].client_port)
    }

    /// Starts a member, with what its folder holds.
    pub fn run(&mut self, at: usize) {
        let peer = |at: usize| format!("http://127.0.0.1:{}", self.members[at].peer_port);
        let all: Vec<String> = (0..self.members.len())
            .map(|at| format!("m{at}={}", peer(at)))
            .collect();
        let log = std::fs::File::create(self.dir.join(format!("m{at}.log"))).unwrap();
        let child = Command::new("etcd")
            .args(["--name", &format!("m{at}")])
            .arg("--data-dir")
            .arg(self.dir.join(format!("m{at}")))
            .args(["--listen-client-urls", &self.endpoint(at)])
            .args(["--advertise-client-urls", &self.endpoint(at)])
            .args(["--listen-peer-urls", &peer(at)])
            .args(["--initial-advertise-peer-urls", &peer(at)])
            .args(["--initial-cluster", &all.join(",")])
            .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
            .args(["--logger", "zap", "--log-level", "warn"])
            .args(&self.extra)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.members[at].child = Some(child);
    }

    /// As a power cut ends it.
    pub fn kill(&mut self, at: usize) {
        if let Some(mut child) = self.members[at].child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// One of a member's own figures.
    pub fn figure(&self, at: usize, name: &str) -> f64 {
        let mut stream = TcpStream::connect(("127.0.0.1", self.members[at].client_port)).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap().trim().parse().unwrap()
    }

    pub fn pause(&self, at: usize) {
        self.signal(at, "-STOP");
    }

    pub fn resume(&self, at: usize) {
        self.signal(at, "-CONT");
    }

    fn signal(&self, at: usize, signal: &str) {
        let pid = self.members[at].child.as_ref().unwrap().id().to_string();
        let status = Command::new("kill").args([signal, &pid]).status().unwrap();
        assert!(status.success());
    }

    /// What etcdctl prints.
    pub fn etcdctl(&self, args: &[&str]) -> Vec<u8> {
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.endpoints().join(",")])
            .args(args)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "etcdctl {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        output.stdout
    }

    /// Puts raw bytes under a key.
    pub fn put(&self, key: &str, value: &[u8]) {
        let mut child = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.endpoint(0), "put", key])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(value).unwrap();
        assert!(child.wait().unwrap().success());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in &mut self.members {
            if let Some(mut child) = member.child.take() {
                child.kill().ok();
                child.wait().ok();
            }
        }
    }
}
