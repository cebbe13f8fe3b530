//! Two sites on real control sessions, of which one or both change their keys. Each sealing key must always
//! have its opening key at the other site, also if datagrams are lost and the roles change.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use qvpn_identity::{Psk, PublicIdentity, SecretIdentity};
use qvpn_proto::session::{DatagramClass, Demux, KeyedLinks};
use qvpn_proto::{LaneOrder, LaneReport, Peer, PeerConfig, PeerEvent, PeerOutput, PeerState, role_by_keys};
use qvpn_types::{Direction, LocalEpoch, PeerNumber, QkdPolicy, Suite, Time};
use rand_chacha::{ChaCha20Rng, rand_core::Rng, rand_core::SeedableRng};

const START: Time = Time::from_nanos(1 << 40);
/// The time that a datagram takes.
const TRIP: Duration = Duration::from_millis(5);
const NUMBER: PeerNumber = PeerNumber(7);

fn identity(seed: u64) -> Arc<SecretIdentity> {
    Arc::new(SecretIdentity::generate(&mut ChaCha20Rng::seed_from_u64(seed)))
}

fn public(seed: u64) -> PublicIdentity {
    *identity(seed).public()
}

/// Seeds of keys in the order of the keys.
fn in_order<const N: usize>() -> [u64; N] {
    let mut seeds: [u64; N] = std::array::from_fn(|n| u64::try_from(n).unwrap() + 1);
    seeds.sort_by_key(|seed| *public(*seed).x25519());
    seeds
}

fn address(site: usize) -> SocketAddr {
    ([192, 0, 2, u8::try_from(site).unwrap() + 1], 51820).into()
}

fn config(site: usize, own: u64, remotes: &[u64]) -> PeerConfig {
    let (local, remote) = (identity(own), public(remotes[0]));
    PeerConfig {
        role: role_by_keys(local.public(), &remote),
        local,
        remote,
        other_remote: remotes.get(1).map(|seed| public(*seed)),
        role_by_keys: true,
        suite: Suite::ChaCha20Poly1305,
        rekey_interval: Duration::from_secs(60),
        min_rekey_interval: Duration::from_secs(6),
        lanes: 1,
        policy: QkdPolicy::Off,
        qkd_source: false,
        sae_local: None,
        sae_remote: None,
        psk: Some(Arc::new(Psk::generate(&mut ChaCha20Rng::seed_from_u64(77)))),
        stock: 1,
        endpoint: Some(address(1 - site)),
        liveness: Some(Duration::from_secs(2)),
        number: NUMBER,
    }
}

struct Site {
    peer: Peer<KeyedLinks>,
    demux: Demux,
    /// The opening keys of its lane, by index, and when each ends.
    opening: BTreeMap<u32, (LocalEpoch, Time)>,
    /// The receiver index that it seals with.
    sealing: Option<u32>,
    events: Vec<PeerEvent>,
}

impl Site {
    fn new(site: usize, own: u64, remotes: &[u64]) -> Self {
        let config = config(site, own, remotes);
        let link = KeyedLinks::new(config.local.clone(), config.remote, config.other_remote, NUMBER);
        let demux = Demux::new(config.local.clone(), 1, &mut ChaCha20Rng::seed_from_u64(own));
        let peer = Peer::new(config, link, [u8::try_from(own).unwrap(); 16], START);
        Self { peer, demux, opening: BTreeMap::new(), sealing: None, events: Vec::new() }
    }
}

struct World {
    sites: [Site; 2],
    now: Time,
    rng: ChaCha20Rng,
    under_way: VecDeque<(Time, usize, Vec<u8>)>,
    /// The percentage of datagrams that are lost.
    loss: u32,
    /// The initiations that site 0 sent.
    recorded: Vec<Vec<u8>>,
}

impl World {
    fn new(own: [u64; 2], remotes: [&[u64]; 2]) -> Self {
        let sites = [0, 1].map(|site| Site::new(site, own[site], remotes[site]));
        let rng = ChaCha20Rng::seed_from_u64(5);
        Self { sites, now: START, rng, under_way: VecDeque::new(), loss: 0, recorded: Vec::new() }
    }

    /// Both sites with an epoch.
    fn up(own: [u64; 2]) -> Self {
        let mut world = Self::new(own, [&[own[1]], &[own[0]]]);
        world.run(5);
        assert!(world.sites.iter().all(|site| site.sealing.is_some()));
        world
    }

    /// A reload of a site with these keys.
    fn reload(&mut self, site: usize, own: u64, remotes: &[u64]) {
        let at = &mut self.sites[site];
        let former = at.demux.locals().iter().filter(|local| *local.public() != public(own));
        let locals = std::iter::once(identity(own)).chain(former.cloned()).collect();
        at.demux.set_locals(locals);
        at.peer.reconfigure(config(site, own, remotes), self.now, &mut self.rng);
        self.collect(site);
    }

    fn run(&mut self, seconds: u64) {
        let end = self.now + Duration::from_secs(seconds);
        loop {
            let timers = self.sites.iter().filter_map(|site| site.peer.poll_timeout());
            let next = timers.chain(self.under_way.front().map(|(at, ..)| *at)).min().unwrap();
            if next > end {
                self.now = end;
                return;
            }
            self.now = self.now.max(next);
            while self.under_way.front().is_some_and(|(at, ..)| *at <= self.now) {
                let (_, to, datagram) = self.under_way.pop_front().unwrap();
                self.deliver(to, &datagram);
            }
            for site in 0..2 {
                if self.sites[site].peer.poll_timeout().is_some_and(|at| at <= self.now) {
                    self.sites[site].peer.handle_timeout(self.now, &mut self.rng);
                    self.collect(site);
                }
            }
        }
    }

    fn deliver(&mut self, to: usize, datagram: &[u8]) {
        let (site, from) = (&mut self.sites[to], address(1 - to));
        match site.demux.classify(datagram, from, self.now, &mut self.rng) {
            DatagramClass::Peer(_) | DatagramClass::Handshake { .. } => {
                site.peer.handle_datagram(datagram, from, self.now, &mut self.rng);
            }
            DatagramClass::Reply(_) | DatagramClass::Malformed => {}
        }
        self.collect(to);
    }

    /// Does what a site wants done. Packets of data take no time.
    fn collect(&mut self, site: usize) {
        while let Some(transmit) = self.sites[site].peer.poll_transmit() {
            if site == 0 && transmit.datagram[0] == 1 {
                self.recorded.push(transmit.datagram.clone());
            }
            if self.rng.next_u32() % 100 >= self.loss {
                self.under_way.push_back((self.now + TRIP, 1 - site, transmit.datagram));
            }
        }
        while let Some(output) = self.sites[site].peer.poll_event() {
            match output {
                PeerOutput::Lane(lane, order) => self.order(site, lane, order),
                PeerOutput::Event(event) => self.sites[site].events.push(event),
                PeerOutput::Fetch(_) => panic!("QKD is off"),
            }
        }
        for site in 0..2 {
            self.packets_arrive(site);
        }
    }

    fn order(&mut self, site: usize, lane: u8, order: LaneOrder) {
        let now = self.now;
        let at = &mut self.sites[site];
        match order {
            LaneOrder::InstallOpening { local_epoch, index, expires_at, .. } => {
                at.opening.insert(index, (local_epoch, expires_at));
                let report = LaneReport::Installed { lane, local_epoch, direction: Direction::Opening };
                at.peer.handle_lane(report, now, &mut self.rng);
                self.collect(site);
            }
            LaneOrder::InstallSealing { receiver_index, .. } => {
                at.sealing = Some(receiver_index);
                self.first_packet(site);
            }
            LaneOrder::SendEmpty => self.first_packet(site),
            LaneOrder::CloseOlder { local_epoch, at: end } => {
                let older = at.opening.values_mut().filter(|(epoch, _)| *epoch < local_epoch);
                older.for_each(|(_, ends)| *ends = (*ends).min(end));
            }
            LaneOrder::Close { index } => {
                at.opening.remove(&index);
            }
            LaneOrder::StopSealing => at.sealing = None,
            LaneOrder::SetEndpoint { .. } | LaneOrder::SetKeepalive { .. } | LaneOrder::Reroute { .. } => {}
        }
    }

    /// The other site opens the first packet of an epoch.
    fn first_packet(&mut self, from: usize) {
        let Some(index) = self.sites[from].sealing else { return };
        let other = &mut self.sites[1 - from];
        let local_epoch = other.opening.get(&index).unwrap().0;
        other.peer.handle_lane(LaneReport::FirstOpened { lane: 0, local_epoch }, self.now, &mut self.rng);
        self.collect(1 - from);
    }

    fn packets_arrive(&self, from: usize) {
        let Some(index) = self.sites[from].sealing else { return };
        let opens = self.sites[1 - from].opening.get(&index).is_some_and(|(_, ends)| *ends > self.now);
        assert!(opens, "packets of site {from} are lost");
    }

    fn keys(&self, site: usize) -> [PublicIdentity; 2] {
        let parties = self.sites[site].peer.view(self.now).parties;
        [parties.local, parties.remote]
    }

    /// Both sites are up with an epoch under these keys, in opposite roles, and nothing was refused.
    #[track_caller]
    fn assert_changed(&self, own: [u64; 2]) {
        for site in 0..2 {
            assert_eq!(self.keys(site), [public(own[site]), public(own[1 - site])], "site {site}");
            let view = self.sites[site].peer.view(self.now);
            assert_eq!((view.state, view.reason), (PeerState::Up, None));
            let at = &self.sites[site];
            assert!(!at.peer.holds_former_key() && at.sealing.is_some(), "site {site}");
            let troubles = at.events.iter().filter(|event| {
                matches!(
                    event,
                    PeerEvent::Refused { .. }
                        | PeerEvent::IdentityMismatch { .. }
                        | PeerEvent::IdentityDuplicate { .. }
                        | PeerEvent::Blocked { .. }
                        | PeerEvent::Silent { .. }
                )
            });
            assert_eq!(troubles.collect::<Vec<_>>(), Vec::<&PeerEvent>::new(), "site {site}");
        }
        let roles = [0, 1].map(|site| self.sites[site].peer.view(self.now).role);
        assert_ne!(roles[0], roles[1]);
    }
}

fn count(site: &Site, wanted: impl Fn(&PeerEvent) -> bool) -> usize {
    site.events.iter().filter(|event| wanted(event)).count()
}

#[test]
fn a_key_changes_in_either_role_and_with_the_role_and_nothing_is_lost() {
    let [low, middle, high] = in_order::<3>();
    // The site that changes, its former key, its new one, and the other's.
    for (former, new, other) in [
        (low, middle, high),
        (middle, low, high),
        (low, high, middle),
        (high, low, middle),
        (high, middle, low),
    ] {
        for loss in [0, 30] {
            let mut world = World::up([former, other]);
            world.loss = loss;
            world.reload(1, other, &[former, new]);
            world.run(if loss > 0 { 20 } else { 1 });
            world.reload(0, new, &[other]);
            world.run(if loss > 0 { 40 } else { 1 });
            world.loss = 0;
            world.run(if loss > 0 { 10 } else { 1 });
            world.assert_changed([new, other]);
            assert_eq!(count(&world.sites[0], |e| matches!(e, PeerEvent::KeyChanged { own: true, .. })), 1);
            assert_eq!(count(&world.sites[1], |e| matches!(e, PeerEvent::KeyChanged { own: false, .. })), 1);
            // The former key may go.
            world.reload(1, other, &[new]);
            world.run(200);
            world.assert_changed([new, other]);
        }
    }
}

#[test]
fn recorded_initiations_of_the_former_key_start_nothing() {
    let [former, new, other] = in_order::<3>();
    let mut world = World::up([former, other]);
    world.reload(1, other, &[former, new]);
    world.run(130);
    let recorded = std::mem::take(&mut world.recorded);
    assert!(!recorded.is_empty());
    world.reload(0, new, &[other]);
    world.run(2);
    world.assert_changed([new, other]);
    let sent = world.recorded.len();
    for datagram in &recorded {
        world.sites[1].peer.handle_datagram(datagram, address(0), world.now, &mut world.rng);
        assert!(world.sites[1].peer.poll_transmit().is_none());
    }
    world.run(5);
    world.assert_changed([new, other]);
    assert_eq!(world.recorded.len(), sent, "no handshake follows");
}

#[test]
fn both_sites_change_their_keys_at_the_same_time() {
    let seeds = in_order::<4>();
    for [a, b, new_a, new_b] in [[0, 1, 2, 3], [0, 1, 3, 2], [0, 3, 2, 1], [3, 0, 1, 2], [1, 0, 3, 2]] {
        let [a, b, new_a, new_b] = [a, b, new_a, new_b].map(|n: usize| seeds[n]);
        for apart in [0, 3, 5, 8, 12, 700] {
            let mut world = World::up([a, b]);
            world.reload(0, a, &[b, new_b]);
            world.reload(1, b, &[a, new_a]);
            world.run(2);
            world.reload(0, new_a, &[b, new_b]);
            world.now = world.now + Duration::from_millis(apart);
            world.reload(1, new_b, &[new_a, a]);
            world.run(20);
            world.assert_changed([new_a, new_b]);
        }
    }
}

#[test]
fn a_key_that_the_other_site_does_not_know_serves_the_epoch_in_force_and_is_named() {
    let [former, other, new] = in_order::<3>();
    let mut world = World::up([former, other]);
    world.reload(0, new, &[other]);
    world.run(59);
    assert!(world.sites[0].peer.holds_former_key());
    assert_eq!(world.keys(0), [public(former), public(other)]);
    let view = world.sites[0].peer.view(world.now);
    assert_eq!((view.state, view.reason), (PeerState::Up, None));
    world.run(2);
    assert!(!world.sites[0].peer.holds_former_key(), "erased after a minute in any case");
    let mismatch =
        |e: &PeerEvent| matches!(e, PeerEvent::IdentityMismatch { detail } if detail.contains("our new key"));
    assert_eq!(count(&world.sites[0], mismatch), 1);
    let view = world.sites[0].peer.view(world.now);
    let reason = view.reason.unwrap();
    assert!(view.state == PeerState::Up && reason.contains("add it there"), "{reason}");
    // The other site learns it in time.
    world.reload(1, other, &[former, new]);
    world.run(10);
    assert_eq!(world.keys(1), [public(other), public(new)]);
    assert_eq!(world.keys(0), [public(new), public(other)]);
    let view = world.sites[0].peer.view(world.now);
    assert_eq!((view.state, view.reason), (PeerState::Up, None));
}

#[test]
fn a_site_that_restarts_with_its_new_key_is_found_by_calls_to_both() {
    let [former, new, other] = in_order::<3>();
    let mut world = World::up([former, other]);
    world.reload(1, other, &[former, new]);
    world.run(1);
    world.under_way.clear();
    world.sites[0] = Site::new(0, new, &[other]);
    world.sites[1].sealing = None;
    world.run(15);
    assert_eq!([world.keys(0), world.keys(1)], [[public(new), public(other)], [public(other), public(new)]]);
    for site in 0..2 {
        assert_eq!(world.sites[site].peer.view(world.now).state, PeerState::Up);
    }
}
