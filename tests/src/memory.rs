//! Searches a running program's memory for keys that should be erased. It reads all memory that the program
//! can write, as an attacker with root would.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::thread;

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use memchr::memmem;

/// The minimum number of distinct values among 32 random bytes: fewer occur once in 10^12 tries, but text and
/// pointers have fewer.
const DIFFERENT: usize = 20;

/// A copy of a program's writable memory.
pub struct Memory(Vec<Vec<u8>>);

impl Memory {
    /// Copies the memory of a program.
    ///
    /// # Panics
    /// If almost nothing of it can be read, since the search would then prove nothing.
    #[must_use]
    #[track_caller]
    pub fn of(process: u32) -> Self {
        let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
        let memory = File::open(format!("/proc/{process}/mem")).unwrap();
        let mut regions = Vec::new();
        for line in maps.lines() {
            let mut words = line.split_whitespace();
            let (range, rights) = (words.next().unwrap(), words.next().unwrap());
            if !rights.starts_with("rw") {
                continue;
            }
            let (start, end) = range.split_once('-').unwrap();
            let [start, end] = [start, end].map(|hex| u64::from_str_radix(hex, 16).unwrap());
            regions.extend(read(&memory, start, end));
        }
        let all: usize = regions.iter().map(Vec::len).sum();
        assert!(all > 100_000, "only {all} bytes of the memory of {process} could be read");
        Self(regions)
    }

    /// Whether these bytes are anywhere in it.
    #[must_use]
    pub fn contains(&self, bytes: &[u8]) -> bool {
        let finder = memmem::Finder::new(bytes);
        self.0.iter().any(|region| finder.find(region).is_some())
    }

    /// Searches for this key, raw, as hex, or as base64 at any of its three alignments; returns the form in
    /// which it was found.
    #[must_use]
    pub fn finds_key(&self, key: &[u8]) -> Option<String> {
        forms(key).into_iter().find(|(_, form)| self.contains(form)).map(|(name, _)| name)
    }

    /// Returns the key that opens this data packet, if it is in memory: each 32 bytes are tried, first at
    /// multiples of 8 and then anywhere.
    #[must_use]
    pub fn find_opening_key(&self, packet: &[u8]) -> Option<[u8; 32]> {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&packet[8..16]);
        let opens = |window: &[u8]| {
            let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, window).unwrap());
            let mut sealed = packet[16..].to_vec();
            key.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut sealed).is_ok()
        };
        // Many pages have never been used and are zero.
        let pages: Vec<&[u8]> = self.0.iter().flat_map(|region| pages(region)).collect();
        let (left, right) = pages.split_at(pages.len() / 2);
        let search = |step| {
            thread::scope(|scope| {
                let halves = [left, right].map(|half| {
                    scope.spawn(move || {
                        let windows = half.iter().flat_map(|page| page.windows(32).step_by(step));
                        windows.filter(|window| looks_random(window)).find(|window| opens(window))
                    })
                });
                halves.map(|half| half.join().unwrap()).into_iter().flatten().next()
            })
        };
        search(8).or_else(|| search(1)).map(|window| window.try_into().unwrap())
    }
}

/// Reads the readable parts of a region; guard pages and device memory are not readable.
fn read(memory: &File, start: u64, end: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
    memory.read_exact_at(&mut bytes, start).is_ok().then_some(bytes)
}

/// Returns the pieces of 4096 bytes that aren't zero, each with the following 31 bytes.
fn pages(region: &[u8]) -> impl Iterator<Item = &[u8]> {
    (0..region.len()).step_by(4096).filter_map(|at| {
        let page = &region[at..region.len().min(at + 4096)];
        page.iter().any(|byte| *byte != 0).then(|| &region[at..region.len().min(at + 4096 + 31)])
    })
}

fn looks_random(window: &[u8]) -> bool {
    let mut seen = [0u64; 4];
    for byte in window {
        seen[usize::from(byte >> 6)] |= 1 << (byte & 63);
    }
    seen.iter().map(|word| word.count_ones()).sum::<u32>() as usize >= DIFFERENT
}

/// Returns the forms in which a key could be written, each with its name: raw, hex in either case, and the
/// part of its base64 that does not depend on the bytes around it, with 0, 1 or 2 bytes before it.
#[must_use]
pub fn forms(key: &[u8]) -> Vec<(String, Vec<u8>)> {
    let base64 = |before: usize| {
        let text = data_encoding::BASE64_NOPAD.encode(&[&vec![0; before][..], key].concat());
        // Skip characters that also hold bits of neighbouring bytes.
        let skip = [0, 2, 3][before];
        let bits = (before + key.len()) * 8 / 6;
        (text[skip..bits].to_owned(), text.as_bytes()[skip..bits].to_vec())
    };
    let hex = |text: String| (text.clone(), text.into_bytes());
    let mut all = vec![("raw".to_owned(), key.to_vec())];
    all.push(hex(data_encoding::HEXLOWER.encode(key)));
    all.push(hex(data_encoding::HEXUPPER.encode(key)));
    all.extend((0..3).map(base64));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_in_each_form_and_only_then() {
        let key: [u8; 32] = std::array::from_fn(|i| u8::try_from(i * 7 + 3).unwrap());
        let around = |inner: &[u8]| Memory(vec![[b"before", inner, b"after"].concat()]);
        assert_eq!(around(b"nothing").finds_key(&key), None);
        assert_eq!(around(&key).finds_key(&key).unwrap(), "raw");
        let hex = data_encoding::HEXUPPER.encode(&key);
        assert!(around(hex.as_bytes()).finds_key(&key).is_some());
        for before in 0..3 {
            let joined = [&b"\xffxy"[..before], &key, b"tail"].concat();
            let text = data_encoding::BASE64.encode(&joined);
            assert!(around(text.as_bytes()).finds_key(&key).is_some(), "{before} bytes before it");
        }
    }

    #[test]
    fn the_key_of_a_packet_is_found_at_any_alignment() {
        let key: [u8; 32] = std::array::from_fn(|i| u8::try_from(i * 7 + 3).unwrap());
        let seal = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &key).unwrap());
        let mut packet = vec![4, 0, 0, 0, 0, 0, 0, 0x80, 9, 0, 0, 0, 0, 0, 0, 0];
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&packet[8..16]);
        let mut sealed = b"ping".to_vec();
        seal.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut sealed)
            .unwrap();
        packet.extend(sealed);
        for at in [0, 8, 4093] {
            let mut bytes = vec![0; 9000];
            assert_eq!(Memory(vec![bytes.clone()]).find_opening_key(&packet), None);
            bytes[at..at + 32].copy_from_slice(&key);
            assert_eq!(Memory(vec![bytes]).find_opening_key(&packet), Some(key), "at {at}");
        }
    }
}
