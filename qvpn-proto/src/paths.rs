//! Where the peer is: the endpoint in use, and which endpoint the next handshake goes to.

use std::net::SocketAddr;
use std::time::Duration;

use qvpn_types::Time;

/// How often a handshake initiation with an earlier time than before is answered by one of ours.
const STALE_INITIATION_INTERVAL: Duration = Duration::from_secs(5);
/// How long the last of them is reported in the peer's status.
const STALE_REPORT_DURATION: Duration = Duration::from_secs(60);
const MIN_HANDSHAKE_INTERVAL: Duration = Duration::from_secs(1);
const MAX_HANDSHAKE_INTERVAL: Duration = Duration::from_secs(5);

/// The endpoint of a peer and the handshakes that were sent to it.
pub struct ControlPath {
    pub endpoint: Option<SocketAddr>,
    /// Handshakes initiated since the last answer.
    pub initiations: u32,
    /// Where the last of them went, if not to `endpoint`.
    called: Option<SocketAddr>,
    /// When an initiation with an earlier time than before was last answered by one of ours.
    stale_at: Option<Time>,
}

impl ControlPath {
    pub fn new(endpoint: Option<SocketAddr>) -> Self {
        Self { endpoint, initiations: 0, called: None, stale_at: None }
    }

    /// Sets the endpoint; returns whether it changed.
    pub fn set_endpoint(&mut self, endpoint: SocketAddr) -> bool {
        self.endpoint.replace(endpoint) != Some(endpoint)
    }

    /// Where the next handshake goes. The endpoint in use may be gone for good, as when the NATs of both
    /// sites forgot each other, so the configured one gets every second handshake.
    pub fn next_destination(&self, configured: Option<SocketAddr>) -> Option<SocketAddr> {
        let last = self.endpoint?;
        Some(configured.filter(|_| self.initiations % 2 == 1).unwrap_or(last))
    }

    pub fn on_initiated(&mut self, to: SocketAddr) {
        self.called = Some(to).filter(|_| self.endpoint != Some(to));
        self.initiations += 1;
    }

    /// The destination of the handshake that the peer answered, if it is not the endpoint that was in use.
    pub fn take_called(&mut self) -> Option<SocketAddr> {
        self.called.take()
    }

    /// The wait before the next handshake: 1, 2, 4 and then 5 s.
    pub fn retry_interval(&self) -> Duration {
        let doublings = self.initiations.saturating_sub(1).min(3);
        (MIN_HANDSHAKE_INTERVAL * (1 << doublings)).min(MAX_HANDSHAKE_INTERVAL)
    }

    /// An initiation carries an earlier time than before. Returns whether to answer it now.
    pub fn on_stale_initiation(&mut self, now: Time) -> bool {
        let recently = self.stale_at.is_some_and(|at| now.since(at) < STALE_INITIATION_INTERVAL);
        if !recently {
            self.stale_at = Some(now);
        }
        !recently
    }

    /// Whether the peer's initiations are refused since its clock was set back.
    pub fn is_stale(&self, now: Time) -> bool {
        self.stale_at.is_some_and(|at| now.since(at) < STALE_REPORT_DURATION)
    }
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
