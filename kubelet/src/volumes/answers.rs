//! What the API server said of the objects that the volumes of Pods are made of: claims and persistent volumes, and for a driver
//! its CSIDriver, the attachment and the secrets that a volume names; and the certificates of cluster trust bundles.
//!
//! Each answer is remembered with the Pod that it was for, is kept over a power cut with it, and stands in for the API server
//! while that does not answer. Whenever it does, its word counts, and replaces what was known: an object that is gone is not
//! used again. What it says of who may read what (401, 403) replaces nothing; nor does an error of its own.

use crate::keep::Offline;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// How long an API server may take to answer where there is something that stands in for it.
const PATIENCE: Duration = Duration::from_secs(5);

/// An answer as it is kept over a restart of the node.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct KeptAnswer {
    /// Where the API server has the object, or answers the question.
    path: String,
    /// Without the API server's bookkeeping. `None`: there is none of this name.
    object: Option<Value>,
}

impl std::fmt::Debug for KeptAnswer {
    /// Without the object: it may be a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeptAnswer")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// An object, and where the word comes from.
#[derive(Clone, Debug)]
pub(crate) struct Answer<K> {
    /// `None`: there is none of this name.
    pub(crate) object: Option<K>,
    /// The API server did not answer: this is what it said before.
    pub(crate) is_kept: bool,
}

/// Objects by their paths.
type OfPod = BTreeMap<String, Option<Value>>;

/// The answers for all Pods of the node.
pub(crate) struct Answers {
    /// For what nothing can stand in: writes, and lists.
    pub(crate) client: kube::Client,
    offline: Offline,
    known: Mutex<HashMap<String, OfPod>>,
}

impl std::fmt::Debug for Answers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answers").finish_non_exhaustive()
    }
}

impl Answers {
    /// Nothing was asked yet.
    pub(crate) fn new(client: kube::Client, offline: Offline) -> Self {
        Self {
            client,
            offline,
            known: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, OfPod>> {
        self.known
            .lock()
            .expect("no panic happens while this lock is held")
    }

    /// An object that a volume of the Pod needs.
    pub(crate) async fn get<K>(
        &self,
        pod: &Pod,
        api: &Api<K>,
        name: &str,
    ) -> Result<Answer<K>, kube::Error>
    where
        K: kube::Resource + Clone + std::fmt::Debug + Serialize + DeserializeOwned,
    {
        self.ask(pod, path(api, name), api.get_opt(name)).await
    }

    /// The answer to any question that a path stands for.
    pub(crate) async fn ask<K>(
        &self,
        pod: &Pod,
        path: String,
        asked: impl Future<Output = Result<Option<K>, kube::Error>>,
    ) -> Result<Answer<K>, kube::Error>
    where
        K: Serialize + DeserializeOwned,
    {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let known = self.known(uid, &path);
        if self.offline.is_set()
            && let Some(object) = known
        {
            return Ok(kept(object));
        }
        let answer = match &known {
            Some(_) => tokio::time::timeout(PATIENCE, asked).await.ok(),
            None => Some(asked.await),
        };
        match (answer, known) {
            (Some(Ok(object)), _) => {
                let trimmed = object.as_ref().and_then(trimmed);
                // What cannot be kept whole is not taken for an object that is gone.
                if object.is_none() || trimmed.is_some() {
                    let mut known = self.lock();
                    known
                        .entry(uid.to_owned())
                        .or_default()
                        .insert(path, trimmed);
                }
                Ok(Answer {
                    object,
                    is_kept: false,
                })
            }
            (Some(Err(error)), Some(_)) if cox_client::is_answer(&error) => Err(error),
            (_, Some(object)) => Ok(kept(object)),
            (Some(Err(error)), None) => Err(error),
            (None, None) => unreachable!("only with something known there is a limit to waiting"),
        }
    }

    /// What is known of an object, if it can be read; `Some(None)`: there is none.
    fn known<K: DeserializeOwned>(&self, uid: &str, path: &str) -> Option<Option<K>> {
        match self.lock().get(uid)?.get(path)?.clone() {
            Some(object) => serde_json::from_value(object).ok().map(Some),
            None => Some(None),
        }
    }

    /// An answer must not stand in for later ones.
    pub(crate) fn forget_one<K: kube::Resource>(&self, pod: &Pod, api: &Api<K>, name: &str) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        if let Some(known) = self.lock().get_mut(uid) {
            known.remove(&path(api, name));
        }
    }

    /// The answers for a Pod, to be kept.
    pub(crate) fn of_pod(&self, uid: &str) -> Vec<KeptAnswer> {
        let known = self.lock();
        let known = known.get(uid).into_iter().flatten();
        known
            .map(|(path, object)| KeptAnswer {
                path: path.clone(),
                object: object.clone(),
            })
            .collect()
    }

    /// Takes over what was kept of a Pod; what was heard since then is newer.
    pub(crate) fn take_over(&self, uid: &str, kept: &[KeptAnswer]) {
        if kept.is_empty() {
            return;
        }
        let mut known = self.lock();
        let known = known.entry(uid.to_owned()).or_default();
        for answer in kept {
            known
                .entry(answer.path.clone())
                .or_insert_with(|| answer.object.clone());
        }
    }

    /// Forgets the answers for a Pod that is gone.
    pub(crate) fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }
}

fn path<K: kube::Resource>(api: &Api<K>, name: &str) -> String {
    format!("{}/{name}", api.resource_url())
}

fn kept<K>(object: Option<K>) -> Answer<K> {
    Answer {
        object,
        is_kept: true,
    }
}

/// An object without what changes although the object does not.
fn trimmed<K: Serialize>(object: &K) -> Option<Value> {
    let mut object = serde_json::to_value(object).ok()?;
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("resourceVersion");
        meta.remove("managedFields");
    }
    Some(object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Secret;
    use serde_json::json;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU16, Ordering};

    /// An API server that says the same to everything: a code and a body, or nothing at all (0).
    #[derive(Clone, Default)]
    struct Says(Arc<AtomicU16>);

    impl Says {
        fn client(&self) -> kube::Client {
            let says = self.0.clone();
            cox_client::in_process(tower::service_fn(
                move |_: http::Request<kube::client::Body>| {
                    let code = says.load(Ordering::Relaxed);
                    async move {
                        let body = match code {
                            0 => {
                                return Err(std::io::Error::from(
                                    std::io::ErrorKind::ConnectionRefused,
                                ));
                            }
                            200 => {
                                json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "resourceVersion": "7"}, "stringData": {"k": "v"}})
                            }
                            code => {
                                let reason = if code == 404 { "NotFound" } else { "" };
                                json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": ""})
                            }
                        };
                        let body = kube::client::Body::from(body.to_string().into_bytes());
                        let answer = http::Response::builder().status(code).body(body);
                        Ok(answer.expect("code and body are plain"))
                    }
                },
            ))
        }

        fn set(&self, code: u16) {
            self.0.store(code, Ordering::Relaxed);
        }
    }

    fn pod() -> Pod {
        serde_json::from_value(json!({"metadata": {"uid": "u"}})).unwrap()
    }

    async fn ask(answers: &Answers) -> Result<(bool, bool), kube::Error> {
        let api: Api<Secret> = Api::namespaced(answers.client.clone(), "n");
        let answer = answers.get(&pod(), &api, "s").await?;
        Ok((answer.object.is_some(), answer.is_kept))
    }

    #[tokio::test]
    async fn what_was_said_stands_in_only_for_an_api_server_that_does_not_answer() {
        let says = Says::default();
        let answers = Answers::new(says.client(), Offline::default());
        assert!(ask(&answers).await.is_err(), "nothing is known");
        says.set(200);
        assert_eq!(ask(&answers).await.unwrap(), (true, false));
        // Code, then whether there is an object and whether that is the former word; `None`: an error.
        let cases = [
            ("away", 0, Some((true, true))),
            ("in trouble", 503, Some((true, true))),
            ("too busy", 429, Some((true, true))),
            ("a refusal is a word", 403, None),
            ("and replaces nothing", 0, Some((true, true))),
            ("gone", 404, Some((false, false))),
            ("gone stays gone", 0, Some((false, true))),
            ("back", 200, Some((true, false))),
        ];
        for (name, code, expected) in cases {
            says.set(code);
            assert_eq!(ask(&answers).await.ok(), expected, "case: {name}");
        }
    }

    #[tokio::test]
    async fn what_is_kept_of_a_pod_is_taken_over_and_goes_with_it() {
        let says = Says::default();
        says.set(200);
        let answers = Answers::new(says.client(), Offline::default());
        ask(&answers).await.unwrap();
        let kept = answers.of_pod("u");
        assert_eq!(kept[0].path, "/api/v1/namespaces/n/secrets/s");
        let object = kept[0].object.clone().unwrap();
        assert!(object["metadata"].get("resourceVersion").is_none());
        assert!(!format!("{kept:?}").contains("stringData"));
        let offline = Offline::default();
        let later = Answers::new(says.client(), offline.clone());
        later.take_over("u", &kept);
        assert_eq!(later.of_pod("u"), kept, "nothing new to be kept");
        offline.set(true);
        assert_eq!(ask(&later).await.unwrap(), (true, true), "nobody is asked");
        offline.set(false);
        assert_eq!(ask(&later).await.unwrap(), (true, false));
        later.forget("u");
        assert!(later.of_pod("u").is_empty());
        says.set(0);
        assert!(ask(&later).await.is_err());
    }
}
