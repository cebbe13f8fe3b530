//! The output of a peer that was not handed out yet: messages, orders, events and timers.

use std::collections::VecDeque;
use std::net::SocketAddr;

use qvpn_types::{KeyId, Time};
use rand_core::CryptoRng;

use crate::channel::ReliableChannel;
use crate::notice::PeerEvent;
use crate::orders::LaneOrder;
use crate::output::{PeerOutput, Transmit};
use crate::timers::Timers;
use crate::view::ControlDrops;
use crate::wire::{MessageId, MessageType, Reject, RejectReason};

/// A request of a role to send a `Hello`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HelloRequest {
    /// Send the one in force again.
    Repeat,
    /// Send one with a higher counter.
    Renew,
}

/// Collects the output of a peer's parts.
#[derive(Default)]
pub struct Outbox {
    pub channel: ReliableChannel,
    pub timers: Timers,
    pub drops: ControlDrops,
    /// The `Hello` that the peer must send after the current call.
    pub hello: Option<HelloRequest>,
    transmits: VecDeque<Transmit>,
    outputs: VecDeque<PeerOutput>,
}

impl Outbox {
    pub fn emit(&mut self, event: PeerEvent) {
        self.outputs.push_back(PeerOutput::Event(event));
    }

    /// Reports lost keys, each with the reason.
    pub fn report_lost(&mut self, lost: Vec<(KeyId, String)>) {
        for (id, why) in lost {
            self.emit(PeerEvent::KeyLost { id, why });
        }
    }

    pub fn output(&mut self, output: PeerOutput) {
        self.outputs.push_back(output);
    }

    pub fn order(&mut self, lane: u8, order: LaneOrder) {
        self.outputs.push_back(PeerOutput::Lane(lane, order));
    }

    /// Sends the same order to the first `lanes` lanes.
    pub fn order_each(&mut self, lanes: u8, order: impl Fn() -> LaneOrder) {
        for lane in 0..lanes {
            self.order(lane, order());
        }
    }

    pub fn transmit(&mut self, to: SocketAddr, datagram: Vec<u8>) {
        self.transmits.push_back(Transmit { to, datagram });
    }

    /// Sends a `Reject` of a peer's message.
    pub fn reject(&mut self, id: MessageId, reason: RejectReason, now: Time, rng: &mut dyn CryptoRng) {
        self.drops.refused += 1;
        self.channel.send(MessageType::Reject, &Reject { id, reason }.to_bytes(), now, rng);
    }

    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    pub fn poll_output(&mut self) -> Option<PeerOutput> {
        self.outputs.pop_front()
    }
}
