//! What the peer asks of its role, the initiator or the responder. What only one role does is a default that
//! does nothing.

use qvpn_types::{LocalEpoch, Time};
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
}

/// IDs of keys that were lost, and why, for people.
pub type LostKeys = Vec<(String, String)>;

/// One role of the exchange, with its stock of QKD keys.
pub trait ExchangeRole: Send + Sync {
    /// A message of the peer. Messages that are for the other role alone are ignored or refused.
    fn on_message(
        &mut self,
        message: Message<'_>,
        ctx: &Context<'_>,
        epochs: &mut Epochs,
        out: &mut Outbox,
        rng: &mut dyn CryptoRng,
    );

    /// The peer refuses a message that is not our `Hello`.
    fn on_reject(
        &mut self,
        _id: MessageId,
        _reason: RejectReason,
        _ctx: &Context<'_>,
        _epochs: &mut Epochs,
        _out: &mut Outbox,
    ) {
    }

    /// A lane can open packets of this epoch.
    fn on_installed(
        &mut self,
        lane: u8,
        epoch: LocalEpoch,
        ctx: &Context<'_>,
        epochs: &mut Epochs,
        out: &mut Outbox,
        rng: &mut dyn CryptoRng,
    );

    /// A packet of the peer opened in this epoch for the first time.
    fn on_first_opened(
        &mut self,
        epoch: LocalEpoch,
        ctx: &Context<'_>,
        epochs: &mut Epochs,
        out: &mut Outbox,
    );

    /// A timer of this role is due.
    fn on_timeout(
        &mut self,
        timer: Timer,
        ctx: &Context<'_>,
        epochs: &mut Epochs,
        out: &mut Outbox,
        rng: &mut dyn CryptoRng,
    );

    /// A lane ended its key early, so a fresh epoch is due.
    fn on_key_ended(&mut self, ctx: &Context<'_>, out: &mut Outbox, rng: &mut dyn CryptoRng);

    /// The operator wants a fresh epoch.
    fn on_operator_rekey(&mut self, ctx: &Context<'_>, out: &mut Outbox, rng: &mut dyn CryptoRng);

    /// The peer restarted: it knows nothing of us.
    fn on_peer_restarted(&mut self, ctx: &Context<'_>, epochs: &mut Epochs, out: &mut Outbox);

    /// A policy became stricter: an attempt without QKD never becomes an epoch.
    fn on_stricter_policy(&mut self, ctx: &Context<'_>, epochs: &Epochs, out: &mut Outbox);

    /// An attempt is due at once, if it is this role that begins them.
    fn attempt_due(&mut self, _now: Time) {}

    /// Ends the attempt under way without counting a failure.
    fn drop_attempt(&mut self, _out: &mut Outbox) {}

    /// As [`drop_attempt`](Self::drop_attempt), but an attempt that the peer answered goes on.
    fn drop_unanswered_attempt(&mut self, _out: &mut Outbox) {}

    /// Does what is due and possible now, and sets the timer for the next time.
    fn poll(&mut self, ctx: &Context<'_>, epochs: &mut Epochs, out: &mut Outbox, rng: &mut dyn CryptoRng);

    /// Does what is due for the stock: queues the fetch of keys, and the message to the peer. `request` is
    /// the number of a fetch; returns whether it was used.
    fn poll_stock(
        &mut self,
        request: u64,
        ctx: &Context<'_>,
        out: &mut Outbox,
        rng: &mut dyn CryptoRng,
    ) -> bool;

    /// The answer to a fetch.
    fn on_kms_report(&mut self, report: KmsReport, ctx: &Context<'_>) -> LostKeys;

    /// A KME answers again: what waits for it is asked for at once.
    fn on_kms_recovered(&mut self, now: Time);

    /// Erases keys that are too old.
    fn age_stock(&mut self, now: Time) -> LostKeys;

    /// QKD is required: erases keys from files.
    fn keep_only_qkd(&mut self) -> LostKeys;

    /// How many keys of this kind can be used.
    fn stock_count(&self, kind: KeyKind) -> usize;

    /// How many keys are to be held, if this role knows.
    fn stock_target(&self) -> Option<usize> {
        None
    }

    /// Changes how many keys are to be held.
    fn set_stock_target(&mut self, _target: usize) {}

    /// What is wrong with the supply.
    fn supply_fault(&self) -> Option<&SupplyFault>;

    /// When the next attempt is due, if this role knows.
    fn next_attempt(&self) -> Option<Time> {
        None
    }

    /// Why no attempt begins though one is due.
    fn waiting_for(&self) -> Option<&str> {
        None
    }

    /// The peer offers no key that could still be used.
    fn lacks_offers(&self) -> bool {
        false
    }

    /// The epochs are proposed by the peer.
    fn waits_for_proposals(&self) -> bool {
        false
    }

    /// Ends the attempt under way as failed, if there is one.
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
