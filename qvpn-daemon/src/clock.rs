//! The daemon's clock, `CLOCK_BOOTTIME`, which also counts while the machine is suspended. tokio's timers
//! stop then, so a wait checks the clock each second.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use qvpn_types::Time;

/// The maximum time between two checks of the clock during a wait.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

pub(crate) fn now() -> Time {
    // Linux has this clock since 2.6.39.
    let nanos = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |t| {
        let seconds = u64::try_from(t.tv_sec()).unwrap_or(0);
        seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(t.tv_nsec()).unwrap_or(0))
    });
    Time::from_nanos(nanos)
}

/// Returns the seconds since 1970, UTC.
pub(crate) fn unix_seconds() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

/// Waits until `deadline`, or forever if there is none.
pub(crate) async fn reached(deadline: Option<Time>) {
    let Some(deadline) = deadline else {
        return std::future::pending().await;
    };
    loop {
        let left = deadline.since(now());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(CHECK_INTERVAL)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wait_ends_at_its_deadline_and_not_before() {
        let deadline = now() + Duration::from_millis(30);
        reached(Some(deadline)).await;
        assert!(now() >= deadline);
        reached(Some(deadline)).await;
    }
}
