//! Mutates inputs without a fuzzer's guidance, for runs on a stable toolchain.

#![allow(dead_code, reason = "the targets of cargo-fuzz need none of it")]

use std::fs;
use std::path::{Path, PathBuf};

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::Rng;

use super::Body;

/// The maximum length of an input, in bytes.
const MAX_INPUT_BYTES: usize = 6000;

/// A case to run. When its body panics, `Drop` writes the input to a file and prints where it is.
pub struct Shown<'a>(pub &'a str, pub &'a [u8], pub u64);

impl Shown<'_> {
    pub fn run(self, body: Body) {
        body(self.1);
        std::mem::forget(self);
    }
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        let file = std::env::temp_dir().join(format!("qvpn-fuzz-{}", self.0));
        let kept = fs::write(&file, self.1);
        eprintln!("{}: case {} failed; it is in {} ({kept:?})", self.0, self.2, file.display());
    }
}

/// Reads the files of a directory, in the order of their names. Returns nothing if the directory does not
/// exist.
#[must_use]
pub fn inputs(dir: &Path) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.sort();
    files.iter().filter_map(|file| fs::read(file).ok()).collect()
}

fn below(rng: &mut ChaCha20Rng, n: usize) -> usize {
    // The remainder of 32 bits by less than 6,000 is close to uniform, and it is below `n`.
    usize::try_from(rng.next_u32()).unwrap_or_default() % n.max(1)
}

/// Returns one or two seeds with a few bytes changed, inserted, removed or repeated; one input in 20 is
/// random bytes only.
#[must_use]
pub fn change(seeds: &[Vec<u8>], rng: &mut ChaCha20Rng) -> Vec<u8> {
    let mut input = seeds[below(rng, seeds.len())].clone();
    if below(rng, 20) == 0 {
        input.resize(below(rng, 300), 0);
        rng.fill_bytes(&mut input);
    }
    // Most inputs get one or two changes: after many, parsers refuse the first field.
    for _ in 0..=below(rng, 6).min(below(rng, 6)).min(below(rng, 6)) {
        let at = below(rng, input.len() + 1);
        let [how, byte, ..] = rng.next_u32().to_le_bytes();
        match how % 9 {
            0 => input.insert(at, byte),
            1 => input.truncate(at),
            2 if at < input.len() => drop(input.remove(at)),
            3 => {
                let other = &seeds[below(rng, seeds.len())];
                let from = below(rng, other.len() + 1);
                input.truncate(at);
                input.extend(&other[from..]);
            }
            4 => {
                let end = at + below(rng, input.len() - at + 1).min(40);
                let piece = input[at..end].to_vec();
                input.splice(at..at, piece);
            }
            // Counts and lengths are at the front and at the end of messages, so these positions change more
            // often.
            5 if at < input.len() => input[at % 64] = byte,
            6 if at < input.len() => {
                let back = at % input.len().min(16);
                let end = input.len() - 1;
                input[end - back] = byte;
            }
            7 if at < input.len() => input[at] ^= 1 << (byte & 7),
            _ if at < input.len() => input[at] = byte,
            _ => {}
        }
    }
    input.truncate(MAX_INPUT_BYTES);
    input
}
