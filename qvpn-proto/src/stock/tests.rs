//! Which keys may enter a stock, which may be used, and when a key is erased.

use qvpn_secret::SecretBuf;

use std::time::Duration;

use super::fault::FROM_FILE;
use super::limits::{KEY_FETCH_TIMEOUT, MAX_KEY_AGE};
use super::*;
use crate::key_schedule::qkd_check;
use crate::kms::{FetchedKey, KeyKind, KeyName, KmsFailure, KmsFailureKind};
use crate::wire::{KeyAvailability, MAX_OFFER_COST, OFFER_ROOM, StockAck, StockOffer};
use qvpn_types::{KeyId, Time};

const START: Time = Time::from_nanos(1 << 50);
const MOMENT: Duration = Duration::from_nanos(1);

fn id(text: &str) -> KeyId {
    KeyId::new(text).unwrap()
}

fn name(text: &str) -> KeyName {
    KeyName { id: id(text), source_kme: "a".to_owned(), target_kme: "b".to_owned() }
}

fn key_of(id: &str, kind: KeyKind, bytes: &[u8]) -> FetchedKey {
    FetchedKey { name: name(id), kind, secret: SecretBuf::take(&mut bytes.to_vec()) }
}

/// Returns a key whose bytes follow from its ID.
fn key(id: &str) -> FetchedKey {
    key_of(id, KeyKind::Qkd, &[id.as_bytes()[0]; 32])
}

fn right(text: &str) -> KeyAvailability {
    KeyAvailability::Yes(qkd_check(&SecretBuf::take(&mut [text.as_bytes()[0]; 32]), &id(text)))
}

fn answers(number: u64, revision: u64, keys: &[(&str, KeyAvailability)]) -> StockAck {
    StockAck { number, revision, keys: keys.iter().map(|(name, held)| (id(name), *held)).collect() }
}

/// An initiator's stock with these keys, which were offered and not answered yet.
fn master(ids: &[&str]) -> InitiatorStock {
    let mut stock = InitiatorStock::new(ids.len(), 0);
    assert_eq!(stock.fetch(START, 1), Some(ids.len()));
    assert!(stock.fetched(1, ids.iter().map(|id| key(id)).collect(), None, true, START).is_empty());
    let offer = stock.offer().expect("keys came");
    assert_eq!((offer.number, offer.keys), (1, ids.iter().map(|id| name(id)).collect()));
    assert!(stock.offer().is_none(), "told once");
    stock
}

fn usable(stock: &InitiatorStock) -> Option<&str> {
    stock.usable(KeyKind::Qkd).map(|(id, _)| id.as_str())
}

#[test]
fn an_unusable_key_never_enters_the_initiators_stock() {
    let mut stock = InitiatorStock::new(9, 0);
    assert_eq!(stock.fetch(START, 7), Some(9));
    assert_eq!(stock.fetch(START, 8), None, "one request at a time");
    let long = |n: usize, byte: u8| key_of(&"n".repeat(n), KeyKind::Qkd, &[byte; 32]);
    let mut far = key_of("far", KeyKind::Qkd, &[9; 32]);
    far.name.target_kme = "k".repeat(256);
    let keys = vec![
        key("good"),
        key_of("good", KeyKind::Qkd, &[1; 32]),
        key_of("twin", KeyKind::Qkd, &[b'g'; 32]),
        key_of("short", KeyKind::Qkd, &[2; 31]),
        far,
        key_of("file", KeyKind::File, &[5; 32]),
        long(1200, 6),
        key_of("longer", KeyKind::Qkd, &[7; 33]),
    ];
    assert!(stock.fetched(8, vec![key("x")], None, true, START).is_empty(), "of no request of ours");
    let lost = stock.fetched(7, keys, None, true, START);
    let ids: Vec<&str> = lost.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids, ["good", "twin", "short", "far", "file"]);
    let reasons = ["before", "before", "256 bits", "255 bytes", "no QKD"];
    for ((id, why), part) in lost.iter().zip(reasons) {
        assert!(why.contains(part), "{id}: {why}");
    }
    assert_eq!(stock.offer().unwrap().keys.len(), 3);
    assert!(stock.fetched(7, vec![key("x")], None, true, START).is_empty(), "answered already");
    assert!(stock.get(&id("x")).is_none());
}

#[test]
fn a_key_is_usable_once_the_responder_shows_the_same_bytes() {
    let mut stock = master(&["one", "two", "red"]);
    assert_eq!((usable(&stock), stock.count(KeyKind::Qkd)), (None, 0));
    assert!(stock.answered(&answers(2, 1, &[("one", right("one"))]), START).is_empty());
    assert_eq!(usable(&stock), None, "an answer to an offer that was never made");
    assert!(stock.answered(&answers(1, 0, &[("one", right("one"))]), START).is_empty());
    assert_eq!(usable(&stock), None, "no revision is below one");
    let says = [
        ("one", right("two")),
        ("two", right("two")),
        ("red", KeyAvailability::Pending),
        ("none", right("none")),
    ];
    let lost = stock.answered(&answers(1, 2, &says), START);
    assert!(
        lost.len() == 1 && lost[0].0.as_str() == "one" && lost[0].1.contains("different bytes"),
        "{lost:?}"
    );
    assert_eq!((usable(&stock), stock.count(KeyKind::Qkd)), (Some("two"), 1));
    assert_eq!(stock.count(KeyKind::File), 0);
    assert!(stock.get(&id("one")).is_none(), "erased");
    assert_eq!(stock.offer().unwrap().keys, [name("two"), name("red")], "and no longer offered");
    for revision in [1, 2] {
        let _ = stock
            .answered(&answers(1, revision, &[("two", KeyAvailability::Gone), ("red", right("red"))]), START);
        assert_eq!(stock.count(KeyKind::Qkd), 1, "revision {revision} after 2");
    }
    let lost =
        stock.answered(&answers(2, 3, &[("two", KeyAvailability::Gone), ("red", right("red"))]), START);
    assert_eq!((lost.len(), usable(&stock)), (1, Some("red")));
}

#[test]
fn a_key_is_named_once_and_not_after_a_refusal() {
    let mut stock = master(&["one", "two"]);
    let _ = stock.answered(&answers(1, 1, &[("one", right("one")), ("two", right("two"))]), START);
    stock.refused(&id("one"));
    assert_eq!(usable(&stock), Some("two"));
    stock.used(&id("two"));
    assert_eq!(usable(&stock), None);
    assert!(stock.get(&id("two")).is_none() && stock.get(&id("one")).is_some());
    assert_eq!(stock.offer().unwrap().keys, [name("one")]);
    stock.used(&id("two"));
    assert!(stock.offer().is_none(), "nothing changed");
    let _ = stock.answered(&answers(2, 2, &[("one", right("one"))]), START);
    assert_eq!(usable(&stock), Some("one"), "the responder says otherwise");
    stock.on_confirmation_failed(&id("one"));
    assert_eq!(usable(&stock), Some("one"), "once may be the line");
    stock.on_confirmation_failed(&id("one"));
    assert!(stock.get(&id("one")).is_none(), "twice is the key");
    let mut stock = master(&["one"]);
    let _ = stock.answered(&answers(1, 5, &[("one", right("one"))]), START);
    stock.forget_answers();
    assert_eq!(usable(&stock), None, "the peer restarted");
    assert_eq!(stock.offer().unwrap().keys, [name("one")], "and needs the whole offer");
    let lost = stock.answered(&answers(2, 1, &[("one", KeyAvailability::NotFound)]), START);
    assert!(lost.len() == 1 && lost[0].1.contains("restarted"), "{lost:?}");
}

#[test]
fn keys_of_the_initiator_expire_on_time() {
    let mut stock = master(&["one", "two"]);
    let _ =
        stock.answered(&answers(1, 1, &[("one", right("one")), ("two", KeyAvailability::NotFound)]), START);
    assert!(stock.age(START + (KEY_FETCH_TIMEOUT - MOMENT)).is_empty());
    let lost = stock.age(START + KEY_FETCH_TIMEOUT);
    assert!(lost.len() == 1 && lost[0].0.as_str() == "two" && lost[0].1.contains("120 s"), "{lost:?}");
    assert_eq!(stock.offer().unwrap().keys, [name("one")]);
    assert_eq!(stock.next_due(START + KEY_FETCH_TIMEOUT), Some(START + MAX_KEY_AGE));
    assert!(stock.age(START + (MAX_KEY_AGE - MOMENT)).is_empty());
    assert!(stock.offer().is_none());
    let lost = stock.age(START + MAX_KEY_AGE);
    assert!(lost.len() == 1 && lost[0].1.contains("an hour"), "{lost:?}");
    assert!(stock.get(&id("one")).is_none());
    assert!(stock.offer().unwrap().keys.is_empty());
}

#[test]
fn keys_that_the_responder_does_not_get_are_made_up_for_but_not_without_end() {
    let mut stock = master(&["one", "two"]);
    let overdue = START + initiator::OVERDUE_AFTER;
    assert_eq!(stock.next_due(START), Some(overdue));
    assert_eq!(stock.fetch(overdue - MOMENT, 2), None, "two are enough while they may still come");
    assert!(stock.stuck_links(overdue - MOMENT).is_empty());
    assert_eq!(stock.stuck_links(overdue), [("a".to_owned(), "b".to_owned())]);
    assert_eq!(stock.fetch(overdue, 2), Some(2));
    let keys = vec![key("red"), key("blue")];
    assert!(stock.fetched(2, keys, None, true, overdue).is_empty());
    let later = overdue + initiator::OVERDUE_AFTER;
    assert_eq!(stock.fetch(later, 3), None, "twice as many as wanted, at most");
    // Keys that the responder holds count as long as they are in the stock.
    let says = ["one", "two"].map(|id| (id, right(id)));
    let _ = stock.offer();
    assert!(stock.answered(&answers(2, 1, &says), later).is_empty());
    assert_eq!(stock.fetch(later, 3), None);
    // A reload that wants more keys takes effect. One that wants none leaves one.
    stock.set_target(4);
    assert_eq!(stock.fetch(later, 3), Some(2));
    let mut stock = InitiatorStock::new(9, 0);
    stock.set_target(0);
    assert_eq!(stock.fetch(START, 1), Some(1));
}

#[test]
fn no_more_keys_are_fetched_and_taken_than_an_offer_has_room_for() {
    let long = |n: usize| {
        let mut key = key_of(&format!("{n:01200}"), KeyKind::Qkd, &[u8::try_from(n).unwrap(); 32]);
        (key.name.source_kme, key.name.target_kme) = ("s".repeat(255), "t".repeat(255));
        key
    };
    let short = |n: usize| key_of(&n.to_string(), KeyKind::Qkd, &[u8::try_from(n).unwrap(); 32]);
    let room = OFFER_ROOM / MAX_OFFER_COST;
    let mut stock = InitiatorStock::new(100, 0);
    assert_eq!(stock.fetch(START, 1), Some(room), "names may be long");
    // The KME gives one key more than requested.
    let lost = stock.fetched(1, (0..=room).map(long).collect(), None, true, START);
    assert_eq!(lost.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), [&format!("{room:01200}")]);
    assert_eq!(stock.offer().unwrap().keys.len(), room);
    assert_eq!(stock.fetch(START + Duration::from_secs(10), 2), None);
    // A short one still fits, to the last byte.
    let mut stock = InitiatorStock::new(100, 0);
    assert_eq!(stock.fetch(START, 1), Some(room));
    let mut keys: Vec<_> = (0..room).map(long).collect();
    let left = OFFER_ROOM - room * MAX_OFFER_COST;
    let mut last = key_of("l", KeyKind::Qkd, &[99; 32]);
    last.name.source_kme = "s".repeat(255);
    last.name.id = id(&"l".repeat(left - 4 - 255 - last.name.target_kme.len()));
    keys.push(last);
    assert!(stock.fetched(1, keys, None, true, START).is_empty());
    // This KME's names are short, so a hundred keys fit.
    let mut stock = InitiatorStock::new(100, 0);
    assert_eq!(stock.fetch(START, 1), Some(room));
    assert!(stock.fetched(1, (0..room).map(short).collect(), None, true, START).is_empty());
    assert_eq!(stock.fetch(START, 2), Some(100 - room));
    let lost = stock.fetched(2, (room..=100).map(short).collect(), None, true, START);
    assert_eq!(lost.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["100"]);
}

#[test]
fn keys_from_a_file_go_where_qkd_is_required() {
    let mut stock = InitiatorStock::new(2, 0);
    let _ = stock.fetch(START, 1);
    let keys = vec![key("one"), key_of("file", KeyKind::File, &[5; 32])];
    assert!(stock.fetched(1, keys, None, false, START).is_empty());
    assert_eq!((stock.kind(&id("file")), stock.kind(&id("one"))), (Some(KeyKind::File), Some(KeyKind::Qkd)));
    let _ = stock.offer();
    let lost = stock.only_qkd();
    assert!(lost.len() == 1 && lost[0].0.as_str() == "file", "{lost:?}");
    assert_eq!(stock.offer().unwrap().keys, [name("one")]);
    assert!(stock.only_qkd().is_empty() && stock.offer().is_none());
}

#[test]
fn a_failed_fetch_is_repeated_at_growing_intervals() {
    let trouble = || KmsFailure { kind: KmsFailureKind::Unavailable, text: "no KME".to_owned() };
    let mut stock = InitiatorStock::new(1, 0);
    let mut now = START;
    for (request, wait) in [250, 500, 1000, 1000].into_iter().enumerate() {
        let request = u64::try_from(request).unwrap();
        assert_eq!(stock.fetch(now, request), Some(1));
        stock.failed(request + 1, trouble(), now);
        assert!(stock.fault().is_none() || request > 0, "of no request of ours");
        stock.failed(request, trouble(), now);
        assert_eq!(stock.fault().unwrap().text, "no KME");
        let again = now + Duration::from_millis(wait);
        assert_eq!(stock.next_due(now), Some(again));
        assert_eq!(stock.fetch(again - MOMENT, 99), None);
        now = again;
    }
    assert_eq!(stock.fetch(now, 10), Some(1));
    stock.failed(10, trouble(), now);
    stock.on_kms_recovered(now);
    assert_eq!(stock.fetch(now, 11), Some(1), "a KME answers again");
    // The KME has used up unusable keys, so the delay grows to ten seconds.
    for wait in [250, 500, 1000, 2000, 4000, 8000, 10_000, 10_000] {
        assert_eq!(stock.fetched(11, vec![key_of("bad", KeyKind::Qkd, &[1; 8])], None, true, now).len(), 1);
        let again = now + Duration::from_millis(wait);
        assert_eq!(stock.fetch(again - MOMENT, 11), None);
        assert_eq!(stock.fetch(again, 11), Some(1));
        now = again;
    }
}

/// A responder's stock that was offered these keys and fetched them.
fn slave(ids: &[&str]) -> ResponderStock {
    let mut stock = ResponderStock::new(0, START);
    assert!(!stock.lacks_offers(), "none was made");
    stock.offered(StockOffer { number: 1, keys: ids.iter().map(|id| name(id)).collect() }, START);
    assert!(!stock.lacks_offers());
    assert_eq!(stock.fetch(START, 1).unwrap().len(), ids.len());
    stock.fetched(1, ids.iter().map(|id| key(id)).collect(), None, true, START);
    assert_eq!(stock.count(KeyKind::Qkd), ids.len());
    stock
}

#[test]
fn the_responder_accepts_only_keys_that_it_requested() {
    let mut stock = ResponderStock::new(0, START);
    let ids = ["one", "two", "red", "file"];
    stock.offered(StockOffer { number: 1, keys: ids.map(name).to_vec() }, START);
    assert_eq!(stock.fetch(START, 5).unwrap(), ids.map(name));
    assert_eq!(stock.fetch(START, 6), None, "one request at a time");
    stock.fetched(6, vec![key("one")], None, true, START);
    assert!(stock.get(&id("one")).is_none(), "of no request of ours");
    let keys = vec![
        key("one"),
        key("other"),
        key_of("two", KeyKind::Qkd, &[2; 31]),
        key_of("file", KeyKind::File, &[3; 32]),
    ];
    stock.fetched(5, keys, None, true, START);
    let held: Vec<bool> =
        ["one", "other", "two", "red", "file"].map(|name| stock.get(&id(name)).is_some()).to_vec();
    assert_eq!(held, [true, false, false, false, false]);
    assert_eq!((stock.kind(&id("one")), stock.kind(&id("two"))), (Some(KeyKind::Qkd), None));
    assert_eq!((stock.count(KeyKind::Qkd), stock.count(KeyKind::File)), (1, 0));
    let ack = stock.ack().unwrap();
    let said =
        [("one", right("one")), ("two", KeyAvailability::NotFound), ("red", KeyAvailability::NotFound)];
    assert_eq!(ack.keys[..3], answers(1, 1, &said).keys);
    assert_eq!((ack.number, ack.revision, stock.ack()), (1, 1, None));
    assert_eq!(stock.next_due(START), Some(START + Duration::from_millis(200)));
    assert_eq!(stock.fetch(START + Duration::from_millis(199), 7), None);
    assert_eq!(stock.fetch(START + Duration::from_millis(200), 7).unwrap().len(), 3);
}

#[test]
fn the_responder_reports_the_fault_and_fetches_at_once_when_a_kme_answers_again() {
    let offered = || {
        let mut stock = ResponderStock::new(0, START);
        stock.offered(StockOffer { number: 1, keys: vec![name("one"), name("two")] }, START);
        assert_eq!(stock.fetch(START, 1).unwrap().len(), 2);
        stock
    };
    let later = START + Duration::from_millis(200);
    for (kind, held, hard) in [
        (KmsFailureKind::NotFound, KeyAvailability::NotFound, false),
        (KmsFailureKind::Unavailable, KeyAvailability::Unavailable, true),
    ] {
        let mut stock = offered();
        let trouble = KmsFailure { kind, text: "so it is".to_owned() };
        stock.fetched(1, vec![key("one")], Some(&trouble), true, START);
        assert_eq!(stock.fault(), Some(&SupplyFault { text: "so it is".to_owned(), hard }));
        assert_eq!(stock.ack().unwrap().keys[1], (id("two"), held));
        // A KME that answers again changes nothing for a key that it doesn't know.
        assert_eq!(stock.fetch(START + MOMENT, 2), None);
        stock.on_kms_recovered(START + MOMENT);
        assert_eq!(stock.fetch(START + MOMENT, 2).is_some(), hard, "{kind:?}");
        if !hard {
            assert_eq!(stock.fetch(later, 2).unwrap(), [name("two")]);
        }
        stock.fetched(2, vec![key("two")], None, true, later);
        assert_eq!(stock.fault(), None, "all are here");
    }
    // A source gave keys of the wrong kind only, and no other failure says why.
    let file = || key_of("one", KeyKind::File, &[5; 32]);
    let mut stock = offered();
    stock.fetched(1, vec![file(), key("two")], None, true, START);
    assert_eq!(stock.fault(), Some(&SupplyFault { text: FROM_FILE.to_owned(), hard: true }));
    let mut stock = offered();
    stock.fetched(1, vec![file()], None, false, START);
    assert_eq!(stock.fault(), None, "where a file is enough it is no trouble");
}

#[test]
fn only_the_last_offer_holds() {
    let mut stock = slave(&["one", "two"]);
    let offer = |number, ids: &[&str]| StockOffer { number, keys: ids.iter().map(|id| name(id)).collect() };
    stock.offered(offer(1, &["new"]), START);
    assert!(stock.get(&id("one")).is_some(), "that number came before");
    stock.offered(offer(3, &["two", "new"]), START);
    assert!(
        stock.get(&id("one")).is_none() && stock.get(&id("two")).is_some(),
        "what is not offered is erased"
    );
    stock.offered(offer(2, &["one"]), START);
    assert!(stock.get(&id("two")).is_some(), "an older one");
    stock.forget_offers();
    stock.offered(offer(1, &["two"]), START);
    assert!(stock.get(&id("two")).is_some());
    assert_eq!(stock.ack().unwrap().keys.len(), 1, "the peer counts from zero again");
}

#[test]
fn keys_of_the_slave_go_at_their_time_and_for_good() {
    let mut stock = slave(&["one", "two", "red", "blue"]);
    stock.used(&id("one"));
    stock.on_confirmation_failed(&id("two"));
    assert!(stock.get(&id("one")).is_none() && stock.get(&id("two")).is_some(), "once may be the line");
    stock.on_confirmation_failed(&id("two"));
    assert!(stock.get(&id("two")).is_none(), "twice is the key");
    stock.age(START + (MAX_KEY_AGE - MOMENT));
    assert_eq!(stock.count(KeyKind::Qkd), 2);
    let _ = stock.ack();
    stock.age(START + MAX_KEY_AGE);
    assert!(stock.lacks_offers());
    assert_eq!(
        stock.ack().unwrap().keys.iter().filter(|(_, held)| *held == KeyAvailability::Gone).count(),
        4
    );
    assert_eq!(stock.fetch(START + MAX_KEY_AGE, 2), None, "never fetched again");

    let mut stock = ResponderStock::new(0, START);
    stock.offered(StockOffer { number: 1, keys: vec![name("one")] }, START);
    stock.age(START + (KEY_FETCH_TIMEOUT - MOMENT));
    assert!(!stock.lacks_offers());
    stock.age(START + KEY_FETCH_TIMEOUT);
    assert!(stock.lacks_offers(), "it could not be got");

    let mut stock = ResponderStock::new(0, START);
    stock.offered(StockOffer { number: 1, keys: vec![name("one"), name("file")] }, START);
    let _ = stock.fetch(START, 1);
    stock.fetched(1, vec![key("one"), key_of("file", KeyKind::File, &[5; 32])], None, false, START);
    assert_eq!(stock.kind(&id("file")), Some(KeyKind::File));
    stock.only_qkd();
    assert!(
        stock.get(&id("file")).is_none() && stock.get(&id("one")).is_some(),
        "QKD is required from now on"
    );
}

#[test]
fn offers_make_nobody_ask_the_kme_without_end() {
    let mut stock = ResponderStock::new(0, START);
    let offer = |number: u64| {
        let keys = (0..100).map(|n| name(&format!("{number}-{n}"))).collect();
        StockOffer { number, keys }
    };
    let mut asked = |number: u64, now: Time| {
        stock.offered(offer(number), now);
        let count = stock.fetch(now, number).map_or(0, |names| names.len());
        stock.fetched(number, Vec::new(), None, true, now);
        count
    };
    assert_eq!(asked(1, START), 40, "a burst");
    assert_eq!(asked(2, START), 0);
    assert_eq!(asked(3, START + Duration::from_millis(49)), 0);
    assert_eq!(asked(4, START + Duration::from_millis(50)), 1, "and one more each 50 ms");
    assert_eq!(asked(5, START + Duration::from_millis(250)), 4);
    assert_eq!(asked(6, START + Duration::from_secs(3600)), 40, "and never more than the burst");
    // Keys that were not requested yet wait for a token, and no timer fires before one is due.
    let now = START + Duration::from_secs(3600);
    assert_eq!(stock.next_due(now), Some(now + Duration::from_millis(50)));
}
