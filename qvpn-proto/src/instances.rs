//! Detects two gateways with one key: each of them makes sessions, so the peer's instances alternate.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use qvpn_types::Time;

/// Instances that alternate within this time belong to two gateways. A gateway that restarts has a new
/// instance each time.
const WINDOW: Duration = Duration::from_secs(300);
/// A, B, A, B.
const PATTERN: usize = 4;

struct Seen {
    instance: [u8; 16],
    endpoint: Option<SocketAddr>,
    at: Time,
}

/// The last changes of the peer's instance.
#[derive(Default)]
pub struct Instances {
    seen: VecDeque<Seen>,
    reported_at: Option<Time>,
}

impl Instances {
    /// Records that `instance` follows another one. Returns the endpoints of two gateways that alternate, at
    /// most once in five minutes.
    pub fn on_change(
        &mut self,
        instance: [u8; 16],
        endpoint: Option<SocketAddr>,
        now: Time,
    ) -> Option<Vec<SocketAddr>> {
        self.seen.retain(|seen| now.since(seen.at) <= WINDOW);
        if self.seen.len() == PATTERN {
            self.seen.pop_front();
        }
        self.seen.push_back(Seen { instance, endpoint, at: now });
        let ids: Vec<_> = self.seen.iter().map(|seen| seen.instance).collect();
        let alternate = matches!(ids[..], [a, b, c, d] if a == c && b == d && a != b);
        if !alternate || self.reported_at.is_some_and(|at| now.since(at) < WINDOW) {
            return None;
        }
        self.reported_at = Some(now);
        let mut endpoints: Vec<SocketAddr> =
            self.seen.iter().rev().take(2).filter_map(|s| s.endpoint).collect();
        endpoints.dedup();
        Some(endpoints)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::default() + Duration::from_secs(seconds)
    }

    #[test]
    fn instances_that_alternate_are_two_gateways_and_restarts_are_not() {
        let from = |last: u8| Some(SocketAddr::from(([192, 0, 2, last], 51820)));
        let mut instances = Instances::default();
        let mut next = |id: u8, seconds| instances.on_change([id; 16], from(id), at(seconds));
        for (n, id) in (0..).zip([1, 2, 3, 4, 5, 5, 6]) {
            assert_eq!(next(id, n), None, "a gateway that restarts");
        }
        assert_eq!(next(5, 20), None);
        let both = next(6, 30).unwrap();
        assert_eq!(both, [from(6).unwrap(), from(5).unwrap()]);
        for (n, id) in (0..).zip([5, 6, 5, 6]) {
            assert_eq!(next(id, 40 + n * 50), None, "it was said");
        }
        assert_eq!(next(5, 329), None);
        assert!(next(6, 331).is_some(), "said again after five minutes");
        // A failover and the way back, far apart.
        for (n, id) in (0..).zip([7, 8, 7, 8, 7]) {
            assert_eq!(next(id, 1000 + n * 101), None);
        }
        // Both behind one address.
        let mut behind = Instances::default();
        let ends: Vec<_> =
            (0..4).filter_map(|n| behind.on_change([n % 2; 16], from(9), at(u64::from(n)))).collect();
        assert_eq!(ends, [vec![from(9).unwrap()]]);
    }
}
