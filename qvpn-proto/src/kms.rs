//! Requests for QKD keys and their answers. Keys move through these types and are never copied.

use qvpn_secret::SecretBuf;
use qvpn_types::KeyId;

/// A request for QKD keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetch {
    /// As master SAE: `enc_keys` for the peer's SAE ID, ETSI GS QKD 014 section 5.2.
    New {
        /// A number that the report repeats.
        request: u64,
        /// The number of keys.
        number: usize,
        /// Whether sources other than QKD must be left out: their keys would be refused.
        qkd_only: bool,
        /// Links, by their source and target KME, whose keys the peer can't get now. They are used last.
        stuck: Vec<(String, String)>,
    },
    /// As slave SAE: `dec_keys` with the peer's SAE ID as master, ETSI GS QKD 014 section 5.3.
    ById {
        /// A number that the report repeats.
        request: u64,
        /// The keys, oldest first.
        keys: Vec<KeyName>,
        /// As in [`New`](Self::New).
        qkd_only: bool,
    },
}

/// The source of a key. Each side trusts its own source only, not the peer's statement about the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyKind {
    /// A QKD network.
    Qkd,
    /// A file: never shown as QKD, and not sufficient if QKD is required.
    File,
}

/// The name of a QKD key: its ID, and the two KMEs of the link that made it. Names are public.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyName {
    /// The key ID, opaque and echoed exactly.
    pub id: KeyId,
    /// The KME that issued it, from the KME's status; empty if the status doesn't name it.
    pub source_kme: String,
    /// The KME of the peer's site.
    pub target_kme: String,
}

/// A fetched key, before it enters the stock.
pub struct FetchedKey {
    pub name: KeyName,
    pub kind: KeyKind,
    /// The key, at least 256 bits.
    pub secret: SecretBuf,
}

/// The answer to a [`Fetch`].
pub enum KmsReport {
    /// Keys arrived. For [`Fetch::ById`] some may be missing; `missing` then says why.
    Keys {
        /// The number in the request.
        request: u64,
        /// The keys, in the order of their use.
        keys: Vec<FetchedKey>,
        /// The failure of the missing keys, for the operator, without key material.
        missing: Option<KmsFailure>,
    },
    /// No key arrived.
    Failed {
        /// The number in the request.
        request: u64,
        failure: KmsFailure,
    },
}

/// Why keys are missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KmsFailure {
    /// The consequence for the requested keys.
    pub kind: KmsFailureKind,
    /// The client's error: which KME, which request, and what to do.
    pub text: String,
}

/// The consequence of a failure for the requested keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KmsFailureKind {
    /// The KME does not know the key, or does not know it yet.
    NotFound,
    /// No KME answered, or none has keys.
    Unavailable,
}
