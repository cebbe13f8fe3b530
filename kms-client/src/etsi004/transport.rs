//! One call over an open TLS connection: the request in one write, the header, and a payload of bounded
//! length. Bytes that hold a key are erased.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use crate::error::Phase;
use crate::etsi004::wire::{self, Dialect, HEADER_BYTES, Request};
use crate::https::body::ErasedBody;
use crate::https::connect::{Cause, Failure, io_cause};
use crate::json::ProtocolViolation;

/// Why a call has no answer.
pub(crate) enum CallError {
    /// The connection broke or the deadline passed.
    Failed(Failure),
    /// What came isn't an answer to this call.
    Broken(ProtocolViolation),
}

impl CallError {
    /// Whether the server closed the connection without a byte of an answer. The request can be repeated
    /// over a new connection, since it names its index.
    pub(crate) fn is_closed_before_answer(&self) -> bool {
        match self {
            Self::Failed(Failure { phase: Phase::Answer, cause, .. }) => {
                matches!(cause, Cause::Closed | Cause::Io(_))
            }
            _ => false,
        }
    }
}

/// Sends `request` and reads the payload of its answer before `deadline`.
pub(crate) async fn call<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    request: &Request<'_>,
    dialect: Dialect,
    deadline: Instant,
) -> Result<ErasedBody, CallError> {
    let mut phase = Phase::Answer;
    match tokio::time::timeout_at(deadline, exchange(stream, request, dialect, &mut phase)).await {
        Ok(Ok(Ok(payload))) => Ok(payload),
        Ok(Ok(Err(broken))) => Err(CallError::Broken(broken)),
        Ok(Err(cause)) => Err(CallError::Failed(Failure { phase, cause, status: None })),
        Err(_) => Err(CallError::Failed(Failure { phase, cause: Cause::Deadline, status: None })),
    }
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    request: &Request<'_>,
    dialect: Dialect,
    phase: &mut Phase,
) -> Result<Result<ErasedBody, ProtocolViolation>, Cause> {
    // The C reference reads a message with one SSL_read, so it must be one record. A server that refuses
    // our certificate may have closed the connection; the read finds its alert.
    let message = request.encode(dialect);
    let written = match stream.write_all(&message).await {
        Ok(()) => stream.flush().await,
        Err(error) => Err(error),
    };
    let mut header = [0; HEADER_BYTES];
    let mut filled = 0;
    while let Some(room) = header.get_mut(filled..).filter(|room| !room.is_empty()) {
        match stream.read(room).await {
            Ok(0) => return Err(closed(filled, written.err())),
            Ok(read) => {
                filled += read;
                *phase = Phase::Body;
            }
            Err(error) => return Err(io_cause(error, read_cause)),
        }
    }
    let length = match wire::parse_header(header, request.service()) {
        Ok(length) => length,
        Err(broken) => return Ok(Err(broken)),
    };
    let mut payload = ErasedBody::zeroed(length);
    match stream.read_exact(payload.bytes_mut()).await {
        Ok(_) => Ok(Ok(payload)),
        Err(error) => Err(io_cause(error, read_cause)),
    }
}

fn closed(filled: usize, written: Option<std::io::Error>) -> Cause {
    match written.filter(|_| filled == 0) {
        Some(error) => io_cause(error, Cause::Io),
        None => Cause::Closed,
    }
}

fn read_cause(error: std::io::Error) -> Cause {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => Cause::Closed,
        _ => Cause::Io(error),
    }
}
