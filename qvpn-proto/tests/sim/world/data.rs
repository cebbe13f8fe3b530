//! The data path of the sides: the orders to lanes, and the packets that they seal and open. The model checks
//! each step.

use std::net::SocketAddr;

use qvpn_proto::{LaneOrder, LaneReport};
use qvpn_types::Direction;

use super::manual::HeldData;
use super::{ATTACKER, Happening, World};
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
        let here: Vec<usize> = (0..self.ends.len()).filter(|end| Self::gateway_of(*end) == gateway).collect();
        let has = |end: &&usize| self.ends[**end].lanes.get(place).is_some_and(|l| l.has(index));
        let found = here.iter().find(has).copied();
        let end = found.unwrap_or(packet.from ^ 1);
        if !here.contains(&end) {
            return; // sent to an endpoint that the peer has left
        }
        let now = self.local(end);
        // The receiving lane treats a datagram as data only if its first four bytes say so.
        let found = found.filter(|_| bytes[..4] == [4, 0, 0, 0]);
        let opened = found.and_then(|end| self.ends[end].lanes[place].open(bytes, from, now).ok());
        let ordered = self.ends[end].last.get(place).is_some_and(|last| last.0 >= self.now);
        // A packet with a changed index or counter is handled like another packet.
        match self.model.arrived(packet, end, opened.as_ref(), (self.now, ordered)) {
            Ok(new) => {
                self.data_opened += u64::from(new && opened.as_ref().is_some_and(|o| !o.text.is_empty()))
            }
            Err(what) => self.fail(&what),
        }
        let Some(opened) = opened else { return };
        if opened.roamed && from == ATTACKER.into() {
            self.fail(&format!("a lane of end {end} sends to an attacker that repeats old packets"));
        }
        self.ends[end].received_at = Some(now);
        self.ends[end].lanes[place].received_at = now;
        if opened.first {
            let local_epoch = opened.local_epoch;
            self.tell(|| format!("end {end}: the first packet of local epoch {local_epoch} opens"));
            self.report(end, lane, LaneReport::FirstOpened { lane, local_epoch });
        }
        if opened.roamed {
            self.tell(|| format!("lane {lane} of end {end} follows the data to {from}"));
            self.report(end, lane, LaneReport::Roamed { lane, endpoint: from });
        }
    }

    pub(super) fn send_data(&mut self, from: usize) {
        let lanes = self.sites[from].lanes.min(self.sites[from ^ 1].lanes);
        for lane in 0..usize::from(lanes) {
            let mut text = vec![0x45; 24];
            text[16..24].copy_from_slice(&self.numbered.to_be_bytes());
            self.numbered += 1;
            // Another lane carries the flows of a silent lane.
            let by = self.ends[from].lanes[lane].via.map_or(lane, usize::from);
            match self.send_in(from, by, &text) {
                true => self.data_sent += 1,
                false => self.data_blocked += 1,
            }
        }
    }

    /// Sends a packet in the newest epoch. Returns whether there was one.
    pub fn send_in(&mut self, from: usize, lane: usize, text: &[u8]) -> bool {
        let now = self.local(from);
        let (key, mut bytes) = match self.ends[from].lanes[lane].seal(text, now) {
            Ok(sealed) => sealed,
            Err(ended) => {
                if let Some(local_epoch) = ended {
                    let lane = u8::try_from(lane).unwrap();
                    self.tell(|| format!("end {from}: lane {lane} reached its packet limit"));
                    self.report(from, lane, LaneReport::SealingEnded { lane, local_epoch });
                }
                return false;
            }
        };
        let counter = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
        let ordered = self.ends[from].last[lane].0 >= self.now;
        let verdict = self.model.sealed(from, key, counter, now, ordered);
        self.must(verdict);
        self.ends[from].sent_at = Some(now);
        self.ends[from].lanes[lane].sent_at = now;
        let life = self.ends[from].life;
        let mut packet = Packet {
            from,
            from_life: life,
            key,
            counter,
            text: text.to_vec(),
            sealed: self.now,
            intact: true,
        };
        let Some(to) = self.ends[from].lanes[lane].endpoint else { return true };
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
    pub(super) fn keep_alive(&mut self, end: usize) {
        let now = self.local(end);
        for lane in 0..self.ends[end].lanes.len() {
            let of = &self.ends[end].lanes[lane];
            if of.keepalive.is_some_and(|interval| now.since(of.sent_at) >= interval) {
                self.send_in(end, lane, &[]);
            }
        }
    }

    /// Sends an order to a lane. Orders keep their sequence.
    pub(super) fn order(&mut self, end: usize, lane: u8, order: LaneOrder) {
        let now = self.local(end);
        let verdict = match &order {
            LaneOrder::InstallOpening { local_epoch, index, key, expires_at, .. } => {
                let times = (now, self.truly(end, *expires_at));
                self.model.opening(end, (lane, *local_epoch, *index), *key.expose(), times)
            }
            LaneOrder::InstallSealing { local_epoch, receiver_index, key, expires_at, packets, .. } => {
                let ends = (*expires_at, self.truly(end, *expires_at));
                self.model.sealing(end, (lane, *local_epoch, *receiver_index), *key.expose(), ends, *packets)
            }
            _ => Ok(()),
        };
        self.must(verdict);
        let after = self.lane_delay + up_to(self.lane_jitter, &mut self.rng);
        let (at, life) = (self.now + after, self.ends[end].life);
        let state = &mut self.ends[end];
        state.in_flight += 1;
        let last = &mut state.last[usize::from(lane)].0;
        *last = at.max(*last);
        let at = *last;
        self.at_time(at, Happening::Order { end, life, lane, order });
    }

    pub(super) fn report(&mut self, end: usize, lane: u8, report: LaneReport) {
        if let (Some(manual), LaneReport::Installed { .. }) = (&mut self.manual, &report) {
            manual.installed.push((end, report));
            return;
        }
        let after = up_to(self.lane_jitter, &mut self.rng);
        let (at, life) = (self.now + after, self.ends[end].life);
        let state = &mut self.ends[end];
        state.in_flight += 1;
        let last = &mut state.last[usize::from(lane)].1;
        *last = at.max(*last);
        let at = *last;
        self.at_time(at, Happening::Report { end, life, report });
    }

    /// Applies an order to a lane.
    pub(super) fn apply(&mut self, end: usize, lane: u8, order: LaneOrder) {
        let now = self.local(end);
        let place = usize::from(lane);
        let of = &mut self.ends[end].lanes[place];
        match order {
            LaneOrder::InstallOpening { local_epoch, index, suite, key, expires_at } => {
                if of.install_opening((local_epoch, index), suite, key, expires_at, now) {
                    self.report(
                        end,
                        lane,
                        LaneReport::Installed { lane, local_epoch, direction: Direction::Opening },
                    );
                } else if expires_at > now {
                    self.fail(&format!("lane {lane} of end {end} refuses an opening key"));
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
                    self.tell(|| format!("end {end}: lane {lane} seals in local epoch {local_epoch}"));
                    self.report(
                        end,
                        lane,
                        LaneReport::Installed { lane, local_epoch, direction: Direction::Sealing },
                    );
                    self.send_in(end, place, &[]);
                    let life = self.ends[end].life;
                    let at = self.truly(end, expires_at);
                    self.at_time(at, Happening::LaneDue { end, life, lane });
                } else if expires_at > now {
                    self.fail(&format!("lane {lane} of end {end} refuses a sealing key"));
                }
            }
            LaneOrder::SendEmpty => {
                self.send_in(end, place, &[]);
            }
            LaneOrder::StopSealing => of.sealing = None,
            LaneOrder::CloseOlder { local_epoch, at } => of.close_older(local_epoch, at, now),
            LaneOrder::Close { index } => of.close(index),
            LaneOrder::SetEndpoint { endpoint } => {
                of.endpoint = Some(endpoint);
                self.tell(|| format!("lane {lane} of end {end} sends to {endpoint}"));
            }
            LaneOrder::SetKeepalive { interval } => of.keepalive = interval,
            LaneOrder::Reroute { via } => of.via = via,
        }
    }
}
