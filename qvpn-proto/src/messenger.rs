//! Carries whole messages over a control session that loses, repeats and reorders datagrams: cuts them into fragments,
//! repeats what was not acknowledged, and puts them together again. It knows nothing of what messages say.

use std::collections::VecDeque;
use std::time::Duration;

use rand_core::CryptoRng;

use crate::time::Time;
use crate::wire::fragment::{packets, padded_ping};
use crate::wire::{Fragment, Kind, MessageId};

/// First wait for an acknowledgement, until a round trip was measured.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const MIN_WAIT: Duration = Duration::from_millis(50);
const MAX_WAIT: Duration = Duration::from_secs(2);
/// A `Reject` answers one message, so a later one says nothing about an earlier: so many wait side by side. Of the other
/// kinds the last says all.
const REJECTS: usize = 16;
/// How many IDs of delivered messages are remembered, so that a repetition is acknowledged and not delivered again.
const REMEMBERED: usize = 64;

struct Outgoing {
    id: MessageId,
    kind: Kind,
    packets: Vec<Vec<u8>>,
    sent_at: Option<Time>,
    due: Time,
    tries: u32,
}

struct Partial {
    id: MessageId,
    kind: Kind,
    total: usize,
    pieces: Vec<Option<Vec<u8>>>,
}

/// What came of a packet.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrived {
    /// A whole message, for the first time.
    Message {
        /// Its ID, for a `Reject`.
        id: MessageId,
        /// Its type.
        kind: Kind,
        /// Its bytes.
        body: Vec<u8>,
    },
    /// Nothing to deliver.
    Nothing,
    /// Not a fragment of ours, or one that contradicts another.
    Malformed,
}

/// The messages under way in both directions.
#[derive(Default)]
pub struct Messenger {
    outgoing: Vec<Outgoing>,
    /// Packets for the session, to be sealed and sent now.
    ready: VecDeque<Vec<u8>>,
    partial: Vec<Partial>,
    delivered: VecDeque<MessageId>,
    round_trip: Option<Duration>,
    /// Messages of [`probe`](Self::probe), oldest first, and those of them that were acknowledged.
    probes: VecDeque<MessageId>,
    passed: VecDeque<MessageId>,
}

impl Messenger {
    /// Sends a message, and repeats it until it is acknowledged, replaced by a later one of its kind, or cancelled. A
    /// `Reject` replaces none but the oldest of too many.
    pub fn send(&mut self, kind: Kind, body: &[u8], now: Time, rng: &mut dyn CryptoRng) -> MessageId {
        let mut id = MessageId::default();
        rng.fill_bytes(&mut id);
        self.make_room(kind);
        self.outgoing.push(Outgoing {
            id,
            kind,
            packets: packets(id, kind, body),
            sent_at: None,
            due: now,
            tries: 0,
        });
        id
    }

    fn make_room(&mut self, kind: Kind) {
        if kind != Kind::Reject {
            self.cancel(kind);
        } else if self.outgoing.iter().filter(|m| m.kind == kind).count() >= REJECTS
            && let Some(oldest) = self.outgoing.iter().position(|m| m.kind == kind)
        {
            self.outgoing.remove(oldest);
        }
    }

    /// Sends a message once, with no repetition.
    pub fn send_once(&mut self, kind: Kind, body: &[u8], rng: &mut dyn CryptoRng) {
        let mut id = MessageId::default();
        rng.fill_bytes(&mut id);
        self.ready.extend(packets(id, kind, body));
    }

    /// Sends a `Ping` of `size` bytes of packet once; its acknowledgement comes by [`take_passed`](Self::take_passed).
    pub fn probe(&mut self, size: usize, rng: &mut dyn CryptoRng) -> MessageId {
        let mut id = MessageId::default();
        rng.fill_bytes(&mut id);
        if self.probes.len() == REMEMBERED {
            self.probes.pop_front();
        }
        self.probes.push_back(id);
        self.ready.push_back(padded_ping(id, size));
        id
    }

    /// A probe that was acknowledged.
    pub fn take_passed(&mut self) -> Option<MessageId> {
        self.passed.pop_front()
    }

    /// What a message that was sent once took to be acknowledged, on average.
    #[must_use]
    pub fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// Stops repeating messages of this kind.
    pub fn cancel(&mut self, kind: Kind) {
        self.outgoing.retain(|m| m.kind != kind);
    }

    /// Whether a message of this kind still waits for its acknowledgement.
    #[must_use]
    pub fn pending(&self, kind: Kind) -> bool {
        self.outgoing.iter().any(|m| m.kind == kind)
    }

    /// The session is new: everything that waits is due at once.
    pub fn session_started(&mut self, now: Time) {
        for message in &mut self.outgoing {
            message.due = now;
            message.tries = 0;
        }
    }

    /// Moves what is due into the queue of [`next_packet`](Self::next_packet). To be called only while the session is up.
    pub fn flush(&mut self, now: Time) {
        let base = self.round_trip.map_or(FIRST_WAIT, |rtt| (rtt * 2).clamp(MIN_WAIT, MAX_WAIT));
        for message in self.outgoing.iter_mut().filter(|m| m.due <= now) {
            message.sent_at = Some(now);
            message.due = now + (base * (1 << message.tries.min(5))).min(MAX_WAIT);
            message.tries += 1;
            self.ready.extend(message.packets.iter().cloned());
        }
    }

    /// A packet to seal and send.
    pub fn next_packet(&mut self) -> Option<Vec<u8>> {
        self.ready.pop_front()
    }

    /// When [`flush`](Self::flush) has something to do next.
    #[must_use]
    pub fn next_due(&self) -> Option<Time> {
        self.outgoing.iter().map(|m| m.due).min()
    }

    /// Takes a packet that the session delivered.
    pub fn receive(&mut self, packet: &[u8], now: Time, rng: &mut dyn CryptoRng) -> Arrived {
        let Ok(fragment) = Fragment::parse(packet) else { return Arrived::Malformed };
        if fragment.kind == Kind::Ack {
            return self.acknowledged(fragment.payload, now);
        }
        if self.delivered.contains(&fragment.id) {
            // Once a repetition, not once a fragment of it.
            if fragment.index + 1 == fragment.count {
                self.send_once(Kind::Ack, &fragment.id, rng);
            }
            return Arrived::Nothing;
        }
        let (id, kind) = (fragment.id, fragment.kind);
        match self.assemble(&fragment) {
            Ok(None) => Arrived::Nothing,
            Err(()) => Arrived::Malformed,
            Ok(Some(body)) => {
                if self.delivered.len() == REMEMBERED {
                    self.delivered.pop_front();
                }
                self.delivered.push_back(id);
                self.send_once(Kind::Ack, &id, rng);
                Arrived::Message { id, kind, body }
            }
        }
    }

    fn acknowledged(&mut self, id: &[u8], now: Time) -> Arrived {
        if let Some(at) = self.probes.iter().position(|probe| probe == id) {
            self.passed.extend(self.probes.remove(at));
        }
        let Some(at) = self.outgoing.iter().position(|m| m.id == *id) else { return Arrived::Nothing };
        let message = self.outgoing.remove(at);
        // Karn: only a message that was sent once tells the round trip.
        if let (1, Some(sent_at)) = (message.tries, message.sent_at) {
            let sample = now.since(sent_at);
            self.round_trip = Some(self.round_trip.map_or(sample, |old| (old * 7 + sample) / 8));
        }
        Arrived::Nothing
    }

    /// Adds a fragment; at most one partial message a kind is kept, so a flood of beginnings takes no memory.
    fn assemble(&mut self, f: &Fragment<'_>) -> Result<Option<Vec<u8>>, ()> {
        if f.count == 1 {
            return Ok(Some(f.payload.to_vec()));
        }
        if !self.partial.iter().any(|p| p.id == f.id) {
            self.partial.retain(|p| p.kind != f.kind);
            let pieces = vec![None; usize::from(f.count)];
            self.partial.push(Partial { id: f.id, kind: f.kind, total: usize::from(f.total), pieces });
        }
        let Some(at) = self.partial.iter().position(|p| p.id == f.id) else { return Err(()) };
        let partial = &mut self.partial[at];
        let index = usize::from(f.index);
        let fits = partial.kind == f.kind && partial.total == usize::from(f.total);
        let same = fits && partial.pieces[index].as_ref().is_none_or(|piece| piece == f.payload);
        if !same {
            self.partial.remove(at);
            return Err(());
        }
        partial.pieces[index] = Some(f.payload.to_vec());
        if partial.pieces.iter().any(Option::is_none) {
            return Ok(None);
        }
        let whole = self.partial.remove(at);
        Ok(Some(whole.pieces.into_iter().flatten().flatten().collect()))
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};

    use super::*;

    const NOW: Time = Time::from_nanos(1_000_000_000);

    fn sent(messenger: &mut Messenger) -> Vec<(Kind, Vec<u8>)> {
        messenger.flush(NOW);
        let packets: Vec<_> = std::iter::from_fn(|| messenger.next_packet()).collect();
        packets.iter().map(|p| Fragment::parse(p).unwrap()).map(|f| (f.kind, f.payload.to_vec())).collect()
    }

    #[test]
    fn a_reject_takes_no_other_rejects_place() {
        let rng = &mut ChaCha20Rng::seed_from_u64(1);
        let mut messenger = Messenger::default();
        messenger.send(Kind::Reject, &[1], NOW, rng);
        messenger.send(Kind::Reject, &[2], NOW, rng);
        assert_eq!(sent(&mut messenger), [(Kind::Reject, vec![1]), (Kind::Reject, vec![2])]);
        for n in 0..100 {
            messenger.send(Kind::Reject, &[n], NOW, rng);
        }
        let kept = sent(&mut messenger);
        assert_eq!(kept.len(), REJECTS);
        assert_eq!(kept.last().unwrap().1, [99]);
    }

    #[test]
    fn of_other_kinds_the_last_says_all() {
        let rng = &mut ChaCha20Rng::seed_from_u64(2);
        let mut messenger = Messenger::default();
        messenger.send(Kind::StockAck, &[1], NOW, rng);
        messenger.send(Kind::StockAck, &[2], NOW, rng);
        assert_eq!(sent(&mut messenger), [(Kind::StockAck, vec![2])]);
    }
}
