//! Whole answers that are wrong: given in place of a right one, or a right one that breaks off. And the body type of all
//! answers, since some of them never end.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use data_encoding::BASE64;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LOCATION};
use hyper::{Response, StatusCode};
use serde_json::{Map, Value, json};
use tokio::time::Interval;
use zeroize::Zeroizing;

use crate::api::{KEY_NOT_FOUND, Op, Status};
use crate::faults::catalog::Misbehaviour;
use crate::link::{NoRandomness, random_bytes, random_id};

/// How large a huge answer is, bytes.
const HUGE: usize = 10_000_000;
/// How many keys are too many.
const MANY: usize = 10_000;
/// The pause between two bytes of a slow body.
const DRIP: Duration = Duration::from_secs(1);
/// Where a redirect leads: to nowhere (RFC 6761 section 6.4).
const ELSEWHERE: &str = "https://kme.invalid/";
const PAGE: &str =
    "<!DOCTYPE html><html><head><title>Sign in</title></head><body><h1>Sign in</h1></body></html>";

/// The body of an answer.
pub(crate) enum AnswerBody {
    /// All of it, given out once.
    Whole(Bytes),
    /// The beginning of one; the connection is closed behind it.
    Cut(CutBody),
    /// A byte now and then, for ever.
    Drip(Interval),
    /// The same bytes again and again.
    Endless(Bytes),
}

/// A body that breaks off.
#[derive(Default)]
pub(crate) struct CutBody {
    begin: Bytes,
    /// Asked for more since the beginning was given out, so that it is on its way.
    asked: bool,
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
            Self::Cut(body) if !body.asked => {
                // Pending once, since what was given out is only sent when there is nothing more at the moment.
                body.asked = true;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Self::Cut(_) => Poll::Ready(Some(Err(cut()))),
            Self::Drip(interval) => {
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

/// What ends a connection without an answer, or in the middle of one.
pub(crate) fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "misbehaving as told")
}

/// An answer with a body of `content_type`.
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

/// A JSON answer.
pub(crate) fn json_answer(status: StatusCode, body: impl Into<Bytes>) -> Response<AnswerBody> {
    with_type(status, "application/json", body)
}

/// An answer with neither a body nor a type.
pub(crate) fn empty(status: StatusCode) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::Whole(Bytes::new()));
    *response.status_mut() = status;
    response
}

/// The answer that stands in place of a right one, if `how` is such a fault.
pub(crate) fn instead(how: Misbehaviour, op: Op) -> Result<Option<Response<AnswerBody>>, NoRandomness> {
    let ok = StatusCode::OK;
    let streaming = |body| {
        let mut response = json_answer(ok, "");
        *response.body_mut() = body;
        response
    };
    let value = |status, value: Value| json_answer(status, value.to_string());
    Ok(Some(match how {
        Misbehaviour::SlowBody => streaming(AnswerBody::Drip(tokio::time::interval(DRIP))),
        Misbehaviour::EndlessBody => streaming(AnswerBody::Endless(Bytes::from(vec![b' '; 16 * 1024]))),
        Misbehaviour::HugeBody => {
            value(ok, json!({ "padding": "x".repeat(HUGE), "keys": [], "stored_key_count": 1 }))
        }
        Misbehaviour::Html => with_type(ok, "text/html; charset=utf-8", PAGE),
        Misbehaviour::RubbishJson => json_answer(ok, r#"{"keys":[{"key_ID":"#),
        Misbehaviour::EmptyBody => json_answer(ok, ""),
        Misbehaviour::EmptyList => json_answer(ok, r#"{"keys":[]}"#),
        Misbehaviour::TooManyKeys => json_answer(ok, Bytes::from_owner(many_keys()?)),
        Misbehaviour::Redirect => {
            let mut response = empty(StatusCode::TEMPORARY_REDIRECT);
            response.headers_mut().insert(LOCATION, HeaderValue::from_static(ELSEWHERE));
            response
        }
        Misbehaviour::ErrorHtml => {
            with_type(StatusCode::SERVICE_UNAVAILABLE, "text/html; charset=utf-8", PAGE)
        }
        Misbehaviour::ErrorEmpty => empty(StatusCode::SERVICE_UNAVAILABLE),
        Misbehaviour::ErrorDetail => value(
            StatusCode::UNPROCESSABLE_ENTITY,
            json!({"detail": [{"loc": ["body", "size"], "msg": message(422, op), "type": "value_error"}]}),
        ),
        Misbehaviour::ErrorHuge => {
            with_type(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", "error ".repeat(HUGE / 6))
        }
        Misbehaviour::Http401 => empty(StatusCode::UNAUTHORIZED),
        _ => match how.http_status().and_then(|code| StatusCode::from_u16(code).ok()) {
            Some(status) => value(status, json!({ "message": message(status.as_u16(), op) })),
            None => return Ok(None),
        },
    }))
}

/// Breaks off `response` in the middle of its body, whose length it announces in full.
pub(crate) fn cut_in_the_middle(mut response: Response<AnswerBody>) -> Response<AnswerBody> {
    if let AnswerBody::Whole(bytes) = response.body_mut() {
        let begin = bytes.split_to(bytes.len() / 2);
        let length = HeaderValue::from(begin.len() + bytes.len());
        *response.body_mut() = AnswerBody::Cut(CutBody { begin, asked: false });
        response.headers_mut().insert(CONTENT_LENGTH, length);
    }
    response
}

/// The text of a status, in the form that `how` gives it.
pub(crate) fn status_text(how: Misbehaviour, status: &Status) -> Result<Vec<u8>, serde_json::Error> {
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

/// What a server would write with `status`: where it is out of keys, and where it doesn't know an ID.
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

/// A container of keys that nobody has.
fn many_keys() -> Result<Zeroizing<Vec<u8>>, NoRandomness> {
    let mut body = Zeroizing::new(Vec::with_capacity(MANY * 128));
    body.extend_from_slice(br#"{"keys":["#);
    for n in 0..MANY {
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
