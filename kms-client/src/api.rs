//! The interfaces over which a source delivers keys.

/// The interface of a source of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Api {
    /// ETSI GS QKD 014.
    Etsi014,
    /// ETSI GS QKD 004.
    Etsi004,
    /// Cisco SKIP.
    Skip,
    /// A file of keys. Such keys never count as QKD keys.
    File,
}

impl Api {
    /// Returns the word in config and status.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Etsi014 => "etsi014",
            Self::Etsi004 => "etsi004",
            Self::Skip => "skip",
            Self::File => "file",
        }
    }
}
