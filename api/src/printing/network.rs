//! Services, Endpoints, EndpointSlices, Ingresses, IngressClasses, NetworkPolicies, IPAddresses, ServiceCIDRs.

use super::cell::{
    age, first_few, items, joined, labels, name, number, or_none, scalar, selector, text, text_or,
};
use super::{AGE, NAME, Printer, SELECTOR, text as column};
use serde_json::{Value, json};

static SERVICE: Printer = Printer {
    columns: &[
        NAME,
        column("Type", "How the service is reached."),
        column("Cluster-IP", "Address inside the cluster."),
        column("External-IP", "Addresses or names outside the cluster."),
        column("Port(s)", "Ports, and node ports behind the colon."),
        AGE,
        SELECTOR,
    ],
    cells: |object, now| {
        vec![
            name(object),
            json!(text(object, "/spec/type")),
            json!(text_or(object, "/spec/clusterIPs/0", "<none>")),
            json!(external_ip(object)),
            json!(or_none(service_ports(object))),
            age(object, now),
            json!(labels(object, "/spec/selector")),
        ]
    },
};

static ENDPOINTS: Printer = Printer {
    columns: &[
        NAME,
        column("Endpoints", "Addresses with their ports."),
        AGE,
    ],
    cells: |object, now| {
        vec![
            name(object),
            json!(or_none(first_few(&endpoints(object)))),
            age(object, now),
        ]
    },
};

static ENDPOINT_SLICE: Printer = Printer {
    columns: &[
        NAME,
        column("AddressType", "IPv4, IPv6 or FQDN."),
        column("Ports", "Ports of every endpoint."),
        column("Endpoints", "Addresses."),
        AGE,
    ],
    cells: |object, now| {
        let ports: Vec<String> = items(object, "/ports").iter().map(slice_port).collect();
        let addresses = items(object, "/endpoints")
            .iter()
            .flat_map(|endpoint| items(endpoint, "/addresses"));
        let addresses: Vec<String> = addresses
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect();
        let or_unset = |texts: &[String]| {
            if texts.is_empty() {
                "<unset>".to_owned()
            } else {
                first_few(texts)
            }
        };
        vec![
            name(object),
            json!(text(object, "/addressType")),
            json!(or_unset(&ports)),
            json!(or_unset(&addresses)),
            age(object, now),
        ]
    },
};

static INGRESS: Printer = Printer {
    columns: &[
        NAME,
        column("Class", "Class of the controller that serves the ingress."),
        column("Hosts", "Hosts that the ingress answers for."),
        column("Address", "Where it is reached."),
        column("Ports", "Ports it listens on."),
        AGE,
    ],
    cells: |object, now| {
        let ports = if items(object, "/spec/tls").is_empty() {
            "80"
        } else {
            "80, 443"
        };
        vec![
            name(object),
            json!(text_or(object, "/spec/ingressClassName", "<none>")),
            json!(hosts(object)),
            json!(load_balancer(object).join(",")),
            json!(ports),
            age(object, now),
        ]
    },
};

static INGRESS_CLASS: Printer = Printer {
    columns: &[
        NAME,
        column("Controller", "Controller that serves the class."),
        column("Parameters", "Object with the class's parameters."),
        AGE,
    ],
    cells: |object, now| {
        let parameters = object.pointer("/spec/parameters").map_or_else(
            || "<none>".to_owned(),
            |parameters| {
                let group = text(parameters, "/apiGroup");
                let dot = if parameters.get("apiGroup").is_some() {
                    "."
                } else {
                    ""
                };
                format!(
                    "{}{dot}{group}/{}",
                    text(parameters, "/kind"),
                    text(parameters, "/name")
                )
            },
        );
        vec![
            name(object),
            json!(text(object, "/spec/controller")),
            json!(parameters),
            age(object, now),
        ]
    },
};

static NETWORK_POLICY: Printer = Printer {
    columns: &[
        NAME,
        column(
            "Pod-Selector",
            "Label selector for the pods that the policy is about.",
        ),
        AGE,
    ],
    cells: |object, now| {
        vec![
            name(object),
            json!(selector(object, "/spec/podSelector")),
            age(object, now),
        ]
    },
};

static IP_ADDRESS: Printer = Printer {
    columns: &[NAME, column("ParentRef", "Object that uses the address.")],
    cells: |object, _| {
        let parent = object.pointer("/spec/parentRef").map_or_else(
            || "<none>".to_owned(),
            |parent| {
                let group = text(parent, "/group");
                let dot = if group.is_empty() { "" } else { "." };
                let resource = format!("{}{dot}{group}", text(parent, "/resource")).to_lowercase();
                format!(
                    "{resource}/{}/{}",
                    text(parent, "/namespace"),
                    text(parent, "/name")
                )
            },
        );
        vec![name(object), json!(parent)]
    },
};

static SERVICE_CIDR: Printer = Printer {
    columns: &[
        NAME,
        column("CIDRs", "Ranges that cluster addresses are taken from."),
        AGE,
    ],
    cells: |object, now| {
        vec![
            name(object),
            json!(joined(object, "/spec/cidrs", ",")),
            age(object, now),
        ]
    },
};

pub(super) fn core_printer(kind: &str) -> Option<&'static Printer> {
    match kind {
        "Service" => Some(&SERVICE),
        "Endpoints" => Some(&ENDPOINTS),
        _ => None,
    }
}

pub(super) fn printer(kind: &str) -> Option<&'static Printer> {
    Some(match kind {
        "EndpointSlice" => &ENDPOINT_SLICE,
        "Ingress" => &INGRESS,
        "IngressClass" => &INGRESS_CLASS,
        "NetworkPolicy" => &NETWORK_POLICY,
        "IPAddress" => &IP_ADDRESS,
        "ServiceCIDR" => &SERVICE_CIDR,
        _ => return None,
    })
}

fn external_ip(service: &Value) -> String {
    let external = joined(service, "/spec/externalIPs", ",");
    match text(service, "/spec/type") {
        "ClusterIP" | "NodePort" => or_none(external),
        "LoadBalancer" => {
            let mut addresses = load_balancer(service);
            if !external.is_empty() {
                addresses.push(external);
            }
            if addresses.is_empty() {
                "<pending>".to_owned()
            } else {
                addresses.join(",")
            }
        }
        "ExternalName" => text(service, "/spec/externalName").to_owned(),
        _ => "<unknown>".to_owned(),
    }
}

/// Addresses or host names of the load balancer, each once, sorted.
fn load_balancer(object: &Value) -> Vec<String> {
    let points = items(object, "/status/loadBalancer/ingress").iter();
    let mut addresses: Vec<String> = points
        .map(|point| text_or(point, "/ip", text(point, "/hostname")).to_owned())
        .filter(|text| !text.is_empty())
        .collect();
    addresses.sort();
    addresses.dedup();
    addresses
}

fn service_ports(service: &Value) -> String {
    let port = |port: &Value| {
        let (number_, protocol) = (number(port, "/port"), text(port, "/protocol"));
        match number(port, "/nodePort") {
            0 => format!("{number_}/{protocol}"),
            node_port => format!("{number_}:{node_port}/{protocol}"),
        }
    };
    items(service, "/spec/ports")
        .iter()
        .map(port)
        .collect::<Vec<_>>()
        .join(",")
}

fn endpoints(object: &Value) -> Vec<String> {
    let mut all = Vec::new();
    for subset in items(object, "/subsets") {
        let addresses = || {
            items(subset, "/addresses")
                .iter()
                .map(|address| text(address, "/ip"))
        };
        let ports = items(subset, "/ports");
        if ports.is_empty() {
            all.extend(addresses().map(str::to_owned));
        }
        for port in ports {
            let port = number(port, "/port");
            all.extend(addresses().map(|ip| {
                if ip.contains(':') {
                    format!("[{ip}]:{port}")
                } else {
                    format!("{ip}:{port}")
                }
            }));
        }
    }
    all
}

fn slice_port(port: &Value) -> String {
    scalar(port, "/port")
        .or_else(|| scalar(port, "/name"))
        .unwrap_or_else(|| "*".to_owned())
}

fn hosts(ingress: &Value) -> String {
    let rules = items(ingress, "/spec/rules");
    let hosts: Vec<String> = rules
        .iter()
        .map(|rule| text(rule, "/host").to_owned())
        .filter(|host| !host.is_empty())
        .collect();
    if hosts.is_empty() {
        "*".to_owned()
    } else {
        first_few(&hosts)
    }
}
