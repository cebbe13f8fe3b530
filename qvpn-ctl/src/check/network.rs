//! What a config means for this machine's network: names that resolve into the tunnel, and networks,
//! addresses and DNS servers that the block cuts off.

use std::collections::BTreeMap;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use qvpn_api::config::{Local, Table, remembered_local};
use qvpn_api::{Config, ConfigErrors};
use qvpn_net::{ConnectedNetwork, IpNet, Net, NetError, RoutePlan};

/// The time limit for resolving all names.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(3);
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Resolves the names of endpoints and KMEs, and refuses those that lie behind the tunnel that needs them.
pub(super) fn names(config: &Config) -> Result<(), ConfigErrors> {
    let names: Vec<String> = config.host_names().into_iter().map(str::to_owned).collect();
    if names.is_empty() { Ok(()) } else { config.check_resolved(&resolve(names)) }
}

/// Returns the addresses of `names`. A name that isn't resolved in time is left out: the name service may
/// need the tunnel.
fn resolve(names: Vec<String>) -> BTreeMap<String, Vec<IpAddr>> {
    let (sender, answers) = mpsc::channel();
    for name in names {
        let sender = sender.clone();
        std::thread::spawn(move || {
            let found = (name.as_str(), 0).to_socket_addrs();
            let found: Vec<IpAddr> = found.into_iter().flatten().map(|at| at.ip()).collect();
            // It fails if the time limit has passed.
            let _ = sender.send((name, found));
        });
    }
    drop(sender);
    let deadline = Instant::now() + RESOLVE_TIMEOUT;
    let mut resolved = BTreeMap::new();
    while let Ok((name, found)) = answers.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        resolved.insert(name, found);
    }
    resolved
}

/// Refuses networks of this host that the block would cut off, unless the config has the key `local`.
pub(super) fn connected(config: &Config) -> Result<(), ConfigErrors> {
    let blocked = blocked(config);
    if blocked.is_empty() || config.has_local() {
        return Ok(());
    }
    let shown: Vec<String> =
        blocked.iter().map(|(n, around)| format!("{} on {} inside {around}", n.prefix, n.device)).collect();
    let what = format!(
        "this host is connected to a network inside a protected prefix, which would be blocked: {}",
        shown.join(", ")
    );
    let fix = format!("write `{}` in [interface], or `local = []` to block it", line(config, &blocked));
    Err(config.local_error(&what, &fix))
}

/// Returns the networks that would be blocked, each with the protected prefix that contains it.
fn blocked(config: &Config) -> Vec<(ConnectedNetwork, IpNet)> {
    let Ok(plan) = RoutePlan::of(config) else { return Vec::new() };
    let tunnels: Vec<String> =
        config.other_interfaces().into_iter().map(|other| other.interface.name).collect();
    let endpoints: Vec<IpAddr> =
        config.peers.iter().filter_map(|peer| peer.endpoint.as_ref()?.ip()).collect();
    let connected = ask_kernel(async |net| net.connected(&endpoints).await);
    let blocked = plan.blocked_networks(&connected).into_iter();
    let of_tunnel = |network: &ConnectedNetwork| tunnels.contains(&network.device);
    blocked.filter(|(network, _)| !of_tunnel(network)).map(|(n, around)| (n.clone(), around)).collect()
}

fn this_hosts_addresses() -> Vec<(IpAddr, String)> {
    ask_kernel(async |net| net.own_addresses().await)
}

/// Returns `None` if the kernel can't be queried.
fn ask_kernel<T>(ask: impl AsyncFnOnce(&Net) -> Result<Vec<T>, NetError>) -> Vec<T> {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return Vec::new();
    };
    runtime.block_on(async {
        match Net::connect() {
            Ok(net) => ask(&net).await.unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    })
}

/// Returns the line of the config that exempts `blocked` in addition to what it already exempts.
fn line(config: &Config, blocked: &[(ConnectedNetwork, IpNet)]) -> String {
    let entry = |prefix: &IpNet, device: &str| format!("{{ prefix = \"{prefix}\", device = \"{device}\" }}");
    let written = config.interface.local.iter().map(|Local { prefix, device }| entry(prefix, device));
    let new = blocked.iter().map(|(network, _)| entry(&network.prefix, &network.device));
    format!("local = [{}]", written.chain(new).collect::<Vec<_>>().join(", "))
}

/// Returns warnings: things that are not errors but may be unexpected.
pub(super) fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    let Ok(plan) = RoutePlan::of(config) else { return warnings };
    if config.interface.table != Table::Auto && config.interface.protect.is_empty() {
        warnings.push(
            "nothing is blocked: `table` leaves the routes to others, and there is no `protect`; name in \
             `protect` what must not leave in clear"
                .to_owned(),
        );
    }
    let blocked = blocked(config);
    // Without the key `local` in the config, it is an error.
    let not_yet =
        config.interface.local_connected && matches!(remembered_local(&config.interface.name), Ok(None));
    if config.has_local() && !not_yet {
        for (network, around) in &blocked {
            let (prefix, device) = (network.prefix, &network.device);
            let add = match config.interface.local_connected {
                true => format!("run `qvpn-ctl local accept {} {prefix}`", config.interface.name),
                false => format!("write `{}`", line(config, &blocked)),
            };
            warnings.push(format!(
                "{prefix} on {device} lies inside the protected {around} and is blocked; if it is this \
                 site's \
                 own, {add}"
            ));
        }
    }
    let protected_around = |ip: &IpAddr| {
        let local = config.interface.local.iter().any(|local| local.prefix.contains(ip));
        plan.filtered().filter(|net| net.contains(ip) && !local).max_by_key(IpNet::prefix_len)
    };
    for (address, device) in this_hosts_addresses() {
        let known = device == config.interface.name
            || blocked.iter().any(|(network, _)| network.prefix.contains(&address));
        if let Some(around) = protected_around(&address).filter(|net| net.prefix_len() > 0 && !known) {
            warnings.push(format!(
                "this host's own address {address} on {device} lies in the protected {around}: others \
                 reach it \
                 through the tunnel only"
            ));
        }
    }
    for server in dns_servers() {
        // Under a default route that is normal, unless the tunnel itself needs names.
        let matters = |around: &IpNet| around.prefix_len() > 0 || !config.host_names().is_empty();
        if let Some(around) = protected_around(&server).filter(|net| !server.is_loopback() && matters(net)) {
            warnings.push(format!(
                "the DNS server {server} ({RESOLV_CONF}) lies in the protected {around}: names are \
                 resolved only \
                 while the tunnel is up, so write addresses instead of names for endpoints and KMEs"
            ));
        }
    }
    warnings
}

fn dns_servers() -> Vec<IpAddr> {
    servers_in(&std::fs::read_to_string(RESOLV_CONF).unwrap_or_default())
}

fn servers_in(resolv_conf: &str) -> Vec<IpAddr> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and(words.next())?;
        address.split('%').next()?.parse().ok()
    };
    resolv_conf.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_as_the_resolver_does() {
        let text = "# nameserver 192.0.2.1\nsearch example\nnameserver 10.20.0.53\n\tnameserver \
         fe80::1%eth0\nnameserver x\n";
        assert_eq!(servers_in(text), ["10.20.0.53".parse::<IpAddr>().unwrap(), "fe80::1".parse().unwrap()]);
    }

    #[test]
    fn a_name_without_an_address_is_left_out() {
        let found = resolve(vec!["localhost".into(), "nothing.invalid".into()]);
        assert!(found["localhost"].iter().all(IpAddr::is_loopback), "{found:?}");
        assert!(found.get("nothing.invalid").is_none_or(Vec::is_empty), "{found:?}");
    }
}
