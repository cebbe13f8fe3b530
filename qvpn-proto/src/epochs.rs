//! The epochs of one peer as its lanes hold them: the one that seals, those that still open, and their
//! numbers.

use std::collections::BTreeMap;
use std::time::Duration;

use qvpn_secret::Secret;
use qvpn_types::{LocalEpoch, MAX_PACKETS, Time};

use crate::config::PeerConfig;
use crate::epoch::{ActiveEpoch, Indices, KeysWithoutQkd, drain};
use crate::notice::{FailureReason, PeerEvent};
use crate::orders::LaneOrder;
use crate::outbox::Outbox;
use crate::wire::LaneSet;

pub struct Epochs {
    pub active: Option<ActiveEpoch>,
    pub indices: Indices,
    /// Whether an epoch was in force since the start.
    pub had_epoch: bool,
    /// When an epoch with a QKD key last came into force, or the time of the start before the first one.
    pub last_qkd: Option<Time>,
    pub started: Time,
    /// Whether neither side restarted since the last epoch.
    pub no_restart_since_epoch: bool,
    pub rekeys: u64,
    pub failures: BTreeMap<FailureReason, u64>,
    /// The newest epoch that has keys.
    newest: LocalEpoch,
    /// Opening keys that a stricter policy ends, unlike those of other epochs.
    without_qkd: KeysWithoutQkd,
}

impl Epochs {
    pub fn new(config: &PeerConfig, instance: &[u8; 16], now: Time) -> Self {
        Self {
            active: None,
            indices: Indices::new(config.number, u16::from_be_bytes([instance[0], instance[1]])),
            had_epoch: false,
            last_qkd: None,
            started: now,
            no_restart_since_epoch: false,
            rekeys: 0,
            failures: BTreeMap::new(),
            newest: LocalEpoch::default(),
            without_qkd: KeysWithoutQkd::default(),
        }
    }

    /// Returns the number of a new epoch in the lanes.
    pub fn next_local(&mut self) -> LocalEpoch {
        self.newest = self.newest.next();
        self.newest
    }

    /// Returns the epoch that seals at `now`.
    pub fn sealing(&self, now: Time) -> Option<&ActiveEpoch> {
        self.active.as_ref().filter(|epoch| epoch.sealing_ends > now)
    }

    /// Returns the time since a QKD key last went into an epoch.
    pub fn without_qkd_for(&self, now: Time) -> Duration {
        now.since(self.last_qkd.unwrap_or(self.started))
    }

    /// Orders the lanes to install an epoch's opening keys. Returns the set of these lanes.
    pub fn open(
        &mut self,
        epoch: &ActiveEpoch,
        (indices, keys): (&[u32], Vec<Secret<32>>),
        expires_at: Time,
        config: &PeerConfig,
        now: Time,
        out: &mut Outbox,
    ) -> LaneSet {
        if !epoch.sources.qkd {
            self.without_qkd.add(epoch.local_epoch, indices.to_vec(), expires_at, now);
        }
        let (local_epoch, suite) = (epoch.local_epoch, config.suite);
        let mut lanes = LaneSet::default();
        for ((lane, index), key) in (0u8..).zip(indices.iter().copied()).zip(keys) {
            lanes.add(lane);
            out.order(lane, LaneOrder::InstallOpening { local_epoch, index, suite, key, expires_at });
        }
        lanes
    }

    /// Brings an epoch into force: orders the lanes to install its sealing keys.
    pub fn activate(
        &mut self,
        epoch: ActiveEpoch,
        sealing: Vec<(u32, Secret<32>)>,
        took: Duration,
        config: &PeerConfig,
        out: &mut Outbox,
    ) {
        for (lane, (receiver_index, key)) in (0u8..).zip(sealing) {
            let order = LaneOrder::InstallSealing {
                local_epoch: epoch.local_epoch,
                receiver_index,
                suite: config.suite,
                key,
                expires_at: epoch.sealing_ends,
                packets: MAX_PACKETS,
            };
            out.order(lane, order);
        }
        self.rekeys += 1;
        if epoch.sources.qkd {
            self.last_qkd = Some(epoch.since);
        }
        self.no_restart_since_epoch = true;
        out.emit(PeerEvent::EpochActive {
            epoch: epoch.epoch,
            sources: epoch.sources,
            qkd_key_id: epoch.qkd_key_id.clone().filter(|_| epoch.sources.qkd),
            took,
        });
        self.had_epoch = true;
        self.active = Some(epoch);
    }

    /// Lets epochs before this one only open from now on, until they are drained.
    pub fn drain_older(
        &mut self,
        local_epoch: LocalEpoch,
        interval: Duration,
        lanes: u8,
        now: Time,
        out: &mut Outbox,
    ) {
        let at = now + drain(interval);
        self.without_qkd.close_older(local_epoch, at);
        out.order_each(lanes, || LaneOrder::CloseOlder { local_epoch, at });
    }

    pub fn stop_sealing(&mut self, lanes: u8, out: &mut Outbox) {
        out.order_each(lanes, || LaneOrder::StopSealing);
        self.active = None;
    }

    /// Ends the epoch of a lane that ended its key early, by the packet limit. The epoch ends in all lanes:
    /// if some went on, part of the flows would be lost while the peer is neither up nor blocked. Returns
    /// whether it was the active epoch.
    pub fn end_early(&mut self, epoch: LocalEpoch, lanes: u8, now: Time, out: &mut Outbox) -> bool {
        let ends_early = |active: &&mut ActiveEpoch| active.local_epoch == epoch && active.sealing_ends > now;
        let Some(active) = self.active.as_mut().filter(ends_early) else { return false };
        active.sealing_ends = now;
        out.order_each(lanes, || LaneOrder::StopSealing);
        true
    }

    /// Erases all opening keys of epochs without QKD.
    pub fn close_without_qkd(&mut self, out: &mut Outbox) {
        for indices in self.without_qkd.take() {
            close(indices, out);
        }
    }

    /// Counts and reports a failed attempt.
    pub fn failed(&mut self, reason: FailureReason, detail: String, out: &mut Outbox) {
        *self.failures.entry(reason).or_default() += 1;
        out.emit(PeerEvent::EpochFailed { reason, detail });
    }
}

/// Erases an epoch's opening keys.
pub fn close(indices: Vec<u32>, out: &mut Outbox) {
    for (lane, index) in (0u8..).zip(indices) {
        out.order(lane, LaneOrder::Close { index });
    }
}
