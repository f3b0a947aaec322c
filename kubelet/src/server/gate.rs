//! Who may ask the kubelet for what: certificates of the cluster's authority and bearer tokens say who, the API server says whether
//! (TokenReview and SubjectAccessReview, as upstream's webhook mode). Nobody is anonymous here.
//!
//! The API server's own identity and `system:masters` are let in without a question, so that logs and exec need no second request.
//! Answers are remembered for a while; an API server that is away lets in those whom it let in before.

use super::tls::Peer;
use cox_client::Clock;
use http::{HeaderMap, Method, StatusCode};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::Api;
use kube::api::PostParams;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// How long an answer counts, as upstream: who a token is, a yes, a no.
const TOKEN_HOLDS: SignedDuration = SignedDuration::from_mins(2);
const YES_HOLDS: SignedDuration = SignedDuration::from_mins(5);
const NO_HOLDS: SignedDuration = SignedDuration::from_secs(30);
/// Remembered answers; beyond that the memory starts anew.
const REMEMBERED_MAX: usize = 1024;

/// A request that gets no answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused(pub(super) StatusCode, pub(super) String);

/// Whoever asks, before the API server said who that is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Shown {
    Certificate(Peer),
    Token(String),
}

/// What may be asked for, in the words of upstream's authorizer: any of these subresources of the node will do.
fn subresources(path: &str) -> &'static [&'static str] {
    let first = path.trim_start_matches('/').split('/').next();
    match first.unwrap_or_default() {
        "stats" => &["stats"],
        "metrics" => &["metrics"],
        "logs" => &["log"],
        "checkpoint" => &["checkpoint"],
        "healthz" => &["healthz", "proxy"],
        "configz" => &["configz", "proxy"],
        "pods" | "runningpods" => &["pods", "proxy"],
        _ => &["proxy"],
    }
}

fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    }
}

fn shown(peer: Option<&Peer>, headers: &HeaderMap) -> Option<Shown> {
    if let Some(peer) = peer {
        return Some(Shown::Certificate(peer.clone()));
    }
    let value = headers.get(http::header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty())
        .then(|| Shown::Token(token.to_owned()))
}

/// Answers that were given before, with the time until which they count.
#[derive(Debug, Default)]
struct Memory {
    users: BTreeMap<[u8; 32], (Timestamp, UserInfo)>,
    answers: BTreeMap<String, (Timestamp, bool)>,
}

/// The gate of one kubelet.
pub(super) struct Gate {
    client: kube::Client,
    clock: Arc<dyn Clock>,
    node: String,
    memory: Mutex<Memory>,
}

impl Gate {
    pub(super) fn new(client: kube::Client, clock: Arc<dyn Clock>, node: &str) -> Self {
        Self {
            client,
            clock,
            node: node.to_owned(),
            memory: Mutex::default(),
        }
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory
            .lock()
            .expect("no panic happens while this lock is held")
    }

    /// Lets a request in, or says why not.
    pub(super) async fn admit(
        &self,
        peer: Option<&Peer>,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<(), Refused> {
        let nobody = || Refused(StatusCode::UNAUTHORIZED, "Unauthorized".to_owned());
        let user = match shown(peer, headers).ok_or_else(nobody)? {
            Shown::Certificate(peer) if peer.may_ask() => return Ok(()),
            Shown::Certificate(peer) => UserInfo {
                username: Some(peer.user),
                groups: Some(
                    peer.groups
                        .into_iter()
                        .chain(["system:authenticated".to_owned()])
                        .collect(),
                ),
                ..UserInfo::default()
            },
            Shown::Token(token) => self.user_of(&token).await?.ok_or_else(nobody)?,
        };
        let verb = verb(method);
        let wanted = subresources(path);
        for subresource in wanted {
            if self.may(&user, verb, subresource).await? {
                return Ok(());
            }
        }
        Err(Refused(
            StatusCode::FORBIDDEN,
            format!(
                "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{}])",
                user.username.as_deref().unwrap_or_default(),
                wanted.join(" ")
            ),
        ))
    }

    /// Whose token it is; `None`: nobody's.
    async fn user_of(&self, token: &str) -> Result<Option<UserInfo>, Refused> {
        let now = self.clock.now();
        let digest: [u8; 32] = Sha256::digest(token).into();
        let known = self.memory().users.get(&digest).cloned();
        if let Some((_, user)) = known.as_ref().filter(|(until, _)| now < *until) {
            return Ok(Some(user.clone()));
        }
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.to_owned(),
                ..TokenReviewSpec::default()
            },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let status = match api.create(&PostParams::default(), &review).await {
            Ok(answer) => answer.status.unwrap_or_default(),
            Err(error) => {
                return known
                    .map(|(_, user)| Some(user))
                    .ok_or_else(|| away(&error));
            }
        };
        let user = status.user.filter(|_| status.authenticated == Some(true));
        let mut memory = self.memory();
        if memory.users.len() >= REMEMBERED_MAX {
            memory.users.clear();
        }
        match &user {
            Some(user) => {
                let until = now.saturating_add(TOKEN_HOLDS).unwrap_or(now);
                memory.users.insert(digest, (until, user.clone()));
            }
            None => drop(memory.users.remove(&digest)),
        }
        Ok(user)
    }

    async fn may(&self, user: &UserInfo, verb: &str, subresource: &str) -> Result<bool, Refused> {
        let now = self.clock.now();
        let groups = user.groups.clone().unwrap_or_default();
        let name = user.username.clone().unwrap_or_default();
        let key = format!("{name}\0{}\0{verb}\0{subresource}", groups.join("\0"));
        let known = self.memory().answers.get(&key).copied();
        if let Some((_, yes)) = known.filter(|(until, _)| now < *until) {
            return Ok(yes);
        }
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(name),
                groups: Some(groups),
                uid: user.uid.clone(),
                extra: user.extra.clone(),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.to_owned()),
                    version: Some("v1".to_owned()),
                    resource: Some("nodes".to_owned()),
                    subresource: Some(subresource.to_owned()),
                    name: Some(self.node.clone()),
                    ..ResourceAttributes::default()
                }),
                non_resource_attributes: None,
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let yes = match api.create(&PostParams::default(), &review).await {
            Ok(answer) => answer.status.is_some_and(|status| status.allowed),
            Err(error) => return known.map(|(_, yes)| yes).ok_or_else(|| away(&error)),
        };
        let holds = if yes { YES_HOLDS } else { NO_HOLDS };
        let mut memory = self.memory();
        if memory.answers.len() >= REMEMBERED_MAX {
            memory.answers.clear();
        }
        let until = now.saturating_add(holds).unwrap_or(now);
        memory.answers.insert(key, (until, yes));
        Ok(yes)
    }
}

fn away(error: &kube::Error) -> Refused {
    tracing::debug!(%error, "The API server did not say who may ask");
    Refused(
        StatusCode::INTERNAL_SERVER_ERROR,
        "the API server does not say whether this is allowed".to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use cox_client::SystemClock;
    use http_body_util::{BodyExt, Full};
    use serde_json::{Value, json};
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    #[test]
    fn paths_are_subresources_of_the_node() {
        let cases = [
            ("/stats/summary", "stats"),
            ("/metrics/resource", "metrics"),
            ("/metrics", "metrics"),
            ("/logs/syslog", "log"),
            ("/pods", "pods proxy"),
            ("/configz", "configz proxy"),
            ("/healthz", "healthz proxy"),
            ("/exec/ns/p/c", "proxy"),
            ("/containerLogs/ns/p/c", "proxy"),
            ("/podsx", "proxy"),
        ];
        for (path, expected) in cases {
            assert_eq!(subresources(path).join(" "), expected, "{path}");
        }
    }

    /// An API server that knows the token `good` as `alice`, who may see metrics.
    #[derive(Default)]
    struct Server {
        calls: AtomicUsize,
        is_away: AtomicBool,
    }

    impl Server {
        fn gate(self: &Arc<Self>) -> Gate {
            let server = self.clone();
            let client = cox_client::in_process(tower::service_fn(
                move |request: http::Request<kube::client::Body>| {
                    let server = server.clone();
                    async move { server.answer(request).await }
                },
            ));
            Gate::new(client, Arc::new(SystemClock), "n")
        }

        async fn answer(
            &self,
            request: http::Request<kube::client::Body>,
        ) -> Result<http::Response<Full<Bytes>>, std::io::Error> {
            self.calls.fetch_add(1, Ordering::Relaxed);
            if self.is_away.load(Ordering::Relaxed) {
                return Err(std::io::ErrorKind::ConnectionRefused.into());
            }
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let mut review: Value = serde_json::from_slice(&body).unwrap();
            let spec = review["spec"].clone();
            review["status"] = if review["kind"] == "TokenReview" {
                json!({"authenticated": spec["token"] == "good", "user": {"username": "alice", "groups": ["g"]}})
            } else {
                assert_eq!(
                    (&spec["user"], &spec["groups"]),
                    (&json!("alice"), &json!(["g"]))
                );
                let asked = &spec["resourceAttributes"];
                assert_eq!(
                    (&asked["resource"], &asked["name"]),
                    (&json!("nodes"), &json!("n"))
                );
                json!({"allowed": asked["subresource"] == "metrics"})
            };
            Ok(http::Response::new(Full::new(Bytes::from(
                review.to_string(),
            ))))
        }
    }

    fn bearer(token: &str) -> HeaderMap {
        let value = http::HeaderValue::try_from(format!("Bearer {token}")).unwrap();
        HeaderMap::from_iter([(http::header::AUTHORIZATION, value)])
    }

    #[tokio::test]
    async fn nobody_gets_in_unasked() {
        let server = Arc::new(Server::default());
        let gate = server.gate();
        let admit = |path: &'static str, headers: HeaderMap| {
            let gate = &gate;
            async move {
                let admitted = gate.admit(None, &Method::GET, path, &headers).await;
                admitted.map_err(|Refused(status, _)| status.as_u16())
            }
        };
        assert_eq!(admit("/healthz", HeaderMap::new()).await, Err(401));
        assert_eq!(admit("/metrics", bearer("bad")).await, Err(401));
        assert_eq!(admit("/metrics", bearer("good")).await, Ok(()));
        assert_eq!(admit("/pods", bearer("good")).await, Err(403));
        let calls = server.calls.load(Ordering::Relaxed);
        assert_eq!(admit("/metrics", bearer("good")).await, Ok(()));
        assert_eq!(
            server.calls.load(Ordering::Relaxed),
            calls,
            "the answers are remembered"
        );
        server.is_away.store(true, Ordering::Relaxed);
        assert_eq!(
            admit("/metrics", bearer("other")).await,
            Err(500),
            "who was never seen does not get in while nobody can be asked"
        );
    }

    #[tokio::test]
    async fn the_api_server_needs_no_question() {
        let server = Arc::new(Server::default());
        let peer = Peer {
            user: "kube-apiserver-kubelet-client".into(),
            groups: Vec::new(),
        };
        let admitted = server
            .gate()
            .admit(
                Some(&peer),
                &Method::GET,
                "/exec/a/b/c",
                &HeaderMap::default(),
            )
            .await;
        assert_eq!(
            (admitted, server.calls.load(Ordering::Relaxed)),
            (Ok(()), 0)
        );
    }
}
