//! Computes the results from the record, and checks them: which datagrams were lost, and whether each loss is
//! explained.

use std::collections::{BTreeMap, HashSet};
use std::process::Command;

use serde::Serialize;
use serde_json::Value;

use crate::story::{Event, Plan, Record, SCALE};

/// The largest difference between the time of an event and that of the last or first packet that passed: both
/// gateways report a block by their own timers, and events have milliseconds.
pub const TOLERANCE_S: f64 = 0.1;

/// The results of the trial, for the page and for programs.
#[derive(Debug, Serialize)]
pub struct Facts {
    pub passed: bool,
    pub checks: Vec<Check>,
    pub date: String,
    pub version: String,
    pub system: String,
    pub short: bool,
    pub seconds: f64,
    pub simulated_hours: f64,
    pub rekeys: u64,
    /// Epochs that both gateways reported, and those among them with a QKD key.
    pub epochs: u64,
    pub epochs_with_qkd: u64,
    pub qkd_keys_used_twice: u64,
    pub epochs_whose_ends_differ: u64,
    pub video: VideoFacts,
    pub bulk_bytes: u64,
    pub bulk_bytes_wrong: u64,
    pub probes: ProbeFacts,
    pub tunnel_packets_on_wan: u64,
    pub packets_in_clear_on_wan: u64,
    pub attacks: Vec<Attack>,
}

/// The video's results, both directions together.
#[derive(Debug, Serialize)]
pub struct VideoFacts {
    pub sent: u64,
    pub arrived: u64,
    pub lost_while_blocked: u64,
    /// Outside the expected block.
    pub lost_otherwise: u64,
    /// Of those, dropped by full queues of the kernel, by its own counters.
    pub dropped_by_full_queues: u64,
    pub unexplained: u64,
    pub arrived_while_both_blocked: u64,
    pub doubled: u64,
    pub reordered: u64,
}

/// The results of the round-trip probes.
#[derive(Debug, Serialize)]
pub struct ProbeFacts {
    pub sent: u64,
    pub lost_while_blocked: u64,
    pub lost_otherwise: u64,
    pub median_ms: f64,
    pub p99_ms: f64,
}

/// One attack. `_after_s` counts real seconds from its beginning, `_back_after_s` from its end.
#[derive(Debug, Clone, Serialize)]
pub struct Attack {
    pub begins_s: f64,
    pub lasts_s: f64,
    pub qber_before: f64,
    pub qber_during: f64,
    pub supply_before_bits_per_s: f64,
    pub supply_during_bits_per_s: f64,
    pub store_empty_after_s: Option<f64>,
    /// At the gateway that fetches the keys.
    pub alarm_after_s: Option<f64>,
    pub alarm_says: String,
    pub last_rekey_after_s: f64,
    pub blocked_after_s: Option<f64>,
    pub blocked_says: Option<String>,
    pub keys_back_after_s: f64,
    pub recovered_back_after_s: Option<f64>,
    /// When the first datagram of the video that was sent after the block arrived, counted from the attack's
    /// end.
    pub traffic_back_after_s: Option<f64>,
    pub datagrams_lost: u64,
}

/// A condition that must hold, as text with its numbers.
#[derive(Debug, Serialize)]
pub struct Check {
    pub ok: bool,
    pub text: String,
}

/// The block of the second attack: from the first gateway's `peer.blocked` to the last one's
/// `peer.recovered`, with the tolerance; and the part of it in which both were blocked.
pub struct Block {
    pub outer: (f64, f64),
    pub inner: (f64, f64),
}

fn of_kind<'a>(record: &'a Record, kind: &'a str, from: f64, to: f64) -> impl Iterator<Item = &'a Event> {
    record.events.iter().flatten().filter(move |e| e.kind == kind && e.at >= from && e.at <= to)
}

fn least(times: impl Iterator<Item = f64>) -> Option<f64> {
    times.min_by(f64::total_cmp)
}

fn most(times: impl Iterator<Item = f64>) -> Option<f64> {
    times.max_by(f64::total_cmp)
}

/// Returns the block after the second attack began; `None` if there was none.
pub fn block(record: &Record) -> Option<Block> {
    let from = record.attacks[1].0;
    let at = |kind| of_kind(record, kind, from, record.ended).map(|e| e.at).collect::<Vec<f64>>();
    let (blocked, recovered) = (at("peer.blocked"), at("peer.recovered"));
    let outer = (least(blocked.iter().copied())?, most(recovered.iter().copied())?);
    let inner = (most(blocked.into_iter())?, least(recovered.into_iter())?);
    Some(Block { outer: (outer.0 - TOLERANCE_S, outer.1 + TOLERANCE_S), inner })
}

/// Evaluates the record.
pub fn judge(plan: &Plan, record: &Record) -> Facts {
    let block = block(record);
    let video = video_facts(record, block.as_ref());
    let probes = probe_facts(record, block.as_ref());
    let epochs = Epochs::of(record);
    let samples = &record.samples;
    let rekeys = samples.last().map_or(0, |last| last.ends[0].rekeys)
        - samples.first().map_or(0, |s| s.ends[0].rekeys);
    let attacks: Vec<Attack> = (0..2).map(|number| attack(record, number)).collect();
    let mut checks =
        vec![check(rekeys >= plan.rekeys, format!("{rekeys} rekeys, of at least {}", plan.rekeys))];
    checks.extend(key_checks(rekeys, &epochs));
    checks.extend(attack_checks(record, &attacks));
    checks.extend(traffic_checks(record, &video, &probes));
    Facts {
        passed: checks.iter().all(|check| check.ok),
        checks,
        date: said("date", &["-u", "+%F"]),
        version: said("git", &["rev-parse", "--short", "HEAD"]),
        system: said("uname", &["-srm"]),
        short: plan.short,
        seconds: record.ended - record.began,
        simulated_hours: (record.ended - record.began) * SCALE / 3600.0,
        rekeys,
        epochs: epochs.count,
        epochs_with_qkd: epochs.with_qkd,
        qkd_keys_used_twice: epochs.twice,
        epochs_whose_ends_differ: epochs.differ,
        video,
        bulk_bytes: record.flows.bulk.bytes,
        bulk_bytes_wrong: record.flows.bulk.wrong,
        probes,
        tunnel_packets_on_wan: record.tunnel_packets,
        packets_in_clear_on_wan: record.clear_packets,
        attacks,
    }
}

/// Whether a time is in the block of the second attack, with the tolerance.
fn is_within(block: Option<&Block>, at: f64) -> bool {
    block.is_some_and(|block| at >= block.outer.0 && at <= block.outer.1)
}

fn video_facts(record: &Record, block: Option<&Block>) -> VideoFacts {
    let mut video = VideoFacts {
        sent: 0,
        arrived: 0,
        lost_while_blocked: 0,
        lost_otherwise: 0,
        dropped_by_full_queues: 0,
        unexplained: 0,
        arrived_while_both_blocked: 0,
        doubled: 0,
        reordered: 0,
    };
    for way in &record.flows.video {
        video.doubled += way.doubled;
        video.reordered += way.reordered;
        for (sent, arrived) in &way.datagrams {
            video.sent += 1;
            match arrived {
                Some(_) => {
                    video.arrived += 1;
                    let inner =
                        |b: &Block| *sent > b.inner.0 + TOLERANCE_S && *sent < b.inner.1 - TOLERANCE_S;
                    video.arrived_while_both_blocked += u64::from(block.is_some_and(inner));
                }
                None if is_within(block, *sent) => video.lost_while_blocked += 1,
                None => video.lost_otherwise += 1,
            }
        }
    }
    video.dropped_by_full_queues = video.lost_otherwise.min(record.queue_drops);
    video.unexplained = video.lost_otherwise - video.dropped_by_full_queues;
    video
}

fn probe_facts(record: &Record, block: Option<&Block>) -> ProbeFacts {
    let mut trips: Vec<f64> = record.flows.probes.iter().filter_map(|(_, trip)| *trip).collect();
    trips.sort_by(f64::total_cmp);
    let quantile = |share: f64| trips.get((trips.len() as f64 * share) as usize).copied().unwrap_or(f64::NAN);
    let lost = |blocked: bool| {
        let lost = record
            .flows
            .probes
            .iter()
            .filter(|(at, trip)| trip.is_none() && is_within(block, *at) == blocked);
        lost.count() as u64
    };
    ProbeFacts {
        sent: record.flows.probes.len() as u64,
        lost_while_blocked: lost(true),
        lost_otherwise: lost(false),
        median_ms: quantile(0.5),
        p99_ms: quantile(0.99),
    }
}

fn key_checks(rekeys: u64, epochs: &Epochs) -> Vec<Check> {
    vec![
        check(
            epochs.count >= rekeys.saturating_sub(5) && epochs.with_qkd == epochs.count,
            format!(
                "{} epochs that both gateways reported, {} of them with a QKD key",
                epochs.count, epochs.with_qkd
            ),
        ),
        check(
            epochs.twice == 0 && epochs.differ == 0,
            format!(
                "{} QKD keys used twice, {} epochs whose key the two gateways name differently",
                epochs.twice, epochs.differ
            ),
        ),
    ]
}

fn attack_checks(record: &Record, attacks: &[Attack]) -> Vec<Check> {
    vec![
        check(
            attacks.iter().all(|a| a.qber_during > 0.11 && a.supply_during_bits_per_s == 0.0),
            format!(
                "the eavesdropper shows: the error rate rises from {:.1} % to {:.1} %, and no key comes",
                attacks[0].qber_before * 100.0,
                attacks[0].qber_during * 100.0
            ),
        ),
        check(
            attacks.iter().all(|a| a.alarm_after_s.is_some()),
            format!(
                "the alarm qkd.supply_stopped is raised, after {:.1} s and {:.1} s",
                attacks[0].alarm_after_s.unwrap_or(f64::NAN),
                attacks[1].alarm_after_s.unwrap_or(f64::NAN)
            ),
        ),
        check(
            attacks[0].blocked_after_s.is_none() && attacks[0].datagrams_lost <= record.queue_drops,
            format!(
                "the first attack is ridden out on the stock: {} datagrams lost",
                attacks[0].datagrams_lost
            ),
        ),
        check(
            attacks[1].alarm_after_s.is_some_and(|alarm| attacks[1].blocked_after_s > Some(alarm))
                && attacks[1].traffic_back_after_s.is_some(),
            "the second attack outlasts the stock: alarm first, then blocked, then traffic again by itself"
                .to_owned(),
        ),
    ]
}

fn traffic_checks(record: &Record, video: &VideoFacts, probes: &ProbeFacts) -> Vec<Check> {
    vec![
        check(
            video.unexplained == 0 && video.arrived > 0,
            format!(
                "{} of {} datagrams of the video lost: {} while blocked, {} in full queues of this machine, \
                 {} unexplained",
                video.sent - video.arrived,
                video.sent,
                video.lost_while_blocked,
                video.dropped_by_full_queues,
                video.unexplained
            ),
        ),
        check(
            video.doubled == 0 && video.reordered == 0 && video.arrived_while_both_blocked == 0,
            format!(
                "{} doubled, {} reordered, {} let through while both gateways were blocked",
                video.doubled, video.reordered, video.arrived_while_both_blocked
            ),
        ),
        check(
            probes.lost_otherwise <= record.queue_drops,
            format!("{} of {} probes lost outside the block", probes.lost_otherwise, probes.sent),
        ),
        check(
            record.flows.bulk.wrong == 0 && record.flows.bulk.bytes > 0,
            format!(
                "bulk transfer: {} bytes arrived, {} of them wrong",
                record.flows.bulk.bytes, record.flows.bulk.wrong
            ),
        ),
        check(
            record.clear_packets == 0 && record.tunnel_packets > video.arrived,
            format!(
                "{} packets in clear on the WAN, beside {} of the tunnel",
                record.clear_packets, record.tunnel_packets
            ),
        ),
    ]
}

fn check(ok: bool, text: String) -> Check {
    Check { ok, text }
}

/// Returns a program's output, or an empty string.
fn said(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).output();
    output.map_or_else(|_| String::new(), |o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
}

/// Epochs, as recorded in both gateways' events.
struct Epochs {
    count: u64,
    with_qkd: u64,
    twice: u64,
    differ: u64,
}

impl Epochs {
    fn of(record: &Record) -> Self {
        let ids = |events: &[Event]| -> BTreeMap<u64, Value> {
            let active = events
                .iter()
                .filter(|e| e.kind == "epoch.active" && e.at >= record.began && e.at <= record.ended);
            active
                .filter_map(|e| Some((e.fields["epoch"].as_u64()?, e.fields["qkd_key_id"].clone())))
                .collect()
        };
        let [a, b] = record.events.each_ref().map(|events| ids(events));
        let mut seen = HashSet::new();
        let mut epochs = Self { count: 0, with_qkd: 0, twice: 0, differ: 0 };
        for (epoch, id) in &a {
            let Some(other) = b.get(epoch) else { continue };
            epochs.count += 1;
            epochs.differ += u64::from(id != other);
            if let Some(id) = id.as_str() {
                epochs.with_qkd += 1;
                epochs.twice += u64::from(!seen.insert(id.to_owned()));
            }
        }
        epochs
    }
}

fn attack(record: &Record, number: usize) -> Attack {
    let (from, to) = record.attacks[number];
    // Until the next attack or the end.
    let end = record.attacks.get(number + 1).map_or(record.ended, |next| next.0);
    let at = |kind: &'static str, since: f64| -> Vec<f64> {
        let per_end = record.events.iter().map(move |events| {
            events.iter().find(|e| e.kind == kind && e.at >= since && e.at <= end).map(|e| e.at)
        });
        per_end.flatten().collect()
    };
    let first = |kind| least(at(kind, from).into_iter());
    let before =
        record.samples.iter().rev().find(|s| s.at < from).map(|s| s.link.clone()).unwrap_or_default();
    let during: Vec<_> = record.samples.iter().filter(|s| s.at > from && s.at < to).collect();
    let alarm = of_kind(record, "qkd.supply_stopped", from, end).next();
    let blocked = of_kind(record, "peer.blocked", from, end).next();
    let says = |event: &Event| event.fields["reason"].as_str().unwrap_or_default().to_owned();
    let recovered = most(at("peer.recovered", from).into_iter());
    let video = record.flows.video.iter();
    let lost = video
        .flat_map(|way| &way.datagrams)
        .filter(|(sent, got)| got.is_none() && *sent >= from && *sent < end);
    // The later of both directions.
    let passes = block(record).filter(|b| b.outer.0 >= from && b.outer.1 <= end).and_then(|b| {
        let ways = record.flows.video.iter().map(|way| {
            let again = way.datagrams.iter().filter(|(sent, _)| *sent > b.inner.0 + TOLERANCE_S);
            least(again.filter_map(|(_, got)| *got))
        });
        most(ways.flatten())
    });
    let resumed = at("qkd.supply_resumed", to);
    let last_rekey = of_kind(record, "epoch.active", from, resumed.iter().copied().fold(to, f64::min));
    Attack {
        begins_s: from - record.began,
        lasts_s: to - from,
        qber_before: before.qber,
        qber_during: most(during.iter().map(|s| s.link.qber)).unwrap_or(0.0),
        supply_before_bits_per_s: before.bits_per_s,
        supply_during_bits_per_s: most(during.iter().map(|s| s.link.bits_per_s)).unwrap_or(f64::NAN),
        store_empty_after_s: during.iter().find(|s| s.link.stored_keys == 0.0).map(|s| s.at - from),
        alarm_after_s: first("qkd.supply_stopped").map(|at| at - from),
        alarm_says: alarm.map(says).unwrap_or_default(),
        last_rekey_after_s: most(last_rekey.map(|e| e.at).filter(|at| *at < to)).unwrap_or(from) - from,
        blocked_after_s: first("peer.blocked").map(|at| at - from),
        blocked_says: blocked.map(says),
        keys_back_after_s: most(resumed.iter().copied()).unwrap_or(f64::NAN) - to,
        recovered_back_after_s: recovered.map(|at| at - to),
        traffic_back_after_s: passes.map(|at| at - to),
        datagrams_lost: lost.count() as u64,
    }
}

#[cfg(test)]
mod tests;
