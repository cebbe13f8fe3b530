//! Error answers of real servers and proxies, each with its meaning: `corpus/etsi014.json`. Every answer
//! comes over a real connection.
#![allow(clippy::unwrap_used)] // A test program's helpers may panic as its tests do.

mod support;

use kms_client::{KmsError, KmsErrorKind, Operation};
use qvpn_types::KeyId;
use serde_json::Value;
use support::{KEY_1, Lab, answer, assert_no_key, container, ok, sae, status_body};

fn rows() -> Vec<Value> {
    serde_json::from_str(include_str!("corpus/etsi014.json")).unwrap()
}

/// Returns how the client interprets a row's answer. The preceding status request succeeds, so that the KMEs
/// are known.
async fn error_of(lab: &Lab, row: &Value, body: &str) -> KmsError {
    let operation = row["operation"].as_str().unwrap().to_owned();
    let reply = answer(&format!("{} X", row["status"]), row["content_type"].as_str().unwrap(), body);
    let asked = operation.clone();
    let server = lab
        .serve(move |request| match request.path.ends_with("/status") && asked != "status" {
            true => ok(&status_body("KME-A", "KME-B")),
            false => reply.clone(),
        })
        .await;
    let client = kms_client::KmsClient::new(lab.config(server.address)).unwrap();
    if operation != "status" {
        client.status(&sae("SITE-B")).await.unwrap();
    }
    match operation.as_str() {
        "status" => client.status(&sae("SITE-B")).await.err(),
        "enc_keys" => client.enc_keys(&sae("SITE-B"), 2, 256).await.err(),
        _ => client
            .dec_keys(&sae("SITE-B"), &[KeyId::new("id-1").unwrap(), KeyId::new("id-2").unwrap()])
            .await
            .err(),
    }
    .unwrap()
}

#[tokio::test]
async fn each_answer_is_read_as_what_it_means() {
    let lab = Lab::new();
    for row in rows() {
        let error = error_of(&lab, &row, row["body"].as_str().unwrap()).await;
        let context = format!("{row}\n{error}\n{}", error.advice());
        assert_eq!(error.kind().as_str(), row["means"], "{context}");
        assert_eq!(error.is_certain(), row["certain"].as_bool().unwrap(), "{context}");
        assert_eq!(error.to_string().contains("probably "), !error.is_certain(), "{context}");
        assert_eq!(error.keys_lost() > 0, row["keys_lost"].as_bool().unwrap(), "{context}");
        match row["by"].as_str() {
            Some(by) => {
                assert!(error.to_string().contains(&format!("{by} answers, not the KME")), "{context}")
            }
            None => assert!(!error.to_string().contains("not the KME"), "{context}"),
        }
        if error.kind() == KmsErrorKind::PeerKmeDown {
            assert!(error.to_string().contains("KME-B of SAE SITE-B"), "{context}");
            assert!(error.advice().contains("your own KME works"), "{context}");
        }
        assert_ne!(error.operation(), Operation::Configure);
        assert!(!error.advice().is_empty(), "{context}");
    }
}

/// A generator that returns the same numbers in each run (xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(limit.max(1)).unwrap()).unwrap()
    }
}

/// 200 answers, right and wrong ones, with bytes changed, removed, doubled or cut off: each results in an
/// error message or in keys that were requested, and never in text from a key.
#[tokio::test]
async fn changed_answers_never_give_a_wrong_key() {
    let lab = Lab::new();
    let good = container(&[("id-1", KEY_1)]);
    let rows = rows();
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    for _ in 0..200 {
        let row = &rows[numbers.below(rows.len())];
        let error_body = row["body"].as_str().unwrap();
        let (status, body) = match numbers.below(2) {
            0 => (200, good.as_str()),
            _ => (row["status"].as_u64().unwrap(), error_body),
        };
        let mut bytes = body.as_bytes().to_vec();
        for _ in 0..=numbers.below(4) {
            let at = numbers.below(bytes.len());
            match numbers.below(4) {
                0 if !bytes.is_empty() => bytes[at] ^= 1 << numbers.below(8),
                1 if !bytes.is_empty() => drop(bytes.remove(at)),
                2 => bytes.truncate(at),
                _ => bytes.extend_from_within(at..),
            }
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (client, _server) =
            lab.client(answer(&format!("{status} X"), row["content_type"].as_str().unwrap(), &text)).await;
        let ids = [KeyId::new("id-1").unwrap(), KeyId::new("id-2").unwrap()];
        match client.dec_keys(&sae("SITE-B"), &ids).await {
            Ok(keys) => {
                assert_eq!(status, 200, "{text}");
                // A changed key is detected by its confirmation; this test can check only the form.
                assert!(keys.iter().all(|key| ids.contains(&key.id) && key.secret.len() >= 32), "{text}");
            }
            Err(error) => {
                assert!(!error.advice().is_empty());
                assert_no_key(&format!("{error} {}", error.advice()));
            }
        }
    }
}
