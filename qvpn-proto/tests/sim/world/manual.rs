//! Deliveries under the control of a test: messages of the exchange, empty packets and lanes' reports are
//! held until the test releases them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use qvpn_proto::LaneReport;
use qvpn_proto::wire::{Fragment, MessageId, MessageType};
use qvpn_types::EpochNumber;

use crate::link;
use crate::model::Packet;

/// Held messages of the exchange, empty packets and lanes' reports.
#[derive(Default)]
pub struct Manual {
    pub held: Vec<HeldMessage>,
    pub data: Vec<HeldData>,
    pub installed: Vec<(usize, LaneReport)>,
    pub journal: Vec<Occurred>,
    pieces: BTreeMap<(usize, u32, MessageId), Pieces>,
}

/// The fragments of one message: each one's payload and datagram.
type Pieces = BTreeMap<u8, (Vec<u8>, Vec<u8>)>;

/// A whole message that is held.
pub struct HeldMessage {
    pub from: usize,
    pub from_instance: u32,
    pub to_instance: u32,
    pub id: MessageId,
    pub kind: MessageType,
    pub body: Vec<u8>,
    pub(super) datagrams: Vec<Vec<u8>>,
}

/// A packet of the data path that is held.
pub struct HeldData {
    pub from: usize,
    pub epoch: Option<EpochNumber>,
    pub(super) to: SocketAddr,
    pub(super) source: SocketAddr,
    pub(super) bytes: Vec<u8>,
    pub(super) packet: Packet,
}

/// What the initiator did by itself.
#[derive(Debug, PartialEq, Eq)]
pub enum Occurred {
    Proposed(u64),
    TimedOut,
}

impl Manual {
    /// Holds a fragment of the exchange's messages if a test delivers them itself.
    pub(super) fn hold(&mut self, from: usize, instances: (u32, u32), datagram: &[u8]) -> bool {
        let Some(Ok(f)) = link::packet_of(datagram).map(Fragment::parse) else { return false };
        let (kind, id) = (f.kind, f.id);
        if !matches!(
            kind,
            MessageType::Hello
                | MessageType::Propose
                | MessageType::Accept
                | MessageType::Confirm
                | MessageType::Reject
        ) {
            return false;
        }
        let pieces = self.pieces.entry((from, instances.1, id)).or_default();
        pieces.insert(f.index, (f.payload.to_vec(), datagram.to_vec()));
        if pieces.len() == usize::from(f.count) {
            let body: Vec<u8> = pieces.values().flat_map(|(payload, _)| payload.clone()).collect();
            let datagrams = pieces.values().map(|(_, datagram)| datagram.clone()).collect();
            let known =
                self.held.iter_mut().find(|h| (h.from, h.to_instance, h.id) == (from, instances.1, id));
            match known {
                // Keeps the datagrams of the current session.
                Some(held) => held.datagrams = datagrams,
                None => {
                    if kind == MessageType::Propose {
                        let number = u64::from_be_bytes(body[96..104].try_into().unwrap());
                        self.journal.push(Occurred::Proposed(number));
                    }
                    let (from_instance, to_instance) = instances;
                    self.held.push(HeldMessage {
                        from,
                        from_instance,
                        to_instance,
                        id,
                        kind,
                        body,
                        datagrams,
                    });
                }
            }
        }
        true
    }
}
