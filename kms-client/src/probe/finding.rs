//! The findings of a check, and the kinds of sources that it can check.

use std::time::Duration;

use tokio::time::Instant;

use crate::error::KmsError;
use crate::etsi004::client::Etsi004Client;
use crate::etsi014::client::KmsClient;
use crate::skip::client::SkipClient;
use crate::source::KeySource;

/// A slower answer is reported.
const SLOW_ANSWER: Duration = Duration::from_secs(1);

/// The subject of a finding, in the order of the check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Name lookup and TCP.
    Reach,
    /// Version, group and suite.
    Tls,
    /// The KME's certificate, and ours.
    Certificate,
    /// The KME's name for us.
    Identity,
    /// The link's status.
    Status,
    /// New keys, as the master SAE.
    Take,
    /// The same keys by their IDs, as the slave SAE.
    Fetch,
}

impl Step {
    /// Returns the fixed word for programs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reach => "reach",
            Self::Tls => "tls",
            Self::Certificate => "certificate",
            Self::Identity => "identity",
            Self::Status => "status",
            Self::Take => "take",
            Self::Fetch => "fetch",
        }
    }
}

/// The result of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// There is nothing to report.
    Ok,
    /// Unusual, but qvpn can work with it.
    Quirk,
    /// qvpn can't work with it.
    Failed,
    /// Not checked.
    Skipped,
}

impl Verdict {
    /// Returns the fixed word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Quirk => "quirk",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }
}

/// One finding. It holds no key material.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The subject.
    pub step: Step,
    /// The result.
    pub verdict: Verdict,
    /// A fixed word for programs.
    pub code: &'static str,
    /// The finding in words.
    pub text: String,
    /// What to do; empty if there is nothing to do.
    pub advice: String,
}

pub(crate) fn ok(step: Step, code: &'static str, text: impl Into<String>) -> Finding {
    Finding { step, verdict: Verdict::Ok, code, text: text.into(), advice: String::new() }
}

pub(crate) fn quirk(step: Step, code: &'static str, text: impl Into<String>, advice: &str) -> Finding {
    Finding { step, verdict: Verdict::Quirk, code, text: text.into(), advice: advice.to_owned() }
}

pub(crate) fn failed(step: Step, error: &KmsError) -> Finding {
    let (code, advice) = (error.kind().as_str(), error.advice().to_owned());
    Finding { step, verdict: Verdict::Failed, code, text: error.to_string(), advice }
}

pub(crate) fn broken(step: Step, code: &'static str, text: impl Into<String>, advice: &str) -> Finding {
    Finding { step, verdict: Verdict::Failed, code, text: text.into(), advice: advice.to_owned() }
}

/// Makes the finding for a step that is left out, with the reason.
#[must_use]
pub fn skipped(step: Step, code: &'static str, why: impl Into<String>) -> Finding {
    Finding { step, verdict: Verdict::Skipped, code, text: why.into(), advice: String::new() }
}

/// The source that is checked.
#[derive(Clone, Copy)]
pub enum Probed<'a> {
    /// ETSI GS QKD 014: its status is checked field by field.
    Etsi014(&'a KmsClient),
    /// ETSI GS QKD 004: a stream is opened and closed.
    Etsi004(&'a Etsi004Client),
    /// SKIP: its capabilities are checked.
    Skip(&'a SkipClient),
    /// Another kind.
    Other(&'a dyn KeySource),
}

impl<'a> Probed<'a> {
    /// Returns the source of keys.
    #[must_use]
    pub fn source(self) -> &'a dyn KeySource {
        match self {
            Self::Etsi014(client) => client,
            Self::Etsi004(client) => client,
            Self::Skip(client) => client,
            Self::Other(source) => source,
        }
    }
}

/// Reports a slow answer, not counting the time of the connection.
pub(crate) fn slow(step: Step, began: Instant, source: &dyn KeySource) -> Option<Finding> {
    let connection_time = source
        .connection()
        .map_or(Duration::ZERO, |c| c.connected_in.unwrap_or_default() + c.tls_in.unwrap_or_default());
    let took = began.elapsed().saturating_sub(connection_time);
    (took >= SLOW_ANSWER).then(|| {
        quirk(
            step,
            "slow",
            format!("the answer took {:.1} s", took.as_secs_f64()),
            "qvpn waits 5 s for a whole operation; ask the KME's operator about its load",
        )
    })
}
