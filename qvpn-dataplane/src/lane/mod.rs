//! A lane: one TUN queue, one UDP socket, a sending and a receiving thread, with keys and counters of their own. The
//! tables belong to the threads, so there is no lock on the way of a packet.

mod batch;
mod detour;
mod ecn;
mod outbox;
mod peers;
mod receive;
mod send;
mod start;

pub use start::{Admission, Dscp, Filter, Lanes, LanesConfig, stand_before_others};

/// For the fuzz targets.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod inner {
    pub(crate) use super::ecn::decapsulate;
    pub(crate) use super::receive::{ByIndex, source_and_length};
}

use std::io;

/// Why lanes can't start, or why one stopped.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    /// There must be 1 to 256 lanes.
    #[error("{0} lanes: there must be 1 to 256, each with a TUN queue and a UDP socket")]
    Count(usize),
    /// The system refused something that a lane needs.
    #[error("cannot {what} for lane {lane}: {source}; look at the limits on open files, threads and memory")]
    Start {
        /// The lane.
        lane: u8,
        /// What was refused.
        what: &'static str,
        /// The system's word.
        source: io::Error,
    },
    /// The TUN device went away.
    #[error("the tunnel device is gone: {0}; if it was deleted, start the daemon again")]
    TunGone(io::Error),
    /// The UDP socket doesn't receive any more.
    #[error("the UDP socket fails: {0}; start the daemon again")]
    SocketFailed(io::Error),
    /// A thread of the lane panicked: a fault of this program.
    #[error("a thread of the lane panicked; this is a fault of the program, please report it")]
    Panicked,
}
