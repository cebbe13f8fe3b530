//! What the peers say to each other inside the control session: one parser a message, total and bounded.
//!
//! Integers are big-endian; a name is one length byte and its bytes. `docs/protocol.md` draws each message.

pub mod limits;
mod reason;

pub use reason::RejectReason;
