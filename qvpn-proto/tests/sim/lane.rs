//! A lane as in the data path, without threads and sockets: its real sealing and opening sessions, and its
//! rules for which keys it accepts and where it sends.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use qvpn_dataplane::session::{HEADER, OpenError, OpeningSession, SealError, SealingSession, TAG};
use qvpn_dataplane::{OpeningKey, SealingKey};
use qvpn_secret::Secret;
use qvpn_types::{LocalEpoch, PeerNumber, Suite, Time};

/// The bytes of a key, by which the model identifies it.
pub type Key = [u8; 32];

pub struct Sealing {
    session: SealingSession,
    pub key: Key,
}

struct Opening {
    session: OpeningSession,
    key: Key,
}

#[derive(Default)]
pub struct Lane {
    pub sealing: Option<Sealing>,
    opening: BTreeMap<u32, Opening>,
    pub highest_sealing: Option<LocalEpoch>,
    highest_opening: Option<LocalEpoch>,
    newest_heard: Option<LocalEpoch>,
    pub endpoint: Option<SocketAddr>,
    pub keepalive: Option<Duration>,
    /// The lane that carries its flows.
    pub via: Option<u8>,
    pub sent_at: Time,
    pub received_at: Time,
}

/// The result of a packet that opened.
pub struct Opened {
    pub key: Key,
    pub counter: u64,
    pub text: Vec<u8>,
    pub local_epoch: LocalEpoch,
    /// Whether it is the first in its epoch.
    pub first: bool,
    /// Whether the lane sends to its source from now on.
    pub roamed: bool,
}

const PEER: PeerNumber = PeerNumber(1);

impl Lane {
    pub fn install_opening(
        &mut self,
        (local_epoch, index): (LocalEpoch, u32),
        suite: Suite,
        key: Secret<32>,
        expires_at: Time,
        now: Time,
    ) -> bool {
        let later = self.highest_opening.is_none_or(|highest| local_epoch > highest);
        let free = !self.opening.contains_key(&index);
        if !later || !free || expires_at <= now || index >> 31 == 0 {
            return false;
        }
        self.highest_opening = Some(local_epoch);
        let bytes = *key.expose();
        let key = OpeningKey { peer: PEER, epoch: local_epoch, index, suite, key, expires_at };
        self.opening.insert(index, Opening { session: OpeningSession::new(&key).unwrap(), key: bytes });
        true
    }

    pub fn install_sealing(
        &mut self,
        (local_epoch, receiver_index): (LocalEpoch, u32),
        suite: Suite,
        key: Secret<32>,
        (expires_at, packets): (Time, u64),
        now: Time,
    ) -> bool {
        let later = self.highest_sealing.is_none_or(|highest| local_epoch > highest);
        if !later || expires_at <= now || receiver_index >> 31 == 0 {
            return false;
        }
        self.highest_sealing = Some(local_epoch);
        let bytes = *key.expose();
        let key =
            SealingKey { peer: PEER, epoch: local_epoch, receiver_index, suite, key, expires_at, packets };
        self.sealing = Some(Sealing { session: SealingSession::new(&key).unwrap(), key: bytes });
        true
    }

    pub fn close_older(&mut self, local_epoch: LocalEpoch, at: Time, now: Time) {
        for opening in self.opening.values_mut().filter(|o| o.session.epoch < local_epoch) {
            opening.session.expires_at = opening.session.expires_at.min(at);
        }
        self.opening.retain(|_, o| o.session.expires_at > now);
    }

    pub fn close(&mut self, index: u32) {
        self.opening.remove(&index);
    }

    /// Erases the sealing key if it reached its maximum age, and returns its epoch.
    pub fn end_due(&mut self, now: Time) -> Option<LocalEpoch> {
        self.opening.retain(|_, o| o.session.expires_at > now);
        let ended = self.sealing.as_ref().filter(|s| s.session.expires_at <= now)?;
        let local_epoch = ended.session.epoch;
        self.sealing = None;
        Some(local_epoch)
    }

    pub fn seals(&self, now: Time) -> bool {
        self.sealing.as_ref().is_some_and(|s| s.session.expires_at > now)
    }

    /// Whether there is an opening key of an epoch in which the lane does not seal yet.
    pub fn waits(&self) -> bool {
        self.highest_opening > self.highest_sealing
    }

    /// Seals a packet. At the packet limit, returns the epoch that ended.
    pub fn seal(&mut self, text: &[u8], now: Time) -> Result<(Key, Vec<u8>), Option<LocalEpoch>> {
        let Some(sealing) = &mut self.sealing else { return Err(None) };
        let mut buffer = vec![0; HEADER + text.len() + TAG];
        buffer[HEADER..HEADER + text.len()].copy_from_slice(text);
        match sealing.session.seal(&mut buffer, text.len(), text.len(), now) {
            Ok(len) => {
                buffer.truncate(len);
                Ok((sealing.key, buffer))
            }
            Err(SealError::Expired) => Err(None),
            Err(SealError::PacketLimit) => {
                let local_epoch = sealing.session.epoch;
                self.sealing = None;
                Err(Some(local_epoch))
            }
        }
    }

    pub fn has(&self, index: u32) -> bool {
        self.opening.contains_key(&index)
    }

    pub fn open(&mut self, datagram: &[u8], from: SocketAddr, now: Time) -> Result<Opened, OpenError> {
        let index = u32::from_le_bytes(datagram[4..8].try_into().unwrap());
        let Some(opening) = self.opening.get_mut(&index) else { return Err(OpenError::Auth) };
        let mut buffer = datagram.to_vec();
        let (text, highest) = opening.session.open(&mut buffer, now)?;
        let local_epoch = opening.session.epoch;
        let first = std::mem::replace(&mut opening.session.fresh, false);
        self.newest_heard = self.newest_heard.max(Some(local_epoch));
        let newest = highest && self.newest_heard == Some(local_epoch);
        let roamed = newest && self.endpoint != Some(from);
        if roamed {
            self.endpoint = Some(from);
        }
        let counter = u64::from_le_bytes(datagram[8..16].try_into().unwrap());
        Ok(Opened { key: opening.key, counter, text: text.to_vec(), local_epoch, first, roamed })
    }
}
