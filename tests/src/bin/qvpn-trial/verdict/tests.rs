use serde_json::json;

use super::*;
use crate::traffic::{Bulk, Flows, Video};
use crate::watch::{End, Link, Sample};

/// Returns a record of 100 s: attacks at 10 to 20 and 40 to 60, a block from 50 to 61.
fn record() -> Record {
    let event = |at: f64, kind: &str| Event { at, kind: kind.to_owned(), fields: json!({ "reason": "why" }) };
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
    let datagrams: Vec<_> =
        (0..1000).map(|n| (sent(n), (!(50.0..61.0).contains(&sent(n))).then(|| sent(n) + 0.001))).collect();
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

/// The text of the failed check, and the change to the record that makes it fail.
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
    // The rekeys during the block are missing, as in this test's record.
    assert_eq!(wrong.len(), 1, "{wrong:?}");
    assert!(wrong[0].text.contains("epochs that both gateways reported"), "{wrong:?}");
    assert_eq!((facts.video.lost_while_blocked, facts.video.unexplained), (220, 0));
    let [first, second] = &facts.attacks[..] else { panic!("two attacks") };
    assert_eq!((first.alarm_after_s, second.alarm_after_s), (Some(3.0), Some(3.0)));
    assert_eq!((first.blocked_after_s, second.blocked_after_s), (None, Some(10.0)));
    assert_eq!((first.keys_back_after_s, second.keys_back_after_s), (0.5, 0.5));
    assert_eq!(second.recovered_back_after_s, Some(1.0));
    assert!((second.traffic_back_after_s.unwrap() - 1.051).abs() < 1e-6, "{second:?}");
}

#[test]
fn each_fault_is_found() {
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
        ("1 epochs whose key the two gateways name differently", &|r| {
            r.events[0][5].fields["qkd_key_id"] = json!("other")
        }),
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
