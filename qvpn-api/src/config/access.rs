//! The section `[access]`: who may use the control socket besides root.

use std::fmt;

use super::fault::{Fault, fault, shown};
use crate::permission::Permission;

/// The longest name of a user or a group, in bytes.
const MAX_NAME: usize = 256;

/// A user or a group by its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Principal {
    /// `NAME`.
    User(String),
    /// `@NAME`.
    Group(String),
}

/// In the form of the config: `NAME` or `@NAME`.
impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(name) => f.write_str(name),
            Self::Group(name) => write!(f, "@{name}"),
        }
    }
}

/// The section `[access]`. Without it, members of the group `qvpn` may do everything, as in version 0.1.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Access {
    /// Users and groups that may read status, events and metrics.
    pub observe: Vec<Principal>,
    /// Those that may also do what changes no peer: rekey, reload, confirm.
    pub operate: Vec<Principal>,
    /// Those that may also change peers.
    pub admin: Vec<Principal>,
}

impl Access {
    /// Returns all users and groups with their permissions, in the order of the keys.
    pub fn principals(&self) -> impl Iterator<Item = (Permission, &Principal)> {
        let all = [
            (Permission::Observe, &self.observe),
            (Permission::Operate, &self.operate),
            (Permission::Admin, &self.admin),
        ];
        all.into_iter().flat_map(|(permission, list)| list.iter().map(move |one| (permission, one)))
    }
}

/// Parses one entry of a list.
pub(super) fn principal(text: &str) -> Result<Principal, Fault> {
    let (name, is_group) = match text.strip_prefix('@') {
        Some(name) => (name, true),
        None => (text, false),
    };
    let strange = |c: char| c.is_whitespace() || c.is_control() || matches!(c, ':' | '/' | ',' | '@');
    if name.is_empty() || name.len() > MAX_NAME || name.contains(strange) {
        return fault(
            format!("\"{}\" is not the name of a user or a group", shown(text)),
            "write a user's name, or @ and a group's name, such as \"@netops\"",
        );
    }
    let name = name.to_owned();
    Ok(if is_group { Principal::Group(name) } else { Principal::User(name) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_users_or_a_groups() {
        assert_eq!(principal("alice"), Ok(Principal::User("alice".into())));
        assert_eq!(principal("@netops"), Ok(Principal::Group("netops".into())));
        for bad in ["", "@", "a b", "a:b", "@@x", "x\n", "a/b", &"x".repeat(257)] {
            assert!(principal(bad).is_err(), "{bad:?}");
        }
    }
}
