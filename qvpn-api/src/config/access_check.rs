//! Checks the names of `[access]` against this machine.

use nix::unistd::{Group, User};

use super::access::{Access, Principal};
use super::error::{ConfigErrors, Sink};
use super::model::Config;

impl Config {
    /// Checks that this machine knows each user and group of `[access]`.
    ///
    /// # Errors
    /// One for each that it doesn't know. Nobody gets access by such a name.
    pub fn check_access(&self) -> Result<(), ConfigErrors> {
        let mut sink = Sink::joined(&self.path, "", self.positions.files.clone());
        let named = self.access.iter().flat_map(Access::principals);
        for ((_, principal), at) in named.zip(&self.positions.access) {
            match principal {
                Principal::User(name) if !User::from_name(name).is_ok_and(|user| user.is_some()) => {
                    let fix = format!("write a user of `getent passwd`, or \"@{name}\" if it is a group");
                    sink.add(*at, format!("this machine has no user \"{name}\""), fix);
                }
                Principal::Group(name) if !Group::from_name(name).is_ok_and(|group| group.is_some()) => {
                    let fix = "write a group of `getent group`, or make it with `groupadd`";
                    sink.add(*at, format!("this machine has no group \"{name}\""), fix);
                }
                _ => {}
            }
        }
        sink.finish()
    }
}
