//! The cluster's own names, by upstream's specification of DNS-based service discovery (version 1.1.0). Pure.
//!
//! A name that exists without a record of the wanted type is answered with nothing, one that does not exist with NXDOMAIN.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::rdata::{CNAME, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use k8s_openapi::api::core::v1::Service;

use crate::view::{Key, Owner, View, cluster_ips, endpoint_label, is_ready};

/// How long others may keep an answer: endpoints come and go.
const TTL_SECS: u32 = 5;
const VERSION: &str = "1.1.0";

/// What the zone says about a name.
#[derive(Debug, PartialEq)]
pub(crate) enum Answer {
    /// It exists; there may be no record of the wanted type.
    Found {
        records: Vec<Record>,
        additionals: Vec<Record>,
    },
    /// An alias for a name elsewhere.
    Alias(Box<Record>, Name),
    /// It is the zone's to know, and does not exist.
    Absent,
    /// Not the zone's.
    Elsewhere,
}

/// One question to the zone.
#[derive(Debug)]
pub(crate) struct Zone<'a> {
    view: &'a View,
    domain: &'a str,
}

impl<'a> Zone<'a> {
    /// `domain` is that of the cluster, such as `cluster.local`, without a dot at its end.
    pub(crate) fn new(view: &'a View, domain: &'a str) -> Self {
        Self { view, domain }
    }

    pub(crate) fn answer(&self, name: &Name, kind: RecordType) -> Answer {
        let text = name.to_lowercase().to_ascii();
        let text = text.trim_end_matches('.');
        if text.ends_with(".in-addr.arpa") || text.ends_with(".ip6.arpa") {
            return self.reverse(name, text, kind);
        }
        let Some(rest) = below(text, self.domain) else {
            return Answer::Elsewhere;
        };
        let labels: Vec<&str> = rest
            .split('.')
            .filter(|label| !label.is_empty())
            .rev()
            .collect();
        match labels.as_slice() {
            [] | ["svc" | "pod"] => nothing(),
            ["dns-version"] if kind == RecordType::TXT => found(vec![record(
                name,
                RData::TXT(TXT::new(vec![VERSION.to_owned()])),
            )]),
            ["dns-version"] => nothing(),
            ["pod", _] => nothing(),
            ["pod", _, ip] => pod(name, ip, kind),
            ["svc", namespace] => self.namespace(namespace),
            ["svc", namespace, service, rest @ ..] => {
                let key = ((*namespace).to_owned(), (*service).to_owned());
                let Some(service) = self.view.services.get(&key) else {
                    return Answer::Absent;
                };
                self.service(name, &key, service, rest, kind)
            }
            _ => Answer::Absent,
        }
    }

    fn namespace(&self, namespace: &str) -> Answer {
        if self.view.services.keys().any(|(of, _)| of == namespace) {
            nothing()
        } else {
            Answer::Absent
        }
    }

    fn service(
        &self,
        name: &Name,
        key: &Key,
        service: &Service,
        rest: &[&str],
        kind: RecordType,
    ) -> Answer {
        let spec = service.spec.as_ref();
        if spec.and_then(|spec| spec.type_.as_deref()) == Some("ExternalName") {
            let target = spec.and_then(|spec| spec.external_name.as_deref());
            let target = target.and_then(|target| Name::from_ascii(target).ok());
            return match (rest, target) {
                ([], Some(mut target)) => {
                    target.set_fqdn(true);
                    let record = record(name, RData::CNAME(CNAME(target.clone())));
                    Answer::Alias(Box::new(record), target)
                }
                _ => Answer::Absent,
            };
        }
        let ips = cluster_ips(service);
        let headless = ips.is_empty();
        match rest {
            [] if matches!(kind, RecordType::SRV) => self.srv(name, key, &ips, "", ""),
            [] if headless => {
                let own = self.endpoints(key);
                if own.is_empty() {
                    return Answer::Absent;
                }
                addresses(name, own.into_iter().map(|(ip, _)| ip), kind)
            }
            [] => addresses(name, ips, kind),
            [proto, port] if proto.starts_with('_') && port.starts_with('_') => {
                match self.srv(name, key, &ips, &port[1..], &proto[1..]) {
                    Answer::Found { records, .. } if records.is_empty() => Answer::Absent,
                    Answer::Found { .. } if kind != RecordType::SRV => nothing(),
                    answer => answer,
                }
            }
            [label] => {
                let own = self.endpoints(key).into_iter();
                let own: Vec<IpAddr> = own
                    .filter(|(_, own)| own.eq_ignore_ascii_case(label))
                    .map(|(ip, _)| ip)
                    .collect();
                if own.is_empty() {
                    Answer::Absent
                } else {
                    addresses(name, own, kind)
                }
            }
            _ => Answer::Absent,
        }
    }

    /// Addresses and labels of the endpoints that have names.
    fn endpoints(&self, key: &Key) -> Vec<(IpAddr, String)> {
        let mut all = Vec::new();
        for slice in self.view.slices_of(key) {
            for endpoint in slice.endpoints.iter().flatten().filter(|one| is_ready(one)) {
                for ip in &endpoint.addresses {
                    if let Ok(parsed) = ip.parse() {
                        all.push((parsed, endpoint_label(endpoint, ip)));
                    }
                }
            }
        }
        all
    }

    /// `port` and `proto` empty mean any.
    fn srv(&self, name: &Name, key: &Key, ips: &[IpAddr], port: &str, proto: &str) -> Answer {
        let (mut records, mut additionals) = (Vec::new(), Vec::new());
        let matches = |name: Option<&str>, protocol: Option<&str>| {
            (port.is_empty() || name == Some(port))
                && (proto.is_empty() || protocol.unwrap_or("TCP").eq_ignore_ascii_case(proto))
        };
        let (namespace, service) = key;
        let own = format!("{service}.{namespace}.svc.{}.", self.domain);
        let mut add = |label: Option<&str>, number: i32, ips: &[IpAddr]| {
            let target = label.map_or_else(|| own.clone(), |label| format!("{label}.{own}"));
            let (Ok(target), Ok(number)) = (Name::from_ascii(&target), u16::try_from(number))
            else {
                return;
            };
            records.push(record(
                name,
                RData::SRV(SRV::new(0, 100, number, target.clone())),
            ));
            additionals.extend(ips.iter().map(|ip| record(&target, ip_data(*ip))));
        };
        if !ips.is_empty() {
            let spec = self
                .view
                .services
                .get(key)
                .and_then(|service| service.spec.as_ref());
            let ports = spec
                .into_iter()
                .flat_map(|spec| spec.ports.iter().flatten());
            for one in ports.filter(|one| matches(one.name.as_deref(), one.protocol.as_deref())) {
                add(None, one.port, ips);
            }
            return Answer::Found {
                records,
                additionals,
            };
        }
        for slice in self.view.slices_of(key) {
            for endpoint in slice.endpoints.iter().flatten().filter(|one| is_ready(one)) {
                for one in slice.ports.iter().flatten() {
                    if !matches(one.name.as_deref(), one.protocol.as_deref()) {
                        continue;
                    }
                    for ip in &endpoint.addresses {
                        let label = endpoint_label(endpoint, ip);
                        let parsed: Vec<IpAddr> = ip.parse().into_iter().collect();
                        add(Some(&label), one.port.unwrap_or_default(), &parsed);
                    }
                }
            }
        }
        Answer::Found {
            records,
            additionals,
        }
    }

    fn reverse(&self, name: &Name, text: &str, kind: RecordType) -> Answer {
        let Some(owner) = reverse_ip(text).and_then(|ip| self.view.owner(ip)) else {
            return Answer::Elsewhere;
        };
        if kind != RecordType::PTR {
            return nothing();
        }
        let (label, (namespace, service)) = match owner {
            Owner::Service(key) => (String::new(), key),
            Owner::Endpoint(key, label) => (format!("{label}."), key),
        };
        let target = format!("{label}{service}.{namespace}.svc.{}.", self.domain);
        match Name::from_ascii(&target) {
            Ok(target) => found(vec![record(name, RData::PTR(PTR(target)))]),
            Err(_) => nothing(),
        }
    }

    /// Says who is asked about the zone, and for how long its silence may be kept.
    pub(crate) fn authority(&self) -> Option<Record> {
        let domain = Name::from_ascii(format!("{}.", self.domain)).ok()?;
        let server = Name::from_ascii(format!("ns.dns.{}.", self.domain)).ok()?;
        let mail = Name::from_ascii(format!("hostmaster.{}.", self.domain)).ok()?;
        let soa = SOA::new(server, mail, 1, 7200, 1800, 86_400, TTL_SECS);
        Some(Record::from_rdata(domain, TTL_SECS, RData::SOA(soa)))
    }
}

/// What stands before `domain` in `name`.
fn below<'a>(name: &'a str, domain: &str) -> Option<&'a str> {
    let rest = name.strip_suffix(domain)?;
    if rest.is_empty() {
        Some(rest)
    } else {
        rest.strip_suffix('.')
    }
}

fn found(records: Vec<Record>) -> Answer {
    Answer::Found {
        records,
        additionals: Vec::new(),
    }
}

fn nothing() -> Answer {
    found(Vec::new())
}

fn record(name: &Name, data: RData) -> Record {
    Record::from_rdata(name.clone(), TTL_SECS, data)
}

fn ip_data(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(ip.into()),
        IpAddr::V6(ip) => RData::AAAA(ip.into()),
    }
}

fn addresses(name: &Name, ips: impl IntoIterator<Item = IpAddr>, kind: RecordType) -> Answer {
    let wanted = ips.into_iter().filter(|ip| match kind {
        RecordType::A => ip.is_ipv4(),
        RecordType::AAAA => ip.is_ipv6(),
        RecordType::ANY => true,
        _ => false,
    });
    found(wanted.map(|ip| record(name, ip_data(ip))).collect())
}

/// `10-64-0-7.ns.pod.DOMAIN` is the address that it says.
fn pod(name: &Name, label: &str, kind: RecordType) -> Answer {
    let v4 = label
        .replace('-', ".")
        .parse::<Ipv4Addr>()
        .map(IpAddr::from);
    let ip = v4.or_else(|_| {
        label
            .replace('-', ":")
            .parse::<Ipv6Addr>()
            .map(IpAddr::from)
    });
    match ip {
        Ok(ip) => addresses(name, [ip], kind),
        Err(_) => Answer::Absent,
    }
}

fn reverse_ip(text: &str) -> Option<IpAddr> {
    if let Some(rest) = text.strip_suffix(".in-addr.arpa") {
        let octets: Vec<&str> = rest.split('.').rev().collect();
        return octets.join(".").parse::<Ipv4Addr>().ok().map(IpAddr::from);
    }
    let digits: String = text.strip_suffix(".ip6.arpa")?.split('.').rev().collect();
    if digits.len() != 32 {
        return None;
    }
    u128::from_str_radix(&digits, 16)
        .ok()
        .map(|number| Ipv6Addr::from(number).into())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::view::NodeFacts;
    use serde_json::{Value, json};

    fn view() -> View {
        let service = |name: &str, spec: Value| -> Arc<Service> {
            let service = json!({"metadata": {"namespace": "shop", "name": name}, "spec": spec});
            Arc::new(serde_json::from_value(service).unwrap())
        };
        let ports = json!([{"name": "web", "port": 80, "protocol": "TCP"}]);
        let slice = json!({"addressType": "IPv4", "metadata": {"namespace": "shop", "name": "db-1", "labels": {"kubernetes.io/service-name": "db"}},
            "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}],
            "endpoints": [{"addresses": ["10.0.0.1"], "hostname": "db-0"}, {"addresses": ["10.0.0.2"]},
                {"addresses": ["10.0.0.3"], "conditions": {"ready": false}}]});
        View::new(
            vec![
                service(
                    "web",
                    json!({"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00::7"], "ports": ports}),
                ),
                service("db", json!({"clusterIP": "None"})),
                service(
                    "out",
                    json!({"type": "ExternalName", "externalName": "example.org"}),
                ),
            ],
            vec![Arc::new(serde_json::from_value(slice).unwrap())],
            NodeFacts::default(),
        )
    }

    /// The answer in a line: records by their data.
    fn told(answer: &Answer) -> String {
        match answer {
            Answer::Found { records, .. } => {
                let mut all: Vec<String> = records
                    .iter()
                    .map(|record| record.data.to_string())
                    .collect();
                all.sort();
                all.join(", ")
            }
            Answer::Alias(_, target) => format!("-> {target}"),
            Answer::Absent => "absent".to_owned(),
            Answer::Elsewhere => "elsewhere".to_owned(),
        }
    }

    #[test]
    fn names_of_the_specification() {
        let view = view();
        let zone = Zone::new(&view, "cluster.local");
        for (name, kind, expected) in [
            ("web.shop.svc.cluster.local.", RecordType::A, "10.96.0.7"),
            ("WEB.Shop.svc.cluster.local.", RecordType::A, "10.96.0.7"),
            ("web.shop.svc.cluster.local.", RecordType::AAAA, "fd00::7"),
            ("web.shop.svc.cluster.local.", RecordType::MX, ""),
            ("none.shop.svc.cluster.local.", RecordType::A, "absent"),
            ("shop.svc.cluster.local.", RecordType::A, ""),
            ("nowhere.svc.cluster.local.", RecordType::A, "absent"),
            (
                "db.shop.svc.cluster.local.",
                RecordType::A,
                "10.0.0.1, 10.0.0.2",
            ),
            ("db-0.db.shop.svc.cluster.local.", RecordType::A, "10.0.0.1"),
            (
                "10-0-0-2.db.shop.svc.cluster.local.",
                RecordType::A,
                "10.0.0.2",
            ),
            (
                "10-0-0-3.db.shop.svc.cluster.local.",
                RecordType::A,
                "absent",
            ),
            (
                "_web._tcp.web.shop.svc.cluster.local.",
                RecordType::SRV,
                "0 100 80 web.shop.svc.cluster.local.",
            ),
            (
                "_sql._tcp.db.shop.svc.cluster.local.",
                RecordType::SRV,
                "0 100 5432 10-0-0-2.db.shop.svc.cluster.local., 0 100 5432 db-0.db.shop.svc.cluster.local.",
            ),
            (
                "_web._udp.web.shop.svc.cluster.local.",
                RecordType::SRV,
                "absent",
            ),
            (
                "out.shop.svc.cluster.local.",
                RecordType::A,
                "-> example.org.",
            ),
            (
                "10-1-2-3.shop.pod.cluster.local.",
                RecordType::A,
                "10.1.2.3",
            ),
            ("x.shop.pod.cluster.local.", RecordType::A, "absent"),
            (
                "7.0.96.10.in-addr.arpa.",
                RecordType::PTR,
                "web.shop.svc.cluster.local.",
            ),
            (
                "1.0.0.10.in-addr.arpa.",
                RecordType::PTR,
                "db-0.db.shop.svc.cluster.local.",
            ),
            ("9.9.9.9.in-addr.arpa.", RecordType::PTR, "elsewhere"),
            ("example.org.", RecordType::A, "elsewhere"),
            ("notcluster.local.", RecordType::A, "elsewhere"),
            ("x.cluster.local.", RecordType::A, "absent"),
        ] {
            let answer = zone.answer(&Name::from_ascii(name).unwrap(), kind);
            assert_eq!(told(&answer), expected, "{name} {kind}");
        }
    }
}
