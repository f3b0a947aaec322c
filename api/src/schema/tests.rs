use super::*;

#[test]
fn every_resource_has_a_type_with_metadata_or_is_a_review() {
    let schema = builtin();
    assert_eq!(schema.resources().len(), 95, "resources of api-resources");
    for resource in schema.resources() {
        let def = schema.def(resource.type_id);
        assert!(
            def.field("apiVersion").is_some() && def.field("kind").is_some(),
            "{}",
            resource.kind
        );
        assert!(def.field("metadata").is_some(), "{}", resource.kind);
        for sub in &resource.subresources {
            assert!(
                sub.type_id.is_some(),
                "{}/{} speaks {}",
                resource.plural,
                sub.name,
                sub.kind
            );
        }
    }
}

#[test]
fn storage_prefixes_follow_upstream() {
    let schema = builtin();
    for (group, version, plural, prefix) in [
        ("", "v1", "nodes", "minions"),
        ("", "v1", "services", "services/specs"),
        ("", "v1", "endpoints", "services/endpoints"),
        ("", "v1", "replicationcontrollers", "controllers"),
        ("networking.k8s.io", "v1", "ingresses", "ingress"),
        (
            "apiregistration.k8s.io",
            "v1",
            "apiservices",
            "apiregistration.k8s.io/apiservices",
        ),
        ("", "v1", "pods", "pods"),
        ("events.k8s.io", "v1", "events", "events"),
    ] {
        assert_eq!(
            schema
                .resource(group, version, plural)
                .unwrap()
                .storage_prefix,
            prefix
        );
    }
    let events = schema.resource("events.k8s.io", "v1", "events").unwrap();
    assert_eq!(events.storage_api_version(), "v1");
    let claims = schema
        .resource("resource.k8s.io", "v1beta1", "resourceclaims")
        .unwrap();
    assert_eq!(
        (claims.storage_api_version().as_str(), claims.preferred),
        ("resource.k8s.io/v1", false)
    );
}

#[test]
fn inlined_structs_are_flat_for_json_and_nested_for_protobuf() {
    let schema = builtin();
    let volume = schema.def(schema.type_named("k8s.io/api/core/v1.Volume").unwrap());
    assert!(volume.field("configMap").is_some());
    assert_eq!(volume.declared.len(), 2, "name and the inlined source");
    let source = |declared: &Declared| matches!(declared, Declared::Inline { number: 2, .. });
    assert!(volume.declared.iter().any(source));
}

#[test]
fn merge_facts_are_carried() {
    let schema = builtin();
    let spec = schema.def(schema.type_named("k8s.io/api/core/v1.PodSpec").unwrap());
    let containers = spec.field("containers").unwrap();
    assert_eq!(containers.list, ListKind::Map(vec!["name".into()]));
    assert_eq!(containers.patch.merge_key.as_deref(), Some("name"));
    assert_eq!(spec.field("nodeSelector").unwrap().map, MapKind::Atomic);
    assert!(spec.field("volumes").unwrap().patch.retain_keys);
    let env = schema
        .def(
            schema
                .type_named("k8s.io/api/core/v1.EphemeralContainer")
                .unwrap(),
        )
        .field("env")
        .unwrap();
    assert_eq!(env.patch.merge_key.as_deref(), Some("name"));
    let selector = schema
        .def(
            schema
                .type_named("k8s.io/api/apps/v1.DeploymentSpec")
                .unwrap(),
        )
        .field("selector")
        .unwrap();
    assert_eq!(
        selector.map,
        MapKind::Atomic,
        "LabelSelector is atomic by type"
    );
}

#[test]
fn meta_kinds_are_part_of_every_group() {
    let schema = builtin();
    for (group, version, kind) in [
        ("", "v1", "DeleteOptions"),
        ("apps", "v1", "DeleteOptions"),
        ("", "v1", "Status"),
        ("autoscaling", "v1", "Scale"),
        ("", "v1", "PodList"),
    ] {
        assert!(
            schema.kind_type(group, version, kind).is_some(),
            "{group}/{version} {kind}"
        );
    }
    assert!(
        schema.kind_type("", "v1", "PodSpec").is_none(),
        "a struct that is no kind"
    );
}
