//! The epoch exchange: three messages that mix all secrets into one epoch's keys. Each half is a state that its
//! transition consumes, so ephemeral secrets cannot outlive their use.

mod initiator;
mod parameters;
mod responder;

pub use initiator::{AcceptError, Agreed, Proposal, Proposed};
pub use parameters::ExchangeParameters;
pub use responder::{Answered, ProposeFault, answer};
