//! Events, one line each: JSON with a field for each fact, and text for the journal and for people. Some
//! fields come from other machines, so the text form escapes them. No field ever holds key material.

mod certificate;
mod escaped;
mod fields;
mod rfc3339;

use std::fmt;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::config::KeyChange;
pub use certificate::CertificateOf;
use escaped::Escaped;
use fields::Fields;

use crate::status::{KeySource, sources_text};

/// The result of [`EventKind::ControlUsed`] for a user who lacks the permission.
pub const NOT_PERMITTED: &str = "refused: not permitted";

/// Something that happened to an interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The time by the wall clock; in JSON as RFC 3339 in UTC with milliseconds.
    #[serde(with = "rfc3339")]
    pub time: SystemTime,
    /// The interface's name.
    pub interface: String,
    /// What happened; in JSON its fields are beside these, and its name is in `event`.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened. The JSON name is the one in each variant's `rename`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event")]
#[non_exhaustive]
pub enum EventKind {
    /// The first epoch of a peer is active.
    #[serde(rename = "peer.up")]
    PeerUp {
        /// The peer's name.
        peer: String,
        /// Its endpoint, `address:port`.
        endpoint: Option<String>,
    },
    /// Fail closed: no valid key, so nothing is sent.
    #[serde(rename = "peer.blocked")]
    PeerBlocked {
        /// The peer's name.
        peer: String,
        /// Why, in words.
        reason: String,
    },
    /// Traffic goes on without QKD, as `preferred` allows.
    #[serde(rename = "peer.degraded")]
    PeerDegraded {
        /// The peer's name.
        peer: String,
        /// Why, in words.
        reason: String,
    },
    /// The keys are valid, and the peer does not answer.
    #[serde(rename = "peer.silent")]
    PeerSilent {
        /// The peer's name.
        peer: String,
        /// Why, in words, with what to look at.
        reason: String,
    },
    /// A blocked, degraded or silent peer is up again.
    #[serde(rename = "peer.recovered")]
    PeerRecovered {
        /// The peer's name.
        peer: String,
        /// The state before: `blocked`, `degraded` or `silent`.
        from: String,
    },
    /// The peer's address changed.
    #[serde(rename = "peer.roamed")]
    PeerRoamed {
        /// The peer's name.
        peer: String,
        /// The former endpoint, `address:port`.
        from: Option<String>,
        /// The new endpoint, `address:port`.
        to: String,
    },
    /// The path MTU to the peer changed.
    #[serde(rename = "peer.mtu")]
    PeerMtu {
        /// The peer's name.
        peer: String,
        /// The largest inner packet in bytes.
        mtu: u32,
    },
    /// The peer announced that it stops.
    #[serde(rename = "peer.bye")]
    PeerBye {
        /// The peer's name.
        peer: String,
    },
    /// A lane receives nothing while the control session works.
    #[serde(rename = "lane.silent")]
    LaneSilent {
        /// The peer's name.
        peer: String,
        /// The lane's number.
        lane: u8,
        /// The UDP port that a firewall probably blocks.
        port: u16,
    },
    /// A lane that was silent carries packets again.
    #[serde(rename = "lane.recovered")]
    LaneRecovered {
        /// The peer's name.
        peer: String,
        /// The lane's number.
        lane: u8,
    },
    /// The chain did not match, so an epoch was made without it.
    #[serde(rename = "chain.reset")]
    ChainReset {
        /// The peer's name.
        peer: String,
        /// Why, in words.
        reason: String,
    },
    /// Another program deleted our routes; they are restored.
    #[serde(rename = "routes.restored")]
    RoutesRestored {
        /// The routes that were missing, as `ip route` has them.
        routes: Vec<String>,
    },
    /// Another program opened a route around the block, or tried to.
    #[serde(rename = "guard.challenged")]
    GuardChallenged {
        /// What it did, as `ip` or `nft` would write it.
        what: String,
        /// What the change does.
        effect: String,
    },
    /// We send under a new epoch's key.
    #[serde(rename = "epoch.active")]
    EpochActive {
        /// The peer's name.
        peer: String,
        /// The epoch's number.
        epoch: u64,
        /// The sources of its key.
        sources: Vec<KeySource>,
        /// The ID of the QKD key in it.
        qkd_key_id: Option<String>,
        /// The KME that delivered that key to us.
        #[serde(default)]
        kme: Option<String>,
    },
    /// An attempt at a new epoch failed.
    #[serde(rename = "epoch.failed")]
    EpochFailed {
        /// The peer's name.
        peer: String,
        /// The attempt's number.
        epoch: Option<u64>,
        /// Why, in words.
        reason: String,
    },
    /// A KME stopped serving us.
    #[serde(rename = "kme.down")]
    KmeDown {
        /// The KME's name.
        kme: String,
        /// Why, in words, with what to do.
        reason: String,
    },
    /// A KME serves us (again).
    #[serde(rename = "kme.up")]
    KmeUp {
        /// The KME's name.
        kme: String,
    },
    /// A certificate used with a KME expires soon or has expired; emitted 30, 7 and 1 days before, and when
    /// it expires.
    #[serde(rename = "kme.certificate_ends")]
    KmeCertificateEnds {
        /// The KME's name.
        kme: String,
        /// Which certificate.
        certificate: CertificateOf,
        /// The time left in seconds; negative once the certificate has ended.
        ends_in_s: i64,
    },
    /// No KME delivers keys for this peer any more; only the stock is left.
    #[serde(rename = "qkd.supply_stopped")]
    QkdSupplyStopped {
        /// The peer's name.
        peer: String,
        /// Why, in words.
        reason: String,
        /// How long the stock lasts, in whole seconds.
        stock_lasts_s: Option<u64>,
    },
    /// A KME delivers keys for this peer again.
    #[serde(rename = "qkd.supply_resumed")]
    QkdSupplyResumed {
        /// The peer's name.
        peer: String,
    },
    /// A gateway used keys that are not the configured ones.
    #[serde(rename = "identity.mismatch")]
    IdentityMismatch {
        /// The peer's name; absent when the key belongs to no configured peer.
        peer: Option<String>,
        /// Where it came from, `address:port`.
        endpoint: Option<String>,
        /// Which key was used and what to compare, in words.
        reason: String,
    },
    /// The control session with this peer is under another key of the peer or of ours.
    #[serde(rename = "identity.changed")]
    IdentityChanged {
        /// The peer's name.
        peer: String,
        /// Whether it is our key; otherwise it is the peer's.
        own: bool,
        /// The fingerprint of the former key.
        from: String,
        /// The fingerprint of the key in use.
        to: String,
    },
    /// Two gateways use this peer's key: their instance IDs alternate.
    #[serde(rename = "identity.duplicate")]
    IdentityDuplicate {
        /// The peer's name.
        peer: String,
        /// Where the last two instances were, `address:port`; one entry if both came from one endpoint.
        endpoints: Vec<String>,
    },
    /// This gateway left standby: each peer is called, under a new instance ID.
    #[serde(rename = "gateway.active")]
    GatewayActive {
        /// How often it left standby since the daemon's start, this time included.
        takeovers: u64,
    },
    /// This gateway is in standby: all sessions and keys have ended, and nothing is sent.
    #[serde(rename = "gateway.standby")]
    GatewayStandby {},
    /// It is to leave standby and did so too often: it waits, since each takeover spends QKD keys.
    #[serde(rename = "gateway.waiting")]
    GatewayWaiting {
        /// The time until it is active, in whole seconds.
        active_in_s: u64,
    },
    /// The config was reloaded and is in force.
    #[serde(rename = "config.reloaded")]
    ConfigReloaded {
        /// The changes in words; empty if nothing changed.
        changes: Vec<String>,
    },
    /// A key of the config in force changed; one event for each key.
    #[serde(rename = "config.changed")]
    ConfigChanged {
        /// Who did it.
        #[serde(flatten)]
        caller: Caller,
        /// The key, with its former and its new value.
        #[serde(flatten)]
        change: KeyChange,
    },
    /// `qkd` of a peer changed to a weaker policy.
    #[serde(rename = "policy.degraded")]
    PolicyDegraded {
        /// Who did it.
        #[serde(flatten)]
        caller: Caller,
        /// The peer's name.
        peer: String,
        /// The former policy.
        from: String,
        /// The new policy.
        to: String,
    },
    /// A user sent a request that changes something over the control socket, or a signal.
    #[serde(rename = "control.used")]
    ControlUsed {
        /// Who sent it.
        #[serde(flatten)]
        caller: Caller,
        /// The request's name in the control API, such as `rekey`.
        request: String,
        /// The peer that it is about; absent for all or none.
        peer: Option<String>,
        /// `done`, or why it was refused.
        result: String,
    },
    /// A config on trial was not confirmed in time, or was withdrawn: the former one is in force.
    #[serde(rename = "config.reverted")]
    ConfigReverted {
        /// Who did it; `timeout` if nobody confirmed the config.
        #[serde(flatten)]
        caller: Caller,
    },
    /// This machine was resumed from a snapshot or cloned, so all its keys were erased and every peer
    /// connects again.
    #[serde(rename = "machine.copied")]
    MachineCopied {},
}

/// Who changed something or asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// The user's name, `uid N` for a user without a name on this machine, the signal's name, or `timeout`.
    pub by: String,
    /// The user's ID, as reported by the kernel; absent if no user did it.
    pub uid: Option<u32>,
}

impl EventKind {
    /// The fixed name, such as `epoch.active`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::PeerUp { .. } => "peer.up",
            Self::PeerBlocked { .. } => "peer.blocked",
            Self::PeerDegraded { .. } => "peer.degraded",
            Self::PeerSilent { .. } => "peer.silent",
            Self::PeerRecovered { .. } => "peer.recovered",
            Self::PeerRoamed { .. } => "peer.roamed",
            Self::PeerMtu { .. } => "peer.mtu",
            Self::PeerBye { .. } => "peer.bye",
            Self::LaneSilent { .. } => "lane.silent",
            Self::LaneRecovered { .. } => "lane.recovered",
            Self::ChainReset { .. } => "chain.reset",
            Self::RoutesRestored { .. } => "routes.restored",
            Self::GuardChallenged { .. } => "guard.challenged",
            Self::EpochActive { .. } => "epoch.active",
            Self::EpochFailed { .. } => "epoch.failed",
            Self::KmeDown { .. } => "kme.down",
            Self::KmeUp { .. } => "kme.up",
            Self::KmeCertificateEnds { .. } => "kme.certificate_ends",
            Self::QkdSupplyStopped { .. } => "qkd.supply_stopped",
            Self::QkdSupplyResumed { .. } => "qkd.supply_resumed",
            Self::IdentityMismatch { .. } => "identity.mismatch",
            Self::IdentityChanged { .. } => "identity.changed",
            Self::IdentityDuplicate { .. } => "identity.duplicate",
            Self::GatewayActive { .. } => "gateway.active",
            Self::GatewayStandby {} => "gateway.standby",
            Self::GatewayWaiting { .. } => "gateway.waiting",
            Self::ConfigReloaded { .. } => "config.reloaded",
            Self::ConfigChanged { .. } => "config.changed",
            Self::PolicyDegraded { .. } => "policy.degraded",
            Self::ControlUsed { .. } => "control.used",
            Self::ConfigReverted { .. } => "config.reverted",
            Self::MachineCopied {} => "machine.copied",
        }
    }

    /// Whether it needs an operator's attention.
    #[must_use]
    pub fn is_warning(&self) -> bool {
        match self {
            Self::PeerBlocked { .. }
            | Self::PeerDegraded { .. }
            | Self::PeerSilent { .. }
            | Self::LaneSilent { .. }
            | Self::ChainReset { .. }
            | Self::RoutesRestored { .. }
            | Self::GuardChallenged { .. }
            | Self::EpochFailed { .. }
            | Self::KmeDown { .. }
            | Self::KmeCertificateEnds { .. }
            | Self::QkdSupplyStopped { .. }
            | Self::IdentityMismatch { .. }
            | Self::PolicyDegraded { .. }
            | Self::ConfigReverted { .. }
            | Self::IdentityDuplicate { .. }
            | Self::GatewayWaiting { .. }
            | Self::MachineCopied {} => true,
            Self::ControlUsed { result, .. } => result == NOT_PERMITTED,
            Self::PeerUp { .. }
            | Self::PeerRecovered { .. }
            | Self::LaneRecovered { .. }
            | Self::PeerRoamed { .. }
            | Self::PeerMtu { .. }
            | Self::PeerBye { .. }
            | Self::EpochActive { .. }
            | Self::KmeUp { .. }
            | Self::QkdSupplyResumed { .. }
            | Self::GatewayActive { .. }
            | Self::GatewayStandby {}
            | Self::IdentityChanged { .. }
            | Self::ConfigReloaded { .. }
            | Self::ConfigChanged { .. } => false,
        }
    }

    /// The fields with their JSON names, absent ones left out: for the journal and for the text form.
    #[must_use]
    pub fn fields(&self) -> Vec<(&'static str, String)> {
        let mut f = Fields::default();
        match self {
            Self::PeerUp { peer, endpoint } => f.add("peer", peer).opt("endpoint", endpoint.as_ref()),
            Self::PeerBlocked { peer, reason }
            | Self::PeerDegraded { peer, reason }
            | Self::PeerSilent { peer, reason }
            | Self::ChainReset { peer, reason } => f.add("peer", peer).add("reason", reason),
            Self::PeerRecovered { peer, from } => f.add("peer", peer).add("from", from),
            Self::PeerRoamed { peer, from, to } => {
                f.add("peer", peer).opt("from", from.as_ref()).add("to", to)
            }
            Self::PeerBye { peer } | Self::QkdSupplyResumed { peer } => f.add("peer", peer),
            Self::LaneSilent { peer, lane, port } => f.add("peer", peer).add("lane", lane).add("port", port),
            Self::PeerMtu { peer, mtu } => f.add("peer", peer).add("mtu", mtu),
            Self::LaneRecovered { peer, lane } => f.add("peer", peer).add("lane", lane),
            Self::RoutesRestored { routes } => f.add("routes", routes.join(",")),
            Self::GuardChallenged { what, effect } => f.add("what", what).add("effect", effect),
            Self::EpochActive { peer, epoch, sources, qkd_key_id, kme } => f
                .add("peer", peer)
                .add("epoch", epoch)
                .add("sources", sources_text(sources))
                .opt("qkd_key_id", qkd_key_id.as_ref())
                .opt("kme", kme.as_ref()),
            Self::EpochFailed { peer, epoch, reason } => {
                f.add("peer", peer).opt("epoch", epoch.as_ref()).add("reason", reason)
            }
            Self::KmeDown { kme, reason } => f.add("kme", kme).add("reason", reason),
            Self::KmeUp { kme } => f.add("kme", kme),
            Self::KmeCertificateEnds { kme, certificate, ends_in_s } => {
                f.add("kme", kme).add("certificate", certificate.as_str()).add("ends_in_s", ends_in_s)
            }
            Self::QkdSupplyStopped { peer, reason, stock_lasts_s } => {
                f.add("peer", peer).opt("stock_lasts_s", stock_lasts_s.as_ref()).add("reason", reason)
            }
            Self::IdentityMismatch { peer, endpoint, reason } => {
                f.opt("peer", peer.as_ref()).opt("endpoint", endpoint.as_ref()).add("reason", reason)
            }
            Self::IdentityChanged { peer, own, from, to } => {
                f.add("peer", peer).add("own", own).add("from", from).add("to", to)
            }
            Self::IdentityDuplicate { peer, endpoints } => {
                f.add("peer", peer).add("endpoints", endpoints.join(","))
            }
            Self::GatewayActive { takeovers } => f.add("takeovers", takeovers),
            Self::GatewayWaiting { active_in_s } => f.add("active_in_s", active_in_s),
            Self::ConfigReloaded { changes } => f.add("changes", changes.join(", ")),
            Self::ConfigChanged { caller, change } => f
                .caller(&caller.by, caller.uid)
                .opt("peer", change.peer.as_ref())
                .add("key", &change.key)
                .opt("from", change.from.as_ref())
                .opt("to", change.to.as_ref()),
            Self::PolicyDegraded { caller, peer, from, to } => {
                f.caller(&caller.by, caller.uid).add("peer", peer).add("from", from).add("to", to)
            }
            Self::ControlUsed { caller, request, peer, result } => f
                .caller(&caller.by, caller.uid)
                .add("request", request)
                .opt("peer", peer.as_ref())
                .add("result", result),
            Self::ConfigReverted { caller } => f.caller(&caller.by, caller.uid),
            Self::GatewayStandby {} | Self::MachineCopied {} => &mut f,
        };
        f.0
    }
}

/// The text form without time and interface: `epoch.active peer=site-b epoch=7 sources=qkd+mlkem+x25519`.
/// It is always one line: a value that isn't plain is quoted, and control characters in it are escaped.
impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        for (name, value) in self.fields() {
            if value.is_empty() || value.chars().any(|c| !c.is_ascii_graphic() || c == '"' || c == '\\') {
                write!(f, " {name}=\"{}\"", Escaped(&value))?;
            } else {
                write!(f, " {name}={value}")?;
            }
        }
        Ok(())
    }
}

/// The text form: RFC 3339 time in UTC, the interface, and what happened.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = humantime::format_rfc3339_millis(rfc3339::in_range(self.time));
        write!(f, "{time} {} {}", self.interface, self.kind)
    }
}

#[cfg(test)]
mod tests;
