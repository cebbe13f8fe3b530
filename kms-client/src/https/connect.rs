//! A new TLS connection to a KME: name lookup, TCP and TLS under one deadline, and why there is none.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::error::Phase;
use crate::https::explain::CertificateInfo;
use crate::source::{Connection, TlsFacts};

/// The address of a KME.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// Host name or address, as in the URL, without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// The name in the certificate, also sent as SNI.
    pub(crate) server_name: ServerName<'static>,
    /// The `Host` header.
    pub(crate) authority: String,
    pub(crate) fwmark: Option<u32>,
}

/// Why the answer is incomplete or missing.
pub(crate) struct Failure {
    pub(crate) phase: Phase,
    pub(crate) cause: Cause,
    /// The status, if the head of the answer arrived.
    pub(crate) status: Option<u16>,
}

pub(crate) enum Cause {
    /// The deadline passed.
    Deadline,
    /// The system refused the mark of the socket.
    Mark(std::io::Error),
    /// Name resolution, TCP, or a connection that broke.
    Io(std::io::Error),
    /// The host name has no address.
    NoAddress,
    Tls(rustls::Error),
    /// The body is larger than [`MAX_BODY`](crate::MAX_BODY).
    TooLarge,
    /// The KME closed the connection before the answer was whole.
    Closed,
    /// The answer isn't HTTP/1.
    Http(String),
}

/// How far an operation got.
#[derive(Default)]
pub(crate) struct Trace {
    pub(crate) phase: Option<Phase>,
    pub(crate) status: Option<u16>,
    address: Option<SocketAddr>,
    connected_in: Option<Duration>,
    tls_in: Option<Duration>,
    tls: Option<TlsFacts>,
}

impl Trace {
    /// Returns the report of this connection, with the certificate that the KME presented.
    pub(crate) fn connection(self, shown: Option<&CertificateInfo>) -> Connection {
        Connection {
            address: self.address,
            connected_in: self.connected_in,
            tls_in: self.tls_in,
            tls: self.tls,
            certificate: shown.map(CertificateInfo::facts),
        }
    }
}

/// Looks up the name and opens a connection. `trace` has how far it got.
pub(crate) async fn open(
    target: &Target,
    tls: Arc<ClientConfig>,
    deadline: Instant,
    trace: &mut Trace,
) -> Result<TlsStream<TcpStream>, Cause> {
    let addresses: Vec<SocketAddr> =
        tokio::net::lookup_host((target.host.as_str(), target.port)).await.map_err(Cause::Io)?.collect();

    trace.phase = Some(Phase::Connect);
    let began = Instant::now();
    let tcp = connect(&addresses, target.fwmark, deadline).await?;
    trace.address = tcp.peer_addr().ok();
    trace.connected_in = Some(began.elapsed());

    trace.phase = Some(Phase::Tls);
    let began = Instant::now();
    let stream = TlsConnector::from(tls)
        .connect(target.server_name.clone(), tcp)
        .await
        .map_err(|e| io_cause(e, Cause::Io))?;
    trace.tls_in = Some(began.elapsed());
    trace.tls = Some(tls_facts(stream.get_ref().1));
    Ok(stream)
}

/// Returns the TLS parameters of `connection`.
fn tls_facts(connection: &rustls::ClientConnection) -> TlsFacts {
    let group = connection.negotiated_key_exchange_group();
    let unknown = || "unknown".to_owned();
    TlsFacts {
        version: connection.protocol_version().map_or_else(unknown, |version| format!("{version:?}")),
        group: group.map_or_else(unknown, |group| format!("{:?}", group.name())),
        suite: connection
            .negotiated_cipher_suite()
            .map_or_else(unknown, |suite| format!("{:?}", suite.suite())),
        quantum_safe: group.is_some_and(|group| group.name() == rustls::NamedGroup::X25519MLKEM768),
    }
}

/// Tries the addresses in order, each with an equal share of the time that is left.
async fn connect(
    addresses: &[SocketAddr],
    fwmark: Option<u32>,
    deadline: Instant,
) -> Result<TcpStream, Cause> {
    let mut last = Cause::NoAddress;
    for (i, address) in addresses.iter().enumerate() {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }
        .map_err(Cause::Io)?;
        if let Some(mark) = fwmark {
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Mark, &mark)
                .map_err(|errno| Cause::Mark(errno.into()))?;
        }
        let others = u32::try_from(addresses.len() - i).unwrap_or(u32::MAX);
        let share = deadline.saturating_duration_since(Instant::now()) / others;
        last = match tokio::time::timeout(share, socket.connect(*address)).await {
            Ok(Ok(stream)) => {
                // A failure here only slows requests down.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(error)) => Cause::Io(error),
            Err(_) => Cause::Deadline,
        };
    }
    Err(last)
}

/// Returns the TLS error inside an I/O error, or `otherwise`.
pub(crate) fn io_cause(error: std::io::Error, otherwise: impl FnOnce(std::io::Error) -> Cause) -> Cause {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(tls) => Cause::Tls(tls.clone()),
        None => otherwise(error),
    }
}
