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

/// `Always` for `latest`, `IfNotPresent` for everything pinned.
pub(super) fn pull_policy(reference: &str) -> &'static str {
    if image_tag(reference) == "latest" {
        "Always"
    } else {
        "IfNotPresent"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
