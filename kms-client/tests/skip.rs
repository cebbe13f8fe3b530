//! The SKIP client with a key provider that answers as in draft-cisco-skip-02 (its figures and tables), and
//! with ones that don't.
#![allow(clippy::unwrap_used)] // A test program's helpers may panic as its tests do.

mod support;

use kms_client::KmsErrorKind as K;
use kms_client::{KeySource, KmsError, Operation, QkdKey, SkipClient, Violation};
use qvpn_types::KeyId;
use support::{Lab, Reply, Seen, Server, check, json, ok, sae};

/// Figure 4, with the names of our sites.
const CAPABILITIES: &str = r#"{"entropy" : true, "key" : true, "algorithm": "PRF", "localSystemID": "Alice",
    "remoteSystemID": ["Bob", "KP_*_LOC1", "KP-[!0-9]"]}"#;
/// Figure 6.
const KEY_ID: &str = "1726e9AE76234FB1dd1283d4dca1911e1f93864d70f3069e";
const KEY: &str = "ad229dfb8a276e74c1f3b6c09349a69fb2fed73c541270663f0e5cbbfb031670";

fn key_body(id: &str, key: &str) -> String {
    format!(r#"{{ "keyId" : "{id}", "key" : "{key}" }}"#)
}

async fn client(lab: &Lab, script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> (SkipClient, Server) {
    let server = lab.serve(script).await;
    (SkipClient::new(lab.config(server.address)).unwrap(), server)
}

async fn new_key(client: &SkipClient) -> Result<QkdKey, KmsError> {
    let mut keys = client.fetch_new(&sae("Bob"), 5, 256).await?;
    assert_eq!(keys.len(), 1, "the draft has one key a request");
    Ok(keys.remove(0))
}

async fn by_id(client: &SkipClient, id: &str) -> Result<Vec<QkdKey>, KmsError> {
    client.fetch_by_ids(&sae("Bob"), &[KeyId::new(id).unwrap()]).await
}

#[tokio::test]
async fn the_examples_of_the_draft_are_understood() {
    let lab = Lab::new();
    let (client, server) = client(&lab, |request| match request.path.as_str() {
        "/capabilities" => ok(CAPABILITIES),
        _ => ok(&key_body(KEY_ID, KEY)),
    })
    .await;
    let capabilities = client.capabilities(&sae("Bob")).await.unwrap();
    assert_eq!((capabilities.algorithm.as_str(), capabilities.local_system_id.as_str()), ("PRF", "Alice"));
    assert!(capabilities.missing.is_empty());
    let link = client.link(&sae("Bob")).await.unwrap();
    assert_eq!((link.source_kme.as_str(), link.target_kme.as_str()), ("Alice", "Bob"));
    assert_eq!((link.stored_key_count, link.max_key_per_request), (None, Some(1)));

    let key = new_key(&client).await.unwrap();
    assert_eq!((key.id.as_str(), key.source_kme.as_str(), key.target_kme.as_str()), (KEY_ID, "Alice", "Bob"));
    assert_eq!(hexadecimal(key.secret.expose()), KEY);
    let keys = by_id(&client, KEY_ID).await.unwrap();
    assert_eq!((keys[0].source_kme.as_str(), keys[0].target_kme.as_str()), ("Bob", "Alice"));

    // Table 2: all requests are GET, with these paths.
    let asked: Vec<(String, String)> =
        server.requests().into_iter().map(|seen| (seen.method, seen.path)).collect();
    let get = |path: &str| ("GET".to_owned(), path.to_owned());
    assert_eq!(
        asked,
        [
            get("/capabilities"),
            get("/capabilities"),
            get("/key?remoteSystemID=Bob&size=256"),
            get(&format!("/key/{KEY_ID}?remoteSystemID=Bob")),
        ]
    );
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn served_systems_are_read_from_names_and_patterns() {
    let lab = Lab::new();
    let (client, _server) = client(&lab, |_| ok(CAPABILITIES)).await;
    for served in ["Bob", "KP_ALICE_LOC1", "KP-x"] {
        assert!(client.link(&sae(served)).await.is_ok(), "{served}");
    }
    for other in ["Eve", "KP_ALICE_LOC2", "KP-7"] {
        let error = client.link(&sae(other)).await.expect_err(other);
        check(&error, K::BadRequest, Operation::Status);
        assert!(error.to_string().contains("it has keys for Bob, KP_*_LOC1"), "{error}");
    }
}

#[tokio::test]
async fn capabilities_that_lack_fields_are_usable_and_others_are_not() {
    let lab = Lab::new();
    let (few, _server) = client(&lab, |_| ok("{}")).await;
    let told = few.capabilities(&sae("Bob")).await.unwrap();
    assert_eq!(told.missing, ["entropy", "key", "algorithm", "localSystemID", "remoteSystemID"]);
    for (body, kind) in [
        (CAPABILITIES.replace(r#""key" : true"#, r#""key" : false"#), K::BadRequest),
        (CAPABILITIES.replace("true", "1"), K::ProtocolViolation(Violation::Json)),
        (r#"["Alice"]"#.to_owned(), K::ProtocolViolation(Violation::Json)),
        ("<html>".to_owned(), K::ProtocolViolation(Violation::Page)),
        (String::new(), K::ProtocolViolation(Violation::Json)),
    ] {
        let shown = body.clone();
        let (client, _server) = client(&lab, move |_| ok(&body)).await;
        let error = client.link(&sae("Bob")).await.expect_err(&shown);
        check(&error, kind, Operation::Status);
    }
}

#[tokio::test]
async fn each_status_of_the_drafts_tables_is_told() {
    let lab = Lab::new();
    let redirect = K::ProtocolViolation(Violation::Redirect);
    for (line, body, status, new, old) in [
        // How capabilities, a new key, and a key by its ID interpret it.
        ("400 Bad Request", "", K::BadRequest, K::BadRequest, K::KeyNotFound),
        ("400 Bad Request", r#"{"error":"Key not found"}"#, K::BadRequest, K::Exhausted, K::KeyNotFound),
        ("401 Unauthorized", "", K::IdentityRefused, K::IdentityRefused, K::IdentityRefused),
        ("404 Not Found", "", K::BadRequest, K::BadRequest, K::KeyNotFound),
        (
            "422 Unprocessable Entity",
            r#"{"detail":"No keys left"}"#,
            K::BadRequest,
            K::Exhausted,
            K::BadRequest,
        ),
        ("405 Method Not Allowed", "", K::BadRequest, K::BadRequest, K::BadRequest),
        ("500 Internal Server Error", "", K::ServerFault, K::ServerFault, K::ServerFault),
        ("503 Service Unavailable", "", K::ServerFault, K::Exhausted, K::ServerFault),
        ("302 Found", "", redirect, redirect, redirect),
    ] {
        let (client, _server) = client(&lab, move |_| json(line, body)).await;
        let error = client.link(&sae("Bob")).await.expect_err(line);
        check(&error, status, Operation::Status);
        let error = new_key(&client).await.err().expect(line);
        check(&error, new, Operation::EncKeys);
        // "An internal error while trying to read or zeroize the key" may have cost a key.
        assert_eq!(error.keys_lost(), u32::from(line.starts_with("500")), "{error}");
        let error = by_id(&client, KEY_ID).await.err().expect(line);
        check(&error, old, Operation::DecKeys);
    }
}

#[tokio::test]
async fn keys_that_break_the_draft_are_refused_and_never_printed() {
    let lab = Lab::new();
    for (body, violation) in [
        (key_body(KEY_ID, &KEY[2..]), Violation::KeySize),
        (key_body(KEY_ID, &format!("{KEY}00")), Violation::KeySize),
        (key_body(KEY_ID, "q83vASNFZ4mrze8BI0VniavN7wEjRWeJq83vASNFZ4k="), Violation::KeySize),
        (key_body(KEY_ID, &KEY.replace('d', "g")), Violation::Base64),
        (key_body(KEY_ID, &"0".repeat(64)), Violation::ZeroKey),
        (key_body("", KEY), Violation::KeyId),
        (format!(r#"{{"key":"{KEY}"}}"#), Violation::Json),
        (format!(r#"{{"keyId":"{KEY_ID}"}}"#), Violation::Json),
        (format!(r#"{{"keyId":7,"key":"{KEY}"}}"#), Violation::Json),
        (format!(r#"["{KEY_ID}","{KEY}"]"#), Violation::Json),
        (String::new(), Violation::Json),
    ] {
        let shown = body.clone();
        let (client, _server) = client(&lab, move |_| ok(&body)).await;
        let error = new_key(&client).await.err().expect(&shown);
        check(&error, K::ProtocolViolation(violation), Operation::EncKeys);
        assert_eq!(error.keys_lost(), 1, "{error}");
        let told = format!("{error} {error:?}").to_lowercase();
        assert!(!KEY.as_bytes().windows(12).any(|part| told.contains(std::str::from_utf8(part).unwrap())));
    }
}

#[tokio::test]
async fn an_id_is_the_same_in_both_cases_and_no_other_is_taken_for_it() {
    let lab = Lab::new();
    let upper = KEY_ID.to_uppercase();
    let (client, _server) = client(&lab, move |_| ok(&key_body(&upper, KEY))).await;
    let keys = by_id(&client, KEY_ID).await.unwrap();
    assert_eq!(keys[0].id.as_str(), KEY_ID, "as the other site wrote it");
    let error = by_id(&client, "00ff").await.err().unwrap();
    check(&error, K::ProtocolViolation(Violation::OtherKeyId), Operation::DecKeys);
}

#[tokio::test]
async fn a_key_that_comes_again_or_under_a_known_id_is_refused() {
    let lab = Lab::new();
    let other = KEY.replace("ad22", "ad23");
    for (second, violation) in [
        (key_body("0001", KEY), Violation::DuplicateKey),
        (key_body(KEY_ID, KEY), Violation::DuplicateKey),
        (key_body(KEY_ID, &other), Violation::DuplicateId),
    ] {
        let first = std::sync::atomic::AtomicBool::new(true);
        let (client, _server) = client(&lab, move |_| {
            let first = first.swap(false, std::sync::atomic::Ordering::Relaxed);
            ok(&if first { key_body(KEY_ID, KEY) } else { second.clone() })
        })
        .await;
        assert!(new_key(&client).await.is_ok());
        let error = new_key(&client).await.err().unwrap();
        check(&error, K::ProtocolViolation(violation), Operation::EncKeys);
    }
}
