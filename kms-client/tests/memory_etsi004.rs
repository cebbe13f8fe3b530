//! After an operation over ETSI GS QKD 004 no copy of a key is left in the process once the key is dropped,
//! though the stream stays open. One program, one test: it reads its own memory, so nothing else may run in
//! it.
#![allow(clippy::unwrap_used)] // A test program's helpers may panic as its tests do.

mod support;

use std::sync::Arc;

use kms_client::{Etsi004Client, KeySource};
use qvpn_api::config::{Dialect, StreamOptions};
use support::copies::copies;
use support::{Lab, sae};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

/// As the daemon does: what TLS held in passing is erased when it is freed.
#[global_allocator]
static ALLOCATOR: qvpn_secret::ZeroAlloc<std::alloc::System> = qvpn_secret::ZeroAlloc(std::alloc::System);

/// Each byte of the key, made when it is needed, so that the key itself stands nowhere in the program.
fn key_byte(i: usize) -> u8 {
    let x = u32::try_from(i).unwrap().wrapping_mul(0x9e37_79b1).rotate_left(13) ^ 0x5bd1_e995;
    x.wrapping_mul(0x85eb_ca6b).to_be_bytes()[0]
}

/// The answer to a request: a stream, then one key at each index asked for.
fn answer(service: u8, payload: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(1024);
    body.extend([0; 4]);
    match service {
        2 => {
            [32u32, 1, 1, 1, 0, 5000, 3600].iter().for_each(|n| body.extend(n.to_be_bytes()));
            body.extend([0; 256]);
            body.extend([7; 16]);
        }
        4 => {
            body.extend(&payload[16..20]);
            body.extend(32u32.to_be_bytes());
            body.extend((0..32).map(key_byte));
            body.extend([0; 4]);
        }
        _ => {}
    }
    let mut message = Vec::with_capacity(1024);
    message.extend([1, 0, 1, service + 1]);
    message.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
    message.extend(body);
    message
}

#[tokio::test]
async fn nothing_of_a_key_is_left_behind() {
    let lab = Lab::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(lab.server_config()));
    let (ending, mut ended) = watch::channel(0);
    let server = tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let mut stream = acceptor.accept(tcp).await.unwrap();
            let mut header = [0; 8];
            while stream.read_exact(&mut header).await.is_ok() {
                let mut payload = vec![0; usize::from(header[6]) << 8 | usize::from(header[7])];
                stream.read_exact(&mut payload).await.unwrap();
                stream.write_all(&answer(header[3], &payload)).await.unwrap();
                stream.flush().await.unwrap();
            }
            drop(stream);
            ending.send_modify(|n| *n += 1);
        }
    });
    let mut config = lab.config(address);
    config.url = format!("tls://localhost:{}", address.port());
    let options = StreamOptions { dialect: Dialect::Python, link: None };
    let client = Etsi004Client::new(config, &options).unwrap();

    let keys = client.fetch_new(&sae("SITE-B"), 1, 256).await.unwrap();
    // The server is in this process as well, so its side of the connection has to end first.
    ended.wait_for(|ended| *ended == 1).await.unwrap();
    for (i, byte) in keys[0].secret.expose().iter().enumerate() {
        assert_eq!(*byte, key_byte(i));
    }
    // The four parts of the one key that we hold show that the search finds what is there.
    assert_eq!(copies(key_byte), 4, "copies of the key beside the one in locked memory");
    let id = keys[0].id.clone();
    drop(keys);
    assert_eq!(copies(key_byte), 0, "the key is left");

    // The same key again is refused, and nothing of it stays either.
    assert!(client.fetch_new(&sae("SITE-B"), 1, 256).await.is_err());
    assert_eq!(copies(key_byte), 0, "a refused key is left");
    let by_id = client.fetch_by_ids(&sae("SITE-B"), &[id]).await.unwrap();
    assert!(by_id[0].secret.ct_eq(&(0..32).map(key_byte).collect::<Vec<_>>()));
    drop(by_id);
    server.abort();
    let _ = server.await;
    assert_eq!(copies(key_byte), 0, "the key is left");
}
