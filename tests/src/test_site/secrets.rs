//! The secrets of an epoch, computed from its inputs by code that shares nothing with `qvpn-proto`.

use hkdf::Hkdf;
use hkdf::hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha384};

/// All inputs and outputs of an epoch's key schedule.
pub struct Secrets {
    /// Shared secret of the ephemeral ML-KEM key.
    pub kem_ephemeral: [u8; 32],
    /// Shared secret of the responder's static ML-KEM key.
    pub kem_to_responder: [u8; 32],
    /// Shared secret of the initiator's static ML-KEM key.
    pub kem_to_initiator: [u8; 32],
    /// Shared secret of the ephemeral X25519 keys.
    pub x25519: [u8; 32],
    /// The HKDF's pseudo-random key.
    pub prk: [u8; 48],
    /// The responder's confirmation.
    pub confirm_responder: [u8; 48],
    /// The initiator's confirmation.
    pub confirm_initiator: [u8; 48],
    /// Data key of lane 0, initiator to responder.
    pub to_responder: [u8; 32],
    /// Data key of lane 0, responder to initiator.
    pub to_initiator: [u8; 32],
    /// The chain value for the next epoch.
    pub chain: [u8; 48],
    /// The check value that names the chain.
    pub chain_check: [u8; 16],
}

/// The transcript and the secrets of an exchange, in the order of docs/protocol.md section 6.
pub(crate) struct ScheduleInputs<'a> {
    pub(crate) transcript: [&'a [u8]; 6],
    pub(crate) secrets: [&'a [u8]; 7],
}

fn prefixed(part: &[u8]) -> Vec<u8> {
    [&u32::try_from(part.len()).unwrap().to_be_bytes()[..], part].concat()
}

pub(crate) fn schedule(inputs: &ScheduleInputs<'_>) -> Secrets {
    let mut th = Sha384::new_with_prefix(b"qvpn/2 epoch");
    inputs.transcript.iter().for_each(|part| th.update(prefixed(part)));
    let th = th.finalize();
    let ikm: Vec<u8> = inputs.secrets.iter().flat_map(|part| prefixed(part)).collect();
    let (prk, hkdf) = Hkdf::<Sha384>::extract(Some(&th), &ikm);
    fn out<const N: usize>(hkdf: &Hkdf<Sha384>, label: &str, context: &[u8]) -> [u8; N] {
        let mut bytes = [0; N];
        hkdf.expand(&[b"qvpn/2 ", label.as_bytes(), &[0], context].concat(), &mut bytes).unwrap();
        bytes
    }
    let mac = |label: &str, data: &[&[u8]]| -> [u8; 48] {
        let mut mac = <Hmac<Sha384> as KeyInit>::new_from_slice(&out::<48>(&hkdf, label, &[])).unwrap();
        data.iter().for_each(|part| mac.update(part));
        mac.finalize().into_bytes().into()
    };
    let [initiator, responder] = [0, 1].map(|n: usize| prefixed(inputs.transcript[n]));
    let four = |n: usize| inputs.secrets[n].try_into().unwrap();
    Secrets {
        kem_ephemeral: four(0),
        kem_to_responder: four(1),
        kem_to_initiator: four(2),
        x25519: four(3),
        prk: prk.into(),
        confirm_responder: mac("confirm key responder", &[b"KC_2_V", &responder, &initiator, &th]),
        confirm_initiator: mac("confirm key initiator", &[b"KC_2_U", &initiator, &responder, &th]),
        to_responder: out(&hkdf, "data", &[0, 0, 0]),
        to_initiator: out(&hkdf, "data", &[0, 1, 0]),
        chain: out(&hkdf, "chain", &[]),
        chain_check: *mac("chain check key", &[&th]).first_chunk().unwrap(),
    }
}

impl Secrets {
    /// The secrets that a daemon needs only during the exchange, with their names.
    #[must_use]
    pub fn of_the_exchange(&self) -> Vec<(&'static str, Vec<u8>)> {
        vec![
            ("KEM secret of the ephemeral key", self.kem_ephemeral.to_vec()),
            ("KEM secret of the responder's key", self.kem_to_responder.to_vec()),
            ("KEM secret of the initiator's key", self.kem_to_initiator.to_vec()),
            ("X25519 secret", self.x25519.to_vec()),
            ("pseudo-random key of the HKDF", self.prk.to_vec()),
        ]
    }

    /// The data keys, with their names.
    #[must_use]
    pub fn data_keys(&self) -> Vec<(&'static str, Vec<u8>)> {
        vec![
            ("data key to the responder", self.to_responder.to_vec()),
            ("data key to the initiator", self.to_initiator.to_vec()),
        ]
    }
}
