//! Errors of the control API's line format.

/// The version of the control API: `v` in each line.
pub const VERSION: u32 = 1;

/// Why a line could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The connection failed.
    #[error("the control connection failed: {0}")]
    Io(#[from] std::io::Error),
    /// The peer closed the connection in the middle of a line.
    #[error("the control connection ended in the middle of a message")]
    Truncated,
    /// The line is too long.
    #[error("a control message is longer than {limit} bytes")]
    TooLong {
        /// The limit in bytes.
        limit: usize,
    },
    /// The line has another version of the API.
    #[error(
        "the other program uses version {got} of the control API, this one version {VERSION}; install the \
         same version of qvpn-daemon and qvpn-ctl, and restart the daemon if it is older"
    )]
    Version {
        /// The line's version.
        got: u64,
    },
    /// The line is not a message.
    #[error("not a qvpn control message: {0}")]
    Malformed(String),
}
