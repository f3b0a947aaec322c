//! Takes what comes to Services and brings it to their endpoints: in the kernel ([`nftables`]) or in this process ([`userspace`]).

pub(crate) mod flows;
pub(crate) mod iptables;
pub(crate) mod nftables;
mod sockets;
pub(crate) mod userspace;
