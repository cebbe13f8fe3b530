//! The report: a table in Markdown, ratios round by round, and the required values.

use std::collections::BTreeMap;
use std::fmt::Write;

use benches::stats::Spread;
use serde_json::{Value, json};

use crate::rows::Row;

/// One measured quantity.
pub struct Metric {
    /// Its name in the data.
    pub id: &'static str,
    /// Its name for people.
    pub title: &'static str,
    /// Digits after the point.
    pub digits: usize,
}

const fn metric(id: &'static str, title: &'static str, digits: usize) -> Metric {
    Metric { id, title, digits }
}

/// All metrics, in the order of the table.
pub const METRICS: &[Metric] = &[
    metric("tcp1_ab", "1 TCP flow A→B, Gb/s", 2),
    metric("tcp1_ba", "1 TCP flow B→A, Gb/s", 2),
    metric("tcp4_ab", "4 TCP flows A→B, Gb/s", 2),
    metric("tcp4_ba", "4 TCP flows B→A, Gb/s", 2),
    metric("tcp50_ab", "50 TCP flows A→B, Gb/s", 2),
    metric("tcp50_ba", "50 TCP flows B→A, Gb/s", 2),
    metric("udp64", "UDP 64 B, 1000 packets/s", 1),
    metric("udpimix", "UDP IMIX, 1000 packets/s", 1),
    metric("udp1400", "UDP 1400 B, 1000 packets/s", 1),
    metric("rtt_idle_p50", "round trip idle, median, µs", 0),
    metric("rtt_idle_p99", "round trip idle, p99, µs", 0),
    metric("rtt_load_p50", "round trip under 1 TCP flow, median, µs", 0),
    metric("rtt_load_p99", "round trip under 1 TCP flow, p99, µs", 0),
    metric("cpu", "CPU of both gateways, s/Gb", 3),
    metric("memory", "peak memory of a gateway, MB", 1),
    metric("rekey", "1 TCP flow A→B beside the rekey rows, Gb/s", 2),
    metric("protect", "1 TCP flow A→B beside the row of protected prefixes, Gb/s", 2),
    metric("flood_ours", "1 TCP flow A→B, 100,000 forged starts a second at B, Gb/s", 2),
    metric("flood_nft", "the same, the flood dropped by nft, Gb/s", 2),
    metric("flood_replay_ours", "1 TCP flow A→B, 100,000 replays a second at B, Gb/s", 2),
    metric("flood_replay_nft", "the same, dropped by nft, Gb/s", 2),
    metric("flood_data_ours", "1 TCP flow A→B, 100,000 data packets of no session a second at B, Gb/s", 2),
    metric("flood_data_nft", "the same, dropped by nft, Gb/s", 2),
    metric("flood_session_ours", "1 TCP flow A→B, 100,000 forged control packets a second at B, Gb/s", 2),
    metric("flood_session_nft", "the same, dropped by nft, Gb/s", 2),
];

/// The VPN that ratios refer to.
pub const REFERENCE: &str = "wireguard-go";

/// The VPNs among which "best peer" is chosen.
const PEERS: [&str; 3] = ["wireguard-go", "boringtun", "gotatun"];

/// All results: a number for each metric, VPN and round; NaN if the measurement failed.
#[derive(Default)]
pub struct Results {
    numbers: BTreeMap<&'static str, BTreeMap<&'static str, Vec<f64>>>,
    /// Notes beside the numbers.
    pub notes: Vec<String>,
}

/// One requirement.
struct Goal {
    figure: &'static str,
    metrics: &'static [&'static str],
    ours: &'static str,
    against: Against,
    /// The bound and the aim; `None` if the value is only reported.
    bound: Option<(f64, f64)>,
    /// Whether a higher number is better.
    more: bool,
}

enum Against {
    Vpn(&'static str),
    BestPeer,
    /// A fixed number in the unit of the metric.
    Absolute,
    /// The same VPN in another metric, and the name of that metric.
    Metric(&'static str, &'static str),
}

const TCP1: &[&str] = &["tcp1_ab", "tcp1_ba"];

const fn goal(
    figure: &'static str,
    metrics: &'static [&'static str],
    ours: &'static str,
    against: Against,
    bound: Option<(f64, f64)>,
    more: bool,
) -> Goal {
    Goal { figure, metrics, ours, against, bound, more }
}

const GOALS: &[Goal] = &[
    goal(
        "1 TCP flow, ChaCha20-Poly1305",
        TCP1,
        "qvpn-chacha",
        Against::Vpn(REFERENCE),
        Some((1.6, 2.0)),
        true,
    ),
    goal("1 TCP flow, AES-256-GCM", TCP1, "qvpn-aes", Against::Vpn(REFERENCE), Some((2.1, 2.7)), true),
    goal(
        "4 TCP flows, ChaCha20-Poly1305",
        &["tcp4_ab", "tcp4_ba"],
        "qvpn-chacha",
        Against::Vpn(REFERENCE),
        Some((1.6, 2.0)),
        true,
    ),
    goal(
        "50 TCP flows, ChaCha20-Poly1305",
        &["tcp50_ab", "tcp50_ba"],
        "qvpn-chacha",
        Against::Vpn(REFERENCE),
        Some((1.6, 2.0)),
        true,
    ),
    goal("1 TCP flow, ChaCha20-Poly1305", TCP1, "qvpn-chacha", Against::Vpn("null-cipher"), None, true),
    goal("1 TCP flow, AES-256-GCM", TCP1, "qvpn-aes", Against::Vpn("null-cipher"), None, true),
    goal("1 TCP flow, null cipher", TCP1, "null-cipher", Against::Vpn("plain"), None, true),
    goal("64 B UDP packets/s", &["udp64"], "qvpn-chacha", Against::BestPeer, Some((1.5, 1.5)), true),
    goal("64 B UDP packets/s, AES-256-GCM", &["udp64"], "qvpn-aes", Against::BestPeer, None, true),
    goal("IMIX UDP packets/s", &["udpimix"], "qvpn-chacha", Against::BestPeer, None, true),
    goal("1400 B UDP packets/s", &["udp1400"], "qvpn-chacha", Against::BestPeer, None, true),
    goal(
        "p99 round trip under load",
        &["rtt_load_p99"],
        "qvpn-chacha",
        Against::BestPeer,
        Some((0.7, 0.7)),
        false,
    ),
    goal("CPU for a Gb", &["cpu"], "qvpn-chacha", Against::Vpn(REFERENCE), None, false),
    goal("peak memory", &["memory"], "qvpn-chacha", Against::Vpn(REFERENCE), Some((0.1, 0.1)), false),
    goal("peak memory, MB", &["memory"], "qvpn-chacha", Against::Absolute, Some((40.0, 40.0)), false),
];

/// Rows in which qvpn is compared with itself.
const OWN_GOALS: &[Goal] = &[
    goal(
        "1 TCP flow under forged handshake starts",
        &["flood_ours"],
        "qvpn-chacha",
        Against::Metric("flood_nft", "dropped by nft"),
        Some((0.9, 0.9)),
        true,
    ),
    goal(
        "1 TCP flow under replays",
        &["flood_replay_ours"],
        "qvpn-chacha",
        Against::Metric("flood_replay_nft", "dropped by nft"),
        Some((0.9, 0.9)),
        true,
    ),
    goal(
        "1 TCP flow under data packets of no session",
        &["flood_data_ours"],
        "qvpn-chacha",
        Against::Metric("flood_data_nft", "dropped by nft"),
        Some((0.9, 0.9)),
        true,
    ),
    goal(
        "1 TCP flow under forged control packets",
        &["flood_session_ours"],
        "qvpn-chacha",
        Against::Metric("flood_session_nft", "dropped by nft"),
        Some((0.9, 0.9)),
        true,
    ),
    goal(
        "10 rekeys a second, lanes alone",
        &["rekey"],
        "lanes-10rk",
        Against::Vpn("lanes"),
        Some((0.98, 0.98)),
        true,
    ),
    goal(
        "10 rekeys a second, daemons and KMEs on these cores",
        &["rekey"],
        "qvpn-10rk",
        Against::Vpn("qvpn-chacha"),
        Some((0.98, 0.98)),
        true,
    ),
    goal(
        "1 TCP flow with 10,000 protected prefixes",
        &["protect"],
        "qvpn-10kpfx",
        Against::Vpn("qvpn-chacha"),
        Some((0.98, 0.98)),
        true,
    ),
];

/// A ratio in the plot.
pub struct Bar {
    /// The two values of the ratio.
    pub label: String,
    /// The ratio.
    pub spread: Spread,
    /// The required value.
    pub bound: Option<f64>,
}

impl Results {
    /// Parses the output of [`json`](Self::json), without the numbers of `rows`, which are measured again.
    #[must_use]
    pub fn read(json: &Value, rows: &[Row]) -> Self {
        let mut results = Self::default();
        for metric in METRICS.iter().filter(|metric| !rows.iter().any(|row| row.gives(metric.id))) {
            for vpn in crate::vpn::ALL {
                for number in json["numbers"][metric.id][vpn.name].as_array().into_iter().flatten() {
                    // JSON has no NaN, so a failed round is null.
                    results.push(metric.id, vpn.name, number.as_f64().unwrap_or(f64::NAN));
                }
            }
        }
        results.notes = json["notes"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|n| n.as_str().map(str::to_owned))
            .collect();
        results
    }

    /// Adds a round's number.
    pub fn push(&mut self, metric: &'static str, vpn: &'static str, number: f64) {
        self.numbers.entry(metric).or_default().entry(vpn).or_default().push(number);
    }

    fn of(&self, metric: &str, vpn: &str) -> Option<&Vec<f64>> {
        self.numbers.get(metric)?.get(vpn)
    }

    /// Returns the number of the last round, from which a search may begin.
    pub fn last(&self, metric: &str, vpn: &str) -> Option<f64> {
        self.of(metric, vpn)?.last().copied().filter(|n| n.is_finite() && *n > 0.0)
    }

    /// Returns all numbers of several metrics, one metric after the other.
    fn joined(&self, metrics: &[&str], vpn: &str) -> Vec<f64> {
        metrics.iter().filter_map(|metric| self.of(metric, vpn)).flatten().copied().collect()
    }

    fn best_peer(&self, metrics: &[&str], more: bool) -> Option<&'static str> {
        let median = |peer: &&str| Spread::of(&self.joined(metrics, peer)).map(|s| s.median);
        let rated = PEERS.into_iter().filter_map(|peer| Some((peer, median(&peer)?)));
        let best = rated.reduce(|a, b| if (b.1 > a.1) == more { b } else { a });
        best.map(|b| b.0)
    }

    fn judge(&self, goal: &Goal) -> Option<(String, Spread)> {
        let ours = self.joined(goal.metrics, goal.ours);
        let against = match goal.against {
            Against::Vpn(name) => name,
            Against::BestPeer => self.best_peer(goal.metrics, goal.more)?,
            Against::Absolute => return Some(("—".to_owned(), Spread::of(&ours)?)),
            Against::Metric(metric, words) => {
                let theirs = self.joined(&[metric], goal.ours);
                return Some((words.to_owned(), Spread::of_ratios(&ours, &theirs)?));
            }
        };
        Some((against.to_owned(), Spread::of_ratios(&ours, &self.joined(goal.metrics, against))?))
    }

    /// Returns the report in Markdown.
    #[must_use]
    pub fn markdown(&self, head: &str) -> String {
        let mut text = format!("{head}\n");
        self.absolute(&mut text);
        self.ratios(&mut text);
        self.goals(&mut text);
        if !self.notes.is_empty() {
            text += "\n### Notes\n\n";
            for note in &self.notes {
                let _ = writeln!(text, "- {}", note.replace('\n', " "));
            }
        }
        text
    }

    fn vpns(&self, metrics: impl Fn(&str) -> bool) -> Vec<&'static str> {
        let present =
            |name: &str| self.numbers.iter().any(|(metric, of)| metrics(metric) && of.contains_key(name));
        crate::vpn::ALL.iter().map(|vpn| vpn.name).filter(|name| present(name)).collect()
    }

    fn table(&self, text: &mut String, vpns: &[&str], cell: impl Fn(&Metric, &str) -> Option<String>) {
        let _ = writeln!(text, "| | {} |\n|---|{}", vpns.join(" | "), "---:|".repeat(vpns.len()));
        for metric in METRICS.iter().filter(|metric| self.numbers.contains_key(metric.id)) {
            let cells: Vec<String> =
                vpns.iter().map(|vpn| cell(metric, vpn).unwrap_or_else(|| "—".to_owned())).collect();
            if cells.iter().any(|cell| cell != "—") {
                let _ = writeln!(text, "| {} | {} |", metric.title, cells.join(" | "));
            }
        }
    }

    fn absolute(&self, text: &mut String) {
        text.push_str("\n### Measured: median (min–max)\n\n");
        self.table(text, &self.vpns(|_| true), |metric, vpn| {
            let spread = Spread::of(self.of(metric.id, vpn)?)?;
            Some(shown(spread, metric.digits))
        });
    }

    fn ratios(&self, text: &mut String) {
        let vpns =
            self.vpns(|metric| metric != "rekey" && metric != "protect" && !metric.starts_with("flood"));
        if !vpns.contains(&REFERENCE) {
            return;
        }
        let _ = write!(text, "\n### Ratios to {REFERENCE}, round by round: median (min–max)\n\n");
        let others: Vec<&str> = vpns.into_iter().filter(|vpn| *vpn != REFERENCE).collect();
        self.table(text, &others, |metric, vpn| {
            let spread = Spread::of_ratios(self.of(metric.id, vpn)?, self.of(metric.id, REFERENCE)?)?;
            Some(shown(spread, 2))
        });
    }

    fn goals(&self, text: &mut String) {
        let judged: Vec<(&Goal, (String, Spread))> =
            GOALS.iter().chain(OWN_GOALS).filter_map(|goal| Some((goal, self.judge(goal)?))).collect();
        if judged.is_empty() {
            return;
        }
        text.push_str(
            "\n### What must be reached\n\n| figure | against | at least (aim) | median (min–max) | |\n",
        );
        text.push_str("|---|---|---:|---:|---|\n");
        for (goal, (against, spread)) in judged {
            let (wanted, verdict) = match goal.bound {
                None => ("reported".to_owned(), String::new()),
                Some((bound, aim)) => {
                    let word = if goal.more { "" } else { "at most " };
                    let aim_text =
                        if (aim - bound).abs() < 1e-9 { String::new() } else { format!(" ({aim})") };
                    (
                        format!("{word}{bound}{aim_text}"),
                        verdict(spread.median, bound, aim, goal.more).to_owned(),
                    )
                }
            };
            let _ = writeln!(
                text,
                "| {} | {against} | {wanted} | {} | {verdict} |",
                goal.figure,
                shown(spread, 2)
            );
        }
    }

    /// Returns the ratios for the plot.
    #[must_use]
    pub fn bars(&self) -> Vec<Bar> {
        let bar = |goal: &Goal| {
            let (against, spread) = self.judge(goal)?;
            let relative = !matches!(goal.against, Against::Absolute);
            relative.then(|| Bar {
                label: format!("{}: {} / {against}", goal.figure, goal.ours),
                spread,
                bound: goal.bound.map(|b| b.0),
            })
        };
        GOALS.iter().chain(OWN_GOALS).filter_map(bar).collect()
    }

    /// Returns all numbers as JSON, for other programs.
    #[must_use]
    pub fn json(&self, head: &str) -> Value {
        json!({ "head": head, "numbers": self.numbers, "notes": self.notes })
    }
}

fn shown(spread: Spread, digits: usize) -> String {
    format!("{:.digits$} ({:.digits$}–{:.digits$})", spread.median, spread.min, spread.max)
}

fn verdict(median: f64, bound: f64, aim: f64, more: bool) -> &'static str {
    let reached = |goal: f64| if more { median >= goal } else { median <= goal };
    if !reached(bound) {
        "**not reached**"
    } else if (aim - bound).abs() > 1e-9 && reached(aim) {
        "aim reached"
    } else {
        "reached"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_the_medians() {
        assert_eq!(verdict(1.5, 1.6, 2.0, true), "**not reached**");
        assert_eq!(verdict(1.6, 1.6, 2.0, true), "reached");
        assert_eq!(verdict(2.1, 1.6, 2.0, true), "aim reached");
        assert_eq!(verdict(0.8, 0.7, 0.7, false), "**not reached**");
        assert_eq!(verdict(0.6, 0.7, 0.7, false), "reached");
    }

    #[test]
    fn the_best_peer_is_best_in_that_metric() {
        let mut results = Results::default();
        for (peer, rate, delay) in [("wireguard-go", 3.0, 50.0), ("boringtun", 1.0, 20.0)] {
            results.push("udp64", peer, rate);
            results.push("rtt_load_p99", peer, delay);
        }
        assert_eq!(results.best_peer(&["udp64"], true), Some("wireguard-go"));
        assert_eq!(results.best_peer(&["rtt_load_p99"], false), Some("boringtun"));
    }

    #[test]
    fn the_report_has_ratios_of_the_same_round_and_leaves_failures_out() {
        let mut results = Results::default();
        for (ours, theirs) in [(4.0, 2.0), (f64::NAN, 2.0), (6.0, 2.0)] {
            results.push("tcp1_ab", "qvpn-chacha", ours);
            results.push("tcp1_ab", REFERENCE, theirs);
        }
        let text = results.markdown("# head");
        assert!(text.contains("| 1 TCP flow A→B, Gb/s | 2.00 (2.00–2.00) | 5.00 (4.00–6.00) |"), "{text}");
        assert!(text.contains("| 1 TCP flow A→B, Gb/s | 2.50 (2.00–3.00) |"), "{text}");
        assert!(
            text.contains(
                "| 1 TCP flow, ChaCha20-Poly1305 | wireguard-go | 1.6 (2) | 2.50 (2.00–3.00) | aim reached |"
            ),
            "{text}"
        );
        assert_eq!(results.bars().len(), 1);
    }

    #[test]
    fn written_numbers_are_read_again_except_remeasured_rows() {
        let mut results = Results::default();
        for (metric, number) in [("tcp1_ab", 4.0), ("cpu", 0.3), ("tcp1_ab", f64::NAN), ("udp64", 9.0)] {
            results.push(metric, "qvpn-chacha", number);
        }
        results.notes.push("a note".to_owned());
        let json = results.json("head");
        let all = Results::read(&json, &[]);
        assert_eq!((all.json("head"), all.notes.len()), (json.clone(), 1));
        let some = Results::read(&json, &[Row::Tcp1]);
        assert_eq!(some.of("tcp1_ab", "qvpn-chacha"), None);
        assert_eq!(some.of("cpu", "qvpn-chacha"), None);
        assert_eq!(some.of("udp64", "qvpn-chacha"), Some(&vec![9.0]));
    }

    #[test]
    fn a_row_against_the_same_vpn_takes_its_other_metric() {
        let mut results = Results::default();
        results.push("flood_ours", "qvpn-chacha", 3.0);
        results.push("flood_nft", "qvpn-chacha", 4.0);
        let text = results.markdown("# head");
        assert!(text.contains("| dropped by nft | 0.9 | 0.75 (0.75–0.75) | **not reached** |"), "{text}");
    }
}
