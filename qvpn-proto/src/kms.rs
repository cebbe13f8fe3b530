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
        /// A source that is no QKD must not be asked: its keys would be refused.
        qkd_only: bool,
        /// Links, by their source and target KME, whose keys the other end can't get now: the last to be asked.
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

/// Where a key comes from. Each end goes by its own source, whatever the other end says of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyKind {
    /// A QKD network.
    Qkd,
    /// A file: never called QKD, and never enough where QKD is required.
    File,
}

/// The name of a QKD key: its ID, and the two KMEs of the link that made it. Names are public.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyName {
    /// The key ID, opaque and echoed exactly; 1 to 255 bytes.
    pub id: String,
    /// The KME that issued it, as its status says; may be empty where it doesn't.
    pub source_kme: String,
    /// The KME at the other end.
    pub target_kme: String,
}

/// A key on its way into the stock.
pub struct FetchedKey {
    /// What it is called.
    pub name: KeyName,
    /// Where it comes from.
    pub kind: KeyKind,
    /// The key, at least 256 bits.
    pub secret: SecretBuf,
}

/// The answer to a [`Fetch`].
pub enum KmsReport {
    /// Keys arrived; for [`Fetch::ById`] perhaps not all, and `missing` says why.
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
    /// What it means for the keys that were asked for.
    pub kind: KmsFailureKind,
    /// The client's error in words: which KME, what was asked, what to do.
    pub text: String,
}

/// What a KMS failure means for the keys that were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KmsFailureKind {
    /// The KME does not know the key, or not yet: a slave KME may lag.
    NotFound,
    /// No KME could be asked, or none has keys: try again later.
    Unavailable,
}
