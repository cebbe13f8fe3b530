//! The simulation: gateways with their clocks, lanes and peers, one queue of future events, and the model
//! that checks each step.

mod data;
mod manual;
mod release;

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use qvpn_proto::notice::FailureReason;
use qvpn_types::{LocalEpoch, PeerNumber, Time};

use qvpn_proto::view::PeerView;
use qvpn_proto::wire::fragment::packets;
use qvpn_proto::wire::{Fragment, LaneSet, MessageId, MessageType, Reject};
use qvpn_proto::{KmsReport, LaneOrder, LaneReport, Peer, PeerEvent, PeerOutput, PeerState, Transmit};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::clock::{BEGIN, Clock, MS};
use crate::kms::Kms;
use crate::lane::Lane;
use crate::link::{self, FakeLink, Shared};
use crate::model::{Model, Packet, Verdict};
use crate::network::{Faults, below, chance, up_to};
use crate::site::{Site, config};
pub use manual::{HeldData, HeldMessage, Manual, Occurred};

const PORT: u16 = 51820;
/// The number of ports per block. The lanes of a gateway use one block; a NAT that moves gives it another.
const PORTS_PER_BLOCK: u16 = 32;
const TICK_INTERVAL: Duration = Duration::from_millis(500);
/// The number of steps that a failure prints.
const MAX_LOG_LINES: usize = 250;
/// The attacker's address.
const ATTACKER: ([u8; 4], u16) = ([198, 51, 100, 66], 666);

enum Event {
    Datagram { to: SocketAddr, from: SocketAddr, bytes: Vec<u8>, packet: Option<Packet> },
    Order { side: usize, instance: u32, lane: u8, order: LaneOrder },
    Report { side: usize, instance: u32, report: LaneReport },
    Kms { side: usize, instance: u32, report: KmsReport },
    LaneDue { side: usize, instance: u32, lane: u8 },
    Tick { side: usize, instance: u32 },
    Send { from: usize },
}

pub struct Gateway {
    pub clock: Clock,
    /// The block of its ports as others see them.
    block: u16,
    /// Whether its NAT also forwards the first block to it. The others' configs then name that block.
    pub forwards: bool,
    /// The daemon is stopped until this time; its lanes continue.
    pub busy_until: Time,
    /// The machine is asleep until this time.
    pub asleep_until: Time,
    /// The offset of its wall clock from the other clock.
    pub wall: u64,
}

pub struct Side {
    pub peer: Peer<FakeLink>,
    pub instance: u32,
    gateway: usize,
    link: Arc<Shared>,
    lanes: Vec<Lane>,
    pub notices: Vec<(Time, PeerEvent)>,
    sent_at: Option<Time>,
    received_at: Option<Time>,
    reported: (Option<Time>, Option<Time>),
    /// When the last order and the last report of each lane arrive.
    last: Vec<(Time, Time)>,
    /// The number of orders and reports under way.
    in_flight: usize,
}

pub struct World {
    pub now: Time,
    pub rng: ChaCha20Rng,
    pub seed: u64,
    pub sides: Vec<Side>,
    pub gateways: Vec<Gateway>,
    pub sites: Vec<Site>,
    pub faults: Faults,
    /// Whether all packets from a side to the other are lost.
    pub cut: Vec<bool>,
    /// The lanes of a side whose packets are lost.
    pub cut_lanes: Vec<LaneSet>,
    /// The largest control packet that passes. Each path passes 1,200 bytes.
    pub path: usize,
    /// The KMEs of each tunnel.
    pub kms: Vec<Kms>,
    /// How long an order takes to reach a lane, and a report to return.
    pub lane_delay: Duration,
    pub lane_jitter: Duration,
    pub packet_limit: Option<u64>,
    pub data_sent: u64,
    pub data_opened: u64,
    pub data_blocked: u64,
    /// How many messages of each type a side sent, fragments and repetitions counted.
    pub sent: Vec<BTreeMap<MessageType, u64>>,
    /// When a datagram last reached each side, or it woke up.
    reached_at: Vec<Time>,
    /// The refusals that each side sent, including repetitions.
    pub rejects: Vec<Vec<Reject>>,
    /// The number of datagrams, timers, reports and answers that were handled.
    pub steps: u64,
    /// The number of steps after which a gateway restarts.
    pub restart_at: Option<(u64, usize)>,
    pub epochs: u64,
    pub restarts: u64,
    /// An attacker on the path holds back this side's messages of this type.
    pub withhold: Option<(usize, MessageType)>,
    withheld: Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
    pub manual: Option<Manual>,
    model: Model,
    queue: BTreeMap<(Time, u64), Event>,
    sequence: u64,
    data_every: Option<Duration>,
    numbered: u64,
    log: VecDeque<String>,
    verbose: bool,
}

impl World {
    /// Returns a world with two sites.
    pub fn new(seed: u64, sites: [Site; 2], faults: Faults) -> Self {
        Self::with(seed, vec![sites], faults)
    }

    /// Returns a world with a tunnel for each pair: sides 2n and 2n + 1. With several tunnels, the first
    /// sides are all on one gateway.
    pub fn with(seed: u64, tunnels: Vec<[Site; 2]>, faults: Faults) -> Self {
        let gateways = 1 + tunnels.len();
        let gateway = || Gateway {
            clock: Clock::default(),
            block: 0,
            forwards: false,
            busy_until: BEGIN,
            asleep_until: BEGIN,
            wall: 1 << 60,
        };
        let kms = (0..tunnels.len()).map(Kms::new).collect();
        let mut world = Self {
            now: BEGIN,
            rng: ChaCha20Rng::seed_from_u64(seed),
            seed,
            sides: Vec::new(),
            gateways: (0..gateways).map(|_| gateway()).collect(),
            sites: tunnels.into_iter().flatten().collect(),
            faults,
            cut: Vec::new(),
            cut_lanes: Vec::new(),
            path: 9000,
            kms,
            lane_delay: MS / 10,
            lane_jitter: Duration::ZERO,
            packet_limit: None,
            data_sent: 0,
            data_opened: 0,
            data_blocked: 0,
            sent: Vec::new(),
            reached_at: Vec::new(),
            rejects: Vec::new(),
            steps: 0,
            restart_at: None,
            epochs: 0,
            restarts: 0,
            withhold: None,
            withheld: Vec::new(),
            manual: None,
            model: Model::default(),
            queue: BTreeMap::new(),
            sequence: 0,
            data_every: None,
            numbered: 0,
            log: VecDeque::new(),
            verbose: std::env::var_os("QVPN_SIM_SEED").is_some(),
        };
        for side in 0..world.sites.len() {
            let first = world.make(side, 1);
            world.sides.push(first);
            world.cut.push(false);
            world.cut_lanes.push(LaneSet::default());
            world.rejects.push(Vec::new());
            world.sent.push(BTreeMap::new());
            world.reached_at.push(BEGIN);
        }
        world
    }

    fn gateway_of(side: usize) -> usize {
        if side.is_multiple_of(2) { 0 } else { side / 2 + 1 }
    }

    /// Returns the address of a gateway's lane 0, as others see it.
    fn address(&self, gateway: usize) -> SocketAddr {
        let last = u8::try_from(gateway + 1).unwrap();
        ([192, 0, 2, last], PORT + self.gateways[gateway].block * PORTS_PER_BLOCK).into()
    }

    /// Returns the address of a gateway in the others' configs.
    fn configured(&self, gateway: usize) -> SocketAddr {
        let mut address = self.address(gateway);
        if self.gateways[gateway].forwards {
            address.set_port(PORT);
        }
        address
    }

    /// Returns the gateway and the lane at an address.
    fn at_address(&self, to: SocketAddr) -> Option<(usize, u8)> {
        (0..self.gateways.len()).find_map(|gateway| {
            [self.address(gateway), self.configured(gateway)].into_iter().find_map(|first| {
                let lane = to.port().checked_sub(first.port()).filter(|lane| *lane < PORTS_PER_BLOCK)?;
                (to.ip() == first.ip()).then(|| (gateway, u8::try_from(lane).unwrap()))
            })
        })
    }

    fn make(&mut self, side: usize, instance: u32) -> Side {
        let gateway = Self::gateway_of(side);
        let now = self.gateways[gateway].clock.read(self.now);
        let mut instance_id = [0; 16];
        self.rng.fill_bytes(&mut instance_id);
        let link = Arc::new(Shared::default());
        link.now.store(now.as_nanos(), Relaxed);
        link.wall.store(self.gateways[gateway].wall, Relaxed);
        let tunnel = u16::try_from(side / 2).unwrap();
        let session = u64::from(instance) << 8 | u64::try_from(side).unwrap();
        let fake = FakeLink::new(tunnel, session, link.clone());
        let site = &self.sites[side];
        self.model.started(side, instance, site.policy, site.interval, now);
        let endpoint = self.configured(Self::gateway_of(side ^ 1));
        let config = config(site, &self.sites[side ^ 1], endpoint, PeerNumber(tunnel + 1));
        let lanes = usize::from(config.lanes);
        let mut peer = Peer::new(config, fake, instance_id, now);
        peer.measure_path(site.measures, now);
        self.at(TICK_INTERVAL, Event::Tick { side, instance });
        Side {
            peer,
            instance,
            gateway,
            link,
            lanes: (0..lanes).map(|_| Lane::default()).collect(),
            notices: Vec::new(),
            sent_at: None,
            received_at: None,
            reported: (None, None),
            last: vec![(BEGIN, BEGIN); lanes],
            in_flight: 0,
        }
    }

    fn at(&mut self, after: Duration, event: Event) {
        self.at_time(self.now + after, event);
    }

    fn at_time(&mut self, at: Time, event: Event) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), event);
    }

    /// Records a line that a failure prints.
    pub fn tell(&mut self, line: impl FnOnce() -> String) {
        if self.log.len() == MAX_LOG_LINES {
            self.log.pop_front();
        }
        let line = format!("{:>12.4} s  {}", self.now.since(BEGIN).as_secs_f64(), line());
        if self.verbose {
            println!("{line}");
        }
        self.log.push_back(line);
    }

    /// Fails the test, and prints the seed and the last steps.
    pub fn fail(&mut self, what: &str) -> ! {
        let mut text = format!("seed {}: {what}\n", self.seed);
        for line in &self.log {
            let _ = writeln!(text, "{line}");
        }
        for side in 0..self.sides.len() {
            let view = self.view(side);
            let _ = writeln!(
                text,
                "side {side}: {:?}, epoch {:?}, stock {:?}, {:?}",
                view.state, view.epoch, view.qkd_stock, view.reason
            );
        }
        panic!("{text}seed {}: {what}", self.seed);
    }

    fn must(&mut self, verdict: Verdict) {
        if let Err(what) = verdict {
            self.fail(&what);
        }
    }

    /// Makes each side send a packet on each lane at this interval.
    pub fn traffic(&mut self, every: Duration) {
        let first = self.data_every.replace(every).is_none();
        for from in (0..self.sides.len()).filter(|_| first) {
            self.at(every, Event::Send { from });
        }
    }

    /// Returns the time on the side's own clock.
    pub fn local(&self, side: usize) -> Time {
        self.gateways[Self::gateway_of(side)].clock.read(self.now)
    }

    fn truly(&self, side: usize, local: Time) -> Time {
        self.gateways[Self::gateway_of(side)].clock.when(local)
    }

    pub fn view(&self, side: usize) -> PeerView {
        let now = self.local(side);
        self.sides[side].link.now.store(now.as_nanos(), Relaxed);
        self.sides[side].peer.view(now)
    }

    /// Runs for `span`, or until `until` holds. Returns whether it held.
    pub fn run_until(&mut self, span: Duration, mut until: impl FnMut(&Self) -> bool) -> bool {
        let over = self.now + span;
        for side in 0..self.sides.len() {
            self.drain(side);
        }
        loop {
            if until(self) {
                return true;
            }
            let timer = (0..self.sides.len()).filter_map(|side| Some((self.wakes(side)?, side))).min();
            let queued = self.queue.keys().next().map(|(at, _)| *at);
            let next = timer.map(|(at, _)| at).into_iter().chain(queued).min().unwrap_or(over);
            if next > over {
                self.now = over;
                return until(self);
            }
            self.now = self.now.max(next);
            match timer {
                Some((at, side)) if queued.is_none_or(|queued| at < queued) => {
                    self.step(side, |peer, now, rng| peer.handle_timeout(now, rng));
                    let again = self.sides[side].peer.poll_timeout();
                    if again.is_some_and(|at| at <= self.local(side)) {
                        self.fail(&format!("a timer of end {side} is due again at once"));
                    }
                }
                _ => {
                    let (_, event) = self.queue.pop_first().unwrap();
                    self.dispatch(event);
                }
            }
            if let Some((_, gateway)) = self.restart_at.filter(|(step, _)| self.steps >= *step) {
                self.restart_at = None;
                self.restart(gateway);
            }
        }
    }

    pub fn run(&mut self, span: Duration) {
        self.run_until(span, |_| false);
    }

    /// Returns the true time at which a side's timers are handled next.
    fn wakes(&self, side: usize) -> Option<Time> {
        let at = self.truly(side, self.sides[side].peer.poll_timeout()?);
        Some(at.max(self.awake(side)))
    }

    /// Returns the time from which a side's daemon runs.
    fn awake(&self, side: usize) -> Time {
        let gateway = &self.gateways[Self::gateway_of(side)];
        gateway.busy_until.max(gateway.asleep_until)
    }

    /// Kills a gateway and starts it again. Everything in memory is lost.
    pub fn restart(&mut self, gateway: usize) {
        self.restarts += 1;
        self.tell(|| format!("gateway {gateway} RESTARTS"));
        for side in (0..self.sides.len()).filter(|side| Self::gateway_of(*side) == gateway) {
            let instance = self.sides[side].instance + 1;
            self.sides[side] = self.make(side, instance);
            if let Some(manual) = &mut self.manual {
                manual.held.retain(|h| h.from == side || h.to_instance != instance - 1);
                manual.data.clear();
                manual.installed.retain(|(e, _)| *e != side);
            }
        }
        for side in (0..self.sides.len()).filter(|side| Self::gateway_of(*side) == gateway) {
            self.reached_at[side] = self.now;
        }
        (self.gateways[gateway].busy_until, self.gateways[gateway].asleep_until) = (self.now, self.now);
        for side in (0..self.sides.len()).filter(|side| Self::gateway_of(*side) == gateway) {
            self.drain(side);
        }
    }

    /// Changes the outer ports of this gateway's NAT.
    pub fn rebind(&mut self, gateway: usize) {
        self.gateways[gateway].block = self.gateways[gateway].block % 63 + 1;
        self.tell(|| format!("the NAT of gateway {gateway} moves"));
    }

    /// Reloads the side's config.
    pub fn reconfigure(&mut self, side: usize) {
        let site = &self.sites[side];
        self.model.configured(side, site.policy, site.interval);
        let number = PeerNumber(u16::try_from(side / 2 + 1).unwrap());
        let endpoint = self.configured(Self::gateway_of(side ^ 1));
        let config = config(site, &self.sites[side ^ 1], endpoint, number);
        self.tell(|| format!("side {side} reloads"));
        self.step(side, |peer, now, rng| peer.reconfigure(config, now, rng));
    }

    pub fn rekey(&mut self, side: usize) {
        self.tell(|| format!("side {side}: the operator wants a rekey"));
        self.step(side, |peer, now, rng| peer.rekey(now, rng));
    }

    pub fn say_bye(&mut self, side: usize) {
        self.tell(|| format!("side {side} says goodbye"));
        self.step(side, |peer, now, rng| peer.shut_down(now, rng));
    }

    /// Reports that the KMEs of a side answer again.
    pub fn on_kms_recovered(&mut self, side: usize) {
        self.step(side, |peer, now, rng| peer.on_kms_recovered(now, rng));
    }

    /// Runs an action on a side's peer.
    pub fn step(&mut self, side: usize, what: impl FnOnce(&mut Peer<FakeLink>, Time, &mut ChaCha20Rng)) {
        self.steps += 1;
        self.act(side, what);
    }

    fn act(&mut self, side: usize, what: impl FnOnce(&mut Peer<FakeLink>, Time, &mut ChaCha20Rng)) {
        let now = self.local(side);
        self.sides[side].link.now.store(now.as_nanos(), Relaxed);
        what(&mut self.sides[side].peer, now, &mut self.rng);
        self.drain(side);
        self.compare(side);
    }

    /// Checks that the status agrees with what the lanes do.
    fn compare(&mut self, side: usize) {
        let state = &self.sides[side];
        if state.in_flight > 0 || self.gateways[state.gateway].asleep_until > self.now {
            return;
        }
        let (now, view) = (self.local(side), self.view(side));
        self.check_liveness(side, &view);
        let lanes = &self.sides[side].lanes;
        let agreed = usize::from(view.lanes).min(lanes.len());
        let flows = matches!(view.state, PeerState::Up | PeerState::Degraded | PeerState::Silent);
        let same = if flows { lanes[..agreed].iter().all(|l| l.seals(now)) } else { !self.seals(side) };
        if !same {
            self.fail(&format!("side {side} says {:?}, and its lanes do otherwise", view.state));
        }
    }

    /// Checks that a side that nothing reaches does not say that its peer is well. This is the latest time at
    /// which a silent peer is noticed, with the longest round trips.
    fn check_liveness(&mut self, side: usize, view: &PeerView) {
        let woke = self.awake(side);
        self.reached_at[side] = self.reached_at[side].max(woke.min(self.now));
        let quiet = self.now.since(self.reached_at[side]);
        let flows = matches!(view.state, PeerState::Up | PeerState::Degraded);
        if let Some(liveness) = self.sites[side].liveness
            && flows
            && quiet > liveness + Duration::from_secs(8)
        {
            self.fail(&format!("nothing reached side {side} for {quiet:?}, and it says {:?}", view.state));
        }
    }

    /// Returns the time to which an event is deferred while its side can't act. Lanes run while only the
    /// daemon is busy.
    fn put_off(&mut self, side: usize, daemon: bool) -> Option<Time> {
        let gateway = &self.gateways[Self::gateway_of(side)];
        let until = if daemon { self.awake(side) } else { gateway.asleep_until };
        (until > self.now).then_some(until)
    }

    fn dispatch(&mut self, event: Event) {
        let (side, instance, daemon) = match &event {
            Event::Datagram { .. } => return self.arrive(event),
            Event::Send { from } => {
                let from = *from;
                if self.gateways[Self::gateway_of(from)].asleep_until <= self.now {
                    self.send_data(from);
                }
                if let Some(every) = self.data_every {
                    self.at(every, Event::Send { from });
                }
                return;
            }
            Event::Order { side, instance, .. } | Event::LaneDue { side, instance, .. } => {
                (*side, *instance, false)
            }
            Event::Report { side, instance, .. }
            | Event::Kms { side, instance, .. }
            | Event::Tick { side, instance } => (*side, *instance, true),
        };
        if self.sides[side].instance != instance {
            return;
        }
        if let Some(until) = self.put_off(side, daemon) {
            return self.at_time(until, event);
        }
        match event {
            Event::Order { lane, order, .. } => {
                self.sides[side].in_flight -= 1;
                self.apply(side, lane, order);
            }
            Event::Report { report, .. } => {
                self.sides[side].in_flight -= 1;
                self.step(side, |peer, now, rng| peer.handle_lane(report, now, rng));
            }
            Event::Kms { report, .. } => {
                self.step(side, |peer, now, rng| peer.handle_kms(report, now, rng));
            }
            Event::LaneDue { lane, .. } => {
                let now = self.local(side);
                if let Some(local_epoch) = self.sides[side].lanes[usize::from(lane)].end_due(now) {
                    self.tell(|| format!("side {side}: lane {lane} ends local epoch {local_epoch}"));
                    self.report(side, lane, LaneReport::SealingEnded { lane, local_epoch });
                }
            }
            Event::Tick { .. } => {
                let state = &mut self.sides[side];
                let activity = (state.sent_at, state.received_at);
                if std::mem::replace(&mut state.reported, activity) != activity {
                    let report = LaneReport::Activity { sent_at: activity.0, received_at: activity.1 };
                    self.step(side, |peer, now, rng| peer.handle_lane(report, now, rng));
                }
                self.keep_alive(side);
                let received_at: Vec<Time> = self.sides[side].lanes.iter().map(|l| l.received_at).collect();
                self.act(side, |peer, now, rng| peer.poll_lanes(&received_at, now, rng));
                self.at(TICK_INTERVAL, Event::Tick { side, instance });
            }
            Event::Datagram { .. } | Event::Send { .. } => {}
        }
    }

    /// Replays a delivered datagram from the attacker's address, at random.
    fn repeat(&mut self, to: SocketAddr, from: SocketAddr, bytes: &[u8], packet: Option<&Packet>) {
        if from != ATTACKER.into() && chance(self.faults.replay, &mut self.rng) {
            let most = if chance(100, &mut self.rng) { 200 } else { 2 };
            let after = up_to(Duration::from_secs(most), &mut self.rng);
            let (bytes, packet) = (bytes.to_vec(), packet.cloned());
            self.at(after, Event::Datagram { to, from: ATTACKER.into(), bytes, packet });
        }
    }

    /// Delivers a datagram from the network.
    fn arrive(&mut self, event: Event) {
        let Event::Datagram { to, from, bytes, packet } = event else { return };
        let Some((gateway, lane)) = self.at_address(to) else { return };
        if self.gateways[gateway].asleep_until > self.now {
            return;
        }
        if let Some(packet) = packet {
            self.repeat(to, from, &bytes, Some(&packet));
            return self.arrive_data(gateway, lane, from, &bytes, &packet);
        }
        let Some(tunnel) = link::tunnel_of(&bytes).map(usize::from).filter(|_| lane == 0) else { return };
        let side = tunnel * 2 + usize::from(gateway > 0);
        if side >= self.sides.len() || Self::gateway_of(side) != gateway {
            return;
        }
        if let Some(until) = self.put_off(side, true) {
            return self.at_time(until, Event::Datagram { to, from, bytes, packet: None });
        }
        self.repeat(to, from, &bytes, None);
        let name = name(&bytes);
        self.tell(|| format!("side {side} gets {name} from {from}"));
        self.reached_at[side] = self.now;
        self.step(side, |peer, now, rng| peer.handle_datagram(&bytes, from, now, rng));
    }

    /// Hands a datagram to the network.
    fn carry(
        &mut self,
        side: usize,
        to: SocketAddr,
        from: SocketAddr,
        bytes: Vec<u8>,
        packet: Option<Packet>,
    ) {
        let copies = 1 + u32::from(chance(self.faults.duplicate, &mut self.rng));
        for _ in 0..copies {
            if !chance(self.faults.loss, &mut self.rng) && !self.cut[side] {
                let delay = self.faults.delay(&mut self.rng);
                let (bytes, packet) = (bytes.clone(), packet.clone());
                self.at(delay, Event::Datagram { to, from, bytes, packet });
            }
        }
    }

    /// Carries out a side's output.
    fn drain(&mut self, side: usize) {
        while let Some(transmit) = self.sides[side].peer.poll_transmit() {
            self.transmit(side, transmit);
        }
        while let Some(event) = self.sides[side].peer.poll_event() {
            match event {
                PeerOutput::Lane(lane, order) => self.order(side, lane, order),
                PeerOutput::Fetch(fetch) => {
                    self.tell(|| format!("side {side} asks its KME: {fetch:?}"));
                    let (delay, report, delivered) =
                        self.kms[side / 2].fetch(side, fetch, self.now, &mut self.rng);
                    delivered.iter().for_each(|key| self.model.delivered_key(key));
                    let instance = self.sides[side].instance;
                    self.at(delay, Event::Kms { side, instance, report });
                }
                PeerOutput::Event(notice) => self.notice(side, notice),
            }
        }
    }

    fn transmit(&mut self, side: usize, transmit: Transmit) {
        let Transmit { to, mut datagram } = transmit;
        let size = link::packet_of(&datagram).map_or(0, <[u8]>::len);
        if let Some(Ok(fragment)) = link::packet_of(&datagram).map(Fragment::parse) {
            assert!(size <= 1200 || (fragment.kind == MessageType::Ping && size <= 1420));
            *self.sent[side].entry(fragment.kind).or_default() += 1;
            if fragment.kind == MessageType::Reject {
                self.rejects[side].push(Reject::parse(fragment.payload).unwrap());
            }
            if fragment.kind == MessageType::Propose && fragment.index == 0 {
                let epoch = u64::from_be_bytes(fragment.payload[96..104].try_into().unwrap());
                let now = self.local(side);
                self.model.proposed(side, epoch, now);
            }
        }
        let name = name(&datagram);
        self.tell(|| format!("side {side} sends {name} ({size} bytes) to {to}"));
        if size > self.path.max(1200) {
            return;
        }
        if chance(self.faults.corrupt, &mut self.rng) {
            let at = below(datagram.len(), &mut self.rng);
            datagram[at] ^= 1 << below(8, &mut self.rng);
        }
        let instances = (self.sides[side].instance, self.sides[side ^ 1].instance);
        if self.manual.as_mut().is_some_and(|manual| manual.hold(side, instances, &datagram)) {
            return;
        }
        let from = self.address(Self::gateway_of(side));
        let kind = link::packet_of(&datagram).and_then(|packet| Fragment::parse(packet).ok()).map(|f| f.kind);
        if self.withhold.is_some_and(|(of, kept)| of == side && Some(kept) == kind) {
            self.withheld.push((to, from, datagram));
            return;
        }
        self.carry(side, to, from, datagram, None);
    }

    /// Delivers the messages that were held back. Returns how many there were.
    pub fn deliver_withheld(&mut self) -> usize {
        let withheld = std::mem::take(&mut self.withheld);
        let count = withheld.len();
        for (to, from, bytes) in withheld {
            self.at(Duration::ZERO, Event::Datagram { to, from, bytes, packet: None });
        }
        count
    }

    fn notice(&mut self, side: usize, notice: PeerEvent) {
        self.tell(|| format!("side {side}: {notice:?}"));
        if let (Some(manual), PeerEvent::EpochFailed { reason: FailureReason::Timeout, .. }) =
            (&mut self.manual, &notice)
        {
            manual.journal.push(Occurred::TimedOut);
        }
        let now = self.local(side);
        if let PeerEvent::EpochActive { epoch, sources, qkd_key_id, .. } = &notice {
            self.epochs += 1;
            let initiator = self.view(side).role == qvpn_proto::Role::Initiator;
            let verdict =
                self.model.activated(side, initiator, (epoch.0, *sources), qkd_key_id.as_ref(), now);
            self.must(verdict);
        }
        if let PeerEvent::Roamed { endpoint } = &notice
            && *endpoint == SocketAddr::from(ATTACKER)
        {
            self.fail(&format!("side {side} sends to an attacker that repeats old datagrams"));
        }
        if let PeerEvent::PathMtu { mtu } = notice
            && !(1200..=1420).contains(&mtu)
        {
            self.fail(&format!("side {side} takes the path for one of {mtu} bytes"));
        }
        self.sides[side].notices.push((self.now, notice));
    }

    /// Returns the newest epoch in which a side's lane was ordered to seal.
    pub fn newest_sealing(&self, side: usize, lane: usize) -> Option<LocalEpoch> {
        self.sides[side].lanes[lane].highest_sealing
    }

    /// Delivers a message to a side as if the peer had sent it in their session.
    pub fn deliver(&mut self, to: usize, kind: MessageType, body: &[u8]) -> MessageId {
        let session = self.sides[to ^ 1].link.session.load(Relaxed);
        assert_ne!(session, 0, "a session is up");
        let mut id = [0; 8];
        self.rng.fill_bytes(&mut id);
        let from = self.address(Self::gateway_of(to ^ 1));
        for packet in packets(id, kind, body) {
            let tunnel = u16::try_from(to / 2).unwrap();
            self.reached_at[to] = self.now;
            let datagram = link::in_session(tunnel, session, self.rng.next_u64(), &packet);
            self.step(to, |peer, now, rng| peer.handle_datagram(&datagram, from, now, rng));
        }
        id
    }

    /// Whether a side answered a `Propose` that is not confirmed yet.
    pub fn pending(&self, side: usize) -> bool {
        self.sides[side].lanes.iter().any(Lane::waits)
    }

    /// Whether a side seals now.
    pub fn seals(&self, side: usize) -> bool {
        let now = self.local(side);
        self.sides[side].lanes.iter().any(|lane| lane.seals(now))
    }

    pub fn state(&self, side: usize) -> PeerState {
        self.view(side).state
    }

    pub fn both(&self, state: PeerState) -> bool {
        (0..self.sides.len()).all(|side| self.state(side) == state)
    }

    /// Returns the number of epochs that came into force, at the side with the fewest.
    pub fn rekeys(&self) -> u64 {
        (0..self.sides.len()).map(|side| self.view(side).rekeys).min().unwrap()
    }

    pub fn failures(&self, side: usize, reason: FailureReason) -> u64 {
        self.view(side).rekey_failures.iter().find(|(r, _)| *r == reason).map_or(0, |(_, n)| *n)
    }

    /// Returns all events of a side, for the message of a failed test.
    pub fn story(&self, side: usize) -> String {
        let lines: Vec<String> =
            self.sides[side].notices.iter().map(|(at, n)| format!("{at:?} {n:?}")).collect();
        lines.join("\n")
    }
}

/// Describes a datagram in a few words.
fn name(datagram: &[u8]) -> String {
    let Some(packet) = link::packet_of(datagram) else { return link::name_of(datagram).to_owned() };
    match Fragment::parse(packet) {
        Ok(f) if f.count == 1 => format!("{:?}", f.kind),
        Ok(f) => format!("{:?} {}/{}", f.kind, f.index + 1, f.count),
        Err(_) => "a spoilt datagram".to_owned(),
    }
}
