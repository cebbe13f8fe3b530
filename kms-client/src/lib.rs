//! Fetches keys from a site's key management entities (KMEs), over ETSI GS QKD 014 above all, and explains failures. A KME is somebody else's box: nothing that it says is
//! trusted until it is checked, and every failure says which KME, what was asked, what came back and what to change.
//!
//! - [`KeySource`] is what stands before any key delivery interface: [`KmsClient`] is ETSI GS QKD 014 V1.1.1,
//!   [`SkipClient`] is Cisco's SKIP, and [`KeyFile`] a file of keys, which is no QKD.
//! - [`Kme`] adds a breaker and a health view to one source, and is shared by all peers that use that KME.
//! - [`KmeSet`] is one peer's ordered list of KMEs, with failover within that SAE pair.
//!
//! # Where a key's bytes go
//! An operation has a TLS connection of its own, which is dropped when it ends. The body is collected into a buffer that
//! is erased, and base64 is decoded in constant time straight into a [`qvpn_secret::SecretBuf`]. What rustls, hyper and
//! `serde_json` held in passing is freed by then; a program makes that an erasure by installing
//! [`qvpn_secret::ZeroAlloc`] as its global allocator.
//!
//! Errors, logs and events hold key IDs, never keys, and never an excerpt of an answer that could hold keys.

mod api;
mod clock;
mod config;
mod error;
mod etsi014;
mod excerpt;
mod file;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod https;
mod json;
mod key;
mod open;
mod pool;
pub mod probe;
mod recent_keys;
mod skip;
mod source;

pub use api::Api;
pub use config::{DEFAULT_TIMEOUT, KmeConfig};
pub use error::{Blame, KmsError, KmsErrorKind, Operation, Phase, TlsFault, Violation};
pub use etsi014::classify::classify;
pub use etsi014::client::KmsClient;
pub use etsi014::wire::Status;
pub use file::KeyFile;
pub use https::http::{MAX_BODY, MAX_ERROR_BODY};
pub use key::{
    KEY_BITS, KeyId, KeyIdError, KeyRef, MAX_KEY_BITS, MAX_KEY_ID_LEN, MAX_KEYS_PER_CALL, MIN_KEY_BITS,
    QkdKey,
};
pub use open::Source;
pub use pool::breaker::{Admission, Breaker, FIRST_DELAY_NS, Failure, MAX_DELAY_NS};
pub use pool::kme::{DueProbe, Kme, KmeEvent, KmeHealth, KmeState, Observer};
pub use pool::set::{FetchedByIds, KmeSet, SetError};
pub use skip::client::SkipClient;
pub use skip::wire::Capabilities;
pub use source::{BoxFuture, CertificateFacts, Certificates, Connection, KeySource, Link, TlsFacts};
