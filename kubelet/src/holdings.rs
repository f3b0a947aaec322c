//! What the Pods of a node hold together: resources and ports of the host. Sums are kept as Pods come, change and go, so that a look
//! whether one more fits costs the same however many there are. Pure.

use crate::pod::containers::{all, spec};
use crate::resources::Amounts;
use k8s_openapi::api::core::v1::Pod;
use std::collections::{BTreeMap, HashSet};

/// A port of the host that a Pod listens on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    pub protocol: String,
    /// Empty: all addresses of the host.
    pub address: String,
    pub port: i32,
}

/// The host ports of a Pod.
#[must_use]
pub fn host_ports(pod: &Pod) -> HashSet<HostPort> {
    let on_host = spec(pod).host_network.unwrap_or(false);
    let ports = all(pod).flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let own = on_host.then_some(port.container_port);
            let number = port.host_port.filter(|port| *port > 0).or(own)?;
            let address = port.host_ip.clone().filter(|ip| ip != "0.0.0.0");
            Some(HostPort {
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                address: address.unwrap_or_default(),
                port: number,
            })
        })
        .collect()
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    amounts: Amounts,
    ports: HashSet<HostPort>,
}

/// The sums. Equal to those of the same Pods in any order, whatever was there in between.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    of_pods: BTreeMap<String, Held>,
    /// Wide, so that adding never ends at a limit and what is taken away is what was added; without those that are zero.
    sums: BTreeMap<String, i128>,
    /// How many Pods have an address of a protocol and port, by that address.
    ports: BTreeMap<(String, i32), BTreeMap<String, usize>>,
}

impl Holdings {
    /// A Pod holds this from now on, instead of what it held before.
    pub fn put(&mut self, uid: &str, amounts: Amounts, ports: HashSet<HostPort>) {
        self.remove(uid);
        self.count(&amounts, 1);
        for port in &ports {
            let addresses = self
                .ports
                .entry((port.protocol.clone(), port.port))
                .or_default();
            *addresses.entry(port.address.clone()).or_default() += 1;
        }
        self.of_pods.insert(uid.to_owned(), Held { amounts, ports });
    }

    /// A Pod that is known holds other amounts from now on.
    pub fn resize(&mut self, uid: &str, amounts: Amounts) {
        let Some(held) = self.of_pods.get_mut(uid) else {
            return;
        };
        let before = std::mem::replace(&mut held.amounts, amounts.clone());
        self.count(&before, -1);
        self.count(&amounts, 1);
    }

    /// A Pod holds nothing any more; whether it held anything.
    pub fn remove(&mut self, uid: &str) -> bool {
        let Some(held) = self.of_pods.remove(uid) else {
            return false;
        };
        self.count(&held.amounts, -1);
        for port in held.ports {
            let key = (port.protocol, port.port);
            let Some(addresses) = self.ports.get_mut(&key) else {
                continue;
            };
            if let Some(count) = addresses.get_mut(&port.address) {
                *count -= 1;
            }
            addresses.retain(|_, count| *count > 0);
            if addresses.is_empty() {
                self.ports.remove(&key);
            }
        }
        true
    }

    fn count(&mut self, amounts: &Amounts, sign: i128) {
        for (resource, amount) in amounts {
            let sum = self.sums.entry(resource.clone()).or_default();
            *sum += sign * i128::from(*amount);
            if *sum == 0 {
                self.sums.remove(resource);
            }
        }
    }

    /// How many Pods there are.
    #[must_use]
    pub fn pods(&self) -> usize {
        self.of_pods.len()
    }

    /// What one Pod holds.
    #[must_use]
    pub fn of_pod(&self, uid: &str) -> Option<&Amounts> {
        self.of_pods.get(uid).map(|held| &held.amounts)
    }

    /// What all of them hold of a resource.
    #[must_use]
    pub fn used(&self, resource: &str) -> i64 {
        let sum = self.sums.get(resource).copied().unwrap_or(0);
        i64::try_from(sum).unwrap_or(i64::MAX)
    }

    /// Whether a Pod has the port already, on this address or on all.
    #[must_use]
    pub fn is_taken(&self, port: &HostPort) -> bool {
        let addresses = self.ports.get(&(port.protocol.clone(), port.port));
        addresses.is_some_and(|addresses| {
            port.address.is_empty()
                || addresses.contains_key("")
                || addresses.contains_key(&port.address)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice::Dice;

    fn random_amounts(dice: &mut Dice) -> Amounts {
        let mut amounts = Amounts::new();
        for resource in ["cpu", "memory", "example.com/gpu"] {
            let amount = match dice.roll(4) {
                0 => continue,
                1 => 0,
                2 => i64::MAX,
                _ => i64::try_from(dice.roll(5000)).unwrap(),
            };
            amounts.insert(resource.to_owned(), amount);
        }
        amounts
    }

    fn random_ports(dice: &mut Dice) -> HashSet<HostPort> {
        (0..dice.roll(3))
            .map(|_| HostPort {
                protocol: ["TCP", "UDP"][usize::try_from(dice.roll(2)).unwrap()].to_owned(),
                address: ["", "10.0.0.1"][usize::try_from(dice.roll(2)).unwrap()].to_owned(),
                port: i32::try_from(dice.roll(4)).unwrap(),
            })
            .collect()
    }

    #[test]
    fn sums_are_those_computed_anew_whatever_came_and_went() {
        for seed in 0..50 {
            let mut dice = Dice(seed);
            let mut kept = Holdings::default();
            let mut model: BTreeMap<String, (Amounts, HashSet<HostPort>)> = BTreeMap::new();
            for _ in 0..200 {
                let uid = dice.roll(12).to_string();
                match dice.roll(4) {
                    0 => {
                        assert_eq!(kept.remove(&uid), model.remove(&uid).is_some());
                    }
                    1 => {
                        let amounts = random_amounts(&mut dice);
                        kept.resize(&uid, amounts.clone());
                        if let Some(held) = model.get_mut(&uid) {
                            held.0 = amounts;
                        }
                    }
                    _ => {
                        let (amounts, ports) = (random_amounts(&mut dice), random_ports(&mut dice));
                        kept.put(&uid, amounts.clone(), ports.clone());
                        model.insert(uid, (amounts, ports));
                    }
                }
                let mut anew = Holdings::default();
                for (uid, (amounts, ports)) in &model {
                    anew.put(uid, amounts.clone(), ports.clone());
                }
                assert_eq!(kept, anew, "seed {seed}");
                let cpu: i128 = model
                    .values()
                    .filter_map(|(amounts, _)| amounts.get("cpu"))
                    .map(|amount| i128::from(*amount))
                    .sum();
                assert_eq!(kept.used("cpu"), i64::try_from(cpu).unwrap_or(i64::MAX));
                let asked = HostPort {
                    protocol: "TCP".into(),
                    address: "10.0.0.1".into(),
                    port: 1,
                };
                let taken = model.values().any(|(_, ports)| {
                    let same = |port: &&HostPort| port.protocol == "TCP" && port.port == 1;
                    ports.iter().filter(same).count() > 0
                });
                assert_eq!(kept.is_taken(&asked), taken, "seed {seed}");
                assert_eq!(kept.pods(), model.len());
            }
        }
    }

    #[test]
    fn ports_table() {
        let port = |protocol: &str, address: &str, port: i32| HostPort {
            protocol: protocol.into(),
            address: address.into(),
            port,
        };
        let mut holdings = Holdings::default();
        holdings.put(
            "a",
            Amounts::new(),
            [port("TCP", "10.0.0.1", 80), port("UDP", "", 53)].into(),
        );
        let cases = [
            ("the same", port("TCP", "10.0.0.1", 80), true),
            ("all addresses", port("TCP", "", 80), true),
            ("another address", port("TCP", "10.0.0.2", 80), false),
            ("another protocol", port("UDP", "10.0.0.1", 80), false),
            ("another port", port("TCP", "10.0.0.1", 81), false),
            ("one of all addresses", port("UDP", "10.0.0.1", 53), true),
        ];
        for (name, asked, expected) in cases {
            assert_eq!(holdings.is_taken(&asked), expected, "case: {name}");
        }
        holdings.remove("a");
        assert_eq!(holdings, Holdings::default());
    }
}
