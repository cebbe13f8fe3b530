//! `show`: asks each daemon for its status and joins the answers. A daemon that can't be asked is named, and the others
//! are shown all the same.

use std::path::Path;

use qvpn_api::control::{Reply, Request};
use qvpn_api::status::Status;

use crate::client::{self, Client};
use crate::error::CtlError;
use crate::output::{self, Paint};
use crate::render;

pub(crate) fn show(dir: &Path, interface: Option<&str>, json: bool) -> Result<(), CtlError> {
    let names = match interface {
        Some(name) => vec![name.to_owned()],
        None => client::running(dir)?,
    };
    if names.is_empty() {
        return Err(CtlError::NoneRunning(dir.to_owned()));
    }
    let mut interfaces = Vec::new();
    let mut failures = Vec::new();
    for name in &names {
        match status(dir, name) {
            Ok(status) => interfaces.extend(status.interfaces),
            Err(error) => failures.push(error),
        }
    }
    let status = Status::new(interfaces);
    // With nothing to show, the failure alone is the answer.
    if !status.interfaces.is_empty() || failures.is_empty() {
        match json {
            true => output::print_json(&status)?,
            false => output::print(&render::status(&status, Paint::for_stdout()))?,
        }
    }
    match failures.len() {
        0 => Ok(()),
        1 => failures.pop().map_or(Ok(()), Err),
        n => {
            failures.iter().for_each(output::complain);
            Err(CtlError::SomeUnreachable(n))
        }
    }
}

fn status(dir: &Path, interface: &str) -> Result<Status, CtlError> {
    let mut client = Client::connect(dir, interface)?;
    match client.ask(&Request::Show)? {
        Reply::Show(status) => Ok(status),
        _ => Err(client.unexpected()),
    }
}
