//! `audit` and its arguments.

use std::path::PathBuf;
use std::time::SystemTime;

use clap::{Args, Subcommand};
use clap_complete::engine::ArgValueCompleter;

use crate::complete;
use crate::interface_name::interface;
use crate::since::since;

#[derive(Subcommand)]
pub(crate) enum AuditCommand {
    /// Begin the audit log of an interface, and print the key that verifies it. It is printed once: keep it
    /// away from this machine.
    Setup {
        /// The interface [default: the only one].
        #[arg(value_parser = interface, add = ArgValueCompleter::new(complete::interfaces))]
        interface: Option<String>,
    },
    /// Find the first line of the audit log that was changed, removed, inserted or moved.
    Verify {
        /// The interface [default: the only one].
        #[arg(value_parser = interface, add = ArgValueCompleter::new(complete::interfaces))]
        interface: Option<String>,
        /// Verify these files, in any order, instead of this machine's log.
        #[arg(long = "file", value_name = "FILE", conflicts_with = "interface")]
        files: Vec<PathBuf>,
        /// The file with the key that `audit setup` printed; `-` is standard input. Without it only the chain
        /// of hashes is checked, which an attacker can make again.
        #[arg(long, value_name = "FILE")]
        key_file: Option<PathBuf>,
        /// Lines before this number are kept elsewhere.
        #[arg(long, value_name = "N", default_value_t = 0)]
        first: u64,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print the audit log, without verifying it.
    Show {
        /// The interface [default: the only one].
        #[arg(value_parser = interface, add = ArgValueCompleter::new(complete::interfaces))]
        interface: Option<String>,
        /// Print these files instead of this machine's log.
        #[arg(long = "file", value_name = "FILE", conflicts_with = "interface")]
        files: Vec<PathBuf>,
        #[command(flatten)]
        filter: AuditFilter,
        /// Print the lines as they are.
        #[arg(long)]
        json: bool,
    },
}

/// Which lines to print.
#[derive(Debug, Default, Args)]
pub(crate) struct AuditFilter {
    /// Print only lines about this peer, by its whole name.
    #[arg(long, value_name = "PEER", add = ArgValueCompleter::new(complete::peers))]
    pub(crate) peer: Option<String>,
    /// Print only these kinds, such as config.changed, or a group, such as config.
    #[arg(long, value_name = "KIND,…", value_delimiter = ',')]
    pub(crate) kind: Vec<String>,
    /// Print only lines since then: an age such as 90s, 10m, 2h or 1d, or a time such as
    /// 2026-12-01T10:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub(crate) since: Option<SystemTime>,
}
