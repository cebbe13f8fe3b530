//! Which certificate an event is about.

use serde::{Deserialize, Serialize};

/// Whose certificate it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CertificateOf {
    /// Our own, `cert_file`.
    Client,
    /// The KME's, from the latest connection.
    Kme,
    /// The CA's in `ca_file`; of several, the one that ends last.
    Ca,
}

impl CertificateOf {
    /// The fixed name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Kme => "kme",
            Self::Ca => "ca",
        }
    }
}
