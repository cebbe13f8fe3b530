//! Commands to a lane's threads. Each kind of thread has its own command type, so it cannot get a command
//! that it does not apply.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use qvpn_types::{LocalEpoch, PeerNumber, Time};

use super::routing::Routing;
use crate::key::{OpeningKey, SealingKey};
use crate::stats::PeerStats;
use crate::wake::Waker;

/// A command to a sending thread. The methods of [`Lanes`](crate::Lanes) document each one.
pub(super) enum SendCommand {
    AddPeer {
        peer: PeerNumber,
        endpoint: Option<SocketAddr>,
        keepalive: Option<Duration>,
        stats: Arc<PeerStats>,
    },
    RemovePeer {
        peer: PeerNumber,
    },
    SetRouting(Routing),
    SetMtu(u16),
    SetPeerMtu {
        peer: PeerNumber,
        mtu: u16,
    },
    SetEndpoint {
        peer: PeerNumber,
        endpoint: SocketAddr,
    },
    SetKeepalive {
        peer: PeerNumber,
        keepalive: Option<Duration>,
    },
    Install {
        key: SealingKey,
        announce: bool,
    },
    SetReroute {
        peer: PeerNumber,
        via: Option<u8>,
    },
    SendEmpty {
        peer: PeerNumber,
    },
    StopSealing {
        peer: PeerNumber,
    },
    Shutdown,
}

/// A command to a receiving thread.
pub(super) enum ReceiveCommand {
    AddPeer { peer: PeerNumber, endpoint: Option<SocketAddr>, stats: Arc<PeerStats> },
    RemovePeer { peer: PeerNumber },
    SetRouting(Routing),
    SetEndpoint { peer: PeerNumber, endpoint: SocketAddr },
    Install(OpeningKey),
    Close { index: u32 },
    CloseOlder { peer: PeerNumber, epoch: LocalEpoch, at: Time },
    Shutdown,
}

/// The sending side of a thread's command queue.
pub(super) struct Mailbox<C> {
    sender: Sender<C>,
    waker: Waker,
}

/// The receiving side of a [`Mailbox`].
pub(super) struct Inbox<C> {
    receiver: Receiver<C>,
    waker: Waker,
}

/// Makes the mailbox of one thread.
pub(super) fn mailbox<C>() -> std::io::Result<(Mailbox<C>, Inbox<C>)> {
    let (sender, receiver) = channel();
    let waker = Waker::new()?;
    Ok((Mailbox { sender, waker: waker.clone() }, Inbox { receiver, waker }))
}

impl<C> Mailbox<C> {
    pub(super) fn put(&self, command: C) {
        // A thread that has ended has erased its keys, so the command can be dropped.
        if self.sender.send(command).is_ok() {
            self.waker.wake();
        }
    }

    /// Returns a waker for the thread that has the inbox.
    pub(super) fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

impl<C> Clone for Mailbox<C> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), waker: self.waker.clone() }
    }
}

impl<C> Inbox<C> {
    pub(super) fn take(&self) -> Option<C> {
        self.receiver.try_recv().ok()
    }

    /// Makes the thread's next poll return at once.
    pub(super) fn wake_again(&self) {
        self.waker.wake();
    }

    /// Clears all wake-ups so far.
    pub(super) fn clear_wake(&self) {
        self.waker.clear();
    }
}

impl<C> AsFd for Inbox<C> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.waker.as_fd()
    }
}
