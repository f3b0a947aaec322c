//! Which pages of other origins may ask, and how browsers are told (CORS). Pure.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

/// What a route lets pages of other origins do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cors {
    /// `https://a.example`, `https://*.a.example` or `*`.
    pub(crate) origins: Vec<String>,
    pub(crate) credentials: bool,
    /// Names, or `*` alone.
    pub(crate) methods: Vec<String>,
    pub(crate) headers: Vec<String>,
    pub(crate) exposed: Vec<String>,
    pub(crate) max_age_secs: u64,
}

impl Cors {
    /// The answer to a browser that asks before it sends; `None`: the request is no such question.
    pub(crate) fn preflight(&self, method: &Method, asked: &HeaderMap) -> Option<HeaderMap> {
        let wanted = asked.get(ACCESS_CONTROL_REQUEST_METHOD)?;
        let origin = asked.get(ORIGIN)?;
        if method != Method::OPTIONS {
            return None;
        }
        let mut told = HeaderMap::new();
        if !self.tell_origin(origin, &mut told) {
            return Some(told);
        }
        let wanted = Some(wanted).filter(|_| !self.methods.is_empty());
        let lists = [
            (ACCESS_CONTROL_ALLOW_METHODS, &self.methods, wanted),
            (
                ACCESS_CONTROL_ALLOW_HEADERS,
                &self.headers,
                asked.get(ACCESS_CONTROL_REQUEST_HEADERS),
            ),
        ];
        for (name, allowed, asked) in lists {
            self.tell(name, allowed, asked, &mut told);
        }
        told.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from(self.max_age_secs));
        Some(told)
    }

    /// Tells the browser whether its page may see an answer. What the backend says of this counts for nothing.
    pub(crate) fn apply(&self, origin: Option<&HeaderValue>, answer: &mut HeaderMap) {
        let Some(origin) = origin else { return };
        for name in [
            ACCESS_CONTROL_ALLOW_ORIGIN,
            ACCESS_CONTROL_ALLOW_CREDENTIALS,
            ACCESS_CONTROL_EXPOSE_HEADERS,
        ] {
            answer.remove(name);
        }
        if self.tell_origin(origin, answer) {
            self.tell(ACCESS_CONTROL_EXPOSE_HEADERS, &self.exposed, None, answer);
        }
    }

    /// Whether pages of an origin may ask; if so it is told.
    fn tell_origin(&self, origin: &HeaderValue, told: &mut HeaderMap) -> bool {
        let everybody = self.origins.iter().any(|one| one == "*");
        let named = origin.to_str().is_ok_and(|origin| {
            let mut all = self.origins.iter();
            all.any(|pattern| is_origin(pattern, origin))
        });
        let star = everybody && !self.credentials;
        if !star {
            // Else a cache would tell one page what holds for another.
            told.append(VARY, HeaderValue::from_name(ORIGIN));
        }
        if !everybody && !named {
            return false;
        }
        let shown = if star {
            HeaderValue::from_static("*")
        } else {
            origin.clone()
        };
        told.insert(ACCESS_CONTROL_ALLOW_ORIGIN, shown);
        if self.credentials {
            let yes = HeaderValue::from_static("true");
            told.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
        }
        true
    }

    /// A list as it is, but with credentials a star is no star to browsers: then what was asked for is said.
    fn tell(
        &self,
        name: HeaderName,
        allowed: &[String],
        asked: Option<&HeaderValue>,
        told: &mut HeaderMap,
    ) {
        let star = allowed.iter().any(|one| one == "*");
        let value = match (star && self.credentials, asked) {
            (true, asked) => asked.cloned(),
            (false, _) if allowed.is_empty() => None,
            (false, _) => HeaderValue::try_from(allowed.join(", ")).ok(),
        };
        if let Some(value) = value {
            told.insert(name, value);
        }
    }
}

fn is_origin(pattern: &str, origin: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern.eq_ignore_ascii_case(origin),
        Some((scheme, suffix)) => {
            let (scheme, suffix) = (scheme.to_ascii_lowercase(), suffix.to_ascii_lowercase());
            let origin = origin.to_ascii_lowercase();
            let inner = origin.strip_prefix(&scheme);
            let inner = inner.and_then(|rest| rest.strip_suffix(&suffix));
            inner.is_some_and(|inner| !inner.is_empty() && !inner.contains(['/', ':']))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cors(origins: &[&str], credentials: bool, methods: &[&str]) -> Cors {
        let texts = |all: &[&str]| all.iter().map(ToString::to_string).collect();
        Cors {
            origins: texts(origins),
            credentials,
            methods: texts(methods),
            headers: texts(&["X-One", "X-Two"]),
            exposed: texts(&["X-Seen"]),
            max_age_secs: 60,
        }
    }

    fn map(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    fn text(map: &HeaderMap) -> String {
        let mut all: Vec<String> = map
            .iter()
            .map(|(name, value)| {
                let name = name.as_str().trim_start_matches("access-control-");
                format!("{name}={}", value.to_str().unwrap())
            })
            .collect();
        all.sort();
        all.join("; ")
    }

    #[test]
    fn browsers_that_ask_before() {
        let lists = "allow-headers=X-One, X-Two; allow-methods=GET, PUT; allow-origin";
        for (case, cors, origin, expected) in [
            (
                "an origin by name",
                cors(&["https://a.example"], false, &["GET", "PUT"]),
                "https://a.example",
                format!("{lists}=https://a.example; max-age=60; vary=origin"),
            ),
            (
                "a host below",
                cors(&["https://*.example"], false, &["GET", "PUT"]),
                "https://b.a.example",
                format!("{lists}=https://b.a.example; max-age=60; vary=origin"),
            ),
            (
                "everybody",
                cors(&["*"], false, &["GET", "PUT"]),
                "https://a.example",
                format!("{lists}=*; max-age=60"),
            ),
            (
                "everybody with credentials, and every method",
                cors(&["*"], true, &["*"]),
                "https://a.example",
                "allow-credentials=true; allow-headers=X-One, X-Two; allow-methods=PUT; allow-origin=https://a.example; max-age=60; \
                 vary=origin"
                    .to_owned(),
            ),
            (
                "another scheme",
                cors(&["https://a.example"], false, &["GET"]),
                "http://a.example",
                "vary=origin".to_owned(),
            ),
            (
                "a port that is not named",
                cors(&["https://*.example"], false, &["GET"]),
                "https://a.example:8443",
                "vary=origin".to_owned(),
            ),
        ] {
            let asked = map(&[("origin", origin), ("access-control-request-method", "PUT")]);
            let told = cors.preflight(&Method::OPTIONS, &asked).unwrap();
            assert_eq!(text(&told), expected, "{case}");
        }
        let cors = cors(&["*"], false, &["GET"]);
        let plain = map(&[("origin", "https://a.example")]);
        assert_eq!(cors.preflight(&Method::OPTIONS, &plain), None);
        let asked = map(&[("origin", "x"), ("access-control-request-method", "PUT")]);
        assert_eq!(cors.preflight(&Method::GET, &asked), None);
    }

    #[test]
    fn answers_say_who_may_see_them() {
        let cors = cors(&["https://a.example"], true, &["GET"]);
        let backend = [("access-control-allow-origin", "*"), ("x-other", "1")];
        for (case, origin, expected) in [
            (
                "one that may",
                Some("https://a.example"),
                "allow-credentials=true; allow-origin=https://a.example; expose-headers=X-Seen; vary=origin; x-other=1",
            ),
            (
                "one that may not",
                Some("https://b.example"),
                "vary=origin; x-other=1",
            ),
            (
                "no page of another origin",
                None,
                "allow-origin=*; x-other=1",
            ),
        ] {
            let mut answer = map(&backend);
            let origin = origin.map(HeaderValue::from_static);
            cors.apply(origin.as_ref(), &mut answer);
            assert_eq!(text(&answer), expected, "{case}");
        }
    }
}
