//! One request: its route is found, what the route says is changed, an endpoint answers.

use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::Arc;

use http::header::{CONNECTION, CONTENT_LENGTH, HOST, LOCATION, ORIGIN, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::body::{Answer, Held, Keeping, TooLarge, text};
use super::headers::{self, Peer};
use super::upstream::{Outgoing, UpstreamError};
use super::{AGAIN, ATTEMPTS, Plane};
use crate::backend::{Backend, InFlight};
use crate::table::{Action, Edits, Facts, Match, Port, Redirect, Route, Target, Weighted};

/// Answers a request. It never fails: what goes wrong is an answer too.
pub(crate) async fn answer(
    plane: &Arc<Plane>,
    port: Port,
    peer: Peer,
    request: Request<Incoming>,
) -> Result<Response<Answer>, Infallible> {
    let asked = headers::host(request.uri(), request.headers())
        .unwrap_or_default()
        .to_owned();
    if request.method() == Method::CONNECT {
        return Ok(refusal(
            StatusCode::METHOD_NOT_ALLOWED,
            "This is no proxy to other hosts.",
        ));
    }
    if climbs(request.uri().path()) {
        return Ok(refusal(
            StatusCode::BAD_REQUEST,
            "The path leads out of itself with dots.",
        ));
    }
    let host = headers::without_port(&asked).to_ascii_lowercase();
    let Some((route, taken_by)) = route(plane, port, &host, &request) else {
        return Ok(refusal(
            StatusCode::NOT_FOUND,
            "No route takes this host and path.",
        ));
    };
    tracing::debug!(
        host,
        path = request.uri().path(),
        route = route.age.name,
        namespace = route.age.namespace,
        "Routed"
    );
    let hop = Hop {
        plane,
        peer,
        asked,
        route: &route,
        taken_by: &taken_by,
    };
    Ok(hop.take(request).await)
}

/// The route that takes a request, and which of its matches did.
fn route(
    plane: &Plane,
    port: Port,
    host: &str,
    request: &Request<Incoming>,
) -> Option<(Arc<Route>, Match)> {
    let facts = Facts {
        host,
        path: request.uri().path(),
        query: request.uri().query(),
        method: request.method(),
        headers: request.headers(),
    };
    let table = plane.table.load();
    let route = table.ports.get(&port)?.find(&facts)?;
    let taken_by = route.matches.iter().find(|one| one.holds(&facts))?;
    Some((Arc::clone(route), taken_by.clone()))
}

/// Whether a path holds `.` or `..` as an element, plain or encoded: who matches paths and who serves them might not agree on it.
fn climbs(path: &str) -> bool {
    path.split('/').any(|element| {
        let plain = match element.contains('%') {
            true => Cow::Owned(element.replace("%2e", ".").replace("%2E", ".")),
            false => Cow::Borrowed(element),
        };
        plain == "." || plain == ".."
    })
}

/// An answer of our own.
fn refusal(status: StatusCode, why: &str) -> Response<Answer> {
    let mut response = Response::new(text(format!("{why}\n")));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, plain);
    response
}

/// What is known of a request that has its route.
struct Hop<'a> {
    plane: &'a Arc<Plane>,
    peer: Peer,
    /// The host as the client wrote it.
    asked: String,
    route: &'a Route,
    taken_by: &'a Match,
}

impl Hop<'_> {
    async fn take(&self, request: Request<Incoming>) -> Response<Answer> {
        if self.route.https_only && !self.peer.tls {
            let to_https = Redirect {
                scheme: Some("https"),
                status: StatusCode::PERMANENT_REDIRECT,
                ..Redirect::default()
            };
            return self.redirect(&to_https, &request);
        }
        let cors = self.route.edits.cors.as_ref();
        if let Some(told) =
            cors.and_then(|cors| cors.preflight(request.method(), request.headers()))
        {
            let mut response = Response::new(text(""));
            *response.status_mut() = StatusCode::NO_CONTENT;
            *response.headers_mut() = told;
            return response;
        }
        let origin = request.headers().get(ORIGIN).cloned();
        let mut response = match &*self.route.action {
            Action::Redirect(redirect) => self.redirect(redirect, &request),
            Action::Refuse(status, why) => refusal(*status, why),
            Action::Forward(targets) => match choose(targets) {
                Some(weighted) => self.forward(weighted, request).await,
                None => refusal(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "The route leads nowhere.",
                ),
            },
        };
        if let Some(cors) = cors {
            cors.apply(origin.as_ref(), response.headers_mut());
        }
        self.route.edits.response.apply(response.headers_mut());
        response
    }

    fn redirect(&self, redirect: &Redirect, request: &Request<Incoming>) -> Response<Answer> {
        let location = match &redirect.whole {
            Some(whole) => Ok(whole.clone()),
            None => HeaderValue::try_from(self.location(redirect, request)),
        };
        let Ok(location) = location else {
            return refusal(
                StatusCode::BAD_REQUEST,
                "The address cannot be repeated in an answer.",
            );
        };
        let mut response = Response::new(text(""));
        *response.status_mut() = redirect.status;
        response.headers_mut().insert(LOCATION, location);
        response
    }

    fn location(&self, redirect: &Redirect, request: &Request<Incoming>) -> String {
        let present = if self.peer.tls { "https" } else { "http" };
        let scheme = redirect.scheme.unwrap_or(present);
        let asked_host = headers::without_port(&self.asked);
        let host = redirect.host.as_deref().unwrap_or(asked_host);
        let port = redirect.port.or_else(|| {
            if redirect.scheme.is_none() {
                return self
                    .asked
                    .strip_prefix(asked_host)?
                    .strip_prefix(':')?
                    .parse()
                    .ok();
            }
            let meant = if scheme == "https" {
                Port::Https
            } else {
                Port::Http
            };
            self.plane
                .open
                .borrow()
                .get(&meant)
                .map(std::net::SocketAddr::port)
        });
        let usual = if scheme == "https" { 443 } else { 80 };
        let port = port
            .filter(|port| *port != usual)
            .map_or(String::new(), |port| format!(":{port}"));
        let path = match &redirect.path {
            Some(rewrite) => Cow::Owned(rewrite.apply(request.uri().path(), &self.taken_by.path)),
            None => Cow::Borrowed(request.uri().path()),
        };
        let query = request
            .uri()
            .query()
            .map_or(String::new(), |query| format!("?{query}"));
        format!("{scheme}://{host}{port}{path}{query}")
    }

    async fn forward(
        &self,
        weighted: &Weighted,
        mut request: Request<Incoming>,
    ) -> Response<Answer> {
        let backend = match &weighted.target {
            Target::Backend(backend) => backend,
            Target::Missing(status, why) => return refusal(*status, why),
        };
        let max = self.route.limits.body_bytes_max;
        if max.is_some_and(|max| declared(&request).is_some_and(|len| len > max)) {
            return refusal(
                StatusCode::PAYLOAD_TOO_LARGE,
                "The request is larger than its route allows.",
            );
        }
        let counted = backend.service.begin();
        let upgrade = self.upgrade(backend, &mut request);
        let (parts, body) = request.into_parts();
        let outgoing = self.outgoing(weighted, parts, upgrade.as_ref().map(|(wish, _)| wish));
        let held = Held::new(body, max);
        if upgrade.is_none() {
            self.mirror(weighted, &outgoing, &held);
        }
        let mut response = match self.send(backend, outgoing, &held).await {
            Ok(response) => response,
            Err((status, why)) => return refusal(status, &why),
        };
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let wish = response.headers().get(UPGRADE).cloned();
        headers::strip_hop(response.headers_mut());
        let finished = match (switched, upgrade) {
            (true, Some((_, client))) => {
                let headers = response.headers_mut();
                headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
                if let Some(wish) = wish {
                    headers.insert(UPGRADE, wish);
                }
                let backend = hyper::upgrade::on(&mut response);
                tokio::spawn(tunnel(client, backend, counted));
                response.map(|_| text(""))
            }
            (true, None) => refusal(
                StatusCode::BAD_GATEWAY,
                "The backend changed the protocol unasked.",
            ),
            (false, _) => response.map(|body| Keeping::new(body, counted).boxed_unsync()),
        };
        let mut finished = finished;
        weighted.edits.response.apply(finished.headers_mut());
        finished
    }

    /// What the client wants to change the connection to, where that can be.
    fn upgrade(
        &self,
        backend: &Backend,
        request: &mut Request<Incoming>,
    ) -> Option<(HeaderValue, OnUpgrade)> {
        if request.version() != Version::HTTP_11 || backend.key.protocol.is_http2() {
            return None;
        }
        let wish = headers::upgrade(request.headers())?;
        // Else a client could speak HTTP/2 past the routes.
        if wish.as_bytes().eq_ignore_ascii_case(b"h2c") {
            return None;
        }
        Some((wish, hyper::upgrade::on(request)))
    }

    fn outgoing(
        &self,
        weighted: &Weighted,
        parts: http::request::Parts,
        upgrade: Option<&HeaderValue>,
    ) -> Outgoing {
        let mut headers = parts.headers;
        headers::strip_hop(&mut headers);
        headers::forwarded(&mut headers, self.peer, &self.asked);
        if let Some(wish) = upgrade {
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, wish.clone());
        }
        let edits = [&self.route.edits, &weighted.edits];
        let host = edits
            .iter()
            .rev()
            .find_map(|edits: &&Edits| edits.host.clone());
        let host = host.and_then(|host| host.to_str().map(str::to_owned).ok());
        let host = host.unwrap_or_else(|| self.asked.clone());
        if let Ok(value) = HeaderValue::try_from(host.as_str()) {
            headers.insert(HOST, value);
        }
        let rewrite = edits.iter().rev().find_map(|edits| edits.path.as_ref());
        let path = match rewrite {
            Some(rewrite) => Cow::Owned(rewrite.apply(parts.uri.path(), &self.taken_by.path)),
            None => Cow::Borrowed(parts.uri.path()),
        };
        for edits in edits {
            edits.request.apply(&mut headers);
        }
        let query = parts
            .uri
            .query()
            .map_or(String::new(), |query| format!("?{query}"));
        Outgoing {
            method: parts.method,
            target: format!("{path}{query}"),
            host,
            headers,
        }
    }

    /// Sends copies to those who are to have one. Nobody waits for them: what becomes of a copy changes nothing.
    fn mirror(&self, weighted: &Weighted, outgoing: &Outgoing, held: &Held) {
        let mirrors = [&self.route.edits, &weighted.edits].map(|edits| &edits.mirrors);
        for mirror in mirrors.into_iter().flatten() {
            let (of, all) = mirror.share;
            if rand::random_range(0..all.max(1)) >= of {
                continue;
            }
            let Some(to) = mirror.backend.next(&[]) else {
                continue;
            };
            let (plane, backend) = (Arc::clone(self.plane), Arc::clone(&mirror.backend));
            let (outgoing, body) = (outgoing.clone(), held.copy());
            let patience = self.route.limits.answer;
            tokio::spawn(async move {
                let _counted = backend.service.begin();
                let sending = async {
                    let body = body.boxed_unsync();
                    let sent = plane
                        .upstreams
                        .send(&to, backend.key.protocol, outgoing, body);
                    let mut answer = sent.await?.into_body();
                    while let Some(Ok(_)) = answer.frame().await {}
                    Ok::<_, UpstreamError>(())
                };
                match tokio::time::timeout(patience, sending).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(%error, "A copy of a request was not taken"),
                    Err(_) => tracing::debug!(%to, "A copy of a request took too long"),
                }
            });
        }
    }

    /// Tries endpoints until one answers. One that takes no connection costs nothing but time: nothing was sent.
    async fn send(
        &self,
        backend: &Arc<Backend>,
        outgoing: Outgoing,
        held: &Held,
    ) -> Result<Response<Incoming>, (StatusCode, String)> {
        let mut tried = Vec::new();
        let mut last = None;
        for _ in 0..ATTEMPTS {
            let Some(to) = backend.next(&tried) else {
                if self.plane.hold(backend).await {
                    continue;
                }
                break;
            };
            if tried.contains(&to) {
                tokio::time::sleep(AGAIN).await;
            }
            let sending = self.plane.upstreams.send(
                &to,
                backend.key.protocol,
                outgoing.clone(),
                held.sending().boxed_unsync(),
            );
            let error = match tokio::time::timeout(self.route.limits.answer, sending).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(error)) => error,
                Err(_) => {
                    let why = format!("Service {} took too long to answer.", backend.key.service);
                    return Err((StatusCode::GATEWAY_TIMEOUT, why));
                }
            };
            tracing::debug!(service = %backend.key.service, %error, "An endpoint did not answer");
            if is_too_large(&error) {
                let why = "The request is larger than its route allows.".to_owned();
                return Err((StatusCode::PAYLOAD_TOO_LARGE, why));
            }
            let again = match &error {
                UpstreamError::Connect(..) => held.is_whole(),
                UpstreamError::Broken(..) => held.is_empty() && outgoing.method.is_safe(),
            };
            tried.push(to);
            last = Some(error);
            if !again {
                break;
            }
        }
        let service = &backend.key.service;
        Err(match last {
            Some(_) => (
                StatusCode::BAD_GATEWAY,
                format!("No endpoint of Service {service} answers."),
            ),
            None => (
                StatusCode::SERVICE_UNAVAILABLE,
                format!("Service {service} has no endpoint that is ready."),
            ),
        })
    }
}

fn is_too_large(error: &UpstreamError) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(one) = source {
        if one.is::<TooLarge>() {
            return true;
        }
        source = one.source();
    }
    false
}

fn declared(request: &Request<Incoming>) -> Option<u64> {
    request
        .headers()
        .get(CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

/// One of the targets, by weight.
fn choose(targets: &[Weighted]) -> Option<&Weighted> {
    if let [only] = targets {
        return Some(only).filter(|only| only.weight > 0);
    }
    let total: u64 = targets.iter().map(|one| u64::from(one.weight)).sum();
    if total == 0 {
        return None;
    }
    let mut at = rand::random_range(0..total);
    targets.iter().find(|one| {
        let weight = u64::from(one.weight);
        let here = at < weight;
        at = at.saturating_sub(weight);
        here
    })
}

/// Bytes both ways until both ends are through, once both have changed the protocol.
async fn tunnel(client: OnUpgrade, backend: OnUpgrade, _counted: InFlight) {
    let both = async {
        let (client, backend) = tokio::try_join!(client, backend)?;
        let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
        tokio::io::copy_bidirectional(&mut client, &mut backend).await?;
        Ok::<_, cox_client::BoxError>(())
    };
    if let Err(error) = both.await {
        tracing::debug!(%error, "A tunnel broke");
    }
}
