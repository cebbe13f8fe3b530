//! `check`: all that is wrong with a config, before a daemon refuses it.

use std::path::Path;

use qvpn_api::{Config, ConfigErrors};
use serde::Serialize;

use crate::error::CtlError;
use crate::output;
use crate::units::count;

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

fn on_this_machine(config: &Config) -> Result<(), ConfigErrors> {
    match (config.check_files(), config.check_neighbours(&config.neighbours())) {
        (Ok(()), Ok(())) => Ok(()),
        (Err(errors), Ok(())) | (Ok(()), Err(errors)) => Err(errors),
        (Err(files), Err(neighbours)) => Err(files.and(neighbours)),
    }
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
