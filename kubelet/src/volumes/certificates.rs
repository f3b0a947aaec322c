//! Certificates of Pods: a key is made here, a PodCertificateRequest asks for a certificate of a signer for it, and both are shown in
//! a projected volume. Renewed from the time on that the signer names; until the next one is there the last one stays.
//!
//! ```text
//! nothing -> asked -> issued -> due and asked -> issued ...
//!              |                     |
//!              +-> denied, failed <--+   for ever: another request would be answered the same way
//! ```
//! What was issued is kept sealed with the Pod, key and all: a Pod that starts without the API server has what it had.

use cox_api::pem;
use cox_client::Clock;
use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1beta1::{
    PodCertificateRequest, PodCertificateRequestSpec, PodCertificateRequestStatus,
};
use k8s_openapi::api::core::v1::{Node, Pod, PodCertificateProjection, PodSpec, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::PostParams;
use kube::runtime::{WatchStreamExt, watcher};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SignatureAlgorithm};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long one attempt waits for the signer where a Pod cannot start without it, and where it has a certificate.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(5));
/// A request that was not answered, or an API server that does not answer, is looked at again then.
const LOOK_AGAIN: SignedDuration = SignedDuration::from_secs(60);
const NOT_YET: &str = "credential bundle is not issued yet";
/// Renewals of Pods that began together are spread over so many seconds.
const SPREAD_SECS: i64 = 300;

/// Which source of which volume.
#[derive(
    Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct Place {
    volume: String,
    source: usize,
}

impl Place {
    /// The source of this number in a volume.
    #[must_use]
    pub fn new(volume: &str, source: usize) -> Self {
        Self {
            volume: volume.to_owned(),
            source,
        }
    }
}

/// A key with its certificates, PEM.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Credential {
    pub key: String,
    pub chain: String,
    renew_at: Timestamp,
}

impl std::fmt::Debug for Credential {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential")
            .field("renew_at", &self.renew_at)
            .finish_non_exhaustive()
    }
}

/// A credential as it is kept over a restart of the node.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct KeptCredential {
    place: Place,
    credential: Credential,
}

/// A request that waits for its answer.
#[derive(Clone)]
struct Asked {
    name: String,
    key: String,
}

#[derive(Clone, Default)]
struct State {
    issued: Option<Credential>,
    asked: Option<Asked>,
    refused: Option<String>,
    /// Nobody needs an answer any more.
    over: CancellationToken,
}

/// The certificates of all Pods of the node.
pub struct PodCertificates {
    client: kube::Client,
    clock: Arc<dyn Clock>,
    node: String,
    known: Mutex<HashMap<(String, Place), State>>,
}

impl std::fmt::Debug for PodCertificates {
    /// Without the keys.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PodCertificates").finish_non_exhaustive()
    }
}

/// How a request was answered. Pure.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    NotYet,
    Refused(String),
    /// The chain, and how long from now until it is renewed.
    Issued(String, SignedDuration),
}

fn answer(status: Option<&PodCertificateRequestStatus>, now: Timestamp) -> Answer {
    let Some(status) = status else {
        return Answer::NotYet;
    };
    for condition in status.conditions.iter().flatten() {
        let how = match condition.type_.as_str() {
            "Denied" => "denied",
            "Failed" => "failed",
            "Issued" => {
                let chain = status.certificate_chain.as_deref().unwrap_or_default();
                // Without what stands between its certificates.
                let chain = pem::blocks(chain).map(|block| block.text()).collect();
                return Answer::Issued(chain, until_renewal(status, now));
            }
            _ => continue,
        };
        return Answer::Refused(format!(
            "PodCertificateRequest was permanently {how}: reason={:?} message={:?}",
            condition.reason, condition.message
        ));
    }
    Answer::NotYet
}

/// The signer says when; where its clock and this machine's disagree by more than the certificate's life, only how long counts.
fn until_renewal(status: &PodCertificateRequestStatus, now: Timestamp) -> SignedDuration {
    let (Some(begins), Some(renew)) = (&status.not_before, &status.begin_refresh_at) else {
        return LOOK_AGAIN;
    };
    let life = renew.0.duration_since(begins.0);
    let left = renew.0.duration_since(now);
    if left.is_positive() && left <= life * 2 {
        left
    } else {
        life.max(LOOK_AGAIN)
    }
}

fn algorithm(kind: &str) -> Result<&'static SignatureAlgorithm, String> {
    match kind {
        "ED25519" => Ok(&rcgen::PKCS_ED25519),
        "ECDSAP256" => Ok(&rcgen::PKCS_ECDSA_P256_SHA256),
        "ECDSAP384" => Ok(&rcgen::PKCS_ECDSA_P384_SHA384),
        other => Err(format!(
            "this node makes keys of Pods' certificates of the kinds ED25519, ECDSAP256 and ECDSAP384, not {other}"
        )),
    }
}

/// The sentence for a Pod that wants a key of a kind that is not made here; `None`: it wants none.
pub(crate) fn key_not_made(spec: &PodSpec) -> Option<String> {
    let projected = spec.volumes.iter().flatten();
    let sources = projected
        .filter_map(|volume| volume.projected.as_ref()?.sources.as_ref())
        .flatten();
    let mut wanted = sources.filter_map(|source| source.pod_certificate.as_ref());
    wanted.find_map(|wanted| algorithm(&wanted.key_type).err())
}

/// A new key in PEM, and a request that is empty but for that key and its signature.
fn new_key(kind: &str) -> Result<(String, Vec<u8>), String> {
    let failed = |error: rcgen::Error| format!("no key can be made: {error}");
    let key = KeyPair::generate_for(algorithm(kind)?).map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key).map_err(failed)?;
    Ok((key.serialize_pem(), request.der().to_vec()))
}

impl PodCertificates {
    /// None is known yet.
    #[must_use]
    pub fn new(client: kube::Client, clock: Arc<dyn Clock>, node: &str) -> Self {
        Self {
            client,
            clock,
            node: node.to_owned(),
            known: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(String, Place), State>> {
        self.known
            .lock()
            .expect("no panic happens while this lock is held")
    }

    fn change(&self, at: &(String, Place), change: impl FnOnce(&mut State)) {
        change(self.lock().entry(at.clone()).or_default());
    }

    /// The credential for a source of a Pod's volume, and when to come again.
    pub async fn credential(
        &self,
        pod: &Pod,
        place: Place,
        source: &PodCertificateProjection,
    ) -> Result<(Credential, Timestamp), String> {
        let at = (pod.metadata.uid.clone().unwrap_or_default(), place);
        let state = self.lock().entry(at.clone()).or_default().clone();
        let now = self.clock.now();
        if let Some(credential) = &state.issued
            && now < credential.renew_at
        {
            return Ok((credential.clone(), credential.renew_at));
        }
        if let Some(refused) = state.refused {
            return Err(refused);
        }
        let patience = if state.issued.is_some() {
            PATIENCE.1
        } else {
            PATIENCE.0
        };
        let asked = self.ask(pod, &at, state.asked, source);
        // Both may be dropped: what was asked is remembered.
        let outcome = tokio::select! {
            answered = tokio::time::timeout(patience, Box::pin(asked)) => {
                answered.unwrap_or_else(|_| Err(NOT_YET.to_owned()))
            }
            () = state.over.cancelled() => Err(NOT_YET.to_owned()),
        };
        match (outcome, state.issued) {
            (Ok(credential), _) => {
                let renew_at = credential.renew_at;
                Ok((credential, renew_at))
            }
            // A signer's no counts, a signer or an API server that does not answer leaves what there is.
            (Err(_), Some(last)) if !self.is_refused(&at) => Ok((
                last,
                now.saturating_add(LOOK_AGAIN).unwrap_or(Timestamp::MAX),
            )),
            (Err(why), _) => Err(why),
        }
    }

    fn is_refused(&self, at: &(String, Place)) -> bool {
        self.lock()
            .get(at)
            .is_some_and(|state| state.refused.is_some())
    }

    /// Asks, unless that was done, and waits for the answer. May be given up at any time: a request that was made is remembered, and
    /// one that was about to be made is cleared away like any other.
    async fn ask(
        &self,
        pod: &Pod,
        at: &(String, Place),
        asked: Option<Asked>,
        source: &PodCertificateProjection,
    ) -> Result<Credential, String> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let api: Api<PodCertificateRequest> = Api::namespaced(self.client.clone(), namespace);
        let asked = match asked {
            Some(asked) => asked,
            None => self.request(pod, &api, at, source).await?,
        };
        // Upstream's API server lets a node watch by its own name only.
        let fields = format!("metadata.name={},spec.nodeName={}", asked.name, self.node);
        let config = watcher::Config::default().fields(&fields);
        let mut changes = watcher(api, config).default_backoff().boxed();
        let mut is_there = false;
        while let Some(change) = changes.next().await {
            let request = match change {
                Ok(watcher::Event::InitApply(request) | watcher::Event::Apply(request)) => request,
                Ok(watcher::Event::Delete(_)) => return Err(self.lost(at)),
                Ok(watcher::Event::InitDone) if !is_there => return Err(self.lost(at)),
                Ok(watcher::Event::InitDone) => continue,
                Ok(watcher::Event::Init) => {
                    is_there = false;
                    continue;
                }
                Err(error) => {
                    tracing::debug!(%error, "Request for a Pod's certificate cannot be watched");
                    continue;
                }
            };
            is_there = true;
            let now = self.clock.now();
            match answer(request.status.as_ref(), now) {
                Answer::NotYet => {}
                Answer::Refused(why) => {
                    self.change(at, |state| {
                        state.asked = None;
                        state.refused = Some(why.clone());
                    });
                    return Err(why);
                }
                Answer::Issued(chain, wait) => {
                    let wait = wait.saturating_add(spread(at));
                    let credential = Credential {
                        key: asked.key,
                        chain,
                        renew_at: now.saturating_add(wait).unwrap_or(Timestamp::MAX),
                    };
                    self.change(at, |state| {
                        *state = State {
                            issued: Some(credential.clone()),
                            ..State::default()
                        };
                    });
                    return Ok(credential);
                }
            }
        }
        Err(NOT_YET.to_owned())
    }

    /// The request is gone, and nobody will answer it: the next attempt asks anew.
    fn lost(&self, at: &(String, Place)) -> String {
        self.change(at, |state| state.asked = None);
        "PodCertificateRequest appears to have been deleted".to_owned()
    }

    async fn request(
        &self,
        pod: &Pod,
        api: &Api<PodCertificateRequest>,
        at: &(String, Place),
        source: &PodCertificateProjection,
    ) -> Result<Asked, String> {
        let meta = &pod.metadata;
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let name = meta.name.clone().unwrap_or_default();
        let account = crate::pod::containers::spec(pod)
            .service_account_name
            .clone()
            .unwrap_or_else(|| "default".to_owned());
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let known = accounts.get(&account).await;
        let known = known.map_err(|error| format!("while fetching service account: {error}"))?;
        let nodes: Api<Node> = Api::all(self.client.clone());
        let node = nodes.get(&self.node).await;
        let node = node.map_err(|error| format!("while fetching the node: {error}"))?;
        let (key, stub) = new_key(&source.key_type)?;
        let owner = OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            name: name.clone(),
            uid: at.0.clone(),
            ..OwnerReference::default()
        };
        let request = PodCertificateRequest {
            metadata: ObjectMeta {
                generate_name: Some("req-".to_owned()),
                namespace: meta.namespace.clone(),
                owner_references: Some(vec![owner]),
                ..ObjectMeta::default()
            },
            spec: PodCertificateRequestSpec {
                signer_name: source.signer_name.clone(),
                pod_name: name,
                pod_uid: at.0.clone(),
                service_account_name: account,
                service_account_uid: known.metadata.uid.unwrap_or_default(),
                node_name: self.node.clone(),
                node_uid: node.metadata.uid.unwrap_or_default(),
                max_expiration_seconds: source.max_expiration_seconds,
                stub_pkc_s10_request: ByteString(stub),
                unverified_user_annotations: source.user_annotations.clone(),
                ..PodCertificateRequestSpec::default()
            },
            status: None,
        };
        let made = api.create(&PostParams::default(), &request).await;
        let made =
            made.map_err(|error| format!("while creating PodCertificateRequest: {error}"))?;
        let asked = Asked {
            name: made.metadata.name.unwrap_or_default(),
            key,
        };
        self.change(at, |state| state.asked = Some(asked.clone()));
        Ok(asked)
    }

    /// The credentials of a Pod, to be kept.
    #[must_use]
    pub fn of_pod(&self, pod_uid: &str) -> Vec<KeptCredential> {
        let known = self.lock();
        let mut kept: Vec<KeptCredential> = known
            .iter()
            .filter(|((uid, _), _)| uid == pod_uid)
            .filter_map(|((_, place), state)| {
                Some(KeptCredential {
                    place: place.clone(),
                    credential: state.issued.clone()?,
                })
            })
            .collect();
        kept.sort_by(|a, b| a.place.cmp(&b.place));
        kept
    }

    /// Takes over what was kept of a Pod; what was issued since then is newer.
    pub fn take_over(&self, pod_uid: &str, kept: &[KeptCredential]) {
        let mut known = self.lock();
        for one in kept {
            let state = known
                .entry((pod_uid.to_owned(), one.place.clone()))
                .or_default();
            state.issued.get_or_insert_with(|| one.credential.clone());
        }
    }

    /// A Pod is over: whoever waits for a signer of its certificates goes on without.
    pub fn give_up(&self, pod_uid: &str) {
        let known = self.lock();
        let of_pod = known.iter().filter(|((uid, _), _)| uid == pod_uid);
        of_pod.for_each(|(_, state)| state.over.cancel());
    }

    /// Forgets the credentials of a Pod that is gone.
    pub fn forget(&self, pod_uid: &str) {
        self.lock().retain(|(uid, _), _| uid != pod_uid);
    }
}

/// A share of the spread that is the same for a source at every start.
fn spread(at: &(String, Place)) -> SignedDuration {
    let text = format!("{} {} {}", at.0, at.1.volume, at.1.source);
    let sum = text.bytes().fold(0_i64, |sum, byte| {
        (sum * 31 + i64::from(byte)) % SPREAD_SECS
    });
    SignedDuration::from_secs(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn answers_table() {
        let at = |text: &str| -> Timestamp { text.parse().unwrap() };
        let now = at("2026-01-01T00:05:00Z");
        let condition = |kind: &str| json!([{"type": kind, "status": "True", "reason": "Why", "message": "so", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        let issued = |now: Timestamp| {
            let status = json!({"conditions": condition("Issued"), "certificateChain": "note\n-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----",
                "notBefore": "2026-01-01T00:00:00Z", "notAfter": "2026-01-01T02:00:00Z", "beginRefreshAt": "2026-01-01T01:00:00Z"});
            let status = serde_json::from_value(status).unwrap();
            answer(Some(&status), now)
        };
        let chain = "-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n".to_owned();
        let after = |minutes| Answer::Issued(chain.clone(), SignedDuration::from_mins(minutes));
        assert_eq!(issued(now), after(55));
        assert_eq!(
            issued(at("2026-01-02T00:00:00Z")),
            after(60),
            "a clock a day ahead"
        );
        assert_eq!(
            issued(at("2025-12-31T00:00:00Z")),
            after(60),
            "a clock a day behind"
        );
        let of = |status: Value| answer(Some(&serde_json::from_value(status).unwrap()), now);
        assert_eq!(of(json!({})), Answer::NotYet);
        assert_eq!(
            of(json!({"conditions": condition("Denied")})),
            Answer::Refused(
                "PodCertificateRequest was permanently denied: reason=\"Why\" message=\"so\""
                    .into()
            )
        );
        assert_eq!(answer(None, now), Answer::NotYet);
    }

    #[test]
    fn keys_are_of_the_kinds_that_can_be_made_here() {
        for kind in ["ED25519", "ECDSAP256", "ECDSAP384"] {
            let (key, stub) = new_key(kind).unwrap();
            assert!(key.starts_with("-----BEGIN PRIVATE KEY-----"), "{kind}");
            assert_eq!(stub[0], 0x30);
            assert_ne!(new_key(kind).unwrap().0, key, "each is another");
        }
        assert!(new_key("RSA4096").unwrap_err().ends_with("not RSA4096"));
    }

    #[test]
    fn renewals_are_spread() {
        let of = |uid: &str| spread(&(uid.to_owned(), Place::new("v", 0)));
        assert_eq!(of("a"), of("a"));
        assert_ne!(of("a"), of("b"));
        assert!(of("c") < SignedDuration::from_secs(SPREAD_SECS));
    }
}
