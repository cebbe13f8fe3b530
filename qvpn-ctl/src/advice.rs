//! What to do about a peer that is not up.

use qvpn_api::config::QkdPolicy;
use qvpn_api::status::{InterfaceStatus, KmeState, PeerState, PeerStatus};

/// Returns what to do about a peer that doesn't work.
pub(crate) fn advice(p: &PeerStatus, i: &InterfaceStatus) -> Option<String> {
    let kmes_down = !i.kmes.is_empty() && i.kmes.iter().all(|k| k.state == Some(KmeState::Down));
    let no_stock = p.qkd_stock.is_none_or(|n| n == 0);
    match p.state {
        PeerState::Up if kmes_down && p.qkd_policy != QkdPolicy::Off => Some(
            "no KME of this site answers and only the stock is left: fix the KME, whose error is above"
                .to_owned(),
        ),
        // The reason of a silent peer says what to look at.
        PeerState::Up | PeerState::Silent | PeerState::Disabled | PeerState::Standby => None,
        _ if kmes_down && no_stock && p.qkd_policy != QkdPolicy::Off => {
            Some("fix the KME, whose error is above; the tunnel recovers by itself".to_owned())
        }
        _ if p.control_handshake_ago_s.is_none() && p.endpoint.is_none() => Some(
            "the peer's address is unknown: set `endpoint`, or make sure that the peer has our address \
             and is running"
                .to_owned(),
        ),
        _ if p.control_handshake_ago_s.is_none() => Some(format!(
            "nothing was received from the peer: is it running, is UDP port {} open in both directions, \
             and does it show the fingerprint below?",
            i.listen_port
        )),
        _ => Some(format!(
            "see `qvpn-ctl events {0}` and `journalctl -u qvpn@{0}` here and at the peer",
            i.name
        )),
    }
}
