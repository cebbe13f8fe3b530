//! `check`: all that is wrong with a config, before a daemon refuses it.

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
const DAEMON: &str = "qvpn";

/// The JSON form.
#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    file: String,
    ok: bool,
    errors: Vec<Error<'a>>,
    left_out: usize,
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
    if json {
        output::print_json(&report(file, result.as_ref().err()))?;
    }
    let config = result?;
    if json {
        return Ok(());
    }
    let kmes = config.kms.as_ref().map_or(0, |k| k.kmes.len());
    let (peers, kmes) = (size(config.peers.len(), "peer"), size(kmes, "KME"));
    output::print(&format!(
        "{}: fine: interface {}, {peers}, {kmes}\n",
        file.display(),
        config.interface.name
    ))
}

/// All that is wrong with a config on this machine: its files, who can read them, and the other configs beside it.
///
/// # Errors
/// All of that at once.
pub(crate) fn on_this_machine(config: &Config) -> Result<(), ConfigErrors> {
    let looked = [config.check_files(), readable(config), config.check_neighbours(&config.neighbours())];
    looked.into_iter().filter_map(Result::err).reduce(ConfigErrors::and).map_or(Ok(()), Err)
}

/// The user that daemons run as, where there is one and we are root, who may do what that user may not.
pub(crate) fn daemon_user() -> Option<User> {
    User::from_name(DAEMON).ok().flatten().filter(|_| Uid::effective().is_root())
}

/// Root reads everything, and the daemon doesn't: what root checks is looked at as the daemon's user, too.
fn readable(config: &Config) -> Result<(), ConfigErrors> {
    let Some(user) = daemon_user() else { return Ok(()) };
    let named = config.named_files().map(|file| file.path).chain([&config.path]);
    // What isn't there is told by itself, and what is another user's is meant for a daemon of that user.
    let of_root = |path: &&PathBuf| path.metadata().is_ok_and(|meta| meta.uid() == 0);
    let real: BTreeMap<PathBuf, &Path> =
        named.filter(of_root).filter_map(|path| Some((path.canonicalize().ok()?, path.as_path()))).collect();
    // The system's own answer, since it knows of access lists and of the folders above.
    let ask = "for file; do [ -r \"$file\" ] || printf '%s\\0' \"$file\"; done";
    let asked = Command::new("/bin/sh")
        .args(["-c", ask, "sh"])
        .args(real.keys())
        .env_clear()
        .uid(user.uid.as_raw())
        .gid(user.gid.as_raw())
        .output();
    // In a namespace that has root alone the daemon stays root.
    let Ok(output) = asked else { return Ok(()) };
    let shut: BTreeSet<&Path> = output
        .stdout
        .split(|byte| *byte == 0)
        .filter_map(|path| real.get(Path::new(OsStr::from_bytes(path))).copied())
        .collect();
    config.check_readable(|path| !shut.contains(path))
}

fn report<'a>(file: &Path, errors: Option<&'a ConfigErrors>) -> Report<'a> {
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
    }
}

fn size(n: usize, thing: &str) -> String {
    count(u64::try_from(n).unwrap_or(u64::MAX), thing)
}
