//! What the ends tell each other about themselves, and whether they can work together: suites, roles, policies, SAE
//! IDs, pre-shared keys and ML-KEM identities are compared here, before any epoch is made.

use std::time::Duration;

use rand_core::CryptoRng;
use sha2::{Digest, Sha384};

use super::{Peer, Side};
use crate::config::{PeerConfig, QkdPolicy};
use crate::key_schedule::psk_check;
use crate::notice::{FailureReason, PeerEvent};
use crate::session::ControlLink;
use crate::wire::{Hello, LaneSet, MessageId, MessageType, ParseError, RejectReason};
use qvpn_types::Time;

/// Our `Hello` in force.
pub(super) struct OwnHello {
    pub(super) bytes: Vec<u8>,
    pub(super) hash: [u8; 48],
    pub(super) message_id: Option<MessageId>,
    counter: u64,
}

impl OwnHello {
    pub(super) fn new(config: &PeerConfig, instance: [u8; 16], counter: u64) -> Self {
        let hello = Hello {
            instance,
            counter,
            role: config.role,
            suite: config.suite,
            lanes: config.lanes,
            policy: config.policy,
            interval_ms: u32::try_from(config.rekey_interval.as_millis())
                .unwrap_or(120_000)
                .clamp(100, 120_000),
            sae_own: config.sae_local.clone(),
            sae_peer: config.sae_remote.clone(),
            psk_check: config.psk.as_ref().map(|psk| psk_check(psk.secret(), &instance)),
            encapsulation_key: Box::new(*config.local.encapsulation_key()),
        };
        let bytes = hello.to_bytes();
        Self { hash: Sha384::digest(&bytes).into(), bytes, message_id: None, counter }
    }
}

/// The other end's `Hello` in force.
pub(super) struct RemoteHello {
    pub(super) hello: Hello,
    pub(super) bytes: Vec<u8>,
    pub(super) hash: [u8; 48],
    id: MessageId,
    /// The session that it came in.
    session: u64,
}

/// What two `Hello`s that fit make of each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Agreement {
    /// The smaller interval.
    pub(super) interval: Duration,
    /// The smaller number of lanes.
    pub(super) lanes: u8,
    /// The stricter policy; `preferred` and `off` make `off`, which the first shows as degraded.
    pub(super) policy: QkdPolicy,
}

/// Why the ends cannot work together.
pub(super) struct Refusal {
    /// The reason, where it is we who refuse.
    pub(super) by_us: Option<RejectReason>,
    pub(super) detail: String,
}

impl<L: ControlLink> Peer<L> {
    /// Queues our `Hello` for the first session after the start.
    pub(super) fn ensure_hello(&mut self, now: Time, rng: &mut dyn CryptoRng) {
        if self.own_hello.message_id.is_none() {
            self.send_hello(now, rng);
        }
    }

    pub(super) fn send_hello(&mut self, now: Time, rng: &mut dyn CryptoRng) {
        self.own_hello.message_id =
            Some(self.channel.send(MessageType::Hello, &self.own_hello.bytes, now, rng));
    }

    /// A `Hello` with a higher counter, after a reload or when ours is called stale.
    pub(super) fn fresh_hello(&mut self, now: Time, rng: &mut dyn CryptoRng) {
        self.own_hello = OwnHello::new(&self.config, self.instance, self.own_hello.counter + 1);
        self.send_hello(now, rng);
    }

    pub(super) fn take_hello(
        &mut self,
        id: MessageId,
        bytes: &[u8],
        session: u64,
        now: Time,
        rng: &mut dyn CryptoRng,
    ) {
        let hello = match Hello::parse(bytes) {
            Ok(hello) => hello,
            Err(ParseError::Version(version)) => {
                let detail = format!(
                    "it speaks version {version} of the protocol, this is version 1; upgrade the older site"
                );
                self.refuse(id, RejectReason::Version, detail, now, rng);
                return;
            }
            Err(error) => {
                let detail =
                    format!("its Hello is malformed: {error}; check that both sites run the same version");
                self.refuse(id, RejectReason::Malformed, detail, now, rng);
                return;
            }
        };
        let known = self.remote_hello().map(|h| (h.instance, h.counter));
        if let Some((instance, counter)) = known
            && instance == hello.instance
            && hello.counter <= counter
        {
            // The one in force again, under the message ID whose refusal it now waits for.
            if hello.counter == counter
                && let Some(reason) = self.refusal.as_ref().and_then(|refusal| refusal.by_us)
            {
                self.reject(id, reason, now, rng);
            }
            return;
        }
        let restarted = known.is_none_or(|(instance, _)| instance != hello.instance);
        if restarted && self.remote.as_ref().is_some_and(|remote| session < remote.session) {
            // A later life makes later sessions, so this is an earlier one's, held up on the way.
            return;
        }
        let hash = Sha384::digest(bytes).into();
        self.remote = Some(RemoteHello { hello, bytes: bytes.to_vec(), hash, id, session });
        // A changed Hello says that the other end looked at us anew.
        self.refusal = None;
        if restarted {
            self.other_end_started(now, rng);
        }
        self.reconsider(now, rng);
        self.attempt_due(now);
    }

    /// An instance not seen before: it knows nothing of us, and the exchange under way is over.
    fn other_end_started(&mut self, now: Time, rng: &mut dyn CryptoRng) {
        self.unbroken = false;
        self.send_hello(now, rng);
        self.peer_rx_silent = LaneSet::default();
        if self.unheard != LaneSet::default() {
            self.channel.send(MessageType::Lanes, &self.unheard.to_bytes(), now, rng);
        }
        self.attempt_failed(FailureReason::Restarted, "the other end restarted".to_owned(), now);
        match &mut self.side {
            Side::Initiator(initiator) => {
                initiator.stock.forget_answers();
                self.stop_confirming();
            }
            Side::Responder(responder) => {
                responder.stock.forget_offers();
                let indices = responder.forget_initiator();
                self.close(indices);
            }
        }
    }

    /// Compares both `Hello`s, and tells the other end if they do not fit.
    pub(super) fn reconsider(&mut self, now: Time, rng: &mut dyn CryptoRng) {
        let Some(remote) = &self.remote else { return };
        let id = remote.id;
        match agree(&self.config, &remote.hello) {
            Ok(agreement) => {
                if self.refusal.as_ref().is_some_and(|r| r.by_us.is_some()) {
                    self.refusal = None;
                }
                if self.agreement != Some(agreement) {
                    self.agreement = Some(agreement);
                    self.stop_weak_epochs(now);
                }
            }
            Err((reason, detail)) => self.refuse(id, reason, detail, now, rng),
        }
    }

    fn refuse(
        &mut self,
        id: MessageId,
        reason: RejectReason,
        detail: String,
        now: Time,
        rng: &mut dyn CryptoRng,
    ) {
        self.agreement = None;
        self.drop_attempt();
        self.reject(id, reason, now, rng);
        if reason == RejectReason::Identity {
            self.emit(PeerEvent::IdentityMismatch { detail: detail.clone() });
        }
        self.emit(PeerEvent::Refused { by_us: true, reason, detail: detail.clone() });
        self.refusal = Some(Refusal { by_us: Some(reason), detail: format!("refused: {detail}") });
    }

    /// The other end refused our `Hello`: no epoch can be made until one of us says something else.
    pub(super) fn refused_by_peer(&mut self, reason: RejectReason) {
        if self.refusal.is_some() {
            return;
        }
        let detail = explain(reason, &self.config);
        if reason == RejectReason::Identity {
            self.emit(PeerEvent::IdentityMismatch { detail: detail.clone() });
        }
        self.emit(PeerEvent::Refused { by_us: false, reason, detail: detail.clone() });
        self.refusal = Some(Refusal { by_us: None, detail: format!("the other site refused us: {detail}") });
        self.drop_attempt();
    }
}

/// The terms on which two ends work together, or why they cannot.
fn agree(ours: &PeerConfig, theirs: &Hello) -> Result<Agreement, (RejectReason, String)> {
    if ours.remote.check_encapsulation_key(&theirs.encapsulation_key).is_err() {
        let detail = "its ML-KEM key is not the one in our `public_key`; compare `qvpn-ctl fingerprint` of that site with our config";
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
        let detail =
            format!("it is SAE {:?}, our config says sae_id = {:?} for it", theirs.sae_own, ours.sae_remote);
        return Err((RejectReason::SaeId, detail));
    }
    if uses_qkd && theirs.sae_peer != ours.sae_local {
        let detail = format!(
            "it takes us for SAE {:?}, we are {:?}; correct sae_id at one site",
            theirs.sae_peer, ours.sae_local
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
                "it has qkd = \"{them}\", we have \"{us}\"; a site that requires QKD cannot work with one that has it off"
            );
            return Err((RejectReason::Policy, detail));
        }
        (QkdPolicy::Off, _) => QkdPolicy::Off,
        (_, stricter) => stricter,
    };
    let interval = ours.rekey_interval.min(Duration::from_millis(theirs.interval_ms.into()));
    Ok(Agreement { interval, lanes: ours.lanes.min(theirs.lanes), policy })
}

/// What the other end's refusal of our `Hello` means here.
fn explain(reason: RejectReason, ours: &PeerConfig) -> String {
    match reason {
        RejectReason::Version => {
            "it speaks another version of the protocol; upgrade the older site".to_owned()
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
            "SAE IDs do not match: we are {:?} and take it for {:?}; compare `sae_id` at both sites",
            ours.sae_local, ours.sae_remote
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
