//! The ETSI GS QKD 004 interface: key streams from the same links, with the same faults. The client here is a
//! few lines of its own.
#![allow(clippy::unwrap_used)] // a failure in a helper is a failure of the test

mod common;

use std::sync::Arc;

use common::{CONFIG, Lab, SEED, client_config};
use kme_sim::faults::catalog::{Misbehaviour, Ops};
use kme_sim::test_key;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const OPEN: u8 = 2;
const GET_KEY: u8 = 4;
const CLOSE: u8 = 8;

/// Both interfaces at kme-a1, key streams alone at kme-b1.
async fn lab() -> Lab {
    let with = |name: &str, apis: &str| {
        (format!("key_file = \"{name}.key\"\n"), format!("key_file = \"{name}.key\"\napis = {apis}\n"))
    };
    let (a, a_new) = with("kme-a1", "[\"etsi014\", \"etsi004\"]");
    let (b, b_new) = with("kme-b1", "[\"etsi004\"]");
    Lab::with(&CONFIG.replace(&a, &a_new).replace(&b, &b_new)).await
}

struct Client(TlsStream<TcpStream>);

impl Client {
    async fn connect(lab: &Lab, kme: &str, sae: &str) -> Self {
        let mut config = client_config(lab.directory.path(), Some(sae), rustls::ALL_VERSIONS);
        config.alpn_protocols.clear();
        let tcp = TcpStream::connect(lab.address(kme)).await.unwrap();
        let name = ServerName::try_from(kme.to_owned()).unwrap();
        Self(TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap())
    }

    /// Sends a request and returns the payload of its answer.
    async fn call(&mut self, service: u8, payload: &[u8]) -> Vec<u8> {
        let mut message = vec![1, 0, 1, service];
        message.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
        message.extend(payload);
        self.0.write_all(&message).await.unwrap();
        let mut header = [0; 8];
        self.0.read_exact(&mut header).await.unwrap();
        assert_eq!(header[3], service + 1);
        let mut answer = vec![0; u32::from_be_bytes(header[4..].try_into().unwrap()) as usize];
        self.0.read_exact(&mut answer).await.unwrap();
        answer
    }

    /// OPEN_CONNECT in Python's format; the status, and chunk and stream if they came.
    async fn open(&mut self, from: &str, to: &str, chunk: u32, ksid: &[u8]) -> (u32, Option<(u32, Vec<u8>)>) {
        let mut payload = format!("qkd://{from}\0qkd://{to}\0").into_bytes();
        [chunk, 1000, 1, 1, 0, 5000, 3600].iter().for_each(|n| payload.extend(n.to_be_bytes()));
        let field = payload.len();
        payload.extend(b"application/json");
        payload.resize(field + 256, 0);
        payload.extend(ksid);
        let answer = self.call(OPEN, &payload).await;
        let more = (answer.len() > 4).then(|| {
            assert_eq!(answer.len(), 4 + 28 + 256 + 16);
            (number(&answer[4..]), answer[288..].to_vec())
        });
        (number(&answer), more)
    }

    /// GET_KEY: the key, or the status.
    async fn key(&mut self, ksid: &[u8], index: u32) -> Result<Vec<u8>, u32> {
        let payload = [ksid, &index.to_be_bytes(), &1024u32.to_be_bytes()].concat();
        let answer = self.call(GET_KEY, &payload).await;
        match number(&answer) {
            0 => {
                assert_eq!(number(&answer[4..]), index);
                let length = number(&answer[8..]) as usize;
                assert_eq!(number(&answer[12 + length..]) as usize, answer.len() - 16 - length);
                Ok(answer[12..12 + length].to_vec())
            }
            status => Err(status),
        }
    }

    async fn close(&mut self, ksid: &[u8]) -> u32 {
        number(&self.call(CLOSE, ksid).await)
    }
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().unwrap())
}

#[tokio::test]
async fn both_sides_get_the_same_key_at_an_index_and_once() {
    let lab = lab().await;
    let mut a = Client::connect(&lab, "kme-a1", "site-a").await;
    let mut b = Client::connect(&lab, "kme-b1", "site-b").await;
    let (status, opened) = a.open("SITE-A", "SITE-B", 32, &[0; 16]).await;
    let (chunk, ksid) = opened.unwrap();
    assert_eq!((status, chunk), (0, 32));
    assert_eq!(b.key(&ksid, 0).await, Err(3), "not open at this side");
    assert_eq!(b.open("SITE-B", "SITE-A", 32, &ksid).await, (0, Some((32, ksid.clone()))));
    assert_eq!(b.open("SITE-B", "SITE-A", 32, &ksid).await.0, 5);

    let first = a.key(&ksid, 0).await.unwrap();
    assert_eq!(
        first,
        test_key::key(SEED, 0, 32).expose(),
        "from the same link as the other interface's keys"
    );
    let third = a.key(&ksid, 2).await.unwrap();
    assert_eq!(a.key(&ksid, 2).await, Err(2), "delivered already");
    assert_eq!(a.key(&ksid, 1).await, Err(2), "skipped");
    assert_eq!(b.key(&ksid, 2).await, Ok(third));
    assert_eq!(b.key(&ksid, 0).await, Ok(first));
    assert_eq!(b.key(&ksid, 0).await, Err(2));
    // Either side may be the first to ask for an index.
    let fourth = b.key(&ksid, 3).await.unwrap();
    assert_eq!(a.key(&ksid, 3).await, Ok(fourth));

    let last = a.key(&ksid, 4).await.unwrap();
    assert_eq!(a.close(&ksid).await, 0);
    assert_eq!(a.close(&ksid).await, 3);
    assert_eq!(a.key(&ksid, 5).await, Err(3));
    assert_eq!(b.key(&ksid, 4).await, Ok(last), "what was taken stays for the other side");
    assert_eq!(b.close(&ksid).await, 0);
    assert_eq!(b.open("SITE-B", "SITE-A", 32, &ksid).await.0, 4, "nothing is left of it");
}

#[tokio::test]
async fn what_is_no_stream_of_the_caller_is_refused() {
    let lab = lab().await;
    let mut a = Client::connect(&lab, "kme-a1", "site-a").await;
    for (from, to) in [("SITE-B", "SITE-A"), ("SITE-A", "SITE-A"), ("SITE-A", "NOBODY"), ("", "")] {
        assert_eq!(a.open(from, to, 32, &[0; 16]).await, (4, None), "{from} {to}");
    }
    assert_eq!(a.open("SITE-A", "SITE-B", 32, &[7; 16]).await, (4, None), "no such stream");
    assert_eq!(a.key(&[7; 16], 0).await, Err(3));
    let (_, opened) = a.open("SITE-A", "SITE-B", 32, &[0; 16]).await;
    let mut other = Client::connect(&lab, "kme-b1", "b-ro-2-b").await;
    assert_eq!(other.open("B%C3%BCro%202%2Fb", "SITE-A", 32, &opened.unwrap().1).await.0, 5);
    let mut nobody = Client::connect(&lab, "kme-a1", "nobody").await;
    assert_eq!(nobody.open("NOBODY", "SITE-B", 32, &[0; 16]).await, (4, None));
}

#[tokio::test]
async fn a_chunk_that_cannot_be_has_a_counter_proposal() {
    let lab = lab().await;
    let mut a = Client::connect(&lab, "kme-a1", "site-a").await;
    for (wanted, proposal) in [(4, 8), (1000, 128)] {
        let (status, opened) = a.open("SITE-A", "SITE-B", wanted, &[0; 16]).await;
        assert_eq!((status, opened.unwrap()), (7, (proposal, vec![0; 16])));
    }
    lab.misbehave("kme-a1", Ops::Status, Misbehaviour::CounterProposal).await;
    assert_eq!(a.open("SITE-A", "SITE-B", 32, &[0; 16]).await.0, 7);
    assert_eq!(a.open("SITE-A", "SITE-B", 64, &[0; 16]).await.0, 0);
}

#[tokio::test]
async fn one_port_serves_both_interfaces_from_one_store() {
    let lab = lab().await;
    let mut a = Client::connect(&lab, "kme-a1", "site-a").await;
    let mut http = lab.client("kme-a1", "site-a").await;
    let status = http.get("/api/v1/keys/SITE-B/status").await.ok();
    let (_, opened) = a.open("SITE-A", "SITE-B", 32, &[0; 16]).await;
    assert!(a.key(&opened.unwrap().1, 0).await.is_ok());
    let after = http.get("/api/v1/keys/SITE-B/status").await.ok();
    let stored = |status: &serde_json::Value| status["stored_key_count"].as_u64().unwrap();
    assert_eq!(stored(&after), stored(&status) - 1);
}

#[tokio::test]
async fn a_fault_of_streams_is_for_kmes_that_have_them() {
    let lab = lab().await;
    let refused = lab.misbehave("kme-c1", Ops::All, Misbehaviour::HalfHeader).await;
    assert!(!refused.ok && refused.error.unwrap().contains("doesn't speak ETSI GS QKD 004"));
    assert!(lab.misbehave("kme-a1", Ops::All, Misbehaviour::HalfHeader).await.ok);
    let mut a = Client::connect(&lab, "kme-a1", "site-a").await;
    a.0.write_all(&[1, 0, 1, CLOSE, 0, 0, 0, 16, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7])
        .await
        .unwrap();
    let mut all = Vec::new();
    a.0.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, [1, 0, 1, CLOSE + 1]);
    // What isn't a request, and one that is too large, end the connection.
    for bytes in [[1, 0, 1, 0xff, 0, 0, 0, 0], [1, 0, 1, OPEN, 0xff, 0, 0, 0]] {
        let mut a = Client::connect(&lab, "kme-a1", "site-a").await;
        a.0.write_all(&bytes).await.unwrap();
        all.clear();
        a.0.read_to_end(&mut all).await.unwrap();
        assert!(all.is_empty());
    }
}
