//! Our `Hello`, the peer's, and the agreement or refusal that follows from both.

mod agreement;
mod own;

use qvpn_types::Time;
use rand_core::CryptoRng;
use sha2::{Digest, Sha384};

pub use agreement::Agreement;
use agreement::{agree, explain};
pub use own::OwnHello;

use crate::config::PeerConfig;
use crate::notice::PeerEvent;
use crate::outbox::Outbox;
use crate::wire::{Hello, MessageId, MessageType, ParseError, RELEASE, RejectReason, VERSION};

/// The peer's `Hello` in force.
pub struct RemoteHello {
    pub hello: Hello,
    pub bytes: Vec<u8>,
    pub hash: [u8; 48],
    id: MessageId,
    /// The number of the session in which it arrived.
    session: u64,
}

/// Why the sites cannot work together.
pub struct Refusal {
    /// The reason, if this side refused.
    by_us: Option<RejectReason>,
    pub detail: String,
}

/// The result of a received `Hello`.
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
    pub refusal: Option<Refusal>,
}

impl Hellos {
    pub fn new(config: &PeerConfig, instance: [u8; 16]) -> Self {
        let own = OwnHello::new(config, instance, 1);
        Self { instance, own, remote: None, agreement: None, refusal: None }
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
        if let Some((instance, counter)) = known
            && instance == hello.instance
            && hello.counter <= counter
        {
            // This repeats the `Hello` in force under another message ID: the peer waits for a refusal of
            // that ID.
            if hello.counter == counter
                && let Some(reason) = self.refusal.as_ref().and_then(|refusal| refusal.by_us)
            {
                out.reject(id, reason, now, rng);
            }
            return ReceivedHello::Known;
        }
        let restarted = known.is_none_or(|(instance, _)| instance != hello.instance);
        if restarted && self.remote.as_ref().is_some_and(|remote| session < remote.session) {
            // A later instance makes later sessions, so this `Hello` is from an earlier instance and was
            // delayed.
            return ReceivedHello::Known;
        }
        let hash = Sha384::digest(bytes).into();
        self.remote = Some(RemoteHello { hello, bytes: bytes.to_vec(), hash, id, session });
        // The peer changed its `Hello`, so it has compared both again.
        self.refusal = None;
        ReceivedHello::New { restarted }
    }

    /// Compares both `Hello`s. Returns whether the agreement changed, or else the message to refuse, and why.
    pub fn compare(&mut self, config: &PeerConfig) -> Result<bool, (MessageId, RejectReason, String)> {
        let Some(remote) = &self.remote else { return Ok(false) };
        match agree(config, &remote.hello) {
            Ok(agreement) => {
                if self.refusal.as_ref().is_some_and(|refusal| refusal.by_us.is_some()) {
                    self.refusal = None;
                }
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
        self.refusal = Some(Refusal { by_us: Some(reason), detail: format!("refused: {detail}") });
    }

    /// Records that the peer refused our `Hello`: no epoch can be made until one side changes its `Hello`.
    /// Returns whether this changes anything.
    pub fn on_refused(&mut self, reason: RejectReason, config: &PeerConfig, out: &mut Outbox) -> bool {
        if self.refusal.is_some() {
            return false;
        }
        let detail = explain(reason, config);
        report(false, reason, &detail, out);
        self.refusal = Some(Refusal { by_us: None, detail: format!("the other site refused us: {detail}") });
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
