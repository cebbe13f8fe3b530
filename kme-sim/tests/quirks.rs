//! Servers that interpret ETSI GS QKD 014 in their own way: sizes, numbers, IDs, counts, and keys that arrive
//! late or never.
#![allow(clippy::unwrap_used)] // a failure in a helper is a failure of the test

mod common;

use std::time::Duration;

use common::{Client, Lab};
use kme_sim::faults::catalog::{Misbehaviour, Ops};
use serde_json::json;

const STATUS: &str = "/api/v1/keys/SITE-B/status";
const TO_B: &str = "/api/v1/keys/SITE-B/enc_keys";

/// Makes a lab whose kme-a1 (the master's) or kme-b1 (the slave's) has the quirk, and a client at each.
async fn with(kme: &str, op: Ops, how: Misbehaviour) -> (Lab, Client, Client) {
    let lab = Lab::start().await;
    let answer = lab.misbehave(kme, op, how).await;
    assert!(answer.ok, "{answer:?}");
    let (a, b) = (lab.client("kme-a1", "site-a").await, lab.client("kme-b1", "site-b").await);
    (lab, a, b)
}

fn ids(keys: &[(String, Vec<u8>)]) -> Vec<&str> {
    keys.iter().map(|(id, _)| id.as_str()).collect()
}

#[tokio::test]
async fn the_default_size_is_32_bits() {
    let (_lab, mut a, mut b) = with("kme-a1", Ops::All, Misbehaviour::Default32Bits).await;
    let status = a.get(STATUS).await.ok();
    assert_eq!((&status["key_size"], &status["min_key_size"]), (&json!(32), &json!(32)));
    let keys = a.get(TO_B).await.keys();
    assert_eq!(keys[0].1.len(), 4);
    assert_eq!(b.dec_keys("SITE-A", &ids(&keys)).await.keys(), keys);
    assert_eq!(a.get(&format!("{TO_B}?size=256")).await.keys()[0].1.len(), 32);
}

#[tokio::test]
async fn sizes_are_bytes() {
    let (_lab, mut a, mut b) = with("kme-a1", Ops::All, Misbehaviour::SizeInBytes).await;
    let status = a.get(STATUS).await.ok();
    assert_eq!((&status["key_size"], &status["max_key_size"]), (&json!(32), &json!(128)));
    let keys = a.post(TO_B, json!({"size": 256})).await.keys();
    assert_eq!(keys[0].1.len(), 256);
    assert_eq!(b.dec_keys("SITE-A", &ids(&keys)).await.keys(), keys);
    assert_eq!(a.get(TO_B).await.keys()[0].1.len(), 32, "the default is what it was");
}

#[tokio::test]
async fn size_is_ignored() {
    let (_lab, mut a, _) = with("kme-a1", Ops::EncKeys, Misbehaviour::IgnoreSize).await;
    assert_eq!(a.post(TO_B, json!({"size": 256})).await.keys()[0].1.len(), 16);
}

#[tokio::test]
async fn number_is_ignored_always_or_in_a_get() {
    for (how, by_post) in [(Misbehaviour::IgnoreNumber, 1), (Misbehaviour::IgnoreNumberGet, 5)] {
        let (_lab, mut a, _) = with("kme-a1", Ops::EncKeys, how).await;
        assert_eq!(a.get(&format!("{TO_B}?number=5")).await.keys().len(), 1, "{how:?}");
        assert_eq!(a.post(TO_B, json!({"number": 5})).await.keys().len(), by_post, "{how:?}");
    }
}

#[tokio::test]
async fn fewer_keys_come_than_were_asked() {
    let (lab, mut a, mut b) = with("kme-a1", Ops::All, Misbehaviour::FewerKeys).await;
    let keys = a.post(TO_B, json!({"number": 5})).await.keys();
    assert_eq!(keys.len(), 2);
    assert_eq!(lab.waiting("kme-b1").await, 2, "the others were not taken");
    assert!(lab.misbehave("kme-b1", Ops::DecKeys, Misbehaviour::FewerKeys).await.ok);
    assert_eq!(b.dec_keys("SITE-A", &ids(&keys)).await.keys(), keys[..1]);
    assert_eq!(lab.waiting("kme-b1").await, 0, "the other is spent");
    assert_eq!(a.get(TO_B).await.keys().len(), 1, "one comes always");
}

#[tokio::test]
async fn one_key_a_request_is_all_that_is_allowed() {
    let (lab, mut a, mut b) = with("kme-a1", Ops::All, Misbehaviour::OneKeyPerRequest).await;
    assert!(lab.misbehave("kme-b1", Ops::All, Misbehaviour::OneKeyPerRequest).await.ok);
    assert_eq!(a.get(STATUS).await.ok()["max_key_per_request"], 1);
    assert_eq!(a.post(TO_B, json!({"number": 2})).await.message(400), "number must be from 1 to 1");
    let keys = [a.get(TO_B).await.keys(), a.get(TO_B).await.keys()].concat();
    b.dec_keys("SITE-A", &ids(&keys)).await.message(400);
    assert_eq!(b.dec_keys("SITE-A", &ids(&keys)[..1]).await.keys(), keys[..1]);
}

#[tokio::test]
async fn ids_are_opaque() {
    let (_lab, mut a, mut b) = with("kme-a1", Ops::EncKeys, Misbehaviour::OddIds).await;
    let keys = a.post(TO_B, json!({"number": 2})).await.keys();
    assert!(keys[0].0.contains('"') && keys[0].0.contains('é') && keys[0].0.len() > 128);
    assert_eq!(b.dec_keys("SITE-A", &ids(&keys)[..1]).await.keys(), keys[..1]);
    let encoded: String = form_urlencoded::byte_serialize(keys[1].0.as_bytes()).collect();
    let path = format!("/api/v1/keys/SITE-A/dec_keys?key_ID={}", encoded.replace('+', "%20"));
    assert_eq!(b.get(&path).await.keys(), keys[1..]);
}

#[tokio::test]
async fn the_first_key_of_each_request_gets_lost() {
    let (_lab, mut a, mut b) = with("kme-a1", Ops::EncKeys, Misbehaviour::LoseFirst).await;
    let keys = a.post(TO_B, json!({"number": 3})).await.keys();
    b.dec_keys("SITE-A", &ids(&keys)).await.message(400);
    b.dec_keys("SITE-A", &ids(&keys)[..1]).await.message(400);
    assert_eq!(b.dec_keys("SITE-A", &ids(&keys)[1..]).await.keys(), keys[1..]);
}

#[tokio::test]
async fn a_second_request_forgets_the_keys_of_the_first() {
    let (_lab, mut a, mut b) = with("kme-a1", Ops::EncKeys, Misbehaviour::ForgetPrevious).await;
    let first = a.get(TO_B).await.keys();
    let other = a.get("/api/v1/keys/SITE-C/enc_keys").await.keys();
    let second = a.get(TO_B).await.keys();
    b.dec_keys("SITE-A", &ids(&first)).await.message(400);
    assert_eq!(b.dec_keys("SITE-A", &ids(&second)).await.keys(), second);
    let mut c = _lab.client("kme-c1", "site-c").await;
    assert_eq!(c.dec_keys("SITE-A", &ids(&other)).await.keys(), other, "another slave's keys stay");
}

#[tokio::test]
async fn the_same_key_comes_again_or_its_id_over_another() {
    let (lab, mut a, _) = with("kme-a1", Ops::EncKeys, Misbehaviour::RepeatKeys).await;
    let first = a.get(TO_B).await.keys();
    assert_eq!(a.post(TO_B, json!({"number": 2})).await.keys(), first);
    assert!(lab.misbehave("kme-a1", Ops::EncKeys, Misbehaviour::RepeatId).await.ok);
    let first = a.get(TO_B).await.keys();
    let second = a.post(TO_B, json!({"number": 2})).await.keys();
    assert_eq!(second[0].0, first[0].0);
    assert_ne!(second[0].1, first[0].1);
    assert_ne!(second[1].0, first[0].0);
}

#[tokio::test]
async fn a_key_comes_to_the_slave_three_seconds_late() {
    let (_lab, mut a, mut b) = with("kme-b1", Ops::DecKeys, Misbehaviour::LateSync).await;
    let start = std::time::Instant::now();
    let keys = a.get(TO_B).await.keys();
    let reply = b.dec_keys("SITE-A", &ids(&keys)).await;
    assert_eq!(reply.message(400), "one or more keys specified are not found on KME");
    let got = loop {
        let reply = b.dec_keys("SITE-A", &ids(&keys)).await;
        if reply.status == 200 {
            break reply.keys();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(start.elapsed() >= Duration::from_secs(3));
    assert_eq!(got, keys);
}

#[tokio::test]
async fn keys_that_are_asked_for_are_forgotten() {
    let (lab, mut a, mut b) = with("kme-b1", Ops::DecKeys, Misbehaviour::ForgetKeys).await;
    let keys = a.post(TO_B, json!({"number": 2})).await.keys();
    b.dec_keys("SITE-A", &ids(&keys)[..1]).await.message(400);
    assert!(lab.misbehave("kme-b1", Ops::All, Misbehaviour::None).await.ok);
    b.dec_keys("SITE-A", &ids(&keys)[..1]).await.message(400);
    assert_eq!(b.dec_keys("SITE-A", &ids(&keys)[1..]).await.keys(), keys[1..]);
}

#[tokio::test]
async fn a_key_that_was_fetched_comes_again() {
    let (lab, mut a, mut b) = with("kme-b1", Ops::DecKeys, Misbehaviour::DeliverTwice).await;
    let keys = a.get(TO_B).await.keys();
    for _ in 0..2 {
        assert_eq!(b.dec_keys("SITE-A", &ids(&keys)).await.keys(), keys);
    }
    assert!(lab.misbehave("kme-b1", Ops::All, Misbehaviour::None).await.ok);
    assert_eq!(b.dec_keys("SITE-A", &ids(&keys)).await.keys(), keys);
    b.dec_keys("SITE-A", &ids(&keys)).await.message(400);
}

#[tokio::test]
async fn keys_that_wait_for_the_slave_are_counted() {
    let (_lab, mut a, mut b) = with("kme-a1", Ops::Status, Misbehaviour::CountWaiting).await;
    assert_eq!(a.get(STATUS).await.ok()["stored_key_count"], 0);
    let keys = a.post(TO_B, json!({"number": 3})).await.keys();
    assert_eq!(a.get(STATUS).await.ok()["stored_key_count"], 3);
    b.dec_keys("SITE-A", &ids(&keys)[..1]).await.keys();
    assert_eq!(a.get(STATUS).await.ok()["stored_key_count"], 2);
}

#[tokio::test]
async fn counts_lie_and_fields_are_missing_or_of_another_type() {
    let (lab, mut a, _) = with("kme-a1", Ops::Status, Misbehaviour::CountZero).await;
    let right = json!(500);
    let status = a.get(STATUS).await.ok();
    assert_eq!(status["stored_key_count"], 0);
    a.get(TO_B).await.ok();
    for (how, count) in [(Misbehaviour::CountMax, json!(1000)), (Misbehaviour::NumbersAsText, json!("499"))] {
        assert!(lab.misbehave("kme-a1", Ops::Status, how).await.ok);
        assert_eq!(a.get(STATUS).await.ok()["stored_key_count"], count);
    }
    assert!(lab.misbehave("kme-a1", Ops::Status, Misbehaviour::CountRandom).await.ok);
    let (one, other) = (a.get(STATUS).await.ok(), a.get(STATUS).await.ok());
    assert_ne!(one["stored_key_count"], other["stored_key_count"]);
    assert_ne!(one["stored_key_count"], right);
    assert!(lab.misbehave("kme-a1", Ops::Status, Misbehaviour::MissingFields).await.ok);
    let status = a.get(STATUS).await.ok();
    assert_eq!(status["key_size"], 256);
    for name in ["max_key_per_request", "min_key_size", "max_key_size", "max_SAE_ID_count", "master_SAE_ID"] {
        assert!(status.get(name).is_none(), "{name}");
    }
}
