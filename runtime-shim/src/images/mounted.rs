//! Programs that no image holds: Wasm files of a container's mounts, which an exec names. They are copied in and known by their
//! digest like all others, so they are compiled once, in the child process; the next sweep removes what nobody uses.

use std::io::Read;
use std::sync::Arc;

use super::{Digest, ImageError, Images};
use crate::engine::Program;

const PIECE_BYTES: usize = 256 << 10;

impl Images {
    /// The program of `file`, which messages call `name`.
    pub(crate) async fn mounted(
        &self,
        name: &str,
        file: std::fs::File,
    ) -> Result<Arc<Program>, ImageError> {
        // No sweep until the program is made: nothing refers to its file.
        let _incoming = self.incoming.read().await;
        let mut draft = self.blobs.draft(self.config.wasm_bytes_max)?;
        let read = |source| ImageError::Io {
            verb: "read",
            path: name.into(),
            source,
        };
        let copied = tokio::task::spawn_blocking(move || {
            let mut file = file;
            let mut piece = vec![0; PIECE_BYTES];
            loop {
                match file.read(&mut piece) {
                    Ok(0) => return Ok(draft.finish()),
                    Ok(len) => {
                        if let Err(err) = draft.write(&piece[..len]) {
                            return Ok(Err(err));
                        }
                    }
                    Err(err) => return Err(err),
                }
            }
        });
        let copied = copied
            .await
            .map_err(|err| read(std::io::Error::other(err)))?;
        let (copy, digest): (_, Digest) = copied.map_err(read)??;
        self.blobs.keep(copy, &digest)?;
        self.code
            .program(&digest, &self.blobs.path(&digest))
            .await
            .map_err(|source| ImageError::Code {
                image: name.to_owned(),
                source,
            })
    }
}
