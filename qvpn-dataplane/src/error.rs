//! Errors of lanes.

use std::io;

/// Why lanes can't start, or why one stopped.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    /// There must be 1 to 256 lanes.
    #[error("{0} lanes: there must be 1 to 256, each with a TUN queue and a UDP socket")]
    Count(usize),
    /// The system refused a resource that a lane needs.
    #[error("cannot {what} for lane {lane}: {source}; look at the limits on open files, threads and memory")]
    Start { lane: u8, what: &'static str, source: io::Error },
    /// The TUN device was deleted.
    #[error("the tunnel device is gone: {0}; if it was deleted, start the daemon again")]
    TunGone(io::Error),
    /// The UDP socket no longer receives.
    #[error("the UDP socket fails: {0}; start the daemon again")]
    SocketFailed(io::Error),
    /// A thread of the lane panicked: a bug in this program.
    #[error("a thread of the lane panicked; this is a fault of the program, please report it")]
    Panicked,
}
