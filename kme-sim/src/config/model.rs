//! A checked configuration: which KMEs, SAEs and links there are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::supply::Supply;

/// A checked configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Simulated seconds for each real second.
    pub time_scale: f64,
    /// Trusted nodes that aren't KMEs: they only relay keys.
    pub nodes: BTreeSet<String>,
    /// The path of the admin socket.
    pub admin: Option<PathBuf>,
    /// At least one KME; names differ.
    pub kmes: Vec<KmeConfig>,
    /// The SAEs, each at one of the KMEs; IDs differ.
    pub saes: Vec<SaeConfig>,
    /// The QKD links, at most one between two KMEs.
    pub links: Vec<LinkConfig>,
}

/// One `[[kme]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KmeConfig {
    /// The name, which is the KME ID in status answers.
    pub name: String,
    /// The listen address; with port 0 the system chooses a port.
    pub listen: SocketAddr,
    /// Its certificate chain, PEM.
    pub cert_file: PathBuf,
    /// Its private key, PEM.
    pub key_file: PathBuf,
    /// The CA certificates that client certificates must come from, PEM.
    pub client_ca_file: PathBuf,
    /// Its interfaces.
    pub apis: Apis,
    /// `max_key_per_request` of ETSI GS QKD 014 clause 6.1.
    pub max_key_per_request: u32,
    /// `min_key_size`, bits.
    pub min_key_size: u32,
    /// `max_key_size`, bits.
    pub max_key_size: u32,
    /// `max_SAE_ID_count`: the maximum number of additional slave SAEs of a request.
    pub max_sae_id_count: u32,
    /// The maximum number of keys that are stored here for slave SAEs. A further key replaces the oldest.
    pub max_waiting_keys: u32,
    /// The supported key request extensions, and the values that the KME can meet.
    pub extensions: BTreeMap<String, Vec<String>>,
    /// Whether it relays keys between two of its links.
    pub relay: bool,
    /// Whether an unsupported optional extension is refused; otherwise it is ignored.
    pub refuse_optional_extensions: bool,
}

/// The interfaces of a KME; at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Apis {
    /// ETSI GS QKD 014.
    pub etsi014: bool,
    /// ETSI GS QKD 004.
    pub etsi004: bool,
    /// Cisco SKIP (draft-cisco-skip).
    pub skip: bool,
}

/// One `[[sae]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaeConfig {
    /// The SAE ID.
    pub id: String,
    /// The name of its KME.
    pub kme: String,
    /// What in its certificate identifies the SAE.
    pub known_by: KnownBy,
}

/// What in a client certificate identifies an SAE: servers differ in that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KnownBy {
    /// The common name is the SAE ID.
    Name,
    /// The certificate has this serial number.
    Serial(Vec<u8>),
    /// The common name is the SAE ID, and this is the serial number.
    Both(Vec<u8>),
}

/// One `[[link]]`, or one hop of it.
#[derive(Debug, Clone, PartialEq)]
pub struct LinkConfig {
    /// The names of the two KMEs that it joins.
    pub kmes: [String; 2],
    /// The size of a key in bits, if a request specifies none.
    pub key_size: u32,
    /// Its supply over time.
    pub supply: Supply,
    /// The capacity of the store, in keys of `key_size`.
    pub max_keys: u64,
    /// Keys of `key_size` in the store at the start.
    pub initial_keys: u64,
    /// The delay of a key to the other KME.
    pub relay_delay: Duration,
    /// Makes the keys reproducible, for tests only; see [`crate::test_key`].
    pub seed: Option<Vec<u8>>,
}
