//! The simulator's TOML file: which KMEs, SAEs and links there are. What can be wrong is refused here, each with the
//! line and column and what to write instead, so that the rest of the program works on values that make sense.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::supply::Supply;

mod check;
mod raw;

use check::Check;
use raw::Raw;

/// A checked configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// How many simulated seconds pass in a real one.
    pub time_scale: f64,
    /// Trusted nodes that are no KMEs: they pass keys on.
    pub nodes: BTreeSet<String>,
    /// Where the admin socket of this process is made, if at all.
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
    /// Where it listens; port 0 lets the system choose one.
    pub listen: SocketAddr,
    /// Its certificate chain, PEM.
    pub cert_file: PathBuf,
    /// Its private key, PEM.
    pub key_file: PathBuf,
    /// The CA certificates that client certificates must come from, PEM.
    pub client_ca_file: PathBuf,
    /// The interfaces that it speaks.
    pub apis: Apis,
    /// `max_key_per_request` of ETSI GS QKD 014 clause 6.1.
    pub max_key_per_request: u32,
    /// `min_key_size`, bits.
    pub min_key_size: u32,
    /// `max_key_size`, bits.
    pub max_key_size: u32,
    /// `max_SAE_ID_count`: how many additional slave SAEs a request may name.
    pub max_sae_id_count: u32,
    /// Keys that wait here for their slave SAEs at most; the oldest is forgotten when one more comes.
    pub max_waiting_keys: u32,
    /// The key request extensions that this KME knows, and the values that it can meet.
    pub extensions: BTreeMap<String, Vec<String>>,
    /// Whether it passes on keys between two of its links.
    pub relay: bool,
    /// Whether an optional extension that it doesn't handle is refused; otherwise it is ignored.
    pub refuse_optional_extensions: bool,
}

/// The interfaces of a KME; one at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Apis {
    /// ETSI GS QKD 014.
    pub etsi014: bool,
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
    /// What of its certificate says that it is this SAE.
    pub known_by: KnownBy,
}

/// What of a client certificate an SAE is known by: servers differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KnownBy {
    /// The common name is the SAE ID.
    Name,
    /// This serial number, whatever the common name is.
    Serial(Vec<u8>),
    /// The common name is the SAE ID, and this is the serial number.
    Both(Vec<u8>),
}

/// One `[[link]]`, or one hop of it.
#[derive(Debug, Clone, PartialEq)]
pub struct LinkConfig {
    /// The names of the two KMEs that it joins.
    pub kmes: [String; 2],
    /// Size of a key where a request names none, bits.
    pub key_size: u32,
    /// What the link yields over time.
    pub supply: Supply,
    /// Keys of `key_size` that the store holds at most.
    pub max_keys: u64,
    /// Keys of `key_size` in the store at the start.
    pub initial_keys: u64,
    /// How long a key is on its way to the other KME.
    pub relay_delay: Duration,
    /// Makes the keys reproducible, for tests only; see [`crate::test_key`].
    pub seed: Option<Vec<u8>>,
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the config {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file says something that can't be; all that was found, in the order of the file.
    #[error("{}", .0.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n"))]
    Invalid(Vec<Problem>),
}

/// One thing that is wrong with a config file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file's name.
    pub file: String,
    /// Counted from 1.
    pub line: usize,
    /// Characters, counted from 1.
    pub column: usize,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)
    }
}

impl Config {
    /// Reads and checks `path`; relative paths in it start from its folder.
    ///
    /// # Errors
    /// [`ConfigError::Read`] if it can't be read, [`ConfigError::Invalid`] with all that is wrong in it.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let folder = path.parent().unwrap_or(Path::new("."));
        Self::parse(&text, &path.display().to_string(), folder)
    }

    /// Checks `text`, which is shown as `file` in errors and whose relative paths start from `folder`.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with all that is wrong in it.
    pub fn parse(text: &str, file: &str, folder: &Path) -> Result<Self, ConfigError> {
        let mut check = Check { text, file, folder, problems: Vec::new() };
        let raw: Raw = match toml::from_str(text) {
            Ok(raw) => raw,
            Err(error) => {
                check.problem(error.span().map_or(0, |span| span.start), error.message().replace('\n', " "));
                return Err(ConfigError::Invalid(check.problems));
            }
        };
        let config = check.config(raw);
        if check.problems.is_empty() {
            Ok(config)
        } else {
            check.problems.sort_by_key(|p| (p.line, p.column));
            Err(ConfigError::Invalid(check.problems))
        }
    }
}
