//! The identity of the process: the user `qvpn`, never root, with one capability.

use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::prctl::set_keepcaps;
use nix::unistd::{User, chown, geteuid, setgroups, setresgid, setresuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};

use crate::error::DaemonError;

/// The user that a daemon started by root becomes.
const USER: &str = "qvpn";
/// Needed for routes, the TUN device, firewall marks and large socket buffers, also at a reload.
const KEPT_CAPABILITY: CapabilitySet = CapabilitySet::NET_ADMIN;

/// Gives up root and all capabilities except one. Returns the user, in words.
pub(super) fn become_unprivileged(socket_dir: &Path, state_dir: &Path) -> Result<String, DaemonError> {
    let who = if geteuid().is_root() { leave_root(socket_dir, state_dir)? } else { current_user() };
    keep_one_capability().map_err(|error| DaemonError::system("give up capabilities", error))?;
    Ok(format!("{who}, with CAP_NET_ADMIN alone"))
}

fn leave_root(socket_dir: &Path, state_dir: &Path) -> Result<String, DaemonError> {
    // Without it the daemon works, and says what it can't save.
    let new_state_dir = std::fs::DirBuilder::new().mode(0o750).create(state_dir).is_ok();
    let user = match User::from_name(USER) {
        Ok(Some(user)) => user,
        Ok(None) => {
            return Ok(format!(
                "user root, since there is no user {USER} (`useradd --system --user-group --no-create-home \
                 {USER}` makes one)"
            ));
        }
        Err(error) => return Err(DaemonError::system("look for the user qvpn", error.into())),
    };
    match std::fs::create_dir(socket_dir) {
        Ok(()) => chown(socket_dir, Some(user.uid), Some(user.gid))
            .map_err(DaemonError::errno("give the control socket's directory to the user qvpn"))?,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(source) => return Err(DaemonError::Control { path: socket_dir.to_owned(), source }),
    }
    if new_state_dir {
        chown(state_dir, Some(user.uid), Some(user.gid))
            .map_err(DaemonError::errno("give the state file's directory to the user qvpn"))?;
    }
    // Capabilities survive the change of user, so that one of them can be kept.
    set_keepcaps(true).map_err(DaemonError::errno("keep CAP_NET_ADMIN"))?;
    match setresgid(user.gid, user.gid, user.gid) {
        // This user namespace has no user except root.
        Err(Errno::EINVAL) => {
            return Ok(format!("user root, since this user namespace has no user {USER}"));
        }
        result => result.map_err(DaemonError::errno("become the group qvpn"))?,
    }
    setgroups(&[user.gid]).map_err(DaemonError::errno("leave root's groups"))?;
    setresuid(user.uid, user.uid, user.uid).map_err(DaemonError::errno("become the user qvpn"))?;
    Ok(current_user())
}

fn current_user() -> String {
    let id = geteuid();
    match User::from_uid(id) {
        Ok(Some(user)) => format!("user {}", user.name),
        _ => format!("user {id}"),
    }
}

/// Keeps one capability of this thread, which is the only one at this time.
fn keep_one_capability() -> io::Result<()> {
    // It fails without CAP_SETPCAP. That is harmless: with no_new_privs the bounding set has no effect.
    for capability in CapabilitySet::all().iter() {
        if remove_capability_from_bounding_set(capability).is_err() {
            break;
        }
    }
    let kept = capabilities(None)?.permitted & KEPT_CAPABILITY;
    set_capabilities(
        None,
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() },
    )?;
    // Linux has this since 4.3.
    clear_ambient_capability_set()?;
    Ok(())
}
