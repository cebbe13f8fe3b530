//! What stands before every key delivery interface, so that ETSI GS QKD 014 is one of several: SKIP or a file of keys
//! join by implementing [`KeySource`].

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use crate::api::Api;
use crate::error::KmsError;
use crate::key::{KeyId, QkdKey};

/// A boxed future, so that sources of different kinds stand in one list.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a source says about the link to one peer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Link {
    /// The KME that we ask, in its own words; empty if unknown.
    pub source_kme: String,
    /// The KME at the other end of the link; empty if unknown.
    pub target_kme: String,
    /// Keys in store, as claimed. Servers are known to lie; it is shown, and nothing is decided on it.
    pub stored_key_count: Option<u64>,
    /// The most keys that one call may ask for.
    pub max_key_per_request: Option<u32>,
}

/// What both ends of the link are called: the file is the same at both sites, and has no KME. By it a site knows that a key
/// which the other one offers is from a file.
pub(crate) const KEY_FILE_LINK: &str = "key-file";

/// When the certificates in use end, in seconds since 1970; `None` where there is none or it isn't known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Certificates {
    /// The common name and the serial number of ours: a KME knows us by one of them, or by both.
    pub own: Option<(String, String)>,
    /// The end of ours.
    pub own_not_after: Option<i64>,
    /// The end of the KME's, as seen at the last handshake.
    pub kme_not_after: Option<i64>,
    /// The end of the CA's in `ca_file`; of several, the last one to end.
    pub ca_not_after: Option<i64>,
    /// Why files that changed could not be loaded, so that the former ones are still in use.
    pub problem: Option<String>,
}

/// What a connection to a KME was like, as far as it got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// The KME's address.
    pub address: Option<SocketAddr>,
    /// How long TCP took.
    pub connected_in: Option<Duration>,
    /// How long the TLS handshake took.
    pub tls_in: Option<Duration>,
    /// What TLS agreed on; `None` if the handshake failed.
    pub tls: Option<TlsFacts>,
    /// The certificate that the KME showed, also if it was refused.
    pub certificate: Option<CertificateFacts>,
}

/// What TLS agreed on, in the names of the IANA registries where rustls has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFacts {
    /// `TLSv1_3`, as rustls calls it.
    pub version: String,
    /// The key exchange group, such as `X25519MLKEM768`.
    pub group: String,
    /// The cipher suite.
    pub suite: String,
    /// Whether the group resists a quantum computer.
    pub quantum_safe: bool,
}

/// What a certificate says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// The common name, or the whole subject where there is none.
    pub subject: String,
    /// Likewise of the issuer.
    pub issuer: String,
    /// The subject alternative names.
    pub names: Vec<String>,
    /// When it ends, in seconds since 1970.
    pub not_after: i64,
}

/// Something that delivers the same secret keys to two sites. A dropped future ends its operation and its connection.
pub trait KeySource: Send + Sync {
    /// Our name for it.
    fn name(&self) -> &str;

    /// The interface that it speaks.
    fn api(&self) -> Api;

    /// Where it is, for people.
    fn url(&self) -> &str;

    /// Asks about the link to `peer`; takes no key, so it is what a health probe does.
    fn link<'a>(&'a self, peer: &'a str) -> BoxFuture<'a, Result<Link, KmsError>>;

    /// Takes up to `number` new keys of `size_bits` bits shared with `peer`. Fewer may come, never more and never none.
    fn fetch_new<'a>(
        &'a self,
        peer: &'a str,
        number: u32,
        size_bits: u32,
    ) -> BoxFuture<'a, Result<Vec<QkdKey>, KmsError>>;

    /// Takes the keys that `peer` took before, by their IDs. Fewer may come, never others and never none.
    fn fetch_by_ids<'a>(
        &'a self,
        peer: &'a str,
        ids: &'a [KeyId],
    ) -> BoxFuture<'a, Result<Vec<QkdKey>, KmsError>>;

    /// What the latest connection was like; `None` before the first, and where there are none.
    fn connection(&self) -> Option<Connection> {
        None
    }

    /// When the certificates end.
    fn certificates(&self) -> Certificates {
        Certificates::default()
    }
}
