//! `StockOffer` and `StockAck`: the QKD keys that the initiator holds, and the responder's state of them.

use super::codec::{ParseError, Reader, put_key_id, put_name};
use super::limits::{MAX_KEY_ID, MAX_MESSAGE, MAX_NAME, MAX_OFFER, STOCK_HEADER};
use crate::kms::KeyName;
use qvpn_types::KeyId;

/// Returns the bytes of a key in an offer or in the answer to it, whichever is larger.
#[must_use]
pub fn offer_cost(key: &KeyName) -> usize {
    let id = key.id.as_str().len();
    let offered = 4 + id + key.source_kme.len() + key.target_kme.len();
    offered.max(ANSWER + id)
}

/// The maximum cost of one key, in bytes.
pub const MAX_OFFER_COST: usize = 2 + MAX_KEY_ID + 2 * (1 + MAX_NAME);
/// The maximum total cost of an offer's keys, in bytes.
pub const OFFER_ROOM: usize = MAX_MESSAGE - STOCK_HEADER;
/// The bytes of an answer in a `StockAck` without the ID: the ID's length, the answer, the check value.
const ANSWER: usize = 2 + 1 + 16;

const _: () = assert!(OFFER_ROOM + STOCK_HEADER == MAX_MESSAGE);

/// The whole set of keys that the initiator holds, oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StockOffer {
    /// Rises with each offer.
    pub number: u64,
    /// At most [`MAX_OFFER`] keys, and no more than [`OFFER_ROOM`] bytes by [`offer_cost`].
    pub keys: Vec<KeyName>,
}

/// The responder's state of an offered key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyAvailability {
    /// It holds the key; the check value identifies the bytes.
    Yes([u8; 16]),
    /// It is still fetching.
    Pending,
    /// The KME does not know the key.
    NotFound,
    /// The KME can't be reached.
    Unavailable,
    /// The responder gave the key up, or refuses it.
    Gone,
}

/// The responder's answer to an offer. It is sent again when an answer changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StockAck {
    /// The offer's number.
    pub number: u64,
    /// The responder's own counter, so that a late ack does not replace a newer one.
    pub revision: u64,
    /// One answer for each key of the offer.
    pub keys: Vec<(KeyId, KeyAvailability)>,
}

fn count(r: &mut Reader<'_>) -> Result<usize, ParseError> {
    let n = usize::from(r.u8("number of keys")?);
    if n > MAX_OFFER { Err(ParseError::Value("number of keys")) } else { Ok(n) }
}

fn put_count(out: &mut Vec<u8>, n: usize) {
    out.push(u8::try_from(n.min(MAX_OFFER)).unwrap_or(0));
}

fn key_id(r: &mut Reader<'_>) -> Result<KeyId, ParseError> {
    r.key_id("key ID")?.ok_or(ParseError::Value("key ID"))
}

impl StockOffer {
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = self.number.to_be_bytes().to_vec();
        put_count(&mut out, self.keys.len());
        for key in self.keys.iter().take(MAX_OFFER) {
            put_key_id(&mut out, Some(&key.id));
            put_name(&mut out, &key.source_kme);
            put_name(&mut out, &key.target_kme);
        }
        out
    }

    /// Parses the whole message. Refuses an offer with the same ID twice, and one whose answer would not fit
    /// in a message.
    ///
    /// # Errors
    /// [`ParseError`] names the field.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut r = Reader::new(bytes);
        let number = r.u64("offer number")?;
        let mut keys: Vec<KeyName> = Vec::new();
        for _ in 0..count(&mut r)? {
            let (id, source_kme, target_kme) =
                (key_id(&mut r)?, r.name("source KME")?, r.name("target KME")?);
            if keys.iter().any(|k| k.id == id) {
                return Err(ParseError::Value("key ID"));
            }
            keys.push(KeyName { id, source_kme, target_kme });
        }
        r.end()?;
        if keys.iter().map(offer_cost).sum::<usize>() > OFFER_ROOM {
            return Err(ParseError::Value("number of keys"));
        }
        Ok(Self { number, keys })
    }
}

impl StockAck {
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = self.number.to_be_bytes().to_vec();
        out.extend_from_slice(&self.revision.to_be_bytes());
        put_count(&mut out, self.keys.len());
        for (id, held) in self.keys.iter().take(MAX_OFFER) {
            put_key_id(&mut out, Some(id));
            match held {
                KeyAvailability::Yes(check) => {
                    out.push(0);
                    out.extend_from_slice(check);
                }
                KeyAvailability::Pending => out.push(1),
                KeyAvailability::NotFound => out.push(2),
                KeyAvailability::Unavailable => out.push(3),
                KeyAvailability::Gone => out.push(4),
            }
        }
        out
    }

    /// Parses the whole message.
    ///
    /// # Errors
    /// [`ParseError`] names the field.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut r = Reader::new(bytes);
        let number = r.u64("offer number")?;
        let revision = r.u64("revision")?;
        let mut keys = Vec::new();
        for _ in 0..count(&mut r)? {
            let id = key_id(&mut r)?;
            let held = match r.u8("answer")? {
                0 => KeyAvailability::Yes(r.array("key check")?),
                1 => KeyAvailability::Pending,
                2 => KeyAvailability::NotFound,
                3 => KeyAvailability::Unavailable,
                4 => KeyAvailability::Gone,
                _ => return Err(ParseError::Value("answer")),
            };
            keys.push((id, held));
        }
        r.end()?;
        Ok(Self { number, revision, keys })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: impl Into<String>) -> KeyId {
        KeyId::new(text).unwrap()
    }

    #[test]
    fn a_key_costs_what_it_takes_in_the_longer_of_both_messages() {
        let offer = |keys| StockOffer { number: 1, keys }.to_bytes().len();
        let ack = |keys| StockAck { number: 1, revision: 1, keys }.to_bytes().len();
        for [own, source, target] in [[36, 6, 6], [1200, 255, 255], [1, 1, 1], [1200, 1, 1], [1, 255, 255]] {
            let text = |length: usize| "n".repeat(length);
            let key = KeyName { id: id(text(own)), source_kme: text(source), target_kme: text(target) };
            let cost = offer_cost(&key);
            let answered = ack(vec![(key.id.clone(), KeyAvailability::Yes([0; 16]))]) - ack(Vec::new());
            let offered = offer(vec![key]) - offer(Vec::new());
            assert_eq!(cost, offered.max(answered));
            assert!(cost <= MAX_OFFER_COST);
        }
        assert!(offer(Vec::new()).max(ack(Vec::new())) <= STOCK_HEADER);
    }

    #[test]
    fn each_availability_has_its_number_on_the_wire() {
        let all = [
            KeyAvailability::Yes([7; 16]),
            KeyAvailability::Pending,
            KeyAvailability::NotFound,
            KeyAvailability::Unavailable,
            KeyAvailability::Gone,
        ];
        for (number, held) in (0..).zip(all) {
            let ack = StockAck { number: 3, revision: 4, keys: vec![(id("id"), held)] };
            let bytes = ack.to_bytes();
            assert_eq!((bytes[STOCK_HEADER + 4], StockAck::parse(&bytes)), (number, Ok(ack)));
        }
    }

    #[test]
    fn an_offer_has_a_hundred_keys_and_fits_a_message_with_its_answer() {
        let offer = |count: u32, length: usize| {
            let name = |n: u32| KeyName {
                id: id(format!("{n:0length$}")),
                source_kme: String::new(),
                target_kme: String::new(),
            };
            StockOffer { number: 1, keys: (0..count).map(name).collect() }
        };
        let (many, error) = (offer(100, 36), Err(ParseError::Value("number of keys")));
        assert_eq!(StockOffer::parse(&many.to_bytes()), Ok(many.clone()));
        let mut more = many.to_bytes();
        more[8] = 101;
        more.extend_from_slice(&[0, 1, b'x', 0, 0]);
        assert_eq!(StockOffer::parse(&more), error);
        // The offer fills the room to the last byte: an answer takes 19 bytes and the ID's.
        let length = OFFER_ROOM / 100 - ANSWER;
        let mut most = offer(100, length);
        let left = OFFER_ROOM - 100 * (ANSWER + length);
        let padded = |key: &KeyName, zeros: usize| id(format!("{}{}", key.id.as_str(), "0".repeat(zeros)));
        most.keys[0].id = padded(&most.keys[0], left);
        assert_eq!(most.keys.iter().map(offer_cost).sum::<usize>(), OFFER_ROOM);
        assert_eq!(StockOffer::parse(&most.to_bytes()), Ok(most.clone()));
        most.keys[0].id = padded(&most.keys[0], 1);
        assert_eq!(StockOffer::parse(&most.to_bytes()), error);
    }
}
