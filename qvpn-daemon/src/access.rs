//! Who may use the control socket: those in `[access]`, or without that section root, the daemon's own user
//! and the group `qvpn`. The kernel identifies the process that connects.

use std::os::fd::AsFd;
use std::sync::{Arc, PoisonError, RwLock};

use nix::unistd::{Gid, Group, Uid, User, geteuid};
use qvpn_api::config::{Access, Principal};
use qvpn_api::control::Permission;
use tokio::net::UnixStream;

use crate::sys;

/// The group that may do everything if there is no `[access]`.
pub(crate) const GROUP: &str = "qvpn";

/// The process at the other side of a connection, with its groups at that time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Credentials {
    pub(crate) uid: Option<u32>,
    pub(crate) groups: Vec<u32>,
}

impl Credentials {
    pub(crate) fn of(stream: &UnixStream) -> Self {
        let Ok(peer) = stream.peer_cred() else { return Self::default() };
        let mut groups = sys::peer_groups(stream.as_fd()).unwrap_or_default();
        groups.push(peer.gid());
        Self { uid: Some(peer.uid()), groups }
    }
}

/// The permissions of each user and group.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rules {
    users: Vec<(Uid, Permission)>,
    groups: Vec<(Gid, Permission)>,
    /// The permission of everybody else who can connect.
    others: Option<Permission>,
}

impl Rules {
    /// Looks up the names of `access`. A name that this machine doesn't know gives nobody access.
    pub(crate) fn new(access: Option<&Access>) -> Self {
        let own = [Uid::from_raw(0), geteuid()].map(|uid| (uid, Permission::Admin));
        let mut rules = Self { users: own.to_vec(), ..Self::default() };
        let Some(access) = access else {
            rules.others = Some(Permission::Observe);
            let group = Group::from_name(GROUP).ok().flatten();
            rules.groups.extend(group.map(|group| (group.gid, Permission::Admin)));
            return rules;
        };
        for (permission, principal) in access.principals() {
            match principal {
                Principal::User(name) => {
                    let user = User::from_name(name).ok().flatten();
                    rules.users.extend(user.map(|user| (user.uid, permission)));
                }
                Principal::Group(name) => {
                    let group = Group::from_name(name).ok().flatten();
                    rules.groups.extend(group.map(|group| (group.gid, permission)));
                }
            }
        }
        rules
    }

    /// Rules for a test: everybody has this permission.
    #[cfg(test)]
    pub(crate) fn of_everybody(others: Option<Permission>) -> Self {
        Self { others, ..Self::default() }
    }

    /// Returns the highest permission of this process.
    pub(crate) fn permission(&self, who: &Credentials) -> Option<Permission> {
        let uid = who.uid?;
        let users = self.users.iter().filter(|(user, _)| user.as_raw() == uid).map(|(_, p)| *p);
        let groups = self.groups.iter().filter(|(group, _)| who.groups.contains(&group.as_raw()));
        users.chain(groups.map(|(_, p)| *p)).max().max(self.others)
    }
}

/// The rules in force, which a reload changes.
#[derive(Debug, Clone)]
pub(crate) struct SharedRules(Arc<RwLock<Rules>>);

impl SharedRules {
    pub(crate) fn new(rules: Rules) -> Self {
        Self(Arc::new(RwLock::new(rules)))
    }

    pub(crate) fn set(&self, rules: Rules) {
        // The whole value is replaced, so a poisoned lock is still consistent.
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = rules;
    }

    pub(crate) fn permission(&self, who: &Credentials) -> Option<Permission> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).permission(who)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(uid: u32, groups: &[u32]) -> Credentials {
        Credentials { uid: Some(uid), groups: groups.to_vec() }
    }

    #[test]
    fn without_a_section_the_group_may_do_everything_and_others_may_look() {
        let mut rules = Rules::new(None);
        rules.groups = vec![(Gid::from_raw(77), Permission::Admin)];
        assert_eq!(rules.permission(&who(0, &[])), Some(Permission::Admin));
        assert_eq!(rules.permission(&who(geteuid().as_raw(), &[])), Some(Permission::Admin));
        assert_eq!(rules.permission(&who(4711, &[1, 77])), Some(Permission::Admin));
        assert_eq!(rules.permission(&who(4711, &[1])), Some(Permission::Observe));
        assert_eq!(rules.permission(&Credentials::default()), None);
    }

    #[test]
    fn the_section_gives_each_the_most_that_they_are_named_for_and_others_nothing() {
        let access = Access {
            observe: vec![Principal::User("nobody".into())],
            operate: vec![Principal::Group("no-such-group".into())],
            admin: Vec::new(),
        };
        let mut rules = Rules::new(Some(&access));
        let nobody = User::from_name("nobody").unwrap().unwrap().uid.as_raw();
        assert_eq!(rules.permission(&who(nobody, &[])), Some(Permission::Observe));
        rules.groups.push((Gid::from_raw(9), Permission::Operate));
        assert_eq!(rules.permission(&who(nobody, &[9])), Some(Permission::Operate));
        assert_eq!(rules.permission(&who(4711, &[])), None);
        assert_eq!(rules.permission(&who(0, &[])), Some(Permission::Admin));
        let shared = SharedRules::new(rules);
        shared.set(Rules::new(Some(&Access::default())));
        assert_eq!(shared.permission(&who(nobody, &[9])), None);
    }
}
