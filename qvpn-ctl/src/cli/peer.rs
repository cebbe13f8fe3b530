//! `peer` and its arguments.

use clap::{Args, Subcommand};
use clap_complete::engine::ArgValueCompleter;

use crate::complete;
use crate::interface_name::interface;

#[derive(Subcommand)]
pub(crate) enum PeerCommand {
    /// List the configured peers.
    List {
        /// The interface.
        #[arg(value_parser = interface, add = ArgValueCompleter::new(complete::interfaces))]
        interface: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Add a peer while the tunnel runs; other peers lose no packets.
    Add {
        /// The interface.
        #[arg(value_parser = interface, add = ArgValueCompleter::new(complete::interfaces))]
        interface: String,
        /// The new peer's name.
        name: String,
        #[command(flatten)]
        settings: Box<PeerSettings>,
        /// Also write the change to the config, and keep its comments and order.
        #[arg(long)]
        save: bool,
    },
    /// Change a peer while the tunnel runs.
    #[command(group = clap::ArgGroup::new("change").required(true).multiple(true).args([
        "public_key", "endpoint", "allowed_ips", "sae_id", "kmes", "qkd", "role", "preshared_key_file",
        "persistent_keepalive", "suite", "rekey_interval", "unset",
    ]))]
    Set {
        /// The interface.
        #[arg(value_parser = interface, add = ArgValueCompleter::new(complete::interfaces))]
        interface: String,
        /// The peer's name, public key or fingerprint, or the beginning of one.
        #[arg(add = ArgValueCompleter::new(complete::peers))]
        peer: String,
        #[command(flatten)]
        settings: Box<PeerSettings>,
        /// Config keys to remove, so that their defaults apply.
        #[arg(long, value_name = "KEY,…", value_delimiter = ',')]
        unset: Vec<String>,
        /// Also write the change to the config, and keep its comments and order. Prefixes that no peer has
        /// any more are added to `protect`.
        #[arg(long)]
        save: bool,
        /// Release the block of prefixes that no peer has any more.
        #[arg(long)]
        unblock: bool,
    },
    /// Remove a peer while the tunnel runs. Its networks stay blocked until you release them (see `unblock`).
    Remove {
        /// The interface.
        #[arg(value_parser = interface, add = ArgValueCompleter::new(complete::interfaces))]
        interface: String,
        /// The peer's name, public key or fingerprint, or the beginning of one.
        #[arg(add = ArgValueCompleter::new(complete::peers))]
        peer: String,
        /// Also remove it from the config, and write its networks to `protect`.
        #[arg(long)]
        save: bool,
        /// Release the block of its networks.
        #[arg(long)]
        unblock: bool,
    },
    /// Stop all traffic with a peer while the tunnel runs. Its networks stay blocked.
    Disable {
        /// The interface.
        #[arg(value_parser = interface, add = ArgValueCompleter::new(complete::interfaces))]
        interface: String,
        /// The peer's name, public key or fingerprint, or the beginning of one.
        #[arg(add = ArgValueCompleter::new(complete::peers))]
        peer: String,
        /// Also write it to the config.
        #[arg(long)]
        save: bool,
    },
    /// Enable a disabled peer again.
    Enable {
        /// The interface.
        #[arg(value_parser = interface, add = ArgValueCompleter::new(complete::interfaces))]
        interface: String,
        /// The peer's name, public key or fingerprint, or the beginning of one.
        #[arg(add = ArgValueCompleter::new(complete::peers))]
        peer: String,
        /// Also write it to the config.
        #[arg(long)]
        save: bool,
    },
    /// Give a peer another name while the tunnel runs. Its keys and traffic continue.
    Rename {
        /// The interface.
        #[arg(value_parser = interface, add = ArgValueCompleter::new(complete::interfaces))]
        interface: String,
        /// The peer's name, public key or fingerprint, or the beginning of one.
        #[arg(add = ArgValueCompleter::new(complete::peers))]
        peer: String,
        /// The new name.
        name: String,
        /// Also write it to the config.
        #[arg(long)]
        save: bool,
    },
}

/// The settings of a peer, with the names of the config.
#[derive(Debug, Default, Args)]
pub(crate) struct PeerSettings {
    /// The line that `qvpn-ctl pubkey` prints at the peer. Two while it changes its key.
    #[arg(long, value_name = "KEY,…", value_delimiter = ',')]
    pub(crate) public_key: Option<Vec<String>>,
    /// Its endpoint [default: learned from its packets].
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) endpoint: Option<String>,
    /// The networks behind it.
    #[arg(long, value_name = "PREFIX,…", value_delimiter = ',')]
    pub(crate) allowed_ips: Option<Vec<String>>,
    /// Its SAE ID; required unless qkd is off.
    #[arg(long, value_name = "ID")]
    pub(crate) sae_id: Option<String>,
    /// Names of the KMEs that serve the pair [default: all].
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub(crate) kmes: Option<Vec<String>>,
    /// Whether its keys need QKD [default: required].
    #[arg(long, value_parser = ["required", "preferred", "off"])]
    pub(crate) qkd: Option<String>,
    /// Which site proposes keys [default: auto].
    #[arg(long, value_parser = ["auto", "initiator", "responder"])]
    pub(crate) role: Option<String>,
    /// The file of the pre-shared key.
    #[arg(long, value_name = "FILE")]
    pub(crate) preshared_key_file: Option<String>,
    /// The longest time without sending anything, such as 25s [default: off].
    #[arg(long, value_name = "TIME")]
    pub(crate) persistent_keepalive: Option<String>,
    /// The AEAD [default: the interface's].
    #[arg(long, value_parser = ["chacha20poly1305", "aes256gcm"])]
    pub(crate) suite: Option<String>,
    /// How often a new key is made, 100ms to 120s [default: the interface's].
    #[arg(long, value_name = "TIME")]
    pub(crate) rekey_interval: Option<String>,
}
