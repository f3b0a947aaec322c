//! The checks of the Pod Security Standards, each from the version on in which it came. Pure; texts are upstream's.

use std::collections::BTreeSet;
use std::fmt;

use cox_api::meta;
use serde_json::Value;

use super::policy::{Level, Mode};
use crate::admission::items;

/// The minor version of the newest rules.
const NEWEST: u32 = 36;
const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
/// Sysctls that stay within a Pod, with the version that first allowed them.
const SYSCTLS: [(&str, u32); 12] = [
    ("kernel.shm_rmid_forced", 0),
    ("net.ipv4.ip_local_port_range", 0),
    ("net.ipv4.tcp_syncookies", 0),
    ("net.ipv4.ping_group_range", 0),
    ("net.ipv4.ip_unprivileged_port_start", 0),
    ("net.ipv4.ip_local_reserved_ports", 27),
    ("net.ipv4.tcp_keepalive_time", 29),
    ("net.ipv4.tcp_fin_timeout", 29),
    ("net.ipv4.tcp_keepalive_intvl", 29),
    ("net.ipv4.tcp_keepalive_probes", 29),
    ("net.ipv4.tcp_rmem", 32),
    ("net.ipv4.tcp_wmem", 32),
];
/// Volumes of a restricted Pod.
const VOLUMES: [&str; 9] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];
const OLD_SECCOMP: &str = "seccomp.security.alpha.kubernetes.io/pod";
const OLD_SECCOMP_OF: &str = "container.seccomp.security.alpha.kubernetes.io/";
const OLD_APPARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

/// What a Pod does that it may not.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Violation {
    pub(super) reason: String,
    detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.reason, self.detail)
    }
}

type Found = Option<Violation>;

fn found(reason: &str, detail: String) -> Found {
    Some(Violation {
        reason: reason.to_owned(),
        detail,
    })
}

/// A Pod, or the template of one.
struct Subject<'v> {
    metadata: &'v Value,
    spec: &'v Value,
    minor: u32,
}

/// What of a Pod is against a level, in upstream's order.
pub(super) fn violations(mode: &Mode, pod: &Value) -> Vec<Violation> {
    let minor = mode.version.unwrap_or(NEWEST).min(NEWEST);
    let subject = Subject {
        metadata: pod,
        spec: &pod["spec"],
        minor,
    };
    let restricted = match mode.level {
        Level::Privileged => return Vec::new(),
        Level::Baseline => false,
        Level::Restricted => true,
    };
    let baseline = [
        subject.app_armor(),
        subject.capabilities().filter(|_| !restricted || minor < 22),
        subject.host_namespaces(),
        subject.host_paths().filter(|_| !restricted),
        subject.host_ports(),
        subject.host_probes().filter(|_| minor >= 34),
        subject.privileged(),
        subject.proc_mount(!restricted && minor >= 35),
        subject.se_linux(),
        subject.seccomp().filter(|_| !restricted || minor < 19),
        subject.sysctls(),
        subject.host_process(),
    ];
    let mut all: Vec<Violation> = baseline.into_iter().flatten().collect();
    if restricted {
        let stricter = [
            subject.escalation().filter(|_| minor >= 8),
            subject.dropped_capabilities().filter(|_| minor >= 22),
            subject.volumes(),
            subject.non_root(),
            subject.root_user().filter(|_| minor >= 23),
            subject.required_seccomp().filter(|_| minor >= 19),
        ];
        all.extend(stricter.into_iter().flatten());
    }
    all
}

fn quoted<'t>(texts: impl IntoIterator<Item = &'t str>) -> String {
    let texts: Vec<String> = texts
        .into_iter()
        .map(|text| format!("\"{text}\""))
        .collect();
    texts.join(", ")
}

fn plural(one: &'static str, count: usize) -> String {
    if count == 1 {
        one.to_owned()
    } else {
        format!("{one}s")
    }
}

/// `container "a"`, `containers "a", "b"`
fn containers_named(names: &[&str]) -> String {
    format!(
        "{} {}",
        plural("container", names.len()),
        quoted(names.iter().copied())
    )
}

/// `pod and containers "a"`; none when nobody is.
fn setters(pod: bool, containers: &[&str]) -> Option<String> {
    let mut all = Vec::new();
    if pod {
        all.push("pod".to_owned());
    }
    if !containers.is_empty() {
        all.push(containers_named(containers));
    }
    (!all.is_empty()).then(|| all.join(" and "))
}

fn uses(count: usize) -> &'static str {
    if count == 1 { "uses" } else { "use" }
}

impl<'v> Subject<'v> {
    fn containers(&self) -> impl Iterator<Item = (&'v str, &'v Value)> + use<'v> {
        let spec = self.spec;
        let lists = ["initContainers", "containers", "ephemeralContainers"].into_iter();
        lists
            .flat_map(move |list| items(&spec[list]))
            .map(|container| (container["name"].as_str().unwrap_or_default(), container))
    }

    /// Names of the containers whose security context is such.
    fn with(&self, is_such: impl Fn(&'v Value) -> bool) -> Vec<&'v str> {
        let all = self.containers();
        all.filter(|(_, container)| is_such(&container["securityContext"]))
            .map(|(name, _)| name)
            .collect()
    }

    fn is_windows(&self) -> bool {
        self.spec["os"]["name"] == "windows"
    }

    /// The Pod's users are nobody on the node.
    fn has_own_users(&self) -> bool {
        self.spec["hostUsers"] == false
    }

    fn app_armor(&self) -> Found {
        let mut values: BTreeSet<&str> = BTreeSet::new();
        let mut is_bad = |context: &'v Value| {
            let profile = &context["appArmorProfile"];
            let kind = profile["type"].as_str().unwrap_or_default();
            let bad = profile.is_object() && !matches!(kind, "RuntimeDefault" | "Localhost");
            if bad {
                values.insert(kind);
            }
            bad
        };
        let pod = is_bad(&self.spec["securityContext"]);
        let names: Vec<&str> = self
            .containers()
            .filter(|(_, container)| is_bad(&container["securityContext"]))
            .map(|(name, _)| name)
            .collect();
        let allowed = |value: &str| {
            value.is_empty() || value == "runtime/default" || value.starts_with("localhost/")
        };
        let mut annotations: Vec<String> = meta::annotations(self.metadata)
            .filter(|(key, value)| key.starts_with(OLD_APPARMOR) && !allowed(value))
            .map(|(key, value)| format!("{key}={value:?}"))
            .collect();
        annotations.sort();
        let mut who: Vec<String> = setters(pod, &names).into_iter().collect();
        if !annotations.is_empty() {
            who.push(plural("annotation", annotations.len()));
        }
        if who.is_empty() {
            return None;
        }
        let mut all: Vec<&str> = values.into_iter().collect();
        all.extend(annotations.iter().map(String::as_str));
        found(
            &plural("forbidden AppArmor profile", all.len()),
            format!(
                "{} must not set AppArmor profile type to {}",
                who.join(" and "),
                quoted(all)
            ),
        )
    }

    fn capabilities(&self) -> Found {
        let mut added: BTreeSet<&str> = BTreeSet::new();
        let mut names = Vec::new();
        for (name, container) in self.containers() {
            let add = items(&container["securityContext"]["capabilities"]["add"]);
            let bad: Vec<&str> = add
                .filter_map(Value::as_str)
                .filter(|one| !CAPABILITIES.contains(one))
                .collect();
            if !bad.is_empty() {
                names.push(name);
                added.extend(bad);
            }
        }
        if names.is_empty() {
            return None;
        }
        let detail = format!(
            "{} must not include {} in securityContext.capabilities.add",
            containers_named(&names),
            quoted(added)
        );
        found("non-default capabilities", detail)
    }

    fn host_namespaces(&self) -> Found {
        let set: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
            .into_iter()
            .filter(|field| self.spec[*field] == true)
            .map(|field| format!("{field}=true"))
            .collect();
        if set.is_empty() {
            return None;
        }
        found("host namespaces", set.join(", "))
    }

    fn host_paths(&self) -> Found {
        let names: Vec<&str> = items(&self.spec["volumes"])
            .filter(|volume| volume["hostPath"].is_object())
            .filter_map(|volume| volume["name"].as_str())
            .collect();
        if names.is_empty() {
            return None;
        }
        let what = plural("volume", names.len());
        found("hostPath volumes", format!("{what} {}", quoted(names)))
    }

    fn host_ports(&self) -> Found {
        let mut ports: BTreeSet<String> = BTreeSet::new();
        let mut names = Vec::new();
        for (name, container) in self.containers() {
            let bad: Vec<String> = items(&container["ports"])
                .filter_map(|port| port["hostPort"].as_i64())
                .filter(|port| *port != 0)
                .map(|port| port.to_string())
                .collect();
            if !bad.is_empty() {
                names.push(name);
                ports.extend(bad);
            }
        }
        if names.is_empty() {
            return None;
        }
        let (uses, what) = (uses(names.len()), plural("hostPort", ports.len()));
        let ports: Vec<String> = ports.into_iter().collect();
        let detail = format!(
            "{} {uses} {what} {}",
            containers_named(&names),
            ports.join(", ")
        );
        found("hostPort", detail)
    }

    fn host_probes(&self) -> Found {
        let (mut names, mut hosts) = (BTreeSet::new(), BTreeSet::new());
        for (name, container) in self.containers() {
            let handlers = [
                &container["livenessProbe"],
                &container["readinessProbe"],
                &container["startupProbe"],
                &container["lifecycle"]["postStart"],
                &container["lifecycle"]["preStop"],
            ];
            let bad = handlers.into_iter().flat_map(|handler| {
                [&handler["httpGet"]["host"], &handler["tcpSocket"]["host"]]
                    .into_iter()
                    .filter_map(Value::as_str)
                    .filter(|host| !host.is_empty())
            });
            for host in bad {
                names.insert(name);
                hosts.insert(host);
            }
        }
        if names.is_empty() {
            return None;
        }
        let names: Vec<&str> = names.into_iter().collect();
        let detail = format!(
            "{} {} {} {}",
            containers_named(&names),
            uses(names.len()),
            plural("probe or lifecycle host", hosts.len()),
            quoted(hosts)
        );
        found("probe or lifecycle host", detail)
    }

    fn privileged(&self) -> Found {
        let names = self.with(|context| context["privileged"] == true);
        if names.is_empty() {
            return None;
        }
        let who = containers_named(&names);
        found(
            "privileged",
            format!("{who} must not set securityContext.privileged=true"),
        )
    }

    fn proc_mount(&self, relaxed: bool) -> Found {
        if relaxed && self.has_own_users() {
            return None;
        }
        let mut values: BTreeSet<&str> = BTreeSet::new();
        let mut names = Vec::new();
        for (name, container) in self.containers() {
            let mount = container["securityContext"]["procMount"].as_str();
            if let Some(mount) = mount.filter(|mount| *mount != "Default") {
                names.push(name);
                values.insert(mount);
            }
        }
        if names.is_empty() {
            return None;
        }
        let detail = format!(
            "{} must not set securityContext.procMount to {}",
            containers_named(&names),
            quoted(values)
        );
        found("procMount", detail)
    }

    fn se_linux(&self) -> Found {
        let (mut types, mut user, mut role) = (BTreeSet::new(), false, false);
        let mut is_bad = |context: &'v Value| {
            let options = &context["seLinuxOptions"];
            if !options.is_object() {
                return false;
            }
            let text = |field: &str| options[field].as_str().unwrap_or_default();
            let kind = text("type");
            let allowed = matches!(
                kind,
                "" | "container_t" | "container_init_t" | "container_kvm_t"
            ) || (kind == "container_engine_t" && self.minor >= 31);
            if !allowed {
                types.insert(kind);
            }
            user |= !text("user").is_empty();
            role |= !text("role").is_empty();
            !allowed || !text("user").is_empty() || !text("role").is_empty()
        };
        let pod = is_bad(&self.spec["securityContext"]);
        let names: Vec<&str> = self
            .containers()
            .filter(|(_, container)| is_bad(&container["securityContext"]))
            .map(|(name, _)| name)
            .collect();
        let who = setters(pod, &names)?;
        let mut what = Vec::new();
        if !types.is_empty() {
            what.push(format!("{} {}", plural("type", types.len()), quoted(types)));
        }
        if user {
            what.push("user may not be set".to_owned());
        }
        if role {
            what.push("role may not be set".to_owned());
        }
        found(
            "seLinuxOptions",
            format!(
                "{who} set forbidden securityContext.seLinuxOptions: {}",
                what.join("; ")
            ),
        )
    }

    fn seccomp(&self) -> Found {
        if self.minor < 19 {
            return self.old_seccomp();
        }
        let (pod, names, values) = self.bad_seccomp();
        wrong_seccomp(pod, &names, values)
    }

    fn old_seccomp(&self) -> Found {
        let valid = |value: &str| {
            matches!(value, "runtime/default" | "docker/default") || value.starts_with("localhost/")
        };
        let of_containers = self
            .containers()
            .map(|(name, _)| format!("{OLD_SECCOMP_OF}{name}"));
        let keys = std::iter::once(OLD_SECCOMP.to_owned()).chain(of_containers);
        let bad: BTreeSet<String> = keys
            .filter_map(|key| {
                let value = meta::annotation(self.metadata, &key)?;
                (!valid(value)).then(|| format!("{key}={value:?}"))
            })
            .collect();
        if bad.is_empty() {
            return None;
        }
        let what = plural("annotation", bad.len());
        let bad: Vec<String> = bad.into_iter().collect();
        found(
            "seccompProfile",
            format!("forbidden {what} {}", bad.join(", ")),
        )
    }

    /// Who sets a profile that is none, and which.
    fn bad_seccomp(&self) -> (bool, Vec<&'v str>, BTreeSet<&'v str>) {
        let mut values = BTreeSet::new();
        let mut is_bad = |context: &'v Value| {
            let profile = &context["seccompProfile"];
            let bad = profile.is_object() && !is_seccomp(profile);
            if bad {
                values.insert(profile["type"].as_str().unwrap_or_default());
            }
            bad
        };
        let pod = is_bad(&self.spec["securityContext"]);
        let names = self
            .containers()
            .filter(|(_, container)| is_bad(&container["securityContext"]))
            .map(|(name, _)| name)
            .collect();
        (pod, names, values)
    }

    fn required_seccomp(&self) -> Found {
        if self.is_windows() && self.minor >= 25 {
            return None;
        }
        let (pod, names, values) = self.bad_seccomp();
        if let Some(violation) = wrong_seccomp(pod, &names, values) {
            return Some(violation);
        }
        if is_seccomp(&self.spec["securityContext"]["seccompProfile"]) {
            return None;
        }
        let without = self.with(|context| !context["seccompProfile"].is_object());
        if without.is_empty() {
            return None;
        }
        let detail = format!(
            "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
            containers_named(&without)
        );
        found("seccompProfile", detail)
    }

    fn sysctls(&self) -> Found {
        let allowed = |name: &str| {
            SYSCTLS
                .iter()
                .any(|(known, since)| *known == name && *since <= self.minor)
        };
        let bad: Vec<&str> = items(&self.spec["securityContext"]["sysctls"])
            .filter_map(|sysctl| sysctl["name"].as_str())
            .filter(|name| !allowed(name))
            .collect();
        if bad.is_empty() {
            return None;
        }
        found("forbidden sysctls", bad.join(", "))
    }

    fn host_process(&self) -> Found {
        let is_bad = |context: &Value| context["windowsOptions"]["hostProcess"] == true;
        let who = setters(is_bad(&self.spec["securityContext"]), &self.with(is_bad))?;
        found(
            "hostProcess",
            format!("{who} must not set securityContext.windowsOptions.hostProcess=true"),
        )
    }

    fn escalation(&self) -> Found {
        if self.is_windows() && self.minor >= 25 {
            return None;
        }
        let names = self.with(|context| context["allowPrivilegeEscalation"] != false);
        if names.is_empty() {
            return None;
        }
        let detail = format!(
            "{} must set securityContext.allowPrivilegeEscalation=false",
            containers_named(&names)
        );
        found("allowPrivilegeEscalation != false", detail)
    }

    fn dropped_capabilities(&self) -> Found {
        if self.is_windows() && self.minor >= 25 {
            return None;
        }
        let (mut keeping, mut adding, mut added) = (Vec::new(), Vec::new(), BTreeSet::new());
        for (name, container) in self.containers() {
            let capabilities = &container["securityContext"]["capabilities"];
            if !items(&capabilities["drop"]).any(|one| one == "ALL") {
                keeping.push(name);
            }
            let bad: Vec<&str> = items(&capabilities["add"])
                .filter_map(Value::as_str)
                .filter(|one| *one != "NET_BIND_SERVICE")
                .collect();
            if !bad.is_empty() {
                adding.push(name);
                added.extend(bad);
            }
        }
        let mut details = Vec::new();
        if !keeping.is_empty() {
            details.push(format!(
                "{} must set securityContext.capabilities.drop=[\"ALL\"]",
                containers_named(&keeping)
            ));
        }
        if !adding.is_empty() {
            details.push(format!(
                "{} must not include {} in securityContext.capabilities.add",
                containers_named(&adding),
                quoted(added)
            ));
        }
        if details.is_empty() {
            return None;
        }
        found("unrestricted capabilities", details.join("; "))
    }

    fn volumes(&self) -> Found {
        let (mut names, mut types) = (Vec::new(), BTreeSet::new());
        for volume in items(&self.spec["volumes"]) {
            let source = volume.as_object().into_iter().flatten();
            let source = source
                .filter(|(field, value)| *field != "name" && value.is_object())
                .map(|(field, _)| field.as_str())
                .next()
                .unwrap_or("unknown");
            if !VOLUMES.contains(&source) {
                names.push(volume["name"].as_str().unwrap_or_default());
                types.insert(source);
            }
        }
        if names.is_empty() {
            return None;
        }
        let detail = format!(
            "{} {} {} {} {}",
            plural("volume", names.len()),
            quoted(names.iter().copied()),
            uses(names.len()),
            plural("restricted volume type", types.len()),
            quoted(types)
        );
        found("restricted volume types", detail)
    }

    fn non_root(&self) -> Found {
        if self.has_own_users() && self.minor >= 35 {
            return None;
        }
        let reason = "runAsNonRoot != true";
        let of_pod = &self.spec["securityContext"]["runAsNonRoot"];
        let explicit = self.with(|context| context["runAsNonRoot"] == false);
        if let Some(who) = setters(*of_pod == false, &explicit) {
            let detail = format!("{who} must not set securityContext.runAsNonRoot=false");
            return found(reason, detail);
        }
        let silent = self.with(|context| !context["runAsNonRoot"].is_boolean());
        if *of_pod == true || silent.is_empty() {
            return None;
        }
        let detail = format!(
            "pod or {} must set securityContext.runAsNonRoot=true",
            containers_named(&silent)
        );
        found(reason, detail)
    }

    fn root_user(&self) -> Found {
        if self.has_own_users() && self.minor >= 35 {
            return None;
        }
        let is_root = |context: &Value| context["runAsUser"] == 0;
        let who = setters(is_root(&self.spec["securityContext"]), &self.with(is_root))?;
        found("runAsUser=0", format!("{who} must not set runAsUser=0"))
    }
}

fn is_seccomp(profile: &Value) -> bool {
    matches!(
        profile["type"].as_str(),
        Some("RuntimeDefault" | "Localhost")
    )
}

fn wrong_seccomp(pod: bool, names: &[&str], values: BTreeSet<&str>) -> Found {
    let who = setters(pod, names)?;
    let detail = format!(
        "{who} must not set securityContext.seccompProfile.type to {}",
        quoted(values)
    );
    found("seccompProfile", detail)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn says(level: Level, version: Option<u32>, spec: Value) -> String {
        let found = violations(&Mode { level, version }, &json!({"spec": spec}));
        let texts: Vec<String> = found.iter().map(ToString::to_string).collect();
        texts.join(", ")
    }

    fn with(context: Value) -> Value {
        json!({"containers": [{"name": "a", "securityContext": context}]})
    }

    #[test]
    fn each_baseline_check_names_what_it_found() {
        let cases = [
            ("nothing", with(json!({})), ""),
            (
                "privileged",
                with(json!({"privileged": true})),
                "privileged (container \"a\" must not set securityContext.privileged=true)",
            ),
            (
                "host namespaces",
                json!({"hostNetwork": true, "hostPID": true, "containers": []}),
                "host namespaces (hostNetwork=true, hostPID=true)",
            ),
            (
                "host paths",
                json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}),
                "hostPath volumes (volume \"v\")",
            ),
            (
                "host ports",
                json!({"containers": [{"name": "a", "ports": [{"hostPort": 80}, {"hostPort": 0}]}, {"name": "b", "ports": [{"hostPort": 81}]}]}),
                "hostPort (containers \"a\", \"b\" use hostPorts 80, 81)",
            ),
            (
                "probe hosts",
                json!({"containers": [{"name": "a", "livenessProbe": {"httpGet": {"host": "x"}}}]}),
                "probe or lifecycle host (container \"a\" uses probe or lifecycle host \"x\")",
            ),
            (
                "capabilities",
                with(json!({"capabilities": {"add": ["NET_ADMIN", "CHOWN"]}})),
                "non-default capabilities (container \"a\" must not include \"NET_ADMIN\" in securityContext.capabilities.add)",
            ),
            (
                "proc",
                with(json!({"procMount": "Unmasked"})),
                "procMount (container \"a\" must not set securityContext.procMount to \"Unmasked\")",
            ),
            (
                "SELinux",
                json!({"securityContext": {"seLinuxOptions": {"type": "x_t", "user": "u"}}}),
                "seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: type \"x_t\"; user may not be set)",
            ),
            (
                "seccomp",
                with(json!({"seccompProfile": {"type": "Unconfined"}})),
                "seccompProfile (container \"a\" must not set securityContext.seccompProfile.type to \"Unconfined\")",
            ),
            (
                "AppArmor",
                with(json!({"appArmorProfile": {"type": "Unconfined"}})),
                "forbidden AppArmor profile (container \"a\" must not set AppArmor profile type to \"Unconfined\")",
            ),
            (
                "sysctls",
                json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}, {"name": "net.ipv4.tcp_rmem"}]}}),
                "forbidden sysctls (kernel.msgmax)",
            ),
            (
                "Windows",
                json!({"securityContext": {"windowsOptions": {"hostProcess": true}}}),
                "hostProcess (pod must not set securityContext.windowsOptions.hostProcess=true)",
            ),
        ];
        for (name, spec, expected) in cases {
            assert_eq!(says(Level::Baseline, None, spec), expected, "case: {name}");
        }
    }

    #[test]
    fn restricted_pods_say_what_they_give_up() {
        let good = json!({"allowPrivilegeEscalation": false, "runAsNonRoot": true, "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"}});
        assert_eq!(says(Level::Restricted, None, with(good.clone())), "");
        assert_eq!(
            says(Level::Restricted, None, with(json!({}))),
            "allowPrivilegeEscalation != false (container \"a\" must set securityContext.allowPrivilegeEscalation=false), \
             unrestricted capabilities (container \"a\" must set securityContext.capabilities.drop=[\"ALL\"]), \
             runAsNonRoot != true (pod or container \"a\" must set securityContext.runAsNonRoot=true), \
             seccompProfile (pod or container \"a\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
        );
        let mut root = good.clone();
        root["runAsUser"] = 0.into();
        assert_eq!(
            says(Level::Restricted, None, with(root.clone())),
            "runAsUser=0 (container \"a\" must not set runAsUser=0)"
        );
        let mut own_users = with(root);
        own_users["hostUsers"] = false.into();
        assert_eq!(says(Level::Restricted, None, own_users), "");
        let mut volumes = with(good);
        volumes["volumes"] = json!([{"name": "v", "nfs": {}}, {"name": "w", "emptyDir": {}}]);
        assert_eq!(
            says(Level::Restricted, None, volumes),
            "restricted volume types (volume \"v\" uses restricted volume type \"nfs\")"
        );
    }

    #[test]
    fn older_rules_ask_for_less() {
        assert_eq!(
            says(Level::Restricted, Some(7), with(json!({}))),
            "runAsNonRoot != true (pod or container \"a\" must set securityContext.runAsNonRoot=true)"
        );
        let host =
            json!({"containers": [{"name": "a", "livenessProbe": {"httpGet": {"host": "x"}}}]});
        assert_eq!(says(Level::Baseline, Some(33), host), "");
        let sysctl = json!({"securityContext": {"sysctls": [{"name": "net.ipv4.tcp_rmem"}]}});
        assert_eq!(
            says(Level::Baseline, Some(31), sysctl),
            "forbidden sysctls (net.ipv4.tcp_rmem)"
        );
    }
}
