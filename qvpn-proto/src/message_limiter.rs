//! Limits what one peer can ask of us: a token bucket for its packets, and one for each type of messages that
//! cost key agreements, requests to a KME or lines in the journal. A packet is counted after the session has
//! authenticated it, so nobody else can use up a peer's tokens. A packet that gets no token is not
//! acknowledged, and an honest peer sends it again.

use std::time::Duration;

use qvpn_types::Time;

use crate::session::token_bucket::{Bucket, Rate};
use crate::wire::limits::IPV6_HEADER;
use crate::wire::{Fragment, MessageType};

/// All packets of a peer, with acknowledgements and probes.
const PACKET_RATE: Rate = Rate { a_second: 1_000, burst: 256 };
const HELLO_RATE: Rate = Rate { a_second: 4, burst: 16 };
const BYE_RATE: Rate = Rate { a_second: 1, burst: 4 };
/// The burst of the other types.
const BURST: u64 = 32;

const TYPES: usize = 14;

/// The buckets of one peer.
#[derive(Default)]
pub struct MessageLimiter {
    packets: Bucket,
    messages: [Bucket; TYPES],
}

/// Returns the rate of a message type at the agreed rekey interval; `None` if only [`PACKET_RATE`] limits
/// it.
fn rate(kind: MessageType, interval: Duration) -> Option<Rate> {
    let millis = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX).max(1);
    // An attempt is repeated each second until it is answered, and takes one `Propose` in an interval.
    let proposals = (2_000 / millis).clamp(1, 20);
    match kind {
        MessageType::Ping | MessageType::Pong | MessageType::Ack => None,
        MessageType::Hello => Some(HELLO_RATE),
        MessageType::Bye => Some(BYE_RATE),
        MessageType::Propose => Some(Rate { a_second: proposals, burst: BURST }),
        // The stock changes with each key that is used or arrives.
        _ => Some(Rate { a_second: proposals * 4, burst: BURST }),
    }
}

impl MessageLimiter {
    /// Whether to process a packet of the control session. A message is counted with its first fragment.
    pub fn admit(&mut self, packet: &[u8], interval: Duration, now: Time) -> bool {
        if !self.packets.take(now, PACKET_RATE) {
            return false;
        }
        // The channel reports a packet that is not a fragment.
        let Ok(fragment) = Fragment::parse(packet) else { return true };
        if fragment.index > 0 {
            return true;
        }
        let bucket = &mut self.messages[usize::from(packet[IPV6_HEADER + 8]) % TYPES];
        rate(fragment.kind, interval).is_none_or(|rate| bucket.take(now, rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::fragment::packets;

    const NOW: Time = Time::from_nanos(1 << 40);
    const MINUTE: Duration = Duration::from_secs(60);

    fn admitted(limiter: &mut MessageLimiter, kind: MessageType, interval: Duration, now: Time) -> usize {
        (0..100u8).filter(|n| limiter.admit(&packets([*n; 8], kind, &[*n; 8])[0], interval, now)).count()
    }

    #[test]
    fn each_type_has_its_own_bucket_and_a_slow_interval_a_slow_rate() {
        let second = Duration::from_secs(1);
        let types =
            [(MessageType::Hello, 16, 4), (MessageType::Propose, 32, 1), (MessageType::StockOffer, 32, 4)];
        for (kind, burst, rate) in types {
            let mut limiter = MessageLimiter::default();
            assert_eq!(admitted(&mut limiter, kind, MINUTE, NOW), burst, "{kind:?}");
            assert_eq!(admitted(&mut limiter, kind, MINUTE, NOW + second), rate, "{kind:?} a second later");
            // The other message types still have their tokens.
            let other = admitted(&mut limiter, MessageType::Confirm, MINUTE, NOW + second);
            assert_eq!(other, 32, "beside {kind:?}");
        }
        let mut limiter = MessageLimiter::default();
        let fast = Duration::from_millis(100);
        assert_eq!(admitted(&mut limiter, MessageType::Propose, fast, NOW), 32);
        assert_eq!(admitted(&mut limiter, MessageType::Propose, fast, NOW + second), 20);
    }

    #[test]
    fn further_fragments_cost_no_message_and_all_packets_together_are_limited() {
        let mut limiter = MessageLimiter::default();
        let pieces = packets([1; 8], MessageType::Propose, &[5; 2500]);
        let first = (0..100).filter(|_| limiter.admit(&pieces[0], MINUTE, NOW)).count();
        assert_eq!(first, 32);
        let rest = (0..1000).filter(|_| limiter.admit(&pieces[1], MINUTE, NOW)).count();
        assert_eq!(rest, 256 - 100);
        let ping = packets([2; 8], MessageType::Ping, &[]).remove(0);
        assert!(!limiter.admit(&ping, MINUTE, NOW));
        let later = NOW + Duration::from_millis(10);
        assert_eq!((0..100).filter(|_| limiter.admit(&ping, MINUTE, later)).count(), 10);
    }
}
