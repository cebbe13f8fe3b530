//! Errors in the text of a key, with advice for the operator.

/// Why a text is not the key that was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The text is empty.
    #[error("the key is empty; make one with `qvpn-ctl genkey`")]
    Empty,
    /// The text has another key's prefix.
    #[error("expected a {expected}, but this is a {found}; {advice}")]
    WrongKind {
        /// The kind of key that was expected.
        expected: &'static str,
        /// The kind of key that the text looks like.
        found: &'static str,
        /// What to do about it.
        advice: &'static str,
    },
    /// The text has no known prefix.
    #[error("expected a {expected} that begins with `{prefix}`; copy the whole line")]
    Prefix {
        /// The kind of key that was expected.
        expected: &'static str,
        /// The prefix of that kind.
        prefix: &'static str,
    },
    /// The text has the wrong length: part of it is missing, or something was added.
    #[error("a {expected} has {want} characters, this has {got}; copy the whole line")]
    Length {
        /// The kind of key that was expected.
        expected: &'static str,
        /// The number of characters of a whole key.
        want: usize,
        /// The number of characters found.
        got: usize,
    },
    /// A character is not base64.
    #[error(
        "a {expected} must be base64 (RFC 4648 section 4) without spaces or line breaks inside; copy it again"
    )]
    Base64 {
        /// The kind of key that was expected.
        expected: &'static str,
    },
    /// The X25519 half of a public key is a point of small order.
    #[error(
        "the X25519 half of this public key is a point of small order, which no honest key is; ask the peer \
         for its key again"
    )]
    SmallOrder,
    /// The hash of an encapsulation key is not the one in the public identity, or the key fails FIPS 203's
    /// input check.
    #[error(
        "the ML-KEM-1024 key does not match the public key configured for this peer; compare `qvpn-ctl \
         fingerprint` on both sites"
    )]
    EncapsulationKey,
}
