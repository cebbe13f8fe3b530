//! Datagram sizes and even pacing of an offered load.

/// Length of an IPv4 and a UDP header in bytes: sizes of packets below include them.
const HEADERS: usize = 28;

/// The sizes of inner IP packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mix {
    /// All packets of one size.
    Only(usize),
    /// 28 packets of 64 bytes, 16 of 570 and 4 of 1518, evenly interleaved; sizes above the MTU are reduced
    /// to it.
    Imix,
}

impl Mix {
    /// Returns the sizes of UDP payloads of one period, in bytes.
    #[must_use]
    pub fn payloads(self, mtu: usize) -> Vec<usize> {
        let payload = |size: usize| size.min(mtu) - HEADERS;
        match self {
            Self::Only(size) => vec![payload(size)],
            Self::Imix => {
                let parts = [(64, 28usize), (570, 16), (1518, 4)];
                let mut debts = [0; 3];
                let next = |_| {
                    for (debt, (_, share)) in debts.iter_mut().zip(parts) {
                        *debt += i64::try_from(share).unwrap_or(0);
                    }
                    // The size that is furthest below its share.
                    let most = (0..3).max_by_key(|i| debts[*i]).unwrap_or(0);
                    debts[most] -= 48;
                    payload(parts[most].0)
                };
                (0..48).map(next).collect()
            }
        }
    }
}

impl std::str::FromStr for Mix {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "imix" { Ok(Self::Imix) } else { text.parse().map(Self::Only) }
    }
}

impl std::fmt::Display for Mix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Only(size) => size.fmt(f),
            Self::Imix => f.write_str("imix"),
        }
    }
}

/// Counts due datagrams. A stalled sender does not catch up with a burst: if it is late by more than a few
/// ticks, the datagrams beyond that are never sent, and the load of the step is lower.
#[derive(Debug)]
pub struct Pacer {
    /// Datagrams per second.
    rate: f64,
    /// The largest number of datagrams that may be due at once.
    burst: f64,
    due: f64,
    last: f64,
}

impl Pacer {
    /// Makes a pacer for a sender that checks every `tick` seconds. `rate` is in datagrams per second.
    #[must_use]
    pub fn new(rate: f64, tick: f64) -> Self {
        Self { rate, burst: (2.0 * rate * tick).max(16.0), due: 0.0, last: 0.0 }
    }

    /// Returns the number of datagrams to send at `now`, in seconds since the start. They count as sent.
    pub fn due(&mut self, now: f64) -> usize {
        self.due = (self.due + (now - self.last) * self.rate).min(self.burst);
        self.last = now;
        let whole = self.due.floor();
        self.due -= whole;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small whole number")]
        let count = whole as usize;
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imix_has_its_shares_and_keeps_within_the_mtu() {
        let sizes = Mix::Imix.payloads(1420);
        let count = |size: usize| sizes.iter().filter(|s| **s + 28 == size).count();
        assert_eq!((count(64), count(570), count(1420), sizes.len()), (28, 16, 4, 48));
        assert_eq!(Mix::Only(64).payloads(1420), [36]);
        assert_eq!("imix".parse(), Ok(Mix::Imix));
        assert_eq!("1400".parse(), Ok(Mix::Only(1400)));
    }

    #[test]
    fn a_pacer_keeps_the_rate_and_bounds_a_burst() {
        let mut pacer = Pacer::new(10_000.0, 0.001);
        let sent: usize = (1..=1000).map(|tick| pacer.due(f64::from(tick) * 0.001)).sum();
        assert!((9_999..=10_000).contains(&sent), "{sent}");
        assert_eq!(pacer.due(2.0), 20, "a second late");
    }
}
