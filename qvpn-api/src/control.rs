//! The control API over the daemon's unix socket: one JSON object per line in each direction. A connection
//! carries any number of requests. Each gets one line of reply, in order; `events` gets many lines and ends
//! the connection.
//!
//! ```text
//! → {"v":1,"request":"rekey","peer":"site-b"}
//! ← {"v":1,"reply":"rekey","body":{"peers":["site-b"]}}
//! ```

mod error;
mod lines;

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use error::{CodecError, VERSION};
pub use lines::{LineBuffer, read_line};

pub use crate::permission::Permission;

use crate::config::{KeyChange, PeerEdit, QkdPolicy, Role, Suite};
use crate::events::Event;
use crate::exit;
use crate::status::{GatewayStatus, Status};

/// The directory of the control sockets.
pub const SOCKET_DIR: &str = "/run/qvpn";
/// The longest request line, in bytes.
pub const MAX_REQUEST: usize = 64 * 1024;
/// The longest reply line, in bytes: the status of many thousand peers.
pub const MAX_REPLY: usize = 32 * 1024 * 1024;

/// The longest time to confirm a config on trial, in seconds: one day.
pub const MAX_CONFIRM_S: u64 = 86_400;

/// Returns the control socket of `interface` in `dir`, which is [`SOCKET_DIR`] except in tests.
#[must_use]
pub fn socket_path(dir: &Path, interface: &str) -> PathBuf {
    dir.join(format!("{interface}.sock"))
}

/// A request of a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// The status; answered by [`Reply::Show`].
    Show,
    /// The configured peers; answered by [`Reply::Peers`].
    Peers,
    /// Starts a new epoch now; answered by [`Reply::Rekey`] once it has begun.
    Rekey {
        /// A peer's name or public key; all peers if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        peer: Option<String>,
    },
    /// Reads the config again; answered by [`Reply::Reload`], or by an error of code
    /// [`ErrorCode::ConfigRefused`] with nothing changed.
    Reload,
    /// Reads the config again and names what a [`Reload`](Self::Reload) would change; answered by
    /// [`Reply::Plan`], or by the error that a reload would have.
    PlanReload,
    /// The text of the config in force; answered by [`Reply::Config`].
    Config,
    /// Applies the config in [`unconfirmed_path`](crate::config::unconfirmed_path), and restores the former
    /// one unless [`Confirm`](Self::Confirm) arrives in time; answered by [`Reply::Reload`].
    TryConfig {
        /// The time in seconds, from 1 to [`MAX_CONFIRM_S`].
        within_s: u64,
    },
    /// Keeps the config on trial; answered by [`Reply::Confirmed`].
    Confirm,
    /// Restores the former config at once; answered by [`Reply::Reload`].
    GoBack,
    /// Ends all sessions, sends nothing and takes no key, until [`Activate`](Self::Activate); answered by
    /// [`Reply::Gateway`].
    Standby,
    /// Leaves standby, as after a start; answered by [`Reply::Gateway`].
    Activate,
    /// Changes one peer of the running config, not of the file; answered like [`Reload`](Self::Reload).
    EditPeer {
        /// The change.
        change: PeerEdit,
    },
    /// Releases prefixes that stay blocked although the config no longer has them; answered by
    /// [`Reply::Unblocked`].
    Unblock {
        /// The prefixes; those inside them are released too.
        prefixes: Vec<String>,
    },
    /// The latest events and, with `follow`, all later ones; answered by many [`Reply::Event`] and, without
    /// `follow`, a [`Reply::EventsEnd`]. Then the connection ends.
    Events {
        /// Whether to wait for later events.
        #[serde(default)]
        follow: bool,
    },
    /// All metrics; answered by [`Reply::Metrics`].
    Metrics,
    /// Versions; answered by [`Reply::Version`].
    Version,
}

impl Request {
    /// The fixed name, as in JSON.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Show => "show",
            Self::Peers => "peers",
            Self::Rekey { .. } => "rekey",
            Self::Reload => "reload",
            Self::PlanReload => "plan_reload",
            Self::Config => "config",
            Self::TryConfig { .. } => "try_config",
            Self::Confirm => "confirm",
            Self::GoBack => "go_back",
            Self::Standby => "standby",
            Self::Activate => "activate",
            Self::Unblock { .. } => "unblock",
            Self::EditPeer { .. } => "edit_peer",
            Self::Events { .. } => "events",
            Self::Metrics => "metrics",
            Self::Version => "version",
        }
    }

    /// Returns the permission that its sender needs.
    #[must_use]
    pub fn needs(&self) -> Permission {
        match self {
            Self::Show | Self::Peers | Self::Events { .. } | Self::Metrics | Self::Version => {
                Permission::Observe
            }
            Self::Rekey { .. }
            | Self::Reload
            | Self::PlanReload
            | Self::Config
            | Self::TryConfig { .. }
            | Self::Confirm
            | Self::GoBack
            | Self::Standby
            | Self::Activate => Permission::Operate,
            Self::EditPeer { change } if change.only_disables_or_enables() => Permission::Operate,
            // These let traffic leave in clear.
            Self::EditPeer { .. } | Self::Unblock { .. } => Permission::Admin,
        }
    }

    /// Whether it changes something and is therefore reported as an event.
    #[must_use]
    pub fn changes_something(&self) -> bool {
        self.needs() > Permission::Observe && !matches!(self, Self::PlanReload | Self::Config)
    }
}

/// A reply of the daemon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", content = "body", rename_all = "snake_case")]
pub enum Reply {
    /// The reply to [`Request::Show`].
    Show(Status),
    /// The reply to [`Request::Peers`], in the config's order.
    Peers(Vec<PeerSummary>),
    /// The reply to [`Request::Rekey`].
    Rekey {
        /// The names of the peers whose rekey began.
        peers: Vec<String>,
    },
    /// The reply to [`Request::Reload`] and [`Request::EditPeer`].
    Reload {
        /// The changes in words; empty if nothing changed.
        changes: Vec<String>,
        /// Prefixes that left the config with this change and stay blocked.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        kept: Vec<String>,
    },
    /// The reply to [`Request::Unblock`].
    Unblocked {
        /// The prefixes that were released.
        prefixes: Vec<String>,
    },
    /// The reply to [`Request::PlanReload`]; empty if nothing would change.
    Plan {
        /// Each key that would change.
        changes: Vec<KeyChange>,
    },
    /// The reply to [`Request::Config`].
    Config {
        /// The path of the config file.
        path: PathBuf,
        /// The text that is in force; after an unsaved change of a peer it differs from the file's.
        text: String,
        /// The seconds left to confirm it, if it is on trial.
        confirm_in_s: Option<u64>,
    },
    /// The reply to [`Request::Confirm`].
    Confirmed,
    /// The reply to [`Request::Standby`] and [`Request::Activate`].
    Gateway(GatewayStatus),
    /// One event, in reply to [`Request::Events`].
    Event(Event),
    /// No more events.
    EventsEnd {
        /// The number of older events that the daemon no longer has.
        missed: u64,
    },
    /// The reply to [`Request::Metrics`].
    Metrics {
        /// In Prometheus' text format, version 0.0.4.
        text: String,
    },
    /// The reply to [`Request::Version`].
    Version {
        /// The daemon's version, such as `0.2.0`.
        daemon: String,
        /// Its interface.
        interface: String,
        /// Its process ID.
        pid: u32,
    },
    /// The request failed.
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
    /// Its other public key, while it changes its key.
    #[serde(default)]
    pub other_public_key: Option<String>,
    /// The configured endpoint, `host:port`.
    pub endpoint: Option<String>,
    /// The networks behind it, as prefixes.
    pub allowed_ips: Vec<String>,
    /// Our policy for it.
    #[serde(with = "crate::config::shared_words")]
    pub qkd: QkdPolicy,
    /// Our role, as configured.
    pub role: Role,
    /// Its AEAD.
    #[serde(with = "crate::config::shared_words")]
    pub suite: Suite,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ErrorReply {
    /// The kind of failure, for programs.
    pub code: ErrorCode,
    /// What is wrong and what to do, one line for people.
    pub message: String,
    /// More lines, such as each error of a config.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
}

impl ErrorReply {
    /// Makes an error without details.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: Vec::new() }
    }

    /// Returns the exit code of a command that fails with it.
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
    /// The line is not a request that this version knows.
    Malformed,
    /// The line is longer than [`MAX_REQUEST`].
    TooLong,
    /// The caller lacks the permission.
    NotPermitted,
    /// No peer has this name or public key.
    NoSuchPeer,
    /// The config was refused; the former one stays in force.
    ConfigRefused,
    /// There are too many connections or requests; try again.
    Busy,
    /// Anything else.
    Failed,
    /// A code of a newer daemon.
    #[serde(other)]
    Other,
}

impl From<CodecError> for ErrorReply {
    /// The daemon's reply to an unreadable line.
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

/// A message with a line form: a [`Request`] or a [`Reply`].
pub trait Message: Serialize + DeserializeOwned {
    /// Returns the message as one line, with its line feed.
    ///
    /// # Errors
    /// [`CodecError::Malformed`] if it has no JSON form; every message of this crate has one.
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

    /// Parses the message in `line`, with or without its line feed.
    ///
    /// # Errors
    /// [`CodecError::Version`] for a line of another version, otherwise [`CodecError::Malformed`].
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
