//! What a lane is told and what it tells: the whole interface between the control task and the threads that move
//! packets. Commands are obeyed in the order in which they were sent to a lane; those for keys are acknowledged.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::allowed_ips::AllowedIps;
use crate::clock::BootNanos;
use crate::key::{OpeningKey, PeerId, SealingKey};
use crate::lane::LaneError;
use crate::stats::PeerStats;

/// An order to one lane.
#[derive(Debug)]
pub enum LaneCommand {
    /// Makes a peer known; one that is known already is removed first, with its keys.
    AddPeer {
        /// The peer.
        peer: PeerId,
        /// Where this lane's packets to it go until something authenticated comes from elsewhere.
        endpoint: Option<SocketAddr>,
        /// Send an empty packet whenever nothing was sent for so long.
        keepalive: Option<Duration>,
        /// Where its packets are counted.
        stats: Arc<PeerStats>,
    },
    /// Forgets a peer and erases its keys. The highest epoch that it had is forgotten as well.
    RemovePeer {
        /// The peer.
        peer: PeerId,
    },
    /// Swaps the whole table of allowed IPs at once.
    SetAllowedIps(Arc<AllowedIps>),
    /// The largest inner packet, in bytes: padding never goes beyond it.
    SetMtu(u16),
    /// The largest inner packet that the path to one peer takes, in bytes: padding of its packets never goes beyond it.
    SetPeerMtu {
        /// The peer.
        peer: PeerId,
        /// As measured.
        mtu: u16,
    },
    /// Sends this lane's packets to `addr` from now on, until the peer roams.
    SetEndpoint {
        /// The peer.
        peer: PeerId,
        /// Its address and UDP port for this lane.
        addr: SocketAddr,
    },
    /// Changes the persistent keepalive, or ends it.
    SetKeepalive {
        /// The peer.
        peer: PeerId,
        /// As in [`AddPeer`](Self::AddPeer).
        keepalive: Option<Duration>,
    },
    /// Opens packets with this key as well. Answered by [`LaneEvent::Installed`].
    InstallOpening {
        /// Comes back in the answer.
        token: u64,
        /// The key, moved.
        key: OpeningKey,
    },
    /// Seals with this key instead of the one before, which is erased. Answered by [`LaneEvent::Installed`].
    InstallSealing {
        /// Comes back in the answer.
        token: u64,
        /// The key, moved.
        key: SealingKey,
        /// Send one empty packet in this epoch at once.
        announce: bool,
    },
    /// Sends what the kernel gives this lane for the peer by another lane instead, or by this one again. Empty packets go by
    /// this lane all the same.
    SetDetour {
        /// The peer.
        peer: PeerId,
        /// The lane that sends it.
        via: Option<u8>,
    },
    /// Sends one empty packet now, if there is a key and an endpoint.
    SendEmpty {
        /// The peer.
        peer: PeerId,
    },
    /// Erases the sealing key: packets to the peer are dropped from now on. The epochs seen so far stay refused.
    StopSealing {
        /// The peer.
        peer: PeerId,
    },
    /// Erases the opening key of this index.
    CloseOpening {
        /// The receiver index that we gave the peer.
        index: u32,
    },
    /// Opening keys of older epochs end no later than `at`; an `at` in the past erases them at once.
    CloseOlder {
        /// The peer.
        peer: PeerId,
        /// Epochs below this one are meant.
        than_epoch: u64,
        /// The instant of their end.
        at: BootNanos,
    },
    /// Ends the lane's threads and erases its keys.
    Shutdown,
}

/// Why a lane stopped sealing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SealingEnd {
    /// The key reached its age.
    Expired,
    /// The key sealed as many packets as it may.
    PacketLimit,
}

/// News from one lane.
#[derive(Debug)]
pub enum LaneEvent {
    /// The answer to [`LaneCommand::InstallOpening`] or [`LaneCommand::InstallSealing`], from the thread that owns the key.
    Installed {
        /// The lane.
        lane: u8,
        /// The command's token.
        token: u64,
        /// Whether the key is in force. A key is refused, and erased, when the peer is unknown, its epoch isn't higher
        /// than every one before of the same kind (never back, never a nonce twice), its index is in use or has no top
        /// bit, or it has ended already.
        in_force: bool,
    },
    /// The first packet that opened in an epoch, for each lane and epoch.
    FirstOpened {
        /// The lane.
        lane: u8,
        /// The peer.
        peer: PeerId,
        /// The epoch.
        epoch: u64,
    },
    /// A datagram for the control task: types 1 to 3 (lane 0 only) or type 4 with the top bit of its index clear, that
    /// passed the filter.
    Control {
        /// The lane.
        lane: u8,
        /// Where it came from; IPv4 is never in mapped form.
        from: SocketAddr,
        /// The whole UDP payload.
        datagram: Vec<u8>,
    },
    /// The peer's newest authenticated packet came from a new address, to which this lane sends from now on.
    Roamed {
        /// The lane.
        lane: u8,
        /// The peer.
        peer: PeerId,
        /// The new address; IPv4 is never in mapped form.
        endpoint: SocketAddr,
    },
    /// The sealing key ended by its own limits and is erased; nothing is sent until the next one.
    SealingEnded {
        /// The lane.
        lane: u8,
        /// The peer.
        peer: PeerId,
        /// The epoch that ended.
        epoch: u64,
        /// Why.
        why: SealingEnd,
    },
    /// One of the lane's two threads stopped for good and its keys are erased: nothing more passes that way.
    Failed {
        /// The lane.
        lane: u8,
        /// What happened and what to do.
        error: LaneError,
    },
}

/// Where lanes put their events. It is called on the way of a packet, so it must return at once.
pub trait LaneSink: Send + Sync + 'static {
    /// Takes an event. `false` says that the bounded queue was full: a [`Control`](LaneEvent::Control) datagram is then
    /// dropped and counted as `queue_full`; any other event is offered again a little later.
    fn event(&self, event: LaneEvent) -> bool;
}
