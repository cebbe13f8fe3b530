//! Agreements and refusals of two sites' `Hello`s.

use std::sync::{Arc, LazyLock};

use qvpn_identity::{Psk, SecretIdentity};
use qvpn_types::{PeerNumber, Role, SaeId, Suite};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};

use super::*;
use crate::hello::own::OwnHello;

static SITES: LazyLock<[Arc<SecretIdentity>; 3]> = LazyLock::new(|| {
    [1, 2, 3].map(|seed| Arc::new(SecretIdentity::generate(&mut ChaCha20Rng::seed_from_u64(seed))))
});

fn psk(seed: u64) -> Option<Arc<Psk>> {
    Some(Arc::new(Psk::generate(&mut ChaCha20Rng::seed_from_u64(seed))))
}

fn sae(id: &str) -> Option<SaeId> {
    SaeId::new(id).ok()
}

fn config(own: usize, other: usize, policy: QkdPolicy) -> PeerConfig {
    let sae = |site: usize| sae(&format!("SAE{site}"));
    PeerConfig {
        local: SITES[own].clone(),
        remote: *SITES[other].public(),
        other_remote: None,
        role_by_keys: false,
        role: if own == 0 { Role::Initiator } else { Role::Responder },
        suite: Suite::ChaCha20Poly1305,
        rekey_interval: Duration::from_secs(60),
        min_rekey_interval: Duration::from_secs(1),
        lanes: 4,
        policy,
        qkd_source: true,
        sae_local: sae(own),
        sae_remote: sae(other),
        psk: None,
        stock: 3,
        endpoint: None,
        liveness: Some(Duration::from_secs(2)),
        number: PeerNumber(1),
    }
}

fn said(config: &PeerConfig) -> Hello {
    Hello::parse(&OwnHello::new(config, [5; 16], 1).bytes).unwrap()
}

/// Returns the result for two compatible sites after a change of the second.
fn met(policy: QkdPolicy, change: impl FnOnce(&mut PeerConfig)) -> Result<Agreement, (RejectReason, String)> {
    let mut theirs = config(1, 0, policy);
    change(&mut theirs);
    agree(&config(0, 1, policy), &said(&theirs))
}

#[track_caller]
fn refused(policy: QkdPolicy, change: impl FnOnce(&mut PeerConfig), reason: RejectReason, word: &str) {
    let (why, detail) = met(policy, change).unwrap_err();
    assert!(why == reason && detail.contains(word), "{why:?}: {detail}");
}

#[test]
fn the_stricter_policy_and_the_smaller_numbers_hold() {
    use QkdPolicy::{Off, Preferred, Required};
    let policies = [
        (Off, Off, Some(Off)),
        (Off, Preferred, Some(Off)),
        (Off, Required, None),
        (Preferred, Preferred, Some(Preferred)),
        (Preferred, Required, Some(Required)),
        (Required, Required, Some(Required)),
    ];
    for (one, two, expected) in policies {
        for (ours, theirs) in [(one, two), (two, one)] {
            let agreed = agree(&config(0, 1, ours), &said(&config(1, 0, theirs)));
            assert_eq!(agreed.as_ref().ok().map(|a| a.policy), expected, "{ours:?}, {theirs:?}");
            let refused = agreed.err().map(|(reason, _)| reason);
            assert_eq!(refused, expected.is_none().then_some(RejectReason::Policy));
        }
    }
    for (interval, lanes, expected) in [(50, 2, (50, 2)), (70, 8, (60, 4))] {
        let agreed = met(Required, |c| (c.rekey_interval, c.lanes) = (Duration::from_secs(interval), lanes));
        let agreed = agreed.unwrap();
        assert_eq!((agreed.interval.as_secs(), agreed.lanes), expected);
    }
}

#[test]
fn incompatible_settings_are_refused_with_the_reason() {
    use QkdPolicy::{Off, Preferred, Required};
    refused(Off, |c| c.local = SITES[2].clone(), RejectReason::Identity, "ML-KEM key");
    refused(Off, |c| c.suite = Suite::Aes256Gcm, RejectReason::Suite, "aes256gcm");
    refused(Off, |c| c.role = Role::Initiator, RejectReason::Role, "initiator");
    for policy in [Preferred, Required] {
        refused(policy, |c| c.sae_local = sae("X"), RejectReason::SaeId, "it is SAE \"X\"");
        refused(policy, |c| c.sae_remote = sae("X"), RejectReason::SaeId, "takes us for SAE \"X\"");
    }
    // If either site has QKD off, neither uses the IDs.
    let strangers = |policy| {
        move |c: &mut PeerConfig| {
            (c.sae_local, c.sae_remote, c.policy) = (sae("X"), None, policy);
        }
    };
    assert!(met(Off, strangers(Off)).is_ok());
    assert!(met(Off, strangers(Preferred)).is_ok());
    assert!(met(Preferred, strangers(Off)).is_ok());
}

#[test]
fn both_sides_have_the_same_psk_or_none() {
    let words = [
        (None, psk(1), "it has a pre-shared key, we have none"),
        (psk(1), None, "we have a pre-shared key, it has none"),
        (psk(1), psk(2), "the pre-shared keys differ"),
    ];
    let with = |ours: Option<Arc<Psk>>, theirs: Option<Arc<Psk>>| {
        let ours = PeerConfig { psk: ours, ..config(0, 1, QkdPolicy::Off) };
        agree(&ours, &said(&PeerConfig { psk: theirs, ..config(1, 0, QkdPolicy::Off) }))
    };
    for (ours, theirs, word) in words {
        let (reason, detail) = with(ours, theirs).unwrap_err();
        assert!(reason == RejectReason::Psk && detail.contains(word), "{detail}");
    }
    assert!(with(psk(1), psk(1)).is_ok());
}

#[test]
fn a_hello_says_what_is_configured() {
    let config = config(0, 1, QkdPolicy::Preferred);
    let hello = said(&config);
    assert_eq!((hello.role, hello.lanes, hello.policy), (Role::Initiator, 4, QkdPolicy::Preferred));
    assert_eq!((hello.sae_own, hello.sae_peer), (sae("SAE0"), sae("SAE1")));
    assert_eq!((hello.instance, hello.counter, hello.interval_ms), ([5; 16], 1, 60_000));
    assert_eq!(*hello.encapsulation_key, *SITES[0].encapsulation_key());
    assert_eq!(hello.psk_check, None);
}
