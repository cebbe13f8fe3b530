//! The text of `show`: first a line for each peer, then the details in the layout of `wg show`. Unknown and
//! empty values are left out, and faults come with what to do. On a terminal, values are aligned and
//! wrapped to its width.

use qvpn_api::config::QkdPolicy;
use qvpn_api::status::{
    Counts, DeviceStatus, GuardStatus, InterfaceStatus, KmeState, KmeStatus, LaneState, PeerState,
    PeerStatus, RoutingStatus, Status, UnresolvedRoute, sources_text,
};
use qvpn_identity::PublicIdentity;

use crate::advice::advice;
use crate::interface_text::{audit_text, config_text, gateway_text};
use crate::output::{Paint, Tone, clean};
use crate::table::{Cell, Table};
use crate::text::{pad, width};
use crate::units::{ago, bytes, count, due, duration, from_now};

/// A KME's certificate that expires within two weeks is shown as a warning.
const CERTIFICATE_WARNING_SECONDS: f64 = 14.0 * 86_400.0;

/// The column of values on a terminal, after the longest label.
const VALUE_COLUMN: usize = 20;
/// The narrowest terminal on which values are aligned in a column.
const MIN_ALIGNED_WIDTH: usize = 60;

/// An interface with more peers is shown on one screen, unless all details are requested.
const MAX_DETAILED_PEERS: usize = 20;
/// The number of peers on such a screen.
const SCREEN_PEERS: usize = 15;

/// The states that a screen of many peers counts besides `up`.
const COUNTED_STATES: [PeerState; 6] = [
    PeerState::Blocked,
    PeerState::Silent,
    PeerState::Connecting,
    PeerState::Degraded,
    PeerState::Standby,
    PeerState::Disabled,
];

/// Returns the details of all interfaces. Those with many peers get one screen, unless `all` is set.
pub(crate) fn status(status: &Status, paint: Paint, all: bool) -> String {
    let mut page = Page { text: String::new(), paint };
    for (i, interface) in status.interfaces.iter().enumerate() {
        if i > 0 {
            page.text.push('\n');
        }
        if interface.peers.len() > MAX_DETAILED_PEERS && !all {
            page.screen(interface);
            continue;
        }
        page.summary(interface, interface.peers.len());
        page.text.push('\n');
        page.interface(interface);
    }
    page.text
}

/// Returns one line for each peer.
pub(crate) fn brief(status: &Status, paint: Paint) -> String {
    let mut page = Page { text: String::new(), paint };
    for (i, interface) in status.interfaces.iter().enumerate() {
        if i > 0 {
            page.text.push('\n');
        }
        page.summary(interface, interface.peers.len());
    }
    page.text
}

pub(crate) fn tone_of(state: PeerState) -> Tone {
    match state {
        PeerState::Up => Tone::Good,
        PeerState::Connecting | PeerState::Degraded => Tone::Warn,
        PeerState::Silent | PeerState::Blocked => Tone::Bad,
        PeerState::Disabled | PeerState::Standby => Tone::Plain,
    }
}

/// Returns peer, state, key, next rekey and stock.
pub(crate) fn summary_row(p: &PeerStatus) -> Vec<Cell> {
    let key = if p.key_sources.is_empty() { "none".to_owned() } else { sources_text(&p.key_sources) };
    let key_tone = match (p.key_sources.is_empty(), p.state) {
        (_, PeerState::Degraded) => Tone::Warn,
        (true, _) => Tone::Bad,
        (false, _) => Tone::Plain,
    };
    let unknown = || "-".to_owned();
    let rekey = p.next_rekey_in_s.filter(|_| !p.key_sources.is_empty()).map_or_else(unknown, due);
    let (stock, stock_tone) = match (p.qkd_policy, p.qkd_stock) {
        (QkdPolicy::Off, _) => ("QKD off".to_owned(), Tone::Plain),
        (_, None) => (unknown(), Tone::Plain),
        (_, Some(0)) => ("no keys".to_owned(), Tone::Bad),
        (_, Some(n)) => match p.qkd_stock_lasts_s {
            Some(s) => (format!("{}, {}", count(n, "key"), duration(s)), Tone::Plain),
            None => (count(n, "key"), Tone::Plain),
        },
    };
    vec![
        (clean(&p.name), Tone::Plain),
        (p.state.as_str().to_owned(), tone_of(p.state)),
        (key, key_tone),
        (rekey, Tone::Plain),
        (stock, stock_tone),
    ]
}

struct Page {
    text: String,
    paint: Paint,
}

impl Page {
    /// Adds the number of sites that are up, and a row for each peer.
    fn summary(&mut self, i: &InterfaceStatus, rows: usize) {
        let up = i.peers.iter().filter(|p| p.state == PeerState::Up).count();
        let mut facts = vec![format!("{up} of {} up", things(i.peers.len(), "site"))];
        for state in COUNTED_STATES {
            let n = i.peers.iter().filter(|p| p.state == state).count();
            if i.peers.len() > MAX_DETAILED_PEERS && n > 0 {
                facts.push(format!("{n} {}", state.as_str()));
            }
        }
        if !i.kmes.is_empty() {
            let up = i.kmes.iter().filter(|k| k.state == Some(KmeState::Up)).count();
            facts.push(format!("{up} of {} up", things(i.kmes.len(), "KME")));
        }
        let left = i.config.as_ref().and_then(|config| config.confirm_in_s);
        facts.extend(left.map(|left| format!("config on trial, goes back in {}", duration(left))));
        let name = self.paint.text(Tone::Head, &i.name);
        self.text += &format!("{name}: {}\n", facts.join(", "));
        if !i.peers.is_empty() {
            let head = ["PEER", "STATE", "KEY", "NEXT REKEY", "QKD STOCK"];
            let table = Table { head: &head, rows: i.peers.iter().take(rows).map(summary_row).collect() };
            self.text += &table.render(self.paint);
        }
    }

    /// Shows many peers on one screen: the first ones in the order of states, and the KMEs that don't work.
    fn screen(&mut self, i: &InterfaceStatus) {
        self.summary(i, SCREEN_PEERS);
        let more = i.peers.len().saturating_sub(SCREEN_PEERS);
        let name = clean(&i.name);
        self.text += &format!(
            "… and {more} more: `qvpn-ctl show {name} --brief` lists all, `--down` those that are not up, \
             `--peer` shows one, `--all` all details\n"
        );
        for kme in i.kmes.iter().filter(|kme| kme.state != Some(KmeState::Up)) {
            self.text.push('\n');
            self.kme(kme);
        }
    }

    fn interface(&mut self, i: &InterfaceStatus) {
        self.head("interface", &i.name, None);
        // A daemon of another version may use a key format that this program can't read.
        let key: Option<PublicIdentity> = i.public_key.parse().ok();
        self.known("fingerprint", key.map(|k| k.fingerprint()));
        self.line("public key", &i.public_key);
        let ports = match i.lanes {
            0 | 1 => i.listen_port.to_string(),
            n => {
                let last = u32::from(i.listen_port) + u32::from(n) - 1;
                format!("{} to {last} ({n} lanes)", i.listen_port)
            }
        };
        self.line("listening port", &ports);
        self.line("suite", i.suite.name());
        self.known("mtu", i.mtu.map(|m| m.to_string()));
        self.known("up for", i.uptime_s.map(duration));
        if let Some((text, tone)) = i.gateway.as_ref().and_then(gateway_text) {
            self.toned("gateway", &text, tone);
        }
        self.counts("dropped", &i.drops, Tone::Plain);
        self.block(i);
        self.routing(i);
        self.config(i);
        self.audit(i);
        for kme in &i.kmes {
            self.text.push('\n');
            self.kme(kme);
        }
        for peer in &i.peers {
            self.text.push('\n');
            self.peer(peer, i);
        }
    }

    /// Shows the config's hash, and whether it is on trial.
    fn config(&mut self, i: &InterfaceStatus) {
        if let Some((text, tone)) = i.config.as_ref().map(config_text) {
            self.toned("config", &text, tone);
        }
    }

    /// Shows the state of the audit log, unless none is set up.
    fn audit(&mut self, i: &InterfaceStatus) {
        if let Some((text, tone)) = i.audit.as_ref().and_then(audit_text) {
            self.toned("audit log", &text, tone);
        }
    }

    /// Shows, under `routes = "kernel"`, the kernel's routes through the tunnel.
    fn routing(&mut self, i: &InterfaceStatus) {
        let Some(r) = &i.routing else { return };
        self.line("kernel routes", &format!("{} in {}", r.routes, table_text(r.table)));
        self.known("link-local", r.link_local.clone());
        if let Some(error) = &r.error {
            self.toned("error", error, Tone::Bad);
        }
        if let Some(unresolved) = unresolved(r) {
            self.toned("without peer", &unresolved, Tone::Bad);
        }
    }

    /// Shows the routes that lead to a peer.
    fn routes_to(&mut self, p: &PeerStatus, i: &InterfaceStatus) {
        let peers = i.routing.iter().flat_map(|routing| &routing.peers);
        let Some(routed) = peers.into_iter().find(|routed| routed.peer == p.name) else { return };
        self.line("next hops", &routed.next_hops.join(", "));
        self.line(
            "routes",
            &match routed.routes {
                0 => "none leads here".to_owned(),
                n => some_of(n, &routed.prefixes),
            },
        );
    }

    /// Shows the fail-closed block and the device.
    fn block(&mut self, i: &InterfaceStatus) {
        if let Some((text, tone)) = i.device.as_ref().and_then(|device| device_text(device, &i.name)) {
            self.toned("device", &text, tone);
        }
        let Some(guard) = &i.guard else { return };
        let (text, tone) = block_text(guard);
        self.toned("block", &text, tone);
    }

    fn kme(&mut self, k: &KmeStatus) {
        let (state, tone) = match k.state {
            Some(KmeState::Up) => ("up", Tone::Good),
            Some(KmeState::Down) => ("down", Tone::Bad),
            None => ("not asked yet", Tone::Warn),
        };
        self.head("kme", &k.name, Some((state, tone)));
        self.line("url", &format!("{} ({})", k.url, k.api));
        let down = k.state != Some(KmeState::Up);
        match &k.last_error {
            Some(error) if down => self.toned("error", error, Tone::Bad),
            Some(error) => self.line("last error", error),
            None => {}
        }
        self.known("latest success", k.last_success_ago_s.map(ago));
        self.known("keys at the kme", k.stored_key_count.map(|n| n.to_string()));
        self.known("latency", k.latency_ms.map(|ms| format!("{ms:.0} ms")));
        match k.cert_expires_in_s {
            Some(s) if s <= 0.0 => {
                self.toned("certificate", &format!("ended {}; replace it", ago(s)), Tone::Bad)
            }
            Some(s) if s < CERTIFICATE_WARNING_SECONDS => {
                self.toned("certificate", &format!("ends {}; replace it soon", from_now(s)), Tone::Warn);
            }
            Some(s) => self.line("certificate", &format!("ends {}", from_now(s))),
            None => {}
        }
    }

    fn peer(&mut self, p: &PeerStatus, i: &InterfaceStatus) {
        let tone = tone_of(p.state);
        self.head("peer", &p.name, Some((p.state.as_str(), tone)));
        if let Some(reason) = &p.reason {
            self.toned("reason", reason, tone);
        }
        if let Some(advice) = advice(p, i) {
            self.toned("what to do", &advice, tone);
        }
        self.epoch(p);
        self.known("next rekey", p.next_rekey_in_s.map(due));
        self.qkd(p);
        self.known("endpoint", p.endpoint.clone());
        let allowed = if p.allowed_ips.is_empty() { "(none)".to_owned() } else { p.allowed_ips.join(", ") };
        self.line("allowed ips", &allowed);
        self.routes_to(p, i);
        self.known("latest packet", p.last_received_ago_s.map(ago));
        self.known("latest handshake", p.control_handshake_ago_s.map(ago));
        if let (Some(rx), Some(tx)) = (p.rx_bytes, p.tx_bytes) {
            self.line("transfer", &format!("{} received, {} sent", bytes(rx), bytes(tx)));
        }
        self.counts("dropped", &p.drops, Tone::Plain);
        self.line("rekeys", &p.rekeys.to_string());
        self.counts("failed rekeys", &p.rekey_failures, Tone::Warn);
        self.known("role", p.role.map(|r| r.name().to_owned()));
        self.known("path mtu", p.mtu.map(|m| m.to_string()));
        self.lanes(p);
        self.line("fingerprint", &p.fingerprint);
        self.line("public key", &p.public_key);
        self.known("other public key", p.other_public_key.clone());
        let former = p.own_public_key.as_ref().filter(|own| **own != i.public_key);
        self.known("own key in use", former.map(|own| format!("the former one, {own}")));
    }

    fn epoch(&mut self, p: &PeerStatus) {
        if p.key_sources.is_empty() {
            self.toned("key", "none", if p.state == PeerState::Up { Tone::Plain } else { Tone::Bad });
            return;
        }
        let mut facts = Vec::new();
        facts.extend(p.epoch.map(|n| format!("epoch {n}")));
        facts.extend(p.epoch_age_s.map(|s| format!("{} old", duration(s))));
        facts.extend(p.epoch_expires_in_s.map(|s| match s > 0.0 {
            true => format!("expires {}", from_now(s)),
            false => "expired".to_owned(),
        }));
        let mut text = sources_text(&p.key_sources);
        if !facts.is_empty() {
            text += &format!(" ({})", facts.join(", "));
        }
        let tone = if p.state == PeerState::Degraded { Tone::Warn } else { Tone::Plain };
        self.toned("key", &text, tone);
        self.known("qkd key id", p.qkd_key_id.clone());
    }

    fn qkd(&mut self, p: &PeerStatus) {
        let mut text = p.qkd_policy.name().to_owned();
        let mut tone = Tone::Plain;
        if p.qkd_policy != QkdPolicy::Off
            && let Some(stock) = p.qkd_stock
        {
            text += &format!(", {} in stock", count(stock, "key"));
            if let Some(lasts) = p.qkd_stock_lasts_s.filter(|_| stock > 0) {
                text += &format!(", enough for {}", duration(lasts));
            }
            if let Some(files) = p.file_stock.filter(|n| *n > 0) {
                text += &format!(", and {} from a file", count(files, "key"));
            }
            tone = if stock == 0 { Tone::Bad } else { Tone::Plain };
        }
        self.toned("qkd", &text, tone);
    }

    fn lanes(&mut self, p: &PeerStatus) {
        let silent = p.lanes.iter().any(|l| l.state == Some(LaneState::Silent));
        if p.lanes.len() < 2 && !silent {
            return;
        }
        for lane in &p.lanes {
            let (mut state, tone) = match lane.state {
                Some(LaneState::Up) => ("up".to_owned(), Tone::Plain),
                Some(LaneState::Silent) => {
                    let port = lane.listen_port;
                    let there = lane.endpoint.as_deref().unwrap_or("the peer");
                    (
                        format!("silent: a firewall probably blocks UDP port {port} here or {there}"),
                        Tone::Warn,
                    )
                }
                None if lane.via.is_some() => ("the peer has fewer lanes".to_owned(), Tone::Plain),
                None => ("not known yet".to_owned(), Tone::Plain),
            };
            if let Some(via) = lane.via {
                state += &format!("; lane {via} carries its flows");
            }
            self.toned(&format!("lane {}", lane.lane), &state, tone);
        }
    }

    /// Writes a heading with its state.
    fn head(&mut self, kind: &str, name: &str, state: Option<(&str, Tone)>) {
        let name = self.paint.text(Tone::Head, name);
        let state = state.map(|(text, tone)| format!(" ({})", self.paint.text(tone, text)));
        self.text += &format!("{kind}: {name}{}\n", state.unwrap_or_default());
    }

    fn line(&mut self, label: &str, value: &str) {
        self.toned(label, value, Tone::Plain);
    }

    fn toned(&mut self, label: &str, value: &str, tone: Tone) {
        let (gap, column) = match self.paint.width {
            Some(width) if width >= MIN_ALIGNED_WIDTH => {
                let gap = pad(label, VALUE_COLUMN - 2);
                (gap, VALUE_COLUMN + 1)
            }
            _ => (" ".to_owned(), 4),
        };
        let begin = 3 + width(label) + width(&gap);
        self.text += &format!("  {label}:{gap}{}\n", self.paint.wrapped(tone, value, begin, column));
    }

    fn known(&mut self, label: &str, value: Option<String>) {
        if let Some(value) = value {
            self.line(label, &value);
        }
    }

    /// Writes the counters above zero, if there are any.
    fn counts(&mut self, label: &str, counts: &Counts, tone: Tone) {
        let some: Vec<String> =
            counts.iter().filter(|(_, n)| **n > 0).map(|(reason, n)| format!("{n} {reason}")).collect();
        if !some.is_empty() {
            self.toned(label, &some.join(", "), tone);
        }
    }
}

/// Formats a count: `1 site`, `2 sites`.
fn things(n: usize, thing: &str) -> String {
    count(u64::try_from(n).unwrap_or(u64::MAX), thing)
}

fn table_text(table: u32) -> String {
    if table == 254 { "table main".to_owned() } else { format!("table {table}") }
}

/// Lists the first of `n` things, and how many more there are.
fn some_of(n: u64, first: &[String]) -> String {
    let more = n.saturating_sub(u64::try_from(first.len()).unwrap_or(0));
    match more {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

/// Describes the kernel's routes that lead to no peer.
pub(crate) fn unresolved(routing: &RoutingStatus) -> Option<String> {
    let text = |route: &UnresolvedRoute| format!("{} via {}", route.prefix, route.next_hops.join(", "));
    let first: Vec<String> = routing.unresolved.iter().map(text).collect();
    (routing.unresolved_routes > 0).then(|| some_of(routing.unresolved_routes, &first))
}

/// Describes the state of the device, unless it is in order.
pub(crate) fn device_text(device: &DeviceStatus, interface: &str) -> Option<(String, Tone)> {
    match device.state.as_str() {
        "up" => None,
        "renamed" => {
            let now = device.name.as_deref().unwrap_or("another name");
            let text =
                format!("its name is {now}: another device is called {interface}; the tunnel continues");
            Some((text, Tone::Warn))
        }
        _ => {
            let text = format!(
                "it was deleted or moved to another network namespace; its prefixes are blocked: `systemctl \
                 restart qvpn@{interface}`"
            );
            Some((text, Tone::Bad))
        }
    }
}

/// Describes both layers of the block.
pub(crate) fn block_text(guard: &GuardStatus) -> (String, Tone) {
    if guard.protected.is_empty() {
        let text = "nothing is blocked: `table` leaves the routes to others, or no peer has allowed IPs, \
         and there \
                    is no `protect`";
        return (text.to_owned(), Tone::Warn);
    }
    let n = guard.protected.len();
    let prefixes = if n == 1 { "1 prefix".to_owned() } else { format!("{n} prefixes") };
    let word = |state: &str| state.replace('_', " ");
    let (routes, filter) = (word(&guard.routes), word(&guard.nftables));
    let reason = guard.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    let both = guard.routes == "in_force" && guard.nftables == "in_force";
    let kept = match &guard.kept[..] {
        [] => String::new(),
        kept => format!("; in no config any more: {} (`qvpn-ctl unblock` releases it)", kept.join(", ")),
    };
    let text = format!("{prefixes}: routes {routes}, filter {filter}{reason}{kept}");
    (text, if both { Tone::Plain } else { Tone::Bad })
}
