//! Hosts made of network namespaces, for tests: real packets, no machine but this one. Everything goes when the lab is dropped.

use std::process::{Command, Output};

/// Namespaces with names of their own.
pub(crate) struct Lab {
    prefix: String,
    hosts: Vec<String>,
}

impl Lab {
    /// None where this machine cannot make one: says so, and counts it, except under `CI=true`.
    pub(crate) fn new(test: &str) -> Option<Self> {
        let can = rustix::process::geteuid().is_root() && crate::nft::has_program("ip");
        if !can {
            assert!(
                std::env::var_os("CI").is_none(),
                "{test} needs root and iproute2"
            );
            skip(test, "root and iproute2");
            return None;
        }
        // A name of a link has 15 bytes.
        let prefix = format!("x{:x}", std::process::id() & 0xffff);
        Some(Self {
            prefix: format!("{prefix}{}", &crate::nft::short(test)[..3]),
            hosts: Vec::new(),
        })
    }

    /// A host with its loopback up, which forwards.
    pub(crate) fn host(&mut self, name: &str) -> String {
        let netns = format!("{}-{name}", self.prefix);
        Command::new("ip")
            .args(["netns", "del", &netns])
            .output()
            .unwrap();
        ok(Command::new("ip").args(["netns", "add", &netns]));
        self.hosts.push(netns.clone());
        self.ip(name, "link set lo up");
        self.inside(
            name,
            "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding; \
             echo 0 > /proc/sys/net/ipv6/conf/all/accept_dad; echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad",
        );
        netns
    }

    pub(crate) fn netns(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// `ip` in a host.
    pub(crate) fn ip(&self, name: &str, words: &str) -> String {
        let netns = self.netns(name);
        ok(Command::new("ip")
            .args(["-n", &netns])
            .args(words.split(' ')))
    }

    /// A shell's words in a host.
    pub(crate) fn inside(&self, name: &str, script: &str) -> String {
        ok(&mut self.command(name, script))
    }

    /// Whether a shell's words succeed in a host, and what they print.
    pub(crate) fn try_inside(&self, name: &str, script: &str) -> (bool, String) {
        let output = self.command(name, script).output().unwrap();
        (output.status.success(), printed(&output))
    }

    /// To be run in a host.
    pub(crate) fn command(&self, name: &str, script: &str) -> Command {
        let mut command = Command::new("ip");
        let netns = self.netns(name);
        command.args(["netns", "exec", &netns, "sh", "-c", script]);
        command
    }

    /// A cable between two hosts, each end with its address.
    pub(crate) fn cable(&self, one: (&str, &str, &str), other: (&str, &str, &str)) {
        let (a, b) = (self.netns(one.0), self.netns(other.0));
        ok(Command::new("ip").args([
            "link", "add", one.1, "netns", &a, "type", "veth", "peer", "name", other.1, "netns", &b,
        ]));
        for (host, dev, addresses) in [one, other] {
            for address in addresses.split(' ').filter(|address| !address.is_empty()) {
                self.ip(host, &format!("address add {address} dev {dev}"));
            }
            self.ip(host, &format!("link set {dev} up"));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for netns in &self.hosts {
            Command::new("ip")
                .args(["netns", "del", netns])
                .output()
                .ok();
        }
    }
}

/// Whether the kernel has what a test needs. Debian's has it, in the machine of `tests/vm/network`, where nothing may be missing;
/// that of a developer or of CI need not.
pub(crate) fn kernel_has(test: &str, what: &str, is_there: bool) -> bool {
    assert!(
        is_there || std::env::var_os("COX_VM").is_none(),
        "{test} needs {what}"
    );
    if !is_there {
        skip(test, &format!("{what} (see tests/vm/network)"));
    }
    is_there
}

fn skip(test: &str, what: &str) {
    if let Ok(file) = std::env::var("COX_TEST_SKIPS") {
        let mut options = std::fs::OpenOptions::new();
        let mut skips = options.append(true).create(true).open(file).unwrap();
        let note = format!("{test}: needs {what}\n");
        std::io::Write::write_all(&mut skips, note.as_bytes()).unwrap();
    }
}

fn printed(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn ok(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", printed(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
