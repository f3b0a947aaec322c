//! The way of a request: limits, identity, permission, routing, and the record of what was answered.
//!
//! [`Api::handle`] is the one entry; sockets and in-process clients come through it alike. It owns no state of its own beyond
//! counters: objects are the registry's. A panic in a handler answers 500 and costs nobody else anything.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use cox_api::schema::Subresource;
use cox_api::status::ApiStatus;
use futures::FutureExt;
use http::request::Parts;
use http::{HeaderValue, Request, Response};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

use crate::admission::{Admission, Notes};
use crate::aggregator::{self, Aggregator};
use crate::auth::tokens::TokenKey;
use crate::auth::{Attributes, Authenticator, Authorizer, Peer, UserInfo};
use crate::body::Body;
use crate::call::Call;
use crate::content::{self, Offers};
use crate::discovery;
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

/// Upstream's limit for request bodies.
pub const BODY_BYTES_MAX: usize = 3 * 1024 * 1024;
/// What is read and thrown away of a body over the limit, so that the client gets to read its answer.
const DRAIN_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Requests that are answered at the same time; watches and log streams do not count.
const IN_FLIGHT_MAX: usize = 600;
/// Requests that may wait for that.
const WAITING_MAX: usize = 10_000;

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
    request_timeout: Duration,
    in_flight: Semaphore,
    waiting: AtomicUsize,
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
            request_timeout,
            in_flight: Semaphore::new(IN_FLIGHT_MAX),
            waiting: AtomicUsize::new(0),
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
        let user = self.authn.authenticate(arrived.parts, peer)?;
        let user = self.authz.impersonate(arrived.parts, &user)?;
        self.authz.require(&arrived.attributes(&user))?;
        if arrived.is_long_running() {
            let body = if arrived.sends_a_body() {
                read_body(body).await?
            } else {
                Bytes::new()
            };
            return self.dispatch(arrived, body, &user).await;
        }
        let _in_flight = self.metrics.request_started(arrived.is_mutating());
        let _permit = self.permit().await?;
        let work = async {
            let body = if arrived.has_body() {
                read_body(body).await?
            } else {
                Bytes::new()
            };
            self.dispatch(arrived, body, &user).await
        };
        match tokio::time::timeout(self.request_timeout, work).await {
            Ok(answered) => answered,
            Err(_) => Err(ApiStatus::timeout(
                "request did not complete within the allotted timeout",
                1,
            )),
        }
    }

    /// Waits until few enough requests are being answered; refuses when too many wait already.
    async fn permit(&self) -> Result<SemaphorePermit<'_>, ApiStatus> {
        if let Ok(permit) = self.in_flight.try_acquire() {
            return Ok(permit);
        }
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING_MAX {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.metrics.request_dropped();
            return Err(ApiStatus::too_many_requests(
                "too many requests, please try again later",
                1,
            ));
        }
        let waited = tokio::time::timeout(self.request_timeout, self.in_flight.acquire()).await;
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        match waited {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => Err(ApiStatus::too_many_requests(
                "too many requests, please try again later",
                1,
            )),
        }
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
        let answered = route::route(&mut call).await;
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
                self.metrics.render(revision),
            ));
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
        }
    }

    fn is_long_running(&self) -> bool {
        self.info.verb == "watch"
            || matches!(
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
