//! What two interfaces of one host must not share. A config with errors of its own is skipped here, since
//! its own check reports them.

use std::collections::BTreeSet;
use std::path::Path;

use ipnet::IpNet;

use super::error::{ConfigErrors, Sink};
use super::model::{Config, Table};

impl Config {
    /// Returns the other configs in this config's directory (`*.toml`) that can be read, in the order of
    /// their names.
    #[must_use]
    pub fn other_interfaces(&self) -> Vec<Self> {
        let dir = match self.path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let own = std::fs::canonicalize(&self.path).ok();
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
        let mut paths: Vec<_> = entries
            .filter(|p| p.extension().is_some_and(|e| e == "toml"))
            .filter(|p| *p != self.path && (own.is_none() || std::fs::canonicalize(p).ok() != own))
            .collect();
        paths.sort();
        paths.iter().filter_map(|p| Self::load(p).ok()).collect()
    }

    /// Refuses what another interface has already: its name, one of its UDP ports, its metrics address, or an
    /// allowed IP of the same routing table.
    ///
    /// # Errors
    /// One for each conflict.
    pub fn check_other_interfaces(&self, others: &[Self]) -> Result<(), ConfigErrors> {
        let mut sink = Sink::joined(&self.path, "", self.positions.files.clone());
        for other in others {
            let (name, path) = (&other.interface.name, other.path.display());
            if *name == self.interface.name {
                let what = format!("the interface {name} is described by {path} too");
                sink.add(self.positions.name, what, "give one of them another `name`, or remove one file");
            }
            let metrics = self.interface.metrics_listen;
            if let Some(at) = metrics.filter(|_| metrics == other.interface.metrics_listen) {
                let what = format!("metrics_listen {at} is {name}'s already ({path})");
                sink.add(self.positions.metrics_listen, what, "write another port");
            }
            let (ours, theirs) = (ports(self), ports(other));
            if ours.0 <= theirs.1 && theirs.0 <= ours.1 {
                let verb = if ours.0 == ours.1 { "overlaps" } else { "overlap" };
                let what = format!("{} {verb} {} of {name} ({path})", ports_text(ours), ports_text(theirs));
                sink.add(self.positions.listen_port, what, self.free_port(others));
            }
            self.shared_prefixes(other, &mut sink);
        }
        sink.finish()
    }

    /// Refuses prefixes that `other` also has in the same table.
    ///
    /// # Errors
    /// One for each such prefix.
    pub fn check_shared_prefixes(&self, other: &Self) -> Result<(), ConfigErrors> {
        let mut sink = Sink::joined(&self.path, "", self.positions.files.clone());
        self.shared_prefixes(other, &mut sink);
        sink.finish()
    }

    /// A prefix can't lead into two tunnels; of nested prefixes the longest wins.
    fn shared_prefixes(&self, other: &Self, sink: &mut Sink<'_>) {
        if self.interface.table == Table::Off || self.interface.table != other.interface.table {
            return;
        }
        let theirs: BTreeSet<&IpNet> = other.peers.iter().flat_map(|peer| &peer.allowed_ips).collect();
        let (name, path) = (&other.interface.name, other.path.display());
        for (peer, positions) in self.peers.iter().zip(&self.positions.peers) {
            for (prefix, at) in peer.allowed_ips.iter().zip(&positions.allowed_ips) {
                if theirs.contains(prefix) {
                    let what = format!("{prefix} leads into the tunnel {name} already ({path})");
                    sink.add(
                        *at,
                        what,
                        "take it out of one of the two files, or write a longer prefix in one",
                    );
                }
            }
        }
    }

    /// Returns the next port with room for all lanes.
    fn free_port(&self, others: &[Self]) -> String {
        let width = u32::from(self.interface.lanes) - 1;
        let mut taken: Vec<_> = others.iter().map(ports).collect();
        taken.sort_unstable();
        let mut port = u32::from(self.interface.listen_port);
        for (first, last) in taken {
            if port <= last && first <= port + width {
                port = last + 1;
            }
        }
        match port + width <= 65_535 {
            true => format!("write `listen_port = {port}`"),
            false => "write a lower `listen_port` that is free".to_owned(),
        }
    }
}

/// Returns the first and the last UDP port.
fn ports(config: &Config) -> (u32, u32) {
    let first = u32::from(config.interface.listen_port);
    (first, first + u32::from(config.interface.lanes) - 1)
}

fn ports_text((first, last): (u32, u32)) -> String {
    match first == last {
        true => format!("UDP port {first}"),
        false => format!("UDP ports {first} to {last}"),
    }
}
