//! What an epoch's key is made of.

/// What an epoch's key is made of; ML-KEM and X25519 always are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct KeySources {
    /// A QKD key.
    pub qkd: bool,
    /// A key from a file, which is no QKD key.
    pub file: bool,
    /// The pre-shared key.
    pub psk: bool,
    /// The chain of the epoch before.
    pub chain: bool,
}

impl KeySources {
    /// The names, in the order in which people read them.
    #[must_use]
    pub fn names(self) -> Vec<&'static str> {
        let all = [
            (self.qkd, "qkd"),
            (self.file, "file"),
            (true, "mlkem"),
            (true, "x25519"),
            (self.psk, "psk"),
            (self.chain, "chain"),
        ];
        all.iter().filter(|(used, _)| *used).map(|(_, name)| *name).collect()
    }
}
