//! One honest end, and in the place of the other somebody who holds its static keys and keeps to no rule: what breaks a rule
//! of the exchange gets no epoch, whatever else is right about it. Each test has an honest exchange in it, so that it can't
//! pass because nothing works.

#![allow(clippy::unwrap_used)]

mod initiator;
mod responder;
mod world;
