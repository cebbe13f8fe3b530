//! Measures whether the time of a comparison or look-up depends on its input, with dudect's method: two
//! classes of inputs in random order, and Welch's t of their times. Above 10 in either direction the times
//! differ; below 5 no difference was detected, which proves nothing. `scripts/evidence.sh` runs it and
//! evaluates the result.
//!
//! - `confirmation`: `Secret<48>::ct_eq`, which compares confirmations; the input differs in the first byte
//!   or in the last
//! - `chain_check`: `ct_eq` of 16 bytes, with the same classes
//! - `index_near`: the lanes' index table; an unknown receiver index that differs from a known one in one
//!   bit, or in many. These times do differ by some nanoseconds, as in all hash tables. The index is not
//!   secret: each data packet has it in clear
//! - `control`: an ordinary comparison of 48 bytes, whose times must differ

#![forbid(unsafe_code)]

use std::hint::black_box;

use dudect_bencher::rand::{Rng, RngExt};
use dudect_bencher::{BenchRng, Class, CtRunner, ctbench_main};
use qvpn_dataplane::fuzzing::IndexTable;
use qvpn_secret::Secret;

/// Number of measurements in a run.
const SAMPLES: usize = 400_000;
/// Comparisons in one measurement: a single one is shorter than the clock's resolution.
const CALLS_PER_SAMPLE: usize = 20;

fn class(left: bool) -> Class {
    if left { Class::Left } else { Class::Right }
}

/// Returns values that differ from `right` in the first byte (left class) or in the last (right class).
fn wrong<const N: usize>(right: &[u8; N], rng: &mut BenchRng) -> Vec<(Class, [u8; N])> {
    let one = |rng: &mut BenchRng| {
        let (left, mut value) = (rng.random::<bool>(), *right);
        value[if left { 0 } else { N - 1 }] ^= rng.random_range(1..=255u8);
        (class(left), value)
    };
    (0..SAMPLES).map(|_| one(rng)).collect()
}

fn compare<const N: usize>(
    runner: &mut CtRunner,
    rng: &mut BenchRng,
    equal: impl Fn(&[u8; N], &[u8; N]) -> bool,
) {
    let mut right = [0; N];
    rng.fill_bytes(&mut right);
    for (class, value) in wrong(&right, rng) {
        runner.run_one(class, || {
            (0..CALLS_PER_SAMPLE).filter(|_| equal(black_box(&right), black_box(&value))).count()
        });
    }
}

fn confirmation(runner: &mut CtRunner, rng: &mut BenchRng) {
    let mut secret = Secret::<48>::zeroed();
    rng.fill_bytes(secret.expose_mut());
    for (class, value) in wrong(&secret.expose().clone(), rng) {
        runner.run_one(class, || {
            (0..CALLS_PER_SAMPLE).filter(|_| black_box(&secret).ct_eq(black_box(&value))).count()
        });
    }
}

fn chain_check(runner: &mut CtRunner, rng: &mut BenchRng) {
    compare::<16>(runner, rng, |a, b| qvpn_secret::ct_eq(a, b));
}

fn control(runner: &mut CtRunner, rng: &mut BenchRng) {
    compare::<48>(runner, rng, |a, b| a.iter().zip(b).all(|(a, b)| a == b));
}

fn index_near(runner: &mut CtRunner, rng: &mut BenchRng) {
    let known: Vec<u32> = (0..200).map(|_| rng.random::<u32>() | 1 << 31).collect();
    let table = IndexTable::new(known.iter().copied());
    let one = |rng: &mut BenchRng| {
        let left = rng.random::<bool>();
        let near = known[rng.random_range(0..known.len())] ^ 1 << rng.random_range(0..31u32);
        let far = rng.random::<u32>() | 1 << 31;
        (class(left), if left { near } else { far })
    };
    let inputs: Vec<(Class, u32)> = (0..SAMPLES).map(|_| one(rng)).collect();
    for (class, index) in inputs {
        runner.run_one(class, || {
            (0..CALLS_PER_SAMPLE).filter(|_| black_box(&table).holds(black_box(index))).count()
        });
    }
}

ctbench_main!(confirmation, chain_check, index_near, control);
