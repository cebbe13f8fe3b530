//! Writes events to the log, to a ring buffer for `qvpn-ctl events`, and to all followers.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use qvpn_api::events::{Event, EventKind};
use tokio::sync::broadcast;

use crate::audit::AuditSink;
use crate::log;

const MAX_KEPT: usize = 1000;
/// The number of events that a follower may fall behind.
const MAX_BEHIND: usize = 1024;

pub(crate) struct Events {
    interface: String,
    history: Mutex<EventHistory>,
    followers: broadcast::Sender<Event>,
    audit: Option<AuditSink>,
}

#[derive(Default)]
struct EventHistory {
    kept: VecDeque<Event>,
    dropped: u64,
}

/// The stored events and the future ones, without a gap or an overlap.
pub(crate) struct Subscription {
    /// The latest events, oldest first.
    pub(crate) past: Vec<Event>,
    /// How many older events are no longer stored.
    pub(crate) missed: u64,
    pub(crate) future: broadcast::Receiver<Event>,
}

impl Events {
    pub(crate) fn new(interface: &str) -> Self {
        let (followers, _) = broadcast::channel(MAX_BEHIND);
        Self { interface: interface.to_owned(), history: Mutex::default(), followers, audit: None }
    }

    /// Events that go to the audit log too.
    pub(crate) fn audited(interface: &str, audit: AuditSink) -> Self {
        Self { audit: Some(audit), ..Self::new(interface) }
    }

    /// Logs an event, stores it, and sends it to all followers and to the audit log.
    pub(crate) fn emit(&self, kind: EventKind) {
        log::event(&kind);
        let event = Event { time: SystemTime::now(), interface: self.interface.clone(), kind };
        if let Some(audit) = &self.audit {
            audit.record(&event);
        }
        // Done under the lock, so that a new follower gets each event once.
        let mut history = self.history();
        if history.kept.len() == MAX_KEPT {
            history.kept.pop_front();
            history.dropped += 1;
        }
        history.kept.push_back(event.clone());
        // It fails only if there is no follower.
        let _ = self.followers.send(event);
    }

    pub(crate) fn subscribe(&self) -> Subscription {
        let history = self.history();
        Subscription {
            past: history.kept.iter().cloned().collect(),
            missed: history.dropped,
            future: self.followers.subscribe(),
        }
    }

    fn history(&self) -> MutexGuard<'_, EventHistory> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_events_are_kept_and_the_rest_counted() {
        let events = Events::new("qvpn0");
        let up = |n: usize| EventKind::KmeUp { kme: n.to_string() };
        (0..MAX_KEPT + 5).for_each(|n| events.emit(up(n)));
        let mut seen = events.subscribe();
        assert_eq!((seen.past.len(), seen.missed), (MAX_KEPT, 5));
        assert_eq!(seen.past[0].kind, up(5));
        assert!(seen.future.try_recv().is_err());
        events.emit(up(7));
        assert_eq!(seen.future.try_recv().unwrap().kind, up(7));
    }
}
