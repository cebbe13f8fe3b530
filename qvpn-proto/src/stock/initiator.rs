//! The initiator's stock: keys fetched as master SAE, each with the responder's answer.

use std::time::Duration;

use qvpn_secret::SecretBuf;

use super::fault::{FROM_FILE, SupplyFault};
use super::limits::{KEY_FETCH_TIMEOUT, MAX_KEY_AGE, REQUEST_TIMEOUT};
use crate::backoff::backoff;
use crate::key_schedule::qkd_check;
use crate::kms::{FetchedKey, KeyKind, KeyName, KmsFailure};
use crate::wire::limits::{MAX_NAME, MAX_OFFER, MIN_QKD_KEY};
use crate::wire::{KeyAvailability, MAX_OFFER_COST, OFFER_ROOM, StockAck, StockOffer, offer_cost};
use qvpn_types::{KeyId, Time};

/// Retries are frequent, so that keys are back soon after the KME: a failed fetch uses no key, and the KMS
/// client itself backs off from a KME that is down.
const MIN_RETRY_DELAY: Duration = Duration::from_millis(250);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(1);
/// After this time, a key that the responder still lacks no longer counts, and another is fetched beside it.
/// Otherwise a few keys that one KME lost would leave no stock for 120 s. There are never more than twice as
/// many keys as wanted.
pub(super) const OVERDUE_AFTER: Duration = Duration::from_secs(5);
/// The maximum delay after unusable keys, each of which the KME has used up.
const MAX_RETRY_DELAY_AFTER_LOSS: Duration = Duration::from_secs(10);

/// The reason for the loss of a key from a file.
const NO_QKD: &str = "it is from a file, which is no QKD, and QKD is required";

struct Key {
    name: KeyName,
    kind: KeyKind,
    secret: SecretBuf,
    since: Time,
    /// Whether both sites hold it, with the same bytes.
    held: bool,
    /// Whether the responder restarted since the key arrived. Its KME may have delivered the key to the
    /// previous instance, and then never delivers it again.
    suspect: bool,
    /// Whether the responder can't reach the KME that it would get the key from.
    unreachable: bool,
    /// The number of attempts with this key that wrong confirmations ended.
    failed_confirmations: u8,
}

impl Key {
    fn overdue_at(&self) -> Time {
        self.since + OVERDUE_AFTER
    }

    fn counts(&self, now: Time) -> bool {
        self.held || now < self.overdue_at()
    }
}

/// IDs of lost keys, and the reasons.
pub type Lost = Vec<(KeyId, String)>;

/// The initiator's keys, oldest first.
pub struct InitiatorStock {
    keys: Vec<Key>,
    target: usize,
    /// The open request, and when it was made.
    open: Option<(u64, Time)>,
    failures: u32,
    /// The number of times that delivered keys were unusable since one was held.
    spent: u32,
    retry_at: Option<Time>,
    offers: u64,
    /// The revision of the last acknowledgement, in the control session with this number.
    revision: u64,
    session: u64,
    changed: bool,
    fault: Option<SupplyFault>,
    responder_fault: Option<SupplyFault>,
    /// The last lost key, until one is held again.
    loss: Option<SupplyFault>,
}

impl InitiatorStock {
    /// Returns an empty stock with this target size, whose next offer follows number `offers`.
    #[must_use]
    pub fn new(target: usize, offers: u64) -> Self {
        Self {
            keys: Vec::new(),
            target: target.clamp(1, MAX_OFFER),
            open: None,
            failures: 0,
            spent: 0,
            retry_at: None,
            offers,
            revision: 0,
            session: 0,
            changed: true,
            fault: None,
            responder_fault: None,
            loss: None,
        }
    }

    /// Changes the target size.
    pub fn set_target(&mut self, target: usize) {
        self.target = target.clamp(1, MAX_OFFER);
    }

    /// Returns how many keys to fetch now, under the number `request`. Returns `None` while a request is
    /// open, a delay after a failure lasts, or the stock is full.
    pub fn fetch(&mut self, now: Time, request: u64) -> Option<usize> {
        if let Some((open, at)) = self.open
            && now.since(at) >= REQUEST_TIMEOUT
        {
            self.failed(open, super::fault::no_answer(), now);
        }
        let counted = self.keys.iter().filter(|k| k.counts(now)).count();
        let most = (self.target * 2).min(MAX_OFFER).saturating_sub(self.keys.len());
        let missing = self.target.saturating_sub(counted).min(most).min(self.room());
        let waiting = self.open.is_some() || self.retry_at.is_some_and(|at| at > now);
        if missing == 0 || waiting {
            return None;
        }
        self.open = Some((request, now));
        self.retry_at = None;
        Some(missing)
    }

    /// Returns the links whose keys the responder doesn't get: its KME there can't be reached, or hasn't had
    /// a key for a while. If a site has several KMEs, others are used first until such keys are given up.
    #[must_use]
    pub fn stuck_links(&self, now: Time) -> Vec<(String, String)> {
        let mut links: Vec<(String, String)> = Vec::new();
        for key in self.keys.iter().filter(|k| !k.held && (k.unreachable || !k.counts(now))) {
            let link = (key.name.source_kme.clone(), key.name.target_kme.clone());
            if !link.0.is_empty() && !link.1.is_empty() && !links.contains(&link) {
                links.push(link);
            }
        }
        links
    }

    /// Returns the size of the offer in bytes.
    fn offered(&self) -> usize {
        self.keys.iter().map(|k| offer_cost(&k.name)).sum()
    }

    /// Returns how many more keys certainly fit one offer. Before the first key, the length of this KME's
    /// names is unknown.
    fn room(&self) -> usize {
        let longest = self.keys.iter().map(|k| offer_cost(&k.name)).max().unwrap_or(MAX_OFFER_COST);
        (OFFER_ROOM - self.offered()) / longest
    }

    /// Erases keys from files, since QKD is required from now on. QKD keys replace them.
    pub fn only_qkd(&mut self) -> Lost {
        let mut lost = Vec::new();
        self.keys.retain(|k| {
            if k.kind != KeyKind::Qkd {
                lost.push((k.name.id.clone(), NO_QKD.to_owned()));
            }
            k.kind == KeyKind::Qkd
        });
        self.changed |= !lost.is_empty();
        lost
    }

    /// Adds fetched keys. Keys that are too short, badly named, known already, or from a file where QKD is
    /// required are lost; the reasons are returned. `missing` says why no QKD key arrived, if there is none
    /// among them.
    pub fn fetched(
        &mut self,
        request: u64,
        keys: Vec<FetchedKey>,
        missing: Option<KmsFailure>,
        qkd_only: bool,
        now: Time,
    ) -> Lost {
        if self.open.is_none_or(|(open, _)| open != request) {
            return Vec::new();
        }
        self.open = None;
        let mut lost = Vec::new();
        let before = self.keys.len();
        for FetchedKey { name, kind, secret } in keys {
            let why = if qkd_only && kind != KeyKind::Qkd {
                NO_QKD
            } else if secret.len() < MIN_QKD_KEY {
                "the key is shorter than 256 bits"
            } else if [&name.source_kme, &name.target_kme].iter().any(|n| n.len() > MAX_NAME) {
                "a KME's name is longer than 255 bytes"
            } else if self.keys.iter().any(|k| k.name.id == name.id || k.secret.ct_eq(secret.expose())) {
                "the KME delivered it before"
            } else if self.keys.len() >= MAX_OFFER || self.offered() + offer_cost(&name) > OFFER_ROOM {
                "more keys came than fit one offer"
            } else {
                self.keys.push(Key {
                    name,
                    kind,
                    secret,
                    since: now,
                    held: false,
                    suspect: false,
                    unreachable: false,
                    failed_confirmations: 0,
                });
                continue;
            };
            lost.push((name.id, why.to_owned()));
        }
        if self.keys.len() > before {
            self.changed = true;
            let qkd = self.keys[before..].iter().any(|k| k.kind == KeyKind::Qkd);
            self.fault = (!qkd).then(|| {
                let text = missing.map_or_else(|| FROM_FILE.to_owned(), |m| m.text);
                SupplyFault { text, hard: true }
            });
            self.failures = 0;
        } else if lost.is_empty() {
            self.fault = Some(SupplyFault { text: "the KME delivered no key".to_owned(), hard: true });
            self.wait(now);
        } else {
            if lost.iter().any(|(_, why)| why == NO_QKD) {
                self.fault = Some(SupplyFault { text: FROM_FILE.to_owned(), hard: true });
            }
            self.wait_after_loss(&lost, now);
        }
        lost
    }

    /// Records that a fetch failed.
    pub fn failed(&mut self, request: u64, failure: KmsFailure, now: Time) {
        if self.open.is_some_and(|(open, _)| open == request) {
            self.open = None;
            self.fault = Some(SupplyFault { text: failure.text, hard: true });
            self.wait(now);
        }
    }

    /// Makes the next fetch due now if the last one failed, since a KME answers again.
    pub fn on_kms_recovered(&mut self, now: Time) {
        if self.fault.is_some() {
            self.retry_at = self.retry_at.map(|at| at.min(now));
        }
    }

    fn wait(&mut self, now: Time) {
        self.retry_at = Some(now + backoff(MIN_RETRY_DELAY, MAX_RETRY_DELAY, self.failures));
        self.failures += 1;
    }

    /// Delays the next fetch after lost keys, each time for longer until a key is held, so that a series of
    /// unusable keys does not drain the KME.
    fn wait_after_loss(&mut self, lost: &Lost, now: Time) {
        if let Some((id, why)) = lost.last() {
            self.loss = Some(SupplyFault { text: format!("QKD key {id} was lost: {why}"), hard: true });
        }
        self.retry_at = Some(now + backoff(MIN_RETRY_DELAY, MAX_RETRY_DELAY_AFTER_LOSS, self.spent));
        self.spent += 1;
    }

    /// Drops keys that are too old, and keys that the responder could not get in time.
    pub fn age(&mut self, now: Time) -> Lost {
        let mut lost = Vec::new();
        self.keys.retain(|k| {
            let age = now.since(k.since);
            let why = if age >= MAX_KEY_AGE {
                "it was not used for an hour"
            } else if !k.held && age >= KEY_FETCH_TIMEOUT {
                "the other site could not get it from its KME within 120 s"
            } else {
                return true;
            };
            lost.push((k.name.id.clone(), why.to_owned()));
            false
        });
        self.changed |= !lost.is_empty();
        lost
    }

    /// Returns when [`age`](Self::age) or [`fetch`](Self::fetch) must be called next.
    #[must_use]
    pub fn next_due(&self, now: Time) -> Option<Time> {
        let ages = self.keys.iter().map(|k| k.since + if k.held { MAX_KEY_AGE } else { KEY_FETCH_TIMEOUT });
        let overdue = self.keys.iter().filter(|k| !k.held).map(Key::overdue_at).filter(|at| *at > now);
        let counted = self.keys.iter().filter(|k| k.counts(now)).count();
        let retry = self.retry_at.filter(|at| self.open.is_none() && counted < self.target && *at > now);
        let request_ends = self.open.map(|(_, at)| at + REQUEST_TIMEOUT);
        ages.chain(overdue).chain(retry).chain(request_ends).min()
    }

    /// Returns when the next key must be erased.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Time> {
        self.keys.iter().map(|k| k.since + MAX_KEY_AGE).min()
    }

    /// Erases all keys, since no more epochs use QKD, and forgets the request and the faults.
    pub fn erase(&mut self) {
        *self = Self {
            changed: !self.keys.is_empty(),
            revision: self.revision,
            session: self.session,
            ..Self::new(self.target, self.offers)
        };
    }

    /// Returns the offer to send, if the set of keys changed since the last one.
    pub fn offer(&mut self) -> Option<StockOffer> {
        std::mem::take(&mut self.changed).then(|| {
            self.offers += 1;
            StockOffer { number: self.offers, keys: self.keys.iter().map(|k| k.name.clone()).collect() }
        })
    }

    /// Voids the peer's earlier answers after its restart; it needs the whole offer.
    pub fn forget_answers(&mut self) {
        for key in &mut self.keys {
            key.held = false;
            key.suspect = true;
        }
        self.revision = 0;
        self.changed = true;
    }

    /// Restarts the count of revisions in a newer control session, so that a high number in an old session
    /// does not block later ones. Returns whether messages of this session still count.
    pub fn enter_session(&mut self, session: u64) -> bool {
        if session > self.session {
            (self.session, self.revision) = (session, 0);
        }
        session == self.session
    }

    /// Processes the responder's answers. A key whose check value differs is dropped before it is used.
    pub fn answered(&mut self, ack: &StockAck, now: Time) -> Lost {
        if ack.number > self.offers || ack.revision <= self.revision {
            return Vec::new();
        }
        self.revision = ack.revision;
        self.responder_fault = None;
        let mut lost = Vec::new();
        for (id, held) in &ack.keys {
            let Some(at) = self.keys.iter().position(|k| k.name.id == *id) else { continue };
            let key = &mut self.keys[at];
            key.unreachable = matches!(held, KeyAvailability::Unavailable);
            let why = match held {
                KeyAvailability::Yes(check) if qvpn_secret::ct_eq(check, &qkd_check(&key.secret, id)) => {
                    key.held = true;
                    key.suspect = false;
                    self.spent = 0;
                    self.loss = None;
                    continue;
                }
                KeyAvailability::Yes(_) => {
                    "the two KMEs delivered different bytes under this ID; have the KMS link checked"
                }
                KeyAvailability::Gone => "the other site's KME did not deliver it",
                KeyAvailability::Pending => continue,
                KeyAvailability::NotFound if key.suspect => {
                    "the other site restarted, and its KME no longer has it"
                }
                KeyAvailability::NotFound => {
                    let text = format!("the other site's KME does not know key {id} (yet)");
                    self.responder_fault.get_or_insert(SupplyFault { text, hard: false });
                    continue;
                }
                KeyAvailability::Unavailable => {
                    let text = "the other site cannot reach its KME".to_owned();
                    self.responder_fault = Some(SupplyFault { text, hard: true });
                    continue;
                }
            };
            lost.push((id.clone(), why.to_owned()));
            self.keys.remove(at);
            self.changed = true;
        }
        if !lost.is_empty() {
            self.wait_after_loss(&lost, now);
        }
        lost
    }

    /// Returns the oldest key of this kind that both sites hold.
    #[must_use]
    pub fn usable(&self, kind: KeyKind) -> Option<(&KeyId, &SecretBuf)> {
        self.keys.iter().find(|k| k.held && k.kind == kind).map(|k| (&k.name.id, &k.secret))
    }

    /// Returns the kind of the key with this ID.
    #[must_use]
    pub fn kind(&self, id: &KeyId) -> Option<KeyKind> {
        self.keys.iter().find(|k| k.name.id == *id).map(|k| k.kind)
    }

    #[must_use]
    pub fn get(&self, id: &KeyId) -> Option<&SecretBuf> {
        self.keys.iter().find(|k| k.name.id == *id).map(|k| &k.secret)
    }

    /// Erases a key that an epoch used.
    pub fn used(&mut self, id: &KeyId) {
        let before = self.keys.len();
        self.keys.retain(|k| k.name.id != *id);
        self.changed |= self.keys.len() != before;
    }

    /// Does not name the key again until the responder reports it as held: the responder refused it.
    pub fn refused(&mut self, id: &KeyId) {
        self.keys.iter_mut().filter(|k| k.name.id == *id).for_each(|k| k.held = false);
    }

    /// Counts an attempt with this key that wrong confirmations ended. The second time, the key is dropped.
    pub fn on_confirmation_failed(&mut self, id: &KeyId) {
        if let Some(key) = self.keys.iter_mut().find(|k| k.name.id == *id) {
            key.failed_confirmations += 1;
            if key.failed_confirmations >= 2 {
                self.used(id);
            }
        }
    }

    /// Returns how many keys of this kind both sites hold.
    #[must_use]
    pub fn count(&self, kind: KeyKind) -> usize {
        self.keys.iter().filter(|k| k.held && k.kind == kind).count()
    }

    /// Returns the fault of the supply, if there is one.
    #[must_use]
    pub fn fault(&self) -> Option<&SupplyFault> {
        let loss = self.loss.as_ref().filter(|_| self.count(KeyKind::Qkd) == 0);
        self.fault.as_ref().or(self.responder_fault.as_ref()).or(loss)
    }

    /// Returns the number of the last offer.
    #[must_use]
    pub fn offers(&self) -> u64 {
        self.offers
    }

    /// Returns the target size.
    #[must_use]
    pub fn target(&self) -> usize {
        self.target
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_link_is_stuck_while_the_responder_does_not_get_its_keys() {
        let start = Time::from_nanos(1_000_000_000);
        let mut stock = InitiatorStock::new(3, 0);
        assert_eq!(stock.fetch(start, 1), Some(3));
        let key = |id: &str, link: u8, byte: u8| FetchedKey {
            name: KeyName {
                id: KeyId::new(id).unwrap(),
                source_kme: format!("A{link}"),
                target_kme: format!("B{link}"),
            },
            kind: KeyKind::Qkd,
            secret: SecretBuf::take(&mut [byte; 32]),
        };
        let keys = vec![key("x", 1, 1), key("y", 1, 2), key("z", 2, 3)];
        assert!(stock.fetched(1, keys, None, true, start).is_empty());
        assert!(stock.offer().is_some());
        assert!(stock.stuck_links(start).is_empty());
        let mut revision = 0;
        let mut says =
            |stock: &mut InitiatorStock, x: KeyAvailability, y: KeyAvailability, z: KeyAvailability, now| {
                revision += 1;
                let keys =
                    [("x", x), ("y", y), ("z", z)].map(|(id, held)| (KeyId::new(id).unwrap(), held)).to_vec();
                assert!(stock.answered(&StockAck { number: 1, revision, keys }, now).is_empty());
            };
        let held = |id: &str, byte| {
            KeyAvailability::Yes(qkd_check(&SecretBuf::take(&mut [byte; 32]), &KeyId::new(id).unwrap()))
        };
        let first = vec![("A1".to_owned(), "B1".to_owned())];
        says(&mut stock, KeyAvailability::Unavailable, KeyAvailability::Unavailable, held("z", 3), start);
        assert_eq!(stock.stuck_links(start), first, "at once where its KME can't be reached");
        says(&mut stock, KeyAvailability::NotFound, held("y", 2), held("z", 3), start);
        assert!(stock.stuck_links(start).is_empty(), "a KME may lag for a while");
        assert_eq!(stock.stuck_links(start + S * 6), first);
        says(&mut stock, held("x", 1), held("y", 2), held("z", 3), start + S * 7);
        assert!(stock.stuck_links(start + S * 8).is_empty());
    }
}
