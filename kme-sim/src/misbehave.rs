//! What a simulated KME does wrong on request. Each fault is one that real servers or networks show, and a client of
//! ETSI GS QKD 014 must survive it.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::api::{DeliveredKey, Op};
use crate::link::{NoRandomness, random_id, random_key};

/// A fault, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Misbehaviour {
    /// Behaves as the document says.
    #[default]
    None,
    /// The port is closed and open connections are cut. For all operations at once.
    RefuseTcp,
    /// TLS and the request are accepted, and no answer ever comes. The request isn't carried out.
    Hang,
    /// 500 with an error body; not carried out.
    #[serde(rename = "http_500")]
    #[value(name = "http_500")]
    Http500,
    /// 503 with an error body; not carried out.
    #[serde(rename = "http_503")]
    #[value(name = "http_503")]
    Http503,
    /// 200 with an HTML page; not carried out.
    Html,
    /// 200 with JSON that breaks off; not carried out.
    RubbishJson,
    /// Carried out, but each key in the answer is one byte short.
    WrongSize,
    /// 200 with no keys; not carried out.
    EmptyList,
    /// Carried out, but the first key and its ID stand twice: in place of the second, or added if there was one key.
    Duplicate,
    /// Carried out, but the first two keys of the answer are exchanged under their IDs; one key stays as it is.
    SwapKeys,
    /// Carried out, but the answer's IDs are ones that nobody knows.
    UnknownId,
    /// Carried out, but each key's bytes are others than the other side gets.
    WrongBytes,
}

/// Which operations a fault is set for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Ops {
    /// Get status.
    Status,
    /// Get key.
    EncKeys,
    /// Get key with key IDs.
    DecKeys,
    /// Each that the fault can be set for.
    #[default]
    All,
}

/// A fault that makes no sense for the operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotApplicable {
    /// A closed port can't tell the operations apart.
    #[error("refuse_tcp closes the whole port; set it for op \"all\"")]
    WholePort,
    /// There is no key in a status.
    #[error("status has no keys to spoil; set this fault for enc_keys, dec_keys or all")]
    NoKeys,
}

/// One KME's faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Faults {
    /// Whether the port is closed.
    pub refuse_tcp: bool,
    /// What get status does.
    pub status: Misbehaviour,
    /// What get key does.
    pub enc_keys: Misbehaviour,
    /// What get key with key IDs does.
    pub dec_keys: Misbehaviour,
}

impl Faults {
    /// These faults with `how` set for `ops`. Any fault but `refuse_tcp`, set for all, opens the port again.
    ///
    /// # Errors
    /// [`NotApplicable`] if `how` can't be set for `ops`.
    pub fn with(mut self, ops: Ops, how: Misbehaviour) -> Result<Self, NotApplicable> {
        let spoils = how.spoils_keys();
        match ops {
            Ops::All if how == Misbehaviour::RefuseTcp => self.refuse_tcp = true,
            _ if how == Misbehaviour::RefuseTcp => return Err(NotApplicable::WholePort),
            Ops::Status if spoils => return Err(NotApplicable::NoKeys),
            Ops::Status => self.status = how,
            Ops::EncKeys => self.enc_keys = how,
            Ops::DecKeys => self.dec_keys = how,
            Ops::All => {
                let status = if spoils { Misbehaviour::None } else { how };
                self = Self { refuse_tcp: false, status, enc_keys: how, dec_keys: how };
            }
        }
        Ok(self)
    }

    /// What `op` does.
    #[must_use]
    pub fn of(&self, op: Op) -> Misbehaviour {
        match op {
            Op::Status => self.status,
            Op::EncKeys => self.enc_keys,
            Op::DecKeys => self.dec_keys,
        }
    }
}

impl Misbehaviour {
    /// Whether it changes an answer's key list.
    fn spoils_keys(self) -> bool {
        matches!(
            self,
            Self::WrongSize
                | Self::EmptyList
                | Self::Duplicate
                | Self::SwapKeys
                | Self::UnknownId
                | Self::WrongBytes
        )
    }

    /// Spoils the keys of an answer that was otherwise right; other faults leave them alone.
    pub(crate) fn spoil(self, keys: &mut Vec<DeliveredKey>) -> Result<(), NoRandomness> {
        match self {
            Self::WrongSize => {
                for key in keys {
                    key.key.truncate(key.key.len().saturating_sub(1));
                }
            }
            Self::Duplicate => {
                if let Some(first) = keys.first().map(DeliveredKey::duplicate) {
                    match keys.get_mut(1) {
                        Some(second) => *second = first,
                        None => keys.push(first),
                    }
                }
            }
            Self::SwapKeys => {
                if let [first, second, ..] = keys.as_mut_slice() {
                    std::mem::swap(&mut first.key, &mut second.key);
                }
            }
            Self::UnknownId => {
                for key in keys {
                    key.id = random_id()?;
                }
            }
            Self::WrongBytes => {
                for key in keys {
                    key.key = random_key(key.key.len())?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}
