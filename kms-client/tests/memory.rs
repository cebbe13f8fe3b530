//! After an operation no copy of a key's base64 or of its body is left in the process, and none of the key once it is
//! dropped. One program, one test: it reads its own memory, so nothing else may run in it.
#![allow(clippy::unwrap_used)] // A test program's helpers may panic as its tests do.

mod support;

use std::io::{Read, Seek, SeekFrom};

use kms_client::{KeyId, KmsClient};
use support::{Lab, Reply, Server};

/// As the daemon does: what TLS, HTTP and JSON held in passing is erased when it is freed.
#[global_allocator]
static ALLOCATOR: qvpn_secret::ZeroAlloc<std::alloc::System> = qvpn_secret::ZeroAlloc(std::alloc::System);

/// Each byte of the key, made when it is needed, so that the key itself stands nowhere in the program.
fn key_byte(i: usize) -> u8 {
    let x = u32::try_from(i).unwrap().wrapping_mul(0x9e37_79b1).rotate_left(13) ^ 0x5bd1_e995;
    x.wrapping_mul(0x85eb_ca6b).to_be_bytes()[0]
}

/// The character at `i` of the key's base64.
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

/// An answer with that key, its text escaped as JSON allows, so that the parser has to copy it.
fn reply() -> Reply {
    let before = br#"{"keys":[{"key_ID":"id-1","key":""#;
    let after = br#""}]}"#;
    let mut body = Vec::with_capacity(4096);
    body.extend_from_slice(before);
    for i in 0..44 {
        match base64_char(i) {
            b'/' => body.extend_from_slice(b"\\/"),
            // A character in JSON's other spelling makes the copy certain.
            c if i == 30 => body.extend_from_slice(format!("\\u{:04x}", u32::from(c)).as_bytes()),
            c => body.push(c),
        }
    }
    body.extend_from_slice(after);
    let mut all = Vec::with_capacity(8192);
    all.extend_from_slice(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes());
    all.extend_from_slice(&body);
    Reply::Raw(all)
}

/// How often one of four pieces of 12 bytes of what `byte` gives stands in this process's writable memory. There is no
/// needle, which would be found itself, and what is read is kept masked, so that it isn't a copy either.
fn copies(byte: impl Fn(usize) -> u8) -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mut memory = std::fs::File::open("/proc/self/mem").unwrap();
    let mut found = 0;
    let firsts = [0, 8, 16, 20].map(|at| (at, byte(at) ^ 0xa5));
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (range, _) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let (start, end) = (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap());
        let mut masked = vec![0u8; usize::try_from(end - start).unwrap()];
        memory.seek(SeekFrom::Start(start)).unwrap();
        let mut at = 0;
        let mut page = [0u8; 4096];
        while at < masked.len() {
            if memory.read_exact(&mut page).is_err() {
                break;
            }
            for (to, from) in masked[at..at + 4096].iter_mut().zip(page) {
                *to = from ^ 0xa5;
            }
            at += 4096;
        }
        // The page on our own stack is cleared, since it is in the memory that is read.
        page.fill(0);
        std::hint::black_box(&page);
        for piece in masked.windows(12) {
            for (start, first) in firsts {
                let matches = piece[0] == first
                    && piece.iter().enumerate().all(|(i, masked)| *masked == byte(start + i) ^ 0xa5);
                found += usize::from(matches);
            }
        }
    }
    found
}

#[tokio::test]
async fn nothing_of_a_key_is_left_behind() {
    let lab = Lab::new();
    let server = Server::start(lab.server_config(), |_| reply()).await;
    let client = KmsClient::new(lab.config(server.address)).unwrap();

    for operation in 0..2 {
        let keys = match operation {
            0 => client.enc_keys("SITE-B", 1, 256).await.unwrap(),
            _ => client.dec_keys("SITE-B", &[KeyId::new("id-1").unwrap()]).await.unwrap(),
        };
        // The server's side of the connection is in this process as well, so it has to end first.
        server.ended.clone().wait_for(|ended| *ended == operation + 1).await.unwrap();
        for (i, byte) in keys[0].secret.expose().iter().enumerate() {
            assert_eq!(*byte, key_byte(i));
        }
        assert_eq!(copies(base64_char), 0, "base64 is left");
        // The four parts of the one key that we hold show that the search finds what is there.
        assert_eq!(copies(key_byte), 4, "copies of the key beside the one in locked memory");
        drop(keys);
        assert_eq!(copies(key_byte), 0, "the key is left");
    }
}
