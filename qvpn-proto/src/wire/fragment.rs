//! A fragment: a minimal IPv6 packet that carries a piece of a control message through the control session.
//! boringtun carries only IP packets, so each piece has an IPv6 header with next header 253 (RFC 3692).

use super::codec::{ParseError, Reader};
use super::limits::{
    FRAGMENT_HEADER, FRAGMENT_PAYLOAD, IPV6_HEADER, MAX_FRAGMENTS, MAX_LINK_PACKET, MAX_MESSAGE, MAX_PROBE,
};
use super::ping::Ping;

/// The ID of a sender's message: random, and the same in each of its fragments and repetitions.
pub type MessageId = [u8; 8];

/// Next header of our packets: "use for experimentation and testing", RFC 3692.
const NEXT_HEADER: u8 = 253;

/// The type byte of a control message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MessageType {
    /// [`Hello`](super::Hello)
    Hello = 1,
    /// [`StockOffer`](super::StockOffer)
    StockOffer = 2,
    /// [`StockAck`](super::StockAck)
    StockAck = 3,
    /// [`Propose`](super::Propose)
    Propose = 4,
    /// [`Accept`](super::Accept)
    Accept = 5,
    /// [`Confirm`](super::Confirm)
    Confirm = 6,
    /// Asks the initiator to propose: [`RekeyReason`](super::RekeyReason).
    Rekey = 7,
    /// Asks for a `Pong`: [`Ping`]
    Ping = 8,
    /// Answers a `Ping`, with the same body.
    Pong = 9,
    /// Says that the sender stops. Empty.
    Bye = 10,
    /// [`Reject`](super::Reject)
    Reject = 11,
    /// Acknowledges a message: the ID of one that arrived whole.
    Ack = 12,
    /// The lanes on which the sender receives nothing: [`LaneSet`](super::LaneSet)
    Lanes = 13,
}

impl MessageType {
    /// Returns the type with this byte on the wire.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Hello,
            2 => Self::StockOffer,
            3 => Self::StockAck,
            4 => Self::Propose,
            5 => Self::Accept,
            6 => Self::Confirm,
            7 => Self::Rekey,
            8 => Self::Ping,
            9 => Self::Pong,
            10 => Self::Bye,
            11 => Self::Reject,
            12 => Self::Ack,
            13 => Self::Lanes,
            _ => return None,
        })
    }
}

/// A piece of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fragment<'a> {
    /// The ID of the message.
    pub id: MessageId,
    /// The message's type.
    pub kind: MessageType,
    /// The index of this piece, from 0.
    pub index: u8,
    /// The number of pieces.
    pub count: u8,
    /// The length of the whole message in bytes.
    pub total: u16,
    /// The piece's bytes. All pieces but the last are full.
    pub payload: &'a [u8],
}

/// Cuts a message into packets for the control session.
#[must_use]
pub fn packets(id: MessageId, kind: MessageType, message: &[u8]) -> Vec<Vec<u8>> {
    let pieces: Vec<&[u8]> =
        if message.is_empty() { vec![&[]] } else { message.chunks(FRAGMENT_PAYLOAD).collect() };
    let count = u8::try_from(pieces.len()).unwrap_or(u8::MAX);
    let total = u16::try_from(message.len()).unwrap_or(u16::MAX);
    pieces
        .iter()
        .zip(0u8..)
        .map(|(payload, index)| Fragment { id, kind, index, count, total, payload }.to_packet())
        .collect()
}

/// Returns a `Ping` padded with zeros to a packet of `size` bytes, to probe the path.
#[must_use]
pub fn padded_ping(id: MessageId, ping: Ping, size: usize) -> Vec<u8> {
    let mut packet = packets(id, MessageType::Ping, &ping.to_bytes()).remove(0);
    packet.resize(size.clamp(packet.len(), MAX_PROBE), 0);
    let length = u16::try_from(packet.len() - IPV6_HEADER).unwrap_or(u16::MAX);
    packet[4..6].copy_from_slice(&length.to_be_bytes());
    packet
}

impl<'a> Fragment<'a> {
    /// Returns the IPv6 packet.
    #[must_use]
    pub fn to_packet(&self) -> Vec<u8> {
        let length = u16::try_from(FRAGMENT_HEADER + self.payload.len()).unwrap_or(u16::MAX);
        let mut out = Vec::with_capacity(MAX_LINK_PACKET);
        out.extend_from_slice(&[0x60, 0, 0, 0]);
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&[NEXT_HEADER, 1]);
        // Link-local fe80::1 to fe80::2: the packet never leaves the session, and boringtun only needs a
        // source.
        for last in [1u8, 2] {
            out.extend_from_slice(&[0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        }
        out.extend_from_slice(&self.id);
        out.extend_from_slice(&[self.kind as u8, self.index, self.count, 0]);
        out.extend_from_slice(&self.total.to_be_bytes());
        out.extend_from_slice(self.payload);
        out
    }

    /// Parses a packet of the control session.
    ///
    /// # Errors
    /// [`ParseError`] if it is not a fragment or its numbers are inconsistent.
    pub fn parse(packet: &'a [u8]) -> Result<Self, ParseError> {
        let mut r = Reader::new(packet);
        let header = r.bytes(IPV6_HEADER, "IPv6 header")?;
        let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
        if header[0] >> 4 != 6 || header[6] != NEXT_HEADER {
            return Err(ParseError::Value("next header"));
        }
        let body = r.bytes(length, "payload")?;
        r.end()?;
        let mut r = Reader::new(body);
        let id = r.array("message ID")?;
        let kind = MessageType::from_byte(r.u8("type")?).ok_or(ParseError::Value("type"))?;
        let (index, count) = (r.u8("index")?, r.u8("count")?);
        if r.u8("reserved")? != 0 {
            return Err(ParseError::Value("reserved"));
        }
        let total = u16::from_be_bytes(r.array("total length")?);
        let whole = usize::from(total);
        let pieces = whole.div_ceil(FRAGMENT_PAYLOAD).max(1);
        if whole > MAX_MESSAGE || pieces > MAX_FRAGMENTS || usize::from(count) != pieces {
            return Err(ParseError::Value("count"));
        }
        if index >= count {
            return Err(ParseError::Value("index"));
        }
        let start = usize::from(index) * FRAGMENT_PAYLOAD;
        let payload = r.bytes((whole - start).min(FRAGMENT_PAYLOAD), "fragment")?;
        // A `Ping` may be padded, see `padded_ping`.
        if kind != MessageType::Ping {
            r.end()?;
        }
        Ok(Self { id, kind, index, count, total, payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_the_protocols_numbers() {
        let all = [
            MessageType::Hello,
            MessageType::StockOffer,
            MessageType::StockAck,
            MessageType::Propose,
            MessageType::Accept,
            MessageType::Confirm,
            MessageType::Rekey,
            MessageType::Ping,
            MessageType::Pong,
            MessageType::Bye,
            MessageType::Reject,
            MessageType::Ack,
            MessageType::Lanes,
        ];
        for (number, kind) in (1..).zip(all) {
            assert_eq!((kind as u8, MessageType::from_byte(number)), (number, Some(kind)));
        }
        assert_eq!((MessageType::from_byte(0), MessageType::from_byte(14)), (None, None));
    }

    #[test]
    fn the_largest_message_is_taken_in_the_right_number_of_pieces() {
        let largest = packets([7; 8], MessageType::Hello, &[5; MAX_MESSAGE]);
        assert_eq!(largest.len(), MAX_FRAGMENTS);
        assert!(largest.iter().all(|packet| Fragment::parse(packet).is_ok()));
        let too_large = packets([7; 8], MessageType::Hello, &[5; MAX_MESSAGE + 1]).remove(0);
        assert_eq!(Fragment::parse(&too_large), Err(ParseError::Value("count")));
        // The count is one off, or the total is half.
        let first = Fragment::parse(&largest[0]).unwrap();
        for wrong in [
            Fragment { count: first.count - 1, ..first.clone() },
            Fragment { count: first.count + 1, ..first.clone() },
            Fragment { total: first.total / 2, ..first.clone() },
        ] {
            assert_eq!(Fragment::parse(&wrong.to_packet()), Err(ParseError::Value("count")));
        }
    }

    #[test]
    fn a_packet_of_another_version_or_header_is_not_ours() {
        let right = packets([7; 8], MessageType::Bye, &[]).remove(0);
        assert!(Fragment::parse(&right).is_ok());
        for (at, byte) in [(0, 0x40), (6, NEXT_HEADER ^ 1)] {
            let mut wrong = right.clone();
            wrong[at] = byte;
            assert_eq!(Fragment::parse(&wrong), Err(ParseError::Value("next header")), "byte {at}");
        }
    }

    #[test]
    fn a_ping_of_each_size_parses_and_nothing_else_is_padded() {
        let ping = Ping { nonce: [3; 8], path: 0, heard_ago: None };
        for size in [0, 67, 68, 1200, 1420, 1421, 9000] {
            let packet = padded_ping([7; 8], ping, size);
            assert_eq!(packet.len(), size.clamp(67, MAX_PROBE));
            let parsed = Fragment::parse(&packet).unwrap();
            assert_eq!((parsed.kind, parsed.id), (MessageType::Ping, [7; 8]));
            assert_eq!(Ping::parse(parsed.payload), Ok(ping));
            let mut other = packet;
            other[48] = MessageType::Pong as u8;
            assert_eq!(Fragment::parse(&other).is_ok(), size <= 67);
        }
    }
}
