//! The epoch exchange: three messages that mix all secrets into one epoch's keys. [`Proposed`]
//! and [`answer()`] are the cryptography of the two halves. Transitions consume their state, so ephemeral
//! secrets cannot outlive their use. The initiator and the responder are state machines around them.

mod answer;
mod attempt;
mod confirm;
mod context;
mod initiator;
mod key_choice;
mod parameters;
mod prepared;
mod proposed;
mod responder;
mod role;

pub use answer::{Answered, ProposeFault, answer};
pub(crate) use context::Context;
pub(crate) use initiator::Initiator;
pub use parameters::ExchangeParameters;
pub use proposed::{AcceptError, Agreed, Proposal, Proposed};
pub(crate) use responder::Responder;
pub(crate) use role::{Counters, ExchangeRole, Message};
