//! Runs targets on any number of mutations of seeds and corpus: without a fuzzer's guidance and without a
//! sanitizer, but with overflow checks and assertions, and much faster. `many CASES TARGET...`;
//! `scripts/fuzz.sh many`.

#[path = "../bodies/mod.rs"]
mod bodies;

use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bodies::change::{Shown, change, inputs};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let cases: u64 =
        arguments.next().and_then(|number| number.parse().ok()).expect("usage: many CASES TARGET...");
    for name in arguments {
        let (_, body, _) =
            bodies::TARGETS.iter().find(|(target, ..)| *target == name).expect("there is no such target");
        let dir = |kind: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join(kind).join(&name);
        let seeds = [inputs(&dir("seeds")), inputs(&dir("corpus"))].concat();
        for (input, n) in seeds.iter().zip(0..) {
            Shown(&name, input, n).run(*body);
        }
        // Each run makes different cases.
        let seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        let start = Instant::now();
        for n in 0..cases {
            Shown(&name, &change(&seeds, &mut rng), n).run(*body);
        }
        println!(
            "passed   {name:<18} {cases:>12} cases in {} s, from {} inputs, seed {seed}",
            start.elapsed().as_secs(),
            seeds.len()
        );
    }
}
