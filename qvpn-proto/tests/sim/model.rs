//! The reference model: a few tables that say what must be true of keys, epochs and packets. It is compared
//! with each step of the simulation, and does not depend on how the peers decide.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use qvpn_proto::KeySources;
use qvpn_proto::QkdPolicy;
use qvpn_proto::epoch::{drain, max_age};
use qvpn_types::{KeyId, LocalEpoch, MAX_PACKETS, Time};

use crate::kms::Delivered;
use crate::lane::{Key, Opened};

/// An error describes what is wrong.
pub type Verdict = Result<(), String>;

/// The maximum difference of two clocks during the lifetime of a key.
const CLOCK_SLACK: Duration = Duration::from_secs(1);

/// A key with which a side can open packets.
struct Openable {
    side: usize,
    instance: u32,
    lane: u8,
    index: u32,
    expires: Time,
}

/// A key with which a side seals packets.
struct Sealed {
    side: usize,
    instance: u32,
    /// The expiry by the side's own clock.
    limit: Time,
    packets: u64,
    counter: u64,
    without_qkd: bool,
}

/// The state of a side.
struct Side {
    instance: u32,
    started: Time,
    policy: QkdPolicy,
    interval: Duration,
    last_qkd: Option<Time>,
    highest: u64,
    /// When each epoch's keys were made, by local epoch.
    derived: BTreeMap<LocalEpoch, Time>,
    /// Keys ordered since the last epoch came into force, and their epoch.
    fresh: Vec<Key>,
    /// Whether the policy became stricter, at this side or at the peer.
    tightened: bool,
}

/// An epoch that at least one side brought into force.
struct Made {
    sources: KeySources,
    qkd_key_id: Option<KeyId>,
    by: [bool; 2],
}

/// A packet under way.
#[derive(Clone)]
pub struct Packet {
    pub from: usize,
    pub from_instance: u32,
    pub key: Key,
    pub counter: u64,
    pub text: Vec<u8>,
    pub sealed: Time,
    pub intact: bool,
}

#[derive(Default)]
pub struct Model {
    sides: Vec<Side>,
    openable: BTreeMap<Key, Openable>,
    sealed: BTreeMap<Key, Sealed>,
    /// Keyed by tunnel, the initiator's instance, and number.
    epochs: BTreeMap<(usize, u32, u64), Made>,
    proposed: BTreeMap<(usize, u32, u64), Time>,
    qkd_used: BTreeMap<KeyId, (usize, u32, u64)>,
    qkd_delivered: BTreeMap<(usize, u32, KeyId), Vec<u8>>,
    opened: BTreeSet<(Key, u64)>,
    /// The smallest and the largest interval of each tunnel so far.
    intervals: BTreeMap<usize, (Duration, Duration)>,
}

fn check(holds: bool, what: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(what()) }
}

impl Model {
    /// Records that an instance of a side started. The first starts must be reported in the order of the
    /// sides.
    pub fn started(&mut self, side: usize, instance: u32, policy: QkdPolicy, interval: Duration, now: Time) {
        let fresh = Side {
            instance,
            started: now,
            policy,
            interval,
            last_qkd: None,
            highest: 0,
            derived: BTreeMap::new(),
            fresh: Vec::new(),
            tightened: false,
        };
        if side == self.sides.len() {
            self.sides.push(fresh)
        } else {
            self.sides[side] = fresh
        }
        self.note_interval(side);
    }

    /// Records the new config of a side.
    pub fn configured(&mut self, side: usize, policy: QkdPolicy, interval: Duration) {
        if policy > self.sides[side].policy {
            self.sides[side].tightened = true;
            self.sides[side ^ 1].tightened = true;
        }
        (self.sides[side].policy, self.sides[side].interval) = (policy, interval);
        self.note_interval(side);
    }

    fn note_interval(&mut self, side: usize) {
        let own = self.sides[side].interval;
        let agreed = self.sides.get(side ^ 1).map_or(own, |other| other.interval.min(own));
        let known = self.intervals.entry(side / 2).or_insert((agreed, agreed));
        *known = (known.0.min(agreed), known.1.max(agreed));
    }

    /// Records that a side sent the first fragment of a `Propose`.
    pub fn proposed(&mut self, side: usize, epoch: u64, now: Time) {
        self.proposed.entry((side, self.sides[side].instance, epoch)).or_insert(now);
    }

    /// Records a key that a KME delivered. Faulty keys are not checked here but where they are used.
    pub fn delivered_key(&mut self, key: &Delivered) {
        let instance = self.sides[key.side].instance;
        self.qkd_delivered.insert((key.side, instance, key.id.clone()), key.bytes.clone());
    }

    /// Checks an order of a side to install an opening key in a lane.
    pub fn opening(
        &mut self,
        side: usize,
        (lane, local_epoch, index): (u8, LocalEpoch, u32),
        key: Key,
        (local, expires): (Time, Time),
    ) -> Verdict {
        let instance = self.sides[side].instance;
        self.sides[side].derived.entry(local_epoch).or_insert(local);
        let before = self.openable.insert(key, Openable { side, instance, lane, index, expires });
        check(before.is_none(), || {
            format!("no key twice: side {side} was given an opening key a second time")
        })
    }

    /// Checks an order of a side to install a sealing key in a lane. `expires` is by its own clock and in
    /// true time.
    pub fn sealing(
        &mut self,
        side: usize,
        (lane, local_epoch, index): (u8, LocalEpoch, u32),
        key: Key,
        (expires, expires_true): (Time, Time),
        packets: u64,
    ) -> Verdict {
        let Some(opens) = self.openable.get(&key) else {
            return Err(format!("agreement: side {side} seals with a key that no side can open"));
        };
        check((opens.side, opens.lane, opens.index) == (side ^ 1, lane, index), || {
            format!(
                "agreement: side {side} seals for lane {lane}, index {index:#x} with the key of side {}'s \
                 lane {}, index {:#x}",
                opens.side, opens.lane, opens.index
            )
        })?;
        let (least, most) = self.intervals[&(side / 2)];
        let Some(derived) = self.sides[side].derived.get(&local_epoch) else {
            return Err(format!("side {side} seals in local epoch {local_epoch} that it cannot open"));
        };
        check(expires <= *derived + max_age(most) && packets <= MAX_PACKETS, || {
            format!(
                "limits: side {side}'s key of local epoch {local_epoch} ends {expires:?}, made \
                     {derived:?}"
            )
        })?;
        check(least != most || opens.expires + CLOCK_SLACK >= expires_true + drain(least), || {
            format!(
                "hitless: side {side} seals until {expires_true:?}, and side {} opens only until {:?}",
                opens.side, opens.expires
            )
        })?;
        let instance = self.sides[side].instance;
        let sealed = Sealed { side, instance, limit: expires, packets, counter: 0, without_qkd: false };
        self.sides[side].fresh.push(key);
        check(self.sealed.insert(key, sealed).is_none(), || {
            format!("no key twice: side {side} seals a second time with one key")
        })
    }

    /// Checks an epoch that a side reports as in force.
    pub fn activated(
        &mut self,
        side: usize,
        initiator: bool,
        (epoch, sources): (u64, KeySources),
        qkd_key_id: Option<&KeyId>,
        now: Time,
    ) -> Verdict {
        let fresh = std::mem::take(&mut self.sides[side].fresh);
        let Some(opens) = fresh.first().and_then(|key| self.openable.get(key)) else {
            return Err(format!("side {side} has epoch {epoch} in force and no key"));
        };
        // The instance that numbered the epoch: our own, or that of the side that made the key.
        let instance = if initiator { self.sides[side].instance } else { opens.instance };
        let own = &self.sides[side];
        check(initiator || epoch > own.highest || opens.instance > 1, || {
            format!("side {side} went back to epoch {epoch}")
        })?;
        check(sources.qkd == qkd_key_id.is_some(), || {
            format!("side {side}: epoch {epoch} names its key wrongly")
        })?;
        check(sources.qkd || own.policy != QkdPolicy::Required, || {
            format!("required never without QKD: side {side} has epoch {epoch} in force without")
        })?;
        let others = self.sides[side ^ 1].policy;
        check(sources.qkd || own.tightened || others != QkdPolicy::Required, || {
            format!("required never without QKD: side {} requires it, side {side} goes on without", side ^ 1)
        })?;
        let (least, _) = self.intervals[&(side / 2)];
        let waited = now.since(own.last_qkd.unwrap_or(own.started)) + CLOCK_SLACK / 100 >= least * 2;
        let prefers = own.policy == QkdPolicy::Preferred && others == QkdPolicy::Preferred;
        check(sources.qkd || sources.file || waited || !prefers, || {
            format!("preferred: side {side} goes on without QKD before two intervals have passed")
        })?;
        let number = (side / 2, instance, epoch);
        if initiator && let Some(at) = self.proposed.get(&(side, instance, epoch)) {
            let (_, most) = self.intervals[&(side / 2)];
            let over = fresh.iter().any(|key| self.sealed[key].limit > *at + max_age(most));
            check(!over, || format!("limits: side {side} seals for longer than from its first Propose on"))?;
        }
        for key in &fresh {
            self.sealed.get_mut(key).unwrap().without_qkd = !sources.qkd;
        }
        self.sides[side].highest = epoch;
        if sources.qkd {
            self.sides[side].last_qkd = Some(now);
        }
        if let Some(id) = qkd_key_id {
            let before = self.qkd_used.insert(id.clone(), number);
            check(before.is_none_or(|other| other == number), || {
                format!("no key twice: QKD key {id} went into epochs {before:?} and {number:?}")
            })?;
            let other_instance = if initiator { opens.instance } else { instance };
            let bytes = |side: usize, instance: u32| self.qkd_delivered.get(&(side, instance, id.clone()));
            let (ours, theirs) = (bytes(side, self.sides[side].instance), bytes(side ^ 1, other_instance));
            check(ours.is_some() && ours == theirs, || {
                format!("agreement: epoch {epoch} rests on QKD key {id}, which the sides do not both hold")
            })?;
        }
        let made = Made { sources, qkd_key_id: qkd_key_id.cloned(), by: [false; 2] };
        let made = self.epochs.entry(number).or_insert(made);
        // A key may be a QKD key at one side and a file's at the other: each trusts its own source.
        let parts = |of: KeySources| (of.qkd || of.file, of.psk, of.chain);
        let same_key = made.sources != sources || made.qkd_key_id.as_ref() == qkd_key_id;
        check(parts(made.sources) == parts(sources) && same_key, || {
            format!("agreement: the sides disagree on what epoch {epoch} is made of")
        })?;
        check(!std::mem::replace(&mut made.by[side % 2], true), || {
            format!("side {side} brought epoch {epoch} into force twice")
        })
    }

    /// Checks a packet that a lane sealed. A lane may still seal under a laxer policy while an order is under
    /// way to it.
    pub fn sealed(&mut self, side: usize, key: Key, counter: u64, now: Time, ordered: bool) -> Verdict {
        let required = self.sides[side].policy == QkdPolicy::Required;
        let Some(known) = self.sealed.get_mut(&key) else {
            return Err(format!("side {side} sealed with a key that nobody ordered"));
        };
        check((known.side, known.instance) == (side, self.sides[side].instance), || {
            format!("side {side} sealed with a key of side {}'s instance {}", known.side, known.instance)
        })?;
        check(now < known.limit && counter < known.packets, || {
            format!("limits: side {side} sealed packet {counter} at {now:?}, the key ended {:?}", known.limit)
        })?;
        check(counter >= known.counter, || {
            format!("no nonce twice: side {side} sealed counter {counter} again")
        })?;
        known.counter = counter + 1;
        check(ordered || !(known.without_qkd && required), || {
            format!("required never without QKD: side {side} sealed a packet")
        })
    }

    /// Checks a packet that the network delivered to `to`, which opened or did not open. Returns whether it
    /// opened. `ordered` is as in [`sealed`](Self::sealed).
    pub fn arrived(
        &mut self,
        packet: &Packet,
        to: usize,
        opened: Option<&Opened>,
        (now, ordered): (Time, bool),
    ) -> Result<bool, String> {
        if let Some(opened) = opened {
            check(packet.intact && opened.text == packet.text && opened.key == packet.key, || {
                format!("side {to} opened a packet that nobody sealed so")
            })?;
            let without_qkd = self.sealed[&packet.key].without_qkd;
            check(ordered || !without_qkd || self.sides[to].policy != QkdPolicy::Required, || {
                format!("required never without QKD: side {to} opened a packet")
            })?;
            check(self.opened.insert((opened.key, opened.counter)), || {
                format!("side {to} opened packet {} twice", opened.counter)
            })?;
            return Ok(true);
        }
        let again = self.opened.contains(&(packet.key, packet.counter));
        let Some(opens) = self.openable.get(&packet.key) else {
            return Err("agreement: a packet is under a key that no end made".to_owned());
        };
        let running = opens.side == to
            && opens.instance == self.sides[to].instance
            && packet.from_instance == self.sides[packet.from].instance;
        let (least, _) = self.intervals[&(to / 2)];
        let late = now.since(packet.sealed) >= drain(least);
        let stopped = self.sealed[&packet.key].without_qkd && self.sides[to].tightened;
        check(!packet.intact || again || !running || late || stopped, || {
            format!(
                "hitless: packet {} that side {} sealed {:?} before it arrived does not open at side {to}",
                packet.counter,
                packet.from,
                now.since(packet.sealed)
            )
        })?;
        Ok(false)
    }
}
