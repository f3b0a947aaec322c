//! A server that can be stopped and started again on the same address, and clients for it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cox_apiserver::pki::Pki;
use cox_apiserver::{ApiServer, BuiltinIndexer, Config, Deps, start};
use cox_store::{Backend, Store};
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What outlives a server: keys, the store's folder.
pub(crate) struct Home {
    folder: TempDir,
    pki: Arc<Pki>,
}

/// A running server.
pub(crate) struct Running {
    pub(crate) server: ApiServer,
    pub(crate) store: Store,
    cancel: CancellationToken,
    pki: Arc<Pki>,
}

impl Home {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pki = Arc::new(Pki::load_or_create(&folder.path().join("pki")).unwrap());
        Home { folder, pki }
    }

    /// Opens the store of this home, which must not be open.
    pub(crate) fn open(&self) -> Store {
        let backend = Backend::Sled {
            dir: self.folder.path().join("store"),
        };
        Store::open(cox_store::Config::new(backend), Arc::new(BuiltinIndexer)).unwrap()
    }

    pub(crate) async fn serve(&self) -> Running {
        self.serve_at("127.0.0.1:0".parse().unwrap(), self.open())
            .await
    }

    /// Serves a store at an address, which may be one that a server has just left.
    pub(crate) async fn serve_at(&self, address: SocketAddr, store: Store) -> Running {
        let cancel = CancellationToken::new();
        let config = Config::new(address, Arc::clone(&self.pki));
        let server = start(config, Deps::new(store.clone()), cancel.clone())
            .await
            .unwrap();
        Running {
            server,
            store,
            cancel,
            pki: Arc::clone(&self.pki),
        }
    }
}

impl Running {
    /// A client with an administrator's certificate.
    pub(crate) async fn client(&self) -> Client {
        let url = format!("https://{}", self.server.addr());
        let text = self.pki.kubeconfig(&url, &self.pki.issue_admin().unwrap());
        let kubeconfig = Kubeconfig::from_yaml(&text).unwrap();
        let config =
            kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
        Client::try_from(config.unwrap()).unwrap()
    }

    /// Begins the stop: no new connections, watches end.
    pub(crate) fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Stops it; the store is left open for whoever has it.
    pub(crate) async fn halt(self) -> Store {
        self.cancel.cancel();
        self.server.stopped().await;
        self.store
    }

    /// Stops it and closes the store.
    pub(crate) async fn stop(self) {
        self.halt().await.close().await;
    }
}

/// Asks again and again until the answer is yes.
pub(crate) async fn soon(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(
        tokio::time::timeout(PATIENCE, wait).await.is_ok(),
        "waited in vain for {what}"
    );
}
