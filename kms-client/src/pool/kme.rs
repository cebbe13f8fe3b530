//! One KME, shared by all peers that use it: a source, its circuit breakers, what is known about each link,
//! and its health. It stores no keys.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use qvpn_types::{KeyId, SaeId};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::api::Api;
use crate::clock::{boottime_ns, unix_seconds};
use crate::error::{Blame, KmsError, KmsErrorKind, Operation, Phase};
use crate::key::QkdKey;
use crate::pool::breaker::{Admission, Breaker, Failure};
use crate::pool::health::{KmeEvent, KmeHealth, KmeState, Observer};
use crate::source::{Certificates, KeySource, Link};

/// The age in nanoseconds after which the status of a link is requested again.
const LINK_MAX_AGE_NS: u64 = 600_000_000_000;
/// A KME is probed after this time without a request, so that a failed standby KME is known before it is
/// needed.
const IDLE_PROBE_INTERVAL_NS: u64 = 60_000_000_000;
/// The minimum time between two probes of a KME's links, so that a KME that fails for many peers isn't
/// flooded with probes.
const MIN_PROBE_INTERVAL_NS: u64 = 100_000_000;
/// Further requests wait, so that a KME that returns isn't flooded by a thousand peers.
const MAX_CONCURRENT_REQUESTS: usize = 16;

type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// One KME with its breaker and health.
pub struct Kme {
    source: Box<dyn KeySource>,
    observer: Observer,
    clock: Clock,
    inner: Mutex<Inner>,
    request_slots: Semaphore,
}

/// A probe that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueProbe {
    /// The SAE whose link is to be asked about.
    pub peer: SaeId,
    /// Whether the KME, or this link, had failed; otherwise it was only idle.
    pub after_failure: bool,
}

/// A breaker with the failure that opened it.
#[derive(Default)]
struct TrippedBreaker {
    breaker: Breaker,
    why: Option<KmsError>,
}

impl TrippedBreaker {
    fn is_of_peer_kme(&self) -> bool {
        self.why.as_ref().is_some_and(|why| why.kind() == KmsErrorKind::PeerKmeDown)
    }

    fn on_failure(&mut self, now: u64, why: &KmsError) {
        self.breaker.on_failure(now, failure_class(why));
        self.why = Some(why.clone());
    }
}

/// Classifies a failure: nothing answered, or the answer was wrong.
fn failure_class(error: &KmsError) -> Failure {
    use KmsErrorKind as K;
    match (error.kind(), error.operation()) {
        // Behind a proxy, a request may have been carried out, so it is not repeated each second.
        (K::Proxy, _) if error.keys_lost() > 0 => Failure::Faulty,
        (
            K::Unreachable
            | K::Proxy
            | K::PeerKmeDown
            | K::Timeout(Phase::Resolve | Phase::Connect | Phase::Tls),
            _,
        )
        | (K::Timeout(_) | K::ServerFault, Operation::Status) => Failure::Absent,
        _ => Failure::Faulty,
    }
}

/// What is known about the link to one peer.
#[derive(Default)]
struct LinkState {
    tripped: TrippedBreaker,
    /// The latest status, and when it came.
    status: Option<(u64, Link)>,
    /// Whether the link worked at the last request.
    works: Option<bool>,
    /// When a request for keys failed at a KME that is present, unless one succeeded since. A good status
    /// doesn't clear it.
    keys_failed: Option<u64>,
}

#[derive(Default)]
struct Inner {
    tripped: TrippedBreaker,
    /// By the peer's SAE ID. Only peers of the config are in it, so the map is small.
    links: HashMap<SaeId, LinkState>,
    up: Option<bool>,
    /// Whether it answered the last request.
    answers: Option<bool>,
    /// As in [`LinkState`], for failures of the whole KME.
    keys_failed: Option<u64>,
    /// When the last request began.
    asked_at: Option<u64>,
    next_link_probe: u64,
    /// The link of the next probe.
    next_probed: usize,
    last_error: Option<(u64, KmsError)>,
    last_success: Option<u64>,
    latency: Option<Duration>,
    stored_key_count: Option<u64>,
}

impl Kme {
    /// Makes a KME that has not been asked yet.
    #[must_use]
    pub fn new(source: Box<dyn KeySource>, observer: Observer) -> Arc<Self> {
        Self::with_clock(source, observer, Arc::new(boottime_ns))
    }

    /// As [`new`](Self::new), with another monotonic clock (nanoseconds), for tests on virtual time.
    #[must_use]
    pub fn with_clock(source: Box<dyn KeySource>, observer: Observer, clock: Clock) -> Arc<Self> {
        let request_slots = Semaphore::new(MAX_CONCURRENT_REQUESTS);
        Arc::new(Self { source, observer, clock, inner: Mutex::default(), request_slots })
    }

    /// Returns its name in the config.
    #[must_use]
    pub fn name(&self) -> &str {
        self.source.name()
    }

    /// Returns its interface.
    #[must_use]
    pub fn api(&self) -> Api {
        self.source.api()
    }

    /// Ends what is open at the KME, before the program stops or drops it.
    pub async fn close(&self) {
        self.source.close().await;
    }

    /// Returns when its certificates expire.
    #[must_use]
    pub fn certificates(&self) -> Certificates {
        self.source.certificates()
    }

    /// Returns the latest status of the link to `peer`, without a request.
    #[must_use]
    pub fn known_link(&self, peer: &SaeId) -> Option<Link> {
        self.inner().links.get(peer)?.status.as_ref().map(|(_, link)| link.clone())
    }

    /// Returns its current state.
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

    /// Returns the probe that is due now, if any: of a KME or link whose delay after a failure is over, or of
    /// an idle KME. `peers` are the SAEs for which this KME is configured. Call this about twice a second.
    #[must_use]
    pub fn due_probe(&self, peers: &[&SaeId]) -> Option<DueProbe> {
        let now = (self.clock)();
        let mut inner = self.inner();
        let count = peers.len();
        let first = inner.next_probed;
        let (found, after_failure) = if inner.tripped.breaker.is_open() {
            (inner.tripped.breaker.probe_due(now).then_some(first), true)
        } else {
            // While other links work, the peers' requests show whether a failed link works again. But a peer
            // whose site has no working KME rarely sends one.
            let kme_down = inner.up == Some(false);
            let due = |i: &usize| {
                let link = peers.get(i % count).and_then(|peer| inner.links.get(*peer));
                link.is_some_and(|link| {
                    link.tripped.breaker.probe_due(now) && (kme_down || link.tripped.is_of_peer_kme())
                })
            };
            let link = (first..first + count).find(due);
            let idle = inner.asked_at.is_none_or(|at| now.saturating_sub(at) >= IDLE_PROBE_INTERVAL_NS);
            (link.or(idle.then_some(first)), link.is_some())
        };
        let next = found?.checked_rem(count)?;
        inner.next_probed = (next + 1) % count;
        // The caller sends the probe at once, so no other caller gets it.
        inner.asked_at = Some(now);
        Some(DueProbe { peer: (*peers.get(next)?).clone(), after_failure })
    }

    /// Requests the status of the link to `peer` now, if the breaker allows it. It takes no key.
    ///
    /// # Errors
    /// The KME's failure, or the former one while the breaker is open.
    pub async fn probe(&self, peer: &SaeId) -> Result<Link, KmsError> {
        let _turn = self.request_slot().await;
        let _leave = self.admit(peer)?;
        self.ask_link(peer).await
    }

    /// Waits until fewer than [`MAX_CONCURRENT_REQUESTS`] requests are in progress.
    async fn request_slot(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed.
        self.request_slots.acquire().await.ok()
    }

    /// Returns the link to `peer`: the known status if it is recent, otherwise a new one. An open breaker
    /// allows a probe or nothing.
    pub(crate) async fn link(&self, peer: &SaeId) -> Result<Link, KmsError> {
        let permit = self.admit(peer)?;
        if permit.is_none() {
            let now = (self.clock)();
            let inner = self.inner();
            let status = inner.links.get(peer).and_then(|link| link.status.as_ref());
            if let Some((then, link)) = status
                && now.saturating_sub(*then) < LINK_MAX_AGE_NS
            {
                return Ok(link.clone());
            }
        }
        let _turn = self.request_slot().await;
        self.ask_link(peer).await
    }

    /// Fails if another request tripped a breaker while this one waited.
    fn check_not_tripped(&self, peer: &SaeId) -> Result<(), KmsError> {
        let inner = self.inner();
        let breakers = [Some(&inner.tripped), inner.links.get(peer).map(|link| &link.tripped)];
        match breakers.into_iter().flatten().find(|tripped| tripped.breaker.is_open()) {
            Some(tripped) => Err(self.not_asked_now(tripped, tripped.breaker.backoff((self.clock)()), peer)),
            None => Ok(()),
        }
    }

    pub(crate) async fn fetch_new(
        &self,
        peer: &SaeId,
        number: u32,
        bits: u32,
    ) -> Result<Vec<QkdKey>, KmsError> {
        let _turn = self.request_slot().await;
        self.check_not_tripped(peer)?;
        self.ask(Operation::EncKeys, peer, self.source.fetch_new(peer, number, bits)).await
    }

    pub(crate) async fn fetch_by_ids(&self, peer: &SaeId, ids: &[KeyId]) -> Result<Vec<QkdKey>, KmsError> {
        let _turn = self.request_slot().await;
        self.check_not_tripped(peer)?;
        self.ask(Operation::DecKeys, peer, self.source.fetch_by_ids(peer, ids)).await
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks both breakers, the KME's own first, whether a request about `peer` may be sent. A probe's permit
    /// is given back when it is dropped.
    fn admit<'a>(&'a self, peer: &'a SaeId) -> Result<Option<ProbePermit<'a>>, KmsError> {
        let now = (self.clock)();
        let mut inner = self.inner();
        match inner.tripped.breaker.admit(now) {
            Admission::Allow => {}
            Admission::Probe => return Ok(Some(ProbePermit { kme: self, peer: None })),
            Admission::Wait(left) => return Err(self.not_asked_now(&inner.tripped, left, peer)),
        }
        let next = inner.next_link_probe;
        let tripped = &mut inner.links.entry(peer.clone()).or_default().tripped;
        if tripped.breaker.probe_due(now) && next > now {
            return Err(self.not_asked_now(tripped, next - now, peer));
        }
        match tripped.breaker.admit(now) {
            Admission::Allow => Ok(None),
            Admission::Probe => {
                inner.next_link_probe = now.saturating_add(MIN_PROBE_INTERVAL_NS);
                Ok(Some(ProbePermit { kme: self, peer: Some(peer) }))
            }
            Admission::Wait(left) => Err(self.not_asked_now(tripped, left, peer)),
        }
    }

    /// Returns why no request is sent: the failure that opened the breaker, and when the KME is asked again.
    fn not_asked_now(&self, tripped: &TrippedBreaker, left: u64, peer: &SaeId) -> KmsError {
        let seconds = left.div_ceil(1_000_000_000);
        let why = tripped.why.clone().unwrap_or_else(|| {
            KmsError::new(KmsErrorKind::Unreachable, self.name(), Operation::Status, peer.as_str())
        });
        why.not_asked_now(seconds)
    }

    async fn ask_link(&self, peer: &SaeId) -> Result<Link, KmsError> {
        let link = self.ask(Operation::Status, peer, self.source.link(peer)).await?;
        let mut inner = self.inner();
        inner.stored_key_count = link.stored_key_count;
        inner.links.entry(peer.clone()).or_default().status = Some(((self.clock)(), link.clone()));
        Ok(link)
    }

    /// Awaits a request and records its outcome.
    async fn ask<T>(
        &self,
        operation: Operation,
        peer: &SaeId,
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
                inner.links.values_mut().for_each(|link| link.tripped.breaker.retry_now(now));
            }
            match &result {
                Ok(_) => {
                    inner.last_success = Some(now);
                    inner.latency = Some(took);
                    // After a failure of keys, a good status does not make the KME `Up`.
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
        (self.observer)(KmeEvent::Requested { kme, operation, outcome, took, keys_lost });
        result
    }
}

impl Inner {
    /// Sets the breakers after a request about `peer`. Returns whether the KME works: it does if it is
    /// reachable and at least one link works, so that one wrongly configured peer doesn't make it appear
    /// broken. After a failure of keys at a KME that is present, a good status isn't enough for
    /// [`IDLE_PROBE_INTERVAL_NS`].
    fn note(&mut self, peer: &SaeId, error: Option<&KmsError>, about_keys: bool, now: u64) -> bool {
        let link = self.links.entry(peer.clone()).or_default();
        match error.map(|error| (error.blame(), error)) {
            None | Some((Blame::Nothing, _)) => {
                let delivered = about_keys && error.is_none();
                self.tripped.breaker.on_success(delivered);
                link.tripped.breaker.on_success(delivered);
                if about_keys {
                    (self.keys_failed, link.keys_failed) = (None, None);
                }
                link.works = Some(!is_recent(link.keys_failed, now));
            }
            Some((Blame::PeerKme, why)) => {
                self.tripped.breaker.on_success(false);
                link.tripped.on_failure(now, why);
                link.works = Some(true);
            }
            Some((Blame::Link, why)) => {
                self.tripped.breaker.on_success(false);
                link.tripped.on_failure(now, why);
                link.keys_failed = about_keys.then_some(now).or(link.keys_failed);
                link.works = Some(false);
            }
            Some((Blame::Kme, why)) => {
                self.tripped.on_failure(now, why);
                let was_there = failure_class(why) == Failure::Faulty;
                self.keys_failed = (about_keys && was_there).then_some(now).or(self.keys_failed);
                return false;
            }
        }
        !is_recent(self.keys_failed, now) && self.links.values().any(|link| link.works == Some(true))
    }
}

fn is_recent(then: Option<u64>, now: u64) -> bool {
    then.is_some_and(|then| now.saturating_sub(then) < IDLE_PROBE_INTERVAL_NS)
}

/// The permit for one probe. If its future is dropped without an outcome, the next caller may probe.
struct ProbePermit<'a> {
    kme: &'a Kme,
    /// The link whose breaker issued it; `None` for the KME's own.
    peer: Option<&'a SaeId>,
}

impl Drop for ProbePermit<'_> {
    fn drop(&mut self) {
        let now = (self.kme.clock)();
        let mut inner = self.kme.inner();
        match self.peer {
            None => inner.tripped.breaker.on_probe_dropped(now),
            Some(peer) => inner.links.entry(peer.clone()).or_default().tripped.breaker.on_probe_dropped(now),
        }
    }
}
