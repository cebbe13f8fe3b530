//! What people are told of a peer: its state, why it is so, and what to do.

use super::session::{CLOCK_SET_BACK, UNANSWERED};
use super::{Peer, Side};
use crate::config::QkdPolicy;
use crate::kms::KeyKind;
use crate::notice::PeerEvent;
use crate::session::ControlLink;
use crate::view::{PeerState, PeerView};
use qvpn_types::Time;

impl<L: ControlLink> Peer<L> {
    fn state(&self, now: Time) -> PeerState {
        match self.active.as_ref().filter(|a| a.sealing_ends > now) {
            Some(active) => {
                let lacks = self.config.policy == QkdPolicy::Preferred || active.chain_lost;
                if !active.sources.qkd && lacks { PeerState::Degraded } else { PeerState::Up }
            }
            // Before the first epoch, waiting is no alarm until something is wrong.
            None if self.had_epoch
                || self.refusal.is_some()
                || self.lacks_source()
                || self.supply_trouble().is_some() =>
            {
                PeerState::Blocked
            }
            None => PeerState::Connecting,
        }
    }

    /// Why the initiator cannot begin an attempt.
    fn waiting(&self) -> Option<&str> {
        match &self.side {
            Side::Initiator(initiator) => initiator.waiting.as_deref(),
            Side::Responder(_) => None,
        }
    }

    fn reason(&self, now: Time) -> Option<String> {
        let state = self.state(now);
        if let Some(refusal) = &self.refusal {
            return Some(refusal.detail.clone());
        }
        // It is worth knowing also while traffic flows: the next restart needs a start from here again.
        if self.session.is_stale(now) {
            return Some(CLOCK_SET_BACK.to_owned());
        }
        if state == PeerState::Up {
            // All is well still, but it will not stay so.
            let stopped = self.supply_stopped()?;
            let interval = self.agreement.map_or(self.config.rekey_interval, |a| a.interval);
            let lasts = self.stock_lasts(interval, now).as_secs();
            return Some(format!("the QKD supply stopped ({stopped}); the keys in stock last {lasts} s"));
        }
        if state == PeerState::Degraded {
            let theirs = self.remote_hello().map(|h| h.policy);
            return Some(match self.supply_trouble() {
                _ if theirs == Some(QkdPolicy::Off) => "the other site has qkd = \"off\"".to_owned(),
                _ if self.active.as_ref().is_some_and(|a| a.sources.file) => self.lives_on_a_file(),
                Some(trouble) => format!("traffic flows without QKD: {trouble}"),
                None => "traffic flows without QKD until the next epoch".to_owned(),
            });
        }
        if self.lacks_source() {
            let whose =
                if self.config.policy == QkdPolicy::Required { "qkd" } else { "the other site's qkd" };
            return Some(format!(
                "{whose} = \"required\", and the only key source here is a file, which is no QKD: no epoch is made; add a [[kms.kme]] that is one, or write qkd = \"preferred\" at both sites"
            ));
        }
        if self.link.session_age().is_none() {
            return Some(self.unreachable(now));
        }
        if let Some(waiting) = self.waiting() {
            return Some(waiting.to_owned());
        }
        if self.config.policy == QkdPolicy::Required
            && let Some(trouble) = self.supply_trouble()
        {
            return Some(format!("no QKD key, and qkd = \"required\": {trouble}"));
        }
        Some(match self.agreement {
            None => "the control session is up; waiting for the other site's Hello".to_owned(),
            Some(_) if self.lacks_offers() => {
                "the other site offers no QKD key, so its KME gives it none that fits; its `qvpn-ctl show` names the KME and says why".to_owned()
            }
            Some(_) if self.had_epoch && matches!(self.side, Side::Responder(_)) => {
                "the other site proposes no epoch; its `qvpn-ctl show` says why".to_owned()
            }
            Some(_) => "the control session is up; waiting for the first epoch".to_owned(),
        })
    }

    fn lives_on_a_file(&self) -> String {
        let why = self.supply_trouble().map(|trouble| format!(": {trouble}")).unwrap_or_default();
        format!("traffic flows under a key from a file, which is no QKD{why}")
    }

    /// The responder waits for keys that the other site would have to offer.
    fn lacks_offers(&self) -> bool {
        let wants = self.agreement.is_some_and(|a| a.policy != QkdPolicy::Off);
        matches!(&self.side, Side::Responder(r) if wants && r.stock.lacks_offers())
    }

    fn unreachable(&self, now: Time) -> String {
        let silent = now.since(self.session.silent_since()).as_secs();
        let also = self.config.endpoint.filter(|configured| Some(*configured) != self.session.endpoint);
        let also = also.map(|configured| format!(" and {configured}")).unwrap_or_default();
        match self.session.endpoint {
            None => "no endpoint configured: waiting for the other site to call".to_owned(),
            Some(at) if self.session.starts >= UNANSWERED => format!(
                "unanswered: {} handshakes to {at}{also}, nothing for {silent} s; compare the public keys of both sites (here {}, there must be {}), the endpoint, the firewall's UDP port, and this machine's clock, which must not go back",
                self.session.starts,
                self.config.local.public().fingerprint(),
                self.config.remote.fingerprint(),
            ),
            Some(at) => format!("calling {at}"),
        }
    }

    /// Tells a change of state.
    pub(super) fn tell_state(&mut self, now: Time) {
        let state = self.state(now);
        let before = std::mem::replace(&mut self.last_state, state);
        if before == state {
            return;
        }
        let reason = self.reason(now).unwrap_or_default();
        match state {
            PeerState::Up if before == PeerState::Degraded => self.emit(PeerEvent::Recovered),
            PeerState::Up => self.emit(PeerEvent::Up),
            PeerState::Degraded => self.emit(PeerEvent::Degraded { reason }),
            PeerState::Blocked => self.emit(PeerEvent::Blocked { reason }),
            PeerState::Connecting => {}
        }
    }

    /// What `show` tells.
    #[must_use]
    pub fn view(&self, now: Time) -> PeerView {
        let active = self.active.as_ref().filter(|a| a.sealing_ends > now);
        let interval = self.agreement.map_or(self.config.rekey_interval, |a| a.interval);
        let next = match &self.side {
            Side::Initiator(initiator) => self.agreement.map(|_| initiator.due().since(now)),
            Side::Responder(_) => active.map(|a| (a.since + interval).since(now)),
        };
        let stock = (self.config.policy != QkdPolicy::Off).then(|| self.stock_count());
        PeerView {
            state: self.state(now),
            reason: self.reason(now),
            role: self.config.role,
            policy: self.config.policy,
            endpoint: self.session.endpoint,
            epoch: active.map(|a| a.epoch),
            epoch_age: active.map(|a| now.since(a.since)),
            epoch_expires_in: active.map(|a| a.sealing_ends.since(now)),
            next_rekey_in: next,
            sources: active.map(|a| a.sources),
            qkd_key_id: active.filter(|a| a.sources.qkd).and_then(|a| a.qkd_key_id.clone()),
            qkd_key_age: self.last_qkd.map(|at| now.since(at)),
            qkd_stock: stock,
            file_stock: stock.map(|_| self.stock_of(KeyKind::File)),
            qkd_stock_lasts: stock.map(|_| self.stock_lasts(interval, now)),
            rekeys: self.rekeys,
            rekey_failures: self.failures.iter().map(|(reason, n)| (*reason, *n)).collect(),
            drops: self.drops,
            control_handshake_ago: self.link.session_age(),
            rekey_interval: interval,
            lanes: self.agreement.map_or(self.config.lanes, |a| a.lanes),
            peer_rx_silent: self.peer_rx_silent,
        }
    }
}
