//! Checks what a config needs from the machine's network: forwarding, the reverse path filter, MTU, and
//! routes that no other route overrides. Routes are read from `ip -json`.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;

use qvpn_api::Config;
use qvpn_api::config::{Endpoint, Mtu, Peer, Table};
use qvpn_net::{IpNet, ROUTE_PROTOCOL, RoutePlan, strict_reverse_path};
use serde_json::Value;

use super::command::{json, json_lines};
use super::finding::Finding;
use super::firewall;

/// The bytes that the tunnel adds to a packet: UDP (8), our header (16) and tag (16), and the outer IP
/// header.
const OVERHEAD_V4_BYTES: u64 = 20 + 8 + 16 + 16;
const OVERHEAD_V6_BYTES: u64 = 40 + 8 + 16 + 16;

pub(super) fn findings(config: &Config) -> Vec<Finding> {
    let mut findings = forwarding(config);
    findings.extend(reverse_path(config));
    findings.extend(src_valid_mark(config));
    findings.extend(mtu(config));
    findings.extend(firewall::findings(config));
    if config.interface.table == Table::Auto {
        findings.extend(routes(config));
    } else if config.interface.protect.is_empty() {
        findings.push(Finding::warning(
            "block",
            "nothing is blocked: `table` leaves the routes to others, and there is no `protect`",
            format!(
                "sed -i 's/^\\[interface\\]/[interface]\\nprotect = [\"10.64.0.0\\/10\"]/' {} # your \
                     prefixes",
                config.path.display()
            ),
        ));
    } else {
        findings.push(filter(config));
    }
    findings
}

fn allowed(config: &Config) -> impl Iterator<Item = &IpNet> {
    config.peers.iter().flat_map(|peer| &peer.allowed_ips)
}

fn forwarding(config: &Config) -> Vec<Finding> {
    let families = [
        (false, "ip_forward", "/proc/sys/net/ipv4/ip_forward", "net.ipv4.ip_forward", "IPv4"),
        (
            true,
            "ip6_forward",
            "/proc/sys/net/ipv6/conf/all/forwarding",
            "net.ipv6.conf.all.forwarding",
            "IPv6",
        ),
    ];
    let mut findings = Vec::new();
    for (ipv6, check, file, key, family) in families {
        if !allowed(config).any(|net| net.addr().is_ipv6() == ipv6) {
            continue;
        }
        findings.push(match fs::read_to_string(file).map(|text| text.trim() == "1") {
            Ok(true) => Finding::ok(check, format!("{family} is forwarded between the LAN and the tunnel")),
            Ok(false) => Finding::bad(
                check,
                format!("this machine doesn't forward {family}, so only itself could use the tunnel"),
                format!("sysctl -w {key}=1 && echo {key}=1 > /etc/sysctl.d/90-qvpn-{check}.conf"),
            ),
            Err(error) => Finding::unknown(check, format!("{file}: {error}"), format!("sysctl {key}")),
        });
    }
    findings
}

fn reverse_path(config: &Config) -> Vec<Finding> {
    if !allowed(config).any(|net| net.prefix_len() == 0 && net.addr().is_ipv4()) {
        return Vec::new();
    }
    let strict = strict_reverse_path(&config.interface.name);
    if strict.is_empty() {
        return vec![Finding::ok("rp_filter", "no reverse path filter drops peers' datagrams")];
    }
    let bad = |name: &String| {
        let key = format!("net.ipv4.conf.{}.rp_filter", name.replace('.', "/"));
        Finding::bad(
            "rp_filter",
            format!(
                "rp_filter is strict on {name}: with a default route into the tunnel the kernel drops \
                 peers' datagrams there"
            ),
            format!("sysctl -w {key}=2 && echo {key}=2 > /etc/sysctl.d/90-qvpn-rp_filter-{name}.conf"),
        )
    };
    strict.iter().map(bad).collect()
}

/// A strict reverse path filter must take the mark of our datagrams into account, since an endpoint may lie
/// in a protected prefix.
fn src_valid_mark(config: &Config) -> Option<Finding> {
    const KEY: &str = "net.ipv4.conf.all.src_valid_mark";
    let needed = RoutePlan::of(config).is_ok_and(|plan| plan.needs_src_valid_mark());
    let strict = strict_reverse_path(&config.interface.name);
    if !needed || strict.is_empty() {
        return None;
    }
    let set = fs::read_to_string("/proc/sys/net/ipv4/conf/all/src_valid_mark");
    Some(match set.map(|text| text.trim() == "1") {
        Ok(true) => Finding::ok("src_valid_mark", "the reverse path filter heeds the mark of our datagrams"),
        Ok(false) => Finding::bad(
            "src_valid_mark",
            format!(
                "rp_filter is strict on {} and ignores the mark of our datagrams, so it drops those of a \
                 peer \
                 whose endpoint lies in a protected prefix",
                strict.join(", ")
            ),
            format!("sysctl -w {KEY}=1"),
        ),
        Err(error) => Finding::unknown("src_valid_mark", format!("{KEY}: {error}"), format!("sysctl {KEY}")),
    })
}

/// Returns the route to each address, by one run of `ip` for all of them.
fn routes_to(addresses: &[IpAddr], fwmark: u32) -> BTreeMap<IpAddr, Value> {
    let mark = if fwmark == 0 { String::new() } else { format!(" mark {fwmark}") };
    let lines: String = addresses.iter().map(|ip| format!("route get {ip}{mark}\n")).collect();
    let routes = json_lines("ip", &["-json", "-force", "-batch", "-"], &lines);
    routes.into_iter().filter_map(|route| Some((route["dst"].as_str()?.parse().ok()?, route))).collect()
}

/// Reports endpoints without a route: each by itself, or many in one line, since they have one cause.
fn without_route(peers: &[(IpAddr, &str)]) -> Vec<Finding> {
    if let [(ip, peer), _, _, _, ..] = peers {
        return vec![Finding::bad(
            "endpoint",
            format!("there is no route to {} peers, such as {peer} at {ip}", peers.len()),
            "ip route add default via GATEWAY # the next hop towards the WAN",
        )];
    }
    let one = |(ip, peer): &(IpAddr, &str)| {
        let what = format!("there is no route to {ip}, where peer {peer} is");
        Finding::bad(
            "endpoint",
            what,
            format!("ip route add {ip} via GATEWAY # the next hop towards the WAN"),
        )
    };
    peers.iter().map(one).collect()
}

fn mtu(config: &Config) -> Vec<Finding> {
    let endpoint = |peer: &Peer| peer.endpoint.as_ref().and_then(Endpoint::ip);
    let addresses: Vec<IpAddr> = config.peers.iter().filter_map(endpoint).collect();
    if addresses.is_empty() {
        return Vec::new();
    }
    let routes = routes_to(&addresses, config.interface.fwmark);
    let mut mtus: BTreeMap<&str, Option<u64>> = BTreeMap::new();
    let (mut findings, mut fits) = (Vec::new(), BTreeMap::<String, usize>::new());
    let mut unrouted: Vec<(IpAddr, &str)> = Vec::new();
    for (peer, ip) in config.peers.iter().filter_map(|peer| Some((peer, endpoint(peer)?))) {
        let Some(route) = routes.get(&ip) else {
            unrouted.push((ip, peer.name.as_str()));
            continue;
        };
        let device = route["dev"].as_str().unwrap_or_default();
        let Some(of_device) = *mtus.entry(device).or_insert_with(|| device_mtu(device)) else { continue };
        // The kernel remembers the path MTU that a router reported; the device's own MTU is something else.
        let of_path = route["metrics"][0]["mtu"].as_u64().filter(|mtu| *mtu < of_device);
        let outer = of_path.unwrap_or(of_device);
        let limit = match of_path {
            Some(mtu) => format!("path MTU {mtu}, as a router reported it; {device} itself has {of_device}"),
            None => format!("MTU {outer} of {device}"),
        };
        let overhead = if ip.is_ipv6() { OVERHEAD_V6_BYTES } else { OVERHEAD_V4_BYTES };
        match config.interface.mtu {
            Mtu::Auto => {
                *fits.entry(format!("the daemon measures the path to N ({limit})")).or_default() += 1;
            }
            Mtu::Bytes(tunnel) if u64::from(tunnel) + overhead <= outer => {
                *fits.entry(format!("packets of {tunnel} bytes fit through {device} to N")).or_default() += 1;
            }
            Mtu::Bytes(tunnel) => findings.push(Finding::warning(
                "mtu",
                format!(
                    "packets of {tunnel} bytes to peer {} are fragmented ({limit}), which costs speed",
                    peer.name
                ),
                format!(
                    "sed -i 's/^mtu *=.*/mtu = \"auto\"/' {} && qvpn-ctl reload {}",
                    config.path.display(),
                    config.interface.name
                ),
            )),
        }
    }
    let peers = |n: usize| if n == 1 { "1 peer".to_owned() } else { format!("{n} peers") };
    findings.extend(without_route(&unrouted));
    findings.extend(
        fits.into_iter()
            .map(|(text, n)| Finding::ok("mtu", text.replacen(" N", &format!(" {}", peers(n)), 1))),
    );
    findings
}

fn device_mtu(device: &str) -> Option<u64> {
    let words = ["-json", "link", "show", "dev", device].map(str::to_owned);
    json("ip", &words)?.get(0)?["mtu"].as_u64()
}

/// Finds other programs' routes that divert a part of an allowed IP, and missing blocks.
fn routes(config: &Config) -> Vec<Finding> {
    let mut all = Vec::new();
    for family in ["-4", "-6"] {
        let words = [family, "-json", "route", "show", "table", "all"].map(str::to_owned);
        let Some(Value::Array(routes)) = json("ip", &words) else {
            return vec![Finding::unknown(
                "routes",
                "the routes can't be read: is `ip` (iproute2) there?",
                "ip route show table all",
            )];
        };
        all.extend(routes.into_iter().map(|route| (family == "-6", route)));
    }
    let ours: Vec<&IpNet> = allowed(config).chain(&config.interface.protect).collect();
    let mut findings = Vec::new();
    for (ipv6, route) in &all {
        let Some(found) = foreign(*ipv6, route, &config.interface.name) else { continue };
        if config.interface.local.iter().any(|local| local.prefix.contains(&found)) {
            continue;
        }
        // The tunnel replaces a default route; only longer routes lead to a network that somebody expects to
        // reach.
        let Some(inside) = ours.iter().find(|net| {
            net.prefix_len() > 0 && net.contains(&found) && net.prefix_len() <= found.prefix_len()
        }) else {
            continue;
        };
        let device = route["dev"].as_str().unwrap_or_default();
        let via = route["gateway"].as_str().map(|via| format!(" via {via}")).unwrap_or_default();
        findings.push(Finding::warning(
            "routes",
            format!(
                "the route {found}{via} dev {device} is inside the allowed IP {inside} and has no effect: \
                 packets to it go through the tunnel only. For a network of this site, add \
                 `local = [{{ prefix = \"{found}\", device = \"{device}\" }}]` to [interface]"
            ),
            format!("ip {}route del {found}{via} dev {device}", if *ipv6 { "-6 " } else { "" }),
        ));
    }
    let blocked = |net: &IpNet| {
        all.iter().any(|(ipv6, route)| {
            *ipv6 == net.addr().is_ipv6()
                && route["type"] == "unreachable"
                && is_ours(route)
                && destination(*ipv6, route) == Some(*net)
        })
    };
    let open: Vec<String> = ours.iter().filter(|net| !blocked(net)).map(ToString::to_string).collect();
    findings.push(if open.is_empty() {
        Finding::ok("block", "each protected prefix has its fail-closed route")
    } else {
        let shown = open.iter().take(4).cloned().collect::<Vec<_>>().join(", ");
        let more = open.len().saturating_sub(4);
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        Finding::bad(
            "block",
            format!(
                "no fail-closed route lies under {shown}{more}: while the daemon doesn't run, packets \
                     may leave in clear"
            ),
            format!("qvpn-ctl block {}", config.path.display()),
        )
    });
    findings.push(filter(config));
    findings
}

/// Reports whether the filter layer is in force.
fn filter(config: &Config) -> Finding {
    let name = format!("qvpn-{}", config.interface.name);
    let words = ["-json", "list", "tables", "inet"].map(str::to_owned);
    let fix = format!("qvpn-ctl block {}", config.path.display());
    match json("nft", &words) {
        None => Finding::unknown(
            "filter",
            "the filter can't be read here (it needs root and nft)",
            "sudo nft list tables",
        ),
        Some(found) => {
            let mut tables = found["nftables"].as_array().into_iter().flatten();
            match tables.any(|item| item["table"]["name"] == name.as_str()) {
                true => Finding::ok("filter", "the filter drops what leaves outside the tunnel"),
                false => Finding::bad(
                    "filter",
                    format!("there is no nftables table inet {name}: only the routes keep clear text in"),
                    fix,
                ),
            }
        }
    }
}

/// Returns the destination of another program's route in the main table that leads to another device.
fn foreign(ipv6: bool, route: &Value, tunnel: &str) -> Option<IpNet> {
    let kind = route["type"].as_str().unwrap_or("unicast");
    let main = matches!(route["table"].as_str(), None | Some("main"));
    let device = route["dev"].as_str()?;
    if kind != "unicast" || !main || is_ours(route) || device == tunnel || device == "lo" {
        return None;
    }
    destination(ipv6, route).filter(|net| net.prefix_len() > 0)
}

fn is_ours(route: &Value) -> bool {
    route["protocol"].as_str() == Some(ROUTE_PROTOCOL.to_string().as_str())
}

fn destination(ipv6: bool, route: &Value) -> Option<IpNet> {
    match route["dst"].as_str()? {
        "default" if ipv6 => "::/0".parse().ok(),
        "default" => "0.0.0.0/0".parse().ok(),
        text => text.parse().ok().or_else(|| text.parse().ok().map(|ip: IpAddr| IpNet::from(ip))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn many_peers_without_a_route_are_one_finding() {
        let peers: Vec<(IpAddr, &str)> = (1..=300u16)
            .map(|n| (IpAddr::from([192, 0, n.to_be_bytes()[0], n.to_be_bytes()[1]]), "b"))
            .collect();
        assert_eq!(without_route(&peers[..3]).len(), 3);
        let [one] = &without_route(&peers)[..] else { panic!("one line") };
        assert_eq!(one.text, "there is no route to 300 peers, such as b at 192.0.0.1");
        assert!(without_route(&[]).is_empty());
    }

    #[test]
    fn only_routes_of_others_to_other_devices_count() {
        let found = |route: Value| foreign(false, &route, "qvpn0").map(|net| net.to_string());
        assert_eq!(found(json!({"dst": "10.20.3.0/24", "dev": "eth0"})), Some("10.20.3.0/24".into()));
        assert_eq!(
            found(json!({"dst": "10.20.3.7", "dev": "eth0", "table": "main"})),
            Some("10.20.3.7/32".into())
        );
        for route in [
            json!({"dst": "default", "dev": "eth0"}),
            json!({"dst": "10.20.3.0/24", "dev": "qvpn0"}),
            json!({"dst": "10.20.3.0/24", "dev": "eth0", "table": "77"}),
            json!({"dst": "10.20.3.0/24", "dev": "eth0", "protocol": "113"}),
            json!({"type": "local", "dst": "10.20.3.1", "dev": "eth0", "table": "local"}),
        ] {
            assert_eq!(found(route.clone()), None, "{route}");
        }
    }
}
