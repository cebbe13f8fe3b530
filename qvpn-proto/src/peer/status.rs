//! The status of a peer: its state, the reason, and what to do.

use std::time::Duration;

use qvpn_types::{QkdPolicy, Time};

use crate::config::PeerConfig;
use crate::epoch::ActiveEpoch;
use crate::epochs::Epochs;
use crate::exchange::{Context, ExchangeRole};
use crate::hello::Agreement;
use crate::kms::KeyKind;
use crate::lanes::PeerLanes;
use crate::liveness::{LOST_AFTER, Liveness, Silence};
use crate::paths::ControlPath;
use crate::session::control_session::CLOCK_SET_BACK;
use crate::supply::Supply;
use crate::view::{ControlDrops, PeerState, PeerView};

/// The number of unanswered handshakes after which the reason says what to compare.
const UNANSWERED_HANDSHAKES: u32 = 3;

/// The inputs of the status.
pub struct Status<'a> {
    pub ctx: Context<'a>,
    pub path: &'a ControlPath,
    pub liveness: &'a Liveness,
    pub session_up: bool,
    /// Whether the peer does not answer our new key, which has replaced the former one.
    pub key_unanswered: bool,
    pub handshake_ago: Option<Duration>,
    pub epochs: &'a Epochs,
    pub role: &'a dyn ExchangeRole,
    pub supply: &'a Supply,
    pub lanes: &'a PeerLanes,
    pub drops: ControlDrops,
}

impl Status<'_> {
    fn config(&self) -> &PeerConfig {
        self.ctx.config
    }

    fn now(&self) -> Time {
        self.ctx.now
    }

    fn agreement(&self) -> Option<Agreement> {
        self.ctx.agreement()
    }

    fn active(&self) -> Option<&ActiveEpoch> {
        self.epochs.sealing(self.now())
    }

    fn interval(&self) -> Duration {
        self.agreement().map_or(self.config().rekey_interval, |a| a.interval)
    }

    /// Returns the agreed number of lanes, or ours before there is an agreement.
    pub fn agreed_lanes(&self) -> u8 {
        self.ctx.hellos.agreed_lanes.unwrap_or(self.config().lanes)
    }

    fn fault(&self) -> Option<&str> {
        self.role.supply_fault().map(|fault| fault.text.as_str())
    }

    /// Whether QKD is required and no source of this site provides it.
    fn lacks_source(&self) -> bool {
        self.ctx.qkd_only() && !self.config().qkd_source
    }

    pub fn state(&self) -> PeerState {
        match self.active() {
            Some(_) if self.liveness.silence().is_some() => PeerState::Silent,
            Some(active) => {
                let lacks = self.config().policy == QkdPolicy::Preferred || active.chain_lost;
                if !active.sources.qkd && lacks { PeerState::Degraded } else { PeerState::Up }
            }
            // Before the first epoch, waiting is not reported as blocked until something is wrong.
            None if self.epochs.had_epoch
                || self.ctx.hellos.refusal.is_some()
                || self.lacks_source()
                || self.fault().is_some() =>
            {
                PeerState::Blocked
            }
            None => PeerState::Connecting,
        }
    }

    pub fn reason(&self) -> Option<String> {
        if let Some(refusal) = &self.ctx.hellos.refusal {
            return Some(refusal.detail.clone());
        }
        // This matters while traffic flows too: after the next restart, only a handshake from this side
        // helps.
        if self.path.is_stale(self.now()) {
            return Some(CLOCK_SET_BACK.to_owned());
        }
        if let (true, Some(active)) = (self.key_unanswered, self.active()) {
            return Some(format!(
                "the other site does not answer our new key, {}: add it there and reload; the key in force \
                 serves for {} s more",
                self.config().local.public().fingerprint(),
                active.sealing_ends.since(self.now()).as_secs(),
            ));
        }
        match self.state() {
            PeerState::Up => {
                // The peer is still up, but the stock runs out.
                let stopped = self.supply.stopped()?;
                let lasts = self.supply.lasts(self.interval(), self.now()).as_secs();
                Some(format!("the QKD supply stopped ({stopped}); the keys in stock last {lasts} s"))
            }
            PeerState::Degraded => Some(self.degraded_reason()),
            PeerState::Silent => Some(self.silent_reason()),
            PeerState::Connecting | PeerState::Blocked => Some(self.blocked_reason()),
        }
    }

    fn degraded_reason(&self) -> String {
        let theirs = self.ctx.remote().map(|remote| remote.hello.policy);
        match self.fault() {
            _ if theirs == Some(QkdPolicy::Off) => "the other site has qkd = \"off\"".to_owned(),
            fault if self.epochs.active.as_ref().is_some_and(|a| a.sources.file) => {
                let why = fault.map(|fault| format!(": {fault}")).unwrap_or_default();
                format!("traffic flows under a key from a file, which is no QKD{why}")
            }
            Some(fault) => format!("traffic flows without QKD: {fault}"),
            None => "traffic flows without QKD until the next epoch".to_owned(),
        }
    }

    fn blocked_reason(&self) -> String {
        if self.lacks_source() {
            let whose =
                if self.config().policy == QkdPolicy::Required { "qkd" } else { "the other site's qkd" };
            return format!(
                "{whose} = \"required\", and the only key source here is a file, which is no QKD: no epoch \
                 is made; add a [[kms.kme]] that is one, or write qkd = \"preferred\" at both sites"
            );
        }
        if !self.session_up {
            return self.unreachable_reason();
        }
        if self.liveness.silence().is_some() {
            return self.silent_reason();
        }
        if let Some(waiting_for) = self.role.waiting_for() {
            return waiting_for.to_owned();
        }
        if self.config().policy == QkdPolicy::Required
            && let Some(fault) = self.fault()
        {
            return format!("no QKD key, and qkd = \"required\": {fault}");
        }
        let wants_qkd = self.agreement().is_some_and(|a| a.policy != QkdPolicy::Off);
        match self.agreement() {
            None => "the control session is up; waiting for the other site's Hello".to_owned(),
            Some(_) if wants_qkd && self.role.lacks_offers() => {
                "the other site offers no QKD key, so its KME gives it none that fits; its `qvpn-ctl show` \
                 names the KME and says why"
                    .to_owned()
            }
            Some(_) if self.epochs.had_epoch && self.role.waits_for_proposals() => {
                "the other site proposes no epoch; its `qvpn-ctl show` says why".to_owned()
            }
            Some(_) => "the control session is up; waiting for the first epoch".to_owned(),
        }
    }

    fn silent_reason(&self) -> String {
        let seconds = |since: Time| self.now().since(since).as_secs();
        let at = self.path.endpoint.map_or_else(|| "its endpoint".to_owned(), |at| at.to_string());
        let quiet = seconds(self.liveness.quiet_since());
        let why = self.liveness.silence();
        if why == Some(Silence::Bye) {
            let since = self.liveness.silent_since().map_or(0, seconds);
            return format!(
                "the other site said goodbye {since} s ago: its daemon was stopped; start it there"
            );
        }
        let since_silence = self.liveness.silent_since() < self.liveness.heard_at();
        if (why == Some(Silence::NothingReceived) && !since_silence) || quiet >= LOST_AFTER.as_secs() {
            return format!(
                "nothing came from {at} for {} s, and it does not answer pings; look at the WAN, at the \
                 firewalls' UDP port, and whether the other gateway runs",
                quiet.max(1)
            );
        }
        let since = match self.liveness.not_heard_since() {
            Some(since) => format!("the other site has received nothing from here for {} s", seconds(since)),
            None => "the other site does not answer pings".to_owned(),
        };
        format!(
            "packets from here are lost on the way to {at}: {since}, while its own arrive; look at \
             firewalls and NAT in that direction"
        )
    }

    fn unreachable_reason(&self) -> String {
        let silent = self.now().since(self.liveness.quiet_since()).as_secs();
        let also = self.config().endpoint.filter(|configured| Some(*configured) != self.path.endpoint);
        let also = also.map(|configured| format!(" and {configured}")).unwrap_or_default();
        match self.path.endpoint {
            None => "no endpoint configured: waiting for the other site to call".to_owned(),
            Some(at) if self.path.initiations >= UNANSWERED_HANDSHAKES => format!(
                "unanswered: {} handshakes to {at}{also}, nothing for {silent} s; compare the public keys of \
                 both sites (here {}, there must be {}), the endpoint, the firewall's UDP port, and this \
                 machine's clock, which must not go back",
                self.path.initiations,
                self.config().local.public().fingerprint(),
                self.config().remote.fingerprint(),
            ),
            Some(at) => format!("calling {at}"),
        }
    }

    pub fn view(&self) -> PeerView {
        let (now, active, config) = (self.now(), self.active(), self.config());
        let interval = self.interval();
        // An attempt that failed has a later time, but the epoch is due since then.
        let planned = active.map(|a| a.since + interval);
        let attempt = self.role.next_attempt().filter(|_| self.agreement().is_some());
        let next = match (planned, attempt) {
            (Some(planned), Some(attempt)) if planned > now => Some(planned.min(attempt)),
            (Some(planned), _) => Some(planned),
            (None, attempt) => attempt,
        };
        let stock = (config.policy != QkdPolicy::Off).then(|| self.role.stock_count(KeyKind::Qkd));
        PeerView {
            state: self.state(),
            reason: self.reason(),
            role: config.role,
            parties: active.map_or_else(|| config.parties(), |a| a.parties),
            policy: config.policy,
            endpoint: self.path.endpoint,
            epoch: active.map(|a| a.epoch),
            epoch_age: active.map(|a| now.since(a.since)),
            epoch_expires_in: active.map(|a| a.sealing_ends.since(now)),
            next_rekey_in_ms: next.map(|at| milliseconds(at.since(now)) - milliseconds(now.since(at))),
            sources: active.map(|a| a.sources),
            qkd_key_id: active.filter(|a| a.sources.qkd).and_then(|a| a.qkd_key_id.clone()),
            qkd_key_age: self.epochs.last_qkd.map(|at| now.since(at)),
            qkd_stock: stock,
            file_stock: stock.map(|_| self.role.stock_count(KeyKind::File)),
            qkd_stock_lasts: stock.map(|_| self.supply.lasts(interval, now)),
            rekeys: self.epochs.rekeys,
            rekey_failures: self.epochs.failures.iter().map(|(reason, n)| (*reason, *n)).collect(),
            drops: self.drops,
            session_up: self.session_up,
            control_handshake_ago: self.handshake_ago,
            last_received_ago: self.liveness.heard_at().map(|at| now.since(at)),
            rekey_interval: interval,
            lanes: self.agreed_lanes(),
            peer_rx_silent: self.lanes.peer_rx_silent(),
            lane_views: self.lanes.views(self.agreed_lanes()),
        }
    }
}

fn milliseconds(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}
