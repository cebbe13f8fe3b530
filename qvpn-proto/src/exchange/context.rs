//! The inputs that a role reads and never changes.

use qvpn_types::{QkdPolicy, Time};

use crate::config::PeerConfig;
use crate::hello::{Agreement, Hellos, RemoteHello};
use crate::key_sources::KeySources;
use crate::kms::KeyKind;

/// The inputs of a role during one call.
pub struct Context<'a> {
    pub now: Time,
    pub config: &'a PeerConfig,
    pub hellos: &'a Hellos,
    pub session_up: bool,
}

impl<'a> Context<'a> {
    pub fn agreement(&self) -> Option<Agreement> {
        self.hellos.agreement
    }

    /// Whether an agreement was made under the keys in use.
    pub fn has_agreed(&self) -> bool {
        self.agreement().is_some() && self.remote().is_some()
    }

    /// The peer's `Hello` under the keys in use.
    pub fn remote(&self) -> Option<&'a RemoteHello> {
        self.hellos.remote.as_ref().filter(|remote| remote.current)
    }

    /// Whether this side or the peer requires QKD.
    pub fn qkd_only(&self) -> bool {
        self.config.policy == QkdPolicy::Required
            || self.agreement().is_some_and(|a| a.policy == QkdPolicy::Required)
    }

    /// Whether the policy forbids an epoch with these sources: this side or, by its last `Hello`, the peer
    /// requires QKD.
    pub fn breaks_policy(&self, sources: KeySources) -> bool {
        self.qkd_only() && !sources.qkd
    }

    /// Returns the sources of a key that is made with a stock key of this kind.
    pub fn sources(&self, kind: Option<KeyKind>, chain: bool) -> KeySources {
        KeySources {
            qkd: kind == Some(KeyKind::Qkd),
            file: kind == Some(KeyKind::File),
            psk: self.config.psk.is_some(),
            chain,
        }
    }
}
