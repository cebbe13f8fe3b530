//! Requests for QKD keys and their answers. Keys move through these types and are never copied.

use qvpn_secret::SecretBuf;

/// A request for QKD keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetch {
    /// As master SAE: `enc_keys` for the peer's SAE ID, ETSI GS QKD 014 section 5.2.
    New {
        /// Comes back in the report.
        request: u64,
        /// How many keys.
        number: usize,
        /// Sources that are not QKD must not be asked: their keys would be refused.
        qkd_only: bool,
        /// Links, by their source and target KME, whose keys the peer can't get now. They are asked last.
        stuck: Vec<(String, String)>,
    },
    /// As slave SAE: `dec_keys` with the peer's SAE ID as master, ETSI GS QKD 014 section 5.3.
    ById {
        /// Comes back in the report.
        request: u64,
        /// The keys, oldest first.
        keys: Vec<KeyName>,
        /// As with [`New`](Self::New).
        qkd_only: bool,
    },
}

/// Where a key comes from. Each side trusts its own source only, not what the peer says about the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyKind {
    /// A QKD network.
    Qkd,
    /// A file: never shown as QKD, and never enough if QKD is required.
    File,
}

/// The name of a QKD key: its ID, and the two KMEs of the link that made it. Names are public.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyName {
    /// The key ID, opaque and echoed exactly; 1 to 255 bytes.
    pub id: String,
    /// The KME that issued it, by the KME's status; empty if that doesn't name it.
    pub source_kme: String,
    /// The KME of the peer's site.
    pub target_kme: String,
}

/// A key on its way into the stock.
pub struct FetchedKey {
    /// Its ID and its link.
    pub name: KeyName,
    /// Where it comes from.
    pub kind: KeyKind,
    /// The key, at least 256 bits.
    pub secret: SecretBuf,
}

/// The answer to a [`Fetch`].
pub enum KmsReport {
    /// Keys arrived. For [`Fetch::ById`] some may be missing, and `missing` says why.
    Keys {
        /// From the request.
        request: u64,
        /// The keys, in the order in which they are to be used.
        keys: Vec<FetchedKey>,
        /// What went wrong with the rest, in words for the operator, without key material.
        missing: Option<KmsFailure>,
    },
    /// No key arrived.
    Failed {
        /// From the request.
        request: u64,
        /// What went wrong.
        failure: KmsFailure,
    },
}

/// Why keys are missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KmsFailure {
    /// What it means for the requested keys.
    pub kind: KmsFailureKind,
    /// The client's error: which KME, which request, and what to do.
    pub text: String,
}

/// What a failure means for the requested keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KmsFailureKind {
    /// The KME does not know the key, or does not know it yet.
    NotFound,
    /// No KME answered, or none has keys.
    Unavailable,
}
