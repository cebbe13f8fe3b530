//! The peer's endpoint in use, and the endpoint for the next handshake.

use std::net::SocketAddr;
use std::time::Duration;

use qvpn_types::Time;

/// The minimum interval between our initiations that answer one which starts nothing.
const INITIATE_BACK_INTERVAL: Duration = Duration::from_secs(1);
/// The minimum interval between reports of such initiations.
const STALE_REPORT_INTERVAL: Duration = Duration::from_secs(5);
/// How long the peer's status reports the last of them.
const STALE_REPORT_DURATION: Duration = Duration::from_secs(60);
const MIN_HANDSHAKE_INTERVAL: Duration = Duration::from_secs(1);
const MAX_HANDSHAKE_INTERVAL: Duration = Duration::from_secs(5);

/// The endpoint of a peer, and the handshakes that were sent to it.
pub struct ControlPath {
    pub endpoint: Option<SocketAddr>,
    /// The number of handshakes initiated since the last response.
    pub initiations: u32,
    /// The destination of the last one, if it was not `endpoint`.
    called: Option<SocketAddr>,
    /// When one of our initiations last answered an initiation which starts nothing.
    initiated_back_at: Option<Time>,
    /// When such an initiation was last reported.
    stale_at: Option<Time>,
}

impl ControlPath {
    pub fn new(endpoint: Option<SocketAddr>) -> Self {
        Self { endpoint, initiations: 0, called: None, initiated_back_at: None, stale_at: None }
    }

    /// Sets the endpoint; returns whether it changed.
    pub fn set_endpoint(&mut self, endpoint: SocketAddr) -> bool {
        self.endpoint.replace(endpoint) != Some(endpoint)
    }

    /// Returns the destination of the next handshake. The endpoint in use may be permanently unreachable,
    /// for example when the NATs of both sites lost each other's mappings, so every second handshake goes to
    /// the configured one.
    pub fn next_destination(&self, configured: Option<SocketAddr>) -> Option<SocketAddr> {
        let last = self.endpoint?;
        Some(configured.filter(|_| self.initiations % 2 == 1).unwrap_or(last))
    }

    pub fn on_initiated(&mut self, to: SocketAddr) {
        self.called = Some(to).filter(|_| self.endpoint != Some(to));
        self.initiations += 1;
    }

    /// Returns the destination of the handshake that the peer answered, if it was not the endpoint in use.
    pub fn take_called(&mut self) -> Option<SocketAddr> {
        self.called.take()
    }

    /// Returns the delay before the next handshake: 1, 2, 4 and then 5 s.
    pub fn retry_interval(&self) -> Duration {
        let doublings = self.initiations.saturating_sub(1).min(3);
        (MIN_HANDSHAKE_INTERVAL * (1 << doublings)).min(MAX_HANDSHAKE_INTERVAL)
    }

    /// Records an initiation which starts nothing. Returns whether to initiate a handshake in return now.
    pub fn on_stale_initiation(&mut self, now: Time) -> bool {
        due(&mut self.initiated_back_at, INITIATE_BACK_INTERVAL, now)
    }

    /// Records that a silent peer's initiations are refused because of their time. Returns whether to report
    /// it now.
    pub fn report_stale(&mut self, now: Time) -> bool {
        due(&mut self.stale_at, STALE_REPORT_INTERVAL, now)
    }

    /// Whether the peer's initiations are refused because its clock was set back.
    pub fn is_stale(&self, now: Time) -> bool {
        self.stale_at.is_some_and(|at| now.since(at) < STALE_REPORT_DURATION)
    }
}

/// Whether `interval` has passed since `last`, which is then set to now.
fn due(last: &mut Option<Time>, interval: Duration, now: Time) -> bool {
    let due = last.is_none_or(|at| now.since(at) >= interval);
    if due {
        *last = Some(now);
    }
    due
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_back_is_reported_for_a_minute() {
        let at = |seconds| Time::default() + Duration::from_secs(seconds);
        let mut path = ControlPath::new(None);
        assert!(!path.is_stale(at(1)));
        path.stale_at = Some(at(10));
        assert!(path.is_stale(at(69)) && !path.is_stale(at(70)));
    }
}
