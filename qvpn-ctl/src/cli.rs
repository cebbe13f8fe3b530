//! The commands and their arguments. The help texts here are the ones that users read.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::engine::ArgValueCompleter;
use qvpn_api::control::SOCKET_DIR;

use crate::complete;

/// Where the configs are.
pub(crate) const CONFIG_DIR: &str = "/etc/qvpn";

/// Controls qvpn, the quantum-safe tunnel between sites.
#[derive(Parser)]
#[command(name = "qvpn-ctl", version, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) dirs: Dirs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str =
    "Exit codes: 0 done, 1 failed, 2 usage, 3 config refused, 4 daemon not reachable, 5 KME check failed.";

/// Folders that only tests and unusual installations change.
#[derive(Args)]
pub(crate) struct Dirs {
    /// The folder of the daemons' control sockets.
    #[arg(long, global = true, value_name = "DIR", env = "QVPN_SOCKET_DIR", default_value = SOCKET_DIR, hide = true)]
    pub(crate) socket_dir: PathBuf,
    /// The folder of the configs.
    #[arg(long, global = true, value_name = "DIR", env = "QVPN_CONFIG_DIR", default_value = CONFIG_DIR, hide = true)]
    pub(crate) config_dir: PathBuf,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Makes a secret key and prints it: install -m 0640 -g qvpn /dev/null FILE && qvpn-ctl genkey > FILE.
    Genkey,
    /// Reads a secret key from the input and prints its public key.
    Pubkey,
    /// Makes a pre-shared key and prints it.
    Genpsk,
    /// Reads a public or secret key from the input and prints its fingerprint, to compare over a phone.
    Fingerprint,
    /// Checks a config file, the files that it names, and the other configs beside it.
    Check {
        /// The config, such as /etc/qvpn/qvpn0.toml.
        file: PathBuf,
        /// Looks only at the text: for a config that is meant for another machine.
        #[arg(long)]
        no_files: bool,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Shows interfaces and peers: state, what the key is made of, next rekey, stock, KMEs, drops.
    Show {
        /// One interface; all when absent.
        #[arg(value_parser = interface, add = ArgValueCompleter::new(complete::interfaces))]
        interface: Option<String>,
        /// One peer of it: its name, public key or fingerprint, or the beginning of one.
        #[arg(add = ArgValueCompleter::new(complete::peers))]
        peer: Option<String>,
        /// Shows one line for each peer, and no more.
        #[arg(long, short, conflicts_with = "json")]
        brief: bool,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Makes a new epoch now.
    Rekey {
        /// The interface.
        #[arg(value_parser = interface, add = ArgValueCompleter::new(complete::interfaces))]
        interface: String,
        /// A peer's name, public key or fingerprint, or the beginning of one; all peers when absent.
        #[arg(add = ArgValueCompleter::new(complete::peers))]
        peer: Option<String>,
    },
    /// Reads the config again; if it is refused, nothing changes.
    Reload {
        /// The interface.
        #[arg(value_parser = interface, add = ArgValueCompleter::new(complete::interfaces))]
        interface: String,
    },
    /// Lists, adds, changes and removes peers while the tunnel runs.
    #[command(subcommand)]
    Peer(PeerCommand),
    /// Turns a wg-quick config into one of qvpn, to standard output, and says what has no equivalent.
    Import {
        /// The file, such as /etc/wireguard/wg0.conf.
        file: PathBuf,
        /// What to write for `qkd` of each peer.
        #[arg(long, value_enum, default_value_t = QkdChoice::Required)]
        qkd: QkdChoice,
    },
    /// Looks at this machine and says what keeps a tunnel from working, each with the command that mends it.
    Doctor {
        /// The interface, by its config in /etc/qvpn; all when absent.
        #[arg(value_parser = interface, add = ArgValueCompleter::new(complete::interfaces))]
        interface: Option<String>,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Talks to the KMEs of a config, without a daemon.
    #[command(subcommand)]
    Kms(KmsCommand),
    /// Prints the latest events, one a line.
    Events {
        /// The interface.
        #[arg(value_parser = interface, add = ArgValueCompleter::new(complete::interfaces))]
        interface: String,
        /// Waits for more.
        #[arg(long, short)]
        follow: bool,
        /// Prints one JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Prints all metrics in Prometheus' text format, as for node_exporter's textfile collector.
    Metrics {
        /// The interface.
        #[arg(value_parser = interface, add = ArgValueCompleter::new(complete::interfaces))]
        interface: String,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Shows an interface live: throughput, keys, stock, KMEs.
    Top {
        /// The interface.
        #[arg(value_parser = interface, add = ArgValueCompleter::new(complete::interfaces))]
        interface: String,
    },
    /// Prints the script that lets a shell complete commands, interfaces and peers.
    Completions {
        /// The shell.
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Writes the man pages, from the same texts as this help.
    #[command(hide = true)]
    Man {
        /// Where to.
        dir: PathBuf,
    },
    /// Makes the allowed IPs of a config unreachable, so that nothing leaves in clear while no daemon runs.
    Block {
        /// The config, such as /etc/qvpn/qvpn0.toml.
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        file: Option<PathBuf>,
        /// Every config in /etc/qvpn that doesn't say `on_stop = "open"`.
        #[arg(long)]
        all: bool,
    },
    /// Removes the block, so that traffic may leave in clear.
    Unblock {
        /// One interface, by its config in /etc/qvpn; every block of qvpn when absent.
        #[arg(value_parser = interface, add = ArgValueCompleter::new(complete::interfaces))]
        interface: Option<String>,
    },
}

#[derive(Subcommand)]
pub(crate) enum PeerCommand {
    /// Lists the configured peers.
    List {
        /// The interface.
        #[arg(value_parser = interface, add = ArgValueCompleter::new(complete::interfaces))]
        interface: String,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Adds a peer while the tunnel runs; the others lose no packet.
    Add {
        /// The interface.
        #[arg(value_parser = interface, add = ArgValueCompleter::new(complete::interfaces))]
        interface: String,
        /// The new peer's name.
        name: String,
        #[command(flatten)]
        settings: Box<PeerSettings>,
        /// Writes it into the config, too, and keeps its comments and order.
        #[arg(long)]
        save: bool,
    },
    /// Changes a peer while the tunnel runs.
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
        /// Keys of the config that go, so that their defaults hold.
        #[arg(long, value_name = "KEY,…", value_delimiter = ',')]
        unset: Vec<String>,
        /// Writes it into the config, too, and keeps its comments and order.
        #[arg(long)]
        save: bool,
    },
    /// Removes a peer while the tunnel runs. Its networks then go where this machine's other routes lead, perhaps in clear.
    Remove {
        /// The interface.
        #[arg(value_parser = interface, add = ArgValueCompleter::new(complete::interfaces))]
        interface: String,
        /// The peer's name, public key or fingerprint, or the beginning of one.
        #[arg(add = ArgValueCompleter::new(complete::peers))]
        peer: String,
        /// Takes it out of the config, too.
        #[arg(long)]
        save: bool,
    },
}

/// Shells that can be helped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shell {
    /// source <(qvpn-ctl completions bash)
    Bash,
    /// source <(qvpn-ctl completions zsh)
    Zsh,
    /// qvpn-ctl completions fish | source
    Fish,
}

/// `qkd` of imported peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum QkdChoice {
    /// No QKD key, no traffic.
    Required,
    /// Traffic goes on without.
    Preferred,
    /// No QKD at all.
    Off,
}

impl QkdChoice {
    /// The word of the config.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Required => "required",
            Self::Preferred => "preferred",
            Self::Off => "off",
        }
    }
}

/// What a peer may have; the names are those of the config.
#[derive(Debug, Default, Args)]
pub(crate) struct PeerSettings {
    /// The line that `qvpn-ctl pubkey` prints at the peer.
    #[arg(long, value_name = "KEY")]
    pub(crate) public_key: Option<String>,
    /// Where it is; learned from its packets when absent.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) endpoint: Option<String>,
    /// The networks behind it.
    #[arg(long, value_name = "PREFIX,…", value_delimiter = ',')]
    pub(crate) allowed_ips: Option<Vec<String>>,
    /// Its SAE ID; needed unless qkd is off.
    #[arg(long, value_name = "ID")]
    pub(crate) sae_id: Option<String>,
    /// Names of the KMEs that serve the pair [default: all].
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub(crate) kmes: Option<Vec<String>>,
    /// Whether its keys need QKD [default: required].
    #[arg(long, value_parser = ["required", "preferred", "off"])]
    pub(crate) qkd: Option<String>,
    /// Who proposes keys [default: auto].
    #[arg(long, value_parser = ["auto", "initiator", "responder"])]
    pub(crate) role: Option<String>,
    /// The file of the pre-shared key.
    #[arg(long, value_name = "FILE")]
    pub(crate) preshared_key_file: Option<String>,
    /// How often something is sent at least, such as 25s [default: off].
    #[arg(long, value_name = "TIME")]
    pub(crate) persistent_keepalive: Option<String>,
    /// The AEAD [default: the interface's].
    #[arg(long, value_parser = ["chacha20poly1305", "aes256gcm"])]
    pub(crate) suite: Option<String>,
    /// How often a fresh key is made, 100ms to 120s [default: the interface's].
    #[arg(long, value_name = "TIME")]
    pub(crate) rekey_interval: Option<String>,
}

#[derive(Subcommand)]
pub(crate) enum KmsCommand {
    /// Checks the real KMEs: TCP, TLS, certificates, identity, status, and keys, with each oddity in words.
    ///
    /// For each peer and each of its KMEs up to three keys are taken, and with --other fetched by their IDs at the
    /// other site's KME and compared. A key that is taken is spent: no tunnel will ever use it. --no-take touches no key.
    Check {
        /// The config, such as /etc/qvpn/qvpn0.toml.
        file: PathBuf,
        /// One peer, by its name or public key or the beginning of one; all that use QKD when absent.
        #[arg(long, value_name = "NAME")]
        peer: Option<String>,
        /// The other site's config, to fetch the taken keys there; its KMEs must be reachable from here.
        #[arg(long, value_name = "FILE")]
        other: Option<PathBuf>,
        /// Only looks: takes no key.
        #[arg(long)]
        no_take: bool,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
}

/// A name that is one part of a path, so that it can't lead elsewhere.
fn interface(name: &str) -> Result<String, String> {
    if name.is_empty() || name.len() > 15 || name.contains(['/', '\0']) || name == "." || name == ".." {
        return Err("the name of an interface has 1 to 15 bytes and no slash, such as qvpn0".to_owned());
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_interface_name_leads_nowhere_else() {
        for bad in ["", ".", "..", "a/b", "../x", "sixteen-letters-"] {
            assert!(interface(bad).is_err(), "{bad}");
        }
        assert_eq!(interface("qvpn0"), Ok("qvpn0".to_owned()));
    }
}
