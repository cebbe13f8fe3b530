//! The running simulator: one TLS listener for each KME, its connections, and the faults of its port.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

use crate::admin::{self, Answer, Command};
use crate::config::{Apis, Config, KmeConfig};
use crate::etsi004::serve as etsi004;
use crate::faults::catalog::{Faults, Misbehaviour};
use crate::http::{self, Peer};
use crate::network::Network;
use crate::pem::TlsError;
use crate::state::{PortOrder, Shared, until_stopped};
use crate::tls::{self, Client};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The limit for the headers of a request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// The maximum number of connections of one KME.
const MAX_CONNECTIONS: usize = 2048;
/// The limit for open requests when the simulator stops.
const STOP_GRACE: Duration = Duration::from_secs(1);
/// Locked memory that is reserved at the start, so that a limit that is too low is reported then.
const RESERVED_KEY_BYTES: usize = 1 << 20;

/// Why the simulator could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A KME's certificates can't be used.
    #[error("KME {kme}: {source}")]
    Tls {
        /// The KME.
        kme: String,
        /// What was wrong.
        source: TlsError,
    },
    /// A KME's address can't be listened on.
    #[error("KME {kme}: cannot listen on {address}: {source}")]
    Listen {
        /// The KME.
        kme: String,
        /// Its configured address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The admin socket can't be made.
    #[error("cannot make the admin socket {path}: {source}", path = path.display())]
    Admin {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no locked memory for keys.
    #[error(transparent)]
    Memory(#[from] qvpn_secret::LockError),
}

/// A running simulator: all KMEs of a config. Dropping it ends them at once.
pub struct Simulator {
    shared: Arc<Shared>,
    addresses: BTreeMap<String, SocketAddr>,
    admin: Option<PathBuf>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Simulator {
    /// Loads the certificates, binds all sockets and starts to serve.
    ///
    /// # Errors
    /// [`StartError`] if any of it fails; nothing keeps running then.
    pub async fn start(config: &Config) -> Result<Self, StartError> {
        qvpn_secret::reserve(RESERVED_KEY_BYTES)?;
        let mut listeners = Vec::new();
        let mut ports = BTreeMap::new();
        let mut addresses = BTreeMap::new();
        for kme in &config.kmes {
            let tls = tls::server_config(kme, Misbehaviour::None)
                .map_err(|source| StartError::Tls { kme: kme.name.clone(), source })?;
            let listen = |source| StartError::Listen { kme: kme.name.clone(), address: kme.listen, source };
            let socket = TcpListener::bind(kme.listen).await.map_err(listen)?;
            let address = socket.local_addr().map_err(listen)?;
            let (port, orders) = mpsc::channel(1);
            ports.insert(kme.name.clone(), port);
            addresses.insert(kme.name.clone(), address);
            listeners.push((kme.clone(), address, socket, TlsAcceptor::from(tls), orders));
        }
        let admin_socket = match &config.admin {
            Some(path) => Some(
                admin::bind(path).await.map_err(|source| StartError::Admin { path: path.clone(), source })?,
            ),
            None => None,
        };
        for link in config.links.iter().filter(|l| l.seed.is_some()) {
            let [a, b] = &link.kmes;
            warn!(
                "THE KEYS OF THE LINK {a} - {b} ARE NOT SECRET: it has a seed, from which anyone can \
                 compute them"
            );
        }

        let shared = Arc::new(Shared {
            network: Mutex::new(Network::new(config)),
            faults: Mutex::new(config.kmes.iter().map(|k| (k.name.clone(), Faults::default())).collect()),
            streams: Mutex::default(),
            ports,
            apis: config.kmes.iter().map(|k| (k.name.clone(), k.apis)).collect(),
            saes: config.saes.clone(),
            started: Instant::now(),
            time_scale: config.time_scale,
        });
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for (config, address, socket, acceptor, orders) in listeners {
            let server = Server {
                kme: config.name.clone(),
                config,
                fault: Misbehaviour::None,
                address,
                socket: Some(socket),
                acceptor,
                shared: shared.clone(),
                connections: JoinSet::new(),
                stopped: stopped.clone(),
            };
            tasks.spawn(server.run(orders));
        }
        if let Some(socket) = admin_socket {
            tasks.spawn(admin::serve(socket, shared.clone(), stopped));
        }
        Ok(Self { shared, addresses, admin: config.admin.clone(), stop, tasks })
    }

    /// Returns the address at which each KME listens, by the KME's name.
    #[must_use]
    pub fn addresses(&self) -> &BTreeMap<String, SocketAddr> {
        &self.addresses
    }

    /// Executes an admin command, as if it had come over the admin socket.
    pub async fn command(&self, command: Command) -> Answer {
        admin::execute(&self.shared, command).await
    }

    /// Stops: accepts no new connections, gives open requests a second, and removes the admin socket.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        while self.tasks.join_next().await.is_some() {}
        if let Some(path) = &self.admin {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// One KME's listener and its connections.
struct Server {
    kme: String,
    config: KmeConfig,
    /// The fault of the port.
    fault: Misbehaviour,
    address: SocketAddr,
    socket: Option<TcpListener>,
    acceptor: TlsAcceptor,
    shared: Arc<Shared>,
    connections: JoinSet<()>,
    stopped: watch::Receiver<bool>,
}

impl Server {
    async fn run(mut self, mut orders: mpsc::Receiver<PortOrder>) {
        let mut stopped = self.stopped.clone();
        loop {
            tokio::select! {
                () = until_stopped(&mut stopped) => break,
                Some((fault, reply)) = orders.recv() => {
                    // This fails only if the caller gave up.
                    let _ = reply.send(self.set_fault(fault).await);
                }
                Some(_) = self.connections.join_next() => {}
                accepted = accept(self.socket.as_ref()) => match accepted {
                    Ok((stream, from)) => self.serve(stream, from),
                    Err(error) => {
                        warn!(kme = %self.kme, %error, "cannot accept a connection");
                        // Probably no file descriptors are left, so wait before the next attempt.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        }
        self.socket = None;
        let drained = async { while self.connections.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_GRACE, drained).await.is_err() {
            self.connections.shutdown().await;
        }
    }

    /// Sets `fault` and closes open connections.
    async fn set_fault(&mut self, fault: Misbehaviour) -> Result<(), String> {
        if fault == self.fault {
            return Ok(());
        }
        let tls = tls::server_config(&self.config, fault).map_err(|e| e.to_string())?;
        if fault == Misbehaviour::RefuseTcp {
            self.socket = None;
        } else if self.socket.is_none() {
            let socket = TcpListener::bind(self.address).await;
            self.socket = Some(socket.map_err(|e| format!("cannot listen again for {}: {e}", self.kme))?);
        }
        self.connections.shutdown().await;
        self.acceptor = TlsAcceptor::from(tls);
        self.fault = fault;
        Ok(())
    }

    fn serve(&mut self, stream: TcpStream, from: SocketAddr) {
        if self.connections.len() >= MAX_CONNECTIONS {
            warn!(kme = %self.kme, %from, "connection dropped: {MAX_CONNECTIONS} are open already");
            return;
        }
        match self.fault {
            Misbehaviour::StallTls => {
                self.connections.spawn(read_without_reply(stream));
                return;
            }
            Misbehaviour::NoTls => {
                self.connections.spawn(reply_without_tls(stream));
                return;
            }
            _ => {}
        }
        let serving = Serving { kme: self.kme.clone(), apis: self.config.apis, shared: self.shared.clone() };
        let (acceptor, stopped) = (self.acceptor.clone(), self.stopped.clone());
        self.connections.spawn(connection(serving, acceptor, stream, from, stopped));
    }
}

/// Returns the next connection; stays pending while the port is closed.
async fn accept(socket: Option<&TcpListener>) -> io::Result<(TcpStream, SocketAddr)> {
    match socket {
        Some(socket) => socket.accept().await,
        None => std::future::pending().await,
    }
}

/// Reads until the client gives up, and sends nothing.
async fn read_without_reply(mut stream: TcpStream) {
    // An error means that the client gave up.
    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
}

/// Answers the first bytes like a server without TLS.
async fn reply_without_tls(mut stream: TcpStream) {
    const ANSWER: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let mut first = [0; 1024];
    if stream.read(&mut first).await.is_ok() {
        // This fails if the client is gone.
        let _ = stream.write_all(ANSWER).await;
        let _ = stream.shutdown().await;
    }
}

/// The KME of a connection.
struct Serving {
    kme: String,
    apis: Apis,
    shared: Arc<Shared>,
}

/// Whether the client speaks ETSI GS QKD 004: its first byte is a version, and that of HTTP is a letter.
async fn speaks_streams<S: AsyncRead + Unpin>(stream: &mut BufReader<S>, apis: Apis) -> bool {
    if !apis.etsi014 && !apis.skip {
        return true;
    }
    let first = tokio::time::timeout(IDLE_TIMEOUT, stream.fill_buf()).await;
    matches!(first, Ok(Ok([first, ..])) if !first.is_ascii_alphabetic())
}

async fn connection(
    Serving { kme, apis, shared }: Serving,
    acceptor: TlsAcceptor,
    stream: TcpStream,
    from: SocketAddr,
    mut stopped: watch::Receiver<bool>,
) {
    // An answer is one write, so Nagle's algorithm would only delay it.
    let _ = stream.set_nodelay(true);
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream));
    let stream = tokio::select! {
        done = handshake => match done {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return info!(%kme, %from, %error, "TLS handshake failed"),
            Err(_) => return info!(%kme, %from, "TLS handshake took too long"),
        },
        () = until_stopped(&mut stopped) => return,
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let client = certificate.map(|certificate| Client::of(certificate)).unwrap_or_default();
    let sae = shared.saes.iter().find(|sae| client.is(sae)).map(|sae| sae.id.clone());
    let common_name = client.common_name.as_deref().unwrap_or("");
    match &sae {
        Some(sae) => debug!(%kme, %from, sae, "connected"),
        // Has the values that the operator needs to add it to the config.
        None => {
            info!(%kme, %from, common_name, serial = client.serial(), "connected, but belongs to no SAE")
        }
    }
    let peer = Arc::new(Peer { kme, apis, sae, shared });
    let mut stream = BufReader::new(stream);
    if apis.etsi004 && speaks_streams(&mut stream, apis).await {
        let served = tokio::select! {
            served = etsi004::serve(&peer, &mut stream) => served,
            () = until_stopped(&mut stopped) => return,
        };
        if let Err(error) = served {
            debug!(kme = %peer.kme, %from, %error, "connection broke off");
        }
        return;
    }
    let service = service_fn(|request| http::answer(peer.clone(), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = until_stopped(&mut stopped) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(kme = %peer.kme, %from, %error, "connection failed");
    }
}
