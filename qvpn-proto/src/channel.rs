//! Carries whole messages over a control session that loses, repeats and reorders datagrams. It cuts them
//! into fragments, retransmits messages that were not acknowledged, and reassembles fragments. It does not
//! interpret message bodies.

use std::collections::VecDeque;
use std::time::Duration;

use rand_core::CryptoRng;

use crate::wire::fragment::{packets, padded_ping};
use crate::wire::{Fragment, MessageId, MessageType, Ping};
use qvpn_types::Time;

/// The first retransmission timeout, until a round trip was measured.
const INITIAL_TIMEOUT: Duration = Duration::from_millis(250);
const MIN_TIMEOUT: Duration = Duration::from_millis(50);
const MAX_TIMEOUT: Duration = Duration::from_secs(2);
/// The maximum number of unacknowledged `Reject`s. A `Reject` answers one message, so it does not replace an
/// earlier one. Other messages replace the earlier one of their type.
const MAX_PENDING_REJECTS: usize = 16;
/// The number of remembered IDs of delivered messages. A repeated message with such an ID is acknowledged and
/// not delivered again.
const MAX_REMEMBERED_IDS: usize = 64;

struct Outgoing {
    id: MessageId,
    kind: MessageType,
    packets: Vec<Vec<u8>>,
    sent_at: Option<Time>,
    due: Time,
    tries: u32,
}

struct Partial {
    id: MessageId,
    kind: MessageType,
    total: usize,
    pieces: Vec<Option<Vec<u8>>>,
}

/// The result of a received packet.
#[derive(Debug, PartialEq, Eq)]
pub enum ReceiveOutcome {
    /// A whole message, received for the first time.
    Message {
        /// The message ID, for a `Reject`.
        id: MessageId,
        kind: MessageType,
        body: Vec<u8>,
    },
    /// There is nothing to deliver.
    Nothing,
    /// The packet is not a fragment, or contradicts an earlier fragment.
    Malformed,
}

/// The messages under way in both directions.
#[derive(Default)]
pub struct ReliableChannel {
    outgoing: Vec<Outgoing>,
    /// Packets for the session, to be sealed and sent now.
    ready: VecDeque<Vec<u8>>,
    partial: Vec<Partial>,
    delivered: VecDeque<MessageId>,
    round_trip: Option<Duration>,
    /// IDs of sent probes, oldest first, and the answered ones among them.
    probes: VecDeque<MessageId>,
    passed: VecDeque<MessageId>,
}

impl ReliableChannel {
    /// Sends a message and retransmits it until it is acknowledged, replaced by a later one of its type, or
    /// cancelled. A `Reject` replaces only the oldest one, and only if too many wait.
    pub fn send(&mut self, kind: MessageType, body: &[u8], now: Time, rng: &mut dyn CryptoRng) -> MessageId {
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

    fn make_room(&mut self, kind: MessageType) {
        if kind != MessageType::Reject {
            self.cancel(kind);
        } else if self.outgoing.iter().filter(|m| m.kind == kind).count() >= MAX_PENDING_REJECTS
            && let Some(oldest) = self.outgoing.iter().position(|m| m.kind == kind)
        {
            self.outgoing.remove(oldest);
        }
    }

    /// Sends a message once, without retransmission.
    pub fn send_once(&mut self, kind: MessageType, body: &[u8], rng: &mut dyn CryptoRng) {
        let mut id = MessageId::default();
        rng.fill_bytes(&mut id);
        self.ready.extend(packets(id, kind, body));
    }

    /// Sends a `Ping` once, padded to a packet of `size` bytes, with its ID as nonce.
    /// [`take_passed`](Self::take_passed) reports its answer.
    pub fn probe(&mut self, size: usize, rng: &mut dyn CryptoRng) -> MessageId {
        let mut id = MessageId::default();
        rng.fill_bytes(&mut id);
        let ping = Ping { nonce: id, path: 0, heard_ago: None };
        if self.probes.len() == MAX_REMEMBERED_IDS {
            self.probes.pop_front();
        }
        self.probes.push_back(id);
        self.ready.push_back(padded_ping(id, ping, size));
        id
    }

    /// Records the nonce of a `Pong`. Returns whether it answers a probe.
    pub fn on_pong(&mut self, nonce: &MessageId) -> bool {
        let at = self.probes.iter().position(|probe| probe == nonce);
        self.passed.extend(at.and_then(|at| self.probes.remove(at)));
        at.is_some()
    }

    /// Returns the ID of an answered probe.
    pub fn take_passed(&mut self) -> Option<MessageId> {
        self.passed.pop_front()
    }

    /// Adds a measured round trip to the average.
    pub fn on_round_trip(&mut self, sample: Duration) {
        self.round_trip = Some(self.round_trip.map_or(sample, |old| (old * 7 + sample) / 8));
    }

    /// Returns the average time until a message was acknowledged, measured on messages that were sent once.
    #[must_use]
    pub fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// Stops the retransmission of messages of this type.
    pub fn cancel(&mut self, kind: MessageType) {
        self.outgoing.retain(|m| m.kind != kind);
    }

    /// Whether a message of this type awaits its acknowledgement.
    #[must_use]
    pub fn pending(&self, kind: MessageType) -> bool {
        self.outgoing.iter().any(|m| m.kind == kind)
    }

    /// Starts with a new session: all unacknowledged messages are due at once.
    pub fn session_started(&mut self, now: Time) {
        for message in &mut self.outgoing {
            message.due = now;
            message.tries = 0;
        }
    }

    /// Moves due packets into the queue of [`next_packet`](Self::next_packet). Call it only while the session
    /// is up.
    pub fn flush(&mut self, now: Time) {
        let base = self.round_trip.map_or(INITIAL_TIMEOUT, |rtt| (rtt * 2).clamp(MIN_TIMEOUT, MAX_TIMEOUT));
        for message in self.outgoing.iter_mut().filter(|m| m.due <= now) {
            message.sent_at = Some(now);
            message.due = now + (base * (1 << message.tries.min(5))).min(MAX_TIMEOUT);
            message.tries += 1;
            self.ready.extend(message.packets.iter().cloned());
        }
    }

    /// Returns the next packet to seal and send.
    pub fn next_packet(&mut self) -> Option<Vec<u8>> {
        self.ready.pop_front()
    }

    /// Returns the time of the next retransmission, when [`flush`](Self::flush) must be called.
    #[must_use]
    pub fn next_due(&self) -> Option<Time> {
        self.outgoing.iter().map(|m| m.due).min()
    }

    /// Processes a packet that the session delivered.
    pub fn receive(&mut self, packet: &[u8], now: Time, rng: &mut dyn CryptoRng) -> ReceiveOutcome {
        let Ok(fragment) = Fragment::parse(packet) else { return ReceiveOutcome::Malformed };
        if fragment.kind == MessageType::Ack {
            return self.acknowledged(fragment.payload, now);
        }
        if let (MessageType::Ping | MessageType::Pong, 1) = (fragment.kind, fragment.count) {
            // Its own answer acknowledges a `Ping`, and each copy has one.
            let (id, kind, body) = (fragment.id, fragment.kind, fragment.payload.to_vec());
            return ReceiveOutcome::Message { id, kind, body };
        }
        if self.delivered.contains(&fragment.id) {
            // Acknowledges once for each repetition, not once for each fragment.
            if fragment.index + 1 == fragment.count {
                self.send_once(MessageType::Ack, &fragment.id, rng);
            }
            return ReceiveOutcome::Nothing;
        }
        let (id, kind) = (fragment.id, fragment.kind);
        match self.assemble(&fragment) {
            Ok(None) => ReceiveOutcome::Nothing,
            Err(()) => ReceiveOutcome::Malformed,
            Ok(Some(body)) => {
                if self.delivered.len() == MAX_REMEMBERED_IDS {
                    self.delivered.pop_front();
                }
                self.delivered.push_back(id);
                self.send_once(MessageType::Ack, &id, rng);
                ReceiveOutcome::Message { id, kind, body }
            }
        }
    }

    fn acknowledged(&mut self, id: &[u8], now: Time) -> ReceiveOutcome {
        let Some(at) = self.outgoing.iter().position(|m| m.id == *id) else { return ReceiveOutcome::Nothing };
        let message = self.outgoing.remove(at);
        // Karn's rule: only a message that was sent once measures the round trip.
        if let (1, Some(sent_at)) = (message.tries, message.sent_at) {
            self.on_round_trip(now.since(sent_at));
        }
        ReceiveOutcome::Nothing
    }

    /// Adds a fragment. At most one partial message per type is kept, so a flood of first fragments takes no
    /// memory.
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

    fn sent(channel: &mut ReliableChannel) -> Vec<(MessageType, Vec<u8>)> {
        channel.flush(NOW);
        let packets: Vec<_> = std::iter::from_fn(|| channel.next_packet()).collect();
        packets.iter().map(|p| Fragment::parse(p).unwrap()).map(|f| (f.kind, f.payload.to_vec())).collect()
    }

    #[test]
    fn a_reject_takes_no_other_rejects_place() {
        let rng = &mut ChaCha20Rng::seed_from_u64(1);
        let mut channel = ReliableChannel::default();
        channel.send(MessageType::Reject, &[1], NOW, rng);
        channel.send(MessageType::Reject, &[2], NOW, rng);
        assert_eq!(sent(&mut channel), [(MessageType::Reject, vec![1]), (MessageType::Reject, vec![2])]);
        for n in 0..100 {
            channel.send(MessageType::Reject, &[n], NOW, rng);
        }
        let kept = sent(&mut channel);
        assert_eq!(kept.len(), MAX_PENDING_REJECTS);
        assert_eq!(kept.last().unwrap().1, [99]);
    }

    #[test]
    fn of_other_types_only_the_last_message_is_kept() {
        let rng = &mut ChaCha20Rng::seed_from_u64(2);
        let mut channel = ReliableChannel::default();
        channel.send(MessageType::StockAck, &[1], NOW, rng);
        channel.send(MessageType::StockAck, &[2], NOW, rng);
        assert_eq!(sent(&mut channel), [(MessageType::StockAck, vec![2])]);
    }

    fn after(ms: u64) -> Time {
        NOW + Duration::from_millis(ms)
    }

    /// Returns the packets that are due at a time.
    fn due(channel: &mut ReliableChannel, at: Time) -> Vec<Vec<u8>> {
        channel.flush(at);
        std::iter::from_fn(|| channel.next_packet()).collect()
    }

    fn ack(channel: &mut ReliableChannel, id: MessageId, at: Time) {
        let rng = &mut ChaCha20Rng::seed_from_u64(9);
        let ack = packets([9; 8], MessageType::Ack, &id).remove(0);
        assert_eq!(channel.receive(&ack, at, rng), ReceiveOutcome::Nothing);
    }

    #[test]
    fn an_unacknowledged_message_is_repeated_at_growing_intervals() {
        let rng = &mut ChaCha20Rng::seed_from_u64(3);
        let mut channel = ReliableChannel::default();
        let id = channel.send(MessageType::Confirm, &[1; 56], NOW, rng);
        let mut at = 0;
        for wait in [250, 500, 1000, 2000, 2000, 2000, 2000] {
            assert_eq!((due(&mut channel, after(at)).len(), due(&mut channel, after(at)).len()), (1, 0));
            assert_eq!(channel.next_due(), Some(after(at + wait)));
            assert!(due(&mut channel, after(at + wait - 1)).is_empty());
            at += wait;
        }
        channel.session_started(after(at - 1));
        assert_eq!(due(&mut channel, after(at - 1)).len(), 1, "a new session: at once");
        assert_eq!(channel.next_due(), Some(after(at + 249)), "and from the beginning");
        ack(&mut channel, [7; 8], after(at));
        assert!(channel.pending(MessageType::Confirm) && !channel.pending(MessageType::Accept));
        ack(&mut channel, id, after(at));
        assert!(!channel.pending(MessageType::Confirm) && channel.next_due().is_none());
    }

    #[test]
    fn only_a_message_that_was_sent_once_measures_the_round_trip() {
        let rng = &mut ChaCha20Rng::seed_from_u64(4);
        let mut channel = ReliableChannel::default();
        let mut trip = |times: u64, answered: u64| {
            let id = channel.send(MessageType::Rekey, &[0], NOW, rng);
            for n in 0..times {
                assert_eq!(due(&mut channel, after(n * 5000)).len(), 1);
            }
            ack(&mut channel, id, after(answered));
            channel.round_trip().map(|trip| trip.as_micros())
        };
        assert_eq!(trip(2, 5100), None);
        assert_eq!(trip(1, 100), Some(100_000));
        assert_eq!(trip(2, 5900), Some(100_000));
        assert_eq!(trip(1, 900), Some(200_000), "an eighth of the new sample");
        channel.send(MessageType::Rekey, &[0], NOW, rng);
        assert_eq!(due(&mut channel, NOW).len(), 1);
        assert_eq!(channel.next_due(), Some(after(400)), "the wait is twice as long");
    }

    #[test]
    fn a_message_is_delivered_once_and_acknowledged_each_time() {
        let rng = &mut ChaCha20Rng::seed_from_u64(5);
        let mut channel = ReliableChannel::default();
        let pieces = packets([1; 8], MessageType::Propose, &[5; 2500]);
        assert_eq!(pieces.len(), 3);
        let acks = |channel: &mut ReliableChannel| due(channel, NOW).len();
        for piece in [&pieces[2], &pieces[0], &pieces[0]] {
            assert_eq!(channel.receive(piece, NOW, rng), ReceiveOutcome::Nothing);
        }
        assert_eq!(acks(&mut channel), 0);
        let whole = ReceiveOutcome::Message { id: [1; 8], kind: MessageType::Propose, body: vec![5; 2500] };
        assert_eq!(channel.receive(&pieces[1], NOW, rng), whole);
        assert_eq!(acks(&mut channel), 1);
        for piece in &pieces {
            assert_eq!(channel.receive(piece, NOW, rng), ReceiveOutcome::Nothing);
        }
        assert_eq!(acks(&mut channel), 1, "once a repetition");
        // After 64 later messages, its ID is forgotten.
        for n in 2..=65u8 {
            let one = packets([n; 8], MessageType::Confirm, &[n]).remove(0);
            assert!(matches!(channel.receive(&one, NOW, rng), ReceiveOutcome::Message { .. }), "{n}");
            assert_eq!(channel.receive(&one, NOW, rng), ReceiveOutcome::Nothing, "{n} again");
        }
        let last = packets([2; 8], MessageType::Confirm, &[2]).remove(0);
        assert_eq!(channel.receive(&last, NOW, rng), ReceiveOutcome::Nothing, "the 64 last are known");
        for piece in &pieces[..2] {
            assert_eq!(channel.receive(piece, NOW, rng), ReceiveOutcome::Nothing);
        }
        assert_eq!(channel.receive(&pieces[2], NOW, rng), whole);
    }

    #[test]
    fn beginnings_take_no_memory_and_pieces_may_not_contradict_each_other() {
        let rng = &mut ChaCha20Rng::seed_from_u64(6);
        let mut channel = ReliableChannel::default();
        let long = |id: u8, kind: MessageType, byte: u8| packets([id; 8], kind, &[byte; 2000]);
        for id in 0..200 {
            assert_eq!(
                channel.receive(&long(id, MessageType::Propose, 1)[0], NOW, rng),
                ReceiveOutcome::Nothing
            );
        }
        let _ = channel.receive(&long(201, MessageType::Hello, 2)[0], NOW, rng);
        assert_eq!(channel.partial.len(), 2, "one of each kind");
        let _ = channel.receive(&long(198, MessageType::Propose, 1)[1], NOW, rng);
        assert_eq!(channel.partial.len(), 2);
        let whole = channel.receive(&long(198, MessageType::Propose, 1)[0], NOW, rng);
        assert!(matches!(whole, ReceiveOutcome::Message { .. }), "the last that began counts");
        let wrong = [long(201, MessageType::Hello, 3).remove(0), long(201, MessageType::Accept, 2).remove(1)];
        for wrong in wrong {
            let _ = channel.receive(&long(201, MessageType::Hello, 2)[0], NOW, rng);
            assert_eq!(channel.receive(&wrong, NOW, rng), ReceiveOutcome::Malformed);
            assert!(channel.partial.is_empty(), "nothing of it is kept");
        }
        let _ = channel.receive(&long(202, MessageType::Hello, 2)[0], NOW, rng);
        let other = packets([202; 8], MessageType::Hello, &[2; 1999]).remove(1);
        assert_eq!(channel.receive(&other, NOW, rng), ReceiveOutcome::Malformed, "of another length");
    }

    #[test]
    fn a_successful_probe_is_reported_once() {
        let rng = &mut ChaCha20Rng::seed_from_u64(7);
        let mut channel = ReliableChannel::default();
        let probes: Vec<_> = (0..65).map(|n| channel.probe(1200 + n, rng)).collect();
        let sizes: Vec<usize> = due(&mut channel, NOW).iter().map(Vec::len).collect();
        assert_eq!(sizes, (1200..1265).collect::<Vec<_>>());
        for probe in [probes[64], probes[0], probes[1], probes[1]] {
            channel.on_pong(&probe);
        }
        assert!(!channel.on_pong(&[7; 8]), "the nonce of another ping");
        let passed: Vec<_> = std::iter::from_fn(|| channel.take_passed()).collect();
        assert_eq!(passed, [probes[64], probes[1]], "the oldest is forgotten");
    }
}
