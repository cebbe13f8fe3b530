//! Lanes with real TUN devices and sockets: packets pass in both directions and in order across rekeys, keys
//! expire without a command, and packets of an attacker only increase a counter.

#![allow(clippy::unwrap_used)] // a failure here fails the test, as it should

mod common;

use std::net::UdpSocket;

use common::*;
use qvpn_dataplane::{LaneEvent, PeerStats, SealingEnd};
use qvpn_types::{LocalEpoch, PeerNumber, Suite, Time};

/// The number of packets in flight at once; twice as many around a rekey. That is far below the size of
/// every queue on the path, so a missing packet is a fault of the lanes. The smallest queue is a host
/// socket's 208 KiB, which hold 121 of these packets.
const BURST: u32 = 32;

/// One hour of the tests' clock in nanoseconds. No lane waits that long by the machine's clock.
const HOUR: u64 = 3_600_000_000_000;

/// Makes a numbered packet. The lengths go through all sizes; the largest fills the MTU.
fn numbered(n: u32, header: u32) -> Vec<u8> {
    let room = u32::from(MTU) - header;
    let len = 4 + n.wrapping_mul(37) % (room - 3);
    let mut payload = vec![u8::try_from(n % 256).unwrap(); usize::try_from(len).unwrap()];
    payload[..4].copy_from_slice(&n.to_be_bytes());
    payload
}

/// Sends a burst and checks that each packet arrives once and in order.
fn burst(from: &UdpSocket, to: &UdpSocket, first: u32, header: u32) {
    for n in first..first + BURST {
        from.send(&numbered(n, header)).unwrap();
    }
    for n in first..first + BURST {
        expect(to, &numbered(n, header));
    }
}

fn carries(suite: Suite, v6: bool) {
    let (a, b) = connected(1, suite, v6);
    for round in 0..30u32 {
        let epoch = u64::from(round) + 2;
        burst(&a.host4, &b.host4, round * BURST, 28);
        burst(&b.host4, &a.host4, round * BURST, 28);
        // A rekey in the middle of a flow: send, rekey, send, and then receive.
        for n in 0..BURST {
            a.host6.send(&numbered(n, 48)).unwrap();
        }
        for site in [&a, &b] {
            assert!(site.open(0, epoch, suite, NO_EXPIRY));
        }
        for site in [&a, &b] {
            assert!(site.seal(0, epoch, suite, NO_EXPIRY, u64::MAX));
        }
        for n in BURST..2 * BURST {
            a.host6.send(&numbered(n, 48)).unwrap();
        }
        for n in 0..2 * BURST {
            expect(&b.host6, &numbered(n, 48));
        }
        burst(&b.host6, &a.host6, round * BURST, 48);
        let seen = |event: &LaneEvent| {
            let LaneEvent::FirstOpened { lane: 0, peer: PEER, epoch: opened } = event else { return false };
            opened.0 == epoch
        };
        a.wait(seen);
        b.wait(seen);
        for site in [&a, &b] {
            site.lanes.close_older(0, PEER, LocalEpoch(epoch), Time::from_nanos(START));
        }
    }
    for site in [&a, &b] {
        assert!(site.stats.drops().iter().all(|d| d.1 == 0), "{:?}", site.stats.drops());
        until("all are counted", || site.stats.rx.packets.get() >= u64::from(30 * 2 * BURST));
        assert_eq!(site.stats.rx.last_at.get(), START);
    }
    until("both count the same", || a.stats.rx.bytes.get() == b.stats.tx.bytes.get());
}

#[test]
fn packets_pass_both_ways_in_order_over_rekeys() {
    in_namespaces("packets_pass_both_ways_in_order_over_rekeys", || {
        carries(Suite::ChaCha20Poly1305, false);
    });
}

#[test]
fn packets_pass_over_ipv6_and_aes() {
    in_namespaces("packets_pass_over_ipv6_and_aes", || carries(Suite::Aes256Gcm, true));
}

#[test]
fn a_flow_keeps_its_order_over_several_lanes() {
    in_namespaces("a_flow_keeps_its_order_over_several_lanes", || {
        let (a, b) = connected(4, Suite::ChaCha20Poly1305, false);
        for round in 0..50 {
            burst(&a.host4, &b.host4, round * BURST, 28);
            burst(&b.host6, &a.host6, round * BURST, 48);
        }
        assert!(b.stats.drops().iter().all(|d| d.1 == 0), "{:?}", b.stats.drops());
    });
}

/// A packet received by one lane must not move the replies of its flow to that lane: two sites whose kernels
/// hash a flow to different lanes would move it to and fro, out of order.
#[test]
fn a_packet_from_another_lane_moves_no_flow() {
    in_namespaces("a_packet_from_another_lane_moves_no_flow", || {
        let suite = Suite::ChaCha20Poly1305;
        let (a, b, wire) = (Site::new(1, 4), Site::new(2, 1), wire());
        for lane in 0..4 {
            a.add_peer(lane, Some(wire.local_addr().unwrap()));
            assert!(a.open(lane, 1, suite, NO_EXPIRY) && a.seal(lane, 1, suite, NO_EXPIRY, u64::MAX));
        }
        let lane_of_flow = |text: &[u8]| {
            a.host4.send(text).unwrap();
            let bytes = *catch(&wire)[4..].first_chunk().unwrap();
            u8::try_from(u32::from_le_bytes(bytes) >> 16 & 0xff).unwrap()
        };
        let own = lane_of_flow(b"first");
        for lane in (0..4).filter(|lane| *lane != own) {
            // Added again, the peer has no earlier epoch.
            b.add_peer(0, Some(a.address(lane.into(), false)));
            assert!(b.seal_for(0, index(lane, 1), 1, suite, NO_EXPIRY, u64::MAX));
            b.host4.send(b"answer").unwrap();
            expect(&a.host4, b"answer");
            // The answer also changed A's endpoint; that is not tested here.
            a.lanes.set_endpoint(lane, PEER, wire.local_addr().unwrap());
            a.settle();
            assert_eq!(lane_of_flow(b"again"), own, "an answer by lane {lane}");
        }
    });
}

#[test]
fn a_rerouted_flow_passes_by_another_lane_in_order() {
    in_namespaces("a_rerouted_flow_passes_by_another_lane_in_order", || {
        let suite = Suite::Aes256Gcm;
        let (a, b) = connected(4, suite, false);
        let bytes: Vec<_> = (0..4u8).map(|_| std::sync::Arc::new(PeerStats::default())).collect();
        for lane in 0..4 {
            let stats = bytes[usize::from(lane)].clone();
            let endpoint = Some(b.address(lane.into(), false));
            a.lanes.add_peer(lane, PEER, endpoint, None, stats);
            assert!(b.open(lane, 2, suite, NO_EXPIRY) && a.open(lane, 2, suite, NO_EXPIRY));
            assert!(a.seal(lane, 2, suite, NO_EXPIRY, u64::MAX));
        }
        let sent = || -> Vec<u64> { bytes.iter().map(|stats| stats.tx.packets.get()).collect() };
        let mut first = 0;
        let mut used_lanes = Vec::new();
        for via in [None, Some(0), Some(1), Some(2), Some(3), None] {
            a.each_lane(|lane| a.lanes.set_reroute(lane, PEER, via));
            a.settle();
            let before = sent();
            // The reroute changes while packets are in flight.
            for n in first..first + BURST {
                a.host4.send(&numbered(n, 28)).unwrap();
            }
            a.each_lane(|lane| a.lanes.set_reroute(lane, PEER, via));
            for n in first..first + BURST {
                expect(&b.host4, &numbered(n, 28));
            }
            first += BURST;
            until("all are counted", || {
                sent().iter().sum::<u64>() == before.iter().sum::<u64>() + u64::from(BURST)
            });
            let used: Vec<_> =
                (0..4u8).zip(before).zip(sent()).filter(|((_, was), is)| was != is).map(|x| x.0.0).collect();
            assert_eq!(used.len(), 1, "a flow has one lane at a time");
            used_lanes.push(used[0]);
        }
        assert_eq!(used_lanes[1..5], [0, 1, 2, 3]);
        assert_eq!(used_lanes[0], used_lanes[5], "and back");
        // Packets rerouted to a lane that doesn't exist are counted as drops.
        a.each_lane(|lane| a.lanes.set_reroute(lane, PEER, Some(77)));
        a.settle();
        let full = || bytes.iter().map(|stats| stats.tx.queue_full.get()).sum::<u64>();
        a.host4.send(b"nowhere").unwrap();
        until("counted", || full() == 1);
    });
}

#[test]
fn keys_end_by_themselves_and_nothing_is_sent_without_one() {
    in_namespaces("keys_end_by_themselves_and_nothing_is_sent_without_one", || {
        let suite = Suite::ChaCha20Poly1305;
        let (a, b) = connected(1, suite, false);
        let sent = |what: &str, wanted: u64| until(what, || a.stats.tx.packets.get() == wanted);
        let start = a.stats.tx.packets.get();

        // The maximum age: the lane's own timer expires the key, without a packet or a command.
        let limit = START + HOUR;
        assert!(b.open(0, 2, suite, NO_EXPIRY));
        assert!(a.seal(0, 2, suite, limit, u64::MAX));
        a.host4.send(b"before").unwrap();
        expect(&b.host4, b"before");
        a.advance_to(limit);
        let ended = a.wait(|e| matches!(e, LaneEvent::SealingEnded { .. }));
        assert!(
            matches!(ended, LaneEvent::SealingEnded { epoch: LocalEpoch(2), why: SealingEnd::Expired, .. }),
            "{ended:?}"
        );
        a.host4.send(b"too late").unwrap();
        until("the packet is counted", || a.stats.tx.expired.get() == 1);
        sent("only one packet", start + 1);

        // An expired key cannot be installed again, nor a key of an earlier or the same epoch.
        assert!(!a.seal(0, 2, suite, NO_EXPIRY, u64::MAX), "the same epoch would repeat nonces");
        assert!(!a.seal(0, 1, suite, NO_EXPIRY, u64::MAX), "never back");
        assert!(!a.seal(0, 3, suite, limit, u64::MAX), "ended before it began");
        a.host4.send(b"still none").unwrap();
        until("the packet is counted", || a.stats.tx.expired.get() == 2);

        // The packet limit.
        assert!(b.open(0, 4, suite, limit + 5));
        assert!(a.seal(0, 4, suite, NO_EXPIRY, 2));
        for text in [b"one", b"two", b"not"] {
            a.host4.send(text).unwrap();
        }
        expect(&b.host4, b"one");
        expect(&b.host4, b"two");
        let ended = a.wait(|e| matches!(e, LaneEvent::SealingEnded { .. }));
        assert!(
            matches!(
                ended,
                LaneEvent::SealingEnded { epoch: LocalEpoch(4), why: SealingEnd::PacketLimit, .. }
            ),
            "{ended:?}"
        );
        until("the packet is counted", || a.stats.tx.expired.get() == 3);

        // The command to stop sealing.
        assert!(b.open(0, 5, suite, limit + 5));
        assert!(a.seal(0, 5, suite, NO_EXPIRY, u64::MAX));
        a.lanes.stop_sealing(0, PEER);
        a.host4.send(b"stopped").unwrap();
        until("the packet is counted", || a.stats.tx.no_epoch.get() == 1);
        sent("nothing more was sent", start + 3);

        // The opening side expires its keys too, and then the index is unknown.
        assert!(!b.open(0, 5, suite, NO_EXPIRY), "a key that opens twice would take replays");
        assert!(b.open(0, 6, suite, limit + 5));
        assert!(a.seal(0, 6, suite, NO_EXPIRY, u64::MAX));
        b.advance_to(limit + 5);
        assert!(b.open(0, 7, suite, NO_EXPIRY), "once this is answered, the lane has looked at its clock");
        a.host4.send(b"nobody opens this").unwrap();
        // The counter is not `expired`, because the key is erased.
        until("the packet is counted", || b.interface.unknown_index.get() == 1);
        assert!(!b.open(0, 6, suite, NO_EXPIRY), "its index is free again, and yet it would take replays");

        // Without the peer, nothing is sent.
        a.lanes.remove_peer(0, PEER);
        assert!(!a.seal(0, 7, suite, NO_EXPIRY, u64::MAX), "no key for a peer that is gone");
        // The kernel's own multicast has no peer either, so more than this one packet may be counted.
        let before = a.interface.no_peer.get();
        a.host4.send(b"no peer").unwrap();
        until("the packet is counted", || a.interface.no_peer.get() > before);
        sent("the last one was the one that nobody opened", start + 4);
        b.host4.set_nonblocking(true).unwrap();
        assert!(b.host4.recv(&mut [0; 16]).is_err(), "nothing more arrived");
    });
}

#[test]
fn each_hostile_datagram_is_counted() {
    in_namespaces("each_hostile_datagram_is_counted", || {
        let (a, b) = connected(2, Suite::ChaCha20Poly1305, false);
        let (wire, target) = (wire(), b.address(0, false));
        // The attacker receives all of site A's packets and has no keys.
        a.each_lane(|lane| a.lanes.set_endpoint(lane, PEER, wire.local_addr().unwrap()));
        a.settle();
        let through = |text: &[u8]| {
            a.host4.send(text).unwrap();
            catch(&wire)
        };
        let genuine = through(b"genuine");
        let lane = usize::from(genuine[6]);
        let target_of_flow = b.address(lane, false);

        let mut forged = genuine.clone();
        *forged.last_mut().unwrap() ^= 1;
        wire.send_to(&forged, target_of_flow).unwrap();
        until("auth", || b.stats.rx.auth.get() == 1);
        let mut forged = genuine.clone();
        forged[8] ^= 1;
        wire.send_to(&forged, target_of_flow).unwrap();
        until("auth", || b.stats.rx.auth.get() == 2);
        for cut in [32, 33, genuine.len() - 1] {
            wire.send_to(&genuine[..cut], target_of_flow).unwrap();
        }
        until("auth", || b.stats.rx.auth.get() == 5);

        // A forgery does not mark the counter as received and does not change the endpoint.
        wire.send_to(&genuine, target_of_flow).unwrap();
        expect(&b.host4, b"genuine");
        let roamed = b.wait(|e| matches!(e, LaneEvent::Roamed { .. }));
        assert!(
            matches!(roamed, LaneEvent::Roamed { endpoint, .. } if endpoint == wire.local_addr().unwrap())
        );
        for _ in 0..3 {
            wire.send_to(&genuine, target_of_flow).unwrap();
        }
        until("replay", || b.stats.rx.replay.get() == 3);

        let mut wrong_index = genuine.clone();
        wrong_index[4] ^= 0x55;
        wire.send_to(&wrong_index, target_of_flow).unwrap();
        until("unknown index", || b.interface.unknown_index.get() == 1);

        let malformed: [&[u8]; 8] = [
            b"",
            &[4],
            &[4, 0, 0, 0, 0, 0, 0],
            &genuine[..31],
            &[
                4, 0, 0, 1, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                0, 0,
            ],
            &[9; 200],
            &[0; 2000],
            &[0xff; 60_000],
        ];
        for (n, datagram) in (1..).zip(malformed) {
            wire.send_to(datagram, target).unwrap();
            until("malformed", || b.interface.malformed.get() == n);
        }

        // Handshake messages: only those that pass the filter, only on lane 0, and none that is longer than a
        // real one.
        let knock = |last: u8, len: usize| {
            let mut datagram = vec![0; len];
            datagram[0] = 1;
            datagram[len - 1] = last;
            datagram
        };
        wire.send_to(&knock(0xbb, 148), target).unwrap();
        until("the filter", || b.interface.malformed.get() == 9);
        wire.send_to(&knock(0xcc, 148), target).unwrap();
        until("unproven", || b.interface.cookie.get() == 1);
        wire.send_to(&knock(0xdd, 148), target).unwrap();
        until("too many", || b.interface.queue_full.get() == 1);
        wire.send_to(&knock(0xaa, 148), b.address(1, false)).unwrap();
        until("lane 1", || b.interface.malformed.get() == 10);
        wire.send_to(&knock(0xaa, 1281), target).unwrap();
        until("too long", || b.interface.malformed.get() == 11);
        wire.send_to(&knock(0xaa, 148), target).unwrap();
        match b.wait(|e| matches!(e, LaneEvent::Control { .. })) {
            LaneEvent::Control { lane: 0, from, datagram } => {
                assert_eq!(from, wire.local_addr().unwrap());
                assert_eq!(datagram, knock(0xaa, 148));
            }
            other => panic!("{other:?}"),
        }

        // Packets of the control session: none that is larger than a path MTU probe.
        let transport = |len: usize| [&[4], &vec![0; len - 1][..]].concat();
        wire.send_to(&transport(1453), target).unwrap();
        until("larger than a probe", || b.interface.malformed.get() == 12);
        wire.send_to(&transport(1452), target).unwrap();
        let probe = b.wait(|e| matches!(e, LaneEvent::Control { .. }));
        assert!(matches!(probe, LaneEvent::Control { datagram, .. } if datagram == transport(1452)));

        // A full queue drops datagrams and counts them; it doesn't grow.
        for _ in 0..300 {
            wire.send_to(&knock(0xaa, 148), target).unwrap();
        }
        until("queue full", || b.interface.queue_full.get() > 0);
    });
}

/// The kernel joins datagrams from one source: a message may hold forged, repeated and short datagrams among
/// valid ones.
#[test]
fn a_joined_message_may_mix_valid_and_forged_datagrams() {
    in_namespaces("a_joined_message_may_mix_valid_and_forged_datagrams", || {
        let (a, b) = connected(1, Suite::ChaCha20Poly1305, false);
        let wire = wire();
        a.lanes.set_endpoint(0, PEER, wire.local_addr().unwrap());
        a.settle();
        let sealed: Vec<_> = (0..6u8)
            .map(|n| {
                a.host4.send(&[n; 100]).unwrap();
                catch(&wire)
            })
            .collect();
        let size = sealed[0].len();
        let changed = |n: usize, at: usize| {
            let mut bytes = sealed[n].clone();
            bytes[at] ^= 0x10;
            bytes
        };
        let mixture: [&[u8]; 12] = [
            &changed(5, size - 1), // the tag
            &sealed[0],
            &changed(3, 40), // the text
            &changed(1, 5),  // the index
            &sealed[1],
            &sealed[1], // once more
            &sealed[3],
            &changed(2, 0), // the type
            &vec![0; size],
            &sealed[2], // late, but new
            &sealed[4],
            &sealed[5][..20], // the last one of a message may be shorter
        ];
        send_joined(&wire, &mixture.concat(), size, b.address(0, false));
        for n in [0, 1, 3, 2, 4] {
            expect(&b.host4, &[n; 100]);
        }
        until("all are counted", || b.interface.malformed.get() == 3);
        let count = |name| b.stats.drops().iter().find(|d| d.0 == name).unwrap().1;
        assert_eq!((count("auth"), count("replay"), b.interface.unknown_index.get()), (2, 1, 1));
        // The packets after it are delivered.
        wire.send_to(&sealed[5], b.address(0, false)).unwrap();
        expect(&b.host4, &[5; 100]);
    });
}

#[test]
fn an_inner_source_that_belongs_to_another_peer_is_dropped() {
    in_namespaces("an_inner_source_that_belongs_to_another_peer_is_dropped", || {
        let (a, b) = connected(1, Suite::ChaCha20Poly1305, false);
        a.host4.send(b"allowed").unwrap();
        expect(&b.host4, b"allowed");
        b.allow(&[(1, PeerNumber(8))]);
        b.settle();
        a.host4.send(b"not allowed").unwrap();
        until("not allowed", || b.stats.rx.not_allowed_ip.get() == 1);
        b.allow(&[(1, PEER)]);
        b.settle();
        a.host4.send(b"again").unwrap();
        expect(&b.host4, b"again");
    });
}

#[test]
fn the_endpoint_follows_only_the_newest_packet_of_the_newest_epoch() {
    in_namespaces("the_endpoint_follows_only_the_newest_packet_of_the_newest_epoch", || {
        let suite = Suite::ChaCha20Poly1305;
        let (a, b) = connected(1, suite, false);
        let (first, second) = (wire(), wire());
        let target = b.address(0, false);
        a.lanes.set_endpoint(0, PEER, first.local_addr().unwrap());
        a.settle();
        let caught: Vec<_> = (0..3u8)
            .map(|n| {
                a.host4.send(&[n]).unwrap();
                catch(&first)
            })
            .collect();
        let roams_to = |wire: &UdpSocket| {
            let roamed = b.wait(|e| matches!(e, LaneEvent::Roamed { .. }));
            let there = wire.local_addr().unwrap();
            assert!(matches!(roamed, LaneEvent::Roamed { endpoint, .. } if endpoint == there), "{roamed:?}");
            // B sends to that address from now on.
            b.host4.send(b"back").unwrap();
            assert_eq!(catch(wire)[..4], [4, 0, 0, 0]);
        };
        first.send_to(&caught[1], target).unwrap();
        expect(&b.host4, &[1]);
        roams_to(&first);
        // An older packet from another address is delivered and doesn't change the endpoint.
        second.send_to(&caught[0], target).unwrap();
        expect(&b.host4, &[0]);
        b.host4.send(b"still there").unwrap();
        catch(&first);
        // A newer one changes it.
        second.send_to(&caught[2], target).unwrap();
        expect(&b.host4, &[2]);
        roams_to(&second);

        // A packet of an older epoch doesn't change the endpoint, even with a higher counter.
        a.host4.send(b"old epoch").unwrap();
        let old = catch(&first);
        assert!(b.open(0, 2, suite, NO_EXPIRY));
        assert!(a.seal(0, 2, suite, NO_EXPIRY, u64::MAX));
        a.host4.send(b"new epoch").unwrap();
        let new = catch(&first);
        second.send_to(&new, target).unwrap();
        expect(&b.host4, b"new epoch");
        first.send_to(&old, target).unwrap();
        expect(&b.host4, b"old epoch");
        b.host4.send(b"still at the second").unwrap();
        catch(&second);
        assert!(first.set_nonblocking(true).is_ok() && first.recv(&mut [0; 16]).is_err());
    });
}

#[test]
fn empty_packets_announce_and_keep_alive() {
    in_namespaces("empty_packets_announce_and_keep_alive", || {
        let suite = Suite::Aes256Gcm;
        let (a, b) = connected(1, suite, false);
        let before = b.stats.rx.packets.get();
        a.lanes.send_empty(0, PEER);
        b.wait(|e| matches!(e, LaneEvent::FirstOpened { epoch: LocalEpoch(1), .. }));
        until("one empty packet", || b.stats.rx.packets.get() == before + 1);
        // A lane reads the clock at least once a second, and the test controls that clock.
        let keepalive = Some(std::time::Duration::from_secs(3600));
        a.lanes.set_keepalive(0, PEER, keepalive);
        a.advance_to(START + HOUR);
        until("a keepalive", || b.stats.rx.packets.get() == before + 2);
        assert_eq!(b.stats.rx.bytes.get(), 32 * (before + 2), "each is a header and a tag");
        assert!(b.stats.drops().iter().all(|d| d.1 == 0), "{:?}", b.stats.drops());
    });
}

#[test]
fn padding_hides_lengths_and_stays_within_the_mtu() {
    in_namespaces("padding_hides_lengths_and_stays_within_the_mtu", || {
        let (a, _b) = connected(1, Suite::ChaCha20Poly1305, false);
        let wire = wire();
        a.lanes.set_endpoint(0, PEER, wire.local_addr().unwrap());
        a.settle();
        let mtu = usize::from(MTU);
        for inner in [29, 32, 33, 1408, 1409, mtu - 1, mtu] {
            a.host4.send(&vec![1; inner - 28]).unwrap();
            let expected = inner.next_multiple_of(16).min(mtu);
            assert_eq!(catch(&wire).len(), 16 + expected + 16, "an inner packet of {inner} bytes");
        }
    });
}
