//! Which Rust types describe the kinds of each group and version: where the descriptions come from.

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use schemars::JsonSchema;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value};

/// Adds the types of one group and version to a generator.
type AddTypes = fn(&mut SchemaGenerator);

/// The group and version, and how to add its types.
struct Row {
    group: &'static str,
    version: &'static str,
    add: AddTypes,
}

macro_rules! kinds {
    ($($group:literal $version:literal $($module:ident)::+ => [$($kind:ident),*];)*) => {
        const ROWS: &[Row] = &[$(Row {
            group: $group,
            version: $version,
            add: |generator| {
                use k8s_openapi::$($module)::+ as module;
                $(add::<module::$kind>(generator);)*
            },
        }),*];
    };
}

kinds! {
    "" "v1" api::core::v1 => [ComponentStatus, ConfigMap, Endpoints, Event, LimitRange, Namespace, Node, PersistentVolumeClaim, PersistentVolume, Pod, PodTemplate, ReplicationController, ResourceQuota, Secret, ServiceAccount, Service, Binding];
    "apiregistration.k8s.io" "v1" kube_aggregator::pkg::apis::apiregistration::v1 => [APIService];
    "apps" "v1" api::apps::v1 => [ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet];
    "events.k8s.io" "v1" api::events::v1 => [Event];
    "authentication.k8s.io" "v1" api::authentication::v1 => [SelfSubjectReview, TokenReview, TokenRequest];
    "authorization.k8s.io" "v1" api::authorization::v1 => [LocalSubjectAccessReview, SelfSubjectAccessReview, SelfSubjectRulesReview, SubjectAccessReview];
    "autoscaling" "v2" api::autoscaling::v2 => [HorizontalPodAutoscaler];
    "autoscaling" "v1" api::autoscaling::v1 => [HorizontalPodAutoscaler, Scale];
    "batch" "v1" api::batch::v1 => [CronJob, Job];
    "certificates.k8s.io" "v1" api::certificates::v1 => [CertificateSigningRequest];
    "certificates.k8s.io" "v1beta1" api::certificates::v1beta1 => [ClusterTrustBundle, PodCertificateRequest];
    "certificates.k8s.io" "v1alpha1" api::certificates::v1alpha1 => [ClusterTrustBundle];
    "networking.k8s.io" "v1" api::networking::v1 => [IngressClass, Ingress, IPAddress, NetworkPolicy, ServiceCIDR];
    "networking.k8s.io" "v1beta1" api::networking::v1beta1 => [IPAddress, ServiceCIDR];
    "policy" "v1" api::policy::v1 => [PodDisruptionBudget, Eviction];
    "rbac.authorization.k8s.io" "v1" api::rbac::v1 => [ClusterRoleBinding, ClusterRole, RoleBinding, Role];
    "storage.k8s.io" "v1" api::storage::v1 => [CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment, VolumeAttributesClass];
    "storage.k8s.io" "v1beta1" api::storage::v1beta1 => [VolumeAttributesClass];
    "admissionregistration.k8s.io" "v1" api::admissionregistration::v1 => [MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding, MutatingWebhookConfiguration, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding, ValidatingWebhookConfiguration];
    "admissionregistration.k8s.io" "v1beta1" api::admissionregistration::v1beta1 => [MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding];
    "admissionregistration.k8s.io" "v1alpha1" api::admissionregistration::v1alpha1 => [MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding];
    "apiextensions.k8s.io" "v1" apiextensions_apiserver::pkg::apis::apiextensions::v1 => [CustomResourceDefinition];
    "scheduling.k8s.io" "v1" api::scheduling::v1 => [PriorityClass];
    "scheduling.k8s.io" "v1alpha2" api::scheduling::v1alpha2 => [PodGroup, Workload];
    "coordination.k8s.io" "v1" api::coordination::v1 => [Lease];
    "coordination.k8s.io" "v1beta1" api::coordination::v1beta1 => [LeaseCandidate];
    "coordination.k8s.io" "v1alpha2" api::coordination::v1alpha2 => [LeaseCandidate];
    "node.k8s.io" "v1" api::node::v1 => [RuntimeClass];
    "discovery.k8s.io" "v1" api::discovery::v1 => [EndpointSlice];
    "resource.k8s.io" "v1" api::resource::v1 => [DeviceClass, ResourceClaim, ResourceClaimTemplate, ResourceSlice];
    "resource.k8s.io" "v1beta2" api::resource::v1beta2 => [DeviceClass, DeviceTaintRule, ResourceClaim, ResourceClaimTemplate, ResourceSlice];
    "resource.k8s.io" "v1beta1" api::resource::v1beta1 => [DeviceClass, ResourceClaim, ResourceClaimTemplate, ResourceSlice];
    "resource.k8s.io" "v1alpha3" api::resource::v1alpha3 => [DeviceTaintRule, ResourcePoolStatusRequest];
    "flowcontrol.apiserver.k8s.io" "v1" api::flowcontrol::v1 => [FlowSchema, PriorityLevelConfiguration];
    "internal.apiserver.k8s.io" "v1alpha1" api::apiserverinternal::v1alpha1 => [StorageVersion];
    "storagemigration.k8s.io" "v1beta1" api::storagemigration::v1beta1 => [StorageVersionMigration];
}

fn add<T: JsonSchema>(generator: &mut SchemaGenerator) {
    // The answer is a reference; what is wanted stays in the generator.
    generator.subschema_for::<T>();
}

/// The definitions of everything that the given groups and versions use, by upstream's names, with references below
/// `references` (`/components/schemas` or `/definitions`).
pub(super) fn definitions<'a>(
    wanted: impl Iterator<Item = (&'a str, &'a str)>,
    references: &'static str,
) -> Map<String, Value> {
    let mut generator = SchemaSettings::openapi3()
        .with(|one| one.definitions_path = references.into())
        .into_generator();
    add::<meta::DeleteOptions>(&mut generator);
    add::<meta::ListMeta>(&mut generator);
    add::<meta::ObjectMeta>(&mut generator);
    add::<meta::Status>(&mut generator);
    add::<meta::WatchEvent<RawExtension>>(&mut generator);
    for (group, version) in wanted {
        for row in ROWS
            .iter()
            .filter(|row| row.group == group && row.version == version)
        {
            (row.add)(&mut generator);
            // Subresources speak kinds of other groups.
            match (group, version) {
                ("", "v1") => {
                    add::<k8s_openapi::api::policy::v1::Eviction>(&mut generator);
                    add::<k8s_openapi::api::autoscaling::v1::Scale>(&mut generator);
                    add::<k8s_openapi::api::authentication::v1::TokenRequest>(&mut generator);
                }
                ("apps", "v1") => add::<k8s_openapi::api::autoscaling::v1::Scale>(&mut generator),
                _ => {}
            }
        }
    }
    generator.take_definitions(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_served_group_version_has_a_row() {
        for resource in cox_api::schema::builtin().resources() {
            assert!(
                ROWS.iter()
                    .any(|row| row.group == resource.group && row.version == resource.version),
                "{}/{}",
                resource.group,
                resource.version
            );
        }
    }
}
