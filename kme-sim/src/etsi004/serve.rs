//! One connection of ETSI GS QKD 004: requests are read within bounds and answered from the network, with a
//! fault where one is set. A connection may carry one call or all of them.

use std::io;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tracing::{debug, info, warn};
use zeroize::Zeroizing;

use crate::api::{DeliveredKey, Op};
use crate::etsi004::streams::{Ksid, Opened};
use crate::etsi004::wire::{self, Answer, Dialect, HEADER_BYTES, MAX_PAYLOAD, Request, service, status};
use crate::faults::catalog::Misbehaviour;
use crate::faults::keys as key_faults;
use crate::http::Peer;

/// A connection without a request is closed after this time.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
const SLOW_ANSWER_DELAY: Duration = Duration::from_secs(3);
/// What the fault `more_metadata` asks for, bytes.
const LARGE_METADATA: u32 = 4096;
const METADATA: &[u8] = br#"{"hops":0}"#;

/// What is sent.
enum Reply {
    Message(Zeroizing<Vec<u8>>),
    /// These bytes, and the connection is closed.
    ThenClose(Zeroizing<Vec<u8>>),
    /// Nothing, ever.
    Hang,
}

/// Serves a connection until it ends.
///
/// # Errors
/// If it breaks.
pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(peer: &Peer, stream: &mut S) -> io::Result<()> {
    // Of the last OPEN_CONNECT here: the other requests are the same in both.
    let mut dialect = Dialect::Python;
    loop {
        let read = tokio::time::timeout(IDLE_TIMEOUT, read_request(stream)).await;
        let Ok(Some((code, payload))) = read.unwrap_or(Ok(None)) else { return stream.shutdown().await };
        match answer(peer, code, &payload, &mut dialect).await {
            Reply::Message(message) => {
                stream.write_all(&message).await?;
                stream.flush().await?;
            }
            Reply::ThenClose(bytes) => {
                stream.write_all(&bytes).await?;
                return stream.shutdown().await;
            }
            Reply::Hang => std::future::pending().await,
        }
    }
}

/// The next request's service and payload; `None` at the end, and for one that is too large.
async fn read_request<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Option<(u8, Vec<u8>)>> {
    let mut header = [0; HEADER_BYTES];
    match stream.read_exact(&mut header).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let [_, _, _, code, length @ ..] = header;
    let Some(length) = usize::try_from(u32::from_be_bytes(length)).ok().filter(|n| *n <= MAX_PAYLOAD) else {
        return Ok(None);
    };
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await?;
    Ok(Some((code, payload)))
}

async fn answer(peer: &Peer, code: u8, payload: &[u8], dialect: &mut Dialect) -> Reply {
    let sae = peer.sae.as_deref().unwrap_or("");
    let faults = peer.shared.faults(&peer.kme);
    let as_c = faults.status == Misbehaviour::CReference;
    let Some(request) = wire::parse(code, payload, as_c) else {
        info!(kme = %peer.kme, sae, code, "request refused: it has no known form");
        return Reply::ThenClose(Zeroizing::default());
    };
    let op = match &request {
        Request::GetKey { ksid, index, .. } => peer.shared.streams().stream_op(sae, ksid, *index),
        _ => Op::Status,
    };
    let fault = faults.of(op);
    if fault != Misbehaviour::None {
        warn!(kme = %peer.kme, sae, op = op.name(), fault = fault.name(), "fault");
    }
    match fault {
        Misbehaviour::Hang => return Reply::Hang,
        Misbehaviour::Slow => tokio::time::sleep(SLOW_ANSWER_DELAY).await,
        Misbehaviour::Close => return Reply::ThenClose(Zeroizing::default()),
        _ => {}
    }
    if let Some(code) = replacement(fault, &request) {
        return Reply::Message(Answer::Status(code).encode(code_of(&request), *dialect));
    }
    let message = match &request {
        Request::Open { dialect: asked, .. } => {
            *dialect = *asked;
            open(peer, sae, &request, fault)
        }
        Request::GetKey { ksid, index, metadata_size } => {
            get_key(peer, sae, (ksid, *index, *metadata_size), fault, *dialect)
        }
        Request::Close { ksid } => {
            let status = peer.shared.streams().close_stream(sae, ksid);
            Answer::Status(status).encode(service::CLOSE, *dialect)
        }
    };
    spoil(fault, message, as_c)
}

fn code_of(request: &Request) -> u8 {
    match request {
        Request::Open { .. } => service::OPEN_CONNECT,
        Request::GetKey { .. } => service::GET_KEY,
        Request::Close { .. } => service::CLOSE,
    }
}

/// The status that a fault puts in the place of an answer.
fn replacement(fault: Misbehaviour, request: &Request) -> Option<u32> {
    let is_key = matches!(request, Request::GetKey { .. });
    match fault {
        // A KME that insists on two connected applications.
        Misbehaviour::PeerMissing if is_key => Some(status::NOT_CONNECTED),
        Misbehaviour::NoLink => Some(status::NO_QKD_CONNECTION),
        Misbehaviour::StreamTimeout => Some(status::TIMEOUT),
        _ => None,
    }
}

fn open(peer: &Peer, sae: &str, request: &Request, fault: Misbehaviour) -> Zeroizing<Vec<u8>> {
    let Request::Open { source, destination, qos, ksid, dialect } = request else {
        return Zeroizing::default();
    };
    let (from, to) = (sae_of(source), sae_of(destination));
    let now = peer.shared.now();
    let Opened { status, stream } = peer.shared.streams().open_stream(
        &peer.shared.network(),
        (&peer.kme, sae),
        (&from, &to),
        (qos.clone(), *ksid),
        fault,
        now,
    );
    if status != status::SUCCESS {
        info!(kme = %peer.kme, sae, status, "OPEN_CONNECT refused");
    }
    let answer = match &stream {
        Some((qos, ksid)) => {
            let ksid = if fault == Misbehaviour::OtherKsid { ksid.map(|byte| !byte) } else { *ksid };
            Answer::Opened { status, qos, ksid }
        }
        None => Answer::Status(status),
    };
    answer.encode(service::OPEN_CONNECT, *dialect)
}

fn get_key(
    peer: &Peer,
    sae: &str,
    (ksid, index, metadata_size): (&Ksid, u32, u32),
    fault: Misbehaviour,
    dialect: Dialect,
) -> Zeroizing<Vec<u8>> {
    if fault == Misbehaviour::MoreMetadata && metadata_size < LARGE_METADATA {
        return Answer::MoreMetadata(LARGE_METADATA).encode(service::GET_KEY, dialect);
    }
    let shared = &peer.shared;
    let (faults, now) = (shared.faults(&peer.kme), shared.now());
    let op = shared.streams().stream_op(sae, ksid, index);
    let key = match shared.streams().stream_key(
        &mut shared.network(),
        (&peer.kme, sae),
        ksid,
        index,
        faults,
        now,
    ) {
        Ok(key) => key,
        Err(status) => {
            debug!(kme = %peer.kme, sae, index, status, "GET_KEY refused");
            return Answer::Status(status).encode(service::GET_KEY, dialect);
        }
    };
    let mut keys = vec![key];
    if key_faults::corrupt(fault, op, &mut keys).is_err() {
        return Answer::Status(status::INSUFFICIENT_KEY).encode(service::GET_KEY, dialect);
    }
    let Some(DeliveredKey { key, .. }) = keys.into_iter().next() else {
        return Answer::Status(status::INSUFFICIENT_KEY).encode(service::GET_KEY, dialect);
    };
    let told = if fault == Misbehaviour::IndexBackwards { index.wrapping_sub(1) } else { index };
    Answer::Key { index: told, key: key.expose(), metadata: METADATA }.encode(service::GET_KEY, dialect)
}

/// Applies a fault to the bytes of an answer.
fn spoil(fault: Misbehaviour, mut message: Zeroizing<Vec<u8>>, as_c: bool) -> Reply {
    let header = message.first_chunk_mut::<HEADER_BYTES>();
    match (fault, header) {
        (Misbehaviour::LoseAnswer, _) => return Reply::ThenClose(Zeroizing::default()),
        (Misbehaviour::CutBody, _) => {
            let half = message.len().midpoint(HEADER_BYTES);
            message.truncate(half);
            return Reply::ThenClose(message);
        }
        (Misbehaviour::HalfHeader, _) => {
            message.truncate(HEADER_BYTES / 2);
            return Reply::ThenClose(message);
        }
        (Misbehaviour::Html, _) => {
            return Reply::ThenClose(Zeroizing::new(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()));
        }
        (Misbehaviour::HugeLength, Some(header)) => header[4..].fill(0xff),
        (Misbehaviour::WrongService, Some(header)) => header[3] ^= 0x40,
        (Misbehaviour::HugeMetadata, _) => {
            // The length before the metadata.
            if let Some(at) = message.len().checked_sub(METADATA.len() + 4)
                && let Some(field) = message.get_mut(at..at + 4)
            {
                field.fill(0xff);
            }
        }
        _ => {}
    }
    // The C reference answers one request a connection.
    if as_c { Reply::ThenClose(message) } else { Reply::Message(message) }
}

/// The SAE that a URI names: `qkd://` and the percent-encoded ID, or the ID as it is.
fn sae_of(uri: &[u8]) -> String {
    let text = String::from_utf8_lossy(uri);
    match text.strip_prefix("qkd://") {
        Some(id) => percent_decode_str(id).decode_utf8_lossy().into_owned(),
        None => text.into_owned(),
    }
}
