//! `check`: finds all faults of a config before a daemon refuses it.

mod network;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{Uid, User};
use qvpn_api::{Config, ConfigErrors};
use serde::Serialize;

use crate::error::CtlError;
use crate::output;
use crate::units::count;

/// The user that daemons run as.
const DAEMON_USER: &str = "qvpn";

/// The JSON form; `docs/schemas/check.json` describes it.
#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    file: String,
    ok: bool,
    errors: Vec<Error<'a>>,
    left_out: usize,
    warnings: &'a [String],
}

#[derive(Serialize)]
struct Error<'a> {
    line: Option<usize>,
    column: Option<usize>,
    what: &'a str,
    fix: &'a str,
}

pub(crate) fn check(file: &Path, no_files: bool, json: bool) -> Result<(), CtlError> {
    let result = Config::load(file).and_then(|config| match no_files {
        true => Ok(config),
        false => on_this_machine(&config).map(|()| config),
    });
    let warnings = match &result {
        Ok(config) if !no_files => network::warnings(config),
        _ => Vec::new(),
    };
    if json {
        output::print_json(&report(file, result.as_ref().err(), &warnings))?;
    }
    let config = result?;
    if json {
        return Ok(());
    }
    let kmes = config.kms.as_ref().map_or(0, |k| k.kmes.len());
    let (peers, kmes) = (size(config.peers.len(), "peer"), size(kmes, "KME"));
    for warning in &warnings {
        output::note(&format!("{}: warning: {warning}", file.display()));
    }
    output::print(&format!(
        "{}: fine: interface {}, {peers}, {kmes}\n",
        file.display(),
        config.interface.name
    ))
}

/// Checks a config on this machine: its files, who can read them, the other configs in its directory, names
/// that resolve into allowed IPs, and networks of this host that it would block.
///
/// # Errors
/// All faults at once.
pub(crate) fn on_this_machine(config: &Config) -> Result<(), ConfigErrors> {
    let results = [
        config.check_files(),
        config.check_access(),
        readable(config),
        config.check_other_interfaces(&config.other_interfaces()),
        network::names(config),
        network::connected(config),
    ];
    results.into_iter().filter_map(Result::err).reduce(ConfigErrors::and).map_or(Ok(()), Err)
}

/// Returns the user that daemons run as, if it exists and we are root, since root can read files that this
/// user can't.
pub(crate) fn daemon_user() -> Option<User> {
    User::from_name(DAEMON_USER).ok().flatten().filter(|_| Uid::effective().is_root())
}

/// Root can read every file and the daemon can't, so as root we also check as the daemon's user.
fn readable(config: &Config) -> Result<(), ConfigErrors> {
    let Some(user) = daemon_user() else { return Ok(()) };
    let named = config.named_files().map(|file| file.path).chain([&config.path]);
    // A missing file has its own error, and a file of another user is for a daemon of that user.
    let of_root = |path: &&PathBuf| path.metadata().is_ok_and(|meta| meta.uid() == 0);
    let real: BTreeMap<PathBuf, &Path> =
        named.filter(of_root).filter_map(|path| Some((path.canonicalize().ok()?, path.as_path()))).collect();
    // A shell as that user asks the kernel, which respects access lists and the directories above.
    let ask = "for file; do [ -r \"$file\" ] || printf '%s\\0' \"$file\"; done";
    let result = Command::new("/bin/sh")
        .args(["-c", ask, "sh"])
        .args(real.keys())
        .env_clear()
        .uid(user.uid.as_raw())
        .gid(user.gid.as_raw())
        .output();
    // In a user namespace that has only root, the daemon stays root.
    let Ok(output) = result else { return Ok(()) };
    let unreadable: BTreeSet<&Path> = output
        .stdout
        .split(|byte| *byte == 0)
        .filter_map(|path| real.get(Path::new(OsStr::from_bytes(path))).copied())
        .collect();
    config.check_readable(|path| !unreadable.contains(path))
}

/// Returns the warnings that the doctor shows.
pub(crate) fn warnings(config: &Config) -> Vec<String> {
    network::warnings(config)
}

fn report<'a>(file: &Path, errors: Option<&'a ConfigErrors>, warnings: &'a [String]) -> Report<'a> {
    let list = errors.map_or(&[][..], ConfigErrors::list);
    Report {
        schema: 1,
        file: file.display().to_string(),
        ok: list.is_empty(),
        errors: list
            .iter()
            .map(|e| Error {
                line: e.position.map(|p| p.line),
                column: e.position.map(|p| p.column),
                what: &e.what,
                fix: &e.fix,
            })
            .collect(),
        left_out: errors.map_or(0, ConfigErrors::left_out),
        warnings,
    }
}

fn size(n: usize, thing: &str) -> String {
    count(u64::try_from(n).unwrap_or(u64::MAX), thing)
}
