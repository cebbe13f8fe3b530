//! The settings of a site at the start of a simulation, which a test may change.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use qvpn_identity::{Psk, SecretIdentity};
use qvpn_proto::{PeerConfig, QkdPolicy, Role};
use qvpn_types::{PeerNumber, SaeId, Suite};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

#[derive(Clone)]
pub struct Site {
    pub identity: Arc<SecretIdentity>,
    pub role: Role,
    pub suite: Suite,
    pub interval: Duration,
    pub lanes: u8,
    pub policy: QkdPolicy,
    pub qkd_source: bool,
    pub sae: String,
    pub sae_other: String,
    pub psk: Option<Arc<Psk>>,
    pub stock: usize,
    pub knows_endpoint: bool,
    pub liveness: Option<Duration>,
    /// Whether it measures the path's MTU.
    pub measures: bool,
}

pub fn identity(seed: u64) -> Arc<SecretIdentity> {
    Arc::new(SecretIdentity::generate(&mut ChaCha20Rng::seed_from_u64(seed)))
}

/// Returns two compatible sites; the first initiates.
pub fn sites(policy: QkdPolicy, interval: Duration) -> [Site; 2] {
    static BOTH: OnceLock<[Arc<SecretIdentity>; 2]> = OnceLock::new();
    let [a, b] = BOTH.get_or_init(|| [identity(1), identity(2)]).clone();
    let site = |identity: Arc<SecretIdentity>, role, sae: &str, other: &str| Site {
        identity,
        role,
        suite: Suite::ChaCha20Poly1305,
        interval,
        lanes: 1,
        policy,
        qkd_source: true,
        sae: sae.to_owned(),
        sae_other: other.to_owned(),
        psk: None,
        stock: 5,
        knows_endpoint: true,
        liveness: Some(Duration::from_secs(2)),
        measures: false,
    };
    [site(a, Role::Initiator, "SITE-A", "SITE-B"), site(b, Role::Responder, "SITE-B", "SITE-A")]
}

/// Returns the config of a site for the peer at `endpoint`. `number` is this peer's number in its gateway.
pub fn config(site: &Site, other: &Site, endpoint: SocketAddr, number: PeerNumber) -> PeerConfig {
    let site = site.clone();
    PeerConfig {
        local: site.identity,
        remote: *other.identity.public(),
        other_remote: None,
        role_by_keys: false,
        role: site.role,
        suite: site.suite,
        rekey_interval: site.interval,
        min_rekey_interval: Duration::from_millis(100),
        lanes: site.lanes,
        policy: site.policy,
        qkd_source: site.qkd_source,
        sae_local: SaeId::new(site.sae).ok(),
        sae_remote: SaeId::new(site.sae_other).ok(),
        psk: site.psk,
        stock: site.stock,
        endpoint: site.knows_endpoint.then_some(endpoint),
        liveness: site.liveness,
        number,
    }
}
