//! The switches that make the node a router between its Pods and everybody else. They stay when the Pods are gone, as others may have
//! come to rely on them.

use std::io;
use std::path::Path;

const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
const IPV6_FORWARD: &str = "/proc/sys/net/ipv6/conf/all/forwarding";
const IPV6_ROUTES: &str = "/proc/net/ipv6_route";
const IPV6_LINKS: &str = "/proc/sys/net/ipv6/conf";
/// `RTF_DEFAULT` and `RTF_ADDRCONF`: the way out, as a router announced it.
const ANNOUNCED: u32 = 0x0005_0000;

pub(super) fn forward_ipv4() -> io::Result<()> {
    turn_on(IP_FORWARD, || {})
}

pub(super) fn forward_ipv6() -> io::Result<()> {
    turn_on(IPV6_FORWARD, keep_routers)
}

fn turn_on(switch: &str, before: impl FnOnce()) -> io::Result<()> {
    if std::fs::read_to_string(switch)?.trim() == "1" {
        return Ok(());
    }
    before();
    std::fs::write(switch, "1")?;
    tracing::info!(switch, "Forwarding is turned on for the Pods");
    Ok(())
}

/// A node that forwards does not listen to routers any more, unless it is told to (2): where its own way out was announced by one, it
/// would lose it within minutes. Only there: Pods must not announce anything to the node.
fn keep_routers() {
    let routes = std::fs::read_to_string(IPV6_ROUTES).unwrap_or_default();
    for link in announced(&routes) {
        let switch = Path::new(IPV6_LINKS).join(link).join("accept_ra");
        if std::fs::read_to_string(&switch).is_ok_and(|text| text.trim() == "1")
            && let Err(err) = std::fs::write(&switch, "2")
        {
            tracing::warn!(error = %err, link, "The node does not listen to its router any more and will lose its way out by IPv6");
        }
    }
}

/// The interfaces of routes to everywhere that routers announced. The last column is the interface, the one before it flags.
fn announced(routes: &str) -> impl Iterator<Item = &str> {
    routes.lines().filter_map(|line| {
        let mut columns = line.split_whitespace().rev();
        let link = columns.next()?;
        let flags = u32::from_str_radix(columns.next()?, 16).ok()?;
        (flags & ANNOUNCED == ANNOUNCED).then_some(link)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_with_an_announced_way_out_are_found() {
        let routes = "\
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00450003     eth0
fd010000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00440001     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fd020000000000000000000000000001 00000400 00000001 00000000 00000003     eth1
00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo
";
        let found: Vec<&str> = announced(routes).collect();
        assert_eq!(found, ["eth0"], "not the one that an administrator made");
        assert_eq!(announced("nonsense\n\n").count(), 0);
    }
}
