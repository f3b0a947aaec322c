use std::sync::Mutex;

use super::*;
use crate::fixture::{no_devices, no_volumes, node_object, pod_object};
use crate::framework::{Plugin, ReservePlugin};
use crate::node_info::NodeInfo;
use crate::plugins::default_profile;

const LIMITS: BackoffLimits = BackoffLimits {
    initial: Duration::from_secs(1),
    max: Duration::from_secs(10),
};

fn at(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn core(nodes: &[&str], pods: &[&str]) -> Core {
    let mut core = Core::new(
        "default-scheduler",
        default_profile(&no_volumes(), &no_devices()),
        LIMITS,
        1,
    );
    nodes
        .iter()
        .for_each(|node| core.node_applied(&node_object(node), at(0)));
    pods.iter()
        .for_each(|pod| core.pod_applied(&pod_object(pod), at(0)));
    core
}

/// All decisions that can be made now: `pod->node`, or `pod: message`.
fn decide(core: &mut Core, now: Duration) -> String {
    let decisions = std::iter::from_fn(|| core.next(now)).map(|decision| match decision {
        Decision::Bind { pod, node } => format!("{}->{node}", pod.uid),
        Decision::Unschedulable { pod, message } => format!("{}: {message}", pod.uid),
    });
    decisions.collect::<Vec<_>>().join("; ")
}

const FULL: &str = "0/1 nodes are available: 1 Insufficient cpu.";

#[test]
fn assumed_pods_take_their_place_before_they_are_bound() {
    let mut core = core(&["n cpu=2"], &["a cpu=1", "b cpu=1", "c cpu=1"]);
    assert_eq!(decide(&mut core, at(0)), format!("a->n; b->n; c: {FULL}"));
}

#[test]
fn a_failed_binding_gives_the_place_back_and_tries_again_later() {
    let mut core = core(&["n cpu=1"], &["a cpu=1"]);
    let Some(Decision::Bind { pod, node }) = core.next(at(0)) else {
        panic!("not bound")
    };
    core.pod_applied(&pod_object("a cpu=1"), at(0));
    assert_eq!(
        decide(&mut core, at(0)),
        "",
        "a change of a Pod that is being bound starts nothing"
    );
    core.pod_applied(&pod_object("b cpu=1"), at(0));
    assert_eq!(decide(&mut core, at(0)), format!("b: {FULL}"));
    core.bind_failed(&pod, &node, at(2));
    assert_eq!(
        decide(&mut core, at(2)),
        "b->n",
        "the place is free again, and its backoff is over"
    );
    assert_eq!(
        decide(&mut core, at(3)),
        format!("a: {FULL}"),
        "after its backoff"
    );
}

#[test]
fn a_bound_pod_keeps_its_place_and_frees_it_when_it_ends() {
    let mut core = core(&["n cpu=1"], &["a cpu=1"]);
    assert_eq!(decide(&mut core, at(0)), "a->n");
    core.bound("a");
    core.pod_applied(&pod_object("a cpu=1 node=n"), at(0));
    core.pod_applied(&pod_object("b cpu=1"), at(0));
    assert_eq!(decide(&mut core, at(0)), format!("b: {FULL}"));
    let mut ended = (*pod_object("a cpu=1 node=n")).clone();
    ended.status.get_or_insert_default().phase = Some("Succeeded".into());
    core.pod_applied(&Arc::new(ended), at(5));
    assert_eq!(decide(&mut core, at(5)), "b->n");
}

#[test]
#[allow(clippy::too_many_lines, reason = "one table of cases")]
fn events_that_help_table() {
    type Event = fn(&mut Core);
    let cases: &[(&str, &str, &str, Event, &str)] = &[
        (
            "a node that comes",
            "n cpu=1",
            "p cpu=2",
            |core| core.node_applied(&node_object("m cpu=2"), at(5)),
            "p->m",
        ),
        (
            "a node that grows",
            "n cpu=1",
            "p cpu=2",
            |core| core.node_applied(&node_object("n cpu=3"), at(5)),
            "p->n",
        ),
        (
            "a taint that goes",
            "n cpu=1 taint=a=b:NoSchedule",
            "p",
            |core| core.node_applied(&node_object("n cpu=1"), at(5)),
            "p->n",
        ),
        (
            "uncordoned",
            "n cpu=1 cordoned",
            "p",
            |core| core.node_applied(&node_object("n cpu=1"), at(5)),
            "p->n",
        ),
        (
            "a label that comes",
            "n cpu=1",
            "p select=a=b",
            |core| core.node_applied(&node_object("n cpu=1 label=a=b"), at(5)),
            "p->n",
        ),
        (
            "a feature that is declared",
            "n cpu=1",
            "p restart-all",
            |core| {
                let node = "n cpu=1 feature=RestartAllContainersOnContainerExits";
                core.node_applied(&node_object(node), at(5));
            },
            "p->n",
        ),
        (
            "a label does not help with features",
            "n cpu=1",
            "p restart-all",
            |core| core.node_applied(&node_object("n cpu=1 label=a=b"), at(5)),
            "",
        ),
        (
            "a label does not help with CPU",
            "n cpu=1",
            "p cpu=2",
            |core| core.node_applied(&node_object("n cpu=1 label=a=b"), at(5)),
            "",
        ),
        (
            "a Pod that goes",
            "n cpu=1",
            "p cpu=1",
            |core| core.pod_deleted("there", at(5)),
            "p->n",
        ),
        (
            "a Pod that goes does not help with a label",
            "n cpu=1",
            "p select=a=b",
            |core| core.pod_deleted("there", at(5)),
            "",
        ),
        (
            "its own change",
            "n cpu=1 label=a=b",
            "p cpu=1",
            |core| core.pod_applied(&pod_object("p"), at(5)),
            "p->n",
        ),
        (
            "its deletion",
            "n cpu=1",
            "p cpu=1",
            |core| core.pod_deleted("p", at(5)),
            "",
        ),
    ];
    for (name, node, pod, event, expected) in cases {
        let mut core = core(&[node], &["there cpu=1 node=n", pod]);
        assert!(decide(&mut core, at(0)).starts_with("p: "), "case: {name}");
        event(&mut core);
        assert_eq!(decide(&mut core, at(5)), *expected, "case: {name}");
    }
}

#[test]
fn pods_that_are_not_ours_to_schedule() {
    let mut other = (*pod_object("other")).clone();
    other.spec.as_mut().unwrap().scheduler_name = Some("other-scheduler".into());
    let mut terminating = (*pod_object("terminating")).clone();
    terminating.metadata.deletion_timestamp = Some(
        k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH),
    );
    let mut core = core(&["n cpu=1"], &["gated gate"]);
    core.pod_applied(&Arc::new(other), at(0));
    core.pod_applied(&Arc::new(terminating), at(0));
    assert_eq!(decide(&mut core, at(0)), "");
    core.pod_applied(&pod_object("gated"), at(0));
    assert_eq!(
        decide(&mut core, at(0)),
        "gated->n",
        "once its gates are gone"
    );
}

#[test]
fn a_list_replaces_what_was_known() {
    let mut core = core(&["n cpu=1", "m cpu=9"], &["old cpu=1 node=n", "waiting"]);
    core.nodes_listed(&[node_object("n cpu=1")], at(0));
    core.pods_listed(&[pod_object("p cpu=1")], at(0));
    assert_eq!(decide(&mut core, at(0)), "p->n");
}

struct Refuses<'a>(&'static str, bool, &'a Mutex<Vec<String>>);

impl Plugin for Refuses<'static> {
    fn name(&self) -> &'static str {
        self.0
    }
}

impl ReservePlugin for Refuses<'static> {
    fn reserve(&self, _: &PodInfo, _: &NodeInfo) -> Result<(), Rejection> {
        self.2.lock().unwrap().push(format!("+{}", self.0));
        if self.1 {
            Err(Rejection::because("it is taken"))
        } else {
            Ok(())
        }
    }

    fn unreserve(&self, _: &PodInfo, _: &str) {
        self.2.lock().unwrap().push(format!("-{}", self.0));
    }
}

#[test]
fn what_was_reserved_is_given_back_in_reverse() {
    static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let mut core = core(&["n cpu=1"], &["p"]);
    core.profile.reserves = vec![
        Box::new(Refuses("A", false, &LOG)),
        Box::new(Refuses("B", true, &LOG)),
        Box::new(Refuses("C", false, &LOG)),
    ];
    assert_eq!(
        decide(&mut core, at(0)),
        "p: running Reserve plugin \"B\": it is taken"
    );
    assert_eq!(LOG.lock().unwrap().join(" "), "+A +B -B -A");
}
