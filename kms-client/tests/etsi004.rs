//! The ETSI GS QKD 004 client against servers that speak as ETSI's C reference and QUBIP's Python server do,
//! and against ones that break the rules.
#![allow(clippy::unwrap_used)] // A test program's helpers may panic as its tests do.

mod support;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kms_client::KmsErrorKind as K;
use kms_client::{Etsi004Client, KeySource, KmsError, Operation, QkdKey, Violation};
use qvpn_api::config::{Dialect, StreamOptions};
use qvpn_types::KeyId;
use support::{Lab, check, sae};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const OPEN: u8 = 2;
const GET_KEY: u8 = 4;
const CLOSE: u8 = 8;
const KSID: [u8; 16] = *b"a stream of keys";

/// A request as it came.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    /// The number of the connection, from 0.
    connection: usize,
    service: u8,
    payload: Vec<u8>,
}

impl Seen {
    fn number(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    /// The stream of a GET_KEY or a CLOSE, or the one that an OPEN_CONNECT in `format` asks for.
    fn ksid(&self) -> [u8; 16] {
        let at = if self.service == OPEN { self.payload.len() - 16 } else { 0 };
        self.payload[at..at + 16].try_into().unwrap()
    }

    fn is_padded(&self) -> bool {
        let uris = self.payload.iter().enumerate().filter(|(_, byte)| **byte == 0).nth(1).unwrap().0 + 1;
        self.payload.len() - uris == 28 + 256 + 16
    }
}

/// What the server does with a request.
enum Reply {
    /// A message.
    Message(Vec<u8>),
    /// These bytes, then the end.
    ThenClose(Vec<u8>),
    /// These bytes, then nothing.
    ThenHang(Vec<u8>),
}

fn message(service: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![1, 0, 1, service];
    bytes.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The status alone, as the Python server says it.
fn status(request: &Seen, status: u32) -> Reply {
    Reply::Message(message(request.service + 1, &status.to_be_bytes()))
}

/// An answer to OPEN_CONNECT in the Python server's format or the C reference's.
fn opened(padded: bool, status: u32, chunk: u32, ttl: u32, ksid: [u8; 16]) -> Reply {
    let mut payload = status.to_be_bytes().to_vec();
    for number in [chunk, 40_000, 5_000, 10, 0, 5_000, ttl] {
        payload.extend(number.to_be_bytes());
    }
    let mimetype = payload.len();
    payload.extend(b"application/json\0");
    if padded {
        payload.resize(mimetype + 256, 0);
    }
    payload.extend(ksid);
    Reply::Message(message(OPEN + 1, &payload))
}

fn key_bytes(ksid: [u8; 16], index: u32, length: usize) -> Vec<u8> {
    let mut key: Vec<u8> = ksid.iter().copied().chain(index.to_be_bytes()).collect();
    key.resize(length, 0xa5);
    key
}

fn key_answer(index: u32, key: &[u8], metadata: &[u8]) -> Vec<u8> {
    let mut payload = 0u32.to_be_bytes().to_vec();
    payload.extend(index.to_be_bytes());
    payload.extend(u32::try_from(key.len()).unwrap().to_be_bytes());
    payload.extend(key);
    payload.extend(u32::try_from(metadata.len()).unwrap().to_be_bytes());
    payload.extend(metadata);
    payload
}

/// As the Python server answers.
fn right(request: &Seen) -> Reply {
    match request.service {
        OPEN => {
            let ksid = if request.ksid() == [0; 16] { KSID } else { request.ksid() };
            opened(true, 0, 32, 3600, ksid)
        }
        GET_KEY => {
            let index = request.number(16);
            let key = key_bytes(request.ksid(), index, 32);
            Reply::Message(message(GET_KEY + 1, &key_answer(index, &key, br#"{"age": 1, "hops": 0}"#)))
        }
        // A probe is a CLOSE of an unknown stream.
        _ if request.ksid() != KSID => status(request, 3),
        _ => status(request, 0),
    }
}

/// A running server; it ends when dropped.
struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn start(lab: &Lab, script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(lab.server_config()));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (script, seen_here) = (Arc::new(script), Arc::clone(&seen));
        let task = tokio::spawn(async move {
            let mut connection = 0;
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, script) = (acceptor.clone(), Arc::clone(&script));
                let seen = Arc::clone(&seen_here);
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(tcp).await else { return };
                    // A client that hangs up is part of many scripts.
                    let _ = talk(&mut stream, connection, &*script, &seen).await;
                });
                connection += 1;
            }
        });
        Self { address, seen, task }
    }

    /// The services of all requests but probes.
    fn services(&self) -> Vec<u8> {
        self.seen.lock().unwrap().iter().map(|seen| seen.service).collect()
    }

    fn last(&self) -> Seen {
        self.seen.lock().unwrap().last().unwrap().clone()
    }
}

async fn talk(
    stream: &mut tokio_rustls::server::TlsStream<tokio::net::TcpStream>,
    connection: usize,
    script: &(dyn Fn(&Seen) -> Reply + Send + Sync),
    seen: &Mutex<Vec<Seen>>,
) -> std::io::Result<()> {
    loop {
        let mut header = [0; 8];
        stream.read_exact(&mut header).await?;
        let length = u32::from_be_bytes(header[4..].try_into().unwrap());
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload).await?;
        let request = Seen { connection, service: header[3], payload };
        let reply = script(&request);
        seen.lock().unwrap().push(request);
        match reply {
            Reply::Message(bytes) => {
                stream.write_all(&bytes).await?;
                stream.flush().await?;
            }
            Reply::ThenClose(bytes) => {
                stream.write_all(&bytes).await?;
                return stream.shutdown().await;
            }
            Reply::ThenHang(bytes) => {
                stream.write_all(&bytes).await?;
                stream.flush().await?;
                stream.read_to_end(&mut Vec::new()).await?;
            }
        }
    }
}

fn client_of(lab: &Lab, address: SocketAddr, dialect: Dialect) -> Etsi004Client {
    let mut config = lab.config(address);
    config.url = format!("tls://localhost:{}", address.port());
    config.timeout = Duration::from_millis(1500);
    Etsi004Client::new(config, &StreamOptions { dialect, link: None }).unwrap()
}

/// A client of a server with this script.
async fn lab(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> (Lab, Etsi004Client, Server) {
    let lab = Lab::new();
    let server = Server::start(&lab, script).await;
    let client = client_of(&lab, server.address, Dialect::Auto);
    (lab, client, server)
}

async fn new_keys(client: &Etsi004Client, number: u32) -> Result<Vec<QkdKey>, KmsError> {
    client.fetch_new(&sae("SITE-B"), number, 256).await
}

async fn by_ids(client: &Etsi004Client, ids: &[&str]) -> Result<Vec<QkdKey>, KmsError> {
    let ids: Vec<KeyId> = ids.iter().map(|id| KeyId::new(*id).unwrap()).collect();
    client.fetch_by_ids(&sae("SITE-B"), &ids).await
}

fn id(ksid: [u8; 16], index: u32) -> String {
    let hex: String = ksid.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{hex}:{index}")
}

/// The error of taking a new key.
async fn take_error(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> KmsError {
    let (_lab, client, _server) = lab(script).await;
    new_keys(&client, 1).await.err().unwrap()
}

/// The error of taking a new key where GET_KEY is answered so.
async fn key_error(reply: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> KmsError {
    take_error(move |request| if request.service == GET_KEY { reply(request) } else { right(request) }).await
}

#[tokio::test]
async fn both_sites_get_the_same_keys_by_stream_and_index() {
    let (lab, ours, server) = lab(right).await;
    let theirs = client_of(&lab, server.address, Dialect::Auto);
    let keys = new_keys(&ours, 3).await.unwrap();
    let ids: Vec<&str> = keys.iter().map(|key| key.id.as_str()).collect();
    assert_eq!(ids, [0, 1, 2].map(|index| id(KSID, index)));
    let opened = server.seen.lock().unwrap()[0].clone();
    assert!(opened.payload.starts_with(b"qkd://SITE-A\0qkd://SITE-B\0"));

    // In any order, and one is skipped.
    let fetched = by_ids(&theirs, &[ids[2], ids[0]]).await.unwrap();
    let indexes: Vec<&str> = fetched.iter().map(|key| key.id.as_str()).collect();
    assert_eq!(indexes, [ids[0], ids[2]], "in the order of the stream");
    for key in &fetched {
        let other = keys.iter().find(|other| other.id == key.id).unwrap();
        assert!(key.secret.ct_eq(other.secret.expose()));
        assert_eq!(key.key_ref(), other.key_ref(), "both sites give it the same name");
    }
    // One association each, and a connection for each operation.
    assert_eq!(new_keys(&ours, 1).await.unwrap()[0].id.as_str(), id(KSID, 3));
    assert_eq!(server.services(), [OPEN, GET_KEY, GET_KEY, GET_KEY, OPEN, GET_KEY, GET_KEY, GET_KEY]);
    let connections: Vec<usize> = server.seen.lock().unwrap().iter().map(|seen| seen.connection).collect();
    assert_eq!(connections, [0, 0, 0, 0, 1, 1, 1, 2]);

    ours.close().await;
    theirs.close().await;
    let seen = server.seen.lock().unwrap();
    assert_eq!(
        seen[8..].iter().map(|seen| (seen.service, seen.ksid())).collect::<Vec<_>>(),
        [(CLOSE, KSID), (CLOSE, KSID)]
    );
}

#[tokio::test]
async fn the_link_is_probed_without_a_stream_or_a_key() {
    let (_lab, client, server) = lab(right).await;
    let link = client.link(&sae("SITE-B")).await.unwrap();
    assert_eq!((link.source_kme.as_str(), link.target_kme.as_str()), ("etsi004", "etsi004"));
    assert_eq!(server.services(), [CLOSE]);
    assert_ne!(server.last().ksid(), [0; 16]);
}

#[tokio::test]
async fn the_c_reference_is_told_by_its_answer() {
    let next = Arc::new(Mutex::new(0));
    // It reads a padded mimetype as a string, and zeros as the stream; then it closes the connection.
    let script = move |request: &Seen| {
        let bytes = match request.service {
            OPEN => {
                let asked = if request.is_padded() { [0; 16] } else { request.ksid() };
                let mut next = next.lock().unwrap();
                *next += 1;
                opened(false, 0, 32, 3600, if asked == [0; 16] { [*next; 16] } else { asked })
            }
            GET_KEY => {
                let size = request.number(20) as usize;
                assert_eq!(request.payload.len(), 24 + size, "it reads as much metadata as is announced");
                let index = request.number(16);
                let key = key_bytes(request.ksid(), index, 32);
                Reply::Message(message(GET_KEY + 1, &key_answer(index, &key, b"{}\0")))
            }
            _ => status(request, 0),
        };
        match bytes {
            Reply::Message(bytes) => Reply::ThenClose(bytes),
            other => other,
        }
    };
    let (lab, ours, server) = lab(script).await;
    let keys = new_keys(&ours, 2).await.unwrap();
    assert_eq!(keys[1].id.as_str(), id([1; 16], 1));
    assert_eq!(server.services(), [OPEN, GET_KEY, GET_KEY]);

    // The other site doesn't know the dialect, and gets the right stream nevertheless.
    let theirs = client_of(&lab, server.address, Dialect::Auto);
    let fetched = by_ids(&theirs, &[keys[1].id.as_str()]).await.unwrap();
    assert!(fetched[0].secret.ct_eq(keys[1].secret.expose()));
    assert_eq!(server.services()[3..], [OPEN, CLOSE, OPEN, GET_KEY]);
    let told = client_of(&lab, server.address, Dialect::C);
    assert!(by_ids(&told, &[keys[0].id.as_str()]).await.is_ok());
    assert_eq!(server.services()[7..], [OPEN, GET_KEY]);

    let wrong = client_of(&lab, server.address, Dialect::Python);
    let error = new_keys(&wrong, 1).await.err().unwrap();
    check(&error, K::ProtocolViolation(Violation::Framing), Operation::EncKeys);
    assert!(error.advice().contains("write dialect = \"c\""), "{}", error.advice());
    assert_eq!(error.keys_lost(), 0);
}

#[tokio::test]
async fn a_server_that_reads_c_only_is_asked_again_in_c() {
    let script = |request: &Seen| match request.service {
        OPEN if request.is_padded() => Reply::ThenClose(Vec::new()),
        OPEN => opened(false, 0, 32, 0, KSID),
        _ => right(request),
    };
    let (lab, client, server) = lab(script).await;
    assert_eq!(new_keys(&client, 1).await.unwrap().len(), 1);
    assert_eq!(server.services(), [OPEN, OPEN, GET_KEY]);
    // The dialect is remembered.
    client.close().await;
    assert_eq!(new_keys(&client, 1).await.unwrap().len(), 1);
    assert_eq!(server.services()[3..], [CLOSE, OPEN, GET_KEY]);
    // Told the wrong one, it is said so.
    let error = new_keys(&client_of(&lab, server.address, Dialect::Python), 1).await.err().unwrap();
    check(&error, K::Unreachable, Operation::EncKeys);
}

#[tokio::test]
async fn a_counter_proposal_is_taken_if_its_keys_are_long_enough() {
    let script = |chunk: u32| {
        move |request: &Seen| match request.service {
            // The Python server opens the stream before it says 7.
            OPEN => {
                let uris = request.payload.iter().enumerate().filter(|(_, b)| **b == 0).nth(1).unwrap().0;
                let wanted = request.number(uris + 1);
                opened(true, if wanted == chunk { 0 } else { 7 }, chunk, 3600, KSID)
            }
            GET_KEY => {
                let index = request.number(16);
                let key = key_bytes(request.ksid(), index, chunk as usize);
                Reply::Message(message(GET_KEY + 1, &key_answer(index, &key, b"")))
            }
            _ => right(request),
        }
    };
    let (_lab, client, server) = lab(script(64)).await;
    let keys = new_keys(&client, 1).await.unwrap();
    assert!(keys[0].secret.ct_eq(&key_bytes(KSID, 0, 32)), "the first 256 bits of the chunk");
    assert_eq!(server.services(), [OPEN, CLOSE, OPEN, GET_KEY]);
    let report = client.try_stream(&sae("SITE-B")).await.unwrap();
    assert!(report.counter_proposal.unwrap().starts_with("Key_chunk_size 64,"));

    for chunk in [16, 2048] {
        let (_lab, client, server) = lab(script(chunk)).await;
        let error = new_keys(&client, 1).await.err().unwrap();
        check(&error, K::BadRequest, Operation::EncKeys);
        assert!(error.to_string().contains(&format!("Key_chunk_size {chunk},")), "{error}");
        assert!(error.advice().contains("Key_chunk_size of 32 bytes"), "{}", error.advice());
        assert_eq!(server.services(), [OPEN, CLOSE]);
    }
    // A KME that refuses its own proposal.
    let error = take_error(|request| match request.service {
        OPEN => opened(true, 7, 64, 3600, KSID),
        _ => right(request),
    })
    .await;
    check(&error, K::BadRequest, Operation::EncKeys);
    assert!(error.to_string().contains("for the KME's own counter-proposal"), "{error}");
    let error = take_error(|request| status(request, 7)).await;
    check(&error, K::BadRequest, Operation::EncKeys);
}

#[tokio::test]
async fn a_status_says_what_it_means() {
    for (code, kind, words) in [
        (2, K::Exhausted, "insufficient key available"),
        (3, K::Exhausted, "the peer application isn't connected yet"),
        (4, K::BadRequest, "no QKD connection available"),
        (6, K::ServerFault, "time limit"),
        (8, K::ServerFault, "metadata"),
        (42, K::ServerFault, "a status that edition 2 of the document doesn't have"),
    ] {
        let error = key_error(move |request| status(request, code)).await;
        check(&error, kind, Operation::EncKeys);
        let text = error.to_string();
        assert!(text.contains(&format!("GET_KEY gives status {code}")) && text.contains(words), "{text}");
        assert_eq!(error.keys_lost(), 0, "{text}");
    }
    for (code, kind) in [(4, K::BadRequest), (5, K::ServerFault), (6, K::ServerFault), (99, K::ServerFault)] {
        let error = take_error(move |request| status(request, code)).await;
        check(&error, kind, Operation::EncKeys);
        assert!(error.to_string().contains(&format!("OPEN_CONNECT gives status {code}")), "{error}");
    }
    // The same at the other site: the key isn't there.
    for code in [2, 3] {
        let script = move |request: &Seen| match request.service {
            GET_KEY => status(request, code),
            _ => right(request),
        };
        let (_lab, client, _server) = lab(script).await;
        let error = by_ids(&client, &[&id(KSID, 0)]).await.err().unwrap();
        check(&error, K::KeyNotFound, Operation::DecKeys);
    }
    let (_lab, client, _server) = lab(|request| status(request, 4)).await;
    let error = by_ids(&client, &[&id(KSID, 0)]).await.err().unwrap();
    check(&error, K::KeyNotFound, Operation::DecKeys);
}

#[tokio::test]
async fn an_index_without_a_key_is_asked_for_again() {
    let empty = Arc::new(Mutex::new(true));
    let script = {
        let empty = Arc::clone(&empty);
        move |request: &Seen| match request.service {
            GET_KEY if *empty.lock().unwrap() => status(request, 2),
            _ => right(request),
        }
    };
    let (_lab, client, _server) = lab(script).await;
    assert_eq!(new_keys(&client, 1).await.err().unwrap().kind(), K::Exhausted);
    *empty.lock().unwrap() = false;
    assert_eq!(new_keys(&client, 1).await.unwrap()[0].id.as_str(), id(KSID, 0));
}

#[tokio::test]
async fn a_stream_that_is_in_use_is_used_if_it_is_ours() {
    // Our program was restarted, and its stream is still open at the KME.
    let script = |request: &Seen| match request.service {
        OPEN => status(request, 5),
        _ => right(request),
    };
    let (_lab, client, _server) = lab(script).await;
    let keys = by_ids(&client, &[&id(KSID, 9)]).await.unwrap();
    assert!(keys[0].secret.ct_eq(&key_bytes(KSID, 9, 32)));
}

/// A KME that forgets its streams when it is restarted.
#[derive(Default)]
struct Streams {
    open: HashMap<[u8; 16], ()>,
    next: u8,
}

#[tokio::test]
async fn a_restart_of_the_kme_costs_a_new_stream() {
    let streams = Arc::new(Mutex::new(Streams::default()));
    let script = {
        let streams = Arc::clone(&streams);
        move |request: &Seen| {
            let mut streams = streams.lock().unwrap();
            match request.service {
                OPEN => {
                    let mut ksid = request.ksid();
                    if ksid == [0; 16] {
                        streams.next += 1;
                        ksid = [streams.next; 16];
                    }
                    streams.open.insert(ksid, ());
                    opened(true, 0, 32, 3600, ksid)
                }
                GET_KEY if !streams.open.contains_key(&request.ksid()) => status(request, 3),
                _ => right(request),
            }
        }
    };
    let (_lab, client, server) = lab(script).await;
    assert_eq!(new_keys(&client, 2).await.unwrap()[1].id.as_str(), id([1; 16], 1));
    assert!(by_ids(&client, &[&id([9; 16], 0)]).await.is_ok());
    streams.lock().unwrap().open.clear();
    assert_eq!(new_keys(&client, 1).await.unwrap()[0].id.as_str(), id([2; 16], 0));
    assert!(by_ids(&client, &[&id([9; 16], 1)]).await.is_ok(), "opened again under the same ID");
    assert_eq!(server.services().iter().filter(|service| **service == OPEN).count(), 4);
}

#[tokio::test]
async fn a_connection_that_the_kme_closed_is_opened_again() {
    // Each second request finds its connection closed.
    let script = |request: &Seen| match right(request) {
        Reply::Message(bytes) if request.service == GET_KEY => Reply::ThenClose(bytes),
        other => other,
    };
    let (_lab, client, server) = lab(script).await;
    let keys = new_keys(&client, 3).await.unwrap();
    assert_eq!(keys[2].id.as_str(), id(KSID, 2));
    assert_eq!(server.last().connection, 2);
}

#[tokio::test]
async fn an_index_whose_answer_was_lost_is_skipped() {
    // The connection breaks when the key was taken, and each index is delivered once.
    let taken = Mutex::new(Vec::new());
    let script = move |request: &Seen| match request.service {
        GET_KEY => {
            let mut taken = taken.lock().unwrap();
            let index = request.number(16);
            match (taken.contains(&index), index) {
                (true, _) => status(request, 2),
                (false, 0) => {
                    taken.push(index);
                    Reply::ThenClose(Vec::new())
                }
                (false, _) => {
                    taken.push(index);
                    right(request)
                }
            }
        }
        _ => right(request),
    };
    let (_lab, client, _server) = lab(script).await;
    assert_eq!(new_keys(&client, 1).await.err().unwrap().kind(), K::Exhausted);
    assert_eq!(new_keys(&client, 1).await.unwrap()[0].id.as_str(), id(KSID, 1));
}

#[tokio::test]
async fn the_second_site_takes_the_chunks_that_the_first_agreed_on() {
    let script = |request: &Seen| match request.service {
        OPEN => opened(true, 0, 64, 3600, request.ksid()),
        GET_KEY => {
            let index = request.number(16);
            let key = key_bytes(request.ksid(), index, 64);
            Reply::Message(message(GET_KEY + 1, &key_answer(index, &key, b"")))
        }
        _ => right(request),
    };
    let (_lab, client, _server) = lab(script).await;
    let keys = by_ids(&client, &[&id(KSID, 3)]).await.unwrap();
    assert!(keys[0].secret.ct_eq(&key_bytes(KSID, 3, 32)));
}

#[tokio::test]
async fn a_stream_ends_before_its_ttl() {
    let script = |request: &Seen| match request.service {
        OPEN => opened(true, 0, 32, 1, KSID),
        _ => right(request),
    };
    let (_lab, client, server) = lab(script).await;
    assert!(new_keys(&client, 1).await.is_ok());
    tokio::time::pause();
    tokio::time::advance(Duration::from_millis(800)).await;
    tokio::time::resume();
    // The same ID comes again: its first index was used.
    assert_eq!(new_keys(&client, 1).await.unwrap()[0].id.as_str(), id(KSID, 1));
    assert_eq!(server.services(), [OPEN, GET_KEY, CLOSE, OPEN, GET_KEY]);
}

#[tokio::test]
async fn streams_of_a_peer_are_few() {
    let (_lab, client, server) = lab(right).await;
    for n in 1..=4 {
        assert!(by_ids(&client, &[&id([n; 16], 0)]).await.is_ok());
    }
    let seen = server.seen.lock().unwrap();
    let closed: Vec<[u8; 16]> = seen.iter().filter(|seen| seen.service == CLOSE).map(Seen::ksid).collect();
    assert_eq!(closed, [[1; 16]], "the oldest");
}

#[tokio::test]
async fn an_id_of_another_interface_is_not_asked_for() {
    let (_lab, client, server) = lab(right).await;
    let error = by_ids(&client, &["bc490419-7d60-487f-adc1-4ddcc177c139"]).await.err().unwrap();
    check(&error, K::KeyNotFound, Operation::DecKeys);
    assert!(server.services().is_empty());
    // Beside a right one it does no harm.
    let keys = by_ids(&client, &["bc490419-7d60-487f-adc1-4ddcc177c139", &id(KSID, 0)]).await.unwrap();
    assert_eq!(keys.len(), 1);
}

#[tokio::test]
async fn an_answer_that_breaks_the_rules_is_not_used() {
    let violation = K::ProtocolViolation;
    let key = |index: u32, length: usize| key_answer(index, &key_bytes(KSID, index, length), b"{}");
    let mut huge_metadata = key(0, 32);
    huge_metadata[44..48].fill(0xff);
    let mut huge_key = key(0, 32);
    huge_key[8..12].fill(0xff);
    for (what, bytes, kind) in [
        ("another index", message(5, &key(7, 32)), violation(Violation::OtherKeyId)),
        ("a longer key", message(5, &key(0, 64)), violation(Violation::KeySize)),
        ("a shorter key", message(5, &key(0, 31)), violation(Violation::KeySize)),
        ("zeros", message(5, &key_answer(0, &[0; 32], b"")), violation(Violation::ZeroKey)),
        ("metadata of 4 GB", message(5, &huge_metadata), violation(Violation::Framing)),
        ("a key of 4 GB", message(5, &huge_key), violation(Violation::KeySize)),
        ("an answer of 4 GB", vec![1, 0, 1, 5, 0xff, 0xff, 0xff, 0xff], violation(Violation::TooLarge)),
        ("an answer to another call", message(3, &key(0, 32)), violation(Violation::Framing)),
        ("an error message", message(0, &[0; 4]), violation(Violation::Framing)),
        ("no status", message(5, &[]), violation(Violation::Framing)),
        ("HTTP", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), violation(Violation::Framing)),
        ("half a header", vec![1, 0, 1, 5], K::LostKeys(kms_client::Phase::Body)),
        ("half a key", message(5, &key(0, 32))[..40].to_vec(), K::LostKeys(kms_client::Phase::Body)),
    ] {
        let reply = bytes.clone();
        let error = key_error(move |_| Reply::ThenClose(reply.clone())).await;
        check(&error, kind, Operation::EncKeys);
        assert_eq!(error.keys_lost(), 1, "{what}: {error}");
        assert_eq!(error.status(), None, "{what}");
    }
    // Without an answer the client waits no longer than its deadline.
    for reply in [Vec::new(), vec![1, 0, 1], message(5, &key(0, 32))[..40].to_vec()] {
        let error = key_error(move |_| Reply::ThenHang(reply.clone())).await;
        assert!(matches!(error.kind(), K::LostKeys(_)), "{error}");
    }
}

#[tokio::test]
async fn an_answer_to_open_that_breaks_the_rules_is_not_used() {
    for (what, chunk, ksid, want) in
        [("no stream", 32, [0; 16], Violation::KeyId), ("another chunk size", 64, KSID, Violation::KeySize)]
    {
        let error = take_error(move |request| match request.service {
            OPEN => opened(true, 0, chunk, 3600, ksid),
            _ => right(request),
        })
        .await;
        check(&error, K::ProtocolViolation(want), Operation::EncKeys);
        assert_eq!(error.keys_lost(), 0, "{what}");
    }
    // Another stream than the one that the peer named.
    let script = |request: &Seen| match request.service {
        OPEN => opened(true, 0, 32, 3600, [7; 16]),
        _ => right(request),
    };
    let (_lab, client, server) = lab(script).await;
    let error = by_ids(&client, &[&id(KSID, 0)]).await.err().unwrap();
    check(&error, K::ProtocolViolation(Violation::OtherKeyId), Operation::DecKeys);
    assert!(!server.services().contains(&GET_KEY));
}

#[tokio::test]
async fn a_key_that_comes_again_is_not_used() {
    let (_lab, client, _server) = lab(|request| match request.service {
        GET_KEY => {
            let key = key_bytes(KSID, 0, 32);
            Reply::Message(message(5, &key_answer(request.number(16), &key, b"")))
        }
        _ => right(request),
    })
    .await;
    assert_eq!(new_keys(&client, 2).await.unwrap().len(), 1, "the second is the first again");
    let error = new_keys(&client, 1).await.err().unwrap();
    check(&error, K::ProtocolViolation(Violation::DuplicateKey), Operation::EncKeys);
}

#[tokio::test]
async fn more_metadata_is_given_room_once() {
    let script = |needed: u32| {
        move |request: &Seen| match request.service {
            GET_KEY if request.number(20) < needed => {
                let payload = [8u32.to_be_bytes(), needed.to_be_bytes()].concat();
                Reply::Message(message(5, &payload))
            }
            _ => right(request),
        }
    };
    let (_lab, client, server) = lab(script(5000)).await;
    assert!(new_keys(&client, 1).await.is_ok());
    assert_eq!(server.services(), [OPEN, GET_KEY, GET_KEY]);
    let (_lab, client, server) = lab(script(u32::MAX)).await;
    let error = new_keys(&client, 1).await.err().unwrap();
    check(&error, K::ServerFault, Operation::EncKeys);
    assert!(error.advice().contains("8,192 bytes"), "{}", error.advice());
    assert_eq!(server.services(), [OPEN, GET_KEY]);
}

#[tokio::test]
async fn who_is_not_there_or_refuses_us_is_named() {
    let lab = Lab::new();
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = new_keys(&client_of(&lab, nobody, Dialect::Auto), 1).await.err().unwrap();
    check(&error, K::Unreachable, Operation::EncKeys);
    assert_eq!(error.keys_lost(), 0);

    // Our certificate is of a CA that the KME doesn't know.
    let server = Server::start(&lab, right).await;
    let other = Lab::new();
    std::fs::copy(lab.path("ca.pem"), other.path("ca.pem")).unwrap();
    let client = client_of(&other, server.address, Dialect::Auto);
    let error = client.link(&sae("SITE-B")).await.err().unwrap();
    check(&error, K::IdentityRefused, Operation::Status);
    let error = new_keys(&client, 1).await.err().unwrap();
    check(&error, K::IdentityRefused, Operation::EncKeys);
    assert!(server.services().is_empty());
}

#[tokio::test]
async fn the_url_has_a_scheme_of_its_own() {
    let lab = Lab::new();
    let options = StreamOptions { dialect: Dialect::Auto, link: None };
    for (url, words) in [
        ("https://localhost:25575", "isn't tls"),
        ("tls://localhost/path", "has a path"),
        ("tls://user@localhost", "has a user"),
        ("tls://", "url"),
    ] {
        let mut config = lab.config("127.0.0.1:1".parse().unwrap());
        config.url = url.to_owned();
        let error = Etsi004Client::new(config, &options).err().unwrap();
        assert_eq!(error.kind(), K::Config, "{url}");
        assert!(error.to_string().contains(words), "{error}");
        assert!(error.advice().contains("tls://host:port"), "{}", error.advice());
    }
}
