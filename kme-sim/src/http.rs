//! One HTTP request: read within bounds, answered from the network, spoilt where a misbehaviour is set. The caller is
//! whoever the TLS handshake proved it to be.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tracing::{debug, info, warn};
use zeroize::Zeroizing;

use crate::api::{
    DeliveredKey, KeyRequest, Op, Refusal, Route, key_container, key_ids_from_body, key_ids_from_query,
};
use crate::misbehave::Misbehaviour;
use crate::server::Shared;

/// The largest request body: 10,000 key IDs have room in it.
const MAX_BODY: usize = 1 << 20;
/// How long a request's body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Who asks whom.
pub(crate) struct Peer {
    /// The KME's name.
    pub(crate) kme: String,
    /// The SAE ID of the client's certificate, if it names one.
    pub(crate) sae: Option<String>,
    pub(crate) shared: Arc<Shared>,
}

/// Answers one request.
pub(crate) async fn answer(
    peer: Arc<Peer>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let sae = peer.sae.as_deref().unwrap_or("");
    Ok(match serve(&peer, sae, request).await {
        Ok(response) => response,
        Err(refusal) => {
            // Quoted and escaped, since it may repeat what the client wrote.
            let reason = refusal.to_string();
            info!(kme = %peer.kme, sae, status = refusal.status().as_u16(), ?reason, "request refused");
            refused(&refusal)
        }
    })
}

async fn serve(peer: &Peer, sae: &str, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Refusal> {
    let route = Route::parse(request.method(), request.uri().path())?;
    peer.shared.network().authorize(&peer.kme, sae)?;
    let fault = peer.shared.faults(&peer.kme).of(route.op);
    if fault != Misbehaviour::None {
        warn!(kme = %peer.kme, sae, op = route.op.name(), ?fault, "misbehaving as told");
    }
    match fault {
        Misbehaviour::Hang => return Ok(std::future::pending().await),
        Misbehaviour::Http500 => {
            return Ok(json(StatusCode::INTERNAL_SERVER_ERROR, br#"{"message":"internal error"}"#.to_vec()));
        }
        Misbehaviour::Http503 => return Err(Refusal::Unavailable("the KME is not ready".into())),
        Misbehaviour::Html => return Ok(html()),
        Misbehaviour::RubbishJson => return Ok(json(StatusCode::OK, br#"{"keys":[{"key_ID":"#.to_vec())),
        Misbehaviour::EmptyList => return Ok(json(StatusCode::OK, br#"{"keys":[]}"#.to_vec())),
        _ => {}
    }
    let mut keys = match route.op {
        Op::Status => {
            let shared = &peer.shared;
            let status = shared.network().status(&peer.kme, sae, &route.sae, shared.now())?;
            debug!(kme = %peer.kme, sae, stored = status.stored_key_count, "status");
            let body = serde_json::to_vec(&status).map_err(|e| Refusal::Unavailable(e.to_string()))?;
            return Ok(json(StatusCode::OK, body));
        }
        Op::EncKeys => enc_keys(peer, sae, &route.sae, request).await?,
        Op::DecKeys => dec_keys(peer, sae, &route.sae, request).await?,
    };
    fault.spoil(&mut keys)?;
    Ok(with_type(StatusCode::OK, "application/json", Bytes::from_owner(key_container(keys))))
}

async fn enc_keys(
    peer: &Peer,
    sae: &str,
    slave: &str,
    request: Request<Incoming>,
) -> Result<Vec<DeliveredKey>, Refusal> {
    let key_request = if request.method() == Method::GET {
        KeyRequest::from_query(request.uri().query().unwrap_or(""))?
    } else {
        KeyRequest::from_body(&body(request).await?)?
    };
    let now = peer.shared.now();
    peer.shared.network().enc_keys(&peer.kme, sae, slave, &key_request, now)
}

async fn dec_keys(
    peer: &Peer,
    sae: &str,
    master: &str,
    request: Request<Incoming>,
) -> Result<Vec<DeliveredKey>, Refusal> {
    let ids = if request.method() == Method::GET {
        key_ids_from_query(request.uri().query().unwrap_or(""))?
    } else {
        key_ids_from_body(&body(request).await?)?
    };
    let now = peer.shared.now();
    peer.shared.network().dec_keys(&peer.kme, sae, master, &ids, now)
}

/// The whole body, within [`MAX_BODY`] and [`BODY_TIMEOUT`].
async fn body(request: Request<Incoming>) -> Result<Zeroizing<Vec<u8>>, Refusal> {
    let whole = Limited::new(request.into_body(), MAX_BODY).collect();
    match tokio::time::timeout(BODY_TIMEOUT, whole).await {
        Ok(Ok(collected)) => Ok(Zeroizing::new(collected.to_bytes().to_vec())),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Refusal::TooLarge(MAX_BODY)),
        Ok(Err(error)) => Err(Refusal::bad(format!("the body broke off: {error}"))),
        Err(_) => Err(Refusal::TooSlow),
    }
}

fn refused(refusal: &Refusal) -> Response<Full<Bytes>> {
    let mut response = match refusal {
        Refusal::Unauthorized(_) => {
            let mut response = Response::new(Full::default());
            *response.status_mut() = StatusCode::UNAUTHORIZED;
            response
        }
        _ => json(refusal.status(), refusal.body()),
    };
    if let Refusal::Method(_, allowed) = refusal {
        let allowed = if *allowed == "GET" { "GET" } else { "GET, POST" };
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    }
    response
}

fn json(status: StatusCode, body: Vec<u8>) -> Response<Full<Bytes>> {
    with_type(status, "application/json", Bytes::from(body))
}

fn html() -> Response<Full<Bytes>> {
    let page = "<!DOCTYPE html><html><head><title>Sign in</title></head><body><h1>Sign in</h1></body></html>";
    with_type(StatusCode::OK, "text/html; charset=utf-8", Bytes::from_static(page.as_bytes()))
}

fn with_type(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
