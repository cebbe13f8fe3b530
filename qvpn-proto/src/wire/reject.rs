//! `Reject`: which message is refused, and why.

use super::codec::{ParseError, Reader};
use super::fragment::MessageId;
use super::reason::RejectReason;

/// A refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reject {
    /// The message that is refused.
    pub id: MessageId,
    /// Why.
    pub reason: RejectReason,
}

impl Reject {
    /// The message's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = self.id.to_vec();
        out.push(self.reason as u8);
        out
    }

    /// Parses a whole message.
    ///
    /// # Errors
    /// [`ParseError`] names the field.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut r = Reader::new(bytes);
        let id = r.array("message ID")?;
        let reason = RejectReason::from_byte(r.u8("reason")?).ok_or(ParseError::Value("reason"))?;
        r.end()?;
        Ok(Self { id, reason })
    }
}
