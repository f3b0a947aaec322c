//! What clients are warned about: fields that do nothing any more, or not what they seem to. Pure; the texts are upstream's.

mod pod;

use serde_json::Value;

use crate::schema::Resource;

/// Labels of nodes that have newer names.
const OLD_NODE_LABELS: [(&str, &str); 8] = [
    (
        "beta.kubernetes.io/arch",
        "deprecated since v1.14; use \"kubernetes.io/arch\" instead",
    ),
    (
        "beta.kubernetes.io/os",
        "deprecated since v1.14; use \"kubernetes.io/os\" instead",
    ),
    (
        "failure-domain.beta.kubernetes.io/region",
        "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead",
    ),
    (
        "failure-domain.beta.kubernetes.io/zone",
        "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead",
    ),
    (
        "beta.kubernetes.io/instance-type",
        "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead",
    ),
    ("app.kubernetes.io/created-by", "deprecated since v1.9"),
    (
        "scheduler.alpha.kubernetes.io/preferAvoidPods",
        "deprecated since v1.22; use Taints and Tolerations instead",
    ),
    (
        "node-role.kubernetes.io/master",
        "use \"node-role.kubernetes.io/control-plane\" instead",
    ),
];

/// What is to be said about a resource that has had its time, whatever the request.
pub fn of_resource(resource: &Resource) -> Option<&'static str> {
    match (
        resource.group.as_str(),
        resource.version.as_str(),
        resource.plural.as_str(),
    ) {
        ("", "v1", "componentstatuses") => Some("v1 ComponentStatus is deprecated in v1.19+"),
        ("", "v1", "endpoints") => {
            Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice")
        }
        _ => None,
    }
}

/// What is to be said about an object that is written; `old` for updates.
pub fn of_object(resource: &Resource, object: &Value, old: Option<&Value>) -> Vec<String> {
    let mut warnings = Vec::new();
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "pods") => {
            if old.is_none() {
                pod::name(object, &mut warnings);
            }
            pod::warn(object, "", false, &mut warnings);
        }
        ("", "podtemplates") => pod::warn(&object["template"], "template.", true, &mut warnings),
        ("", "replicationcontrollers")
        | ("apps", "deployments" | "replicasets" | "daemonsets" | "statefulsets")
        | ("batch", "jobs") => {
            let template = &object["spec"]["template"];
            if template.is_object() && old.is_none_or(|old| old["spec"]["template"] != *template) {
                pod::warn(template, "spec.template.", true, &mut warnings);
            }
        }
        ("batch", "cronjobs") => {
            let template = &object["spec"]["jobTemplate"]["spec"]["template"];
            let at = "spec.jobTemplate.spec.template.";
            pod::warn(template, at, true, &mut warnings);
        }
        ("", "services") => service(object, &mut warnings),
        ("", "persistentvolumes") => volume(object, &mut warnings),
        ("", "persistentvolumeclaims") => claim(&object["spec"], "spec", &mut warnings),
        ("node.k8s.io", "runtimeclasses") => {
            for key in keys(&object["scheduling"]["nodeSelector"]) {
                if let Some(why) = old_label(key) {
                    warnings.push(format!("scheduling.nodeSelector: {why}"));
                }
            }
        }
        ("", "nodes") => node(object, &mut warnings),
        ("resource.k8s.io", "resourceslices") => {
            let driver = object["spec"]["driver"].as_str().unwrap_or_default();
            if driver.chars().any(char::is_uppercase) {
                warnings.push(format!("spec.driver: driver names should be lowercase; {driver:?} contains uppercase characters"));
            }
        }
        _ => {}
    }
    warnings
}

fn keys(map: &Value) -> impl Iterator<Item = &str> {
    map.as_object()
        .into_iter()
        .flatten()
        .map(|(key, _)| key.as_str())
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn old_label(key: &str) -> Option<&'static str> {
    let mut all = OLD_NODE_LABELS.iter();
    all.find(|(known, _)| *known == key).map(|(_, why)| *why)
}

fn node(object: &Value, warnings: &mut Vec<String>) {
    if !object["spec"]["configSource"].is_null() {
        warnings.push("spec.configSource: the feature is removed".to_owned());
    }
    if !object["spec"]["externalID"].is_null() {
        warnings.push(
            "spec.externalID: this field is deprecated, and is unused by Kubernetes".to_owned(),
        );
    }
}

fn service(object: &Value, warnings: &mut Vec<String>) {
    let spec = &object["spec"];
    let hints = "service.kubernetes.io/topology-aware-hints";
    if object["metadata"]["annotations"][hints].is_string() {
        warnings.push(format!(
            "annotation {hints} is deprecated, please use service.kubernetes.io/topology-mode instead"
        ));
    }
    let has_external = items(&spec["externalIPs"]).next().is_some();
    let external_name = spec["type"] == "ExternalName";
    if spec["clusterIP"] == "None" {
        if !spec["loadBalancerIP"].is_null() {
            warnings.push("spec.loadBalancerIP is ignored for headless services".to_owned());
        }
        if has_external {
            warnings.push("spec.externalIPs is ignored for headless services".to_owned());
        }
        if spec["sessionAffinity"].as_str().unwrap_or("None") != "None" {
            warnings.push("spec.SessionAffinity is ignored for headless services".to_owned());
        }
    }
    if has_external {
        warnings.push(
            "spec.externalIPs is deprecated and may no longer be implemented in some clusters"
                .to_owned(),
        );
    }
    if external_name && has_external {
        warnings.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".to_owned());
    }
    if !external_name
        && spec["externalName"]
            .as_str()
            .is_some_and(|name| !name.is_empty())
    {
        warnings
            .push("spec.externalName is ignored when spec.type is not \"ExternalName\"".to_owned());
    }
    if spec["trafficDistribution"] == "PreferClose" {
        warnings.push(
            "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\""
                .to_owned(),
        );
    }
}

fn volume(object: &Value, warnings: &mut Vec<String>) {
    for key in [
        "volume.beta.kubernetes.io/storage-class",
        "volume.beta.kubernetes.io/mount-options",
    ] {
        if object["metadata"]["annotations"][key].is_string() {
            let instead = if key.ends_with("storage-class") {
                "deprecated since v1.8; use \"storageClassName\" attribute instead"
            } else {
                "deprecated since v1.31; use \"mountOptions\" attribute instead"
            };
            warnings.push(format!("metadata.annotations[{key}]: {instead}"));
        }
    }
    if object["spec"]["persistentVolumeReclaimPolicy"] == "Recycle" {
        warnings.push(
            "spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning."
                .to_owned(),
        );
    }
    for (field, why) in pod::DEAD_VOLUMES {
        if object["spec"][field].is_object() && field != "gitRepo" {
            warnings.push(format!("spec.{field}: {why}"));
        }
    }
}

/// Storage is counted in whole bytes.
fn claim(spec: &Value, at: &str, warnings: &mut Vec<String>) {
    for field in ["requests", "limits"] {
        pod::fraction(
            &spec["resources"][field]["storage"],
            format!("{at}.resources.{field}[storage]"),
            warnings,
        );
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema;

    fn said(plural: &str, object: Value) -> Vec<String> {
        let mut all = schema::builtin().resources().iter();
        let resource = all.find(|one| one.plural == plural).unwrap();
        of_object(resource, &object, None)
    }

    #[test]
    fn objects_are_told_what_they_hold_in_vain() {
        let spec = json!({
            "nodeSelector": {"beta.kubernetes.io/os": "linux"}, "terminationGracePeriodSeconds": -1,
            "topologySpreadConstraints": [{"topologyKey": "zone"}],
            "containers": [
                {"name": "a", "env": [{"name": "X", "value": "1"}, {"name": "X", "value": "2"}, {"name": "X", "value": "$(X)3"}],
                    "ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 80, "protocol": "TCP"}],
                    "resources": {"limits": {"memory": "100m"}}}],
            "volumes": [{"name": "v", "glusterfs": {}}],
        });
        let pod = json!({"metadata": {"name": "p.q"}, "spec": spec.clone()});
        let said_of_pod = said("pods", pod);
        assert!(said_of_pod[0].starts_with("metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: ["));
        assert_eq!(
            said_of_pod[1..],
            [
                "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
                "spec.topologySpreadConstraints[0].labelSelector: a null labelSelector results in matching no pod",
                "spec.volumes[0].glusterfs: deprecated in v1.25, non-functional in v1.26+",
                "spec.containers[0].resources.limits[memory]: fractional byte value \"100m\" is invalid, must be an integer",
                "spec.containers[0].env[1]: hides previous definition of \"X\", which may be dropped when using apply",
                "spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]",
                "spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1",
            ]
        );
        let deployment = json!({"spec": {"template": {"spec": spec}}});
        assert!(
            said("deployments", deployment)[0]
                .starts_with("spec.template.spec.nodeSelector[beta.kubernetes.io/os]: ")
        );
        let service = json!({"spec": {"clusterIP": "None", "sessionAffinity": "ClientIP", "externalIPs": ["1.2.3.4"]}});
        assert_eq!(said("services", service).len(), 3);
        assert!(said("configmaps", json!({})).is_empty());
    }

    #[test]
    fn names_of_drivers_should_be_lowercase() {
        let slice = |driver: &str| json!({"spec": {"driver": driver}});
        assert_eq!(
            said("resourceslices", slice("GPU.example")),
            [
                "spec.driver: driver names should be lowercase; \"GPU.example\" contains uppercase characters"
            ]
        );
        assert!(said("resourceslices", slice("gpu.example")).is_empty());
    }
}
