//! Polls for a condition that no event reports. Where there is an event (a log line, a notification, the end
//! of a process), wait for the event instead.

use std::time::{Duration, Instant};

/// Calls `look` every 20 ms until it returns a value, and returns that.
///
/// # Panics
/// When `limit` has passed; the message has `what`.
#[track_caller]
pub fn wait_until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
