//! Reads and writes the fields of control messages. Every read is bounded by the message, so a parser that
//! uses only these can neither panic nor allocate more than the message holds.

use super::limits::{MAX_KEY_ID, MAX_NAME};
use qvpn_types::{KeyId, SaeId};

/// The protocol version. Both sites must speak the same one.
pub const VERSION: u8 = 2;

/// Why bytes do not parse as a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The message ends before the field does.
    #[error("the message ends within `{0}`")]
    Short(&'static str),
    /// Bytes follow the end of the message.
    #[error("{0} bytes follow the end of the message")]
    Trailing(usize),
    /// A field has a value that this version does not know or allow.
    #[error("the field `{0}` has a value that is not allowed")]
    Value(&'static str),
    /// The peer speaks another version of the protocol.
    #[error("the peer speaks version {0} of the protocol, this is version {VERSION}")]
    Version(u8),
}

/// Reads fields from the front of a slice.
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Starts at the front of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Reads the next `n` bytes.
    pub fn bytes(&mut self, n: usize, field: &'static str) -> Result<&'a [u8], ParseError> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(ParseError::Short(field))?;
        self.0 = tail;
        Ok(head)
    }

    /// Reads the next `N` bytes as an array.
    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], ParseError> {
        self.bytes(N, field)?.try_into().map_err(|_| ParseError::Short(field))
    }

    /// Reads the next `N` bytes as an array on the heap, for keys and ciphertexts.
    pub fn boxed<const N: usize>(&mut self, field: &'static str) -> Result<Box<[u8; N]>, ParseError> {
        let bytes = self.bytes(N, field)?;
        Box::<[u8]>::from(bytes).try_into().map_err(|_| ParseError::Short(field))
    }

    pub fn u8(&mut self, field: &'static str) -> Result<u8, ParseError> {
        Ok(self.array::<1>(field)?[0])
    }

    pub fn u32(&mut self, field: &'static str) -> Result<u32, ParseError> {
        self.array(field).map(u32::from_be_bytes)
    }

    pub fn u64(&mut self, field: &'static str) -> Result<u64, ParseError> {
        self.array(field).map(u64::from_be_bytes)
    }

    /// Reads a name: a length byte and that number of bytes of UTF-8, without control characters, since names
    /// are logged.
    pub fn name(&mut self, field: &'static str) -> Result<String, ParseError> {
        let len = usize::from(self.u8(field)?);
        let text = self.text(len, field)?;
        if text.chars().any(char::is_control) {
            return Err(ParseError::Value(field));
        }
        Ok(text.to_owned())
    }

    fn text(&mut self, len: usize, field: &'static str) -> Result<&'a str, ParseError> {
        std::str::from_utf8(self.bytes(len, field)?).map_err(|_| ParseError::Value(field))
    }

    /// Reads a key ID: two bytes of length and that number of bytes of UTF-8, opaque otherwise, at most
    /// [`MAX_KEY_ID`]. `None` if it is empty.
    pub fn key_id(&mut self, field: &'static str) -> Result<Option<KeyId>, ParseError> {
        let len = usize::from(u16::from_be_bytes(self.array(field)?));
        if len > MAX_KEY_ID {
            return Err(ParseError::Value(field));
        }
        let id = Some(self.text(len, field)?).filter(|id| !id.is_empty());
        id.map(KeyId::new).transpose().map_err(|_| ParseError::Value(field))
    }

    /// Reads an SAE ID; `None` if it is empty.
    pub fn sae_id(&mut self, field: &'static str) -> Result<Option<SaeId>, ParseError> {
        let id = Some(self.name(field)?).filter(|id| !id.is_empty());
        id.map(SaeId::new).transpose().map_err(|_| ParseError::Value(field))
    }

    /// Reads a flag byte, 0 or 1.
    pub fn flag(&mut self, field: &'static str) -> Result<bool, ParseError> {
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(ParseError::Value(field)),
        }
    }

    /// Succeeds if nothing is left.
    pub fn end(self) -> Result<(), ParseError> {
        if self.0.is_empty() { Ok(()) } else { Err(ParseError::Trailing(self.0.len())) }
    }
}

/// Writes a name. A name that is too long is cut; callers check their config to prevent that.
pub fn put_name(out: &mut Vec<u8>, name: &str) {
    let bytes = &name.as_bytes()[..name.len().min(MAX_NAME)];
    out.push(u8::try_from(bytes.len()).unwrap_or(u8::MAX));
    out.extend_from_slice(bytes);
}

/// Writes a key ID, or no bytes for none.
pub fn put_key_id(out: &mut Vec<u8>, id: Option<&KeyId>) {
    let id = id.map_or("", KeyId::as_str);
    out.extend_from_slice(&u16::try_from(id.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.extend_from_slice(id.as_bytes());
}

/// Writes a flag byte, and the bytes if there are any.
pub fn put_option(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    out.push(u8::from(bytes.is_some()));
    out.extend_from_slice(bytes.unwrap_or_default());
}
