//! What to attach to a node and what to take from it. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cox_client::{attachments, conditions};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{AttachedVolume, Node, PersistentVolume, Pod};
use k8s_openapi::api::storage::v1::VolumeAttachment;

/// A node that is not ready and still names a volume as in use is not waited for longer.
const UNMOUNT_MAX: SignedDuration = SignedDuration::from_mins(6);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// A volume that Pods of the node use.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Wanted {
    /// The persistent volume.
    pub(super) volume: String,
    pub(super) driver: String,
    pub(super) handle: String,
    /// Several nodes may have it at once.
    pub(super) is_shared: bool,
    pub(super) pods: Vec<Arc<Pod>>,
}

/// What the plan is made from.
pub(super) struct Seen<'a> {
    pub(super) name: &'a str,
    /// `None`: the Node is gone.
    pub(super) node: Option<&'a Node>,
    pub(super) wanted: &'a [Wanted],
    /// Of all nodes.
    pub(super) attachments: &'a [Arc<VolumeAttachment>],
    pub(super) volumes: &'a dyn Fn(&str) -> Option<Arc<PersistentVolume>>,
    /// Since when attachments are wanted by nobody.
    pub(super) unwanted: &'a BTreeMap<String, Timestamp>,
    pub(super) now: Timestamp,
}

/// What is to be done.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) attach: Vec<Wanted>,
    /// Names of attachments.
    pub(super) detach: Vec<String>,
    /// What the Node is to name.
    pub(super) attached: Vec<AttachedVolume>,
    /// Wanted and attached, or being so.
    pub(super) kept: Vec<Wanted>,
    /// Other nodes have them.
    pub(super) taken: Vec<(Wanted, Vec<String>)>,
    /// The attacher could not.
    pub(super) failed: Vec<(Wanted, String)>,
    /// Attachments that nobody wants, and since when.
    pub(super) unwanted: BTreeMap<String, Timestamp>,
    pub(super) again: Option<Duration>,
}

fn name_of(attachment: &VolumeAttachment) -> &str {
    attachment.metadata.name.as_deref().unwrap_or_default()
}

fn volume_of(attachment: &VolumeAttachment) -> &str {
    let source = &attachment.spec.source;
    source.persistent_volume_name.as_deref().unwrap_or_default()
}

fn is_going(attachment: &VolumeAttachment) -> bool {
    attachment.metadata.deletion_timestamp.is_some()
}

pub(super) fn plan(seen: &Seen<'_>) -> Plan {
    let mut plan = Plan::default();
    for wanted in seen.wanted {
        want(seen, wanted, &mut plan);
    }
    let ours = seen.attachments.iter().filter(|one| {
        // Others may make attachments too, under names of their own.
        one.spec.node_name == seen.name && name_of(one).starts_with("csi-")
    });
    for attachment in ours {
        let name = name_of(attachment);
        let is_wanted = seen
            .wanted
            .iter()
            .any(|wanted| attachments::name(&wanted.handle, &wanted.driver, seen.name) == name);
        if is_wanted || is_going(attachment) {
            continue;
        }
        let since = *seen.unwanted.get(name).unwrap_or(&seen.now);
        plan.unwanted.insert(name.to_owned(), since);
        match wait_to_detach(seen, attachment, since) {
            None => plan.detach.push(name.to_owned()),
            Some(wait) => {
                let wait = plan.again.map_or(wait, |again| again.min(wait));
                plan.again = Some(wait);
                // It is still there, and still said to be.
                plan.attached.extend(shown(seen, attachment));
            }
        }
    }
    plan.attached.sort_by(|a, b| a.name.cmp(&b.name));
    plan.attached.dedup();
    plan
}

fn want(seen: &Seen<'_>, wanted: &Wanted, plan: &mut Plan) {
    let name = attachments::name(&wanted.handle, &wanted.driver, seen.name);
    let own = seen.attachments.iter().find(|one| name_of(one) == name);
    if let Some(own) = own {
        let status = own.status.as_ref();
        if is_going(own) {
            // Its end wakes us, and then it is attached anew.
            return;
        }
        if status.is_some_and(|status| status.attached) {
            plan.attached.extend(shown(seen, own));
        } else if let Some(error) = status.and_then(|status| status.attach_error.as_ref()) {
            let why = error.message.clone().unwrap_or_default();
            plan.failed.push((wanted.clone(), why));
        }
        plan.kept.push(wanted.clone());
        return;
    }
    let elsewhere: Vec<String> = seen
        .attachments
        .iter()
        .filter(|one| volume_of(one) == wanted.volume && one.spec.node_name != seen.name)
        .map(|one| one.spec.node_name.clone())
        .collect();
    if elsewhere.is_empty() || wanted.is_shared {
        plan.attach.push(wanted.clone());
    } else {
        plan.taken.push((wanted.clone(), elsewhere));
    }
}

/// How the Node names the volume of an attachment.
fn shown(seen: &Seen<'_>, attachment: &VolumeAttachment) -> Option<AttachedVolume> {
    let volume = (seen.volumes)(volume_of(attachment))?;
    let source = volume.spec.as_ref()?.csi.as_ref()?;
    let attached = attachment
        .status
        .as_ref()
        .is_some_and(|status| status.attached);
    attached.then(|| AttachedVolume {
        name: attachments::of_source(source),
        device_path: String::new(),
    })
}

/// How long a volume that nobody wants stays; `None`: it goes now.
fn wait_to_detach(
    seen: &Seen<'_>,
    attachment: &VolumeAttachment,
    since: Timestamp,
) -> Option<Duration> {
    let node = seen.node?;
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    if taints
        .into_iter()
        .flatten()
        .any(|taint| taint.key == OUT_OF_SERVICE)
    {
        return None;
    }
    let status = node.status.as_ref();
    let in_use = status.and_then(|status| status.volumes_in_use.as_deref());
    let in_use = in_use.unwrap_or_default();
    let volume = (seen.volumes)(volume_of(attachment));
    let source = volume
        .as_ref()
        .and_then(|volume| volume.spec.as_ref()?.csi.as_ref());
    let is_used = match source {
        Some(source) => in_use.contains(&attachments::of_source(source)),
        // Which one it is cannot be said any more: none of the driver's may be in use.
        None => {
            let of_driver = attachments::of_driver(&attachment.spec.attacher);
            in_use.iter().any(|name| name.starts_with(&of_driver))
        }
    };
    if !is_used {
        return None;
    }
    let all = status.and_then(|status| status.conditions.as_deref());
    let is_ready = conditions::is_true(all.unwrap_or_default(), "Ready");
    let left = UNMOUNT_MAX - seen.now.duration_since(since);
    match Duration::try_from(left) {
        Ok(left) if !left.is_zero() => Some(left),
        // A node that is well will say itself when it is done.
        _ if is_ready => Some(Duration::from_secs(60)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{NOW, time};
    use serde_json::{Value, json};

    fn wanted(is_shared: bool) -> Wanted {
        Wanted {
            volume: "pv".into(),
            driver: "d".into(),
            handle: "h".into(),
            is_shared,
            pods: Vec::new(),
        }
    }

    fn attachment(node: &str, status: Value) -> Arc<VolumeAttachment> {
        let name = attachments::name("h", "d", node);
        let spec = json!({ "attacher": "d", "nodeName": node, "source": { "persistentVolumeName": "pv" } });
        let object = json!({ "metadata": { "name": name }, "spec": spec, "status": status });
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn node(in_use: bool, ready: bool, taint: Option<&str>) -> Node {
        let in_use: Vec<&str> = in_use
            .then_some("kubernetes.io/csi/d^h")
            .into_iter()
            .collect();
        let taints: Vec<Value> = taint
            .map(|key| json!({ "key": key, "effect": "NoExecute" }))
            .into_iter()
            .collect();
        let ready = json!([{ "type": "Ready", "status": if ready { "True" } else { "Unknown" } }]);
        serde_json::from_value(
            json!({ "metadata": { "name": "n" }, "spec": { "taints": taints },
            "status": { "volumesInUse": in_use, "conditions": ready } }),
        )
        .unwrap()
    }

    /// What a plan comes to, in words.
    fn words(plan: &Plan) -> String {
        let mut words = Vec::new();
        words.extend(
            plan.attach
                .iter()
                .map(|one| format!("attach {}", one.volume)),
        );
        words.extend(plan.detach.iter().map(|_| "detach".to_owned()));
        words.extend(
            plan.attached
                .iter()
                .map(|one| format!("attached {}", one.name)),
        );
        words.extend(
            plan.taken
                .iter()
                .map(|(_, nodes)| format!("taken by {}", nodes.join(" "))),
        );
        words.extend(plan.failed.iter().map(|(_, why)| format!("failed: {why}")));
        if plan.again.is_some() {
            words.push("wait".to_owned());
        }
        words.join(", ")
    }

    fn decide(
        node: Option<&Node>,
        wanted: &[Wanted],
        attachments: &[Arc<VolumeAttachment>],
        minutes_unwanted: i64,
    ) -> String {
        let volume: PersistentVolume =
            serde_json::from_value(json!({ "metadata": { "name": "pv" },
            "spec": { "csi": { "driver": "d", "volumeHandle": "h" } } }))
            .unwrap();
        let volume = Arc::new(volume);
        let since = time(NOW) - SignedDuration::from_mins(minutes_unwanted);
        let unwanted = [(attachments::name("h", "d", "n"), since)].into();
        words(&plan(&Seen {
            name: "n",
            node,
            wanted,
            attachments,
            volumes: &|_| Some(Arc::clone(&volume)),
            unwanted: &unwanted,
            now: time(NOW),
        }))
    }

    #[test]
    #[allow(clippy::too_many_lines, reason = "a table")]
    fn volumes_come_and_go_with_their_pods() {
        let attached = || attachment("n", json!({ "attached": true }));
        let free = node(false, true, None);
        let busy = node(true, true, None);
        let lost = node(true, false, None);
        let out = node(true, false, Some(OUT_OF_SERVICE));
        let one = [wanted(false)];
        let failing = json!({ "attached": false, "attachError": { "message": "no rack" } });
        let elsewhere = || attachment("m", json!({ "attached": true }));
        let cases = [
            ("wanted", decide(Some(&free), &one, &[], 0), "attach pv"),
            (
                "on its way",
                decide(
                    Some(&free),
                    &one,
                    &[attachment("n", json!({ "attached": false }))],
                    0,
                ),
                "",
            ),
            (
                "there",
                decide(Some(&free), &one, &[attached()], 0),
                "attached kubernetes.io/csi/d^h",
            ),
            (
                "the attacher cannot",
                decide(Some(&free), &one, &[attachment("n", failing)], 0),
                "failed: no rack",
            ),
            (
                "another node has it",
                decide(Some(&free), &one, &[elsewhere()], 0),
                "taken by m",
            ),
            (
                "another may have it too",
                decide(Some(&free), &[wanted(true)], &[elsewhere()], 0),
                "attach pv",
            ),
            (
                "no Pod wants it",
                decide(Some(&free), &[], &[attached()], 0),
                "detach",
            ),
            (
                "the node still uses it",
                decide(Some(&busy), &[], &[attached()], 0),
                "attached kubernetes.io/csi/d^h, wait",
            ),
            (
                "a node that is well says when it is done",
                decide(Some(&busy), &[], &[attached()], 9),
                "attached kubernetes.io/csi/d^h, wait",
            ),
            (
                "a silent node is not waited for for ever",
                decide(Some(&lost), &[], &[attached()], 9),
                "detach",
            ),
            (
                "but for a while",
                decide(Some(&lost), &[], &[attached()], 2),
                "attached kubernetes.io/csi/d^h, wait",
            ),
            (
                "a node out of service is not",
                decide(Some(&out), &[], &[attached()], 0),
                "detach",
            ),
            (
                "nor one that is gone",
                decide(None, &[], &[attached()], 0),
                "detach",
            ),
            (
                "what belongs to others stays",
                decide(Some(&free), &[], &[elsewhere()], 0),
                "",
            ),
        ];
        for (case, found, expected) in cases {
            assert_eq!(found, expected, "case: {case}");
        }
    }
}
