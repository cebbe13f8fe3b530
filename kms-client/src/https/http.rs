//! One operation over one new connection: name lookup, TCP, TLS, request and answer under one deadline. Then
//! the connection is dropped, with every buffer that held a key. There is no pool, proxy or redirect.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header;
use hyper::{Method, Response};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use zeroize::Zeroize;

use crate::error::Phase;
use crate::https::body::ErasedBody;
use crate::https::connect::{Cause, Failure, Target, Trace, open};
use crate::https::read_after_reset::ReadAfterReset;

/// The largest answer that is read, in bytes. It has room for a thousand keys of 256 bits.
pub const MAX_BODY: usize = 1024 * 1024;
/// The maximum number of bytes of an error body that are read.
pub const MAX_ERROR_BODY: usize = 16 * 1024;
/// The largest head of an answer, in bytes.
const MAX_HEAD: usize = 64 * 1024;

pub(crate) struct Request {
    pub(crate) method: Method,
    /// Path and query.
    pub(crate) path: String,
    /// JSON.
    pub(crate) body: Option<Vec<u8>>,
}

/// An answer of any status.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: ErasedBody,
    pub(crate) location: Option<String>,
    /// `Content-Type`, on one line.
    pub(crate) content_type: Option<String>,
}

/// Sends one request and reads its answer before `deadline`.
pub(crate) async fn perform(
    target: &Target,
    tls: Arc<ClientConfig>,
    request: Request,
    deadline: Instant,
    trace: &mut Trace,
) -> Result<Answer, Failure> {
    let result = tokio::time::timeout_at(deadline, attempt(target, tls, request, deadline, trace)).await;
    let cause = match result {
        Ok(Ok(answer)) => return Ok(answer),
        Ok(Err(cause)) => cause,
        Err(_) => Cause::Deadline,
    };
    Err(Failure { phase: trace.phase.unwrap_or(Phase::Resolve), cause, status: trace.status })
}

async fn attempt(
    target: &Target,
    tls: Arc<ClientConfig>,
    request: Request,
    deadline: Instant,
    trace: &mut Trace,
) -> Result<Answer, Cause> {
    let stream = open(target, tls, deadline, trace).await?;
    trace.phase = Some(Phase::Answer);
    exchange(ReadAfterReset(stream), target, request, deadline, trace).await
}

/// Sends the request and reads the answer.
async fn exchange<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    target: &Target,
    request: Request,
    deadline: Instant,
    trace: &mut Trace,
) -> Result<Answer, Cause> {
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|e| hyper_cause(&e))?;
    let mut connection = Driver { connection: Box::pin(connection), ended: false };

    let mut builder = hyper::Request::builder()
        .method(request.method)
        .uri(request.path)
        .header(header::HOST, &target.authority)
        .header(header::ACCEPT, "application/json")
        .header(header::CONNECTION, "close")
        .header(header::USER_AGENT, concat!("qvpn/", env!("CARGO_PKG_VERSION")));
    if request.body.is_some() {
        builder = builder.header(header::CONTENT_TYPE, "application/json");
    }
    let request = builder
        .body(Full::new(Bytes::from(request.body.unwrap_or_default())))
        .map_err(|e| Cause::Http(e.to_string()))?;

    let response = connection.run(sender.send_request(request)).await.map_err(|e| hyper_cause(&e))?;
    let status = response.status().as_u16();
    trace.phase = Some(Phase::Body);
    trace.status = Some(status);
    let text = |name| {
        let value: Option<&header::HeaderValue> = response.headers().get(name);
        value.map(|value| crate::excerpt::one_line(&String::from_utf8_lossy(value.as_bytes())))
    };
    let (location, content_type) = (text(header::LOCATION), text(header::CONTENT_TYPE));
    let body = if status == 200 {
        connection.run(read_body(response)).await?
    } else {
        // The status decides; the body only adds an excerpt, so half of the time is enough for it.
        let left = deadline.saturating_duration_since(Instant::now());
        connection.run(read_error_body(response, left / 2)).await
    };
    drop(sender);
    connection.close_tls().await;
    Ok(Answer { status, body, location, content_type })
}

/// Polls a connection together with the work on it, in one future, so that dropping the future drops the
/// connection.
struct Driver<S: AsyncRead + AsyncWrite + Unpin> {
    connection: Pin<Box<http1::Connection<TokioIo<S>, Full<Bytes>>>>,
    ended: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Driver<S> {
    async fn run<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        poll_fn(|cx| {
            if !self.ended {
                // The work gets the connection's error through hyper's channel.
                self.ended = self.connection.as_mut().poll(cx).is_ready();
            }
            work.as_mut().poll(cx)
        })
        .await
    }

    /// Sends TLS's close_notify if that is possible without waiting.
    async fn close_tls(&mut self) {
        poll_fn(|cx| {
            if !self.ended {
                self.ended = self.connection.as_mut().poll(cx).is_ready();
            }
            Poll::Ready(())
        })
        .await;
    }
}

async fn read_body(response: Response<Incoming>) -> Result<ErasedBody, Cause> {
    let mut incoming = response.into_body();
    let announced = incoming.size_hint().exact();
    if announced.is_some_and(|length| length > MAX_BODY as u64) {
        return Err(Cause::TooLarge);
    }
    let room = announced.and_then(|length| usize::try_from(length).ok()).unwrap_or(4096);
    let mut body = ErasedBody::with_capacity(room);
    while let Some(frame) = incoming.frame().await {
        match frame {
            Ok(frame) => {
                if let Ok(data) = frame.into_data() {
                    if body.bytes().len() + data.len() > MAX_BODY {
                        erase(data);
                        return Err(Cause::TooLarge);
                    }
                    body.push(&data);
                    erase(data);
                }
            }
            // Servers that end a body by closing the connection often omit close_notify. The JSON parser
            // detects a truncated body.
            Err(error) if announced.is_none() && is_unexpected_eof(&error) => break,
            Err(error) => return Err(hyper_cause(&error)),
        }
    }
    Ok(body)
}

async fn read_error_body(response: Response<Incoming>, patience: Duration) -> ErasedBody {
    let mut incoming = response.into_body();
    let mut body = ErasedBody::with_capacity(4096);
    let read = async {
        while let Some(Ok(frame)) = incoming.frame().await {
            if let Ok(data) = frame.into_data() {
                let room = MAX_ERROR_BODY.saturating_sub(body.bytes().len());
                body.push(&data[..data.len().min(room)]);
                erase(data);
                if body.bytes().len() >= MAX_ERROR_BODY {
                    break;
                }
            }
        }
    };
    // After a timeout, the bytes received so far are enough.
    let _ = tokio::time::timeout(patience, read).await;
    body
}

/// Wipes a piece of the body, unless hyper shares its memory; then it is freed with the connection.
fn erase(data: Bytes) {
    if let Ok(mut data) = data.try_into_mut() {
        data.as_mut().zeroize();
    }
}

/// Returns the I/O error that caused a hyper error. Before the request is sent, there is another hyper error
/// in between.
fn io_error(error: &hyper::Error) -> Option<&std::io::Error> {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref() {
            return Some(io);
        }
        source = cause.source();
    }
    None
}

fn is_unexpected_eof(error: &hyper::Error) -> bool {
    error.is_incomplete_message()
        || io_error(error).is_some_and(|e| e.kind() == std::io::ErrorKind::UnexpectedEof)
}

fn hyper_cause(error: &hyper::Error) -> Cause {
    if let Some(io) = io_error(error) {
        if let Some(tls) = io.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            return Cause::Tls(tls.clone());
        }
        if io.kind() == std::io::ErrorKind::UnexpectedEof {
            return Cause::Closed;
        }
        return Cause::Io(std::io::Error::new(io.kind(), io.to_string()));
    }
    if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        return Cause::Closed;
    }
    // hyper's parse errors are fixed texts.
    Cause::Http(crate::excerpt::one_line(&error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::io::{Error, ErrorKind, Result};
    use std::task::Context;

    use rustls::AlertDescription;
    use tokio::io::ReadBuf;

    use super::*;

    /// What happens on a connection, in order.
    enum Event {
        /// The KME closed the connection before this write.
        WriteFails,
        Read(Result<&'static [u8]>),
    }

    /// A connection on which nothing else happens.
    struct Script(VecDeque<Event>);

    impl AsyncRead for Script {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            into: &mut ReadBuf<'_>,
        ) -> Poll<Result<()>> {
            match self.0.pop_front() {
                Some(Event::Read(read)) => Poll::Ready(read.map(|bytes| into.put_slice(bytes))),
                Some(Event::WriteFails) => {
                    self.0.push_front(Event::WriteFails);
                    Poll::Pending
                }
                None => {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
            }
        }
    }

    impl AsyncWrite for Script {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
            if let Some(Event::WriteFails) = self.0.front() {
                self.0.pop_front();
                // Wakes the task as a socket wakes its reader.
                cx.waker().wake_by_ref();
                return Poll::Ready(Err(ErrorKind::BrokenPipe.into()));
            }
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    async fn outcome(events: impl IntoIterator<Item = Event>) -> std::result::Result<Answer, Cause> {
        let target = Target {
            host: "localhost".to_owned(),
            port: 443,
            server_name: "localhost".try_into().unwrap(),
            authority: "localhost".to_owned(),
            fwmark: None,
        };
        let request = Request { method: Method::POST, path: "/".to_owned(), body: Some(b"{}".to_vec()) };
        let deadline = Instant::now() + Duration::from_secs(20);
        let stream = ReadAfterReset(Script(events.into_iter().collect()));
        let mut trace = Trace::default();
        let done = exchange(stream, &target, request, deadline, &mut trace);
        tokio::time::timeout_at(deadline, done).await.unwrap()
    }

    fn alert() -> Event {
        let alert = rustls::Error::AlertReceived(AlertDescription::UnknownCA);
        Event::Read(Err(Error::new(ErrorKind::InvalidData, alert)))
    }

    fn is_the_alert(outcome: &std::result::Result<Answer, Cause>) -> bool {
        matches!(outcome, Err(Cause::Tls(rustls::Error::AlertReceived(AlertDescription::UnknownCA))))
    }

    #[tokio::test]
    async fn a_refusal_is_read_before_and_after_the_request() {
        assert!(is_the_alert(&outcome([alert()]).await), "before");
        assert!(is_the_alert(&outcome([Event::WriteFails, alert()]).await), "the KME closed the connection");
    }

    #[tokio::test]
    async fn an_answer_before_the_end_of_the_request_counts() {
        let early: &[u8] = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n";
        let answer = outcome([Event::WriteFails, Event::Read(Ok(early))]).await;
        assert!(answer.is_ok_and(|answer| answer.status == 429));
    }

    #[tokio::test]
    async fn a_close_without_data_is_reported_as_such() {
        let closed = outcome([Event::WriteFails, Event::Read(Ok(b""))]).await;
        assert!(matches!(closed, Err(Cause::Closed)));
        let reset = outcome([Event::WriteFails, Event::Read(Err(ErrorKind::ConnectionReset.into()))]).await;
        assert!(matches!(reset, Err(Cause::Io(error)) if error.kind() == ErrorKind::ConnectionReset));
    }
}
