//! The initiator's half of the cryptography: [`Proposed`] holds the ephemeral secrets from `Propose` on. A
//! verified `Accept` consumes it.

use qvpn_identity::{SecretIdentity, dh, kem};
use qvpn_secret::{Secret, SecretBuf};
use qvpn_types::{EpochNumber, KeyId};
use rand_core::CryptoRng;

use super::parameters::ExchangeParameters;
use crate::key_schedule::{Chain, EpochKeys, EpochSecrets, derive};
use crate::wire::{Accept, ParseError, Propose};

/// The inputs of an attempt.
pub struct Proposal<'a> {
    /// SHA-384 of both `Hello`s, the initiator's first.
    pub hello_hashes: ([u8; 48], [u8; 48]),
    /// The attempt's number.
    pub epoch: EpochNumber,
    /// The responder's static encapsulation key.
    pub responder_key: &'a kem::EkBytes,
    /// Our receiver index for each lane.
    pub indices: Vec<u32>,
    /// The QKD key to name.
    pub qkd_key_id: Option<KeyId>,
    /// The chain to name.
    pub chain_check: Option<[u8; 16]>,
}

/// An attempt that awaits its `Accept`.
pub struct Proposed {
    x25519: Secret<32>,
    decapsulation_key: kem::DecapsulationKey,
    kem_to_responder: Secret<32>,
    message: Propose,
    bytes: Vec<u8>,
}

/// The result of a verified attempt.
pub struct Agreed {
    pub keys: EpochKeys,
    /// The `Propose`, for its indices and names.
    pub propose: Propose,
    /// The responder's receiver indices.
    pub responder_indices: Vec<u32>,
}

/// Why an `Accept` does not end the attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AcceptError {
    /// It does not parse.
    #[error("the Accept is malformed: {0}")]
    Malformed(ParseError),
    /// It answers another attempt.
    #[error("the Accept answers another attempt")]
    OtherAttempt,
    /// Its X25519 key is a point of small order.
    #[error("the Accept's X25519 key is a point of small order")]
    NotContributory,
    /// Its number of lanes differs from the agreed one.
    #[error("the Accept has another number of lanes than agreed")]
    Lanes,
    /// Its confirmation is wrong: some secret differs.
    #[error("the responder's confirmation is wrong: the two sides do not hold the same secrets")]
    Confirmation,
}

impl Proposed {
    /// Makes the ephemeral keys and the `Propose`.
    ///
    /// # Errors
    /// Returns an error if the responder's static key fails the input check, which it passed when its `Hello`
    /// arrived.
    pub fn new(
        proposal: Proposal<'_>,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, kem::InvalidEncapsulationKey> {
        let x25519 = Secret::filled(|out| rng.fill_bytes(out));
        let (decapsulation_key, encapsulation_key) =
            kem::DecapsulationKey::from_seed(&Secret::filled(|out| rng.fill_bytes(out)));
        let (ciphertext, kem_to_responder) = kem::encapsulate(proposal.responder_key, rng)?;
        let message = Propose {
            hello_initiator: proposal.hello_hashes.0,
            hello_responder: proposal.hello_hashes.1,
            epoch: proposal.epoch,
            x25519: dh::public_of(&x25519),
            encapsulation_key,
            ciphertext,
            indices: proposal.indices,
            qkd_key_id: proposal.qkd_key_id,
            chain_check: proposal.chain_check,
        };
        let bytes = message.to_bytes();
        Ok(Self { x25519, decapsulation_key, kem_to_responder, message, bytes })
    }

    /// Returns the message as sent.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the parsed message.
    #[must_use]
    pub fn message(&self) -> &Propose {
        &self.message
    }

    /// Verifies an `Accept` and makes the epoch's keys.
    ///
    /// # Errors
    /// Returns the attempt, which continues, and the fault of the `Accept`.
    #[allow(clippy::result_large_err)] // the attempt moves back to its owner, at most four times
    pub fn verify(
        self,
        accept: &[u8],
        parameters: &ExchangeParameters<'_>,
        own: &SecretIdentity,
        qkd: Option<&SecretBuf>,
        psk: Option<&Secret<32>>,
        chain: Option<&Chain>,
    ) -> Result<Agreed, (Self, AcceptError)> {
        let (parsed, body, confirmation) = match Accept::parse(accept) {
            Ok(parts) => parts,
            Err(error) => return Err((self, AcceptError::Malformed(error))),
        };
        if parsed.epoch != self.message.epoch {
            return Err((self, AcceptError::OtherAttempt));
        }
        if parsed.indices.len() != self.message.indices.len() {
            return Err((self, AcceptError::Lanes));
        }
        let Some(x25519) = dh::agree(&self.x25519, &parsed.x25519) else {
            return Err((self, AcceptError::NotContributory));
        };
        let secrets = EpochSecrets {
            kem_ephemeral: self.decapsulation_key.decapsulate(&parsed.ciphertext_ephemeral),
            kem_to_responder: Secret::filled(|out| out.copy_from_slice(self.kem_to_responder.expose())),
            kem_to_initiator: own.decapsulation_key().decapsulate(&parsed.ciphertext_static),
            x25519,
            qkd,
            psk,
            chain,
        };
        let keys =
            derive(&parameters.transcript(&self.bytes, body), secrets, parameters.suite, parameters.lanes);
        if !keys.confirm_responder.ct_eq(&confirmation) {
            return Err((self, AcceptError::Confirmation));
        }
        Ok(Agreed { keys, propose: self.message, responder_indices: parsed.indices })
    }
}
