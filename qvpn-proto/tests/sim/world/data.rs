//! The data path of the sides: the orders to lanes, and the packets that they seal and open. The model checks
//! each step.

use std::net::SocketAddr;

use qvpn_proto::{LaneOrder, LaneReport};
use qvpn_types::Direction;

use super::manual::HeldData;
use super::{ATTACKER, Event, World};
use crate::model::Packet;
use crate::network::{below, chance, up_to};

impl World {
    pub(super) fn arrive_data(
        &mut self,
        gateway: usize,
        lane: u8,
        from: SocketAddr,
        bytes: &[u8],
        packet: &Packet,
    ) {
        let index = u32::from_le_bytes(bytes[4..8].try_into().unwrap());
        let place = usize::from(lane);
        let here: Vec<usize> =
            (0..self.sides.len()).filter(|side| Self::gateway_of(*side) == gateway).collect();
        let has = |side: &&usize| self.sides[**side].lanes.get(place).is_some_and(|l| l.has(index));
        let found = here.iter().find(has).copied();
        let side = found.unwrap_or(packet.from ^ 1);
        if !here.contains(&side) {
            return; // sent to an endpoint that the peer has left
        }
        let now = self.local(side);
        // The receiving lane treats a datagram as data only if its first four bytes say so.
        let found = found.filter(|_| bytes[..4] == [4, 0, 0, 0]);
        let opened = found.and_then(|side| self.sides[side].lanes[place].open(bytes, from, now).ok());
        let ordered = self.sides[side].last.get(place).is_some_and(|last| last.0 >= self.now);
        // A packet with a changed index or counter is handled like another packet.
        match self.model.arrived(packet, side, opened.as_ref(), (self.now, ordered)) {
            Ok(new) => {
                self.data_opened += u64::from(new && opened.as_ref().is_some_and(|o| !o.text.is_empty()))
            }
            Err(what) => self.fail(&what),
        }
        let Some(opened) = opened else { return };
        if opened.roamed && from == ATTACKER.into() {
            self.fail(&format!("a lane of end {side} sends to an attacker that repeats old packets"));
        }
        self.sides[side].received_at = Some(now);
        self.reached_at[side] = self.now;
        self.sides[side].lanes[place].received_at = now;
        if opened.first {
            let local_epoch = opened.local_epoch;
            self.tell(|| format!("side {side}: the first packet of local epoch {local_epoch} opens"));
            self.report(side, lane, LaneReport::FirstOpened { lane, local_epoch });
        }
        if opened.roamed {
            self.tell(|| format!("lane {lane} of end {side} follows the data to {from}"));
            self.report(side, lane, LaneReport::Roamed { lane, endpoint: from });
        }
    }

    pub(super) fn send_data(&mut self, from: usize) {
        let lanes = self.sites[from].lanes.min(self.sites[from ^ 1].lanes);
        for lane in 0..usize::from(lanes) {
            let mut text = vec![0x45; 24];
            text[16..24].copy_from_slice(&self.numbered.to_be_bytes());
            self.numbered += 1;
            // Another lane carries the flows of a silent lane.
            let by = self.sides[from].lanes[lane].via.map_or(lane, usize::from);
            match self.send_in(from, by, &text) {
                true => self.data_sent += 1,
                false => self.data_blocked += 1,
            }
        }
    }

    /// Sends a packet in the newest epoch. Returns whether there was one.
    pub fn send_in(&mut self, from: usize, lane: usize, text: &[u8]) -> bool {
        let now = self.local(from);
        let (key, mut bytes) = match self.sides[from].lanes[lane].seal(text, now) {
            Ok(sealed) => sealed,
            Err(ended) => {
                if let Some(local_epoch) = ended {
                    let lane = u8::try_from(lane).unwrap();
                    self.tell(|| format!("side {from}: lane {lane} reached its packet limit"));
                    self.report(from, lane, LaneReport::SealingEnded { lane, local_epoch });
                }
                return false;
            }
        };
        let counter = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
        let ordered = self.sides[from].last[lane].0 >= self.now;
        let verdict = self.model.sealed(from, key, counter, now, ordered);
        self.must(verdict);
        self.sides[from].sent_at = Some(now);
        self.sides[from].lanes[lane].sent_at = now;
        let instance = self.sides[from].instance;
        let mut packet = Packet {
            from,
            from_instance: instance,
            key,
            counter,
            text: text.to_vec(),
            sealed: self.now,
            intact: true,
        };
        let Some(to) = self.sides[from].lanes[lane].endpoint else { return true };
        let mut source = self.address(Self::gateway_of(from));
        source.set_port(source.port() + u16::try_from(lane).unwrap());
        if chance(self.faults.corrupt, &mut self.rng) {
            let at = below(bytes.len(), &mut self.rng);
            bytes[at] ^= 1 << below(8, &mut self.rng);
            packet.intact = false;
        }
        let epoch = self.view(from).epoch;
        if let Some(manual) = &mut self.manual {
            manual.data.push(HeldData { from, epoch, to, source, bytes, packet });
            return true;
        }
        if !self.cut_lanes[from].has(u8::try_from(lane).unwrap()) {
            self.carry(from, to, source, bytes, Some(packet));
        }
        true
    }

    /// Sends an empty packet on lanes that sent nothing for a while.
    pub(super) fn keep_alive(&mut self, side: usize) {
        let now = self.local(side);
        for lane in 0..self.sides[side].lanes.len() {
            let of = &self.sides[side].lanes[lane];
            if of.keepalive.is_some_and(|interval| now.since(of.sent_at) >= interval) {
                self.send_in(side, lane, &[]);
            }
        }
    }

    /// Sends an order to a lane. Orders keep their sequence.
    pub(super) fn order(&mut self, side: usize, lane: u8, order: LaneOrder) {
        let now = self.local(side);
        let verdict = match &order {
            LaneOrder::InstallOpening { local_epoch, index, key, expires_at, .. } => {
                let times = (now, self.truly(side, *expires_at));
                self.model.opening(side, (lane, *local_epoch, *index), *key.expose(), times)
            }
            LaneOrder::InstallSealing { local_epoch, receiver_index, key, expires_at, packets, .. } => {
                let sides = (*expires_at, self.truly(side, *expires_at));
                self.model.sealing(
                    side,
                    (lane, *local_epoch, *receiver_index),
                    *key.expose(),
                    sides,
                    *packets,
                )
            }
            _ => Ok(()),
        };
        self.must(verdict);
        let after = self.lane_delay + up_to(self.lane_jitter, &mut self.rng);
        let (at, instance) = (self.now + after, self.sides[side].instance);
        let state = &mut self.sides[side];
        state.in_flight += 1;
        let last = &mut state.last[usize::from(lane)].0;
        *last = at.max(*last);
        let at = *last;
        self.at_time(at, Event::Order { side, instance, lane, order });
    }

    pub(super) fn report(&mut self, side: usize, lane: u8, report: LaneReport) {
        if let (Some(manual), LaneReport::Installed { .. }) = (&mut self.manual, &report) {
            manual.installed.push((side, report));
            return;
        }
        let after = up_to(self.lane_jitter, &mut self.rng);
        let (at, instance) = (self.now + after, self.sides[side].instance);
        let state = &mut self.sides[side];
        state.in_flight += 1;
        let last = &mut state.last[usize::from(lane)].1;
        *last = at.max(*last);
        let at = *last;
        self.at_time(at, Event::Report { side, instance, report });
    }

    /// Applies an order to a lane.
    pub(super) fn apply(&mut self, side: usize, lane: u8, order: LaneOrder) {
        let now = self.local(side);
        let place = usize::from(lane);
        let of = &mut self.sides[side].lanes[place];
        match order {
            LaneOrder::InstallOpening { local_epoch, index, suite, key, expires_at } => {
                if of.install_opening((local_epoch, index), suite, key, expires_at, now) {
                    self.report(
                        side,
                        lane,
                        LaneReport::Installed { lane, local_epoch, direction: Direction::Opening },
                    );
                } else if expires_at > now {
                    self.fail(&format!("lane {lane} of end {side} refuses an opening key"));
                }
            }
            LaneOrder::InstallSealing {
                local_epoch,
                receiver_index,
                suite,
                key,
                expires_at,
                packets,
                ..
            } => {
                let packets = self.packet_limit.map_or(packets, |limit| limit.min(packets));
                let limits = (expires_at, packets);
                if of.install_sealing((local_epoch, receiver_index), suite, key, limits, now) {
                    self.tell(|| format!("side {side}: lane {lane} seals in local epoch {local_epoch}"));
                    self.report(
                        side,
                        lane,
                        LaneReport::Installed { lane, local_epoch, direction: Direction::Sealing },
                    );
                    self.send_in(side, place, &[]);
                    let instance = self.sides[side].instance;
                    let at = self.truly(side, expires_at);
                    self.at_time(at, Event::LaneDue { side, instance, lane });
                } else if expires_at > now {
                    self.fail(&format!("lane {lane} of end {side} refuses a sealing key"));
                }
            }
            LaneOrder::SendEmpty => {
                self.send_in(side, place, &[]);
            }
            LaneOrder::StopSealing => of.sealing = None,
            LaneOrder::CloseOlder { local_epoch, at } => of.close_older(local_epoch, at, now),
            LaneOrder::Close { index } => of.close(index),
            LaneOrder::SetEndpoint { endpoint } => {
                of.endpoint = Some(endpoint);
                self.tell(|| format!("lane {lane} of end {side} sends to {endpoint}"));
            }
            LaneOrder::SetKeepalive { interval } => of.keepalive = interval,
            LaneOrder::Reroute { via } => of.via = via,
        }
    }
}
