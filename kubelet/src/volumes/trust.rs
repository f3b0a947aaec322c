//! Cluster trust bundles: certificates of authorities that a projected volume shows as one PEM file.
//!
//! What was found is kept with the Pod ([`super::answers`]), as the merged file only.

use super::answers::{Answer, Answers};
use cox_api::pem;
use k8s_openapi::api::certificates::v1beta1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::{ClusterTrustBundleProjection, Pod};
use kube::Api;
use kube::api::ListParams;
use std::collections::BTreeSet;

/// The certificates that a projection asks for. Without any: `None` if it says that this is fine, else an error.
pub(super) async fn bundle(
    answers: &Answers,
    pod: &Pod,
    wanted: &ClusterTrustBundleProjection,
) -> Result<Option<String>, String> {
    let api: Api<ClusterTrustBundle> = Api::all(answers.client.clone());
    let url = api.resource_url();
    let (answer, missing) = if let Some(name) = wanted.name.as_deref() {
        let path = format!("{url}/{name}");
        let asked = async {
            let found = api.get_opt(name).await?;
            Ok(found.map(|bundle| merge(&[bundle])))
        };
        (
            answers.ask(pod, path, asked).await,
            format!("clustertrustbundle.certificates.k8s.io \"{name}\" not found"),
        )
    } else {
        let signer = wanted.signer_name.as_deref().unwrap_or_default();
        let Some(params) = by_signer(signer, wanted)? else {
            return without(wanted, zero(signer));
        };
        let labels = params.label_selector.as_deref().unwrap_or_default();
        let path = format!("{url}?signer={signer}&labels={labels}");
        let asked = async {
            let found = api.list(&params).await?.items;
            Ok((!found.is_empty()).then(|| merge(&found)))
        };
        (answers.ask(pod, path, asked).await, zero(signer))
    };
    let answer: Answer<String> =
        answer.map_err(|error| format!("cluster trust bundles cannot be read: {error}"))?;
    match answer.object {
        Some(text) => Ok(Some(text)),
        None => without(wanted, missing),
    }
}

fn zero(signer: &str) -> String {
    format!(
        "combination of signerName=\"{signer}\" and labelSelector matched zero ClusterTrustBundles"
    )
}

/// There are none: fine, if the projection says so.
fn without(
    wanted: &ClusterTrustBundleProjection,
    missing: String,
) -> Result<Option<String>, String> {
    if wanted.optional.unwrap_or(false) {
        Ok(None)
    } else {
        Err(missing)
    }
}

/// Which of a signer's bundles are wanted; `None`: none. No selector means none of them, an empty one all.
fn by_signer(
    signer: &str,
    wanted: &ClusterTrustBundleProjection,
) -> Result<Option<ListParams>, String> {
    let Some(selector) = &wanted.label_selector else {
        return Ok(None);
    };
    let selector: kube::core::Selector = selector
        .clone()
        .try_into()
        .map_err(|error| format!("the bundle's label selector is wrong: {error}"))?;
    Ok(Some(
        ListParams::default()
            .fields(&format!("spec.signerName={signer}"))
            .labels_from(&selector),
    ))
}

/// Each certificate once, in an order that does not depend on which bundle came first.
fn merge(bundles: &[ClusterTrustBundle]) -> String {
    let mut all = BTreeSet::new();
    for bundle in bundles {
        all.extend(pem::blocks(&bundle.spec.trust_bundle).map(|block| block.text()));
    }
    all.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_certificate_comes_once() {
        let block = |body: &str| {
            format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
        };
        let bundles = ["BBB AAA", "AAA"].map(|bodies| {
            let blocks = bodies
                .split(' ')
                .map(|body| format!("note\n{}", block(body)));
            blocks.collect::<String>()
        });
        let bundles = bundles.map(|text| {
            let mut bundle = ClusterTrustBundle::default();
            bundle.spec.trust_bundle = text;
            bundle
        });
        assert_eq!(merge(&bundles), block("AAA") + &block("BBB"));
    }
}
