//! A table by [`PeerNumber`]. Peer numbers are small, so the table is an array, and a look-up takes one step
//! for any number of peers.

use qvpn_types::PeerNumber;

pub(super) struct PeerTable<P>(Vec<Option<P>>);

impl<P> Default for PeerTable<P> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<P> PeerTable<P> {
    pub(super) fn get(&self, peer: PeerNumber) -> Option<&P> {
        self.0.get(usize::from(peer.0))?.as_ref()
    }

    pub(super) fn get_mut(&mut self, peer: PeerNumber) -> Option<&mut P> {
        self.0.get_mut(usize::from(peer.0))?.as_mut()
    }

    /// Inserts a peer and replaces an existing one.
    pub(super) fn insert(&mut self, peer: PeerNumber, value: P) {
        let place = usize::from(peer.0);
        if self.0.len() <= place {
            self.0.resize_with(place + 1, || None);
        }
        self.0[place] = Some(value);
    }

    pub(super) fn remove(&mut self, peer: PeerNumber) {
        if let Some(place) = self.0.get_mut(usize::from(peer.0)) {
            *place = None;
        }
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (PeerNumber, &mut P)> {
        (0..=u16::MAX).map(PeerNumber).zip(&mut self.0).filter_map(|(peer, p)| p.as_mut().map(|p| (peer, p)))
    }
}
