//! The three messages that make an epoch: `Propose`, `Accept` and `Confirm`.

use super::codec::{ParseError, Reader, put_key_id, put_option};
use super::limits::MAX_LANES;
use qvpn_identity::kem::{CtBytes, EkBytes};
use qvpn_types::{EpochNumber, KeyId};

/// Length of a confirmation in bytes.
pub const CONFIRMATION: usize = 48;

/// The initiator's proposal of an epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Propose {
    /// SHA-384 of the initiator's `Hello` in force.
    pub hello_initiator: [u8; 48],
    /// SHA-384 of the responder's `Hello` in force.
    pub hello_responder: [u8; 48],
    /// The number of the attempt; it rises with each attempt.
    pub epoch: EpochNumber,
    /// Ephemeral X25519 public key.
    pub x25519: [u8; 32],
    /// Ephemeral encapsulation key.
    pub encapsulation_key: Box<EkBytes>,
    /// Ciphertext to the responder's static key.
    pub ciphertext: Box<CtBytes>,
    /// The initiator's receiver index for each lane.
    pub indices: Vec<u32>,
    /// The QKD key to use.
    pub qkd_key_id: Option<KeyId>,
    /// The check value of the chain to use.
    pub chain_check: Option<[u8; 16]>,
}

/// The responder's answer to a `Propose`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accept {
    /// The epoch number of the `Propose`.
    pub epoch: EpochNumber,
    /// Ephemeral X25519 public key.
    pub x25519: [u8; 32],
    /// Ciphertext to the initiator's ephemeral key.
    pub ciphertext_ephemeral: Box<CtBytes>,
    /// Ciphertext to the initiator's static key.
    pub ciphertext_static: Box<CtBytes>,
    /// The responder's receiver index for each lane.
    pub indices: Vec<u32>,
}

/// The initiator's confirmation of an `Accept`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confirm {
    pub epoch: EpochNumber,
    pub confirmation: [u8; CONFIRMATION],
}

fn put_indices(out: &mut Vec<u8>, indices: &[u32]) {
    out.push(u8::try_from(indices.len().min(MAX_LANES)).unwrap_or(0));
    indices.iter().take(MAX_LANES).for_each(|i| out.extend_from_slice(&i.to_be_bytes()));
}

/// Reads receiver indices: one for each lane, with the top bit set, all different.
fn indices(r: &mut Reader<'_>) -> Result<Vec<u32>, ParseError> {
    let n = usize::from(r.u8("lanes")?);
    if !(1..=MAX_LANES).contains(&n) {
        return Err(ParseError::Value("lanes"));
    }
    let mut all = Vec::with_capacity(n);
    for _ in 0..n {
        let index = r.u32("receiver index")?;
        if index >> 31 == 0 || all.contains(&index) {
            return Err(ParseError::Value("receiver index"));
        }
        all.push(index);
    }
    Ok(all)
}

impl Propose {
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(3600);
        out.extend_from_slice(&self.hello_initiator);
        out.extend_from_slice(&self.hello_responder);
        out.extend_from_slice(&self.epoch.0.to_be_bytes());
        out.extend_from_slice(&self.x25519);
        out.extend_from_slice(self.encapsulation_key.as_slice());
        out.extend_from_slice(self.ciphertext.as_slice());
        put_indices(&mut out, &self.indices);
        put_key_id(&mut out, self.qkd_key_id.as_ref());
        put_option(&mut out, self.chain_check.as_ref().map(|c| c.as_slice()));
        out
    }

    /// Parses the whole message.
    ///
    /// # Errors
    /// [`ParseError`] names the field.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut r = Reader::new(bytes);
        let propose = Self {
            hello_initiator: r.array("initiator's Hello")?,
            hello_responder: r.array("responder's Hello")?,
            epoch: EpochNumber(r.u64("epoch")?),
            x25519: r.array("ephemeral X25519 key")?,
            encapsulation_key: r.boxed("ephemeral encapsulation key")?,
            ciphertext: r.boxed("ciphertext to the responder")?,
            indices: indices(&mut r)?,
            qkd_key_id: r.key_id("QKD key ID")?,
            chain_check: r.flag("chain flag")?.then(|| r.array("chain check")).transpose()?,
        };
        r.end()?;
        Ok(propose)
    }
}

impl Accept {
    /// Returns the message's bytes without its confirmation, as the transcript contains them.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(3300);
        out.extend_from_slice(&self.epoch.0.to_be_bytes());
        out.extend_from_slice(&self.x25519);
        out.extend_from_slice(self.ciphertext_ephemeral.as_slice());
        out.extend_from_slice(self.ciphertext_static.as_slice());
        put_indices(&mut out, &self.indices);
        out
    }

    /// Parses the whole message. Returns the fields, their bytes as the transcript contains them, and the
    /// confirmation.
    ///
    /// # Errors
    /// [`ParseError`] names the field.
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8], [u8; CONFIRMATION]), ParseError> {
        let cut = bytes.len().checked_sub(CONFIRMATION).ok_or(ParseError::Short("confirmation"))?;
        let (body, confirmation) = bytes.split_at(cut);
        let mut r = Reader::new(body);
        let accept = Self {
            epoch: EpochNumber(r.u64("epoch")?),
            x25519: r.array("ephemeral X25519 key")?,
            ciphertext_ephemeral: r.boxed("ciphertext to the ephemeral key")?,
            ciphertext_static: r.boxed("ciphertext to the initiator")?,
            indices: indices(&mut r)?,
        };
        r.end()?;
        Ok((accept, body, Reader::new(confirmation).array("confirmation")?))
    }
}

impl Confirm {
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = self.epoch.0.to_be_bytes().to_vec();
        out.extend_from_slice(&self.confirmation);
        out
    }

    /// Parses the whole message.
    ///
    /// # Errors
    /// [`ParseError`] names the field.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut r = Reader::new(bytes);
        let confirm = Self { epoch: EpochNumber(r.u64("epoch")?), confirmation: r.array("confirmation")? };
        r.end()?;
        Ok(confirm)
    }
}
