//! A scripted KME: real TCP and TLS, a request parsed by hand, and raw bytes as the answer. It shares no code
//! with the crate or with the simulator.
#![allow(dead_code)] // Each test program uses a part of it.

pub mod copies;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kms_client::{KmeConfig, KmsClient, KmsError, KmsErrorKind, Operation};
use qvpn_types::SaeId;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// The base64 of keys that servers deliver; no error may ever contain one.
pub const KEY_1: &str = "q83vASNFZ4mrze8BI0VniavN7wEjRWeJq83vASNFZ4k=";
pub const KEY_2: &str = "/////wAAAAD/////AAAAAP////8AAAAA/////wAAAAE=";
pub const KEY_31: &str = "q83vASNFZ4mrze8BI0VniavN7wEjRWeJq83vASNFZw==";

pub fn sae(id: &str) -> SaeId {
    SaeId::new(id).unwrap()
}

/// A certificate authority.
pub struct Ca {
    params: CertificateParams,
    key: KeyPair,
    pub pem: String,
}

impl Ca {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { params, key, pem }
    }

    /// Issues a certificate with this common name and these alternative names, after `change`.
    pub fn issue(&self, cn: &str, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Issued {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, cn);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::from_params(&self.params, &self.key);
        let cert = params.signed_by(&key, &issuer).unwrap();
        Issued {
            der: cert.der().clone(),
            pem: cert.pem(),
            key_der: key.serialize_der(),
            key_pem: key.serialize_pem(),
        }
    }

    fn root(&self) -> CertificateDer<'static> {
        self.params.self_signed(&self.key).unwrap().der().clone()
    }
}

/// A certificate and its key.
#[derive(Clone)]
pub struct Issued {
    pub der: CertificateDer<'static>,
    pub pem: String,
    pub key_der: Vec<u8>,
    pub key_pem: String,
}

/// A CA, our certificate, and the files that a client's config names.
pub struct Lab {
    pub dir: tempfile::TempDir,
    pub ca: Ca,
}

impl Lab {
    pub fn new() -> Self {
        let lab = Self { dir: tempfile::tempdir().unwrap(), ca: Ca::new("Lab CA") };
        std::fs::write(lab.path("ca.pem"), &lab.ca.pem).unwrap();
        lab.write_identity(&lab.ca.issue("SITE-A", &[], |_| {}));
        lab
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    pub fn write_identity(&self, own: &Issued) {
        std::fs::write(self.path("cert.pem"), &own.pem).unwrap();
        self.write_key(&own.key_pem, 0o600);
    }

    pub fn write_key(&self, pem: &str, mode: u32) {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(self.path("key.pem"), pem).unwrap();
        std::fs::set_permissions(self.path("key.pem"), std::fs::Permissions::from_mode(mode)).unwrap();
    }

    pub fn config(&self, address: SocketAddr) -> KmeConfig {
        let url = format!("https://localhost:{}", address.port());
        KmeConfig::new(
            "kme-a1",
            url,
            "SITE-A",
            self.path("ca.pem"),
            self.path("cert.pem"),
            self.path("key.pem"),
        )
    }

    /// Returns the settings of a server with a good certificate that asks for ours.
    pub fn server_config(&self) -> ServerConfig {
        self.server_config_with(
            &self.ca.issue("kme-a1", &["localhost"], |_| {}),
            &self.ca,
            rustls::ALL_VERSIONS,
        )
    }

    pub fn server_config_with(
        &self,
        cert: &Issued,
        client_ca: &Ca,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> ServerConfig {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(client_ca.root()).unwrap();
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(cert.key_der.clone()));
        let key = provider.key_provider.load_private_key(key).unwrap();
        // Not `with_single_cert`, which would refuse the certificates that the client has to refuse.
        let resolver = SingleCertAndKey::from(CertifiedKey::new(vec![cert.der.clone()], key));
        ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_cert_resolver(Arc::new(resolver))
    }

    pub async fn serve(&self, script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Server {
        Server::start(self.server_config(), script).await
    }

    /// Returns a client of a KME that always gives the same answer.
    pub async fn client(&self, reply: Reply) -> (KmsClient, Server) {
        let server = self.serve(move |_| reply.clone()).await;
        (KmsClient::new(self.config(server.address)).unwrap(), server)
    }

    /// The same, with a deadline that is short enough for a test.
    pub async fn impatient_client(&self, reply: Reply) -> (KmsClient, Server) {
        let server = self.serve(move |_| reply.clone()).await;
        let mut config = self.config(server.address);
        config.timeout = Duration::from_millis(400);
        (KmsClient::new(config).unwrap(), server)
    }
}

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub head: String,
    pub body: String,
}

/// What the server does with a request.
#[derive(Clone)]
pub enum Reply {
    /// Writes these bytes and closes.
    Raw(Vec<u8>),
    /// Writes these bytes, then nothing until the client closes the connection.
    ThenHang(Vec<u8>),
    /// Writes the first bytes, then the second repeatedly, with a pause.
    ThenDrip(Vec<u8>, Vec<u8>, Duration),
    /// Writes these bytes and closes TCP without TLS's close_notify.
    ThenDrop(Vec<u8>),
}

/// Returns a whole answer with a length.
pub fn answer(status: &str, content_type: &str, body: &str) -> Reply {
    Reply::Raw(
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes(),
    )
}

pub fn json(status: &str, body: &str) -> Reply {
    answer(status, "application/json", body)
}

pub fn ok(body: &str) -> Reply {
    json("200 OK", body)
}

/// A key container.
pub fn container(keys: &[(&str, &str)]) -> String {
    let items: Vec<String> =
        keys.iter().map(|(id, key)| format!(r#"{{"key_ID":"{id}","key":"{key}"}}"#)).collect();
    format!(r#"{{"keys":[{}]}}"#, items.join(","))
}

/// Returns a valid status.
pub fn status_body(source: &str, target: &str) -> String {
    format!(
        r#"{{"source_KME_ID":"{source}","target_KME_ID":"{target}","master_SAE_ID":"SITE-A",
            "slave_SAE_ID":"SITE-B",
        "key_size":32,"stored_key_count":25,"max_key_count":100,"max_key_per_request":10,"max_key_size":1024,
        "min_key_size":64,"max_SAE_ID_count":0}}"#
    )
}

/// A running server; it ends when dropped.
pub struct Server {
    pub address: SocketAddr,
    pub seen: Arc<Mutex<Vec<Seen>>>,
    /// TLS version and group of each connection.
    pub sessions: Arc<Mutex<Vec<String>>>,
    /// How many connections have ended, with all memory that they held.
    pub ended: tokio::sync::watch::Receiver<usize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub async fn start(
        config: ServerConfig,
        script: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, sessions) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
        let (script, acceptor) = (Arc::new(script), TlsAcceptor::from(Arc::new(config)));
        let (seen_here, sessions_here) = (Arc::clone(&seen), Arc::clone(&sessions));
        let (ending, ended) = tokio::sync::watch::channel(0);
        let task = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, script) = (acceptor.clone(), Arc::clone(&script));
                let (seen, sessions) = (Arc::clone(&seen_here), Arc::clone(&sessions_here));
                let ending = ending.clone();
                tokio::spawn(async move {
                    let stream = match acceptor.accept(tcp).into_fallible().await {
                        Ok(stream) => stream,
                        Err((_, mut tcp)) => {
                            // A reset could overtake the alert, so the server waits until the client has
                            // closed the connection.
                            let _ = tcp.read_to_end(&mut Vec::new()).await;
                            return;
                        }
                    };
                    let (_, session) = stream.get_ref();
                    let group = session.negotiated_key_exchange_group().map(|g| g.name());
                    let version = session.protocol_version();
                    sessions.lock().unwrap().push(format!("{version:?} {group:?}"));
                    // Many scripts include a client that closes the connection early.
                    let _ = talk(stream, &*script, &seen).await;
                    ending.send_modify(|n| *n += 1);
                });
            }
        });
        Self { address, seen, sessions, ended, task }
    }

    pub fn requests(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

type Stream = tokio_rustls::server::TlsStream<tokio::net::TcpStream>;

async fn talk(
    mut stream: Stream,
    script: &(dyn Fn(&Seen) -> Reply + Send + Sync),
    seen: &Mutex<Vec<Seen>>,
) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
    };
    let head = String::from_utf8_lossy(&bytes[..head_end]).to_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |n| n.trim().parse::<usize>().unwrap());
    while bytes.len() < head_end + length {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
    }
    let head = String::from_utf8_lossy(&bytes[..head_end]).into_owned();
    let mut words = head.split(' ');
    let request = Seen {
        method: words.next().unwrap().to_owned(),
        path: words.next().unwrap().to_owned(),
        body: String::from_utf8_lossy(&bytes[head_end..]).into_owned(),
        head,
    };
    let reply = script(&request);
    seen.lock().unwrap().push(request);
    match reply {
        Reply::Raw(bytes) => {
            stream.write_all(&bytes).await?;
            stream.shutdown().await?;
        }
        Reply::ThenHang(bytes) => {
            stream.write_all(&bytes).await?;
            stream.flush().await?;
            stream.read_to_end(&mut Vec::new()).await?;
        }
        Reply::ThenDrip(first, again, pause) => {
            stream.write_all(&first).await?;
            loop {
                stream.write_all(&again).await?;
                stream.flush().await?;
                tokio::time::sleep(pause).await;
            }
        }
        Reply::ThenDrop(bytes) => {
            stream.write_all(&bytes).await?;
            stream.flush().await?;
        }
    }
    Ok(())
}

/// Checks what holds for every error: it names the KME and the operation, gives advice, is bounded, and
/// contains no key.
#[track_caller]
pub fn check(error: &KmsError, kind: KmsErrorKind, operation: Operation) {
    assert_eq!(error.kind(), kind, "{error}");
    assert_eq!(error.operation(), operation, "{error}");
    assert_eq!(error.kme(), "kme-a1");
    let text = error.to_string();
    assert!(text.contains("KME kme-a1: ") && text.contains(operation.as_str()), "{text}");
    assert!(error.advice().len() > 20, "{text}");
    assert!(text.len() < 1000, "{text}");
    assert!(!text.contains('\n'), "{text}");
    assert_no_key(&format!("{text} {error:?} {}", error.advice()));
}

/// Checks that no delivered key, or a large part of one, is in `text`.
#[track_caller]
pub fn assert_no_key(text: &str) {
    for key in [KEY_1, KEY_2, KEY_31] {
        for part in key.as_bytes().windows(12) {
            let part = std::str::from_utf8(part).unwrap();
            assert!(!text.contains(part), "key material in: {text}");
        }
    }
}
