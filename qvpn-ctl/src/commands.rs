//! Commands that send one request to one daemon: `rekey`, `standby`, `activate`, `ready` and `peer list`.

use std::path::Path;

use qvpn_api::config::QkdPolicy;
use qvpn_api::control::{PeerSummary, Reply, Request};
use qvpn_api::status::{GatewayStatus, KmeState, KmeStatus, PeerState};
use serde::Serialize;

use crate::client::Client;
use crate::error::CtlError;
use crate::output::{self, Paint, Tone, clean};
use crate::table::Table;
use crate::units::duration;

pub(crate) fn rekey(dir: &Path, interface: &str, peer: Option<String>) -> Result<(), CtlError> {
    let mut client = Client::connect(dir, interface)?;
    match client.ask(&Request::Rekey { peer })? {
        Reply::Rekey { peers } if peers.is_empty() => output::print("there is no peer to rekey with\n"),
        Reply::Rekey { peers } => {
            output::print(&peers.iter().map(|p| format!("rekey began: {}\n", clean(p))).collect::<String>())
        }
        _ => Err(client.unexpected()),
    }
}

/// Leaves or enters standby.
pub(crate) fn gateway(dir: &Path, interface: &str, request: &Request) -> Result<(), CtlError> {
    let mut client = Client::connect(dir, interface)?;
    match client.ask(request)? {
        Reply::Gateway(GatewayStatus { active_in_s: Some(wait), .. }) => output::print(&format!(
            "{interface}: waiting; too many takeovers in a short time, active in {}\n",
            duration(wait)
        )),
        Reply::Gateway(gateway) => output::print(&format!("{interface}: {}\n", clean(&gateway.state))),
        _ => Err(client.unexpected()),
    }
}

/// Prints the state, and fails if this gateway has no KME that works and needs one.
pub(crate) fn ready(dir: &Path, interface: &str) -> Result<(), CtlError> {
    let mut client = Client::connect(dir, interface)?;
    let Reply::Show(status) = client.ask(&Request::Show)? else { return Err(client.unexpected()) };
    let Some(status) = status.interfaces.first() else { return Err(client.unexpected()) };
    // Only this version's daemon knows it.
    let state = status.gateway.as_ref().map_or("active", |gateway| gateway.state.as_str());
    output::print(&format!("{}\n", clean(state)))?;
    let need = status
        .peers
        .iter()
        .any(|peer| peer.qkd_policy == QkdPolicy::Required && peer.state != PeerState::Disabled);
    let works = |kme: &KmeStatus| kme.state != Some(KmeState::Down);
    match need && !status.kmes.iter().any(works) {
        true => Err(CtlError::NoKmeWorks(interface.to_owned())),
        false => Ok(()),
    }
}

pub(crate) fn peer_list(dir: &Path, interface: &str, json: bool) -> Result<(), CtlError> {
    /// The JSON form.
    #[derive(Serialize)]
    struct List<'a> {
        schema: u32,
        interface: &'a str,
        peers: &'a [PeerSummary],
    }
    let mut client = Client::connect(dir, interface)?;
    let Reply::Peers(peers) = client.ask(&Request::Peers)? else { return Err(client.unexpected()) };
    match json {
        true => output::print_json(&List { schema: 1, interface, peers: &peers }),
        false => output::print(&table(&peers, Paint::for_stdout())),
    }
}

fn table(peers: &[PeerSummary], paint: Paint) -> String {
    let rows = peers.iter().map(|p| {
        let allowed = if p.allowed_ips.is_empty() { "(none)".to_owned() } else { p.allowed_ips.join(", ") };
        [
            clean(&p.name),
            clean(&p.fingerprint),
            clean(p.endpoint.as_deref().unwrap_or("(learned)")),
            p.qkd.name().to_owned(),
            p.role.to_string(),
            clean(&allowed),
        ]
        .into_iter()
        .map(|cell| (cell, Tone::Plain))
        .collect()
    });
    let head = ["NAME", "FINGERPRINT", "ENDPOINT", "QKD", "ROLE", "ALLOWED IPS"];
    Table { head: &head, rows: rows.collect() }.render(paint)
}
