//! An association: a key stream that is open at the KME, and the calls on it. Its connection is kept for the
//! calls of one operation, where the server keeps it too: TLS buffers that held a key don't live longer.

use std::time::Duration;

use qvpn_api::config;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use crate::error::{KmsError, KmsErrorKind, Violation};
use crate::etsi004::status::{Side, meaning};
use crate::etsi004::transport::{self, CallError};
use crate::etsi004::wire::{self, Dialect, KeyAnswer, Ksid, MAX_METADATA_BYTES, Qos, Request, Service};
use crate::https::connector::{Call, Channel, KmeConnector};
use crate::json::ProtocolViolation;
use crate::key::{KEY_BITS, MAX_KEY_BITS};

/// The room for metadata that a request names first.
const METADATA_BYTES: u32 = 1024;
/// Of the TTL that is asked for, in seconds. A new stream is opened some time before its end.
const TTL_S: u32 = 3600;
/// Far above what a gateway uses: a key each 100 ms.
const MAX_BPS: u32 = 25_600;
const MIN_BPS: u32 = 256;

/// An operation in progress.
#[derive(Clone, Copy)]
pub(super) struct Caller<'a> {
    pub(super) connector: &'a KmeConnector,
    pub(super) call: Call<'a>,
    pub(super) deadline: Instant,
}

impl Caller<'_> {
    pub(super) fn error(&self, kind: KmsErrorKind) -> KmsError {
        self.connector.error(kind, self.call)
    }

    /// The error for an answer that breaks the rules.
    pub(super) fn broken(&self, ProtocolViolation(violation, detail): ProtocolViolation) -> KmsError {
        let error = self
            .error(KmsErrorKind::ProtocolViolation(violation))
            .with_detail(detail)
            .with_keys_lost(self.call.at_stake);
        match violation {
            Violation::Framing => error.with_advice(
                "check that url has the KME's port for ETSI GS QKD 004, and compare dialect with what the \
                 KME speaks: qvpn-ctl kms check tries both",
            ),
            Violation::ZeroKey => error.with_advice(
                "nothing of this answer is used: some servers send zeros for keys that the link has not \
                 made yet; ask the KME's operator about the link's key rate",
            ),
            _ => error,
        }
    }

    fn failed(&self, error: CallError, channel: &Channel) -> KmsError {
        match error {
            CallError::Failed(failure) => self.connector.request_failed(self.call, failure, channel),
            CallError::Broken(broken) => self.broken(broken),
        }
    }

    /// The error for a status.
    pub(super) fn refused(&self, status: u32, service: Service, side: Side) -> KmsError {
        let meaning = meaning(status, service, side);
        let text = format!("{} gives status {status}: {}", service.as_str(), meaning.text);
        let error = self.error(meaning.kind).with_detail(text);
        match meaning.advice {
            Some(advice) => error.with_advice(advice),
            None => error,
        }
    }

    /// The QoS that is asked for. The KME's time limit ends before ours, so that its status arrives.
    fn wanted_qos(&self) -> Qos {
        let timeout = self.connector.config.timeout * 4 / 5;
        Qos {
            key_chunk_size: KEY_BITS / 8,
            max_bps: MAX_BPS,
            min_bps: MIN_BPS,
            jitter: MAX_BPS,
            priority: 0,
            timeout_ms: u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX),
            ttl_s: TTL_S,
        }
    }

    fn open_request(&self, qos: Qos, ksid: Ksid) -> OpenRequest {
        let source = uri(&self.connector.config.sae_id);
        OpenRequest { source, destination: uri(self.call.peer.as_str()), qos, ksid }
    }
}

/// The URI of an application: the SAE ID itself if it is one.
fn uri(sae_id: &str) -> String {
    use crate::https::connector::ENCODED;
    if sae_id.contains("://") {
        return sae_id.to_owned();
    }
    format!("qkd://{}", percent_encoding::utf8_percent_encode(sae_id, ENCODED))
}

struct OpenRequest {
    source: String,
    destination: String,
    qos: Qos,
    ksid: Ksid,
}

impl OpenRequest {
    fn wire(&self) -> Request<'_> {
        let Self { source, destination, qos, ksid } = self;
        Request::Open { source, destination, qos: *qos, ksid: *ksid }
    }
}

/// A key stream that is open at the KME.
pub(super) struct Association {
    pub(super) ksid: Ksid,
    /// The index of the next new key.
    pub(super) next_index: u32,
    pub(super) dialect: Dialect,
    /// The KME's counter-proposal, if it made one.
    pub(super) counter_proposal: Option<Qos>,
    /// Whether the peer wasn't connected when the stream was opened.
    pub(super) peer_missing: bool,
    /// `Key_chunk_size`, if the KME named it.
    chunk: Option<u32>,
    ends: Option<Instant>,
    channel: Option<Channel>,
    /// Whether the last request was sent twice, so that the first one may have been carried out.
    pub(super) sent_twice: bool,
}

/// What an OPEN_CONNECT led to, other than a failure.
enum Opening {
    Open(Association),
    /// Status 7: the proposal, and the stream that exists already under it, if any.
    Counter(Qos, Association),
    /// The server speaks the other dialect.
    Other(Dialect),
}

impl Association {
    /// Opens a stream: a new one if `ksid` is nil. Accepts one counter-proposal. With `auto` the dialect that
    /// the answer has is used, and the other is tried where none comes.
    pub(super) async fn open(
        caller: Caller<'_>,
        ksid: Ksid,
        setting: config::Dialect,
        learned: Option<Dialect>,
    ) -> Result<Self, KmsError> {
        let first = match setting {
            config::Dialect::C => Dialect::C,
            config::Dialect::Python => Dialect::Python,
            // The C reference understands a Python request for a new stream, but not the reverse.
            config::Dialect::Auto => learned.unwrap_or(Dialect::Python),
        };
        let second = match first {
            Dialect::C => Dialect::Python,
            Dialect::Python => Dialect::C,
        };
        let is_auto = setting == config::Dialect::Auto;
        match Self::open_as(caller, ksid, first, is_auto).await {
            Ok(Opening::Open(open)) => Ok(open),
            Ok(Opening::Counter(qos, open)) => Self::reopen(caller, ksid, qos, open).await,
            Ok(Opening::Other(other)) if is_auto => Self::open_in(caller, ksid, other).await,
            Ok(Opening::Other(other)) => {
                let text = format!(
                    "the server speaks the dialect \"{}\", and the config says \"{}\"",
                    other.as_str(),
                    first.as_str()
                );
                let error = caller.broken(ProtocolViolation(Violation::Framing, text));
                Err(error.with_advice(format!("write dialect = \"{}\", or \"auto\"", other.as_str())))
            }
            Err((error, true)) if is_auto => match Self::open_in(caller, ksid, second).await {
                Ok(open) => Ok(open),
                // The second attempt says nothing new about a server that is there.
                Err(_) => Err(error),
            },
            Err((error, _)) => Err(error),
        }
    }

    /// As [`open`](Self::open), in a dialect that is known.
    async fn open_in(caller: Caller<'_>, ksid: Ksid, dialect: Dialect) -> Result<Self, KmsError> {
        match Self::open_as(caller, ksid, dialect, false).await {
            Ok(Opening::Open(open)) => Ok(open),
            Ok(Opening::Counter(qos, open)) => Self::reopen(caller, ksid, qos, open).await,
            Ok(Opening::Other(_)) => {
                let text = "the server's dialect changes from call to call".to_owned();
                Err(caller.broken(ProtocolViolation(Violation::Framing, text)))
            }
            Err((error, _)) => Err(error),
        }
    }

    /// Opens the stream under the KME's proposal. What it opened already is closed first.
    async fn reopen(caller: Caller<'_>, ksid: Ksid, qos: Qos, first: Self) -> Result<Self, KmsError> {
        let bytes = usable_chunks();
        let usable = bytes.contains(&qos.key_chunk_size);
        let dialect = first.dialect;
        if first.ksid != Ksid::NIL {
            // The Python server has opened it. The status is of no use: others have opened nothing.
            let _ = first.close(caller).await;
        }
        if !usable {
            let error = caller.refused(7, Service::OpenConnect, Side::First);
            return Err(error.with_detail(format!(
                "OPEN_CONNECT gives status 7, and the counter-proposal is {qos}: keys of {} to {} bytes \
                 can be used",
                bytes.start(),
                bytes.end()
            )));
        }
        let again = caller.open_request(qos, ksid);
        match Self::try_open(caller, &again, dialect).await {
            Ok(Opening::Open(open)) => Ok(Self { counter_proposal: Some(qos), ..open }),
            Ok(Opening::Counter(next, open)) => {
                let _ = open.close(caller).await;
                let error = caller.refused(7, Service::OpenConnect, Side::First);
                Err(error.with_detail(format!(
                    "OPEN_CONNECT gives status 7 for the KME's own counter-proposal: {qos}, and then {next}"
                )))
            }
            Ok(Opening::Other(_)) => {
                let text = "the server's dialect changes from call to call".to_owned();
                Err(caller.broken(ProtocolViolation(Violation::Framing, text)))
            }
            Err((error, _)) => Err(error),
        }
    }

    /// One OPEN_CONNECT with the wanted QoS. With `any_answer` a new stream may be answered in the other
    /// dialect. The error comes with whether another dialect may help.
    async fn open_as(
        caller: Caller<'_>,
        ksid: Ksid,
        dialect: Dialect,
        any_answer: bool,
    ) -> Result<Opening, (KmsError, bool)> {
        let request = caller.open_request(caller.wanted_qos(), ksid);
        let opening = Self::try_open(caller, &request, dialect).await?;
        let (Opening::Open(open) | Opening::Counter(_, open)) = &opening else { return Ok(opening) };
        if open.dialect == dialect || (any_answer && ksid == Ksid::NIL) {
            return Ok(opening);
        }
        let other = open.dialect;
        // It read our request in its own format, so this may be another stream than the one asked for.
        if let Opening::Open(open) | Opening::Counter(_, open) = opening {
            let _ = open.close(caller).await;
        }
        Ok(Opening::Other(other))
    }

    async fn try_open(
        caller: Caller<'_>,
        request: &OpenRequest,
        dialect: Dialect,
    ) -> Result<Opening, (KmsError, bool)> {
        let mut channel =
            caller.connector.open(caller.call, caller.deadline).await.map_err(|error| (error, false))?;
        let answer = transport::call(&mut channel.stream, &request.wire(), dialect, caller.deadline).await;
        let payload = answer.map_err(|error| {
            // A server that can't read the request closes the connection, or sends its error message.
            let other_may_help = error.is_closed_before_answer() || matches!(error, CallError::Broken(_));
            (caller.failed(error, &channel), other_may_help)
        })?;
        let parsed = wire::parse_open(payload.bytes());
        let answer = parsed.map_err(|broken| (caller.broken(broken), false))?;
        let side = if request.ksid == Ksid::NIL { Side::First } else { Side::Second };
        let refused = || (caller.refused(answer.status, Service::OpenConnect, side), false);
        // The other application, or this one before a restart, has opened it. GET_KEY says if it is ours.
        let in_use = answer.status == 5 && side == Side::Second;
        let (told, qos) = match (answer.status, answer.stream) {
            (0 | 1 | 7, Some(stream)) => (stream.ksid, Some((stream.qos, stream.dialect))),
            (5, _) if in_use => (request.ksid, None),
            _ => return Err(refused()),
        };
        let answered_in = qos.map_or(dialect, |(_, dialect)| dialect);
        let keeps = (answered_in == Dialect::Python).then_some(channel);
        let open = Self {
            ksid: told,
            next_index: 0,
            dialect: answered_in,
            counter_proposal: None,
            peer_missing: answer.status == 1,
            chunk: qos.map(|(qos, _)| qos.key_chunk_size),
            ends: qos.and_then(|(qos, _)| end_of(qos.ttl_s)),
            channel: keeps,
            sent_twice: false,
        };
        if let (7, Some((qos, _))) = (answer.status, qos) {
            return Ok(Opening::Counter(qos, open));
        }
        if told != request.ksid && side == Side::Second && answered_in == dialect {
            let text = format!("OPEN_CONNECT for stream {} is answered with stream {told}", request.ksid);
            let _ = open.close(caller).await;
            return Err((caller.broken(ProtocolViolation(Violation::OtherKeyId, text)), false));
        }
        if told == Ksid::NIL {
            let text = "OPEN_CONNECT succeeds without a Key_stream_ID".to_owned();
            return Err((caller.broken(ProtocolViolation(Violation::KeyId, text)), false));
        }
        // To the second site the KME may name the chunks of the stream as it is.
        let may_differ =
            side == Side::Second && usable_chunks().contains(&qos.map_or(0, |(qos, _)| qos.key_chunk_size));
        if let Some((qos, _)) = qos
            && qos.key_chunk_size != request.qos.key_chunk_size
            && !may_differ
        {
            let text = format!(
                "OPEN_CONNECT succeeds with a Key_chunk_size of {} bytes where {} were asked for",
                qos.key_chunk_size, request.qos.key_chunk_size
            );
            let _ = open.close(caller).await;
            return Err((caller.broken(ProtocolViolation(Violation::KeySize, text)), false));
        }
        Ok(Opening::Open(open))
    }

    /// Whether a new stream must replace this one: its time ends, or its indexes.
    pub(super) fn is_over(&self) -> bool {
        self.next_index == u32::MAX || self.ends.is_some_and(|end| Instant::now() >= end)
    }

    /// Asks for the key at `index`.
    pub(super) async fn get_key(&mut self, caller: Caller<'_>, index: u32) -> Result<KeyAnswer, KmsError> {
        let (ksid, chunk) = (self.ksid, self.chunk);
        let mut metadata_size = METADATA_BYTES;
        loop {
            let request = Request::GetKey { ksid, index, metadata_size };
            let answer = self.ask(caller, &request, |payload| wire::parse_key(payload, index, chunk)).await?;
            match answer {
                KeyAnswer::MoreMetadata(size) if (metadata_size + 1..=MAX_METADATA_BYTES).contains(&size) => {
                    metadata_size = size;
                }
                KeyAnswer::MoreMetadata(_) => return Ok(KeyAnswer::Refused(8)),
                KeyAnswer::Key(secret, length) => {
                    self.chunk = Some(length);
                    return Ok(KeyAnswer::Key(secret, length));
                }
                refused => return Ok(refused),
            }
        }
    }

    /// Closes the stream. Returns the KME's status.
    pub(super) async fn close(mut self, caller: Caller<'_>) -> Result<u32, KmsError> {
        let request = Request::Close { ksid: self.ksid };
        let status = self.ask(caller, &request, wire::parse_close).await?;
        self.hang_up(caller).await;
        Ok(status)
    }

    /// Ends the connection at the end of an operation; the stream stays open.
    pub(super) async fn hang_up(&mut self, caller: Caller<'_>) {
        if let Some(channel) = self.channel.take() {
            hang_up(channel, caller.deadline).await;
        }
    }

    /// One call over the connection that is open, or over a new one if the server has closed that.
    async fn ask<T>(
        &mut self,
        caller: Caller<'_>,
        request: &Request<'_>,
        parse: impl Fn(&[u8]) -> Result<T, ProtocolViolation>,
    ) -> Result<T, KmsError> {
        let Caller { connector, call, deadline } = caller;
        self.sent_twice = false;
        let mut reused = None;
        if let Some(mut channel) = self.channel.take() {
            match transport::call(&mut channel.stream, request, self.dialect, deadline).await {
                Err(error) if error.is_closed_before_answer() => self.sent_twice = true,
                result => reused = Some((result, channel)),
            }
        }
        let (result, channel) = match reused {
            Some(done) => done,
            None => {
                let mut channel = connector.open(call, deadline).await?;
                let result = transport::call(&mut channel.stream, request, self.dialect, deadline).await;
                (result, channel)
            }
        };
        let payload = result.map_err(|error| caller.failed(error, &channel))?;
        let answer = qvpn_secret::with_scrubbed_stack(|| parse(payload.bytes()));
        drop(payload);
        let answer = answer.map_err(|broken| caller.broken(broken))?;
        // The C reference closes the connection after each answer.
        self.channel = (self.dialect == Dialect::Python).then_some(channel);
        Ok(answer)
    }
}

/// Chunks that hold a key, in bytes.
fn usable_chunks() -> std::ops::RangeInclusive<u32> {
    KEY_BITS / 8..=MAX_KEY_BITS / 8
}

/// When a new stream must replace one with this TTL: the keys that were taken last are still fetched by the
/// other site.
fn end_of(ttl_s: u32) -> Option<Instant> {
    (ttl_s > 0).then(|| Instant::now() + Duration::from_secs(u64::from(ttl_s)) * 3 / 4)
}

/// Sends TLS's close_notify and drops the connection.
async fn hang_up(mut channel: Channel, deadline: Instant) {
    // A KME that has gone needs no goodbye.
    let _ = tokio::time::timeout_at(deadline, channel.stream.shutdown()).await;
}

/// One CLOSE for a stream that nobody has: every server answers it, and it changes nothing.
pub(super) async fn ping(caller: Caller<'_>, ksid: Ksid) -> Result<(), KmsError> {
    let mut channel = caller.connector.open(caller.call, caller.deadline).await?;
    let request = Request::Close { ksid };
    let answer = transport::call(&mut channel.stream, &request, Dialect::Python, caller.deadline).await;
    let payload = answer.map_err(|error| caller.failed(error, &channel))?;
    wire::parse_close(payload.bytes()).map_err(|broken| caller.broken(broken))?;
    hang_up(channel, caller.deadline).await;
    Ok(())
}
