//! `Reject`: the refusal of a message.

use super::codec::{ParseError, Reader};
use super::fragment::MessageId;
use super::reason::RejectReason;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reject {
    /// The ID of the refused message.
    pub id: MessageId,
    pub reason: RejectReason,
}

impl Reject {
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = self.id.to_vec();
        out.push(self.reason as u8);
        out
    }

    /// Parses the whole message.
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
