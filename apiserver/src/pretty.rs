//! JSON for people: `?pretty=true`, and for the programs with which people ask by hand, as upstream does.

use http::HeaderMap;
use http::Response;
use http::header::{CONTENT_TYPE, USER_AGENT};

use crate::body::Body;
use crate::query::Query;
use crate::render;

/// Programs behind which a reader sits.
const READERS: [&str; 3] = ["curl", "Wget", "Mozilla/5.0"];

/// The answer should be indented.
pub(crate) fn is_wanted(query: &Query<'_>, headers: &HeaderMap) -> bool {
    if query.raw.contains("pretty")
        && let Some(asked) = query.param("pretty").filter(|asked| !asked.is_empty())
    {
        return matches!(&*asked, "1" | "t" | "T" | "true" | "TRUE" | "True");
    }
    let agent = headers.get(USER_AGENT).map(http::HeaderValue::as_bytes);
    agent.is_some_and(|agent| {
        READERS
            .iter()
            .any(|reader| agent.starts_with(reader.as_bytes()))
    })
}

/// The same answer, indented, if it is JSON in one piece.
pub(crate) fn response(response: Response<Body>) -> Response<Body> {
    if response.headers().get(CONTENT_TYPE) != Some(&render::JSON) {
        return response;
    }
    response.map(|body| match body {
        Body::Full(Some(json)) => indented(&json).into(),
        Body::List(list) => indented(&list.bytes()).into(),
        body => body,
    })
}

/// Valid JSON with line breaks; what is empty stays closed.
fn indented(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len() * 2);
    let (mut depth, mut in_text, mut escaped) = (0_usize, false, false);
    let line = |out: &mut Vec<u8>, depth: usize| {
        out.push(b'\n');
        out.resize(out.len() + 2 * depth, b' ');
    };
    for byte in json {
        if in_text {
            out.push(*byte);
            (in_text, escaped) = (escaped || *byte != b'"', !escaped && *byte == b'\\');
            continue;
        }
        match byte {
            b' ' | b'\n' | b'\r' | b'\t' => {}
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                if !matches!(out.last(), Some(b'{' | b'[')) {
                    line(&mut out, depth);
                }
                out.push(*byte);
            }
            other => {
                if matches!(out.last(), Some(b'{' | b'[')) {
                    line(&mut out, depth);
                }
                out.push(*other);
                match other {
                    b'"' => in_text = true,
                    b'{' | b'[' => depth += 1,
                    b',' => line(&mut out, depth),
                    b':' => out.push(b' '),
                    _ => {}
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_indented_and_stays_the_same_json() {
        let json = br#"{"a":[1,{"b":"x{\"],:\\"},[]],"c":{},"d":null}"#;
        let expected = "{\n  \"a\": [\n    1,\n    {\n      \"b\": \"x{\\\"],:\\\\\"\n    },\n    []\n  ],\n  \"c\": {},\n  \"d\": null\n}";
        assert_eq!(String::from_utf8(indented(json)).unwrap(), expected);
        assert_eq!(indented(expected.as_bytes()), expected.as_bytes());
    }

    #[test]
    fn people_get_it_unless_they_say_no() {
        let cases = [
            ("pretty=true", "", true),
            ("pretty=false", "curl/8", false),
            ("", "curl/8", true),
            ("", "kubectl/v1.36", false),
        ];
        for (raw, agent, expected) in cases {
            let query = Query::parse(raw).unwrap();
            let mut headers = HeaderMap::new();
            headers.insert(USER_AGENT, agent.parse().unwrap());
            assert_eq!(is_wanted(&query, &headers), expected, "case: {raw} {agent}");
        }
    }
}
