//! Cluster trust bundles: certificates of authorities that a projected volume shows as one PEM file.

use k8s_openapi::api::core::v1::ClusterTrustBundleProjection;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams};
use std::collections::BTreeSet;

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// The certificates that a projection asks for; `None`: there are none, and it says that this is fine.
pub(super) async fn bundle(
    client: kube::Client,
    wanted: &ClusterTrustBundleProjection,
) -> Result<Option<String>, String> {
    let kind = GroupVersionKind::gvk("certificates.k8s.io", "v1beta1", "ClusterTrustBundle");
    let api: Api<DynamicObject> = Api::all_with(client, &ApiResource::from_gvk(&kind));
    let optional = wanted.optional.unwrap_or(false);
    let failed = |error: kube::Error| format!("cluster trust bundles cannot be read: {error}");
    let found = if let Some(name) = wanted.name.as_deref() {
        let found = api.get_opt(name).await.map_err(failed)?;
        match found {
            Some(found) => vec![found],
            None if optional => return Ok(None),
            None => {
                return Err(format!(
                    "clustertrustbundle.certificates.k8s.io \"{name}\" not found"
                ));
            }
        }
    } else {
        let signer = wanted.signer_name.as_deref().unwrap_or_default();
        let Some(selector) = &wanted.label_selector else {
            return Err("a bundle by signer needs a label selector".to_owned());
        };
        let selector: kube::core::Selector = selector
            .clone()
            .try_into()
            .map_err(|error| format!("the bundle's label selector is wrong: {error}"))?;
        let params = ListParams::default()
            .fields(&format!("spec.signerName={signer}"))
            .labels_from(&selector);
        let found = api.list(&params).await.map_err(failed)?.items;
        if found.is_empty() {
            return if optional {
                Ok(None)
            } else {
                Err(format!(
                    "combination of signerName=\"{signer}\" and labelSelector matched zero ClusterTrustBundles"
                ))
            };
        }
        found
    };
    let texts = found
        .iter()
        .filter_map(|bundle| bundle.data["spec"]["trustBundle"].as_str());
    Ok(Some(merge(texts)))
}

/// Each certificate once, in an order that does not depend on which bundle came first.
fn merge<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    let mut all = BTreeSet::new();
    for text in texts {
        for piece in text.split(BEGIN).skip(1) {
            if let Some((body, _)) = piece.split_once(END) {
                all.insert(body.trim().to_owned());
            }
        }
    }
    all.into_iter()
        .map(|body| format!("{BEGIN}\n{body}\n{END}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_certificate_comes_once() {
        let pem = |body: &str| format!("note\n{BEGIN}\n{body}\n{END}\n");
        let texts = [pem("BBB") + &pem("AAA"), pem("AAA")];
        assert_eq!(
            merge(texts.iter().map(String::as_str)),
            format!("{BEGIN}\nAAA\n{END}\n{BEGIN}\nBBB\n{END}\n")
        );
    }
}
