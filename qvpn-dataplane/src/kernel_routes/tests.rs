use proptest::prelude::*;

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> (IpAddr, u8) {
    let (address, prefix) = text.split_once('/').unwrap();
    (ip(address), prefix.parse().unwrap())
}

fn via(gateway: &str) -> NextHop {
    NextHop { gateway: Some(ip(gateway)), weight: 1 }
}

const ON_LINK: NextHop = NextHop { gateway: None, weight: 1 };

fn peer(number: u16, next_hops: &[&str], allowed: &[&str]) -> RoutedPeer {
    RoutedPeer {
        peer: PeerNumber(number),
        next_hops: next_hops.iter().map(|text| ip(text)).collect(),
        allowed: allowed.iter().map(|text| net(text)).collect(),
    }
}

/// Two gateways of one site with the same prefix, and another site.
fn peers() -> Arc<RoutedPeers> {
    let peers = [
        peer(1, &["10.77.0.2", "fe80::2"], &["10.20.0.0/16", "fd20::/64", "10.77.0.2/32", "fe80::2/128"]),
        peer(2, &["10.77.0.3"], &["10.20.0.0/16", "10.77.0.3/32"]),
        peer(7, &["10.77.0.4"], &["10.30.0.0/16", "10.77.0.4/32"]),
    ];
    Arc::new(RoutedPeers::new(peers).unwrap())
}

fn table(routes: &[(&str, &[NextHop])]) -> KernelRoutes {
    let routes = routes.iter().map(|(prefix, next_hops)| (net(prefix).0, net(prefix).1, *next_hops));
    KernelRoutes::new(peers(), routes).unwrap()
}

fn select(table: &KernelRoutes, to: &str, flow: u32) -> Selection {
    table.select(ip(to), || flow)
}

#[test]
fn the_next_hop_of_the_longest_prefix_names_the_peer() {
    let table = table(&[
        ("10.20.0.0/16", &[via("10.77.0.2")]),
        ("10.20.7.0/24", &[via("10.77.0.3")]),
        ("10.77.0.0/24", &[ON_LINK]),
        ("fd20::/64", &[via("fe80::2")]),
        ("fe80::/64", &[ON_LINK]),
        ("10.30.1.0/24", &[via("10.77.0.99")]),
    ]);
    let peer = |number| Selection::Peer(PeerNumber(number));
    assert_eq!(select(&table, "10.20.1.1", 0), peer(1));
    assert_eq!(select(&table, "10.20.7.1", 0), peer(2));
    assert_eq!(select(&table, "fd20::9", 0), peer(1));
    // Without a gateway the destination is the next hop.
    assert_eq!(select(&table, "10.77.0.3", 0), peer(2));
    assert_eq!(select(&table, "fe80::2", 0), peer(1));
    assert_eq!(select(&table, "10.77.0.9", 0), Selection::NoPeer);
    // A next hop that belongs to no peer, and no route.
    assert_eq!(select(&table, "10.30.1.1", 0), Selection::NoPeer);
    assert_eq!(select(&table, "192.0.2.1", 0), Selection::NoPeer);
    for multicast in ["224.0.0.5", "ff02::5"] {
        assert_eq!(select(&table, multicast, 0), Selection::Everyone);
    }
    assert_eq!(select(&table, "224.0.1.1", 0), Selection::NoPeer);
}

#[test]
fn allowed_ips_bound_what_a_route_gives_a_peer() {
    let table = table(&[("0.0.0.0/0", &[via("10.77.0.4")])]);
    assert_eq!(select(&table, "10.30.0.1", 0), Selection::Peer(PeerNumber(7)));
    assert_eq!(select(&table, "10.20.0.1", 0), Selection::NotAllowed(PeerNumber(7)));
    let peers = table.peers();
    assert!(peers.allows(PeerNumber(1), ip("10.20.0.1")) && peers.allows(PeerNumber(2), ip("10.20.0.1")));
    assert!(!peers.allows(PeerNumber(2), ip("10.77.0.2")) && !peers.allows(PeerNumber(3), ip("10.20.0.1")));
}

#[test]
fn flows_are_shared_by_weight_among_the_next_hops_that_are_peers() {
    let weighted = NextHop { weight: 3, ..via("10.77.0.3") };
    let table = table(&[
        ("10.20.0.0/16", &[via("10.77.0.2"), via("10.77.0.99"), weighted]),
        ("10.20.9.0/24", &[via("10.77.0.98"), via("10.77.0.99")]),
        ("10.20.8.0/24", &[via("10.77.0.98"), via("10.77.0.2")]),
        ("10.20.7.0/24", &[via("10.77.0.2"), via("10.77.0.99"), weighted]),
    ]);
    let at = |flow| select(&table, "10.20.1.1", flow);
    let of = |number| Selection::PeerOfFlow(PeerNumber(number));
    assert_eq!([at(0), at(u32::MAX / 4), at(u32::MAX / 4 + 1), at(u32::MAX)], [of(1), of(1), of(2), of(2)]);
    assert_eq!(select(&table, "10.20.9.1", 5), Selection::NoPeer);
    assert_eq!(select(&table, "10.20.8.1", u32::MAX), Selection::Peer(PeerNumber(1)));
    assert_eq!(table.groups.len(), 1, "equal groups count once");
}

/// Next hops 0 to 3 are peers with these numbers; 4 and 5 belong to no peer.
fn hop(number: u8) -> IpAddr {
    IpAddr::from([10, 77, 0, number])
}

fn random_peers() -> impl Strategy<Value = Vec<RoutedPeer>> {
    let allowed = prop::collection::vec((any::<u16>(), 0u8..=32), 0..3);
    prop::collection::vec(allowed, 4).prop_map(|all| {
        (0u8..)
            .zip(all)
            .map(|(number, allowed)| RoutedPeer {
                peer: PeerNumber(number.into()),
                next_hops: vec![hop(number)],
                allowed: allowed.into_iter().map(|(a, len)| (address(a), len)).collect(),
            })
            .collect()
    })
}

/// Addresses with few distinct bits, so that prefixes nest and collide.
fn address(bits: u16) -> IpAddr {
    IpAddr::from((u32::from(bits) << 18 | u32::from(bits) & 3).to_be_bytes())
}

fn within((net, len): (IpAddr, u8), address: IpAddr) -> bool {
    let (IpAddr::V4(net), IpAddr::V4(address)) = (net, address) else { return false };
    (net.to_bits() ^ address.to_bits()).leading_zeros() >= u32::from(len)
}

/// The rules in the module's documentation, without optimisations.
fn naive(peers: &[RoutedPeer], routes: &[(IpAddr, u8, Vec<NextHop>)], to: IpAddr, flow: u32) -> Selection {
    let holds = |route: &&(IpAddr, u8, Vec<NextHop>)| within((route.0, route.1), to);
    let Some(route) = routes.iter().filter(holds).max_by_key(|route| route.1) else {
        return Selection::NoPeer;
    };
    let peer_at = |hop: IpAddr| peers.iter().find(|peer| peer.next_hops.contains(&hop));
    let usable: Vec<&NextHop> =
        route.2.iter().filter(|hop| hop.gateway.is_none_or(|gateway| peer_at(gateway).is_some())).collect();
    let total: u64 = usable.iter().map(|hop| u64::from(hop.weight)).sum();
    let mut sum = 0;
    let chosen = usable.iter().find(|hop| {
        sum += u64::from(hop.weight);
        u64::from(flow) < (sum << 32) / total
    });
    let Some(peer) = chosen.and_then(|hop| peer_at(hop.gateway.unwrap_or(to))) else {
        return Selection::NoPeer;
    };
    match (peer.allowed.iter().any(|net| within(*net, to)), usable.len()) {
        (false, _) => Selection::NotAllowed(peer.peer),
        (true, 1) => Selection::Peer(peer.peer),
        (true, _) => Selection::PeerOfFlow(peer.peer),
    }
}

proptest! {
    #[test]
    fn agrees_with_a_naive_model(
        peers in random_peers(),
        routes in prop::collection::vec((
            any::<u16>(),
            0u8..=32,
            prop::collection::vec((prop::option::of(0u8..6), 1u16..4), 1..4),
        ), 0..30),
        packets in prop::collection::vec((any::<u16>(), any::<u32>()), 1..30),
    ) {
        let routes: Vec<_> = routes
            .into_iter()
            .map(|(bits, len, hops)| {
                let hops = hops.into_iter();
                let hops: Vec<_> =
                    hops.map(|(at, weight)| NextHop { gateway: at.map(hop), weight }).collect();
                (address(bits), len, hops)
            })
            .collect();
        let table = KernelRoutes::new(
            Arc::new(RoutedPeers::new(peers.clone()).unwrap()),
            routes.iter().map(|(address, len, hops)| (*address, *len, hops.as_slice())),
        ).unwrap();
        let edges = routes.iter().map(|route| (route.0, 7)).chain((0..6).map(|n| (hop(n), 7)));
        for (to, flow) in packets.into_iter().map(|(bits, flow)| (address(bits), flow)).chain(edges) {
            if is_link_multicast(to) {
                continue;
            }
            prop_assert_eq!(table.select(to, || flow), naive(&peers, &routes, to, flow), "{} {}", to, flow);
        }
    }
}
