//! What a role reads and never changes.

use qvpn_types::Time;

use crate::config::{PeerConfig, QkdPolicy};
use crate::hello::{Agreement, Hellos, RemoteHello};
use crate::key_sources::KeySources;
use crate::kms::KeyKind;

/// The surroundings of a role during one call.
pub struct Context<'a> {
    pub now: Time,
    pub config: &'a PeerConfig,
    pub hellos: &'a Hellos,
    /// Whether the control session is up.
    pub session_up: bool,
}

impl<'a> Context<'a> {
    pub fn agreement(&self) -> Option<Agreement> {
        self.hellos.agreement
    }

    pub fn remote(&self) -> Option<&'a RemoteHello> {
        self.hellos.remote.as_ref()
    }

    /// Whether only a QKD key is enough: here, or at the peer.
    pub fn qkd_only(&self) -> bool {
        self.config.policy == QkdPolicy::Required
            || self.agreement().is_some_and(|a| a.policy == QkdPolicy::Required)
    }

    /// Whether an epoch made of these may not be used: QKD is required here or, by its last `Hello`, at the
    /// peer.
    pub fn breaks_policy(&self, sources: KeySources) -> bool {
        self.qkd_only() && !sources.qkd
    }

    /// What a key made with a stock key of this kind is made of.
    pub fn sources(&self, kind: Option<KeyKind>, chain: bool) -> KeySources {
        KeySources {
            qkd: kind == Some(KeyKind::Qkd),
            file: kind == Some(KeyKind::File),
            psk: self.config.psk.is_some(),
            chain,
        }
    }
}
