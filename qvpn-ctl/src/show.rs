//! `show`: asks each daemon for its status and joins the replies. An error of one daemon is printed, and
//! the others are still shown.

use std::path::Path;

use qvpn_api::control::{Reply, Request};
use qvpn_api::lookup;
use qvpn_api::status::{PeerStatus, Status};

use crate::client::{self, Client};
use crate::error::CtlError;
use crate::output::{self, Paint};
use crate::render;

pub(crate) struct Options<'a> {
    pub(crate) interface: Option<&'a str>,
    pub(crate) peer: Option<&'a str>,
    pub(crate) brief: bool,
    pub(crate) json: bool,
}

pub(crate) fn show(dir: &Path, wanted: &Options<'_>) -> Result<(), CtlError> {
    let names = match wanted.interface {
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
    let mut status = Status::new(interfaces);
    if let Some(peer) = wanted.peer {
        narrow(&mut status, peer)?;
    }
    // If there is nothing to show, the error is the only output.
    if !status.interfaces.is_empty() || failures.is_empty() {
        let paint = Paint::for_stdout();
        match wanted {
            Options { json: true, .. } => output::print_json(&status)?,
            Options { brief: true, .. } => output::print(&render::brief(&status, paint))?,
            _ => output::print(&render::status(&status, paint))?,
        }
    }
    match failures.len() {
        0 => Ok(()),
        1 => failures.pop().map_or(Ok(()), Err),
        n => {
            failures.iter().for_each(output::print_error);
            Err(CtlError::SomeUnreachable(n))
        }
    }
}

/// Keeps only one peer.
fn narrow(status: &mut Status, text: &str) -> Result<(), CtlError> {
    for interface in &mut status.interfaces {
        let peers = std::mem::take(&mut interface.peers);
        let names = |p: &PeerStatus| (p.name.clone(), p.public_key.clone(), p.fingerprint.clone());
        let found = lookup::find(peers.into_iter(), text, names).map_err(CtlError::NoPeerShown)?;
        interface.peers.push(found);
    }
    Ok(())
}

fn status(dir: &Path, interface: &str) -> Result<Status, CtlError> {
    let mut client = Client::connect(dir, interface)?;
    match client.ask(&Request::Show)? {
        Reply::Show(status) => Ok(status),
        _ => Err(client.unexpected()),
    }
}
