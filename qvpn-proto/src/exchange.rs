//! The epoch exchange: three messages that mix all secrets into one epoch's keys. Each half is a state that its
//! transition consumes, so ephemeral secrets cannot outlive their use.

mod initiator;
mod responder;

pub use initiator::{AcceptError, Agreed, Proposal, Proposed};
pub use responder::{Answered, ProposeFault, answer};

use qvpn_identity::PublicIdentity;

use crate::config::Suite;
use crate::key_schedule::Transcript;

/// Who takes part, and on what terms.
#[derive(Clone, Copy)]
pub struct Terms<'a> {
    /// The initiator's identity.
    pub initiator: &'a PublicIdentity,
    /// The responder's identity.
    pub responder: &'a PublicIdentity,
    /// The initiator's `Hello` in force.
    pub hello_initiator: &'a [u8],
    /// The responder's `Hello` in force.
    pub hello_responder: &'a [u8],
    /// The AEAD.
    pub suite: Suite,
    /// How many lanes.
    pub lanes: u8,
}

impl<'a> Terms<'a> {
    fn transcript(&self, propose: &'a [u8], accept: &'a [u8]) -> Transcript<'a> {
        Transcript {
            initiator: self.initiator,
            responder: self.responder,
            hello_initiator: self.hello_initiator,
            hello_responder: self.hello_responder,
            propose,
            accept,
        }
    }
}
