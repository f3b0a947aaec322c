//! The formats of names, labels and the like, with upstream's texts for what does not fit.
//!
//! Each check answers the list of complaints, empty if all is well.

/// Longest DNS label.
pub const DNS_LABEL_MAX: usize = 63;
/// Longest DNS subdomain.
pub const DNS_SUBDOMAIN_MAX: usize = 253;

/// `regex used for validation is '...'` behind a text with examples.
fn regex_error(text: &str, regex: &str, examples: &[&str]) -> String {
    let examples: Vec<String> = examples.iter().map(|e| format!("'{e}'")).collect();
    match &examples[..] {
        [] => format!("{text} (regex used for validation is '{regex}')"),
        _ => format!(
            "{text} (e.g. {}, regex used for validation is '{regex}')",
            // The two blanks are upstream's.
            examples.join(",  or ")
        ),
    }
}

fn max_bytes(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

/// Upstream counts bytes here too, and calls them characters.
fn max_characters(max: usize) -> String {
    format!("must be no more than {max} characters")
}

fn lower_alnum(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

/// `[a-z0-9]([-a-z0-9]*[a-z0-9])?`
fn is_dns_label(text: &str) -> bool {
    let b = text.as_bytes();
    !b.is_empty()
        && b.iter().all(|b| lower_alnum(*b) || *b == b'-')
        && lower_alnum(b[0])
        && lower_alnum(b[b.len() - 1])
}

fn is_dns_subdomain(text: &str) -> bool {
    text.split('.').all(is_dns_label)
}

/// RFC 1123 label.
pub fn dns_label(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > DNS_LABEL_MAX {
        out.push(max_characters(DNS_LABEL_MAX));
    }
    if !is_dns_label(text) {
        if is_dns_subdomain(text) {
            out.push("must not contain dots".to_owned());
        } else {
            out.push(regex_error(
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
                "[a-z0-9]([-a-z0-9]*[a-z0-9])?",
                &["my-name", "123-abc"],
            ));
        }
    }
    out
}

/// RFC 1123 subdomain.
pub fn dns_subdomain(text: &str) -> Vec<String> {
    subdomain(text, max_characters)
}

fn subdomain(text: &str, too_long: fn(usize) -> String) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > DNS_SUBDOMAIN_MAX {
        out.push(too_long(DNS_SUBDOMAIN_MAX));
    }
    if !is_dns_subdomain(text) {
        out.push(regex_error(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
            "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*",
            &["example.com"],
        ));
    }
    out
}

/// RFC 1035 label, what Services are named.
pub fn dns1035_label(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > DNS_LABEL_MAX {
        out.push(max_characters(DNS_LABEL_MAX));
    }
    if !is_dns_label(text) || !text.as_bytes()[0].is_ascii_lowercase() {
        out.push(regex_error(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character",
            "[a-z]([-a-z0-9]*[a-z0-9])?",
            &["my-name", "abc-123"],
        ));
    }
    out
}

/// RFC 1123 subdomain that may begin with `*.`: hosts of an Ingress.
pub fn wildcard_dns_subdomain(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > DNS_SUBDOMAIN_MAX {
        out.push(max_characters(DNS_SUBDOMAIN_MAX));
    }
    if !text.strip_prefix("*.").is_some_and(is_dns_subdomain) {
        out.push(regex_error(
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character",
            "\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*",
            &["*.example.com"],
        ));
    }
    out
}

/// What may stand in a URL path: RBAC names.
pub fn path_segment(text: &str) -> Vec<String> {
    if text == "." || text == ".." {
        return vec![format!("may not be '{text}'")];
    }
    ["/", "%"]
        .iter()
        .filter(|bad| text.contains(**bad))
        .map(|bad| format!("may not contain '{bad}'"))
        .collect()
}

/// `([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]`
fn is_name_part(text: &str) -> bool {
    let b = text.as_bytes();
    !b.is_empty()
        && b.iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && b[0].is_ascii_alphanumeric()
        && b[b.len() - 1].is_ascii_alphanumeric()
}

/// `prefix/name`, as keys of labels and annotations and finalizers are.
pub fn qualified_name(text: &str) -> Vec<String> {
    const REGEX: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
    const TEXT: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
    const EXAMPLES: [&str; 3] = ["MyName", "my.name", "123-abc"];
    let mut out = Vec::new();
    let parts: Vec<&str> = text.split('/').collect();
    let name = match parts[..] {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                out.push("prefix part must be non-empty".to_owned());
            } else {
                out.extend(
                    subdomain(prefix, max_bytes)
                        .into_iter()
                        .map(|problem| format!("prefix part {problem}")),
                );
            }
            name
        }
        _ => {
            out.push(
                regex_error(&format!("a qualified name {TEXT}"), REGEX, &EXAMPLES)
                    + " with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
            );
            return out;
        }
    };
    if name.is_empty() {
        out.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        out.push(format!("name part {}", max_bytes(63)));
    }
    if !is_name_part(name) {
        out.push(format!("name part {}", regex_error(TEXT, REGEX, &EXAMPLES)));
    }
    out
}

/// Value of a label.
pub fn label_value(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > 63 {
        out.push(max_bytes(63));
    }
    if !text.is_empty() && !is_name_part(text) {
        out.push(regex_error(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?",
            &["MyValue", "my_value", "12345"],
        ));
    }
    out
}

/// Key in a ConfigMap or Secret.
pub fn config_key(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > DNS_SUBDOMAIN_MAX {
        out.push(max_characters(DNS_SUBDOMAIN_MAX));
    }
    if text.is_empty()
        || !text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    {
        out.push(regex_error(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    match text {
        "." | ".." => out.push(format!("must not be '{text}'")),
        _ if text.starts_with("..") => out.push("must not start with '..'".to_owned()),
        _ => {}
    }
    out
}

/// Name of an environment variable: any printable ASCII but `=`.
pub fn env_var_name(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.is_empty()
        || !text
            .bytes()
            .all(|b| (b' '..=b'~').contains(&b) && b != b'=')
    {
        out.push("a valid environment variable name must consist only of printable ASCII characters other than '='".to_owned());
    }
    out
}

/// Key of `envFrom` sources and prefixes: a C identifier in upstream's strict form.
pub fn c_identifier(text: &str) -> Vec<String> {
    let b = text.as_bytes();
    let fits = b
        .first()
        .is_some_and(|b| b.is_ascii_alphabetic() || *b == b'_')
        && b.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_');
    if fits {
        return Vec::new();
    }
    vec![regex_error(
        "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_'",
        "[A-Za-z_][A-Za-z0-9_]*",
        &["my_name", "MY_NAME", "MyName"],
    )]
}

/// Name of a port: at most 15 lower case letters, digits and single inner dashes, one letter at least.
pub fn port_name(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > 15 {
        out.push("must be no more than 15 characters".to_owned());
    }
    if !text.bytes().all(|b| lower_alnum(b) || b == b'-') || text.is_empty() {
        out.push(
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned(),
        );
    }
    if !text.bytes().any(|b| b.is_ascii_lowercase()) {
        out.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        out.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        out.push("must not begin or end with a hyphen".to_owned());
    }
    out
}

/// Number of a port.
pub fn port_number(port: i64) -> Vec<String> {
    if (1..=65535).contains(&port) {
        Vec::new()
    } else {
        vec!["must be between 1 and 65535, inclusive".to_owned()]
    }
}

/// Name in an HTTP header.
pub fn http_header_name(text: &str) -> Vec<String> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Vec::new();
    }
    vec![regex_error(
        "a valid HTTP header must consist of alphanumeric characters or '-'",
        "[-A-Za-z0-9]+",
        &["X-Header-Name"],
    )]
}

/// A percentage: digits and `%`.
pub fn percent(text: &str) -> Vec<String> {
    let digits = text.strip_suffix('%').unwrap_or("");
    if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        return Vec::new();
    }
    vec![regex_error(
        "a valid percent string must be a numeric string followed by an ending '%'",
        "[0-9]+%",
        &["1%", "93%"],
    )]
}

/// Reason of a condition.
pub fn condition_reason(text: &str) -> Vec<String> {
    let b = text.as_bytes();
    let inner = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b',' | b':');
    let fits = b.first().is_some_and(u8::is_ascii_alphabetic)
        && b.last()
            .is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_')
        && b.iter().all(inner);
    if fits {
        return Vec::new();
    }
    vec![regex_error(
        "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', and must end with an alphanumeric character or '_'",
        "[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?",
        &[
            "my_name",
            "MY_NAME",
            "MyName",
            "ReasonA,ReasonB",
            "ReasonA:ReasonB",
        ],
    )]
}

/// An IP address in canonical form.
pub fn ip(text: &str) -> Vec<String> {
    if text.parse::<std::net::IpAddr>().is_ok() {
        Vec::new()
    } else {
        vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()]
    }
}

/// A range of addresses, `10.0.0.0/8`.
pub fn cidr(text: &str) -> Vec<String> {
    let fits = text.split_once('/').is_some_and(|(address, bits)| {
        let width = match address.parse::<std::net::IpAddr>() {
            Ok(std::net::IpAddr::V4(_)) => 32,
            Ok(std::net::IpAddr::V6(_)) => 128,
            Err(_) => return false,
        };
        bits.parse::<u8>().is_ok_and(|bits| bits <= width)
    });
    if fits {
        Vec::new()
    } else {
        vec!["must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".to_owned()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_or_the_text_says_why() {
        assert_eq!(
            dns_subdomain("A"),
            [
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            ]
        );
        assert_eq!(dns_label("a.b"), ["must not contain dots"]);
        assert!(
            dns_label("a-1").is_empty()
                && dns_subdomain("a.b-c.1").is_empty()
                && dns1035_label("a1").is_empty()
        );
        assert_eq!(
            dns_label(&"a".repeat(64)),
            ["must be no more than 63 characters"]
        );
        assert_eq!(dns1035_label("1a").len(), 1);
        assert_eq!(dns1035_label("").len(), 1);
        assert!(qualified_name("example.com/My_Name.1").is_empty());
        assert_eq!(qualified_name("/a"), ["prefix part must be non-empty"]);
        assert_eq!(qualified_name("a/b/c").len(), 1);
        assert_eq!(config_key(".."), ["must not be '..'"]);
        assert_eq!(path_segment("a/b"), ["may not contain '/'"]);
        assert!(port_name("http-1").is_empty());
        assert_eq!(port_name("1-").len(), 2);
        assert!(
            cidr("10.0.0.0/8").is_empty()
                && !cidr("10.0.0.0").is_empty()
                && !cidr("10.0.0.0/33").is_empty()
        );
    }
}
