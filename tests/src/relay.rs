//! A lossy WAN between the gateways, or a NAT whose mapping changes: `lab-relay` on the WAN router, which is
//! the peer's endpoint for both gateways.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::binaries::binary;
use crate::gateway::{GatewayOptions, PORT};
use crate::lab::{Lab, Outer, Site};
use crate::packets::is_data;
use crate::process::Process;

/// Counters of one direction of the relay.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayDirection {
    /// Forwarded datagrams.
    pub passed: u64,
    /// Forwarded datagrams that a later one has overtaken.
    pub reordered: u64,
    /// Datagrams that were not forwarded.
    pub lost: u64,
    /// Data packets of the tunnel among [`passed`](Self::passed).
    pub data_passed: u64,
    /// Data packets of the tunnel among [`lost`](Self::lost).
    pub data_lost: u64,
}

impl RelayDirection {
    /// Counts a forwarded datagram.
    pub fn pass(&mut self, datagram: &[u8], overtaken: bool) {
        self.passed += 1;
        self.reordered += u64::from(overtaken);
        self.data_passed += u64::from(is_data(datagram));
    }

    /// Counts a datagram that was not forwarded.
    pub fn lose(&mut self, datagram: &[u8]) {
        self.lost += 1;
        self.data_lost += u64::from(is_data(datagram));
    }
}

/// Counters of the relay.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayReport {
    /// From site A to site B.
    pub from_a: RelayDirection,
    /// From site B to site A.
    pub from_b: RelayDirection,
}

/// A running relay.
pub struct Relay(Process);

impl Lab {
    /// Starts a relay on the WAN router that forwards everything at first. `seed` decides which datagrams it
    /// will lose.
    ///
    /// # Panics
    /// If it doesn't start.
    #[must_use]
    #[track_caller]
    pub fn start_relay(&self, outer: Outer, seed: u64) -> Relay {
        let mut args = vec![seed.to_string()];
        for site in Site::BOTH {
            args.extend([relay_address(site, outer), socket_address(site.wan(outer))]);
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut process = self.wan.spawn(binary("lab-relay"), &args);
        process.line("ready", Duration::from_secs(10));
        Relay(process)
    }
}

impl GatewayOptions {
    /// Returns these options with the relay as the peer's endpoint of `site`.
    #[must_use]
    pub fn through_relay(&self, site: Site) -> Self {
        let peer = format!("{}\nendpoint = \"{}\"", self.peer, relay_address(site, self.outer));
        Self { endpoint: false, peer, ..self.clone() }
    }
}

impl Relay {
    /// From now on, drops this share (0 to 1) of all datagrams, and delays each by `delay` and a random part
    /// of `jitter`, which reorders them.
    pub fn set(&mut self, loss: f64, delay: Duration, jitter: Duration) {
        self.0.tell(&format!("set {loss} {} {}", delay.as_millis(), jitter.as_millis()));
        self.0.line("done", Duration::from_secs(10));
    }

    /// Changes the mapping: from now on site B sees site A at another port.
    pub fn rebind(&mut self) {
        self.0.tell("rebind");
        self.0.line("done", Duration::from_secs(10));
    }

    /// Returns the counters so far.
    #[must_use]
    pub fn report(&mut self) -> RelayReport {
        self.0.tell("report");
        serde_json::from_str(&self.0.line("{", Duration::from_secs(10))).unwrap()
    }
}

/// Returns the WAN router's address towards a site.
fn relay_address(site: Site, outer: Outer) -> String {
    socket_address(site.router(outer))
}

fn socket_address(address: &str) -> String {
    if address.contains(':') { format!("[{address}]:{PORT}") } else { format!("{address}:{PORT}") }
}
