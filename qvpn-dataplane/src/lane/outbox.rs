//! Events that wait for room in the sink: an acknowledgement must not be lost, so it is offered again.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::command::{LaneEvent, LaneSink};

/// How soon a refused event is offered again, in nanoseconds.
pub(super) const RETRY: u64 = 5_000_000;

/// The events of one thread.
pub(super) struct Outbox {
    sink: Arc<dyn LaneSink>,
    /// Events as functions that make them again, since a sink that refuses one keeps it.
    waiting: VecDeque<Box<dyn Fn() -> LaneEvent + Send>>,
}

impl Outbox {
    pub(super) fn new(sink: Arc<dyn LaneSink>) -> Self {
        Self { sink, waiting: VecDeque::new() }
    }

    /// Tells an event now, or as soon as there is room; events keep their order.
    pub(super) fn tell(&mut self, event: impl Fn() -> LaneEvent + Send + 'static) {
        if !self.waiting.is_empty() || !self.sink.event(event()) {
            self.waiting.push_back(Box::new(event));
        }
    }

    /// Tells an event now or not at all; whether there was room.
    pub(super) fn try_tell(&self, event: LaneEvent) -> bool {
        self.waiting.is_empty() && self.sink.event(event)
    }

    /// Offers what waits; the time to wait before the next offer, if some is left.
    pub(super) fn flush(&mut self) -> Option<u64> {
        while let Some(event) = self.waiting.front() {
            if !self.sink.event(event()) {
                return Some(RETRY);
            }
            self.waiting.pop_front();
        }
        None
    }
}
