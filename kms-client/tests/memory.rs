//! After an operation, the process holds no copy of a key's base64 or of its body, and none of the key once
//! it is dropped; after a failed operation, it holds neither. The program has only one test, because it reads
//! its own memory and nothing else may run in it.
#![allow(clippy::unwrap_used)] // A test program's helpers may panic as its tests do.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kms_client::KmsErrorKind as K;
use kms_client::{KmsClient, MAX_BODY, Phase, Violation};
use qvpn_types::KeyId;
use support::copies::copies;
use support::{Lab, Reply, Server, sae};

/// As in the daemon: temporary buffers of TLS, HTTP and JSON are erased when they are freed.
#[global_allocator]
static ALLOCATOR: qvpn_secret::ZeroAlloc<std::alloc::System> = qvpn_secret::ZeroAlloc(std::alloc::System);

/// Returns a byte of the key, computed when it is needed, so that the key itself is nowhere in the program.
fn key_byte(i: usize) -> u8 {
    let x = u32::try_from(i).unwrap().wrapping_mul(0x9e37_79b1).rotate_left(13) ^ 0x5bd1_e995;
    x.wrapping_mul(0x85eb_ca6b).to_be_bytes()[0]
}

/// Returns the character at `i` of the key's base64.
fn base64_char(i: usize) -> u8 {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bit = i * 6;
    if bit >= 256 {
        return b'=';
    }
    let next = if bit / 8 + 1 < 32 { key_byte(bit / 8 + 1) } else { 0 };
    let pair = u16::from_be_bytes([key_byte(bit / 8), next]);
    ALPHABET[usize::from((pair >> (10 - bit % 8)) & 63)]
}

/// Returns a container that begins with that key, its text escaped as JSON allows, so that the parser has to
/// copy it.
fn body(behind: &str) -> Vec<u8> {
    let mut body = Vec::with_capacity(4096);
    body.extend_from_slice(br#"{"keys":[{"key_ID":"id-1","key":""#);
    for i in 0..44 {
        match base64_char(i) {
            b'/' => body.extend_from_slice(b"\\/"),
            // Escaping one character makes the copy certain.
            c if i == 30 => body.extend_from_slice(format!("\\u{:04x}", u32::from(c)).as_bytes()),
            c => body.push(c),
        }
    }
    body.extend_from_slice(b"\"}");
    body.extend_from_slice(behind.as_bytes());
    body
}

fn with_head(status: &str, announced: usize, body: &[u8]) -> Vec<u8> {
    let mut all = Vec::with_capacity(body.len() + 1024);
    all.extend_from_slice(format!("HTTP/1.1 {status}\r\nContent-Length: {announced}\r\n\r\n").as_bytes());
    all.extend_from_slice(body);
    all
}

/// Returns a valid answer, or one of the answers that the client refuses.
fn reply(which: usize) -> Reply {
    let whole = body("]}");
    let status = |status| Reply::Raw(with_head(status, whole.len(), &whole));
    match which {
        0 => status("200 OK"),
        1 => {
            let body = body(r#",{"key_ID":"id-2","key":"q83vASNFZ4k="}]}"#);
            Reply::Raw(with_head("200 OK", body.len(), &body))
        }
        2 => Reply::ThenDrop(with_head("200 OK", whole.len() + 1, &whole)),
        3 => {
            let mut all = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
            all.extend_from_slice(&body(&" ".repeat(MAX_BODY)));
            Reply::Raw(all)
        }
        4 => status("500 Internal Server Error"),
        5 => status("201 Created"),
        _ => status("302 Found"),
    }
}

#[tokio::test]
async fn nothing_of_a_key_is_left_behind() {
    let lab = Lab::new();
    let which = Arc::new(AtomicUsize::new(0));
    let server = Server::start(lab.server_config(), {
        let which = Arc::clone(&which);
        move |_| reply(which.load(Ordering::SeqCst))
    })
    .await;
    let client = KmsClient::new(lab.config(server.address)).unwrap();
    let ids = ["id-1", "id-2"].map(|id| KeyId::new(id).unwrap());

    for operation in 0..2 {
        let keys = match operation {
            0 => client.enc_keys(&sae("SITE-B"), 1, 256).await.unwrap(),
            _ => client.dec_keys(&sae("SITE-B"), &ids[..1]).await.unwrap(),
        };
        // The server's side of the connection is in this process as well, so it has to end first.
        server.ended.clone().wait_for(|ended| *ended == operation + 1).await.unwrap();
        for (i, byte) in keys[0].secret.expose().iter().enumerate() {
            assert_eq!(*byte, key_byte(i));
        }
        assert_eq!(copies(base64_char), 0, "base64 is left");
        // The search finds the four parts of the one key that we hold.
        assert_eq!(copies(key_byte), 4, "copies of the key beside the one in locked memory");
        drop(keys);
        assert_eq!(copies(key_byte), 0, "the key is left");
    }

    let violation = K::ProtocolViolation;
    for (number, (new, by_ids)) in [
        (violation(Violation::KeySize), violation(Violation::KeySize)),
        (K::LostKeys(Phase::Body), K::Unreachable),
        (violation(Violation::TooLarge), violation(Violation::TooLarge)),
        (K::ServerFault, K::ServerFault),
        (violation(Violation::Status), violation(Violation::Status)),
        (violation(Violation::Redirect), violation(Violation::Redirect)),
    ]
    .into_iter()
    .enumerate()
    {
        which.store(number + 1, Ordering::SeqCst);
        assert_eq!(client.enc_keys(&sae("SITE-B"), 2, 256).await.err().unwrap().kind(), new);
        assert_eq!(client.dec_keys(&sae("SITE-B"), &ids).await.err().unwrap().kind(), by_ids);
        server.ended.clone().wait_for(|ended| *ended == 4 + 2 * number).await.unwrap();
    }
    assert_eq!(copies(base64_char), 0, "base64 of a refused answer is left");
    assert_eq!(copies(key_byte), 0, "a key of a refused answer is left");
}
