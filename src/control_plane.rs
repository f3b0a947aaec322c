//! Wires the control plane of one process: store, API server, scheduler, controllers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use anyhow::{Context, Result};
use cox_apiserver::auth::UserInfo;
use cox_apiserver::pki::{Pki, SignRequest};
use cox_apiserver::{ApiServer, StartError};
use cox_client::{Informers, SystemClock};
use cox_store::{Backend, Store};
use http::HeaderValue;
use tokio_util::sync::CancellationToken;

use crate::cli::{ListenArgs, Part};
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
}

impl ControlPlane {
    /// Opens the store, starts the API server and writes `<data-dir>/kubeconfig`; the components come with [`Self::run_components`].
    /// `service_cidr` is the range of Service addresses where the flags say none; `node_ip` the address of the node in this process.
    pub(crate) async fn start(
        paths: &Paths,
        listen: &ListenArgs,
        service_cidr: &str,
        node_ip: Option<IpAddr>,
    ) -> Result<Self> {
        let pki = Arc::new(Pki::load_or_create(&paths.pki())?);
        let dir = paths.store();
        let open = tokio::task::spawn_blocking(move || {
            let backend = Backend::Sled { dir };
            Store::open(
                cox_store::Config::new(backend),
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
        config.service_cidrs.clone_from(&listen.service_cidrs);
        if config.service_cidrs.is_empty() {
            config.service_cidrs.push(service_cidr.parse()?);
        }
        config.dns_service = !listen.disable.contains(&Part::Dns);
        let deps = cox_apiserver::Deps::new(store.clone());
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

    /// The informers that all components of the process share.
    pub(crate) fn informers(&self) -> Informers {
        self.informers.clone()
    }

    /// Starts the scheduler and the controllers.
    pub(crate) fn run_components(&self, components: &mut Components) {
        let cancel = components.cancellation();
        let scheduler = cox_scheduler::Deps {
            client: self.client_as(
                UserInfo::new("system:kube-scheduler", ["system:authenticated"]),
                "kube-scheduler",
            ),
            informers: self.informers(),
            clock: Arc::new(SystemClock),
        };
        let run = cox_scheduler::run(cox_scheduler::Config::default(), scheduler, cancel.clone());
        components.spawn("scheduler", async move {
            run.await.map_err(anyhow::Error::from)
        });

        let api = Arc::clone(&self.api);
        let controllers = cox_controllers::Deps {
            client_for: Arc::new(move |name: &str| {
                client_as(
                    &api,
                    UserInfo::service_account("kube-system", name, ""),
                    "kube-controller-manager",
                )
            }),
            informers: self.informers(),
            clock: Arc::new(SystemClock),
        };
        let mut config = cox_controllers::Config::new(self.pki.ca_pem());
        config.service_lb = self.service_lb;
        config.signer = Some(signer(&self.pki));
        let run = cox_controllers::run(config, controllers, cancel);
        components.spawn("controllers", async move {
            run.await.map_err(anyhow::Error::from)
        });
    }

    /// Ends the API server, then closes the store: everything acknowledged is on disk before the process ends.
    pub(crate) async fn stop(self) {
        self.api_cancel.cancel();
        self.api.stopped().await;
        self.store.close().await;
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
    let reachable = if addr.ip().is_unspecified() {
        SocketAddr::new([127, 0, 0, 1].into(), addr.port())
    } else {
        addr
    };
    format!("https://{reachable}")
}
