//! Draws the facts out of the record, and judges them: which datagrams were lost, and whether the story explains each.

use std::collections::{BTreeMap, HashSet};
use std::process::Command;

use serde::Serialize;
use serde_json::Value;

use crate::story::{Event, Plan, Record, SCALE};

/// How far an event's time may be from that of the last or first packet that passed: both ends tell of a block by timers of
/// their own, and events have milliseconds.
pub const TOLERANCE_S: f64 = 0.1;

/// What the trial found, for the page and for programs.
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
    /// Epochs that both ends told of, and those among them with a QKD key.
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

/// Both directions together.
#[derive(Debug, Serialize)]
pub struct VideoFacts {
    pub sent: u64,
    pub arrived: u64,
    pub lost_while_blocked: u64,
    /// Outside the block that the story has.
    pub lost_otherwise: u64,
    /// Of those, dropped by full queues of the kernel, by its own counters.
    pub dropped_by_full_queues: u64,
    pub unexplained: u64,
    pub arrived_while_both_blocked: u64,
    pub doubled: u64,
    pub reordered: u64,
}

/// The round trip.
#[derive(Debug, Serialize)]
pub struct ProbeFacts {
    pub sent: u64,
    pub lost_while_blocked: u64,
    pub lost_otherwise: u64,
    pub median_ms: f64,
    pub p99_ms: f64,
}

/// One visit of the eavesdropper. `_after_s` counts real seconds from the beginning, `_back_after_s` from the end.
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
    /// When the first datagram of the video that was sent after the block arrived, counted from the attack's end.
    pub traffic_back_after_s: Option<f64>,
    pub datagrams_lost: u64,
}

/// Something that must be so, in words with its numbers.
#[derive(Debug, Serialize)]
pub struct Check {
    pub ok: bool,
    pub text: String,
}

/// The block of the second attack: from the first gateway's `peer.blocked` to the last one's `peer.recovered`, with the
/// tolerance; and the part of it in which both were blocked.
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

/// The block after the second attack began; `None` if there was none.
pub fn block(record: &Record) -> Option<Block> {
    let from = record.attacks[1].0;
    let at = |kind| of_kind(record, kind, from, record.ended).map(|e| e.at).collect::<Vec<f64>>();
    let (blocked, recovered) = (at("peer.blocked"), at("peer.recovered"));
    let outer = (least(blocked.iter().copied())?, most(recovered.iter().copied())?);
    let inner = (most(blocked.into_iter())?, least(recovered.into_iter())?);
    Some(Block { outer: (outer.0 - TOLERANCE_S, outer.1 + TOLERANCE_S), inner })
}

/// Judges the record.
pub fn judge(plan: &Plan, record: &Record) -> Facts {
    let block = block(record);
    let explained = |at: f64| block.as_ref().is_some_and(|b| at >= b.outer.0 && at <= b.outer.1);
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
                    video.arrived_while_both_blocked += u64::from(block.as_ref().is_some_and(inner));
                }
                None if explained(*sent) => video.lost_while_blocked += 1,
                None => video.lost_otherwise += 1,
            }
        }
    }
    video.dropped_by_full_queues = video.lost_otherwise.min(record.queue_drops);
    video.unexplained = video.lost_otherwise - video.dropped_by_full_queues;

    let mut trips: Vec<f64> = record.flows.probes.iter().filter_map(|(_, trip)| *trip).collect();
    trips.sort_by(f64::total_cmp);
    let quantile = |share: f64| trips.get((trips.len() as f64 * share) as usize).copied().unwrap_or(f64::NAN);
    let lost = |blocked: bool| {
        let lost =
            record.flows.probes.iter().filter(|(at, trip)| trip.is_none() && explained(*at) == blocked);
        lost.count() as u64
    };
    let probes = ProbeFacts {
        sent: record.flows.probes.len() as u64,
        lost_while_blocked: lost(true),
        lost_otherwise: lost(false),
        median_ms: quantile(0.5),
        p99_ms: quantile(0.99),
    };
    let epochs = Epochs::of(record);
    let samples = &record.samples;
    let rekeys = samples.last().map_or(0, |last| last.ends[0].rekeys)
        - samples.first().map_or(0, |s| s.ends[0].rekeys);
    let attacks: Vec<Attack> = (0..2).map(|number| attack(record, number)).collect();
    let checks = vec![
        check(rekeys >= plan.rekeys, format!("{rekeys} rekeys, of at least {}", plan.rekeys)),
        check(
            epochs.count >= rekeys.saturating_sub(5) && epochs.with_qkd == epochs.count,
            format!(
                "{} epochs that both gateways told of, {} of them with a QKD key",
                epochs.count, epochs.with_qkd
            ),
        ),
        check(
            epochs.twice == 0 && epochs.differ == 0,
            format!(
                "{} QKD keys used twice, {} epochs whose ends name different keys",
                epochs.twice, epochs.differ
            ),
        ),
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
        check(
            video.unexplained == 0 && video.arrived > 0,
            format!(
                "{} of {} datagrams of the video lost: {} while blocked, {} in full queues of this machine, {} unexplained",
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
    ];
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

fn check(ok: bool, text: String) -> Check {
    Check { ok, text }
}

/// What a program says, or nothing.
fn said(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).output();
    output.map_or_else(|_| String::new(), |o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
}

/// Epochs by both ends' events.
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
mod tests {
    use serde_json::json;

    use super::*;
    use crate::traffic::{Bulk, Flows, Video};
    use crate::watch::{End, Link, Sample};

    /// A story of 100 s: attacks at 10 to 20 and 40 to 60, a block from 50 to 61.
    fn record() -> Record {
        let event =
            |at: f64, kind: &str| Event { at, kind: kind.to_owned(), fields: json!({ "reason": "why" }) };
        let epoch = |n: u32| Event {
            at: f64::from(n),
            kind: "epoch.active".to_owned(),
            fields: json!({ "epoch": n, "qkd_key_id": format!("key {n}") }),
        };
        let told = |fetches: bool| {
            let mut events: Vec<Event> = (0..100).filter(|n| !(41..=61).contains(n)).map(epoch).collect();
            events.extend([event(50.0, "peer.blocked"), event(61.0, "peer.recovered")]);
            if fetches {
                events.extend([event(13.0, "qkd.supply_stopped"), event(20.5, "qkd.supply_resumed")]);
                events.extend([event(43.0, "qkd.supply_stopped"), event(60.5, "qkd.supply_resumed")]);
            }
            events
        };
        let sample = |n: u32| {
            let at = f64::from(n) + 0.5;
            let attacked = (10.0..20.0).contains(&at) || (40.0..60.0).contains(&at);
            let end = End { rekeys: n.into(), ..End::default() };
            let link = match attacked {
                true => Link { qber: 0.15, ..Link::default() },
                false => Link { qber: 0.04, bits_per_s: 1e5, stored_keys: 10.0 },
            };
            Sample { at, ends: [end.clone(), end], link }
        };
        let sent = |n: u32| f64::from(n) / 10.0 + 0.05;
        let datagrams: Vec<_> = (0..1000)
            .map(|n| (sent(n), (!(50.0..61.0).contains(&sent(n))).then(|| sent(n) + 0.001)))
            .collect();
        let video = || Video { datagrams: datagrams.clone(), doubled: 0, reordered: 0 };
        let probes = datagrams.iter().map(|(at, got)| (*at, got.map(|_| 0.5))).collect();
        Record {
            began: 0.0,
            ended: 100.0,
            attacks: [(10.0, 20.0), (40.0, 60.0)],
            samples: (0..100).map(sample).collect(),
            events: [told(true), told(false)],
            flows: Flows {
                video: [video(), video()],
                bulk: Bulk { bytes: 1000, wrong: 0, tenths: vec![(1.0, 1000)] },
                probes,
            },
            queue_drops: 0,
            tunnel_packets: 10_000,
            clear_packets: 0,
        }
    }

    const PLAN: Plan = Plan { rekeys: 99, ..Plan::SHORT };

    /// What the failed check says, and what is spoilt for it.
    type Case<'a> = (&'static str, &'a dyn Fn(&mut Record));

    fn wrong_after(spoil: impl FnOnce(&mut Record)) -> Vec<String> {
        let mut record = record();
        spoil(&mut record);
        let facts = judge(&PLAN, &record);
        let wrong: Vec<String> =
            facts.checks.into_iter().filter(|check| !check.ok).map(|check| check.text).collect();
        assert_eq!(facts.passed, wrong.is_empty());
        wrong
    }

    #[test]
    fn the_story_explains_what_was_lost_while_blocked() {
        let facts = judge(&PLAN, &record());
        let wrong: Vec<&Check> = facts.checks.iter().filter(|check| !check.ok).collect();
        // Of the rekeys those in the block are missing, as the story of this test has them.
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        assert!(wrong[0].text.contains("epochs that both gateways told of"), "{wrong:?}");
        assert_eq!((facts.video.lost_while_blocked, facts.video.unexplained), (220, 0));
        let [first, second] = &facts.attacks[..] else { panic!("two attacks") };
        assert_eq!((first.alarm_after_s, second.alarm_after_s), (Some(3.0), Some(3.0)));
        assert_eq!((first.blocked_after_s, second.blocked_after_s), (None, Some(10.0)));
        assert_eq!((first.keys_back_after_s, second.keys_back_after_s), (0.5, 0.5));
        assert_eq!(second.recovered_back_after_s, Some(1.0));
        assert!((second.traffic_back_after_s.unwrap() - 1.051).abs() < 1e-6, "{second:?}");
    }

    #[test]
    fn each_thing_that_goes_wrong_is_found() {
        let usual = wrong_after(|_| {}).len();
        let cases: [Case<'_>; 10] = [
            ("1 unexplained", &|r| r.flows.video[0].datagrams[300].1 = None),
            ("1 unexplained", &|r| r.flows.video[1].datagrams[498].1 = None),
            ("1 datagrams lost", &|r| r.flows.video[1].datagrams[150].1 = None),
            ("1 let through", &|r| r.flows.video[0].datagrams[550].1 = Some(55.1)),
            ("1 doubled", &|r| r.flows.video[0].doubled = 1),
            ("1 of them wrong", &|r| r.flows.bulk.wrong = 1),
            ("1 packets in clear", &|r| r.clear_packets = 1),
            ("probes lost outside", &|r| r.flows.probes[5].1 = None),
            ("1 QKD keys used twice", &|r| {
                for events in &mut r.events {
                    events[5].fields["qkd_key_id"] = json!("key 4");
                }
            }),
            ("1 epochs whose ends name", &|r| r.events[0][5].fields["qkd_key_id"] = json!("other")),
        ];
        for (text, spoil) in cases {
            let wrong = wrong_after(spoil);
            assert!(wrong.len() > usual && wrong.iter().any(|w| w.contains(text)), "{text}: {wrong:?}");
        }
        let no_alarm = wrong_after(|r| r.events[0].retain(|e| e.kind != "qkd.supply_stopped"));
        assert!(no_alarm.iter().any(|w| w.contains("alarm")), "{no_alarm:?}");
    }

    #[test]
    fn what_full_queues_dropped_is_told_apart() {
        let mut record = record();
        record.flows.video[0].datagrams[300].1 = None;
        record.queue_drops = 1;
        let video = judge(&PLAN, &record).video;
        assert_eq!((video.dropped_by_full_queues, video.unexplained), (1, 0));
    }
}
