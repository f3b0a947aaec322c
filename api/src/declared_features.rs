//! Features that a node has to declare (`status.declaredFeatures`) before a Pod can be bound to it or changed on it. Pure.
//!
//! Asked by the scheduler's filter and by admission of updates; the kubelet declares them by these names.

use serde_json::Value;

use crate::totals::{amounts, containers};

/// Some containers' exit restarts all of the Pod's.
pub const RESTART_ALL: &str = "RestartAllContainersOnContainerExits";
/// `spec.resources` changes while the Pod runs.
pub const RESIZE_POD: &str = "InPlacePodLevelResourcesVerticalScaling";
/// Resources of init containers that run once change.
pub const RESIZE_INIT: &str = "InPlacePodVerticalScalingInitContainers";
/// Users of its own on the node's network.
pub const USERS_ON_HOST_NETWORK: &str = "UserNamespacesHostNetworkSupport";

/// What of a Pod's spec decides where it can run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traits {
    /// A rule of a container or an init container has the action `RestartAllContainers`.
    pub restarts_all: bool,
    /// `hostNetwork`.
    pub host_network: bool,
    /// `hostUsers: false`.
    pub own_users: bool,
}

impl Traits {
    /// The features without which the Pod cannot be bound, in the order of their names.
    #[must_use]
    pub fn needs(self) -> Vec<&'static str> {
        let needs = [
            (RESTART_ALL, self.restarts_all),
            (USERS_ON_HOST_NETWORK, self.host_network && self.own_users),
        ];
        chosen(&needs)
    }
}

/// The features without which a Pod cannot change from one spec to the other where it runs, in the order of their names. Rules of
/// restarts, networks and users never change, so they need nothing here.
#[must_use]
pub fn needed_to_change(old: &Value, new: &Value) -> Vec<&'static str> {
    let init = |spec| containers(spec, "initContainers");
    let once_changed = init(old).zip(init(new)).any(|(old, new)| {
        old["restartPolicy"] != "Always" && differ(&old["resources"], &new["resources"])
    });
    let needs = [
        (RESIZE_POD, differ(&old["resources"], &new["resources"])),
        (RESIZE_INIT, once_changed),
    ];
    chosen(&needs)
}

/// Those of the features that are not declared.
#[must_use]
pub fn missing(needed: &[&'static str], declared: &[impl AsRef<str>]) -> Vec<&'static str> {
    let is_declared = |feature: &str| declared.iter().any(|one| one.as_ref() == feature);
    let needed = needed.iter().copied();
    needed.filter(|feature| !is_declared(feature)).collect()
}

/// Are the amounts or the claims other ones? Spelling does not matter, nor does an empty list.
fn differ(old: &Value, new: &Value) -> bool {
    ["requests", "limits"]
        .iter()
        .any(|list| amounts(&old[list]) != amounts(&new[list]))
        || old["claims"] != new["claims"]
}

fn chosen(needs: &[(&'static str, bool)]) -> Vec<&'static str> {
    let wanted = needs.iter().filter(|(_, needed)| *needed);
    wanted.map(|(feature, _)| *feature).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_pod_needs_to_be_bound() {
        let none = Traits::default();
        let cases: [(&str, Traits, &[&str]); 5] = [
            ("nothing", none, &[]),
            (
                "the node's network",
                Traits {
                    host_network: true,
                    ..none
                },
                &[],
            ),
            (
                "users of its own",
                Traits {
                    own_users: true,
                    ..none
                },
                &[],
            ),
            (
                "restarts",
                Traits {
                    restarts_all: true,
                    ..none
                },
                &[RESTART_ALL],
            ),
            (
                "everything",
                Traits {
                    restarts_all: true,
                    host_network: true,
                    own_users: true,
                },
                &[RESTART_ALL, USERS_ON_HOST_NETWORK],
            ),
        ];
        for (name, traits, expected) in cases {
            assert_eq!(traits.needs(), expected, "case: {name}");
        }
    }

    #[test]
    fn what_an_update_needs() {
        let cpu = |amount: &str| json!({"requests": {"cpu": amount}});
        let old = json!({"resources": cpu("1"), "containers": [{"name": "c", "resources": cpu("1")}],
            "initContainers": [{"name": "once", "resources": cpu("1")},
                {"name": "side", "restartPolicy": "Always", "resources": cpu("1")}]});
        let cases: [(&str, &str, Value, &[&str]); 7] = [
            ("nothing", "/containers/0/name", json!("c"), &[]),
            ("a container", "/containers/0/resources", cpu("2"), &[]),
            ("a sidecar", "/initContainers/1/resources", cpu("2"), &[]),
            (
                "an init container",
                "/initContainers/0/resources",
                cpu("2"),
                &[RESIZE_INIT],
            ),
            (
                "the same in other words",
                "/initContainers/0/resources",
                cpu("1000m"),
                &[],
            ),
            ("the Pod", "/resources", cpu("2"), &[RESIZE_POD]),
            ("the Pod's, gone", "/resources", Value::Null, &[RESIZE_POD]),
        ];
        for (name, pointer, value, expected) in cases {
            let mut new = old.clone();
            *new.pointer_mut(pointer).unwrap() = value;
            assert_eq!(needed_to_change(&old, &new), expected, "case: {name}");
        }
        let (without, mut with) = (json!({"containers": []}), json!({"containers": []}));
        with["resources"] = cpu("1");
        assert_eq!(needed_to_change(&without, &with), [RESIZE_POD]);
    }

    #[test]
    fn what_is_missing() {
        let declared = ["A", RESIZE_POD];
        let found = missing(&[RESIZE_POD, RESIZE_INIT], &declared);
        assert_eq!(found, [RESIZE_INIT]);
    }
}
