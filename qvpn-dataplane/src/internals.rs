//! Parts of the data path for benchmarks (feature `internals`). This interface is not stable.

use std::io::IoSlice;
use std::ops::Range;

use qvpn_secret::Secret;
use qvpn_types::{LocalEpoch, MAX_PACKETS, PeerNumber, Suite, Time};

use crate::key::{OpeningKey, SealingKey};
use crate::session::{HEADER, OpeningSession, ReplayWindow, SealingSession, TAG};
use crate::tun::coalesce::Coalescer;
use crate::tun::split;
use crate::tun::vnet::{GSO_TCPV4, NEEDS_CSUM, Vnet};

/// Length of the IPv4 and TCP headers of [`SuperPacket`], in bytes.
const HEADERS: usize = 40;

/// The result of one read of the TUN device for a busy TCP flow over IPv4.
pub struct SuperPacket {
    header: Vnet,
    bytes: Vec<u8>,
    out: Vec<u8>,
}

impl SuperPacket {
    /// Makes a packet of `count` segments with `mss` bytes of payload each. Together they must fit an IPv4
    /// packet.
    #[must_use]
    pub fn new(count: u16, mss: u16) -> Self {
        let payload = usize::from(count) * usize::from(mss);
        let mut bytes: Vec<u8> = (0u8..=250).cycle().take(HEADERS + payload).collect();
        bytes[..HEADERS].fill(0);
        bytes[0] = 0x45;
        let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        bytes[2..4].copy_from_slice(&length.to_be_bytes());
        bytes[8..10].copy_from_slice(&[64, 6]);
        bytes[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        // A header of five words, with ACK set.
        bytes[32..34].copy_from_slice(&[0x50, 0x10]);
        let header = Vnet {
            flags: NEEDS_CSUM,
            gso_type: GSO_TCPV4,
            hdr_len: 40,
            gso_size: mss,
            csum_start: 20,
            csum_offset: 16,
        };
        Self { header, bytes, out: vec![0; HEADERS + usize::from(mss)] }
    }

    /// Returns the number of payload bytes.
    #[must_use]
    pub fn payload(&self) -> usize {
        self.bytes.len() - HEADERS
    }

    /// Splits the packet, each segment into the same buffer. Returns the number of segments.
    pub fn split(&mut self) -> usize {
        self.each(|_| {})
    }

    fn each(&mut self, mut each: impl FnMut(&[u8])) -> usize {
        let Ok(Some(split)) = split::plan(self.header, &mut self.bytes) else { return 0 };
        for segment in 0..split.count() {
            let out = &mut self.out[..split.len(segment)];
            split.write(&self.bytes, segment, out);
            each(out);
        }
        split.count()
    }
}

/// Opened packets of one flow, adjacent in a buffer with room for the sealed form around each.
pub struct ReceivedFlow {
    buffer: Vec<u8>,
    packets: Vec<Range<usize>>,
    /// A copy of the first packet, since joining changes it.
    first: Vec<u8>,
    coalescer: Coalescer,
}

impl ReceivedFlow {
    /// Makes them from the segments of a super-packet.
    #[must_use]
    pub fn of(packet: &mut SuperPacket) -> Self {
        let (mut buffer, mut packets, mut first) = (Vec::new(), Vec::new(), Vec::new());
        packet.each(|segment| {
            let start = buffer.len() + HEADER;
            buffer.resize(start, 0);
            buffer.extend_from_slice(segment);
            packets.push(start..buffer.len());
            buffer.resize(buffer.len() + TAG, 0);
            if first.is_empty() {
                first = segment.to_vec();
            }
        });
        Self { buffer, packets, first, coalescer: Coalescer::new(true) }
    }

    /// Joins them; returns the number of writes.
    pub fn join(&mut self) -> usize {
        if let Some(first) = self.packets.first() {
            self.buffer[first.clone()].copy_from_slice(&self.first);
        }
        let mut writes = 0;
        let mut write = |_: &[IoSlice<'_>], _| writes += 1;
        for at in &self.packets {
            self.coalescer.push(&mut self.buffer, at.clone(), &mut write);
        }
        self.coalescer.flush(&mut self.buffer, &mut write);
        writes
    }
}

/// The sealing and the opening session of one key.
pub struct Session {
    seal: SealingSession,
    open: OpeningSession,
}

/// An instant before the key expires.
const NOW: Time = Time::from_nanos(1);

impl Session {
    /// Returns `None` if the cipher refuses the key, which never happens.
    #[must_use]
    pub fn new(suite: Suite) -> Option<Self> {
        let key = || Secret::filled(|bytes| bytes.fill(7));
        let (peer, epoch, index, expires_at) =
            (PeerNumber(1), LocalEpoch(1), 1 << 31, Time::from_nanos(u64::MAX));
        let seal = SealingKey {
            peer,
            epoch,
            receiver_index: index,
            suite,
            key: key(),
            expires_at,
            packets: MAX_PACKETS,
        };
        let open = OpeningKey { peer, epoch, index, suite, key: key(), expires_at };
        Some(Self { seal: SealingSession::new(&seal)?, open: OpeningSession::new(&open)? })
    }

    /// Returns the length of the datagram for an inner packet of `inner` bytes.
    #[must_use]
    pub fn sealed(inner: usize) -> usize {
        HEADER + inner + TAG
    }

    /// Seals the packet in a buffer of [`sealed`](Self::sealed) bytes. Returns whether the key's limits
    /// allowed it.
    pub fn seal(&mut self, buffer: &mut [u8]) -> bool {
        let inner = buffer.len() - HEADER - TAG;
        self.seal.seal(buffer, inner, inner, NOW).is_ok()
    }

    /// Opens a datagram in place. Returns whether it was new and authentic.
    pub fn open(&mut self, datagram: &mut [u8]) -> bool {
        self.open.open(datagram, NOW).is_ok()
    }
}

/// A replay window.
#[derive(Default)]
pub struct Window(ReplayWindow);

impl Window {
    /// Checks a counter and marks it; returns whether it was new.
    pub fn see(&mut self, counter: u64) -> bool {
        let new = self.0.is_new(counter);
        if new {
            self.0.accept(counter);
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A benchmark of a part that does not do its work would be meaningless.
    #[test]
    fn each_part_of_the_link_works_alone() {
        let mut packet = SuperPacket::new(47, 1380);
        assert_eq!((packet.payload(), packet.split()), (47 * 1380, 47));
        let mut arrived = ReceivedFlow::of(&mut packet);
        assert_eq!((arrived.packets.len(), arrived.join(), arrived.join()), (47, 1, 1));
        let mut session = Session::new(Suite::Aes256Gcm).unwrap();
        let mut datagram = vec![1; Session::sealed(64)];
        assert!(session.seal(&mut datagram));
        let mut again = datagram.clone();
        assert!(session.open(&mut datagram) && !session.open(&mut again));
        let mut window = Window::default();
        assert!(window.see(5) && window.see(4) && !window.see(5));
    }
}
