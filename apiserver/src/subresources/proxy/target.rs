//! What a proxied request's name (`NAME`, `NAME:PORT` or `SCHEME:NAME:PORT`) leads to.

use std::net::IpAddr;

use cox_api::status::ApiStatus;
use serde_json::Value;

use crate::call::Call;
use crate::kubelet;
use crate::outside;
use crate::refuse;
use crate::registry::{Registry, decode_stored};

/// How the server there is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    Http,
    Https,
}

/// A port of a Pod or of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) scheme: Scheme,
    pub(super) address: IpAddr,
    pub(super) port: u16,
}

impl Target {
    /// Address and port as they stand in URLs.
    pub(super) fn authority(&self) -> String {
        std::net::SocketAddr::new(self.address, self.port).to_string()
    }
}

/// A name with the scheme and port that a client put around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Named<'a> {
    scheme: Scheme,
    name: &'a str,
    port: &'a str,
}

impl<'a> Named<'a> {
    /// Upstream's grammar; nothing when it is broken.
    fn parse(text: &'a str) -> Option<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let (scheme, name, port) = match parts[..] {
            [name] => ("", name, ""),
            [name, port] => ("", name, port),
            [scheme, name, port] => (scheme, name, port),
            _ => return None,
        };
        let scheme = match scheme {
            "" | "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return None,
        };
        (!name.is_empty()).then_some(Named { scheme, name, port })
    }

    fn of<'c>(call: &'c Call<'_>) -> Result<Named<'c>, ApiStatus> {
        let text = call.info.name;
        Named::parse(text).ok_or_else(|| {
            let kind = call.entry.resource.kind.to_lowercase();
            refuse::bad_request(format!("invalid {kind} request {text:?}"))
        })
    }
}

fn stored(call: &Call<'_>, name: &str) -> Result<Value, ApiStatus> {
    let entry = call.entry;
    let snapshot = call.api.registry.store().snapshot();
    let path = entry.path(call.namespace(), name);
    let object = snapshot
        .get(&entry.prefix, &path)
        .ok_or_else(|| refuse::not_found(entry, name))?;
    decode_stored(&object.json)
}

/// The node that the request names.
pub(super) fn node(call: &Call<'_>) -> Result<Value, ApiStatus> {
    stored(call, Named::of(call)?.name)
}

/// A port of a node that is not its kubelet's; nothing when the kubelet is meant.
pub(super) fn of_node(call: &Call<'_>) -> Result<Option<Target>, ApiStatus> {
    let named = Named::of(call)?;
    let node = stored(call, named.name)?;
    let Some((host, kubelet)) = kubelet::endpoint(&node) else {
        return Ok(None);
    };
    if named.port.is_empty() || named.port.parse() == Ok(kubelet) {
        return Ok(None);
    }
    let port = number(named.port)?;
    // Whoever asks for the port that all kubelets of a cluster usually have means the kubelet.
    if port == kubelet::KUBELET_PORT {
        return Ok(None);
    }
    let address = host
        .parse()
        .map_err(|_| refuse::bad_request("address not allowed"))?;
    check(&call.api.registry, address)?;
    Ok(Some(Target {
        scheme: named.scheme,
        address,
        port,
    }))
}

/// A port of a Pod: the one named, or its first.
pub(super) fn of_pod(call: &Call<'_>) -> Result<Target, ApiStatus> {
    let named = Named::of(call)?;
    let pod = stored(call, named.name)?;
    let port = match named.port {
        "" => first_port(&pod).unwrap_or(80),
        port => number(port)?,
    };
    let address: IpAddr = pod["status"]["podIP"]
        .as_str()
        .and_then(|ip| ip.parse().ok())
        .ok_or_else(|| refuse::bad_request("address not allowed"))?;
    check(&call.api.registry, address)?;
    Ok(Target {
        scheme: named.scheme,
        address,
        port,
    })
}

/// One of the ready endpoints behind a port of a Service, which may be named by its number too.
pub(super) fn of_service(call: &Call<'_>) -> Result<Target, ApiStatus> {
    let named = Named::of(call)?;
    let name = named.name;
    let service = stored(call, name)?;
    let ports = service["spec"]["ports"].as_array();
    let mut ports = ports.into_iter().flatten();
    let none =
        || ApiStatus::service_unavailable(format!("no endpoints available for service {name:?}"));
    let port = match named.port.parse::<u16>() {
        Ok(number) => ports.find(|one| one["port"] == number).ok_or_else(|| {
            ApiStatus::service_unavailable(format!(
                "no service port {number} found for service {name:?}"
            ))
        })?,
        Err(_) => ports
            .find(|one| one["name"].as_str().unwrap_or_default() == named.port)
            .ok_or_else(none)?,
    };
    let registry = &call.api.registry;
    let (address, port) =
        outside::endpoint(registry, call.namespace(), name, port).ok_or_else(none)?;
    check(registry, address)?;
    Ok(Target {
        scheme: named.scheme,
        address,
        port,
    })
}

fn number(port: &str) -> Result<u16, ApiStatus> {
    port.parse()
        .map_err(|_| refuse::bad_request(format!("{port:?} is no port")))
}

fn first_port(pod: &Value) -> Option<u16> {
    let containers = pod["spec"]["containers"].as_array()?;
    let port = containers
        .iter()
        .find_map(|container| container["ports"][0]["containerPort"].as_u64());
    port.and_then(|port| u16::try_from(port).ok())
}

/// Nobody gets at what listens on this machine for itself: such addresses are only allowed where Pods have them.
fn check(registry: &Registry, address: IpAddr) -> Result<(), ApiStatus> {
    let own = match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local() || v4.is_unspecified(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified(),
    };
    if !own && !address.is_multicast() {
        return Ok(());
    }
    let of_pods = registry
        .list("", "nodes", "")
        .iter()
        .filter_map(|node| decode_stored(&node.json).ok())
        .any(|node| {
            let ranges = node["spec"]["podCIDRs"].as_array();
            let mut ranges = ranges.into_iter().flatten().filter_map(Value::as_str);
            ranges.any(|range| holds(range, address))
        });
    if of_pods {
        Ok(())
    } else {
        Err(refuse::bad_request("address not allowed"))
    }
}

/// Whether a range such as `127.64.0.0/18` holds the address.
fn holds(range: &str, address: IpAddr) -> bool {
    let Some((base, bits)) = range.split_once('/') else {
        return false;
    };
    let (Ok(IpAddr::V4(base)), IpAddr::V4(address), Ok(bits @ 1..=32)) =
        (base.parse(), address, bits.parse::<u32>())
    else {
        return false;
    };
    let mask = u32::MAX << (32 - bits);
    u32::from(base) & mask == u32::from(address) & mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_have_a_scheme_and_a_port() {
        let named = |scheme, name, port| Some(Named { scheme, name, port });
        let cases = [
            ("web", named(Scheme::Http, "web", "")),
            ("web:80", named(Scheme::Http, "web", "80")),
            ("web:http", named(Scheme::Http, "web", "http")),
            ("https:web:", named(Scheme::Https, "web", "")),
            ("http:web:x", named(Scheme::Http, "web", "x")),
            ("ftp:web:x", None),
            (":80", None),
            ("a:b:c:d", None),
        ];
        for (text, expected) in cases {
            assert_eq!(Named::parse(text), expected, "case: {text}");
        }
    }

    #[test]
    fn ranges_hold_what_shares_their_bits() {
        let cases = [
            ("127.64.0.0/18", "127.64.63.255", true),
            ("127.64.0.0/18", "127.0.0.1", false),
            ("10.0.0.0/8", "::1", false),
            ("nonsense", "127.0.0.1", false),
        ];
        for (range, address, expected) in cases {
            assert_eq!(
                holds(range, address.parse().unwrap()),
                expected,
                "case: {range} {address}"
            );
        }
    }
}
