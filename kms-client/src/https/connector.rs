//! Access to one KME's server for any interface: URL, certificates, connections under one deadline, and
//! explanations of connection failures.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyper::Method;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC};
use qvpn_types::SaeId;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;

use crate::config::KmeConfig;
use crate::error::{KmsError, KmsErrorKind, Operation, Phase, Violation};
use crate::https::connect::{self, Cause, Failure, Target, Trace};
use crate::https::explain::{self, ExplainingVerifier, Explanation};
use crate::https::files::FileError;
use crate::https::http::{self, Answer, MAX_BODY, Request};
use crate::https::tls::{Credentials, TlsFiles};
use crate::json::ProtocolViolation;
use crate::source::{Certificates, Connection};

/// Everything except RFC 3986's unreserved characters is encoded in a path or a query.
pub(crate) const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What is spoken inside TLS, by the URL's scheme.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    /// `https://`: HTTP/1.1, a connection for each operation.
    Https,
    /// `tls://`: a protocol of its own.
    Tls { default_port: u16 },
}

impl Transport {
    fn scheme(self) -> &'static str {
        match self {
            Self::Https => "https",
            Self::Tls { .. } => "tls",
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Self::Https => 443,
            Self::Tls { default_port } => default_port,
        }
    }

    fn alpn(self) -> &'static [&'static [u8]] {
        match self {
            Self::Https => &[b"http/1.1"],
            Self::Tls { .. } => &[],
        }
    }

    /// For advice.
    fn port_name(self) -> &'static str {
        match self {
            Self::Https => "HTTPS port",
            Self::Tls { .. } => "port for ETSI GS QKD 004",
        }
    }
}

/// An open TLS connection, and what explains its failures.
pub(crate) struct Channel {
    pub(crate) stream: TlsStream<TcpStream>,
    credentials: Arc<Credentials>,
    verifier: Arc<ExplainingVerifier>,
}

/// One KME's URL, TLS settings and deadline.
pub(crate) struct KmeConnector {
    pub(crate) config: KmeConfig,
    target: Target,
    /// The URL's path, without a trailing slash.
    prefix: String,
    tls: TlsFiles,
    transport: Transport,
    history: Mutex<ConnectionHistory>,
    /// Whether servers of the interface often accept only TLS with pre-shared keys.
    psk_is_usual: bool,
}

/// What earlier connections have shown.
#[derive(Default)]
struct ConnectionHistory {
    kme_not_after: Option<i64>,
    last: Option<Connection>,
}

/// The operation in progress, for the text of its errors.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) operation: Operation,
    pub(crate) peer: &'a SaeId,
    /// Keys that are spent if the answer is lost.
    pub(crate) at_stake: u32,
}

impl KmeConnector {
    /// Checks the config and loads the certificates. It opens no connection.
    ///
    /// # Errors
    /// [`KmsErrorKind::Config`], which names the setting or the file and what to write instead.
    pub(crate) fn new(config: KmeConfig, transport: Transport) -> Result<Self, KmsError> {
        let wrong = |detail: String, advice: &str| {
            KmsError::new(KmsErrorKind::Config, &config.name, Operation::Configure, "")
                .with_detail(detail)
                .with_advice(advice)
        };
        let (target, prefix) = target(&config, transport).map_err(|(what, fix)| wrong(what, &fix))?;
        if config.timeout.is_zero() {
            return Err(wrong("the timeout is zero".to_owned(), "set a timeout of some seconds"));
        }
        let tls = TlsFiles::load(&config).map_err(|e| wrong(e.what, &e.advice))?;
        let history = Mutex::default();
        Ok(Self { target, prefix, tls, transport, history, psk_is_usual: false, config })
    }

    /// For an interface whose servers often accept only TLS with pre-shared keys.
    pub(crate) fn with_psk_advice(self) -> Self {
        Self { psk_is_usual: true, ..self }
    }

    fn history(&self) -> MutexGuard<'_, ConnectionHistory> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.config.timeout
    }

    pub(crate) fn error(&self, kind: KmsErrorKind, call: Call<'_>) -> KmsError {
        KmsError::new(kind, &self.config.name, call.operation, call.peer.as_str())
    }

    pub(crate) fn misuse(&self, call: Call<'_>, detail: String) -> KmsError {
        self.error(KmsErrorKind::Config, call).with_detail(detail)
    }

    pub(crate) fn last_connection(&self) -> Option<Connection> {
        self.history().last.clone()
    }

    /// Returns when the certificates expire.
    pub(crate) fn certificates(&self) -> Certificates {
        let credentials = self.tls.current();
        Certificates {
            own: credentials.own.as_ref().map(|cert| (cert.subject.clone(), cert.serial.clone())),
            own_not_after: credentials.own.as_ref().map(|cert| cert.not_after),
            kme_not_after: self.history().kme_not_after,
            ca_not_after: credentials.ca_not_after,
            problem: self.tls.problem(),
        }
    }

    /// Describes how a KME may identify us.
    pub(crate) fn client_identity(&self) -> String {
        let credentials = self.tls.current();
        let (name, serial) =
            credentials.own.as_ref().map_or(("?", "?"), |cert| (cert.subject.as_str(), cert.serial.as_str()));
        let sae_id = &self.config.sae_id;
        format!(
            "our certificate has the common name {name} and the serial number {serial}, our SAE ID is \
             {sae_id}"
        )
    }

    /// Sends one request and returns the answer, of any status. `path` is appended to the URL's path.
    pub(crate) async fn ask(
        &self,
        call: Call<'_>,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        deadline: Instant,
    ) -> Result<Answer, KmsError> {
        if matches!(call.peer.as_str(), "." | "..") {
            let detail = format!("a URL can't hold the other site's SAE ID {}", call.peer);
            return Err(self.misuse(call, detail).with_advice("set the peer's sae_id to its SAE ID"));
        }
        let path = format!("{}{path}", self.prefix);
        let credentials = self.tls.current();
        let (tls, verifier) = self.tls_settings(call, &credentials)?;
        let mut trace = Trace::default();
        let result =
            http::perform(&self.target, tls, Request { method, path, body }, deadline, &mut trace).await;
        self.note_connection(trace, &verifier);
        result.map_err(|failure| self.explained(call, failure, &credentials, &verifier))
    }

    /// Opens a TLS connection for a protocol of its own.
    pub(crate) async fn open(&self, call: Call<'_>, deadline: Instant) -> Result<Channel, KmsError> {
        let credentials = self.tls.current();
        let (tls, verifier) = self.tls_settings(call, &credentials)?;
        let mut trace = Trace::default();
        let opened = connect::open(&self.target, tls, deadline, &mut trace);
        let result = match tokio::time::timeout_at(deadline, opened).await {
            Ok(result) => result,
            Err(_) => Err(Cause::Deadline),
        };
        let phase = trace.phase.unwrap_or(Phase::Resolve);
        self.note_connection(trace, &verifier);
        match result {
            Ok(stream) => Ok(Channel { stream, credentials, verifier }),
            Err(cause) => {
                let failure = Failure { phase, cause, status: None };
                Err(self.explained(call, failure, &credentials, &verifier))
            }
        }
    }

    /// The error for a request over `channel` that failed.
    pub(crate) fn request_failed(&self, call: Call<'_>, failure: Failure, channel: &Channel) -> KmsError {
        self.explained(call, failure, &channel.credentials, &channel.verifier)
    }

    fn tls_settings(
        &self,
        call: Call<'_>,
        credentials: &Credentials,
    ) -> Result<(Arc<rustls::ClientConfig>, Arc<ExplainingVerifier>), KmsError> {
        self.tls.connection(credentials, self.transport.alpn()).map_err(|e| {
            self.error(KmsErrorKind::Config, call).with_detail(format!("TLS can't be set up: {e}"))
        })
    }

    fn note_connection(&self, trace: Trace, verifier: &ExplainingVerifier) {
        let shown = verifier.shown();
        let mut history = self.history();
        if let Some(cert) = &shown {
            history.kme_not_after = Some(cert.not_after);
        }
        history.last = Some(trace.connection(shown.as_ref()));
    }

    fn explained(
        &self,
        call: Call<'_>,
        failure: Failure,
        credentials: &Credentials,
        verifier: &ExplainingVerifier,
    ) -> KmsError {
        let context = explain::Context {
            expected: &self.target.server_name.to_str(),
            shown: verifier.shown(),
            own: credentials.own.as_ref(),
            sae_id: &self.config.sae_id,
            ca_file: &self.config.ca_file.display().to_string(),
            cert_file: &self.config.cert_file.display().to_string(),
            port_name: self.transport.port_name(),
            psk_is_usual: self.psk_is_usual,
        };
        self.failed(call, failure, &context)
    }

    /// Returns the error for an answer that breaks the rules of the interface. Its keys are spent.
    pub(crate) fn broken(
        &self,
        call: Call<'_>,
        ProtocolViolation(violation, detail): ProtocolViolation,
    ) -> KmsError {
        self.error(KmsErrorKind::ProtocolViolation(violation), call)
            .with_status(200, None)
            .with_detail(detail)
            .with_keys_lost(call.at_stake)
    }

    /// The server closed the connection in the handshake without an alert. If it had sent its certificate
    /// before, it probably refuses ours.
    fn closed_in_handshake(&self, call: Call<'_>, place: &str, context: &explain::Context<'_>) -> KmsError {
        let what = format!("{place} closed the connection in the TLS handshake without an alert");
        if context.shown.is_some() {
            let Explanation { detail, advice, .. } = explain::refused_without_alert(context);
            return self
                .error(KmsErrorKind::IdentityRefused, call)
                .with_certainty(false)
                .with_detail(format!("{what}, after its certificate and before the end; {detail}"))
                .with_advice(advice);
        }
        self.error(KmsErrorKind::Unreachable, call).with_detail(what).with_advice(format!(
            "check that url has the KME's {}, that the KME runs behind any load balancer, and that it \
                 accepts TLS 1.2 or 1.3",
            context.port_name
        ))
    }

    fn failed(&self, call: Call<'_>, failure: Failure, context: &explain::Context<'_>) -> KmsError {
        let Failure { phase, cause, status } = failure;
        let sent = matches!(phase, Phase::Answer | Phase::Body);
        // An error status means that no key was delivered, so nothing is lost if the rest of that answer is.
        let spent = sent && call.at_stake > 0 && status.is_none_or(|status| status == 200);
        let lost = if spent { call.at_stake } else { 0 };
        let with_status = |error: KmsError| match status {
            Some(status) => error.with_status(status, None),
            None => error,
        };
        let place = format!("{}:{}", self.target.host, self.target.port);
        let refused = match phase {
            Phase::Answer => "; some servers do so when they refuse a client certificate",
            _ => "",
        };
        let broke_off = |detail: String| {
            let kind = if spent { KmsErrorKind::LostKeys(phase) } else { KmsErrorKind::Unreachable };
            with_status(self.error(kind, call)).with_detail(detail).with_keys_lost(lost)
        };
        if let (Cause::Tls(rustls::Error::General(_)), Some(FileError { what, advice })) =
            (&cause, self.tls.token_error())
        {
            return self.error(KmsErrorKind::Config, call).with_detail(what).with_advice(advice);
        }
        match cause {
            Cause::Deadline => {
                let kind = if spent { KmsErrorKind::LostKeys(phase) } else { KmsErrorKind::Timeout(phase) };
                with_status(self.error(kind, call))
                    .with_detail(format!("{place}, after {:?}", self.config.timeout))
                    .with_keys_lost(lost)
            }
            Cause::NoAddress => {
                self.error(KmsErrorKind::Unreachable, call).with_detail(format!("{place} has no address"))
            }
            Cause::Mark(e) => self
                .error(KmsErrorKind::Config, call)
                .with_detail(format!("the socket can't get fwmark {:?}: {e}", self.target.fwmark))
                .with_advice("give the program CAP_NET_ADMIN, or remove fwmark"),
            Cause::Tls(e) => {
                let Explanation { kind, detail, advice } = explain::explain(&e, context);
                // In TLS 1.3 the refusal of a certificate arrives after the request was sent, which is then
                // not processed.
                let lost = if kind == KmsErrorKind::IdentityRefused { 0 } else { lost };
                self.error(kind, call).with_detail(detail).with_advice(advice).with_keys_lost(lost)
            }
            Cause::Io(e) if sent => {
                broke_off(format!("the connection to {place} broke {phase}: {e}{refused}"))
            }
            Cause::Closed if sent => broke_off(format!("{place} closed the connection {phase}{refused}")),
            Cause::Io(e) if phase == Phase::Tls && is_closed(&e) => {
                self.closed_in_handshake(call, &place, context)
            }
            Cause::Io(e) => {
                self.error(KmsErrorKind::Unreachable, call).with_detail(format!("{place}, {phase}: {e}"))
            }
            Cause::Closed => self
                .error(KmsErrorKind::Unreachable, call)
                .with_detail(format!("{place} closed the connection {phase}")),
            Cause::TooLarge => {
                with_status(self.error(KmsErrorKind::ProtocolViolation(Violation::TooLarge), call))
                    .with_detail(format!("the answer is larger than {MAX_BODY} bytes"))
                    .with_keys_lost(lost)
            }
            Cause::Http(text) => {
                with_status(self.error(KmsErrorKind::ProtocolViolation(Violation::Http), call))
                    .with_detail(format!("{place} doesn't answer in HTTP/1: {text}"))
                    .with_advice("check that url is the KME's, and not another service's")
                    .with_keys_lost(lost)
            }
        }
    }
}

/// The server of the config's URL, and the URL's path without a slash at the end; else what is wrong and
/// what to write.
fn target(config: &KmeConfig, transport: Transport) -> Result<(Target, String), (String, String)> {
    let scheme = transport.scheme();
    let form = format!("write it as {scheme}://host:port");
    let wrong = |what: String| (format!("url {:?}{what}", config.url), form.clone());
    // The crate knows hosts and ports of http and its like only.
    let as_https = config.url.strip_prefix("tls://").map(|rest| format!("https://{rest}"));
    let is_tls = as_https.is_some();
    let text = as_https.as_deref().unwrap_or(&config.url);
    let url = url::Url::parse(text).map_err(|e| wrong(format!(": {e}")))?;
    if url.scheme() != "https" || is_tls != matches!(transport, Transport::Tls { .. }) {
        let fix = format!("a KME is asked over TLS only: {scheme}://host:port");
        return Err((format!("url {:?} isn't {scheme}", config.url), fix));
    }
    if url.query().is_some()
        || url.fragment().is_some()
        || !url.username().is_empty()
        || url.password().is_some()
    {
        return Err(wrong(" has a user, a query or a fragment".to_owned()));
    }
    let prefix = url.path().trim_end_matches('/').to_owned();
    if is_tls && !prefix.is_empty() {
        return Err(wrong(" has a path".to_owned()));
    }
    let host = match url.host() {
        Some(url::Host::Domain(name)) => name.to_owned(),
        Some(url::Host::Ipv4(ip)) => ip.to_string(),
        Some(url::Host::Ipv6(ip)) => ip.to_string(),
        None => return Err(wrong(" has no host".to_owned())),
    };
    let name = config.server_name.clone().unwrap_or_else(|| host.clone());
    let server_name = ServerName::try_from(name.clone()).map_err(|_| {
        (format!("server_name {name:?} is no host name"), "write a host name or an address".to_owned())
    })?;
    // The crate leaves out 443.
    let written =
        if is_tls && config.url.trim_end_matches('/').ends_with(":443") { Some(443) } else { url.port() };
    let port = written.unwrap_or(transport.default_port());
    let bracketed = if name.contains(':') { format!("[{name}]") } else { name };
    let authority = url.port().map_or(bracketed.clone(), |port| format!("{bracketed}:{port}"));
    Ok((Target { host, port, server_name, authority, fwmark: config.fwmark }, prefix))
}

fn is_closed(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::UnexpectedEof
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
    )
}
