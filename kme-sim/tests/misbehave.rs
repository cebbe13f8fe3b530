//! Each fault, set for each operation that it can be set for, from a client's point of view.
#![allow(clippy::unwrap_used)] // a failure in a helper is a failure of the test

mod common;

use std::time::Duration;

use common::{Client, Lab, client_config};
use kme_sim::faults::catalog::{Misbehaviour, Ops};

const STATUS: &str = "/api/v1/keys/SITE-B/status";
const TO_B: &str = "/api/v1/keys/SITE-B/enc_keys";

/// Returns correct requests to kme-a1: status, enc_keys, and dec_keys of a key that SITE-B took for SITE-A.
async fn requests(lab: &Lab) -> [(Ops, String); 3] {
    let keys = lab.client("kme-b1", "site-b").await.get("/api/v1/keys/SITE-A/enc_keys").await.keys();
    [
        (Ops::Status, STATUS.to_owned()),
        (Ops::EncKeys, TO_B.to_owned()),
        (Ops::DecKeys, format!("/api/v1/keys/SITE-B/dec_keys?key_ID={}", keys[0].0)),
    ]
}

async fn set(lab: &Lab, op: Ops, how: Misbehaviour) {
    let answer = lab.misbehave("kme-a1", op, how).await;
    assert!(answer.ok, "{answer:?}");
}

#[tokio::test]
async fn an_answer_that_is_none_is_given_for_the_operation_that_it_is_set_for() {
    let lab = Lab::start().await;
    let requests = requests(&lab).await;
    for (how, status, start) in [
        (Misbehaviour::Http500, 500, "{\"message\":\"internal error\""),
        (Misbehaviour::Http503, 503, "{\"message\":\""),
        (Misbehaviour::Html, 200, "<!DOCTYPE html>"),
        (Misbehaviour::RubbishJson, 200, "{\"keys\":[{"),
        (Misbehaviour::EmptyBody, 200, ""),
        (Misbehaviour::Redirect, 307, ""),
        (Misbehaviour::Http400, 400, "{\"message\":\""),
        (Misbehaviour::Http401, 401, ""),
        (Misbehaviour::Http403, 403, "{\"message\":\"forbidden\""),
        (Misbehaviour::Http404, 404, "{\"message\":\""),
        (Misbehaviour::Http409, 409, "{\"message\":\""),
        (Misbehaviour::Http412, 412, "{\"message\":\""),
        (Misbehaviour::Http422, 422, "{\"message\":\""),
        (Misbehaviour::Http429, 429, "{\"message\":\"too many requests\""),
        (Misbehaviour::Http502, 502, "{\"message\":\""),
        (Misbehaviour::Http504, 504, "{\"message\":\""),
        (Misbehaviour::ErrorHtml, 503, "<!DOCTYPE html>"),
        (Misbehaviour::ErrorEmpty, 503, ""),
        (Misbehaviour::ErrorDetail, 422, "{\"detail\":[{\"loc\":"),
        (Misbehaviour::ErrorHuge, 500, "error error "),
        (Misbehaviour::HugeBody, 200, "{"),
        (Misbehaviour::NoGet, 405, "{\"message\":\""),
    ] {
        for (op, path) in &requests {
            set(&lab, *op, how).await;
            let mut client = lab.client("kme-a1", "site-a").await;
            let reply = client.get(path).await;
            assert_eq!(reply.status.as_u16(), status, "{how:?} {op:?}");
            assert!(reply.body.starts_with(start.as_bytes()), "{how:?} {op:?}: {reply:?}");
            let page = matches!(how, Misbehaviour::Html | Misbehaviour::ErrorHtml);
            assert_eq!(reply.content_type.starts_with("text/html"), page);
            assert_eq!(start.is_empty(), reply.body.is_empty(), "{how:?}");
            let huge = matches!(how, Misbehaviour::HugeBody | Misbehaviour::ErrorHuge);
            assert_eq!(reply.body.len() > 9_000_000, huge);
            if how == Misbehaviour::HugeBody {
                assert!(serde_json::from_slice::<serde_json::Value>(&reply.body).is_ok());
            }
            if how == Misbehaviour::RubbishJson {
                assert!(serde_json::from_slice::<serde_json::Value>(&reply.body).is_err());
            }
            // The other operations work as before; dec_keys would spend its key, so it comes last.
            if *op != Ops::Status {
                client.get(STATUS).await.ok();
            } else {
                client.get(TO_B).await.ok();
            }
            set(&lab, *op, Misbehaviour::None).await;
        }
    }
    // None of that carried the request out.
    lab.client("kme-a1", "site-a").await.get(&requests[2].1).await.ok();
}

#[tokio::test]
async fn a_kme_that_hangs_takes_the_request_and_never_answers() {
    let lab = Lab::start().await;
    for (op, path) in requests(&lab).await {
        set(&lab, op, Misbehaviour::Hang).await;
        let mut client = lab.client("kme-a1", "site-a").await;
        let answer = tokio::time::timeout(Duration::from_millis(200), client.get(&path)).await;
        assert!(answer.is_err(), "{op:?} answered: {answer:?}");
        set(&lab, op, Misbehaviour::None).await;
        lab.client("kme-a1", "site-a").await.get(&path).await.ok();
    }
    // Stopping doesn't wait for requests that hang.
    set(&lab, Ops::All, Misbehaviour::Hang).await;
    let mut client = lab.client("kme-a1", "site-a").await;
    let mut hanging = std::pin::pin!(client.send("GET", STATUS, ""));
    assert!(tokio::time::timeout(Duration::from_millis(200), hanging.as_mut()).await.is_err());
    tokio::time::timeout(Duration::from_secs(5), lab.simulator.stop()).await.unwrap();
    assert!(hanging.await.is_err());
}

#[tokio::test]
async fn a_closed_port_refuses_and_cuts_and_opens_again_at_the_same_address() {
    let lab = Lab::start().await;
    let mut open = lab.client("kme-a1", "site-a").await;
    open.get(STATUS).await.ok();
    set(&lab, Ops::All, Misbehaviour::RefuseTcp).await;
    assert!(open.send("GET", STATUS, "").await.is_err());
    let config = || client_config(lab.directory.path(), Some("site-a"), rustls::ALL_VERSIONS);
    let refused = Client::connect(lab.address("kme-a1"), "kme-a1", config()).await.err().unwrap();
    assert!(refused.contains("refused"), "{refused}");
    // A fault of one operation leaves the port closed; the other KME works as before.
    set(&lab, Ops::Status, Misbehaviour::Http500).await;
    assert!(Client::connect(lab.address("kme-a1"), "kme-a1", config()).await.is_err());
    lab.client("kme-b1", "site-b").await.get("/api/v1/keys/SITE-A/status").await.ok();
    set(&lab, Ops::All, Misbehaviour::None).await;
    lab.client("kme-a1", "site-a").await.get(STATUS).await.ok();
    for op in [Ops::Status, Ops::EncKeys, Ops::DecKeys] {
        let answer = lab.misbehave("kme-a1", op, Misbehaviour::RefuseTcp).await;
        assert_eq!(answer.error.unwrap(), "this is a fault of the whole port; set it for op \"all\"");
    }
}

/// Returns the keys of two requests, one of them with the fault: three keys that SITE-A takes and SITE-B
/// fetches.
async fn spoilt(how: Misbehaviour, op: Ops) -> [Vec<(String, Vec<u8>)>; 2] {
    let lab = Lab::start().await;
    let kme = if op == Ops::EncKeys { "kme-a1" } else { "kme-b1" };
    assert!(lab.misbehave(kme, op, how).await.ok);
    let sent = lab.client("kme-a1", "site-a").await.get(&format!("{TO_B}?number=3")).await.keys();
    let ids: Vec<String> = (0..3).map(|n| kme_sim::test_key::key_id(common::SEED, n)).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let mut b = lab.client("kme-b1", "site-b").await;
    let got = b.dec_keys("SITE-A", &ids).await;
    if how == Misbehaviour::EmptyList && op == Ops::EncKeys {
        assert_eq!(got.status, 400, "an empty list spends no key");
        return [sent, Vec::new()];
    }
    [sent, got.keys()]
}

#[tokio::test]
async fn keys_are_spoilt_on_the_side_that_it_is_set_for() {
    let right: Vec<(String, Vec<u8>)> = (0..3)
        .map(|n| {
            let key = kme_sim::test_key::key(common::SEED, n, 32).expose().to_vec();
            (kme_sim::test_key::key_id(common::SEED, n), key)
        })
        .collect();
    for op in [Ops::EncKeys, Ops::DecKeys] {
        let side = usize::from(op == Ops::DecKeys);
        let spoil = async |how| {
            let mut both = spoilt(how, op).await;
            if how != Misbehaviour::EmptyList {
                assert_eq!(both[1 - side], right, "{how:?} {op:?}: the other side is right");
            }
            std::mem::take(&mut both[side])
        };
        assert_eq!(spoil(Misbehaviour::EmptyList).await, []);
        for (bad, good) in spoil(Misbehaviour::WrongSize).await.iter().zip(&right) {
            assert_eq!((&bad.0, bad.1.as_slice()), (&good.0, &good.1[..31]));
        }
        assert_eq!(
            spoil(Misbehaviour::Duplicate).await,
            [right[0].clone(), right[0].clone(), right[2].clone()]
        );
        let swapped = spoil(Misbehaviour::SwapKeys).await;
        assert_eq!(swapped[0], (right[0].0.clone(), right[1].1.clone()));
        assert_eq!(swapped[1], (right[1].0.clone(), right[0].1.clone()));
        assert_eq!(swapped[2], right[2]);
        let same = spoil(Misbehaviour::SameKey).await;
        assert_eq!(same, [right[0].clone(), (right[1].0.clone(), right[0].1.clone()), right[2].clone()]);
        let same = spoil(Misbehaviour::SameId).await;
        assert_eq!(same, [right[0].clone(), (right[0].0.clone(), right[1].1.clone()), right[2].clone()]);
        for ((bad, key), good) in spoil(Misbehaviour::ZeroKeys).await.iter().zip(&right) {
            assert_eq!((bad, key.as_slice()), (&good.0, &[0; 32][..]));
        }
        let unknown = spoil(Misbehaviour::UnknownId).await;
        let wrong = spoil(Misbehaviour::WrongBytes).await;
        assert_eq!((unknown.len(), wrong.len()), (3, 3));
        for i in 0..3 {
            assert!(right.iter().all(|r| r.0 != unknown[i].0));
            assert_eq!(unknown[i].1, right[i].1);
            assert_eq!(wrong[i].0, right[i].0);
            assert_eq!(wrong[i].1.len(), 32);
            assert!(right.iter().all(|r| r.1 != wrong[i].1));
        }
    }
}

#[tokio::test]
async fn a_single_key_is_doubled_too() {
    let lab = Lab::start().await;
    let mut a = lab.client("kme-a1", "site-a").await;
    for (how, same_id, same_key) in [
        (Misbehaviour::Duplicate, true, true),
        (Misbehaviour::SameKey, false, true),
        (Misbehaviour::SameId, true, false),
    ] {
        set(&lab, Ops::All, how).await;
        let keys = a.get(TO_B).await.keys();
        assert_eq!(keys.len(), 2);
        assert_eq!((keys[0].0 == keys[1].0, keys[0].1 == keys[1].1), (same_id, same_key), "{how:?}");
        a.get(STATUS).await.ok();
    }
}

#[tokio::test]
async fn ten_thousand_keys_come_where_one_was_asked_and_none_is_spent() {
    let lab = Lab::start().await;
    for (op, path) in &requests(&lab).await[1..] {
        set(&lab, *op, Misbehaviour::TooManyKeys).await;
        let mut a = lab.client("kme-a1", "site-a").await;
        let keys = a.get(path).await.keys();
        assert_eq!(keys.len(), 10_000);
        assert!(keys.iter().all(|(id, key)| id.len() == 36 && key.len() == 32));
        set(&lab, *op, Misbehaviour::None).await;
        assert_eq!(a.get(path).await.keys().len(), 1);
    }
}

#[tokio::test]
async fn keys_and_ids_can_be_written_wrongly() {
    let lab = Lab::start().await;
    for op in [Ops::EncKeys, Ops::DecKeys] {
        for how in [Misbehaviour::BadBase64, Misbehaviour::UrlBase64, Misbehaviour::NumericIds] {
            let path = requests(&lab).await.into_iter().find(|(o, _)| *o == op).unwrap().1;
            set(&lab, op, how).await;
            let reply = lab.client("kme-a1", "site-a").await.get(&path).await.ok();
            let (id, key) = (&reply["keys"][0]["key_ID"], reply["keys"][0]["key"].as_str().unwrap());
            assert_eq!(id.is_number(), how == Misbehaviour::NumericIds);
            let right = data_encoding::BASE64.decode(key.as_bytes()).is_ok();
            let url = data_encoding::BASE64URL_NOPAD.decode(key.as_bytes()).is_ok();
            assert_eq!(right, how == Misbehaviour::NumericIds, "{how:?}");
            assert_eq!(url, how == Misbehaviour::UrlBase64, "{how:?}");
            set(&lab, op, Misbehaviour::None).await;
        }
    }
}

#[tokio::test]
async fn unusual_but_correct_answers_are_accepted() {
    let lab = Lab::start().await;
    for (op, path) in requests(&lab).await {
        set(&lab, op, Misbehaviour::ExtraFields).await;
        let reply = lab.client("kme-a1", "site-a").await.get(&path).await;
        assert!(reply.ok()["vendor"].is_object());
        if op != Ops::Status {
            assert_eq!(reply.keys()[0].1.len(), 32);
            assert!(reply.ok()["keys"][0]["key_extension"].is_string());
        }
        set(&lab, op, Misbehaviour::None).await;
    }
    for (op, path) in requests(&lab).await {
        set(&lab, op, Misbehaviour::WrongType).await;
        let reply = lab.client("kme-a1", "site-a").await.get(&path).await;
        assert_eq!((reply.status.as_u16(), reply.content_type.as_str()), (200, "text/plain"));
        assert!(serde_json::from_slice::<serde_json::Value>(&reply.body).is_ok());
        set(&lab, op, Misbehaviour::None).await;
    }
}

#[tokio::test]
async fn a_post_is_refused_where_a_get_is_right() {
    let lab = Lab::start().await;
    set(&lab, Ops::All, Misbehaviour::NoPost).await;
    let mut a = lab.client("kme-a1", "site-a").await;
    a.send("POST", TO_B, "{}").await.unwrap().message(405);
    a.get(TO_B).await.ok();
}

#[tokio::test]
async fn a_connection_is_closed_before_or_in_the_middle_of_an_answer() {
    let lab = Lab::start().await;
    let closed = async |how| {
        set(&lab, Ops::EncKeys, how).await;
        let mut a = lab.client("kme-a1", "site-a").await;
        let before = lab.waiting("kme-b1").await;
        a.send("GET", TO_B, "").await.unwrap_err();
        lab.waiting("kme-b1").await - before
    };
    assert_eq!(closed(Misbehaviour::Close).await, 0, "not carried out");
    assert_eq!(closed(Misbehaviour::LoseAnswer).await, 1, "carried out");
    assert_eq!(closed(Misbehaviour::CutBody).await, 1, "carried out");
    // The beginning does arrive, with the length of the whole body.
    let mut a = lab.client("kme-a1", "site-a").await;
    let (length, begin) = a.begin(TO_B, 1).await;
    assert!(length.unwrap() > begin.len() as u64);
    assert!(begin.starts_with(b"{\"keys\":[{\"key_ID\":\""), "{begin:?}");
}

#[tokio::test]
async fn a_body_that_never_ends_is_slow_or_fast() {
    let lab = Lab::start().await;
    for (op, path) in requests(&lab).await {
        set(&lab, op, Misbehaviour::EndlessBody).await;
        let mut a = lab.client("kme-a1", "site-a").await;
        let (length, begin) = a.begin(&path, 2_000_000).await;
        assert_eq!((length, begin.len() >= 2_000_000), (None, true), "{op:?}");
        set(&lab, op, Misbehaviour::SlowBody).await;
        let mut a = lab.client("kme-a1", "site-a").await;
        let (length, begin) = a.begin(&path, 1).await;
        assert_eq!((length, begin.len()), (None, 1), "{op:?}");
        set(&lab, op, Misbehaviour::None).await;
        lab.client("kme-a1", "site-a").await.get(&path).await.ok();
    }
}

#[tokio::test]
async fn a_slow_answer_is_right_and_comes_after_three_seconds() {
    let lab = Lab::start().await;
    set(&lab, Ops::Status, Misbehaviour::Slow).await;
    let start = std::time::Instant::now();
    lab.client("kme-a1", "site-a").await.get(STATUS).await.ok();
    assert!(start.elapsed() >= Duration::from_secs(3));
}

#[tokio::test]
async fn a_fault_that_makes_no_sense_is_refused() {
    let lab = Lab::start().await;
    for how in [Misbehaviour::WrongSize, Misbehaviour::EmptyList, Misbehaviour::WrongBytes] {
        let error = lab.misbehave("kme-a1", Ops::Status, how).await.error.unwrap();
        assert_eq!(error, "status doesn't support this fault; set it for enc_keys, dec_keys or all");
    }
    let error = lab.misbehave("kme-x", Ops::All, Misbehaviour::Hang).await.error.unwrap();
    assert_eq!(error, "there is no KME named \"kme-x\"");
}
