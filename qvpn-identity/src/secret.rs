//! The secret half of a site's identity: an X25519 scalar and an ML-KEM-1024 seed, which stay in locked
//! memory.

use qvpn_secret::{Secret, SecretBuf, with_scrubbed_stack};
use rand_core::CryptoRng;

use crate::kem::{DecapsulationKey, EkBytes, SEED_LEN};
use crate::text::{Form, SECRET_PREFIX};
use crate::{IdentityError, PublicIdentity, dh};

const LEN: usize = dh::LEN + SEED_LEN;
const FORM: Form = Form { name: "secret key", prefix: SECRET_PREFIX, bytes: LEN };

/// An X25519 scalar (32 bytes) and an ML-KEM-1024 seed `d‖z` (64 bytes, FIPS 203 section 6.1), with their
/// public keys. Its text is one line that begins with `qvpn1-secret-`.
pub struct SecretIdentity {
    x25519: Secret<32>,
    mlkem_seed: Secret<SEED_LEN>,
    decapsulation_key: DecapsulationKey,
    encapsulation_key: Box<EkBytes>,
    public: PublicIdentity,
}

impl SecretIdentity {
    /// Generates an identity from `rng`.
    #[must_use]
    pub fn generate(rng: &mut (impl CryptoRng + ?Sized)) -> Self {
        let x25519 = Secret::filled(|out| rng.fill_bytes(out));
        let mlkem_seed = Secret::filled(|out| rng.fill_bytes(out));
        Self::from_parts(x25519, mlkem_seed)
    }

    fn from_parts(x25519: Secret<32>, mlkem_seed: Secret<SEED_LEN>) -> Self {
        let (decapsulation_key, encapsulation_key) = DecapsulationKey::from_seed(&mlkem_seed);
        let public = PublicIdentity::new(dh::public_of(&x25519), &encapsulation_key);
        Self { x25519, mlkem_seed, decapsulation_key, encapsulation_key, public }
    }

    /// Parses the line that `qvpn-ctl genkey` writes. White space around it is ignored.
    ///
    /// # Errors
    /// [`IdentityError`] says what is wrong with the text.
    pub fn from_text(text: &str) -> Result<Self, IdentityError> {
        let mut bytes = SecretBuf::zeroed(LEN);
        with_scrubbed_stack(|| FORM.decode(text, bytes.expose_mut()))?;
        let (scalar, seed) = bytes.expose().split_at(dh::LEN);
        Ok(Self::from_parts(
            Secret::filled(|out| out.copy_from_slice(scalar)),
            Secret::filled(|out| out.copy_from_slice(seed)),
        ))
    }

    /// Returns the text form, without a line break.
    #[must_use]
    pub fn to_text(&self) -> SecretBuf {
        let mut bytes = SecretBuf::zeroed(LEN);
        let (scalar, seed) = bytes.expose_mut().split_at_mut(dh::LEN);
        scalar.copy_from_slice(self.x25519.expose());
        seed.copy_from_slice(self.mlkem_seed.expose());
        with_scrubbed_stack(|| FORM.encode(bytes.expose()))
    }

    #[must_use]
    pub fn public(&self) -> &PublicIdentity {
        &self.public
    }

    #[must_use]
    pub fn x25519(&self) -> &Secret<32> {
        &self.x25519
    }

    #[must_use]
    pub fn mlkem_seed(&self) -> &Secret<SEED_LEN> {
        &self.mlkem_seed
    }

    #[must_use]
    pub fn decapsulation_key(&self) -> &DecapsulationKey {
        &self.decapsulation_key
    }

    /// Returns the encapsulation key, which `Hello` carries.
    #[must_use]
    pub fn encapsulation_key(&self) -> &EkBytes {
        &self.encapsulation_key
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};

    fn some(seed: u64) -> SecretIdentity {
        SecretIdentity::generate(&mut ChaCha20Rng::seed_from_u64(seed))
    }

    #[test]
    fn secret_text_round_trip() {
        let one = some(1);
        let text = one.to_text();
        let text = std::str::from_utf8(text.expose()).unwrap();
        assert!(text.starts_with("qvpn1-secret-"));
        assert_eq!(text.len(), 141);
        let again = SecretIdentity::from_text(&format!("{text}\n")).unwrap();
        assert_eq!(again.public(), one.public());
        assert!(again.x25519().ct_eq(one.x25519().expose()));
        assert!(again.mlkem_seed().ct_eq(one.mlkem_seed().expose()));
    }

    #[test]
    fn public_text_round_trip_and_fingerprint() {
        let one = some(1);
        let text = one.public().to_string();
        assert_eq!(text.len(), 114);
        assert_eq!(text.parse(), Ok(*one.public()));
        assert_eq!(one.public().fingerprint().len(), 29);
        assert_eq!(one.public().fingerprint().split('-').count(), 6);
        assert_ne!(one.public().fingerprint(), some(2).public().fingerprint());
    }

    #[test]
    fn each_wrong_text_is_named() {
        let one = some(1);
        let secret = one.to_text();
        let secret = std::str::from_utf8(secret.expose()).unwrap();
        let public = one.public().to_string();
        let wg = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
        let error = |text: &str| text.parse::<PublicIdentity>().unwrap_err();
        assert!(matches!(error(secret), IdentityError::WrongKind { found: "secret key", .. }));
        assert!(matches!(error(wg), IdentityError::WrongKind { found: "WireGuard key", .. }));
        assert!(matches!(error("abc"), IdentityError::Prefix { .. }));
        assert!(matches!(error(""), IdentityError::Empty));
        assert!(matches!(error(&public[..100]), IdentityError::Length { want: 114, got: 100, .. }));
        assert!(matches!(
            error(&public.replace(&public[20..21], "é")),
            IdentityError::Length { .. } | IdentityError::Base64 { .. }
        ));
        assert!(matches!(
            error(&format!("{}!{}", &public[..50], &public[51..])),
            IdentityError::Base64 { .. }
        ));
        assert!(matches!(
            SecretIdentity::from_text(&public).err(),
            Some(IdentityError::WrongKind { found: "public key", .. })
        ));
    }

    #[test]
    fn a_point_of_small_order_is_refused() {
        let text = format!("qvpn1-{}", data_encoding::BASE64.encode(&[0; 80]));
        assert_eq!(text.parse::<PublicIdentity>(), Err(IdentityError::SmallOrder));
    }

    #[test]
    fn the_encapsulation_key_is_checked_against_the_identity() {
        let (one, two) = (some(1), some(2));
        assert_eq!(one.public().check_encapsulation_key(one.encapsulation_key()), Ok(()));
        assert_eq!(
            one.public().check_encapsulation_key(two.encapsulation_key()),
            Err(IdentityError::EncapsulationKey)
        );
    }
}
