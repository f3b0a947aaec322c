//! Header blocks: names and values in one zlib stream per direction, with SPDY/3's dictionary.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::dictionary::DICTIONARY;
use super::frame::FrameError;

/// Uncompressed size of one block. What Kubernetes sends has some hundred bytes.
const BLOCK_BYTES_MAX: usize = 16 << 10;
/// Pairs in one block.
const PAIRS_MAX: usize = 64;

/// Names, in lower case, and values.
pub(crate) type Headers = Vec<(String, String)>;

/// Reads the blocks of one direction.
pub(super) struct HeaderReader {
    zlib: Decompress,
}

/// Writes the blocks of one direction.
pub(super) struct HeaderWriter {
    zlib: Compress,
}

impl HeaderReader {
    pub(super) fn new() -> Self {
        Self {
            zlib: Decompress::new(true),
        }
    }

    /// The pairs of one block.
    pub(super) fn read(&mut self, block: &[u8]) -> Result<Headers, FrameError> {
        parse(&self.inflate(block)?)
    }

    fn inflate(&mut self, mut block: &[u8]) -> Result<Vec<u8>, FrameError> {
        let mut plain = Vec::with_capacity(1024);
        loop {
            if plain.len() == plain.capacity() {
                plain.reserve(plain.len());
            }
            let (read, made) = (self.zlib.total_in(), self.zlib.total_out());
            let inflated = self
                .zlib
                .decompress_vec(block, &mut plain, FlushDecompress::Sync);
            let taken = usize::try_from(self.zlib.total_in() - read).unwrap_or(usize::MAX);
            block = block.get(taken..).ok_or(FrameError::Headers("zlib"))?;
            match inflated {
                Err(err) if err.needs_dictionary().is_some() => {
                    self.zlib
                        .set_dictionary(&DICTIONARY)
                        .map_err(|_| FrameError::Headers("another dictionary"))?;
                }
                Err(_) => return Err(FrameError::Headers("zlib")),
                Ok(Status::StreamEnd) => return Err(FrameError::Headers("the zlib stream ended")),
                Ok(Status::Ok | Status::BufError) => {
                    let full = plain.len() == plain.capacity();
                    let moved = taken > 0 || self.zlib.total_out() > made;
                    if plain.len() > BLOCK_BYTES_MAX {
                        return Err(FrameError::Headers("too large"));
                    }
                    if !full && block.is_empty() {
                        return Ok(plain);
                    }
                    if !full && !moved {
                        return Err(FrameError::Headers("zlib"));
                    }
                }
            }
        }
    }
}

impl HeaderWriter {
    pub(super) fn new() -> Self {
        let mut zlib = Compress::new(Compression::fast(), true);
        zlib.set_dictionary(&DICTIONARY)
            .expect("a fresh zlib stream takes a dictionary");
        Self { zlib }
    }

    /// One block.
    pub(super) fn write(&mut self, headers: &Headers) -> Vec<u8> {
        let mut plain = Vec::new();
        let number = |n: usize| {
            u32::try_from(n)
                .expect("our own headers are short")
                .to_be_bytes()
        };
        plain.extend(number(headers.len()));
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend(number(text.len()));
            plain.extend(text.as_bytes());
        }
        // Stored blocks are the worst case: a few bytes more than the text.
        let mut block = Vec::with_capacity(plain.len() + 64);
        let mut rest = &plain[..];
        loop {
            let read = self.zlib.total_in();
            self.zlib
                .compress_vec(rest, &mut block, FlushCompress::Sync)
                .expect("zlib compresses any bytes");
            let taken = usize::try_from(self.zlib.total_in() - read).unwrap_or(usize::MAX);
            rest = &rest[taken.min(rest.len())..];
            if rest.is_empty() && block.len() < block.capacity() {
                return block;
            }
            block.reserve(256);
        }
    }
}

fn parse(mut plain: &[u8]) -> Result<Headers, FrameError> {
    let count = number(&mut plain)?;
    if count > PAIRS_MAX {
        return Err(FrameError::Headers("too many"));
    }
    let mut headers = Headers::with_capacity(count);
    for _ in 0..count {
        headers.push((text(&mut plain)?, text(&mut plain)?));
    }
    if plain.is_empty() {
        Ok(headers)
    } else {
        Err(FrameError::Headers("bytes after the last one"))
    }
}

fn number(plain: &mut &[u8]) -> Result<usize, FrameError> {
    let (bytes, rest) = plain
        .split_first_chunk::<4>()
        .ok_or(FrameError::Headers("cut off"))?;
    *plain = rest;
    usize::try_from(u32::from_be_bytes(*bytes)).map_err(|_| FrameError::Headers("too large"))
}

fn text(plain: &mut &[u8]) -> Result<String, FrameError> {
    let len = number(plain)?;
    let (bytes, rest) = plain
        .split_at_checked(len)
        .ok_or(FrameError::Headers("cut off"))?;
    *plain = rest;
    String::from_utf8(bytes.to_vec()).map_err(|_| FrameError::Headers("not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Headers {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        pairs.iter().map(own).collect()
    }

    #[test]
    fn blocks_of_one_connection_share_a_zlib_stream() {
        let (mut writer, mut reader) = (HeaderWriter::new(), HeaderReader::new());
        let long = "x".repeat(5000);
        let blocks = [
            pairs(&[("streamtype", "error")]),
            pairs(&[("streamtype", "data"), ("port", "8080"), ("requestid", "0")]),
            pairs(&[]),
            pairs(&[("a", &long)]),
            pairs(&[("streamtype", "error")]),
        ];
        for headers in &blocks {
            let block = writer.write(headers);
            assert_eq!(&reader.read(&block).unwrap(), headers);
        }
    }

    #[test]
    fn what_is_not_a_block_is_refused() {
        assert!(HeaderReader::new().read(b"not zlib").is_err());
        let mut bomb = HeaderWriter::new();
        let block = bomb.write(&pairs(&[("a", &"x".repeat(BLOCK_BYTES_MAX * 4))]));
        assert!(block.len() < 1024);
        let refused = HeaderReader::new().read(&block).unwrap_err();
        assert!(matches!(refused, FrameError::Headers("too large")));
        for plain in [
            &[0, 0, 0, 1][..],
            &[255, 255, 255, 255],
            &[0, 0, 0, 0, 1],
            &[0, 0, 0, 1, 255, 255, 255, 255, 0],
        ] {
            assert!(parse(plain).is_err(), "{plain:?}");
        }
    }
}
