//! Fetches keys from a site's key management entities (KMEs) and explains failures. Every answer of a KME is
//! checked before it is used. Every failure says which KME, what was asked, what came back and what to
//! change.
//!
//! - [`KeySource`] is the trait of all key delivery interfaces: [`KmsClient`] is ETSI GS QKD 014 V1.1.1,
//!   [`Etsi004Client`] is ETSI GS QKD 004 V2.1.1, [`SkipClient`] is Cisco's SKIP, and [`KeyFile`] is a file
//!   of keys, which are not QKD keys.
//! - [`Kme`] adds a circuit breaker and health to one source. All peers that use the KME share it.
//! - [`KmeSet`] is one peer's ordered list of KMEs, with failover within that SAE pair.
//!
//! # Where a key's bytes go
//! Each operation has its own TLS connection, which is dropped at the end. The body is collected into a
//! buffer that is erased, and base64 is decoded in constant time into a [`qvpn_secret::SecretBuf`]. The
//! buffers of rustls, hyper and `serde_json` are freed by then; a program that installs
//! [`qvpn_secret::ZeroAlloc`] as its global allocator erases them too.
//!
//! Errors, logs and events hold key IDs, never keys, and never an excerpt of an answer that could hold keys.

mod api;
mod clock;
mod config;
mod error;
mod etsi004;
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
mod wording;

pub use api::Api;
pub use config::{DEFAULT_TIMEOUT, KmeConfig};
pub use error::{Blame, KmsError, KmsErrorKind, Operation, Phase, TlsFault, Violation};
pub use etsi004::client::{Etsi004Client, StreamReport};
pub use etsi014::classify::{ErrorAnswer, Meaning, classify};
pub use etsi014::client::KmsClient;
pub use etsi014::wire::Status;
pub use file::KeyFile;
pub use https::http::{MAX_BODY, MAX_ERROR_BODY};
pub use key::{KEY_BITS, KeyRef, MAX_KEY_BITS, MAX_KEYS_PER_CALL, MIN_KEY_BITS, QkdKey};
pub use open::Source;
pub use pool::breaker::{Admission, Breaker, FIRST_DELAY_NS, Failure, MAX_DELAY_NS};
pub use pool::health::{KmeEvent, KmeHealth, KmeState, Observer};
pub use pool::kme::{DueProbe, Kme};
pub use pool::set::{FetchedByIds, KmeSet, NewKeys, NewKeysRequest, SetError};
pub use skip::client::SkipClient;
pub use skip::wire::Capabilities;
pub use source::{BoxFuture, CertificateFacts, Certificates, Connection, KeySource, Link, TlsFacts};
