//! PEM as Go's decoder reads it: blocks, with anything between them. One that does not end is none.

use base64::Engine;

const BEGIN: &str = "-----BEGIN ";

/// One block of a PEM file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block<'a> {
    /// What it says that it holds.
    pub kind: &'a str,
    /// Whether lines like `Name: value` stand before what it holds.
    pub has_headers: bool,
    /// Base64, in lines.
    body: &'a str,
}

/// The blocks of a file.
pub fn blocks(text: &str) -> impl Iterator<Item = Block<'_>> {
    text.split(BEGIN).skip(1).filter_map(|piece| {
        let (kind, rest) = piece.split_once("-----")?;
        let (inside, _) = rest.split_once(&format!("-----END {kind}-----"))?;
        // Base64 has no colon.
        let headers = inside.rfind(':').map_or(0, |colon| {
            let line = inside[colon..].find('\n');
            line.map_or(inside.len(), |end| colon + end)
        });
        Some(Block {
            kind,
            has_headers: headers > 0,
            body: inside[headers..].trim(),
        })
    })
}

impl Block<'_> {
    /// What it holds; `None`: that is no base64.
    #[must_use]
    pub fn der(&self) -> Option<Vec<u8>> {
        let base64: String = self.body.split_whitespace().collect();
        base64::engine::general_purpose::STANDARD
            .decode(base64)
            .ok()
    }

    /// The block alone: without headers and what stands around it.
    #[must_use]
    pub fn text(&self) -> String {
        let (kind, body) = (self.kind, self.body);
        format!("{BEGIN}{kind}-----\n{body}\n-----END {kind}-----\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_table() {
        let alone = "-----BEGIN A B-----\nAAEC\nAwQF\n-----END A B-----\n";
        let cases = [
            ("alone", alone.to_owned(), false),
            ("without an end of line", alone.trim().to_owned(), false),
            ("between notes", format!("one: two\n{alone}three"), false),
            (
                "with headers",
                alone.replace("AAEC", "X: y\nZ: w\n\nAAEC"),
                true,
            ),
        ];
        for (name, text, has_headers) in cases {
            let found: Vec<Block<'_>> = blocks(&text).collect();
            assert_eq!(found.len(), 1, "case: {name}");
            assert_eq!(found[0].kind, "A B", "case: {name}");
            assert_eq!(found[0].has_headers, has_headers, "case: {name}");
            assert_eq!(found[0].der(), Some(vec![0, 1, 2, 3, 4, 5]), "case: {name}");
            assert_eq!(found[0].text(), alone, "case: {name}");
        }
        let two = format!("{alone}{alone}-----BEGIN C-----\nAA");
        assert_eq!(blocks(&two).count(), 2, "the last does not end");
        let odd = "-----BEGIN A-----\n?\n-----END A-----";
        assert_eq!(blocks(odd).next().unwrap().der(), None);
        let empty = "-----BEGIN A-----\nX: y\n-----END A-----";
        assert_eq!(blocks(empty).next().unwrap().der(), Some(vec![]));
    }
}
