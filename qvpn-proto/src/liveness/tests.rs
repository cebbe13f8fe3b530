use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};

use super::*;

const START: Time = Time::from_nanos(1 << 40);

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// A side with a session, and what it does.
struct Side {
    liveness: Liveness,
    now: Time,
    /// The times of pings since the start, one for each copy, and of silence.
    pings: Vec<u128>,
    silent: Vec<u128>,
    last: Option<Ping>,
    rng: ChaCha20Rng,
}

impl Side {
    fn new(after: Option<Duration>) -> Self {
        let mut liveness = Liveness::new(after, START);
        liveness.on_received(START);
        liveness.on_new_session();
        let rng = ChaCha20Rng::seed_from_u64(1);
        Self { liveness, now: START, pings: Vec::new(), silent: Vec::new(), last: None, rng }
    }

    fn wait(&mut self, span: Duration) {
        let end = self.now + span;
        while let Some(at) = self.liveness.due(true).filter(|at| *at <= end) {
            self.now = self.now.max(at);
            let since = self.now.since(START).as_millis();
            match self.liveness.poll(true, self.now) {
                LivenessStep::Nothing => panic!("due at {since} ms, and nothing to do"),
                LivenessStep::Ping(copies) => {
                    self.pings.extend((0..copies).map(|_| since));
                    self.last = Some(self.liveness.ping(self.now, &mut self.rng));
                }
                LivenessStep::Silent => self.silent.push(since),
            }
        }
        self.now = end;
    }

    fn answer(&mut self) {
        let ping = self.last.take().unwrap();
        self.liveness.on_received(self.now);
        assert!(self.liveness.on_pong(&ping, self.now).is_some());
    }
}

#[test]
fn three_pings_and_their_repetitions_come_before_silence() {
    let mut side = Side::new(Some(ms(2000)));
    side.wait(ms(60_000));
    assert_eq!(side.silent, [5100]);
    assert_eq!(side.pings[..8], [2000, 2250, 2250, 2500, 2500, 2750, 2750, 3000], "repeated in two copies");
    assert_eq!(side.pings.len(), 3 + 2 * 10);
    let mut fast = Side::new(Some(ms(300)));
    fast.wait(ms(60_000));
    assert_eq!((fast.silent, fast.pings[0]), (vec![850], 300));
    let mut off = Side::new(None);
    off.wait(ms(60_000));
    assert!(off.pings.is_empty() && off.silent.is_empty());
}

#[test]
fn pings_are_never_closer_than_two_round_trips() {
    let mut side = Side::new(Some(ms(300)));
    side.liveness.set_round_trip(Some(ms(600)));
    side.wait(ms(60_000));
    assert_eq!(side.silent, [300 + 3 * 1200 + 100]);
    side = Side::new(Some(ms(300)));
    side.liveness.set_round_trip(Some(ms(60_000)));
    side.wait(ms(60_000));
    assert_eq!(side.silent, [300 + 3 * 2000 + 100], "an absurd one is not believed");
}

#[test]
fn each_ping_has_its_time_even_if_it_was_sent_late() {
    let mut side = Side::new(Some(ms(2000)));
    side.now = START + ms(100_000);
    assert_eq!(side.liveness.poll(true, side.now), LivenessStep::Ping(1), "one ping after a long sleep");
    side.wait(ms(3_099));
    assert!(side.silent.is_empty());
    side.wait(ms(1));
    assert_eq!(side.silent, [103_100]);
}

#[test]
fn an_idle_peer_that_answers_costs_one_ping_each_two_seconds() {
    let mut side = Side::new(Some(ms(2000)));
    for n in 1..=30 {
        side.wait(ms(2000));
        assert_eq!(side.pings.len(), n);
        side.answer();
    }
    assert!(side.silent.is_empty());
    // Packets that come count as well, and those that are older than the last one do not.
    for _ in 0..30 {
        side.wait(ms(1999));
        side.liveness.on_received(side.now);
        side.liveness.on_received(START);
    }
    assert_eq!(side.pings.len(), 30);
}

#[test]
fn two_answers_end_silence_and_late_ones_or_packets_alone_do_not() {
    let mut side = Side::new(Some(ms(2000)));
    side.wait(ms(5_100));
    let late = side.last.unwrap();
    side.wait(ms(8_000));
    side.liveness.on_received(side.now);
    assert_eq!(side.liveness.on_pong(&late, side.now), None, "ten seconds late");
    assert_eq!(side.liveness.silence(), Some(Silence::NothingReceived));
    // The packet is a sign, so it is pinged at once and a few times more.
    side.pings.clear();
    side.wait(ms(60_000));
    assert_eq!(side.pings.len(), usize::from(EAGER_PINGS));
    side.liveness.on_received(side.now);
    side.wait(Duration::ZERO);
    side.answer();
    assert!(side.liveness.silence().is_some(), "one answer");
    side.wait(Duration::ZERO);
    side.answer();
    assert_eq!(side.liveness.silence(), None);
    let forged = Ping { nonce: [9; 8], path: 0, heard_ago: None };
    assert_eq!(side.liveness.on_pong(&forged, side.now), None, "a nonce that was never sent");
}

#[test]
fn a_peer_that_says_goodbye_is_silent_until_it_answers_in_a_new_session() {
    for after in [Some(ms(2000)), None] {
        let mut side = Side::new(after);
        side.liveness.on_bye(side.now);
        assert_eq!(side.liveness.silence(), Some(Silence::Bye));
        side.wait(ms(10));
        side.liveness.on_received(side.now);
        side.wait(ms(10_000));
        assert!(side.pings.is_empty(), "packets that were under way are no sign");
        side.liveness.on_new_session();
        for _ in 0..2 {
            assert_eq!(side.liveness.silence(), Some(Silence::Bye));
            side.wait(Duration::ZERO);
            side.answer();
        }
        assert_eq!(side.liveness.silence(), None);
    }
}

#[test]
fn the_peers_reports_show_that_it_receives_nothing() {
    let mut side = Side::new(Some(ms(2000)));
    let report = |side: &mut Side, ago: u64| {
        side.liveness.on_received(side.now);
        side.liveness.on_report(Some(ms(ago)), side.now);
        side.wait(ms(100));
        side.liveness.silence()
    };
    assert_eq!(report(&mut side, 4_900), None);
    assert_eq!(report(&mut side, 20_000), None, "it may have slept");
    assert_eq!(report(&mut side, 0), None);
    assert_eq!(report(&mut side, 5_200), None);
    assert_eq!(report(&mut side, 5_300), Some(Silence::NotReceiving), "it says so twice");
    assert_eq!(report(&mut side, 9_000), Some(Silence::NotReceiving));
    assert_eq!(report(&mut side, 30), None, "it receives again");
    side.liveness.on_report(Some(ms(9_000)), side.now);
    side.liveness.on_report(None, side.now);
    side.wait(ms(100));
    assert_eq!(side.liveness.silence(), None, "a peer that never received anything says nothing");
}

#[test]
fn a_peer_without_a_session_is_silent_after_the_same_time() {
    let mut liveness = Liveness::new(Some(ms(2000)), START);
    assert_eq!(liveness.due(false), None, "nothing ever came");
    liveness.on_received(START);
    assert_eq!(liveness.due(false), Some(START + ms(5_100)));
    assert_eq!(liveness.poll(false, START + ms(5_100)), LivenessStep::Silent);
    assert_eq!(liveness.due(false), None, "no ping can be sent");
}

#[test]
fn a_reload_turns_liveness_off_and_forgets_silence() {
    let mut side = Side::new(Some(ms(2000)));
    side.wait(ms(6_000));
    side.liveness.set_after(None);
    assert_eq!((side.liveness.silence(), side.liveness.due(true)), (None, None));
    side.liveness.set_after(Some(ms(2000)));
    side.wait(Duration::ZERO);
    assert!(side.liveness.silence().is_none(), "it is pinged again first");
}

#[test]
fn a_pong_says_when_the_packet_before_its_ping_came() {
    let mut side = Side::new(None);
    let ping = Ping { nonce: [5; 8], path: 3, heard_ago: None };
    side.liveness.on_received(START + ms(700));
    side.liveness.on_received(START + ms(1000));
    let pong = side.liveness.pong(&ping, START + ms(1000));
    assert_eq!(pong, Ping { heard_ago: Some(ms(300)), ..ping });
}
