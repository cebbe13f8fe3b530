//! [`KeySource`], the trait of all key delivery interfaces, and what a source reports about its link and
//! connection.

use qvpn_types::{KeyId, SaeId};
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use crate::api::Api;
use crate::error::KmsError;
use crate::key::QkdKey;

/// A boxed future, so that sources of different types fit into one list.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a source reports about the link to one peer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Link {
    /// The ID that our KME gives itself; empty if unknown.
    pub source_kme: String,
    /// The ID of the other site's KME; empty if unknown.
    pub target_kme: String,
    /// Keys in store by the KME's own count. It is only displayed, since some servers report a wrong number.
    pub stored_key_count: Option<u64>,
    /// The maximum number of keys that one request may ask for.
    pub max_key_per_request: Option<u32>,
}

/// The KME ID, on both sides, of a key from a file. It tells a site that a key offered by its peer is from a
/// file.
pub(crate) const KEY_FILE_LINK: &str = "key-file";

/// When the certificates in use expire, in seconds since 1970; `None` if there is none or the time is
/// unknown.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Certificates {
    /// The common name and the serial number of our certificate: a KME identifies us by one of them, or by
    /// both.
    pub own: Option<(String, String)>,
    /// When our certificate expires.
    pub own_not_after: Option<i64>,
    /// When the KME's certificate expires, as of the last handshake.
    pub kme_not_after: Option<i64>,
    /// When the last of the CA certificates in `ca_file` expires.
    pub ca_not_after: Option<i64>,
    /// Why changed files could not be loaded; the former certificates are still in use.
    pub problem: Option<String>,
}

/// How far a connection to a KME got, and how long each step took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// The KME's address.
    pub address: Option<SocketAddr>,
    /// How long the TCP connection took.
    pub connected_in: Option<Duration>,
    /// How long the TLS handshake took.
    pub tls_in: Option<Duration>,
    /// The negotiated TLS parameters; `None` if the handshake failed.
    pub tls: Option<TlsFacts>,
    /// The certificate that the KME presented, even if it was refused.
    pub certificate: Option<CertificateFacts>,
}

/// The negotiated TLS parameters, with the IANA names if rustls has them.
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

/// The contents of a certificate that an operator needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// The common name, or the whole subject where there is none.
    pub subject: String,
    /// The issuer's common name, or its whole name.
    pub issuer: String,
    /// The subject alternative names.
    pub names: Vec<String>,
    /// When it expires, in seconds since 1970.
    pub not_after: i64,
}

/// A service that delivers the same secret keys to two sites. Dropping a future ends its operation and its
/// connection.
pub trait KeySource: Send + Sync {
    /// The name in our config.
    fn name(&self) -> &str;

    fn api(&self) -> Api;

    /// Returns the address, for people.
    fn url(&self) -> &str;

    /// Requests the state of the link to `peer`. It takes no key, so health probes use it.
    fn link<'a>(&'a self, peer: &'a SaeId) -> BoxFuture<'a, Result<Link, KmsError>>;

    /// Takes up to `number` new keys of `size_bits` bits shared with `peer`. Success returns at least one
    /// key.
    fn fetch_new<'a>(
        &'a self,
        peer: &'a SaeId,
        number: u32,
        size_bits: u32,
    ) -> BoxFuture<'a, Result<Vec<QkdKey>, KmsError>>;

    /// Takes keys that `peer` took before, by their IDs. Success returns at least one of them and no others.
    fn fetch_by_ids<'a>(
        &'a self,
        peer: &'a SaeId,
        ids: &'a [KeyId],
    ) -> BoxFuture<'a, Result<Vec<QkdKey>, KmsError>>;

    /// Ends what is open at the KME, such as key streams, before the program stops or drops the source. It
    /// stays usable.
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    /// Returns the latest connection; `None` before the first, and for sources without connections.
    fn connection(&self) -> Option<Connection> {
        None
    }

    /// Returns when the certificates expire.
    fn certificates(&self) -> Certificates {
        Certificates::default()
    }
}
