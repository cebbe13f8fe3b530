//! The fuzz targets, run shortly on stable: every input that is kept in `fuzz/seeds`, and some thousand made from them by
//! small changes, the same in each run. `make fuzz` runs the same bodies for as long as one likes.

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

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("fuzz").join(name)
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = folder("seeds").join(target);
    names(&folder).iter().map(|name| fs::read(folder.join(name)).unwrap()).collect()
}

#[test]
fn each_target_has_a_program_and_seeds() {
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, ..)| (*name).to_owned()).collect();
    let programs: BTreeSet<String> =
        names(&folder("fuzz_targets")).iter().map(|name| name.trim_end_matches(".rs").to_owned()).collect();
    assert_eq!(programs, targets, "a file in fuzz/fuzz_targets for each line of TARGETS");
    let manifest = fs::read_to_string(folder("Cargo.toml")).unwrap();
    for target in &targets {
        assert!(manifest.contains(&format!("name = \"{target}\"\n")), "{target} is not in fuzz/Cargo.toml");
        assert!(!seeds(target).is_empty(), "{target} has no seeds");
    }
    let size: usize = targets.iter().flat_map(|target| seeds(target)).map(|seed| seed.len()).sum();
    assert!(size < 3_000_000, "{size} bytes of seeds: `make fuzz` keeps the smallest that cover as much");
}

#[test]
fn seeds_of_messages_are_messages() {
    for (kind, name) in [(1, "hello"), (2, "stock_offer"), (3, "stock_ack"), (4, "propose"), (5, "accept")] {
        for message in bodies::valid_messages(kind) {
            assert!(seeds(name).contains(&message), "{name}: the valid messages are among the seeds");
        }
    }
}

/// What comes after an epoch is only tried where one comes into being.
#[test]
fn some_seeds_of_peers_end_in_epochs() {
    for (role, name) in [(Role::Responder, "responder"), (Role::Initiator, "initiator")] {
        let epochs = seeds(name).iter().map(|seed| bodies::peer::epochs(role, seed)).max();
        assert!(epochs >= Some(2), "{name}: no seed with two epochs: {epochs:?}");
    }
}

/// A stranger's repetitions only mean something where there was something to repeat.
#[test]
fn some_seeds_of_datagrams_carry_packets() {
    let most = seeds("datagram").iter().map(|seed| bodies::datagram::packets_opened(seed)).max();
    assert!(most >= Some(2), "no seed with two packets: {most:?}");
}

/// What a long run has kept on this machine, if it is to be run, too.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = folder("corpus").join(target);
    if std::env::var_os("QVPN_FUZZ_CORPUS").is_none() || !folder.is_dir() {
        return Vec::new();
    }
    names(&folder).iter().map(|name| fs::read(folder.join(name)).unwrap()).collect()
}

/// Each target goes through its cases in a test of its own, so that a failure has its name.
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
    hello stock_offer stock_ack propose accept confirm reject lanes fragment reassembly datagram responder initiator kme_status
    kme_keys kme_error skip_key skip_capabilities config control split coalesce inner_packet allowed_ips replay
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

/// Writes the valid messages into the seeds: `QVPN_WRITE_SEEDS=1 cargo test -p tests --test fuzz write_seeds`.
#[test]
fn write_seeds() {
    if std::env::var_os("QVPN_WRITE_SEEDS").is_none() {
        return;
    }
    for (kind, name) in [(1, "hello"), (2, "stock_offer"), (3, "stock_ack"), (4, "propose"), (5, "accept")] {
        fs::create_dir_all(folder("seeds").join(name)).unwrap();
        for (n, message) in bodies::valid_messages(kind).into_iter().enumerate() {
            fs::write(folder("seeds").join(name).join(format!("valid-{n}")), &message).unwrap();
            let packets =
                qvpn_proto::wire::fragment::packets([1; 8], qvpn_proto::wire::Kind::Hello, &message);
            for target in ["fragment", "reassembly"] {
                fs::create_dir_all(folder("seeds").join(target)).unwrap();
            }
            fs::write(folder("seeds/fragment").join(format!("{name}-{n}")), packets.last().unwrap()).unwrap();
            let with_length =
                |packet: &Vec<u8>| [&u16::try_from(packet.len()).unwrap().to_be_bytes()[..], packet].concat();
            let stream: Vec<u8> = packets.iter().flat_map(with_length).collect();
            fs::write(folder("seeds/reassembly").join(format!("{name}-{n}")), stream).unwrap();
        }
    }
}
