//! The initiator's duties: when an attempt is due, with which QKD key, how it ends, and `Confirm` until the other end
//! is heard in the new epoch.

use std::time::Duration;

use qvpn_secret::Secret;
use rand_core::CryptoRng;

use super::hello::Agreement;
use super::{Peer, Side};
use crate::backoff::backoff;
use crate::config::QkdPolicy;
use crate::epoch::{ActiveEpoch, MAX_PACKETS, drain, max_age};
use crate::exchange::{AcceptError, ExchangeParameters, Proposal, Proposed};
use crate::key_schedule::Chain;
use crate::kms::KeyKind;
use crate::notice::{FailureReason, PeerEvent};
use crate::orders::LaneOrder;
use crate::session::ControlLink;
use crate::stock::InitiatorStock;
use crate::timers::Timer;
use crate::wire::{Confirm, LaneSet, MessageId, MessageType, RejectReason, RekeyReason};
use qvpn_types::{EpochNumber, LocalEpoch, Time};

/// An attempt has so long.
const ATTEMPT: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(500);
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LAST_WAIT: Duration = Duration::from_secs(10);
/// The wrong confirmation that ends an attempt.
pub(super) const WRONG: u8 = 4;

/// The initiator's state.
pub(super) struct Initiator {
    pub(super) stock: InitiatorStock,
    attempt: Attempt,
    chain: Option<Chain>,
    chain_lost: bool,
    due: Time,
    began: Option<Time>,
    failures: u32,
    epoch: EpochNumber,
    pub(super) confirming: Option<Confirming>,
    /// Why no attempt begins though one is due.
    pub(super) waiting: Option<String>,
    told_no_key: bool,
}

enum Attempt {
    Idle,
    Proposed(Box<Waiting>),
    Installing(Box<Installing>),
}

/// A `Propose` without a verified answer.
struct Waiting {
    proposed: Proposed,
    ids: Vec<MessageId>,
    began: Time,
    wrong: u8,
    /// The other end's `Hello` that it names, and what was agreed under it. A later one may overtake the answer.
    hello: Vec<u8>,
    agreement: Agreement,
}

/// A verified epoch whose opening keys are on their way into the lanes.
struct Installing {
    /// Lanes that have not installed the opening key yet.
    awaited: LaneSet,
    indices: Vec<u32>,
    sealing: Vec<(u32, Secret<32>)>,
    confirm: Vec<u8>,
    chain: Chain,
    began: Time,
    active: ActiveEpoch,
    /// A policy became stricter meanwhile: the epoch never comes into force.
    ended: bool,
}

/// A `Confirm` that is repeated until the other end is heard.
pub(super) struct Confirming {
    local_epoch: LocalEpoch,
    bytes: Vec<u8>,
    tries: u32,
}

impl Initiator {
    pub(super) fn new(stock: usize) -> Self {
        Self {
            stock: InitiatorStock::new(stock),
            attempt: Attempt::Idle,
            chain: None,
            chain_lost: false,
            due: Time::default(),
            began: None,
            failures: 0,
            epoch: EpochNumber::default(),
            confirming: None,
            waiting: None,
            told_no_key: false,
        }
    }

    pub(super) fn due(&self) -> Time {
        self.due
    }
}

enum Choice {
    Key(String),
    Without,
    Wait(Option<Time>, String),
}

impl<L: ControlLink> Peer<L> {
    /// An attempt is due at once, if this end is the initiator.
    pub(super) fn attempt_due(&mut self, now: Time) {
        if let Side::Initiator(initiator) = &mut self.side {
            initiator.due = now;
        }
    }

    /// Begins an attempt if one is due and possible, and sets the timer for the next.
    pub(super) fn drive_attempt(&mut self, now: Time, rng: &mut dyn CryptoRng) {
        self.timers.set(Timer::Attempt, None);
        if let Side::Responder(_) = self.side {
            self.drive_asking(now);
            return;
        }
        let ready = self.agreement.is_some()
            && self.refusal.is_none()
            && self.link.session_age().is_some()
            && !self.channel.pending(MessageType::Hello)
            && !self.channel.pending(MessageType::StockOffer);
        let Side::Initiator(initiator) = &mut self.side else { return };
        if !matches!(initiator.attempt, Attempt::Idle) {
            return;
        }
        if initiator.due > now {
            let due = initiator.due;
            self.timers.set(Timer::Attempt, Some(due));
            return;
        }
        if !ready {
            return; // whatever makes it ready comes through a datagram
        }
        match self.choose_key(now) {
            Choice::Key(id) => self.propose(Some(id), now, rng),
            Choice::Without => self.propose(None, now, rng),
            Choice::Wait(until, reason) => {
                self.timers.set(Timer::Attempt, until);
                let Side::Initiator(initiator) = &mut self.side else { return };
                initiator.waiting = Some(reason.clone());
                if !std::mem::replace(&mut initiator.told_no_key, true) && self.had_epoch {
                    self.failed(FailureReason::NoQkdKey, reason);
                }
            }
        }
    }

    fn choose_key(&self, now: Time) -> Choice {
        let (Side::Initiator(initiator), Some(agreement)) = (&self.side, self.agreement) else {
            return Choice::Wait(None, String::new());
        };
        if agreement.policy == QkdPolicy::Off {
            return Choice::Without;
        }
        let (qkd, file) = (initiator.stock.usable(KeyKind::Qkd), initiator.stock.usable(KeyKind::File));
        if let Some((id, _)) = qkd.or(file.filter(|_| !self.qkd_only())) {
            return Choice::Key(id.to_owned());
        }
        let trouble =
            initiator.stock.trouble().map_or("waiting for the first keys of the KMEs", |t| t.text.as_str());
        if agreement.policy == QkdPolicy::Required {
            return Choice::Wait(
                None,
                format!("no QKD key that both sites hold, and qkd = \"required\": {trouble}"),
            );
        }
        let until = self.last_qkd.unwrap_or(self.started) + agreement.interval * 2;
        if now >= until {
            return Choice::Without;
        }
        Choice::Wait(Some(until), format!("no QKD key that both sites hold: {trouble}"))
    }

    fn propose(&mut self, qkd_key_id: Option<String>, now: Time, rng: &mut dyn CryptoRng) {
        let (Side::Initiator(initiator), Some(remote), Some(agreement)) =
            (&mut self.side, &self.remote, self.agreement)
        else {
            return;
        };
        initiator.epoch.0 += 1;
        initiator.began = Some(now);
        initiator.waiting = None;
        let proposal = Proposal {
            hello_hashes: (self.own_hello.hash, remote.hash),
            epoch: initiator.epoch,
            responder_key: &remote.hello.encapsulation_key,
            indices: self.indices.take(agreement.lanes),
            qkd_key_id,
            chain_check: initiator.chain.as_ref().map(|c| c.check),
        };
        // The key passed the input check when its Hello came, so there is no failure to handle but a bug's.
        let Ok(proposed) = Proposed::new(proposal, rng) else {
            self.failed(FailureReason::Crypto, "the other site's ML-KEM key is unusable".to_owned());
            return;
        };
        let ids = vec![self.channel.send(MessageType::Propose, proposed.bytes(), now, rng)];
        let hello = remote.bytes.clone();
        initiator.attempt =
            Attempt::Proposed(Box::new(Waiting { proposed, ids, began: now, wrong: 0, hello, agreement }));
        self.timers.set(Timer::AttemptEnd, Some(now + ATTEMPT));
        self.timers.set(Timer::ProposeAgain, Some(now + AGAIN * 2));
    }

    pub(super) fn propose_again(&mut self, now: Time, rng: &mut dyn CryptoRng) {
        let Side::Initiator(initiator) = &mut self.side else { return };
        if let Attempt::Proposed(waiting) = &mut initiator.attempt {
            if !self.channel.pending(MessageType::Propose) {
                waiting.ids.push(self.channel.send(MessageType::Propose, waiting.proposed.bytes(), now, rng));
            }
            self.timers.set(Timer::ProposeAgain, Some(now + AGAIN * 2));
        }
    }

    pub(super) fn take_accept(&mut self, body: &[u8], now: Time, rng: &mut dyn CryptoRng) {
        let Side::Initiator(initiator) = &mut self.side else { return };
        let waiting = match std::mem::replace(&mut initiator.attempt, Attempt::Idle) {
            Attempt::Proposed(waiting) => *waiting,
            other => {
                initiator.attempt = other;
                self.repeat_confirm(now, rng);
                return;
            }
        };
        let Waiting { proposed, ids, began, wrong, hello, agreement } = waiting;
        let terms = ExchangeParameters {
            initiator: self.config.local.public(),
            responder: &self.config.remote,
            hello_initiator: &self.own_hello.bytes,
            hello_responder: &hello,
            suite: self.config.suite,
            lanes: agreement.lanes,
        };
        let qkd_key_id = proposed.message().qkd_key_id.clone();
        let epoch = proposed.message().epoch;
        let uses_chain = proposed.message().chain_check.is_some();
        let result = proposed.verify(
            body,
            &terms,
            &self.config.local,
            qkd_key_id.as_deref().and_then(|id| initiator.stock.get(id)),
            self.config.psk.as_ref().map(|psk| psk.secret()),
            initiator.chain.as_ref().filter(|_| uses_chain),
        );
        let agreed = match result {
            Ok(agreed) => agreed,
            Err((proposed, error)) => {
                let counts = !matches!(error, AcceptError::Malformed(_) | AcceptError::OtherAttempt);
                let wrong = wrong + u8::from(counts);
                let waiting = Waiting { proposed, ids, began, wrong, hello, agreement };
                initiator.attempt = Attempt::Proposed(Box::new(waiting));
                if matches!(error, AcceptError::Malformed(_)) {
                    self.drops.malformed += 1;
                }
                if counts {
                    self.drops.refused += 1;
                    self.emit(PeerEvent::WrongConfirmation { epoch, count: wrong });
                }
                if wrong >= WRONG {
                    if let (Side::Initiator(initiator), Some(id)) = (&mut self.side, &qkd_key_id) {
                        initiator.stock.spoiled(id);
                    }
                    self.attempt_failed(FailureReason::Confirmation, error.to_string(), now);
                }
                return;
            }
        };
        self.channel.cancel(MessageType::Propose);
        self.timers.set(Timer::ProposeAgain, None);
        // A lane may refuse keys that ended while the machine slept, and then says nothing.
        self.timers.set(Timer::AttemptEnd, Some(now + ATTEMPT));
        initiator.due = began + self.agreement.map_or(agreement.interval, |now| now.interval);
        let kind = qkd_key_id.as_deref().and_then(|id| initiator.stock.kind(id));
        if let Some(id) = &qkd_key_id {
            initiator.stock.used(id);
        }
        let chain_lost = std::mem::replace(&mut initiator.chain_lost, false);
        let keys = agreed.keys;
        self.local_epoch = self.local_epoch.next();
        let (local_epoch, interval) = (self.local_epoch, agreement.interval);
        let sources = self.sources(kind, uses_chain);
        let opening_ends = now + max_age(interval) + drain(interval);
        let active = ActiveEpoch {
            epoch,
            local_epoch,
            since: now,
            sealing_ends: began + max_age(interval),
            sources,
            qkd_key_id,
            chain_lost,
        };
        let awaited = self.open_in(&active, &agreed.propose.indices, keys.to_initiator, opening_ends, now);
        let confirmation = *keys.confirm_initiator.expose();
        let installing = Installing {
            awaited,
            indices: agreed.propose.indices,
            sealing: agreed.responder_indices.into_iter().zip(keys.to_responder).collect(),
            confirm: Confirm { epoch, confirmation }.to_bytes(),
            chain: keys.chain,
            began,
            active,
            ended: false,
        };
        if let Side::Initiator(initiator) = &mut self.side {
            initiator.attempt = Attempt::Installing(Box::new(installing));
        }
    }

    /// The lanes can open: now, and not before, this end seals in the new epoch.
    pub(super) fn initiator_installed(
        &mut self,
        lane: u8,
        local_epoch: LocalEpoch,
        now: Time,
        rng: &mut dyn CryptoRng,
    ) {
        let Side::Initiator(initiator) = &mut self.side else { return };
        let Attempt::Installing(installing) = &mut initiator.attempt else { return };
        if installing.active.local_epoch != local_epoch {
            return;
        }
        installing.awaited.remove(lane);
        if !installing.awaited.is_empty() {
            return;
        }
        let Attempt::Installing(done) = std::mem::replace(&mut initiator.attempt, Attempt::Idle) else {
            return;
        };
        self.timers.set(Timer::AttemptEnd, None);
        if done.ended || self.breaks_policy(done.active.sources) {
            self.attempt_due(now);
            return;
        }
        let Side::Initiator(initiator) = &mut self.side else { return };
        initiator.failures = 0;
        initiator.told_no_key = false;
        initiator.chain = Some(done.chain);
        initiator.confirming =
            Some(Confirming { local_epoch: done.active.local_epoch, bytes: done.confirm, tries: 0 });
        let mut active = done.active;
        active.since = now;
        self.seal_in(&active, done.sealing);
        self.activate(active, now.since(done.began), now);
        self.confirm_again(now, rng);
    }

    pub(super) fn confirm_again(&mut self, now: Time, rng: &mut dyn CryptoRng) {
        let Side::Initiator(initiator) = &mut self.side else { return };
        if let Some(confirming) = &mut initiator.confirming {
            self.channel.send(MessageType::Confirm, &confirming.bytes, now, rng);
            let wait = backoff(AGAIN, Duration::from_secs(4), confirming.tries);
            confirming.tries += 1;
            self.timers.set(Timer::ConfirmAgain, Some(now + wait));
        }
    }

    /// A repeated `Accept` says that the other end missed our `Confirm`.
    fn repeat_confirm(&mut self, now: Time, rng: &mut dyn CryptoRng) {
        let Side::Initiator(initiator) = &mut self.side else { return };
        if let Some(confirming) = &initiator.confirming
            && !self.channel.pending(MessageType::Confirm)
        {
            self.channel.send(MessageType::Confirm, &confirming.bytes, now, rng);
        }
    }

    /// The other end sealed in this epoch, so it has confirmed it: the older ones drain.
    pub(super) fn initiator_first_opened(&mut self, local_epoch: LocalEpoch, now: Time) {
        let (Side::Initiator(initiator), Some(agreement)) = (&mut self.side, self.agreement) else { return };
        if initiator.confirming.as_ref().is_some_and(|c| local_epoch >= c.local_epoch) {
            self.stop_confirming();
            self.drain_older(local_epoch, agreement.interval, now);
        }
    }

    /// Ends the attempt under way, if there is one, and sets the wait before the next.
    pub(super) fn attempt_failed(&mut self, reason: FailureReason, detail: String, now: Time) {
        let Side::Initiator(initiator) = &mut self.side else { return };
        if matches!(initiator.attempt, Attempt::Idle) {
            return;
        }
        initiator.due = now + backoff(FIRST_WAIT, LAST_WAIT, initiator.failures);
        initiator.failures += 1;
        self.drop_attempt();
        self.failed(reason, detail);
    }

    /// The time of an attempt is over.
    pub(super) fn attempt_timed_out(&mut self, now: Time) {
        let Side::Initiator(initiator) = &self.side else { return };
        let detail = match initiator.attempt {
            Attempt::Installing(_) => "our lanes did not take the keys within 5 s",
            _ => "no verified answer within 5 s",
        };
        self.attempt_failed(FailureReason::Timeout, detail.to_owned(), now);
    }

    /// Ends an attempt that the other end did not answer yet, after a change of what it rests on. An answered one goes on.
    pub(super) fn drop_unanswered(&mut self) {
        if let Side::Initiator(initiator) = &self.side
            && !matches!(initiator.attempt, Attempt::Installing(_))
        {
            self.drop_attempt();
        }
    }

    pub(super) fn stop_confirming(&mut self) {
        let Side::Initiator(initiator) = &mut self.side else { return };
        initiator.confirming = None;
        self.channel.cancel(MessageType::Confirm);
        self.timers.set(Timer::ConfirmAgain, None);
    }

    /// A policy became stricter: an attempt without QKD ends, and the other end hears of no such epoch any more.
    pub(super) fn end_weak_attempt(&mut self, now: Time) {
        let weak = self.active.as_ref().filter(|a| self.breaks_policy(a.sources)).map(|a| a.local_epoch);
        let Side::Initiator(initiator) = &mut self.side else { return };
        let unheard = initiator.confirming.as_ref().is_some_and(|c| Some(c.local_epoch) == weak);
        let dropped = match &mut initiator.attempt {
            Attempt::Idle => false,
            Attempt::Proposed(waiting) => {
                let id = waiting.proposed.message().qkd_key_id.as_deref();
                id.and_then(|id| initiator.stock.kind(id)) != Some(KeyKind::Qkd)
            }
            Attempt::Installing(installing) => {
                installing.ended |= !installing.active.sources.qkd;
                false
            }
        };
        if unheard {
            self.stop_confirming();
        }
        if dropped {
            self.drop_attempt();
            self.attempt_due(now);
        }
    }

    /// Ends the attempt under way without a word. Until its lanes have the keys nothing of an epoch was sent, not even its chain's
    /// name, so the other end never seals in it.
    pub(super) fn drop_attempt(&mut self) {
        self.channel.cancel(MessageType::Propose);
        self.timers.set(Timer::AttemptEnd, None);
        self.timers.set(Timer::ProposeAgain, None);
        let Side::Initiator(initiator) = &mut self.side else { return };
        if let Attempt::Installing(installing) = std::mem::replace(&mut initiator.attempt, Attempt::Idle) {
            self.close(installing.indices);
        }
    }

    /// Erases an epoch's opening keys.
    pub(super) fn close(&mut self, indices: Vec<u32>) {
        for (lane, index) in (0u8..).zip(indices) {
            self.order(lane, LaneOrder::Close { index });
        }
    }

    pub(super) fn attempt_rejected(
        &mut self,
        id: MessageId,
        reason: RejectReason,
        now: Time,
        rng: &mut dyn CryptoRng,
    ) {
        let Side::Initiator(initiator) = &mut self.side else { return };
        let Attempt::Proposed(waiting) = &initiator.attempt else { return };
        if !waiting.ids.contains(&id) {
            return;
        }
        let key = waiting.proposed.message().qkd_key_id.clone();
        match reason {
            RejectReason::Chain => {
                initiator.chain = None;
                initiator.chain_lost = self.unbroken;
                initiator.due = now;
                self.drop_attempt();
                self.emit(PeerEvent::ChainReset);
                return;
            }
            RejectReason::UnknownKeyId | RejectReason::KmsUnavailable => {
                if let Some(key) = &key {
                    initiator.stock.refused(key);
                }
            }
            RejectReason::Stale => self.fresh_hello(now, rng),
            _ => {}
        }
        let detail = match reason {
            RejectReason::Policy => "the other site refuses an epoch without QKD yet".to_owned(),
            RejectReason::UnknownKeyId => {
                format!("the other site does not hold QKD key {}", key.unwrap_or_default())
            }
            other => format!("the other site says `{}`", other.name()),
        };
        self.attempt_failed(FailureReason::Rejected, detail, now);
    }

    /// The responder asks for an epoch; at most one attempt a second follows.
    pub(super) fn asked_to_rekey(&mut self, body: &[u8], now: Time) {
        let Side::Initiator(initiator) = &mut self.side else { return };
        let Ok(reason) = RekeyReason::parse(body) else {
            self.drops.malformed += 1;
            return;
        };
        if initiator.due > now && initiator.began.is_none_or(|at| now.since(at) >= Duration::from_secs(1)) {
            initiator.due = now;
            self.emit(PeerEvent::RekeyAsked { reason });
        }
    }

    /// Orders the sealing keys of an epoch into its lanes.
    pub(super) fn seal_in(&mut self, active: &ActiveEpoch, sealing: Vec<(u32, Secret<32>)>) {
        let suite = self.config.suite;
        for (lane, (receiver_index, key)) in (0u8..).zip(sealing) {
            self.order(
                lane,
                LaneOrder::InstallSealing {
                    local_epoch: active.local_epoch,
                    receiver_index,
                    suite,
                    key,
                    expires_at: active.sealing_ends,
                    packets: MAX_PACKETS,
                },
            );
        }
    }
}
