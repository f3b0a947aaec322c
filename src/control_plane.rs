//! Wires the control plane of one process: store, API server, scheduler, controllers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use anyhow::{Context, Result};
use cox_apiserver::auth::{UserInfo, authorization, token_webhook};
use cox_apiserver::encryption::Encryption;
use cox_apiserver::pki::{Pki, SignRequest};
use cox_apiserver::services::cidr::Cidr;
use cox_apiserver::{ApiServer, StartError};
use cox_client::{Informers, SystemClock, leader};
use cox_controllers::NodeRanges;
use cox_store::{Backend, EtcdConfig, Store};
use http::HeaderValue;
use tokio_util::sync::CancellationToken;

use crate::cli::{AuditArgs, AuthArgs, ListenArgs, OidcArgs, Part, RangeArgs, StorageArgs};
use crate::components::Components;
use crate::paths::{Paths, write_private};

/// A control plane that serves.
pub(crate) struct ControlPlane {
    pub(crate) pki: Arc<Pki>,
    pub(crate) url: String,
    api: Arc<ApiServer>,
    store: Store,
    informers: Informers,
    api_cancel: CancellationToken,
    service_lb: bool,
    node_ranges: NodeRanges,
    /// Other servers may work on the same store: of each component one is active.
    shared: bool,
}

impl ControlPlane {
    /// Opens the store, starts the API server and writes `<data-dir>/kubeconfig`; the components come with [`Self::run_components`].
    /// `service_cidr` is the range of Service addresses where the flags say none; `node_ip` the address of the node in this process.
    pub(crate) async fn start(
        paths: &Paths,
        (listen, ranges): (&ListenArgs, &RangeArgs),
        service_cidr: &str,
        node_ip: Option<IpAddr>,
    ) -> Result<Self> {
        let node_ranges = ranges.for_nodes()?;
        let pki = Arc::new(Pki::load_or_create(&paths.pki())?);
        let backend = backend(paths, &listen.storage);
        let shared = matches!(backend, Backend::Etcd(_));
        let mut store_config = cox_store::Config::new(backend);
        let encryption = match &listen.storage.encryption_provider_config {
            Some(path) => Some(Arc::new(Encryption::load(
                path,
                &listen.storage.etcd_prefix,
            )?)),
            None => None,
        };
        if let Some(encryption) = &encryption {
            store_config.sealer = Arc::<Encryption>::clone(encryption);
        }
        let open = tokio::task::spawn_blocking(move || {
            Store::open(
                store_config,
                Arc::new(cox_apiserver::registry::BuiltinIndexer),
            )
        });
        let store = open.await.context("the store's start panicked")??;
        let api_cancel = CancellationToken::new();
        let mut config =
            cox_apiserver::Config::new(SocketAddr::new(listen.bind, listen.port), Arc::clone(&pki));
        config.extra_sans = listen.tls_sans.clone();
        config.local_path = !listen.no_local_path;
        let advertise = advertised(listen, node_ip);
        config.extra_sans.push(advertise.to_string());
        // The port is the one that is listened on.
        config.advertise = Some(SocketAddr::new(advertise, 0));
        config.service_cidrs = service_cidrs(&listen.service_cidrs, service_cidr, advertise)?;
        config.audit = audit(&listen.audit);
        config.oidc = oidc(&listen.oidc)?;
        set_auth(&mut config, &listen.auth);
        config
            .admission_file
            .clone_from(&listen.admission_control_config_file);
        config.dns_service = !listen.disable.contains(&Part::Dns);
        let mut deps = cox_apiserver::Deps::new(store.clone());
        deps.encryption = encryption;
        let api = Arc::new(
            cox_apiserver::start(config, deps, api_cancel.clone())
                .await
                .map_err(with_mend)?,
        );
        let url = url_of(api.addr());
        write_private(
            &paths.kubeconfig(),
            &pki.kubeconfig(&url, &pki.issue_admin()?),
        )?;
        let informers = Informers::new(
            client_as(&api, internal("cox:informers"), "cox"),
            &api_cancel,
        );
        Ok(Self {
            pki,
            url,
            api,
            store,
            informers,
            api_cancel,
            service_lb: !listen.disable.contains(&Part::ServiceLb),
            node_ranges,
            shared,
        })
    }

    /// A client that acts as `user`, in process: no socket and no TLS, but the same authorization and admission.
    pub(crate) fn client_as(&self, user: UserInfo, manager: &'static str) -> kube::Client {
        client_as(&self.api, user, manager)
    }

    /// A client that may do everything.
    pub(crate) fn admin(&self) -> kube::Client {
        self.client_as(internal("cox:admin"), "cox")
    }

    /// The client of the gateway.
    pub(crate) fn gateway(&self) -> kube::Client {
        self.client_as(internal("cox:gateway"), "coxswain-ingress")
    }

    /// The informers that all components of the process share.
    pub(crate) fn informers(&self) -> Informers {
        self.informers.clone()
    }

    /// Starts the scheduler and the controllers.
    pub(crate) fn run_components(&self, components: &mut Components) {
        self.run_scheduler(components);
        self.run_controllers(components);
    }

    fn run_scheduler(&self, components: &mut Components) {
        let client = self.client_as(
            UserInfo::new("system:kube-scheduler", ["system:authenticated"]),
            "kube-scheduler",
        );
        let informers = self.informers();
        let run = move |cancel| {
            let deps = cox_scheduler::Deps {
                client: client.clone(),
                informers: informers.clone(),
                clock: Arc::new(SystemClock),
            };
            async move {
                let config = cox_scheduler::Config::default();
                Ok(cox_scheduler::run(config, deps, cancel).await?)
            }
        };
        self.spawn_one(components, "scheduler", "kube-scheduler", run);
    }

    fn run_controllers(&self, components: &mut Components) {
        let api = Arc::clone(&self.api);
        let informers = self.informers();
        let ca_pem = self.pki.ca_pem().to_owned();
        let service_lb = self.service_lb;
        let node_ranges = self.node_ranges.clone();
        let signer = signer(&self.pki);
        let run = move |cancel| {
            let api = Arc::clone(&api);
            let deps = cox_controllers::Deps {
                client_for: Arc::new(move |name: &str| {
                    client_as(
                        &api,
                        UserInfo::service_account("kube-system", name, ""),
                        "kube-controller-manager",
                    )
                }),
                informers: informers.clone(),
                clock: Arc::new(SystemClock),
            };
            let mut config = cox_controllers::Config::new(ca_pem.as_str());
            config.service_lb = service_lb;
            config.node_ranges = node_ranges.clone();
            config.signer = Some(Arc::clone(&signer));
            async move { Ok(cox_controllers::run(config, deps, cancel).await?) }
        };
        self.spawn_one(components, "controllers", "kube-controller-manager", run);
    }

    /// Runs a component; where other servers run it too, only while this one holds its lease.
    fn spawn_one<F, Fut>(
        &self,
        components: &mut Components,
        name: &'static str,
        lease: &'static str,
        run: F,
    ) where
        F: Fn(CancellationToken) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        let cancel = components.cancellation();
        if !self.shared {
            components.spawn(name, run(cancel));
            return;
        }
        let client = self.client_as(internal("cox:election"), "cox");
        let identity = format!(
            "{}_{}_{}",
            rustix::system::uname().nodename().to_string_lossy(),
            self.url.trim_start_matches("https://"),
            std::process::id()
        );
        components.spawn(name, async move {
            loop {
                let config = leader::Config::new("kube-system", lease, &identity);
                let clock = Arc::new(SystemClock);
                let mut outcome = Ok(());
                let (run, slot) = (&run, &mut outcome);
                let work = move |leading| {
                    let running = run(leading);
                    async move { *slot = running.await }
                };
                let ended = leader::lead(client.clone(), config, clock, cancel.clone(), work).await;
                match ended {
                    leader::Ended::Finished | leader::Ended::Cancelled => return outcome,
                    leader::Ended::Lost => outcome?,
                }
            }
        });
    }

    /// Ends the API server, then closes the store: everything acknowledged is on disk before the process ends.
    pub(crate) async fn stop(self) {
        self.api_cancel.cancel();
        self.api.stopped().await;
        self.store.close().await;
    }
}

/// The ranges of Service addresses: those that were `told`, or the `usual` one.
fn service_cidrs(told: &[Cidr], usual: &str, advertise: IpAddr) -> Result<Vec<Cidr>> {
    let ranges = match told {
        [] => vec![usual.parse()?],
        told => told.to_vec(),
    };
    if ranges[0].family() != family(advertise) {
        let kind = ranges[0].family();
        tracing::warn!(
            %advertise,
            "Pods do not reach the API server by the Service kubernetes, whose address is one of {kind}: give it an address of {kind} with \
             --bind or --advertise-address"
        );
    }
    Ok(ranges)
}

fn family(ip: IpAddr) -> &'static str {
    match ip {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    }
}

/// Where others in the cluster find the API server: nobody can connect to "every address".
fn advertised(listen: &ListenArgs, node_ip: Option<IpAddr>) -> IpAddr {
    let usable = |ip: &IpAddr| !ip.is_unspecified();
    listen
        .advertise_address
        .or_else(|| Some(listen.bind).filter(usable))
        .or_else(|| node_ip.filter(usable))
        .or_else(|| outward_address(listen.bind))
        .unwrap_or(match listen.bind {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        })
}

/// The address that packets to other networks come from. Nothing is sent: the kernel is only asked for the route.
fn outward_address(any: IpAddr) -> Option<IpAddr> {
    let far: SocketAddr = match any {
        IpAddr::V4(_) => ([192, 0, 2, 1], 9).into(),
        IpAddr::V6(_) => ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 9).into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(far).ok()?;
    let own = socket.local_addr().ok()?.ip();
    Some(own).filter(|ip| !ip.is_unspecified())
}

/// Who else says who asks, and who decides what they may do.
fn set_auth(config: &mut cox_apiserver::Config, args: &AuthArgs) {
    config
        .authentication_file
        .clone_from(&args.authentication_config);
    let webhook = args.authentication_token_webhook_config_file.clone();
    config.token_webhook = webhook.map(|kubeconfig| token_webhook::Config {
        kubeconfig,
        version: args.authentication_token_webhook_version.clone(),
        ttl: args.authentication_token_webhook_cache_ttl,
    });
    config.anonymous = args.anonymous_auth;
    config.audiences.clone_from(&args.api_audiences);
    if let Some(file) = &args.authorization_config {
        config.authorization = authorization::Config::File(file.clone());
        return;
    }
    let webhook = args.authorization_webhook_config_file.clone();
    config.authorization = authorization::Config::Flags {
        modes: args.authorization_mode.clone(),
        webhook: webhook.map(|kubeconfig| authorization::FlagWebhook {
            kubeconfig,
            version: args.authorization_webhook_version.clone(),
            authorized_ttl: args.authorization_webhook_cache_authorized_ttl,
            unauthorized_ttl: args.authorization_webhook_cache_unauthorized_ttl,
        }),
    };
}

/// The provider of users, where an issuer is named.
fn oidc(args: &OidcArgs) -> Result<Option<cox_apiserver::auth::oidc::Config>> {
    let named = args
        .oidc_issuer_url
        .clone()
        .zip(args.oidc_client_id.clone())
        .zip(args.oidc_jwks_file.clone());
    let Some(((issuer_url, client_id), jwks_file)) = named else {
        return Ok(None);
    };
    let required = args.oidc_required_claims.iter().map(|one| {
        let (claim, value) = one
            .split_once('=')
            .with_context(|| format!("--oidc-required-claim {one:?} is not CLAIM=VALUE"))?;
        Ok((claim.to_owned(), value.to_owned()))
    });
    Ok(Some(cox_apiserver::auth::oidc::Config {
        issuer_url,
        client_id,
        jwks_file,
        username_claim: args.oidc_username_claim.clone(),
        username_prefix: args.oidc_username_prefix.clone(),
        groups_claim: args.oidc_groups_claim.clone(),
        groups_prefix: args.oidc_groups_prefix.clone(),
        required_claims: required.collect::<Result<_>>()?,
        signing_algs: args.oidc_signing_algs.clone(),
    }))
}

/// The audit log, where a policy says what is in it.
fn audit(args: &AuditArgs) -> Option<cox_apiserver::audit::Config> {
    Some(cox_apiserver::audit::Config {
        policy_file: args.audit_policy_file.clone()?,
        path: args.audit_log_path.clone()?,
        rotation: cox_apiserver::audit::Rotation {
            size_mib: args.audit_log_maxsize,
            backups: args.audit_log_maxbackup,
            age_days: args.audit_log_maxage,
        },
    })
}

/// The data folder, or etcd where its servers are named.
fn backend(paths: &Paths, args: &StorageArgs) -> Backend {
    if args.etcd_servers.is_empty() {
        return Backend::Sled { dir: paths.store() };
    }
    let identity = args.etcd_certfile.clone().zip(args.etcd_keyfile.clone());
    let tls = args.etcd_cafile.clone().map(|ca_file| cox_store::Tls {
        ca_file,
        identity: identity.map(|(cert_file, key_file)| cox_store::Identity {
            cert_file,
            key_file,
        }),
    });
    Backend::Etcd(EtcdConfig {
        tls,
        prefix: args.etcd_prefix.clone(),
        ..EtcdConfig::new(args.etcd_servers.clone())
    })
}

/// `manager` names the component in the managed fields of what it writes, in upstream's words.
fn client_as(api: &ApiServer, user: UserInfo, manager: &'static str) -> kube::Client {
    cox_client::in_process_as(api.service(user), HeaderValue::from_static(manager))
}

/// Signs what the controllers found to be approved.
fn signer(pki: &Arc<Pki>) -> cox_controllers::Signer {
    let pki = Arc::clone(pki);
    Arc::new(move |request_pem, usages, valid_for| {
        let request = SignRequest {
            request_pem,
            usages,
            valid_for,
        };
        pki.sign(&request).map_err(|error| error.to_string())
    })
}

/// A part of this process that acts with all rights, as upstream's loopback client does.
fn internal(name: &str) -> UserInfo {
    UserInfo::new(name, ["system:masters", "system:authenticated"])
}

/// The flag that mends it, where there is one.
fn with_mend(error: StartError) -> anyhow::Error {
    match error {
        StartError::AddressInUse(address) => {
            anyhow::anyhow!(
                "{address} is in use by another program: choose another port with --port (0 picks a free one)"
            )
        }
        other => other.into(),
    }
}

fn url_of(addr: SocketAddr) -> String {
    let reachable = match addr.ip() {
        ip if !ip.is_unspecified() => addr,
        IpAddr::V4(_) => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), addr.port()),
        IpAddr::V6(_) => SocketAddr::new(Ipv6Addr::LOCALHOST.into(), addr.port()),
    };
    format!("https://{reachable}")
}
