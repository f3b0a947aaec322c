//! Certificates of Pods: asked for by a real kubelet at a real API server, and signed by a signer of the test.

#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "tests are stories, and fail by panicking"
)]

mod support;

use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1beta1::PodCertificateRequest;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use rcgen::{CertificateParams, CertificateSigningRequestParams, Issuer, KeyPair, PublicKeyData};
use serde_json::{Value, json};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use support::{Cluster, NODE, eventually, is_ready, one, phase};

/// Shorter than the kubelet's own for a signer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A clock that is ahead by so many seconds.
#[derive(Debug, Default)]
struct Ahead(AtomicI64);

impl cox_client::Clock for Ahead {
    fn now(&self) -> Timestamp {
        Timestamp::now() + SignedDuration::from_secs(self.0.load(Ordering::Relaxed))
    }
}

/// What an authority of the test says to a request.
fn signed(issuer: &Issuer<'_, KeyPair>, request: &PodCertificateRequest) -> Value {
    let now = Timestamp::now();
    let begins = Timestamp::from_second(now.as_second()).unwrap();
    let ends = begins + SignedDuration::from_hours(2);
    let stub = request.spec.stub_pkc_s10_request.0.clone();
    let stub = rustls::pki_types::CertificateSigningRequestDer::from(stub);
    let mut params = CertificateSigningRequestParams::from_der(&stub).unwrap();
    params.params.not_before = time(begins);
    params.params.not_after = time(ends);
    let certificate = params.signed_by(issuer).unwrap();
    json!({"conditions": [condition("Issued", "Signed")], "certificateChain": certificate.pem(), "notBefore": begins.to_string(),
        "notAfter": ends.to_string(), "beginRefreshAt": (begins + SignedDuration::from_hours(1)).to_string()})
}

fn time(at: Timestamp) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(at.as_second()).unwrap()
}

fn condition(kind: &str, reason: &str) -> Value {
    json!({"type": kind, "status": "True", "reason": reason, "message": "of the test", "lastTransitionTime": Timestamp::now().to_string()})
}

/// Answers all requests of a signer: signs them, or says no in that word.
fn signer(
    cluster: &Cluster,
    name: &'static str,
    no: Option<&'static str>,
) -> tokio::task::JoinHandle<()> {
    let client = cluster.admin.clone();
    tokio::spawn(async move {
        let issuer = Issuer::new(CertificateParams::default(), KeyPair::generate().unwrap());
        let all: Api<PodCertificateRequest> = Api::all(client.clone());
        let requests = watcher(all, watcher::Config::default()).applied_objects();
        let mut requests = requests.boxed();
        while let Some(Ok(request)) = requests.next().await {
            let is_new = request
                .status
                .as_ref()
                .is_none_or(|status| status.conditions.is_none());
            if request.spec.signer_name != name || !is_new {
                continue;
            }
            let status = match no {
                Some(word) => json!({"conditions": [condition(word, "Stranger")]}),
                None => signed(&issuer, &request),
            };
            let own: Api<PodCertificateRequest> = Api::namespaced(client.clone(), "default");
            let name = request.metadata.name.clone().unwrap();
            let patch = Patch::Merge(json!({ "status": status }));
            own.patch_status(&name, &PatchParams::default(), &patch)
                .await
                .unwrap();
        }
    })
}

fn with_certificate(signer: &str) -> Value {
    let mut spec = one("stay");
    spec["volumes"] = json!([{"name": "v", "projected": {"sources": [
        {"configMap": {"name": "m"}},
        {"podCertificate": {"signerName": signer, "keyType": "ECDSAP256", "maxExpirationSeconds": 7200, "credentialBundlePath": "both.pem", "keyPath": "key.pem",
            "certificateChainPath": "chain.pem", "userAnnotations": {"example.com/team": "blue"}}}]}}]);
    spec["securityContext"] = json!({"runAsUser": 1000});
    spec["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    spec
}

async fn make_map(cluster: &Cluster) {
    let maps: Api<ConfigMap> = Api::namespaced(cluster.admin.clone(), "default");
    let map = serde_json::from_value(json!({"metadata": {"name": "m"}, "data": {"word": "a"}}));
    maps.create(&PostParams::default(), &map.unwrap())
        .await
        .unwrap();
}

fn file(cluster: &Cluster, pod: &Pod, name: &str) -> PathBuf {
    let volumes = cluster.volumes_in_memory(pod);
    volumes.join("kubernetes.io~projected/v").join(name)
}

/// Bundle, key and chain.
fn shown(cluster: &Cluster, pod: &Pod) -> [String; 3] {
    ["both.pem", "key.pem", "chain.pem"]
        .map(|name| std::fs::read_to_string(file(cluster, pod, name)).unwrap_or_default())
}

async fn requests(cluster: &Cluster) -> Vec<PodCertificateRequest> {
    let all: Api<PodCertificateRequest> = Api::namespaced(cluster.admin.clone(), "default");
    all.list(&ListParams::default()).await.unwrap().items
}

/// Changes the config map that is shown beside the certificate, and waits until the volume shows that.
async fn touch(cluster: &Cluster, pod: &Pod, word: &str) {
    let maps: Api<ConfigMap> = Api::namespaced(cluster.admin.clone(), "default");
    let patch = Patch::Merge(json!({"data": {"word": word}}));
    maps.patch("m", &PatchParams::default(), &patch)
        .await
        .unwrap();
    let file = file(cluster, pod, "word");
    eventually("the change is there", || {
        std::fs::read_to_string(&file).unwrap_or_default() == word
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_shows_a_key_and_its_certificate_renews_them_and_has_them_after_a_power_cut() {
    let mut cluster = Cluster::start().await;
    make_map(&cluster).await;
    let authority = signer(&cluster, "example.com/pods", None);
    let clock = Arc::new(Ahead::default());
    let node = cluster.kubelet_by(clock.clone(), |_| {});
    cluster
        .create("p", with_certificate("example.com/pods"))
        .await;
    let pod = cluster.until("p", "ready", is_ready).await;
    let [both, key, chain] = shown(&cluster, &pod);
    assert_eq!(both, format!("{key}{chain}"));
    // The certificate is for the key that is shown.
    let own = KeyPair::from_pem(&key).unwrap();
    let (_, block) = x509_parser::pem::parse_x509_pem(chain.as_bytes()).unwrap();
    let certificate = block.parse_x509().unwrap();
    assert_eq!(certificate.public_key().raw, own.subject_public_key_info());
    // As a token's: for the Pod's user alone, where it names one.
    let mode = |name: &str| {
        let known = std::fs::metadata(file(&cluster, &pod, name)).unwrap();
        (known.permissions().mode() & 0o777, known.uid())
    };
    let is_root = mode("word").1 == 0;
    assert_eq!(mode("key.pem").0, 0o600);
    assert_eq!(mode("both.pem").0, 0o600);
    assert!(!is_root || mode("key.pem").1 == 1000);
    let asked = requests(&cluster).await;
    assert_eq!(asked.len(), 1);
    let (spec, uid) = (&asked[0].spec, pod.metadata.uid.clone().unwrap());
    assert_eq!((spec.node_name.as_str(), &spec.pod_uid), (NODE, &uid));
    assert_eq!(spec.max_expiration_seconds, Some(7200));
    assert_eq!(
        spec.unverified_user_annotations.as_ref().unwrap()["example.com/team"],
        "blue"
    );

    // Nothing is asked while it is young; a refresh of the volume changes neither.
    touch(&cluster, &pod, "b").await;
    assert_eq!(shown(&cluster, &pod)[1], key);
    clock.0.store(3600 + 400, Ordering::Relaxed);
    touch(&cluster, &pod, "c").await;
    let [both, renewed, chain] = shown(&cluster, &pod);
    assert_ne!(renewed, key, "another key for another certificate");
    assert_eq!(both, format!("{renewed}{chain}"));
    assert_eq!(requests(&cluster).await.len(), 2);

    // Kept sealed, and shown again without an API server and without a signer.
    let file = cluster.dir.path().join("kubelet/kept").join(&uid);
    eventually("the Pod is kept", || file.exists()).await;
    node.quit().await;
    let node = cluster.kubelet_by(clock.clone(), |_| {});
    touch(&cluster, &pod, "d").await;
    assert_eq!(shown(&cluster, &pod)[1], renewed, "over a restart");
    assert_eq!(requests(&cluster).await.len(), 2);
    node.quit().await;
    let line = renewed.lines().nth(1).unwrap();
    let sealed = std::fs::read(&file).unwrap();
    assert!(
        !sealed
            .windows(line.len())
            .any(|part| part == line.as_bytes())
    );
    authority.abort();
    cluster.cut_power();
    cluster.set_link(false);
    let node = cluster.kubelet_by(clock, |_| {});
    eventually("it runs again", || cluster.runtime.running() == ["a"]).await;
    assert_eq!(shown(&cluster, &pod), [both, renewed, chain]);
    node.quit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signer_that_says_no_is_told_and_asked_once() {
    let cluster = Cluster::start().await;
    make_map(&cluster).await;
    let signers = [
        signer(&cluster, "example.com/denies", Some("Denied")),
        signer(&cluster, "example.com/fails", Some("Failed")),
    ];
    let _node = cluster.kubelet();
    for (name, how) in [("denies", "denied"), ("fails", "failed")] {
        let spec = with_certificate(&format!("example.com/{name}"));
        cluster.create(name, spec).await;
        let words = format!(
            "PodCertificateRequest was permanently {how}: reason=\"Stranger\" message=\"of the test\""
        );
        cluster.until_told("FailedMount", &words).await;
        let pod = cluster.until(name, "there", |_| true).await;
        assert_eq!(phase(&pod), "Pending");
    }
    assert!(cluster.runtime.running().is_empty());
    assert_eq!(requests(&cluster).await.len(), 2);
    signers.iter().for_each(|signer| signer.abort());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_waits_for_its_signer_but_not_when_it_is_deleted() {
    let cluster = Cluster::start().await;
    make_map(&cluster).await;
    let _node = cluster.kubelet();
    for name in ["patient", "deleted"] {
        let spec = with_certificate("example.com/late");
        cluster.create(name, spec).await;
    }
    let asked = async {
        while requests(&cluster).await.len() < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, asked)
        .await
        .expect("both ask");
    let gone = async {
        cluster.delete("deleted").await;
        cluster.until_gone("deleted").await;
    };
    tokio::time::timeout(PATIENCE, gone)
        .await
        .expect("it does not wait on");
    let authority = signer(&cluster, "example.com/late", None);
    cluster.until("patient", "ready", is_ready).await;
    authority.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_not_made_here_keeps_a_pod_from_the_node() {
    let cluster = Cluster::start().await;
    let _node = cluster.kubelet();
    let mut large = with_certificate("example.com/any");
    large["volumes"][0]["projected"]["sources"][1]["podCertificate"]["keyType"] = json!("RSA4096");
    cluster.create("p", large).await;
    let pod = cluster
        .until("p", "refused", |pod| phase(pod) == "Failed")
        .await;
    let status = pod.status.unwrap();
    assert_eq!(status.reason.as_deref(), Some("PodFeatureUnsupported"));
    let words =
        "keys of Pods' certificates of the kinds ED25519, ECDSAP256 and ECDSAP384, not RSA4096";
    assert!(status.message.unwrap().contains(words));
    assert!(requests(&cluster).await.is_empty());
}
