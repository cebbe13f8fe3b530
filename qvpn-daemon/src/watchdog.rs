//! systemd's notifications: ready, stopping, and the watchdog (`WatchdogSec=`), which restarts a daemon that
//! hangs.

use std::time::Duration;

use qvpn_types::Time;
use sd_notify::NotifyState;

/// Tells systemd that the task that owns the peers is alive, if the unit asks for it. Lanes need no watchdog:
/// they stop by themselves when their keys expire.
pub(crate) struct Watchdog {
    interval: Option<Duration>,
    next: Option<Time>,
}

impl Watchdog {
    pub(crate) fn from_environment() -> Self {
        // systemd recommends half of its limit. A third leaves room for a late tick.
        Self { interval: sd_notify::watchdog_enabled().map(|limit| limit / 3), next: None }
    }

    pub(crate) fn tick(&mut self, now: Time) {
        let Some(interval) = self.interval else { return };
        if self.next.is_none_or(|next| now >= next) {
            self.next = Some(now + interval);
            notify(NotifyState::Watchdog);
        }
    }
}

/// Notifies systemd. Without systemd it does nothing.
pub(crate) fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!("notifying systemd: {error}");
    }
}
