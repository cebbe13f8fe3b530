//! The keys of this site and of its peers: which are accepted, and which peers go on after a reload.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use qvpn_api::events::EventKind;
use qvpn_identity::{PublicIdentity, SecretIdentity};
use qvpn_proto::session::Demux;

use crate::peer_runtime::PeerRuntime;
use crate::settings::PeerSettings;
use crate::state_file::{PeerState, PeerStates};

/// What was stored about each key of a peer.
pub(crate) type Stored = Vec<(PublicIdentity, PeerState)>;

pub(crate) fn stored(peer: &PeerSettings, states: &PeerStates) -> Stored {
    peer.public_keys().filter_map(|key| Some((*key, *states.get(key.x25519())?))).collect()
}

/// Where the peer was last.
pub(crate) fn last_endpoint(stored: &Stored) -> Option<SocketAddr> {
    stored.iter().find_map(|(_, state)| state.endpoint)
}

/// Finds the number of the peer that goes on under each name of the new config. A peer goes on if the keys of
/// its control session and of its epoch are in one section. The same X25519 key with another ML-KEM key is
/// another peer.
pub(crate) fn successors<'s>(
    runtimes: &BTreeMap<u16, PeerRuntime>,
    new: &'s [PeerSettings],
) -> HashMap<&'s str, u16> {
    let sections: HashMap<[u8; 32], &PeerSettings> =
        new.iter().flat_map(|peer| peer.public_keys().map(move |key| (*key.x25519(), peer))).collect();
    let mut found = HashMap::new();
    for (number, runtime) in runtimes {
        let keys = runtime.peer.remotes_in_use();
        let section = keys.first().and_then(|key| sections.get(key.x25519()));
        if let Some(section) = section.filter(|peer| keys.iter().all(|key| peer.config.has_key(key))) {
            // Two peers of before may have become one.
            found.entry(section.config.name.as_str()).or_insert(*number);
        }
    }
    found
}

/// The names of peers that go on under none of their keys in use.
pub(crate) fn losing_their_key(
    runtimes: &BTreeMap<u16, PeerRuntime>,
    by_key: &HashMap<[u8; 32], u16>,
    new: &[PeerSettings],
) -> Vec<String> {
    let stay = successors(runtimes, new);
    let loses = |peer: &&PeerSettings| {
        let known = peer.public_keys().any(|key| by_key.contains_key(key.x25519()));
        known && !stay.contains_key(peer.config.name.as_str())
    };
    new.iter().filter(loses).map(|peer| peer.config.name.clone()).collect()
}

/// Makes `local` our key. A former one is accepted too, until it is erased.
pub(crate) fn accept(demux: &mut Demux, local: &Arc<SecretIdentity>) {
    let former = demux.locals().iter().filter(|former| former.public() != local.public());
    let locals = std::iter::once(local).chain(former).cloned().collect();
    demux.set_locals(locals);
}

/// Erases our former key, if there is one.
pub(crate) fn erase_former(demux: &mut Demux) {
    let [local, _, ..] = demux.locals() else { return };
    let local = local.clone();
    demux.set_locals(vec![local]);
    tracing::info!("the former private key is erased");
}

/// The event of a handshake with a key that no peer has.
pub(crate) fn unknown_key(key: &[u8; 32], from: SocketAddr) -> EventKind {
    let key = data_encoding::BASE64.encode(key);
    let reason = format!(
        "a handshake from {from} with the X25519 key {key}, which is no peer of ours; compare `qvpn-ctl \
         fingerprint` at both sites with public_key in both configs"
    );
    EventKind::IdentityMismatch { peer: None, endpoint: Some(from.to_string()), reason }
}
