//! The sources of an epoch's key.

/// The sources of an epoch's key besides ML-KEM and X25519, which are always used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct KeySources {
    /// A QKD key.
    pub qkd: bool,
    /// A key from a file, which is not QKD.
    pub file: bool,
    /// The pre-shared key.
    pub psk: bool,
    /// The chain of the previous epoch.
    pub chain: bool,
}

impl KeySources {
    /// Returns the names of the sources, in the order for display.
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
