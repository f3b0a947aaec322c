//! What Kubernetes adds to the language: lists, regular expressions, URLs, addresses, quantities, formats, versions.

use std::cmp::Ordering;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::SignedDuration;

use super::eval::{Budget, EvalError, failed};
use super::functions::regex;
use super::value::http_url::Url;
use super::value::{Cel, Key};
use crate::names;
use crate::quantity::Quantity;

type Found = Result<Option<Cel>, EvalError>;

/// A semantic version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Semver {
    numbers: [u64; 3],
    pre: Vec<String>,
}

/// Calls a function or method of the libraries.
pub(super) fn call(name: &str, target: Option<&Cel>, args: &[Cel], budget: &mut Budget) -> Found {
    match target {
        None => global(name, args),
        Some(Cel::List(items, _)) => {
            budget.take(items.len() as u64)?;
            list(name, items, args)
        }
        Some(Cel::Text(text)) => {
            let pattern = args.first().map_or(0, Cel::size);
            budget.take((text.len() as u64 / 10 + 1) * (pattern / 4 + 1))?;
            find(name, text, args)
        }
        Some(Cel::Url(url)) => Ok(of_url(name, url)),
        Some(Cel::Ip(address)) => Ok(of_ip(name, *address)),
        Some(Cel::Cidr(address, bits)) => Ok(of_cidr(name, *address, *bits, args)),
        Some(Cel::Quantity(quantity)) => of_quantity(name, quantity, args),
        Some(Cel::Format(format)) => Ok(of_format(name, format, args)),
        Some(Cel::Semver(version)) => Ok(of_version(name, version, args)),
        Some(_) => Ok(None),
    }
}

fn global(name: &str, args: &[Cel]) -> Found {
    let text = match args {
        [Cel::Text(text), ..] => &**text,
        [] if name.starts_with("format.") => "",
        _ => return Ok(None),
    };
    Ok(Some(match name {
        "url" => match parse_url(text) {
            Some(url) => Cel::Url(Arc::new(url)),
            None => {
                return failed(format!(
                    "URL parse error during conversion from string: parse {text:?}: invalid URI for request"
                ));
            }
        },
        "isURL" => Cel::Bool(parse_url(text).is_some()),
        "ip" => match parse_ip(text) {
            Some(address) => Cel::Ip(address),
            None => {
                return failed(format!(
                    "IP Address {text:?} parse error during conversion from string: ParseAddr({text:?}): unable to parse IP"
                ));
            }
        },
        "isIP" => Cel::Bool(parse_ip(text).is_some()),
        "ip.isCanonical" => match parse_ip(text) {
            Some(address) => Cel::Bool(address.to_string() == text),
            None => {
                return failed(format!(
                    "IP Address {text:?} parse error during conversion from string"
                ));
            }
        },
        "cidr" => match parse_cidr(text) {
            Some((address, bits)) => Cel::Cidr(address, bits),
            None => {
                return failed(format!(
                    "network address parse error during conversion from string: network {text:?}"
                ));
            }
        },
        "isCIDR" => Cel::Bool(parse_cidr(text).is_some()),
        "quantity" => match Quantity::parse(text) {
            Ok(quantity) => Cel::Quantity(quantity),
            Err(error) => return failed(error.to_string()),
        },
        "isQuantity" => Cel::Bool(Quantity::parse(text).is_ok()),
        "semver" => match parse_version(text, args.get(1)) {
            Some(version) => Cel::Semver(Arc::new(version)),
            None => return failed(format!("No Major.Minor.Patch elements found in {text:?}")),
        },
        "isSemver" => Cel::Bool(parse_version(text, args.get(1)).is_some()),
        "format.named" => match FORMATS.iter().find(|one| **one == text) {
            Some(format) => Cel::Optional(Some(Arc::new(Cel::Format(format)))),
            None => Cel::Optional(None),
        },
        name => match name
            .strip_prefix("format.")
            .and_then(|name| FORMATS.iter().find(|one| **one == name))
        {
            Some(format) => Cel::Format(format),
            None => return Ok(None),
        },
    }))
}

fn list(name: &str, items: &[Cel], args: &[Cel]) -> Found {
    let order = |a: &Cel, b: &Cel| a.compare(b);
    Ok(Some(match (name, args) {
        ("isSorted", []) => Cel::Bool(
            items
                .windows(2)
                .all(|pair| order(&pair[0], &pair[1]).is_some_and(Ordering::is_le)),
        ),
        ("sum", []) => return sum(items).map(Some),
        ("min" | "max", []) => {
            let wanted = if name == "min" {
                Ordering::Less
            } else {
                Ordering::Greater
            };
            let mut items = items.iter();
            let Some(mut best) = items.next() else {
                return failed(format!("{name} called on empty list"));
            };
            for item in items {
                if order(item, best) == Some(wanted) {
                    best = item;
                }
            }
            best.clone()
        }
        ("indexOf", [wanted]) => position(items.iter().position(|item| item.equals(wanted))),
        ("lastIndexOf", [wanted]) => position(items.iter().rposition(|item| item.equals(wanted))),
        _ => return Ok(None),
    }))
}

fn position(found: Option<usize>) -> Cel {
    Cel::Int(found.map_or(-1, |at| i64::try_from(at).unwrap_or(i64::MAX)))
}

fn sum(items: &[Cel]) -> Result<Cel, EvalError> {
    let mut total: Option<Cel> = None;
    for item in items {
        total = Some(match (total, item) {
            (None, item) => item.clone(),
            (Some(Cel::Int(a)), Cel::Int(b)) => match a.checked_add(*b) {
                Some(sum) => Cel::Int(sum),
                None => return failed("integer overflow"),
            },
            (Some(Cel::Uint(a)), Cel::Uint(b)) => match a.checked_add(*b) {
                Some(sum) => Cel::Uint(sum),
                None => return failed("unsigned integer overflow"),
            },
            (Some(Cel::Double(a)), Cel::Double(b)) => Cel::Double(a + b),
            (Some(Cel::Duration(a)), Cel::Duration(b)) => match a.checked_add(*b) {
                Some(sum) => Cel::Duration(sum),
                None => return failed("duration overflow"),
            },
            _ => return failed("no such overload: sum"),
        });
    }
    Ok(total.unwrap_or(Cel::Int(0)))
}

fn find(name: &str, text: &str, args: &[Cel]) -> Found {
    let Some(Cel::Text(pattern)) = args.first() else {
        return Ok(None);
    };
    Ok(Some(match (name, &args[1..]) {
        ("find", []) => Cel::text(
            regex(pattern)?
                .find(text)
                .map_or("", |found| found.as_str()),
        ),
        ("findAll", rest) => {
            let most = match rest {
                [] => usize::MAX,
                [Cel::Int(most)] => usize::try_from(*most).unwrap_or(usize::MAX),
                _ => return Ok(None),
            };
            let regex = regex(pattern)?;
            let found = regex.find_iter(text).take(most);
            Cel::list(found.map(|one| Cel::text(one.as_str())).collect())
        }
        _ => return Ok(None),
    }))
}

fn parse_url(text: &str) -> Option<Url> {
    if text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return None;
    }
    let (rest, query) = text.split_once('?').unwrap_or((text, ""));
    let (scheme, host, path) = if rest.starts_with('/') {
        ("", "", rest)
    } else {
        let (scheme, rest) = rest.split_once(':')?;
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        if !scheme.starts_with(|c: char| c.is_ascii_alphabetic()) || !scheme.chars().all(good) {
            return None;
        }
        let rest = rest.strip_prefix("//")?;
        let end = rest.find('/').unwrap_or(rest.len());
        let host = rest[..end].rsplit('@').next()?;
        (scheme, host, &rest[end..])
    };
    let after_bracket = host.rsplit(']').next().unwrap_or(host);
    if let Some((_, port)) = after_bracket.split_once(':')
        && !port.chars().all(|c| c.is_ascii_digit())
    {
        return None;
    }
    Some(Url {
        text: text.to_owned(),
        scheme: scheme.to_owned(),
        host: host.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
    })
}

fn of_url(name: &str, url: &Url) -> Option<Cel> {
    let bracketed = url.host.starts_with('[');
    let port_at = match (bracketed, url.host.rfind(':')) {
        (true, Some(at)) if url.host[..at].ends_with(']') => Some(at),
        (false, at) => at,
        _ => None,
    };
    let text = match name {
        "getScheme" => url.scheme.as_str(),
        "getHost" => url.host.as_str(),
        "getHostname" => url.host[..port_at.unwrap_or(url.host.len())].trim_matches(['[', ']']),
        "getPort" => port_at.map_or("", |at| &url.host[at + 1..]),
        "getEscapedPath" => url.path.as_str(),
        "getQuery" => {
            let mut map = super::Map::new();
            for part in url.query.split('&').filter(|part| !part.is_empty()) {
                let (key, value) = part.split_once('=').unwrap_or((part, ""));
                let entry = map
                    .entry(Key::Text(decode(key)))
                    .or_insert_with(|| Cel::list(Vec::new()));
                if let Cel::List(items, _) = entry {
                    Arc::make_mut(items).push(Cel::text(&decode(value)));
                }
            }
            return Some(Cel::Map(Arc::new(map)));
        }
        _ => return None,
    };
    Some(Cel::text(text))
}

/// Percent and plus decoding of a query's part.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        let hex = |at: usize| tail.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        match (first, hex(0), hex(1)) {
            (b'+', _, _) => bytes.push(b' '),
            (b'%', Some(high), Some(low)) => {
                bytes.push(u8::try_from(high * 16 + low).unwrap_or(b'?'));
                rest = &tail[2..];
            }
            _ => bytes.push(*first),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn parse_ip(text: &str) -> Option<IpAddr> {
    let address: IpAddr = text.parse().ok()?;
    match address {
        // As upstream: no addresses of one family dressed up as the other.
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => None,
        address => Some(address),
    }
}

fn of_ip(name: &str, address: IpAddr) -> Option<Cel> {
    let flag = match (name, address) {
        ("family", IpAddr::V4(_)) => return Some(Cel::Int(4)),
        ("family", IpAddr::V6(_)) => return Some(Cel::Int(6)),
        ("isUnspecified", address) => address.is_unspecified(),
        ("isLoopback", address) => address.is_loopback(),
        ("isLinkLocalMulticast", IpAddr::V4(v4)) => v4.octets()[..3] == [224, 0, 0],
        ("isLinkLocalMulticast", IpAddr::V6(v6)) => v6.segments()[0] & 0xff0f == 0xff02,
        ("isLinkLocalUnicast", IpAddr::V4(v4)) => v4.is_link_local(),
        ("isLinkLocalUnicast", IpAddr::V6(v6)) => v6.is_unicast_link_local(),
        ("isGlobalUnicast", address) => {
            let link_local = match address {
                IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
                IpAddr::V6(v6) => v6.is_unicast_link_local(),
            };
            !(address.is_unspecified()
                || address.is_loopback()
                || address.is_multicast()
                || link_local)
        }
        _ => return None,
    };
    Some(Cel::Bool(flag))
}

fn parse_cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (address, bits) = text.split_once('/')?;
    let address = parse_ip(address)?;
    let bits: u8 = bits.parse().ok()?;
    (bits <= width(address)).then_some((address, bits))
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn masked(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            IpAddr::V4((u32::from(v4) & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            IpAddr::V6((u128::from(v6) & mask).into())
        }
    }
}

fn of_cidr(name: &str, address: IpAddr, bits: u8, args: &[Cel]) -> Option<Cel> {
    let holds = |other: IpAddr, other_bits: u8| {
        other.is_ipv4() == address.is_ipv4()
            && other_bits >= bits
            && masked(other, bits) == masked(address, bits)
    };
    Some(match (name, args) {
        ("containsIP", [Cel::Ip(other)]) => Cel::Bool(holds(*other, width(*other))),
        ("containsIP", [Cel::Text(other)]) => {
            let other = parse_ip(other)?;
            Cel::Bool(holds(other, width(other)))
        }
        ("containsCIDR", [Cel::Cidr(other, other_bits)]) => Cel::Bool(holds(*other, *other_bits)),
        ("containsCIDR", [Cel::Text(other)]) => {
            let (other, other_bits) = parse_cidr(other)?;
            Cel::Bool(holds(other, other_bits))
        }
        ("ip", []) => Cel::Ip(address),
        ("masked", []) => Cel::Cidr(masked(address, bits), bits),
        ("prefixLength", []) => Cel::Int(i64::from(bits)),
        _ => return None,
    })
}

fn of_quantity(name: &str, quantity: &Quantity, args: &[Cel]) -> Found {
    let float = || quantity.as_f64();
    #[expect(clippy::cast_possible_truncation, reason = "the range is checked")]
    let whole = || {
        let value = float();
        (value.fract() == 0.0 && value.abs() < 9.2e18).then_some(value as i64)
    };
    Ok(Some(match (name, args) {
        ("sign", []) => Cel::Int(if float() > 0.0 {
            1
        } else {
            -i64::from(float() < 0.0)
        }),
        ("isInteger", []) => Cel::Bool(whole().is_some()),
        ("asInteger", []) => match whole() {
            Some(value) => Cel::Int(value),
            None => return failed("cannot convert value to integer"),
        },
        ("asApproximateFloat", []) => Cel::Double(float()),
        ("isLessThan", [Cel::Quantity(other)]) => Cel::Bool(quantity < other),
        ("isGreaterThan", [Cel::Quantity(other)]) => Cel::Bool(quantity > other),
        ("compareTo", [Cel::Quantity(other)]) => Cel::Int(quantity.cmp(other) as i64),
        ("add", [Cel::Quantity(other)]) => Cel::Quantity(*quantity + *other),
        ("sub", [Cel::Quantity(other)]) => Cel::Quantity(*quantity - *other),
        ("add" | "sub", [Cel::Int(other)]) => match Quantity::parse(&other.to_string()) {
            Ok(other) if name == "add" => Cel::Quantity(*quantity + other),
            Ok(other) => Cel::Quantity(*quantity - other),
            Err(error) => return failed(error.to_string()),
        },
        _ => return Ok(None),
    }))
}

const FORMATS: [&str; 13] = [
    "dns1123Label",
    "dns1123Subdomain",
    "dns1035Label",
    "qualifiedName",
    "dns1123LabelPrefix",
    "dns1123SubdomainPrefix",
    "dns1035LabelPrefix",
    "labelValue",
    "uri",
    "uuid",
    "byte",
    "date",
    "datetime",
];

fn of_format(name: &str, format: &str, args: &[Cel]) -> Option<Cel> {
    let ("validate", [Cel::Text(text)]) = (name, args) else {
        return None;
    };
    let prefix =
        |check: fn(&str) -> Vec<String>| check(&format!("{}a", text.trim_end_matches('-')));
    let why = match format {
        "dns1123Label" => names::dns_label(text),
        "dns1123Subdomain" => names::dns_subdomain(text),
        "dns1035Label" => names::dns1035_label(text),
        "qualifiedName" => names::qualified_name(text),
        "dns1123LabelPrefix" => prefix(names::dns_label),
        "dns1123SubdomainPrefix" => prefix(names::dns_subdomain),
        "dns1035LabelPrefix" => prefix(names::dns1035_label),
        "labelValue" => names::label_value(text),
        "uri" if parse_url(text).is_none() => vec!["does not match the format of a uri".to_owned()],
        format if !crate::custom::format_holds(format, text) => {
            vec![format!("does not match the {format} format")]
        }
        _ => Vec::new(),
    };
    let why = (!why.is_empty())
        .then(|| Arc::new(Cel::list(why.iter().map(|one| Cel::text(one)).collect())));
    Some(Cel::Optional(why))
}

pub(super) fn parse_version(text: &str, normalize: Option<&Cel>) -> Option<Semver> {
    let normalize = matches!(normalize, Some(Cel::Bool(true)));
    let text = if normalize {
        text.strip_prefix('v').unwrap_or(text)
    } else {
        text
    };
    let text = text.split('+').next()?;
    let (core, pre) = text.split_once('-').unwrap_or((text, ""));
    let parts: Vec<&str> = core.split('.').collect();
    if parts.len() > 3 || (parts.len() < 3 && !normalize) {
        return None;
    }
    let mut numbers = [0; 3];
    for (place, part) in numbers.iter_mut().zip(&parts) {
        if part.len() > 1 && part.starts_with('0') && !normalize {
            return None;
        }
        *place = part.parse().ok()?;
    }
    let pre = if pre.is_empty() {
        Vec::new()
    } else {
        pre.split('.').map(str::to_owned).collect()
    };
    Some(Semver { numbers, pre })
}

impl PartialOrd for Semver {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Semver {
    fn cmp(&self, other: &Self) -> Ordering {
        let part = |a: &String, b: &String| match (a.parse::<u64>(), b.parse::<u64>()) {
            (Ok(a), Ok(b)) => a.cmp(&b),
            (Ok(_), Err(_)) => Ordering::Less,
            (Err(_), Ok(_)) => Ordering::Greater,
            (Err(_), Err(_)) => a.cmp(b),
        };
        let pre = match (self.pre.is_empty(), other.pre.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => self
                .pre
                .iter()
                .zip(&other.pre)
                .map(|(a, b)| part(a, b))
                .find(|order| order.is_ne())
                .unwrap_or_else(|| self.pre.len().cmp(&other.pre.len())),
        };
        self.numbers.cmp(&other.numbers).then(pre)
    }
}

fn of_version(name: &str, version: &Semver, args: &[Cel]) -> Option<Cel> {
    let number = |at: usize| Cel::Int(i64::try_from(version.numbers[at]).unwrap_or(i64::MAX));
    Some(match (name, args) {
        ("major", []) => number(0),
        ("minor", []) => number(1),
        ("patch", []) => number(2),
        ("isLessThan", [Cel::Semver(other)]) => Cel::Bool(*version < **other),
        ("isGreaterThan", [Cel::Semver(other)]) => Cel::Bool(*version > **other),
        ("compareTo", [Cel::Semver(other)]) => Cel::Int(version.cmp(other) as i64),
        _ => return None,
    })
}

/// Go's durations, such as `1h30m`.
pub(super) fn duration(text: &str) -> Option<SignedDuration> {
    crate::codec::duration_nanos(text).map(SignedDuration::from_nanos)
}

/// A value as `string()` gives it.
pub(super) fn text_of(value: &Cel) -> Option<String> {
    Some(match value {
        Cel::Text(text) => text.to_string(),
        Cel::Bool(flag) => flag.to_string(),
        Cel::Int(int) => int.to_string(),
        Cel::Uint(uint) => uint.to_string(),
        Cel::Double(double) => double.to_string(),
        Cel::Bytes(bytes) => String::from_utf8(bytes.to_vec()).ok()?,
        Cel::Timestamp(at) => at.to_string(),
        Cel::Duration(duration) => format!("{}s", duration.as_secs_f64()),
        Cel::Quantity(quantity) => quantity.to_string(),
        Cel::Ip(address) => address.to_string(),
        Cel::Cidr(address, bits) => format!("{address}/{bits}"),
        Cel::Url(url) => url.text.clone(),
        Cel::Type(name) => name.clone(),
        _ => return None,
    })
}

/// `%s %d %f %e %x %o %b` over a list of arguments.
pub(super) fn format(template: &str, args: &[Cel]) -> Result<String, EvalError> {
    let mut out = String::new();
    let mut args = args.iter();
    let mut rest = template;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let digits = rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        let precision = rest[..rest.len() - digits.len()]
            .trim_start_matches('.')
            .parse::<usize>()
            .ok();
        let Some(verb) = digits.chars().next() else {
            return failed("unexpected end of string");
        };
        rest = &digits[verb.len_utf8()..];
        if verb == '%' {
            out.push('%');
            continue;
        }
        let Some(arg) = args.next() else {
            return failed("index out of range");
        };
        let piece = match (verb, arg) {
            ('s', arg) => shown(arg),
            ('d', Cel::Int(_) | Cel::Uint(_) | Cel::Double(_)) => text_of(arg).unwrap_or_default(),
            ('f', Cel::Double(value)) => format!("{value:.*}", precision.unwrap_or(6)),
            ('f', Cel::Int(value)) => format!("{value}.{}", "0".repeat(precision.unwrap_or(6))),
            ('e', Cel::Double(value)) => format!("{value:.*e}", precision.unwrap_or(6)),
            ('x', Cel::Int(value)) => format!("{value:x}"),
            ('X', Cel::Int(value)) => format!("{value:X}"),
            ('x', Cel::Text(text)) => text.bytes().map(|byte| format!("{byte:02x}")).collect(),
            ('o', Cel::Int(value)) => format!("{value:o}"),
            ('b', Cel::Int(value)) => format!("{value:b}"),
            ('b', Cel::Bool(value)) => i32::from(*value).to_string(),
            (verb, arg) => {
                return failed(format!(
                    "error during formatting: %{verb} cannot show {}",
                    arg.type_name()
                ));
            }
        };
        out.push_str(&piece);
    }
    out.push_str(rest);
    Ok(out)
}

fn shown(value: &Cel) -> String {
    match value {
        Cel::Null => "null".to_owned(),
        Cel::List(items, _) => {
            let items: Vec<String> = items.iter().map(shown).collect();
            format!("[{}]", items.join(", "))
        }
        Cel::Map(map) => {
            let items: Vec<String> = map
                .iter()
                .map(|(key, value)| format!("{key}: {}", shown(value)))
                .collect();
            format!("{{{}}}", items.join(", "))
        }
        value => text_of(value).unwrap_or_default(),
    }
}
