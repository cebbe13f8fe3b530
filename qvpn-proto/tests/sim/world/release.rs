//! Delivers what a test holds back, when the test says so.

use std::time::Duration;

use super::manual::{HeldData, HeldMessage};
use super::{Event, World};

impl World {
    /// Delivers a message that was held.
    pub fn release(&mut self, held: &HeldMessage) {
        let to = self.address(Self::gateway_of(held.from ^ 1));
        let from = self.address(Self::gateway_of(held.from));
        for bytes in held.datagrams.clone() {
            self.at(Duration::ZERO, Event::Datagram { to, from, bytes, packet: None });
        }
    }

    /// Delivers a packet that was held.
    pub fn release_data(&mut self, held: HeldData) {
        let HeldData { to, source: from, bytes, packet, .. } = held;
        self.at(Duration::ZERO, Event::Datagram { to, from, bytes, packet: Some(packet) });
    }

    /// Releases the reports of a side's lanes.
    pub fn release_lanes(&mut self, side: usize) {
        let Some(manual) = &mut self.manual else { return };
        let (of, rest) = std::mem::take(&mut manual.installed).into_iter().partition(|(e, _)| *e == side);
        manual.installed = rest;
        let of: Vec<_> = of;
        for (_, report) in of {
            self.step(side, |peer, now, rng| peer.handle_lane(report, now, rng));
        }
    }
}
