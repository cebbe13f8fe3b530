//! A short run of the fuzz targets on stable: every input in `fuzz/seeds`, and some thousand mutations of
//! them, the same in each run. `make fuzz` runs the same bodies for longer.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "../../fuzz/bodies/mod.rs"]
mod bodies;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use bodies::TARGETS;
use bodies::change::{Shown, change};
use qvpn_proto::Role;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

fn dir(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("fuzz").join(name)
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let dir = dir("seeds").join(target);
    names(&dir).iter().map(|name| fs::read(dir.join(name)).unwrap()).collect()
}

#[test]
fn each_target_has_a_program_and_seeds() {
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, ..)| (*name).to_owned()).collect();
    let programs: BTreeSet<String> =
        names(&dir("fuzz_targets")).iter().map(|name| name.trim_end_matches(".rs").to_owned()).collect();
    assert_eq!(programs, targets, "a file in fuzz/fuzz_targets for each line of TARGETS");
    let manifest = fs::read_to_string(dir("Cargo.toml")).unwrap();
    for target in &targets {
        assert!(manifest.contains(&format!("name = \"{target}\"\n")), "{target} is not in fuzz/Cargo.toml");
        assert!(!seeds(target).is_empty(), "{target} has no seeds");
    }
    let size: usize = targets.iter().flat_map(|target| seeds(target)).map(|seed| seed.len()).sum();
    assert!(size < 3_000_000, "{size} bytes of seeds: `make fuzz` keeps the smallest that cover as much");
}

/// `scripts/fuzz.sh coverage` reports the lines of these files.
#[test]
fn each_target_names_the_sources_that_it_tests() {
    let script = fs::read_to_string(dir("../scripts/fuzz.sh")).unwrap();
    let list = script.split("source_of() {").nth(1).unwrap().split("esac").next().unwrap();
    for (target, ..) in TARGETS {
        let line = list
            .lines()
            .find(|line| line.split(')').next().unwrap().split(" | ").any(|name| name.trim() == *target));
        let line = line.unwrap_or_else(|| panic!("source_of in scripts/fuzz.sh has no line for {target}"));
        let files: Vec<&str> = line.split_whitespace().filter(|word| word.ends_with(".rs")).collect();
        assert!(!files.is_empty(), "{line}");
        for file in files {
            assert!(dir("..").join(file).exists(), "{target}: {file} is not there");
        }
    }
}

#[test]
fn seeds_of_messages_are_messages() {
    for (kind, name) in [(1, "hello"), (2, "stock_offer"), (3, "stock_ack"), (4, "propose"), (5, "accept")] {
        for message in bodies::valid_messages(kind) {
            assert!(seeds(name).contains(&message), "{name}: the valid messages are among the seeds");
        }
    }
}

/// Code that needs an epoch is only reached by inputs that make one.
#[test]
fn some_seeds_of_peers_end_in_epochs() {
    for (role, name) in [(Role::Responder, "responder"), (Role::Initiator, "initiator")] {
        let epochs = seeds(name).iter().map(|seed| bodies::peer::epochs(role, seed)).max();
        assert!(epochs >= Some(2), "{name}: no seed with two epochs: {epochs:?}");
    }
}

/// A replay needs a packet to replay.
#[test]
fn some_seeds_of_datagrams_carry_packets() {
    let most = seeds("datagram").iter().map(|seed| bodies::datagram::packets_opened(seed)).max();
    assert!(most >= Some(2), "no seed with two packets: {most:?}");
}

/// The corpus of a long run on this machine, if `QVPN_FUZZ_CORPUS` is set.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let dir = dir("corpus").join(target);
    if std::env::var_os("QVPN_FUZZ_CORPUS").is_none() || !dir.is_dir() {
        return Vec::new();
    }
    names(&dir).iter().map(|name| fs::read(dir.join(name)).unwrap()).collect()
}

/// Each target is a test of its own, so that a failure has its name.
macro_rules! short_runs {
    ($($name:ident)+) => {
        $(#[test] fn $name() { short(stringify!($name)); })+

        #[test]
        fn each_target_has_a_short_run() {
            let all: BTreeSet<&str> = [$(stringify!($name)),+].into();
            assert_eq!(all, TARGETS.iter().map(|(name, ..)| *name).collect());
        }
    };
}

short_runs! {
    hello stock_offer stock_ack propose accept confirm reject lanes fragment reassembly datagram
    responder initiator kme_status kme_keys kme_error etsi004 skip_key skip_capabilities config control split
    coalesce inner_packet allowed_ips replay
}

fn short(target: &str) {
    let (_, body, cases) = TARGETS.iter().find(|(name, ..)| *name == target).unwrap();
    let seeds = seeds(target);
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    for (input, n) in seeds.iter().chain(&corpus(target)).zip(0..) {
        Shown(target, input, n).run(*body);
    }
    for n in 0..u64::from(*cases) {
        let input = change(&seeds, &mut rng);
        Shown(target, &input, n).run(*body);
    }
}
