//! What the process gives up, so that keys stay in it and a bug that is exploited finds little to do harm with. Two steps,
//! both before any other thread exists, since each thread has what its maker had:
//!
//! 1. [`enter`], before the config is read: no core dumps, no root, no capability but `CAP_NET_ADMIN`, no way back to more,
//!    memory that is not swapped.
//! 2. [`confine`], before the network is touched: files by Landlock, system calls by seccomp.

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

/// Locked memory that must be there from the start, in bytes: many hundred peers' keys.
const RESERVE: usize = 1 << 20;

/// How far a thread may go before others: nice −10, as the system writes it.
const PLACE: u64 = 20 + 10;

/// Becomes the user `qvpn` if started by root, keeps `CAP_NET_ADMIN` alone, forbids core dumps and foreign debuggers, and
/// locks memory. `socket_dir` is made first where it is missing, since only root can. Returns what was done, for the log.
///
/// # Errors
/// If the limit on locked memory is too low, or the system refuses.
pub(crate) fn enter(socket_dir: &Path) -> Result<Vec<String>, DaemonError> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(refused("forbid core dumps"))?;
    // Lanes stand before ordinary threads. Only root can raise this limit; the shipped unit has it. A container's root may not,
    // and yet be allowed to step before others: then all of the daemon does so now, while it is root.
    if setrlimit(Resource::RLIMIT_NICE, PLACE, PLACE).is_err() {
        qvpn_dataplane::stand_before_others();
    }
    let mut done = vec![user::become_unprivileged(socket_dir)?];
    // After the change of user, which makes a process dumpable again.
    set_dumpable(false).map_err(refused("forbid dumps of the process's memory"))?;
    set_no_new_privs().map_err(refused("forbid new privileges"))?;
    qvpn_secret::reserve(RESERVE).map_err(DaemonError::Memory)?;
    done.push(lock_everything());
    Ok(done)
}

/// Shuts off all files but those that `config` and the name service need, and all system calls but those of a running
/// daemon. Returns what was done, for the log.
///
/// # Errors
/// If the kernel has no seccomp, or refuses.
pub(crate) fn confine(config: &Config, socket_dir: &Path) -> Result<Vec<String>, DaemonError> {
    let files = if files::foreign_library(config) {
        "files: as the user may, since the PKCS#11 library of a KME's key may need any".to_owned()
    } else {
        files::confine(&files::readable(config), &files::writable(config), socket_dir)?
    };
    calls::confine()?;
    Ok(vec![files, "system calls: those of a running daemon (seccomp)".to_owned()])
}

/// The files of `config` that [`confine`] has shut off, a line each that says what to do; for a reload.
pub(crate) fn out_of_reach(config: &Config) -> Vec<String> {
    files::out_of_reach(config)
}

/// Locks all memory, not only that of keys, so that nothing of TLS or of the control sessions reaches a swap device. It
/// counts what is mapped and not what is used, so it needs an unlimited limit: a finite one would fail later.
fn lock_everything() -> String {
    // A page is locked when it is touched.
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

fn refused(what: &'static str) -> impl Fn(Errno) -> DaemonError {
    move |errno| DaemonError::system(what, errno.into())
}
