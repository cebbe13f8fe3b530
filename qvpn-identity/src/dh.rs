//! X25519 (RFC 7748) over locked memory. It refuses shared secrets that are not contributory, so no caller
//! can forget that check.

use qvpn_secret::{Secret, with_scrubbed_stack};
use x25519_dalek::{PublicKey, StaticSecret};

/// Length of a secret scalar, a public key and a shared secret, in bytes.
pub const LEN: usize = 32;

/// Returns the public key of `secret`, clamped as RFC 7748 section 5 requires.
#[must_use]
pub fn public_of(secret: &Secret<LEN>) -> [u8; LEN] {
    with_scrubbed_stack(|| PublicKey::from(&StaticSecret::from(*secret.expose())).to_bytes())
}

/// Returns the shared secret of `secret` and `public`, or `None` if it is all zero (RFC 7748 section 6.1):
/// `public` is then a point of small order, and the result would not depend on `secret`.
#[must_use]
pub fn agree(secret: &Secret<LEN>, public: &[u8; LEN]) -> Option<Secret<LEN>> {
    with_scrubbed_stack(|| {
        let shared = StaticSecret::from(*secret.expose()).diffie_hellman(&PublicKey::from(*public));
        shared.was_contributory().then(|| Secret::filled(|out| out.copy_from_slice(shared.as_bytes())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex<const N: usize>(text: &str) -> [u8; N] {
        data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap().try_into().unwrap()
    }

    /// RFC 7748 section 6.1.
    #[test]
    fn rfc7748_vector() {
        let alice =
            Secret::take(&mut hex("77076d0a7318a57d3c16c17251b26645c6c2f6c929a7a0a3fd1d5b7a9a3c2a2a"));
        let bob = Secret::take(&mut hex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"));
        assert_eq!(public_of(&bob), hex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"));
        let one = agree(&alice, &public_of(&bob)).unwrap();
        let other = agree(&bob, &public_of(&alice)).unwrap();
        assert!(one.ct_eq(other.expose()));
    }

    #[test]
    fn rfc7748_shared_secret() {
        let bob = Secret::take(&mut hex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"));
        let alice = hex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a");
        let want = hex::<32>("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742");
        assert!(agree(&bob, &alice).unwrap().ct_eq(&want));
    }

    #[test]
    fn points_of_small_order_are_refused() {
        let secret = Secret::filled(|b| b.fill(0x42));
        let order_eight = hex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800");
        assert!(agree(&secret, &[0; 32]).is_none());
        assert!(agree(&secret, &order_eight).is_none());
        assert!(agree(&secret, &public_of(&Secret::filled(|b| b.fill(7)))).is_some());
    }
}
