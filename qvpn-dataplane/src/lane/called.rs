//! Which of this machine's addresses other machines call. Answers are sent from there, since a stateful
//! firewall or a NAT on the way drops those that come from another address.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};

/// The number of callers after which the older half is forgotten. More callers than that are a flood, and
/// where one is forgotten, the system chooses the source address.
const MAX_CALLERS: usize = 8_192;

/// The address that each caller's last control datagram came to.
#[derive(Default)]
pub(super) struct CalledAddresses(Mutex<Callers>);

#[derive(Default)]
struct Callers {
    /// By the caller's address and port, and by its address alone with port 0: its lanes have other ports.
    recent: HashMap<SocketAddr, IpAddr>,
    older: HashMap<SocketAddr, IpAddr>,
}

impl CalledAddresses {
    pub(super) fn note(&self, caller: SocketAddr, called: IpAddr) {
        let mut callers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if callers.recent.len() >= MAX_CALLERS {
            callers.older = std::mem::take(&mut callers.recent);
        }
        callers.recent.insert(caller, called);
        callers.recent.insert(SocketAddr::new(caller.ip(), 0), called);
    }

    /// Returns the address that this caller, or another port of its address, last called.
    pub(super) fn of(&self, caller: SocketAddr) -> Option<IpAddr> {
        let callers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let get = |port| {
            let key = SocketAddr::new(caller.ip(), port);
            callers.recent.get(&key).or_else(|| callers.older.get(&key)).copied()
        };
        get(caller.port()).or_else(|| get(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_call_counts_and_a_flood_forgets_only_who_is_quiet() {
        let called = CalledAddresses::default();
        let caller = |port| SocketAddr::from(([192, 0, 2, 1], port));
        let [first, second] = [1, 2].map(|last| IpAddr::from([198, 51, 100, last]));
        assert_eq!(called.of(caller(1)), None);
        called.note(caller(1), first);
        called.note(caller(2), second);
        assert_eq!((called.of(caller(1)), called.of(caller(2))), (Some(first), Some(second)));
        assert_eq!(called.of(caller(3)), Some(second), "another lane of the same machine");
        for n in 0..10_000_u32 {
            called.note(SocketAddr::from((n.to_be_bytes(), 9)), first);
            called.note(caller(2), second);
        }
        assert_eq!((called.of(caller(1)), called.of(caller(2))), (Some(second), Some(second)));
        let callers = called.0.lock().unwrap();
        assert!(callers.recent.len() + callers.older.len() <= 2 * MAX_CALLERS + 4);
    }
}
