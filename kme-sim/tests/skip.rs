//! The SKIP interface: the same keys over draft-cisco-skip, with the same faults.
#![allow(clippy::unwrap_used)] // a failure in a helper is a failure of the test

mod common;

use common::{CONFIG, Lab, SEED};
use kme_sim::faults::catalog::{Misbehaviour, Ops};
use serde_json::{Value, json};

/// Makes a lab with both interfaces at kme-a1, and only SKIP at kme-b1.
async fn lab() -> Lab {
    let config = CONFIG
        .replace("key_file = \"kme-a1.key\"\n", "key_file = \"kme-a1.key\"\napis = [\"etsi014\", \"skip\"]\n")
        .replace("key_file = \"kme-b1.key\"\n", "key_file = \"kme-b1.key\"\napis = [\"skip\"]\n");
    Lab::with(&config).await
}

fn key(value: &Value) -> (String, Vec<u8>) {
    let bytes = data_encoding::HEXLOWER.decode(value["key"].as_str().unwrap().as_bytes()).unwrap();
    (value["keyId"].as_str().unwrap().to_owned(), bytes)
}

#[tokio::test]
async fn capabilities_name_both_systems() {
    let lab = lab().await;
    let answer = lab.client("kme-a1", "site-a").await.get("/capabilities").await.ok();
    assert_eq!(
        answer,
        json!({"entropy": true, "key": true, "algorithm": "QKD", "localSystemID": "SITE-A",
               "remoteSystemID": ["Büro 2/b", "SITE-B", "SITE-C"]})
    );
    let answer = lab.client("kme-b1", "site-b").await.get("/capabilities").await.ok();
    assert_eq!((&answer["localSystemID"], &answer["remoteSystemID"]), (&json!("SITE-B"), &json!(["SITE-A"])));
}

#[tokio::test]
async fn a_key_is_taken_and_fetched_once_by_its_hexadecimal_id() {
    let lab = lab().await;
    let (mut a, mut b) = (lab.client("kme-a1", "site-a").await, lab.client("kme-b1", "site-b").await);
    for (n, path) in ["/key?remoteSystemID=SITE-B", "/key?remoteSystemID=SITE-B&size=256"].iter().enumerate()
    {
        let taken = key(&a.get(path).await.ok());
        assert_eq!(taken.1, kme_sim::test_key::key(SEED, n as u64, 32).expose());
        assert!(taken.0.len() == 32 && taken.0.bytes().all(|c| c.is_ascii_hexdigit()), "{taken:?}");
        let path = format!("/key/{}?remoteSystemID=SITE-A", taken.0);
        assert_eq!(key(&b.get(&path).await.ok()), taken);
        b.get(&path).await.message(400);
    }
    assert_eq!(key(&a.get("/key?remoteSystemID=SITE-B&size=512").await.ok()).1.len(), 64);
    let random = a.get("/entropy?minentropy=128").await.ok();
    assert_eq!((random["randomStr"].as_str().unwrap().len(), &random["minentropy"]), (32, &json!(128)));
}

#[tokio::test]
async fn what_cannot_be_met_is_refused() {
    let lab = lab().await;
    let mut a = lab.client("kme-a1", "site-a").await;
    a.get("/key?remoteSystemID=SITE-X").await.message(400);
    a.get("/key?remoteSystemID=SITE-B&size=9").await.message(400);
    a.get("/key/0000?remoteSystemID=SITE-B").await.message(400);
    a.send("POST", "/key?remoteSystemID=SITE-B", "").await.unwrap().message(405);
    // Without keys the status is 400, since the draft has 503 for entropy only.
    let mut last = a.get("/key?remoteSystemID=SITE-C&size=1024").await;
    while last.status.is_success() {
        last = a.get("/key?remoteSystemID=SITE-C&size=1024").await;
    }
    assert!(last.message(400).contains("try again later"));
    // Interfaces that are not enabled don't exist.
    lab.client("kme-b1", "site-b").await.get("/api/v1/keys/SITE-A/status").await.message(404);
    lab.client("kme-c1", "site-c").await.get("/capabilities").await.message(404);
    a.get("/api/v1/keys/SITE-B/status").await.ok();
    // A key of another SAE is refused with 401 without a body, as in the other interface.
    let taken = key(&a.get("/key?remoteSystemID=SITE-B").await.ok());
    let mut other = lab.client("kme-b1", "b-ro-2-b").await;
    assert_eq!(other.get(&format!("/key/{}?remoteSystemID=SITE-A", taken.0)).await.status, 401);
    // Table 2 has no request for a key without the name of the other side.
    lab.client("kme-b1", "site-b").await.get(&format!("/key/{}", taken.0)).await.message(400);
    let mut nobody = lab.client("kme-a1", "nobody").await;
    assert_eq!(nobody.get("/capabilities").await.status, 401);
}

#[tokio::test]
async fn it_misbehaves_as_the_other_face_does() {
    let lab = lab().await;
    let mut a = lab.client("kme-a1", "site-a").await;
    let path = "/key?remoteSystemID=SITE-B";
    assert!(lab.misbehave("kme-a1", Ops::EncKeys, Misbehaviour::WrongSize).await.ok);
    assert_eq!(key(&a.get(path).await.ok()).1.len(), 31);
    assert!(lab.misbehave("kme-a1", Ops::EncKeys, Misbehaviour::BadBase64).await.ok);
    assert!(a.get(path).await.ok()["key"].as_str().unwrap().starts_with('*'));
    assert!(lab.misbehave("kme-a1", Ops::Status, Misbehaviour::Http503).await.ok);
    a.get("/capabilities").await.message(503);
    assert!(lab.misbehave("kme-b1", Ops::DecKeys, Misbehaviour::Html).await.ok);
    let reply = lab.client("kme-b1", "site-b").await.get("/key/00?remoteSystemID=SITE-A").await;
    assert!(reply.content_type.starts_with("text/html"));
}
