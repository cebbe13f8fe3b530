//! The optional pre-shared key of two sites, an input of each epoch. Its text form is the same as
//! WireGuard's.

use qvpn_secret::{Secret, SecretBuf};
use rand_core::CryptoRng;

use crate::IdentityError;
use crate::text::Form;

const FORM: Form = Form { name: "pre-shared key", prefix: "", bytes: Psk::LEN };

/// A pre-shared key of 32 bytes.
pub struct Psk(Secret<32>);

impl Psk {
    /// Length of a pre-shared key in bytes.
    pub const LEN: usize = 32;

    /// Generates a key.
    #[must_use]
    pub fn generate(rng: &mut (impl CryptoRng + ?Sized)) -> Self {
        Self(Secret::filled(|out| rng.fill_bytes(out)))
    }

    /// Parses 44 characters of base64, as `wg genpsk` and `qvpn-ctl genpsk` write them. White space around
    /// them is ignored.
    ///
    /// # Errors
    /// [`IdentityError`] says what is wrong with the text.
    pub fn from_text(text: &str) -> Result<Self, IdentityError> {
        let mut key = Secret::zeroed();
        FORM.decode(text, key.expose_mut())?;
        Ok(Self(key))
    }

    /// Returns the text form, without a line break.
    #[must_use]
    pub fn to_text(&self) -> SecretBuf {
        FORM.encode(self.0.expose())
    }

    /// Returns the key, for the key schedule.
    #[must_use]
    pub fn secret(&self) -> &Secret<32> {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trip() {
        let psk = Psk(Secret::filled(|b| b.fill(0xfb)));
        let text = psk.to_text();
        let text = std::str::from_utf8(text.expose()).unwrap();
        assert_eq!(text, "+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/s=");
        assert!(Psk::from_text(&format!(" {text}\n")).unwrap().secret().ct_eq(&[0xfb; 32]));
        assert!(matches!(Psk::from_text(&text[1..]), Err(IdentityError::Length { want: 44, got: 43, .. })));
        assert!(matches!(Psk::from_text(&text.replace('+', "*")), Err(IdentityError::Base64 { .. })));
        assert!(matches!(Psk::from_text("qvpn1-abc"), Err(IdentityError::WrongKind { .. })));
        assert!(matches!(Psk::from_text("\n"), Err(IdentityError::Empty)));
    }
}
