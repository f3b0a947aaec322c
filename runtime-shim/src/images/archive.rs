//! The tar layers of an image: finds the Wasm files in them. Nothing is unpacked to a file system, so no path in an archive can
//! lead anywhere.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};

use flate2::read::MultiGzDecoder;

/// Wasm files that one image may hold.
const FILES_MAX: usize = 64;
/// Headers of one archive; beyond, it is not an image but an attack.
const ENTRIES_MAX: usize = 1_000_000;
const BLOCK: usize = 512;
/// Long names and pax records, at most.
const META_BYTES_MAX: u64 = 1 << 20;

/// Why a layer could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    #[error("a layer is not a valid tar archive: {0}")]
    Format(&'static str),
    #[error(
        "a layer is compressed with zstd, which is not supported for Wasm images; use gzip or none"
    )]
    Zstd,
    #[error("a layer cannot be read: {0}")]
    Read(#[from] std::io::Error),
    #[error("the image holds more than {0} bytes of Wasm")]
    TooLarge(u64),
    #[error("the image holds more than {FILES_MAX} Wasm files")]
    TooMany,
}

/// The Wasm files of the layers read so far, by absolute path.
#[derive(Debug)]
pub(super) struct WasmFiles {
    pub(super) files: BTreeMap<String, Vec<u8>>,
    bytes_max: u64,
}

impl WasmFiles {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self {
            files: BTreeMap::new(),
            bytes_max,
        }
    }

    /// Puts the next layer on top: its files replace and remove those below.
    pub(super) fn add_layer(&mut self, layer: impl Read) -> Result<(), ArchiveError> {
        let mut layer = BufReader::new(layer);
        match layer.fill_buf()? {
            [0x1f, 0x8b, ..] => self.add_tar(MultiGzDecoder::new(layer)),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Err(ArchiveError::Zstd),
            _ => self.add_tar(layer),
        }
    }

    fn add_tar(&mut self, mut tar: impl Read) -> Result<(), ArchiveError> {
        let mut long_name = None;
        for _ in 0..ENTRIES_MAX {
            let Some(header) = Header::read(&mut tar)? else {
                return Ok(());
            };
            let padding = header.size.next_multiple_of(BLOCK as u64) - header.size;
            match header.kind {
                b'L' | b'x' => {
                    let mut meta =
                        vec![0; usize::try_from(header.size.min(META_BYTES_MAX)).unwrap_or(0)];
                    if header.size > META_BYTES_MAX {
                        return Err(ArchiveError::Format("a name is too long"));
                    }
                    tar.read_exact(&mut meta)?;
                    skip(&mut tar, padding)?;
                    if let Some(name) = if header.kind == b'L' {
                        c_string(&meta)
                    } else {
                        pax_path(&meta)
                    } {
                        long_name = Some(name);
                    }
                    continue;
                }
                b'0' | 0 => self.add_file(
                    &long_name.take().unwrap_or(header.name),
                    header.size,
                    &mut tar,
                )?,
                _ => {
                    long_name = None;
                    skip(&mut tar, header.size)?;
                }
            }
            skip(&mut tar, padding)?;
        }
        Err(ArchiveError::Format("too many entries"))
    }

    fn add_file(&mut self, name: &str, size: u64, tar: &mut impl Read) -> Result<(), ArchiveError> {
        let path = super::absolute(name, "");
        let (dir, file) = path.rsplit_once('/').unwrap_or(("", &path));
        if let Some(removed) = file.strip_prefix(".wh.") {
            // Whiteouts: `.wh.NAME` removes NAME, `.wh..wh..opq` all that the folder held.
            let prefix = if removed == ".wh..opq" {
                format!("{dir}/")
            } else {
                format!("{dir}/{removed}/")
            };
            let whole = format!("{dir}/{removed}");
            self.files
                .retain(|path, _| *path != whole && !path.starts_with(&prefix));
            return skip(tar, size);
        }
        self.files.remove(&path);
        let mut magic = [0; 4];
        if size < 8 {
            return skip(tar, size);
        }
        tar.read_exact(&mut magic)?;
        if magic != *b"\0asm" {
            return skip(tar, size - 4);
        }
        let held: u64 = self.files.values().map(|file| file.len() as u64).sum();
        if held.saturating_add(size) > self.bytes_max {
            return Err(ArchiveError::TooLarge(self.bytes_max));
        }
        if self.files.len() >= FILES_MAX {
            return Err(ArchiveError::TooMany);
        }
        let mut bytes = magic.to_vec();
        tar.take(size - 4).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != size {
            return Err(ArchiveError::Format("it ends in the middle of a file"));
        }
        self.files.insert(path, bytes);
        Ok(())
    }
}

/// Names, places and sizes of the files in a tar archive.
pub(crate) fn tar_entries(
    mut tar: impl Read + std::io::Seek,
) -> Result<Vec<(String, u64, u64)>, ArchiveError> {
    let (mut entries, mut long_name) = (Vec::new(), None);
    for _ in 0..ENTRIES_MAX {
        let Some(header) = Header::read(&mut tar)? else {
            return Ok(entries);
        };
        let at = tar.stream_position()?;
        match header.kind {
            b'L' | b'x' => {
                if header.size > META_BYTES_MAX {
                    return Err(ArchiveError::Format("a name is too long"));
                }
                let mut meta = Vec::new();
                tar.by_ref().take(header.size).read_to_end(&mut meta)?;
                let name = if header.kind == b'L' {
                    c_string(&meta)
                } else {
                    pax_path(&meta)
                };
                long_name = name.or(long_name);
            }
            b'0' | 0 => entries.push((long_name.take().unwrap_or(header.name), at, header.size)),
            _ => long_name = None,
        }
        let next = at.saturating_add(header.size.next_multiple_of(BLOCK as u64));
        tar.seek(std::io::SeekFrom::Start(next))?;
    }
    Err(ArchiveError::Format("too many entries"))
}

struct Header {
    name: String,
    size: u64,
    kind: u8,
}

impl Header {
    /// `None` at the end of the archive.
    fn read(tar: &mut impl Read) -> Result<Option<Self>, ArchiveError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match tar.read(&mut block[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(ArchiveError::Format("it ends in the middle of a header")),
                len => filled += len,
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u64 = block
            .iter()
            .enumerate()
            .map(|(at, byte)| {
                u64::from(if (148..156).contains(&at) {
                    b' '
                } else {
                    *byte
                })
            })
            .sum();
        if number(&block[148..156]) != Some(sum) {
            return Err(ArchiveError::Format("a header's checksum is wrong"));
        }
        let mut name =
            c_string(&block[..100]).ok_or(ArchiveError::Format("a name is not UTF-8"))?;
        let prefix = if &block[257..262] == b"ustar" && block[262] == 0 {
            c_string(&block[345..500])
        } else {
            None
        };
        if let Some(prefix) = prefix.filter(|prefix| !prefix.is_empty()) {
            name = format!("{prefix}/{name}");
        }
        let size =
            number(&block[124..136]).ok_or(ArchiveError::Format("a size is not a number"))?;
        // Links and folders carry no content, whatever their size field says.
        let size = if matches!(block[156], b'1'..=b'6') {
            0
        } else {
            size
        };
        Ok(Some(Self {
            name,
            size,
            kind: block[156],
        }))
    }
}

/// Octal text, or base 256 for large values.
fn number(field: &[u8]) -> Option<u64> {
    if field.first()? & 0x80 != 0 {
        return field[1..].iter().try_fold(0u64, |value, byte| {
            value.checked_mul(256)?.checked_add(u64::from(*byte))
        });
    }
    let digits = field
        .iter()
        .skip_while(|byte| **byte == b' ')
        .take_while(|byte| !matches!(**byte, b' ' | 0));
    digits.copied().try_fold(0u64, |value, byte| match byte {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

fn c_string(bytes: &[u8]) -> Option<String> {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8(bytes[..end].to_vec()).ok()
}

/// The path of a pax record block: lines of `LEN KEY=VALUE\n`.
fn pax_path(mut records: &[u8]) -> Option<String> {
    while !records.is_empty() {
        let space = records.iter().position(|byte| *byte == b' ')?;
        let len: usize = std::str::from_utf8(&records[..space]).ok()?.parse().ok()?;
        let record = records.get(space + 1..len.checked_sub(1)?)?;
        if let Some(path) = record.strip_prefix(b"path=") {
            return String::from_utf8(path.to_vec()).ok();
        }
        records = records.get(len..)?;
    }
    None
}

fn skip(tar: &mut impl Read, bytes: u64) -> Result<(), ArchiveError> {
    let skipped = std::io::copy(&mut tar.take(bytes), &mut std::io::sink())?;
    if skipped == bytes {
        Ok(())
    } else {
        Err(ArchiveError::Format("it ends in the middle of a file"))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write;

    use super::*;

    /// A tar archive of regular files.
    pub(in super::super) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, content) in files {
            let mut block = [0u8; BLOCK];
            block[..name.len()].copy_from_slice(name.as_bytes());
            block[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
            block[148..156].copy_from_slice(b"        ");
            block[156] = b'0';
            block[257..263].copy_from_slice(b"ustar\0");
            let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
            block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
            out.extend_from_slice(&block);
            out.extend_from_slice(content);
            out.resize(out.len().next_multiple_of(BLOCK), 0);
        }
        out.resize(out.len() + 2 * BLOCK, 0);
        out
    }

    const WASM: &[u8] = b"\0asm\x01\0\0\0";

    #[test]
    fn layers_replace_and_remove() {
        let mut wasm = WasmFiles::new(1 << 20);
        wasm.add_layer(&*tar(&[
            ("app.wasm", WASM),
            ("lib/a.wasm", WASM),
            ("lib/b.wasm", WASM),
            ("readme", b"text text"),
        ]))
        .unwrap();
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed
            .write_all(&tar(&[
                ("lib/.wh.a.wasm", b""),
                ("./app.wasm", b"\0asm\x0d\0\x01\0.."),
            ]))
            .unwrap();
        wasm.add_layer(&*packed.finish().unwrap()).unwrap();
        assert_eq!(
            wasm.files.keys().collect::<Vec<_>>(),
            ["/app.wasm", "/lib/b.wasm"]
        );
        assert_eq!(wasm.files["/app.wasm"].len(), 10);
        wasm.add_layer(&*tar(&[("lib/.wh..wh..opq", b"")])).unwrap();
        assert_eq!(wasm.files.keys().collect::<Vec<_>>(), ["/app.wasm"]);
    }

    #[test]
    fn hostile_archives_are_refused() {
        let good = tar(&[("app.wasm", &[WASM, &[1; 600]].concat())]);
        for len in 1..good.len() - 2 * BLOCK {
            assert!(
                WasmFiles::new(1 << 20).add_layer(&good[..len]).is_err(),
                "cut after {len} bytes"
            );
        }
        let mut wrong = good.clone();
        wrong[0] ^= 1;
        assert!(
            WasmFiles::new(1 << 20).add_layer(&*wrong).is_err(),
            "checksum"
        );
        assert!(matches!(
            WasmFiles::new(100).add_layer(&*good),
            Err(ArchiveError::TooLarge(100))
        ));
        assert!(matches!(
            WasmFiles::new(1).add_layer(&b"\x28\xb5\x2f\xfd"[..]),
            Err(ArchiveError::Zstd)
        ));
    }
}
