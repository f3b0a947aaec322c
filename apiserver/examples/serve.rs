//! A server over a memory store (or over sled in a folder), for trying clients on: writes a kubeconfig and serves until Ctrl-C.
//!
//! `cargo run -p cox-apiserver --example serve -- FOLDER [--sled]`

use std::path::PathBuf;
use std::sync::Arc;

use cox_apiserver::pki::Pki;
use cox_apiserver::{BuiltinIndexer, Config, Deps, start};
use cox_store::{Backend, Store};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().ok_or("usage: serve FOLDER [--sled]")?);
    let backend = match arguments.next().as_deref() {
        Some("--sled") => Backend::Sled {
            dir: folder.join("store"),
        },
        _ => Backend::Memory,
    };
    let pki = Arc::new(Pki::load_or_create(&folder)?);
    let store = Store::open(cox_store::Config::new(backend), Arc::new(BuiltinIndexer))?;
    let cancel = CancellationToken::new();
    let config = Config::new("127.0.0.1:0".parse()?, Arc::clone(&pki));
    let server = start(config, Deps::new(store.clone()), cancel.clone()).await?;
    let url = format!("https://{}", server.addr());
    std::fs::write(
        folder.join("kubeconfig"),
        pki.kubeconfig(&url, &pki.issue_admin()?),
    )?;
    tokio::signal::ctrl_c().await?;
    cancel.cancel();
    server.stopped().await;
    store.close().await;
    Ok(())
}
