//! `show`: one glance says whether each site is up, what its key is made of, how long it lasts, and what is wrong.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::path::Path;

use qvpn_api::control::{Reply, Request};
use qvpn_api::status::{
    Counts, InterfaceStatus, KmeState, KmeStatus, PeerState, PeerStatus, Status, sources_text,
};

use crate::Failure;
use crate::client::{Client, unexpected};
use crate::keys::print;

pub(crate) fn show(dir: &Path, interface: Option<&str>, json: bool) -> Result<(), Failure> {
    let names = match interface {
        Some(name) => vec![name.to_owned()],
        None => running(dir)?,
    };
    let mut interfaces = Vec::new();
    for name in names {
        let Reply::Show(status) = Client::connect(dir, &name)?.ask(&Request::Show)? else {
            return Err(unexpected());
        };
        interfaces.extend(status.interfaces);
    }
    let status = Status::new(interfaces);
    if json {
        return print(&serde_json::to_string(&status).map_err(|e| Failure::new(e.to_string()))?);
    }
    if status.interfaces.is_empty() {
        return print("no qvpn daemon is running; start one with `systemctl start qvpn@NAME`");
    }
    let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let blocks: Vec<String> = status.interfaces.iter().map(|i| interface_text(i, colour)).collect();
    print(blocks.join("\n").trim_end())
}

/// The interfaces that have a control socket.
fn running(dir: &Path) -> Result<Vec<String>, Failure> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Failure::new(format!("cannot read {}: {error}", dir.display()))),
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|e| e.file_name().to_str().and_then(|n| n.strip_suffix(".sock")).map(str::to_owned))
        .collect();
    names.sort();
    Ok(names)
}

struct Painter {
    text: String,
    colour: bool,
}

impl Painter {
    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn line(&mut self, name: &str, value: impl std::fmt::Display) {
        let name = self.paint("1", name);
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "  {name}: {value}");
    }
}

fn interface_text(status: &InterfaceStatus, colour: bool) -> String {
    let mut p = Painter { text: String::new(), colour };
    let _ = writeln!(p.text, "{}: {}", p.paint("1;32", "interface"), p.paint("32", &status.name));
    p.line("public key", &status.public_key);
    p.line("listening port", status.listen_port);
    p.line("suite", status.suite.as_str());
    p.line("lanes", status.lanes);
    if let Some(mtu) = status.mtu {
        p.line("mtu", mtu);
    }
    if let Some(uptime) = status.uptime_s {
        p.line("up for", span(uptime));
    }
    drops(&mut p, &status.drops);
    for kme in &status.kmes {
        kme_text(&mut p, kme);
    }
    for peer in &status.peers {
        peer_text(&mut p, peer);
    }
    p.text
}

fn kme_text(p: &mut Painter, kme: &KmeStatus) {
    let _ = writeln!(p.text, "\n{}: {}", p.paint("1;36", "kme"), p.paint("36", &kme.name));
    let state = match kme.state {
        Some(KmeState::Up) => p.paint("32", "up"),
        Some(KmeState::Down) => p.paint("31", "down"),
        None => "not asked yet".to_owned(),
    };
    p.line("state", format!("{state}, {}", kme.url));
    if let (Some(KmeState::Down), Some(error)) = (kme.state, &kme.last_error) {
        p.line("last error", error);
    }
    if let Some(ago) = kme.last_success_ago_s {
        let latency = kme.latency_ms.map(|ms| format!(", took {ms:.0} ms")).unwrap_or_default();
        p.line("last success", format!("{} ago{latency}", span(ago)));
    }
    if let Some(count) = kme.stored_key_count {
        p.line("keys at the KME", count);
    }
    if let Some(left) = kme.cert_expires_in_s {
        p.line(
            "certificate",
            if left > 0.0 { format!("ends in {}", span(left)) } else { p.paint("31", "has ended; renew it") },
        );
    }
}

fn peer_text(p: &mut Painter, peer: &PeerStatus) {
    let _ = writeln!(p.text, "\n{}: {}", p.paint("1;33", "peer"), p.paint("33", &peer.name));
    let (code, word) = match peer.state {
        PeerState::Up => ("32", "up"),
        PeerState::Degraded => ("33", "degraded"),
        PeerState::Connecting => ("33", "connecting"),
        PeerState::Blocked => ("31", "blocked, nothing is sent"),
    };
    p.line("state", p.paint(code, word));
    if let Some(reason) = &peer.reason {
        p.line("reason", reason);
    }
    p.line("public key", &peer.public_key);
    p.line("fingerprint", &peer.fingerprint);
    p.line("endpoint", peer.endpoint.as_deref().unwrap_or("(not known yet)"));
    p.line("allowed ips", peer.allowed_ips.join(", "));
    let role = peer.role.map(|r| format!(", {}", r.as_str())).unwrap_or_default();
    p.line("qkd", format!("{}{role}", peer.qkd_policy.as_str()));
    if let (Some(epoch), Some(age)) = (peer.epoch, peer.epoch_age_s) {
        let ends =
            peer.epoch_expires_in_s.map(|s| format!(", sealing ends in {}", span(s))).unwrap_or_default();
        p.line(
            "key",
            format!("{} (epoch {epoch}, {} old{ends})", sources_text(&peer.key_sources), span(age)),
        );
    }
    if let Some(id) = &peer.qkd_key_id {
        p.line("qkd key id", id);
    }
    if let Some(next) = peer.next_rekey_in_s {
        p.line("next rekey", format!("in {}", span(next)));
    }
    if let Some(stock) = peer.qkd_stock {
        let lasts = peer.qkd_stock_lasts_s.map(|s| format!(", lasts {}", span(s))).unwrap_or_default();
        p.line("qkd stock", format!("{stock} key{}{lasts}", if stock == 1 { "" } else { "s" }));
    }
    let failures = counts(&peer.rekey_failures);
    let failures = if failures.is_empty() { String::new() } else { format!(", failed: {failures}") };
    p.line("rekeys", format!("{}{failures}", peer.rekeys));
    if let Some(ago) = peer.control_handshake_ago_s {
        p.line("control session", format!("handshake {} ago", span(ago)));
    }
    if let (Some(rx), Some(tx)) = (peer.rx_bytes, peer.tx_bytes) {
        p.line("transfer", format!("{} received, {} sent", bytes(rx), bytes(tx)));
    }
    drops(p, &peer.drops);
}

fn drops(p: &mut Painter, drops: &Counts) {
    let text = counts(drops);
    if !text.is_empty() {
        p.line("dropped", text);
    }
}

/// Reasons that were counted at all.
fn counts(counts: &Counts) -> String {
    counts
        .iter()
        .filter(|(_, n)| **n > 0)
        .map(|(reason, n)| format!("{n} {reason}"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// A duration as people say it.
fn span(seconds: f64) -> String {
    if seconds < 9.95 {
        return format!("{:.1} s", seconds.max(0.0));
    }
    let whole = std::time::Duration::try_from_secs_f64(seconds.round()).unwrap_or_default().as_secs();
    let (d, h, m, s) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60, whole % 60);
    match (d, h, m) {
        (0, 0, 0) => format!("{s} s"),
        (0, 0, _) => format!("{m} min {s} s"),
        (0, _, _) => format!("{h} h {m} min"),
        _ => format!("{d} d {h} h"),
    }
}

/// An amount in binary units, as `wg` has it.
#[allow(clippy::cast_precision_loss)] // two decimals are shown
fn bytes(n: u64) -> String {
    let mut value = n as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{n} B") } else { format!("{value:.2} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.2} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_amounts_read_well() {
        assert_eq!(
            [span(0.04), span(12.4), span(95.0), span(7300.0), span(200_000.0)],
            ["0.0 s", "12 s", "1 min 35 s", "2 h 1 min", "2 d 7 h"]
        );
        assert_eq!(
            [bytes(5), bytes(2048), bytes(3 << 30), bytes(5 << 40)],
            ["5 B", "2.00 KiB", "3.00 GiB", "5.00 TiB"]
        );
    }
}
