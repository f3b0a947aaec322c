//! NetworkPolicies: what they say for the Pods of this node ([`compile`], pure), held in the kernel for Pods with a namespace
//! ([`kernel`]) and told to the runtime shim for virtual ones ([`table`]).
//!
//! A Pod that some policy selects takes (or sends) only what one of its policies allows; others take everything. Always allowed: answers,
//! a Pod with itself, the node with its Pods, and the cluster's DNS, which is no Pod here that a policy could name.
//! <https://kubernetes.io/docs/concepts/services-networking/network-policies/>

mod compile;
mod isolation;
mod kernel;
mod run;
mod table;

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::plan::Protocol;

pub use isolation::Isolation;
pub(crate) use run::{Config, run};

/// What one policy says on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Policy {
    /// `namespace/name`.
    name: String,
    /// Addresses of the Pods of this node that it selects.
    pods: BTreeSet<IpAddr>,
    /// What they take; `None`: it says nothing of that.
    ingress: Option<Vec<Allow>>,
    /// What they send.
    egress: Option<Vec<Allow>>,
}

/// Traffic that a policy allows.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Allow {
    /// The other side; `None`: everybody.
    peers: Option<Peers>,
    /// Ports of the receiving side; `None`: all.
    ports: Option<Vec<Ports>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Peers {
    /// Addresses of Pods.
    pods: BTreeSet<IpAddr>,
    blocks: Vec<Block>,
}

/// A range of addresses without some parts of it, in CIDR notation.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
struct Block {
    net: String,
    except: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Ports {
    /// A whole protocol.
    All(Protocol),
    /// From, to; both included.
    Range(Protocol, u16, u16),
    /// A named port: what it is at each of the Pods that have it.
    Named(Protocol, BTreeSet<(IpAddr, u16)>),
}
