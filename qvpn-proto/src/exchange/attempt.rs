//! The initiator's attempt as states: each transition consumes a state and yields the next.

use qvpn_secret::SecretBuf;
use qvpn_types::Time;

use super::context::Context;
use super::parameters::ExchangeParameters;
use super::prepared::PreparedEpoch;
use super::proposed::{AcceptError, Agreed, Proposed};
use crate::epoch::{ActiveEpoch, MAX_WRONG_CONFIRMATIONS, drain, max_age};
use crate::epochs::Epochs;
use crate::hello::Agreement;
use crate::key_schedule::Chain;
use crate::kms::KeyKind;
use crate::notice::PeerEvent;
use crate::outbox::Outbox;
use crate::wire::{Confirm, MessageId};

/// The attempt under way.
#[derive(Default)]
pub enum Attempt {
    #[default]
    Idle,
    Proposed(Box<OutstandingProposal>),
    Installing(Box<Installing>),
}

/// A `Propose` without a verified `Accept`.
pub struct OutstandingProposal {
    pub proposed: Proposed,
    /// The message IDs under which it was sent.
    pub ids: Vec<MessageId>,
    pub began: Time,
    pub wrong: u8,
    /// The peer's `Hello` that it names, and the agreement under that `Hello`. A later `Hello` may overtake
    /// the answer.
    pub hello: Vec<u8>,
    pub agreement: Agreement,
}

/// A verified epoch while the lanes install its opening keys.
pub struct Installing {
    pub prepared: PreparedEpoch,
    /// The `Confirm` to send once they are installed.
    pub confirm: Vec<u8>,
}

/// The result of an `Accept`.
pub enum AcceptOutcome {
    Verified(Box<Installing>),
    /// The `Accept` is ignored, and the attempt continues.
    Ignored(Box<OutstandingProposal>),
    /// It was the last wrong `Accept` that an attempt allows.
    TooManyWrong(Box<OutstandingProposal>, AcceptError),
}

impl OutstandingProposal {
    /// Verifies an `Accept`. If it is right, makes the keys and orders the lanes to install the opening keys.
    pub fn on_accept(
        self: Box<Self>,
        body: &[u8],
        (qkd, kind): (Option<&SecretBuf>, Option<KeyKind>),
        (chain, chain_lost): (Option<&Chain>, bool),
        ctx: &Context<'_>,
        epochs: &mut Epochs,
        out: &mut Outbox,
    ) -> AcceptOutcome {
        let Self { proposed, ids, began, wrong, hello, agreement } = *self;
        let parameters = ExchangeParameters {
            initiator: ctx.config.local.public(),
            responder: &ctx.config.remote,
            hello_initiator: &ctx.hellos.own.bytes,
            hello_responder: &hello,
            suite: ctx.config.suite,
            lanes: agreement.lanes,
        };
        let epoch = proposed.message().epoch;
        let uses_chain = proposed.message().chain_check.is_some();
        let chain = chain.filter(|_| uses_chain);
        let psk = ctx.config.psk.as_ref().map(|psk| psk.secret());
        match proposed.verify(body, &parameters, &ctx.config.local, qkd, psk, chain) {
            Ok(agreed) => {
                let sources = ctx.sources(kind, uses_chain);
                let active = ActiveEpoch {
                    epoch,
                    local_epoch: epochs.next_local(),
                    since: ctx.now,
                    sealing_ends: began + max_age(agreement.interval),
                    parties: ctx.config.parties(),
                    sources,
                    qkd_key_id: agreed.propose.qkd_key_id.clone(),
                    chain_lost,
                };
                AcceptOutcome::Verified(Box::new(install(
                    agreed,
                    active,
                    (began, agreement),
                    ctx,
                    epochs,
                    out,
                )))
            }
            Err((proposed, error)) => {
                let counts = !matches!(error, AcceptError::Malformed(_) | AcceptError::OtherAttempt);
                let wrong = wrong + u8::from(counts);
                if matches!(error, AcceptError::Malformed(_)) {
                    out.drops.malformed += 1;
                }
                if counts {
                    out.drops.refused += 1;
                    out.emit(PeerEvent::WrongConfirmation { epoch, count: wrong });
                }
                let proposal = Box::new(Self { proposed, ids, began, wrong, hello, agreement });
                if wrong >= MAX_WRONG_CONFIRMATIONS {
                    AcceptOutcome::TooManyWrong(proposal, error)
                } else {
                    AcceptOutcome::Ignored(proposal)
                }
            }
        }
    }
}

fn install(
    agreed: Agreed,
    epoch: ActiveEpoch,
    (began, agreement): (Time, Agreement),
    ctx: &Context<'_>,
    epochs: &mut Epochs,
    out: &mut Outbox,
) -> Installing {
    let keys = agreed.keys;
    let opening_ends = ctx.now + max_age(agreement.interval) + drain(agreement.interval);
    let indices = agreed.propose.indices;
    let opening = (indices.as_slice(), keys.to_initiator);
    let awaited = epochs.open(&epoch, opening, opening_ends, ctx.config, ctx.now, out);
    let confirmation = *keys.confirm_initiator.expose();
    let confirm = Confirm { epoch: epoch.epoch, confirmation }.to_bytes();
    let prepared = PreparedEpoch {
        epoch,
        awaited,
        indices,
        sealing: agreed.responder_indices.into_iter().zip(keys.to_responder).collect(),
        chain: keys.chain,
        began,
        ended: false,
    };
    Installing { prepared, confirm }
}
