//! The way out of the node: packets of Pods to anything that is no Pod leave with the node's address. One table of nftables of our
//! own, replaced as a whole, removed as a whole; nobody else's rules are looked at.

use std::io;

use super::addresses::{Cidr, Cidr6, NodeRanges};
use super::netlink::{APPEND, CREATE, Message, Socket};

const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NFTABLES: u16 = 10 << 8;
const NEW_TABLE: u16 = NFTABLES;
const DELETE_TABLE: u16 = NFTABLES | 2;
const NEW_CHAIN: u16 = NFTABLES | 3;
const NEW_RULE: u16 = NFTABLES | 6;

const HOOK_POSTROUTING: u32 = 4;
/// After routing, where source addresses are translated.
const PRIORITY_SOURCE_NAT: u32 = 100;
const ACCEPT: u32 = 1;

/// Never translated: they do not leave the link.
const MULTICAST: &str = "224.0.0.0/4";
const MULTICAST_IPV6: &str = "ff00::/8";

/// Both kinds of address: netfilter's number, and where a header has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }

    fn source(self) -> u32 {
        match self {
            Self::V4 => 12,
            Self::V6 => 8,
        }
    }

    fn destination(self) -> u32 {
        match self {
            Self::V4 => 16,
            Self::V6 => 24,
        }
    }
}

/// A range of either kind, as bytes.
#[derive(Clone, Debug)]
pub(crate) struct Range {
    base: Vec<u8>,
    mask: Vec<u8>,
}

impl From<Cidr> for Range {
    fn from(range: Cidr) -> Self {
        Self {
            base: range.base().octets().to_vec(),
            mask: range.netmask().octets().to_vec(),
        }
    }
}

impl From<Cidr6> for Range {
    fn from(range: Cidr6) -> Self {
        Self {
            base: range.base().octets().to_vec(),
            mask: range.netmask().octets().to_vec(),
        }
    }
}

/// Where Pods' own addresses are understood: there they stay as they are.
#[derive(Clone, Debug)]
pub(crate) struct Inside {
    ipv4: Vec<Range>,
    ipv6: Vec<Range>,
}

impl Inside {
    /// The Pods of the cluster, and whoever listens on a link.
    pub(crate) fn new(ranges: &NodeRanges, (cluster, cluster6): (&[Cidr], &[Cidr6])) -> Self {
        let multicast: Cidr = MULTICAST.parse().expect("a range");
        let multicast6: Cidr6 = MULTICAST_IPV6.parse().expect("a range");
        let ipv4 = cluster.iter().copied().chain([ranges.bridge, multicast]);
        let ipv6 = cluster6.iter().copied().chain([multicast6]);
        Self {
            ipv4: ipv4.map(Range::from).collect(),
            ipv6: ipv6.map(Range::from).collect(),
        }
    }

    pub(crate) fn of(&self, family: Family) -> &[Range] {
        match family {
            Family::V4 => &self.ipv4,
            Family::V6 => &self.ipv6,
        }
    }
}

const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;

const CHAIN: &str = "postrouting";

/// Masquerades what comes from `pods`, leaves the node and goes to none of `inside`.
pub(crate) fn ensure_masquerade(
    table: &str,
    family: Family,
    pods: impl Into<Range>,
    inside: &Inside,
) -> io::Result<()> {
    let pods = &pods.into();
    let message = |kind, flags| message(family, kind, flags);
    let chain = message(NEW_CHAIN, CREATE)
        .text(1, table)
        .text(3, CHAIN)
        .nest(4, |hook| {
            hook.be32(1, HOOK_POSTROUTING).be32(2, PRIORITY_SOURCE_NAT)
        })
        .be32(5, ACCEPT)
        .text(7, "nat");
    let rule = message(NEW_RULE, CREATE | APPEND)
        .text(1, table)
        .text(2, CHAIN)
        .nest(4, |list| {
            let list = matches(list, family.source(), EQUAL, pods);
            let list = leaves_the_node(list);
            let list = inside.of(family).iter().fold(list, |list, range| {
                matches(list, family.destination(), NOT_EQUAL, range)
            });
            expression(list, "masq", |data| data)
        });
    let messages = vec![
        // Made, so that it can be removed: an older version goes with all its rules.
        message(NEW_TABLE, CREATE).text(1, table),
        message(DELETE_TABLE, 0).text(1, table),
        message(NEW_TABLE, CREATE).text(1, table),
        chain,
        rule,
    ];
    commit(messages)
}

/// Removes the table; none there is fine.
pub(crate) fn remove_masquerade(table: &str, family: Family) -> io::Result<()> {
    let message = |kind, flags| message(family, kind, flags);
    commit(vec![
        message(NEW_TABLE, CREATE).text(1, table),
        message(DELETE_TABLE, 0).text(1, table),
    ])
}

fn commit(messages: Vec<Message>) -> io::Result<()> {
    let batch = |kind| Message::new(kind, 0, &[0, 0, 0, 10]);
    Socket::netfilter()?.transaction(batch(BATCH_BEGIN), messages, batch(BATCH_END))
}

fn message(family: Family, kind: u16, flags: u16) -> Message {
    Message::new(kind, flags, &[family.number(), 0, 0, 0])
}

fn expression(list: Message, name: &str, data: impl FnOnce(Message) -> Message) -> Message {
    list.nest(1, |element| element.text(1, name).nest(2, data))
}

/// Goes on when a packet does not leave by the loopback interface.
fn leaves_the_node(list: Message) -> Message {
    const REGISTER: u32 = 1;
    /// `NFT_META_OIF`.
    const OUTGOING_INTERFACE: u32 = 5;
    const LOOPBACK: u32 = 1;
    let list = expression(list, "meta", |data| {
        data.be32(1, REGISTER).be32(2, OUTGOING_INTERFACE)
    });
    expression(list, "cmp", |data| {
        data.be32(1, REGISTER)
            .be32(2, NOT_EQUAL)
            .nest(3, |value| value.attribute(1, &LOOPBACK.to_ne_bytes()))
    })
}

/// Goes on when the address at `offset` is (or is not) in `range`.
fn matches(list: Message, offset: u32, operator: u32, range: &Range) -> Message {
    let register = 1;
    let len = u32::try_from(range.base.len()).expect("an address has 4 or 16 bytes");
    let list = expression(list, "payload", |data| {
        data.be32(1, register)
            .be32(2, 1)
            .be32(3, offset)
            .be32(4, len)
    });
    let list = expression(list, "bitwise", |data| {
        data.be32(1, register)
            .be32(2, register)
            .be32(3, len)
            .nest(4, |mask| mask.attribute(1, &range.mask))
            .nest(5, |xor| xor.attribute(1, &vec![0; range.base.len()]))
    });
    expression(list, "cmp", |data| {
        data.be32(1, register)
            .be32(2, operator)
            .nest(3, |value| value.attribute(1, &range.base))
    })
}
