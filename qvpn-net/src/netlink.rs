//! Netlink messages as received, and their attributes.

/// Marks an attribute that contains attributes.
pub(crate) const NESTED: u16 = 0x8000;

/// A message as received.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Received<'b> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    /// Port of the socket whose request caused the message, in notifications.
    pub port: u32,
    /// What follows the header.
    pub payload: &'b [u8],
}

impl<'b> Received<'b> {
    /// Returns the messages that one call received; a truncated one ends the list.
    pub fn all(bytes: &'b [u8]) -> Vec<Self> {
        let mut rest = bytes;
        let mut found = Vec::new();
        while let Some((message, length)) = Self::first(rest) {
            found.push(message);
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        found
    }

    fn first(bytes: &'b [u8]) -> Option<(Self, usize)> {
        let length = usize::try_from(u32_at(bytes, 0)?).ok().filter(|length| *length >= 16)?;
        let message = Self {
            kind: u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?),
            flags: u16::from_ne_bytes(*bytes.get(6..)?.first_chunk()?),
            sequence: u32_at(bytes, 8)?,
            port: u32_at(bytes, 12)?,
            payload: bytes.get(16..length)?,
        };
        Some((message, length))
    }

    /// Returns the error number of an acknowledgement, 0 for success; `None` for other messages.
    pub fn error(&self) -> Option<i32> {
        const NLMSG_ERROR: u16 = 2;
        (self.kind == NLMSG_ERROR).then(|| self.payload.first_chunk())?.map(|code| -i32::from_ne_bytes(*code))
    }

    /// Returns the error number with which a dump ended, 0 for success.
    pub fn dump_error(&self) -> Option<i32> {
        self.payload.first_chunk().map(|code| -i32::from_ne_bytes(*code))
    }

    /// Whether it ends a dump.
    pub fn is_done(&self) -> bool {
        const NLMSG_DONE: u16 = 3;
        self.kind == NLMSG_DONE
    }
}

/// Returns the attributes in `bytes`; a truncated one ends the list.
pub(crate) fn attributes(bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut rest = bytes;
    let mut found = Vec::new();
    while let Some((kind, value, length)) = first_attribute(rest) {
        found.push((kind, value));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn first_attribute(bytes: &[u8]) -> Option<(u16, &[u8], usize)> {
    let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
    let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?) & !NESTED;
    Some((kind, bytes.get(4..length)?, length))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}
