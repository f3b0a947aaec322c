//! The environment of a container: services, envFrom, env with its sources, and `$(VAR)` expansion. Pure: the objects it may
//! refer to are handed in.

use crate::pod::containers::spec;
use crate::pod::fields::{self, NodeAllocatable, PodAddresses};
use crate::volumes::env_file;
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, EnvVarSource, FileKeySelector, Pod, Secret, Service,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Objects of the Pod's namespace that its environment may refer to. A name that is asked for and missing here does not exist.
#[derive(Clone, Debug, Default)]
pub struct EnvSources {
    pub config_maps: BTreeMap<String, Arc<ConfigMap>>,
    pub secrets: BTreeMap<String, Arc<Secret>>,
    /// What files say, by volume and path.
    pub files: BTreeMap<(String, String), String>,
    /// Services of the namespace, and `default/kubernetes`.
    pub services: Vec<Arc<Service>>,
    pub addresses: PodAddresses,
    pub allocatable: NodeAllocatable,
}

/// The config maps and secrets that a container's environment refers to, and the files, by volume and path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnvNeeds {
    pub config_maps: Vec<String>,
    pub secrets: Vec<String>,
    pub files: BTreeSet<(String, String)>,
}

/// What has to be fetched before [`environment`].
#[must_use]
pub fn needs(container: &Container) -> EnvNeeds {
    let mut needs = EnvNeeds::default();
    for source in container.env_from.iter().flatten() {
        needs.config_maps.extend(
            source
                .config_map_ref
                .iter()
                .map(|reference| reference.name.clone()),
        );
        needs.secrets.extend(
            source
                .secret_ref
                .iter()
                .map(|reference| reference.name.clone()),
        );
    }
    for source in container
        .env
        .iter()
        .flatten()
        .filter_map(|var| var.value_from.as_ref())
    {
        needs.config_maps.extend(
            source
                .config_map_key_ref
                .iter()
                .map(|reference| reference.name.clone()),
        );
        needs.secrets.extend(
            source
                .secret_key_ref
                .iter()
                .map(|reference| reference.name.clone()),
        );
        needs.files.extend(source.file_key_ref.iter().map(file_of));
    }
    needs
}

fn file_of(reference: &FileKeySelector) -> (String, String) {
    (reference.volume_name.clone(), reference.path.clone())
}

/// The variables in the order in which they are set; an error becomes CreateContainerConfigError.
pub fn environment(
    pod: &Pod,
    container: &Container,
    sources: &EnvSources,
) -> Result<Vec<(String, String)>, String> {
    let mut env = Environment::default();
    let services = service_variables(pod, sources);
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &source.config_map_ref {
            match sources.config_maps.get(&reference.name) {
                Some(map) => {
                    for (key, value) in map.data.iter().flatten() {
                        env.set(format!("{prefix}{key}"), value.clone());
                    }
                }
                None if reference.optional.unwrap_or(false) => {}
                None => return Err(format!("configmap \"{}\" not found", reference.name)),
            }
        }
        if let Some(reference) = &source.secret_ref {
            match sources.secrets.get(&reference.name) {
                Some(secret) => {
                    for (key, value) in secret.data.iter().flatten() {
                        env.set(
                            format!("{prefix}{key}"),
                            String::from_utf8_lossy(&value.0).into_owned(),
                        );
                    }
                }
                None if reference.optional.unwrap_or(false) => {}
                None => return Err(format!("secret \"{}\" not found", reference.name)),
            }
        }
    }
    for var in container.env.iter().flatten() {
        let value = match (&var.value, &var.value_from) {
            (_, Some(source)) => match resolve(pod, container, source, sources)? {
                Some(value) => value,
                None => continue,
            },
            (Some(value), None) => expand(value, |name| {
                env.get(name).or_else(|| find(&services, name))
            }),
            (None, None) => String::new(),
        };
        env.set(var.name.clone(), value);
    }
    for (name, value) in services {
        if env.get(&name).is_none() {
            env.set(name, value);
        }
    }
    Ok(env.order)
}

fn find<'a>(list: &'a [(String, String)], name: &str) -> Option<&'a str> {
    list.iter()
        .find(|(known, _)| known == name)
        .map(|(_, value)| value.as_str())
}

/// Variables in order; a later one of the same name replaces the value in place.
#[derive(Default)]
struct Environment {
    order: Vec<(String, String)>,
    index: BTreeMap<String, usize>,
}

impl Environment {
    fn get(&self, name: &str) -> Option<&str> {
        self.index.get(name).map(|&at| self.order[at].1.as_str())
    }

    fn set(&mut self, name: String, value: String) {
        if let Some(&at) = self.index.get(&name) {
            self.order[at].1 = value;
        } else {
            self.index.insert(name.clone(), self.order.len());
            self.order.push((name, value));
        }
    }
}

/// The value of a variable's source; `None`: optional and not there.
fn resolve(
    pod: &Pod,
    container: &Container,
    source: &EnvVarSource,
    sources: &EnvSources,
) -> Result<Option<String>, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(reference) = &source.field_ref {
        return fields::field(pod, &sources.addresses, &reference.field_path).map(Some);
    }
    if let Some(reference) = &source.resource_field_ref {
        return fields::resource(pod, &container.name, reference, sources.allocatable).map(Some);
    }
    if let Some(reference) = &source.config_map_key_ref {
        let (name, key, optional) = (
            &reference.name,
            &reference.key,
            reference.optional.unwrap_or(false),
        );
        let Some(map) = sources.config_maps.get(name) else {
            return if optional {
                Ok(None)
            } else {
                Err(format!("configmap \"{name}\" not found"))
            };
        };
        return match map.data.as_ref().and_then(|data| data.get(key)) {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => Err(format!(
                "couldn't find key {key} in ConfigMap {namespace}/{name}"
            )),
        };
    }
    if let Some(reference) = &source.secret_key_ref {
        let (name, key, optional) = (
            &reference.name,
            &reference.key,
            reference.optional.unwrap_or(false),
        );
        let Some(secret) = sources.secrets.get(name) else {
            return if optional {
                Ok(None)
            } else {
                Err(format!("secret \"{name}\" not found"))
            };
        };
        return match secret.data.as_ref().and_then(|data| data.get(key)) {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None if optional => Ok(None),
            None => Err(format!(
                "couldn't find key {key} in Secret {namespace}/{name}"
            )),
        };
    }
    if let Some(reference) = &source.file_key_ref {
        return file_variable(reference, sources);
    }
    Err("unsupported source of an environment variable".into())
}

/// A variable of a file; without one, or without the file, only an optional one is left out.
fn file_variable(
    reference: &FileKeySelector,
    sources: &EnvSources,
) -> Result<Option<String>, String> {
    let (key, path, volume) = (&reference.key, &reference.path, &reference.volume_name);
    let found = match sources.files.get(&file_of(reference)) {
        Some(text) => env_file::variable(text, key).map_err(|why| {
            format!("couldn't parse env file \"{path}\" in volume \"{volume}\": {why}")
        })?,
        None => None,
    };
    if found.is_none() && !reference.optional.unwrap_or(false) {
        return Err(format!(
            "environment variable key \"{key}\" not found in file \"{path}\" of volume \"{volume}\""
        ));
    }
    Ok(found)
}

/// Variables for the services of the namespace, as Docker links once were; the API server's are always there.
fn service_variables(pod: &Pod, sources: &EnvSources) -> Vec<(String, String)> {
    let links = spec(pod).enable_service_links.unwrap_or(true);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut vars = Vec::new();
    let mut services: Vec<_> = sources.services.iter().collect();
    services.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    for service in services {
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let home = service.metadata.namespace.as_deref().unwrap_or_default();
        let is_master = home == "default" && name == "kubernetes";
        if is_master || (links && home == namespace) {
            link(name, service, &mut vars);
        }
    }
    vars
}

fn link(name: &str, service: &Service, vars: &mut Vec<(String, String)>) {
    let Some(spec) = &service.spec else { return };
    let Some(ip) = spec
        .cluster_ip
        .as_deref()
        .filter(|ip| !ip.is_empty() && *ip != "None")
    else {
        return;
    };
    let host = if ip.contains(':') {
        format!("[{ip}]")
    } else {
        ip.to_owned()
    };
    let upper = |text: &str| text.to_uppercase().replace('-', "_");
    let prefix = upper(name);
    let ports = spec.ports.as_deref().unwrap_or_default();
    let Some(first) = ports.first() else { return };
    vars.push((format!("{prefix}_SERVICE_HOST"), ip.to_owned()));
    vars.push((format!("{prefix}_SERVICE_PORT"), first.port.to_string()));
    for port in ports {
        if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            vars.push((
                format!("{prefix}_SERVICE_PORT_{}", upper(port_name)),
                port.port.to_string(),
            ));
        }
    }
    for (index, port) in ports.iter().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
        if index == 0 {
            vars.push((format!("{prefix}_PORT"), url.clone()));
        }
        let base = format!("{prefix}_PORT_{}_{protocol}", port.port);
        vars.push((base.clone(), url));
        vars.push((format!("{base}_PROTO"), protocol.to_lowercase()));
        vars.push((format!("{base}_PORT"), port.port.to_string()));
        vars.push((format!("{base}_ADDR"), ip.to_owned()));
    }
}

/// Replaces `$(NAME)`; `$$` is a dollar, and a reference to what is not set stays as it is written.
pub fn expand<'a>(text: &str, lookup: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        rest = if let Some(left) = after.strip_prefix('$') {
            expanded.push('$');
            left
        } else if let Some((name, left)) = after
            .strip_prefix('(')
            .and_then(|inner| inner.split_once(')'))
        {
            match lookup(name) {
                Some(value) => expanded.push_str(value),
                None => expanded.push_str(&format!("$({name})")),
            }
            left
        } else {
            expanded.push('$');
            after
        };
    }
    expanded.push_str(rest);
    expanded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object<T: serde::de::DeserializeOwned>(json: serde_json::Value) -> T {
        serde_json::from_value(json).unwrap()
    }

    fn sources() -> EnvSources {
        let map: ConfigMap =
            object(serde_json::json!({"metadata": {"name": "m"}, "data": {"k": "v", "l": "w"}}));
        let secret: Secret =
            object(serde_json::json!({"metadata": {"name": "s"}, "data": {"pw": "aHVzaA=="}}));
        let service: Service = object(
            serde_json::json!({"metadata": {"name": "my-db", "namespace": "shop"},
            "spec": {"clusterIP": "10.96.0.5", "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}]}}),
        );
        EnvSources {
            config_maps: BTreeMap::from([("m".to_owned(), Arc::new(map))]),
            secrets: BTreeMap::from([("s".to_owned(), Arc::new(secret))]),
            files: BTreeMap::from([(("v".to_owned(), "f".to_owned()), "K='$(A)'\nBAD".to_owned())]),
            services: vec![Arc::new(service)],
            addresses: PodAddresses {
                pod_ips: vec!["10.0.0.2".into()],
                host_ip: "10.0.0.1".into(),
            },
            allocatable: NodeAllocatable::default(),
        }
    }

    fn check(name: &str, links: bool, container: serde_json::Value, expected: Result<&str, &str>) {
        let pod: Pod = object(
            serde_json::json!({"metadata": {"name": "p", "namespace": "shop"},
            "spec": {"enableServiceLinks": links, "containers": [container]}}),
        );
        let env = environment(&pod, &pod.spec.as_ref().unwrap().containers[0], &sources());
        let shown = env.map(|vars| {
            vars.iter()
                .map(|(k, v)| format!("{k}={v}"))
                .collect::<Vec<_>>()
                .join(" ")
        });
        assert_eq!(
            shown.as_deref().map_err(String::as_str),
            expected,
            "case: {name}"
        );
    }

    #[test]
    fn environment_table() {
        use serde_json::json;
        let env = |vars| json!({"name": "c", "env": vars});
        check(
            "plain",
            false,
            env(json!([{"name": "A", "value": "1"}])),
            Ok("A=1"),
        );
        let refer =
            json!([{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)-$(NONE)-$$(A)"}]);
        check(
            "earlier variables are expanded",
            false,
            env(refer),
            Ok("A=1 B=1-$(NONE)-$(A)"),
        );
        let from = json!({"name": "c", "envFrom": [{"prefix": "P_", "configMapRef": {"name": "m"}}], "env": [{"name": "P_k", "value": "own"}]});
        check("env wins over envFrom", false, from, Ok("P_k=own P_l=w"));
        let secret =
            json!([{"name": "PW", "valueFrom": {"secretKeyRef": {"name": "s", "key": "pw"}}}]);
        check("a secret's key", false, env(secret), Ok("PW=hush"));
        let ip = json!([{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]);
        check("the pod's address", false, env(ip), Ok("IP=10.0.0.2"));
        let missing =
            json!([{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "nope"}}}]);
        check(
            "a missing key",
            false,
            env(missing),
            Err("couldn't find key nope in ConfigMap shop/m"),
        );
        let file = |key: &str, path: &str, optional: bool| {
            json!([{"name": "A", "value": "1"}, {"name": "F", "valueFrom": {"fileKeyRef":
                {"volumeName": "v", "path": path, "key": key, "optional": optional}}},
                {"name": "L", "value": "$(F)"}])
        };
        check(
            "a file's variable, as it is, for those after it",
            false,
            env(file("K", "f", false)),
            Ok("A=1 F=$(A) L=$(A)"),
        );
        check(
            "a file that is not there",
            false,
            env(file("K", "g", false)),
            Err("environment variable key \"K\" not found in file \"g\" of volume \"v\""),
        );
        check(
            "nor has to be",
            false,
            env(file("K", "g", true)),
            Ok("A=1 L=$(F)"),
        );
        check(
            "a file that nobody can read",
            false,
            env(file("N", "f", true)),
            Err("couldn't parse env file \"f\" in volume \"v\": line 2: missing '='"),
        );
        let optional = json!([{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "zz", "key": "k", "optional": true}}}]);
        check("optional and missing", false, env(optional), Ok(""));
        let absent = json!({"name": "c", "envFrom": [{"secretRef": {"name": "zz"}}]});
        check(
            "a missing secret",
            false,
            absent,
            Err("secret \"zz\" not found"),
        );
    }

    #[test]
    fn services_become_links() {
        check(
            "links",
            true,
            serde_json::json!({"name": "c"}),
            Ok(
                "MY_DB_SERVICE_HOST=10.96.0.5 MY_DB_SERVICE_PORT=5432 MY_DB_SERVICE_PORT_SQL=5432 \
                MY_DB_PORT=tcp://10.96.0.5:5432 MY_DB_PORT_5432_TCP=tcp://10.96.0.5:5432 \
                MY_DB_PORT_5432_TCP_PROTO=tcp MY_DB_PORT_5432_TCP_PORT=5432 MY_DB_PORT_5432_TCP_ADDR=10.96.0.5",
            ),
        );
    }

    #[test]
    fn expansion_leaves_what_it_does_not_know() {
        let lookup = |name: &str| (name == "A").then_some("1");
        for (text, expected) in [
            ("$(A)", "1"),
            ("$A", "$A"),
            ("$", "$"),
            ("$(A", "$(A"),
            ("a$$b", "a$b"),
            ("$$(A)", "$(A)"),
        ] {
            assert_eq!(expand(text, lookup), expected, "{text}");
        }
    }
}
