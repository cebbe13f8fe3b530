//! The HTTP server that Prometheus scrapes: one page, `/metrics`, one request a connection. The page holds no
//! secret. Size and time of each request are bounded.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use qvpn_api::control;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::control_socket::PendingRequest;
use crate::error::DaemonError;

const MAX_CONNECTIONS: usize = 8;
const MAX_HEAD_BYTES: usize = 8 * 1024;
/// A client must send its request within this time.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection, with its request and its response, ends after this time.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(20);
/// The pause after a failed `accept`, for example when the process has no free file descriptor.
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(100);

const METRICS_TYPE: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
const PLAIN_TYPE: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// The listener, if the config has one. Dropping it closes the port.
#[derive(Default)]
pub(crate) struct MetricsListener(Option<JoinHandle<()>>);

impl MetricsListener {
    /// Listens on `address`; does nothing if there is none.
    ///
    /// # Errors
    /// If the system refuses the address.
    pub(crate) async fn open(
        address: Option<SocketAddr>,
        owner: &mpsc::Sender<PendingRequest>,
    ) -> Result<Self, DaemonError> {
        let Some(at) = address else { return Ok(Self::default()) };
        let listener = TcpListener::bind(at).await.map_err(|source| DaemonError::Metrics { at, source })?;
        if !at.ip().is_loopback() {
            tracing::info!(
                "metrics are served on {at}: everybody who can reach it can read the names and traffic of \
                 all peers"
            );
        }
        Ok(Self(Some(tokio::spawn(serve(listener, owner.clone())))))
    }
}

impl Drop for MetricsListener {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

async fn serve(listener: TcpListener, owner: mpsc::Sender<PendingRequest>) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("metrics: {error}");
                tokio::time::sleep(ACCEPT_RETRY_INTERVAL).await;
                continue;
            }
        };
        // A connection above the limit is closed without a reply.
        let Ok(permit) = connections.clone().try_acquire_owned() else { continue };
        let owner = owner.clone();
        tokio::spawn(async move {
            let _permit = permit;
            match tokio::time::timeout(CONNECTION_TIMEOUT, serve_connection(stream, &owner)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!("metrics: {error}"),
                Err(_) => tracing::debug!("metrics: a client did not read the answer in time"),
            }
        });
    }
}

async fn serve_connection(stream: TcpStream, owner: &mpsc::Sender<PendingRequest>) -> hyper::Result<()> {
    let service = service_fn(async |request| Ok::<_, Infallible>(respond(&request, owner).await));
    http1::Builder::new()
        .keep_alive(false)
        // Some clients close their sending half right after the request.
        .half_close(true)
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

/// Answers one request. hyper omits the body of a reply to HEAD.
async fn respond(request: &Request<Incoming>, owner: &mpsc::Sender<PendingRequest>) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "the metrics are at /metrics\n");
    }
    match metrics(owner).await {
        Some(text) => {
            let mut response = Response::new(Full::from(text));
            response.headers_mut().insert(CONTENT_TYPE, METRICS_TYPE);
            response
        }
        None => plain(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping\n"),
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, PLAIN_TYPE);
    response
}

async fn metrics(owner: &mpsc::Sender<PendingRequest>) -> Option<String> {
    let (answer, answered) = oneshot::channel();
    owner.send(PendingRequest { request: control::Request::Metrics, uid: None, answer }).await.ok()?;
    match answered.await.ok()? {
        control::Reply::Metrics { text } => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A listener on a free port of the loopback, with an owner whose page is `x 1`.
    async fn listener() -> (MetricsListener, SocketAddr, mpsc::Sender<PendingRequest>) {
        let (owner, mut asked) = mpsc::channel::<PendingRequest>(1);
        tokio::spawn(async move {
            while let Some(PendingRequest { request, answer, .. }) = asked.recv().await {
                assert_eq!(request, control::Request::Metrics);
                let _ = answer.send(control::Reply::Metrics { text: "x 1\n".into() });
            }
        });
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let listener = MetricsListener::open(Some(free), &owner).await.unwrap();
        (listener, free, owner)
    }

    async fn talk(to: SocketAddr, text: &[u8]) -> String {
        let mut stream = TcpStream::connect(to).await.unwrap();
        stream.write_all(text).await.unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        answer
    }

    #[tokio::test]
    async fn only_the_page_is_given_out() {
        let (_listener, at, _owner) = listener().await;
        let rows: [(&[u8], &str); 8] = [
            (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200 OK\r\n"),
            (b"GET /metrics?x=1 HTTP/1.0\n\n", "HTTP/1.0 200 OK\r\n"),
            (b"HEAD /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK\r\n"),
            (b"GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 404 Not Found\r\n"),
            (b"GET /metrics/../x HTTP/1.1\r\n\r\n", "HTTP/1.1 404 Not Found\r\n"),
            (b"POST /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 405 Method Not Allowed\r\n"),
            (b"GET /metrics\r\n\r\n", "HTTP/1.1 400 Bad Request\r\n"),
            (b"\x16\x03\x01\x02\x00", "HTTP/1.1 400 Bad Request\r\n"),
        ];
        for (request, status) in rows {
            let answer = talk(at, request).await;
            let request = String::from_utf8_lossy(request);
            assert!(answer.starts_with(status), "{request:?}: {answer}");
            assert_eq!(
                answer.contains("x 1"),
                status.contains("200") && !request.starts_with("HEAD"),
                "{answer}"
            );
        }
    }

    #[tokio::test]
    async fn a_client_that_closes_its_half_at_once_is_answered() {
        let (_listener, at, _owner) = listener().await;
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("\r\n\r\nx 1\n"), "{answer}");
    }

    #[tokio::test]
    async fn a_scrape_is_answered_and_garbage_ends() {
        let (listener, at, owner) = listener().await;
        let page = talk(at, b"GET /metrics HTTP/1.1\r\n\r\n").await;
        assert!(page.starts_with("HTTP/1.1 200 OK\r\n") && page.ends_with("\r\n\r\nx 1\n"), "{page}");
        assert!(page.contains("Content-Length: 4\r\n") && page.contains("version=0.0.4"), "{page}");
        assert!(talk(at, b"HEAD /metrics HTTP/1.1\r\n\r\n").await.ends_with("\r\n\r\n"));
        assert!(talk(at, b"DELETE / HTTP/1.1\r\n\r\n").await.contains("Allow: GET, HEAD"));
        let endless = vec![b'x'; 3 * MAX_HEAD_BYTES];
        // The connection is reset if the listener ended before everything was written.
        let refused = talk(at, &endless).await;
        assert!(
            refused.is_empty() || refused.starts_with("HTTP/1.1 400") || refused.starts_with("HTTP/1.1 431"),
            "{refused}"
        );
        assert!(MetricsListener::open(Some(at), &owner).await.is_err());
        drop(listener);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_asks_nothing_is_cut_off() {
        let (_listener, at, _owner) = listener().await;
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(b"GET /metrics HT").await.unwrap();
        let started = tokio::time::Instant::now();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        assert!(started.elapsed() >= REQUEST_TIMEOUT && started.elapsed() <= CONNECTION_TIMEOUT, "{answer}");
    }
}
