use super::*;
use serde_json::json;

fn resource(group: &str, plural: &str) -> &'static Resource {
    schema::builtin().resource(group, "v1", plural).unwrap()
}

#[test]
fn a_create_resets_status_and_starts_the_generation() {
    let mut pod = json!({"metadata": {"name": "a", "generation": 9}, "spec": {"containers": [{"resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}}}]}, "status": {"phase": "Running"}});
    prepare_create(resource("", "pods"), &mut pod);
    assert_eq!(
        (&pod["status"], &pod["metadata"]["generation"]),
        (
            &json!({"phase": "Pending", "qosClass": "Guaranteed"}),
            &json!(1)
        )
    );

    let mut node = json!({"metadata": {"name": "n"}, "status": {"capacity": {"cpu": "1"}}});
    prepare_create(resource("", "nodes"), &mut node);
    assert_eq!(
        node,
        json!({"metadata": {"name": "n"}, "status": {"capacity": {"cpu": "1"}}}),
        "a node registers with its status"
    );

    let mut namespace = json!({"metadata": {"name": "n"}, "spec": {}});
    prepare_create(resource("", "namespaces"), &mut namespace);
    assert_eq!(
        (&namespace["spec"], &namespace["status"]),
        (
            &json!({"finalizers": ["kubernetes"]}),
            &json!({"phase": "Active"})
        )
    );

    let mut deployment = json!({"metadata": {}, "spec": {}, "status": {"replicas": 3}});
    prepare_create(resource("apps", "deployments"), &mut deployment);
    assert_eq!(deployment["status"], json!({}));
}

#[test]
fn a_job_selects_by_its_uid() {
    let mut job = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": {}}});
    prepare_create(resource("batch", "jobs"), &mut job);
    assert_eq!(
        job["spec"]["selector"],
        json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}})
    );
    assert_eq!(
        job["spec"]["template"]["metadata"]["labels"]["job-name"],
        "j"
    );
}

#[test]
fn an_update_keeps_status_and_counts_what_changed() {
    let old = json!({"metadata": {"generation": 4, "uid": "u", "creationTimestamp": "2024-01-01T00:00:00Z"}, "spec": {"replicas": 1}, "status": {"replicas": 1}});
    let mut cases = vec![
        (
            "apps",
            "deployments",
            json!({"spec": {"replicas": 1}, "status": {"replicas": 9}}),
            4,
        ),
        ("apps", "deployments", json!({"spec": {"replicas": 2}}), 5),
        (
            "apps",
            "deployments",
            json!({"metadata": {"annotations": {"a": "b"}}, "spec": {"replicas": 1}}),
            5,
        ),
        (
            "apps",
            "replicasets",
            json!({"metadata": {"annotations": {"a": "b"}}, "spec": {"replicas": 1}}),
            4,
        ),
    ];
    for (group, plural, new, generation) in &mut cases {
        prepare_update(resource(group, plural), new, &old);
        assert_eq!(
            (
                meta_generation(new),
                &new["status"],
                &new["metadata"]["uid"]
            ),
            (*generation, &json!({"replicas": 1}), &json!("u")),
            "{plural} {new}"
        );
    }
}

fn meta_generation(object: &Value) -> i64 {
    crate::meta::generation(object)
}

#[test]
fn a_status_update_changes_nothing_else() {
    let old = json!({"metadata": {"generation": 4, "labels": {"a": "1"}}, "spec": {"replicas": 1}, "status": {}});
    let mut new = json!({"metadata": {"labels": {"a": "2"}}, "spec": {"replicas": 5}, "extra": 1, "status": {"replicas": 1}});
    prepare_status_update(resource("apps", "deployments"), &mut new, &old);
    assert_eq!(
        new,
        json!({"metadata": {"generation": 4, "labels": {"a": "1"}}, "spec": {"replicas": 1}, "status": {"replicas": 1}})
    );
}

#[test]
fn only_finalize_touches_a_namespaces_finalizers() {
    let old = json!({"metadata": {}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Terminating"}});
    let mut new = json!({"metadata": {}, "spec": {}, "status": {}});
    prepare_update(resource("", "namespaces"), &mut new, &old);
    assert_eq!(new["spec"], old["spec"]);
    let mut new = json!({"metadata": {}, "spec": {}, "status": {}});
    prepare_namespace_finalize(&mut new, &old);
    assert_eq!((&new["spec"], &new["status"]), (&json!({}), &old["status"]));
}

#[test]
fn ephemeral_containers_come_alone() {
    let old = json!({"metadata": {"generation": 1}, "spec": {"containers": [{"name": "c"}]}});
    let mut new = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [], "ephemeralContainers": [{"name": "e"}]}});
    prepare_ephemeral_containers_update(&mut new, &old);
    assert_eq!(
        new,
        json!({"metadata": {"generation": 2}, "spec": {"containers": [{"name": "c"}], "ephemeralContainers": [{"name": "e"}]}})
    );
}

#[test]
fn selectable_fields_have_values_and_zeros() {
    let pod = json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {"nodeName": "x"}, "status": {"phase": "Running", "podIPs": [{"ip": "1.2.3.4"}]}});
    let fields = selectable_fields(resource("", "pods"), &pod);
    for (name, value) in [
        ("metadata.name", "a"),
        ("metadata.namespace", "n"),
        ("spec.nodeName", "x"),
        ("status.podIP", "1.2.3.4"),
        ("spec.hostNetwork", "false"),
        ("spec.schedulerName", ""),
    ] {
        assert!(fields.contains(&(name, value.to_owned())), "{name}");
    }
    assert_eq!(
        selectable_fields(resource("", "nodes"), &json!({})).len(),
        2,
        "nodes have no namespace"
    );
}

#[test]
fn scale_is_read_and_written() {
    let mut set = json!({"metadata": {"name": "a", "namespace": "n", "uid": "u"}, "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "w"}}}, "status": {"replicas": 2}});
    let resource = resource("apps", "replicasets");
    let scale = get_scale(resource, &set).unwrap();
    assert_eq!(
        (&scale["spec"], &scale["status"]),
        (
            &json!({"replicas": 3}),
            &json!({"replicas": 2, "selector": "app=w"})
        )
    );
    set_scale(resource, &mut set, &json!({"spec": {}}));
    assert_eq!(set["spec"]["replicas"], 0);
    assert!(get_scale(super::tests::resource("", "pods"), &set).is_none());
}

#[test]
fn qos_follows_requests_and_limits() {
    for (resources, expected) in [
        (json!([{}]), "BestEffort"),
        (json!([{"requests": {"cpu": "0"}}]), "BestEffort"),
        (json!([{"requests": {"cpu": "1"}}]), "Burstable"),
        (
            json!([{"limits": {"cpu": "1", "memory": "1"}, "requests": {"cpu": "1000m", "memory": "1"}}]),
            "Guaranteed",
        ),
        (
            json!([{"limits": {"cpu": "1", "memory": "1"}, "requests": {"cpu": "1", "memory": "1"}}, {}]),
            "Burstable",
        ),
    ] {
        let containers: Vec<Value> = resources
            .as_array()
            .unwrap()
            .iter()
            .map(|r| json!({"resources": r}))
            .collect();
        assert_eq!(
            qos_class(&json!({"spec": {"containers": containers}})).as_str(),
            expected,
            "{resources}"
        );
    }
}

#[test]
fn string_data_becomes_data() {
    let mut secret =
        json!({"metadata": {}, "stringData": {"a": "hi"}, "data": {"a": "eA==", "b": "eQ=="}});
    prepare_create(resource("", "secrets"), &mut secret);
    assert_eq!(
        secret,
        json!({"metadata": {}, "data": {"a": "aGk=", "b": "eQ=="}})
    );
}

#[test]
fn both_names_of_the_service_account_are_written() {
    for given in ["serviceAccount", "serviceAccountName"] {
        let mut pod = json!({"metadata": {}, "spec": {given: "a"}});
        prepare_create(resource("", "pods"), &mut pod);
        assert_eq!(
            pod["spec"],
            json!({"serviceAccount": "a", "serviceAccountName": "a"})
        );
    }
}

#[test]
fn what_was_told_of_devices_goes_with_them() {
    let claims = resource("resource.k8s.io", "resourceclaims");
    let device = |name: &str| json!({"driver": "d", "pool": "p", "device": name});
    let claim = |allocated: &[&str], told: &[&str]| {
        let devices = |names: &[&str]| names.iter().map(|name| device(name)).collect::<Vec<_>>();
        let mut claim = json!({"metadata": {"name": "c", "labels": {"a": "b"}, "finalizers": ["f"]}, "spec": {"devices": {}}, "status": {}});
        if !allocated.is_empty() {
            claim["status"]["allocation"] = json!({"devices": {"results": devices(allocated)}});
        }
        if !told.is_empty() {
            claim["status"]["devices"] = json!(devices(told));
        }
        claim
    };
    let old = claim(&["x", "y"], &["x", "y"]);
    // One that never was allocated is validation's to refuse.
    for (allocated, told, expected) in [
        (vec!["x", "y"], vec!["x"], claim(&["x", "y"], &["x"])),
        (vec![], vec!["x", "y"], claim(&[], &[])),
        (vec!["y"], vec!["x", "y", "z"], claim(&["y"], &["y", "z"])),
    ] {
        let mut new = claim(&allocated, &told);
        new["metadata"]["labels"] = json!({"a": "c"});
        new["metadata"]["finalizers"] = json!([]);
        new["spec"] = json!({});
        prepare_status_update(claims, &mut new, &old);
        assert_eq!(new, expected, "{allocated:?} {told:?}");
    }
}

#[test]
fn a_taint_begins_when_it_comes() {
    let slices = resource("resource.k8s.io", "resourceslices");
    let since = "2026-01-01T00:00:00Z";
    let taint = |key: &str, since: Option<&str>| match since {
        Some(since) => json!({"key": key, "timeAdded": since}),
        None => json!({"key": key}),
    };
    let slice = |taints: Value| json!({"metadata": {"name": "s", "generation": 1}, "spec": {"devices": [{"taints": taints}]}});
    let old = slice(json!([taint("a", Some(since))]));
    let mut new = slice(json!([taint("a", Some(since)), taint("b", None)]));
    let now = "2026-02-02T00:00:00Z";
    assert!(prepare_part(
        slices,
        "",
        &mut new,
        &old,
        now.parse().unwrap()
    ));
    assert_eq!(
        new["spec"]["devices"][0]["taints"],
        json!([taint("a", Some(since)), taint("b", Some(now))])
    );
    assert_eq!(new["metadata"]["generation"], 2);
}
