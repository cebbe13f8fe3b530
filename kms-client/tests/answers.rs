//! How the client interprets each answer that a KME may give, one row for each misbehaviour and operation.
#![allow(clippy::unwrap_used)] // A test program's helpers may panic as its tests do.

mod support;

use std::time::{Duration, Instant};

use kms_client::KmsErrorKind as K;
use kms_client::{KmsClient, KmsError, Operation, Phase, Violation};
use qvpn_types::KeyId;
use support::{
    KEY_1, KEY_2, KEY_31, Lab, Reply, answer, assert_no_key, check, container, json, ok, sae, status_body,
};

fn ids(names: &[&str]) -> Vec<KeyId> {
    names.iter().map(|n| KeyId::new(*n).unwrap()).collect()
}

async fn enc_error(client: &KmsClient) -> KmsError {
    client.enc_keys(&sae("SITE-B"), 2, 256).await.err().expect("an error")
}

async fn dec_error(client: &KmsClient) -> KmsError {
    client.dec_keys(&sae("SITE-B"), &ids(&["id-1", "id-2"])).await.err().expect("an error")
}

async fn status_error(client: &KmsClient) -> KmsError {
    client.status(&sae("SITE-B")).await.expect_err("an error")
}

#[tokio::test]
async fn a_good_kme_gives_keys_to_both_sites() {
    let lab = Lab::new();
    let server = lab
        .serve(|request| {
            if request.path.ends_with("/status") {
                ok(&status_body("KME-A", "KME-B"))
            } else {
                ok(&container(&[("id-1", KEY_1), ("id-2", &KEY_2.replace('/', "\\/"))]))
            }
        })
        .await;
    let client = KmsClient::new(lab.config(server.address)).unwrap();
    let status = client.status(&sae("SITE-B")).await.unwrap();
    assert_eq!((status.key_size, status.max_key_per_request), (Some(32), Some(10)));
    assert!(status.missing.is_empty());

    let keys = client.enc_keys(&sae("SITE-B"), 2, 256).await.unwrap();
    assert_eq!(keys.len(), 2);
    assert_eq!(keys[0].id.as_str(), "id-1");
    assert_eq!(keys[0].secret.expose()[..4], [0xab, 0xcd, 0xef, 0x01]);
    assert_eq!(keys[1].secret.expose()[..5], [0xff, 0xff, 0xff, 0xff, 0]);
    assert_eq!((keys[0].source_kme.as_str(), keys[0].target_kme.as_str()), ("KME-A", "KME-B"));
    assert_eq!(keys[0].kme, "kme-a1");

    // As the slave, we are the target of the link.
    let keys = client.dec_keys(&sae("SITE-B"), &ids(&["id-2", "id-1"])).await.unwrap();
    assert_eq!(keys.len(), 2);
    assert_eq!((keys[0].source_kme.as_str(), keys[0].target_kme.as_str()), ("KME-B", "KME-A"));

    let requests = server.requests();
    assert_eq!(requests[0].method, "GET");
    assert_eq!(requests[0].path, "/api/v1/keys/SITE-B/status");
    assert_eq!(
        (requests[1].method.as_str(), requests[1].path.as_str()),
        ("POST", "/api/v1/keys/SITE-B/enc_keys")
    );
    assert_eq!(requests[1].body, r#"{"number":2,"size":256}"#);
    assert_eq!(
        (requests[2].method.as_str(), requests[2].path.as_str()),
        ("POST", "/api/v1/keys/SITE-B/dec_keys")
    );
    assert_eq!(requests[2].body, r#"{"key_IDs":[{"key_ID":"id-2"},{"key_ID":"id-1"}]}"#);
    let head = requests[1].head.to_lowercase();
    assert!(head.contains(&format!("host: localhost:{}\r\n", server.address.port())), "{head}");
    assert!(
        head.contains("connection: close\r\n") && head.contains("content-type: application/json\r\n"),
        "{head}"
    );
}

#[tokio::test]
async fn every_operation_has_a_connection_of_its_own() {
    let lab = Lab::new();
    let (client, server) = lab.client(ok(&status_body("A", "B"))).await;
    for _ in 0..3 {
        client.status(&sae("SITE-B")).await.unwrap();
    }
    let sessions = server.sessions.lock().unwrap().clone();
    assert_eq!(sessions.len(), 3);
    for session in sessions {
        assert_eq!(session, "Some(TLSv1_3) Some(X25519MLKEM768)");
    }
}

#[tokio::test]
async fn every_status_is_explained_for_every_operation() {
    let lab = Lab::new();
    let redirect = K::ProtocolViolation(Violation::Redirect);
    let odd = K::ProtocolViolation(Violation::Status);
    let rows = [
        // status; how status, enc_keys and dec_keys interpret it
        ("201 Created", odd, odd, odd),
        ("204 No Content", odd, odd, odd),
        ("302 Found", redirect, redirect, redirect),
        ("400 Bad Request", K::BadRequest, K::BadRequest, K::KeyNotFound),
        ("401 Unauthorized", K::IdentityRefused, K::IdentityRefused, K::KeyNotFound),
        ("403 Forbidden", K::IdentityRefused, K::IdentityRefused, K::IdentityRefused),
        ("404 Not Found", K::BadRequest, K::Exhausted, K::KeyNotFound),
        ("409 Conflict", K::BadRequest, K::Exhausted, K::KeyNotFound),
        ("412 Precondition Failed", K::BadRequest, K::Exhausted, K::KeyNotFound),
        ("422 Unprocessable Entity", K::BadRequest, K::BadRequest, K::BadRequest),
        ("500 Internal Server Error", K::ServerFault, K::ServerFault, K::ServerFault),
        ("503 Service Unavailable", K::ServerFault, K::Exhausted, K::ServerFault),
        ("504 Gateway Timeout", K::ServerFault, K::ServerFault, K::ServerFault),
    ];
    for (line, status, enc, dec) in rows {
        let code: u16 = line[..3].parse().unwrap();
        let (client, _server) = lab.client(json(line, "")).await;
        for (error, kind, operation) in [
            (status_error(&client).await, status, Operation::Status),
            (enc_error(&client).await, enc, Operation::EncKeys),
            (dec_error(&client).await, dec, Operation::DecKeys),
        ] {
            check(&error, kind, operation);
            assert_eq!(error.status(), Some(code));
            assert!(error.to_string().contains(&format!("HTTP {code}")), "{error}");
            if kind == K::IdentityRefused {
                let who = "common name SITE-A and the serial number ";
                assert!(error.to_string().contains(who), "{error}");
            }
            if (code, operation) == (404, Operation::EncKeys) {
                assert!(error.advice().contains("the url's path is wrong"), "{}", error.advice());
            }
            // A gateway that times out, and a 2xx status that isn't read, may have spent keys.
            let lost = if operation == Operation::EncKeys && matches!(code, 201 | 204 | 504) { 2 } else { 0 };
            assert_eq!(error.keys_lost(), lost, "{error}");
        }
    }
}

#[tokio::test]
async fn what_the_kme_says_is_quoted_but_never_a_key() {
    let lab = Lab::new();
    let huge = format!("<html><body><h1>Oops</h1>{}</body></html>", "lorem ipsum ".repeat(100_000));
    let with_key = format!(r#"{{"message":"cannot store {KEY_1}","keys":[{{"key":"{KEY_2}"}}]}}"#);
    let rows = [
        (
            json("400 Bad Request", r#"{"message":"size shall be a multiple of 8"}"#),
            Some("size shall be a multiple of 8"),
        ),
        (
            json("422 Unprocessable Entity", r#"{"detail":[{"loc":["body"],"msg":"field required"}]}"#),
            Some("field required"),
        ),
        (json("404 Not Found", r#"{"detail":"SAE unknown"}"#), Some("SAE unknown")),
        (answer("502 Bad Gateway", "text/html", "<html><h1>Bad gateway</h1></html>"), Some("Bad gateway")),
        (answer("500 Internal Server Error", "text/html", &huge), Some("Oops lorem ipsum")),
        (json("500 Internal Server Error", &with_key), Some("cannot store [44 characters left out]")),
        (json("500 Internal Server Error", &container(&[("id-1", KEY_1)])), None),
        (json("500 Internal Server Error", &format!("{{\"keys\":[{{\"key\":\"{}", &KEY_1[..20])), None),
        (json("500 Internal Server Error", ""), None),
        (json("201 Created", &container(&[("id-1", KEY_1)])), None),
        (json("302 Found", &container(&[("id-1", KEY_1)])), None),
    ];
    for (reply, quoted) in rows {
        let (client, _server) = lab.client(reply).await;
        for error in [enc_error(&client).await, dec_error(&client).await, status_error(&client).await] {
            assert_no_key(&format!("{error} {error:?} {}", error.advice()));
            match quoted {
                Some(words) => {
                    assert!(error.to_string().contains(words), "{error}");
                    assert!(error.excerpt().unwrap().chars().count() <= 201);
                }
                None => assert_eq!(error.excerpt(), None, "{error}"),
            }
        }
    }
}

#[tokio::test]
async fn a_redirect_is_refused_and_shown() {
    let lab = Lab::new();
    let reply = Reply::Raw(
        b"HTTP/1.1 307 Go\r\nLocation: https://elsewhere/api\r\nContent-Length: 0\r\n\r\n".to_vec(),
    );
    let (client, server) = lab.client(reply).await;
    let error = enc_error(&client).await;
    check(&error, K::ProtocolViolation(Violation::Redirect), Operation::EncKeys);
    assert!(error.to_string().contains("https://elsewhere/api"), "{error}");
    assert!(error.advice().contains("url"), "{}", error.advice());
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn a_container_that_breaks_the_document_gives_no_key() {
    let lab = Lab::new();
    let bad64 = KEY_1.replace('=', "*");
    let bytes256 = "QUJD".repeat(85) + "QQ==";
    let huge_list: Vec<(String, &str)> = (0..10_000).map(|i| (format!("id-{i}"), KEY_1)).collect();
    let huge_list: Vec<(&str, &str)> = huge_list.iter().map(|(id, key)| (id.as_str(), *key)).collect();
    let rows: Vec<(String, Violation, &str)> = vec![
        (String::new(), Violation::Json, "empty"),
        ("<html>welcome</html>".to_owned(), Violation::Page, "is a web page"),
        ("welcome".to_owned(), Violation::Json, "isn't JSON"),
        ("{}".to_owned(), Violation::Json, "\"keys\" is missing"),
        (format!(r#"{{"keys":"{KEY_1}"}}"#), Violation::Json, "another type"),
        (format!(r#"{{"keys":[{{"key_ID":"id-1","key":"{KEY_1}""#), Violation::Json, "ends too early"),
        (format!(r#"{{"keys":[{{"key":"{KEY_1}"}}]}}"#), Violation::Json, "\"key_ID\" is missing"),
        (
            container(&[("id-1", KEY_1), ("id-2", KEY_2), ("id-3", KEY_2)]),
            Violation::TooManyKeys,
            "3 keys came",
        ),
        (container(&huge_list), Violation::TooManyKeys, "10000 keys came and 2 were asked"),
        (container(&[("id-1", KEY_31)]), Violation::KeySize, "31 bytes"),
        (container(&[("id-1", &bad64)]), Violation::Base64, "isn't base64"),
        (container(&[("id-1", KEY_1.trim_end_matches('='))]), Violation::Base64, "with padding"),
        (container(&[("id-1", &format!("{}=", "A".repeat(43)))]), Violation::ZeroKey, "zero bytes"),
        (container(&[("id-1", KEY_1), ("id-1", KEY_2)]), Violation::DuplicateId, "id-1 came twice"),
        (container(&[("id-1", KEY_1), ("id-2", KEY_1)]), Violation::DuplicateKey, "id-1 and id-2"),
        (container(&[("", KEY_1)]), Violation::KeyId, "empty"),
    ];
    for (body, violation, words) in rows {
        let (client, _server) = lab.client(ok(&body)).await;
        for (error, operation) in
            [(enc_error(&client).await, Operation::EncKeys), (dec_error(&client).await, Operation::DecKeys)]
        {
            check(&error, K::ProtocolViolation(violation), operation);
            assert!(error.to_string().contains(words), "{error}");
            assert_eq!(error.excerpt(), None);
            assert_eq!(error.keys_lost(), if operation == Operation::EncKeys { 2 } else { 0 });
            assert!(error.advice().contains("vendor"));
        }
    }
    // Faults that only one of the two operations can detect.
    let (client, _server) = lab.client(ok(&container(&[("id-1", &bytes256)]))).await;
    let error = enc_error(&client).await;
    check(&error, K::ProtocolViolation(Violation::KeySize), Operation::EncKeys);
    assert!(error.to_string().contains("takes sizes for bytes"), "{error}");
    let (client, _server) = lab.client(ok(&container(&[("ID-1", KEY_1)]))).await;
    let error = dec_error(&client).await;
    check(&error, K::ProtocolViolation(Violation::OtherKeyId), Operation::DecKeys);
    assert!(error.to_string().contains("ID-1"), "{error}");
}

#[tokio::test]
async fn fewer_keys_are_accepted_and_none_is_an_error() {
    let lab = Lab::new();
    let (client, _server) = lab.client(ok(&container(&[("id-2", KEY_1)]))).await;
    assert_eq!(client.enc_keys(&sae("SITE-B"), 5, 256).await.unwrap().len(), 1);
    assert_eq!(client.dec_keys(&sae("SITE-B"), &ids(&["id-1", "id-2"])).await.unwrap().len(), 1);

    let (client, _server) = lab.client(ok(r#"{"keys":[]}"#)).await;
    let error = enc_error(&client).await;
    check(&error, K::Exhausted, Operation::EncKeys);
    assert!(error.to_string().contains("empty list"), "{error}");
    assert_eq!(error.keys_lost(), 0);
    check(&dec_error(&client).await, K::KeyNotFound, Operation::DecKeys);
}

#[tokio::test]
async fn key_ids_and_sae_ids_are_opaque_and_echoed_exactly() {
    let lab = Lab::new();
    let odd = "ключ/1 &=%\\u002f+\\\"?#";
    let odd_id = "ключ/1 &=%/+\"?#";
    let (client, server) = lab.client(ok(&container(&[(odd, KEY_1)]))).await;
    let key = client.enc_keys(&sae("SITE/B ü.."), 1, 256).await.unwrap().remove(0);
    assert_eq!(key.id.as_str(), odd_id);
    let keys = client.dec_keys(&sae("SITE/B ü.."), std::slice::from_ref(&key.id)).await.unwrap();
    assert_eq!(keys[0].id.as_str(), odd_id);
    let requests = server.requests();
    assert_eq!(requests[0].path, "/api/v1/keys/SITE%2FB%20%C3%BC../enc_keys");
    assert_eq!(requests[1].body, "{\"key_IDs\":[{\"key_ID\":\"ключ/1 &=%/+\\\"?#\"}]}");
}

#[tokio::test]
async fn falls_back_to_get_where_post_is_not_there() {
    let lab = Lab::new();
    let server = lab
        .serve(|request| match request.method.as_str() {
            "POST" => answer("405 Method Not Allowed", "text/html", "<h1>no</h1>"),
            _ => ok(&container(&[("id 1", KEY_1)])),
        })
        .await;
    let client = KmsClient::new(lab.config(server.address)).unwrap();
    client.enc_keys(&sae("SITE-B"), 1, 256).await.unwrap();
    client.dec_keys(&sae("SITE-B"), &ids(&["id 1"])).await.unwrap();
    let paths: Vec<_> = server.requests().into_iter().map(|r| format!("{} {}", r.method, r.path)).collect();
    assert_eq!(
        paths,
        [
            "POST /api/v1/keys/SITE-B/enc_keys",
            "GET /api/v1/keys/SITE-B/enc_keys?number=1&size=256",
            "POST /api/v1/keys/SITE-B/dec_keys",
            "GET /api/v1/keys/SITE-B/dec_keys?key_ID=id%201",
        ]
    );
    // There is no GET form for several IDs, so each is requested alone; this server has one of the two.
    let keys = client.dec_keys(&sae("SITE-B"), &ids(&["id 1", "id 2"])).await.unwrap();
    assert_eq!(keys.iter().map(|key| key.id.as_str()).collect::<Vec<_>>(), ["id 1"]);
    let asked: Vec<_> =
        server.requests().split_off(4).into_iter().map(|r| format!("{} {}", r.method, r.path)).collect();
    let (post, get) = ("POST /api/v1/keys/SITE-B/dec_keys", "GET /api/v1/keys/SITE-B/dec_keys?key_ID=id%20");
    assert_eq!(asked, [post, &format!("{get}1"), &format!("{get}2")]);
}

#[tokio::test]
async fn a_404_is_asked_again_by_get_only_until_post_has_worked() {
    let lab = Lab::new();
    let server = lab
        .serve(|request| {
            if request.body.contains("good") {
                ok(&container(&[("good", KEY_1)]))
            } else {
                json("404 Not Found", "")
            }
        })
        .await;
    let client = KmsClient::new(lab.config(server.address)).unwrap();
    let missing = ids(&["missing"]);
    let error = client.dec_keys(&sae("SITE-B"), &missing).await.err().unwrap();
    check(&error, K::KeyNotFound, Operation::DecKeys);
    assert_eq!(server.requests().len(), 2);
    client.dec_keys(&sae("SITE-B"), &ids(&["good"])).await.unwrap();
    let error = client.dec_keys(&sae("SITE-B"), &missing).await.err().unwrap();
    check(&error, K::KeyNotFound, Operation::DecKeys);
    assert_eq!(server.requests().len(), 4, "GET isn't tried any more");
}

#[tokio::test]
async fn enc_keys_is_never_repeated_by_itself() {
    let lab = Lab::new();
    for reply in [
        Reply::ThenHang(Vec::new()),
        Reply::ThenDrop(Vec::new()),
        json("500 Internal Server Error", ""),
        json("503 Service Unavailable", ""),
        json("404 Not Found", ""),
        ok("nonsense"),
    ] {
        let (client, server) = lab.impatient_client(reply).await;
        enc_error(&client).await;
        assert_eq!(server.requests().len(), 1);
    }
}

#[tokio::test]
async fn a_kme_that_hangs_is_left_at_the_deadline() {
    let lab = Lab::new();
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{\"keys\":[".to_vec();
    let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    let slow = Duration::from_millis(20);
    let rows = [
        (Reply::ThenHang(Vec::new()), Phase::Answer),
        (Reply::ThenHang(b"HTTP/1.1 20".to_vec()), Phase::Answer),
        (Reply::ThenDrip(b"HTTP/1.1 200 OK\r\n".to_vec(), b"X-A: b\r\n".to_vec(), slow), Phase::Answer),
        (Reply::ThenHang(head.clone()), Phase::Body),
        (Reply::ThenDrip(head, b" ".to_vec(), slow), Phase::Body),
        (Reply::ThenDrip(chunked, b"1\r\n \r\n".to_vec(), slow), Phase::Body),
    ];
    for (reply, phase) in rows {
        let (client, _server) = lab.impatient_client(reply).await;
        let began = Instant::now();
        let error = enc_error(&client).await;
        check(&error, K::LostKeys(phase), Operation::EncKeys);
        assert_eq!(error.keys_lost(), 2);
        assert!(error.to_string().contains("up to 2 keys may be lost"), "{error}");
        assert!(error.advice().contains("isn't repeated"), "{}", error.advice());
        check(&dec_error(&client).await, K::Timeout(phase), Operation::DecKeys);
        let error = status_error(&client).await;
        check(&error, K::Timeout(phase), Operation::Status);
        assert!(error.to_string().contains("400ms"), "{error}");
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn an_error_whose_body_never_ends_is_classified_by_its_status() {
    let lab = Lab::new();
    let head =
        b"HTTP/1.1 503 Busy\r\nContent-Type: text/plain\r\nContent-Length: 100000\r\n\r\nno keys ".to_vec();
    let (client, _server) =
        lab.impatient_client(Reply::ThenDrip(head, b"x ".to_vec(), Duration::from_millis(20))).await;
    let error = enc_error(&client).await;
    check(&error, K::Exhausted, Operation::EncKeys);
    assert!(error.excerpt().unwrap().starts_with("no keys"), "{error}");
    assert_eq!(error.keys_lost(), 0);
}

#[tokio::test]
async fn a_body_without_bounds_is_cut_off() {
    let lab = Lab::new();
    let too_large = K::ProtocolViolation(Violation::TooLarge);
    let announced = Reply::ThenHang(b"HTTP/1.1 200 OK\r\nContent-Length: 10485760\r\n\r\n".to_vec());
    let (client, _server) = lab.client(announced).await;
    let began = Instant::now();
    let error = enc_error(&client).await;
    check(&error, too_large, Operation::EncKeys);
    assert_eq!(error.keys_lost(), 2);
    assert!(error.to_string().contains("larger than 1048576 bytes"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(2), "refused by its announced length");

    let block = [format!("{:x}\r\n", 65536).into_bytes(), vec![b' '; 65536], b"\r\n".to_vec()].concat();
    let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    let (client, _server) = lab.client(Reply::ThenDrip(head, block, Duration::ZERO)).await;
    for (error, operation) in
        [(dec_error(&client).await, Operation::DecKeys), (status_error(&client).await, Operation::Status)]
    {
        check(&error, too_large, operation);
    }
    // An unbounded head is refused as well.
    let line = format!("X-Filler: {}\r\n", "y".repeat(1000)).into_bytes();
    let (client, _server) =
        lab.client(Reply::ThenDrip(b"HTTP/1.1 200 OK\r\n".to_vec(), line, Duration::ZERO)).await;
    check(&status_error(&client).await, K::ProtocolViolation(Violation::Http), Operation::Status);
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_lost() {
    let lab = Lab::new();
    let half = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{\"keys\":[".to_vec();
    let rows = [
        (Reply::ThenDrop(Vec::new()), Phase::Answer),
        (Reply::Raw(Vec::new()), Phase::Answer),
        (Reply::Raw(b"HTTP/1.1 200 O".to_vec()), Phase::Answer),
        (Reply::ThenDrop(half.clone()), Phase::Body),
        (Reply::Raw(half), Phase::Body),
    ];
    for (reply, phase) in rows {
        let (client, _server) = lab.client(reply).await;
        let error = enc_error(&client).await;
        check(&error, K::LostKeys(phase), Operation::EncKeys);
        assert_eq!(error.keys_lost(), 2);
        check(&status_error(&client).await, K::Unreachable, Operation::Status);
        check(&dec_error(&client).await, K::Unreachable, Operation::DecKeys);
    }
}

#[tokio::test]
async fn a_body_that_ends_by_closing_is_whole_if_its_json_is() {
    let lab = Lab::new();
    let head = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";
    let whole = format!("{head}{}", container(&[("id-1", KEY_1)])).into_bytes();
    for reply in [Reply::Raw(whole.clone()), Reply::ThenDrop(whole.clone())] {
        let (client, _server) = lab.client(reply).await;
        assert_eq!(client.enc_keys(&sae("SITE-B"), 1, 256).await.unwrap().len(), 1);
    }
    let (client, _server) = lab.client(Reply::ThenDrop(whole[..whole.len() - 4].to_vec())).await;
    let error = enc_error(&client).await;
    check(&error, K::ProtocolViolation(Violation::Json), Operation::EncKeys);
}

#[tokio::test]
async fn an_answer_that_is_not_http_is_reported_as_such() {
    let lab = Lab::new();
    for bytes in
        [&b"220 mail.example ESMTP ready\r\n"[..], b"\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\r\n\r\n"]
    {
        let (client, _server) = lab.client(Reply::Raw(bytes.to_vec())).await;
        check(&status_error(&client).await, K::ProtocolViolation(Violation::Http), Operation::Status);
    }
}

#[tokio::test]
async fn a_status_that_leaves_fields_out_is_usable() {
    let lab = Lab::new();
    let (client, _server) =
        lab.client(ok(r#"{"source_KME_ID":"A","stored_key_count":"7","extra":{}}"#)).await;
    let status = client.status(&sae("SITE-B")).await.unwrap();
    assert_eq!((status.source_kme_id.as_str(), status.stored_key_count), ("A", Some(7)));
    assert!(status.missing.contains(&"target_KME_ID") && status.missing.contains(&"key_size"));
    for body in ["", "[]", "null", "{\"source_KME_ID\":"] {
        let (client, _server) = lab.client(ok(body)).await;
        check(&status_error(&client).await, K::ProtocolViolation(Violation::Json), Operation::Status);
    }
    let (client, _server) = lab.client(answer("200 OK", "text/html", "<!DOCTYPE html><p>Sign in</p>")).await;
    let error = status_error(&client).await;
    check(&error, K::ProtocolViolation(Violation::Page), Operation::Status);
    assert!(error.advice().contains("url's port and path"), "{}", error.advice());
}

#[tokio::test]
async fn an_invalid_request_is_refused_before_a_key_is_spent() {
    let lab = Lab::new();
    let (client, server) = lab.client(ok("{}")).await;
    for (number, bits) in [(0, 256), (129, 256), (1, 255), (1, 0), (1, 128), (1, 16384)] {
        let error = client.enc_keys(&sae("SITE-B"), number, bits).await.err().unwrap();
        check(&error, K::Config, Operation::EncKeys);
    }
    check(&client.dec_keys(&sae("SITE-B"), &[]).await.err().unwrap(), K::Config, Operation::DecKeys);
    for name in [".", ".."] {
        check(&client.status(&sae(name)).await.err().unwrap(), K::Config, Operation::Status);
    }
    assert!(server.requests().is_empty());
}
