//! The parties of an exchange and what they agreed.

use qvpn_identity::PublicIdentity;
use qvpn_types::Suite;

use crate::key_schedule::Transcript;

/// The parties of an exchange, their `Hello`s, and the agreed suite and lanes.
#[derive(Clone, Copy)]
pub struct ExchangeParameters<'a> {
    pub initiator: &'a PublicIdentity,
    pub responder: &'a PublicIdentity,
    /// The initiator's `Hello` in force.
    pub hello_initiator: &'a [u8],
    /// The responder's `Hello` in force.
    pub hello_responder: &'a [u8],
    pub suite: Suite,
    /// The agreed number of lanes.
    pub lanes: u8,
}

impl<'a> ExchangeParameters<'a> {
    pub(super) fn transcript(&self, propose: &'a [u8], accept: &'a [u8]) -> Transcript<'a> {
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
