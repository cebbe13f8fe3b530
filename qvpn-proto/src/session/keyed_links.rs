//! The links with one peer: one for each pair of a key of ours and a key of the peer. A site has two keys for
//! a while when it changes its key. One link is in use; the others wait for a session that brings them into
//! use.
//!
//! The site that changes its key decides: it calls with the new key, and sends in the first session that this
//! gives. It then erases the former key. The other site follows the packets that arrive.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use qvpn_identity::{PublicIdentity, SecretIdentity};
use qvpn_types::PeerNumber;

use super::control_link::{ControlLink, LinkKeys, LinkOutput, WireGuardLink};
use super::demux::slot_of_control_index;
use super::initiation::{Tai64n, claimed_key};

/// One link and its keys.
struct Keyed {
    slot: u8,
    keys: LinkKeys,
    link: WireGuardLink,
    /// Added to the numbers of its sessions, so that they are higher than those of all links before it.
    sessions_before: u64,
}

/// All links with one peer.
pub struct KeyedLinks {
    number: PeerNumber,
    /// Our key by the config. A link with another one holds a former key.
    local: Arc<SecretIdentity>,
    in_use: Keyed,
    others: Vec<Keyed>,
    next_slot: u8,
    /// The highest number of a session that was in use.
    newest: u64,
}

impl KeyedLinks {
    /// Creates a link for each key of the peer. The first one is in use until a session says otherwise.
    #[must_use]
    pub fn new(
        local: Arc<SecretIdentity>,
        remote: PublicIdentity,
        other_remote: Option<PublicIdentity>,
        number: PeerNumber,
    ) -> Self {
        let in_use = keyed(LinkKeys { local: local.clone(), remote }, number, 0);
        let mut links = Self { number, local, in_use, others: Vec::new(), next_slot: 1, newest: 0 };
        if let Some(other) = other_remote {
            links.add(LinkKeys { local: links.local.clone(), remote: other });
        }
        links
    }

    /// Sets the greatest time in an initiation of this key of the peer, from before a restart.
    pub fn set_greatest_initiation(&mut self, remote: &PublicIdentity, greatest: Option<Tai64n>) {
        for keyed in std::iter::once(&mut self.in_use).chain(&mut self.others) {
            if keyed.keys.remote == *remote {
                keyed.link.set_greatest_initiation(greatest);
            }
        }
    }

    fn add(&mut self, keys: LinkKeys) {
        let used = |slot| self.in_use.slot == slot || self.others.iter().any(|other| other.slot == slot);
        let mut slot = self.next_slot;
        while used(slot) {
            slot = slot.wrapping_add(1);
        }
        self.next_slot = slot.wrapping_add(1);
        self.others.push(keyed(keys, self.number, slot));
    }

    fn is_former(&self, keyed: &Keyed) -> bool {
        keyed.keys.local.public() != self.local.public()
    }

    /// Finds a link that is not in use: that of an initiation's keys, or of the receiver index.
    fn other_of(&self, datagram: &[u8]) -> Option<usize> {
        let index_at = match datagram.first()? {
            1 => return self.other_of_initiation(datagram),
            2 => 8,
            _ => 4,
        };
        let index = u32::from_le_bytes(*datagram.get(index_at..)?.first_chunk()?);
        self.others.iter().position(|other| other.slot == slot_of_control_index(index))
    }

    fn other_of_initiation(&self, datagram: &[u8]) -> Option<usize> {
        let locals = [&self.local, &self.in_use.keys.local];
        let distinct = if self.is_former(&self.in_use) { 2 } else { 1 };
        let (local, claimed) = locals[..distinct]
            .iter()
            .find_map(|local| claimed_key(datagram, local).map(|claimed| (*local, claimed)))?;
        self.others.iter().position(|other| {
            other.keys.local.public() == local.public() && *other.keys.remote.x25519() == claimed
        })
    }

    /// Whether a session of another link comes into use.
    fn replaces(&self, at: usize, is_data: bool, output: &LinkOutput) -> bool {
        let other = &self.others[at];
        // Once the peer has answered our new key, the former one stays unused.
        if !output.authenticated || (self.is_former(other) && !self.is_former(&self.in_use)) {
            return false;
        }
        let down = self.in_use.link.session_age().is_none();
        let leads = self.is_former(&self.in_use) && !self.is_former(other);
        // The link that was in use before has no sessions, so a packet of another one is never a late one.
        is_data || (output.new_session && (down || leads))
    }

    /// Brings another link into use. The one that was is reset, or erased with our former key.
    fn switch(&mut self, at: usize) {
        let mut next = self.others.swap_remove(at);
        next.sessions_before = self.newest;
        let mut former = std::mem::replace(&mut self.in_use, next);
        former.link.reset();
        self.others.push(former);
        if !self.is_former(&self.in_use) {
            self.erase_former();
        }
    }

    /// Numbers the session of an output among those of all links.
    fn numbered(&mut self, output: LinkOutput) -> LinkOutput {
        let session = self.in_use.sessions_before + output.session;
        self.newest = self.newest.max(session);
        LinkOutput { session, ..output }
    }

    fn erase_former(&mut self) {
        let current = self.local.public();
        self.others.retain(|other| other.keys.local.public() == current);
    }
}

fn keyed(keys: LinkKeys, number: PeerNumber, slot: u8) -> Keyed {
    let link = WireGuardLink::with_slot(keys.local.clone(), &keys.remote, number, slot);
    Keyed { slot, keys, link, sessions_before: 0 }
}

impl ControlLink for KeyedLinks {
    fn receive(&mut self, from: IpAddr, datagram: &[u8]) -> LinkOutput {
        let other = if self.others.is_empty() { None } else { self.other_of(datagram) };
        let Some(at) = other else {
            let output = self.in_use.link.receive(from, datagram);
            return self.numbered(output);
        };
        let output = self.others[at].link.receive(from, datagram);
        if self.replaces(at, datagram.first() == Some(&4), &output) {
            self.switch(at);
            return LinkOutput { switched: true, new_session: true, ..self.numbered(output) };
        }
        let down = self.in_use.link.session_age().is_none();
        // The peer sends its messages again in the session in use.
        LinkOutput {
            packets: Vec::new(),
            new_session: false,
            answered: false,
            stale_start: output.stale_start && down,
            displacing_start: output.displacing_start && down,
            ..output
        }
    }

    fn send(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        self.in_use.link.send(packet)
    }

    fn start(&mut self) -> Option<Vec<u8>> {
        self.in_use.link.start()
    }

    fn tick(&mut self) -> LinkOutput {
        let mut output = self.in_use.link.tick();
        for other in &mut self.others {
            output.datagrams.extend(other.link.tick().datagrams);
        }
        output
    }

    fn session_age(&self) -> Option<Duration> {
        self.in_use.link.session_age()
    }

    fn reset(&mut self) {
        self.in_use.link.reset();
        self.others.iter_mut().for_each(|other| other.link.reset());
    }

    fn greatest_initiations(&self) -> Vec<([u8; 32], Option<Tai64n>)> {
        let current = self.local.public();
        let links = std::iter::once(&self.in_use).chain(&self.others);
        let of_current = links.filter(|keyed| keyed.keys.local.public() == current);
        of_current.flat_map(|keyed| keyed.link.greatest_initiations()).collect()
    }

    fn set_keys(&mut self, local: &Arc<SecretIdentity>, remotes: &[PublicIdentity]) {
        self.local = local.clone();
        let in_use = self.in_use.keys.clone();
        let mut pairs = Vec::new();
        for remote in remotes {
            for local in [local, &in_use.local] {
                let same = |keys: &LinkKeys| keys.local.public() == local.public() && keys.remote == *remote;
                if !same(&in_use) && !pairs.iter().any(same) {
                    pairs.push(LinkKeys { local: local.clone(), remote: *remote });
                }
            }
        }
        let same = |a: &LinkKeys, b: &LinkKeys| a.local.public() == b.local.public() && a.remote == b.remote;
        self.others.retain(|other| pairs.iter().any(|keys| same(keys, &other.keys)));
        for keys in pairs {
            if !self.others.iter().any(|other| same(&keys, &other.keys)) {
                self.add(keys);
            }
        }
        if !remotes.contains(&in_use.remote) && !self.others.is_empty() {
            self.in_use = self.others.remove(0);
        }
    }

    fn keys(&self) -> Option<LinkKeys> {
        Some(self.in_use.keys.clone())
    }

    fn start_others(&mut self) -> Vec<Vec<u8>> {
        let current = self.local.public();
        let others = self.others.iter_mut().filter(|other| other.keys.local.public() == current);
        others.filter_map(|other| other.link.start()).collect()
    }

    fn holds_former_key(&self) -> bool {
        self.is_former(&self.in_use) || self.others.iter().any(|other| self.is_former(other))
    }

    fn drop_former_key(&mut self) {
        let remote = self.in_use.keys.remote;
        let current = self.local.public();
        let successor = self
            .others
            .iter()
            .position(|other| other.keys.local.public() == current && other.keys.remote == remote);
        if let (true, Some(at)) = (self.is_former(&self.in_use), successor) {
            self.switch(at);
        }
        self.erase_former();
    }
}

#[cfg(test)]
mod tests;
