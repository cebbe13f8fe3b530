//! One HTTP request: it is read within bounds and answered from the network, with a fault where one is set.
//! The caller is identified by the TLS handshake.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri};
use tracing::{debug, info, warn};
use zeroize::Zeroizing;

use crate::api::{DeliveredKey, KeyRequest, Op, Route, key_container, key_ids_from_body, key_ids_from_query};
use crate::config::Apis;
use crate::faults::answer::{self as answer_faults, AnswerBody, cut_error, json_answer, unauthorized};
use crate::faults::catalog::Misbehaviour;
use crate::faults::keys as key_faults;
use crate::refusal::{KEY_NOT_FOUND, Refusal};
use crate::skip;
use crate::state::Shared;

/// The largest request body, which has room for 10,000 key IDs.
const MAX_BODY: usize = 1 << 20;
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
const SLOW_ANSWER_DELAY: Duration = Duration::from_secs(3);

/// A connection's client and KME.
pub(crate) struct Peer {
    /// The KME's name.
    pub(crate) kme: String,
    pub(crate) apis: Apis,
    /// The SAE of the client's certificate, if any.
    pub(crate) sae: Option<String>,
    pub(crate) shared: Arc<Shared>,
}

/// Why a request gets no correct answer.
enum Failure {
    Refused(Refusal),
    /// A fault: the connection is closed without an answer.
    Cut,
}

impl<E: Into<Refusal>> From<E> for Failure {
    fn from(refusal: E) -> Self {
        Self::Refused(refusal.into())
    }
}

/// Answers one request.
///
/// # Errors
/// If a fault closes the connection instead.
pub(crate) async fn answer(
    peer: Arc<Peer>,
    request: Request<Incoming>,
) -> Result<Response<AnswerBody>, io::Error> {
    let sae = peer.sae.as_deref().unwrap_or("");
    match serve(&peer, sae, request).await {
        Ok(response) => Ok(response),
        Err(Failure::Refused(refusal)) => {
            // Quoted and escaped, since it may contain what the client sent.
            let reason = refusal.to_string();
            info!(kme = %peer.kme, sae, status = refusal.status().as_u16(), ?reason, "request refused");
            Ok(refused(&refusal))
        }
        Err(Failure::Cut) => Err(cut_error()),
    }
}

/// A request, in either interface.
enum ParsedRequest {
    Etsi(Route),
    Skip(skip::Request),
}

impl ParsedRequest {
    fn parse(apis: Apis, method: &Method, uri: &Uri) -> Result<Self, Refusal> {
        if apis.skip
            && let Some(request) = skip::Request::parse(method, uri.path(), uri.query().unwrap_or(""))
        {
            return request.map(Self::Skip);
        }
        if !apis.etsi014 {
            return Err(Refusal::NoSuchUrl);
        }
        Route::parse(method, uri.path()).map(Self::Etsi)
    }

    fn op(&self) -> Op {
        match self {
            Self::Etsi(route) => route.op,
            Self::Skip(request) => request.op(),
        }
    }
}

async fn serve(peer: &Peer, sae: &str, request: Request<Incoming>) -> Result<Response<AnswerBody>, Failure> {
    let parsed = ParsedRequest::parse(peer.apis, request.method(), request.uri())?;
    peer.shared.network().authorize(&peer.kme, sae)?;
    let op = parsed.op();
    let fault = peer.shared.faults(&peer.kme).of(op);
    if fault != Misbehaviour::None {
        warn!(kme = %peer.kme, sae, op = op.name(), fault = fault.name(), "fault");
    }
    match (fault, request.method()) {
        (Misbehaviour::Hang, _) => return Ok(std::future::pending().await),
        (Misbehaviour::Slow, _) => tokio::time::sleep(SLOW_ANSWER_DELAY).await,
        (Misbehaviour::Close, _) => return Err(Failure::Cut),
        (Misbehaviour::NoGet, &Method::GET | &Method::HEAD) => {
            return Err(Refusal::Method(op.name(), "POST").into());
        }
        (Misbehaviour::NoPost, &Method::POST) => return Err(Refusal::Method(op.name(), "GET").into()),
        _ => {}
    }
    if let Some(replacement) = answer_faults::replacement(fault, op)? {
        return Ok(replacement);
    }

    let body = match parsed {
        ParsedRequest::Etsi(route) => etsi014(peer, sae, &route, fault, request).await?,
        ParsedRequest::Skip(request) => skip(peer, sae, request, fault)?,
    };
    let mut response = json_answer(StatusCode::OK, body);
    match fault {
        Misbehaviour::LoseAnswer => return Err(Failure::Cut),
        Misbehaviour::CutBody => response = answer_faults::cut_body(response),
        Misbehaviour::WrongType => {
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        }
        _ => {}
    }
    Ok(response)
}

async fn etsi014(
    peer: &Peer,
    sae: &str,
    route: &Route,
    fault: Misbehaviour,
    request: Request<Incoming>,
) -> Result<Bytes, Refusal> {
    let mut keys = match route.op {
        Op::Status => {
            let shared = &peer.shared;
            let status = shared.network().status(&peer.kme, sae, &route.sae, fault, shared.now())?;
            debug!(kme = %peer.kme, sae, stored = status.stored_key_count, "status");
            let body = answer_faults::encode_status(fault, &status);
            return Ok(Bytes::from(body.map_err(|e| Refusal::Unavailable(e.to_string()))?));
        }
        Op::EncKeys => enc_keys(peer, sae, &route.sae, fault, request).await?,
        Op::DecKeys => dec_keys(peer, sae, &route.sae, fault, request).await?,
    };
    key_faults::corrupt(fault, route.op, &mut keys)?;
    Ok(Bytes::from_owner(key_container(keys, key_faults::style(fault))))
}

/// Answers a SKIP request. Without keys the status is 400, since SKIP has 503 for entropy only.
fn skip(peer: &Peer, sae: &str, request: skip::Request, fault: Misbehaviour) -> Result<Bytes, Refusal> {
    let about_keys = request.op() != Op::Status;
    skip_answer(peer, sae, request, fault).map_err(|refusal| match refusal {
        Refusal::Unavailable(message) if about_keys => Refusal::bad(message),
        other => other,
    })
}

fn skip_answer(
    peer: &Peer,
    sae: &str,
    request: skip::Request,
    fault: Misbehaviour,
) -> Result<Bytes, Refusal> {
    let (op, now) = (request.op(), peer.shared.now());
    let mut network = peer.shared.network();
    let mut keys = match request {
        skip::Request::Capabilities => {
            let remote = network.reachable(&peer.kme, sae);
            return Ok(Bytes::from(skip::capabilities(sae, &remote).to_string()));
        }
        skip::Request::Entropy { bits } => return Ok(Bytes::from(skip::entropy(bits)?.to_string())),
        skip::Request::NewKey { remote, size } => {
            let request = KeyRequest { size: Some(size), by_get: true, hex_ids: true, ..Default::default() };
            network.enc_keys(&peer.kme, sae, &remote, &request, fault, now)?
        }
        skip::Request::KeyById { remote, id } => {
            network.dec_keys(&peer.kme, sae, &remote, &[id], fault, now)?
        }
    };
    key_faults::corrupt(fault, op, &mut keys)?;
    // Both requests are for one key, and no fault that reaches this point removes it.
    let key = keys.into_iter().next().ok_or_else(|| Refusal::bad(KEY_NOT_FOUND))?;
    Ok(Bytes::from_owner(skip::key(key, key_faults::style(fault))))
}

async fn enc_keys(
    peer: &Peer,
    sae: &str,
    slave: &str,
    fault: Misbehaviour,
    request: Request<Incoming>,
) -> Result<Vec<DeliveredKey>, Refusal> {
    let key_request = if request.method() == Method::GET {
        KeyRequest::from_query(request.uri().query().unwrap_or(""))?
    } else {
        KeyRequest::from_body(&body(request).await?)?
    };
    let now = peer.shared.now();
    peer.shared.network().enc_keys(&peer.kme, sae, slave, &key_request, fault, now)
}

async fn dec_keys(
    peer: &Peer,
    sae: &str,
    master: &str,
    fault: Misbehaviour,
    request: Request<Incoming>,
) -> Result<Vec<DeliveredKey>, Refusal> {
    let ids = if request.method() == Method::GET {
        key_ids_from_query(request.uri().query().unwrap_or(""))?
    } else {
        key_ids_from_body(&body(request).await?)?
    };
    let now = peer.shared.now();
    peer.shared.network().dec_keys(&peer.kme, sae, master, &ids, fault, now)
}

/// Returns the whole body, within [`MAX_BODY`] and [`BODY_TIMEOUT`].
async fn body(request: Request<Incoming>) -> Result<Zeroizing<Vec<u8>>, Refusal> {
    let whole = Limited::new(request.into_body(), MAX_BODY).collect();
    match tokio::time::timeout(BODY_TIMEOUT, whole).await {
        Ok(Ok(collected)) => Ok(Zeroizing::new(collected.to_bytes().to_vec())),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Refusal::TooLarge(MAX_BODY)),
        Ok(Err(error)) => Err(Refusal::bad(format!("the body broke off: {error}"))),
        Err(_) => Err(Refusal::TooSlow),
    }
}

fn refused(refusal: &Refusal) -> Response<AnswerBody> {
    let mut response = match refusal {
        Refusal::Unauthorized(_) => unauthorized(),
        _ => json_answer(refusal.status(), refusal.body()),
    };
    if let Refusal::Method(_, allowed) = refusal {
        let allowed = match *allowed {
            "GET or HEAD" => "GET, HEAD",
            "GET" => "GET",
            "POST" => "POST",
            _ => "GET, POST",
        };
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    }
    response
}
