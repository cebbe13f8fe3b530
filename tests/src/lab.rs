//! The topology of the lab. Gateways forward, and their default route is the WAN, so a packet that the tunnel
//! does not carry would leave in clear and be captured there.
//!
//! ```text
//!  lan-a        gw-a                            wan                             gw-b        lan-b
//!  10.10.0.2 -- 10.10.0.1   198.51.100.1 -- 198.51.100.2 | 203.0.113.2 -- 203.0.113.1  10.20.0.1 - 10.20.0.2
//!  fd10::2      fd10::1     2001:db8:a::1   2001:db8:a::2| 2001:db8:b::2  2001:db8:b::1 fd20::1     fd20::2
//!               10.30.0.1                                                 10.40.0.1
//!                   |                          kme                            |
//!                   +------------ 10.30.0.2 (kme-a1)   10.40.0.2 (kme-b1) ----+
//! ```
//!
//! Interfaces are named after what they lead to: `gw-a` has `lan`, `wan` and `kme`; `wan` and `kme` have
//! `site-a` and `site-b`; LAN hosts have `lan`. `kme` is one machine, since both KMEs can run in one process,
//! but it forwards nothing.

use std::fmt::Write;

use crate::node::Node;
use crate::packets::PAYLOAD_TAG;

/// One of the two sites.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// The left one.
    A,
    /// The right one.
    B,
}

/// The IP version of the outer packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Outer {
    /// IPv4.
    #[default]
    V4,
    /// IPv6.
    V6,
}

impl Site {
    /// Both.
    pub const BOTH: [Site; 2] = [Site::A, Site::B];

    /// Returns the other site.
    #[must_use]
    pub fn other(self) -> Site {
        match self {
            Site::A => Site::B,
            Site::B => Site::A,
        }
    }

    /// Returns `site-a` or `site-b`: its name as a peer, and the name of the WAN router's interface towards
    /// it.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.pick("site-a", "site-b")
    }

    /// Returns its SAE ID.
    #[must_use]
    pub fn sae(self) -> &'static str {
        self.pick("SITE-A", "SITE-B")
    }

    /// Returns the name of its KME.
    #[must_use]
    pub fn kme(self) -> &'static str {
        self.pick("kme-a1", "kme-b1")
    }

    /// Returns its KME's address and port.
    #[must_use]
    pub fn kme_address(self) -> &'static str {
        self.pick("10.30.0.2:8443", "10.40.0.2:8443")
    }

    /// Returns the networks of its LAN.
    #[must_use]
    pub fn networks(self) -> [&'static str; 2] {
        [self.pick("10.10.0.0/16", "10.20.0.0/16"), self.pick("fd10::/64", "fd20::/64")]
    }

    /// Returns the addresses of its LAN host, IPv4 and IPv6.
    #[must_use]
    pub fn host(self) -> [&'static str; 2] {
        [self.pick("10.10.0.2", "10.20.0.2"), self.pick("fd10::2", "fd20::2")]
    }

    /// Returns its gateway's addresses in the LAN, IPv4 and IPv6.
    #[must_use]
    pub fn gateway(self) -> [&'static str; 2] {
        [self.pick("10.10.0.1", "10.20.0.1"), self.pick("fd10::1", "fd20::1")]
    }

    /// Returns its gateway's address in the WAN.
    #[must_use]
    pub fn wan(self, outer: Outer) -> &'static str {
        match outer {
            Outer::V4 => self.pick("198.51.100.1", "203.0.113.1"),
            Outer::V6 => self.pick("2001:db8:a::1", "2001:db8:b::1"),
        }
    }

    /// Returns the WAN router's address towards it.
    #[must_use]
    pub fn router(self, outer: Outer) -> &'static str {
        match outer {
            Outer::V4 => self.pick("198.51.100.2", "203.0.113.2"),
            Outer::V6 => self.pick("2001:db8:a::2", "2001:db8:b::2"),
        }
    }

    pub(crate) fn pick<T>(self, a: T, b: T) -> T {
        match self {
            Site::A => a,
            Site::B => b,
        }
    }
}

/// The machines of the lab.
pub struct Lab {
    /// Host in the LAN of site A.
    pub lan_a: Node,
    /// Gateway of site A.
    pub gw_a: Node,
    /// The router between the sites, which forwards everything that leaves them.
    pub wan: Node,
    /// Gateway of site B.
    pub gw_b: Node,
    /// Host in the LAN of site B.
    pub lan_b: Node,
    /// The machine of both KMEs.
    pub kme: Node,
}

impl Lab {
    /// Builds the lab, within [`crate::sandbox`].
    ///
    /// # Panics
    /// If a command is missing or refused.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "it makes things")]
    pub fn new() -> Self {
        let [lan_a, gw_a, wan, gw_b, lan_b, kme] =
            ["lan-a", "gw-a", "wan", "gw-b", "lan-b", "kme"].map(Node::new);
        let lab = Self { lan_a, gw_a, wan, gw_b, lan_b, kme };
        for site in Site::BOTH {
            lab.lan(site).join("lan", lab.gw(site), "lan");
            lab.gw(site).join("wan", &lab.wan, site.name());
            lab.gw(site).join("kme", &lab.kme, site.name());
            lab.address(site);
        }
        for router in [&lab.gw_a, &lab.gw_b, &lab.wan] {
            router.sysctl("net/ipv4/ip_forward", "1");
            router.sysctl("net/ipv6/conf/all/forwarding", "1");
        }
        lab
    }

    /// Returns the LAN host of a site.
    #[must_use]
    pub fn lan(&self, site: Site) -> &Node {
        site.pick(&self.lan_a, &self.lan_b)
    }

    /// Returns the gateway of a site.
    #[must_use]
    pub fn gw(&self, site: Site) -> &Node {
        site.pick(&self.gw_a, &self.gw_b)
    }

    /// Sets the WAN's path MTU, in both directions and families: the router fragments larger packets, or
    /// reports "too big" where it must not fragment. (A smaller MTU of a link would also drop incoming
    /// packets.)
    pub fn set_path_mtu(&self, mtu: u32) {
        for site in Site::BOTH {
            let (name, net4, net6) = (
                site.name(),
                site.pick("198.51.100.0/24", "203.0.113.0/24"),
                site.pick("2001:db8:a::/64", "2001:db8:b::/64"),
            );
            self.wan.run(&format!(
                "ip route replace {net4} dev {name} proto kernel scope link src {} mtu {mtu} && \
                 ip -6 route replace {net6} dev {name} proto kernel metric 256 mtu {mtu}",
                site.router(Outer::V4),
            ));
        }
    }

    /// Returns byte patterns of inner packets in clear: the addresses of the two LAN hosts one after the
    /// other, as in an IP header, in both directions and families, and the tag of [`crate::Stream`]s.
    #[must_use]
    pub fn inner_patterns(&self) -> Vec<Vec<u8>> {
        let octets = |text: &str| match text.parse().unwrap() {
            std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
            std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let mut patterns = vec![PAYLOAD_TAG.to_vec()];
        for (from, to) in [(Site::A, Site::B), (Site::B, Site::A)] {
            for (source, destination) in from.host().into_iter().zip(to.host()) {
                patterns.push([octets(source), octets(destination)].concat());
            }
        }
        patterns
    }

    fn address(&self, site: Site) {
        let [gateway4, gateway6] = site.gateway();
        let [host4, host6] = site.host();
        let (wan4, wan6) = (site.wan(Outer::V4), site.wan(Outer::V6));
        let (next4, next6) = (site.router(Outer::V4), site.router(Outer::V6));
        let net = site.pick("10.30.0", "10.40.0");
        let name = site.name();
        batch(
            self.lan(site),
            &[
                &format!("addr add {host4}/16 dev lan"),
                &format!("addr add {host6}/64 dev lan nodad"),
                &format!("route add default via {gateway4}"),
                &format!("-6 route add default via {gateway6}"),
            ],
        );
        batch(
            self.gw(site),
            &[
                &format!("addr add {gateway4}/16 dev lan"),
                &format!("addr add {gateway6}/64 dev lan nodad"),
                &format!("addr add {wan4}/24 dev wan"),
                &format!("addr add {wan6}/64 dev wan nodad"),
                &format!("addr add {net}.1/24 dev kme"),
                &format!("route add default via {next4}"),
                &format!("-6 route add default via {next6}"),
            ],
        );
        batch(
            &self.wan,
            &[&format!("addr add {next4}/24 dev {name}"), &format!("addr add {next6}/64 dev {name} nodad")],
        );
        batch(&self.kme, &[&format!("addr add {net}.2/24 dev {name}")]);
    }
}

fn batch(node: &Node, commands: &[&str]) {
    let mut line = String::new();
    for command in commands {
        write!(line, "ip {command} && ").unwrap();
    }
    node.run(&(line + "true"));
}
