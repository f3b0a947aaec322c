use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::discovery::ApiResource;

use super::graph::{FOREGROUND, Graph, Node, ORPHAN, Uid};
use super::plan::{Finalizers, OwnerState, Policy, Step, plan};
use crate::testing::{NOW, time};

fn resource() -> Arc<ApiResource> {
    Arc::new(ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&()))
}

/// An object of which the uid is the name: `name<owner!,owner` in namespace `ns`; `!` marks a blocking reference. A finalizer
/// makes it an object that is being deleted.
fn node(text: &str, finalizer: Option<&str>) -> (Uid, Node) {
    let (name, owners) = text.split_once('<').unwrap_or((text, ""));
    let owners = owners
        .split(',')
        .filter(|owner| !owner.is_empty())
        .map(|owner| OwnerReference {
            uid: owner.trim_end_matches('!').to_owned(),
            name: owner.trim_end_matches('!').to_owned(),
            block_owner_deletion: Some(owner.ends_with('!')),
            ..OwnerReference::default()
        });
    let meta = ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some("ns".to_owned()),
        owner_references: Some(owners.collect()),
        finalizers: finalizer.map(|finalizer| vec![finalizer.to_owned()]),
        deletion_timestamp: finalizer.map(|_| Time(time(NOW))),
        ..ObjectMeta::default()
    };
    (name.into(), Node::new(&resource(), &meta))
}

fn add(graph: &mut Graph, text: &str, finalizer: Option<&str>) -> Vec<String> {
    let (uid, node) = node(text, finalizer);
    names(graph.upsert(uid, node))
}

fn names(uids: Vec<Uid>) -> Vec<String> {
    let mut names: Vec<_> = uids.iter().map(ToString::to_string).collect();
    names.sort();
    names
}

fn graph(objects: &[&str]) -> Graph {
    let mut graph = Graph::default();
    for object in objects {
        assert!(
            add(&mut graph, object, None).is_empty(),
            "nothing is suspected before all is known"
        );
    }
    graph
}

#[test]
fn at_the_start_only_objects_with_absent_owners_are_suspect() {
    let mut graph = graph(&[
        "deployment",
        "set<deployment!",
        "pod<set!",
        "orphan<gone",
        "free",
    ]);
    assert_eq!(names(graph.start()), ["orphan"]);
}

#[test]
fn when_an_owner_goes_its_dependents_are_looked_at_and_nobody_else() {
    let mut graph = graph(&["deployment", "set<deployment!", "pod<set!"]);
    assert!(graph.start().is_empty());
    assert_eq!(names(graph.remove(&"deployment".into())), ["set"]);
    assert_eq!(names(graph.remove(&"set".into())), ["pod"]);
    assert_eq!(names(graph.remove(&"pod".into())), [""; 0]);
}

#[test]
fn an_update_that_changes_no_owner_is_not_worth_a_look() {
    let mut graph = graph(&["set", "pod<set!"]);
    graph.start();
    assert_eq!(add(&mut graph, "pod<set!", None), [""; 0]);
    assert_eq!(add(&mut graph, "pod<other", None), ["pod"]);
    assert_eq!(
        names(graph.remove(&"set".into())),
        [""; 0],
        "it has no dependents any more"
    );
}

#[test]
fn foreground_deletion_looks_at_dependents_and_again_at_the_owner_when_one_goes_or_stops_blocking()
{
    let mut graph = graph(&["set", "a<set!", "b<set!"]);
    graph.start();
    assert_eq!(add(&mut graph, "set", Some(FOREGROUND)), ["a", "b", "set"]);
    assert_eq!(names(graph.remove(&"a".into())), ["set"]);
    assert_eq!(add(&mut graph, "b<set", None), ["b", "set"]);
    assert_eq!(
        add(&mut graph, "late<set!", None),
        ["late"],
        "a dependent that comes late goes too"
    );
}

#[test]
fn orphaning_looks_at_the_owner_only() {
    let mut graph = graph(&["set", "a<set!"]);
    graph.start();
    assert_eq!(add(&mut graph, "set", Some(ORPHAN)), ["set"]);
}

#[test]
fn what_went_while_nobody_watched_is_found_by_the_next_list() {
    let mut graph = graph(&["set", "a<set!"]);
    graph.start();
    let keep = ["a".into()].into();
    assert_eq!(names(graph.retain(&resource(), &keep)), ["a"]);
}

#[test]
fn an_owner_in_another_namespace_is_as_good_as_absent() {
    let mut graph = Graph::default();
    let (uid, mut owner) = node("owner", None);
    owner.place.namespace = "other".into();
    graph.upsert(uid, owner);
    add(&mut graph, "a<owner", None);
    assert_eq!(names(graph.start()), ["a"]);
}

/// A case's words: the owners in order, then what is known of the object itself.
fn plan_of(words: &str) -> Step {
    let mut owners = Vec::new();
    let (mut has_dependents, mut foreground, mut finalizers) = (false, false, Finalizers::Neither);
    for word in words.split_whitespace() {
        let state = match word {
            "solid" => OwnerState::Solid,
            "waiting" => OwnerState::Waiting,
            "absent" => OwnerState::Absent,
            other => {
                match other {
                    "+dependents" => has_dependents = true,
                    "+foreground-dependent" => foreground = true,
                    "+orphan" => finalizers = Finalizers::Orphan,
                    "+foreground" => finalizers = Finalizers::Foreground,
                    unknown => panic!("unknown word {unknown}"),
                }
                continue;
            }
        };
        owners.push((Uid::from(owners.len().to_string().as_str()), state));
    }
    plan(&owners, has_dependents, foreground, finalizers)
}

#[test]
fn plan_table() {
    let drop = |uid: &str| Step::DropOwners(vec![uid.into()]);
    let foreground = |unblock| Step::DeleteForeground { unblock };
    let cases = [
        ("nobody ever owned it", "", Step::Keep),
        ("its owner is there", "solid", Step::Keep),
        (
            "its owner is gone",
            "absent",
            Step::Delete(Policy::Background),
        ),
        ("one of two is gone", "solid absent", drop("1")),
        (
            "one of two waits for it",
            "waiting solid +dependents",
            drop("0"),
        ),
        (
            "the owner waits, nothing depends",
            "waiting",
            Step::Delete(Policy::Background),
        ),
        (
            "the owner waits, others depend",
            "waiting +dependents",
            foreground(false),
        ),
        (
            "there may be a circle",
            "waiting absent +dependents +foreground-dependent",
            foreground(true),
        ),
        (
            "its dependents are to stay",
            "absent +dependents +orphan",
            Step::Delete(Policy::Orphan),
        ),
        (
            "its dependents are to go first",
            "absent +dependents +foreground",
            Step::Delete(Policy::Foreground),
        ),
    ];
    for (name, words, expected) in cases {
        assert_eq!(plan_of(words), expected, "case: {name}");
    }
}
