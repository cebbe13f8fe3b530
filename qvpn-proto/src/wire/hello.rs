//! `Hello`: the identity and the settings of a side. It is in force until the side's next `Hello`, and its
//! bytes are part of every transcript.

use super::codec::{ParseError, Reader, VERSION, put_name, put_option};
use qvpn_identity::kem::EkBytes;
use qvpn_types::{QkdPolicy, Role, SaeId, Suite};

/// The first release that speaks [`VERSION`]. Logs name it to the operator of the older site.
pub const RELEASE: &str = "0.2.0";

/// The identity and the settings of a side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Random, new at each start.
    pub instance: [u8; 16],
    /// Rises with each `Hello` of an instance that differs from the previous one.
    pub counter: u64,
    /// The sender's role.
    pub role: Role,
    /// The sender's suite.
    pub suite: Suite,
    /// The sender's lanes, 1 to 16.
    pub lanes: u8,
    /// The sender's policy.
    pub policy: QkdPolicy,
    /// The sender's rekey interval in milliseconds, 100 to 120,000.
    pub interval_ms: u32,
    /// The shortest interval that the sender agrees to, in milliseconds, 100 to 120,000.
    pub min_interval_ms: u32,
    /// The sender's SAE ID; `None` if it has no KMS.
    pub sae_own: Option<SaeId>,
    /// The SAE ID that the sender's config names for the receiver.
    pub sae_peer: Option<SaeId>,
    /// The check value of the sender's PSK, if it has one.
    pub psk_check: Option<[u8; 16]>,
    /// The sender's static encapsulation key.
    pub encapsulation_key: Box<EkBytes>,
}

impl Hello {
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend_from_slice(&self.instance);
        out.extend_from_slice(&self.counter.to_be_bytes());
        out.extend_from_slice(&[self.role as u8, self.suite as u8, self.lanes, self.policy as u8]);
        out.extend_from_slice(&self.interval_ms.to_be_bytes());
        out.extend_from_slice(&self.min_interval_ms.to_be_bytes());
        put_name(&mut out, self.sae_own.as_ref().map_or("", SaeId::as_str));
        put_name(&mut out, self.sae_peer.as_ref().map_or("", SaeId::as_str));
        put_option(&mut out, self.psk_check.as_ref().map(|c| c.as_slice()));
        out.extend_from_slice(self.encapsulation_key.as_slice());
        out
    }

    /// Parses the whole message.
    ///
    /// # Errors
    /// [`ParseError`] names the field. Another version has its own error, so that the refusal can name it.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut r = Reader::new(bytes);
        let version = r.u8("version")?;
        if version != VERSION {
            return Err(ParseError::Version(version));
        }
        let instance = r.array("instance")?;
        let counter = r.u64("counter")?;
        let role = match r.u8("role")? {
            0 => Role::Initiator,
            1 => Role::Responder,
            _ => return Err(ParseError::Value("role")),
        };
        let suite = match r.u8("suite")? {
            0 => Suite::ChaCha20Poly1305,
            1 => Suite::Aes256Gcm,
            _ => return Err(ParseError::Value("suite")),
        };
        let lanes = r.u8("lanes")?;
        let policy = match r.u8("policy")? {
            0 => QkdPolicy::Off,
            1 => QkdPolicy::Preferred,
            2 => QkdPolicy::Required,
            _ => return Err(ParseError::Value("policy")),
        };
        let interval_ms = r.u32("interval")?;
        let min_interval_ms = r.u32("least interval")?;
        let sae_own = r.sae_id("own SAE ID")?;
        let sae_peer = r.sae_id("peer SAE ID")?;
        let psk_check = r.flag("PSK flag")?.then(|| r.array("PSK check")).transpose()?;
        let encapsulation_key = r.boxed("encapsulation key")?;
        r.end()?;
        if !(1..=super::limits::MAX_LANES).contains(&usize::from(lanes)) {
            return Err(ParseError::Value("lanes"));
        }
        for interval in [interval_ms, min_interval_ms] {
            if !(100..=120_000).contains(&interval) {
                return Err(ParseError::Value("interval"));
            }
        }
        Ok(Self {
            instance,
            counter,
            role,
            suite,
            lanes,
            policy,
            interval_ms,
            min_interval_ms,
            sae_own,
            sae_peer,
            psk_check,
            encapsulation_key,
        })
    }
}
