//! CertificateApproval, CertificateSigning and CertificateSubjectRestriction: who approves and signs for a signer needs that
//! signer's permission, and nobody gets a client certificate in the name of `system:masters`. ClusterTrustBundleAttest: nor does
//! anybody tell whom a signer trusts without it.

use base64::Engine;
use cox_api::status::ApiStatus;
use serde_json::Value;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::{Operation, Request};
use crate::auth::{Attributes, Authorizer, MASTERS};

const GROUP: &str = "certificates.k8s.io";
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

pub(super) fn validate(request: &Request<'_>, authorizer: &Authorizer) -> Result<(), ApiStatus> {
    let resource = request.resource;
    if resource.group != GROUP {
        return Ok(());
    }
    match resource.plural.as_str() {
        "certificatesigningrequests" => {}
        "clustertrustbundles" => return attested(request, authorizer),
        "podcertificaterequests" => return super::pod_certificates::validate(request, authorizer),
        _ => return Ok(()),
    }
    let (Some(new), operation) = (&request.object, request.operation) else {
        return Ok(());
    };
    let old = request.old.unwrap_or(&Value::Null);
    let signer = old["spec"]["signerName"].as_str().unwrap_or_default();
    let needs = |verb: &str| {
        if may(authorizer, request, verb, signer) {
            Ok(())
        } else {
            let why = format!("user not permitted to {verb} requests with signerName {signer:?}");
            Err(request.forbidden(why))
        }
    };
    match (operation, request.subresource) {
        (Operation::Create, "") => check_subject(request, new),
        (Operation::Update, "approval") => needs("approve"),
        (Operation::Update, "status")
            if new["status"]["certificate"] != old["status"]["certificate"]
                || failures(new) != failures(old) =>
        {
            needs("sign")
        }
        _ => Ok(()),
    }
}

/// Whoever makes or changes a bundle of a signer needs its permission; changes of bookkeeping alone do not.
fn attested(request: &Request<'_>, authorizer: &Authorizer) -> Result<(), ApiStatus> {
    let Some(new) = &request.object else {
        return Ok(());
    };
    let signer = new["spec"]["signerName"].as_str().unwrap_or_default();
    let is_same = request.old.is_some_and(|old| {
        new["spec"] == old["spec"]
            && ["labels", "annotations"]
                .iter()
                .all(|field| new["metadata"][field] == old["metadata"][field])
    });
    if signer.is_empty() || is_same || may(authorizer, request, "attest", signer) {
        return Ok(());
    }
    Err(request.forbidden(format!(
        "user not permitted to attest for signerName {signer:?}"
    )))
}

fn failures(request: &Value) -> Vec<&Value> {
    let conditions = request["status"]["conditions"].as_array();
    let all = conditions.into_iter().flatten();
    all.filter(|condition| condition["type"] == "Failed")
        .collect()
}

/// The permission for one signer, or for all of its domain.
pub(super) fn may(
    authorizer: &Authorizer,
    request: &Request<'_>,
    verb: &str,
    signer: &str,
) -> bool {
    let domain = signer.split('/').next().unwrap_or_default();
    let all = format!("{domain}/*");
    [signer, all.as_str()].iter().any(|name| {
        let mut asked = Attributes::for_resource(request.user, verb, GROUP, "signers");
        asked.version = "*";
        asked.name = name;
        authorizer.authorize(&asked).is_allowed()
    })
}

fn check_subject(request: &Request<'_>, new: &Value) -> Result<(), ApiStatus> {
    if new["spec"]["signerName"] != CLIENT_SIGNER {
        return Ok(());
    }
    let groups = organizations(new["spec"]["request"].as_str().unwrap_or_default())
        .map_err(|why| request.forbidden(format!("failed to parse CSR: {why}")))?;
    if groups.iter().any(|group| group == MASTERS) {
        return Err(request.forbidden(format!(
            "use of {CLIENT_SIGNER} signer with system:masters group is not allowed"
        )));
    }
    Ok(())
}

/// The organizations of the subject of a request in base64 of PEM.
fn organizations(encoded: &str) -> Result<Vec<String>, String> {
    let pem = base64::engine::general_purpose::STANDARD
        .decode(encoded)
        .map_err(|error| error.to_string())?;
    let (_, block) = x509_parser::pem::parse_x509_pem(&pem).map_err(|error| error.to_string())?;
    let (_, parsed) =
        X509CertificationRequest::from_der(&block.contents).map_err(|error| error.to_string())?;
    let subject = &parsed.certification_request_info.subject;
    // A name that is no text is none that means anything here.
    let names = subject
        .iter_organization()
        .filter_map(|attribute| attribute.as_str().ok());
    Ok(names.map(str::to_owned).collect())
}
