//! Which lanes carry packets, as both sides see it.

use qvpn_types::Time;
use rand_core::CryptoRng;

use crate::outbox::Outbox;
use crate::wire::{LaneSet, MessageType};

/// The lanes on which one side or the other receives nothing.
#[derive(Default)]
pub struct LaneMonitor {
    rx_silent: LaneSet,
    peer_rx_silent: LaneSet,
}

impl LaneMonitor {
    /// The lanes on which the peer receives nothing, by its last message.
    pub fn peer_rx_silent(&self) -> LaneSet {
        self.peer_rx_silent
    }

    /// This side receives nothing on these lanes. The peer is told, since it can't know that what it sends there is lost.
    pub fn set_rx_silent(
        &mut self,
        lanes: LaneSet,
        now: Time,
        out: &mut Outbox,
        rng: &mut dyn CryptoRng,
    ) -> bool {
        let changed = self.rx_silent != lanes;
        if changed {
            self.rx_silent = lanes;
            out.channel.send(MessageType::Lanes, &lanes.to_bytes(), now, rng);
        }
        changed
    }

    pub fn on_message(&mut self, body: &[u8], out: &mut Outbox) {
        match LaneSet::parse(body) {
            Ok(lanes) => self.peer_rx_silent = lanes,
            Err(_) => out.drops.malformed += 1,
        }
    }

    pub fn on_peer_restarted(&mut self, now: Time, out: &mut Outbox, rng: &mut dyn CryptoRng) {
        self.peer_rx_silent = LaneSet::default();
        if !self.rx_silent.is_empty() {
            out.channel.send(MessageType::Lanes, &self.rx_silent.to_bytes(), now, rng);
        }
    }
}
