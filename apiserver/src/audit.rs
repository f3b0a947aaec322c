//! The audit log: who asked for what, and what was answered, by upstream's audit policy.
//!
//! A policy's first rule that means a request says how much is written of it, and at which stages: nothing, who and what
//! (Metadata), what was sent (Request), what was answered too (RequestResponse). Events are upstream's, one JSON object a line.
//! Requests never wait for the disk: a thread writes, and what does not fit into its queue is counted and said.

mod event;
mod log;
mod policy;

use std::borrow::Cow;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use cox_api::codec;
use cox_api::schema::Schema;
use http::Response;
use http_body::{Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use serde_json::Value;

use crate::auth::Attributes;
use crate::body::{Body, BodyError};
use crate::registry::{Clock, Entry};
use event::{Answer, Head};
use log::Log;
pub use log::Rotation;
pub use policy::PolicyError;
use policy::{Level, Policy, Stage, Wanted};

/// Where the log goes and what is in it.
#[derive(Clone, Debug)]
pub struct Config {
    /// Upstream's audit policy, a file.
    pub policy_file: PathBuf,
    /// The log; `-` is standard output.
    pub path: PathBuf,
    /// When a new file is begun, and how many are kept.
    pub rotation: Rotation,
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The policy cannot be used.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The log cannot be written.
    #[error("the audit log {} cannot be written", .path.display())]
    Log {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A policy and a log.
#[derive(Debug)]
pub struct Audit {
    policy: Policy,
    log: Log,
}

/// What a request tells about itself before it is answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) attributes: &'a Attributes<'a>,
    /// Who sent it, if it acts for somebody else.
    pub(crate) impersonator: Option<&'a crate::auth::UserInfo>,
    pub(crate) uri: &'a str,
    pub(crate) user_agent: &'a str,
    pub(crate) source: Option<std::net::IpAddr>,
    /// What the client calls it.
    pub(crate) audit_id: Option<&'a str>,
}

/// One request on its way.
pub(crate) struct Trail {
    audit: Arc<Audit>,
    clock: Clock,
    wanted: Wanted,
    head: Head,
}

impl std::fmt::Debug for Trail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Trail({})", self.head.id())
    }
}

impl Audit {
    /// Reads the policy and opens the log.
    ///
    /// # Errors
    /// [`AuditError`] says which of both is wrong.
    pub fn open(config: &Config) -> Result<Self, AuditError> {
        let policy = Policy::load(&config.policy_file)?;
        let log = Log::open(&config.path, config.rotation).map_err(|source| AuditError::Log {
            path: config.path.clone(),
            source,
        })?;
        Ok(Self { policy, log })
    }

    /// Begins to follow a request, if the policy wants it.
    pub(crate) fn begin(self: &Arc<Self>, asked: &Asked<'_>, clock: &Clock) -> Option<Trail> {
        let wanted = self.policy.wanted(asked.attributes)?;
        let trail = Trail {
            audit: Arc::clone(self),
            head: Head::new(asked, wanted.level, clock()),
            clock: Arc::clone(clock),
            wanted,
        };
        trail.write(Stage::RequestReceived, &Answer::default());
        Some(trail)
    }

    /// Waits until everything so far is in the log.
    pub fn flush(&self) {
        self.log.flush();
    }
}

impl Trail {
    /// For the answer's `Audit-Id`.
    pub(crate) fn id(&self) -> &str {
        self.head.id()
    }

    /// What authorization said.
    pub(crate) fn decided(&mut self, allowed: bool, reason: &str) {
        self.head.decided(allowed, reason);
    }

    /// What the client sent.
    pub(crate) fn sent(&mut self, schema: &Schema, entry: Option<&Entry>, body: &Bytes) {
        let whole = self.wanted.level >= Level::Request;
        // What is created has its name in itself alone.
        if body.is_empty() || !whole && self.head.is_named() {
            return;
        }
        if !whole && let Ok(object) = serde_json::from_slice::<Named<'_>>(body) {
            return self.head.name(&object.metadata.name);
        }
        let mut object = decoded(schema, entry, body);
        if let Some(name) = object["metadata"]["name"].as_str() {
            self.head.name(name);
        }
        if !whole {
            return;
        }
        if self.wanted.omit_managed_fields {
            without_managed_fields(&mut object);
        }
        self.head.sent(object);
    }

    /// The answer is ready. A stream goes on: it is followed to its end.
    pub(crate) fn answered(self, response: Response<Body>) -> Response<Body> {
        let code = response.status().as_u16();
        let (mut parts, body) = response.into_parts();
        if let Ok(id) = http::HeaderValue::from_str(self.id()) {
            parts.headers.insert("audit-id", id);
        }
        let body = match body {
            Body::Driven(_) | Body::Proxied(_) => {
                self.write(Stage::ResponseStarted, &Answer::code(code));
                let followed = Followed {
                    inner: body,
                    code,
                    trail: Some(self),
                };
                Body::Proxied(UnsyncBoxBody::new(followed))
            }
            body => {
                let mut answer = Answer::code(code);
                let failed = code >= 400;
                if failed || self.wanted.level >= Level::RequestResponse {
                    let object = body.json();
                    let mut object = object.unwrap_or_default();
                    answer.explain(&object);
                    if self.wanted.omit_managed_fields {
                        without_managed_fields(&mut object);
                    }
                    if self.wanted.level >= Level::RequestResponse {
                        answer.object = Some(object);
                    }
                }
                self.write(Stage::ResponseComplete, &answer);
                body
            }
        };
        Response::from_parts(parts, body)
    }

    fn write(&self, stage: Stage, answer: &Answer) {
        if self.wanted.omits(stage) {
            return;
        }
        let line = self.head.event(stage, answer, (self.clock)());
        self.audit.log.write(line);
    }
}

impl Drop for Trail {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.write(Stage::Panic, &Answer::code(500));
        }
    }
}

/// A stream whose end is written down.
struct Followed {
    inner: Body,
    code: u16,
    trail: Option<Trail>,
}

impl http_body::Body for Followed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        if let Some(trail) = self.trail.take() {
            trail.write(Stage::ResponseComplete, &Answer::code(self.code));
        }
    }
}

/// As much of a body in JSON as tells its name.
#[derive(serde::Deserialize)]
struct Named<'a> {
    #[serde(borrow)]
    metadata: NamedMetadata<'a>,
}

#[derive(serde::Deserialize)]
struct NamedMetadata<'a> {
    #[serde(borrow, default)]
    name: Cow<'a, str>,
}

/// A body in any of the three encodings; what is none of them is told as text.
fn decoded(schema: &Schema, entry: Option<&Entry>, body: &Bytes) -> Value {
    if let Ok(value) = serde_json::from_slice(body) {
        return value;
    }
    if body.starts_with(b"k8s\0") {
        let type_id = entry.map(|entry| entry.resource.type_id);
        let value = type_id.and_then(|id| codec::decode_proto(schema, id, body).ok());
        return value.map_or_else(|| Value::from("(protobuf)"), |decoded| decoded.value);
    }
    codec::yaml_value(body).unwrap_or_else(|_| Value::from("(not an object)"))
}

fn without_managed_fields(object: &mut Value) {
    let strip = |object: &mut Value| {
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("managedFields");
        }
    };
    if !object.is_object() {
        return;
    }
    strip(object);
    for item in object["items"].as_array_mut().into_iter().flatten() {
        if item.is_object() {
            strip(item);
        }
    }
    if object["items"].is_null() {
        // Looking for it must not leave it there.
        if let Some(fields) = object.as_object_mut() {
            fields.remove("items");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::UserInfo;
    use http_body_util::BodyExt as _;
    use serde_json::json;

    struct Bed {
        audit: Arc<Audit>,
        path: PathBuf,
        _dir: tempfile::TempDir,
    }

    fn bed(rules: &str) -> Bed {
        let dir = tempfile::tempdir().unwrap();
        let (policy_file, path) = (dir.path().join("policy.yaml"), dir.path().join("audit.log"));
        let text = format!("apiVersion: audit.k8s.io/v1\nkind: Policy\n{rules}");
        std::fs::write(&policy_file, text).unwrap();
        let config = Config {
            policy_file,
            path: path.clone(),
            rotation: Rotation::default(),
        };
        Bed {
            audit: Arc::new(Audit::open(&config).unwrap()),
            path,
            _dir: dir,
        }
    }

    impl Bed {
        fn begin(&self, attributes: &Attributes<'_>) -> Option<Trail> {
            let asked = Asked {
                attributes,
                impersonator: None,
                uri: "/api/v1/namespaces/default/secrets/x?dryRun=All",
                user_agent: "kubectl/v1.36",
                source: Some([10, 0, 0, 1].into()),
                audit_id: Some("given-by-client"),
            };
            let clock: Clock = Arc::new(|| "2026-01-02T03:04:05Z".parse().unwrap());
            self.audit.begin(&asked, &clock)
        }

        fn events(&self) -> Vec<Value> {
            self.audit.flush();
            let text = std::fs::read_to_string(&self.path).unwrap();
            text.lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect()
        }
    }

    fn attributes(user: &UserInfo) -> Attributes<'_> {
        Attributes {
            name: "x",
            namespace: "default",
            version: "v1",
            ..Attributes::for_resource(user, "update", "", "secrets")
        }
    }

    fn body(value: &Value) -> Bytes {
        Bytes::from(value.to_string())
    }

    fn schema() -> &'static Schema {
        cox_api::schema::builtin()
    }

    #[test]
    fn levels_say_how_much_is_written() {
        let user = UserInfo::new("bob", ["devs"]);
        let object = json!({"kind": "Secret", "metadata": {"name": "x", "managedFields": [{"manager": "kubectl"}]}});
        for (level, sent, answered) in [
            ("Metadata", false, false),
            ("Request", true, false),
            ("RequestResponse", true, true),
        ] {
            let bed = bed(&format!(
                "omitManagedFields: true\nrules:\n- level: {level}\n"
            ));
            let mut trail = bed.begin(&attributes(&user)).unwrap();
            trail.decided(true, "RBAC: allowed");
            trail.sent(schema(), None, &body(&object));
            let response = trail.answered(Response::new(Body::from(body(&object))));
            assert_eq!(response.headers()["audit-id"], "given-by-client");
            let events = bed.events();
            assert_eq!(events.len(), 2, "{level}");
            let (first, last) = (&events[0], &events[1]);
            assert_eq!(
                (&first["stage"], &last["stage"]),
                (&json!("RequestReceived"), &json!("ResponseComplete"))
            );
            assert_eq!(
                (&last["level"], &last["verb"]),
                (&json!(level), &json!("update"))
            );
            assert_eq!(
                last["user"],
                json!({"username": "bob", "groups": ["devs", "system:authenticated"]})
            );
            assert_eq!(last["sourceIPs"], json!(["10.0.0.1"]));
            assert_eq!(
                last["objectRef"],
                json!({"resource": "secrets", "namespace": "default", "name": "x", "apiVersion": "v1"})
            );
            assert_eq!(last["responseStatus"]["code"], 200);
            assert_eq!(
                last["annotations"]["authorization.k8s.io/decision"],
                "allow"
            );
            assert!(first["annotations"].is_null() && first["responseStatus"].is_null());
            assert_eq!(last["requestObject"].is_object(), sent, "{level}");
            assert_eq!(last["responseObject"].is_object(), answered, "{level}");
            assert!(!last.to_string().contains("managedFields"), "{level}");
        }
    }

    #[test]
    fn what_the_policy_does_not_want_costs_and_writes_nothing() {
        let bed = bed(
            "rules:\n- level: None\n  users: [bob]\n- level: Metadata\n  omitStages: [RequestReceived]\n",
        );
        let (bob, eve) = (UserInfo::new("bob", []), UserInfo::new("eve", []));
        assert!(bed.begin(&attributes(&bob)).is_none());
        let trail = bed.begin(&attributes(&eve)).unwrap();
        let mut refused = Response::new(Body::from(body(
            &json!({"kind": "Status", "status": "Failure", "message": "no", "reason": "Forbidden", "code": 403}),
        )));
        *refused.status_mut() = http::StatusCode::FORBIDDEN;
        drop(trail.answered(refused));
        let events = bed.events();
        assert_eq!(events.len(), 1);
        assert_eq!(
            events[0]["responseStatus"],
            json!({"metadata": {}, "status": "Failure", "message": "no", "reason": "Forbidden", "code": 403})
        );
    }

    #[tokio::test]
    async fn a_stream_is_written_when_it_begins_and_when_it_ends() {
        let bed = bed("omitStages: [RequestReceived]\nrules:\n- level: RequestResponse\n");
        let user = UserInfo::new("bob", []);
        let trail = bed.begin(&attributes(&user)).unwrap();
        let stream =
            http_body_util::Full::new(Bytes::from_static(b"event")).map_err(|never| match never {});
        let response = trail.answered(Response::new(Body::Proxied(UnsyncBoxBody::new(stream))));
        let stages = |bed: &Bed| -> Vec<Value> {
            bed.events()
                .iter()
                .map(|event| event["stage"].clone())
                .collect()
        };
        assert_eq!(stages(&bed), ["ResponseStarted"]);
        assert_eq!(
            response.into_body().collect().await.unwrap().to_bytes(),
            "event"
        );
        assert_eq!(stages(&bed), ["ResponseStarted", "ResponseComplete"]);
    }

    #[test]
    fn a_panic_is_a_stage_of_its_own() {
        let bed = bed("rules:\n- level: Metadata\n  omitStages: [RequestReceived]\n");
        let user = UserInfo::new("bob", []);
        let trail = bed.begin(&attributes(&user)).unwrap();
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _followed = trail;
            panic!("a handler's fault");
        }));
        assert!(panic.is_err());
        assert_eq!(bed.events()[0]["stage"], "Panic");
    }
}
