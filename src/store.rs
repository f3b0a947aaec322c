//! `cox store`: backups of a running cluster, and what can be done to the store of a stopped one.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use cox_apiserver::encryption::Encryption;
use cox_store::{Sealer, Unsealed, backup};
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::cli::{StoreArgs, StoreCommand};
use crate::paths::Paths;

const ENDING: &str = "coxbackup";

pub(crate) async fn run(command: StoreCommand) -> Result<()> {
    match command {
        StoreCommand::Backup { file, args } => {
            let paths = Paths::resolve(&args.common)?;
            save(&paths, file).await
        }
        StoreCommand::Restore { file, args } => {
            let paths = Paths::resolve(&args.common)?;
            let sealer = sealer(&args)?;
            let _lock = paths.take()?;
            restore(&paths, file, &sealer)
        }
        StoreCommand::Check { args } => {
            let paths = Paths::resolve(&args.common)?;
            let _lock = paths.take()?;
            let summary = backup::check(&paths.store(), sealer(&args)?)?;
            say(&format!(
                "✓ {} is whole: {} objects, revision {}",
                paths.store().display(),
                summary.objects,
                summary.revision
            ))
        }
        StoreCommand::Compact { args } => {
            let paths = Paths::resolve(&args.common)?;
            let _lock = paths.take()?;
            let (summary, before, after) = backup::compact(&paths.store(), &sealer(&args)?)?;
            say(&format!(
                "✓ {} has {} objects in {} KiB, and had {} KiB",
                paths.store().display(),
                summary.objects,
                after / 1024,
                before / 1024
            ))
        }
    }
}

fn say(text: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

fn sealer(args: &StoreArgs) -> Result<Arc<dyn Sealer>> {
    Ok(match &args.encryption_provider_config {
        Some(path) => Arc::new(Encryption::load(path, "/registry")?),
        None => Arc::new(Unsealed),
    })
}

fn backups(paths: &Paths) -> PathBuf {
    paths.data.join("backups")
}

/// Asks the API server for all objects and writes them to a file, which appears when it is whole.
async fn save(paths: &Paths, file: Option<PathBuf>) -> Result<()> {
    let kubeconfig = Kubeconfig::read_from(paths.kubeconfig()).with_context(|| {
        format!(
            "there is no cluster in {}: start one with `cox up` or `cox server`",
            paths.data.display()
        )
    })?;
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let client = kube::Client::try_from(config)?;
    let request =
        http::Request::get(cox_apiserver::BACKUP_PATH).body(kube::client::Body::empty())?;
    let response = client
        .send(request)
        .await
        .context("the API server does not answer: a backup is taken from a running cluster")?;
    let status = response.status();
    let bytes = response.into_body().collect_bytes().await?;
    if !status.is_success() {
        bail!(
            "the API server refused: {}",
            String::from_utf8_lossy(&bytes)
        );
    }
    let file = match file {
        Some(file) => file,
        None => {
            let folder = backups(paths);
            std::fs::create_dir_all(&folder)
                .with_context(|| format!("{} cannot be made", folder.display()))?;
            // The names of later ones sort after those of earlier ones.
            let now = k8s_openapi::jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S%3fZ");
            folder.join(format!("{now}.{ENDING}"))
        }
    };
    write_whole(&file, &bytes)?;
    say(&format!(
        "✓ backup of {} KiB in {}",
        bytes.len() / 1024,
        file.display()
    ))
}

fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let temporary = path.with_extension(format!("tmp{}", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().with_context(|| format!("{} cannot be written", path.display()))
}

fn restore(paths: &Paths, file: Option<PathBuf>, sealer: &Arc<dyn Sealer>) -> Result<()> {
    let file = match file {
        Some(file) => file,
        None => newest(&backups(paths))?,
    };
    let bytes =
        std::fs::read(&file).with_context(|| format!("{} cannot be read", file.display()))?;
    let (summary, kept) = backup::restore(&paths.store(), &bytes, sealer)
        .with_context(|| format!("{} was not restored", file.display()))?;
    say(&format!(
        "✓ {} objects restored from {}",
        summary.objects,
        file.display()
    ))?;
    match kept {
        Some(kept) => say(&format!("  what was there is in {}", kept.display())),
        None => Ok(()),
    }
}

/// The last backup that was taken without a name.
fn newest(folder: &Path) -> Result<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ending| ending == ENDING))
        .max()
        .with_context(|| format!("there is no backup in {}: name one", folder.display()))
}
