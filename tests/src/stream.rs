//! A numbered UDP stream between the two LAN hosts, in both directions at once, that tells each lost, doubled and
//! reordered datagram, and drops at the receiving socket apart from those on the way.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::binaries::binary;
use crate::lab::{Lab, Site};
use crate::process::Process;

/// Each datagram of a stream begins with this, so that a capture can tell whether one passed in clear.
pub const PAYLOAD_TAG: &[u8; 16] = b"qvpn lab payload";

/// What one end reports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StreamReport {
    /// Datagrams that the kernel took.
    pub sent: u64,
    /// Datagrams that the kernel refused to send, as where the route is unreachable.
    pub refused: u64,
    /// What came from the other end.
    pub received: Received,
    /// Datagrams dropped at the receiving socket because its buffer was full: the test's fault, not the tunnel's. They are
    /// among [`Received::lost`] too.
    pub kernel_drops: u64,
}

/// What came from the other end.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Received {
    /// Different datagrams.
    pub distinct: u64,
    /// Datagrams that never came.
    pub lost: u64,
    /// Datagrams that came once more.
    pub duplicated: u64,
    /// Datagrams that came after a later one.
    pub reordered: u64,
    /// Datagrams that aren't of this stream.
    pub strange: u64,
    /// The longest time between two datagrams, in milliseconds.
    pub longest_gap_ms: f64,
}

/// A stream, and how it shall be.
#[derive(Debug, Clone, Copy)]
pub struct Stream {
    /// Datagrams in each direction.
    pub count: u64,
    /// Datagrams a second in each direction.
    pub rate: u64,
    /// Bytes of UDP payload, at least 24.
    pub size: usize,
    /// Inner IPv6 instead of IPv4.
    pub ipv6: bool,
    /// UDP port at both ends.
    pub port: u16,
    /// Datagrams that are due together go in one call of up to so many, which the kernel cuts (UDP GSO).
    pub together: u64,
}

impl Default for Stream {
    /// 5,000 a second for 2 s, 200 bytes, IPv4.
    fn default() -> Self {
        Self { count: 10_000, rate: 5_000, size: 200, ipv6: false, port: 7000, together: 1 }
    }
}

/// Both ends of a running stream.
pub struct RunningStream {
    ends: [Process; 2],
    limit: Duration,
}

impl Stream {
    /// Starts both ends, and the sending once both listen.
    ///
    /// # Panics
    /// If an end doesn't start.
    #[must_use]
    #[track_caller]
    pub fn start(self, lab: &Lab) -> RunningStream {
        let end = |site: Site| {
            let address = |site: Site| {
                let [v4, v6] = site.host();
                if self.ipv6 { format!("[{v6}]:{}", self.port) } else { format!("{v4}:{}", self.port) }
            };
            let numbers =
                [self.count, self.rate, u64::try_from(self.size).unwrap(), self.count, self.together];
            let mut args = vec![address(site), address(site.other())];
            args.extend(numbers.map(|n| n.to_string()));
            let mut process =
                lab.lan(site).spawn(binary("lab-udp"), &args.iter().map(String::as_str).collect::<Vec<_>>());
            process.line("ready", Duration::from_secs(10));
            process
        };
        let mut ends = Site::BOTH.map(end);
        for process in &mut ends {
            process.tell("go");
        }
        RunningStream { ends, limit: Duration::from_secs(self.count / self.rate.max(1) + 30) }
    }

    /// Runs it to its end; the reports of site A's and site B's host.
    #[track_caller]
    pub fn run(self, lab: &Lab) -> [StreamReport; 2] {
        self.start(lab).finish()
    }
}

impl RunningStream {
    /// Waits for the end; the reports of site A's and site B's host.
    ///
    /// # Panics
    /// If an end fails, or takes half a minute longer than it should.
    #[must_use]
    #[track_caller]
    pub fn finish(mut self) -> [StreamReport; 2] {
        let limit = self.limit;
        self.ends.each_mut().map(|process| {
            let line = process.line("{", limit);
            serde_json::from_str(&line).unwrap()
        })
    }
}
