//! The search on a simulated path with a maximum size, a round trip and losses, and call by call.

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::*;

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);

/// A path with a maximum size, a round trip and losses, on a virtual clock.
struct World {
    search: PathMtu,
    now: Time,
    /// The largest size that passes; with 0, nothing passes.
    path: u16,
    round_trip: Duration,
    /// Losses in per mille, of probes and their acknowledgements together.
    loss: u32,
    busy: bool,
    rng: ChaCha20Rng,
    answers: Vec<(Time, MessageId)>,
    id: u64,
    bytes: usize,
    /// Each change of the size in use, with its time.
    changes: Vec<(Time, u16)>,
}

impl World {
    fn new(path: u16, seed: u64) -> Self {
        let now = Time::from_nanos(50_000_000_000);
        Self {
            search: PathMtu::new(now),
            now,
            path,
            round_trip: MS * 20,
            loss: 0,
            busy: true,
            rng: ChaCha20Rng::seed_from_u64(seed),
            answers: Vec::new(),
            id: 0,
            bytes: 0,
            changes: vec![(now, MAX_PATH_MTU)],
        }
    }

    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        while self.now < end {
            if self.busy {
                self.search.sent(self.now);
            }
            let now = self.now;
            for (_, id) in self.answers.extract_if(.., |(at, _)| *at <= now) {
                self.search.acknowledged(&id, now);
            }
            for size in self.search.due(now, Some(self.round_trip)) {
                self.id += 1;
                let id = self.id.to_be_bytes();
                self.search.probed(id, size);
                self.bytes += usize::from(size).max(54) + 80;
                let lost = self.rng.next_u32() % 1000 < self.loss;
                if size <= self.path && self.path > 0 && !lost {
                    self.answers.push((now + self.round_trip, id));
                }
            }
            assert!(MIN_PATH_MTU <= self.search.mtu() && self.search.mtu() <= MAX_PATH_MTU);
            if self.changes.last().unwrap().1 != self.search.mtu() {
                self.changes.push((now, self.search.mtu()));
            }
            self.now = self.now + MS * 5;
        }
    }

    fn mtu(&self) -> u16 {
        self.search.mtu()
    }
}

#[test]
fn each_path_is_found_to_the_step_within_three_seconds() {
    for (path, expected) in [
        (1420, 1420),
        (9000, 1420),
        (1419, 1408),
        (1408, 1408),
        (1407, 1392),
        (1300, 1296),
        (1216, 1216),
        (1215, 1200),
        (1200, 1200),
    ] {
        let mut world = World::new(path, 1);
        world.run(S * 3);
        assert_eq!(world.mtu(), expected, "path {path}: {:?}", world.changes);
    }
}

#[test]
fn a_path_that_shrinks_and_widens_is_followed() {
    let mut world = World::new(1420, 2);
    world.run(S * 30);
    for (path, expected) in [(1220, 1216), (1200, 1200), (1320, 1312), (1420, 1420)] {
        let before = world.mtu();
        world.path = path;
        let start = world.now;
        world.run(S * 25);
        assert_eq!(world.mtu(), expected, "{:?}", world.changes);
        if path < before {
            let fell = world.changes.iter().find(|(at, mtu)| *at >= start && *mtu <= path).unwrap().0;
            assert!(fell.since(start) < S * 8, "too large for {:?}", fell.since(start));
        }
    }
}

#[test]
fn losses_do_not_make_it_small() {
    for seed in 0..20 {
        let mut world = World::new(1420, seed);
        (world.loss, world.round_trip) = (200, MS * 200);
        world.run(S * 600);
        let small: Vec<_> = world.changes.iter().filter(|(_, mtu)| *mtu < 1420).collect();
        assert!(small.len() <= 4, "seed {seed}: {small:?}");
        assert_eq!(world.mtu(), 1420, "seed {seed}: {:?}", world.changes);
        // The search also finds a narrow path despite the losses.
        world.path = 1300;
        world.run(S * 60);
        assert_eq!(world.mtu(), 1296, "seed {seed}: {:?}", world.changes);
    }
}

#[test]
fn a_path_that_is_gone_is_not_measured() {
    let mut world = World::new(1420, 3);
    world.run(S * 10);
    world.path = 0;
    world.run(S * 300);
    assert_eq!(world.changes.len(), 1, "{:?}", world.changes);
    world.path = 1300;
    world.run(S * 70);
    assert_eq!(world.mtu(), 1296);
    world.path = 0;
    world.run(S * 300);
    assert_eq!(world.mtu(), 1296);
}

#[test]
fn after_roaming_the_size_is_right_at_once() {
    let mut world = World::new(1300, 4);
    world.busy = false;
    world.run(S * 100);
    assert_eq!(world.mtu(), 1296);
    world.path = 1420;
    world.search.moved(world.now);
    world.run(S);
    assert_eq!(world.mtu(), 1420);
    world.path = 1250;
    world.search.moved(world.now);
    world.run(S * 4);
    assert_eq!(world.mtu(), 1248);
}

#[test]
fn it_costs_little() {
    for (path, busy, most) in [(1420, true, 60_000), (1420, false, 3_500), (1200, true, 100_000)] {
        let mut world = World::new(path, 5);
        world.busy = busy;
        world.run(S * 10);
        world.bytes = 0;
        world.run(S * 60);
        assert!(world.bytes <= most, "path {path}: {} bytes a minute", world.bytes);
    }
}

/// A search with this size in use, which has nothing to do for an hour.
fn search(mtu: u16, now: Time) -> PathMtu {
    PathMtu { mtu, round: None, check_at: now + S * 3600, raise_at: Some(now + S * 3600), active: false }
}

const NOW: Time = Time::from_nanos(50_000_000_000);

/// Sends the due probes and returns their sizes. A probe's ID is its size.
fn probe(search: &mut PathMtu, now: Time, round_trip: Option<Duration>) -> Vec<u16> {
    let sizes = search.due(now, round_trip);
    for size in &sizes {
        search.probed(id(*size), *size);
    }
    sizes
}

fn id(size: u16) -> MessageId {
    u64::from(size).to_be_bytes()
}

#[test]
fn a_round_waits_for_two_round_trips_and_a_little_within_bounds() {
    for (round_trip, wait) in
        [(None, MS * 500), (Some(MS * 20), MS * 250), (Some(MS * 400), MS * 900), (Some(S * 5), S * 2)]
    {
        let mut search = PathMtu::new(NOW);
        assert_eq!(probe(&mut search, NOW, round_trip), [0, MAX_PATH_MTU]);
        assert_eq!(search.next(), NOW + wait, "{round_trip:?}");
        assert!(search.due(NOW + wait - MS, round_trip).is_empty(), "not before");
        assert_eq!(probe(&mut search, NOW + wait + S, round_trip), [0, MAX_PATH_MTU], "and late as well");
    }
}

#[test]
fn a_check_ends_when_its_size_passed() {
    let mut search = PathMtu::new(NOW);
    probe(&mut search, NOW, None);
    search.acknowledged(&id(0), NOW + MS);
    assert_eq!(search.next(), NOW + MS * 500, "the small one says nothing of the size");
    search.acknowledged(&id(MAX_PATH_MTU), NOW + MS * 2);
    assert_eq!(search.next(), NOW + MS * 2);
    assert!(search.due(NOW + MS * 2, None).is_empty());
    assert_eq!(search.next(), NOW + MS * 2 + IDLE_CHECK_INTERVAL);
}

#[test]
fn larger_sizes_alone_are_tried_each_once_until_one_passes() {
    for (mtu, sizes) in [(1408, &[0, 1420][..]), (1392, &[0, 1408, 1420]), (1200, &[0, 1216, 1420])] {
        let mut search = search(mtu, NOW);
        search.raise_at = Some(NOW);
        assert_eq!(probe(&mut search, NOW, None), sizes);
        search.acknowledged(&id(0), NOW + MS);
        assert_eq!(search.next(), NOW + MS * 500, "the small one says nothing of the sizes");
        search.acknowledged(&id(sizes[1]), NOW + MS * 2);
        assert_eq!(search.next(), NOW + MS * 2);
        let further = probe(&mut search, NOW + MS * 2, None);
        let larger: Vec<u16> = candidates().filter(|size| *size > sizes[1]).collect();
        assert_eq!(further.get(1..).unwrap_or_default(), larger);
    }
}

#[test]
fn a_size_that_does_not_pass_is_given_up_after_some_rounds() {
    // The size in use, whether larger sizes are probed, whether the small probe passes; then the number of
    // rounds and the resulting size.
    for (mtu, peek, small, rounds, then) in [
        (MIN_PATH_MTU, false, true, MAX_FAILED_ROUNDS, MIN_PATH_MTU),
        (MIN_PATH_MTU, false, false, 2 * MAX_FAILED_ROUNDS, MIN_PATH_MTU),
        (1392, true, true, RAISE_ROUNDS, 1392),
        (1392, true, false, 2 * MAX_FAILED_ROUNDS, 1392),
        (MAX_PATH_MTU, false, true, MAX_FAILED_ROUNDS + RAISE_ROUNDS, MIN_PATH_MTU),
        (MAX_PATH_MTU, false, false, 2 * MAX_FAILED_ROUNDS, MAX_PATH_MTU),
    ] {
        let (mut search, mut now, mut asked) = (search(mtu, NOW), NOW, 0);
        if peek {
            search.raise_at = Some(NOW);
        } else {
            search.check_at = NOW;
        }
        while !probe(&mut search, now, None).is_empty() {
            if small {
                search.acknowledged(&id(0), now);
            }
            (now, asked) = (search.next(), asked + 1);
        }
        assert_eq!((asked, search.mtu()), (rounds, then), "{mtu} {peek} {small}");
    }
}

#[test]
fn a_path_that_takes_the_most_is_asked_no_more() {
    let mut search = search(1392, NOW);
    search.raise_at = Some(NOW);
    assert_eq!(probe(&mut search, NOW, None), [0, 1408, MAX_PATH_MTU]);
    search.acknowledged(&id(MAX_PATH_MTU), NOW + MS);
    assert!(probe(&mut search, NOW + MS, None).is_empty());
    assert_eq!((search.mtu(), search.raise_at), (MAX_PATH_MTU, None));
}

#[test]
fn a_failed_size_is_dropped_in_the_first_round_that_finds_one_that_passes() {
    let mut search = search(MAX_PATH_MTU, NOW);
    search.check_at = NOW;
    let mut now = NOW;
    for _ in 0..MAX_FAILED_ROUNDS {
        assert_eq!(probe(&mut search, now, None), [0, MAX_PATH_MTU]);
        search.acknowledged(&id(0), now);
        now = search.next();
    }
    assert_eq!(
        probe(&mut search, now, None).len(),
        candidates().count(),
        "all but the least, and a small one"
    );
    now = search.next();
    probe(&mut search, now, None);
    assert_eq!(search.mtu(), MAX_PATH_MTU, "a round without the small one told nothing");
    search.acknowledged(&id(0), now);
    search.acknowledged(&id(1296), now);
    now = search.next();
    probe(&mut search, now, None);
    assert_eq!(search.mtu(), 1296, "at once, though larger ones are tried again");
}

#[test]
fn the_first_packet_after_a_silence_brings_the_check_forward() {
    let mut search = search(MAX_PATH_MTU, NOW);
    search.sent(NOW);
    assert_eq!(search.next(), NOW + CHECK_INTERVAL);
    search.sent(NOW + S);
    assert_eq!(search.next(), NOW + CHECK_INTERVAL, "the first alone");
}
