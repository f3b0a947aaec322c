//! `cox image`: loads and lists the images of the node that runs on this machine, through the runtime's image door.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use cox_runtime_shim::images::door::{self, DoorError};

use crate::cli::ImageCommand;
use crate::manifests::ImageFile;
use crate::paths::Paths;

pub(crate) async fn run(command: ImageCommand) -> Result<()> {
    match command {
        ImageCommand::Load {
            files,
            name,
            common,
        } => {
            let socket = Paths::resolve(&common)?.images_socket();
            for image in named(&files, name)? {
                let entry = load(&socket, &image).await?;
                writeln!(std::io::stdout(), "{}  {}", entry.name, entry.id)?;
            }
        }
        ImageCommand::Pull { images, common } => {
            let socket = Paths::resolve(&common)?.images_socket();
            for image in images {
                let entry = pull(&socket, &image).await?;
                writeln!(std::io::stdout(), "{}  {}", entry.name, entry.id)?;
            }
        }
        ImageCommand::Ls { common } => {
            let socket = Paths::resolve(&common)?.images_socket();
            let mut entries = door::list(&socket)
                .await
                .map_err(|error| explain(error, &socket))?;
            entries.sort_by(|a, b| a.name.cmp(&b.name));
            let width = entries
                .iter()
                .map(|entry| entry.name.len())
                .max()
                .unwrap_or(0)
                .max("IMAGE".len());
            let mut out = std::io::stdout().lock();
            writeln!(out, "{:width$}  {:>10}  ID", "IMAGE", "SIZE")?;
            for entry in entries {
                writeln!(
                    out,
                    "{:width$}  {:>10}  {}",
                    entry.name, entry.size, entry.id
                )?;
            }
        }
    }
    Ok(())
}

/// Pulls one image and shows on a terminal how far it is.
async fn pull(socket: &Path, image: &str) -> Result<door::Entry> {
    let shows = std::io::stderr().is_terminal();
    let megabytes = |bytes: u64| format!("{}.{}", bytes / 1_000_000, bytes / 100_000 % 10);
    let mut shown = String::new();
    let pulled = door::pull(socket, image, |now| {
        let text = format!(
            "{image}  {} of {} MB",
            megabytes(now.bytes),
            megabytes(now.of)
        );
        if shows && now.of > 0 && text != shown {
            // The line is written over; what cannot be shown is not missed.
            write!(std::io::stderr(), "\r\x1b[K{text}").ok();
            shown = text;
        }
    });
    let pulled = pulled.await;
    if shows {
        write!(std::io::stderr(), "\r\x1b[K").ok();
    }
    pulled.map_err(|error| explain(error, socket))
}

/// Loads one file; the runtime checks and compiles it before it answers.
pub(crate) async fn load(socket: &Path, image: &ImageFile) -> Result<door::Entry> {
    let wasm = std::fs::read(&image.path)
        .with_context(|| format!("{} cannot be read", image.path.display()))?;
    door::load(socket, image.reference.as_deref(), wasm.into())
        .await
        .map_err(|error| explain(error, socket))
        .with_context(|| format!("{} was not loaded", image.path.display()))
}

fn named(files: &[PathBuf], name: Option<String>) -> Result<Vec<ImageFile>> {
    match (name, files) {
        (Some(reference), [path]) => Ok(vec![ImageFile {
            reference: Some(reference),
            path: path.clone(),
        }]),
        (Some(_), _) => bail!("--name names one image: give one file with it"),
        (None, files) => files.iter().map(|path| ImageFile::new(path)).collect(),
    }
}

fn explain(error: DoorError, socket: &Path) -> anyhow::Error {
    if socket.exists() {
        error.into()
    } else {
        anyhow::Error::from(error).context(
            "no node runs on these folders: start one with `cox up`, or say which with --data-dir",
        )
    }
}
