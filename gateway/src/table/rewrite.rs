//! How a path is changed on the way. Pure.

use super::PathMatch;

/// The new path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PathRewrite {
    /// All of it.
    Full(String),
    /// What the route's prefix took.
    Prefix(String),
    /// With what the route's pattern found: `$1`, `$2`.
    Captures(String),
}

impl PathRewrite {
    /// The path as it goes on, from the one that was asked for and what took it.
    pub(crate) fn apply(&self, path: &str, taken_by: &PathMatch) -> String {
        match self {
            Self::Full(full) => full.clone(),
            Self::Prefix(replacement) => {
                let taken = match taken_by {
                    PathMatch::Prefix(prefix) | PathMatch::Exact(prefix) => prefix.as_str(),
                    PathMatch::Regex(_) => "",
                };
                let rest = path.strip_prefix(taken).unwrap_or_default();
                let joined = format!(
                    "{}/{}",
                    replacement.trim_end_matches('/'),
                    rest.trim_start_matches('/')
                );
                rooted(match rest.is_empty() && joined.len() > 1 {
                    true => joined.trim_end_matches('/').to_owned(),
                    false => joined,
                })
            }
            Self::Captures(template) => match taken_by {
                PathMatch::Regex(pattern) => {
                    let mut out = String::new();
                    if let Some(found) = pattern.captures(path) {
                        found.expand(&braced(template), &mut out);
                    }
                    rooted(out)
                }
                PathMatch::Exact(_) | PathMatch::Prefix(_) => template.clone(),
            },
        }
    }
}

/// A path begins with a slash.
fn rooted(path: String) -> String {
    match path.starts_with('/') {
        true => path,
        false => format!("/{path}"),
    }
}

/// `$1x` means group 1 and an x, as elsewhere; for the regex crate it would be the group `1x`.
fn braced(template: &str) -> String {
    let mut out = String::new();
    let mut chars = template.chars().peekable();
    while let Some(c) = chars.next() {
        out.push(c);
        if c != '$' || !chars.peek().is_some_and(char::is_ascii_digit) {
            continue;
        }
        out.push('{');
        while let Some(digit) = chars.next_if(char::is_ascii_digit) {
            out.push(digit);
        }
        out.push('}');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::too_many_lines, reason = "a table")]
    fn paths_as_they_go_on() {
        let regex = |pattern| PathMatch::regex(pattern, false).unwrap();
        let prefix = |text: &str| PathRewrite::Prefix(text.into());
        let captures = |text: &str| PathRewrite::Captures(text.into());
        for (name, path, taken_by, rewrite, expected) in [
            (
                "a prefix is replaced",
                "/foo/bar",
                PathMatch::prefix("/foo"),
                prefix("/xyz"),
                "/xyz/bar",
            ),
            (
                "a slash at the end changes nothing",
                "/foo/bar",
                PathMatch::prefix("/foo"),
                prefix("/xyz/"),
                "/xyz/bar",
            ),
            (
                "the prefix alone",
                "/foo",
                PathMatch::prefix("/foo"),
                prefix("/xyz"),
                "/xyz",
            ),
            (
                "the prefix with its slash",
                "/foo/",
                PathMatch::prefix("/foo"),
                prefix("/xyz"),
                "/xyz/",
            ),
            (
                "the prefix goes",
                "/foo/bar",
                PathMatch::prefix("/foo"),
                prefix("/"),
                "/bar",
            ),
            (
                "the prefix goes and nothing is left",
                "/foo",
                PathMatch::prefix("/foo"),
                prefix("/"),
                "/",
            ),
            (
                "nothing instead of the prefix",
                "/foo/bar",
                PathMatch::prefix("/foo"),
                prefix(""),
                "/bar",
            ),
            (
                "everything is replaced",
                "/foo/bar",
                PathMatch::prefix("/"),
                PathRewrite::Full("/one".into()),
                "/one",
            ),
            (
                "what a group found",
                "/api/v1/x",
                regex("/api(/|$)(.*)"),
                captures("/$2"),
                "/v1/x",
            ),
            (
                "a group that found nothing",
                "/api",
                regex("/api(/|$)(.*)"),
                captures("/$2"),
                "/",
            ),
            (
                "a letter after a group",
                "/a/b",
                regex("/(.)/(.)"),
                captures("/$1x$2"),
                "/axb",
            ),
        ] {
            assert_eq!(rewrite.apply(path, &taken_by), expected, "{name}");
        }
    }
}
