//! The responder's half of the cryptography: one step from `Propose` to the epoch's keys and the `Accept`.
//! Its ephemeral secrets exist only inside [`answer`].

use qvpn_identity::{SecretIdentity, dh, kem};
use qvpn_secret::{Secret, SecretBuf};
use rand_core::CryptoRng;

use super::parameters::ExchangeParameters;
use crate::key_schedule::{Chain, EpochKeys, EpochSecrets, derive};
use crate::wire::{Accept, Propose};

/// The result of an answered `Propose`.
pub struct Answered {
    pub keys: EpochKeys,
    /// The `Accept` with its confirmation. Send it once the lanes can open packets.
    pub accept: Vec<u8>,
}

/// Why a `Propose` is unusable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProposeFault {
    /// The X25519 key is a point of small order.
    #[error("the Propose's X25519 key is a point of small order")]
    NotContributory,
    /// The ephemeral ML-KEM key fails the input check of FIPS 203.
    #[error("the Propose's ML-KEM key fails the input check of FIPS 203")]
    EncapsulationKey,
    /// The ephemeral ML-KEM key is one of the static ones.
    #[error("the Propose's ephemeral ML-KEM key is a static key")]
    StaticReused,
}

/// Makes an epoch's keys from a `Propose` with checked names and numbers.
///
/// # Errors
/// [`ProposeFault`] if a public value in it is unusable.
#[allow(clippy::too_many_arguments)] // each is a separate secret or a separate party
pub fn answer(
    propose: &Propose,
    propose_bytes: &[u8],
    initiator_key: &kem::EkBytes,
    parameters: &ExchangeParameters<'_>,
    own: &SecretIdentity,
    indices: Vec<u32>,
    (qkd, psk, chain): (Option<&SecretBuf>, Option<&Secret<32>>, Option<&Chain>),
    rng: &mut dyn CryptoRng,
) -> Result<Answered, ProposeFault> {
    let ephemeral = &*propose.encapsulation_key;
    if ephemeral == own.encapsulation_key() || ephemeral == initiator_key {
        return Err(ProposeFault::StaticReused);
    }
    let x25519_secret = Secret::filled(|out| rng.fill_bytes(out));
    let x25519 = dh::agree(&x25519_secret, &propose.x25519).ok_or(ProposeFault::NotContributory)?;
    let (ciphertext_ephemeral, kem_ephemeral) =
        kem::encapsulate(ephemeral, rng).map_err(|_| ProposeFault::EncapsulationKey)?;
    let (ciphertext_static, kem_to_initiator) =
        kem::encapsulate(initiator_key, rng).map_err(|_| ProposeFault::EncapsulationKey)?;
    let accept = Accept {
        epoch: propose.epoch,
        x25519: dh::public_of(&x25519_secret),
        ciphertext_ephemeral,
        ciphertext_static,
        indices,
    };
    let mut accept = accept.to_bytes();
    let secrets = EpochSecrets {
        kem_ephemeral,
        kem_to_responder: own.decapsulation_key().decapsulate(&propose.ciphertext),
        kem_to_initiator,
        x25519,
        qkd,
        psk,
        chain,
    };
    let keys =
        derive(&parameters.transcript(propose_bytes, &accept), secrets, parameters.suite, parameters.lanes);
    accept.extend_from_slice(keys.confirm_responder.expose());
    Ok(Answered { keys, accept })
}
