//! The server as a whole: start, the socket, in-process service, orderly stop.
//!
//! [`start`] binds, bootstraps and serves; [`ApiServer::service`] is the same API without a socket. Tasks: one that accepts, one
//! per connection, one that sweeps expired Events. They end when the token given to [`start`] is cancelled: intake stops,
//! watches are closed, requests in flight get [`DRAIN_TIMEOUT`].

mod certificate;
mod connection;
mod local;
mod sweep;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cox_api::status::ApiStatus;
use cox_store::Store;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission;
use crate::aggregator::Aggregator;
use crate::api::Api;
use crate::audit::{self, Audit, AuditError};
use crate::auth::oidc::{self, OidcError};
use crate::auth::{Peer, UserInfo, aggregation, authorization, token_webhook};
use crate::bootstrap;
use crate::config_file::ConfigError;
use crate::definitions;
use crate::encryption::Encryption;
use crate::fairness;
use crate::kubelet::{KubeletTlsError, Kubelets};
use crate::pki::{Pki, PkiError};
use crate::registry::{Clock, Registry};
use crate::services::{self, cidr::Cidr};
use certificate::Certificate;

pub use local::LocalService;

/// The range of Service addresses where nothing else is said.
pub const SERVICE_CIDR: &str = "10.96.0.0/16";

/// How long requests in flight may take to finish when the server stops.
pub(crate) const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// How the server is set up. [`Config::new`] has the usual values.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen; port 0 picks one.
    pub listen: SocketAddr,
    /// The cluster's keys.
    pub pki: Arc<Pki>,
    /// Where the server is reached from inside the cluster; where it listens unless said otherwise. Port 0 is the one listened on.
    pub advertise: Option<SocketAddr>,
    /// Further names and addresses for the serving certificate.
    pub extra_sans: Vec<String>,
    /// Bound for requests other than watches and streams.
    pub request_timeout: Duration,
    /// How often it is looked whether the serving certificate has to be issued again.
    pub certificate_looks: Duration,
    /// Bound for the TLS handshake of a connection.
    pub handshake_timeout: Duration,
    /// Bound from the first byte of a request to the end of its headers.
    pub headers_timeout: Duration,
    /// How long Events are kept.
    pub event_ttl: Duration,
    /// Whether the cluster has the default StorageClass `local-path`.
    pub local_path: bool,
    /// Ranges of Service addresses, of one family or of both, the default first. A cluster keeps those of its first start.
    pub service_cidrs: Vec<Cidr>,
    /// Whether the cluster has a Service for its DNS.
    pub dns_service: bool,
    /// What is written down of requests, and where.
    pub audit: Option<audit::Config>,
    /// Whose users are the cluster's too.
    pub oidc: Option<oidc::Config>,
    /// Upstream's AuthenticationConfiguration: issuers of tokens, requests without credentials.
    pub authentication_file: Option<PathBuf>,
    /// Who is asked about tokens that nobody here knows.
    pub token_webhook: Option<token_webhook::Config>,
    /// Whether requests without credentials are let in; at a few paths unless it is said.
    pub anonymous: Option<bool>,
    /// What the server answers to beside its own name.
    pub audiences: Vec<String>,
    /// Who decides what users may do.
    pub authorization: authorization::Config,
    /// Upstream's AdmissionConfiguration: what PodSecurity does where namespaces say nothing, and to whom it does not apply.
    pub admission_file: Option<PathBuf>,
}

impl Config {
    /// The usual values.
    #[must_use]
    pub fn new(listen: SocketAddr, pki: Arc<Pki>) -> Self {
        let (request_timeout, event_ttl) = (Duration::from_secs(60), Duration::from_secs(60 * 60));
        Config {
            listen,
            pki,
            advertise: None,
            extra_sans: Vec::new(),
            request_timeout,
            certificate_looks: Duration::from_secs(3600),
            handshake_timeout: Duration::from_secs(10),
            headers_timeout: Duration::from_secs(30),
            event_ttl,
            local_path: true,
            service_cidrs: vec![SERVICE_CIDR.parse().expect("a range")],
            dns_service: false,
            audit: None,
            oidc: None,
            authentication_file: None,
            token_webhook: None,
            anonymous: None,
            audiences: Vec::new(),
            authorization: authorization::Config::default(),
            admission_file: None,
        }
    }
}

/// What the server is given.
#[derive(Clone)]
pub struct Deps {
    /// Opened with [`crate::registry::BuiltinIndexer`].
    pub store: Store,
    /// The time.
    pub clock: Clock,
    /// What the store seals its objects with, if it does.
    pub encryption: Option<Arc<Encryption>>,
}

impl Deps {
    /// The system's clock over a store.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Deps {
            store,
            clock: Arc::new(jiff::Timestamp::now),
            encryption: None,
        }
    }
}

impl std::fmt::Debug for Deps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deps")
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is taken.
    #[error("{0} is in use by another program: choose another port (0 picks a free one)")]
    AddressInUse(SocketAddr),
    /// The address cannot be used.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The serving certificate is no good.
    #[error("the serving certificate cannot be used")]
    Pki(#[from] PkiError),
    /// There is no way to kubelets.
    #[error(transparent)]
    Kubelets(#[from] KubeletTlsError),
    /// The OpenID provider cannot be trusted.
    #[error(transparent)]
    Oidc(#[from] OidcError),
    /// Who asks, whether they may, or what is let in, cannot be found out as it is configured.
    #[error(transparent)]
    Auth(#[from] ConfigError),
    /// There is no audit log.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// What every cluster contains could not be written.
    #[error("the cluster's first objects cannot be written")]
    Bootstrap(#[source] ApiStatus),
}

/// A running server.
#[derive(Debug)]
pub struct ApiServer {
    api: Arc<Api>,
    addr: SocketAddr,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

/// Binds, bootstraps and serves until `cancel` is cancelled.
pub async fn start(
    config: Config,
    deps: Deps,
    cancel: CancellationToken,
) -> Result<ApiServer, StartError> {
    let listener = bind(config.listen).await?;
    let addr = listener.local_addr().map_err(|source| StartError::Listen {
        address: config.listen,
        source,
    })?;
    let registry = Registry::with_clock(deps.store, deps.clock).encrypted(deps.encryption);
    let ranges = services::kept_ranges(&registry, &config.service_cidrs);
    let mut sans = config.extra_sans.clone();
    sans.extend(ranges.iter().map(|range| range.at(1).to_string()));
    registry.services().set_ranges(ranges.clone());
    let certificate = Certificate::of(Arc::clone(&config.pki), sans)?;
    let api = api(&config, registry, &cancel)?;
    let mut advertise = config.advertise.unwrap_or(addr);
    if advertise.port() == 0 {
        advertise.set_port(addr.port());
    }
    let settings = bootstrap::Settings {
        advertise,
        ca_pem: config.pki.ca_pem().to_owned(),
        local_path: config.local_path,
        service_cidrs: ranges,
        dns_service: config.dns_service,
    };
    services::forget_misplaced(&api.registry).await;
    let tasks = TaskTracker::new();
    let patience = connection::Patience {
        handshake: config.handshake_timeout,
        headers: config.headers_timeout,
    };
    tasks.spawn(connection::accept(
        Arc::clone(&api),
        listener,
        (certificate.shown(), patience),
        cancel.clone(),
        tasks.clone(),
    ));
    let fresh = certificate.keep_fresh(config.certificate_looks);
    tasks.spawn(cancel.clone().run_until_cancelled_owned(fresh));
    tasks.spawn(sweep::expire_events(
        api.registry.clone(),
        config.event_ttl,
        cancel.clone(),
    ));
    let registry = &api.registry;
    bootstrap::run(registry.store(), &settings, |write| async move {
        registry.put(write.group, write.plural, write.object).await
    })
    .await
    .map_err(StartError::Bootstrap)?;
    fairness::take_over(&api.fairness, &api.registry).await;
    services::repair(&api.registry).await;
    Aggregator::register(&api.registry).await;
    follow(&api, &tasks, &cancel);
    if let authorization::Config::File(path) = config.authorization {
        tasks.spawn(authorization::follow(
            api.authz.clone(),
            path,
            cancel.clone(),
        ));
    }
    api.ready.store(true, Ordering::Release);
    Ok(ApiServer {
        api,
        addr,
        cancel,
        tasks,
    })
}

/// What requests meet, as it is configured.
fn api(
    config: &Config,
    registry: Registry,
    cancel: &CancellationToken,
) -> Result<Arc<Api>, StartError> {
    let kubelets = Kubelets::new(&config.pki)?;
    definitions::load(&registry);
    let draining = cancel.child_token();
    let mut api = Api::new(
        registry,
        &config.pki,
        kubelets,
        draining,
        config.request_timeout,
    );
    if let Some(provider) = config.oidc.clone() {
        api.authn.trust(provider)?;
    }
    if let Some(file) = &config.authentication_file {
        api.authn.configure(file)?;
    }
    if let Some(webhook) = &config.token_webhook {
        api.authn.ask(webhook)?;
    }
    if let Some(everywhere) = config.anonymous {
        api.authn.let_in_anonymous(everywhere);
    }
    api.authn.answer_to(&config.audiences);
    authorization::configure(&api.authz, &config.authorization)?;
    if let Some(file) = &config.admission_file {
        api.admission.configure(file)?;
    }
    if let Some(audit) = &config.audit {
        api.audit = Some(Arc::new(Audit::open(audit)?));
    }
    Ok(Arc::new(api))
}

/// Starts what follows the objects that configure the server.
fn follow(api: &Arc<Api>, tasks: &TaskTracker, cancel: &CancellationToken) {
    // After the bootstrap: it would see aggregated roles before their parts and write what is undone a moment later.
    tasks.spawn(Arc::clone(&api.aggregator).run(api.registry.clone(), cancel.clone()));
    tasks.spawn(definitions::run(api.registry.clone(), cancel.clone()));
    tasks.spawn(admission::check_types(api.registry.clone(), cancel.clone()));
    tasks.spawn(fairness::run(
        Arc::clone(&api.fairness),
        api.registry.clone(),
        cancel.clone(),
    ));
    tasks.spawn(aggregation::run(
        api.registry.store().clone(),
        cancel.clone(),
    ));
}

async fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| {
        if source.kind() == std::io::ErrorKind::AddrInUse {
            StartError::AddressInUse(address)
        } else {
            StartError::Listen { address, source }
        }
    })
}

impl ApiServer {
    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The API without a socket, as `user`.
    #[must_use]
    pub fn service(&self, user: UserInfo) -> LocalService {
        LocalService::new(Arc::clone(&self.api), Peer::Local(Arc::new(user)))
    }

    /// What requests go through, for tests that come as somebody who has yet to prove who they are.
    #[cfg(test)]
    pub(crate) fn api_for_tests(&self) -> &Api {
        &self.api
    }

    /// The objects behind the API.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.api.registry
    }

    /// Waits until the server has been cancelled and its tasks are done. The store is the caller's to close.
    pub async fn stopped(&self) {
        self.cancel.cancelled().await;
        self.tasks.close();
        if tokio::time::timeout(DRAIN_TIMEOUT * 2, self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                late = self.tasks.len(),
                "Tasks of the API server did not end in time"
            );
        }
    }
}
