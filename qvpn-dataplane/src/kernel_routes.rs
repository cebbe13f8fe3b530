//! Chooses a packet's peer by routes with next hops (`routes = "kernel"`): longest prefix, next hop, the peer
//! with that next hop. Each peer's allowed IPs limit what it may receive and send; those of several peers may
//! overlap. Tables never change once they are built.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use qvpn_types::PeerNumber;

use crate::prefix_table::{BadPrefix, PrefixTable};

/// A peer that routes can lead to.
#[derive(Debug, Clone)]
pub struct RoutedPeer {
    /// The peer.
    pub peer: PeerNumber,
    /// The next hops that lead to it.
    pub next_hops: Vec<IpAddr>,
    /// The prefixes that it may receive and send, as address and length.
    pub allowed: Vec<(IpAddr, u8)>,
}

/// All peers of an interface, by next hop, with the allowed prefixes of each.
#[derive(Debug, Default)]
pub struct RoutedPeers {
    by_next_hop: HashMap<IpAddr, PeerNumber>,
    /// By peer number.
    bounds: Vec<Option<PrefixTable<()>>>,
}

impl RoutedPeers {
    /// Builds the tables. If several peers have one next hop, it leads to the first of them.
    ///
    /// # Errors
    /// [`BadPrefix`] for a length beyond 32 or 128 bits.
    pub fn new(peers: impl IntoIterator<Item = RoutedPeer>) -> Result<Self, BadPrefix> {
        let mut all = Self::default();
        for RoutedPeer { peer, next_hops, allowed } in peers {
            for next_hop in next_hops {
                all.by_next_hop.entry(next_hop).or_insert(peer);
            }
            let place = usize::from(peer.0);
            if all.bounds.len() <= place {
                all.bounds.resize_with(place + 1, || None);
            }
            let allowed = allowed.into_iter().map(|(address, prefix)| (address, prefix, ()));
            all.bounds[place] = Some(PrefixTable::new(allowed)?);
        }
        Ok(all)
    }

    /// Returns the peer that `next_hop` leads to.
    #[must_use]
    pub fn at(&self, next_hop: IpAddr) -> Option<PeerNumber> {
        self.by_next_hop.get(&next_hop).copied()
    }

    /// Whether `peer` may receive and send packets of `address`.
    #[must_use]
    pub fn allows(&self, peer: PeerNumber, address: IpAddr) -> bool {
        let bound = self.bounds.get(usize::from(peer.0)).and_then(Option::as_ref);
        bound.is_some_and(|bound| bound.lookup(address).is_some())
    }
}

/// One of the next hops of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHop {
    /// The address; the packet's destination if absent.
    pub gateway: Option<IpAddr>,
    /// The share of flows, from 1.
    pub weight: u16,
}

/// Where the packets of a prefix go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Peer(PeerNumber),
    /// The destination is the next hop.
    OnLink,
    /// One of several next hops, by the flow.
    Group(u32),
    /// No next hop belongs to a peer.
    NoPeer,
}

/// The members of a group, in the order of their shares of all hashes.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Group(Box<[Member]>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Member {
    /// The last hash of its share.
    last: u32,
    /// The peer; `None` if the destination is the next hop.
    peer: Option<PeerNumber>,
}

/// Routes of both families, and the peers that they lead to.
#[derive(Debug, Default)]
pub struct KernelRoutes {
    routes: PrefixTable<Target>,
    groups: Vec<Group>,
    peers: Arc<RoutedPeers>,
}

/// What to do with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Selection {
    /// It goes to this peer, as all packets to the same destination do.
    Peer(PeerNumber),
    /// It goes to this peer; packets of other flows to the same destination may go elsewhere.
    PeerOfFlow(PeerNumber),
    /// It goes to every peer: multicast that does not leave the link.
    Everyone,
    /// The route leads to this peer, whose allowed IPs don't contain the destination.
    NotAllowed(PeerNumber),
    /// No route, or one whose next hop belongs to no peer.
    NoPeer,
}

impl KernelRoutes {
    /// Builds a table of address, prefix length and next hops. Bits beyond the prefix are ignored; the last
    /// of several equal prefixes wins. Of several next hops, those that belong to no peer are left out.
    ///
    /// # Errors
    /// [`BadPrefix`] for a length beyond 32 or 128 bits.
    pub fn new<'a>(
        peers: Arc<RoutedPeers>,
        routes: impl IntoIterator<Item = (IpAddr, u8, &'a [NextHop])>,
    ) -> Result<Self, BadPrefix> {
        let mut groups = Groups::default();
        let routes = routes.into_iter().map(|(address, prefix, next_hops)| {
            let target = match next_hops {
                [one] => match one.gateway {
                    None => Target::OnLink,
                    Some(gateway) => peers.at(gateway).map_or(Target::NoPeer, Target::Peer),
                },
                several => groups.target(&peers, several),
            };
            (address, prefix, target)
        });
        let routes = PrefixTable::new(routes)?;
        Ok(Self { routes, groups: groups.all, peers })
    }

    /// The peers that it was built with.
    #[must_use]
    pub fn peers(&self) -> &Arc<RoutedPeers> {
        &self.peers
    }

    /// Chooses what to do with a packet to `destination`; `flow` is a hash of its flow.
    pub(crate) fn select(&self, destination: IpAddr, flow: impl FnOnce() -> u32) -> Selection {
        if is_link_multicast(destination) {
            return Selection::Everyone;
        }
        let (peer, by_flow) = match self.routes.lookup(destination) {
            Some(Target::Peer(peer)) => (Some(peer), false),
            Some(Target::OnLink) => (self.peers.at(destination), false),
            Some(Target::Group(group)) => {
                let group = usize::try_from(group).ok().and_then(|place| self.groups.get(place));
                let member = group.and_then(|group| group.member(flow()));
                (member.and_then(|member| member.peer.or_else(|| self.peers.at(destination))), true)
            }
            Some(Target::NoPeer) | None => (None, false),
        };
        match peer {
            None => Selection::NoPeer,
            Some(peer) if !self.peers.allows(peer, destination) => Selection::NotAllowed(peer),
            Some(peer) if by_flow => Selection::PeerOfFlow(peer),
            Some(peer) => Selection::Peer(peer),
        }
    }
}

impl Group {
    fn member(&self, hash: u32) -> Option<Member> {
        self.0.get(self.0.partition_point(|member| member.last < hash)).copied()
    }
}

/// The groups of a table that is being built; equal ones count once.
#[derive(Default)]
struct Groups {
    all: Vec<Group>,
    places: HashMap<Vec<(Option<PeerNumber>, u16)>, u32>,
}

impl Groups {
    fn target(&mut self, peers: &RoutedPeers, next_hops: &[NextHop]) -> Target {
        let members = next_hops.iter().filter_map(|hop| match hop.gateway {
            None => Some((None, hop.weight.max(1))),
            Some(gateway) => peers.at(gateway).map(|peer| (Some(peer), hop.weight.max(1))),
        });
        let members: Vec<_> = members.collect();
        match members[..] {
            [] => return Target::NoPeer,
            [(None, _)] => return Target::OnLink,
            [(Some(peer), _)] => return Target::Peer(peer),
            _ => {}
        }
        if let Some(place) = self.places.get(&members) {
            return Target::Group(*place);
        }
        let total: u64 = members.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let mut sum = 0;
        let shares = members.iter().map(|(peer, weight)| {
            sum += u64::from(*weight);
            let last = (sum << 32) / total - 1;
            Member { last: u32::try_from(last).unwrap_or(u32::MAX), peer: *peer }
        });
        self.all.push(Group(shares.collect()));
        let place = u32::try_from(self.all.len() - 1).unwrap_or(u32::MAX);
        self.places.insert(members, place);
        Target::Group(place)
    }
}

/// Whether packets to `address` stay on the link (224.0.0.0/24, ff02::/16), like those of routing protocols.
fn is_link_multicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => a.octets()[..3] == [224, 0, 0],
        IpAddr::V6(a) => a.segments()[0] == 0xff02,
    }
}

#[cfg(test)]
mod tests;
