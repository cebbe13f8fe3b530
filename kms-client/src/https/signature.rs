//! The signature algorithms of a token, and their encodings in PKCS #11 and TLS.

use rustls::SignatureScheme;

/// How a token signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Algorithm {
    EcdsaP256,
    EcdsaP384,
    RsaPssSha256,
    RsaPssSha384,
    RsaPkcs1Sha256,
}

impl Algorithm {
    pub(crate) fn scheme(self) -> SignatureScheme {
        match self {
            Self::EcdsaP256 => SignatureScheme::ECDSA_NISTP256_SHA256,
            Self::EcdsaP384 => SignatureScheme::ECDSA_NISTP384_SHA384,
            Self::RsaPssSha256 => SignatureScheme::RSA_PSS_SHA256,
            Self::RsaPssSha384 => SignatureScheme::RSA_PSS_SHA384,
            Self::RsaPkcs1Sha256 => SignatureScheme::RSA_PKCS1_SHA256,
        }
    }
}

/// Returns the hash that an ECDSA signature is computed over.
pub(crate) fn digest(algorithm: Algorithm, message: &[u8]) -> Vec<u8> {
    use aws_lc_rs::digest;
    let hash = if algorithm == Algorithm::EcdsaP384 { &digest::SHA384 } else { &digest::SHA256 };
    digest::digest(hash, message).as_ref().to_vec()
}

/// Converts a token's `r ‖ s` (PKCS #11 section 2.3.1) to the `SEQUENCE` of two integers of TLS (RFC 3279
/// section 2.2.3).
pub(crate) fn der_signature(raw: &[u8]) -> Option<Vec<u8>> {
    if raw.is_empty() || !raw.len().is_multiple_of(2) || raw.len() > 132 {
        return None;
    }
    let (r, s) = raw.split_at(raw.len() / 2);
    let body: Vec<u8> = [integer(r)?, integer(s)?].concat();
    let mut out = vec![0x30];
    if body.len() > 127 {
        out.push(0x81);
    }
    out.push(u8::try_from(body.len()).ok()?);
    out.extend_from_slice(&body);
    Some(out)
}

/// Encodes a positive DER integer in its shortest form.
fn integer(bytes: &[u8]) -> Option<Vec<u8>> {
    let first = bytes.iter().position(|byte| *byte != 0)?;
    let bytes = bytes.get(first..)?;
    let zero = bytes.first().is_some_and(|byte| *byte > 127);
    let mut out = vec![2, u8::try_from(bytes.len() + usize::from(zero)).ok()?];
    if zero {
        out.push(0);
    }
    out.extend_from_slice(bytes);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_numbers_become_a_sequence() {
        assert_eq!(der_signature(&[0, 1, 0x80, 2]).unwrap(), [0x30, 8, 2, 1, 1, 2, 3, 0, 0x80, 2]);
        let long = der_signature(&[0xff; 96]).unwrap();
        assert_eq!((long.len(), &long[..6]), (104, &[0x30, 102, 2, 49, 0, 0xff][..]));
        let longest = der_signature(&[0xff; 132]).unwrap();
        assert_eq!(longest[..4], [0x30, 0x81, 138, 2]);
        for wrong in [&[][..], &[1], &[0, 0], &[1, 0], &[1; 134]] {
            assert!(der_signature(wrong).is_none(), "{wrong:?}");
        }
    }
}
