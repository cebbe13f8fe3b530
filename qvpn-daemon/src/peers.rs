//! The task that owns all peers: it passes each datagram, key, answer and timeout to the peer that it concerns, and does
//! what the peer then wants done. Nothing else touches a peer, so there is no lock.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use qvpn_api::Config;
use qvpn_api::config::{self, Mtu};
use qvpn_api::control::{ErrorCode, ErrorReply, PeerSummary, Reply};
use qvpn_api::events::EventKind;
use qvpn_dataplane::{LaneCommand, LaneEvent, PeerId};
use qvpn_identity::{Psk, SecretIdentity};
use qvpn_net::RoutePlan;
use qvpn_proto::session::WireGuardLink;
use qvpn_proto::session::{DatagramClass, Demux};
use qvpn_proto::wire::limits::MAX_PEERS;
use qvpn_proto::{LaneReport, Peer};
use qvpn_types::{LocalEpoch, PeerNumber, Time};
use rand_core::Rng;

use crate::certificates::CertificateWatch;
use crate::clock;
use crate::error::DaemonError;
use crate::kms_task::{self, Kmes};
use crate::lanes::acknowledged;
use crate::metrics::KmeCounts;
use crate::slot::{Answer, News, Shared, Slot, SlotId, address};
use crate::translate;

/// Strangers are logged at most so often.
const STRANGERS: Duration = Duration::from_secs(5);
/// How often it is looked when certificates end.
const CERTIFICATES: Duration = Duration::from_secs(60);

/// Pre-shared keys in the order of the config's peers.
pub(crate) type Psks = Vec<Option<Arc<Psk>>>;

/// Datagrams that passed a lane and were dropped before they belonged to a peer.
#[derive(Default, Clone, Copy)]
pub(crate) struct GateDrops {
    /// Of the control session of no peer of ours.
    pub(crate) unknown_index: u64,
    /// Starts by a key that is no peer's.
    pub(crate) no_peer: u64,
    /// No message of ours all the same.
    pub(crate) malformed: u64,
    /// Messages of handshakes that were answered by a cookie, under load.
    pub(crate) cookie: u64,
}

/// All peers of the daemon.
pub(crate) struct Peers {
    pub(crate) config: Config,
    pub(crate) local: Arc<SecretIdentity>,
    pub(crate) kmes: Kmes,
    pub(crate) kme_counts: Arc<KmeCounts>,
    pub(crate) shared: Shared,
    pub(crate) started: Time,
    /// What passed a lane and was dropped before it belonged to a peer.
    pub(crate) drops: GateDrops,
    demux: Demux,
    slots: BTreeMap<u16, Slot>,
    by_key: HashMap<[u8; 32], u16>,
    timers: BTreeSet<(Time, u16)>,
    serial: u64,
    next_number: u16,
    stranger_at: Option<Time>,
    certificates: CertificateWatch,
    certificates_at: Option<Time>,
}

impl Peers {
    /// The peers of `config`, none of which has done anything yet.
    #[allow(clippy::too_many_arguments, reason = "each is a part that is made before")]
    pub(crate) fn new(
        config: Config,
        local: Arc<SecretIdentity>,
        psks: Psks,
        kmes: Kmes,
        kme_counts: Arc<KmeCounts>,
        demux: Demux,
        shared: Shared,
        now: Time,
    ) -> Self {
        let mut peers = Self {
            config,
            local,
            kmes,
            kme_counts,
            shared,
            started: now,
            drops: GateDrops::default(),
            demux,
            slots: BTreeMap::new(),
            by_key: HashMap::new(),
            timers: BTreeSet::new(),
            serial: 0,
            next_number: 0,
            stranger_at: None,
            certificates: CertificateWatch::default(),
            certificates_at: None,
        };
        for (peer, psk) in peers.config.peers.clone().into_iter().zip(psks) {
            peers.add(peer, psk, now);
        }
        peers.tell_lanes();
        peers
    }

    /// The slots in the config's order.
    pub(crate) fn in_order(&self) -> impl Iterator<Item = &Slot> {
        let find = |peer: &config::Peer| self.slots.get(self.by_key.get(peer.public_key.x25519())?);
        self.config.peers.iter().filter_map(find)
    }

    /// When the next peer wants to be woken.
    pub(crate) fn next_timeout(&self) -> Option<Time> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Wakes all peers that are due.
    pub(crate) fn wake(&mut self, now: Time) {
        let due: Vec<u16> = self.timers.iter().take_while(|(at, _)| *at <= now).map(|(_, n)| *n).collect();
        for number in due {
            self.with(number, now, |slot, shared| slot.peer.handle_timeout(now, &mut shared.rng));
        }
    }

    /// Twice a second.
    pub(crate) fn tick(&mut self, now: Time) {
        for number in self.numbers() {
            self.with(number, now, |slot, shared| slot.tick(shared, now));
        }
        self.look_after_kmes(now);
    }

    /// Something came from a lane.
    ///
    /// # Errors
    /// [`DaemonError::LaneFailed`]: the daemon must end.
    pub(crate) fn lane_event(&mut self, event: LaneEvent, now: Time) -> Result<(), DaemonError> {
        let (number, report) = match event {
            LaneEvent::Control { from, datagram, .. } => {
                self.datagram(&datagram, from, now);
                return Ok(());
            }
            LaneEvent::Failed { lane, error } => return Err(DaemonError::LaneFailed { lane, error }),
            LaneEvent::Roamed { lane, peer, endpoint } => {
                if let Ok(number) = u16::try_from(peer.0) {
                    self.with(number, now, |slot, shared| slot.lane_roamed(lane, endpoint, shared, now));
                }
                return Ok(());
            }
            LaneEvent::Installed { lane, token, in_force } => {
                let (number, local_epoch, direction) = acknowledged(token);
                if !in_force {
                    // Without an answer the attempt ends by its own time, and another follows.
                    tracing::error!("lane {lane} refused a key of peer number {number}");
                    return Ok(());
                }
                (u32::from(number.0), LaneReport::Installed { lane, local_epoch, direction })
            }
            LaneEvent::FirstOpened { lane, peer, epoch } => {
                (peer.0, LaneReport::FirstOpened { lane, local_epoch: LocalEpoch(epoch) })
            }
            LaneEvent::SealingEnded { lane, peer, epoch, why } => {
                tracing::debug!("lane {lane}: sealing in epoch {epoch} of peer number {peer} ended: {why:?}");
                (peer.0, LaneReport::SealingEnded { lane, local_epoch: LocalEpoch(epoch) })
            }
        };
        if let Ok(number) = u16::try_from(number) {
            self.with(number, now, |slot, shared| slot.peer.handle_lane(report, now, &mut shared.rng));
        }
        Ok(())
    }

    fn datagram(&mut self, datagram: &[u8], from: SocketAddr, now: Time) {
        let number = match self.demux.classify(datagram, from, now, &mut self.shared.rng) {
            DatagramClass::Peer(number) => number.0,
            DatagramClass::Handshake { x25519 } => match self.by_key.get(&x25519) {
                Some(number) => *number,
                None => {
                    self.drops.no_peer += 1;
                    return self.stranger(&x25519, from, now);
                }
            },
            DatagramClass::Reply(datagram) => {
                self.drops.cookie += 1;
                return self.shared.transmit(&datagram, from);
            }
            DatagramClass::Malformed => {
                self.drops.malformed += 1;
                return;
            }
        };
        if !self.slots.contains_key(&number) {
            self.drops.unknown_index += 1;
            return;
        }
        self.with(number, now, |slot, shared| {
            slot.peer.handle_datagram(datagram, from, now, &mut shared.rng);
        });
    }

    fn stranger(&mut self, key: &[u8; 32], from: SocketAddr, now: Time) {
        if self.stranger_at.is_some_and(|at| now.since(at) < STRANGERS) {
            return;
        }
        self.stranger_at = Some(now);
        let key = data_encoding::BASE64.encode(key);
        let reason = format!(
            "a handshake from {from} with the X25519 key {key}, which is no peer of ours; compare `qvpn-ctl fingerprint` at both sites with public_key in both configs"
        );
        let endpoint = Some(from.to_string());
        self.shared.events.emit(EventKind::IdentityMismatch { peer: None, endpoint, reason });
    }

    /// A task ended.
    pub(crate) fn answer(&mut self, answer: Answer, now: Time) {
        let (to, news) = match answer {
            Answer::Peer { to, news } => (to, news),
            Answer::KmeAnswers { kme, sae } => return self.kme_answers(&kme, sae.as_deref(), now),
        };
        // A peer that was removed meanwhile; keys are erased here.
        if self.slots.get(&to.number).is_none_or(|slot| slot.id != to) {
            return;
        }
        self.with(to.number, now, |slot, shared| match news {
            News::Kms(report) => slot.peer.handle_kms(report, now, &mut shared.rng),
            News::Resolved(found) => slot.resolved(found, shared, now),
        });
    }

    /// A KME that failed answers again.
    fn kme_answers(&mut self, kme: &str, sae: Option<&str>, now: Time) {
        let waits = |slot: &&Slot| {
            slot.config.kmes.iter().any(|name| name == kme)
                && sae.is_none_or(|sae| slot.config.sae_id.as_deref() == Some(sae))
        };
        let numbers: Vec<u16> = self.slots.values().filter(waits).map(|slot| slot.id.number).collect();
        for number in numbers {
            self.with(number, now, |slot, shared| slot.peer.on_kms_recovered(now, &mut shared.rng));
        }
    }

    /// Probes KMEs that failed or that nobody asked for a while, and warns of certificates that end.
    fn look_after_kmes(&mut self, now: Time) {
        let certificates = self.certificates_at.is_none_or(|at| now.since(at) >= CERTIFICATES);
        if certificates {
            self.certificates_at = Some(now);
        }
        for (config, kme) in self.kmes.iter() {
            let uses = |peer: &&config::Peer| peer.kmes.contains(&config.name);
            let peers = self.config.peers.iter().filter(uses);
            let saes: Vec<&str> = peers.filter_map(|peer| peer.sae_id.as_deref()).collect();
            kms_task::probe(kme, &saes, &self.shared.answers);
            if certificates {
                let due = self.certificates.look(&config.name, &kme.certificates(), clock::unix_seconds());
                due.into_iter().for_each(|event| self.shared.events.emit(event));
            }
        }
    }

    /// The operator wants a fresh epoch with one peer, or with all.
    pub(crate) fn rekey(&mut self, name_or_key: Option<&str>, now: Time) -> Reply {
        let wanted: Vec<&config::Peer> = match name_or_key {
            None => self.config.peers.iter().collect(),
            Some(text) => match self.config.find_peer(text) {
                Ok(peer) => vec![peer],
                Err(error) => return Reply::Error(ErrorReply::new(ErrorCode::NoSuchPeer, error.to_string())),
            },
        };
        let names = wanted.iter().map(|peer| peer.name.clone()).collect();
        let numbers: Vec<u16> =
            wanted.iter().filter_map(|peer| self.by_key.get(peer.public_key.x25519()).copied()).collect();
        for number in numbers {
            self.with(number, now, |slot, shared| slot.peer.rekey(now, &mut shared.rng));
        }
        Reply::Rekey { peers: names }
    }

    /// The configured peers.
    pub(crate) fn summaries(&self) -> Vec<PeerSummary> {
        let summary = |peer: &config::Peer| PeerSummary {
            name: peer.name.clone(),
            public_key: peer.public_key.to_string(),
            fingerprint: peer.public_key.fingerprint(),
            endpoint: peer.endpoint.as_ref().map(ToString::to_string),
            allowed_ips: peer.allowed_ips.iter().map(ToString::to_string).collect(),
            qkd: peer.qkd,
            role: peer.role,
            suite: peer.suite,
        };
        self.config.peers.iter().map(summary).collect()
    }

    /// Goes over to another config, whose interface is the same but for what [`refused`](crate::reload::refused) lets
    /// through. Only peers that changed are touched.
    pub(crate) fn reconfigure(&mut self, config: Config, psks: Psks, kmes: Kmes, now: Time) {
        let old = std::mem::replace(&mut self.config, config);
        self.kmes = kmes;
        let stays = |key: &[u8; 32]| self.config.peers.iter().any(|p| p.public_key.x25519() == key);
        let gone: Vec<[u8; 32]> = self.by_key.keys().filter(|key| !stays(key)).copied().collect();
        gone.iter().for_each(|key| self.remove(key, now));
        let kms_changed = kms_of(&old) != kms_of(&self.config);
        for (peer, psk) in self.config.peers.clone().into_iter().zip(psks) {
            let known = self.by_key.get(peer.public_key.x25519()).copied();
            // The same X25519 key with another ML-KEM key is another peer.
            let same =
                known.filter(|n| self.slots.get(n).is_some_and(|s| s.config.public_key == peer.public_key));
            match same {
                Some(number) => self.update(number, peer, psk, kms_changed, now),
                None => {
                    if known.is_some() {
                        self.remove(peer.public_key.x25519(), now);
                    }
                    self.add(peer, psk, now);
                }
            }
        }
        // What was measured ends with `mtu = "auto"`, and begins with it.
        let measure = self.config.interface.mtu == Mtu::Auto;
        for number in self.numbers() {
            self.with(number, now, |slot, shared| {
                slot.peer.measure_path(measure, now);
                if !measure {
                    slot.forget_path(shared);
                }
            });
        }
        self.tell_lanes();
    }

    fn update(
        &mut self,
        number: u16,
        peer: config::Peer,
        psk: Option<Arc<Psk>>,
        kms_changed: bool,
        now: Time,
    ) {
        let Some(slot) = self.slots.get_mut(&number) else { return };
        let same_psk = match (&slot.psk, &psk) {
            (None, None) => true,
            (Some(a), Some(b)) => a.secret().ct_eq(b.secret().expose()),
            _ => false,
        };
        let what =
            |p: &config::Peer| (p.sae_id.clone(), p.kmes.clone(), p.qkd, p.role, p.suite, p.rekey_interval);
        let exchange = kms_changed || !same_psk || what(&slot.config) != what(&peer);
        let moved = slot.config.endpoint != peer.endpoint;
        slot.kmes = self.kmes.set(&peer.kmes);
        slot.config = peer.clone();
        if !same_psk {
            slot.psk = psk;
        }
        if moved && let Some(endpoint) = address(&peer) {
            slot.move_to(endpoint, &self.shared, now);
        }
        if exchange || moved {
            let endpoint = address(&peer);
            let psk = slot.psk.clone();
            let config = translate::peer_config(&self.config, &peer, &self.local, psk, number, endpoint);
            slot.peer.reconfigure(config, now, &mut self.shared.rng);
        }
        self.with(number, now, |_, _| {});
    }

    fn add(&mut self, peer: config::Peer, psk: Option<Arc<Psk>>, now: Time) {
        let Some(number) = self.free_number() else {
            return tracing::error!("peer {}: there are {MAX_PEERS} peers already", peer.name);
        };
        self.serial += 1;
        let id = SlotId { number, serial: self.serial };
        let endpoint = address(&peer);
        let link = WireGuardLink::new(self.local.clone(), &peer.public_key, PeerNumber(number));
        let config = translate::peer_config(&self.config, &peer, &self.local, psk.clone(), number, endpoint);
        // Fresh for each peer, so that one that was removed and added again is a new start for its other end.
        let mut instance = [0; 16];
        self.shared.rng.fill_bytes(&mut instance);
        let mut state = Peer::new(config, link, instance, now);
        state.measure_path(self.config.interface.mtu == Mtu::Auto, now);
        let kmes = self.kmes.set(&peer.kmes);
        let lanes = self.config.interface.lanes;
        self.by_key.insert(*peer.public_key.x25519(), number);
        let slot = Slot::new(id, peer, psk, kmes, state, lanes, &self.shared);
        self.slots.insert(number, slot);
        self.with(number, now, |slot, shared| {
            slot.tick(shared, now);
            slot.peer.handle_timeout(now, &mut shared.rng);
        });
    }

    fn remove(&mut self, key: &[u8; 32], now: Time) {
        let Some(number) = self.by_key.remove(key) else { return };
        self.with(number, now, |slot, shared| slot.peer.shut_down(now, &mut shared.rng));
        let Some(slot) = self.slots.remove(&number) else { return };
        self.timers.retain(|(_, n)| *n != number);
        for lane in 0..self.config.interface.lanes {
            self.shared.lanes.send(lane, LaneCommand::RemovePeer { peer: slot.lane_id() });
        }
        self.shared.known.moved(number, None);
    }

    /// This machine is a copy of another one, whose keys and counters it has. So each key here ends at once, also those of
    /// the control sessions and those fetched ahead, and every peer starts as after a restart. No goodbye is sent, since
    /// it would be sealed under such a key.
    pub(crate) fn start_anew(&mut self, now: Time) {
        let numbers = self.numbers();
        for peer in numbers.iter().map(|number| PeerId((*number).into())) {
            for lane in 0..self.config.interface.lanes {
                self.shared.lanes.send(lane, LaneCommand::RemovePeer { peer });
            }
        }
        self.timers.clear();
        self.by_key.clear();
        let mut former = std::mem::take(&mut self.slots);
        for peer in self.config.peers.clone() {
            let slot = former
                .iter()
                .find(|(_, slot)| slot.config.public_key == peer.public_key)
                .map(|(number, _)| *number)
                .and_then(|number| former.remove(&number));
            let endpoint = slot.as_ref().and_then(|slot| slot.peer.view(now).endpoint);
            let key = *peer.public_key.x25519();
            self.add(peer, slot.and_then(|slot| slot.psk), now);
            if let (Some(endpoint), Some(number)) = (endpoint, self.by_key.get(&key).copied()) {
                self.with(number, now, |slot, shared| slot.move_to(endpoint, shared, now));
            }
        }
        self.tell_lanes();
        self.shared.events.emit(EventKind::MachineCopied {});
    }

    /// Numbers are used again as late as possible, so that a late packet rarely meets another peer.
    fn free_number(&mut self) -> Option<u16> {
        let mut candidates = (self.next_number..MAX_PEERS).chain(0..self.next_number);
        let number = candidates.find(|n| !self.slots.contains_key(n))?;
        self.next_number = (number + 1) % MAX_PEERS;
        Some(number)
    }

    /// The same routes with what each peer's path takes.
    pub(crate) fn with_mtus(&self, plan: RoutePlan) -> RoutePlan {
        self.slots
            .values()
            .fold(plan, |plan, slot| plan.with_mtu(&slot.config.allowed_ips, slot.mtu.map(u32::from)))
    }

    /// Whether a path's MTU is another one since this was asked last. Outer packets to IPv6 paths that take no inner IPv6
    /// packet of 1,280 bytes are then fragmented here.
    pub(crate) fn mtu_changed(&mut self) -> bool {
        let changed = std::mem::take(&mut self.shared.mtu_changed);
        if changed {
            let narrow = self.slots.values().any(|slot| slot.mtu.is_some_and(|mtu| mtu < 1280));
            self.shared.lanes.set_narrow(narrow);
        }
        changed
    }

    /// Tells the lanes which inner addresses belong to whom, and the MTU.
    fn tell_lanes(&self) {
        let table = translate::allowed_ips(
            self.slots.iter().map(|(number, slot)| (*number, slot.config.allowed_ips.as_slice())),
        );
        let table = Arc::new(table);
        for lane in 0..self.config.interface.lanes {
            self.shared.lanes.send(lane, LaneCommand::SetAllowedIps(table.clone()));
            self.shared.lanes.send(lane, LaneCommand::SetMtu(translate::mtu(self.config.interface.mtu)));
        }
    }

    /// Says goodbye to all peers and ends the lanes, which erases their keys.
    pub(crate) fn shut_down(mut self, now: Time) {
        for number in self.numbers() {
            self.with(number, now, |slot, shared| slot.peer.shut_down(now, &mut shared.rng));
        }
        self.shared.lanes.shutdown();
    }

    fn numbers(&self) -> Vec<u16> {
        self.slots.keys().copied().collect()
    }

    /// Lets `work` call into a peer, does what the peer then wants, and sets its timer.
    fn with(&mut self, number: u16, now: Time, work: impl FnOnce(&mut Slot, &mut Shared)) {
        let Some(slot) = self.slots.get_mut(&number) else { return };
        work(slot, &mut self.shared);
        slot.drain(&mut self.shared, now);
        let next = slot.peer.poll_timeout();
        if next != slot.armed {
            if let Some(at) = slot.armed {
                self.timers.remove(&(at, number));
            }
            if let Some(at) = next {
                self.timers.insert((at, number));
            }
            slot.armed = next;
        }
    }
}

/// What of `[kms]` goes into each peer.
fn kms_of(config: &Config) -> Option<(&str, u32, Vec<config::KmeApi>)> {
    let kms = config.kms.as_ref()?;
    let apis = kms.kmes.iter().map(config::Kme::api).collect();
    Some((kms.sae_id.as_str(), kms.stock, apis))
}
