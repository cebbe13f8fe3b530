use proptest::prelude::*;

use super::*;

const DEVICE: u32 = 7;
const MAIN: u32 = 254;

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).unwrap();
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn octets(text: &str) -> Vec<u8> {
    match text.parse().unwrap() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// Returns the payload of an `RTM_NEWROUTE`, as the kernel writes it.
fn message(prefix: &str, attributes: &[Vec<u8>]) -> Vec<u8> {
    let prefix: IpNet = prefix.parse().unwrap();
    let family = if prefix.addr().is_ipv4() { AF_INET } else { AF_INET6 };
    let mut bytes = vec![family, prefix.prefix_len(), 0, 0, 254, 16, 0, RTN_UNICAST, 0, 0, 0, 0];
    bytes.extend(attribute(RTA_TABLE, &MAIN.to_ne_bytes()));
    bytes.extend(attribute(RTA_DST, &octets(&prefix.addr().to_string())));
    bytes.extend(attributes.concat());
    bytes
}

fn oif(device: u32) -> Vec<u8> {
    attribute(RTA_OIF, &device.to_ne_bytes())
}

fn gateway(text: &str) -> Vec<u8> {
    attribute(RTA_GATEWAY, &octets(text))
}

/// Returns one `struct rtnexthop`.
fn hop(device: u32, flags: u8, weight: u8, attributes: &[Vec<u8>]) -> Vec<u8> {
    let inner = attributes.concat();
    let length = u16::try_from(RTNEXTHOP + inner.len()).unwrap();
    [&length.to_ne_bytes()[..], &[flags, weight - 1], &device.to_ne_bytes(), &inner].concat()
}

fn read(payload: &[u8]) -> Option<NextHopRoute> {
    parse(payload, MAIN, DEVICE, &NextHopObjects::default())
}

fn via(text: &str, weight: u16) -> KernelNextHop {
    KernelNextHop { gateway: Some(text.parse().unwrap()), weight }
}

#[test]
fn a_single_next_hop_of_each_form() {
    let route = read(&message(
        "10.20.0.0/16",
        &[gateway("10.77.0.2"), oif(DEVICE), attribute(RTA_PRIORITY, &20u32.to_ne_bytes())],
    ));
    let wanted = NextHopRoute {
        prefix: "10.20.0.0/16".parse().unwrap(),
        metric: 20,
        next_hops: vec![via("10.77.0.2", 1)],
    };
    assert_eq!(route, Some(wanted));
    let on_link = read(&message("10.77.0.0/24", &[oif(DEVICE)])).unwrap();
    assert_eq!(on_link.next_hops, [KernelNextHop { gateway: None, weight: 1 }]);
    // An IPv4 prefix with an IPv6 next hop (RFC 8950).
    let inet6 = [&10u16.to_ne_bytes()[..], &octets("fe80::2")].concat();
    let mixed = read(&message("10.20.0.0/16", &[attribute(RTA_VIA, &inet6), oif(DEVICE)])).unwrap();
    assert_eq!(mixed.next_hops, [via("fe80::2", 1)]);
    let v6 = read(&message("fd20::/64", &[gateway("fe80::2"), oif(DEVICE)])).unwrap();
    assert_eq!(v6.next_hops, [via("fe80::2", 1)]);
}

#[test]
fn what_does_not_lead_through_the_device_is_no_route() {
    let good = message("10.20.0.0/16", &[gateway("10.77.0.2"), oif(DEVICE)]);
    assert!(read(&good).is_some());
    assert_eq!(read(&message("10.20.0.0/16", &[gateway("10.77.0.2"), oif(8)])), None);
    assert_eq!(parse(&good, 100, DEVICE, &NextHopObjects::default()), None, "another table");
    for (place, value, what) in [
        (3, 0x10, "for a traffic class"),
        (5, ROUTE_PROTOCOL, "ours"),
        (5, LOCAL_PROTOCOL, "ours"),
        (7, 3, "broadcast"),
        (8, 1, "dead"),
        (9, 2, "cached"),
        (0, 7, "another family"),
    ] {
        let mut other = good.clone();
        other[place] = value;
        assert_eq!(read(&other), None, "{what}");
    }
}

#[test]
fn a_route_that_rejects_packets_has_no_next_hops() {
    let wanted = NextHopRoute { prefix: "fd20::/64".parse().unwrap(), metric: 0, next_hops: Vec::new() };
    for kind in REJECTING {
        // IPv6 routes of these types are on `lo`, device 1.
        let mut bytes = message("fd20::/64", &[oif(1)]);
        bytes[7] = kind;
        assert_eq!(read(&bytes), Some(wanted.clone()));
        assert_eq!(parse(&bytes, 100, DEVICE, &NextHopObjects::default()), None, "another table");
    }
}

#[test]
fn of_several_next_hops_those_that_are_dead_or_elsewhere_are_left_out() {
    let hops = [
        hop(DEVICE, 0, 1, &[gateway("10.77.0.2")]),
        hop(8, 0, 1, &[gateway("192.0.2.1")]),
        hop(DEVICE, RTNH_F_DEAD, 1, &[gateway("10.77.0.3")]),
        hop(DEVICE, 0, 4, &[gateway("10.77.0.4")]),
    ];
    let route = read(&message("10.20.0.0/16", &[attribute(RTA_MULTIPATH, &hops.concat())])).unwrap();
    assert_eq!(route.next_hops, [via("10.77.0.2", 1), via("10.77.0.4", 4)]);
    let dead = attribute(RTA_MULTIPATH, &hops[2]);
    assert_eq!(read(&message("10.20.0.0/16", &[dead])), None);
}

fn object(id: u32, flags: u8, attributes: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = vec![AF_INET, 0, 0, 0, flags, 0, 0, 0];
    bytes.extend(attribute(1, &id.to_ne_bytes()));
    bytes.extend(attributes.concat());
    bytes
}

#[test]
fn next_hop_objects_stand_for_their_members() {
    let member = |id: u32, weight: u8| [&id.to_ne_bytes()[..], &[weight - 1, 0, 0, 0]].concat();
    let group = attribute(2, &[member(1, 1), member(2, 3), member(3, 1), member(4, 1)].concat());
    let mut objects = NextHopObjects::default();
    let device = attribute(5, &DEVICE.to_ne_bytes());
    objects.add(&object(1, 0, &[device.clone(), attribute(6, &octets("10.77.0.2"))]));
    objects.add(&object(2, 0, &[device.clone(), attribute(6, &octets("10.77.0.3"))]));
    objects.add(&object(3, 1, &[device, attribute(6, &octets("10.77.0.4"))]));
    objects.add(&object(4, 0, &[attribute(4, &[])]));
    objects.add(&object(9, 0, &[group]));
    let route = |id: u32| message("10.20.0.0/16", &[attribute(RTA_NH_ID, &id.to_ne_bytes())]);
    let hops = |id| parse(&route(id), MAIN, DEVICE, &objects).map(|route| route.next_hops);
    assert!(needs_objects(&route(9)));
    assert_eq!(hops(9), Some(vec![via("10.77.0.2", 1), via("10.77.0.3", 3)]));
    assert_eq!((hops(1), hops(3), hops(4), hops(77)), (Some(vec![via("10.77.0.2", 1)]), None, None, None));
    // In the usual mode the kernel writes both.
    let both = message(
        "10.20.0.0/16",
        &[attribute(RTA_NH_ID, &9u32.to_ne_bytes()), oif(DEVICE), gateway("10.77.0.5")],
    );
    assert!(!needs_objects(&both));
    assert_eq!(parse(&both, MAIN, DEVICE, &objects).unwrap().next_hops, [via("10.77.0.5", 1)]);
}

#[test]
fn the_lowest_metric_wins_and_of_equal_ones_the_first() {
    let route = |prefix: &str, metric, gateway| NextHopRoute {
        prefix: prefix.parse().unwrap(),
        metric,
        next_hops: vec![via(gateway, 1)],
    };
    let best = preferred([
        route("10.20.0.0/16", 20, "10.77.0.2"),
        route("10.20.0.0/16", 10, "10.77.0.3"),
        route("10.20.0.0/16", 10, "10.77.0.4"),
        route("10.20.0.0/24", 99, "10.77.0.5"),
    ]);
    assert_eq!(best, [route("10.20.0.0/16", 10, "10.77.0.3"), route("10.20.0.0/24", 99, "10.77.0.5")]);
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        cut in 0usize..200,
    ) {
        let _ = (read(&bytes), needs_objects(&bytes), multipath(&bytes, DEVICE));
        let mut objects = NextHopObjects::default();
        objects.add(&bytes);
        let hops = [hop(DEVICE, 0, 1, &[gateway("10.77.0.2")]), hop(DEVICE, 0, 1, &[gateway("fe80::2")])];
        let mut whole = message("10.20.0.0/16", &[attribute(RTA_MULTIPATH, &hops.concat())]);
        whole.truncate(cut);
        let _ = read(&whole);
    }
}
