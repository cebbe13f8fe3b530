//! The policy for the lanes of one peer: which of them carry packets, where they send, and which keepalives
//! they send.

mod watch;

use std::net::SocketAddr;
use std::time::Duration;

use qvpn_types::{LaneState, Time};
use rand_core::CryptoRng;

use crate::notice::PeerEvent;
use crate::orders::LaneOrder;
use crate::outbox::Outbox;
use crate::view::LaneView;
use crate::wire::{LaneSet, MessageType};
use watch::{Change, LaneWatch, Observed, SILENT_AFTER};

/// The keepalive interval of a lane if there are several.
const LANE_KEEPALIVE_INTERVAL: Duration = Duration::from_millis(500);
/// A packet may arrive this long before the epoch counts as active at this side.
const EARLY_PACKET_TOLERANCE: Duration = Duration::from_secs(1);

/// The last orders of a lane.
#[derive(Debug, Default, Clone, Copy)]
struct Ordered {
    endpoint: Option<SocketAddr>,
    keepalive: Option<Duration>,
}

/// The lanes of one peer.
pub struct PeerLanes {
    ordered: Vec<Ordered>,
    /// The configured interval of keepalives.
    keepalive: Option<Duration>,
    /// Decides which of several lanes carry packets.
    watch: LaneWatch,
    /// For a single lane: whether it carries packets, and the start of the first epoch in which it received
    /// nothing.
    only_lane: Option<LaneState>,
    rx_silent_since: Option<Time>,
    epochs: u64,
    /// The silent lanes last reported to the peer, and by the peer.
    rx_silent: LaneSet,
    peer_rx_silent: LaneSet,
}

impl PeerLanes {
    pub fn new(lanes: u8) -> Self {
        Self {
            ordered: vec![Ordered::default(); lanes.into()],
            keepalive: None,
            watch: LaneWatch::new(lanes),
            only_lane: None,
            rx_silent_since: None,
            epochs: 0,
            rx_silent: LaneSet::default(),
            peer_rx_silent: LaneSet::default(),
        }
    }

    /// Returns the lanes on which the peer receives nothing, by its last message.
    pub fn peer_rx_silent(&self) -> LaneSet {
        self.peer_rx_silent
    }

    /// Returns the state of each lane. `agreed` lanes are in use.
    pub fn views(&self, agreed: u8) -> Vec<LaneView> {
        let view = |(lane, ordered): (u8, &Ordered)| LaneView {
            state: match agreed {
                0 | 1 => self.only_lane.filter(|_| lane == 0),
                _ => self.watch.state(lane),
            },
            via: self.watch.via(lane),
            endpoint: ordered.endpoint,
        };
        (0u8..).zip(&self.ordered).map(view).collect()
    }

    /// Sets the configured interval of keepalives; the lanes get it with the next [`poll`](Self::poll).
    pub fn set_keepalive(&mut self, interval: Option<Duration>) {
        self.keepalive = interval;
    }

    /// Gives lanes without an endpoint the one of the control session: lane *i* at the port plus *i*.
    pub fn poll_endpoints(&mut self, control: Option<SocketAddr>, out: &mut Outbox) {
        let Some(control) = control else { return };
        for (lane, ordered) in (0u8..).zip(&mut self.ordered) {
            if ordered.endpoint.is_none()
                && let Some(port) = control.port().checked_add(lane.into())
            {
                let endpoint = SocketAddr::new(control.ip(), port);
                ordered.endpoint = Some(endpoint);
                out.order(lane, LaneOrder::SetEndpoint { endpoint });
            }
        }
    }

    /// Makes each lane send to an endpoint, until packets of the peer arrive from another one.
    pub fn move_to(&mut self, control: SocketAddr, out: &mut Outbox) {
        self.ordered.iter_mut().for_each(|ordered| ordered.endpoint = None);
        self.poll_endpoints(Some(control), out);
    }

    /// Records that a lane roamed: an authentic packet of the newest epoch came from another endpoint, and
    /// the lane sends there.
    pub fn on_roamed(&mut self, lane: u8, endpoint: SocketAddr) {
        if let Some(ordered) = self.ordered.get_mut(usize::from(lane)) {
            ordered.endpoint = Some(endpoint);
        }
    }

    /// Sets the number of epochs that came into force so far.
    pub fn on_epochs(&mut self, count: u64, now: Time) {
        if count > std::mem::replace(&mut self.epochs, count) {
            self.rx_silent_since.get_or_insert(now);
        }
    }

    /// Decides which lanes carry packets, by the time at which each last received. Call it twice a second.
    pub fn poll(
        &mut self,
        received_at: &[Time],
        (active, agreed): (bool, u8),
        now: Time,
        out: &mut Outbox,
        rng: &mut dyn CryptoRng,
    ) {
        if agreed < 2 {
            self.poll_only_lane(received_at, now, out);
        }
        self.poll_keepalives(agreed, out);
        let peer_rx_silent = self.peer_rx_silent;
        let observed = Observed { now, active, agreed, received_at, peer_rx_silent };
        for change in self.watch.poll(&observed) {
            match change {
                Change::Silent(lane) => self.report_silent(lane, out),
                Change::Recovered(lane) => out.emit(PeerEvent::LaneRecovered { lane }),
                Change::Reroute(lane, via) => out.order(lane, LaneOrder::Reroute { via }),
            }
        }
        let rx_silent = self.watch.rx_silent();
        if self.rx_silent != rx_silent {
            self.rx_silent = rx_silent;
            self.report_to_peer(now, out, rng);
        }
    }

    /// Decides whether a single lane is silent. It sends no keepalives by itself, so it is silent when
    /// nothing arrived in an epoch.
    fn poll_only_lane(&mut self, received_at: &[Time], now: Time, out: &mut Outbox) {
        let Some(since) = self.rx_silent_since else { return };
        let received_at = received_at.first().copied().unwrap_or_default();
        if received_at + EARLY_PACKET_TOLERANCE >= since {
            self.rx_silent_since = None;
            self.only_lane = Some(LaneState::Up);
        } else if now.since(since) > SILENT_AFTER && self.only_lane != Some(LaneState::Silent) {
            self.only_lane = Some(LaneState::Silent);
            self.report_silent(0, out);
        }
    }

    fn report_silent(&self, lane: u8, out: &mut Outbox) {
        let endpoint = self.ordered.get(usize::from(lane)).and_then(|ordered| ordered.endpoint);
        out.emit(PeerEvent::LaneSilent { lane, port: endpoint.map_or(0, |endpoint| endpoint.port()) });
    }

    /// Sets the keepalive interval. With several lanes, each sends twice a second, so that silence is
    /// significant.
    fn poll_keepalives(&mut self, agreed: u8, out: &mut Outbox) {
        let interval = match self.keepalive {
            configured if agreed < 2 => configured,
            configured => {
                Some(configured.map_or(LANE_KEEPALIVE_INTERVAL, |i| i.min(LANE_KEEPALIVE_INTERVAL)))
            }
        };
        for (lane, ordered) in (0u8..).zip(&mut self.ordered) {
            if ordered.keepalive != interval {
                ordered.keepalive = interval;
                out.order(lane, LaneOrder::SetKeepalive { interval });
            }
        }
    }

    /// Reports silent lanes: the peer can't detect by itself that its packets on them are lost.
    fn report_to_peer(&self, now: Time, out: &mut Outbox, rng: &mut dyn CryptoRng) {
        out.channel.send(MessageType::Lanes, &self.rx_silent.to_bytes(), now, rng);
    }

    pub fn on_message(&mut self, body: &[u8], out: &mut Outbox) {
        match LaneSet::parse(body) {
            Ok(lanes) => self.peer_rx_silent = lanes,
            Err(_) => out.drops.malformed += 1,
        }
    }

    pub fn on_peer_restarted(&mut self, now: Time, out: &mut Outbox, rng: &mut dyn CryptoRng) {
        self.peer_rx_silent = LaneSet::default();
        if !self.rx_silent.is_empty() {
            self.report_to_peer(now, out, rng);
        }
    }
}
