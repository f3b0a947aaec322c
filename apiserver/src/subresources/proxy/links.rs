//! Links in answers that come through a proxy: what a server calls `/x` is `…/proxy/x` for its client. Pure.
//!
//! Absolute paths, and URLs of the server's own address, in the attributes of HTML that hold links, are given the proxy's path.
//! Everything else stays byte for byte.

/// Elements and those of their attributes that hold links.
const ATTRIBUTES: &[(&str, &[&str])] = &[
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];

/// A link as the client must see it; nothing when it may stay. `authority` is where the server is, `own` the proxy's path.
pub(super) fn rewritten(link: &str, authority: &str, own: &str) -> Option<String> {
    let path = match link.split_once("://") {
        Some(("http" | "https", rest)) => {
            let rest = rest.strip_prefix(authority)?;
            if rest.is_empty() { "/" } else { rest }
        }
        _ => link,
    };
    let absolute = path.starts_with('/') && !path.starts_with("//");
    (absolute && !path.starts_with(own)).then(|| format!("{own}{path}"))
}

/// A page with its links rewritten.
pub(super) fn page(page: &[u8], authority: &str, own: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(page.len() + page.len() / 8);
    let mut left = page;
    while let Some(at) = left.iter().position(|byte| *byte == b'<') {
        out.extend_from_slice(&left[..at]);
        left = &left[at..];
        let end = if left.starts_with(b"<!--") {
            find(left, b"-->").map_or(left.len(), |end| end + 3)
        } else {
            let end = tag_end(left);
            tag(&left[..end], authority, own, &mut out);
            let raw = raw_text(&left[..end], &left[end..]);
            out.extend_from_slice(&left[end..end + raw]);
            left = &left[end + raw..];
            continue;
        };
        out.extend_from_slice(&left[..end]);
        left = &left[end..];
    }
    out.extend_from_slice(left);
    out
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len())
        .position(|window| window.eq_ignore_ascii_case(what))
}

/// Where the tag that begins here ends: behind the first `>` that is not quoted.
fn tag_end(text: &[u8]) -> usize {
    let mut quote = None;
    for (at, byte) in text.iter().enumerate() {
        match (quote, byte) {
            (None, b'>') => return at + 1,
            (None, b'"' | b'\'') => quote = Some(*byte),
            (Some(open), byte) if open == *byte => quote = None,
            _ => {}
        }
    }
    text.len()
}

/// How much of what follows a tag is no markup: the inside of scripts and styles.
fn raw_text(tag: &[u8], after: &[u8]) -> usize {
    let end: &[u8] = match name(tag).0.to_ascii_lowercase().as_slice() {
        b"script" => b"</script",
        b"style" => b"</style",
        _ => return 0,
    };
    find(after, end).unwrap_or(after.len())
}

/// The name of a tag, and where it ends.
fn name(tag: &[u8]) -> (&[u8], usize) {
    let len = tag[1..]
        .iter()
        .take_while(|byte| byte.is_ascii_alphanumeric())
        .count();
    (&tag[1..=len], len + 1)
}

/// Writes one tag.
fn tag(tag: &[u8], authority: &str, own: &str, out: &mut Vec<u8>) {
    let (name, mut at) = name(tag);
    let name = name.to_ascii_lowercase();
    let links = ATTRIBUTES
        .iter()
        .find(|(known, _)| known.as_bytes() == name);
    let Some((_, links)) = links else {
        out.extend_from_slice(tag);
        return;
    };
    let mut copied = 0;
    while let Some(attribute) = Attribute::next(tag, &mut at) {
        let key = tag[attribute.key].to_ascii_lowercase();
        let value = attribute.value;
        if links.iter().any(|link| link.as_bytes() == key)
            && let Ok(link) = std::str::from_utf8(&tag[value.clone()])
            && let Some(link) = rewritten(link, authority, own)
        {
            out.extend_from_slice(&tag[copied..value.start]);
            out.extend_from_slice(link.as_bytes());
            copied = value.end;
        }
    }
    out.extend_from_slice(&tag[copied..]);
}

/// Where an attribute's name and value stand in a tag.
struct Attribute {
    key: std::ops::Range<usize>,
    value: std::ops::Range<usize>,
}

impl Attribute {
    /// The next attribute that has a value.
    fn next(tag: &[u8], at: &mut usize) -> Option<Self> {
        let skip = |at: &mut usize, while_: fn(u8) -> bool| {
            let start = *at;
            while tag.get(*at).is_some_and(|byte| while_(*byte)) {
                *at += 1;
            }
            start..*at
        };
        loop {
            skip(at, |byte| byte.is_ascii_whitespace() || byte == b'/');
            let key = skip(at, |byte| {
                !byte.is_ascii_whitespace() && !matches!(byte, b'=' | b'>' | b'/')
            });
            skip(at, |byte| byte.is_ascii_whitespace());
            if tag.get(*at) != Some(&b'=') {
                if key.is_empty() {
                    return None;
                }
                continue;
            }
            *at += 1;
            skip(at, |byte| byte.is_ascii_whitespace());
            let value = match tag.get(*at) {
                Some(b'"') => {
                    *at += 1;
                    skip(at, |byte| byte != b'"')
                }
                Some(b'\'') => {
                    *at += 1;
                    skip(at, |byte| byte != b'\'')
                }
                _ => skip(at, |byte| !byte.is_ascii_whitespace() && byte != b'>'),
            };
            if matches!(tag.get(*at), Some(b'"' | b'\'')) {
                *at += 1;
            }
            return Some(Attribute { key, value });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "/api/v1/namespaces/a/pods/p/proxy";

    #[test]
    fn links_to_the_server_itself_lead_through_the_proxy() {
        let cases = [
            ("/x?y#z", Some("/x?y#z")),
            ("http://10.0.0.1:80/x", Some("/x")),
            ("https://10.0.0.1:80", Some("/")),
            ("relative", None),
            ("//elsewhere/x", None),
            ("http://elsewhere/x", None),
            ("/api/v1/namespaces/a/pods/p/proxy/x", None),
            ("mailto:x@y", None),
        ];
        for (link, expected) in cases {
            let expected = expected.map(|path| format!("{OWN}{path}"));
            assert_eq!(
                rewritten(link, "10.0.0.1:80", OWN),
                expected,
                "case: {link}"
            );
        }
    }

    #[test]
    fn pages_keep_everything_but_their_links() {
        let cases = [
            (
                "a link",
                r#"<a href="/x">y</a>"#,
                r#"<a href="OWN/x">y</a>"#,
            ),
            (
                "other quotes, other case",
                "<A class=b HREF='/x' >",
                "<A class=b HREF='OWN/x' >",
            ),
            ("no quotes", "<img src=/x/y.png>", "<img src=OWN/x/y.png>"),
            (
                "two in one tag",
                r#"<img longdesc="/a" src = "/b"/>"#,
                r#"<img longdesc="OWN/a" src = "OWN/b"/>"#,
            ),
            (
                "an attribute that holds no link",
                r#"<a title="/x" href="y">"#,
                r#"<a title="/x" href="y">"#,
            ),
            (
                "an element that has none",
                r#"<p href="/x">"#,
                r#"<p href="/x">"#,
            ),
            (
                "a comment",
                r#"<!-- <a href="/x"> --><b>"#,
                r#"<!-- <a href="/x"> --><b>"#,
            ),
            (
                "a script",
                r#"<script src="/s">"<a href='/x'>"</script>"#,
                r#"<script src="OWN/s">"<a href='/x'>"</script>"#,
            ),
            (
                "a > in quotes",
                r#"<a title=">" href="/x">"#,
                r#"<a title=">" href="OWN/x">"#,
            ),
            (
                "broken off",
                r#"text <a href="/x"#,
                r#"text <a href="OWN/x"#,
            ),
            ("no markup", "1 < 2 > 0", "1 < 2 > 0"),
        ];
        for (case, from, expected) in cases {
            let got = page(from.as_bytes(), "h:1", OWN);
            let got = String::from_utf8(got).unwrap();
            assert_eq!(got, expected.replace("OWN", OWN), "case: {case}");
        }
        let bytes: Vec<u8> = (0..=255).cycle().take(4096).collect();
        assert_eq!(page(&bytes, "h:1", OWN), bytes, "bytes that are no text");
    }
}
