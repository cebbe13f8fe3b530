//! The qvpn command line: keys, checks, and requests to the daemons over their control sockets. It has no
//! state of its own. Plain output is for people, and `--json` is for programs.

mod advice;
mod audit;
mod check;
mod cli;
mod client;
mod commands;
mod complete;
mod config_file;
mod confirm;
mod dirs;
mod doctor;
mod endpoint;
mod error;
mod events;
mod guard;
mod import;
mod interface_name;
mod interface_text;
mod keys;
mod kms_check;
mod local;
mod man_and_completions;
mod metrics;
mod output;
mod peer;
mod reload;
mod render;
mod routes;
mod show;
mod since;
mod table;
mod text;
mod top;
mod unblock;
mod units;
mod version;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use clap_complete::CompleteEnv;
use qvpn_api::control::Request;
use qvpn_api::exit;

use crate::cli::{Cli, Command, KmsCommand, LocalCommand, PeerCommand};
use crate::dirs::Dirs;
use crate::error::CtlError;
use crate::peer::{Apply, PeerChange};

/// Erases freed memory, because keys pass through this program.
#[global_allocator]
static ALLOCATOR: qvpn_secret::ZeroAlloc<std::alloc::System> = qvpn_secret::ZeroAlloc(std::alloc::System);

fn main() -> ExitCode {
    // Answers a shell's request for completions and exits; does nothing in a normal run.
    CompleteEnv::with_factory(Cli::command).complete();
    // A usage error ends here with exit code 2.
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::from(exit::DONE),
        // The reader of our output has closed the pipe, as `head` does.
        Err(CtlError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::from(exit::DONE)
        }
        Err(error) => {
            output::print_error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(cli: Cli) -> Result<(), CtlError> {
    let dirs = cli.dirs;
    match cli.command {
        Command::Genkey => keys::genkey(),
        Command::Pubkey => keys::pubkey(),
        Command::Genpsk => keys::genpsk(),
        Command::Fingerprint => keys::fingerprint(),
        Command::Check { file, no_files, json } => check::check(&file, no_files, json),
        Command::Show { interface, peer, filter, brief, all, json } => {
            let peer = peer.or(filter.peer);
            let (interface, peer, down) = (interface.as_deref(), peer.as_deref(), filter.down);
            let options = show::Options { interface, peer, down, brief, all, json };
            show::show(&dirs.socket_dir, &options)
        }
        Command::Rekey { interface, peer } => {
            let (interface, peer) = dirs.interface_and_peer(interface, peer)?;
            commands::rekey(&dirs.socket_dir, &interface, peer)
        }
        Command::Reload { interface, dry_run, confirm } => {
            let interface = dirs.interface(interface)?;
            match (dry_run, confirm) {
                (true, _) => reload::dry_run(&dirs.socket_dir, &interface),
                (false, Some(within)) => confirm::try_config(&dirs.socket_dir, &interface, within),
                (false, None) => reload::reload(&dirs.socket_dir, &interface),
            }
        }
        Command::Confirm { interface, undo } => {
            let interface = dirs.interface(interface)?;
            match undo {
                true => confirm::undo(&dirs.socket_dir, &interface),
                false => confirm::confirm(&dirs.socket_dir, &interface),
            }
        }
        Command::Standby { interface } => {
            commands::gateway(&dirs.socket_dir, &dirs.interface(interface)?, &Request::Standby)
        }
        Command::Activate { interface } => {
            commands::gateway(&dirs.socket_dir, &dirs.interface(interface)?, &Request::Activate)
        }
        Command::Ready { interface } => commands::ready(&dirs.socket_dir, &dirs.interface(interface)?),
        Command::Peer(command) => run_peer(command, &dirs),
        Command::Import { file, qkd } => import::import(&file, qkd),
        Command::Doctor { interface, json } => doctor::doctor(&dirs, interface.as_deref(), json),
        Command::Kms(KmsCommand::Check { file, peer, other, no_take, json }) => {
            kms_check::check(&kms_check::Options {
                file: &file,
                peer: peer.as_deref(),
                other: other.as_deref(),
                take: !no_take,
                json,
            })
        }
        Command::Audit(command) => audit::run(command, &dirs),
        Command::Events { interface, filter, follow, json } => {
            events::events(&dirs.socket_dir, &dirs.interface(interface)?, &filter, follow, json)
        }
        Command::Version { verbose } => version::version(&dirs, verbose),
        Command::Metrics { interface, json } => {
            metrics::metrics(&dirs.socket_dir, &dirs.interface(interface)?, json)
        }
        Command::Top { interface, filter } => {
            top::top(&dirs.socket_dir, &dirs.interface(interface)?, &filter)
        }
        Command::Completions { shell } => man_and_completions::completions(shell),
        Command::Man { dir } => man_and_completions::man(&dir),
        Command::Block { target, disown, .. } => {
            let file = target.map(|text| unblock::Target::of(&text, &dirs.config_dir));
            routes::block(file.map(|target| target.file).as_deref(), &dirs.config_dir, disown)
        }
        Command::Local(LocalCommand::Accept { interface, prefix }) => {
            local::accept(&dirs, &interface, prefix)
        }
        Command::Guard { .. } => guard::watch(&dirs.config_dir, &dirs.socket_dir),
        Command::Unblock { target, prefixes } => unblock::unblock(&dirs, target.as_deref(), &prefixes),
    }
}

fn run_peer(command: PeerCommand, dirs: &Dirs) -> Result<(), CtlError> {
    let (interface, change, apply) = match command {
        PeerCommand::List { interface, json } => {
            return commands::peer_list(&dirs.socket_dir, &interface, json);
        }
        PeerCommand::Add { interface, name, settings, save } => {
            (interface, PeerChange::Add { name, settings }, Apply { save, unblock: false })
        }
        PeerCommand::Set { interface, peer, settings, unset, save, unblock } => {
            (interface, PeerChange::Set { peer, settings, unset }, Apply { save, unblock })
        }
        PeerCommand::Remove { interface, peer, save, unblock } => {
            (interface, PeerChange::Remove { peer }, Apply { save, unblock })
        }
        PeerCommand::Disable { interface, peer, save } => {
            (interface, PeerChange::Disable { peer }, Apply { save, unblock: false })
        }
        PeerCommand::Enable { interface, peer, save } => {
            (interface, PeerChange::Enable { peer }, Apply { save, unblock: false })
        }
        PeerCommand::Rename { interface, peer, name, save } => {
            (interface, PeerChange::Rename { peer, name }, Apply { save, unblock: false })
        }
    };
    peer::change(dirs, &interface, change, apply)
}
