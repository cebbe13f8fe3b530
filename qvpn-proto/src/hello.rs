//! Our `Hello`, the peer's, and the agreement or refusal that follows from both.

mod agreement;
mod own;

use std::time::Duration;

use qvpn_types::Time;
use rand_core::CryptoRng;
use sha2::{Digest, Sha384};

pub use agreement::Agreement;
use agreement::{agree, explain};
pub use own::OwnHello;

use crate::config::PeerConfig;
use crate::notice::PeerEvent;
use crate::outbox::Outbox;
use crate::timers::Timer;
use crate::wire::{Hello, MessageId, MessageType, ParseError, RELEASE, RejectReason, VERSION};

/// The peer's `Hello` in force.
pub struct RemoteHello {
    pub hello: Hello,
    pub bytes: Vec<u8>,
    pub hash: [u8; 48],
    id: MessageId,
    /// The number of the session in which it arrived.
    session: u64,
    /// Whether it came under the keys in use.
    pub current: bool,
}

/// How long the peer has to refuse a `Hello` again after it has acknowledged it.
const REFUSAL_WAIT: Duration = Duration::from_secs(1);
/// The number of mismatches within [`MISMATCH_WINDOW`] after which a new session is needed.
const MAX_MISMATCHES: u32 = 3;
const MISMATCH_WINDOW: Duration = Duration::from_secs(10);

/// Why the sites cannot work together.
pub struct Refusal {
    /// The reason, if this side refused.
    by_us: Option<RejectReason>,
    pub detail: String,
    /// Whether it was made in the session in use.
    confirmed: bool,
}

/// Counts proposals that name a `Hello` which the other side does not have in force.
#[derive(Default)]
struct Mismatches {
    since: Time,
    count: u32,
}

impl Mismatches {
    fn add(&mut self, now: Time) -> bool {
        if now.since(self.since) > MISMATCH_WINDOW {
            *self = Self { since: now, count: 0 };
        }
        self.count += 1;
        self.count == MAX_MISMATCHES
    }
}

/// The result of comparing a received `Hello`.
pub enum ReceivedHello {
    /// It must be refused.
    Unusable(RejectReason, String),
    /// It is an earlier one, or a repetition of the one in force.
    Known,
    /// It is a new one and now in force.
    New {
        /// Whether it comes from an instance not seen before.
        restarted: bool,
    },
}

/// Both `Hello`s, and the agreement or refusal that follows from them.
pub struct Hellos {
    instance: [u8; 16],
    pub own: OwnHello,
    pub remote: Option<RemoteHello>,
    pub agreement: Option<Agreement>,
    /// The lanes of the last agreement. An epoch made under it goes on when a `Hello` is refused.
    pub agreed_lanes: Option<u8>,
    pub refusal: Option<Refusal>,
    /// The session in which the first `Hello` of the peer's instance arrived.
    instance_session: u64,
    mismatches: Mismatches,
}

impl Hellos {
    pub fn new(config: &PeerConfig, instance: [u8; 16]) -> Self {
        let own = OwnHello::new(config, instance, 1);
        Self {
            instance,
            own,
            remote: None,
            agreement: None,
            agreed_lanes: None,
            refusal: None,
            instance_session: 0,
            mismatches: Mismatches::default(),
        }
    }

    /// Makes this side a new instance, since a reload ended what the peer knows of the exchange.
    pub fn new_instance(&mut self, rng: &mut dyn CryptoRng) {
        rng.fill_bytes(&mut self.instance);
    }

    /// Awaits the peer's `Hello` again: other keys are in use. The agreement holds for epochs under way.
    pub fn on_keys_changed(&mut self) {
        self.refusal = None;
        if let Some(remote) = &mut self.remote {
            remote.current = false;
        }
    }

    /// Whether a message that arrived in `session` was sent by an earlier instance of the peer.
    pub fn predates_instance(&self, session: u64) -> bool {
        session < self.instance_session
    }

    /// Records that one side's proposal names a `Hello` that is not in force at the other. Returns whether
    /// that goes on, so that a new session must carry both `Hello`s again.
    pub fn on_mismatch(&mut self, now: Time) -> bool {
        self.mismatches.add(now)
    }

    /// Repeats our `Hello` in a new session, where the peer accepts it also if it refused one before. Until
    /// the peer had the time to refuse it again, an earlier refusal of the peer stays.
    pub fn on_new_session(&mut self, now: Time, out: &mut Outbox, rng: &mut dyn CryptoRng) {
        if !out.channel.pending(MessageType::Hello) {
            self.send(now, out, rng);
        }
        if let Some(refusal) = self.refusal.as_mut().filter(|refusal| refusal.by_us.is_none()) {
            refusal.confirmed = false;
            out.timers.set(Timer::Refusal, Some(now + REFUSAL_WAIT));
        }
    }

    /// Ends a refusal that the peer did not repeat although it has our `Hello`. Returns whether there was
    /// one.
    pub fn on_refusal_timeout(&mut self, now: Time, out: &mut Outbox) -> bool {
        if self.refusal.as_ref().is_none_or(|refusal| refusal.confirmed) {
            return false;
        }
        if out.channel.pending(MessageType::Hello) {
            out.timers.set(Timer::Refusal, Some(now + REFUSAL_WAIT));
            return false;
        }
        self.refusal = None;
        true
    }

    /// Queues our `Hello` for the first session after the start.
    pub fn ensure_sent(&mut self, now: Time, out: &mut Outbox, rng: &mut dyn CryptoRng) {
        if self.own.message_id.is_none() {
            self.send(now, out, rng);
        }
    }

    pub fn send(&mut self, now: Time, out: &mut Outbox, rng: &mut dyn CryptoRng) {
        self.own.message_id = Some(out.channel.send(MessageType::Hello, &self.own.bytes, now, rng));
    }

    /// Sends a `Hello` with a higher counter, after a reload or when the peer calls ours stale.
    pub fn renew(&mut self, config: &PeerConfig, now: Time, out: &mut Outbox, rng: &mut dyn CryptoRng) {
        self.own = OwnHello::new(config, self.instance, self.own.counter + 1);
        self.send(now, out, rng);
    }

    /// Processes a `Hello` that arrived in `session`.
    pub fn receive(
        &mut self,
        id: MessageId,
        bytes: &[u8],
        session: u64,
        now: Time,
        out: &mut Outbox,
        rng: &mut dyn CryptoRng,
    ) -> ReceivedHello {
        let hello = match Hello::parse(bytes) {
            Ok(hello) => hello,
            Err(error) => return unusable(error),
        };
        let known = self.remote.as_ref().map(|remote| (remote.hello.instance, remote.hello.counter));
        if let Some(remote) = self.remote.as_mut().filter(|remote| remote.current && remote.bytes == bytes) {
            // This repeats the `Hello` in force under another message ID: the peer waits for a refusal of
            // that ID.
            remote.session = remote.session.max(session);
            if let Some(reason) = self.refusal.as_ref().and_then(|refusal| refusal.by_us) {
                out.reject(id, reason, now, rng);
            }
            return ReceivedHello::Known;
        }
        if let Some(remote) = &self.remote
            && remote.hello.instance == hello.instance
            && hello.counter <= remote.hello.counter
            // A counter holds for its session, so no value in one can lock out later ones.
            && session <= remote.session
        {
            return ReceivedHello::Known;
        }
        let restarted = known.is_none_or(|(instance, _)| instance != hello.instance);
        if restarted && self.remote.as_ref().is_some_and(|remote| session < remote.session) {
            // A later instance makes later sessions, so this `Hello` is from an earlier instance and was
            // delayed.
            return ReceivedHello::Known;
        }
        if restarted {
            self.instance_session = session;
        }
        let hash = Sha384::digest(bytes).into();
        self.remote = Some(RemoteHello { hello, bytes: bytes.to_vec(), hash, id, session, current: true });
        // The peer changed its `Hello`, so it has compared both again.
        self.refusal = None;
        ReceivedHello::New { restarted }
    }

    /// Compares both `Hello`s. Returns whether the agreement changed, or else the message to refuse, and
    /// why.
    pub fn compare(&mut self, config: &PeerConfig) -> Result<bool, (MessageId, RejectReason, String)> {
        let Some(remote) = self.remote.as_ref().filter(|remote| remote.current) else { return Ok(false) };
        match agree(config, &remote.hello) {
            Ok(agreement) => {
                if self.refusal.as_ref().is_some_and(|refusal| refusal.by_us.is_some()) {
                    self.refusal = None;
                }
                self.agreed_lanes = Some(agreement.lanes);
                Ok(self.agreement.replace(agreement) != Some(agreement))
            }
            Err((reason, detail)) => Err((remote.id, reason, detail)),
        }
    }

    pub fn refuse(
        &mut self,
        id: MessageId,
        reason: RejectReason,
        detail: String,
        now: Time,
        out: &mut Outbox,
        rng: &mut dyn CryptoRng,
    ) {
        self.agreement = None;
        out.reject(id, reason, now, rng);
        report(true, reason, &detail, out);
        self.refusal =
            Some(Refusal { by_us: Some(reason), detail: format!("refused: {detail}"), confirmed: true });
    }

    /// Records that the peer refused our `Hello`: no epoch can be made until one side changes its `Hello`,
    /// or the peer does not refuse ours again in a later session. Returns whether this changes anything.
    pub fn on_refused(&mut self, reason: RejectReason, config: &PeerConfig, out: &mut Outbox) -> bool {
        if let Some(refusal) = &mut self.refusal {
            refusal.confirmed = true;
            return false;
        }
        let detail = explain(reason, config);
        report(false, reason, &detail, out);
        let detail = format!("the other site refused us: {detail}");
        self.refusal = Some(Refusal { by_us: None, detail, confirmed: true });
        true
    }
}

fn report(by_us: bool, reason: RejectReason, detail: &str, out: &mut Outbox) {
    if reason == RejectReason::Identity {
        out.emit(PeerEvent::IdentityMismatch { detail: detail.to_owned() });
    }
    out.emit(PeerEvent::Refused { by_us, reason, detail: detail.to_owned() });
}

fn unusable(error: ParseError) -> ReceivedHello {
    match error {
        ParseError::Version(version) => {
            let detail = other_version(version);
            ReceivedHello::Unusable(RejectReason::Version, detail)
        }
        error => {
            let detail =
                format!("its Hello is malformed: {error}; check that both sites run the same version");
            ReceivedHello::Unusable(RejectReason::Malformed, detail)
        }
    }
}

/// Says which site must install which release.
fn other_version(theirs: u8) -> String {
    let fix = if theirs < VERSION {
        format!("install qvpn {RELEASE} or later at the other site")
    } else {
        "this site is the older one: install here the release of qvpn that the other site runs".to_owned()
    };
    format!("it speaks version {theirs} of the protocol, this site version {VERSION}; {fix}")
}
