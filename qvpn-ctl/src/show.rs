//! `show`: asks each daemon for its status and joins the replies. An error of one daemon is printed, and
//! the others are still shown.

use std::path::Path;

use qvpn_api::control::{Reply, Request};
use qvpn_api::lookup;
use qvpn_api::status::{InterfaceStatus, PeerState, PeerStatus, Status};

use crate::client::{self, Client};
use crate::error::CtlError;
use crate::output::{self, Paint};
use crate::render;

pub(crate) struct Options<'a> {
    pub(crate) interface: Option<&'a str>,
    pub(crate) peer: Option<&'a str>,
    /// Whether to show only peers that are not up.
    pub(crate) down: bool,
    pub(crate) brief: bool,
    /// Whether to show all details, even of many peers.
    pub(crate) all: bool,
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
    let mut no_peer = None;
    status.interfaces.retain_mut(|interface| match filter(interface, wanted.down, wanted.peer) {
        Ok(()) => true,
        // Another interface may have the peer.
        Err(error) => {
            no_peer = Some(error);
            false
        }
    });
    if let (Some(error), []) = (no_peer, &status.interfaces[..]) {
        return Err(error);
    }
    if !wanted.json {
        // JSON keeps the config's order.
        status.interfaces.iter_mut().for_each(sort_by_state);
    }
    // If there is nothing to show, the error is the only output.
    if !status.interfaces.is_empty() || failures.is_empty() {
        let paint = Paint::for_stdout();
        match wanted {
            Options { json: true, .. } => output::print_json(&status)?,
            Options { brief: true, .. } => output::print(&render::brief(&status, paint))?,
            _ => output::print(&render::status(&status, paint, wanted.all))?,
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

/// Keeps the peers that are not up, or one peer.
pub(crate) fn filter(
    interface: &mut InterfaceStatus,
    down: bool,
    peer: Option<&str>,
) -> Result<(), CtlError> {
    if let Some(text) = peer {
        let peers = std::mem::take(&mut interface.peers);
        let names = |p: &PeerStatus| (p.name.clone(), p.public_key.clone(), p.fingerprint.clone());
        let found = lookup::find(peers.into_iter(), text, names).map_err(CtlError::NoPeerShown)?;
        interface.peers.push(found);
    }
    if down {
        interface.peers.retain(|peer| peer.state != PeerState::Up && !peer.state.is_set_aside());
    }
    Ok(())
}

/// Sorts peers that need attention first; peers of equal state keep the config's order.
pub(crate) fn sort_by_state(interface: &mut InterfaceStatus) {
    interface.peers.sort_by_key(|peer| match peer.state {
        PeerState::Blocked => 0,
        PeerState::Silent => 1,
        PeerState::Connecting => 2,
        PeerState::Degraded => 3,
        PeerState::Up => 4,
        PeerState::Standby => 5,
        PeerState::Disabled => 6,
    });
}

fn status(dir: &Path, interface: &str) -> Result<Status, CtlError> {
    let mut client = Client::connect(dir, interface)?;
    match client.ask(&Request::Show)? {
        Reply::Show(status) => Ok(status),
        _ => Err(client.unexpected()),
    }
}
