use super::*;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

fn config_map(name: &str, uid: &str, version: u32, controller: Option<&str>) -> ConfigMap {
    let owner_references = controller.map(|uid| {
        vec![OwnerReference {
            uid: uid.to_owned(),
            controller: Some(true),
            ..OwnerReference::default()
        }]
    });
    let metadata = ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some("ns".to_owned()),
        uid: Some(uid.to_owned()),
        resource_version: Some(version.to_string()),
        owner_references,
        ..ObjectMeta::default()
    };
    ConfigMap {
        metadata,
        ..ConfigMap::default()
    }
}

fn drain(subscription: &mut Subscription<ConfigMap>) -> Vec<String> {
    let label = |object: &ConfigMap| {
        format!(
            "{}@{}",
            object.metadata.name.as_deref().unwrap(),
            object.metadata.resource_version.as_deref().unwrap()
        )
    };
    let mut seen = Vec::new();
    while let Some(change) = subscription.try_next() {
        seen.push(match change {
            Change::Resync => "resync".to_owned(),
            Change::Applied { old: None, new } => format!("+{}", label(&new)),
            Change::Applied {
                old: Some(old),
                new,
            } => format!("{}>{}", label(&old), label(&new)),
            Change::Deleted(object) => format!("-{}", label(&object)),
        });
    }
    seen
}

#[test]
fn subscribers_hear_one_resync_first_and_then_each_change() {
    let shared = Shared::default();
    let mut early = shared.subscribe(10);
    assert_eq!(drain(&mut early), [""; 0], "nothing before the first list");
    shared.replace(vec![config_map("a", "1", 1, None)], 0);
    let mut late = shared.subscribe(10);
    shared.apply(config_map("b", "2", 2, None));
    assert_eq!(
        drain(&mut early),
        ["resync"],
        "the list that follows a resync contains b already"
    );
    assert_eq!(drain(&mut late), ["resync"]);
    shared.apply(config_map("b", "2", 3, None));
    shared.delete(&config_map("a", "1", 4, None));
    for subscription in [&mut early, &mut late] {
        assert_eq!(drain(subscription), ["b@2>b@3", "-a@1"]);
    }
}

#[test]
fn a_slow_subscriber_gets_one_resync_instead_of_what_it_missed() {
    let shared = Shared::default();
    shared.replace(Vec::new(), 0);
    let mut slow = shared.subscribe(2);
    assert_eq!(drain(&mut slow), ["resync"]);
    for version in 1..=5 {
        shared.apply(config_map("a", "1", version, None));
    }
    assert_eq!(drain(&mut slow), ["resync"]);
    shared.apply(config_map("a", "1", 6, None));
    assert_eq!(drain(&mut slow), ["a@5>a@6"]);
}

#[test]
fn a_second_list_is_told_as_what_is_different() {
    let shared = Shared::default();
    let base = vec![
        config_map("same", "1", 1, None),
        config_map("gone", "2", 2, None),
        config_map("reborn", "3", 3, None),
    ];
    shared.replace(base, 3);
    let mut subscription = shared.subscribe(10);
    assert_eq!(drain(&mut subscription), ["resync"]);
    shared.replace(
        vec![
            config_map("same", "1", 1, None),
            config_map("reborn", "4", 9, None),
            config_map("new", "5", 8, None),
        ],
        9,
    );
    let mut seen = drain(&mut subscription);
    let reborn = (
        seen.iter().position(|s| s == "-reborn@3"),
        seen.iter().position(|s| s == "+reborn@9"),
    );
    assert!(
        reborn.0 < reborn.1,
        "an object of the same name and another uid is deleted, then created"
    );
    seen.sort();
    assert_eq!(seen, ["+new@8", "+reborn@9", "-gone@2", "-reborn@3"]);
}

#[test]
fn objects_are_found_by_namespace_and_controller_and_the_index_follows_changes() {
    let shared = Shared::default();
    shared.replace(
        vec![
            config_map("a", "1", 1, Some("owner")),
            config_map("b", "2", 2, None),
        ],
        2,
    );
    assert_eq!(shared.revision(), 2);
    let names = |uid: &str| {
        shared.read(|cache| {
            cache
                .controlled_by("ns", uid)
                .iter()
                .map(|o| o.metadata.name.clone().unwrap())
                .collect::<Vec<_>>()
        })
    };
    assert_eq!(
        (names("owner"), names("")),
        (vec!["a".to_owned()], vec!["b".to_owned()])
    );
    shared.apply(config_map("b", "2", 3, Some("owner")));
    shared.delete(&config_map("a", "1", 4, Some("owner")));
    assert_eq!((names("owner"), names("")), (vec!["b".to_owned()], vec![]));
    assert_eq!(
        shared.read(|cache| (
            cache.len(),
            cache.list_in("ns").len(),
            cache.list_in("other").len()
        )),
        (1, 1, 0)
    );
}
