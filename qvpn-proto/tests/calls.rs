//! Which endpoint a side sends handshakes to, and how it handles the replies. The control session is
//! simulated: each test sets its results.

#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use qvpn_identity::SecretIdentity;
use qvpn_proto::session::{ControlLink, LinkOutput};
use qvpn_proto::{LaneOrder, LaneReport, Peer, PeerConfig, PeerEvent, PeerOutput, QkdPolicy, Role};
use qvpn_types::{PeerNumber, SaeId, Suite, Time};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

/// The peer's endpoint in the config, and the one where it was last.
const CONFIGURED: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 51820);
const ROAMED: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1)), 4500);

#[derive(Default)]
struct Said {
    up: bool,
    next: LinkOutput,
}

#[derive(Clone, Default)]
struct Scripted(Arc<Mutex<Said>>);

impl ControlLink for Scripted {
    fn receive(&mut self, _: IpAddr, _: &[u8]) -> LinkOutput {
        let mut said = self.0.lock().unwrap();
        said.up |= said.next.new_session;
        std::mem::take(&mut said.next)
    }
    fn send(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        Some(packet.to_vec())
    }
    fn start(&mut self) -> Option<Vec<u8>> {
        Some(b"start".to_vec())
    }
    fn tick(&mut self) -> LinkOutput {
        LinkOutput::default()
    }
    fn session_age(&self) -> Option<Duration> {
        self.0.lock().unwrap().up.then_some(Duration::ZERO)
    }
    fn reset(&mut self) {
        self.0.lock().unwrap().up = false;
    }
}

struct End {
    peer: Peer<Scripted>,
    link: Scripted,
    rng: ChaCha20Rng,
    now: Time,
    /// The destinations of handshake initiations, and their times since the start of the test.
    calls: Vec<(SocketAddr, Duration)>,
    lanes_to: Vec<SocketAddr>,
    notices: Vec<PeerEvent>,
    /// The number of requests to its KME.
    fetches: usize,
    /// The number of datagrams that are larger than all but path probes.
    probes: usize,
}

const START: Time = Time::from_nanos(1 << 40);

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn config(role: Role, endpoint: SocketAddr) -> PeerConfig {
    let site = |seed| SecretIdentity::generate(&mut ChaCha20Rng::seed_from_u64(seed));
    PeerConfig {
        local: Arc::new(site(1)),
        remote: *site(2).public(),
        other_remote: None,
        role_by_keys: false,
        role,
        suite: Suite::ChaCha20Poly1305,
        rekey_interval: seconds(60),
        min_rekey_interval: Duration::from_millis(100),
        lanes: 1,
        policy: QkdPolicy::Preferred,
        qkd_source: true,
        sae_local: SaeId::new("US").ok(),
        sae_remote: SaeId::new("THEM").ok(),
        psk: None,
        stock: 3,
        endpoint: Some(endpoint),
        liveness: Some(Duration::from_secs(2)),
        number: PeerNumber(7),
    }
}

impl End {
    fn new(role: Role) -> Self {
        let rng = ChaCha20Rng::seed_from_u64(3);
        let link = Scripted::default();
        let peer = Peer::new(config(role, CONFIGURED), link.clone(), [9; 16], START);
        let (calls, lanes_to, notices) = (Vec::new(), Vec::new(), Vec::new());
        Self { peer, link, rng, now: START, calls, lanes_to, notices, fetches: 0, probes: 0 }
    }

    fn collect(&mut self) {
        while let Some(transmit) = self.peer.poll_transmit() {
            if transmit.datagram == b"start" {
                self.calls.push((transmit.to, self.now.since(START)));
            }
            self.probes += usize::from(transmit.datagram.len() > 1232);
        }
        while let Some(event) = self.peer.poll_event() {
            match event {
                PeerOutput::Lane(_, LaneOrder::SetEndpoint { endpoint }) => self.lanes_to.push(endpoint),
                PeerOutput::Event(notice) => self.notices.push(notice),
                PeerOutput::Fetch(_) => self.fetches += 1,
                _ => {}
            }
        }
    }

    /// Delivers a datagram from `from` for which the control session returns `said`.
    fn comes(&mut self, from: SocketAddr, said: LinkOutput) {
        self.link.0.lock().unwrap().next = said;
        self.peer.handle_datagram(b"datagram", from, self.now, &mut self.rng);
        self.collect();
    }

    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.peer.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.peer.handle_timeout(self.now, &mut self.rng);
            self.collect();
        }
        self.now = end;
    }

    /// Returns a side whose peer sent from an endpoint other than the configured one and then fell silent.
    fn roamed_and_silent() -> Self {
        let mut end = Self::new(Role::Initiator);
        end.comes(ROAMED, authentic(true));
        assert!(end.notices.contains(&PeerEvent::Roamed { endpoint: ROAMED }), "{:?}", end.notices);
        end.link.reset();
        end.wait(seconds(2));
        end
    }

    /// Does the same, and waits until the last initiation went to the configured endpoint.
    fn called_home() -> Self {
        let mut end = Self::roamed_and_silent();
        while end.calls.last().is_none_or(|(to, _)| *to != CONFIGURED) {
            end.wait(Duration::from_millis(250));
        }
        end.lanes_to.clear();
        end
    }
}

fn authentic(new_session: bool) -> LinkOutput {
    LinkOutput { authenticated: true, new_session, answered: new_session, ..LinkOutput::default() }
}

#[test]
fn starts_are_repeated_after_one_two_four_and_then_each_five_seconds() {
    let mut end = End::new(Role::Initiator);
    end.wait(seconds(23));
    let times: Vec<_> = end.calls.iter().map(|(to, at)| (*to, at.as_secs())).collect();
    assert_eq!(times, [0, 1, 3, 7, 12, 17, 22].map(|at| (CONFIGURED, at)));
    // A responder waits a second for the peer's initiation.
    let mut end = End::new(Role::Responder);
    end.wait(seconds(5));
    assert_eq!(end.calls.iter().map(|(_, at)| at.as_secs()).collect::<Vec<_>>(), [1, 2, 4]);
    // It does so again when the session is gone, counted from the next tick, at most 250 ms later.
    end.comes(CONFIGURED, authentic(true));
    end.calls.clear();
    end.wait(seconds(1));
    end.link.reset();
    let lost = end.now.since(START);
    end.wait(seconds(3));
    let times: Vec<_> = end.calls.iter().map(|(_, at)| *at - lost).collect();
    let quarter = Duration::from_millis(250);
    assert!(times.len() == 2 && times[0] > seconds(1) && times[0] <= seconds(1) + quarter, "{times:?}");
    assert_eq!(times[1] - times[0], seconds(1));
}

#[test]
fn a_peer_that_is_silent_for_two_seconds_and_three_pings_is_called_at_once_and_then_less_often() {
    let mut end = End::new(Role::Responder);
    // Its `Hello` is sent with the first session and gets no reply.
    end.comes(CONFIGURED, authentic(true));
    let allowance = Duration::from_millis(100);
    end.wait(seconds(5) + allowance - Duration::from_nanos(1));
    assert_eq!(end.calls, []);
    end.wait(Duration::from_nanos(1));
    assert_eq!(end.calls, [(CONFIGURED, seconds(5) + allowance)]);
    assert!(end.link.session_age().is_some(), "the session is kept: only one direction may be lost");
    end.wait(seconds(17));
    let times: Vec<_> = end.calls.iter().map(|(_, at)| (*at - allowance).as_secs()).collect();
    assert_eq!(times, [5, 6, 8, 12, 17, 22]);
    // Data packets on the lanes count as answers too.
    let mut end = End::new(Role::Responder);
    end.comes(CONFIGURED, authentic(true));
    for _ in 0..20 {
        end.wait(seconds(1));
        let heard = LaneReport::Activity { sent_at: None, received_at: Some(end.now) };
        end.peer.handle_lane(heard, end.now, &mut end.rng);
    }
    assert_eq!(end.calls, []);
}

#[test]
fn a_roamed_peer_is_called_at_each_endpoint_that_is_known() {
    let mut end = End::roamed_and_silent();
    let named = [1, 2].map(|last| SocketAddr::from(([203, 0, 113, last], 51820)));
    end.peer.set_known_endpoints(&[named[0], ROAMED, named[1], CONFIGURED]);
    end.calls.clear();
    end.wait(seconds(20));
    let to: Vec<_> = end.calls.iter().map(|(to, _)| *to).collect();
    assert!(to.len() >= 16 && to.len().is_multiple_of(4), "{to:?}");
    let others = [CONFIGURED, named[0], named[1]];
    let first = others.iter().position(|other| *other == to[1]).unwrap();
    for (n, call) in to.chunks(4).enumerate() {
        let mut others = others;
        others.rotate_left((first + n) % 3);
        assert_eq!((call[0], &call[1..]), (ROAMED, &others[..]), "another one comes first each time");
    }
    let waits: Vec<_> = end.calls.windows(2).map(|calls| calls[1].1 - calls[0].1).collect();
    for (n, wait) in waits.iter().enumerate() {
        assert_eq!(*wait == Duration::from_millis(250), n % 4 != 3, "one after the other: {waits:?}");
    }
}

/// Nothing is called any more once one endpoint answered.
#[test]
fn an_answer_ends_the_call() {
    let mut end = End::new(Role::Initiator);
    end.peer.set_known_endpoints(&[ROAMED]);
    end.wait(Duration::from_millis(100));
    end.comes(CONFIGURED, authentic(true));
    end.wait(seconds(1));
    assert_eq!(end.calls.len(), 1, "{:?}", end.calls);
}

#[test]
fn lanes_follow_an_answered_call_home_after_silence_and_no_other() {
    let mut end = End::called_home();
    end.comes(CONFIGURED, authentic(true));
    assert_eq!(end.lanes_to, [CONFIGURED]);

    // The peer answered the previous initiation from its last endpoint.
    let mut end = End::called_home();
    end.comes(ROAMED, authentic(true));
    assert_eq!(end.lanes_to, []);

    // The peer's data packets arrive, so the lanes have the right endpoint.
    let mut end = End::called_home();
    let heard = LaneReport::Activity { sent_at: None, received_at: Some(end.now) };
    end.peer.handle_lane(heard, end.now, &mut end.rng);
    end.comes(CONFIGURED, authentic(true));
    assert_eq!(end.lanes_to, []);

    // The peer initiated a handshake itself meanwhile.
    let mut end = End::called_home();
    end.comes(CONFIGURED, LinkOutput { answered: false, ..authentic(true) });
    assert_eq!(end.lanes_to, []);
}

#[test]
fn a_start_with_an_old_time_is_answered_by_one_a_second_and_reported_while_the_peer_is_silent() {
    let told = |end: &End| end.notices.iter().filter(|n| matches!(n, PeerEvent::ClockSetBack { .. })).count();
    let stale = || LinkOutput { stale_start: true, dropped: true, ..LinkOutput::default() };
    let mut end = End::new(Role::Responder);
    end.comes(CONFIGURED, authentic(true));
    end.wait(Duration::from_millis(1_000));
    end.comes(CONFIGURED, stale());
    assert_eq!((told(&end), end.calls.len()), (0, 1), "the peer was heard, so that may be a repetition");
    end.wait(Duration::from_millis(1_000));
    end.calls.clear();
    end.comes(ROAMED, stale());
    assert_eq!(told(&end), 1);
    let to: Vec<_> = end.calls.iter().map(|call| call.0).collect();
    assert_eq!(to, [CONFIGURED, ROAMED], "towards the place that is known, and the one that it came from");
    end.calls.clear();
    end.comes(ROAMED, stale());
    assert_eq!((told(&end), end.calls.len()), (1, 0), "not more than once a second");
    let before = end.now;
    while end.now.since(before) < Duration::from_millis(4_900) {
        end.wait(Duration::from_millis(100));
        end.comes(ROAMED, stale());
        assert_eq!(told(&end), 1);
    }
    end.wait(Duration::from_millis(100));
    end.comes(ROAMED, stale());
    assert_eq!(told(&end), 2);
}

#[test]
fn a_datagram_that_came_to_nothing_is_counted_and_changes_nothing() {
    let mut end = End::new(Role::Responder);
    end.comes(CONFIGURED, authentic(true));
    for count in 1..=3 {
        end.comes(ROAMED, LinkOutput { dropped: true, ..LinkOutput::default() });
        assert_eq!(end.peer.view(end.now).drops.control, count);
    }
    assert_eq!(end.peer.view(end.now).endpoint, Some(CONFIGURED));
}

#[test]
fn nothing_is_fetched_before_the_peers_hello() {
    let mut end = End::new(Role::Initiator);
    end.wait(seconds(30));
    end.comes(CONFIGURED, authentic(true));
    end.wait(seconds(30));
    assert!(end.calls.len() > 1);
    assert_eq!(end.fetches, 0);
}

#[test]
fn show_says_which_endpoint_is_called_and_after_three_calls_what_to_compare() {
    let reason = |end: &End| end.peer.view(end.now).reason.unwrap();
    let mut end = End::new(Role::Initiator);
    end.wait(Duration::from_millis(1_500));
    assert_eq!((end.calls.len(), reason(&end)), (2, format!("calling {CONFIGURED}")));
    end.wait(Duration::from_millis(1_500));
    let three = reason(&end);
    assert!(
        three.starts_with(&format!("unanswered: 3 handshakes to {CONFIGURED}, nothing for 3 s;")),
        "{three}"
    );
    // If the two endpoints differ, the reason names both.
    let mut end = End::roamed_and_silent();
    end.wait(seconds(10));
    let both = format!("handshakes to {ROAMED} and {CONFIGURED}, nothing for 12 s;");
    assert!(reason(&end).contains(&both), "{}", reason(&end));
}

#[test]
fn a_reload_moves_the_endpoint_only_to_another_address() {
    let mut end = End::roamed_and_silent();
    let reload = |end: &mut End, endpoint| {
        end.peer.reconfigure(config(Role::Initiator, endpoint), end.now, &mut end.rng);
        end.collect();
        end.peer.view(end.now).endpoint.unwrap()
    };
    assert_eq!(reload(&mut end, CONFIGURED), ROAMED, "which the config does not speak of");
    let moved = SocketAddr::from(([203, 0, 113, 1], 51820));
    assert_eq!(reload(&mut end, moved), moved);
    end.calls.clear();
    end.wait(seconds(12));
    assert!(end.calls.len() > 1 && end.calls.iter().all(|(to, _)| *to == moved), "{:?}", end.calls);
}

#[test]
fn a_new_address_of_the_hosts_name_is_called_at_once_where_there_is_no_session() {
    let moved = SocketAddr::from(([203, 0, 113, 1], 51820));
    let mut end = End::new(Role::Initiator);
    end.wait(seconds(8));
    end.calls.clear();
    // The same endpoint again changes nothing.
    end.peer.set_endpoint(CONFIGURED, end.now);
    end.wait(seconds(1));
    assert_eq!(end.calls, []);
    end.peer.set_endpoint(moved, end.now);
    let quarter = Duration::from_millis(250);
    end.wait(quarter);
    assert_eq!(end.calls, [(moved, seconds(9)), (CONFIGURED, seconds(9) + quarter)]);
    // With a session, messages go to the new endpoint from now on.
    end.comes(moved, authentic(true));
    end.peer.set_endpoint(CONFIGURED, end.now);
    end.wait(seconds(1));
    assert_eq!((end.calls.len(), end.peer.view(end.now).endpoint), (2, Some(CONFIGURED)));
}

#[test]
fn the_path_is_measured_where_there_is_a_session_and_at_once_when_it_moves() {
    let hear = |end: &mut End, from, count| {
        for _ in 0..count {
            end.wait(seconds(1));
            end.comes(from, authentic(false));
        }
    };
    let mut end = End::new(Role::Initiator);
    end.peer.measure_path(true, end.now);
    end.wait(seconds(30));
    assert_eq!(end.probes, 0, "nobody is there");
    end.comes(CONFIGURED, authentic(true));
    assert_eq!(end.probes, 1, "at once");
    // Not even the small probes are acknowledged. That says nothing about the path's MTU, so the search
    // pauses.
    hear(&mut end, CONFIGURED, 30);
    end.probes = 0;
    hear(&mut end, CONFIGURED, 5);
    assert_eq!(end.probes, 0);
    end.comes(ROAMED, authentic(false));
    assert_eq!(end.probes, 1, "it moved");
    assert!(!end.notices.iter().any(|n| matches!(n, PeerEvent::PathMtu { .. })));
}
