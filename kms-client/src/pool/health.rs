//! What a KME reports to the rest of the program: its health and its events.

use std::sync::Arc;
use std::time::Duration;

use crate::error::{KmsError, Operation};

/// Whether a KME works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KmeState {
    /// It has not been asked yet.
    Unknown,
    /// It works, although it may have no keys at the moment.
    Up,
    /// It failed and is probed at intervals.
    Down,
}

impl KmeState {
    /// Returns the word in the status.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// A KME's state for people and programs. It holds no key material; what is unknown is `None`.
#[derive(Debug, Clone)]
pub struct KmeHealth {
    /// Its name in the config.
    pub name: String,
    /// Its interface, as in the config.
    pub api: &'static str,
    /// Its URL.
    pub url: String,
    /// Whether it works.
    pub state: KmeState,
    /// The last failure.
    pub last_error: Option<KmsError>,
    /// How long ago that was.
    pub last_error_ago: Option<Duration>,
    /// How long ago an operation succeeded.
    pub last_success_ago: Option<Duration>,
    /// Keys in store by the KME's own count.
    pub stored_key_count: Option<u64>,
    /// How long the last successful operation took.
    pub latency: Option<Duration>,
    /// Seconds until our certificate expires; negative once it has.
    pub cert_expires_in_s: Option<i64>,
    /// Seconds until the KME's certificate expires; negative once it has.
    pub kme_cert_expires_in_s: Option<i64>,
    /// When our certificate expires, in seconds since 1970.
    pub cert_not_after: Option<i64>,
    /// Why changed certificate files aren't in use.
    pub cert_problem: Option<String>,
}

/// What happened at a KME. No event holds a key or a key ID.
#[derive(Debug, Clone)]
pub enum KmeEvent {
    /// It works, for the first time or again.
    Up {
        /// Its name.
        kme: String,
    },
    /// It stopped working.
    Down {
        /// Its name.
        kme: String,
        /// Why.
        error: KmsError,
    },
    /// It answers again, so peers that wait for keys may ask at once. It may still not deliver any.
    Answers {
        /// Its name.
        kme: String,
    },
    /// A request ended, for counters and histograms.
    Requested {
        /// Its name.
        kme: String,
        /// The operation.
        operation: Operation,
        /// `ok`, or [`KmsErrorKind::as_str`](crate::KmsErrorKind::as_str).
        outcome: &'static str,
        /// How long it took.
        took: Duration,
        /// Keys that may be spent without having arrived here.
        keys_lost: u32,
    },
}

/// Receives each event, on the task of the request. It must not block.
pub type Observer = Arc<dyn Fn(KmeEvent) + Send + Sync>;
