//! The interface of ETSI GS QKD 014 against real servers on loopback: each method, form, bound and message.
#![allow(clippy::unwrap_used)] // a failure in a helper is a failure of the test

mod common;

use common::{CONFIG, Lab, SEED};
use kme_sim::admin::Command;
use kme_sim::test_key;
use serde_json::{Value, json};

const TO_B: &str = "/api/v1/keys/SITE-B/enc_keys";
const FROM_A: &str = "/api/v1/keys/SITE-A/dec_keys";

#[tokio::test]
async fn status_has_every_field_of_the_document() {
    let lab = Lab::start().await;
    let status = lab.client("kme-a1", "site-a").await.get("/api/v1/keys/SITE-B/status").await.ok();
    assert_eq!(
        status,
        json!({
            "source_KME_ID": "kme-a1", "target_KME_ID": "kme-b1", "master_SAE_ID": "SITE-A",
            "slave_SAE_ID": "SITE-B",
            "key_size": 256, "stored_key_count": 500, "max_key_count": 1000, "max_key_per_request": 128,
            "max_key_size": 1024, "min_key_size": 64, "max_SAE_ID_count": 2,
            "status_extension": {"qber": 0.02, "key_rate_bits_per_s": 0.0, "hops": 1}
        })
    );
    // Over the other link, and from the other side.
    let status = lab.client("kme-c1", "site-c").await.get("/api/v1/keys/SITE-A/status").await.ok();
    assert_eq!(status["key_size"], 128);
    assert_eq!(status["stored_key_count"], 20);
    assert_eq!(status["target_KME_ID"], "kme-a1");
}

#[tokio::test]
async fn keys_of_all_forms_are_the_same_at_both_sites_and_as_derived_from_the_seed() {
    let lab = Lab::start().await;
    let mut a = lab.client("kme-a1", "site-a").await;
    let mut b = lab.client("kme-b1", "site-b").await;
    let mut n = 0;
    let forms = [
        ("GET", TO_B.to_owned(), String::new(), 1, 32),
        ("GET", format!("{TO_B}?number=3&size=512"), String::new(), 3, 64),
        ("POST", TO_B.to_owned(), String::new(), 1, 32),
        ("POST", TO_B.to_owned(), "{}".to_owned(), 1, 32),
        ("POST", TO_B.to_owned(), json!({"number": 2, "size": 64}).to_string(), 2, 8),
        ("POST", TO_B.to_owned(), json!({"number": 1, "size": 1024}).to_string(), 1, 128),
    ];
    for (method, path, body, number, bytes) in forms {
        let sent = a.send(method, &path, body).await.unwrap().keys();
        assert_eq!(sent.len(), number);
        for (id, key) in &sent {
            assert_eq!(key.len(), bytes);
            assert_eq!(*id, test_key::key_id(SEED, n));
            assert!(test_key::key(SEED, n, bytes).ct_eq(key));
            n += 1;
        }
        // In another order than they were taken, by POST; a single one by GET.
        let mut ids: Vec<&str> = sent.iter().map(|(id, _)| id.as_str()).collect();
        ids.reverse();
        let got = match ids.as_slice() {
            [id] => b.get(&format!("{FROM_A}?key_ID={id}")).await.keys(),
            ids => b.dec_keys("SITE-A", ids).await.keys(),
        };
        assert_eq!(got, sent.into_iter().rev().collect::<Vec<_>>());
    }
    // Either side may be the master, and the count continues.
    let sent = b.get("/api/v1/keys/SITE-A/enc_keys").await.keys();
    assert_eq!(sent[0].0, test_key::key_id(SEED, n));
    assert_eq!(a.dec_keys("SITE-B", &[&sent[0].0]).await.keys(), sent);
}

#[tokio::test]
async fn a_delivered_key_leaves_both_stores() {
    let lab = Lab::start().await;
    let mut a = lab.client("kme-a1", "site-a").await;
    let mut b = lab.client("kme-b1", "site-b").await;
    let keys = a.get(&format!("{TO_B}?number=2")).await.keys();
    let stored = a.get("/api/v1/keys/SITE-B/status").await.ok()["stored_key_count"].clone();
    assert_eq!(stored, 498);
    assert_eq!(lab.waiting("kme-b1").await, 2);
    assert_eq!(lab.waiting("kme-a1").await, 0);
    // All or none: with one unknown ID nothing is spent.
    let reply = b.dec_keys("SITE-A", &[&keys[0].0, "no such key"]).await;
    assert_eq!(reply.message(400), "one or more keys specified are not found on KME");
    assert_eq!(lab.waiting("kme-b1").await, 2);
    assert_eq!(b.dec_keys("SITE-A", &[&keys[0].0]).await.keys(), keys[..1]);
    assert_eq!(
        b.dec_keys("SITE-A", &[&keys[0].0]).await.message(400),
        "one or more keys specified are not found on KME"
    );
    // Under another master it is another key.
    assert_eq!(
        b.dec_keys("SITE-C", &[&keys[1].0]).await.message(400),
        "one or more keys specified are not found on KME"
    );
    assert_eq!(b.dec_keys("SITE-A", &[&keys[1].0]).await.keys(), keys[1..]);
    assert_eq!(lab.waiting("kme-b1").await, 0);
}

#[tokio::test]
async fn only_a_named_slave_gets_a_key() {
    let lab = Lab::start().await;
    let mut a = lab.client("kme-a1", "site-a").await;
    let keys = a.get(TO_B).await.keys();
    let reply = lab.client("kme-b1", "b-ro-2-b").await.dec_keys("SITE-A", &[&keys[0].0]).await;
    assert_eq!(reply.status, 401);
    assert!(reply.body.is_empty());
    // It is still there for the SAE that was named.
    assert_eq!(lab.client("kme-b1", "site-b").await.dec_keys("SITE-A", &[&keys[0].0]).await.keys(), keys);
}

#[tokio::test]
async fn additional_slaves_each_get_the_key_over_their_own_link() {
    let lab = Lab::start().await;
    let mut a = lab.client("kme-a1", "site-a").await;
    let body = json!({"number": 2, "additional_slave_SAE_IDs": ["Büro 2/b", "SITE-C"]});
    let keys = a.post(TO_B, body).await.keys();
    let ids: Vec<&str> = keys.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(lab.client("kme-b1", "site-b").await.dec_keys("SITE-A", &ids).await.keys(), keys);
    assert_eq!(lab.waiting("kme-b1").await, 2, "one slave of two has them");
    let again = lab.client("kme-b1", "site-b").await.dec_keys("SITE-A", &ids).await;
    assert_eq!(again.message(400), "one or more keys specified are not found on KME");
    assert_eq!(lab.client("kme-b1", "b-ro-2-b").await.dec_keys("SITE-A", &ids).await.keys(), keys);
    assert_eq!(lab.waiting("kme-b1").await, 0);
    assert_eq!(lab.client("kme-c1", "site-c").await.dec_keys("SITE-A", &ids).await.keys(), keys);
    // Two keys of 256 bits cost two on the first link and four of 128 bits on the other.
    let stored: Vec<u64> = lab
        .simulator
        .command(Command::Stored {})
        .await
        .links
        .unwrap()
        .iter()
        .map(|l| l.stored_key_count)
        .collect();
    assert_eq!(stored, [498, 16]);
}

#[tokio::test]
async fn bad_requests_are_refused_with_a_message_and_spend_nothing() {
    let lab = Lab::start().await;
    let mut a = lab.client("kme-a1", "site-a").await;
    let one_of = |saes: &[&str]| json!({ "additional_slave_SAE_IDs": saes });
    let posts: &[(Value, &str)] = &[
        (json!({"size": 129}), "size shall be a multiple of 8"),
        (json!({"size": 56}), "size must be from 64 to 1024 bits"),
        (json!({"size": 1032}), "size must be from 64 to 1024 bits"),
        (json!({"number": 0}), "number must be from 1 to 128"),
        (json!({"number": 129}), "number must be from 1 to 128"),
        (json!({"number": u64::MAX}), "number must be from 1 to 128"),
        (json!({"extension_mandatory": [{"x": 1}]}), "not all extension_mandatory parameters are supported"),
        (
            json!({"extension_mandatory": [{"route_type": "relayed"}]}),
            "not all extension_mandatory request options could be met",
        ),
        (one_of(&["SITE-C", "Büro 2/b", "X"]), "additional_slave_SAE_IDs must have at most 2 entries"),
        (one_of(&["SITE-B"]), "the slave SAE \"SITE-B\" is named twice"),
        (one_of(&["SITE-A"]), "master and slave SAE are the same"),
        (one_of(&["SITE-X"]), "the SAE \"SITE-X\" is unknown to this KME"),
    ];
    for (body, message) in posts {
        assert_eq!(a.post(TO_B, body.clone()).await.message(400), *message, "{body}");
    }
    let details = a.post(TO_B, json!({"extension_mandatory": [{"x": 1}]})).await.json()["details"].clone();
    assert_eq!(details, json!([{"name": "x"}]));
    for path in ["?number=1&extension_mandatory=x", "?number=a", "?size=8&size=8"] {
        assert_eq!(a.get(&format!("{TO_B}{path}")).await.status, 400, "{path}");
    }
    for body in ["{", "[]", "\"x\"", r#"{"number":"1"}"#, "\u{0}"] {
        let message = a.send("POST", TO_B, body).await.unwrap().message(400);
        assert!(message.starts_with("bad request format"), "{body}: {message}");
    }
    for (path, message) in [
        ("/api/v1/keys/SITE-X/status", "the SAE \"SITE-X\" is unknown to this KME"),
        ("/api/v1/keys/SITE-A/status", "master and slave SAE are the same"),
        ("/api/v1/keys/SITE-A/enc_keys", "master and slave SAE are the same"),
    ] {
        assert_eq!(a.get(path).await.message(400), message);
    }
    let no_link = lab.client("kme-c1", "site-c").await.get(TO_B).await.message(400);
    assert_eq!(no_link, "no QKD link leads from kme-c1 to kme-b1");
    assert_eq!(a.get("/api/v1/keys/SITE-B/status").await.ok()["stored_key_count"], 500);
}

#[tokio::test]
async fn bad_key_ids_are_refused() {
    let lab = Lab::start().await;
    let mut b = lab.client("kme-b1", "site-b").await;
    let not_found = "one or more keys specified are not found on KME";
    assert_eq!(b.get(&format!("{FROM_A}?key_ID=x")).await.message(400), not_found);
    for path in [FROM_A.to_owned(), format!("{FROM_A}?key_ID=a&key_ID=b"), format!("{FROM_A}?size=8")] {
        assert_eq!(
            b.get(&path).await.message(400),
            "a GET of dec_keys has exactly one key_ID; use POST for more"
        );
    }
    assert_eq!(b.dec_keys("SITE-A", &[]).await.message(400), "key_IDs is empty");
    assert_eq!(b.dec_keys("SITE-A", &["x", "x"]).await.message(400), "a key_ID is given twice");
    let eleven: Vec<String> = (0..11).map(|i| i.to_string()).collect();
    let eleven: Vec<&str> = eleven.iter().map(String::as_str).collect();
    assert_eq!(b.dec_keys("SITE-A", &eleven).await.message(400), "key_IDs must have at most 10 entries");
    for body in ["", "{}", r#"{"key_IDs":["x"]}"#] {
        let message = b.send("POST", FROM_A, body).await.unwrap().message(400);
        assert!(message.starts_with("bad request format"), "{body}: {message}");
    }
}

#[tokio::test]
async fn extensions_that_can_be_met_or_are_optional_do_no_harm() {
    let lab = Lab::start().await;
    let mut a = lab.client("kme-a1", "site-a").await;
    let body = json!({
        "extension_mandatory": [{"route_type": "direct"}],
        "extension_optional": [{"x": {"y": 1}}, {"route_type": "relayed"}],
    });
    let keys = a.post(TO_B, body).await.keys();
    let mut b = lab.client("kme-b1", "site-b").await;
    let body = json!({
        "key_IDs": [{"key_ID": keys[0].0, "key_ID_extension": {"z": 1}}], "key_IDs_extension": {"w": []},
    });
    assert_eq!(b.post(FROM_A, body).await.keys(), keys);
    // kme-b1 refuses optional extensions that it does not support.
    let message =
        b.post("/api/v1/keys/SITE-A/enc_keys", json!({"extension_optional": [{"x": 1}]})).await.message(400);
    assert_eq!(message, "not all extension_optional request options handled");
}

#[tokio::test]
async fn an_empty_store_is_503_until_the_link_yields_again() {
    let config =
        CONFIG.replacen("rate_bits_per_s = 0", "rate_bits_per_s = 2560000", 1).replace("= 500", "= 2");
    let lab = Lab::with(&config).await;
    let link = ["kme-b1".to_owned(), "kme-a1".to_owned()];
    assert!(lab.simulator.command(Command::PauseLink { kmes: link.clone() }).await.ok);
    let mut a = lab.client("kme-a1", "site-a").await;
    let have = a.get("/api/v1/keys/SITE-B/status").await.ok()["stored_key_count"].as_u64().unwrap();
    assert!(have >= 2);
    let mut left = have;
    while left > 0 {
        let take = left.min(128);
        assert_eq!(a.get(&format!("{TO_B}?number={take}")).await.keys().len() as u64, take);
        left -= take;
    }
    let message = a.get(TO_B).await.message(503);
    assert!(message.starts_with("the link kme-a1 - kme-b1 holds too few key bits"), "{message}");
    // The other link has its own store, which holds too little for a request over both.
    assert_eq!(a.get("/api/v1/keys/SITE-C/enc_keys?number=20").await.keys().len(), 20);
    assert_eq!(a.get("/api/v1/keys/SITE-C/enc_keys").await.status, 503);

    assert!(lab.simulator.command(Command::ResumeLink { kmes: link }).await.ok);
    let give_up = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
    while a.get(TO_B).await.status == 503 {
        assert!(tokio::time::Instant::now() < give_up);
    }
}

#[tokio::test]
async fn a_slave_kme_lags_by_the_relay_delay() {
    let config = CONFIG.replacen("[[link]]", "[[link]]\nrelay_delay = \"300ms\"", 1);
    let lab = Lab::with(&config).await;
    let mut a = lab.client("kme-a1", "site-a").await;
    let mut b = lab.client("kme-b1", "site-b").await;
    let before = tokio::time::Instant::now();
    let keys = a.get(TO_B).await.keys();
    let taken = tokio::time::Instant::now();
    let mut refused = 0;
    let reply = loop {
        let reply = b.dec_keys("SITE-A", &[&keys[0].0]).await;
        if reply.status == 200 {
            break reply;
        }
        assert_eq!(reply.message(400), "one or more keys specified are not found on KME");
        refused += 1;
        assert!(taken.elapsed().as_secs() < 10);
    };
    assert_eq!(reply.keys(), keys);
    assert!(refused > 0);
    assert!(before.elapsed().as_millis() >= 300);
}

#[tokio::test]
async fn a_key_that_nobody_fetches_is_forgotten_when_the_store_is_full() {
    let config = CONFIG.replace("max_key_per_request = 10", "max_key_per_request = 10\nmax_waiting_keys = 3");
    let lab = Lab::with(&config).await;
    let mut a = lab.client("kme-a1", "site-a").await;
    let mut b = lab.client("kme-b1", "site-b").await;
    let keys = a.get(&format!("{TO_B}?number=4")).await.keys();
    assert_eq!(lab.waiting("kme-b1").await, 3);
    let reply = b.dec_keys("SITE-A", &[&keys[0].0]).await;
    assert_eq!(reply.message(400), "one or more keys specified are not found on KME");
    let ids: Vec<&str> = keys[1..].iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(b.dec_keys("SITE-A", &ids).await.keys(), keys[1..]);
}

#[tokio::test]
async fn sae_ids_are_url_encoded() {
    let lab = Lab::start().await;
    let mut a = lab.client("kme-a1", "site-a").await;
    let encoded = "B%C3%BCro%202%2Fb";
    let status = a.get(&format!("/api/v1/keys/{encoded}/status")).await.ok();
    assert_eq!(status["slave_SAE_ID"], "Büro 2/b");
    let keys = a.get(&format!("/api/v1/keys/{encoded}/enc_keys")).await.keys();
    let mut b = lab.client("kme-b1", "b-ro-2-b").await;
    assert_eq!(b.dec_keys("SITE-A", &[&keys[0].0]).await.keys(), keys);
    let keys = b.get("/api/v1/keys/SITE%2DA/enc_keys").await.keys();
    assert_eq!(a.get(&format!("/api/v1/keys/{encoded}/dec_keys?key_ID={}", keys[0].0)).await.keys(), keys);
}

#[tokio::test]
async fn other_urls_methods_and_large_bodies_are_refused() {
    let lab = Lab::start().await;
    let mut a = lab.client("kme-a1", "site-a").await;
    for path in ["/", "/api/v1/keys/SITE-B", "/api/v1/keys/SITE-B/keys", "/api/v2/keys/SITE-B/status"] {
        a.get(path).await.message(404);
    }
    assert_eq!(
        a.send("POST", "/api/v1/keys/SITE-B/status", "").await.unwrap().message(405),
        "the method of status is GET or HEAD"
    );
    a.send("DELETE", TO_B, "").await.unwrap().message(405);
    assert_eq!(a.get("/api/v1/keys/%FF/status").await.message(400), "the SAE ID in the URL is not UTF-8");
    // One byte too many, so that the server has read all but the last byte when it refuses.
    let reply = a.send("POST", TO_B, vec![b' '; (1 << 20) + 1]).await.unwrap();
    assert_eq!(reply.message(413), "the body is larger than 1048576 bytes");
    assert_eq!(lab.client("kme-a1", "site-a").await.get(TO_B).await.status, 200);
}

#[tokio::test]
async fn a_key_that_the_master_asks_for_by_its_id_is_401_with_a_challenge() {
    let lab = Lab::start().await;
    let mut a = lab.client("kme-a1", "site-a").await;
    let keys = a.get(TO_B).await.keys();
    for master in ["SITE-A", "SITE-B"] {
        let reply = a.dec_keys(master, &[&keys[0].0]).await;
        assert_eq!(reply.status, 401, "{master}");
        assert!(reply.body.is_empty());
        assert!(reply.challenge.starts_with("ClientCertificate "), "{}", reply.challenge);
    }
    assert_eq!(lab.client("kme-b1", "site-b").await.dec_keys("SITE-A", &[&keys[0].0]).await.keys(), keys);
}

#[tokio::test]
async fn a_uuid_is_found_in_upper_and_lower_case() {
    let lab = Lab::start().await;
    let mut a = lab.client("kme-a1", "site-a").await;
    let mut b = lab.client("kme-b1", "site-b").await;
    let keys = a.get(&format!("{TO_B}?number=2")).await.keys();
    let upper: Vec<String> = keys.iter().map(|(id, _)| id.to_uppercase()).collect();
    assert_ne!(upper[0], keys[0].0);
    assert_eq!(b.get(&format!("{FROM_A}?key_ID={}", upper[0])).await.keys(), keys[..1]);
    // An ID in upper case and in lower case is the same ID.
    assert_eq!(b.dec_keys("SITE-A", &[&keys[1].0, &upper[1]]).await.message(400), "a key_ID is given twice");
    assert_eq!(b.dec_keys("SITE-A", &[&upper[1]]).await.keys(), keys[1..]);
}

#[tokio::test]
async fn head_is_answered_like_get_and_only_where_no_key_is_spent() {
    let lab = Lab::start().await;
    let mut a = lab.client("kme-a1", "site-a").await;
    let reply = a.send("HEAD", "/api/v1/keys/SITE-B/status", "").await.unwrap();
    assert_eq!((reply.status.as_u16(), reply.content_type.as_str()), (200, "application/json"));
    assert!(reply.body.is_empty());
    assert_eq!(a.send("HEAD", TO_B, "").await.unwrap().status, 405);
    assert_eq!(a.get("/api/v1/keys/SITE-B/status").await.ok()["stored_key_count"], 500);
}

#[tokio::test]
async fn a_whole_number_may_have_a_fraction_of_zero() {
    let lab = Lab::start().await;
    let mut a = lab.client("kme-a1", "site-a").await;
    let reply = a.send("POST", TO_B, r#"{"number": 2.0, "size": 2.56e2}"#).await.unwrap();
    assert_eq!(reply.keys().len(), 2);
    a.send("POST", TO_B, r#"{"number": 1.5}"#).await.unwrap().message(400);
}

#[tokio::test]
async fn an_array_is_not_read_as_an_object() {
    let lab = Lab::start().await;
    let mut a = lab.client("kme-a1", "site-a").await;
    let mut b = lab.client("kme-b1", "site-b").await;
    a.send("POST", TO_B, "[2, 256]").await.unwrap().message(400);
    let keys = a.get(TO_B).await.keys();
    let id = &keys[0].0;
    for body in [format!(r#"{{"key_IDs": [["{id}", null]]}}"#), format!(r#"[[{{"key_ID": "{id}"}}]]"#)] {
        b.send("POST", FROM_A, body).await.unwrap().message(400);
    }
    assert_eq!(b.dec_keys("SITE-A", &[id]).await.keys(), keys);
}
