//! A queue of events that wait for room in the sink. An acknowledgement must not be lost, so a refused event
//! is offered again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::event::{LaneEvent, LaneSink};

/// Time until a refused event is offered again.
const RETRY_INTERVAL: Duration = Duration::from_millis(5);

/// The events of one thread.
pub(super) struct EventQueue {
    sink: Arc<dyn LaneSink>,
    waiting: VecDeque<LaneEvent>,
}

impl EventQueue {
    pub(super) fn new(sink: Arc<dyn LaneSink>) -> Self {
        Self { sink, waiting: VecDeque::new() }
    }

    /// Emits an event now, or as soon as there is room. Events keep their order.
    pub(super) fn emit(&mut self, event: LaneEvent) {
        if !self.waiting.is_empty() {
            self.waiting.push_back(event);
        } else if let Err(refused) = self.sink.event(event) {
            self.waiting.push_back(refused);
        }
    }

    /// Emits an event now or not at all. Returns whether there was room.
    pub(super) fn try_emit(&self, event: LaneEvent) -> bool {
        self.waiting.is_empty() && self.sink.event(event).is_ok()
    }

    /// Offers the waiting events. Returns how long to wait before the next offer, if some are left.
    pub(super) fn flush(&mut self) -> Option<Duration> {
        while let Some(event) = self.waiting.pop_front() {
            if let Err(refused) = self.sink.event(event) {
                self.waiting.push_front(refused);
                return Some(RETRY_INTERVAL);
            }
        }
        None
    }
}
