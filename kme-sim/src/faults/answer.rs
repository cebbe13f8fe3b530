//! Faults of whole answers, and the body type of all answers, since some faulty ones never end.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use data_encoding::BASE64;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LOCATION, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};
use serde_json::{Map, Value, json};
use tokio::time::Interval;
use zeroize::Zeroizing;

use crate::api::{Op, Status};
use crate::faults::catalog::Misbehaviour;
use crate::link::{NoRandomness, random_bytes, random_id};
use crate::refusal::KEY_NOT_FOUND;

const HUGE_BYTES: usize = 10_000_000;
const TOO_MANY_KEYS: usize = 10_000;
/// The interval between two bytes of a slow body.
const SLOW_BODY_INTERVAL: Duration = Duration::from_secs(1);
/// A name that never resolves (RFC 6761 section 6.4).
const REDIRECT_TARGET: &str = "https://kme.invalid/";
const PAGE: &str =
    "<!DOCTYPE html><html><head><title>Sign in</title></head><body><h1>Sign in</h1></body></html>";

// Error answers that proxies write themselves.
const NGINX_502: &str = "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n\
    <center><h1>502 Bad Gateway</h1></center>\r\n<hr><center>nginx/1.22.1</center>\r\n</body>\r\n</html>\r\n";
const NGINX_400: &str = "<html>\r\n<head><title>400 The SSL certificate error</title></head>\r\n<body>\r\n\
    <center><h1>400 Bad Request</h1></center>\r\n<center>The SSL certificate error</center>\r\n\
    <hr><center>nginx/1.22.1</center>\r\n</body>\r\n</html>\r\n";
const HAPROXY_503: &str = "<html><body><h1>503 Service Unavailable</h1>\n\
    No server is available to handle this request.\n</body></html>\n";
const ENVOY_503: &str =
    "upstream connect error or disconnect/reset before headers. reset reason: connection failure";

/// The body of an answer.
pub(crate) enum AnswerBody {
    /// A whole body.
    Whole(Bytes),
    /// The beginning of a body; then the connection is closed.
    Cut(CutBody),
    /// A byte at each interval, without end.
    Slow(Interval),
    /// The same bytes, repeated without end.
    Endless(Bytes),
}

/// A body that ends too early.
#[derive(Default)]
pub(crate) struct CutBody {
    begin: Bytes,
    /// Whether the beginning has been sent.
    polled: bool,
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let frame = |bytes| Poll::Ready(Some(Ok(Frame::data(bytes))));
        match self.get_mut() {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => frame(std::mem::take(bytes)),
            Self::Cut(body) if !body.begin.is_empty() => frame(std::mem::take(&mut body.begin)),
            Self::Cut(body) if !body.polled => {
                // Return pending once, since hyper sends the beginning only when no more is ready.
                body.polled = true;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Self::Cut(_) => Poll::Ready(Some(Err(cut_error()))),
            Self::Slow(interval) => {
                std::task::ready!(interval.poll_tick(cx));
                frame(Bytes::from_static(b" "))
            }
            Self::Endless(bytes) => frame(bytes.clone()),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            _ => SizeHint::default(),
        }
    }
}

/// Returns the error that ends a connection without an answer, or in the middle of one.
pub(crate) fn cut_error() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "a fault is set")
}

/// Returns an answer with a body of `content_type`.
pub(crate) fn with_type(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::Whole(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Returns a JSON answer.
pub(crate) fn json_answer(status: StatusCode, body: impl Into<Bytes>) -> Response<AnswerBody> {
    with_type(status, "application/json", body)
}

/// Returns an answer with neither a body nor a type.
pub(crate) fn empty(status: StatusCode) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::Whole(Bytes::new()));
    *response.status_mut() = status;
    response
}

/// Returns 401 without a body (clause 6.5). A 401 must name a scheme (RFC 9110 section 15.5.2), and none is
/// registered for TLS client certificates.
pub(crate) fn unauthorized() -> Response<AnswerBody> {
    let mut response = empty(StatusCode::UNAUTHORIZED);
    let challenge = HeaderValue::from_static("ClientCertificate realm=\"KME\"");
    response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    response
}

/// Returns the answer that replaces the right one, if `how` is such a fault.
pub(crate) fn replacement(how: Misbehaviour, op: Op) -> Result<Option<Response<AnswerBody>>, NoRandomness> {
    let ok = StatusCode::OK;
    let streaming = |body| {
        let mut response = json_answer(ok, "");
        *response.body_mut() = body;
        response
    };
    let value = |status, value: Value| json_answer(status, value.to_string());
    Ok(Some(match how {
        Misbehaviour::SlowBody => streaming(AnswerBody::Slow(tokio::time::interval(SLOW_BODY_INTERVAL))),
        Misbehaviour::EndlessBody => streaming(AnswerBody::Endless(Bytes::from(vec![b' '; 16 * 1024]))),
        Misbehaviour::HugeBody => {
            value(ok, json!({ "padding": "x".repeat(HUGE_BYTES), "keys": [], "stored_key_count": 1 }))
        }
        Misbehaviour::Html => with_type(ok, "text/html; charset=utf-8", PAGE),
        Misbehaviour::RubbishJson => json_answer(ok, r#"{"keys":[{"key_ID":"#),
        Misbehaviour::EmptyBody => json_answer(ok, ""),
        Misbehaviour::EmptyList => json_answer(ok, r#"{"keys":[]}"#),
        Misbehaviour::TooManyKeys => json_answer(ok, Bytes::from_owner(many_keys()?)),
        Misbehaviour::Redirect => {
            let mut response = empty(StatusCode::TEMPORARY_REDIRECT);
            response.headers_mut().insert(LOCATION, HeaderValue::from_static(REDIRECT_TARGET));
            response
        }
        Misbehaviour::ErrorHtml => {
            with_type(StatusCode::SERVICE_UNAVAILABLE, "text/html; charset=utf-8", PAGE)
        }
        Misbehaviour::PeerKmeDown => value(
            StatusCode::GATEWAY_TIMEOUT,
            json!({ "message": "timeout: the remote KME does not respond" }),
        ),
        Misbehaviour::ProxyNginx => with_type(StatusCode::BAD_GATEWAY, "text/html", NGINX_502),
        Misbehaviour::ProxyHaproxy => with_type(StatusCode::SERVICE_UNAVAILABLE, "text/html", HAPROXY_503),
        Misbehaviour::ProxyEnvoy => with_type(StatusCode::SERVICE_UNAVAILABLE, "text/plain", ENVOY_503),
        Misbehaviour::ProxyCertificate => with_type(StatusCode::BAD_REQUEST, "text/html", NGINX_400),
        Misbehaviour::ErrorEmpty => empty(StatusCode::SERVICE_UNAVAILABLE),
        Misbehaviour::ErrorDetail => value(
            StatusCode::UNPROCESSABLE_ENTITY,
            json!({"detail": [{"loc": ["body", "size"], "msg": message(422, op), "type": "value_error"}]}),
        ),
        Misbehaviour::ErrorHuge => {
            with_type(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", "error ".repeat(HUGE_BYTES / 6))
        }
        Misbehaviour::Http401 => unauthorized(),
        _ => match how.http_status().and_then(|code| StatusCode::from_u16(code).ok()) {
            Some(status) => value(status, json!({ "message": message(status.as_u16(), op) })),
            None => return Ok(None),
        },
    }))
}

/// Ends `response` in the middle of its body, after announcing the full length.
pub(crate) fn cut_body(mut response: Response<AnswerBody>) -> Response<AnswerBody> {
    if let AnswerBody::Whole(bytes) = response.body_mut() {
        let begin = bytes.split_to(bytes.len() / 2);
        let length = HeaderValue::from(begin.len() + bytes.len());
        *response.body_mut() = AnswerBody::Cut(CutBody { begin, polled: false });
        response.headers_mut().insert(CONTENT_LENGTH, length);
    }
    response
}

/// Encodes a status with fault `how`.
pub(crate) fn encode_status(how: Misbehaviour, status: &Status) -> Result<Vec<u8>, serde_json::Error> {
    let mut value = serde_json::to_value(status)?;
    let fields = match value.as_object_mut() {
        Some(fields) => fields,
        None => return serde_json::to_vec(&value),
    };
    match how {
        Misbehaviour::MissingFields => {
            for name in ["master_SAE_ID", "slave_SAE_ID", "max_key_per_request", "max_key_size"] {
                fields.remove(name);
            }
            for name in ["min_key_size", "max_SAE_ID_count"] {
                fields.remove(name);
            }
        }
        Misbehaviour::NumbersAsText => numbers_as_text(fields),
        Misbehaviour::ExtraFields => {
            fields.insert("vendor".into(), json!({"keys": [], "uptime": 1.5, "key_size": null}));
            fields.insert("status".into(), Value::from("ok"));
        }
        _ => {}
    }
    serde_json::to_vec(&value)
}

fn numbers_as_text(fields: &mut Map<String, Value>) {
    for value in fields.values_mut().filter(|v| v.is_number()) {
        *value = Value::String(value.to_string());
    }
}

/// Returns a typical server's message with `status`.
fn message(status: u16, op: Op) -> &'static str {
    match (status, op) {
        (403, _) => "forbidden",
        (429, _) => "too many requests",
        (500, _) => "internal error",
        (502 | 504, _) => "upstream error",
        (_, Op::Status) => "the KME is not ready",
        (_, Op::EncKeys) => "not enough keys are available",
        (_, Op::DecKeys) => KEY_NOT_FOUND,
    }
}

/// Returns a container of random keys.
fn many_keys() -> Result<Zeroizing<Vec<u8>>, NoRandomness> {
    let mut body = Zeroizing::new(Vec::with_capacity(TOO_MANY_KEYS * 128));
    body.extend_from_slice(br#"{"keys":["#);
    for n in 0..TOO_MANY_KEYS {
        let mut key = Zeroizing::new([0; 32]);
        random_bytes(&mut *key)?;
        let comma = if n > 0 { "," } else { "" };
        let id = random_id()?;
        let key = Zeroizing::new(BASE64.encode(&*key));
        body.extend_from_slice(format!(r#"{comma}{{"key_ID":"{id}","key":""#).as_bytes());
        body.extend_from_slice(key.as_bytes());
        body.extend_from_slice(br#""}"#);
    }
    body.extend_from_slice(b"]}");
    Ok(body)
}
