//! One KME as the daemon sees it, shared by all peers that use it: a source, its breaker, what is known about each link,
//! and its health. Keys only pass through.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::api::Api;
use crate::clock::{boottime_ns, unix_seconds};
use crate::error::{Blame, KmsError, KmsErrorKind, Operation, Phase};
use crate::key::{KeyId, QkdKey};
use crate::pool::breaker::{Admission, Breaker, Failure};
use crate::source::{Certificates, KeySource, Link};

/// How long the answer about a link holds before it is asked for again, in nanoseconds.
const LINK_HOLDS_NS: u64 = 600_000_000_000;
/// A KME that nobody asked for so long is probed, so that a spare one that doesn't work is known before it is needed.
const IDLE_NS: u64 = 60_000_000_000;
/// Between two probes of a KME's links: a KME that fails for many peers isn't flooded with probes.
const PROBE_GAP_NS: u64 = 100_000_000;
/// Operations at one KME at once; the others wait. A KME that comes back isn't overrun by a thousand peers.
const AT_ONCE: usize = 16;

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
    /// It answers again, so whoever waits for keys may ask at once. Whether it gives any isn't known yet.
    Answers {
        /// Our name for it.
        kme: String,
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
    at_once: Semaphore,
}

/// A probe that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueProbe {
    /// The SAE whose link is to be asked about.
    pub peer: String,
    /// Whether the KME, or this link, had failed; otherwise it was merely not asked for long.
    pub after_failure: bool,
}

/// A breaker, and the failure that opened it.
#[derive(Default)]
struct Fuse {
    breaker: Breaker,
    why: Option<KmsError>,
}

impl Fuse {
    fn failed(&mut self, now: u64, why: &KmsError) {
        self.breaker.failed(now, how_it_failed(why));
        self.why = Some(why.clone());
    }
}

/// Whether nothing was there, or what was there did badly.
fn how_it_failed(error: &KmsError) -> Failure {
    use KmsErrorKind as K;
    match (error.kind(), error.operation()) {
        (K::Unreachable | K::Timeout(Phase::Resolve | Phase::Connect | Phase::Tls), _)
        | (K::Timeout(_) | K::ServerFault, Operation::Status) => Failure::Gone,
        _ => Failure::Bad,
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
    /// When a request for keys failed though the KME was there, and none went well since. A good status doesn't disprove it.
    keys_failed: Option<u64>,
}

#[derive(Default)]
struct Inner {
    fuse: Fuse,
    /// By the other SAE; these are our own config's peers, so there are few.
    links: HashMap<String, KnownLink>,
    up: Option<bool>,
    /// Whether it answered when it was last asked.
    answers: Option<bool>,
    /// As for a link, where the whole KME is to blame.
    keys_failed: Option<u64>,
    /// When it was last asked anything, and when a link may be probed again.
    asked_at: Option<u64>,
    next_link_probe: u64,
    /// The link that was probed last, so that the next one gets its turn.
    probed: usize,
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
        let at_once = Semaphore::new(AT_ONCE);
        Arc::new(Self { source, observer, clock, inner: Mutex::default(), at_once })
    }

    /// Our name for it.
    #[must_use]
    pub fn name(&self) -> &str {
        self.source.name()
    }

    /// The interface that it speaks.
    #[must_use]
    pub fn api(&self) -> Api {
        self.source.api()
    }

    /// When its certificates end.
    #[must_use]
    pub fn certificates(&self) -> Certificates {
        self.source.certificates()
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

    /// The probe that is due now, if one is: of a KME or a link that failed and has rested, or that nobody asked for a
    /// while. `peers` are the SAEs for which this KME is configured. To be looked at about twice a second.
    #[must_use]
    pub fn due_probe(&self, peers: &[&str]) -> Option<DueProbe> {
        let now = (self.clock)();
        let mut inner = self.inner();
        let count = peers.len();
        let first = inner.probed;
        let (found, after_failure) = if inner.fuse.breaker.is_open() {
            (inner.fuse.breaker.probe_due(now).then_some(first), true)
        } else {
            let due = |i: &usize| {
                let link = peers.get(i % count).and_then(|peer| inner.links.get(*peer));
                link.is_some_and(|link| link.fuse.breaker.probe_due(now))
            };
            let link = (first..first + count).find(due).filter(|_| inner.up == Some(false));
            let idle = inner.asked_at.is_none_or(|at| now.saturating_sub(at) >= IDLE_NS);
            (link.or(idle.then_some(first)), link.is_some())
        };
        let turn = found?.checked_rem(count)?;
        inner.probed = (turn + 1) % count;
        // Whoever is told asks at once, and nobody else needs to.
        inner.asked_at = Some(now);
        Some(DueProbe { peer: (*peers.get(turn)?).to_owned(), after_failure })
    }

    /// Asks about the link to `peer` now, if the breaker lets us; takes no key. For a health check from time to time.
    ///
    /// # Errors
    /// The KME's failure, or its former one while it rests.
    pub async fn probe(&self, peer: &str) -> Result<Link, KmsError> {
        let _turn = self.turn().await;
        let _leave = self.admit(peer)?;
        self.ask_link(peer).await
    }

    /// A turn at the KME; no more than [`AT_ONCE`] are given at a time.
    async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed.
        self.at_once.acquire().await.ok()
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
        let _turn = self.turn().await;
        self.ask_link(peer).await
    }

    /// Whether no request of somebody else found the KME or the link broken while this one waited for its turn.
    fn still_works(&self, peer: &str) -> Result<(), KmsError> {
        let inner = self.inner();
        let fuses = [Some(&inner.fuse), inner.links.get(peer).map(|link| &link.fuse)];
        match fuses.into_iter().flatten().find(|fuse| fuse.breaker.is_open()) {
            Some(fuse) => Err(self.resting(fuse, fuse.breaker.rests_for((self.clock)()), peer)),
            None => Ok(()),
        }
    }

    pub(crate) async fn fetch_new(
        &self,
        peer: &str,
        number: u32,
        bits: u32,
    ) -> Result<Vec<QkdKey>, KmsError> {
        let _turn = self.turn().await;
        self.still_works(peer)?;
        self.ask(Operation::EncKeys, peer, self.source.fetch_new(peer, number, bits)).await
    }

    pub(crate) async fn fetch_by_ids(&self, peer: &str, ids: &[KeyId]) -> Result<Vec<QkdKey>, KmsError> {
        let _turn = self.turn().await;
        self.still_works(peer)?;
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
        let next = inner.next_link_probe;
        let fuse = &mut inner.links.entry(peer.to_owned()).or_default().fuse;
        if fuse.breaker.probe_due(now) && next > now {
            return Err(self.resting(fuse, next - now, peer));
        }
        match fuse.breaker.admit(now) {
            Admission::Ask => Ok(None),
            Admission::Probe => {
                inner.next_link_probe = now.saturating_add(PROBE_GAP_NS);
                Ok(Some(ProbeLeave { kme: self, peer: Some(peer) }))
            }
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
        self.inner().asked_at = Some(began);
        let result = work.await;
        let now = (self.clock)();
        let took = Duration::from_nanos(now.saturating_sub(began));
        let (turned, back, outcome, keys_lost) = {
            let mut inner = self.inner();
            let works = inner.note(peer, result.as_ref().err(), operation != Operation::Status, now);
            let was_up = inner.up.replace(works);
            let turned = was_up != Some(works);
            let answers = result.as_ref().err().is_none_or(|error| error.blame() != Blame::Kme);
            let came_back = (answers && inner.answers == Some(false)) || (was_up == Some(false) && works);
            inner.answers = Some(answers);
            if came_back {
                inner.links.values_mut().for_each(|link| link.fuse.breaker.cut_short(now));
            }
            match &result {
                Ok(_) => {
                    inner.last_success = Some(now);
                    inner.latency = Some(took);
                    // A status that works doesn't mean that the KME does, where keys failed.
                    ((turned && works).then_some(None), came_back, "ok", 0)
                }
                Err(error) => {
                    inner.last_error = Some((now, error.clone()));
                    let event = turned.then(|| (!works).then(|| error.clone()));
                    (event, came_back, error.kind().as_str(), error.keys_lost())
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
        if back {
            (self.observer)(KmeEvent::Answers { kme: kme.clone() });
        }
        (self.observer)(KmeEvent::Asked { kme, operation, outcome, took, keys_lost });
        result
    }
}

impl Inner {
    /// Sets the breakers after an answer about `peer`, and says whether the KME works: it does if it can be reached and at
    /// least one link does, so that one peer that is set up wrongly doesn't make it look broken. Where keys failed though
    /// the KME was there, a good status isn't enough for a while.
    fn note(&mut self, peer: &str, error: Option<&KmsError>, about_keys: bool, now: u64) -> bool {
        let link = self.links.entry(peer.to_owned()).or_default();
        match error.map(|error| (error.blame(), error)) {
            None | Some((Blame::Nothing, _)) => {
                let delivered = about_keys && error.is_none();
                self.fuse.breaker.succeeded(delivered);
                link.fuse.breaker.succeeded(delivered);
                if about_keys {
                    (self.keys_failed, link.keys_failed) = (None, None);
                }
                link.works = Some(!lately(link.keys_failed, now));
            }
            Some((Blame::Link, why)) => {
                self.fuse.breaker.succeeded(false);
                link.fuse.failed(now, why);
                link.keys_failed = about_keys.then_some(now).or(link.keys_failed);
                link.works = Some(false);
            }
            Some((Blame::Kme, why)) => {
                self.fuse.failed(now, why);
                let was_there = how_it_failed(why) == Failure::Bad;
                self.keys_failed = (about_keys && was_there).then_some(now).or(self.keys_failed);
                return false;
            }
        }
        !lately(self.keys_failed, now) && self.links.values().any(|link| link.works == Some(true))
    }
}

fn lately(then: Option<u64>, now: u64) -> bool {
    then.is_some_and(|then| now.saturating_sub(then) < IDLE_NS)
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
