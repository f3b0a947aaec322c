//! Reads image names. The grammar is that of the distribution specification; the crates' own reader compiles it into a regular
//! expression of 12 MB, which stays in memory for as long as the process does. This one needs none.

use oci_client::{ParseError, Reference};

const REPOSITORY_BYTES_MAX: usize = 255;
const TAG_BYTES_MAX: usize = 128;
const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_LEGACY: &str = "index.docker.io";
/// Images of Docker's own, whose names have one part.
const DOCKER_LIBRARY: &str = "library";
const TAG_DEFAULT: &str = "latest";

/// Reads `[REGISTRY/]REPOSITORY[:TAG][@DIGEST]`, with Docker's defaults for what is left out.
pub(crate) fn parse(text: &str) -> Result<Reference, ParseError> {
    if text.is_empty() {
        return Err(ParseError::NameEmpty);
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(check_digest(digest)?)),
        None => (text, None),
    };
    let (name, tag) = match rest.rsplit_once(':') {
        // A colon before a slash belongs to the registry's port.
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) || !is_name(name) {
        return Err(ParseError::ReferenceInvalidFormat);
    }
    let (registry, repository) = split_registry(name);
    if repository.len() > REPOSITORY_BYTES_MAX {
        return Err(ParseError::NameTooLong);
    }
    let (tag, digest) = (tag.map(str::to_owned), digest.map(str::to_owned));
    Ok(match (tag, digest) {
        (Some(tag), Some(digest)) => {
            Reference::with_tag_and_digest(registry, repository, tag, digest)
        }
        (None, Some(digest)) => Reference::with_digest(registry, repository, digest),
        (tag, None) => {
            let tag = tag.unwrap_or_else(|| TAG_DEFAULT.to_owned());
            Reference::with_tag(registry, repository, tag)
        }
    })
}

fn split_registry(name: &str) -> (String, String) {
    let names_registry =
        |first: &str| first.contains('.') || first.contains(':') || first == "localhost";
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest)) if names_registry(first) => (first, rest),
        _ => (DOCKER_HUB, name),
    };
    let registry = match registry {
        DOCKER_HUB_LEGACY => DOCKER_HUB,
        registry => registry,
    };
    let repository = match registry == DOCKER_HUB && !repository.contains('/') {
        true => format!("{DOCKER_LIBRARY}/{repository}"),
        false => repository.to_owned(),
    };
    (registry.to_owned(), repository)
}

/// Parts of a path, the first of which may be a registry's host and port.
fn is_name(name: &str) -> bool {
    let rest_is_path = |rest: &str| rest.split('/').all(is_part);
    match name.split_once('/') {
        None => is_part(name),
        Some((first, rest)) => (is_part(first) || is_host(first)) && rest_is_path(rest),
    }
}

/// Runs of lower-case letters and digits with one `.`, one or two `_`, or any number of `-` between them.
fn is_part(part: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separator = |text: &str| {
        matches!(text, "." | "_" | "__") || (!text.is_empty() && text.bytes().all(|b| b == b'-'))
    };
    let ends = |c: Option<char>| c.is_some_and(alphanumeric);
    ends(part.chars().next())
        && ends(part.chars().next_back())
        && part
            .split(alphanumeric)
            .filter(|between| !between.is_empty())
            .all(separator)
}

/// Labels of letters, digits and inner `-` between dots, and perhaps a port.
fn is_host(text: &str) -> bool {
    let (host, port) = text
        .split_once(':')
        .map_or((text, None), |(host, port)| (host, Some(port)));
    let label = |label: &str| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        !label.is_empty()
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let digits = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    host.split('.').all(label) && port.is_none_or(digits)
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= TAG_BYTES_MAX
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

fn check_digest(digest: &str) -> Result<&str, ParseError> {
    let (algorithm, hex) = digest
        .split_once(':')
        .ok_or(ParseError::ReferenceInvalidFormat)?;
    if hex.len() < 32 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(ParseError::ReferenceInvalidFormat);
    }
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return Err(ParseError::DigestUnsupported),
    };
    match hex.len() == length {
        true => Ok(digest),
        false => Err(ParseError::DigestInvalidLength),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the crates' own reader says, which only tests may ask.
    fn theirs(text: &str) -> Option<String> {
        let read: Result<Reference, _> = text.parse();
        read.ok().map(|reference| reference.whole())
    }

    fn ours(text: &str) -> Option<String> {
        parse(text).ok().map(|reference| reference.whole())
    }

    #[test]
    fn names_are_read_as_the_crates_own_reader_does() {
        let hex = "0123456789abcdef".repeat(4);
        let names = [
            "busybox",
            "busybox:1",
            "test.com:5000",
            "test.com:5000/repo",
            "test.com/repo:tag",
            "localhost/a",
            "localhost:5000/a/b:c",
            "index.docker.io/a",
            "docker.io/library/a",
            "a/b",
            "A/b",
            "Host/b",
            "HOST.io/b",
            "host.io/B",
            "a__b",
            "a___b",
            "a--b",
            "a..b",
            "a._b",
            "-a",
            "a-",
            "a/",
            "/a",
            "a//b",
            ":a",
            "a:",
            "a@",
            "",
            "a:b:c",
            "h:80/a:b",
            "h:/a",
            "h:x/a",
            "a b",
            "ä/b",
            "a.-b/c",
            "-a.b/c",
            "a.b./c",
            "a:-x",
            "a:_x",
            "a:x.y-z",
        ];
        let digests = [
            format!("a@sha256:{hex}"),
            format!("a:t@sha256:{hex}"),
            format!("a@sha256:{}", &hex[..40]),
            format!("a@md5:{}", &hex[..32]),
            format!("a@sha512:{hex}"),
            "a@sha256:xyz".to_owned(),
            format!("a@sha256:{hex}@x"),
        ];
        for name in names.iter().map(|name| (*name).to_owned()).chain(digests) {
            assert_eq!(ours(&name), theirs(&name), "case: {name:?}");
        }
        let long = "a".repeat(256);
        assert_eq!((ours(&long), theirs(&long)), (None, None));
    }

    proptest! {
        #[test]
        fn any_text_is_read_alike(text in "[a-cA-B0-1:/@._-]{0,24}") {
            prop_assert_eq!(ours(&text), theirs(&text));
        }
    }
}
