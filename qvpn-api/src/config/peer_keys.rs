//! The public keys of a peer: two while its site changes its key.

use qvpn_identity::PublicIdentity;

use super::model::Peer;

impl Peer {
    /// Its public keys.
    pub fn public_keys(&self) -> impl Iterator<Item = &PublicIdentity> {
        std::iter::once(&self.public_key).chain(&self.second_key)
    }

    /// Whether this is one of its public keys.
    #[must_use]
    pub fn has_key(&self, key: &PublicIdentity) -> bool {
        self.public_keys().any(|own| own == key)
    }

    /// Whether both sections name the same site: they have a public key in common.
    #[must_use]
    pub fn shares_key(&self, other: &Self) -> bool {
        self.public_keys().any(|key| other.has_key(key))
    }
}
