//! `events`: what happened, one line each, until the daemon or the reader ends.

use std::path::Path;

use qvpn_api::control::{Reply, Request};

use crate::Failure;
use crate::client::{Client, unexpected};
use crate::keys::print;

pub(crate) fn events(dir: &Path, interface: &str, request: &Request, json: bool) -> Result<(), Failure> {
    let mut client = Client::connect(dir, interface)?;
    client.send(request)?;
    loop {
        match client.receive()? {
            Reply::Event(event) if json => {
                print(&serde_json::to_string(&event).map_err(|e| Failure::new(e.to_string()))?)?;
            }
            Reply::Event(event) => print(&event.to_string())?,
            Reply::EventsEnd { missed } => {
                if missed > 0 {
                    eprintln!(
                        "{missed} older events are no longer kept; see `journalctl -u qvpn@{interface}`"
                    );
                }
                return Ok(());
            }
            _ => return Err(unexpected()),
        }
    }
}
