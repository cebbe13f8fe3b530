//! What happened, to the journal, to a ring buffer for `qvpn-ctl events`, and to everybody who follows.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use qvpn_api::events::{Event, EventKind};
use tokio::sync::broadcast;

use crate::log;

/// Events that are kept.
const KEPT: usize = 1000;
/// Events by which a follower may fall behind.
const BEHIND: usize = 1024;

/// All events of the daemon.
pub(crate) struct Events {
    interface: String,
    past: Mutex<Past>,
    followers: broadcast::Sender<Event>,
}

#[derive(Default)]
struct Past {
    kept: VecDeque<Event>,
    dropped: u64,
}

/// The past and the future as of one moment.
pub(crate) struct Subscription {
    /// The latest events, oldest first.
    pub(crate) past: Vec<Event>,
    /// How many older ones are gone.
    pub(crate) missed: u64,
    /// What comes from now on.
    pub(crate) future: broadcast::Receiver<Event>,
}

impl Events {
    pub(crate) fn new(interface: &str) -> Self {
        let (followers, _) = broadcast::channel(BEHIND);
        Self { interface: interface.to_owned(), past: Mutex::default(), followers }
    }

    /// Logs an event, keeps it, and tells everybody who follows.
    pub(crate) fn emit(&self, kind: EventKind) {
        log::event(&kind);
        let event = Event { time: SystemTime::now(), interface: self.interface.clone(), kind };
        // Under the lock, so that a new follower sees each event once.
        let mut past = self.past();
        if past.kept.len() == KEPT {
            past.kept.pop_front();
            past.dropped += 1;
        }
        past.kept.push_back(event.clone());
        // It fails only when nobody follows.
        let _ = self.followers.send(event);
    }

    pub(crate) fn subscribe(&self) -> Subscription {
        let past = self.past();
        Subscription {
            past: past.kept.iter().cloned().collect(),
            missed: past.dropped,
            future: self.followers.subscribe(),
        }
    }

    fn past(&self) -> MutexGuard<'_, Past> {
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_events_are_kept_and_the_rest_counted() {
        let events = Events::new("qvpn0");
        let up = |n: usize| EventKind::KmeUp { kme: n.to_string() };
        (0..KEPT + 5).for_each(|n| events.emit(up(n)));
        let mut seen = events.subscribe();
        assert_eq!((seen.past.len(), seen.missed), (KEPT, 5));
        assert_eq!(seen.past[0].kind, up(5));
        assert!(seen.future.try_recv().is_err());
        events.emit(up(7));
        assert_eq!(seen.future.try_recv().unwrap().kind, up(7));
    }
}
