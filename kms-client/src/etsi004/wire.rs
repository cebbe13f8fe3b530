//! The messages of ETSI GS QKD 004 V2.1.1 as implementations send them: requests, and one total, bounded
//! parser for each answer. Keys go into locked memory, and no error quotes an answer.

use std::fmt;

use qvpn_secret::SecretBuf;
use qvpn_types::KeyId;

use crate::error::Violation;
use crate::json::ProtocolViolation;
use crate::key::{MAX_KEY_BITS, MIN_KEY_BITS};

/// Version, service and payload length.
pub(crate) const HEADER_BYTES: usize = 8;
/// The largest payload of an answer: a chunk of [`MAX_KEY_BITS`] and [`MAX_METADATA_BYTES`] have room in it.
pub(crate) const MAX_PAYLOAD: usize = 16 * 1024;
/// The most metadata that is asked for.
pub(crate) const MAX_METADATA_BYTES: u32 = 8192;
/// The metadata format that is asked for. Its content is not used.
const MIMETYPE: &[u8] = b"application/json";
/// The Python server's field for the mimetype.
const PADDED_MIMETYPE: usize = 256;
const KSID_BYTES: usize = 16;

/// The byte format. They differ in the mimetype of a QoS and in the metadata of a GET_KEY request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// ETSI's C reference (`gs004-app-int`).
    C,
    /// QUBIP's Python server.
    Python,
}

impl Dialect {
    /// The word in config.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::C => "c",
            Self::Python => "python",
        }
    }

    fn version(self) -> [u8; 3] {
        match self {
            Self::C => [2, 1, 1],
            Self::Python => [1, 0, 1],
        }
    }
}

/// The call, in its request's code; the answer's is one more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Service {
    OpenConnect = 2,
    GetKey = 4,
    Close = 8,
}

impl Service {
    /// As in the document.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::OpenConnect => "OPEN_CONNECT",
            Self::GetKey => "GET_KEY",
            Self::Close => "CLOSE",
        }
    }
}

/// A key stream ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ksid(pub(crate) [u8; KSID_BYTES]);

impl Ksid {
    /// With this the KME picks one.
    pub(crate) const NIL: Self = Self([0; KSID_BYTES]);

    /// The name of the key at `index` of this stream, for the other site.
    pub(crate) fn key_id(self, index: u32) -> Option<KeyId> {
        KeyId::new(format!("{self}:{index}")).ok()
    }

    /// Reads what [`key_id`](Self::key_id) wrote, and nothing else: a key has one name.
    pub(crate) fn parse_key_id(id: &KeyId) -> Option<(Self, u32)> {
        let (ksid, index) = id.as_str().split_once(':')?;
        let bytes: Vec<u8> = ksid
            .as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
            .collect::<Option<_>>()?;
        let ksid = Self(bytes.try_into().ok()?);
        let index = index.parse().ok()?;
        (ksid != Self::NIL && ksid.key_id(index).as_ref() == Some(id)).then_some((ksid, index))
    }
}

impl fmt::Display for Ksid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The quality of service that is asked for or proposed (table 5), without the mimetype.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Qos {
    /// `Key_chunk_size`, bytes.
    pub(crate) key_chunk_size: u32,
    pub(crate) max_bps: u32,
    pub(crate) min_bps: u32,
    pub(crate) jitter: u32,
    pub(crate) priority: u32,
    /// `Timeout`, milliseconds: the KME ends a call after it.
    pub(crate) timeout_ms: u32,
    /// `TTL`, seconds: how long the KME keeps what is left of a stream. 0 says nothing.
    pub(crate) ttl_s: u32,
}

impl Qos {
    fn numbers(&self) -> [u32; 7] {
        let Self { key_chunk_size, max_bps, min_bps, jitter, priority, timeout_ms, ttl_s } = *self;
        [key_chunk_size, max_bps, min_bps, jitter, priority, timeout_ms, ttl_s]
    }
}

impl fmt::Display for Qos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Key_chunk_size {}, Max_bps {}, Min_bps {}, Jitter {}, Priority {}, Timeout {}, TTL {}",
            self.key_chunk_size,
            self.max_bps,
            self.min_bps,
            self.jitter,
            self.priority,
            self.timeout_ms,
            self.ttl_s
        )
    }
}

/// A request.
pub(crate) enum Request<'a> {
    Open { source: &'a str, destination: &'a str, qos: Qos, ksid: Ksid },
    GetKey { ksid: Ksid, index: u32, metadata_size: u32 },
    Close { ksid: Ksid },
}

impl Request<'_> {
    pub(crate) fn service(&self) -> Service {
        match self {
            Self::Open { .. } => Service::OpenConnect,
            Self::GetKey { .. } => Service::GetKey,
            Self::Close { .. } => Service::Close,
        }
    }

    /// The whole message.
    pub(crate) fn encode(&self, dialect: Dialect) -> Vec<u8> {
        let mut payload = Vec::new();
        match self {
            Self::Open { source, destination, qos, ksid } => {
                for uri in [source, destination] {
                    payload.extend_from_slice(uri.as_bytes());
                    payload.push(0);
                }
                qos.numbers().iter().for_each(|number| payload.extend(number.to_be_bytes()));
                let field = payload.len();
                payload.extend_from_slice(MIMETYPE);
                match dialect {
                    Dialect::C => payload.push(0),
                    Dialect::Python => payload.resize(field + PADDED_MIMETYPE, 0),
                }
                payload.extend(ksid.0);
            }
            Self::GetKey { ksid, index, metadata_size } => {
                payload.extend(ksid.0);
                payload.extend(index.to_be_bytes());
                payload.extend(metadata_size.to_be_bytes());
                if dialect == Dialect::C {
                    // The C reference reads the kind of key from it; zeros are "symmetric".
                    let size = usize::try_from((*metadata_size).min(MAX_METADATA_BYTES)).unwrap_or(0);
                    payload.resize(payload.len() + size, 0);
                }
            }
            Self::Close { ksid } => payload.extend(ksid.0),
        }
        let mut message = Vec::with_capacity(HEADER_BYTES + payload.len());
        message.extend(dialect.version());
        message.push(self.service() as u8);
        message.extend(u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes());
        message.append(&mut payload);
        message
    }
}

/// Reads the header of the answer to `service`: the length of its payload.
pub(crate) fn parse_header(header: [u8; HEADER_BYTES], service: Service) -> Result<usize, ProtocolViolation> {
    let [_, _, _, code, length @ ..] = header;
    if header.starts_with(b"HTTP") {
        return Err(framing("the server speaks HTTP, not ETSI GS QKD 004"));
    }
    match code {
        0 => return Err(framing("the server answers with its error message (service 0)")),
        code if code != service as u8 + 1 => {
            return Err(framing(format!("an answer to {} has the service code {code}", service.as_str())));
        }
        _ => {}
    }
    let length = u32::from_be_bytes(length);
    match usize::try_from(length) {
        Ok(length) if length > MAX_PAYLOAD => {
            let text = format!("the answer to {} announces {length} bytes", service.as_str());
            Err(ProtocolViolation(Violation::TooLarge, text))
        }
        Ok(length) if length >= 4 => Ok(length),
        _ => Err(framing(format!("the answer to {} has no room for a status", service.as_str()))),
    }
}

/// An answer to OPEN_CONNECT.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OpenAnswer {
    pub(crate) status: u32,
    /// With the status of an error they may be missing.
    pub(crate) stream: Option<OpenedStream>,
}

/// The association in an answer to OPEN_CONNECT.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OpenedStream {
    pub(crate) qos: Qos,
    pub(crate) ksid: Ksid,
    /// The format of this answer.
    pub(crate) dialect: Dialect,
}

/// The status codes with which an answer to OPEN_CONNECT has a QoS and a KSID: success, success while the
/// peer isn't connected, and a counter-proposal.
const WITH_STREAM: [u32; 3] = [0, 1, 7];

pub(crate) fn parse_open(payload: &[u8]) -> Result<OpenAnswer, ProtocolViolation> {
    let mut reader = Reader(payload);
    let status = reader.number()?;
    if reader.0.is_empty() && status != 0 && status != 1 {
        return Ok(OpenAnswer { status, stream: None });
    }
    let stream = opened_stream(&mut reader);
    match stream {
        Ok(stream) => Ok(OpenAnswer { status, stream: Some(stream) }),
        // The rest of an error is of no use.
        Err(_) if !WITH_STREAM.contains(&status) => Ok(OpenAnswer { status, stream: None }),
        Err(broken) => Err(broken),
    }
}

fn opened_stream(reader: &mut Reader<'_>) -> Result<OpenedStream, ProtocolViolation> {
    let mut numbers = [0; 7];
    for number in &mut numbers {
        *number = reader.number()?;
    }
    let [key_chunk_size, max_bps, min_bps, jitter, priority, timeout_ms, ttl_s] = numbers;
    let qos = Qos { key_chunk_size, max_bps, min_bps, jitter, priority, timeout_ms, ttl_s };
    let mimetype = reader.0.len().checked_sub(KSID_BYTES).ok_or_else(cut)?;
    let mimetype = reader.bytes(mimetype)?;
    let end = mimetype.iter().position(|byte| *byte == 0).ok_or_else(cut)?;
    let dialect = match mimetype.get(end..).unwrap_or_default() {
        [0] => Dialect::C,
        padding if mimetype.len() == PADDED_MIMETYPE && padding.iter().all(|byte| *byte == 0) => {
            Dialect::Python
        }
        _ => return Err(framing("the QoS in the answer to OPEN_CONNECT has neither of the known formats")),
    };
    let ksid = Ksid(reader.array()?);
    Ok(OpenedStream { qos, ksid, dialect })
}

/// An answer to GET_KEY.
pub(crate) enum KeyAnswer {
    /// The first 256 bits of a chunk, and the chunk's size in bytes.
    Key(SecretBuf, u32),
    /// Status 8, and the size that the metadata needs.
    MoreMetadata(u32),
    /// Another status.
    Refused(u32),
}

/// Reads the key at `index` of a stream whose chunks have `chunk` bytes, if that is known.
pub(crate) fn parse_key(
    payload: &[u8],
    index: u32,
    chunk: Option<u32>,
) -> Result<KeyAnswer, ProtocolViolation> {
    let mut reader = Reader(payload);
    match reader.number()? {
        0 => {}
        // Python: the size alone. C: index, an empty key, and the size before the metadata.
        8 => return Ok(needed_metadata(reader.0).map_or(KeyAnswer::Refused(8), KeyAnswer::MoreMetadata)),
        status => return Ok(KeyAnswer::Refused(status)),
    }
    let got = reader.number()?;
    if got != index {
        let text = format!("index {got} came where index {index} was asked for");
        return Err(ProtocolViolation(Violation::OtherKeyId, text));
    }
    let length = reader.number()?;
    if let Some(chunk) = chunk.filter(|chunk| *chunk != length) {
        let text = format!("a key of {length} bytes came, and Key_chunk_size is {chunk}");
        return Err(ProtocolViolation(Violation::KeySize, text));
    }
    let key = reader.bytes(usize::try_from(length).map_err(|_| cut())?)?;
    let announced = reader.number()?;
    if usize::try_from(announced).ok() != Some(reader.0.len()) {
        let left = reader.0.len();
        return Err(framing(format!("the metadata is announced with {announced} bytes, and {left} follow")));
    }
    let whole = usize::try_from(MAX_KEY_BITS / 8).unwrap_or(0);
    let used = usize::try_from(MIN_KEY_BITS / 8).unwrap_or(0);
    let first = key.get(..used).filter(|_| key.len() <= whole).ok_or_else(|| {
        let text = format!("keys of {length} bytes can't be used: {used} to {whole} are possible");
        ProtocolViolation(Violation::KeySize, text)
    })?;
    if qvpn_secret::ct_eq(first, &[0; MIN_KEY_BITS as usize / 8]) {
        return Err(ProtocolViolation(Violation::ZeroKey, format!("the key at index {index} is all zeros")));
    }
    let mut secret = SecretBuf::zeroed(used);
    secret.expose_mut().copy_from_slice(first);
    Ok(KeyAnswer::Key(secret, length))
}

fn needed_metadata(rest: &[u8]) -> Option<u32> {
    let mut reader = Reader(rest);
    if rest.len() > 4 {
        let _index = reader.number().ok()?;
        let key = usize::try_from(reader.number().ok()?).ok()?;
        reader.bytes(key).ok()?;
    }
    reader.number().ok()
}

/// Reads the status of an answer to CLOSE.
pub(crate) fn parse_close(payload: &[u8]) -> Result<u32, ProtocolViolation> {
    Reader(payload).number()
}

fn framing(text: impl Into<String>) -> ProtocolViolation {
    ProtocolViolation(Violation::Framing, text.into())
}

fn cut() -> ProtocolViolation {
    framing("the answer ends too early")
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, length: usize) -> Result<&'a [u8], ProtocolViolation> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or_else(cut)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ProtocolViolation> {
        self.bytes(N)?.try_into().map_err(|_| cut())
    }

    fn number(&mut self) -> Result<u32, ProtocolViolation> {
        Ok(u32::from_be_bytes(self.array()?))
    }
}

#[cfg(test)]
mod tests;
