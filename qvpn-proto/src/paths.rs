//! The peer's endpoint in use, and the endpoint for the next handshake.

use std::collections::VecDeque;
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
/// The maximum number of known endpoints of a peer, beside the one in use.
const MAX_KNOWN_ENDPOINTS: usize = 8;

/// The endpoint of a peer, and the handshakes that were sent to it.
pub struct ControlPath {
    pub endpoint: Option<SocketAddr>,
    /// The number of calls since the last authenticated packet. Each call initiates a handshake with every
    /// known endpoint.
    pub initiations: u32,
    /// The number of calls since the last session, or since the peer is silent.
    calls: u32,
    /// Other endpoints at which the peer may be: its name's addresses, and where it was last seen.
    known: Vec<SocketAddr>,
    /// The endpoints that the call which was begun has not reached yet, and their initiation.
    to_call: VecDeque<SocketAddr>,
    initiation: Option<Vec<u8>>,
    /// When one of our initiations last answered an initiation which starts nothing.
    initiated_back_at: Option<Time>,
    /// When such an initiation was last reported.
    stale_at: Option<Time>,
}

impl ControlPath {
    pub fn new(endpoint: Option<SocketAddr>) -> Self {
        Self {
            endpoint,
            initiations: 0,
            calls: 0,
            known: Vec::new(),
            to_call: VecDeque::new(),
            initiation: None,
            initiated_back_at: None,
            stale_at: None,
        }
    }

    /// Sets the endpoint; returns whether it changed.
    pub fn set_endpoint(&mut self, endpoint: SocketAddr) -> bool {
        let changed = self.endpoint.replace(endpoint) != Some(endpoint);
        if changed {
            // The next call begins with this endpoint.
            self.to_call.clear();
        }
        changed
    }

    /// Sets the other endpoints at which the peer may be.
    pub fn set_known(&mut self, endpoints: &[SocketAddr]) {
        self.known = endpoints.iter().take(MAX_KNOWN_ENDPOINTS).copied().collect();
    }

    /// Returns the endpoints beside the one in use: the configured one, and the others that are known. The
    /// one in use may be gone for good, for example when the NATs of both sites lost each other's mappings.
    pub fn others(&self, configured: Option<SocketAddr>) -> Vec<SocketAddr> {
        let mut others = Vec::new();
        for endpoint in configured.iter().chain(&self.known) {
            if self.endpoint != Some(*endpoint) && !others.contains(endpoint) {
                others.push(*endpoint);
            }
        }
        others
    }

    /// Begins a call: the endpoint in use is first, the others follow. Their order rotates from call to call,
    /// since they share an initiation, of which the peer answers the copy that arrives first.
    pub fn begin_call(&mut self, configured: Option<SocketAddr>) {
        let mut others = self.others(configured);
        if !others.is_empty() {
            let by = self.calls as usize % others.len();
            others.rotate_left(by);
        }
        if self.endpoint.is_some() || !others.is_empty() {
            self.initiations = self.initiations.saturating_add(1);
            self.calls = self.calls.saturating_add(1);
        }
        (self.to_call, self.initiation) = (others.into(), None);
    }

    /// Whether endpoints of the call that was begun are still to be called.
    pub fn is_calling(&self) -> bool {
        !self.to_call.is_empty()
    }

    /// Returns the next endpoint of the call, and the initiation to send there.
    pub fn next_call(&mut self, start: impl FnOnce() -> Option<Vec<u8>>) -> Option<(SocketAddr, Vec<u8>)> {
        let to = self.to_call.pop_front()?;
        if self.initiation.is_none() {
            self.initiation = start();
        }
        Some((to, self.initiation.clone()?))
    }

    /// Ends the call that was begun, and makes the delays begin again.
    pub fn restart_calls(&mut self) {
        self.calls = 0;
        self.to_call.clear();
        self.initiation = None;
    }

    /// Returns the delay before the next call: 1, 2, 4 and then 5 s.
    pub fn retry_interval(&self) -> Duration {
        let doublings = self.calls.saturating_sub(1).min(3);
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
