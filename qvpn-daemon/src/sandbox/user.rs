//! Who the process is: the user `qvpn` and never root, with one capability.

use std::io::{self, ErrorKind};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::prctl::set_keepcaps;
use nix::unistd::{User, chown, geteuid, setgroups, setresgid, setresuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};

use super::refused;
use crate::error::DaemonError;

/// The user that a daemon which root starts becomes.
const USER: &str = "qvpn";
/// Routes, the TUN device, firewall marks and large socket buffers need it, also when a reload changes them.
const KEPT: CapabilitySet = CapabilitySet::NET_ADMIN;

/// Gives up root and all capabilities but one. Returns who we are now, in words.
pub(super) fn become_unprivileged(socket_dir: &Path) -> Result<String, DaemonError> {
    let who = if geteuid().is_root() { leave_root(socket_dir)? } else { name_of_us() };
    keep_one_capability().map_err(|error| DaemonError::system("give up capabilities", error))?;
    Ok(format!("{who}, with CAP_NET_ADMIN alone"))
}

fn leave_root(socket_dir: &Path) -> Result<String, DaemonError> {
    let user = match User::from_name(USER) {
        Ok(Some(user)) => user,
        Ok(None) => {
            return Ok(format!(
                "user root, since there is no user {USER} (`useradd --system --user-group --no-create-home {USER}` makes one)"
            ));
        }
        Err(error) => return Err(DaemonError::system("look for the user qvpn", error.into())),
    };
    match std::fs::create_dir(socket_dir) {
        Ok(()) => chown(socket_dir, Some(user.uid), Some(user.gid))
            .map_err(refused("give the control socket's folder to the user qvpn"))?,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(source) => return Err(DaemonError::Control { path: socket_dir.to_owned(), source }),
    }
    // Capabilities survive the change, so that one of them can be kept.
    set_keepcaps(true).map_err(refused("keep CAP_NET_ADMIN"))?;
    match setresgid(user.gid, user.gid, user.gid) {
        // A user namespace that has root only.
        Err(Errno::EINVAL) => {
            return Ok(format!("user root, since this user namespace has no user {USER}"));
        }
        result => result.map_err(refused("become the group qvpn"))?,
    }
    setgroups(&[user.gid]).map_err(refused("leave root's groups"))?;
    setresuid(user.uid, user.uid, user.uid).map_err(refused("become the user qvpn"))?;
    Ok(name_of_us())
}

fn name_of_us() -> String {
    let id = geteuid();
    match User::from_uid(id) {
        Ok(Some(user)) => format!("user {}", user.name),
        _ => format!("user {id}"),
    }
}

/// Of this thread, which is the only one.
fn keep_one_capability() -> io::Result<()> {
    // Without CAP_SETPCAP this can't be done, nor is it needed: no_new_privs makes the bounding set meaningless.
    for capability in CapabilitySet::all().iter() {
        if remove_capability_from_bounding_set(capability).is_err() {
            break;
        }
    }
    let kept = capabilities(None)?.permitted & KEPT;
    set_capabilities(
        None,
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() },
    )?;
    // Since Linux 4.3.
    clear_ambient_capability_set()?;
    Ok(())
}
