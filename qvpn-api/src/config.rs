//! The config file `/etc/qvpn/<iface>.toml`: its grammar, read into types that can't hold a wrong value,
//! with all errors of a file at once. Parsing touches no file; [`Config::check_files`] and
//! [`Config::check_other_interfaces`] check what depends on the machine.

mod access;
mod access_check;
mod changes;
mod edit;
mod edit_array;
mod error;
mod fault;
mod files;
mod grammar;
mod include;
mod load;
mod machine;
mod model;
mod other_interfaces;
mod peer_keys;
mod positions;
mod reader;
mod reference;
mod remembered;
mod rules;
pub(crate) mod shared_words;
mod source_map;
mod token;
mod values;

pub use access::{Access, Principal};
pub use changes::{KeyChange, changes, changes_at_restart};
pub use edit::{EditError, PeerEdit, edit_peer, protect};
pub use error::{ConfigError, ConfigErrors, Position};
pub use files::{MAX_SIZE, NamedFile};
pub use include::ConfigFiles;
pub use ipnet::IpNet;
pub use load::{PartialConfig, unconfirmed_path};
pub use model::{
    AuditEpochs, ClientKey, Config, Dialect, Dscp, Endpoint, Interface, Kme, KmeAccess, KmeApi, KmeServer,
    Kms, Local, LogLevel, Mtu, OnStop, Peer, Role, Routes, StreamOptions, Table,
};
pub use qvpn_types::{QkdPolicy, SaeId, Suite};
pub use reference::{KeyHelp, REFERENCE, SectionHelp};
pub use remembered::{STATE_DIR, networks_file, remember_local, remembered_local, state_dir};
pub use token::TokenKey;
