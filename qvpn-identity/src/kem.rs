//! ML-KEM-1024 (FIPS 203) over locked memory. RustCrypto's crate makes keys and encapsulates, since it takes
//! our randomness, which test vectors and the simulator need; AWS-LC decapsulates, in a tenth of the time.
//!
//! Decapsulation never fails: a wrong ciphertext gives a different secret (implicit rejection), and the
//! confirmation of the exchange detects it.

use aws_lc_rs::kem::{DecapsulationKey as AwsLcKey, ML_KEM_1024};
use ml_kem::kem::KeyExport;
use ml_kem::{EncapsulationKey, MlKem1024};
use qvpn_secret::{Secret, with_scrubbed_stack};
use rand_core::CryptoRng;
use zeroize::Zeroize;

/// Length of a seed `d‖z` in bytes.
pub const SEED_LEN: usize = 64;
/// Length of an encapsulation key in bytes (FIPS 203 table 3).
pub const EK_LEN: usize = 1568;
/// Length of a ciphertext in bytes (FIPS 203 table 3).
pub const CT_LEN: usize = 1568;
/// Length of a shared secret in bytes.
pub const SHARED_LEN: usize = 32;
/// Length of a decapsulation key in bytes (FIPS 203 table 3).
const DK_LEN: usize = 3168;

/// The encoding of an encapsulation key.
pub type EkBytes = [u8; EK_LEN];
/// The encoding of a ciphertext.
pub type CtBytes = [u8; CT_LEN];

/// The bytes are not a valid encapsulation key: a coefficient is not reduced (FIPS 203 section 7.2, input
/// check).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a valid ML-KEM-1024 encapsulation key (FIPS 203 section 7.2)")]
pub struct InvalidEncapsulationKey;

/// The secret half of a key pair in FIPS 203's form, which a seed is expanded to once: an expansion takes
/// longer than a decapsulation.
pub struct DecapsulationKey(Secret<DK_LEN>);

impl DecapsulationKey {
    /// Expands `seed` (FIPS 203 section 7.1). Returns the key pair's two halves.
    #[must_use]
    #[expect(deprecated, reason = "an expanded key in locked memory is the form that AWS-LC reads")]
    pub fn from_seed(seed: &Secret<SEED_LEN>) -> (Self, Box<EkBytes>) {
        use ml_kem::ExpandedKeyEncoding;
        with_scrubbed_stack(|| {
            let mut copy: ml_kem::Seed = (*seed.expose()).into();
            let key = ml_kem::DecapsulationKey::<MlKem1024>::from_seed(copy);
            copy.zeroize();
            let mut expanded: [u8; DK_LEN] = key.to_expanded_bytes().into();
            (Self(Secret::take(&mut expanded)), Box::new(key.encapsulation_key().to_bytes().into()))
        })
    }

    /// Returns the shared secret in `ct`.
    #[must_use]
    pub fn decapsulate(&self, ct: &CtBytes) -> Secret<SHARED_LEN> {
        with_scrubbed_stack(|| {
            // AWS-LC refuses nothing but lengths, and fails if there is no memory.
            let key = AwsLcKey::new(&ML_KEM_1024, self.0.expose()).unwrap_or_else(|_| unreachable!());
            let shared = key.decapsulate(ct[..].into()).unwrap_or_else(|_| unreachable!());
            Secret::filled(|out| out.copy_from_slice(shared.as_ref()))
        })
    }
}

/// Performs FIPS 203's input check on an encapsulation key from outside.
///
/// # Errors
/// [`InvalidEncapsulationKey`] if a coefficient is out of range.
pub fn check(ek: &EkBytes) -> Result<(), InvalidEncapsulationKey> {
    EncapsulationKey::<MlKem1024>::new(&(*ek).into()).map(drop).map_err(|_| InvalidEncapsulationKey)
}

/// Makes a fresh shared secret for the owner of `ek`. Returns the ciphertext to send, and the secret.
///
/// # Errors
/// [`InvalidEncapsulationKey`] if `ek` fails the input check.
pub fn encapsulate(
    ek: &EkBytes,
    rng: &mut (impl CryptoRng + ?Sized),
) -> Result<(Box<CtBytes>, Secret<SHARED_LEN>), InvalidEncapsulationKey> {
    with_scrubbed_stack(|| {
        let ek = EncapsulationKey::<MlKem1024>::new(&(*ek).into()).map_err(|_| InvalidEncapsulationKey)?;
        let mut m = ml_kem::B32::default();
        rng.fill_bytes(&mut m);
        let (ct, mut shared) = ek.encapsulate_deterministic(&m);
        m.zeroize();
        let secret = Secret::filled(|out| out.copy_from_slice(&shared));
        shared.zeroize();
        Ok((Box::new(ct.into()), secret))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};

    #[test]
    fn both_sides_get_the_same_secret_and_a_changed_ciphertext_gives_another() {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let seed = Secret::filled(|b| b.fill(9));
        let (dk, ek) = DecapsulationKey::from_seed(&seed);
        let (mut ct, shared) = encapsulate(&ek, &mut rng).unwrap();
        assert!(dk.decapsulate(&ct).ct_eq(shared.expose()));
        ct[7] ^= 1;
        assert!(!dk.decapsulate(&ct).ct_eq(shared.expose()));
    }

    #[test]
    fn an_unreduced_coefficient_is_refused() {
        let mut ek = *DecapsulationKey::from_seed(&Secret::zeroed()).1;
        assert_eq!(check(&ek), Ok(()));
        ek[0] = 0xff;
        ek[1] |= 0x0f; // the first coefficient is 4095, above q = 3329
        assert_eq!(check(&ek), Err(InvalidEncapsulationKey));
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        assert!(encapsulate(&ek, &mut rng).is_err());
    }
}
