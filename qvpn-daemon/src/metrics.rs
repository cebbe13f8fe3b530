//! The metrics in Prometheus' text format (version 0.0.4). Names and labels are fixed. An unknown value is
//! left out, never shown as 0.

use std::collections::BTreeMap;
use std::fmt::Write;

use qvpn_api::status::{InterfaceStatus, KmeState, KmeStatus, PeerState, PeerStatus, sources_text};
use qvpn_types::Time;

use crate::clock;
use crate::histogram::{BOUNDS, Histogram};
use crate::kme_counts::KmeCount;
use crate::peer_runtime::PeerRuntime;
use crate::peers::Peers;
use crate::translate;

/// Reasons of failed rekeys that are shown from 0, so that a rate over the first failure is right.
const FAILURE_REASONS: [&str; 6] =
    ["timeout", "rejected", "confirmation", "restarted", "no_qkd_key", "crypto"];

/// All metrics of the daemon.
pub(crate) fn text(interface: &InterfaceStatus, peers: &Peers, now: Time) -> String {
    let mut page = Page::default();
    page.family("qvpn_build_info", "gauge", "The running daemon's version, in its label; always 1.");
    page.sample("", &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    interface_metrics(&mut page, interface);
    kme_metrics(&mut page, interface, &peers.kme_counts().snapshot());
    let runtimes: Vec<&PeerRuntime> = peers.in_order().collect();
    peer_gauges(&mut page, interface, &runtimes, now);
    peer_counters(&mut page, interface, &runtimes);
    page.family(
        "qvpn_rekey_duration_seconds",
        "histogram",
        "From the first Propose of an epoch to its coming into force at this end.",
    );
    page.histogram(&[("interface", &interface.name)], peers.rekey_durations());
    page.text
}

fn interface_metrics(page: &mut Page, i: &InterfaceStatus) {
    page.family(
        "qvpn_interface_drops_total",
        "counter",
        "Packets dropped before they belonged to a peer, by reason.",
    );
    for (reason, n) in &i.drops {
        page.count(&[("interface", &i.name), ("reason", reason)], *n);
    }
    if let Some(config) = &i.config {
        page.family(
            "qvpn_config_hash_info",
            "gauge",
            "The SHA-256 of the config in force, in its label; always 1.",
        );
        page.sample("", &[("interface", &i.name), ("hash", &config.hash)], 1.0);
    }
    if let Some(audit) = i.audit.as_ref().filter(|audit| audit.state != "off") {
        page.family("qvpn_audit_writable", "gauge", "1 if the audit log can be written, 0 while it can't.");
        page.sample("", &[("interface", &i.name)], f64::from(u8::from(audit.state == "on")));
        page.family("qvpn_audit_lost_total", "counter", "Records that the audit log lost.");
        page.count(&[("interface", &i.name)], audit.lost);
    }
    if let Some(gateway) = &i.gateway {
        let labels = [("interface", i.name.as_str())];
        page.family("qvpn_gateway_active", "gauge", "1 if this gateway carries traffic, 0 in standby.");
        page.sample("", &labels, f64::from(u8::from(gateway.state == "active")));
        page.family("qvpn_takeovers_total", "counter", "How often it left standby.");
        page.count(&labels, gateway.takeovers);
    }
    let Some(guard) = &i.guard else { return };
    page.family("qvpn_guard_in_force", "gauge", "1 if this layer of the fail-closed block is in force.");
    for (layer, state) in [("routes", &guard.routes), ("nftables", &guard.nftables)] {
        let in_force = f64::from(u8::from(state == "in_force"));
        page.sample("", &[("interface", &i.name), ("layer", layer)], in_force);
    }
    if let Some(dropped) = guard.dropped {
        page.family(
            "qvpn_guard_dropped_packets_total",
            "counter",
            "Packets of protected prefixes that the filter dropped outside the tunnel.",
        );
        page.count(&[("interface", &i.name)], dropped);
    }
}

fn kme_metrics(page: &mut Page, i: &InterfaceStatus, counts: &BTreeMap<String, KmeCount>) {
    let each = |page: &mut Page, value: &dyn Fn(&KmeStatus) -> Option<f64>| {
        for kme in &i.kmes {
            if let Some(value) = value(kme) {
                page.sample("", &[("interface", &i.name), ("kme", &kme.name)], value);
            }
        }
    };
    page.family(
        "qvpn_kme_up",
        "gauge",
        "1 if the KME's last operation worked, 0 if it failed; absent until it was asked.",
    );
    each(page, &|kme| kme.state.map(|state| f64::from(u8::from(state == KmeState::Up))));
    page.family(
        "qvpn_kme_stored_keys",
        "gauge",
        "Keys that the KME says it holds for us; some KMEs say wrong numbers.",
    );
    each(page, &|kme| kme.stored_key_count.map(as_f64));
    page.family(
        "qvpn_kme_certificate_expiry_timestamp_seconds",
        "gauge",
        "When the first of the certificates in use towards the KME ends, in seconds since 1970.",
    );
    let now = f64::from(i32::try_from(clock::unix_seconds()).unwrap_or(i32::MAX));
    each(page, &|kme| kme.cert_expires_in_s.map(|left| now + left));
    page.family(
        "qvpn_kme_requests_total",
        "counter",
        "Operations at the KME, by what was asked and how it ended.",
    );
    let of = |kme: &KmeStatus| counts.get(&kme.name).cloned().unwrap_or_default();
    for kme in &i.kmes {
        for ((op, outcome), n) in of(kme).requests {
            page.count(&[("interface", &i.name), ("kme", &kme.name), ("op", op), ("outcome", outcome)], n);
        }
    }
    page.family(
        "qvpn_kme_keys_lost_total",
        "counter",
        "Keys that may be spent at the KME and never came, since the answer was lost or refused.",
    );
    for kme in i.kmes.iter().filter(|kme| counts.contains_key(&kme.name)) {
        page.count(&[("interface", &i.name), ("kme", &kme.name)], of(kme).keys_lost);
    }
    page.family("qvpn_kme_request_duration_seconds", "histogram", "How long operations at the KME took.");
    for kme in &i.kmes {
        for (op, histogram) in of(kme).durations {
            page.histogram(&[("interface", &i.name), ("kme", &kme.name), ("op", op)], &histogram);
        }
    }
}

fn peer_gauges(page: &mut Page, i: &InterfaceStatus, runtimes: &[&PeerRuntime], now: Time) {
    page.family("qvpn_peer_state", "gauge", "1 for the state that the peer is in, 0 for the others.");
    for peer in &i.peers {
        for state in PeerState::ALL {
            let value = f64::from(u8::from(peer.state == state));
            page.sample(
                "",
                &[("interface", &i.name), ("peer", &peer.name), ("state", state.as_str())],
                value,
            );
        }
    }
    type Gauge = fn(&PeerStatus) -> Option<f64>;
    let gauges: [(&str, &str, Gauge); 5] = [
        ("qvpn_peer_epoch_age_seconds", "Since the key that we send under was made.", |p| p.epoch_age_s),
        ("qvpn_peer_qkd_stock_keys", "QKD keys that both sites hold ahead.", |p| p.qkd_stock.map(as_f64)),
        ("qvpn_peer_qkd_stock_lasts_seconds", "How long they last at the agreed rekey interval.", |p| {
            p.qkd_stock_lasts_s
        }),
        ("qvpn_peer_handshake_age_seconds", "Since the last handshake of the control session.", |p| {
            p.control_handshake_ago_s
        }),
        (
            "qvpn_peer_last_receive_age_seconds",
            "Since the last authenticated packet of the peer, control or data.",
            |p| p.last_received_ago_s,
        ),
    ];
    for (name, help, value) in gauges {
        page.family(name, "gauge", help);
        for peer in &i.peers {
            if let Some(value) = value(peer) {
                page.sample("", &[("interface", &i.name), ("peer", &peer.name)], value);
            }
        }
    }
    page.family(
        "qvpn_peer_qkd_key_age_seconds",
        "gauge",
        "Since a QKD key last went into the peer's traffic keys.",
    );
    for runtime in runtimes {
        if let Some(age) = runtime.view(now).qkd_key_age {
            let peer = &runtime.settings().config.name;
            page.sample("", &[("interface", &i.name), ("peer", peer)], age.as_secs_f64());
        }
    }
}

fn peer_counters(page: &mut Page, i: &InterfaceStatus, runtimes: &[&PeerRuntime]) {
    page.family(
        "qvpn_peer_rekeys_total",
        "counter",
        "Epochs that came into force, by what their keys are made of.",
    );
    for runtime in runtimes {
        for (sources, n) in runtime.rekeys() {
            let sources = sources_text(&translate::sources(*sources));
            let peer = &runtime.settings().config.name;
            page.count(&[("interface", &i.name), ("peer", peer), ("sources", &sources)], *n);
        }
    }
    page.family(
        "qvpn_identity_duplicate_total",
        "counter",
        "How often two gateways were seen that use the peer's key.",
    );
    for runtime in runtimes {
        let peer = &runtime.settings().config.name;
        page.count(&[("interface", &i.name), ("peer", peer)], runtime.duplicates());
    }
    page.family("qvpn_peer_rekey_failures_total", "counter", "Attempts for an epoch that failed, by reason.");
    for peer in &i.peers {
        let mut all: BTreeMap<&str, u64> = FAILURE_REASONS.iter().map(|reason| (*reason, 0)).collect();
        all.extend(peer.rekey_failures.iter().map(|(reason, n)| (reason.as_str(), *n)));
        for (reason, n) in all {
            page.count(&[("interface", &i.name), ("peer", &peer.name), ("reason", reason)], n);
        }
    }
    type Total = fn(&PeerStatus) -> Option<u64>;
    let totals: [(&str, &str, Total); 4] = [
        ("qvpn_peer_receive_bytes_total", "Inner bytes received.", |p| p.rx_bytes),
        ("qvpn_peer_receive_packets_total", "Inner packets received.", |p| p.rx_packets),
        ("qvpn_peer_transmit_bytes_total", "Inner bytes sent.", |p| p.tx_bytes),
        ("qvpn_peer_transmit_packets_total", "Inner packets sent.", |p| p.tx_packets),
    ];
    for (name, help, value) in totals {
        page.family(name, "counter", help);
        for peer in &i.peers {
            if let Some(n) = value(peer) {
                page.count(&[("interface", &i.name), ("peer", &peer.name)], n);
            }
        }
    }
    page.family("qvpn_peer_drops_total", "counter", "Packets of the peer that were dropped, by reason.");
    for peer in &i.peers {
        for (reason, n) in &peer.drops {
            page.count(&[("interface", &i.name), ("peer", &peer.name), ("reason", reason)], *n);
        }
    }
}

/// Converts exactly below 2⁵³, like every value in Prometheus.
fn as_f64(n: u64) -> f64 {
    #[allow(clippy::cast_precision_loss)] // said above
    let n = n as f64;
    n
}

/// The text of the page.
#[derive(Default)]
struct Page {
    text: String,
    /// The family whose samples follow.
    name: &'static str,
}

impl Page {
    fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.name = name;
        self.add(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    fn count(&mut self, labels: &[(&str, &str)], n: u64) {
        // Written as a whole number, since a float would be rounded above 2⁵³.
        self.labelled("", labels);
        self.add(format_args!(" {n}\n"));
    }

    fn sample(&mut self, suffix: &str, labels: &[(&str, &str)], value: f64) {
        self.labelled(suffix, labels);
        self.add(format_args!(" {value}\n"));
    }

    fn histogram(&mut self, labels: &[(&str, &str)], histogram: &Histogram) {
        let mut below = 0;
        for (bound, n) in
            BOUNDS.iter().map(ToString::to_string).chain(["+Inf".to_owned()]).zip(histogram.buckets())
        {
            below += n;
            let labels: Vec<_> = labels.iter().copied().chain([("le", bound.as_str())]).collect();
            self.labelled("_bucket", &labels);
            self.add(format_args!(" {below}\n"));
        }
        self.sample("_sum", labels, histogram.sum_seconds());
        self.labelled("_count", labels);
        self.add(format_args!(" {below}\n"));
    }

    fn labelled(&mut self, suffix: &str, labels: &[(&str, &str)]) {
        self.text.push_str(self.name);
        self.text.push_str(suffix);
        for (i, (label, value)) in labels.iter().enumerate() {
            let before = if i == 0 { '{' } else { ',' };
            self.add(format_args!("{before}{label}=\""));
            for c in value.chars() {
                match c {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    c => self.text.push(c),
                }
            }
            self.text.push('"');
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
    }

    fn add(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing into a string can't fail.
        let _ = self.text.write_fmt(text);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_histogram_counts_up_to_each_bound() {
        let mut histogram = Histogram::default();
        for ms in [5, 6, 300, 300, 60_000] {
            histogram.observe(Duration::from_millis(ms));
        }
        let mut page = Page { name: "x", ..Page::default() };
        page.histogram(&[("kme", "a\"b\\c\nd")], &histogram);
        let value =
            |part: &str| page.text.lines().find(|l| l.contains(part)).unwrap().rsplit_once(' ').unwrap().1;
        assert_eq!(value("le=\"0.005\""), "1");
        assert_eq!(value("le=\"0.01\""), "2");
        assert_eq!(value("le=\"0.25\""), "2");
        assert_eq!(value("le=\"0.5\""), "4");
        assert_eq!(value("le=\"10\""), "4");
        assert_eq!(value("le=\"+Inf\""), "5");
        assert_eq!(value("x_count"), "5");
        assert_eq!(value("x_sum"), "60.611");
        assert!(page.text.contains(r#"x_sum{kme="a\"b\\c\nd"} "#), "{}", page.text);
    }

    #[test]
    fn counters_above_2_to_the_53_stay_exact() {
        let mut page = Page { name: "x", ..Page::default() };
        page.count(&[], u64::MAX);
        assert_eq!(page.text, "x 18446744073709551615\n");
    }
}
