//! Counters of a peer and of an interface. Lanes add to them once a batch, and anyone may read them at any time; a
//! value may be a batch behind.

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter on its own; relaxed, since nothing is ordered by it.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// The value now.
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

/// What a peer's packets did, in one lane or in several: lanes that share an `Arc` add to the same counters, while one
/// each keeps the lanes' caches apart. Bytes are those of UDP payloads, empty packets included, as `wg` counts them.
#[derive(Debug, Default)]
pub struct PeerStats {
    /// Of the receiving side.
    pub rx: RxStats,
    /// Of the sending side.
    pub tx: TxStats,
}

/// What came from a peer. A cache line of its own: the two threads of a lane write side by side.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct RxStats {
    /// Bytes of authenticated datagrams.
    pub bytes: Counter,
    /// Authenticated packets, empty ones included.
    pub packets: Counter,
    /// When the last authenticated packet came, in nanoseconds of `CLOCK_BOOTTIME`; 0 is never.
    pub last_at: Counter,
    /// Dropped: the key had ended.
    pub expired: Counter,
    /// Dropped: the counter was seen before, or is older than the window.
    pub replay: Counter,
    /// Dropped: the tag was wrong.
    pub auth: Counter,
    /// Dropped: the inner source isn't the peer's, or isn't IP at all.
    pub not_allowed_ip: Counter,
}

/// What went to a peer.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct TxStats {
    /// Bytes handed to the kernel.
    pub bytes: Counter,
    /// Packets handed to the kernel, empty ones included.
    pub packets: Counter,
    /// Of those packets, the ones that went several in one piece (UDP GSO).
    pub joined: Counter,
    /// Packets that the kernel refused in one piece, and that went one by one then.
    pub refused: Counter,
    /// When the last packet was handed to the kernel, in nanoseconds of `CLOCK_BOOTTIME`; 0 is never.
    pub last_at: Counter,
    /// Dropped: there was no key to seal with, or no endpoint to send to.
    pub no_epoch: Counter,
    /// Dropped: the key to seal with had ended by age or by its number of packets.
    pub expired: Counter,
    /// Dropped: the socket's queue stayed full, or the kernel refused the datagram.
    pub queue_full: Counter,
}

impl PeerStats {
    /// Every reason to drop, by the name that users see, with its count.
    #[must_use]
    pub fn drops(&self) -> [(&'static str, u64); 6] {
        [
            ("no_epoch", self.tx.no_epoch.get()),
            ("expired", self.tx.expired.get() + self.rx.expired.get()),
            ("replay", self.rx.replay.get()),
            ("auth", self.rx.auth.get()),
            ("not_allowed_ip", self.rx.not_allowed_ip.get()),
            ("queue_full", self.tx.queue_full.get()),
        ]
    }
}

/// Drops that belong to no peer.
#[derive(Debug, Default)]
pub struct InterfaceStats {
    /// From the TUN: no peer's allowed IPs hold the destination.
    pub no_peer: Counter,
    /// Not a message, or not one for this lane; marked as congested although the inner packet knows no ECN (RFC 6040);
    /// from the TUN: not an IP packet.
    pub malformed: Counter,
    /// A data packet whose index belongs to no key.
    pub unknown_index: Counter,
    /// A handshake message that proved no address while there were too many.
    pub cookie: Counter,
    /// The bounded queue to the control task, or the TUN's, was full, or unknown sources exceeded their share of it.
    pub queue_full: Counter,
}

impl InterfaceStats {
    /// Every reason to drop, by the name that users see, with its count.
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
