//! The messages of ETSI GS QKD 004 as bytes: a bounded parser for requests, and the answers. An answer with a
//! key is erased after it is sent.

use zeroize::Zeroizing;

/// Version, service and payload length.
pub(crate) const HEADER_BYTES: usize = 8;
/// The largest payload of a request: two long URIs and 8 KiB of metadata have room in it.
pub(crate) const MAX_PAYLOAD: usize = 32 * 1024;
/// The Python server's field for the mimetype, padded with zeros.
const PADDED: usize = 256;
const NUMBERS: usize = 7 * 4;
const KSID: usize = 16;

/// Which implementation's format a message has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// ETSI's C reference.
    C,
    /// QUBIP's Python server.
    Python,
}

/// The service codes of requests; an answer's is one more.
pub(crate) mod service {
    pub(crate) const OPEN_CONNECT: u8 = 2;
    pub(crate) const GET_KEY: u8 = 4;
    pub(crate) const CLOSE: u8 = 8;
}

/// The status codes of table 4.
pub(crate) mod status {
    pub(crate) const SUCCESS: u32 = 0;
    pub(crate) const PEER_NOT_CONNECTED: u32 = 1;
    pub(crate) const INSUFFICIENT_KEY: u32 = 2;
    pub(crate) const NOT_CONNECTED: u32 = 3;
    pub(crate) const NO_QKD_CONNECTION: u32 = 4;
    pub(crate) const KSID_IN_USE: u32 = 5;
    pub(crate) const TIMEOUT: u32 = 6;
    pub(crate) const QOS_NOT_MET: u32 = 7;
    pub(crate) const METADATA_SIZE: u32 = 8;
}

/// The quality of service of a stream (table 5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Qos {
    /// `Key_chunk_size`, `Max_bps`, `Min_bps`, `Jitter`, `Priority`, `Timeout`, `TTL`.
    pub(crate) numbers: [u32; 7],
    /// Without the zeros behind it.
    pub(crate) mimetype: Vec<u8>,
}

impl Qos {
    /// Bytes.
    pub(crate) fn chunk(&self) -> u32 {
        self.numbers[0]
    }

    /// Seconds.
    pub(crate) fn ttl(&self) -> u32 {
        self.numbers[6]
    }
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    Open { source: Vec<u8>, destination: Vec<u8>, qos: Qos, ksid: [u8; KSID], dialect: Dialect },
    GetKey { ksid: [u8; KSID], index: u32, metadata_size: u32 },
    Close { ksid: [u8; KSID] },
}

/// Reads a request's payload; `None` if it has another form. With `as_c` a padded mimetype is read as the C
/// reference reads it: as a string, with the stream's ID in what is padding.
pub(crate) fn parse(code: u8, payload: &[u8], as_c: bool) -> Option<Request> {
    match code {
        service::OPEN_CONNECT => {
            let (source, rest) = split_string(payload)?;
            let (destination, rest) = split_string(rest)?;
            let (numbers, rest) = rest.split_at_checked(NUMBERS)?;
            let mut qos = [0; 7];
            for (number, bytes) in qos.iter_mut().zip(numbers.chunks_exact(4)) {
                *number = u32::from_be_bytes(bytes.try_into().ok()?);
            }
            let is_padded = rest.len() == PADDED + KSID && !as_c;
            let (mimetype, ksid) = if is_padded {
                let (field, ksid) = rest.split_at_checked(PADDED)?;
                (split_string(field).map_or(field, |(text, _)| text), ksid)
            } else {
                split_string(rest)?
            };
            Some(Request::Open {
                source: source.to_vec(),
                destination: destination.to_vec(),
                qos: Qos { numbers: qos, mimetype: mimetype.to_vec() },
                ksid: *ksid.first_chunk()?,
                dialect: if is_padded { Dialect::Python } else { Dialect::C },
            })
        }
        service::GET_KEY => {
            let (ksid, rest) = payload.split_first_chunk()?;
            let (index, rest) = rest.split_first_chunk()?;
            let (size, _) = rest.split_first_chunk()?;
            let (index, metadata_size) = (u32::from_be_bytes(*index), u32::from_be_bytes(*size));
            Some(Request::GetKey { ksid: *ksid, index, metadata_size })
        }
        service::CLOSE => Some(Request::Close { ksid: *payload.first_chunk()? }),
        _ => None,
    }
}

fn split_string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    Some((bytes.get(..end)?, bytes.get(end + 1..)?))
}

/// An answer.
pub(crate) enum Answer<'a> {
    /// The status alone.
    Status(u32),
    /// To OPEN_CONNECT.
    Opened { status: u32, qos: &'a Qos, ksid: [u8; KSID] },
    /// To GET_KEY.
    Key { index: u32, key: &'a [u8], metadata: &'a [u8] },
    /// To GET_KEY: the metadata needs this number of bytes.
    MoreMetadata(u32),
}

impl Answer<'_> {
    /// The whole message, as the answer to the service `code`.
    pub(crate) fn encode(&self, code: u8, dialect: Dialect) -> Zeroizing<Vec<u8>> {
        // Large enough for all, since a buffer that grows leaves copies behind.
        let room = match self {
            Self::Key { key, metadata, .. } => key.len() + metadata.len(),
            Self::Opened { qos, .. } => qos.mimetype.len().max(PADDED),
            _ => 0,
        };
        let mut message = Zeroizing::new(Vec::with_capacity(HEADER_BYTES + 64 + room));
        message.extend(match dialect {
            Dialect::C => [2, 1, 1],
            Dialect::Python => [1, 0, 1],
        });
        message.extend([code + 1, 0, 0, 0, 0]);
        match self {
            Self::Status(status) => {
                message.extend(status.to_be_bytes());
                if dialect == Dialect::C && code == service::GET_KEY {
                    // Index, an empty key and no metadata.
                    message.extend([0; 12]);
                }
            }
            Self::Opened { status, qos, ksid } => {
                message.extend(status.to_be_bytes());
                qos.numbers.iter().for_each(|number| message.extend(number.to_be_bytes()));
                let field = message.len();
                message.extend(&qos.mimetype);
                match dialect {
                    Dialect::C => message.push(0),
                    Dialect::Python => message.resize(field + PADDED, 0),
                }
                message.extend(ksid);
            }
            Self::Key { index, key, metadata } => {
                message.extend([0; 4]);
                message.extend(index.to_be_bytes());
                message.extend(length(key));
                message.extend_from_slice(key);
                message.extend(length(metadata));
                message.extend_from_slice(metadata);
            }
            Self::MoreMetadata(size) => {
                message.extend(status::METADATA_SIZE.to_be_bytes());
                if dialect == Dialect::C {
                    message.extend([0; 8]);
                }
                message.extend(size.to_be_bytes());
            }
        }
        let payload = length(message.get(HEADER_BYTES..).unwrap_or_default());
        if let Some(field) = message.get_mut(4..HEADER_BYTES) {
            field.copy_from_slice(&payload);
        }
        message
    }
}

fn length(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(mimetype: &[u8]) -> Vec<u8> {
        let mut payload = b"qkd://A\0qkd://B\0".to_vec();
        (1u32..=7).for_each(|number| payload.extend(number.to_be_bytes()));
        payload.extend(mimetype);
        payload.extend([9; KSID]);
        payload
    }

    #[test]
    fn an_open_request_has_two_formats() {
        let mut padded = b"application/json".to_vec();
        padded.resize(PADDED, 0);
        for (mimetype, as_c, dialect, ksid) in [
            (&padded[..], false, Dialect::Python, [9; KSID]),
            (b"application/json\0", false, Dialect::C, [9; KSID]),
            // The C reference takes the padding for the stream.
            (&padded[..], true, Dialect::C, [0; KSID]),
        ] {
            let qos = Qos { numbers: [1, 2, 3, 4, 5, 6, 7], mimetype: b"application/json".to_vec() };
            let (source, destination) = (b"qkd://A".to_vec(), b"qkd://B".to_vec());
            let want = Request::Open { source, destination, qos, ksid, dialect };
            assert_eq!(parse(service::OPEN_CONNECT, &open(mimetype), as_c), Some(want));
        }
        let whole = open(b"application/json\0");
        for cut in 0..whole.len() {
            assert_eq!(parse(service::OPEN_CONNECT, &whole[..cut], false), None, "{cut}");
        }
    }

    #[test]
    fn the_other_requests_are_read() {
        let mut get = [7; KSID].to_vec();
        get.extend([0, 0, 0, 5, 0, 0, 4, 0]);
        let want = Request::GetKey { ksid: [7; KSID], index: 5, metadata_size: 1024 };
        assert_eq!(parse(service::GET_KEY, &get, false), Some(want.clone()));
        // C appends the metadata's room.
        get.resize(24 + 1024, 0);
        assert_eq!(parse(service::GET_KEY, &get, true), Some(want));
        assert_eq!(parse(service::CLOSE, &[7; KSID], false), Some(Request::Close { ksid: [7; KSID] }));
        assert_eq!(parse(service::CLOSE, &[7; 15], false), None);
        for code in [0, 1, 3, 5, 9, 0xff] {
            assert_eq!(parse(code, &get, false), None, "the C reference's 0xff closes the server: never");
        }
    }

    /// Bytes that the Python server sent.
    #[test]
    fn answers_are_those_of_the_servers() {
        let unknown = Answer::Status(3).encode(service::GET_KEY, Dialect::Python);
        assert_eq!(unknown[..], [1, 0, 1, 5, 0, 0, 0, 4, 0, 0, 0, 3]);
        let key = Answer::Key { index: 0, key: &[8; 32], metadata: &[b' '; 33] };
        let key = key.encode(service::GET_KEY, Dialect::Python);
        assert_eq!(key[..20], [1, 0, 1, 5, 0, 0, 0, 0x51, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x20]);
        assert_eq!(key[52..56], [0, 0, 0, 0x21]);
        assert_eq!(key.len(), HEADER_BYTES + 0x51);
        let more = Answer::MoreMetadata(33).encode(service::GET_KEY, Dialect::C);
        assert_eq!(more[..], [2, 1, 1, 5, 0, 0, 0, 16, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 33]);
    }
}
