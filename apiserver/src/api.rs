//! The way of a request: limits, identity, permission, routing, and the record of what was answered.
//!
//! [`Api::handle`] is the one entry; sockets and in-process clients come through it alike. It owns no state of its own beyond
//! counters: objects are the registry's. A panic in a handler answers 500 and costs nobody else anything.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use cox_api::schema::Subresource;
use cox_api::status::ApiStatus;
use futures::FutureExt;
use http::request::Parts;
use http::{HeaderValue, Request, Response};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use tokio_util::sync::CancellationToken;

use crate::admission::{Admission, Notes};
use crate::aggregator::{self, Aggregator};
use crate::audit::{Asked, Audit, Trail};
use crate::auth::tokens::TokenKey;
use crate::auth::{Attributes, Authenticator, Authorizer, Peer, UserInfo};
use crate::body::Body;
use crate::call::Call;
use crate::content::{self, Offers};
use crate::discovery;
use crate::fairness::{Fairness, Seat};
use crate::forms::Forms;
use crate::health;
use crate::kubelet::Kubelets;
use crate::metrics::Metrics;
use crate::node_metrics;
use crate::openapi;
use crate::pki::Pki;
use crate::pretty;
use crate::query::Query;
use crate::refuse;
use crate::registry::{Entry, EntryRef, Registry};
use crate::render;
use crate::request::{self, RequestInfo};
use crate::route;
use crate::subresources;
use crate::transcode;
use crate::verbs::limit::WatchLimit;
use crate::verbs::views::Views;
use crate::websocket;

/// Where a backup of the store is read. Not a resource: `get` on it is for the cluster's administrators, or whoever has a role
/// that names it.
pub const BACKUP_PATH: &str = "/coxswain/v1/backup";
/// Upstream's limit for request bodies.
pub const BODY_BYTES_MAX: usize = 3 * 1024 * 1024;
/// What is read and thrown away of a body over the limit, so that the client gets to read its answer.
const DRAIN_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Seats that one list may take, and how many objects it sends for each.
const LIST_SEATS_MAX: usize = 10;
const OBJECTS_PER_SEAT: usize = 100;

/// Where a request came from; in the extensions of those that came over a socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source(pub(crate) std::net::IpAddr);

/// What a request meets on its way. Shared by all connections and in-process clients.
pub(crate) struct Api {
    pub(crate) registry: Registry,
    pub(crate) admission: Admission,
    pub(crate) authn: Authenticator,
    pub(crate) authz: Authorizer,
    pub(crate) kubelets: Kubelets,
    pub(crate) discovery: discovery::Served,
    pub(crate) aggregator: Arc<Aggregator>,
    pub(crate) metrics: Metrics,
    documents: openapi::Documents,
    pub(crate) forms: Arc<Forms>,
    /// Views that are watched.
    pub(crate) views: Arc<Views>,
    pub(crate) watches: WatchLimit,
    /// Bootstrapped.
    pub(crate) ready: AtomicBool,
    pub(crate) store_closed: AtomicBool,
    /// Watches end when this is cancelled.
    pub(crate) draining: CancellationToken,
    pub(crate) fairness: Arc<Fairness>,
    /// Who asks for what is written down.
    pub(crate) audit: Option<Arc<Audit>>,
    request_timeout: Duration,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api")
            .field("registry", &self.registry)
            .finish_non_exhaustive()
    }
}

impl Api {
    /// An API over a registry. `request_timeout` bounds everything but watches and streams.
    pub(crate) fn new(
        registry: Registry,
        pki: &Arc<Pki>,
        kubelets: Kubelets,
        draining: CancellationToken,
        request_timeout: Duration,
    ) -> Self {
        let authz = Authorizer::new(registry.store().clone());
        Api {
            admission: Admission::new(registry.clone(), authz.clone()),
            authn: Authenticator::new(Arc::clone(pki), registry.store().clone()),
            authz,
            discovery: discovery::Served::new(registry.customs().present()),
            registry,
            kubelets,
            aggregator: Arc::new(Aggregator::new(pki)),
            metrics: Metrics::default(),
            documents: openapi::Documents::default(),
            forms: Arc::new(Forms::default()),
            views: Arc::default(),
            watches: WatchLimit::default(),
            ready: AtomicBool::new(false),
            store_closed: AtomicBool::new(false),
            draining,
            fairness: Arc::new(Fairness::new(request_timeout)),
            audit: None,
            request_timeout,
        }
    }

    /// Answers a request. Never fails: what goes wrong is a Status.
    pub(crate) async fn handle<B>(&self, request: Request<B>, peer: &Peer) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: std::fmt::Display,
    {
        let answered = AssertUnwindSafe(self.answer(request, peer))
            .catch_unwind()
            .await;
        answered.unwrap_or_else(|_| {
            tracing::error!("A request handler panicked");
            render::status_response(&ApiStatus::internal("the request could not be answered"))
        })
    }

    async fn answer<B>(&self, request: Request<B>, peer: &Peer) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: std::fmt::Display,
    {
        let begun = Instant::now();
        let (parts, body) = request.into_parts();
        let Some(path) = request::decode_path(parts.uri.path()) else {
            return render::status_response(&refuse::bad_request("the path is not UTF-8"));
        };
        let raw_query = parts.uri.query().unwrap_or_default();
        let query = match Query::parse(raw_query) {
            Ok(query) => query,
            Err(error) => return render::status_response(&refuse::bad_request(error.to_string())),
        };
        let info = RequestInfo::parse(&parts.method, &path, query.watch, query.name_selector());
        let entry = if info.is_resource {
            self.registry
                .lookup(info.group, info.version, info.resource)
        } else {
            None
        };
        let arrived = Arrived {
            parts: &parts,
            info: &info,
            query: &query,
            entry: entry.as_ref(),
        };
        let response = match self.admitted(&arrived, body, peer).await {
            Ok(response) => response,
            Err(status) => render::status_response(&status),
        };
        // Errors about custom resources have a protobuf form, the resources have none.
        let custom = entry.as_ref().is_some_and(|entry| entry.custom.is_some());
        let encoding = if custom && response.status().is_success() {
            content::encoding_of(
                &parts.headers,
                Offers {
                    protobuf: false,
                    table: true,
                },
            )
        } else {
            content::encoding(&parts.headers)
        };
        let mut response = transcode::response(self.registry.schema(), response, encoding);
        if pretty::is_wanted(&query, &parts.headers) {
            response = pretty::response(response);
        }
        // Unless a handler said otherwise: nothing between us and the client may keep an answer.
        response
            .headers_mut()
            .entry(http::header::CACHE_CONTROL)
            .or_insert(HeaderValue::from_static("no-cache, private"));
        self.metrics.answered(
            &info,
            entry.as_ref(),
            response.status().as_u16(),
            begun.elapsed(),
        );
        if content::takes_gzip(&parts.headers) {
            render::compress(response)
        } else {
            response
        }
    }

    /// Identity, permission, limits.
    async fn admitted<B>(
        &self,
        arrived: &Arrived<'_>,
        body: B,
        peer: &Peer,
    ) -> Result<Response<Body>, ApiStatus>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: std::fmt::Display,
    {
        let sender = match self.authn.authenticate(arrived.parts, peer).await {
            Ok(sender) => sender,
            Err(refused) => {
                let nobody = UserInfo::default();
                let trail = self.trail(arrived, &arrived.attributes(&nobody), None);
                return Ok(finish(trail, Err(refused)));
            }
        };
        let user = match self.authz.impersonate(arrived.parts, &sender).await {
            Ok(user) => user,
            Err(refused) => {
                let trail = self.trail(arrived, &arrived.attributes(&sender), None);
                return Ok(finish(trail, Err(refused)));
            }
        };
        let attributes = arrived.attributes(&user);
        let impersonator = (!Arc::ptr_eq(&user, &sender)).then_some(&*sender);
        let mut trail = self.trail(arrived, &attributes, impersonator);
        let allowed = self.authz.require(&attributes).await;
        if let Some(trail) = &mut trail {
            trail.decided(allowed.is_ok(), "");
        }
        if let Err(refused) = allowed {
            return Ok(finish(trail, Err(refused)));
        }
        if arrived.is_stream() {
            let body = if arrived.sends_a_body() {
                read_body(body).await?
            } else {
                Bytes::new()
            };
            let answered = self.dispatch(arrived, body, &user).await;
            return Ok(finish(trail, answered));
        }
        let (classified, seat) = self
            .fairness
            .admit(&attributes, || self.width(arrived))
            .await;
        let answered = match seat {
            Ok(seat) => self.seated(arrived, body, &user, &mut trail, seat).await,
            Err(refused) => {
                self.metrics.request_dropped();
                Err(refused)
            }
        };
        let mut response = finish(trail, answered);
        if let Some(classified) = classified {
            classified.mark(response.headers_mut());
        }
        Ok(response)
    }

    /// Begins to write down what becomes of a request, if the audit policy wants that.
    fn trail(
        &self,
        arrived: &Arrived<'_>,
        attributes: &Attributes<'_>,
        impersonator: Option<&UserInfo>,
    ) -> Option<Trail> {
        let audit = self.audit.as_ref()?;
        let parts = arrived.parts;
        let header = |name: &str| {
            parts
                .headers
                .get(name)
                .and_then(|value| value.to_str().ok())
        };
        let asked = Asked {
            attributes,
            impersonator,
            uri: parts.uri.path_and_query().map_or("", |path| path.as_str()),
            user_agent: header("user-agent").unwrap_or_default(),
            source: parts.extensions.get::<Source>().map(|source| source.0),
            audit_id: header("audit-id"),
        };
        audit.begin(&asked, self.registry.clock())
    }

    /// Answers a request that has its seats. A watch gives them back as soon as it is open.
    async fn seated<B>(
        &self,
        arrived: &Arrived<'_>,
        body: B,
        user: &UserInfo,
        trail: &mut Option<Trail>,
        _seat: Seat<'_>,
    ) -> Result<Response<Body>, ApiStatus>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: std::fmt::Display,
    {
        if arrived.info.verb == "watch" {
            return self.dispatch(arrived, Bytes::new(), user).await;
        }
        let _in_flight = self.metrics.request_started(arrived.is_mutating());
        let work = async {
            let body = if arrived.has_body() {
                read_body(body).await?
            } else {
                Bytes::new()
            };
            if let Some(trail) = trail {
                trail.sent(
                    self.registry.schema(),
                    arrived.entry.map(|entry| &**entry),
                    &body,
                );
            }
            self.dispatch(arrived, body, user).await
        };
        match tokio::time::timeout(self.request_timeout, work).await {
            Ok(answered) => answered,
            Err(_) => Err(ApiStatus::timeout(
                "request did not complete within the allotted timeout",
                1,
            )),
        }
    }

    /// Seats that a request takes: a list more, the more it sends.
    fn width(&self, arrived: &Arrived<'_>) -> usize {
        let Some(entry) = arrived.entry.filter(|_| arrived.info.verb == "list") else {
            return 1;
        };
        let snapshot = self.registry.store().snapshot();
        let namespace = entry.path_prefix(arrived.info.namespace);
        let mut objects = snapshot.count(&entry.prefix, &namespace);
        if arrived.query.limit > 0 {
            objects = objects.min(arrived.query.limit);
        }
        objects.div_ceil(OBJECTS_PER_SEAT).clamp(1, LIST_SEATS_MAX)
    }

    /// Answers what is not in the registry: another API server's group, or figures of nodes.
    async fn elsewhere(
        &self,
        arrived: &Arrived<'_>,
        body: &Bytes,
        user: &UserInfo,
    ) -> Option<Result<Response<Body>, ApiStatus>> {
        let Arrived {
            parts, info, query, ..
        } = arrived;
        let (aggregator, registry) = (&self.aggregator, &self.registry);
        let (draining, body) = (&self.draining, body.clone());
        if let Some(remote) = aggregator.remote_of(info.path) {
            let answered =
                aggregator::proxy(aggregator, registry, &remote, parts, body, user, draining);
            return Some(answered.await);
        }
        if let Some(path) = info.path.strip_prefix("/openapi/v3/apis/")
            && let Some(remote) = aggregator.remote_of(&format!("/apis/{path}"))
        {
            let own = UserInfo::new("system:aggregator", ["system:masters"]);
            let answered =
                aggregator::proxy(aggregator, registry, &remote, parts, body, &own, draining);
            return Some(answered.await);
        }
        if info.group != node_metrics::GROUP {
            return None;
        }
        Some(node_metrics::answer(self, info, query).await)
    }

    async fn dispatch(
        &self,
        arrived: &Arrived<'_>,
        body: Bytes,
        user: &UserInfo,
    ) -> Result<Response<Body>, ApiStatus> {
        let Arrived {
            parts,
            info,
            query,
            entry,
        } = arrived;
        if entry.is_none()
            && let Some(answered) = self.elsewhere(arrived, &body, user).await
        {
            return answered;
        }
        if !info.is_resource {
            return self.plain(parts, info.path, query);
        }
        match *entry {
            Some(entry) => self.on_resource(arrived, entry, body, user).await,
            None => Err(ApiStatus::unknown_path()),
        }
    }

    /// Takes a request for a resource of this server's own through its verb.
    async fn on_resource(
        &self,
        arrived: &Arrived<'_>,
        entry: &EntryRef,
        body: Bytes,
        user: &UserInfo,
    ) -> Result<Response<Body>, ApiStatus> {
        let Arrived {
            parts, info, query, ..
        } = arrived;
        let sub = match info.subresource {
            "" => None,
            name => Some(
                entry
                    .subresource(name)
                    .ok_or_else(ApiStatus::unknown_path)?,
            ),
        };
        if entry.resource.namespaced
            && info.namespace.is_empty()
            && !(info.is_collection() && info.verb != "create")
        {
            return Err(ApiStatus::unknown_path());
        }
        let accepted = content::accepted(&parts.headers, self.offers(entry, sub))?;
        let mut call = Call {
            api: self,
            entry,
            sub,
            info,
            query,
            headers: &parts.headers,
            method: &parts.method,
            path: parts.uri.path(),
            upgrade: parts.extensions.get::<OnUpgrade>().cloned(),
            user,
            form: accepted.form,
            encoding: accepted.encoding,
            body,
            now: self.registry.now(),
            warnings: Vec::new(),
            notes: Notes::default(),
        };
        if let Some(warning) = cox_api::warnings::of_resource(&entry.resource) {
            call.warnings.push(warning.to_owned());
        }
        let answered = match self.registry.catch_up(read_at(info, query)).await {
            Ok(()) => route::route(&mut call).await,
            Err(status) => Err(status),
        };
        let answered = match answered {
            Ok(watch) if info.verb == "watch" && websocket::is_wanted(&parts.headers) => {
                websocket::serve(parts, watch, call.encoding.into())
            }
            Ok(log) if info.subresource == "log" && websocket::is_wanted(&parts.headers) => {
                websocket::serve(parts, log, websocket::Cut::of_log(&parts.headers))
            }
            answered => answered,
        };
        let mut response = match answered {
            Ok(response) => response,
            Err(status) => render::status_response(&status),
        };
        for warning in call.warnings.iter().chain(&call.notes.warnings()) {
            let text = format!("299 - {}", render::quoted(warning));
            if let Ok(value) = HeaderValue::from_str(&text) {
                response.headers_mut().append(http::header::WARNING, value);
            }
        }
        Ok(response)
    }

    /// What the kind that an entry or its subresource speaks can be sent as.
    fn offers(&self, entry: &Entry, sub: Option<&Subresource>) -> Offers {
        let resource = &entry.resource;
        let (group, version, kind) = sub.map_or(
            (&resource.group, &resource.version, &resource.kind),
            |sub| (&sub.group, &sub.version, &sub.kind),
        );
        Offers {
            protobuf: self
                .registry
                .schema()
                .kind_type(group, version, kind)
                .is_some(),
            table: match sub {
                None => !subresources::is_question(resource),
                Some(sub) => !matches!(sub.name.as_str(), "binding" | "eviction" | "token"),
            },
        }
    }

    /// All objects as they are now, for `cox store restore`; sealed as the store keeps them.
    fn backup(&self) -> Response<Body> {
        let snapshot = self.registry.store().snapshot();
        let bytes = match self.registry.encryption() {
            Some(encryption) => cox_store::backup::encode(&snapshot, &**encryption),
            None => cox_store::backup::encode(&snapshot, &cox_store::Unsealed),
        };
        let mut response = Response::new(Body::from(Bytes::from(bytes)));
        response.headers_mut().insert(
            http::header::CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        );
        response
    }

    /// Paths that are no resources.
    fn plain(
        &self,
        parts: &Parts,
        path: &str,
        query: &Query<'_>,
    ) -> Result<Response<Body>, ApiStatus> {
        if !matches!(parts.method, http::Method::GET | http::Method::HEAD) {
            return Err(ApiStatus::method_not_allowed());
        }
        if path == "/metrics" {
            let revision = self.registry.store().snapshot().revision().0;
            return Ok(health::text(
                http::StatusCode::OK,
                self.metrics.render(revision) + &self.fairness.metrics(),
            ));
        }
        if path == BACKUP_PATH {
            return Ok(self.backup());
        }
        if path == "/version" || path == "/version/" {
            return Ok(render::json_response(
                http::StatusCode::OK,
                render::to_bytes(&health::version()),
            ));
        }
        if path == "/.well-known/openid-configuration" {
            let document = render::to_bytes(&TokenKey::discovery());
            return Ok(render::json_response(http::StatusCode::OK, document));
        }
        if path == "/openid/v1/jwks" {
            let keys = render::to_bytes(&self.authn.token_key().key_set());
            return Ok(render::json_response(http::StatusCode::OK, keys));
        }
        if path.starts_with("/openapi/") {
            let document = self
                .documents
                .respond(
                    self.registry.customs(),
                    &self.aggregator.remotes,
                    path,
                    &parts.headers,
                )
                .or_else(|| openapi::respond(path, &parts.headers));
            return document
                .map(|response| response.map(Body::from))
                .ok_or_else(ApiStatus::unknown_path);
        }
        health::respond(self, path, query)
            .or_else(|| {
                self.discovery.respond(
                    self.registry.customs(),
                    &self.aggregator.remotes,
                    path,
                    &parts.headers,
                )
            })
            .ok_or_else(ApiStatus::unknown_path)
    }
}

/// The answer, written down if it is wanted.
fn finish(trail: Option<Trail>, answered: Result<Response<Body>, ApiStatus>) -> Response<Body> {
    let response = answered.unwrap_or_else(|status| render::status_response(&status));
    match trail {
        Some(trail) => trail.answered(response),
        None => response,
    }
}

/// The revision that a reading request is content with; none if it wants the newest, as every write does.
fn read_at(info: &RequestInfo<'_>, query: &Query<'_>) -> Option<u64> {
    if !matches!(info.verb, "get" | "list" | "watch") {
        return None;
    }
    query.resource_version.as_deref()?.parse().ok()
}

/// A request before anything is known about its sender.
struct Arrived<'a> {
    parts: &'a Parts,
    info: &'a RequestInfo<'a>,
    query: &'a Query<'a>,
    entry: Option<&'a EntryRef>,
}

impl<'a> Arrived<'a> {
    fn attributes(&self, user: &'a UserInfo) -> Attributes<'a> {
        let info = self.info;
        if !info.is_resource {
            return Attributes::for_path(user, info.verb, info.path);
        }
        Attributes {
            user,
            verb: info.verb,
            group: info.group,
            version: info.version,
            resource: info.resource,
            subresource: info.subresource,
            name: info.name,
            namespace: info.namespace,
            path: info.path,
            field_selector: self.query.field_selector.as_deref().unwrap_or_default(),
            label_selector: self.query.label_selector.as_deref().unwrap_or_default(),
        }
    }

    /// Goes on for as long as its ends want, and takes no seat.
    fn is_stream(&self) -> bool {
        matches!(
            self.info.subresource,
            "log" | "exec" | "attach" | "portforward" | "proxy"
        )
    }

    /// A stream that begins with a body: what goes through a proxy. Where the connection is taken over the bytes are not a body's.
    fn sends_a_body(&self) -> bool {
        self.info.subresource == "proxy"
            && self.has_body()
            && !self.parts.headers.contains_key(http::header::UPGRADE)
    }

    fn is_mutating(&self) -> bool {
        !matches!(self.info.verb, "get" | "list" | "head")
    }

    fn has_body(&self) -> bool {
        !matches!(self.parts.method, http::Method::GET | http::Method::HEAD)
    }
}

/// Reads a body up to the limit. What is over it is still read, to a point, and thrown away: a client that is still writing
/// would otherwise not see the answer.
async fn read_body<B>(body: B) -> Result<Bytes, ApiStatus>
where
    B: http_body::Body<Data = Bytes> + Send,
    B::Error: std::fmt::Display,
{
    let mut body = std::pin::pin!(body);
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|error| refuse::bad_request(format!("the body could not be read: {error}")))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        read += data.len();
        if read > DRAIN_BYTES_MAX {
            break;
        }
        if read > BODY_BYTES_MAX {
            continue;
        }
        if first.is_empty() {
            first = data;
        } else {
            if rest.is_empty() {
                rest.extend_from_slice(&first);
            }
            rest.extend_from_slice(&data);
        }
    }
    if read > BODY_BYTES_MAX {
        return Err(ApiStatus::request_entity_too_large(BODY_BYTES_MAX));
    }
    Ok(if rest.is_empty() {
        first
    } else {
        rest.freeze()
    })
}
