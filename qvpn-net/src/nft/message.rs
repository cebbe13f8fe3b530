//! Netlink messages for nf_tables: builds nested attributes and parses them. The numbers of attributes and
//! messages are from `linux/netfilter/nf_tables.h`.

use crate::netlink::NESTED;
pub(super) use crate::netlink::{Received, attributes};

/// The nfnetlink subsystem of nf_tables.
const SUBSYSTEM: u16 = 10;
/// The address family `inet`: one table for IPv4 and IPv6.
const FAMILY_INET: u8 = 1;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// Bytes of the header that follows the netlink header.
const HEADER_BYTES: usize = 4;

pub(super) const NLM_F_REQUEST: u16 = 1;
pub(super) const NLM_F_ACK: u16 = 4;
pub(super) const NLM_F_DUMP: u16 = 0x300;
pub(super) const NLM_F_CREATE: u16 = 0x400;
pub(super) const NLM_F_APPEND: u16 = 0x800;

/// The type of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Kind {
    NewTable = 0,
    GetTable = 1,
    DelTable = 2,
    NewChain = 3,
    DelChain = 5,
    NewRule = 6,
    GetRule = 7,
    DelRule = 8,
    NewSet = 9,
    GetSet = 10,
    DelSet = 11,
    NewSetElements = 12,
    DelSetElements = 14,
}

impl Kind {
    /// Returns the number in `nlmsg_type`.
    pub fn number(self) -> u16 {
        (SUBSYSTEM << 8) | self as u16
    }
}

/// Messages in sequence, sent in one call.
#[derive(Debug, Default)]
pub(super) struct Messages {
    bytes: Vec<u8>,
    /// Sequence number of the last message.
    sequence: u32,
}

impl Messages {
    /// Starts a transaction: the kernel applies all or nothing.
    pub fn batch() -> Self {
        let mut messages = Self::default();
        messages.raw(BATCH_BEGIN, NLM_F_REQUEST, 0, SUBSYSTEM, |_| {});
        messages
    }

    /// Adds one message; `fill` writes its attributes.
    pub fn add(&mut self, kind: Kind, flags: u16, fill: impl FnOnce(&mut Attributes<'_>)) {
        self.raw(kind.number(), NLM_F_REQUEST | flags, FAMILY_INET, 0, fill);
    }

    /// Ends a transaction.
    pub fn commit(mut self) -> Self {
        self.raw(BATCH_END, NLM_F_REQUEST, 0, SUBSYSTEM, |_| {});
        self
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Sequence number of the message that was added last.
    pub fn sequence(&self) -> u32 {
        self.sequence
    }

    fn raw(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        resource: u16,
        fill: impl FnOnce(&mut Attributes<'_>),
    ) {
        self.sequence += 1;
        let start = self.bytes.len();
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(self.sequence.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        fill(&mut Attributes { bytes: &mut self.bytes });
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        if let Some(place) = self.bytes.get_mut(start..start + 4) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
    }
}

/// Writes attributes at the end of a message.
pub(super) struct Attributes<'b> {
    bytes: &'b mut Vec<u8>,
}

impl Attributes<'_> {
    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.with(kind, |bytes| bytes.extend(value));
    }

    /// Writes a number in network byte order.
    pub fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// Writes text with its terminating zero byte.
    pub fn text(&mut self, kind: u16, value: &str) {
        self.with(kind, |bytes| {
            bytes.extend(value.as_bytes());
            bytes.push(0);
        });
    }

    pub fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes<'_>)) {
        self.with(kind | NESTED, |bytes| fill(&mut Attributes { bytes }));
    }

    fn with(&mut self, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend(kind.to_ne_bytes());
        fill(self.bytes);
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        if let Some(place) = self.bytes.get_mut(start..start + 2) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

impl<'b> Received<'b> {
    /// Whether it is about nf_tables.
    pub(super) fn is_nf_tables(&self) -> bool {
        self.kind >> 8 == SUBSYSTEM
    }

    /// Returns the attributes of the message.
    pub(super) fn attributes(&self) -> Vec<(u16, &'b [u8])> {
        attributes(self.payload.get(HEADER_BYTES..).unwrap_or_default())
    }

    /// Returns the text of the attribute `kind`.
    pub(super) fn text(&self, kind: u16) -> Option<&'b str> {
        let (_, value) = self.attributes().into_iter().find(|(found, _)| *found == kind)?;
        std::str::from_utf8(value).ok().map(|text| text.trim_end_matches('\0'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut messages = Messages::batch();
        messages.add(Kind::NewTable, NLM_F_CREATE, |a| {
            a.text(1, "qvpn-a");
            a.number(2, 6);
            a.nested(3, |inner| inner.bytes(7, &[1, 2, 3]));
        });
        let messages = messages.commit();
        let all = Received::all(messages.bytes());
        assert_eq!(all.iter().map(|m| m.kind).collect::<Vec<_>>(), [0x10, 0xa00, 0x11]);
        assert_eq!(all.iter().map(|m| m.sequence).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(all[1].text(1), Some("qvpn-a"));
        let attributes_of_it = all[1].attributes();
        assert_eq!(attributes_of_it[1], (2, &[0, 0, 0, 6][..]));
        assert_eq!(attributes(attributes_of_it[2].1), [(7, &[1, 2, 3][..])]);
    }

    #[test]
    fn truncated_messages_end_the_list_and_panic_nowhere() {
        let mut messages = Messages::batch();
        messages.add(Kind::NewTable, 0, |a| a.text(1, "name"));
        let bytes = messages.commit();
        for length in 0..bytes.bytes().len() {
            for message in Received::all(&bytes.bytes()[..length]) {
                let _ = (message.attributes(), message.text(1), message.error());
            }
        }
        let _ = Received::all(&[0xff; 64]);
        let _ = attributes(&[0, 0, 0, 0, 3, 0, 0, 0]);
    }
}
