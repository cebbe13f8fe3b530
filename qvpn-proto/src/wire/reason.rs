//! The reasons for refusing a message, and for requesting an epoch. Each is one byte on the wire, and has a
//! text for the logs of both sides.

use super::codec::{ParseError, Reader};

/// Why a message was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RejectReason {
    /// The peer speaks another version of the protocol.
    Version = 1,
    /// The QKD policies are incompatible, or an epoch would break one.
    Policy = 2,
    /// The suites differ.
    Suite = 3,
    /// The ML-KEM key is not the one that the config names.
    Identity = 4,
    /// Both sides have the same role.
    Role = 5,
    /// A SAE ID is not the one that the config names.
    SaeId = 6,
    /// The pre-shared keys differ, or one side has none.
    Psk = 7,
    /// The QKD key is not in the responder's stock.
    UnknownKeyId = 8,
    /// The responder cannot reach its KMS.
    KmsUnavailable = 9,
    /// The chain of earlier epochs does not match.
    Chain = 10,
    /// The message names a `Hello` or a number that is no longer in force.
    Stale = 11,
    /// A value in the message is unusable.
    Malformed = 12,
}

impl RejectReason {
    /// Returns the reason with this byte on the wire.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Version,
            2 => Self::Policy,
            3 => Self::Suite,
            4 => Self::Identity,
            5 => Self::Role,
            6 => Self::SaeId,
            7 => Self::Psk,
            8 => Self::UnknownKeyId,
            9 => Self::KmsUnavailable,
            10 => Self::Chain,
            11 => Self::Stale,
            12 => Self::Malformed,
            _ => return None,
        })
    }

    /// Returns a short name for labels and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::Policy => "policy",
            Self::Suite => "suite",
            Self::Identity => "identity",
            Self::Role => "role",
            Self::SaeId => "sae_id",
            Self::Psk => "psk",
            Self::UnknownKeyId => "unknown_key_id",
            Self::KmsUnavailable => "kms_unavailable",
            Self::Chain => "chain",
            Self::Stale => "stale",
            Self::Malformed => "malformed",
        }
    }
}

/// Why the responder asks for an epoch: the body of `Rekey`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RekeyReason {
    /// The operator requested one.
    Operator = 0,
    /// The responder has no epoch to seal in.
    NoEpoch = 1,
    /// A lane ended its key before the epoch's end.
    KeyEnded = 2,
}

impl RekeyReason {
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 1] {
        [self as u8]
    }

    /// Parses the whole message.
    ///
    /// # Errors
    /// [`ParseError`] names the field.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut r = Reader::new(bytes);
        let reason = match r.u8("reason")? {
            0 => Self::Operator,
            1 => Self::NoEpoch,
            2 => Self::KeyEnded,
            _ => return Err(ParseError::Value("reason")),
        };
        r.end()?;
        Ok(reason)
    }

    /// Returns the text after "the other site asks for an epoch: ".
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Operator => "its operator wants one",
            Self::NoEpoch => "it has none to seal in",
            Self::KeyEnded => "a lane ended its key early",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_of_a_rekey_have_the_protocols_numbers_and_words_of_their_own() {
        let all = [RekeyReason::Operator, RekeyReason::NoEpoch, RekeyReason::KeyEnded];
        for (number, reason) in (0..).zip(all) {
            assert_eq!((reason.to_bytes(), RekeyReason::parse(&[number])), ([number], Ok(reason)));
        }
        assert_eq!(RekeyReason::parse(&[3]), Err(ParseError::Value("reason")));
        assert!(RekeyReason::parse(&[]).is_err() && RekeyReason::parse(&[0, 0]).is_err());
        assert!(all[0].words().contains("operator"));
        assert!(all[1].words().contains("none to seal in"));
        assert!(all[2].words().contains("ended its key"));
    }
}
