//! One KME as the daemon sees it, shared by all peers that use it: a source, its breaker, what is known about each link,
//! and its health. Keys only pass through.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::breaker::{Admission, Breaker};
use crate::clock::{boottime_ns, unix_seconds};
use crate::error::{Blame, KmsError, KmsErrorKind, Operation};
use crate::key::{KeyId, QkdKey};
use crate::source::{KeySource, Link};

/// How long the answer about a link holds before it is asked for again, in nanoseconds.
const LINK_HOLDS_NS: u64 = 600_000_000_000;

/// Whether a KME works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KmeState {
    /// It wasn't asked yet.
    Unknown,
    /// Its last answer was one of a KME that works, though perhaps without keys at the moment.
    Up,
    /// It failed, and is probed from time to time.
    Down,
}

impl KmeState {
    /// The word in status.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// A KME's state for people and programs. Holds no key material; what isn't known is `None`.
#[derive(Debug, Clone)]
pub struct KmeHealth {
    /// Our name for it.
    pub name: String,
    /// The interface that it speaks, as in the config.
    pub api: &'static str,
    /// Where it is.
    pub url: String,
    /// Whether it works.
    pub state: KmeState,
    /// The last failure.
    pub last_error: Option<KmsError>,
    /// How long ago that was.
    pub last_error_ago: Option<Duration>,
    /// How long ago an operation succeeded.
    pub last_success_ago: Option<Duration>,
    /// Keys in store by the latest status, as claimed.
    pub stored_key_count: Option<u64>,
    /// How long the last successful operation took.
    pub latency: Option<Duration>,
    /// Seconds until our certificate ends; negative once it has.
    pub cert_expires_in_s: Option<i64>,
    /// Seconds until the KME's certificate ends; negative once it has.
    pub kme_cert_expires_in_s: Option<i64>,
    /// The end of our certificate, in seconds since 1970.
    pub cert_not_after: Option<i64>,
    /// Why certificate files that changed aren't in use.
    pub cert_problem: Option<String>,
}

/// What happened at a KME. Key IDs and keys are in none of these.
#[derive(Debug, Clone)]
pub enum KmeEvent {
    /// It works, for the first time or again.
    Up {
        /// Our name for it.
        kme: String,
    },
    /// It stopped working.
    Down {
        /// Our name for it.
        kme: String,
        /// Why.
        error: KmsError,
    },
    /// It was asked something, for counters and histograms.
    Asked {
        /// Our name for it.
        kme: String,
        /// What.
        operation: Operation,
        /// `ok`, or [`KmsErrorKind::as_str`](crate::KmsErrorKind::as_str).
        outcome: &'static str,
        /// How long it took.
        took: Duration,
        /// Keys that may be spent without having reached us.
        keys_lost: u32,
    },
}

/// Is told each event, on the task that asked. It must not block.
pub type Observer = Arc<dyn Fn(KmeEvent) + Send + Sync>;

type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// One KME with its breaker and health.
pub struct Kme {
    source: Box<dyn KeySource>,
    observer: Observer,
    clock: Clock,
    inner: Mutex<Inner>,
}

/// A breaker, and the failure that opened it.
#[derive(Default)]
struct Fuse {
    breaker: Breaker,
    why: Option<KmsError>,
}

impl Fuse {
    fn failed(&mut self, now: u64, why: &KmsError) {
        self.breaker.failed(now);
        self.why = Some(why.clone());
    }
}

/// What is known about the link to one peer.
#[derive(Default)]
struct KnownLink {
    fuse: Fuse,
    /// The KME's last words about it, and when they came.
    told: Option<(u64, Link)>,
    /// Whether the last answer about it was one of a KME that works.
    works: Option<bool>,
}

#[derive(Default)]
struct Inner {
    fuse: Fuse,
    /// By the other SAE; these are our own config's peers, so there are few.
    links: HashMap<String, KnownLink>,
    up: Option<bool>,
    last_error: Option<(u64, KmsError)>,
    last_success: Option<u64>,
    latency: Option<Duration>,
    stored_key_count: Option<u64>,
}

impl Kme {
    /// A KME that wasn't asked yet.
    #[must_use]
    pub fn new(source: Box<dyn KeySource>, observer: Observer) -> Arc<Self> {
        Self::with_clock(source, observer, Arc::new(boottime_ns))
    }

    /// As [`new`](Self::new), with another clock (nanoseconds, never backwards), for tests on virtual time.
    #[must_use]
    pub fn with_clock(source: Box<dyn KeySource>, observer: Observer, clock: Clock) -> Arc<Self> {
        Arc::new(Self { source, observer, clock, inner: Mutex::default() })
    }

    /// Our name for it.
    #[must_use]
    pub fn name(&self) -> &str {
        self.source.name()
    }

    /// What is known about the link to `peer`, without asking.
    #[must_use]
    pub fn known_link(&self, peer: &str) -> Option<Link> {
        self.inner().links.get(peer)?.told.as_ref().map(|(_, link)| link.clone())
    }

    /// Its state now.
    #[must_use]
    pub fn health(&self) -> KmeHealth {
        let certificates = self.source.certificates();
        let (now, unix) = ((self.clock)(), unix_seconds());
        let ago = |then: u64| Duration::from_nanos(now.saturating_sub(then));
        let inner = self.inner();
        KmeHealth {
            name: self.source.name().to_owned(),
            api: self.source.api().as_str(),
            url: self.source.url().to_owned(),
            state: match inner.up {
                None => KmeState::Unknown,
                Some(true) => KmeState::Up,
                Some(false) => KmeState::Down,
            },
            last_error: inner.last_error.as_ref().map(|(_, error)| error.clone()),
            last_error_ago: inner.last_error.as_ref().map(|(then, _)| ago(*then)),
            last_success_ago: inner.last_success.map(ago),
            stored_key_count: inner.stored_key_count,
            latency: inner.latency,
            cert_expires_in_s: certificates.own_not_after.map(|end| end.saturating_sub(unix)),
            kme_cert_expires_in_s: certificates.kme_not_after.map(|end| end.saturating_sub(unix)),
            cert_not_after: certificates.own_not_after,
            cert_problem: certificates.problem,
        }
    }

    /// Asks about the link to `peer` now, if the breaker lets us; takes no key. For a health check from time to time.
    ///
    /// # Errors
    /// The KME's failure, or its former one while it rests.
    pub async fn probe(&self, peer: &str) -> Result<Link, KmsError> {
        let _leave = self.admit(peer)?;
        self.ask_link(peer).await
    }

    /// The link to `peer`, known or asked. While a breaker is open it is probed, or nothing is done.
    pub(crate) async fn link(&self, peer: &str) -> Result<Link, KmsError> {
        let leave = self.admit(peer)?;
        if leave.is_none() {
            let now = (self.clock)();
            let inner = self.inner();
            let told = inner.links.get(peer).and_then(|link| link.told.as_ref());
            if let Some((then, link)) = told
                && now.saturating_sub(*then) < LINK_HOLDS_NS
            {
                return Ok(link.clone());
            }
        }
        self.ask_link(peer).await
    }

    pub(crate) async fn fetch_new(
        &self,
        peer: &str,
        number: u32,
        bits: u32,
    ) -> Result<Vec<QkdKey>, KmsError> {
        self.ask(Operation::EncKeys, peer, self.source.fetch_new(peer, number, bits)).await
    }

    pub(crate) async fn fetch_by_ids(&self, peer: &str, ids: &[KeyId]) -> Result<Vec<QkdKey>, KmsError> {
        self.ask(Operation::DecKeys, peer, self.source.fetch_by_ids(peer, ids)).await
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leave to ask about `peer`: of both breakers the KME's own comes first. A probe's leave is given back when dropped.
    fn admit<'a>(&'a self, peer: &'a str) -> Result<Option<ProbeLeave<'a>>, KmsError> {
        let now = (self.clock)();
        let mut inner = self.inner();
        match inner.fuse.breaker.admit(now) {
            Admission::Ask => {}
            Admission::Probe => return Ok(Some(ProbeLeave { kme: self, peer: None })),
            Admission::Rest(left) => return Err(self.resting(&inner.fuse, left, peer)),
        }
        let fuse = &mut inner.links.entry(peer.to_owned()).or_default().fuse;
        match fuse.breaker.admit(now) {
            Admission::Ask => Ok(None),
            Admission::Probe => Ok(Some(ProbeLeave { kme: self, peer: Some(peer) })),
            Admission::Rest(left) => Err(self.resting(fuse, left, peer)),
        }
    }

    /// Why it isn't asked: the failure that opened the breaker, and when it is asked again.
    fn resting(&self, fuse: &Fuse, left: u64, peer: &str) -> KmsError {
        let seconds = left.div_ceil(1_000_000_000);
        let kind = fuse.why.as_ref().map_or(KmsErrorKind::Unreachable, KmsError::kind);
        let error = KmsError::new(kind, self.name(), Operation::Status, peer);
        match &fuse.why {
            Some(why) => error
                .with_detail(format!("not asked now, again in {seconds} s, since it failed: {why}"))
                .with_advice(why.advice()),
            None => error.with_detail(format!("not asked now, again in {seconds} s")),
        }
    }

    async fn ask_link(&self, peer: &str) -> Result<Link, KmsError> {
        let link = self.ask(Operation::Status, peer, self.source.link(peer)).await?;
        let mut inner = self.inner();
        inner.stored_key_count = link.stored_key_count;
        inner.links.entry(peer.to_owned()).or_default().told = Some(((self.clock)(), link.clone()));
        Ok(link)
    }

    /// Asks, and takes note of how it went.
    async fn ask<T>(
        &self,
        operation: Operation,
        peer: &str,
        work: impl Future<Output = Result<T, KmsError>>,
    ) -> Result<T, KmsError> {
        let began = (self.clock)();
        let result = work.await;
        let now = (self.clock)();
        let took = Duration::from_nanos(now.saturating_sub(began));
        let (turned, outcome, keys_lost) = {
            let mut inner = self.inner();
            let works = inner.note(peer, result.as_ref().err(), operation != Operation::Status, now);
            let turned = inner.up != Some(works);
            inner.up = Some(works);
            match &result {
                Ok(_) => {
                    inner.last_success = Some(now);
                    inner.latency = Some(took);
                    (turned.then_some(None), "ok", 0)
                }
                Err(error) => {
                    inner.last_error = Some((now, error.clone()));
                    let event = turned.then(|| (!works).then(|| error.clone()));
                    (event, error.kind().as_str(), error.keys_lost())
                }
            }
        };
        let kme = self.name().to_owned();
        if let Err(error) = &result {
            tracing::debug!(%error, advice = error.advice(), "KME operation failed");
        }
        match turned {
            Some(None) => (self.observer)(KmeEvent::Up { kme: kme.clone() }),
            Some(Some(error)) => (self.observer)(KmeEvent::Down { kme: kme.clone(), error }),
            None => {}
        }
        (self.observer)(KmeEvent::Asked { kme, operation, outcome, took, keys_lost });
        result
    }
}

impl Inner {
    /// Sets the breakers after an answer about `peer`, and says whether the KME works: it does if it can be reached and at
    /// least one link does, so that one peer that is set up wrongly doesn't make it look broken.
    fn note(&mut self, peer: &str, error: Option<&KmsError>, took_keys: bool, now: u64) -> bool {
        let link = self.links.entry(peer.to_owned()).or_default();
        match error.map(|error| (error.blame(), error)) {
            None => {
                self.fuse.breaker.succeeded(took_keys);
                link.fuse.breaker.succeeded(took_keys);
                link.works = Some(true);
            }
            Some((Blame::Nothing, _)) => {
                self.fuse.breaker.succeeded(false);
                link.fuse.breaker.succeeded(false);
                link.works = Some(true);
            }
            Some((Blame::Link, why)) => {
                self.fuse.breaker.succeeded(false);
                link.fuse.failed(now, why);
                link.works = Some(false);
            }
            Some((Blame::Kme, why)) => {
                self.fuse.failed(now, why);
                return false;
            }
        }
        self.links.values().any(|link| link.works == Some(true))
    }
}

/// Leave for one probe. If its future is dropped before it told anything, the next caller may probe.
struct ProbeLeave<'a> {
    kme: &'a Kme,
    /// The link whose breaker gave it; `None`: the KME's own.
    peer: Option<&'a str>,
}

impl Drop for ProbeLeave<'_> {
    fn drop(&mut self) {
        let now = (self.kme.clock)();
        let mut inner = self.kme.inner();
        match self.peer {
            None => inner.fuse.breaker.probe_dropped(now),
            Some(peer) => inner.links.entry(peer.to_owned()).or_default().fuse.breaker.probe_dropped(now),
        }
    }
}
