//! A numbered UDP stream between the two LAN hosts, in both directions at once. It counts lost, duplicated
//! and reordered datagrams, and separately those that the receiving socket dropped.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::binaries::binary;
use crate::lab::{Lab, Site};
use crate::node::Node;
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
    /// Datagrams that do not belong to the stream.
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
    /// The maximum number of datagrams that one call passes to the kernel, which segments them (UDP GSO).
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
    /// Starts both hosts; sending begins once both listen.
    ///
    /// # Panics
    /// If a host's program doesn't start.
    #[must_use]
    #[track_caller]
    pub fn start(self, lab: &Lab) -> RunningStream {
        let host = |site: Site| {
            let [v4, v6] = site.host();
            (lab.lan(site), if self.ipv6 { v6 } else { v4 })
        };
        self.start_between([host(Site::A), host(Site::B)], [self.count; 2])
    }

    /// As [`start`](Self::start), between two machines with these addresses, each with its own count.
    ///
    /// # Panics
    /// If a host's program doesn't start.
    #[must_use]
    #[track_caller]
    pub fn start_between(self, hosts: [(&Node, &str); 2], counts: [u64; 2]) -> RunningStream {
        let end = |own: usize| {
            let address = |host: usize| {
                let ip: IpAddr = hosts[host].1.parse().unwrap();
                SocketAddr::new(ip, self.port).to_string()
            };
            let size = u64::try_from(self.size).unwrap();
            let numbers = [counts[own], self.rate, size, counts[1 - own], self.together];
            let mut args = vec![address(own), address(1 - own)];
            args.extend(numbers.map(|n| n.to_string()));
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let mut process = hosts[own].0.spawn(binary("lab-udp"), &args);
            process.line("ready", Duration::from_secs(10));
            process
        };
        let mut ends = [end(0), end(1)];
        for process in &mut ends {
            process.tell("go");
        }
        let count = counts[0].max(counts[1]);
        RunningStream { ends, limit: Duration::from_secs(count / self.rate.max(1) + 30) }
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
