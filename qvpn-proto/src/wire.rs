//! The messages inside the control session. Each has one parser, which is total and bounded.
//!
//! Integers are big-endian. A name is one length byte and its bytes. `docs/protocol.md` shows the layout of
//! each message.

pub mod codec;
mod exchange;
pub mod fragment;
mod hello;
mod lanes;
pub mod limits;
mod ping;
mod reason;
mod reject;
mod stock;

pub use codec::{ParseError, VERSION};
pub use exchange::{Accept, CONFIRMATION, Confirm, Propose};
pub use fragment::{Fragment, MessageId, MessageType};
pub use hello::{Hello, RELEASE};
pub use lanes::LaneSet;
pub use ping::Ping;
pub use reason::{RejectReason, RekeyReason};
pub use reject::Reject;
pub use stock::{KeyAvailability, MAX_OFFER_COST, OFFER_ROOM, StockAck, StockOffer, offer_cost};
