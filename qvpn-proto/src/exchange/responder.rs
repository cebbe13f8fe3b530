//! The responder: checks a `Propose`, sends the `Accept` once the lanes can open packets, and brings the
//! epoch into force when its confirmation arrives.

use std::collections::VecDeque;
use std::time::Duration;

use qvpn_secret::{Secret, ct_eq};
use qvpn_types::{EpochNumber, LocalEpoch, QkdPolicy, Time};
use rand_core::CryptoRng;

use super::answer::answer;
use super::context::Context;
use super::parameters::ExchangeParameters;
use super::prepared::PreparedEpoch;
use super::role::{Counters, ExchangeRole, LostKeys, Message};
use crate::epoch::{ActiveEpoch, MAX_WRONG_CONFIRMATIONS, drain, max_age};
use crate::epochs::{Epochs, close};
use crate::hello::Agreement;
use crate::key_schedule::Chain;
use crate::kms::{Fetch, KeyKind, KmsReport};
use crate::notice::{FailureReason, PeerEvent};
use crate::orders::LaneOrder;
use crate::outbox::{HelloRequest, Outbox};
use crate::output::PeerOutput;
use crate::stock::{ResponderStock, SupplyFault};
use crate::timers::Timer;
use crate::wire::{Confirm, MessageType, Propose, RejectReason, RekeyReason, StockOffer};

/// The interval of requests for an epoch while there is none.
const REKEY_REQUEST_INTERVAL: Duration = Duration::from_secs(2);

/// The maximum number of answered epochs that can still open packets although a later `Propose` replaced
/// them. An initiator that lost our `Accept`s uses none of them.
const MAX_SUPERSEDED: usize = 3;

pub struct Responder {
    stock: ResponderStock,
    /// The chain of the last confirmed epoch.
    confirmed_chain: Option<Chain>,
    unconfirmed: Option<UnconfirmedEpoch>,
    /// The receiver indices of answered epochs that a later `Propose` replaced, oldest first.
    superseded: VecDeque<Vec<u32>>,
    last: Option<AnsweredProposal>,
    /// The highest epoch number answered under the `Hello`s whose hashes are `hello_hashes`.
    highest: EpochNumber,
    hello_hashes: ([u8; 48], [u8; 48]),
}

/// The last answered `Propose`, and its `Accept`.
struct AnsweredProposal {
    propose: Vec<u8>,
    accept: Vec<u8>,
}

/// An answered epoch that is not confirmed yet.
struct UnconfirmedEpoch {
    prepared: PreparedEpoch,
    confirmation: Secret<48>,
    /// Whether the initiator named no chain although this side has one.
    lost_chain: bool,
    wrong: u8,
}

impl Responder {
    pub fn new(counters: Counters, now: Time) -> Self {
        Self {
            stock: ResponderStock::new(counters.acks, now),
            confirmed_chain: None,
            unconfirmed: None,
            superseded: VecDeque::new(),
            last: None,
            highest: EpochNumber::default(),
            hello_hashes: ([0; 48], [0; 48]),
        }
    }

    fn on_propose(
        &mut self,
        body: &[u8],
        ctx: &Context<'_>,
        epochs: &mut Epochs,
        out: &mut Outbox,
        rng: &mut dyn CryptoRng,
    ) -> Result<(), RejectReason> {
        let propose = Propose::parse(body).map_err(|_| RejectReason::Malformed)?;
        let own = ctx.hellos.own.hash;
        let hashes = (propose.hello_initiator, propose.hello_responder);
        if ctx.remote().map(|remote| (remote.hash, own)) != Some(hashes) {
            if propose.hello_responder != own && !out.channel.pending(MessageType::Hello) {
                out.hello = Some(HelloRequest::Repeat);
            }
            return Err(RejectReason::Stale);
        }
        let Some(agreement) = ctx.agreement().filter(|_| ctx.hellos.refusal.is_none()) else {
            return Err(RejectReason::Policy);
        };
        if let Some(last) = self.last.as_ref().filter(|last| last.propose == body) {
            // The `Accept` must wait until the lanes have installed the keys.
            if self.unconfirmed.as_ref().is_none_or(|epoch| epoch.prepared.is_installed()) {
                out.channel.send(MessageType::Accept, &last.accept, ctx.now, rng);
            }
            return Ok(());
        }
        if self.hello_hashes != hashes {
            self.hello_hashes = hashes;
            self.highest = EpochNumber::default();
        }
        if propose.epoch <= self.highest {
            return Err(RejectReason::Stale);
        }
        if propose.indices.len() != usize::from(agreement.lanes) {
            return Err(RejectReason::Malformed);
        }
        if let Some(check) = propose.chain_check {
            let of = |chain: &Chain| ct_eq(&chain.check, &check);
            if self.unconfirmed.as_ref().is_some_and(|epoch| of(&epoch.prepared.chain)) {
                self.confirm(ctx, epochs, out);
            } else if !self.confirmed_chain.as_ref().is_some_and(of) {
                return Err(RejectReason::Chain);
            }
        }
        self.check_policy(&propose, agreement, ctx, epochs)?;
        self.accept(&propose, body, agreement, ctx, epochs, out, rng)
    }

    fn check_policy(
        &self,
        propose: &Propose,
        agreement: Agreement,
        ctx: &Context<'_>,
        epochs: &Epochs,
    ) -> Result<(), RejectReason> {
        match (&propose.qkd_key_id, agreement.policy) {
            (Some(_), QkdPolicy::Off) | (None, QkdPolicy::Required) => Err(RejectReason::Policy),
            (None, QkdPolicy::Off) => Ok(()),
            (None, QkdPolicy::Preferred) => {
                let waited = epochs.without_qkd_for(ctx.now) >= agreement.interval * 2;
                if self.stock.count(KeyKind::Qkd) == 0 && waited { Ok(()) } else { Err(RejectReason::Policy) }
            }
            (Some(id), _) if self.stock.get(id).is_none() => Err(match self.stock.fault() {
                Some(_) => RejectReason::KmsUnavailable,
                None => RejectReason::UnknownKeyId,
            }),
            (Some(id), _) if ctx.qkd_only() && self.stock.kind(id) != Some(KeyKind::Qkd) => {
                Err(RejectReason::Policy)
            }
            (Some(_), _) => Ok(()),
        }
    }

    /// Makes the epoch's keys and orders the lanes to install the opening keys.
    #[allow(clippy::too_many_arguments)] // a checked message and the surroundings of a role
    fn accept(
        &mut self,
        propose: &Propose,
        body: &[u8],
        agreement: Agreement,
        ctx: &Context<'_>,
        epochs: &mut Epochs,
        out: &mut Outbox,
        rng: &mut dyn CryptoRng,
    ) -> Result<(), RejectReason> {
        let Some(remote) = ctx.remote() else { return Err(RejectReason::Stale) };
        let config = ctx.config;
        let parameters = ExchangeParameters {
            initiator: &config.remote,
            responder: config.local.public(),
            hello_initiator: &remote.bytes,
            hello_responder: &ctx.hellos.own.bytes,
            suite: config.suite,
            lanes: agreement.lanes,
        };
        let indices = epochs.indices.take(agreement.lanes);
        let chain = propose.chain_check.and(self.confirmed_chain.as_ref());
        let lost_chain = chain.is_none() && self.confirmed_chain.is_some();
        let key_id = propose.qkd_key_id.as_ref();
        let psk = config.psk.as_ref().map(|psk| psk.secret());
        let secrets = (key_id.and_then(|id| self.stock.get(id)), psk, chain);
        let initiator_key = &*remote.hello.encapsulation_key;
        let answered =
            answer(propose, body, initiator_key, &parameters, &config.local, indices.clone(), secrets, rng)
                .map_err(|_| RejectReason::Malformed)?;
        let kind = key_id.and_then(|id| self.stock.kind(id));
        self.highest = propose.epoch;
        self.last = Some(AnsweredProposal { propose: body.to_vec(), accept: answered.accept });
        let keys = answered.keys;
        let sealing_ends = ctx.now + max_age(agreement.interval);
        let epoch = ActiveEpoch {
            epoch: propose.epoch,
            local_epoch: epochs.next_local(),
            since: ctx.now,
            sealing_ends,
            parties: config.parties(),
            sources: ctx.sources(kind, propose.chain_check.is_some()),
            qkd_key_id: propose.qkd_key_id.clone(),
            chain_lost: lost_chain && epochs.no_restart_since_epoch,
        };
        let opening_ends = sealing_ends + drain(agreement.interval);
        let opening = (indices.as_slice(), keys.to_responder);
        let awaited = epochs.open(&epoch, opening, opening_ends, config, ctx.now, out);
        let prepared = PreparedEpoch {
            epoch,
            awaited,
            indices,
            sealing: propose.indices.iter().copied().zip(keys.to_initiator).collect(),
            chain: keys.chain,
            began: ctx.now,
            ended: false,
        };
        let confirmation = keys.confirm_initiator;
        let unconfirmed = UnconfirmedEpoch { prepared, confirmation, lost_chain, wrong: 0 };
        if let Some(former) = self.unconfirmed.replace(unconfirmed) {
            self.superseded.push_back(former.prepared.indices);
        }
        if self.superseded.len() > MAX_SUPERSEDED {
            self.superseded.pop_front().into_iter().for_each(|indices| close(indices, out));
        }
        out.timers.set(Timer::PendingEnd, Some(sealing_ends));
        Ok(())
    }

    fn on_confirm(&mut self, body: &[u8], ctx: &Context<'_>, epochs: &mut Epochs, out: &mut Outbox) {
        let Ok(confirm) = Confirm::parse(body) else {
            out.drops.malformed += 1;
            return;
        };
        match &mut self.unconfirmed {
            Some(unconfirmed) if unconfirmed.prepared.epoch.epoch == confirm.epoch => {
                if unconfirmed.confirmation.ct_eq(&confirm.confirmation) {
                    self.confirm(ctx, epochs, out);
                    answer_confirm(ctx, out);
                    return;
                }
                unconfirmed.wrong += 1;
                out.drops.refused += 1;
                let count = unconfirmed.wrong;
                out.emit(PeerEvent::WrongConfirmation { epoch: confirm.epoch, count });
                if count >= MAX_WRONG_CONFIRMATIONS {
                    self.give_up_unconfirmed(epochs, out);
                }
            }
            // The `Confirm` arrived before, and our reply was lost.
            _ if epochs.active.as_ref().is_some_and(|a| a.epoch == confirm.epoch) => answer_confirm(ctx, out),
            _ => {}
        }
    }

    fn give_up_unconfirmed(&mut self, epochs: &mut Epochs, out: &mut Outbox) {
        let Some(UnconfirmedEpoch { prepared, .. }) = self.unconfirmed.take() else { return };
        self.last = None;
        if let Some(id) = &prepared.epoch.qkd_key_id {
            self.stock.on_confirmation_failed(id);
        }
        close(prepared.indices, out);
        let detail = "the initiator's confirmation was wrong four times".to_owned();
        epochs.failed(FailureReason::Confirmation, detail, out);
    }

    /// Brings the unconfirmed epoch into force and drains older ones: the initiator has proved that it holds
    /// the keys.
    fn confirm(&mut self, ctx: &Context<'_>, epochs: &mut Epochs, out: &mut Outbox) {
        let Some(agreement) = ctx.agreement() else { return };
        let Some(UnconfirmedEpoch { prepared, lost_chain, .. }) = self.unconfirmed.take() else { return };
        // Both sides hold this chain now, whether the epoch may be used or not.
        self.confirmed_chain = Some(prepared.chain);
        if prepared.ended || ctx.breaks_policy(prepared.epoch.sources) {
            return;
        }
        if let Some(id) = &prepared.epoch.qkd_key_id {
            self.stock.used(id);
        }
        out.channel.cancel(MessageType::Accept);
        if prepared.epoch.sealing_ends <= ctx.now {
            // It was confirmed too late to be used. Only its chain remains.
            return;
        }
        let mut epoch = prepared.epoch;
        epoch.since = ctx.now;
        let local_epoch = epoch.local_epoch;
        if lost_chain {
            out.emit(PeerEvent::ChainReset);
        }
        epochs.activate(epoch, prepared.sealing, ctx.now.since(prepared.began), ctx.config, out);
        epochs.drain_older(local_epoch, agreement.interval, ctx.config.lanes, ctx.now, out);
        self.superseded.clear();
    }

    /// Sets the timer for the next request for an epoch while there is none.
    fn poll_rekey_request(&self, ctx: &Context<'_>, epochs: &Epochs, out: &mut Outbox) {
        let lacks = ctx.agreement().is_some() && epochs.sealing(ctx.now).is_none();
        if !lacks {
            out.timers.set(Timer::AskRekey, None);
        } else if out.timers.get(Timer::AskRekey).is_none() {
            out.timers.set(Timer::AskRekey, Some(ctx.now + REKEY_REQUEST_INTERVAL));
        }
    }
}

/// Sends an empty packet in the epoch, which shows the initiator that the epoch is confirmed.
fn answer_confirm(ctx: &Context<'_>, out: &mut Outbox) {
    let lanes = ctx.agreement().map_or(0, |a| a.lanes);
    out.order_each(lanes, || LaneOrder::SendEmpty);
}

fn ask_rekey(reason: RekeyReason, ctx: &Context<'_>, out: &mut Outbox, rng: &mut dyn CryptoRng) {
    if ctx.agreement().is_some() {
        out.channel.send(MessageType::Rekey, &reason.to_bytes(), ctx.now, rng);
    }
}

impl ExchangeRole for Responder {
    fn on_message(
        &mut self,
        message: Message<'_>,
        ctx: &Context<'_>,
        epochs: &mut Epochs,
        out: &mut Outbox,
        rng: &mut dyn CryptoRng,
    ) {
        match message.message_type {
            MessageType::StockOffer => match StockOffer::parse(message.body) {
                Ok(offer) if self.stock.enter_session(message.session) => self.stock.offered(offer, ctx.now),
                Ok(_) => {}
                Err(_) => out.drops.malformed += 1,
            },
            MessageType::Propose => {
                if let Err(reason) = self.on_propose(message.body, ctx, epochs, out, rng) {
                    out.reject(message.id, reason, ctx.now, rng);
                }
            }
            MessageType::Confirm => self.on_confirm(message.body, ctx, epochs, out),
            _ => {}
        }
    }

    /// Sends the `Accept` once all lanes can open the initiator's packets.
    fn on_installed(
        &mut self,
        lane: u8,
        epoch: LocalEpoch,
        ctx: &Context<'_>,
        _epochs: &mut Epochs,
        out: &mut Outbox,
        rng: &mut dyn CryptoRng,
    ) {
        let Some(unconfirmed) = &mut self.unconfirmed else { return };
        if unconfirmed.prepared.on_installed(lane, epoch)
            && !unconfirmed.prepared.ended
            && let Some(last) = &self.last
        {
            out.channel.send(MessageType::Accept, &last.accept, ctx.now, rng);
        }
    }

    fn on_first_opened(
        &mut self,
        epoch: LocalEpoch,
        ctx: &Context<'_>,
        epochs: &mut Epochs,
        out: &mut Outbox,
    ) {
        if self.unconfirmed.as_ref().is_some_and(|u| u.prepared.epoch.local_epoch == epoch) {
            self.confirm(ctx, epochs, out);
        }
    }

    fn on_timeout(
        &mut self,
        timer: Timer,
        ctx: &Context<'_>,
        _epochs: &mut Epochs,
        out: &mut Outbox,
        rng: &mut dyn CryptoRng,
    ) {
        match timer {
            Timer::AskRekey => ask_rekey(RekeyReason::NoEpoch, ctx, out, rng),
            // An epoch that is not confirmed in time never seals: its sealing keys are erased here, its
            // opening keys in the lanes. The chain stays, since the initiator may have verified the `Accept`
            // and may name it.
            Timer::PendingEnd => {
                if let Some(unconfirmed) = &mut self.unconfirmed
                    && unconfirmed.prepared.epoch.sealing_ends <= ctx.now
                {
                    unconfirmed.prepared.sealing.clear();
                }
            }
            _ => {}
        }
    }

    fn on_key_ended(&mut self, ctx: &Context<'_>, out: &mut Outbox, rng: &mut dyn CryptoRng) {
        ask_rekey(RekeyReason::KeyEnded, ctx, out, rng);
    }

    fn on_operator_rekey(&mut self, ctx: &Context<'_>, out: &mut Outbox, rng: &mut dyn CryptoRng) {
        out.channel.send(MessageType::Rekey, &RekeyReason::Operator.to_bytes(), ctx.now, rng);
    }

    /// Voids the initiator's earlier proposals. The chain stays, although it may no longer be named.
    fn on_peer_restarted(&mut self, _ctx: &Context<'_>, _epochs: &mut Epochs, out: &mut Outbox) {
        self.stock.forget_offers();
        self.last = None;
        if let Some(unconfirmed) = self.unconfirmed.take() {
            close(unconfirmed.prepared.indices, out);
        }
    }

    /// Ends an unconfirmed epoch without QKD and withholds its `Accept`, so that the initiator keeps the
    /// epoch that it has.
    fn on_stricter_policy(&mut self, _ctx: &Context<'_>, _epochs: &Epochs, out: &mut Outbox) {
        if let Some(unconfirmed) = &mut self.unconfirmed
            && !unconfirmed.prepared.epoch.sources.qkd
        {
            unconfirmed.prepared.ended = true;
            unconfirmed.prepared.sealing.clear();
            out.channel.cancel(MessageType::Accept);
        }
    }

    fn counters(&self, before: Counters) -> Counters {
        Counters { acks: self.stock.revision(), ..before }
    }

    fn poll(&mut self, ctx: &Context<'_>, epochs: &mut Epochs, out: &mut Outbox, _rng: &mut dyn CryptoRng) {
        out.timers.set(Timer::Attempt, None);
        self.poll_rekey_request(ctx, epochs, out);
    }

    fn poll_stock(
        &mut self,
        request: u64,
        ctx: &Context<'_>,
        out: &mut Outbox,
        rng: &mut dyn CryptoRng,
    ) -> bool {
        let fetch = self.stock.fetch(ctx.now, request);
        let fetches = fetch.is_some();
        if let Some(keys) = fetch {
            out.output(PeerOutput::Fetch(Fetch::ById { request, keys, qkd_only: ctx.qkd_only() }));
        }
        if let Some(ack) = self.stock.ack() {
            out.channel.send(MessageType::StockAck, &ack.to_bytes(), ctx.now, rng);
        }
        out.timers.set(Timer::Stock, self.stock.next_due(ctx.now));
        fetches
    }

    fn on_kms_report(&mut self, report: KmsReport, ctx: &Context<'_>) -> LostKeys {
        let (request, keys, missing) = match report {
            KmsReport::Keys { request, keys, missing } => (request, keys, missing),
            KmsReport::Failed { request, failure } => (request, Vec::new(), Some(failure)),
        };
        self.stock.fetched(request, keys, missing.as_ref(), ctx.qkd_only(), ctx.now);
        Vec::new()
    }

    fn on_kms_recovered(&mut self, now: Time) {
        self.stock.on_kms_recovered(now);
    }

    fn age_stock(&mut self, now: Time) -> LostKeys {
        self.stock.age(now);
        Vec::new()
    }

    fn next_expiry(&self) -> Option<Time> {
        self.stock.next_expiry()
    }

    fn erase_stock(&mut self) {
        self.stock.erase();
    }

    fn keep_only_qkd(&mut self) -> LostKeys {
        self.stock.only_qkd();
        Vec::new()
    }

    fn stock_count(&self, kind: KeyKind) -> usize {
        self.stock.count(kind)
    }

    fn supply_fault(&self) -> Option<&SupplyFault> {
        self.stock.fault()
    }

    fn lacks_offers(&self) -> bool {
        self.stock.lacks_offers()
    }

    fn waits_for_proposals(&self) -> bool {
        true
    }
}
