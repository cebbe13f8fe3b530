//! Keeps the stock of QKD keys: asks the KMS, offers and answers, ages, and notices when the supply stops.

use std::time::Duration;

use rand_core::CryptoRng;

use super::{Peer, Side};
use crate::config::QkdPolicy;
use crate::kms::{Fetch, KeyKind, KmsReport};
use crate::notice::PeerEvent;
use crate::output::PeerOutput;
use crate::session::ControlLink;
use crate::stock::{SupplyFault, Verdict};
use crate::timers::Timer;
use crate::wire::{MessageType, StockAck, StockOffer};
use qvpn_types::Time;

impl<L: ControlLink> Peer<L> {
    /// Whether both ends use QKD; nothing is fetched for a peer that is not there.
    fn uses_qkd(&self) -> bool {
        self.refusal.is_none() && self.agreement.is_some_and(|a| a.policy != QkdPolicy::Off)
    }

    /// Whether only a QKD key is enough: here, or at the other end.
    pub(super) fn qkd_only(&self) -> bool {
        self.config.policy == QkdPolicy::Required
            || self.agreement.is_some_and(|a| a.policy == QkdPolicy::Required)
    }

    /// Only a QKD key is enough, and no source of this end gives one.
    pub(super) fn lacks_source(&self) -> bool {
        self.qkd_only() && !self.config.qkd_source
    }

    /// Fetches what is missing, and tells the other end what changed.
    pub(super) fn drive_supply(&mut self, now: Time, rng: &mut dyn CryptoRng) {
        if !self.uses_qkd() {
            self.timers.set(Timer::Stock, None);
            return;
        }
        let (request, qkd_only) = (self.request + 1, self.qkd_only());
        if qkd_only {
            self.drop_files();
        }
        let (fetch, message, due) = match &mut self.side {
            Side::Initiator(initiator) => {
                let stock = &mut initiator.stock;
                let fetch = stock.fetch(now, request).map(|number| {
                    let stuck = stock.stuck_links(now);
                    Fetch::New { request, number, qkd_only, stuck }
                });
                let offer = stock.offer().map(|offer| (MessageType::StockOffer, offer.to_bytes()));
                (fetch, offer, stock.next_due(now))
            }
            Side::Responder(responder) => {
                let stock = &mut responder.stock;
                let fetch = stock.fetch(now, request).map(|keys| Fetch::ById { request, keys, qkd_only });
                let ack = stock.ack().map(|ack| (MessageType::StockAck, ack.to_bytes()));
                (fetch, ack, stock.next_due(now))
            }
        };
        if let Some(fetch) = fetch {
            self.request = request;
            self.events.push_back(PeerOutput::Fetch(fetch));
        }
        if let Some((kind, bytes)) = message {
            self.channel.send(kind, &bytes, now, rng);
        }
        self.timers.set(Timer::Stock, due);
        self.tell_supply(now);
    }

    pub(super) fn take_kms(&mut self, report: KmsReport, now: Time) {
        // By the policy of now, which may be stricter than when the keys were asked for.
        let qkd_only = self.qkd_only();
        let lost = match (&mut self.side, report) {
            (Side::Initiator(initiator), KmsReport::Keys { request, keys, missing }) => {
                initiator.stock.fetched(request, keys, missing, qkd_only, now)
            }
            (Side::Initiator(initiator), KmsReport::Failed { request, failure }) => {
                initiator.stock.failed(request, failure, now);
                Vec::new()
            }
            (Side::Responder(responder), KmsReport::Keys { request, keys, missing }) => {
                responder.stock.fetched(request, keys, missing.as_ref(), qkd_only, now);
                Vec::new()
            }
            (Side::Responder(responder), KmsReport::Failed { request, failure }) => {
                responder.stock.fetched(request, Vec::new(), Some(&failure), qkd_only, now);
                Vec::new()
            }
        };
        self.tell_lost(lost);
    }

    pub(super) fn take_stock(&mut self, kind: MessageType, body: &[u8], now: Time) {
        match (&mut self.side, kind) {
            (Side::Responder(responder), MessageType::StockOffer) => match StockOffer::parse(body) {
                Ok(offer) => responder.stock.offered(offer, now),
                Err(_) => self.drops.malformed += 1,
            },
            (Side::Initiator(initiator), MessageType::StockAck) => match StockAck::parse(body) {
                Ok(ack) => {
                    let lost = initiator.stock.answered(&ack, now);
                    self.tell_lost(lost);
                }
                Err(_) => self.drops.malformed += 1,
            },
            _ => {}
        }
    }

    pub(super) fn age_stock(&mut self, now: Time) {
        let lost = match &mut self.side {
            Side::Initiator(initiator) => initiator.stock.age(now),
            Side::Responder(responder) => {
                responder.stock.age(now);
                Vec::new()
            }
        };
        self.tell_lost(lost);
    }

    fn tell_lost(&mut self, lost: Vec<(String, String)>) {
        for (id, why) in lost {
            self.emit(PeerEvent::KeyLost { id, why });
        }
    }

    fn drop_files(&mut self) {
        let lost = match &mut self.side {
            Side::Initiator(initiator) => initiator.stock.only_qkd(),
            Side::Responder(responder) => {
                responder.stock.only_qkd();
                Vec::new()
            }
        };
        self.tell_lost(lost);
    }

    /// QKD keys that both ends hold (initiator), or that are here (responder).
    pub(super) fn stock_count(&self) -> usize {
        self.stock_of(KeyKind::Qkd)
    }

    /// Keys of this kind, likewise.
    pub(super) fn stock_of(&self, kind: KeyKind) -> usize {
        match &self.side {
            Side::Initiator(initiator) => initiator.stock.count(kind),
            Side::Responder(responder) => responder.stock.count(kind),
        }
    }

    pub(super) fn supply_trouble(&self) -> Option<&str> {
        self.trouble().map(|trouble| trouble.text.as_str())
    }

    fn trouble(&self) -> Option<&SupplyFault> {
        match &self.side {
            Side::Initiator(initiator) => initiator.stock.trouble(),
            Side::Responder(responder) => responder.stock.trouble(),
        }
    }

    /// How long the stock lasts at the agreed interval and the supply seen.
    pub(super) fn stock_lasts(&self, interval: Duration, now: Time) -> Duration {
        self.budget.lasts(interval, now)
    }

    /// Why people were told that the supply stopped, while it is so.
    pub(super) fn supply_stopped(&self) -> Option<&str> {
        self.supply_stopped.as_deref().filter(|_| self.budget.stopped())
    }

    fn tell_supply(&mut self, now: Time) {
        let Some(interval) = self.agreement.map(|a| a.interval) else { return };
        if self.link.session_age().is_none() {
            self.budget.pause(now);
            return;
        }
        // The responder does not know how many keys the initiator wants to hold.
        let target = match &self.side {
            Side::Initiator(initiator) => Some(initiator.stock.target()),
            Side::Responder(_) => None,
        };
        let (held, trouble) = (self.stock_count(), self.trouble().cloned());
        match self.budget.look(held, target, interval, trouble.as_ref(), now) {
            Verdict::Same => {}
            Verdict::Stopped(detail) => {
                self.supply_stopped = Some(detail.clone());
                self.emit(PeerEvent::SupplyStopped { detail, stock: held });
            }
            Verdict::Resumed => {
                self.supply_stopped = None;
                self.emit(PeerEvent::SupplyResumed);
            }
        }
    }
}
