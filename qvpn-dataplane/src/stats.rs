//! Counters of a peer and of an interface. Any thread may read them at any time. Lanes update the counts of
//! passed packets once per batch, so these may be a batch behind.

use std::sync::atomic::{AtomicU64, Ordering};

/// One counter. Access is relaxed: it orders no other memory access.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Returns the current value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, n: u64) {
        if n != 0 {
            self.0.fetch_add(n, Ordering::Relaxed);
        }
    }

    pub(crate) fn raise_to(&self, value: u64) {
        self.0.fetch_max(value, Ordering::Relaxed);
    }
}

/// The counters of one peer, for one lane or for several: lanes that share an `Arc` add to the same
/// counters; a `PeerStats` for each lane keeps the lanes' caches apart. Bytes are those of UDP payloads,
/// empty packets included, as `wg` counts them.
#[derive(Debug, Default)]
pub struct PeerStats {
    /// Packets from the peer.
    pub rx: RxStats,
    /// Packets to the peer.
    pub tx: TxStats,
}

/// Packets received from a peer. It has cache lines of its own, because the two threads of a lane write
/// concurrently.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct RxStats {
    /// Bytes of authenticated datagrams.
    pub bytes: Counter,
    /// Authenticated packets, empty ones included.
    pub packets: Counter,
    /// When the last authenticated packet was received, in nanoseconds of `CLOCK_BOOTTIME`; 0 means never.
    pub last_at: Counter,
    /// Dropped: the key had expired.
    pub expired: Counter,
    /// Dropped: the counter was received before, or is older than the window.
    pub replay: Counter,
    /// Dropped: the tag was wrong.
    pub auth: Counter,
    /// Dropped: the inner source address doesn't belong to the peer, or the content is not an IP packet.
    pub not_allowed_ip: Counter,
}

/// Packets sent to a peer.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct TxStats {
    /// Bytes handed to the kernel.
    pub bytes: Counter,
    /// Packets handed to the kernel, empty ones included.
    pub packets: Counter,
    /// Packets of these that were handed over in batches (UDP GSO).
    pub joined: Counter,
    /// Packets that the kernel refused as a batch and that were then sent one by one.
    pub refused: Counter,
    /// When the last packet was handed to the kernel, in nanoseconds of `CLOCK_BOOTTIME`; 0 means never.
    pub last_at: Counter,
    /// Dropped: there was no sealing key, or no endpoint to send to.
    pub no_epoch: Counter,
    /// Dropped: the sealing key had reached its maximum age or its packet limit.
    pub expired: Counter,
    /// Dropped: the kernel's route leads to the peer, whose allowed IPs don't contain the destination.
    pub not_allowed_ip: Counter,
    /// Dropped: larger than the path MTU; the sender got an ICMP error.
    pub too_big: Counter,
    /// Dropped: the socket's queue stayed full, the kernel refused the datagram, or the lane that sends for
    /// this one had no room.
    pub queue_full: Counter,
}

impl PeerStats {
    /// Returns the name that users see and the count of each drop reason.
    #[must_use]
    pub fn drops(&self) -> [(&'static str, u64); 7] {
        [
            ("no_epoch", self.tx.no_epoch.get()),
            ("expired", self.tx.expired.get() + self.rx.expired.get()),
            ("replay", self.rx.replay.get()),
            ("auth", self.rx.auth.get()),
            ("not_allowed_ip", self.rx.not_allowed_ip.get() + self.tx.not_allowed_ip.get()),
            ("too_big", self.tx.too_big.get()),
            ("queue_full", self.tx.queue_full.get()),
        ]
    }
}

/// Drops that belong to no peer.
#[derive(Debug, Default)]
pub struct InterfaceStats {
    /// From the TUN: no peer's allowed IPs contain the destination, no route leads to a peer, or the limit of
    /// link multicast was exceeded.
    pub no_peer: Counter,
    /// Received: not a message, not one for this lane, or marked as congested although the inner packet does
    /// not support ECN (RFC 6040). From the TUN: not an IP packet.
    pub malformed: Counter,
    /// Data packets whose receiver index belongs to no key.
    pub unknown_index: Counter,
    /// Handshake messages without a valid cookie while there were too many.
    pub cookie: Counter,
    /// The bounded queue to the control task was full, unknown sources exceeded their share of it, or the
    /// TUN refused the packet.
    pub queue_full: Counter,
}

impl InterfaceStats {
    /// Returns the name that users see and the count of each drop reason.
    #[must_use]
    pub fn drops(&self) -> [(&'static str, u64); 5] {
        [
            ("no_peer", self.no_peer.get()),
            ("malformed", self.malformed.get()),
            ("unknown_index", self.unknown_index.get()),
            ("cookie", self.cookie.get()),
            ("queue_full", self.queue_full.get()),
        ]
    }
}
