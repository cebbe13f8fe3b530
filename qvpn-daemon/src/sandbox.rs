//! What the process gives up, to protect its keys and to limit the harm of an exploited bug. There are two
//! steps, both before any other thread exists, since threads inherit from their parent:
//!
//! 1. [`enter`], before the config is read: no core dumps, no root, no capability except `CAP_NET_ADMIN`, no
//!    way back to more, memory that is not swapped.
//! 2. [`confine`], before the network is touched: files with Landlock, system calls with seccomp.

mod calls;
mod files;
mod user;

#[cfg(test)]
mod tests;

use std::path::Path;

use nix::errno::Errno;
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::prctl::{set_dumpable, set_no_new_privs};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use qvpn_api::Config;

use crate::error::DaemonError;

/// Locked memory that must be available at the start: the keys of several hundred peers.
const LOCKED_RESERVE_BYTES: usize = 1 << 20;

/// The highest priority of a thread: nice −10, in the form of `setrlimit`.
const NICE_LIMIT: u64 = 20 + 10;

/// Becomes the user `qvpn` if root started the daemon, keeps only `CAP_NET_ADMIN`, forbids core dumps and
/// debuggers of other users, and locks memory. Creates `socket_dir` and `state_dir` first if they are
/// missing, since only root can. Returns what was done, for the log.
///
/// # Errors
/// If the limit on locked memory is too low, or the system refuses.
pub(crate) fn enter(socket_dir: &Path, state_dir: &Path) -> Result<Vec<String>, DaemonError> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(DaemonError::errno("forbid core dumps"))?;
    // Lanes get a higher priority. Only root can raise this limit; the shipped unit does. The root of a
    // container may be unable to raise the limit and yet able to raise its priority: then the whole daemon
    // does so now, while it is root.
    if setrlimit(Resource::RLIMIT_NICE, NICE_LIMIT, NICE_LIMIT).is_err() {
        qvpn_dataplane::raise_priority();
    }
    let mut done = vec![user::become_unprivileged(socket_dir, state_dir)?];
    // After the change of user, which makes the process dumpable again.
    set_dumpable(false).map_err(DaemonError::errno("forbid dumps of the process's memory"))?;
    set_no_new_privs().map_err(DaemonError::errno("forbid new privileges"))?;
    qvpn_secret::reserve(LOCKED_RESERVE_BYTES).map_err(DaemonError::Memory)?;
    done.push(lock_everything());
    Ok(done)
}

/// Denies all files except those that `config` and the name service need, and all system calls except those
/// of a running daemon. Returns what was done, for the log.
///
/// # Errors
/// If the kernel has no seccomp, or refuses.
pub(crate) fn confine(
    config: &Config,
    socket_dir: &Path,
    state_dir: &Path,
) -> Result<Vec<String>, DaemonError> {
    let files = if files::foreign_library(config) {
        "files: as the user may, since the PKCS#11 library of a KME's key may need any".to_owned()
    } else {
        files::confine(&files::readable(config), &files::writable(config), [socket_dir, state_dir])?
    };
    calls::confine()?;
    Ok(vec![files, "system calls: those of a running daemon (seccomp)".to_owned()])
}

/// Returns the files of `config` that [`confine`] denies, with one line each that says what to do; for a
/// reload.
pub(crate) fn denied_files(config: &Config) -> Vec<String> {
    files::denied_files(config)
}

/// Locks all memory, so that also buffers of TLS and of control sessions are never swapped. The limit counts
/// mapped memory, whether used or not, so it must be infinite: with a finite one a later allocation would
/// fail.
fn lock_everything() -> String {
    // Locks a page when it is first used.
    let on_fault = MlockAllFlags::from_bits_retain(nix::libc::MCL_ONFAULT);
    let unlimited = getrlimit(Resource::RLIMIT_MEMLOCK).is_ok_and(|(soft, _)| soft == RLIM_INFINITY);
    let locked = if unlimited {
        mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | on_fault)
    } else {
        Err(Errno::ENOMEM)
    };
    match locked {
        Ok(()) => "memory: all of it is locked".to_owned(),
        Err(_) => {
            "memory: keys are locked; the rest may be swapped, unless the limit on locked memory is infinite \
                   (systemd: LimitMEMLOCK=infinity)"
                .to_owned()
        }
    }
}
