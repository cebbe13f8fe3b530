//! The AEAD of the data path.

/// The AEAD of the data path. Suites are not negotiated: both gateways must be configured with the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Suite {
    /// ChaCha20-Poly1305 (RFC 8439), the default.
    ChaCha20Poly1305 = 0,
    /// AES-256-GCM (NIST SP 800-38D), for processors with VAES and for CNSA 2.0.
    Aes256Gcm = 1,
}

impl Suite {
    /// Returns the name in the config and in `show`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ChaCha20Poly1305 => "chacha20poly1305",
            Self::Aes256Gcm => "aes256gcm",
        }
    }
}
