//! What survives the shim: one folder per sandbox and container below the state folder, written before the effect it announces.
//!
//! `config` is the CRI message as it came (protobuf), written once; `state.json` is replaced at every move. After a restart of the
//! shim, `recover` in [`crate::shim`] reads them back. The folder is lost with a reboot, as are the containers.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::VerbError;

const CONFIG: &str = "config";
const STATE: &str = "state.json";

/// The folders of one kind of thing.
#[derive(Debug)]
pub(crate) struct StateDir {
    dir: PathBuf,
    /// A container that ends while it is being stopped is saved by both: one draft at a time.
    saving: Mutex<()>,
}

/// What was read back.
pub(crate) struct Recovered<C, S> {
    pub(crate) id: String,
    pub(crate) config: C,
    pub(crate) state: S,
}

impl StateDir {
    pub(crate) fn open(state_dir: &Path, kind: &str) -> Result<Self, VerbError> {
        let dir = state_dir.join(kind);
        // Configurations hold the Pods' environments, secrets among them.
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(|err| checkpoint(&dir, err))?;
        Ok(Self {
            dir,
            saving: Mutex::new(()),
        })
    }

    /// The folder of `id`, which may hold more than state.
    pub(crate) fn path(&self, id: &str) -> PathBuf {
        self.dir.join(id)
    }

    pub(crate) fn create<S: Serialize>(
        &self,
        id: &str,
        config: &impl prost::Message,
        state: &S,
    ) -> Result<(), VerbError> {
        let dir = self.path(id);
        std::fs::create_dir(&dir)
            .and_then(|()| std::fs::write(dir.join(CONFIG), config.encode_to_vec()))
            .map_err(|err| checkpoint(&dir, err))?;
        self.save(id, state)
    }

    pub(crate) fn save<S: Serialize>(&self, id: &str, state: &S) -> Result<(), VerbError> {
        let path = self.path(id).join(STATE);
        let bytes = serde_json::to_vec(state).expect("state is plain data");
        let draft = path.with_extension("new");
        let _one_at_a_time = self.saving.lock();
        std::fs::write(&draft, bytes)
            .and_then(|()| std::fs::rename(&draft, &path))
            .map_err(|err| checkpoint(&path, err))
    }

    pub(crate) fn remove(&self, id: &str) -> Result<(), VerbError> {
        match std::fs::remove_dir_all(self.path(id)) {
            Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
                Err(checkpoint(&self.path(id), err))
            }
            _ => Ok(()),
        }
    }

    /// Reads everything back; what is half-written (the shim died while making it) is removed.
    pub(crate) fn recover<C: prost::Message + Default, S: DeserializeOwned>(
        &self,
    ) -> Vec<Recovered<C, S>> {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| {
                let id = entry.file_name().into_string().ok()?;
                let read = |name: &str| std::fs::read(entry.path().join(name)).ok();
                let config = read(CONFIG).and_then(|bytes| C::decode(&*bytes).ok());
                let state = read(STATE).and_then(|bytes| serde_json::from_slice(&bytes).ok());
                if let (Some(config), Some(state)) = (config, state) {
                    return Some(Recovered { id, config, state });
                }
                tracing::warn!(id, "Half-written state is removed");
                if let Err(err) = crate::sandbox::unmount_below(&entry.path()) {
                    tracing::warn!(error = %err, id, "Half-written state could not be unmounted");
                }
                if let Err(err) = self.remove(&id) {
                    tracing::warn!(error = %err, id, "Half-written state could not be removed");
                }
                None
            })
            .collect()
    }
}

fn checkpoint(path: &Path, source: std::io::Error) -> VerbError {
    VerbError::Checkpoint {
        path: path.display().to_string(),
        source,
    }
}
