//! CNI, the container network interface: where a configuration lies in the node's folder, its plugins connect the Pods instead of
//! the built-in bridge. The protocol is upstream's: the chain in order for ADD and CHECK, backwards for DEL; the configuration on
//! stdin with the result of the plugin before, arguments in the environment, the result on stdout.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::links::POD_INTERFACE;

/// A plugin must have answered by then: DHCP and cloud networks take seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a configuration without a version means.
const VERSION_DEFAULT: &str = "0.2.0";

/// What went wrong between here and a plugin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CniError {
    #[error("no usable CNI configuration in {dir}: {reason}")]
    Config { dir: String, reason: String },
    #[error("CNI plugin {0:?} is in none of the folders {1}")]
    NoPlugin(String, String),
    #[error("cannot run CNI plugin {plugin:?}: {source}")]
    Run {
        plugin: String,
        #[source]
        source: io::Error,
    },
    #[error("CNI plugin {plugin:?} failed to {verb}: {message}")]
    Failed {
        plugin: String,
        verb: &'static str,
        message: String,
    },
    #[error("CNI network {0:?} gave the Pod no address")]
    NoAddress(String),
}

/// What a plugin is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Add,
    Del,
    /// DEL for a Pod whose namespace is gone.
    DelGone,
    Check,
}

impl Verb {
    fn command(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del | Self::DelGone => "DEL",
            Self::Check => "CHECK",
        }
    }
}

/// A network: plugins that are run one after the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct NetworkList {
    name: String,
    version: String,
    disable_check: bool,
    plugins: Vec<Value>,
}

/// One Pod's attachment: everything that DEL needs, whatever becomes of the configuration in the meantime.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Attachment {
    list: NetworkList,
    container: String,
    netns: PathBuf,
    /// `CNI_ARGS`.
    args: String,
    /// Values by capability; a plugin gets those that it declares.
    capabilities: Map<String, Value>,
    /// None until ADD has succeeded.
    result: Option<Value>,
}

/// What a Pod tells the plugins about itself.
#[derive(Debug)]
pub(crate) struct PodFacts<'a> {
    pub(crate) sandbox: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) uid: &'a str,
    pub(crate) capabilities: Map<String, Value>,
}

/// The first usable configuration of `dir`, by file name; none when there is no candidate at all.
///
/// # Errors
/// When there are candidates and none is usable: the administrator meant something, and the built-in network is not it.
pub(crate) fn load(dir: &Path) -> Result<Option<NetworkList>, CniError> {
    let mut files: Vec<PathBuf> = match std::fs::read_dir(dir) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(err) => return Err(unusable(dir, &err.to_string())),
    };
    files.retain(|path| {
        path.extension().is_some_and(|ending| {
            ["conf", "conflist", "json"]
                .iter()
                .any(|known| ending == *known)
        })
    });
    files.sort();
    let mut reasons = Vec::new();
    for file in &files {
        let read = std::fs::read(file)
            .map_err(|err| err.to_string())
            .and_then(|bytes| parse(&bytes));
        match read {
            Ok(list) => return Ok(Some(list)),
            Err(reason) => reasons.push(format!("{}: {reason}", file.display())),
        }
    }
    if reasons.is_empty() {
        return Ok(None);
    }
    Err(unusable(dir, &reasons.join("; ")))
}

fn unusable(dir: &Path, reason: &str) -> CniError {
    CniError::Config {
        dir: dir.display().to_string(),
        reason: reason.to_owned(),
    }
}

fn parse(bytes: &[u8]) -> Result<NetworkList, String> {
    let value: Value = serde_json::from_slice(bytes).map_err(|err| err.to_string())?;
    let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let name = text("name");
    if name.is_empty() {
        return Err("the network has no name".into());
    }
    let version = match text("cniVersion") {
        version if version.is_empty() => VERSION_DEFAULT.to_owned(),
        version => version,
    };
    let plugins = match value.get("plugins") {
        Some(Value::Array(plugins)) => plugins.clone(),
        Some(_) => return Err("plugins is not a list".into()),
        None => vec![value.clone()],
    };
    if plugins.is_empty() {
        return Err("the list of plugins is empty".into());
    }
    if plugins.iter().any(|plugin| {
        plugin["type"]
            .as_str()
            .is_none_or(|kind| kind.is_empty() || kind.contains('/'))
    }) {
        return Err("a plugin has no type".into());
    }
    // The specification has it as a boolean, older files as a text.
    let disable_check = matches!(&value["disableCheck"], Value::Bool(true))
        || value["disableCheck"].as_str() == Some("true");
    Ok(NetworkList {
        name,
        version,
        disable_check,
        plugins,
    })
}

impl NetworkList {
    /// What is going to be attached; written down before [`Attachment::add`].
    pub(crate) fn attachment(self, netns: &Path, pod: PodFacts<'_>) -> Attachment {
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            pod.namespace, pod.name, pod.sandbox, pod.uid
        );
        Attachment {
            list: self,
            container: pod.sandbox.to_owned(),
            netns: netns.to_owned(),
            args,
            capabilities: pod.capabilities,
            result: None,
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    fn at_least(&self, major: u32, minor: u32) -> bool {
        let mut parts = self
            .version
            .split('.')
            .map(|part| part.parse().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= (major, minor)
    }
}

impl Attachment {
    /// Runs the chain and keeps its result.
    ///
    /// # Errors
    /// As the plugin told. What plugins before it did is undone by [`Attachment::delete`], which the caller owes.
    pub(crate) async fn add(&mut self, bin_dirs: &[PathBuf]) -> Result<Vec<IpAddr>, CniError> {
        let mut result = None;
        for plugin in &self.list.plugins {
            let output = self
                .run(bin_dirs, Verb::Add, plugin, result.as_ref())
                .await?;
            result = Some(
                serde_json::from_slice(&output).map_err(|err| CniError::Failed {
                    plugin: kind(plugin).to_owned(),
                    verb: "ADD",
                    message: format!("its result is not JSON: {err}"),
                })?,
            );
        }
        self.result = result;
        let ips = self.addresses();
        if ips.is_empty() {
            return Err(CniError::NoAddress(self.list.name.clone()));
        }
        Ok(ips)
    }

    /// Runs the chain backwards. Every plugin gets its turn, whatever the others say; the first failure is told.
    /// `pinned` says whether the namespace is still where it was; without it the plugins release what is theirs outside.
    pub(crate) async fn delete(&self, bin_dirs: &[PathBuf], pinned: bool) -> Result<(), CniError> {
        let previous = self.result.as_ref().filter(|_| self.list.at_least(0, 4));
        let mut outcome = Ok(());
        for plugin in self.list.plugins.iter().rev() {
            let verb = if pinned { Verb::Del } else { Verb::DelGone };
            let done = self.run(bin_dirs, verb, plugin, previous).await.map(drop);
            outcome = outcome.and(done);
        }
        outcome
    }

    /// Asks the chain whether the attachment is as it was made; fine where the network knows no such question.
    pub(crate) async fn check(&self, bin_dirs: &[PathBuf]) -> Result<(), CniError> {
        if self.list.disable_check || !self.list.at_least(0, 4) {
            return Ok(());
        }
        for plugin in &self.list.plugins {
            self.run(bin_dirs, Verb::Check, plugin, self.result.as_ref())
                .await?;
        }
        Ok(())
    }

    /// The Pod's addresses in the order of the result, which is the order of preference.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        let Some(result) = &self.result else {
            return Vec::new();
        };
        let parse =
            |text: &Value| -> Option<IpAddr> { text.as_str()?.split('/').next()?.parse().ok() };
        if let Some(ips) = result["ips"].as_array() {
            let of_pod = |ip: &&Value| {
                let Some(at) = ip["interface"]
                    .as_u64()
                    .and_then(|at| usize::try_from(at).ok())
                else {
                    return true;
                };
                let interface = &result["interfaces"][at];
                interface["sandbox"]
                    .as_str()
                    .is_some_and(|sandbox| !sandbox.is_empty())
                    && interface["name"] == POD_INTERFACE
            };
            return ips
                .iter()
                .filter(of_pod)
                .filter_map(|ip| parse(&ip["address"]))
                .collect();
        }
        // Results of the versions before 0.3.
        [&result["ip4"]["ip"], &result["ip6"]["ip"]]
            .into_iter()
            .filter_map(parse)
            .collect()
    }

    async fn run(
        &self,
        bin_dirs: &[PathBuf],
        verb: Verb,
        plugin: &Value,
        previous: Option<&Value>,
    ) -> Result<Vec<u8>, CniError> {
        let kind = kind(plugin);
        let program = bin_dirs
            .iter()
            .map(|dir| dir.join(kind))
            .find(|path| path.is_file())
            .ok_or_else(|| CniError::NoPlugin(kind.to_owned(), listed(bin_dirs)))?;
        let failed = |source| CniError::Run {
            plugin: kind.to_owned(),
            source,
        };
        let netns = if verb == Verb::DelGone {
            Path::new("")
        } else {
            &self.netns
        };
        let mut command = Command::new(program);
        command
            .env("CNI_COMMAND", verb.command())
            .env("CNI_CONTAINERID", &self.container)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", POD_INTERFACE)
            .env("CNI_ARGS", &self.args)
            .env(
                "CNI_PATH",
                std::env::join_paths(bin_dirs).unwrap_or_default(),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let input = self.input(plugin, previous).to_string();
        let running = async {
            let mut child = command.spawn()?;
            let mut stdin = child.stdin.take().expect("piped above");
            // A plugin that fails before it has read everything says why on stdout.
            let written = stdin.write_all(input.as_bytes()).await;
            drop(stdin);
            let output = child.wait_with_output().await?;
            if output.status.success() {
                written?;
            }
            Ok(output)
        };
        let output = tokio::time::timeout(PATIENCE, running)
            .await
            .map_err(|_| {
                failed(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "it did not answer in time",
                ))
            })?
            .map_err(failed)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(CniError::Failed {
            plugin: kind.to_owned(),
            verb: verb.command(),
            message: message(&output),
        })
    }

    /// What the plugin reads: its part of the list with what is the list's, the Pod's and the plugin's before it.
    fn input(&self, plugin: &Value, previous: Option<&Value>) -> Value {
        let mut input = plugin.clone();
        input["name"] = json!(self.list.name);
        input["cniVersion"] = json!(self.list.version);
        let wanted: Map<String, Value> = plugin["capabilities"]
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, on)| on.as_bool() == Some(true))
            .filter_map(|(name, _)| Some((name.clone(), self.capabilities.get(name)?.clone())))
            .collect();
        if !wanted.is_empty() {
            input["runtimeConfig"] = Value::Object(wanted);
        }
        if let Some(previous) = previous {
            input["prevResult"] = previous.clone();
        }
        input
    }
}

fn kind(plugin: &Value) -> &str {
    plugin["type"].as_str().unwrap_or_default()
}

fn listed(dirs: &[PathBuf]) -> String {
    let dirs: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    dirs.join(", ")
}

/// The error that a plugin wrote as JSON, else whatever it wrote.
fn message(output: &std::process::Output) -> String {
    if let Ok(error) = serde_json::from_slice::<Value>(&output.stdout)
        && let Some(text) = error["msg"].as_str()
    {
        let details = error["details"].as_str().unwrap_or_default();
        return [text, details].join(" ").trim_end().to_owned();
    }
    let said = String::from_utf8_lossy(if output.stderr.is_empty() {
        &output.stdout
    } else {
        &output.stderr
    });
    format!("{} {}", output.status, said.trim())
        .trim_end()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAIN: &str = r#"{"cniVersion":"0.4.0","name":"pods","plugins":[{"type":"bridge","bridge":"cni0"},{"type":"portmap","capabilities":{"portMappings":true,"aliases":false}}]}"#;

    fn attachment(config: &str) -> Attachment {
        let capabilities = json!({"portMappings": [{"hostPort": 1}], "aliases": ["x"]});
        let pod = PodFacts {
            sandbox: "abc",
            namespace: "default",
            name: "web",
            uid: "u1",
            capabilities: capabilities.as_object().unwrap().clone(),
        };
        parse(config.as_bytes())
            .unwrap()
            .attachment(Path::new("/run/ns"), pod)
    }

    #[test]
    fn configurations_are_read_in_the_order_of_their_names() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(&dir.path().join("absent")).unwrap(), None);
        assert_eq!(load(dir.path()).unwrap(), None, "an empty folder");
        std::fs::write(dir.path().join("10-broken.conf"), "{").unwrap();
        std::fs::write(dir.path().join("README"), "text").unwrap();
        assert!(
            load(dir.path())
                .unwrap_err()
                .to_string()
                .contains("10-broken.conf")
        );
        std::fs::write(dir.path().join("20-pods.conflist"), CHAIN).unwrap();
        std::fs::write(
            dir.path().join("30-other.conf"),
            r#"{"name":"other","type":"ptp"}"#,
        )
        .unwrap();
        let list = load(dir.path()).unwrap().unwrap();
        assert_eq!(
            (
                list.name.as_str(),
                list.plugins.len(),
                list.version.as_str()
            ),
            ("pods", 2, "0.4.0")
        );
        let single = parse(br#"{"name":"other","type":"ptp"}"#).unwrap();
        assert_eq!(
            (single.plugins.len(), single.version.as_str()),
            (1, "0.2.0")
        );
    }

    #[test]
    fn configurations_that_cannot_be_used_say_why() {
        for (case, text) in [
            ("no name", r#"{"type":"bridge"}"#),
            ("no plugins", r#"{"name":"x","plugins":[]}"#),
            ("no type", r#"{"name":"x","plugins":[{}]}"#),
            (
                "a way out of the folder",
                r#"{"name":"x","type":"../../bin/sh"}"#,
            ),
            ("not a list", r#"{"name":"x","plugins":{}}"#),
        ] {
            assert!(parse(text.as_bytes()).is_err(), "case: {case}");
        }
    }

    #[test]
    fn plugins_get_what_they_declare_and_what_came_before() {
        let attachment = attachment(CHAIN);
        let (bridge, portmap) = (&attachment.list.plugins[0], &attachment.list.plugins[1]);
        let input = attachment.input(bridge, None);
        assert_eq!(
            (&input["name"], &input["cniVersion"]),
            (&json!("pods"), &json!("0.4.0"))
        );
        assert!(input.get("runtimeConfig").is_none() && input.get("prevResult").is_none());
        let input = attachment.input(portmap, Some(&json!({"ips": []})));
        assert_eq!(
            input["runtimeConfig"],
            json!({"portMappings": [{"hostPort": 1}]})
        );
        assert_eq!(input["prevResult"], json!({"ips": []}));
        assert!(
            attachment.args.contains("K8S_POD_NAME=web;")
                && attachment.args.contains("K8S_POD_NAMESPACE=default;")
        );
    }

    #[test]
    fn addresses_are_those_of_the_pod_s_interface() {
        let mut pod = attachment(CHAIN);
        pod.result = Some(json!({
            "interfaces": [{"name": "cni0"}, {"name": "eth0", "sandbox": "/run/ns"}],
            "ips": [{"interface": 0, "address": "10.0.0.1/24"}, {"interface": 1, "address": "10.0.0.9/24"}, {"address": "fd00::9/64"}],
        }));
        let told: Vec<_> = pod.addresses().iter().map(ToString::to_string).collect();
        assert_eq!(told, ["10.0.0.9", "fd00::9"]);
        pod.result = Some(json!({"ip4": {"ip": "10.0.0.7/24"}}));
        assert_eq!(pod.addresses()[0].to_string(), "10.0.0.7");
    }
}
