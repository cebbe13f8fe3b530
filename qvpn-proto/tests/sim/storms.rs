//! The storms of many seeds: ten thousand rekeys in each run of the tests, any number in `make soak`, and the
//! seeds that once found a defect.

use std::panic::catch_unwind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use crate::storm::{StormCounts, storm};

/// The number of failed seeds after which the run stops: each prints its last steps, and all are of interest.
const MAX_FAILURES: usize = 10;

/// The number of rekeys between two progress lines of a long run.
const REKEYS_PER_REPORT: u64 = 50_000;

/// Runs seeds from `first` on until `rekeys` is reached, on every core or in as many threads as
/// `QVPN_SIM_THREADS` says.
fn many(first: u64, rekeys: u64) -> StormCounts {
    let (next, stop) = (AtomicU64::new(first), AtomicBool::new(false));
    let (sum, failed) = (Mutex::new(StormCounts::default()), Mutex::new(Vec::new()));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = number("QVPN_SIM_THREADS").map_or(cores, |n| usize::try_from(n).unwrap());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while !stop.load(Relaxed) {
                    let seed = next.fetch_add(1, Relaxed);
                    let Ok(tally) = catch_unwind(|| storm(seed)) else {
                        let mut failed = failed.lock().unwrap();
                        failed.push(seed);
                        stop.fetch_or(failed.len() >= MAX_FAILURES, Relaxed);
                        continue;
                    };
                    let mut sum = sum.lock().unwrap();
                    let before = sum.rekeys / REKEYS_PER_REPORT;
                    sum.add(&tally);
                    if sum.rekeys / REKEYS_PER_REPORT > before {
                        println!("{} rekeys, {} seeds so far", sum.rekeys, sum.seeds);
                    }
                    stop.fetch_or(sum.rekeys >= rekeys, Relaxed);
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "seeds that failed, with their stories above: {failed:?}");
    sum.into_inner().unwrap()
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

#[test]
fn ten_thousand_rekeys_under_every_fault() {
    let tally = many(1, 10_000);
    assert!(tally.restarts > 20 && tally.packets > 10_000, "{tally:?}");
    println!("{tally:?}");
}

/// The defects were in the protocol (402, 594, 1084, 1357, 3000072) and in the simulation itself. Seeds below
/// 20 are among the ten thousand rekeys. A fix that changes the order of events makes a different storm of
/// the same seed, so the tests in `pair.rs` cover each defect directly.
#[test]
fn seeds_that_once_found_a_defect() {
    for seed in [90, 172, 402, 594, 1084, 1357, 1_000_018, 1_000_062, 3_000_072] {
        storm(seed);
    }
}

/// Runs `QVPN_SIM_REKEYS` rekeys, by default a million. `QVPN_SIM_FIRST` is the first seed.
#[test]
#[ignore = "a long run, for `make soak`"]
fn a_million_rekeys() {
    let (first, rekeys) =
        (number("QVPN_SIM_FIRST").unwrap_or(1_000_000), number("QVPN_SIM_REKEYS").unwrap_or(1_000_000));
    let (begun, tally) = (Instant::now(), many(first, rekeys));
    println!(
        "soak: simulator: {} rekeys, {} packets sealed and {} opened, {} restarts, {} steps, {:.1} days \
         simulated in {} s",
        tally.rekeys,
        tally.packets,
        tally.opened,
        tally.restarts,
        tally.steps,
        tally.simulated.as_secs_f64() / 86_400.0,
        begun.elapsed().as_secs()
    );
    println!(
        "soak: simulator: {} seeds from {first} on, nothing violated; well again after at most {:.1} s, with \
         bad keys {:.1} s",
        tally.seeds,
        tally.slowest[0].as_secs_f64(),
        tally.slowest[1].as_secs_f64()
    );
}

/// Runs the seed in `QVPN_SIM_SEED` and prints every step.
#[test]
#[ignore = "for one seed that failed"]
fn one_seed() {
    println!("{:?}", storm(number("QVPN_SIM_SEED").unwrap()));
}
