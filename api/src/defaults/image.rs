//! The tag of an image reference, on which the pull policy depends.

/// The tag that a reference means: `latest` if it names neither tag nor digest, empty if only a digest.
pub fn image_tag(reference: &str) -> &str {
    let (name, digest) = reference
        .split_once('@')
        .map_or((reference, None), |(name, digest)| (name, Some(digest)));
    // A colon before the last slash belongs to the registry's port.
    let last = name.rsplit('/').next().unwrap_or(name);
    match (last.split_once(':'), digest) {
        (Some((_, tag)), _) => tag,
        (None, Some(_)) => "",
        (None, None) => "latest",
    }
}

/// Could a registry know this? What it could not is refused later, and pulled by no policy until then.
fn is_reference(reference: &str) -> bool {
    let name = reference.split('@').next().unwrap_or(reference);
    let (registry, path) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
        _ => ("", name),
    };
    let path = path.split(':').next().unwrap_or(path);
    let part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && part
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b))
            && part.ends_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
    };
    let host = |b: u8| b.is_ascii_alphanumeric() || b"-.:[]".contains(&b);
    registry.bytes().all(host) && path.split('/').all(part)
}

/// `Always` for `latest`, `IfNotPresent` for everything pinned.
pub(super) fn pull_policy(reference: &str) -> &'static str {
    if is_reference(reference) && image_tag(reference) == "latest" {
        "Always"
    } else {
        "IfNotPresent"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_an_image_is_not_pulled_always() {
        for (reference, policy) in [
            ("nginx", "Always"),
            ("r.io:5000/a/b_c-d", "Always"),
            ("UPPER", "IfNotPresent"),
            ("not valid", "IfNotPresent"),
            ("nginx:1", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(reference), policy, "{reference}");
        }
    }

    #[test]
    fn tags_are_found_behind_ports_and_digests() {
        for (reference, tag) in [
            ("nginx", "latest"),
            ("nginx:1.2", "1.2"),
            ("r.io:5000/nginx", "latest"),
            ("r.io:5000/a/nginx:2", "2"),
            ("nginx@sha256:ab", ""),
            ("nginx:1@sha256:ab", "1"),
            ("", "latest"),
        ] {
            assert_eq!(image_tag(reference), tag, "{reference}");
        }
    }
}
