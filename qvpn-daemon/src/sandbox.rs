//! What the process gives up at its start, so that keys stay in it: core dumps, and swap for the memory of secrets.

use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{Resource, setrlimit};

use crate::error::DaemonError;

/// Locked memory that must be there from the start, in bytes: many hundred peers' keys.
const RESERVE: usize = 1 << 20;

/// Forbids core dumps and foreign debuggers, and locks memory for keys ahead.
///
/// # Errors
/// If the limit on locked memory is too low, or the system refuses.
pub(crate) fn enter() -> Result<(), DaemonError> {
    let refused =
        |what: &'static str| move |errno: nix::errno::Errno| DaemonError::system(what, errno.into());
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(refused("forbid core dumps"))?;
    set_dumpable(false).map_err(refused("forbid dumps of the process's memory"))?;
    qvpn_secret::reserve(RESERVE).map_err(DaemonError::Memory)
}
