//! The certificate that the server shows. It is issued again while the server runs, before the old one ends.

use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::sync::watch;

use crate::pki::{PemPair, Pki, PkiError};

/// What new connections are shown; those that stand go on.
pub(super) struct Certificate {
    pki: Arc<Pki>,
    names: Vec<String>,
    serving: PemPair,
    shown: watch::Sender<Arc<ServerConfig>>,
}

impl Certificate {
    pub(super) fn of(pki: Arc<Pki>, names: Vec<String>) -> Result<Self, PkiError> {
        let serving = pki.serving(&names)?;
        let (shown, _) = watch::channel(pki.server_config(&serving)?);
        Ok(Self {
            pki,
            names,
            serving,
            shown,
        })
    }

    pub(super) fn shown(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.shown.subscribe()
    }

    /// Looks every `period` whether another is due. The clock may jump and the machine may sleep: no end is waited for.
    pub(super) async fn keep_fresh(mut self, period: Duration) {
        loop {
            tokio::time::sleep(period).await;
            match self.look() {
                Ok(true) => tracing::info!("The serving certificate was issued again"),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, "The serving certificate could not be issued again");
                }
            }
        }
    }

    fn look(&mut self) -> Result<bool, PkiError> {
        let serving = self.pki.serving(&self.names)?;
        if serving == self.serving {
            return Ok(false);
        }
        self.shown.send_replace(self.pki.server_config(&serving)?);
        self.serving = serving;
        Ok(true)
    }
}
