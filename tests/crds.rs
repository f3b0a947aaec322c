//! Custom resources with unmodified kubectl: defined, explained, listed with their columns, refused, scaled, deleted.
#![allow(
    clippy::unwrap_used,
    reason = "tests are tables and stories, and fail by panicking"
)]

use cox_testkit::{Cluster, eventually};

const COX: &str = env!("CARGO_BIN_EXE_cox");

const DEFINITION: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: crontabs.stable.example.com}
spec:
  group: stable.example.com
  scope: Namespaced
  names: {plural: crontabs, singular: crontab, kind: CronTab, shortNames: [ct], categories: [all]}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            description: What to run and when.
            x-kubernetes-validations:
            - {rule: "self.replicas <= 5 || self.image != ''", message: "many replicas need an image"}
            properties:
              cronSpec: {type: string}
              image: {type: string, default: ""}
              replicas: {type: integer, default: 1, maximum: 10}
          status: {type: object, properties: {replicas: {type: integer}}}
    subresources: {status: {}, scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas}}
    additionalPrinterColumns:
    - {name: Spec, type: string, jsonPath: .spec.cronSpec}
    - {name: Replicas, type: integer, jsonPath: .spec.replicas}
    - {name: Age, type: date, jsonPath: .metadata.creationTimestamp}
"#;

fn crontab(replicas: u32) -> String {
    format!(
        "apiVersion: stable.example.com/v1\nkind: CronTab\nmetadata: {{name: backup}}\nspec: {{cronSpec: '0 3 * * *', replicas: {replicas}}}\n"
    )
}

#[test]
fn kubectl_works_with_custom_resources() {
    let cluster = Cluster::up(COX, &[]);
    cluster.apply(DEFINITION).ok();
    cluster.wait("condition=Established", "crd/crontabs.stable.example.com");
    cluster.apply(&crontab(2)).ok();
    let table = cluster.kubectl(&["get", "ct"]).ok();
    assert!(
        table.starts_with("NAME     SPEC        REPLICAS   AGE")
            && table.contains("backup   0 3 * * *   2"),
        "{table}"
    );
    let explained = cluster.kubectl(&["explain", "crontab.spec"]).ok();
    assert!(
        explained.contains("What to run and when.") && explained.contains("cronSpec"),
        "{explained}"
    );
    let refused = cluster.apply(&crontab(7)).refused();
    assert!(refused.contains("many replicas need an image"), "{refused}");
    cluster
        .kubectl(&["scale", "ct/backup", "--replicas=3"])
        .ok();
    let replicas = cluster
        .kubectl(&["get", "ct/backup", "-o", "jsonpath={.spec.replicas}"])
        .ok();
    assert_eq!(replicas, "3");
    eventually("the APIService of the definition", || {
        let services = cluster.kubectl(&["get", "apiservices"]).ok();
        if services.contains("v1.stable.example.com") && services.contains("v1.apps") {
            Ok(())
        } else {
            Err(services)
        }
    });
    cluster
        .kubectl(&["delete", "crd", "crontabs.stable.example.com"])
        .ok();
    let gone = cluster.kubectl(&["get", "ct"]).refused();
    // kubectl asks with what it remembers of discovery, or not at all.
    assert!(
        gone.contains("could not find the requested resource")
            || gone.contains("doesn't have a resource type"),
        "{gone}"
    );
}
