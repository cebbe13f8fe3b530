//! The initiator: starts attempts, chooses their QKD key, ends them, and sends `Confirm` until the peer seals
//! in the new epoch.

use std::time::Duration;

use qvpn_types::{EpochNumber, KeyId, LocalEpoch, Time};
use rand_core::CryptoRng;

use super::attempt::{AcceptOutcome, Attempt, Installing, OutstandingProposal};
use super::confirm::ConfirmSender;
use super::context::Context;
use super::key_choice::{KeyChoice, choose_key};
use super::proposed::{Proposal, Proposed};
use super::role::{Counters, ExchangeRole, LostKeys, Message};
use crate::backoff::backoff;
use crate::epochs::{Epochs, close};
use crate::key_schedule::Chain;
use crate::kms::{Fetch, KeyKind, KmsReport};
use crate::notice::{FailureReason, PeerEvent};
use crate::outbox::{HelloRequest, Outbox};
use crate::output::PeerOutput;
use crate::stock::{InitiatorStock, SupplyFault};
use crate::timers::Timer;
use crate::wire::{Confirm, MessageId, MessageType, Propose, RejectReason, RekeyReason, StockAck};

/// The time limit of an attempt.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
const PROPOSE_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// The delay after a failed attempt doubles from the first to the second constant.
const MIN_ATTEMPT_BACKOFF: Duration = Duration::from_millis(100);
const MAX_ATTEMPT_BACKOFF: Duration = Duration::from_secs(10);
/// The minimum interval between attempts that the peer's requests cause.
const MIN_REQUEST_INTERVAL: Duration = Duration::from_secs(1);

pub struct Initiator {
    stock: InitiatorStock,
    attempt: Attempt,
    chain: Option<Chain>,
    /// Whether the peer gave up the chain although neither side restarted.
    chain_lost: bool,
    due: Time,
    last_attempt: Option<Time>,
    failures: u32,
    number: EpochNumber,
    confirm: ConfirmSender,
    waiting_for: Option<String>,
    reported_no_key: bool,
}

impl Initiator {
    pub fn new(stock_target: usize, counters: Counters) -> Self {
        Self {
            stock: InitiatorStock::new(stock_target, counters.offers),
            attempt: Attempt::Idle,
            chain: None,
            chain_lost: false,
            due: Time::default(),
            last_attempt: None,
            failures: 0,
            number: counters.attempts,
            confirm: ConfirmSender::default(),
            waiting_for: None,
            reported_no_key: false,
        }
    }

    fn propose(
        &mut self,
        qkd_key_id: Option<KeyId>,
        ctx: &Context<'_>,
        epochs: &mut Epochs,
        out: &mut Outbox,
        rng: &mut dyn CryptoRng,
    ) {
        let (Some(remote), Some(agreement)) = (ctx.remote(), ctx.agreement()) else { return };
        self.number.0 += 1;
        self.last_attempt = Some(ctx.now);
        self.waiting_for = None;
        let proposal = Proposal {
            hello_hashes: (ctx.hellos.own.hash, remote.hash),
            epoch: self.number,
            responder_key: &remote.hello.encapsulation_key,
            indices: epochs.indices.take(agreement.lanes),
            qkd_key_id,
            chain_check: self.chain.as_ref().map(|c| c.check),
        };
        // The key passed the input check when its `Hello` arrived, so only a bug can make this fail.
        let Ok(proposed) = Proposed::new(proposal, rng) else {
            let detail = "the other site's ML-KEM key is unusable".to_owned();
            epochs.failed(FailureReason::Crypto, detail, out);
            return;
        };
        let ids = vec![out.channel.send(MessageType::Propose, proposed.bytes(), ctx.now, rng)];
        let (hello, began) = (remote.bytes.clone(), ctx.now);
        let proposal = OutstandingProposal { proposed, ids, began, wrong: 0, hello, agreement };
        self.attempt = Attempt::Proposed(Box::new(proposal));
        out.timers.set(Timer::AttemptEnd, Some(ctx.now + ATTEMPT_TIMEOUT));
        out.timers.set(Timer::ProposeAgain, Some(ctx.now + PROPOSE_RETRY_INTERVAL));
    }

    fn propose_again(&mut self, now: Time, out: &mut Outbox, rng: &mut dyn CryptoRng) {
        if let Attempt::Proposed(proposal) = &mut self.attempt {
            if !out.channel.pending(MessageType::Propose) {
                let bytes = proposal.proposed.bytes();
                proposal.ids.push(out.channel.send(MessageType::Propose, bytes, now, rng));
            }
            out.timers.set(Timer::ProposeAgain, Some(now + PROPOSE_RETRY_INTERVAL));
        }
    }

    fn on_accept(
        &mut self,
        body: &[u8],
        ctx: &Context<'_>,
        epochs: &mut Epochs,
        out: &mut Outbox,
        rng: &mut dyn CryptoRng,
    ) {
        let proposal = match std::mem::take(&mut self.attempt) {
            Attempt::Proposed(proposal) => proposal,
            other => {
                self.attempt = other;
                self.confirm.repeat_if_unsent(ctx.now, out, rng);
                return;
            }
        };
        let qkd_key_id = proposal.proposed.message().qkd_key_id.clone();
        let (began, interval) = (proposal.began, proposal.agreement.interval);
        let key = qkd_key_id.as_ref().and_then(|id| self.stock.get(id));
        let kind = qkd_key_id.as_ref().and_then(|id| self.stock.kind(id));
        let chain = (self.chain.as_ref(), self.chain_lost);
        match proposal.on_accept(body, (key, kind), chain, ctx, epochs, out) {
            AcceptOutcome::Verified(installing) => {
                out.channel.cancel(MessageType::Propose);
                out.timers.set(Timer::ProposeAgain, None);
                // A lane may refuse keys that expired while the machine slept. It then reports nothing.
                out.timers.set(Timer::AttemptEnd, Some(ctx.now + ATTEMPT_TIMEOUT));
                self.due = began + ctx.agreement().map_or(interval, |agreement| agreement.interval);
                if let Some(id) = &qkd_key_id {
                    self.stock.used(id);
                }
                self.chain_lost = false;
                self.attempt = Attempt::Installing(installing);
            }
            AcceptOutcome::Ignored(proposal) => self.attempt = Attempt::Proposed(proposal),
            AcceptOutcome::TooManyWrong(proposal, error) => {
                self.attempt = Attempt::Proposed(proposal);
                if let Some(id) = &qkd_key_id {
                    self.stock.on_confirmation_failed(id);
                }
                self.fail_attempt(FailureReason::Confirmation, error.to_string(), ctx.now, epochs, out);
            }
        }
    }

    /// Starts to seal in the epoch, now that all lanes can open its packets.
    fn on_all_installed(
        &mut self,
        installing: Installing,
        ctx: &Context<'_>,
        epochs: &mut Epochs,
        out: &mut Outbox,
        rng: &mut dyn CryptoRng,
    ) {
        let Installing { prepared, confirm } = installing;
        out.timers.set(Timer::AttemptEnd, None);
        if prepared.ended || ctx.breaks_policy(prepared.epoch.sources) {
            self.due = ctx.now;
            return;
        }
        self.failures = 0;
        self.reported_no_key = false;
        self.chain = Some(prepared.chain);
        let mut epoch = prepared.epoch;
        let local_epoch = epoch.local_epoch;
        epoch.since = ctx.now;
        epochs.activate(epoch, prepared.sealing, ctx.now.since(prepared.began), ctx.config, out);
        self.confirm.start(local_epoch, confirm, ctx.now, out, rng);
    }

    /// Handles a request of the responder for an epoch.
    fn on_rekey_request(&mut self, body: &[u8], now: Time, out: &mut Outbox) {
        let Ok(reason) = RekeyReason::parse(body) else {
            out.drops.malformed += 1;
            return;
        };
        let allowed = self.last_attempt.is_none_or(|at| now.since(at) >= MIN_REQUEST_INTERVAL);
        if self.due > now && allowed {
            self.due = now;
            out.emit(PeerEvent::RekeyAsked { reason });
        }
    }

    fn on_stock_ack(&mut self, message: Message<'_>, now: Time, out: &mut Outbox) {
        let Ok(ack) = StockAck::parse(message.body) else { return out.drops.malformed += 1 };
        if self.stock.enter_session(message.session) {
            out.report_lost(self.stock.answered(&ack, now));
        }
    }
}

impl ExchangeRole for Initiator {
    fn on_message(
        &mut self,
        message: Message<'_>,
        ctx: &Context<'_>,
        epochs: &mut Epochs,
        out: &mut Outbox,
        rng: &mut dyn CryptoRng,
    ) {
        let body = message.body;
        match message.message_type {
            MessageType::StockAck => self.on_stock_ack(message, ctx.now, out),
            MessageType::Accept => self.on_accept(body, ctx, epochs, out, rng),
            MessageType::Rekey => self.on_rekey_request(body, ctx.now, out),
            MessageType::Propose => {
                let malformed = Propose::parse(body).is_err();
                let reason = if malformed { RejectReason::Malformed } else { RejectReason::Role };
                out.reject(message.id, reason, ctx.now, rng);
            }
            MessageType::Confirm => out.drops.malformed += u64::from(Confirm::parse(body).is_err()),
            _ => {}
        }
    }

    fn on_reject(
        &mut self,
        id: MessageId,
        reason: RejectReason,
        ctx: &Context<'_>,
        epochs: &mut Epochs,
        out: &mut Outbox,
    ) {
        let Attempt::Proposed(proposal) = &self.attempt else { return };
        if !proposal.ids.contains(&id) {
            return;
        }
        let key = proposal.proposed.message().qkd_key_id.clone();
        match reason {
            // Otherwise a peer could make us propose again as often as it refuses.
            RejectReason::Chain if proposal.proposed.message().chain_check.is_none() => return,
            RejectReason::Chain => {
                self.chain = None;
                self.chain_lost = epochs.no_restart_since_epoch;
                self.due = ctx.now;
                self.drop_attempt(out);
                out.emit(PeerEvent::ChainReset);
                return;
            }
            RejectReason::UnknownKeyId | RejectReason::KmsUnavailable => {
                if let Some(key) = &key {
                    self.stock.refused(key);
                }
            }
            RejectReason::Stale => out.hello = Some(HelloRequest::Renew),
            _ => {}
        }
        let detail = match reason {
            RejectReason::Policy => "the other site refuses an epoch without QKD yet".to_owned(),
            RejectReason::UnknownKeyId => {
                let id = key.map(|id| id.to_string()).unwrap_or_default();
                format!("the other site does not hold QKD key {id}")
            }
            other => format!("the other site says `{}`", other.name()),
        };
        self.fail_attempt(FailureReason::Rejected, detail, ctx.now, epochs, out);
    }

    fn on_installed(
        &mut self,
        lane: u8,
        epoch: LocalEpoch,
        ctx: &Context<'_>,
        epochs: &mut Epochs,
        out: &mut Outbox,
        rng: &mut dyn CryptoRng,
    ) {
        match std::mem::take(&mut self.attempt) {
            Attempt::Installing(mut installing) => {
                if installing.prepared.on_installed(lane, epoch) {
                    self.on_all_installed(*installing, ctx, epochs, out, rng);
                } else {
                    self.attempt = Attempt::Installing(installing);
                }
            }
            other => self.attempt = other,
        }
    }

    /// Ends the `Confirm`, since the peer seals in this epoch, and drains older epochs.
    fn on_first_opened(
        &mut self,
        epoch: LocalEpoch,
        ctx: &Context<'_>,
        epochs: &mut Epochs,
        out: &mut Outbox,
    ) {
        let Some(agreement) = ctx.agreement() else { return };
        if self.confirm.epoch().is_some_and(|confirmed| epoch >= confirmed) {
            self.confirm.stop(out);
            epochs.drain_older(epoch, agreement.interval, ctx.config.lanes, ctx.now, out);
        }
    }

    fn on_timeout(
        &mut self,
        timer: Timer,
        ctx: &Context<'_>,
        epochs: &mut Epochs,
        out: &mut Outbox,
        rng: &mut dyn CryptoRng,
    ) {
        match timer {
            Timer::AttemptEnd => {
                let detail = match self.attempt {
                    Attempt::Installing(_) => "our lanes did not take the keys within 5 s",
                    _ => "no verified answer within 5 s",
                };
                self.fail_attempt(FailureReason::Timeout, detail.to_owned(), ctx.now, epochs, out);
            }
            Timer::ProposeAgain => self.propose_again(ctx.now, out, rng),
            Timer::ConfirmAgain => self.confirm.send_again(ctx.now, out, rng),
            _ => {}
        }
    }

    fn on_peer_restarted(&mut self, ctx: &Context<'_>, epochs: &mut Epochs, out: &mut Outbox) {
        self.fail_attempt(FailureReason::Restarted, "the peer restarted".to_owned(), ctx.now, epochs, out);
        self.stock.forget_answers();
        self.confirm.stop(out);
    }

    /// Stops sending the `Confirm` of an epoch without QKD, and ends an attempt without a QKD key.
    fn on_stricter_policy(&mut self, ctx: &Context<'_>, epochs: &Epochs, out: &mut Outbox) {
        let without_qkd = epochs.active.as_ref().filter(|epoch| ctx.breaks_policy(epoch.sources));
        if without_qkd.is_some_and(|epoch| self.confirm.epoch() == Some(epoch.local_epoch)) {
            self.confirm.stop(out);
        }
        match &mut self.attempt {
            Attempt::Idle => {}
            Attempt::Proposed(proposal) => {
                let id = proposal.proposed.message().qkd_key_id.as_ref();
                if id.and_then(|id| self.stock.kind(id)) != Some(KeyKind::Qkd) {
                    self.drop_attempt(out);
                    self.due = ctx.now;
                }
            }
            Attempt::Installing(installing) => {
                installing.prepared.ended |= !installing.prepared.epoch.sources.qkd;
            }
        }
    }

    fn counters(&self, before: Counters) -> Counters {
        Counters { offers: self.stock.offers(), attempts: self.number, ..before }
    }

    fn attempt_due(&mut self, now: Time) {
        self.due = now;
    }

    /// Drops the attempt. While the lanes install its keys, nothing of the epoch was sent, not even its
    /// chain's name, so the peer never seals in it.
    fn drop_attempt(&mut self, out: &mut Outbox) {
        out.channel.cancel(MessageType::Propose);
        out.timers.set(Timer::AttemptEnd, None);
        out.timers.set(Timer::ProposeAgain, None);
        if let Attempt::Installing(installing) = std::mem::take(&mut self.attempt) {
            close(installing.prepared.indices, out);
        }
    }

    fn drop_unanswered_attempt(&mut self, out: &mut Outbox) {
        if !matches!(self.attempt, Attempt::Installing(_)) {
            self.drop_attempt(out);
        }
    }

    fn poll(&mut self, ctx: &Context<'_>, epochs: &mut Epochs, out: &mut Outbox, rng: &mut dyn CryptoRng) {
        out.timers.set(Timer::Attempt, None);
        if !matches!(self.attempt, Attempt::Idle) {
            return;
        }
        if self.due > ctx.now {
            out.timers.set(Timer::Attempt, Some(self.due));
            return;
        }
        let ready = ctx.has_agreed()
            && ctx.hellos.refusal.is_none()
            && ctx.session_up
            && !out.channel.pending(MessageType::Hello)
            && !out.channel.pending(MessageType::StockOffer);
        if !ready {
            return; // a datagram brings the missing input
        }
        match choose_key(&self.stock, ctx, epochs) {
            KeyChoice::Named(id) => self.propose(Some(id), ctx, epochs, out, rng),
            KeyChoice::Without => self.propose(None, ctx, epochs, out, rng),
            KeyChoice::Wait { until, reason } => {
                out.timers.set(Timer::Attempt, until);
                self.waiting_for = Some(reason.clone());
                if !std::mem::replace(&mut self.reported_no_key, true) && epochs.had_epoch {
                    epochs.failed(FailureReason::NoQkdKey, reason, out);
                }
            }
        }
    }

    fn poll_stock(
        &mut self,
        request: u64,
        ctx: &Context<'_>,
        out: &mut Outbox,
        rng: &mut dyn CryptoRng,
    ) -> bool {
        let fetch = self.stock.fetch(ctx.now, request);
        if let Some(number) = fetch {
            let (stuck, qkd_only) = (self.stock.stuck_links(ctx.now), ctx.qkd_only());
            out.output(PeerOutput::Fetch(Fetch::New { request, number, qkd_only, stuck }));
        }
        if let Some(offer) = self.stock.offer() {
            out.channel.send(MessageType::StockOffer, &offer.to_bytes(), ctx.now, rng);
        }
        out.timers.set(Timer::Stock, self.stock.next_due(ctx.now));
        fetch.is_some()
    }

    fn on_kms_report(&mut self, report: KmsReport, ctx: &Context<'_>) -> LostKeys {
        match report {
            KmsReport::Keys { request, keys, missing } => {
                self.stock.fetched(request, keys, missing, ctx.qkd_only(), ctx.now)
            }
            KmsReport::Failed { request, failure } => {
                self.stock.failed(request, failure, ctx.now);
                Vec::new()
            }
        }
    }

    fn on_kms_recovered(&mut self, now: Time) {
        self.stock.on_kms_recovered(now);
    }

    fn age_stock(&mut self, now: Time) -> LostKeys {
        self.stock.age(now)
    }

    fn next_expiry(&self) -> Option<Time> {
        self.stock.next_expiry()
    }

    fn erase_stock(&mut self) {
        self.stock.erase();
    }

    fn keep_only_qkd(&mut self) -> LostKeys {
        self.stock.only_qkd()
    }

    fn stock_count(&self, kind: KeyKind) -> usize {
        self.stock.count(kind)
    }

    fn stock_target(&self) -> Option<usize> {
        Some(self.stock.target())
    }

    fn set_stock_target(&mut self, target: usize) {
        self.stock.set_target(target);
    }

    fn supply_fault(&self) -> Option<&SupplyFault> {
        self.stock.fault()
    }

    fn next_attempt(&self) -> Option<Time> {
        Some(self.due)
    }

    fn waiting_for(&self) -> Option<&str> {
        self.waiting_for.as_deref()
    }

    fn fail_attempt(
        &mut self,
        reason: FailureReason,
        detail: String,
        now: Time,
        epochs: &mut Epochs,
        out: &mut Outbox,
    ) {
        if matches!(self.attempt, Attempt::Idle) {
            return;
        }
        self.due = now + backoff(MIN_ATTEMPT_BACKOFF, MAX_ATTEMPT_BACKOFF, self.failures);
        self.failures += 1;
        self.drop_attempt(out);
        epochs.failed(reason, detail, out);
    }
}
