//! Checks that depend on the machine's network: names that resolve into allowed IPs, and networks of this
//! host inside protected prefixes. The caller queries the system and passes the results in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::error::{ConfigErrors, Sink};
use super::model::{Config, Endpoint, Kme, Peer, Table};

impl Config {
    /// Whether the config has the key `local`, even with an empty list.
    #[must_use]
    pub fn has_local(&self) -> bool {
        self.positions.local_written
    }

    /// Returns an error at `local`, or at `[interface]` if that key is absent.
    #[must_use]
    pub fn local_error(&self, what: &str, fix: &str) -> ConfigErrors {
        let mut sink = Sink::joined(&self.path, "", self.positions.files.clone());
        sink.add(self.positions.local, what, fix);
        sink.finish().err().unwrap_or_else(|| ConfigErrors::of_file(&self.path, what, fix))
    }

    /// Returns the host names of endpoints and KMEs.
    #[must_use]
    pub fn host_names(&self) -> BTreeSet<&str> {
        let endpoints = self.peers.iter().filter_map(|peer| endpoint_name(peer.endpoint.as_ref()?));
        let kmes = self.kms.iter().flat_map(|kms| &kms.kmes).filter_map(kme_name);
        endpoints.chain(kmes).collect()
    }

    /// Refuses an endpoint or a KME whose name has an address among the allowed IPs of a peer that needs it.
    /// Addresses in the file are checked when it is parsed.
    ///
    /// # Errors
    /// Each such name.
    pub fn check_resolved(&self, resolved: &BTreeMap<String, Vec<IpAddr>>) -> Result<(), ConfigErrors> {
        let mut sink = Sink::joined(&self.path, "", self.positions.files.clone());
        if self.interface.table == Table::Off {
            return Ok(());
        }
        let of = |name: &str| resolved.get(name).map(Vec::as_slice).unwrap_or_default();
        for (peer, positions) in self.peers.iter().zip(&self.positions.peers) {
            let Some(name) = peer.endpoint.as_ref().and_then(endpoint_name) else { continue };
            let inside =
                of(name).iter().find_map(|ip| Some((ip, self.behind(*ip, |p| p.name == peer.name)?)));
            if let Some((ip, (_, prefix))) = inside {
                let what = format!(
                    "the endpoint {name} is {ip}, which lies in {prefix}, so it would be reached through the \
                     tunnel that needs it"
                );
                sink.add(
                    positions.endpoint,
                    what,
                    "write the peer's address on the WAN, or remove it from `allowed_ips`",
                );
            }
        }
        let kmes = self.kms.iter().flat_map(|kms| &kms.kmes);
        for (kme, positions) in kmes.zip(&self.positions.kmes) {
            let Some(name) = kme_name(kme) else { continue };
            let needs = |peer: &Peer| peer.kmes.contains(&kme.name);
            let inside = of(name).iter().find_map(|ip| Some((ip, self.behind(*ip, needs)?)));
            if let Some((ip, (peer, prefix))) = inside {
                let what = format!(
                    "KME \"{}\" ({name}) is {ip}, which lies in {prefix}, so it would be reached through the \
                     tunnel to peer \"{}\", which needs its keys",
                    kme.name, peer.name
                );
                let fix =
                    "write the KME's address outside the tunnel, or remove it from that peer's `allowed_ips`";
                sink.add(positions.url, what, fix);
            }
        }
        sink.finish()
    }

    /// Returns the peer with the longest allowed IP that contains `ip`, if `wanted` accepts that prefix. Our
    /// own datagrams bypass default routes.
    fn behind(&self, ip: IpAddr, wanted: impl Fn(&Peer) -> bool) -> Option<(&Peer, IpNet)> {
        let all = self.peers.iter().flat_map(|peer| peer.allowed_ips.iter().map(move |net| (peer, *net)));
        let around = all.filter(|(_, net)| net.prefix_len() > 0 && net.contains(&ip));
        around.max_by_key(|(_, net)| net.prefix_len()).filter(|(peer, _)| wanted(peer))
    }
}

fn endpoint_name(endpoint: &Endpoint) -> Option<&str> {
    endpoint.ip().is_none().then_some(endpoint.host.as_str())
}

/// Returns the host of a KME's URL, unless it is an address.
fn kme_name(kme: &Kme) -> Option<&str> {
    let authority = kme.server()?.url.strip_prefix("https://")?.split('/').next()?;
    if authority.starts_with('[') {
        return None;
    }
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    host.parse::<IpAddr>().is_err().then_some(host)
}
