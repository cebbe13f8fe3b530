//! Decides whether two sites can work together. Suites, roles, policies, SAE IDs, pre-shared keys and ML-KEM
//! identities are compared here, before any epoch is made.

use std::time::Duration;

use crate::config::PeerConfig;
use crate::key_schedule::psk_check;
use crate::wire::{Hello, RELEASE, RejectReason, VERSION};
use qvpn_types::{QkdPolicy, SaeId};

/// The settings that two compatible `Hello`s agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreement {
    /// The smaller interval of both, or the larger of both least intervals if that is larger: no peer makes
    /// the other one faster than it allows.
    pub interval: Duration,
    /// The smaller number of lanes of both.
    pub lanes: u8,
    /// The stricter policy of both; `preferred` and `off` give `off`, which the `preferred` side shows as
    /// degraded.
    pub policy: QkdPolicy,
}

/// Returns the agreement of two configs, or why the sites cannot work together.
pub fn agree(ours: &PeerConfig, theirs: &Hello) -> Result<Agreement, (RejectReason, String)> {
    if ours.remote.check_encapsulation_key(&theirs.encapsulation_key).is_err() {
        let detail = "its ML-KEM key is not the one in our `public_key`; compare `qvpn-ctl fingerprint` of \
                      that site with our config";
        return Err((RejectReason::Identity, detail.to_owned()));
    }
    if ours.suite != theirs.suite {
        let (us, them) = (ours.suite.name(), theirs.suite.name());
        let detail = format!("it has suite = \"{them}\", we have \"{us}\"; set the same suite at both sites");
        return Err((RejectReason::Suite, detail));
    }
    if ours.role == theirs.role {
        let detail = format!(
            "both sites have role = \"{}\"; set role = \"auto\" at both, or one of each",
            ours.role.name()
        );
        return Err((RejectReason::Role, detail));
    }
    let uses_qkd = ours.policy != QkdPolicy::Off && theirs.policy != QkdPolicy::Off;
    if uses_qkd && theirs.sae_own != ours.sae_remote {
        let detail = format!(
            "it is SAE {}, our config says sae_id = {} for it",
            quoted(&theirs.sae_own),
            quoted(&ours.sae_remote)
        );
        return Err((RejectReason::SaeId, detail));
    }
    if uses_qkd && theirs.sae_peer != ours.sae_local {
        let detail = format!(
            "it takes us for SAE {}, we are {}; correct sae_id at one site",
            quoted(&theirs.sae_peer),
            quoted(&ours.sae_local)
        );
        return Err((RejectReason::SaeId, detail));
    }
    let expected = ours.psk.as_ref().map(|psk| psk_check(psk.secret(), &theirs.instance));
    let psk_fits = match (&expected, &theirs.psk_check) {
        (None, None) => true,
        (Some(a), Some(b)) => qvpn_secret::ct_eq(a, b),
        _ => false,
    };
    if !psk_fits {
        let detail = match (expected.is_some(), theirs.psk_check.is_some()) {
            (true, false) => "we have a pre-shared key, it has none",
            (false, true) => "it has a pre-shared key, we have none",
            _ => "the pre-shared keys differ",
        };
        return Err((
            RejectReason::Psk,
            format!("{detail}; put the same preshared_key_file at both sites, or none"),
        ));
    }
    let policy = match (ours.policy.min(theirs.policy), ours.policy.max(theirs.policy)) {
        (QkdPolicy::Off, QkdPolicy::Required) => {
            let (us, them) = (ours.policy.name(), theirs.policy.name());
            let detail = format!(
                "it has qkd = \"{them}\", we have \"{us}\"; a site that requires QKD cannot work with one \
                 that has it off"
            );
            return Err((RejectReason::Policy, detail));
        }
        (QkdPolicy::Off, _) => QkdPolicy::Off,
        (_, stricter) => stricter,
    };
    let [interval, least] =
        [theirs.interval_ms, theirs.min_interval_ms].map(|ms| Duration::from_millis(ms.into()));
    let interval = ours.rekey_interval.min(interval).max(ours.min_rekey_interval).max(least);
    Ok(Agreement { interval, lanes: ours.lanes.min(theirs.lanes), policy })
}

fn quoted(id: &Option<SaeId>) -> String {
    format!("{:?}", id.as_ref().map_or("", SaeId::as_str))
}

/// Explains the peer's refusal of our `Hello` to the operator.
pub fn explain(reason: RejectReason, ours: &PeerConfig) -> String {
    match reason {
        RejectReason::Version => {
            format!(
                "it speaks another version of the protocol than this site (version {VERSION}, qvpn {RELEASE} \
                 or later); install the same release of qvpn at both sites, the newer one"
            )
        }
        RejectReason::Policy => format!("our qkd = {:?} does not fit its policy", ours.policy.name()),
        RejectReason::Suite => {
            format!("our suite = {:?} is not its suite; set the same at both sites", ours.suite.name())
        }
        RejectReason::Identity => {
            "our ML-KEM key is not the one in its config; give it the output of `qvpn-ctl pubkey` again"
                .to_owned()
        }
        RejectReason::Role => {
            format!("it has role = {:?} too; set role = \"auto\" at both, or one of each", ours.role.name())
        }
        RejectReason::SaeId => format!(
            "SAE IDs do not match: we are {} and take it for {}; compare `sae_id` at both sites",
            quoted(&ours.sae_local),
            quoted(&ours.sae_remote)
        ),
        RejectReason::Psk => {
            "the pre-shared keys differ, or one site has none; put the same preshared_key_file at both"
                .to_owned()
        }
        other => format!("it says `{}`; its log says more", other.name()),
    }
}

#[cfg(test)]
mod tests;
