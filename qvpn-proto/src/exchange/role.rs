//! The calls that a peer makes into its role, the initiator or the responder. A method that concerns only
//! one role has a default that does nothing.

use qvpn_types::{EpochNumber, KeyId, LocalEpoch, Time};
use rand_core::CryptoRng;

use super::context::Context;
use crate::epochs::Epochs;
use crate::kms::{KeyKind, KmsReport};
use crate::notice::FailureReason;
use crate::outbox::Outbox;
use crate::stock::SupplyFault;
use crate::timers::Timer;
use crate::wire::{MessageId, MessageType, RejectReason};

/// A message of the exchange or of the stock.
#[derive(Clone, Copy)]
pub struct Message<'a> {
    pub id: MessageId,
    pub message_type: MessageType,
    pub body: &'a [u8],
    /// The number of the control session in which it arrived.
    pub session: u64,
}

/// IDs of keys that were lost, and the reasons for the operator.
pub type LostKeys = Vec<(KeyId, String)>;

/// The numbers that the roles count. They continue when a reload replaces the role, so that late messages of
/// the former role do not count as newer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// The number of the last `StockOffer`.
    pub offers: u64,
    /// The revision of the last `StockAck`.
    pub acks: u64,
    /// The number of the last attempt.
    pub attempts: EpochNumber,
}

/// One role of the exchange, with its stock of QKD keys.
pub trait ExchangeRole: Send + Sync {
    /// Handles a message of the peer. A message that only the other role handles is ignored or refused.
    fn on_message(
        &mut self,
        message: Message<'_>,
        ctx: &Context<'_>,
        epochs: &mut Epochs,
        out: &mut Outbox,
        rng: &mut dyn CryptoRng,
    );

    /// Handles the peer's `Reject` of a message other than our `Hello`.
    fn on_reject(
        &mut self,
        _id: MessageId,
        _reason: RejectReason,
        _ctx: &Context<'_>,
        _epochs: &mut Epochs,
        _out: &mut Outbox,
    ) {
    }

    /// Handles a lane's report that it can open packets of this epoch.
    fn on_installed(
        &mut self,
        lane: u8,
        epoch: LocalEpoch,
        ctx: &Context<'_>,
        epochs: &mut Epochs,
        out: &mut Outbox,
        rng: &mut dyn CryptoRng,
    );

    /// Handles the first packet of the peer that opens in this epoch.
    fn on_first_opened(
        &mut self,
        epoch: LocalEpoch,
        ctx: &Context<'_>,
        epochs: &mut Epochs,
        out: &mut Outbox,
    );

    /// Handles a timer of this role that is due.
    fn on_timeout(
        &mut self,
        timer: Timer,
        ctx: &Context<'_>,
        epochs: &mut Epochs,
        out: &mut Outbox,
        rng: &mut dyn CryptoRng,
    );

    /// Handles a key that a lane ended early, so that a fresh epoch is due.
    fn on_key_ended(&mut self, ctx: &Context<'_>, _out: &mut Outbox, _rng: &mut dyn CryptoRng) {
        self.attempt_due(ctx.now);
    }

    /// Handles an operator's request for a fresh epoch.
    fn on_operator_rekey(&mut self, ctx: &Context<'_>, _out: &mut Outbox, _rng: &mut dyn CryptoRng) {
        self.attempt_due(ctx.now);
    }

    /// Forgets the exchange with a peer that restarted: it has no state of earlier epochs.
    fn on_peer_restarted(&mut self, ctx: &Context<'_>, epochs: &mut Epochs, out: &mut Outbox);

    /// Applies a stricter policy: an attempt without QKD never becomes an epoch.
    fn on_stricter_policy(&mut self, ctx: &Context<'_>, epochs: &Epochs, out: &mut Outbox);

    /// Returns the numbers counted so far; `before` are those at the start of this role.
    fn counters(&self, before: Counters) -> Counters;

    /// Makes an attempt due at once, if this role starts them.
    fn attempt_due(&mut self, _now: Time) {}

    /// Ends the attempt under way without counting a failure.
    fn drop_attempt(&mut self, _out: &mut Outbox) {}

    /// Does what [`drop_attempt`](Self::drop_attempt) does, unless the peer has answered the attempt.
    fn drop_unanswered_attempt(&mut self, _out: &mut Outbox) {}

    /// Does all work that is due and possible now, and sets the timer for the next time.
    fn poll(&mut self, ctx: &Context<'_>, epochs: &mut Epochs, out: &mut Outbox, rng: &mut dyn CryptoRng);

    /// Does the stock's due work: queues the fetch of keys, and the message to the peer. `request` is the
    /// number of a fetch; returns whether it was used.
    fn poll_stock(
        &mut self,
        request: u64,
        ctx: &Context<'_>,
        out: &mut Outbox,
        rng: &mut dyn CryptoRng,
    ) -> bool;

    /// Handles the report of a fetch.
    fn on_kms_report(&mut self, report: KmsReport, ctx: &Context<'_>) -> LostKeys;

    /// Retries waiting fetches at once, since a KME answers again.
    fn on_kms_recovered(&mut self, now: Time);

    /// Erases keys that are too old.
    fn age_stock(&mut self, now: Time) -> LostKeys;

    /// Returns when the next key of the stock is too old.
    fn next_expiry(&self) -> Option<Time>;

    /// Erases the whole stock, since no more epochs use QKD.
    fn erase_stock(&mut self);

    /// Erases keys from files, since QKD is required.
    fn keep_only_qkd(&mut self) -> LostKeys;

    /// Returns the number of usable keys of this kind.
    fn stock_count(&self, kind: KeyKind) -> usize;

    /// Returns the target size of the stock, if this role knows it.
    fn stock_target(&self) -> Option<usize> {
        None
    }

    /// Changes the target size of the stock.
    fn set_stock_target(&mut self, _target: usize) {}

    /// Returns the fault of the supply, if there is one.
    fn supply_fault(&self) -> Option<&SupplyFault>;

    /// Returns the time of the next attempt, if this role knows it.
    fn next_attempt(&self) -> Option<Time> {
        None
    }

    /// Returns why a due attempt does not start.
    fn waiting_for(&self) -> Option<&str> {
        None
    }

    /// Whether the peer offers no key that could still be used.
    fn lacks_offers(&self) -> bool {
        false
    }

    /// Whether the peer proposes the epochs.
    fn waits_for_proposals(&self) -> bool {
        false
    }

    /// Ends the attempt under way, if there is one, as failed.
    fn fail_attempt(
        &mut self,
        _reason: FailureReason,
        _detail: String,
        _now: Time,
        _epochs: &mut Epochs,
        _out: &mut Outbox,
    ) {
    }
}
