//! Reads a wg-quick file: sections, `Key = value` with keys in any case, comments after `#`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use qvpn_net::IpNet;

use super::name::{CommentName, comment_name};

/// A line's number and a remark about it.
pub(super) type Note = (usize, String);

/// The content of a file.
#[derive(Debug, Default)]
pub(super) struct WgConfig {
    pub(super) interface: Interface,
    pub(super) peers: Vec<Peer>,
    pub(super) notes: Vec<Note>,
}

#[derive(Debug, Default)]
pub(super) struct Interface {
    pub(super) address: Vec<String>,
    /// The values, as TOML.
    pub(super) listen_port: Option<String>,
    pub(super) fwmark: Option<String>,
    pub(super) mtu: Option<String>,
    pub(super) table: Option<String>,
}

#[derive(Debug, Default)]
pub(super) struct Peer {
    pub(super) line: usize,
    pub(super) name: Option<CommentName>,
    pub(super) public_key: Option<String>,
    pub(super) endpoint: Option<String>,
    /// The prefixes, each with its line.
    pub(super) allowed_ips: Vec<(usize, IpNet)>,
    pub(super) keepalive: Option<String>,
    /// The line of its pre-shared key, which is not kept.
    pub(super) psk_line: Option<usize>,
}

impl Peer {
    /// Sets the name from a comment. One that is marked as a name replaces one that is not.
    fn suggest_name(&mut self, name: Option<CommentName>) {
        match (&self.name, &name) {
            (None, Some(_)) | (Some(CommentName::Plain(_)), Some(CommentName::Marked(_))) => self.name = name,
            _ => {}
        }
    }
}

/// The section that a line belongs to.
#[derive(Clone, Copy, PartialEq)]
enum Section {
    None,
    Interface,
    Peer,
}

/// # Errors
/// The line and the reason, if the text is not a wg-quick file.
pub(super) fn read(text: &str) -> Result<WgConfig, Note> {
    // Some editors on Windows write a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut config = WgConfig::default();
    let mut section = Section::None;
    let mut has_interface = false;
    let mut above: Option<CommentName> = None;
    for (number, raw) in (1..).zip(text.lines()) {
        let (line, remark) = raw.split_once('#').map_or((raw, None), |(line, remark)| (line, Some(remark)));
        let line = line.trim();
        let remark = remark.and_then(comment_name);
        if line.is_empty() {
            let in_new_peer = section == Section::Peer
                && config
                    .peers
                    .last()
                    .is_some_and(|peer| peer.public_key.is_none() && peer.allowed_ips.is_empty());
            match (remark, in_new_peer, config.peers.last_mut()) {
                (Some(name), true, Some(peer)) => peer.suggest_name(Some(name)),
                // A marked name inside a section, such as `# friendly_name = x` below the key.
                (Some(CommentName::Marked(name)), _, Some(peer))
                    if section == Section::Peer && raw.to_lowercase().contains("friendly_name") =>
                {
                    peer.suggest_name(Some(CommentName::Marked(name)));
                }
                (remark, ..) => above = remark,
            }
            continue;
        }
        match line.to_ascii_lowercase().as_str() {
            "[interface]" => {
                section = Section::Interface;
                has_interface = true;
                above = None;
                continue;
            }
            "[peer]" => {
                section = Section::Peer;
                let mut peer = Peer { line: number, ..Peer::default() };
                peer.suggest_name(remark);
                peer.suggest_name(above.take());
                config.peers.push(peer);
                continue;
            }
            _ => above = None,
        }
        let Some((key, value)) = line.split_once('=') else {
            let word = first_word(line);
            let what = format!("`{word}` is neither a section nor `Key = value`; is this a wg-quick config?");
            return Err((number, what));
        };
        let (key, value) = (first_word(key.trim()).to_ascii_lowercase(), value.trim());
        let notes = &mut config.notes;
        let mut note = |text: String| notes.push((number, text));
        match (section, config.peers.last_mut()) {
            (Section::Interface, _) => interface_key(&mut config.interface, &key, value, &mut note),
            (Section::Peer, Some(peer)) => {
                if key == "publickey" {
                    peer.suggest_name(remark);
                }
                peer_key(peer, number, &key, value, &mut note);
            }
            _ => {
                let what = format!("`{key}` is before any section; is this a wg-quick config?");
                return Err((number, what));
            }
        }
    }
    if !has_interface {
        return Err((1, "there is no section [Interface], so this is not a wg-quick config".to_owned()));
    }
    merge_same_keys(&mut config);
    let owners = last_owners(&mut config);
    for (i, peer) in config.peers.iter_mut().enumerate() {
        peer.allowed_ips.retain(|(_, net)| owners.get(net) == Some(&i));
    }
    Ok(config)
}

fn interface_key(i: &mut Interface, key: &str, value: &str, note: &mut impl FnMut(String)) {
    match key {
        "privatekey" => note("PrivateKey is not converted; see above".to_owned()),
        "address" => {
            for text in list(value) {
                match text.parse::<IpNet>().is_ok() || text.parse::<IpAddr>().is_ok() {
                    true => i.address.push(text.to_owned()),
                    false => note(format!("`{text}` is not an address, and is left out{}", scope_hint(text))),
                }
            }
        }
        "listenport" => i.listen_port = number("ListenPort", value, note),
        "fwmark" if value == "off" => {}
        "fwmark" => i.fwmark = number("FwMark", value, note),
        "mtu" => i.mtu = number("MTU", value, note),
        "table" => i.table = table(value, note),
        "dns" => note(format!(
            "DNS has no equivalent: qvpn sets no resolver. With systemd-resolved: `resolvectl dns NAME {}`",
            list(value).collect::<Vec<_>>().join(" ")
        )),
        "netns" => note(
            "NetNS has no equivalent: `systemctl edit qvpn@NAME` and `NetworkNamespacePath=` put the whole \
             daemon into a namespace"
                .to_owned(),
        ),
        "saveconfig" => note(
            "SaveConfig has no equivalent: nothing writes the config but `qvpn-ctl peer … --save`".to_owned(),
        ),
        "preup" | "postup" | "predown" | "postdown" => {
            let when = match key {
                "preup" => "`ExecStart=` of a unit that is `Before=qvpn@NAME.service`",
                "postup" => "`ExecStart=` of a unit that is `After=qvpn@NAME.service`",
                "predown" => "`ExecStop=` of a unit that is `After=qvpn@NAME.service`",
                _ => "`ExecStop=` of a unit that is `Before=qvpn@NAME.service`",
            };
            note(format!(
                "{key} has no equivalent, because a config runs no commands: write it as {when}, with the \
                 tunnel's name in place of `%i`; docs/operating.md, \"Commands at start and stop\", has such \
                 a unit"
            ));
        }
        other => note(format!("[Interface] has no key `{other}` that wg-quick knows; it is left out")),
    }
}

fn peer_key(peer: &mut Peer, line: usize, key: &str, value: &str, note: &mut impl FnMut(String)) {
    match key {
        "publickey" => peer.public_key = Some(value.to_owned()),
        "presharedkey" => peer.psk_line = Some(line),
        "endpoint" => match endpoint_fault(value) {
            None => peer.endpoint = Some(value.to_owned()),
            Some(fault) => note(format!("{fault}; the endpoint is left out")),
        },
        "allowedips" => {
            for text in list(value) {
                let parsed = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
                let Ok(net) = parsed else {
                    note(format!("`{text}` is not a prefix, and is left out{}", scope_hint(text)));
                    continue;
                };
                if net.trunc() != net {
                    let bare = net.trunc();
                    note(format!(
                        "{net} has bits after its prefix length, which wg ignores; it is {bare} here"
                    ));
                }
                peer.allowed_ips.push((line, net.trunc()));
            }
        }
        "persistentkeepalive" if matches!(value, "off" | "0") => {}
        "persistentkeepalive" => {
            peer.keepalive = number("PersistentKeepalive", value, note).map(|seconds| format!("{seconds}s"));
        }
        other => note(format!("[Peer] has no key `{other}` that wg knows; it is left out")),
    }
}

/// wg keeps one peer for each public key: later sections replace its allowed IPs and add to the rest.
fn merge_same_keys(config: &mut WgConfig) {
    let mut merged: Vec<Peer> = Vec::new();
    for mut peer in std::mem::take(&mut config.peers) {
        let former = merged.iter().position(|p| p.public_key.is_some() && p.public_key == peer.public_key);
        if peer.public_key.is_none() {
            config.notes.push((peer.line, "this [Peer] has no PublicKey, which wg refuses".to_owned()));
        }
        let Some(former) = former.map(|i| merged.remove(i)) else {
            merged.push(peer);
            continue;
        };
        config.notes.push((
            peer.line,
            format!(
                "this [Peer] has the PublicKey of the one in line {}; as in wg they are one peer, with the \
                 AllowedIPs of this section",
                former.line
            ),
        ));
        peer.suggest_name(former.name);
        peer.endpoint = peer.endpoint.or(former.endpoint);
        peer.keepalive = peer.keepalive.or(former.keepalive);
        peer.psk_line = peer.psk_line.or(former.psk_line);
        merged.push(peer);
    }
    config.peers = merged;
}

/// Returns the peer of each prefix: wg assigns it to the last peer that names it.
fn last_owners(config: &mut WgConfig) -> BTreeMap<IpNet, usize> {
    let mut owners: BTreeMap<IpNet, usize> = BTreeMap::new();
    for (i, peer) in config.peers.iter_mut().enumerate() {
        let mut own: Vec<IpNet> = Vec::new();
        peer.allowed_ips.retain(|(line, net)| {
            if own.contains(net) {
                return false;
            }
            own.push(*net);
            if let Some(other) = owners.insert(*net, i) {
                let other = other + 1;
                config.notes.push((
                    *line,
                    format!("{net} belongs to peer number {other} too; as in wg, the last one gets it"),
                ));
            }
            true
        });
    }
    owners
}

/// Accepts a number that TOML reads as well.
fn number(key: &str, value: &str, note: &mut impl FnMut(String)) -> Option<String> {
    let parsed = match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => value.parse::<u32>().ok(),
    };
    match parsed {
        Some(_) if value.starts_with("0x") => Some(value.to_owned()),
        Some(number) => Some(number.to_string()),
        None => {
            note(format!("{key} must be a number; it is left out"));
            None
        }
    }
}

/// Returns `Table` as TOML, with the kernel's names for tables as numbers.
fn table(value: &str, note: &mut impl FnMut(String)) -> Option<String> {
    match value {
        "auto" | "off" => Some(format!("\"{value}\"")),
        "main" => Some("254".to_owned()),
        _ if value.starts_with(|c: char| c.is_ascii_digit()) => number("Table", value, note),
        _ => {
            note(
                "Table has a name that qvpn doesn't read: write its number of /etc/iproute2/rt_tables; it is \
                 left out, so routes go to the main table"
                    .to_owned(),
            );
            None
        }
    }
}

/// Returns why qvpn can't use an endpoint that wg may accept.
fn endpoint_fault(text: &str) -> Option<String> {
    const FORM: &str = "an endpoint is HOST:PORT, for example 203.0.113.9:51820 or [2001:db8::9]:51820";
    if text.contains("://") || text.contains('/') {
        return Some(format!("`{text}` is a URL, and {FORM}"));
    }
    if text.contains('%') {
        return Some(format!("`{text}` has a scope{}", scope_hint(text)));
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return Some(format!("`{text}` has no brackets and no port, and {FORM}"));
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return Some(format!("`{text}` has no port, and {FORM}"));
    };
    if port.parse::<u16>().ok().filter(|port| *port > 0).is_none() {
        return Some(format!("`{text}` has no port from 1 to 65535, and {FORM}"));
    }
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(inner) if inner.parse::<Ipv6Addr>().is_ok() => None,
        None if !host.is_empty() && !host.contains([':', '[', ']', ' ']) => None,
        _ => Some(format!("`{text}` has no valid host, and {FORM}")),
    }
}

/// Returns what to do about a scope such as `%eth0`, which qvpn doesn't support.
fn scope_hint(text: &str) -> &'static str {
    match text.contains('%') {
        true => ": qvpn reads no scope such as %eth0, so use an address that is not link-local",
        false => "",
    }
}

/// Returns the part of a line that may be shown. Text after the first word can be a key, even if the `=` is
/// missing. The longest word that wg-quick knows has 19 letters.
fn first_word(line: &str) -> &str {
    let ends = |(i, c): &(usize, char)| *i >= 20 || !(c.is_alphanumeric() || "[]-_".contains(*c));
    let end = line.char_indices().find(ends).map_or(line.len(), |(i, _)| i);
    line.get(..end).unwrap_or_default()
}

/// Returns the values between commas.
fn list(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim).filter(|item| !item.is_empty())
}
