//! What a node may do: read what its own Pods need, and keep its own objects; nothing of another node.
//!
//! The thin form of upstream's node authorizer: instead of a graph it looks at the Pods of the namespace that are bound
//! to the node, and remembers which Pod was the reason, so that the next question about the same object looks at one Pod.
//! Which of its own objects a node may write, and how, is admission's part ([`crate::admission`]).

use std::collections::HashMap;
use std::fmt;

use cox_api::selector::FieldSelector;
use cox_store::{Object, Snapshot, Store};
use parking_lot::Mutex;
use serde_json::Value;

use super::{Attributes, Decision};
use crate::bootstrap::policy;

/// Reasons remembered; above that the memory starts anew.
const REASONS_LEN_MAX: usize = 16 * 1024;
const LEASE_NAMESPACE: &str = "kube-node-lease";

/// Kinds that a node may see because a Pod on it refers to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Referred {
    Secret,
    ConfigMap,
    ServiceAccount,
    Claim,
    Devices,
}

/// The authorizer of nodes.
pub(super) struct NodeAuthorizer {
    store: Store,
    /// Which Pod (its path) was the reason last time, by node, kind and the object's path.
    reasons: Mutex<HashMap<(String, Referred, String), String>>,
}

impl fmt::Debug for NodeAuthorizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeAuthorizer").finish_non_exhaustive()
    }
}

impl NodeAuthorizer {
    pub(super) fn new(store: Store) -> Self {
        Self {
            store,
            reasons: Mutex::default(),
        }
    }

    /// Whether the node may do what is asked.
    pub(super) fn authorize(&self, node: &str, asked: &Attributes<'_>) -> Decision {
        let yes = match (asked.group, asked.resource) {
            ("", "secrets") => {
                let referred = self.read_referred(node, asked, Referred::Secret);
                if matches!(referred, Decision::Allow) || !self.mounts_with(node, asked) {
                    return referred;
                }
                true
            }
            ("", "configmaps") => return self.read_referred(node, asked, Referred::ConfigMap),
            ("", "persistentvolumeclaims") => return self.claim(node, asked),
            ("", "persistentvolumes") => return self.volume(node, asked),
            ("", "serviceaccounts") => return self.service_account(node, asked),
            ("", "pods") => return self.pod(node, asked),
            // The way to other nodes' Pods is in their Node objects.
            ("", "nodes") => own_node(node, asked) || lists_all(asked),
            ("networking.k8s.io", "networkpolicies") => reads_all(asked),
            ("", "namespaces") if reads_all(asked) => self.has_network_policies(),
            ("coordination.k8s.io", "leases") => own_lease(node, asked),
            ("storage.k8s.io", "csinodes") => own_csi_node(node, asked),
            ("certificates.k8s.io", "podcertificaterequests") => self.pod_certificate(node, asked),
            // What they hold is public; a Pod's volume may show them.
            ("certificates.k8s.io", "clustertrustbundles") => {
                matches!(asked.verb, "get" | "list" | "watch")
            }
            ("storage.k8s.io", "volumeattachments") => self.own_attachment(node, asked),
            ("resource.k8s.io", "resourceclaims") => {
                if asked.verb != "get" || !asked.subresource.is_empty() {
                    let why = "can only get individual resources of this type";
                    return Decision::Deny(why.to_owned());
                }
                return self.related(node, asked, Referred::Devices);
            }
            ("resource.k8s.io", "resourceslices") => return self.slice(node, asked),
            _ => policy::builtin()
                .cluster_role("system:node")
                .iter()
                .any(|rule| rule.allows(asked)),
        };
        if yes {
            Decision::Allow
        } else {
            Decision::Deny(String::new())
        }
    }

    fn read_referred(&self, node: &str, asked: &Attributes<'_>, kind: Referred) -> Decision {
        // A list or watch of a single object carries its name too, taken from the field selector.
        if !matches!(asked.verb, "get" | "list" | "watch") || !asked.subresource.is_empty() {
            return Decision::Deny("can only read resources of this type".to_owned());
        }
        self.related(node, asked, kind)
    }

    fn claim(&self, node: &str, asked: &Attributes<'_>) -> Decision {
        let reads = asked.verb == "get" && matches!(asked.subresource, "" | "status");
        let writes_status =
            asked.subresource == "status" && matches!(asked.verb, "update" | "patch");
        if !reads && !writes_status {
            return Decision::Deny("can only get individual resources of this type".to_owned());
        }
        self.related(node, asked, Referred::Claim)
    }

    /// A volume may be read through the claim that it is bound to.
    fn volume(&self, node: &str, asked: &Attributes<'_>) -> Decision {
        let snapshot = self.store.snapshot();
        let claim = snapshot
            .get("persistentvolumes", asked.name)
            .and_then(|object| {
                let volume: Value = serde_json::from_slice(&object.json).ok()?;
                let claim = &volume["spec"]["claimRef"];
                Some((
                    claim["namespace"].as_str()?.to_owned(),
                    claim["name"].as_str()?.to_owned(),
                ))
            });
        match claim {
            Some((namespace, name)) if asked.verb == "get" && asked.subresource.is_empty() => {
                let of_claim = Attributes {
                    namespace: &namespace,
                    name: &name,
                    ..*asked
                };
                self.related(node, &of_claim, Referred::Claim)
            }
            _ => no_relationship(node),
        }
    }

    /// An attachment of a volume to this node.
    fn own_attachment(&self, node: &str, asked: &Attributes<'_>) -> bool {
        asked.verb == "get"
            && asked.subresource.is_empty()
            && self
                .store
                .snapshot()
                .get("volumeattachments", asked.name)
                .and_then(|object| serde_json::from_slice::<Value>(&object.json).ok())
                .is_some_and(|attachment| attachment["spec"]["nodeName"] == node)
    }

    /// Whether a driver's volume that a Pod on the node uses is mounted with this secret.
    fn mounts_with(&self, node: &str, asked: &Attributes<'_>) -> bool {
        if asked.verb != "get" || asked.name.is_empty() {
            return false;
        }
        let snapshot = self.store.snapshot();
        snapshot.range("persistentvolumes", "", None).any(|object| {
            let Ok(volume) = serde_json::from_slice::<Value>(&object.json) else {
                return false;
            };
            let source = &volume["spec"]["csi"];
            let uses = [
                "nodeStageSecretRef",
                "nodePublishSecretRef",
                "nodeExpandSecretRef",
            ]
            .iter()
            .any(|field| {
                source[field]["name"] == asked.name && source[field]["namespace"] == asked.namespace
            });
            let claim = &volume["spec"]["claimRef"];
            let (Some(namespace), Some(name)) =
                (claim["namespace"].as_str(), claim["name"].as_str())
            else {
                return false;
            };
            let of_claim = Attributes {
                namespace,
                name,
                ..*asked
            };
            uses && matches!(
                self.related(node, &of_claim, Referred::Claim),
                Decision::Allow
            )
        })
    }

    fn service_account(&self, node: &str, asked: &Attributes<'_>) -> Decision {
        match (asked.subresource, asked.verb) {
            ("token", "create") | ("", "get") => {
                self.related(node, asked, Referred::ServiceAccount)
            }
            _ => Decision::Deny(
                "can only get service accounts and create tokens for individual service accounts"
                    .to_owned(),
            ),
        }
    }

    /// Requests for certificates of Pods on this node. Of which Pods is admission's question.
    fn pod_certificate(&self, node: &str, asked: &Attributes<'_>) -> bool {
        if !asked.subresource.is_empty() {
            return false;
        }
        match asked.verb {
            "create" => true,
            "get" => {
                let path = format!("{}/{}", asked.namespace, asked.name);
                let snapshot = self.store.snapshot();
                let request = snapshot.get("podcertificaterequests", &path);
                request.is_some_and(|request| is_on(&request, node))
            }
            "list" | "watch" => {
                let selector = FieldSelector::parse(asked.field_selector).ok();
                selector.is_some_and(|selector| selector.exact("spec.nodeName") == Some(node))
            }
            _ => false,
        }
    }

    /// What the node has of devices. Whose slices it makes, and each one that it deletes with others, is admission's question.
    fn slice(&self, node: &str, asked: &Attributes<'_>) -> Decision {
        if !asked.subresource.is_empty() {
            return Decision::Deny("cannot authorize ResourceSlice subresources".to_owned());
        }
        let refused = match asked.verb {
            "create" => return Decision::Allow,
            "get" | "update" | "patch" | "delete" => {
                let snapshot = self.store.snapshot();
                let slice = snapshot.get("resourceslices", asked.name);
                if slice.is_some_and(|slice| is_on(&slice, node)) {
                    return Decision::Allow;
                }
                return no_relationship(node);
            }
            "list" | "watch" | "deletecollection" => {
                let selector = FieldSelector::parse(asked.field_selector).ok();
                if selector.is_some_and(|selector| selector.exact("spec.nodeName") == Some(node)) {
                    return Decision::Allow;
                }
                "can only list/watch/deletecollection resourceslices with nodeName field selector"
            }
            _ => {
                "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection"
            }
        };
        Decision::Deny(refused.to_owned())
    }

    fn pod(&self, node: &str, asked: &Attributes<'_>) -> Decision {
        let allowed = match (asked.subresource, asked.verb) {
            ("", "get") => {
                let path = format!("{}/{}", asked.namespace, asked.name);
                self.store
                    .snapshot()
                    .get("pods", &path)
                    .is_some_and(|pod| is_on(&pod, node))
            }
            ("", "list" | "watch") => {
                let selector = FieldSelector::parse(asked.field_selector).ok();
                selector.is_some_and(|selector| selector.exact("spec.nodeName") == Some(node))
                    || self.has_network_policies()
            }
            // Which Pods is admission's question.
            ("", "create" | "delete") | ("eviction", "create") | ("status", "update" | "patch") => {
                true
            }
            _ => false,
        };
        if allowed {
            Decision::Allow
        } else {
            Decision::Deny(String::new())
        }
    }

    /// Which Pods a policy means, every node has to work out; as long as there is none, it is shown its own Pods only.
    fn has_network_policies(&self) -> bool {
        let snapshot = self.store.snapshot();
        let mut policies = snapshot.range("networkpolicies", "", None);
        policies.next().is_some()
    }

    /// Whether a Pod on the node refers to the object.
    fn related(&self, node: &str, asked: &Attributes<'_>, kind: Referred) -> Decision {
        if asked.namespace.is_empty() || asked.name.is_empty() {
            return Decision::Deny("No Object name found".to_owned());
        }
        let snapshot = self.store.snapshot();
        let key = (
            node.to_owned(),
            kind,
            format!("{}/{}", asked.namespace, asked.name),
        );
        let remembered = self.reasons.lock().get(&key).cloned();
        let refers = |pod: &Object| is_on(pod, node) && refers_to(pod, kind, asked.name);
        if remembered
            .is_some_and(|path| snapshot.get("pods", &path).is_some_and(|pod| refers(&pod)))
        {
            return Decision::Allow;
        }
        match find_pod(&snapshot, asked.namespace, refers) {
            Some(path) => {
                let mut reasons = self.reasons.lock();
                if reasons.len() >= REASONS_LEN_MAX {
                    reasons.clear();
                }
                reasons.insert(key, path);
                Decision::Allow
            }
            None => no_relationship(node),
        }
    }
}

fn reads_all(asked: &Attributes<'_>) -> bool {
    matches!(asked.verb, "get" | "list" | "watch") && asked.subresource.is_empty()
}

fn lists_all(asked: &Attributes<'_>) -> bool {
    matches!(asked.verb, "list" | "watch") && asked.subresource.is_empty() && asked.name.is_empty()
}

fn no_relationship(node: &str) -> Decision {
    Decision::Deny(format!(
        "no relationship found between node '{node}' and this object"
    ))
}

fn find_pod(
    snapshot: &Snapshot,
    namespace: &str,
    refers: impl Fn(&Object) -> bool,
) -> Option<String> {
    let prefix = format!("{namespace}/");
    let found = snapshot
        .range("pods", &prefix, None)
        .find(|pod| refers(pod));
    found.map(|pod| pod.key.path.to_string())
}

/// Whether the Pod is bound to the node, told by its selectable fields: nothing is decoded.
fn is_on(pod: &Object, node: &str) -> bool {
    pod.attrs
        .fields
        .iter()
        .any(|(field, value)| &**field == "spec.nodeName" && &**value == node)
}

fn refers_to(pod: &Object, kind: Referred, name: &str) -> bool {
    let Ok(pod) = serde_json::from_slice::<Value>(&pod.json) else {
        return false;
    };
    let spec = &pod["spec"];
    match kind {
        Referred::ServiceAccount => spec["serviceAccountName"] == name,
        Referred::Secret => {
            named(&spec["imagePullSecrets"], name)
                || in_volumes(spec, kind, name)
                || in_env(spec, kind, name)
        }
        Referred::ConfigMap => in_volumes(spec, kind, name) || in_env(spec, kind, name),
        Referred::Claim => in_volumes(spec, kind, name) || is_ephemeral_claim(&pod, name),
        Referred::Devices => has_claim(&pod, name),
    }
}

/// The user's claims stand in the spec; those made from templates or for extended resources only in the status, which no node
/// writes.
fn has_claim(pod: &Value, name: &str) -> bool {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    items(&spec["resourceClaims"]).any(|claim| {
        let made = || {
            claim["resourceClaimTemplateName"].is_string()
                && items(&status["resourceClaimStatuses"])
                    .find(|made| made["name"] == claim["name"])
                    .is_some_and(|made| made["resourceClaimName"] == name)
        };
        match claim["resourceClaimName"].as_str() {
            Some(of_user) => of_user == name,
            None => made(),
        }
    }) || status["extendedResourceClaimStatus"]["resourceClaimName"] == name
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn named(list: &Value, name: &str) -> bool {
    items(list).any(|one| one["name"] == name)
}

fn in_volumes(spec: &Value, kind: Referred, name: &str) -> bool {
    items(&spec["volumes"]).any(|volume| match kind {
        Referred::Secret => {
            volume["secret"]["secretName"] == name
                || items(&volume["projected"]["sources"])
                    .any(|source| source["secret"]["name"] == name)
                || [
                    "azureFile",
                    "scaleIO",
                    "flexVolume",
                    "cephfs",
                    "rbd",
                    "iscsi",
                    "storageos",
                ]
                .iter()
                .any(|driver| {
                    volume[driver]["secretName"] == name
                        || volume[driver]["secretRef"]["name"] == name
                })
                || volume["csi"]["nodePublishSecretRef"]["name"] == name
        }
        Referred::ConfigMap => {
            volume["configMap"]["name"] == name
                || items(&volume["projected"]["sources"])
                    .any(|source| source["configMap"]["name"] == name)
        }
        Referred::Claim => volume["persistentVolumeClaim"]["claimName"] == name,
        Referred::ServiceAccount | Referred::Devices => false,
    })
}

/// The claim of an ephemeral volume is named after its Pod.
fn is_ephemeral_claim(pod: &Value, name: &str) -> bool {
    let pod_name = pod["metadata"]["name"].as_str().unwrap_or_default();
    items(&pod["spec"]["volumes"]).any(|volume| {
        volume["ephemeral"].is_object()
            && volume["name"]
                .as_str()
                .is_some_and(|volume| name == format!("{pod_name}-{volume}"))
    })
}

fn in_env(spec: &Value, kind: Referred, name: &str) -> bool {
    let (key_ref, whole_ref) = match kind {
        Referred::Secret => ("secretKeyRef", "secretRef"),
        Referred::ConfigMap => ("configMapKeyRef", "configMapRef"),
        Referred::ServiceAccount | Referred::Claim | Referred::Devices => return false,
    };
    ["containers", "initContainers", "ephemeralContainers"]
        .iter()
        .flat_map(|list| items(&spec[list]))
        .any(|container| {
            items(&container["env"]).any(|env| env["valueFrom"][key_ref]["name"] == name)
                || items(&container["envFrom"]).any(|env| env[whole_ref]["name"] == name)
        })
}

fn own_node(node: &str, asked: &Attributes<'_>) -> bool {
    let own = asked.name == node;
    match (asked.subresource, asked.verb) {
        ("", "create") => asked.name.is_empty() || own,
        ("", "get" | "list" | "watch" | "update" | "patch") | ("status", "update" | "patch") => own,
        _ => false,
    }
}

fn own_lease(node: &str, asked: &Attributes<'_>) -> bool {
    let own = asked.name == node;
    asked.namespace == LEASE_NAMESPACE
        && asked.subresource.is_empty()
        && match asked.verb {
            "create" => asked.name.is_empty() || own,
            "get" | "update" | "patch" | "delete" => own,
            _ => false,
        }
}

fn own_csi_node(node: &str, asked: &Attributes<'_>) -> bool {
    let own = asked.name == node;
    match (asked.subresource, asked.verb) {
        ("", "create") => asked.name.is_empty() || own,
        ("", "get" | "update" | "patch" | "delete") => own,
        _ => false,
    }
}
