//! One honest side against an attacker that holds the peer's static keys and breaks the protocol. A message
//! that breaks a rule of the exchange makes no epoch, even if everything else about it is right. Each test
//! contains an honest exchange, so that it can't pass because nothing works.

#![allow(clippy::unwrap_used)]

mod initiator;
mod responder;
mod world;
