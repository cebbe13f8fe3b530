//! Derives all keys: HKDF (RFC 5869) with SHA-384 over all secrets of an exchange. No other module makes
//! keys. All labels are here.
//!
//! The inputs are joined in the concatenation form of ETSI TS 103 744 and NIST SP 800-56C: each is preceded
//! by its length, so that no two sets of secrets give the same bytes.
//!
//! Values that travel (confirmations, the name of the chain) are MACs under keys of their own, as key
//! confirmation in NIST SP 800-56A section 5.9, so no byte of the branch that makes data keys is ever sent.

use hkdf::Hkdf;
use hkdf::hmac::{Hmac, KeyInit, Mac};
use qvpn_identity::PublicIdentity;
use qvpn_secret::{Secret, SecretBuf, with_scrubbed_stack};
use sha2::{Digest, Sha384};

use qvpn_types::{KeyId, Suite};

/// Length of a chain secret in bytes.
pub const CHAIN: usize = 48;
/// Length of a check value in bytes.
pub const CHECK: usize = 16;

/// The purpose of an output.
enum Label {
    ConfirmKeyResponder,
    ConfirmKeyInitiator,
    Data,
    Chain,
    ChainCheckKey,
}

impl Label {
    const fn text(&self) -> &'static str {
        match self {
            Self::ConfirmKeyResponder => "confirm key responder",
            Self::ConfirmKeyInitiator => "confirm key initiator",
            Self::Data => "data",
            Self::Chain => "chain",
            Self::ChainCheckKey => "chain check key",
        }
    }
}

/// The public half of the inputs: everything that both sides sent.
pub struct Transcript<'a> {
    pub initiator: &'a PublicIdentity,
    pub responder: &'a PublicIdentity,
    /// The initiator's `Hello` in force.
    pub hello_initiator: &'a [u8],
    /// The responder's `Hello` in force.
    pub hello_responder: &'a [u8],
    pub propose: &'a [u8],
    /// The `Accept` without its confirmation.
    pub accept: &'a [u8],
}

impl Transcript<'_> {
    fn hash(&self) -> [u8; 48] {
        let mut hash = Sha384::new_with_prefix(b"qvpn/2 epoch");
        for part in [
            self.initiator.to_bytes().as_slice(),
            self.responder.to_bytes().as_slice(),
            self.hello_initiator,
            self.hello_responder,
            self.propose,
            self.accept,
        ] {
            hash.update(length(part));
            hash.update(part);
        }
        hash.finalize().into()
    }
}

/// The secret half of the inputs. [`derive()`] consumes it; secrets that outlive a failed attempt are
/// borrowed.
pub struct EpochSecrets<'a> {
    /// The shared secret of the ephemeral ML-KEM key.
    pub kem_ephemeral: Secret<32>,
    /// The shared secret of the responder's static ML-KEM key.
    pub kem_to_responder: Secret<32>,
    /// The shared secret of the initiator's static ML-KEM key.
    pub kem_to_initiator: Secret<32>,
    /// The shared secret of the ephemeral X25519 keys.
    pub x25519: Secret<32>,
    pub qkd: Option<&'a SecretBuf>,
    pub psk: Option<&'a Secret<32>>,
    /// The chain of the previous epoch.
    pub chain: Option<&'a Chain>,
}

/// A secret that one epoch passes to the next, and the value that names it on the wire.
pub struct Chain {
    secret: Secret<CHAIN>,
    /// The MAC of the transcript hash under `out("chain check key")`, shortened.
    pub check: [u8; CHECK],
}

/// The keys of one epoch.
pub struct EpochKeys {
    /// The confirmation that the responder must send in `Accept`.
    pub confirm_responder: Secret<48>,
    /// The confirmation that the initiator must send in `Confirm`.
    pub confirm_initiator: Secret<48>,
    /// One key per lane, from the initiator to the responder.
    pub to_responder: Vec<Secret<32>>,
    /// One key per lane, from the responder to the initiator.
    pub to_initiator: Vec<Secret<32>>,
    /// The chain for the next epoch.
    pub chain: Chain,
}

/// Makes the keys of an epoch with `lanes` lanes.
#[must_use]
pub fn derive(transcript: &Transcript<'_>, secrets: EpochSecrets<'_>, suite: Suite, lanes: u8) -> EpochKeys {
    let th = transcript.hash();
    let (initiator, responder) = (transcript.initiator.to_bytes(), transcript.responder.to_bytes());
    with_scrubbed_stack(|| {
        let ikm = join(&[
            secrets.kem_ephemeral.expose(),
            secrets.kem_to_responder.expose(),
            secrets.kem_to_initiator.expose(),
            secrets.x25519.expose(),
            secrets.qkd.map(SecretBuf::expose).unwrap_or_default(),
            secrets.psk.map(|s| s.expose().as_slice()).unwrap_or_default(),
            secrets.chain.map(|c| c.secret.expose().as_slice()).unwrap_or_default(),
        ]);
        let prk = Hkdf::<Sha384>::new(Some(&th), ikm.expose());
        let confirmation = |label: &Label, party: &[u8], own: &[u8], other: &[u8]| {
            mac::<48>(&prk, label, &[party, &length(own), own, &length(other), other, &th])
        };
        let direction = |direction: u8| {
            (0..lanes)
                .map(|lane| out(&prk, &Label::Data, &[suite as u8, direction, lane]))
                .collect::<Vec<_>>()
        };
        EpochKeys {
            confirm_responder: confirmation(&Label::ConfirmKeyResponder, b"KC_2_V", &responder, &initiator),
            confirm_initiator: confirmation(&Label::ConfirmKeyInitiator, b"KC_2_U", &initiator, &responder),
            to_responder: direction(0),
            to_initiator: direction(1),
            chain: Chain {
                secret: out(&prk, &Label::Chain, &[]),
                check: *mac::<CHECK>(&prk, &Label::ChainCheckKey, &[&th]).expose(),
            },
        }
    })
}

/// Returns the check value of a QKD key: it shows that both sites hold the same bytes under an ID before they
/// use them.
#[must_use]
pub fn qkd_check(key: &SecretBuf, id: &KeyId) -> [u8; CHECK] {
    let id = id.as_str().as_bytes();
    check(key.expose(), b"qvpn/2 qkd check", &[&length(id), id])
}

/// Returns the check value of a PSK in a `Hello` of the instance `sender`.
#[must_use]
pub fn psk_check(psk: &Secret<32>, sender: &[u8; 16]) -> [u8; CHECK] {
    check(psk.expose(), b"qvpn/2 psk check", &[sender])
}

fn check(secret: &[u8], label: &[u8], context: &[&[u8]]) -> [u8; CHECK] {
    with_scrubbed_stack(|| {
        let mut info = label.to_vec();
        context.iter().for_each(|part| info.extend_from_slice(part));
        let mut out = [0; CHECK];
        expand(&Hkdf::<Sha384>::new(None, secret), &info, &mut out);
        out
    })
}

/// `HKDF-Expand(prk, "qvpn/2 " ‖ label ‖ 0x00 ‖ context, N)`
fn out<const N: usize>(prk: &Hkdf<Sha384>, label: &Label, context: &[u8]) -> Secret<N> {
    let mut info = b"qvpn/2 ".to_vec();
    info.extend_from_slice(label.text().as_bytes());
    info.push(0);
    info.extend_from_slice(context);
    Secret::filled(|bytes| expand(prk, &info, bytes))
}

/// The first `N` bytes of `HMAC-SHA-384(out(label), data)`.
fn mac<const N: usize>(prk: &Hkdf<Sha384>, label: &Label, data: &[&[u8]]) -> Secret<N> {
    let key: Secret<48> = out(prk, label, &[]);
    #[expect(clippy::expect_used, reason = "HMAC takes a key of any length")]
    let mut mac = <Hmac<Sha384> as KeyInit>::new_from_slice(key.expose()).expect("a key of any length");
    data.iter().for_each(|part| mac.update(part));
    Secret::filled(|bytes| bytes.copy_from_slice(&mac.finalize().into_bytes()[..N]))
}

fn expand(prk: &Hkdf<Sha384>, info: &[u8], bytes: &mut [u8]) {
    // RFC 5869 allows 255 · 48 bytes; the largest output here is 48.
    assert!(prk.expand(info, bytes).is_ok(), "output longer than HKDF allows");
}

/// `lp(a) ‖ lp(b) ‖ …`
fn join(parts: &[&[u8]]) -> SecretBuf {
    let mut all = SecretBuf::zeroed(parts.iter().map(|p| 4 + p.len()).sum());
    let mut rest = all.expose_mut();
    for part in parts {
        let (head, tail) = rest.split_at_mut(4 + part.len());
        head[..4].copy_from_slice(&length(part));
        head[4..].copy_from_slice(part);
        rest = tail;
    }
    all
}

fn length(part: &[u8]) -> [u8; 4] {
    u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes()
}

#[cfg(test)]
mod tests;
