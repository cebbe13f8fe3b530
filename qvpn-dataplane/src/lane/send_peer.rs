//! The state that a sending thread keeps for a peer.

use std::sync::Arc;
use std::time::Duration;

use qvpn_types::{LocalEpoch, Time};

use crate::key::SealingKey;
use crate::session::SealingSession;
use crate::stats::PeerStats;
use crate::udp::Endpoint;

pub(super) struct SendPeer {
    pub(super) endpoint: Option<Endpoint>,
    pub(super) keepalive: Option<Duration>,
    pub(super) last_sent: Time,
    pub(super) stats: Arc<PeerStats>,
    pub(super) session: Option<SealingSession>,
    pub(super) highest_epoch: Option<LocalEpoch>,
    /// Whether the key reached one of its limits. Drops are then counted as `expired`, not as `no_epoch`.
    pub(super) ended: bool,
    /// Until then, datagrams are sent one by one.
    pub(super) no_gso_until: Time,
    /// The lane that sends this peer's packets instead of this one.
    pub(super) reroute: Option<u8>,
    /// The limit of padding, if it is less than the device's MTU.
    pub(super) mtu: usize,
}

impl SendPeer {
    pub(super) fn new(
        endpoint: Option<Endpoint>,
        keepalive: Option<Duration>,
        stats: Arc<PeerStats>,
        now: Time,
    ) -> Self {
        Self {
            endpoint,
            keepalive: nonzero(keepalive),
            last_sent: now,
            stats,
            session: None,
            highest_epoch: None,
            ended: false,
            no_gso_until: Time::default(),
            reroute: None,
            mtu: usize::MAX,
        }
    }

    /// Installs a key and returns whether it is in force. An earlier or repeated epoch is refused, because a
    /// nonce must not repeat.
    pub(super) fn install(&mut self, key: &SealingKey, now: Time) -> bool {
        let later = self.highest_epoch.is_none_or(|highest| key.epoch > highest);
        if !later || key.expires_at <= now || key.receiver_index >> 31 == 0 {
            return false;
        }
        self.highest_epoch = Some(key.epoch);
        self.session = SealingSession::new(key);
        self.ended = false;
        self.session.is_some()
    }

    /// Erases the key if it has expired, and returns its epoch.
    pub(super) fn expire(&mut self, now: Time) -> Option<LocalEpoch> {
        let session = self.session.take_if(|session| session.expires_at <= now)?;
        self.ended = true;
        Some(session.epoch)
    }

    /// Returns when the key expires or the next keepalive is due, and whether one is due now.
    pub(super) fn deadline(&self, now: Time) -> (Option<Time>, bool) {
        let Some(session) = &self.session else { return (None, false) };
        let Some(every) = self.keepalive else { return (Some(session.expires_at), false) };
        let due = self.last_sent + every;
        let next = if due <= now { now + every } else { due };
        (Some(session.expires_at.min(next)), due <= now)
    }

    /// Whether packets to it can be sent.
    pub(super) fn is_live(&self) -> bool {
        self.session.is_some() && self.endpoint.is_some()
    }
}

pub(super) fn count_sent(stats: &PeerStats, packets: usize, bytes: usize, now: Time) {
    let count = u64::try_from(packets).unwrap_or(0);
    stats.tx.packets.add(count);
    stats.tx.joined.add(if packets > 1 { count } else { 0 });
    stats.tx.bytes.add(u64::try_from(bytes).unwrap_or(0));
    stats.tx.last_at.raise_to(now.as_nanos());
}

/// Treats a keepalive of zero as none.
pub(super) fn nonzero(span: Option<Duration>) -> Option<Duration> {
    span.filter(|s| !s.is_zero())
}
