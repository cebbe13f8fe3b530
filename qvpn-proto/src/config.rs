//! The configuration of a peer: identities, policy, interval. The caller checks the values first.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use qvpn_identity::{Psk, PublicIdentity, SecretIdentity};
use qvpn_types::{PeerNumber, QkdPolicy, Role, SaeId, Suite};

use crate::epoch::Parties;
use crate::session::LinkKeys;

/// Returns our role as it follows from the two X25519 public keys: the smaller one, compared byte by byte,
/// initiates.
#[must_use]
pub fn role_by_keys(local: &PublicIdentity, remote: &PublicIdentity) -> Role {
    if local.x25519() < remote.x25519() { Role::Initiator } else { Role::Responder }
}

/// The configuration of a peer.
#[derive(Clone)]
pub struct PeerConfig {
    pub local: Arc<SecretIdentity>,
    pub remote: PublicIdentity,
    /// Another public key of the peer, while its site changes its key.
    pub other_remote: Option<PublicIdentity>,
    /// Our role towards it.
    pub role: Role,
    /// Whether the role follows from the keys in use, by [`role_by_keys()`]: `role = "auto"`.
    pub role_by_keys: bool,
    pub suite: Suite,
    /// The interval between epochs, 100 ms to 120 s. The smaller value of both sides is used.
    pub rekey_interval: Duration,
    /// The shortest interval that we agree to, 100 ms to 120 s. The larger value of both sides is used.
    pub min_rekey_interval: Duration,
    /// The number of our lanes, 1 to 16. The smaller number of both sides is used.
    pub lanes: u8,
    /// The policy for epochs without a QKD key. The stricter one of both sides is used.
    pub policy: QkdPolicy,
    /// Whether any of our key sources is QKD. Without one, a peer that requires QKD stays blocked, and its
    /// status says so.
    pub qkd_source: bool,
    /// Our SAE ID; `None` without a KMS.
    pub sae_local: Option<SaeId>,
    /// The peer's SAE ID as our config names it; `None` if QKD is off.
    pub sae_remote: Option<SaeId>,
    /// A pre-shared key that is mixed into each epoch.
    pub psk: Option<Arc<Psk>>,
    /// The number of QKD keys to hold ahead, 1 to [`MAX_OFFER`](crate::wire::limits::MAX_OFFER).
    pub stock: usize,
    /// The configured endpoint of the peer. The endpoint in use follows authenticated datagrams; a peer that
    /// doesn't answer there gets handshakes here too.
    pub endpoint: Option<SocketAddr>,
    /// The time without an authenticated packet after which the peer is pinged; `None` turns that off.
    pub liveness: Option<Duration>,
    /// A number of this peer that is unique in the daemon, below
    /// [`MAX_PEERS`](crate::wire::limits::MAX_PEERS). All receiver indices of its control and data sessions
    /// contain it, see [`peer_of_control_index`](crate::session::peer_of_control_index) and
    /// [`peer_of_data_index`](crate::epoch::peer_of_data_index).
    pub number: PeerNumber,
}

impl PeerConfig {
    /// Puts other keys in use, ours and one of the peer's.
    pub(crate) fn use_keys(&mut self, keys: LinkKeys) {
        let former = std::mem::replace(&mut self.remote, keys.remote);
        if self.other_remote == Some(keys.remote) {
            self.other_remote = Some(former);
        }
        self.local = keys.local;
        if self.role_by_keys {
            self.role = role_by_keys(self.local.public(), &self.remote);
        }
    }

    /// The keys in use.
    pub(crate) fn parties(&self) -> Parties {
        Parties { local: *self.local.public(), remote: self.remote }
    }

    /// The peer's keys.
    pub(crate) fn remotes(&self) -> Vec<PublicIdentity> {
        std::iter::once(self.remote).chain(self.other_remote).collect()
    }

    /// Whether both configs have the same pre-shared key, or none.
    #[must_use]
    pub fn same_psk(&self, other: &Self) -> bool {
        same_psk(self.psk.as_deref(), other.psk.as_deref())
    }
}

fn same_psk(a: Option<&Psk>, b: Option<&Psk>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => a.secret().ct_eq(b.secret().expose()),
        _ => false,
    }
}

impl PartialEq for PeerConfig {
    /// Compares pre-shared keys in constant time, and our identities by their public keys.
    fn eq(&self, other: &Self) -> bool {
        // Names each field, so that a new field does not compile until it is compared here.
        let Self {
            local,
            remote,
            other_remote,
            role,
            role_by_keys,
            suite,
            rekey_interval,
            min_rekey_interval,
            lanes,
            policy,
            qkd_source,
            sae_local,
            sae_remote,
            psk,
            stock,
            endpoint,
            liveness,
            number,
        } = self;
        same_psk(psk.as_deref(), other.psk.as_deref())
            && local.public() == other.local.public()
            && (remote, role, suite, rekey_interval)
                == (&other.remote, &other.role, &other.suite, &other.rekey_interval)
            && (other_remote, role_by_keys) == (&other.other_remote, &other.role_by_keys)
            && *min_rekey_interval == other.min_rekey_interval
            && (lanes, policy, qkd_source) == (&other.lanes, &other.policy, &other.qkd_source)
            && (sae_local, sae_remote) == (&other.sae_local, &other.sae_remote)
            && (stock, endpoint, number) == (&other.stock, &other.endpoint, &other.number)
            && *liveness == other.liveness
    }
}

#[cfg(test)]
mod tests {
    use qvpn_identity::SecretIdentity;
    use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};

    use super::*;

    #[test]
    fn configs_differ_by_the_pre_shared_key_itself_and_not_by_its_address() {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let local = Arc::new(SecretIdentity::generate(&mut rng));
        let psk = |seed| Some(Arc::new(Psk::generate(&mut ChaCha20Rng::seed_from_u64(seed))));
        let with = |psk| PeerConfig {
            remote: *local.public(),
            other_remote: None,
            role_by_keys: false,
            local: local.clone(),
            role: Role::Initiator,
            suite: Suite::ChaCha20Poly1305,
            rekey_interval: Duration::from_secs(60),
            min_rekey_interval: Duration::from_secs(6),
            lanes: 1,
            policy: QkdPolicy::Off,
            qkd_source: false,
            sae_local: None,
            sae_remote: None,
            psk,
            stock: 1,
            endpoint: None,
            liveness: None,
            number: PeerNumber(0),
        };
        assert!(with(psk(1)) == with(psk(1)) && with(None) == with(None));
        assert!(with(psk(1)) != with(psk(2)) && with(psk(1)) != with(None));
        assert!(with(None) != PeerConfig { stock: 2, ..with(None) });
        let moved = PeerConfig { local: Arc::new(SecretIdentity::generate(&mut rng)), ..with(None) };
        assert!(with(None) != moved && with(None).same_psk(&moved));
    }

    #[test]
    fn the_smaller_x25519_key_initiates() {
        let of = |seed| *SecretIdentity::generate(&mut ChaCha20Rng::seed_from_u64(seed)).public();
        let mut ends = [of(1), of(2)];
        ends.sort_by_key(|end| *end.x25519());
        let [small, large] = &ends;
        assert_eq!(
            (role_by_keys(small, large), role_by_keys(large, small)),
            (Role::Initiator, Role::Responder)
        );
        assert_eq!(role_by_keys(small, small), Role::Responder, "which `check` refuses");
    }
}
