//! The commands and their arguments. The doc comments are the text of `--help` and of the man pages.

mod audit;
mod peer;

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::engine::ArgValueCompleter;
use qvpn_api::control::MAX_CONFIRM_S;

use crate::complete;
use crate::dirs::Dirs;
use crate::interface_name::interface;
use crate::since::since;

pub(crate) use audit::{AuditCommand, AuditFilter};
pub(crate) use peer::{PeerCommand, PeerSettings};

/// Control qvpn, the quantum-safe tunnel between sites.
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

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Generate a secret key and print it: install -m 0640 -g qvpn /dev/null FILE && qvpn-ctl genkey > FILE.
    Genkey,
    /// Read a secret key from standard input and print its public key.
    Pubkey,
    /// Generate a pre-shared key and print it.
    Genpsk,
    /// Read a public or secret key from standard input and print its fingerprint, to compare by phone.
    Fingerprint,
    /// Check a config file, the files that it names, and the other configs in its directory.
    Check {
        /// The config, such as /etc/qvpn/qvpn0.toml.
        file: PathBuf,
        /// Check only the text, for a config of another machine.
        #[arg(long)]
        no_files: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show interfaces and peers: state, key sources, next rekey, stock, KMEs, drops.
    Show {
        /// The interface [default: all].
        #[arg(value_parser = interface, add = ArgValueCompleter::new(complete::interfaces))]
        interface: Option<String>,
        /// One peer: its name, public key or fingerprint, or the beginning of one.
        #[arg(add = ArgValueCompleter::new(complete::peers), conflicts_with = "named")]
        peer: Option<String>,
        #[command(flatten)]
        filter: PeerFilter,
        /// Show only one line for each peer.
        #[arg(long, short, conflicts_with = "json")]
        brief: bool,
        /// Show all details, also of more than 20 peers.
        #[arg(long, conflicts_with_all = ["brief", "json"])]
        all: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Start a new epoch now.
    Rekey {
        /// The interface [default: the only one]. A single argument that is not an interface is a peer.
        #[arg(add = ArgValueCompleter::new(complete::interfaces))]
        interface: Option<String>,
        /// A peer's name, public key or fingerprint, or the beginning of one [default: all peers].
        #[arg(add = ArgValueCompleter::new(complete::peers))]
        peer: Option<String>,
    },
    /// Reload the config; if it is refused, nothing changes.
    Reload {
        /// The interface [default: the only one].
        #[arg(value_parser = interface, add = ArgValueCompleter::new(complete::interfaces))]
        interface: Option<String>,
        /// Change nothing: print each key that would change, with its former and its new value, and what that
        /// does to traffic.
        #[arg(long)]
        dry_run: bool,
        /// Restore the former config after this time, such as 2m, unless `confirm` comes first. A crash, a
        /// restart or a reboot in between also restores it.
        #[arg(long, value_name = "TIME", value_parser = confirm_time, conflicts_with = "dry_run")]
        confirm: Option<Duration>,
    },
    /// Keep the config that `reload --confirm` put in force, and write it to its file.
    Confirm {
        /// The interface [default: the only one].
        #[arg(value_parser = interface, add = ArgValueCompleter::new(complete::interfaces))]
        interface: Option<String>,
        /// Restore the former config at once instead.
        #[arg(long)]
        undo: bool,
    },
    /// Make this gateway of a pair the standby one: all sessions and keys end, nothing is sent, no key is
    /// taken. The device and the block stay, and KMEs are still checked.
    Standby {
        /// The interface [default: the only one].
        #[arg(value_parser = interface, add = ArgValueCompleter::new(complete::interfaces))]
        interface: Option<String>,
    },
    /// Make this gateway of a pair the active one: it calls every peer at once.
    ///
    /// Each time spends up to `stock` QKD keys for each peer, so of more than four in a short time the
    /// further ones wait for a minute each.
    Activate {
        /// The interface [default: the only one].
        #[arg(value_parser = interface, add = ArgValueCompleter::new(complete::interfaces))]
        interface: Option<String>,
    },
    /// Print `active`, `standby` or `waiting`, for scripts that choose between gateways.
    ///
    /// Exit code 4 if the daemon does not answer, 5 if QKD is required and no KME works.
    Ready {
        /// The interface [default: the only one].
        #[arg(value_parser = interface, add = ArgValueCompleter::new(complete::interfaces))]
        interface: Option<String>,
    },
    /// List, add, change and remove peers while the tunnel runs.
    #[command(subcommand)]
    Peer(PeerCommand),
    /// Convert a wg-quick config to a qvpn config on standard output, and name what has no equivalent.
    Import {
        /// The file, such as /etc/wireguard/wg0.conf.
        file: PathBuf,
        /// The value of `qkd` for each peer.
        #[arg(long, value_enum, default_value_t = QkdChoice::Required)]
        qkd: QkdChoice,
    },
    /// Check this machine for what keeps a tunnel from working, and print the command that fixes it.
    Doctor {
        /// The interface; its config is in /etc/qvpn [default: all].
        #[arg(value_parser = interface, add = ArgValueCompleter::new(complete::interfaces))]
        interface: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Talk to the KMEs of a config, without a daemon.
    #[command(subcommand)]
    Kms(KmsCommand),
    /// Print the latest events, one per line.
    Events {
        /// The interface [default: the only one].
        #[arg(value_parser = interface, add = ArgValueCompleter::new(complete::interfaces))]
        interface: Option<String>,
        #[command(flatten)]
        filter: EventFilter,
        /// Wait for later events.
        #[arg(long, short)]
        follow: bool,
        /// Print one JSON object per line.
        #[arg(long)]
        json: bool,
    },
    /// The audit log: who changed what, and what keys were made of, in lines that can't be changed unnoticed.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Print all metrics in Prometheus' text format, for example for node_exporter's textfile collector.
    Metrics {
        /// The interface [default: the only one].
        #[arg(value_parser = interface, add = ArgValueCompleter::new(complete::interfaces))]
        interface: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show an interface live: throughput, keys, stock, KMEs.
    Top {
        /// The interface [default: the only one].
        #[arg(value_parser = interface, add = ArgValueCompleter::new(complete::interfaces))]
        interface: Option<String>,
        #[command(flatten)]
        filter: PeerFilter,
    },
    /// Print the script that makes a shell complete commands, interfaces and peers.
    Completions {
        /// The shell.
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Print the versions of this program and of the running daemons.
    Version {
        /// Also print the process IDs, the control API, the status schema and the directories.
        #[arg(long, short)]
        verbose: bool,
    },
    /// Write the man pages, from the same text as this help.
    Man {
        /// The directory to write to.
        dir: PathBuf,
    },
    /// Make the allowed IPs of a config unreachable, so that nothing leaves in clear while no daemon runs.
    Block {
        /// The config: its file, such as /etc/qvpn/qvpn0.toml, or the name of its interface.
        #[arg(
            value_name = "FILE|IFACE", required_unless_present = "all", conflicts_with = "all",
            add = ArgValueCompleter::new(complete::interfaces)
        )]
        target: Option<String>,
        /// Block every config in /etc/qvpn except those with `on_stop = "open"`.
        #[arg(long)]
        all: bool,
        /// Make a filter that every program may remove; for the removal of the package.
        #[arg(long, hide = true)]
        disown: bool,
    },
    /// Keep the block of all configs in force against changes by other programs.
    Guard {
        /// Stay and watch, as `qvpn-guard.service` does: SIGHUP reads the configs again, SIGTERM ends it. The
        /// block stays when it ends.
        #[arg(long, required = true)]
        watch: bool,
    },
    /// Manage the networks of this site, under `local = "connected"`.
    #[command(subcommand)]
    Local(LocalCommand),
    /// Remove the block, so that traffic can leave in clear.
    ///
    /// Without prefixes, this removes the whole block of an interface or of all interfaces; stop their
    /// daemons first. With prefixes, it releases those that stay blocked although the config no longer has
    /// them; it asks the running daemon or guard to do so.
    Unblock {
        /// The config: its file or the name of its interface [default: every block of qvpn].
        #[arg(value_name = "FILE|IFACE", add = ArgValueCompleter::new(complete::interfaces))]
        target: Option<String>,
        /// The prefixes to release; prefixes inside these are released too.
        #[arg(value_name = "PREFIX")]
        prefixes: Vec<qvpn_net::IpNet>,
    },
}

/// Which peers to show.
#[derive(Debug, Default, Args)]
pub(crate) struct PeerFilter {
    /// Show only peers that are not up.
    #[arg(long)]
    pub(crate) down: bool,
    /// Show only this peer: its name, public key or fingerprint, or the beginning of one.
    #[arg(id = "named", long = "peer", value_name = "PEER", add = ArgValueCompleter::new(complete::peers))]
    pub(crate) peer: Option<String>,
}

/// Which events to print.
#[derive(Debug, Default, Args)]
pub(crate) struct EventFilter {
    /// Print only events of this peer, by its whole name.
    #[arg(long, value_name = "PEER", add = ArgValueCompleter::new(complete::peers))]
    pub(crate) peer: Option<String>,
    /// Print only events of these kinds, such as epoch.failed, or of a group, such as kme.
    #[arg(long, value_name = "KIND,…", value_delimiter = ',')]
    pub(crate) kind: Vec<String>,
    /// Print only events of this level or a higher one.
    #[arg(long, value_enum, default_value_t = EventLevel::Info)]
    pub(crate) level: EventLevel,
    /// Print only events since then: an age such as 90s, 10m, 2h or 1d, or a time such as
    /// 2026-12-01T10:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub(crate) since: Option<SystemTime>,
}

/// The level of an event.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum EventLevel {
    /// All events.
    #[default]
    Info,
    /// Events that need an operator's attention.
    Warn,
}

/// The time to confirm a config.
fn confirm_time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).ok();
    let time = time.filter(|time| (1..=MAX_CONFIRM_S).contains(&time.as_secs()));
    time.ok_or_else(|| "write a time from 1s to 1d, such as 2m".to_owned())
}

/// The supported shells.
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
    /// Without a QKD key there is no traffic.
    Required,
    /// Traffic goes on without QKD.
    Preferred,
    /// No QKD at all.
    Off,
}

impl QkdChoice {
    /// The word in the config.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Required => "required",
            Self::Preferred => "preferred",
            Self::Off => "off",
        }
    }
}

#[derive(Subcommand)]
pub(crate) enum LocalCommand {
    /// Let a network that this host is connected to stay reachable without the tunnel. The choice is
    /// remembered.
    Accept {
        /// The interface; its config is in /etc/qvpn.
        #[arg(value_parser = interface, add = ArgValueCompleter::new(complete::interfaces))]
        interface: String,
        /// The network, such as 10.10.0.0/16.
        prefix: qvpn_net::IpNet,
    },
}

#[derive(Subcommand)]
pub(crate) enum KmsCommand {
    /// Check the real KMEs: TCP, TLS, certificates, identity, status and keys, and name each deviation.
    ///
    /// For each peer and each of its KMEs, up to three keys are taken. With --other they are also fetched
    /// by their IDs from the other site's KME and compared. A key that is taken is spent: no tunnel uses
    /// it. --no-take takes no key.
    Check {
        /// The config, such as /etc/qvpn/qvpn0.toml.
        file: PathBuf,
        /// One peer: its name, public key or fingerprint, or the beginning of one [default: all that use
        /// QKD].
        #[arg(long, value_name = "NAME")]
        peer: Option<String>,
        /// The other site's config, to fetch the taken keys there; its KMEs must be reachable from this
        /// machine.
        #[arg(long, value_name = "FILE")]
        other: Option<PathBuf>,
        /// Take no key.
        #[arg(long)]
        no_take: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
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
    fn a_time_to_confirm_is_bounded() {
        assert_eq!(confirm_time("2m"), Ok(Duration::from_secs(120)));
        assert!(["0s", "200ms", "2d", "soon", "-1s", ""].into_iter().all(|bad| confirm_time(bad).is_err()));
    }
}
