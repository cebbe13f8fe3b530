//! A table by [`PeerId`], which is small and so an index: a look-up is one step, however many peers there are.

use crate::key::{MAX_PEERS, PeerId};

pub(super) struct Peers<P>(Vec<Option<P>>);

impl<P> Default for Peers<P> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<P> Peers<P> {
    fn place(peer: PeerId) -> usize {
        usize::try_from(peer.0).unwrap_or(usize::MAX)
    }

    pub(super) fn get(&self, peer: PeerId) -> Option<&P> {
        self.0.get(Self::place(peer))?.as_ref()
    }

    pub(super) fn get_mut(&mut self, peer: PeerId) -> Option<&mut P> {
        self.0.get_mut(Self::place(peer))?.as_mut()
    }

    /// Puts a peer in place of the one before; a number that is too large is not taken.
    pub(super) fn insert(&mut self, peer: PeerId, value: P) {
        if peer.0 >= MAX_PEERS {
            return;
        }
        let place = Self::place(peer);
        if self.0.len() <= place {
            self.0.resize_with(place + 1, || None);
        }
        self.0[place] = Some(value);
    }

    pub(super) fn remove(&mut self, peer: PeerId) {
        if let Some(place) = self.0.get_mut(Self::place(peer)) {
            *place = None;
        }
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (PeerId, &mut P)> {
        (0u32..).map(PeerId).zip(&mut self.0).filter_map(|(peer, p)| p.as_mut().map(|p| (peer, p)))
    }
}
