//! A lab in a temporary directory, and a small HTTPS client that shares no code with kms-client.
// Each test file uses only a part of it, and a failure here is a failure of the test.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use kme_sim::admin::{Answer, Command};
use kme_sim::certs::{self, SubjectName};
use kme_sim::faults::catalog::{Misbehaviour, Ops};
use kme_sim::{Config, Simulator};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Sites a, b and c, each with a KME; an SAE whose ID needs URL encoding lives at b, a second one at b too.
/// There are links a - b and a - c, and none between b and c.
pub const CONFIG: &str = r#"
[[kme]]
name = "kme-a1"
listen = "127.0.0.1:0"
cert_file = "kme-a1.pem"
key_file = "kme-a1.key"
client_ca_file = "ca.pem"
max_sae_id_count = 2
extensions = { route_type = ["direct"] }

[[kme]]
name = "kme-b1"
listen = "127.0.0.1:0"
cert_file = "kme-b1.pem"
key_file = "kme-b1.key"
client_ca_file = "ca.pem"
max_key_per_request = 10
refuse_optional_extensions = true

[[kme]]
name = "kme-c1"
listen = "[::1]:0"
cert_file = "kme-c1.pem"
key_file = "kme-c1.key"
client_ca_file = "ca.pem"

[[sae]]
id = "SITE-A"
kme = "kme-a1"

[[sae]]
id = "SITE-B"
kme = "kme-b1"

[[sae]]
id = "Büro 2/b"
kme = "kme-b1"

[[sae]]
id = "SITE-C"
kme = "kme-c1"

[[link]]
kmes = ["kme-a1", "kme-b1"]
rate_bits_per_s = 0
max_keys = 1000
initial_keys = 500
seed = "00010203"

[[link]]
kmes = ["kme-c1", "kme-a1"]
key_size = 128
rate_bits_per_s = 0
max_keys = 100
initial_keys = 20
"#;

/// The seed of the link a - b in [`CONFIG`].
pub const SEED: &[u8] = &[0, 1, 2, 3];

/// Makes the certificates of [`CONFIG`] in `directory`, and of `NOBODY`, an SAE that no KME knows.
pub fn certificates(directory: &Path) {
    let kmes = ["kme-a1", "kme-b1", "kme-c1"].map(|k| (k.to_owned(), Vec::<SubjectName>::new()));
    let saes = ["SITE-A", "SITE-B", "SITE-C", "Büro 2/b", "NOBODY"].map(str::to_owned);
    let request =
        certs::Request { kmes: BTreeMap::from(kmes), saes: BTreeSet::from(saes), days: 1, force: false };
    certs::make(directory, &request).unwrap();
}

/// A running simulator and the directory of its certificates.
pub struct Lab {
    pub directory: TempDir,
    pub simulator: Simulator,
}

impl Lab {
    /// Starts [`CONFIG`].
    pub async fn start() -> Self {
        Self::with(CONFIG).await
    }

    /// Starts `config`.
    pub async fn with(config: &str) -> Self {
        let directory = TempDir::new().unwrap();
        certificates(directory.path());
        let config = Config::parse(config, "test.toml", directory.path()).unwrap();
        let simulator = Simulator::start(&config).await.unwrap();
        Self { directory, simulator }
    }

    pub fn address(&self, kme: &str) -> SocketAddr {
        self.simulator.addresses()[kme]
    }

    /// A client of `kme` with the certificate files `sae`.pem and `sae`.key.
    pub async fn client(&self, kme: &str, sae: &str) -> Client {
        let config = client_config(self.directory.path(), Some(sae), rustls::ALL_VERSIONS);
        Client::connect(self.address(kme), kme, config).await.unwrap()
    }

    pub async fn misbehave(&self, kme: &str, op: Ops, how: Misbehaviour) -> Answer {
        self.simulator.command(Command::Misbehave { kme: kme.to_owned(), op, how }).await
    }

    /// Returns the number of keys that wait at `kme`.
    pub async fn waiting(&self, kme: &str) -> usize {
        let kmes = self.simulator.command(Command::Stored {}).await.kmes.unwrap();
        kmes.iter().find(|k| k.name == kme).unwrap().waiting_keys
    }
}

/// Returns the TLS settings of a client that trusts the CA in `directory` and presents the certificate `sae`,
/// if any.
pub fn client_config(
    directory: &Path,
    sae: Option<&str>,
    versions: &[&'static SupportedProtocolVersion],
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(directory.join("ca.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    match sae {
        Some(sae) => {
            let chain = vec![CertificateDer::from_pem_file(directory.join(format!("{sae}.pem"))).unwrap()];
            let key = PrivateKeyDer::from_pem_file(directory.join(format!("{sae}.key"))).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
        None => builder.with_no_client_auth(),
    }
}

/// One HTTPS connection.
pub struct Client {
    sender: hyper::client::conn::http1::SendRequest<Full<Bytes>>,
    pub tls: rustls::ProtocolVersion,
    pub group: rustls::NamedGroup,
}

/// Status code, content type and body of an answer.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub content_type: String,
    /// `WWW-Authenticate`.
    pub challenge: String,
    pub body: Bytes,
}

impl Reply {
    pub fn json(&self) -> Value {
        assert_eq!(self.content_type, "application/json", "{self:?}");
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Returns the JSON of an answer that must be 200.
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{self:?}");
        self.json()
    }

    /// Returns ID and bytes of each key of an answer that must be 200.
    pub fn keys(&self) -> Vec<(String, Vec<u8>)> {
        let value = self.ok();
        let key = |k: &Value| {
            let bytes = data_encoding::BASE64.decode(k["key"].as_str().unwrap().as_bytes()).unwrap();
            (k["key_ID"].as_str().unwrap().to_owned(), bytes)
        };
        value["keys"].as_array().unwrap().iter().map(key).collect()
    }

    /// Returns the message of an answer that must be `status`.
    pub fn message(&self, status: u16) -> String {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        self.json()["message"].as_str().unwrap().to_owned()
    }
}

impl Client {
    /// Connects, does the handshake, and reads once, so that a refusal of our certificate is seen (in TLS 1.3
    /// it arrives after the handshake).
    pub async fn connect(address: SocketAddr, name: &str, config: ClientConfig) -> Result<Self, String> {
        let stream = TcpStream::connect(address).await.map_err(|e| e.to_string())?;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let stream =
            TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|e| e.to_string())?;
        let session = stream.get_ref().1;
        let tls = session.protocol_version().unwrap();
        let group = session.negotiated_key_exchange_group().unwrap().name();
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        Ok(Self { sender, tls, group })
    }

    pub async fn send(
        &mut self,
        method: &str,
        path: &str,
        body: impl Into<Bytes>,
    ) -> Result<Reply, hyper::Error> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "kme")
            .header("content-type", "application/json")
            .body(Full::new(body.into()))
            .unwrap();
        self.sender.ready().await?;
        let (parts, body) = Response::into_parts(self.sender.send_request(request).await?);
        let header = |name| parts.headers.get(name).map_or("", |v| v.to_str().unwrap()).to_owned();
        let (content_type, challenge) = (header("content-type"), header("www-authenticate"));
        Ok(Reply { status: parts.status, content_type, challenge, body: body.collect().await?.to_bytes() })
    }

    /// Requests `path` and reads at least `bytes` of the body, which may have no end; also returns the
    /// announced length.
    pub async fn begin(&mut self, path: &str, bytes: usize) -> (Option<u64>, Vec<u8>) {
        let request = Request::builder().uri(path).header("host", "kme").body(Full::default()).unwrap();
        self.sender.ready().await.unwrap();
        let (parts, mut body) = self.sender.send_request(request).await.unwrap().into_parts();
        let mut begin = Vec::new();
        while begin.len() < bytes {
            begin.extend_from_slice(&body.frame().await.unwrap().unwrap().into_data().unwrap());
        }
        let length = parts.headers.get("content-length").map(|v| v.to_str().unwrap().parse().unwrap());
        (length, begin)
    }

    pub async fn get(&mut self, path: &str) -> Reply {
        self.send("GET", path, "").await.unwrap()
    }

    pub async fn post(&mut self, path: &str, body: Value) -> Reply {
        self.send("POST", path, body.to_string()).await.unwrap()
    }

    /// Fetches `ids` as a slave of `master`.
    pub async fn dec_keys(&mut self, master: &str, ids: &[&str]) -> Reply {
        let ids: Vec<Value> = ids.iter().map(|id| serde_json::json!({ "key_ID": id })).collect();
        self.post(&format!("/api/v1/keys/{master}/dec_keys"), serde_json::json!({ "key_IDs": ids })).await
    }
}
