//! Where Prometheus scrapes: HTTP/1.1 with one request a connection and one page, `/metrics`. It holds no secret, and
//! writes nothing; what comes in is bounded in size and time.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use qvpn_api::control::{Reply, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::control_socket::Asked;
use crate::error::DaemonError;

/// Scrapes at once.
const CONNECTIONS: usize = 8;
/// Bytes of a request's head.
const MAX_HEAD: usize = 8 * 1024;
/// How long a client may take to ask, and to read each answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The listener, if there is one. It ends when this goes.
#[derive(Default)]
pub(crate) struct MetricsListener {
    at: Option<SocketAddr>,
    task: Option<JoinHandle<()>>,
}

impl MetricsListener {
    /// Listens at `at`, or not at all.
    ///
    /// # Errors
    /// If the system refuses the address.
    pub(crate) async fn open(
        at: Option<SocketAddr>,
        owner: &mpsc::Sender<Asked>,
    ) -> Result<Self, DaemonError> {
        let Some(address) = at else { return Ok(Self::default()) };
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| DaemonError::Metrics { at: address, source })?;
        if !address.ip().is_loopback() {
            tracing::info!(
                "metrics are served on {address}, so whoever reaches it sees names and traffic of all peers"
            );
        }
        let task = tokio::spawn(serve(listener, owner.clone()));
        Ok(Self { at, task: Some(task) })
    }

    /// Where it listens.
    pub(crate) fn at(&self) -> Option<SocketAddr> {
        self.at
    }
}

impl Drop for MetricsListener {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

async fn serve(listener: TcpListener, owner: mpsc::Sender<Asked>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("metrics: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // One too many is closed without a word.
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let owner = owner.clone();
        tokio::spawn(async move {
            let _place = place;
            if let Err(error) = answer(stream, &owner).await {
                tracing::debug!("metrics: {error}");
            }
        });
    }
}

async fn answer(mut stream: TcpStream, owner: &mpsc::Sender<Asked>) -> io::Result<()> {
    let head = tokio::time::timeout(PATIENCE, read_head(&mut stream)).await??;
    let (status, kind, body) = match request(&head) {
        Asks::Metrics { .. } => match metrics(owner).await {
            Some(text) => ("200 OK", "text/plain; version=0.0.4; charset=utf-8", text),
            None => ("503 Service Unavailable", PLAIN, "the daemon is stopping\n".to_owned()),
        },
        Asks::OtherPage => ("404 Not Found", PLAIN, "the metrics are at /metrics\n".to_owned()),
        Asks::OtherMethod => ("405 Method Not Allowed", PLAIN, "only GET and HEAD are answered\n".to_owned()),
        Asks::Nonsense => ("400 Bad Request", PLAIN, "this is not HTTP/1\n".to_owned()),
    };
    let allow = if status.starts_with("405") { "Allow: GET, HEAD\r\n" } else { "" };
    let mut text = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{allow}Connection: close\r\n\r\n",
        body.len()
    );
    if !matches!(request(&head), Asks::Metrics { head_only: true }) {
        text += &body;
    }
    tokio::time::timeout(PATIENCE, async {
        stream.write_all(text.as_bytes()).await?;
        stream.shutdown().await
    })
    .await?
}

const PLAIN: &str = "text/plain; charset=utf-8";

/// What a request wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asks {
    /// The page.
    Metrics { head_only: bool },
    /// Another page.
    OtherPage,
    /// Something else than reading.
    OtherMethod,
    /// Who knows.
    Nonsense,
}

fn request(head: &[u8]) -> Asks {
    let line = head.split(|byte| *byte == b'\r' || *byte == b'\n').next().unwrap_or_default();
    let Ok(line) = std::str::from_utf8(line) else { return Asks::Nonsense };
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Asks::Nonsense;
    };
    if !matches!(version, "HTTP/1.1" | "HTTP/1.0") {
        return Asks::Nonsense;
    }
    let path = target.split('?').next().unwrap_or_default();
    match (method, path) {
        ("GET" | "HEAD", "/metrics") => Asks::Metrics { head_only: method == "HEAD" },
        ("GET" | "HEAD", _) => Asks::OtherPage,
        _ => Asks::OtherMethod,
    }
}

/// Reads up to the empty line that ends a request's head; what follows is not for us.
async fn read_head(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    loop {
        let ended =
            |head: &[u8]| head.windows(4).any(|w| w == b"\r\n\r\n") || head.windows(2).any(|w| w == b"\n\n");
        if ended(&head) || head.len() >= MAX_HEAD {
            return Ok(head);
        }
        match stream.read(&mut piece).await? {
            0 => return Ok(head),
            n => head.extend_from_slice(&piece[..n]),
        }
    }
}

async fn metrics(owner: &mpsc::Sender<Asked>) -> Option<String> {
    let (answer, answered) = oneshot::channel();
    owner.send(Asked { request: Request::Metrics, answer }).await.ok()?;
    match answered.await.ok()? {
        Reply::Metrics { text } => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_page_is_given_out() {
        let rows: [(&[u8], Asks); 9] = [
            (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", Asks::Metrics { head_only: false }),
            (b"GET /metrics?x=1 HTTP/1.0\n\n", Asks::Metrics { head_only: false }),
            (b"HEAD /metrics HTTP/1.1\r\n\r\n", Asks::Metrics { head_only: true }),
            (b"GET / HTTP/1.1\r\n\r\n", Asks::OtherPage),
            (b"GET /metrics/../x HTTP/1.1\r\n\r\n", Asks::OtherPage),
            (b"POST /metrics HTTP/1.1\r\n\r\n", Asks::OtherMethod),
            (b"GET /metrics\r\n\r\n", Asks::Nonsense),
            (b"\x16\x03\x01\x02\x00", Asks::Nonsense),
            (b"", Asks::Nonsense),
        ];
        for (head, asks) in rows {
            assert_eq!(request(head), asks, "{:?}", String::from_utf8_lossy(head));
        }
    }

    #[tokio::test]
    async fn a_scrape_is_answered_and_garbage_ends() {
        let (owner, mut asked) = mpsc::channel::<Asked>(1);
        tokio::spawn(async move {
            while let Some(Asked { request, answer }) = asked.recv().await {
                assert_eq!(request, Request::Metrics);
                let _ = answer.send(Reply::Metrics { text: "x 1\n".into() });
            }
        });
        // Any free port; the listener itself is only ever asked for fixed ones.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let listener = MetricsListener::open(Some(free), &owner).await.unwrap();
        assert_eq!(listener.at(), Some(free));
        let talk = async |text: &[u8]| {
            let mut stream = TcpStream::connect(free).await.unwrap();
            stream.write_all(text).await.unwrap();
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer).await;
            answer
        };
        let page = talk(b"GET /metrics HTTP/1.1\r\n\r\n").await;
        assert!(page.starts_with("HTTP/1.1 200 OK\r\n") && page.ends_with("\r\n\r\nx 1\n"), "{page}");
        assert!(page.contains("Content-Length: 4\r\n") && page.contains("version=0.0.4"), "{page}");
        assert!(talk(b"HEAD /metrics HTTP/1.1\r\n\r\n").await.ends_with("\r\n\r\n"));
        assert!(talk(b"DELETE / HTTP/1.1\r\n\r\n").await.contains("Allow: GET, HEAD"));
        let endless = vec![b'x'; 3 * MAX_HEAD];
        // A reset, if the listener ended before all was written.
        let refused = talk(&endless).await;
        assert!(refused.is_empty() || refused.starts_with("HTTP/1.1 400"), "{refused}");
        assert!(MetricsListener::open(Some(free), &owner).await.is_err());
        drop(listener);
    }
}
