//! Rules about several values: names, keys and prefixes that occur twice, tunnels that need themselves, and
//! an MTU too small for IPv6. They check what could be read, so that they also run if there are errors
//! elsewhere in the file.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use qvpn_identity::PublicIdentity;

use super::error::{Position, Sink};

/// The deepest nesting of tunnels that is followed; real networks have fewer levels.
const MAX_NESTED_TUNNELS: usize = 64;

/// The values of the whole file, with their positions.
#[derive(Default)]
pub(super) struct Facts {
    pub(super) addresses: Vec<IpNet>,
    pub(super) mtu: Option<(u16, Position)>,
    pub(super) protect: Vec<(IpNet, Position)>,
    pub(super) local: Vec<LocalFacts>,
    /// `table = "off"`: the operator sets the routes.
    pub(super) no_routes: bool,
    /// `routes = "kernel"`.
    pub(super) kernel_routes: bool,
    /// The position of `routes_table`.
    pub(super) routes_table: Option<Position>,
    pub(super) kme_names: Vec<(String, Position)>,
    /// The KMEs with an address in their URL.
    pub(super) kme_ips: Vec<(String, IpAddr, Position)>,
    /// The KMEs that are files of keys.
    pub(super) key_files: Vec<(String, PathBuf, Position)>,
    /// The ETSI GS QKD 004 servers, with their links' names.
    pub(super) streams: Vec<(String, Option<String>, Position)>,
    pub(super) peers: Vec<PeerFacts>,
    /// Every readable allowed IP without its host bits, even if it or its peer has an error.
    pub(super) readable_prefixes: Vec<IpNet>,
}

/// The values of an entry of `local`.
pub(super) struct LocalFacts {
    pub(super) prefix: IpNet,
    pub(super) at: Position,
}

/// The values of a peer.
#[derive(Default)]
pub(super) struct PeerFacts {
    pub(super) at: Position,
    pub(super) name: Option<(String, Position)>,
    pub(super) public_keys: Vec<(PublicIdentity, Position)>,
    pub(super) endpoint: Option<(IpAddr, Position)>,
    pub(super) allowed_ips: Vec<(IpNet, Position)>,
    pub(super) tunnel_address: Vec<(IpAddr, Position)>,
    /// Whether the peer has an entry of `tunnel_address`, even one with an error.
    pub(super) has_tunnel_address: bool,
    /// The KMEs that it uses.
    pub(super) kmes: Vec<String>,
}

impl PeerFacts {
    fn title(&self) -> String {
        match &self.name {
            Some((name, _)) => format!("peer \"{name}\""),
            None => format!("the peer of line {}", self.at.line),
        }
    }
}

pub(super) fn check(facts: &Facts, sink: &mut Sink<'_>) {
    names(facts, sink);
    keys(facts, sink);
    prefixes(facts, sink);
    next_hops(facts, sink);
    local(facts, sink);
    mtu(facts, sink);
    key_files(facts, sink);
    stream_links(facts, sink);
    if !facts.no_routes {
        loops(facts, sink);
    }
}

fn names(facts: &Facts, sink: &mut Sink<'_>) {
    let peers = facts.peers.iter().filter_map(|p| p.name.as_ref());
    twice(peers.map(|(n, at)| (n, *at)), |name, at, first| {
        let what = format!("a peer named \"{name}\" is in {} already", sink.line(first));
        sink.add(at, what, "give one of them another name");
    });
    twice(facts.kme_names.iter().map(|(n, at)| (n, *at)), |name, at, first| {
        let what = format!("a KME named \"{name}\" is in {} already", sink.line(first));
        sink.add(at, what, "give one of them another name");
    });
}

fn keys(facts: &Facts, sink: &mut Sink<'_>) {
    let keys = facts.peers.iter().flat_map(|p| p.public_keys.iter().map(move |key| (p, key)));
    let keys: Vec<_> = keys.collect();
    for (n, (peer, (key, at))) in keys.iter().enumerate() {
        let Some((first, (_, line))) = keys[..n].iter().find(|(_, (other, _))| other == key) else {
            continue;
        };
        let (what, fix) = match std::ptr::eq(*first, *peer) {
            true => ("this public key is here twice".to_owned(), "write the peer's new key, or only one key"),
            false => (
                format!("this public key is in {} already", sink.line(*line)),
                "write this peer's own key, or merge the two sections",
            ),
        };
        sink.add(*at, what, fix);
    }
    // No two identities may share a half: one site could impersonate the other.
    let mut whole: BTreeMap<[u8; 32], (PublicIdentity, Position)> = BTreeMap::new();
    for (_, (key, at)) in &keys {
        match whole.get(key.x25519()) {
            Some((other, first)) if other != key => {
                let what = format!("this key has the same X25519 half as the one in {}", sink.line(*first));
                sink.add(
                    *at,
                    what,
                    "compare `qvpn-ctl fingerprint` at both sites; one of the keys was tampered with",
                );
            }
            Some(_) => {}
            None => {
                whole.insert(*key.x25519(), (*key, *at));
            }
        }
    }
}

fn prefixes(facts: &Facts, sink: &mut Sink<'_>) {
    let mut seen: BTreeMap<IpNet, (usize, Position)> = BTreeMap::new();
    for (i, peer) in facts.peers.iter().enumerate() {
        for (prefix, at) in &peer.allowed_ips {
            match seen.get(prefix) {
                Some((first, _)) if *first == i => {
                    sink.add(*at, format!("{prefix} is here twice"), "remove one of them");
                }
                // Routes choose among the peers.
                Some(_) if facts.kernel_routes => {}
                Some((first, line)) => {
                    let owner = facts.peers.get(*first).map(PeerFacts::title).unwrap_or_default();
                    let what = format!("{prefix} belongs to {owner} already ({})", sink.line(*line));
                    let fix = "a prefix leads to one peer: remove it from one of them, write a longer prefix \
                     here, or let routes choose, with `routes = \"kernel\"`";
                    sink.add(*at, what, fix);
                }
                None => {
                    seen.insert(*prefix, (i, *at));
                }
            }
        }
    }
}

/// The next hops of `routes = "kernel"`: each peer has one, and each stands for one peer.
fn next_hops(facts: &Facts, sink: &mut Sink<'_>) {
    if !facts.kernel_routes {
        if let Some(at) = facts.routes_table {
            let fix = "write `routes = \"kernel\"` too, or remove `routes_table`";
            sink.add(at, "`routes_table` counts under `routes = \"kernel\"` only", fix);
        }
        return;
    }
    let mut seen: BTreeMap<IpAddr, (usize, Position)> = BTreeMap::new();
    for (i, peer) in facts.peers.iter().enumerate() {
        if !peer.has_tunnel_address {
            let what = format!("{} has no `tunnel_address`, so no route could lead to it", peer.title());
            sink.add(peer.at, what, "write its address in the tunnel: `tunnel_address = [\"10.77.0.2\"]`");
        }
        for (address, at) in &peer.tunnel_address {
            if facts.addresses.iter().any(|own| own.addr() == *address) {
                let what = format!("{address} is our own, by `address`");
                sink.add(*at, what, "write the peer's address in the tunnel");
            }
            match seen.get(address) {
                Some((first, _)) if *first == i => {
                    sink.add(*at, format!("{address} is here twice"), "remove one of them");
                }
                Some((first, line)) => {
                    let owner = facts.peers.get(*first).map(PeerFacts::title).unwrap_or_default();
                    let what = format!("{address} belongs to {owner} already ({})", sink.line(*line));
                    sink.add(*at, what, "a next hop leads to one peer: write this peer's own address");
                }
                None => {
                    seen.insert(*address, (i, *at));
                }
            }
        }
    }
}

/// Refuses a network of this site that is also behind a peer.
fn local(facts: &Facts, sink: &mut Sink<'_>) {
    for LocalFacts { prefix, at } in &facts.local {
        let behind = |peer: &&PeerFacts| {
            peer.allowed_ips.iter().any(|(allowed, _)| allowed == prefix || prefix.contains(allowed))
        };
        if let Some(peer) = facts.peers.iter().find(behind) {
            let what =
                format!("{prefix} is this site's own by `local`, and an allowed IP of {} too", peer.title());
            sink.add(*at, what, "take it out of `local`, or write a longer prefix here");
        }
    }
}

fn mtu(facts: &Facts, sink: &mut Sink<'_>) {
    let Some((mtu, at)) = facts.mtu else { return };
    let allowed = facts.peers.iter().flat_map(|p| p.allowed_ips.iter().map(|(prefix, _)| prefix));
    let ipv6 = facts.addresses.iter().chain(allowed).find(|n| n.addr().is_ipv6());
    if let (Some(net), true) = (ipv6, mtu < 1280) {
        let what = format!("an MTU of {mtu} is too small for IPv6, which {net} brings (RFC 8200 section 5)");
        sink.add(at, what, "write `mtu = 1280` or more, or \"auto\"");
    }
}

/// ETSI GS QKD 004 has no names for KMEs, so a peer's two servers need links with names: by them both sites
/// know which of them a key came from.
fn stream_links(facts: &Facts, sink: &mut Sink<'_>) {
    for peer in &facts.peers {
        let used = facts.streams.iter().filter(|(name, ..)| peer.kmes.contains(name));
        twice(used.map(|(_, link, at)| (link, *at)), |link, at, first| {
            let which = link.as_ref().map_or("no `link`".to_owned(), |link| format!("the link \"{link}\""));
            let what = format!(
                "{} has two ETSI GS QKD 004 servers with {which}, the other in line {}",
                peer.title(),
                first.line
            );
            sink.add(at, what, "write a `link` into each, a name that both sites give the same link");
        });
    }
}

/// A file holds the keys of one pair of sites: two peers would use each other's keys.
fn key_files(facts: &Facts, sink: &mut Sink<'_>) {
    twice(facts.key_files.iter().map(|(_, path, at)| (path, *at)), |path, at, first| {
        let what = format!("the file {} is in {} already", path.display(), sink.line(first));
        sink.add(at, what, "give each [[kms.kme]] a file of its own, or keep one of the two");
    });
    for (name, _, at) in &facts.key_files {
        let users: Vec<&PeerFacts> = facts.peers.iter().filter(|peer| peer.kmes.contains(name)).collect();
        if let [first, second, ..] = users[..] {
            let what = format!(
                "the file of \"{name}\" would serve {} and {}, and each peer needs a file of its own",
                first.title(),
                second.title()
            );
            sink.add(*at, what, "write a [[kms.kme]] for each, and name it in that peer's `kmes`");
        }
    }
}

/// Refuses an endpoint or a KME that can be reached only through the tunnel that needs it. Only addresses are
/// checked, not names; our own datagrams bypass default routes by policy routing.
fn loops(facts: &Facts, sink: &mut Sink<'_>) {
    let routes = Routes::of(facts);
    let kme_ip = |name: &String| facts.kme_ips.iter().find(|(n, ..)| n == name).map(|(_, ip, _)| *ip);
    // The peers through whose tunnels a peer's endpoint and KMEs are reached.
    let through = |peer: usize| -> Vec<usize> {
        let Some(facts) = facts.peers.get(peer) else { return Vec::new() };
        let needed = facts.endpoint.iter().map(|(ip, _)| *ip).chain(facts.kmes.iter().filter_map(kme_ip));
        needed.filter_map(|ip| routes.peer_of(ip)).map(|(p, _)| p).collect()
    };
    let needs = |from: usize, to: usize| {
        let (mut seen, mut open) = (BTreeSet::from([from]), vec![from]);
        while let Some(next) = open.pop() {
            if next == to {
                return true;
            }
            if seen.len() < MAX_NESTED_TUNNELS {
                open.extend(through(next).into_iter().filter(|p| seen.insert(*p)));
            }
        }
        false
    };
    let mut reported = BTreeSet::new();
    for (i, peer) in facts.peers.iter().enumerate() {
        if let Some((ip, at)) = peer.endpoint {
            let own = facts.addresses.iter().find(|net| net.contains(&ip));
            if let Some((_, prefix)) = routes.peer_of(ip).filter(|(p, _)| needs(*p, i)) {
                let what = format!(
                    "the endpoint {ip} lies in {prefix}, so it would be reached through the tunnel that \
                     needs it"
                );
                sink.add(at, what, "write the peer's address on the WAN, or remove it from `allowed_ips`");
            } else if let Some(own) = own {
                let what = format!("the endpoint {ip} lies in the interface's own network {}", own.trunc());
                sink.add(at, what, "write the peer's address on the WAN");
            }
        }
        for name in &peer.kmes {
            let Some((_, ip, at)) = facts.kme_ips.iter().find(|(n, ..)| n == name) else { continue };
            let own = facts.addresses.iter().find(|net| net.contains(ip));
            if let Some((via, prefix)) = routes.peer_of(*ip).filter(|(p, _)| needs(*p, i)) {
                let via = facts.peers.get(via).map(PeerFacts::title).unwrap_or_default();
                if reported.insert(name) {
                    let what = format!(
                        "KME \"{name}\" at {ip} lies in {prefix}, so it would be reached through the \
                         tunnel to {via}, which needs its keys"
                    );
                    sink.add(
                        *at,
                        what,
                        "write the KME's address outside the tunnel, or remove it from \
                     that peer's `allowed_ips`",
                    );
                }
            } else if let Some(own) = own
                && reported.insert(name)
            {
                let what =
                    format!("KME \"{name}\" at {ip} lies in the interface's own network {}", own.trunc());
                sink.add(*at, what, "write the KME's address outside the tunnel");
            }
        }
    }
}

/// Longest-prefix match over all allowed IPs but default routes.
struct Routes {
    owner: BTreeMap<IpNet, usize>,
    /// Prefix lengths in use, longest first.
    lengths: Vec<u8>,
}

impl Routes {
    fn of(facts: &Facts) -> Self {
        let peers = facts.peers.iter().enumerate();
        let owner: BTreeMap<IpNet, usize> = peers
            .flat_map(|(i, p)| p.allowed_ips.iter().map(move |(prefix, _)| (*prefix, i)))
            .filter(|(prefix, _)| prefix.prefix_len() > 0)
            .collect();
        let lengths: BTreeSet<u8> = owner.keys().map(IpNet::prefix_len).collect();
        Self { owner, lengths: lengths.into_iter().rev().collect() }
    }

    fn peer_of(&self, ip: IpAddr) -> Option<(usize, IpNet)> {
        self.lengths.iter().find_map(|len| {
            let prefix = IpNet::new(ip, *len).ok()?.trunc();
            self.owner.get(&prefix).map(|peer| (*peer, prefix))
        })
    }
}

/// Calls `report` for each item that occurred before, with the position of its first occurrence.
fn twice<K: Ord>(items: impl Iterator<Item = (K, Position)>, mut report: impl FnMut(K, Position, Position)) {
    let mut seen = BTreeMap::new();
    for (key, at) in items {
        match seen.get(&key) {
            Some(first) => report(key, at, *first),
            None => {
                seen.insert(key, at);
            }
        }
    }
}
