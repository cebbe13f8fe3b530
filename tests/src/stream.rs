//! A numbered UDP stream between the two LAN hosts, in both directions at once. It counts lost, duplicated
//! and reordered datagrams, and separately those that the receiving socket dropped.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::binaries::binary;
use crate::lab::{Lab, Site};
use crate::process::Process;

/// The report of one host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StreamReport {
    /// Datagrams that the kernel accepted.
    pub sent: u64,
    /// Datagrams that the kernel refused to send, for example because the route is unreachable.
    pub refused: u64,
    /// The datagrams from the peer.
    pub received: Received,
    /// Datagrams dropped at the receiving socket because its buffer was full: the test's fault, not the
    /// tunnel's. They are among [`Received::lost`] too.
    pub kernel_drops: u64,
}

/// The datagrams from the peer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Received {
    /// Distinct datagrams.
    pub distinct: u64,
    /// Datagrams that never arrived.
    pub lost: u64,
    /// Datagrams that arrived again.
    pub duplicated: u64,
    /// Datagrams that arrived after a later one.
    pub reordered: u64,
    /// Datagrams of other origin.
    pub strange: u64,
    /// The longest time between two datagrams, in milliseconds.
    pub longest_gap_ms: f64,
}

/// A stream's parameters.
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
    /// UDP port at both hosts.
    pub port: u16,
    /// The most datagrams that one call hands to the kernel, which segments them (UDP GSO).
    pub together: u64,
}

impl Default for Stream {
    /// 5,000 a second for 2 s, 200 bytes, IPv4.
    fn default() -> Self {
        Self { count: 10_000, rate: 5_000, size: 200, ipv6: false, port: 7000, together: 1 }
    }
}

/// Both hosts of a running stream.
pub struct RunningStream {
    ends: [Process; 2],
    limit: Duration,
}

impl Stream {
    /// Starts both hosts, and the sending once both listen.
    ///
    /// # Panics
    /// If a host's program doesn't start.
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

    /// Runs the stream to its end; returns the reports of site A's and site B's host.
    #[track_caller]
    pub fn run(self, lab: &Lab) -> [StreamReport; 2] {
        self.start(lab).finish()
    }
}

impl RunningStream {
    /// Waits for the end; returns the reports of site A's and site B's host.
    ///
    /// # Panics
    /// If a host's program fails, or takes half a minute longer than planned.
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
