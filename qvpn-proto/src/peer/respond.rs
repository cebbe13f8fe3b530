//! The responder's duties: whether a `Propose` may become an epoch, the `Accept` once the lanes can open, and the
//! confirmation that brings the epoch into force.

use std::time::Duration;

use qvpn_secret::{Secret, ct_eq};
use rand_core::CryptoRng;

use super::initiate::WRONG;
use super::{Peer, Side};
use crate::config::QkdPolicy;
use crate::epoch::{ActiveEpoch, drain, max_age};
use crate::exchange::{ExchangeParameters, answer};
use crate::key_schedule::Chain;
use crate::kms::KeyKind;
use crate::notice::{FailureReason, PeerEvent};
use crate::orders::LaneOrder;
use crate::session::ControlLink;
use crate::stock::ResponderStock;
use crate::timers::Timer;
use crate::wire::{Confirm, LaneSet, MessageId, MessageType, Propose, RejectReason, RekeyReason};
use qvpn_types::{EpochNumber, LocalEpoch, Time};

/// How often the responder asks for an epoch while it has none.
const ASK: Duration = Duration::from_secs(2);

/// The responder's state.
pub(super) struct Responder {
    pub(super) stock: ResponderStock,
    /// The chain of the last confirmed epoch.
    confirmed: Option<Chain>,
    pending: Option<Pending>,
    /// The last `Propose` that was answered, and the answer.
    last: Option<(Vec<u8>, Vec<u8>)>,
    /// The highest number answered under the `Hello`s whose hashes stand beside it.
    highest: EpochNumber,
    pair: ([u8; 48], [u8; 48]),
}

/// An answered epoch that the initiator has not confirmed yet.
struct Pending {
    /// Lanes that have not installed the opening key yet.
    awaited: LaneSet,
    indices: Vec<u32>,
    sealing: Vec<(u32, Secret<32>)>,
    confirm: Secret<48>,
    chain: Chain,
    lost_chain: bool,
    began: Time,
    wrong: u8,
    active: ActiveEpoch,
    /// A policy became stricter meanwhile: the epoch never comes into force.
    ended: bool,
}

impl Responder {
    pub(super) fn new(now: Time) -> Self {
        Self {
            stock: ResponderStock::new(now),
            confirmed: None,
            pending: None,
            last: None,
            highest: EpochNumber::default(),
            pair: ([0; 48], [0; 48]),
        }
    }

    /// The initiator restarted: what it proposed before is void, and the receiver indices of that go. The chain stays,
    /// though it may no longer be named.
    pub(super) fn forget_initiator(&mut self) -> Vec<u32> {
        self.last = None;
        self.pending.take().map(|p| p.indices).unwrap_or_default()
    }
}

impl<L: ControlLink> Peer<L> {
    pub(super) fn take_propose(&mut self, id: MessageId, body: &[u8], now: Time, rng: &mut dyn CryptoRng) {
        match self.try_propose(body, now, rng) {
            Ok(()) => {}
            Err(reason) => self.reject(id, reason, now, rng),
        }
    }

    fn try_propose(&mut self, body: &[u8], now: Time, rng: &mut dyn CryptoRng) -> Result<(), RejectReason> {
        let propose = Propose::parse(body).map_err(|_| RejectReason::Malformed)?;
        let Side::Responder(responder) = &mut self.side else { return Err(RejectReason::Role) };
        let pair = (propose.hello_initiator, propose.hello_responder);
        let in_force = self.remote.as_ref().map(|r| (r.hash, self.own_hello.hash));
        if in_force != Some(pair) {
            if propose.hello_responder != self.own_hello.hash && !self.channel.pending(MessageType::Hello) {
                self.send_hello(now, rng);
            }
            return Err(RejectReason::Stale);
        }
        let Some(agreement) = self.agreement.filter(|_| self.refusal.is_none()) else {
            return Err(RejectReason::Policy);
        };
        if let Some((last, accept)) = &responder.last
            && last == body
        {
            // Still installing: the Accept goes out when the lanes are ready.
            if responder.pending.as_ref().is_none_or(|p| p.awaited.is_empty()) {
                self.channel.send(MessageType::Accept, accept, now, rng);
            }
            return Ok(());
        }
        if responder.pair != pair {
            responder.pair = pair;
            responder.highest = EpochNumber::default();
        }
        if propose.epoch <= responder.highest {
            return Err(RejectReason::Stale);
        }
        if propose.indices.len() != usize::from(agreement.lanes) {
            return Err(RejectReason::Malformed);
        }
        if let Some(check) = propose.chain_check {
            let of_pending = responder.pending.as_ref().is_some_and(|p| ct_eq(&p.chain.check, &check));
            if of_pending {
                self.confirm_pending(now);
            } else if responder.confirmed.as_ref().is_none_or(|c| !ct_eq(&c.check, &check)) {
                return Err(RejectReason::Chain);
            }
        }
        self.check_policy(&propose, agreement.policy, agreement.interval, now)?;
        self.accept(&propose, body, now, rng)
    }

    fn check_policy(
        &self,
        propose: &Propose,
        policy: QkdPolicy,
        interval: Duration,
        now: Time,
    ) -> Result<(), RejectReason> {
        let Side::Responder(responder) = &self.side else { return Err(RejectReason::Role) };
        match (&propose.qkd_key_id, policy) {
            (Some(_), QkdPolicy::Off) | (None, QkdPolicy::Required) => Err(RejectReason::Policy),
            (None, QkdPolicy::Off) => Ok(()),
            (None, QkdPolicy::Preferred) => {
                let waited = now.since(self.last_qkd.unwrap_or(self.started)) >= interval * 2;
                if responder.stock.count(KeyKind::Qkd) == 0 && waited {
                    Ok(())
                } else {
                    Err(RejectReason::Policy)
                }
            }
            (Some(id), _) if responder.stock.get(id).is_none() => Err(match responder.stock.trouble() {
                Some(_) => RejectReason::KmsUnavailable,
                None => RejectReason::UnknownKeyId,
            }),
            (Some(id), _) if self.qkd_only() && responder.stock.kind(id) != Some(KeyKind::Qkd) => {
                Err(RejectReason::Policy)
            }
            (Some(_), _) => Ok(()),
        }
    }

    fn accept(
        &mut self,
        propose: &Propose,
        body: &[u8],
        now: Time,
        rng: &mut dyn CryptoRng,
    ) -> Result<(), RejectReason> {
        let (Side::Responder(responder), Some(remote), Some(agreement)) =
            (&mut self.side, &self.remote, self.agreement)
        else {
            return Err(RejectReason::Stale);
        };
        let terms = ExchangeParameters {
            initiator: &self.config.remote,
            responder: self.config.local.public(),
            hello_initiator: &remote.bytes,
            hello_responder: &self.own_hello.bytes,
            suite: self.config.suite,
            lanes: agreement.lanes,
        };
        let indices = self.indices.take(agreement.lanes);
        let chain = propose.chain_check.and(responder.confirmed.as_ref());
        let secrets = (
            propose.qkd_key_id.as_deref().and_then(|id| responder.stock.get(id)),
            self.config.psk.as_ref().map(|psk| psk.secret()),
            chain,
        );
        let initiator_key = &*remote.hello.encapsulation_key;
        let answered =
            answer(propose, body, initiator_key, &terms, &self.config.local, indices.clone(), secrets, rng)
                .map_err(|_| RejectReason::Malformed)?;
        let lost_chain = chain.is_none() && responder.confirmed.is_some();
        let kind = propose.qkd_key_id.as_deref().and_then(|id| responder.stock.kind(id));
        responder.highest = propose.epoch;
        responder.last = Some((body.to_vec(), answered.accept));
        self.local_epoch = self.local_epoch.next();
        let (local_epoch, keys) = (self.local_epoch, answered.keys);
        let sealing_ends = now + max_age(agreement.interval);
        let opening_ends = sealing_ends + drain(agreement.interval);
        let active = ActiveEpoch {
            epoch: propose.epoch,
            local_epoch,
            since: now,
            sealing_ends,
            sources: self.sources(kind, propose.chain_check.is_some()),
            qkd_key_id: propose.qkd_key_id.clone(),
            chain_lost: lost_chain && self.unbroken,
        };
        let awaited = self.open_in(&active, &indices, keys.to_responder, opening_ends, now);
        let pending = Pending {
            awaited,
            indices,
            sealing: propose.indices.iter().copied().zip(keys.to_initiator).collect(),
            confirm: keys.confirm_initiator,
            chain: keys.chain,
            lost_chain,
            began: now,
            wrong: 0,
            active,
            ended: false,
        };
        if let Side::Responder(responder) = &mut self.side {
            responder.pending = Some(pending);
        }
        self.timers.set(Timer::PendingEnd, Some(sealing_ends));
        Ok(())
    }

    /// An epoch that was not confirmed in time will never seal: its sealing keys are erased, as the lanes erase the others.
    /// The chain stays, since the initiator may have verified the `Accept` and name it.
    pub(super) fn age_pending(&mut self, now: Time) {
        let Side::Responder(responder) = &mut self.side else { return };
        if let Some(pending) = responder.pending.as_mut().filter(|p| p.active.sealing_ends <= now) {
            pending.sealing.clear();
        }
    }

    /// The lanes can open: the initiator may be told.
    pub(super) fn responder_installed(
        &mut self,
        lane: u8,
        local_epoch: LocalEpoch,
        now: Time,
        rng: &mut dyn CryptoRng,
    ) {
        let Side::Responder(responder) = &mut self.side else { return };
        let Some(pending) = &mut responder.pending else { return };
        if pending.active.local_epoch != local_epoch {
            return;
        }
        if pending.awaited.remove(lane)
            && pending.awaited.is_empty()
            && !pending.ended
            && let Some((_, accept)) = &responder.last
        {
            self.channel.send(MessageType::Accept, accept, now, rng);
        }
    }

    /// A policy became stricter: the pending epoch without QKD ends, and the initiator is better off in the one that it has.
    pub(super) fn end_weak_pending(&mut self) {
        let Side::Responder(responder) = &mut self.side else { return };
        if let Some(pending) = responder.pending.as_mut().filter(|p| !p.active.sources.qkd) {
            pending.ended = true;
            pending.sealing.clear();
            self.channel.cancel(MessageType::Accept);
        }
    }

    pub(super) fn take_confirm(&mut self, body: &[u8], now: Time) {
        let Ok(confirm) = Confirm::parse(body) else {
            self.drops.malformed += 1;
            return;
        };
        let Side::Responder(responder) = &mut self.side else { return };
        match &mut responder.pending {
            Some(pending) if pending.active.epoch == confirm.epoch => {
                if pending.confirm.ct_eq(&confirm.confirmation) {
                    self.confirm_pending(now);
                    self.answer_confirm();
                    return;
                }
                pending.wrong += 1;
                self.drops.refused += 1;
                let (epoch, count) = (confirm.epoch, pending.wrong);
                self.emit(PeerEvent::WrongConfirmation { epoch, count });
                if count >= WRONG {
                    self.give_up_pending();
                }
            }
            // It came before: the answer got lost.
            _ if self.active.as_ref().is_some_and(|a| a.epoch == confirm.epoch) => self.answer_confirm(),
            _ => {}
        }
    }

    /// An empty packet in the epoch tells the initiator that it is confirmed.
    fn answer_confirm(&mut self) {
        let lanes = self.agreement.map_or(0, |a| a.lanes);
        for lane in 0..lanes {
            self.order(lane, LaneOrder::SendEmpty);
        }
    }

    fn give_up_pending(&mut self) {
        let Side::Responder(responder) = &mut self.side else { return };
        let Some(pending) = responder.pending.take() else { return };
        responder.last = None;
        if let Some(id) = &pending.active.qkd_key_id {
            responder.stock.spoil(id);
        }
        self.close(pending.indices);
        let detail = "the initiator's confirmation was wrong four times".to_owned();
        self.failed(FailureReason::Confirmation, detail);
    }

    /// The initiator holds the keys: the pending epoch comes into force, and older ones drain.
    fn confirm_pending(&mut self, now: Time) {
        let (Side::Responder(responder), Some(agreement)) = (&mut self.side, self.agreement) else { return };
        let Some(pending) = responder.pending.take() else { return };
        // Both ends hold it now, whether the epoch may be used or not.
        responder.confirmed = Some(pending.chain);
        if pending.ended || self.breaks_policy(pending.active.sources) {
            return;
        }
        let Side::Responder(responder) = &mut self.side else { return };
        if let Some(id) = &pending.active.qkd_key_id {
            responder.stock.used(id);
        }
        self.channel.cancel(MessageType::Accept);
        if pending.active.sealing_ends <= now {
            // Confirmed too late to be used; its chain is all that is left of it.
            return;
        }
        let mut active = pending.active;
        active.since = now;
        let local_epoch = active.local_epoch;
        if pending.lost_chain {
            self.emit(PeerEvent::ChainReset);
        }
        self.seal_in(&active, pending.sealing);
        self.activate(active, now.since(pending.began), now);
        self.drain_older(local_epoch, agreement.interval, now);
    }

    pub(super) fn responder_first_opened(&mut self, local_epoch: LocalEpoch, now: Time) {
        let Side::Responder(responder) = &self.side else { return };
        if responder.pending.as_ref().is_some_and(|p| p.active.local_epoch == local_epoch) {
            self.confirm_pending(now);
        }
    }

    /// While there is no epoch, the initiator is asked for one now and then.
    pub(super) fn drive_asking(&mut self, now: Time) {
        let lacks = self.agreement.is_some() && self.active.as_ref().is_none_or(|a| a.sealing_ends <= now);
        if !lacks {
            self.timers.set(Timer::AskRekey, None);
        } else if self.timers.get(Timer::AskRekey).is_none() {
            self.timers.set(Timer::AskRekey, Some(now + ASK));
        }
    }

    pub(super) fn ask_rekey(&mut self, reason: RekeyReason, now: Time, rng: &mut dyn CryptoRng) {
        if self.agreement.is_some() {
            self.channel.send(MessageType::Rekey, &reason.to_bytes(), now, rng);
        }
    }

    pub(super) fn installed(
        &mut self,
        lane: u8,
        local_epoch: LocalEpoch,
        now: Time,
        rng: &mut dyn CryptoRng,
    ) {
        match self.side {
            Side::Initiator(_) => self.initiator_installed(lane, local_epoch, now, rng),
            Side::Responder(_) => self.responder_installed(lane, local_epoch, now, rng),
        }
    }

    pub(super) fn first_opened(&mut self, local_epoch: LocalEpoch, now: Time) {
        match self.side {
            Side::Initiator(_) => self.initiator_first_opened(local_epoch, now),
            Side::Responder(_) => self.responder_first_opened(local_epoch, now),
        }
    }

    /// A lane ended its key early, by the packet limit. The epoch ends as a whole: one whose lanes go on while some flows are lost would be
    /// neither up nor blocked. A fresh one is due.
    pub(super) fn sealing_ended(&mut self, local_epoch: LocalEpoch, now: Time, rng: &mut dyn CryptoRng) {
        let ends_early = |a: &&mut ActiveEpoch| a.local_epoch == local_epoch && a.sealing_ends > now;
        let Some(active) = self.active.as_mut().filter(ends_early) else { return };
        active.sealing_ends = now;
        self.order_all(|| LaneOrder::StopSealing);
        self.attempt_due(now);
        if let Side::Responder(_) = self.side {
            self.ask_rekey(RekeyReason::KeyEnded, now, rng);
        }
    }
}
