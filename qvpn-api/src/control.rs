//! The control API over the daemon's unix socket: one JSON object a line, each way. A connection carries any number of
//! requests, answered in their order by one line each, but for `events`, whose answer is many lines and which ends it.
//!
//! ```text
//! → {"v":1,"request":"rekey","peer":"site-b"}
//! ← {"v":1,"reply":"rekey","body":{"peers":["site-b"]}}
//! ```

mod lines;

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use lines::{LineBuffer, read_line};

use crate::config::{PeerEdit, QkdPolicy, Role, Suite};
use crate::events::Event;
use crate::exit;
use crate::status::Status;

/// The version of the control API, `v` in each line.
pub const VERSION: u32 = 1;
/// The folder of the control sockets.
pub const SOCKET_DIR: &str = "/run/qvpn";
/// Bytes of the longest request line.
pub const MAX_REQUEST: usize = 64 * 1024;
/// Bytes of the longest reply line: the status of many thousand peers.
pub const MAX_REPLY: usize = 32 * 1024 * 1024;

/// The control socket of `interface` in `dir`, which is [`SOCKET_DIR`] outside tests.
#[must_use]
pub fn socket_path(dir: &Path, interface: &str) -> PathBuf {
    dir.join(format!("{interface}.sock"))
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// The status; answered by [`Reply::Show`].
    Show,
    /// The configured peers; answered by [`Reply::Peers`].
    Peers,
    /// A new epoch now; answered by [`Reply::Rekey`] once it is under way.
    Rekey {
        /// A peer's name or public key; all peers when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        peer: Option<String>,
    },
    /// Reads the config again; answered by [`Reply::Reload`], or by an error of code
    /// [`ErrorCode::ConfigRefused`] with nothing changed.
    Reload,
    /// Changes one peer of what runs, not of the file; answered as [`Reload`](Self::Reload).
    EditPeer {
        /// The change.
        change: PeerEdit,
    },
    /// The latest events and, with `follow`, all that come; answered by many [`Reply::Event`] and, without `follow`, a
    /// [`Reply::EventsEnd`]. The connection ends with it.
    Events {
        /// Whether to wait for more.
        #[serde(default)]
        follow: bool,
    },
    /// All metrics; answered by [`Reply::Metrics`].
    Metrics,
    /// Versions; answered by [`Reply::Version`].
    Version,
}

impl Request {
    /// Whether it changes something, so that only root and the group `qvpn` may ask for it.
    #[must_use]
    pub fn changes_something(&self) -> bool {
        match self {
            Self::Rekey { .. } | Self::Reload | Self::EditPeer { .. } => true,
            Self::Show | Self::Peers | Self::Events { .. } | Self::Metrics | Self::Version => false,
        }
    }
}

/// What the daemon answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", content = "body", rename_all = "snake_case")]
pub enum Reply {
    /// To [`Request::Show`].
    Show(Status),
    /// To [`Request::Peers`], in the config's order.
    Peers(Vec<PeerSummary>),
    /// To [`Request::Rekey`].
    Rekey {
        /// The names of the peers whose rekey began.
        peers: Vec<String>,
    },
    /// To [`Request::Reload`] and [`Request::EditPeer`].
    Reload {
        /// What changed, in words; empty when nothing did.
        changes: Vec<String>,
    },
    /// One event, in answer to [`Request::Events`].
    Event(Event),
    /// No more events.
    EventsEnd {
        /// How many older events the daemon no longer has.
        missed: u64,
    },
    /// To [`Request::Metrics`].
    Metrics {
        /// In Prometheus' text format, version 0.0.4.
        text: String,
    },
    /// To [`Request::Version`].
    Version {
        /// The daemon's version, such as `0.1.0`.
        daemon: String,
        /// The interface that it runs.
        interface: String,
        /// Its process ID.
        pid: u32,
    },
    /// The request was not done.
    Error(ErrorReply),
}

/// One configured peer, for `peer list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerSummary {
    /// Its name.
    pub name: String,
    /// Its public key as text (`qvpn1-…`).
    pub public_key: String,
    /// The public key's fingerprint.
    pub fingerprint: String,
    /// The configured endpoint, `host:port`.
    pub endpoint: Option<String>,
    /// The networks behind it, as prefixes.
    pub allowed_ips: Vec<String>,
    /// Our policy for it.
    pub qkd: QkdPolicy,
    /// Our role, as configured.
    pub role: Role,
    /// Its AEAD.
    pub suite: Suite,
}

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ErrorReply {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what is wrong and what to do, one line.
    pub message: String,
    /// More lines where one isn't enough, such as each error of a config.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
}

impl ErrorReply {
    /// An error without details.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: Vec::new() }
    }

    /// The exit code of a command that ends with it.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self.code {
            ErrorCode::ConfigRefused => exit::CONFIG_REFUSED,
            _ => exit::FAILED,
        }
    }
}

/// The kinds of [`ErrorReply`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorCode {
    /// The line has another version of the API.
    Version,
    /// The line is not a request, or not one that this version knows.
    Malformed,
    /// The line is longer than [`MAX_REQUEST`].
    TooLong,
    /// The caller may only read.
    NotPermitted,
    /// No peer has this name or public key.
    NoSuchPeer,
    /// The config was refused, and what ran before still runs.
    ConfigRefused,
    /// Too many connections or requests at once; try again.
    Busy,
    /// Anything else.
    Failed,
    /// A code that a newer daemon has.
    #[serde(other)]
    Other,
}

/// Why a line is not a message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The connection failed.
    #[error("the control connection failed: {0}")]
    Io(#[from] std::io::Error),
    /// The other end closed it in the middle of a line.
    #[error("the control connection ended in the middle of a message")]
    Truncated,
    /// A line without end.
    #[error("a control message is longer than {limit} bytes")]
    TooLong {
        /// The most that is read.
        limit: usize,
    },
    /// Another version of the API.
    #[error(
        "the other end speaks version {got} of the control API, this program version {VERSION}; install the same version of qvpn-daemon and qvpn-ctl, and restart the daemon if it is older"
    )]
    Version {
        /// What the line said.
        got: u64,
    },
    /// Not a message.
    #[error("not a qvpn control message: {0}")]
    Malformed(String),
}

impl From<CodecError> for ErrorReply {
    /// What a daemon answers to a line that it can't take.
    fn from(error: CodecError) -> Self {
        let code = match error {
            CodecError::Version { .. } => ErrorCode::Version,
            CodecError::TooLong { .. } => ErrorCode::TooLong,
            CodecError::Malformed(_) | CodecError::Truncated => ErrorCode::Malformed,
            CodecError::Io(_) => ErrorCode::Failed,
        };
        Self::new(code, error.to_string())
    }
}

/// A [`Request`] or a [`Reply`]: a message with a line form.
pub trait Message: Serialize + DeserializeOwned {
    /// The message as one line, with its line feed.
    ///
    /// # Errors
    /// [`CodecError::Malformed`] if it has no JSON form, which no message of this crate lacks.
    fn to_line(&self) -> Result<String, CodecError> {
        #[derive(Serialize)]
        struct Line<'a, T> {
            v: u32,
            #[serde(flatten)]
            message: &'a T,
        }
        let mut line = serde_json::to_string(&Line { v: VERSION, message: self })
            .map_err(|e| CodecError::Malformed(e.to_string()))?;
        line.push('\n');
        Ok(line)
    }

    /// The message in `line`, with or without its line feed.
    ///
    /// # Errors
    /// [`CodecError::Version`] for another version's line, else [`CodecError::Malformed`].
    fn from_line(line: &[u8]) -> Result<Self, CodecError> {
        #[derive(Deserialize)]
        struct Head {
            v: u64,
        }
        let head: Head = serde_json::from_slice(line).map_err(|e| CodecError::Malformed(e.to_string()))?;
        if head.v != u64::from(VERSION) {
            return Err(CodecError::Version { got: head.v });
        }
        serde_json::from_slice(line).map_err(|e| CodecError::Malformed(e.to_string()))
    }
}

impl Message for Request {}
impl Message for Reply {}

#[cfg(test)]
mod tests;
