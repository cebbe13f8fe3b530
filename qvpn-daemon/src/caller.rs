//! Who requests a change, for events and the record of changes.

use std::fs;
use std::sync::Mutex;
use std::time::Duration;

use qvpn_api::config::PeerEdit;
use qvpn_api::control::Request;
use qvpn_api::events::{Caller, EventKind};
use qvpn_types::Time;

/// The names of this machine's users. The daemon asks no other name service, since that could take long.
const USERS: &str = "/etc/passwd";

/// The minimum time between two reports of refused requests, so that nobody can flood the log.
const REFUSAL_INTERVAL: Duration = Duration::from_secs(1);

/// Limits the reports of refused requests.
#[derive(Default)]
pub(crate) struct RefusalLimit(Mutex<Option<Time>>);

impl RefusalLimit {
    pub(crate) fn admits(&self, now: Time) -> bool {
        let mut last = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let admitted = last.is_none_or(|last| now.since(last) >= REFUSAL_INTERVAL);
        if admitted {
            *last = Some(now);
        }
        admitted
    }
}

/// Returns the user with this ID.
pub(crate) fn user(uid: Option<u32>) -> Caller {
    let Some(uid) = uid else { return Caller { by: "unknown".to_owned(), uid: None } };
    let name = fs::read_to_string(USERS).ok().and_then(|users| name_of(uid, &users));
    Caller { by: name.unwrap_or_else(|| format!("uid {uid}")), uid: Some(uid) }
}

/// Returns a cause that is not a user: a signal, whose sender the daemon does not learn, or a timeout.
pub(crate) fn named(name: &str) -> Caller {
    Caller { by: name.to_owned(), uid: None }
}

/// Makes the event for a request that changes something.
pub(crate) fn used(uid: Option<u32>, request: &Request, result: &str) -> EventKind {
    let peer = match request {
        Request::Rekey { peer } => peer.clone(),
        Request::EditPeer { change: PeerEdit::Set { peer, .. } | PeerEdit::Remove { peer } } => {
            Some(peer.clone())
        }
        _ => None,
    };
    let (request, result) = (request.name().to_owned(), result.to_owned());
    EventKind::ControlUsed { caller: user(uid), request, peer, result }
}

fn name_of(uid: u32, users: &str) -> Option<String> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, id) = (fields.next()?, fields.nth(1)?);
        (id.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_named_or_numbered() {
        let users = "root:x:0:0:root:/root:/bin/bash\nbroken\nops:x:1000:100::/:/bin/sh\n";
        assert_eq!(name_of(1000, users).as_deref(), Some("ops"));
        assert_eq!(name_of(100, users), None);
        assert_eq!(user(Some(u32::MAX - 7)).by, format!("uid {}", u32::MAX - 7));
    }

    #[test]
    fn refusals_are_reported_once_a_second() {
        let limit = RefusalLimit::default();
        let at = |ms: u64| Time::from_nanos(ms * 1_000_000);
        assert_eq!([0, 1, 999, 1000, 1001].map(|ms| limit.admits(at(ms))), [true, false, false, true, false]);
    }
}
