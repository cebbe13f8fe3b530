//! The responder's stock: keys that the initiator offers, fetched by ID as slave SAE.

use std::time::Duration;

use qvpn_secret::SecretBuf;

use super::fault::{FROM_FILE, SupplyFault};
use super::limits::{KEY_FETCH_TIMEOUT, MAX_KEY_AGE, REQUEST_TIMEOUT};
use crate::backoff::backoff;
use crate::key_schedule::qkd_check;
use crate::kms::{FetchedKey, KeyKind, KeyName, KmsFailure, KmsFailureKind};
use crate::wire::limits::MIN_QKD_KEY;
use crate::wire::{KeyAvailability, StockAck, StockOffer};
use qvpn_types::{KeyId, Time};

const MIN_RETRY_DELAY: Duration = Duration::from_millis(200);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(1);
/// Keys that are due within this time are fetched in one request.
const FETCH_BATCH_DELAY: Duration = Duration::from_millis(250);
/// The number of new IDs that may be requested from the KME in a burst; one more is allowed each
/// `REFILL_INTERVAL`. The fastest rekeying needs ten a second.
const FETCH_BURST: u32 = 40;
const REFILL_INTERVAL: Duration = Duration::from_millis(50);

enum EntryState {
    Wanted { retry_at: Time, failures: u32, answer: KeyAvailability },
    Have { kind: KeyKind, secret: SecretBuf, check: [u8; 16], since: Time, failed_confirmations: u8 },
    Gone,
}

struct Entry {
    name: KeyName,
    offered_at: Time,
    state: EntryState,
}

/// A request to the KMS without an answer so far.
struct OpenRequest {
    number: u64,
    ids: Vec<KeyId>,
    made_at: Time,
}

/// The responder's keys, in the order of the offer.
pub struct ResponderStock {
    entries: Vec<Entry>,
    /// The number of the last offer, in the control session with this number.
    offer: u64,
    session: u64,
    revision: u64,
    changed: bool,
    open: Option<OpenRequest>,
    tokens: u32,
    refilled_at: Time,
    fault: Option<SupplyFault>,
}

impl ResponderStock {
    /// Returns an empty stock whose next acknowledgement follows `revision`.
    #[must_use]
    pub fn new(revision: u64, now: Time) -> Self {
        Self {
            entries: Vec::new(),
            offer: 0,
            session: 0,
            revision,
            changed: false,
            open: None,
            tokens: FETCH_BURST,
            refilled_at: now,
            fault: None,
        }
    }

    /// Returns the revision of the last acknowledgement.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Expects offer numbers from one again, since the peer restarted. Keys stay until its first offer.
    pub fn forget_offers(&mut self) {
        self.offer = 0;
    }

    /// Restarts the count of offers in a newer control session, so that a high number in an old session does
    /// not block later ones. Returns whether messages of this session still count.
    pub fn enter_session(&mut self, session: u64) -> bool {
        if session > self.session {
            (self.session, self.offer) = (session, 0);
        }
        session == self.session
    }

    /// Processes an offer: keys that are no longer offered are erased, new ones are fetched.
    pub fn offered(&mut self, offer: StockOffer, now: Time) {
        if offer.number <= self.offer {
            return;
        }
        self.offer = offer.number;
        let mut old = std::mem::take(&mut self.entries);
        for name in offer.keys {
            let known = old.iter().position(|e| e.name == name);
            self.entries.push(match known {
                Some(at) => old.swap_remove(at),
                None => Entry {
                    name,
                    offered_at: now,
                    state: EntryState::Wanted {
                        retry_at: now,
                        failures: 0,
                        answer: KeyAvailability::Pending,
                    },
                },
            });
        }
        self.changed = true;
    }

    /// Erases keys from files, since QKD is required from now on.
    pub fn only_qkd(&mut self) {
        for entry in &mut self.entries {
            if matches!(entry.state, EntryState::Have { kind: KeyKind::File, .. }) {
                entry.state = EntryState::Gone;
                self.changed = true;
            }
        }
    }

    /// Returns the keys to fetch now, under the number `request`. At most one request is open.
    pub fn fetch(&mut self, now: Time, request: u64) -> Option<Vec<KeyName>> {
        if let Some(open) = &self.open {
            if now.since(open.made_at) < REQUEST_TIMEOUT {
                return None;
            }
            self.fetched(open.number, Vec::new(), Some(&super::fault::no_answer()), false, now);
        }
        let refills = now.since(self.refilled_at).as_millis() / REFILL_INTERVAL.as_millis();
        if refills > 0 {
            self.tokens =
                FETCH_BURST.min(self.tokens.saturating_add(u32::try_from(refills).unwrap_or(FETCH_BURST)));
            self.refilled_at = now;
        }
        let mut names = Vec::new();
        let wanted = |e: &Entry| match &e.state {
            EntryState::Wanted { retry_at, .. } => Some(*retry_at),
            _ => None,
        };
        if self.entries.iter().filter_map(wanted).all(|retry_at| retry_at > now) {
            return None;
        }
        for entry in &self.entries {
            if wanted(entry).is_some_and(|retry_at| retry_at <= now + FETCH_BATCH_DELAY) && self.tokens > 0 {
                self.tokens -= 1;
                names.push(entry.name.clone());
            }
        }
        if names.is_empty() {
            return None;
        }
        let ids = names.iter().map(|n| n.id.clone()).collect();
        self.open = Some(OpenRequest { number: request, ids, made_at: now });
        Some(names)
    }

    /// Processes a report of the KMS: the fetched keys, and the failure of the missing ones.
    pub fn fetched(
        &mut self,
        request: u64,
        keys: Vec<FetchedKey>,
        failure: Option<&KmsFailure>,
        qkd_only: bool,
        now: Time,
    ) {
        let Some(open) = self.open.take_if(|open| open.number == request) else { return };
        let asked = open.ids;
        let mut no_qkd = false;
        for FetchedKey { name, kind, secret } in keys {
            let enough = kind == KeyKind::Qkd || !qkd_only;
            no_qkd |= !enough;
            let wanted = enough && asked.contains(&name.id) && secret.len() >= MIN_QKD_KEY;
            if let Some(entry) = self.entries.iter_mut().find(|e| wanted && e.name.id == name.id) {
                let check = qkd_check(&secret, &name.id);
                entry.state = EntryState::Have { kind, secret, check, since: now, failed_confirmations: 0 };
            }
        }
        let kind = failure.map_or(KmsFailureKind::NotFound, |t| t.kind);
        let mut missing = false;
        for entry in self.entries.iter_mut().filter(|e| asked.contains(&e.name.id)) {
            if let EntryState::Wanted { retry_at, failures, answer } = &mut entry.state {
                missing = true;
                *retry_at = now + backoff(MIN_RETRY_DELAY, MAX_RETRY_DELAY, *failures);
                *failures += 1;
                *answer = if kind == KmsFailureKind::NotFound {
                    KeyAvailability::NotFound
                } else {
                    KeyAvailability::Unavailable
                };
            }
        }
        let hard = kind == KmsFailureKind::Unavailable || failure.is_none();
        let text = failure.map(|t| t.text.clone()).or_else(|| no_qkd.then(|| FROM_FILE.to_owned()));
        self.fault = text.filter(|_| missing).map(|text| SupplyFault { text, hard });
        self.changed = true;
    }

    /// Makes keys due that a KME could not deliver, since it answers again. Keys that it doesn't know are
    /// not due.
    pub fn on_kms_recovered(&mut self, now: Time) {
        for entry in &mut self.entries {
            if let EntryState::Wanted { retry_at, answer: KeyAvailability::Unavailable, .. } =
                &mut entry.state
            {
                *retry_at = (*retry_at).min(now);
            }
        }
    }

    /// Gives up keys that could not be fetched in time, and erases those that are too old.
    pub fn age(&mut self, now: Time) {
        for entry in &mut self.entries {
            let over = match &entry.state {
                EntryState::Wanted { .. } => now.since(entry.offered_at) >= KEY_FETCH_TIMEOUT,
                EntryState::Have { since, .. } => now.since(*since) >= MAX_KEY_AGE,
                EntryState::Gone => false,
            };
            if over {
                entry.state = EntryState::Gone;
                self.changed = true;
            }
        }
    }

    /// Returns when [`age`](Self::age) or [`fetch`](Self::fetch) must be called next.
    #[must_use]
    pub fn next_due(&self, now: Time) -> Option<Time> {
        let busy = self.open.is_some();
        let request_ends = self.open.as_ref().map(|open| open.made_at + REQUEST_TIMEOUT);
        let times = self.entries.iter().filter_map(|e| match &e.state {
            EntryState::Wanted { .. } if busy => Some(e.offered_at + KEY_FETCH_TIMEOUT),
            EntryState::Wanted { .. } if self.tokens == 0 => Some(now + REFILL_INTERVAL),
            EntryState::Wanted { retry_at, .. } => Some((*retry_at).min(e.offered_at + KEY_FETCH_TIMEOUT)),
            EntryState::Have { since, .. } => Some(*since + MAX_KEY_AGE),
            EntryState::Gone => None,
        });
        times.chain(request_ends).min()
    }

    /// Returns when the next key must be erased.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Time> {
        let times = self.entries.iter().filter_map(|e| match &e.state {
            EntryState::Have { since, .. } => Some(*since + MAX_KEY_AGE),
            _ => None,
        });
        times.min()
    }

    /// Erases all keys, since no more epochs use QKD, and forgets the request and the fault.
    pub fn erase(&mut self) {
        (self.entries, self.open, self.fault, self.changed) = (Vec::new(), None, None, false);
    }

    /// Returns the answer to send, if one changed since the last.
    pub fn ack(&mut self) -> Option<StockAck> {
        std::mem::take(&mut self.changed).then(|| {
            self.revision += 1;
            let answer = |e: &Entry| match &e.state {
                EntryState::Wanted { answer, .. } => *answer,
                EntryState::Have { check, .. } => KeyAvailability::Yes(*check),
                EntryState::Gone => KeyAvailability::Gone,
            };
            let keys = self.entries.iter().map(|e| (e.name.id.clone(), answer(e))).collect();
            StockAck { number: self.offer, revision: self.revision, keys }
        })
    }

    /// Returns the key with this ID, if it is in the stock.
    #[must_use]
    pub fn get(&self, id: &KeyId) -> Option<&SecretBuf> {
        self.entries.iter().find(|e| e.name.id == *id).and_then(|e| match &e.state {
            EntryState::Have { secret, .. } => Some(secret),
            _ => None,
        })
    }

    /// Returns the kind of the key with this ID, if it is in the stock.
    #[must_use]
    pub fn kind(&self, id: &KeyId) -> Option<KeyKind> {
        self.entries.iter().find(|e| e.name.id == *id).and_then(|e| match &e.state {
            EntryState::Have { kind, .. } => Some(*kind),
            _ => None,
        })
    }

    /// Erases a key that an epoch used. It is never fetched again.
    pub fn used(&mut self, id: &KeyId) {
        self.entries.iter_mut().filter(|e| e.name.id == *id).for_each(|e| e.state = EntryState::Gone);
    }

    /// Counts an attempt with this key that wrong confirmations ended. The second time, the key is erased.
    pub fn on_confirmation_failed(&mut self, id: &KeyId) {
        let Some(entry) = self.entries.iter_mut().find(|e| e.name.id == *id) else { return };
        if let EntryState::Have { failed_confirmations, .. } = &mut entry.state {
            *failed_confirmations += 1;
            if *failed_confirmations >= 2 {
                entry.state = EntryState::Gone;
                self.changed = true;
            }
        }
    }

    /// Whether the initiator made an offer in which no key can still be used.
    #[must_use]
    pub fn lacks_offers(&self) -> bool {
        self.offer > 0 && self.entries.iter().all(|e| matches!(e.state, EntryState::Gone))
    }

    /// Returns how many keys of this kind are in the stock.
    #[must_use]
    pub fn count(&self, wanted: KeyKind) -> usize {
        self.entries
            .iter()
            .filter(|e| matches!(e.state, EntryState::Have { kind, .. } if kind == wanted))
            .count()
    }

    /// Returns the fault of the supply, if there is one.
    #[must_use]
    pub fn fault(&self) -> Option<&SupplyFault> {
        self.fault.as_ref()
    }
}
