//! Looks for secrets in this process's own memory.

use std::os::unix::fs::FileExt;

const PAGE_BYTES: usize = 4096;
/// The length of the pieces of a secret that are searched for.
const PIECE_BYTES: usize = 12;
/// The offsets of the pieces; a secret has at least 32 bytes.
const PIECE_OFFSETS: [usize; 4] = [0, 8, 16, 20];

/// Counts how often one of four 12-byte pieces of the secret that `byte` returns occurs in this process's
/// writable memory. The secret is never stored as a whole, since it would find itself, and memory that is
/// read is kept masked, so that it isn't a copy either.
pub fn copies(byte: impl Fn(usize) -> u8) -> usize {
    let firsts = PIECE_OFFSETS.map(|at| (at, byte(at) ^ 0xa5));
    // The end of the previous page, and this one.
    let mut masked = vec![0u8; PIECE_BYTES - 1 + PAGE_BYTES];
    let own = masked.as_ptr().addr()..masked.as_ptr().addr() + masked.len();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let memory = std::fs::File::open("/proc/self/mem").unwrap();
    let mut found = 0;
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (range, _) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let [start, end] = [start, end].map(|text| usize::from_str_radix(text, 16).unwrap());
        masked.fill(0);
        for at in (start..end).step_by(PAGE_BYTES) {
            let mut page = [0u8; PAGE_BYTES];
            if memory.read_exact_at(&mut page, at.try_into().unwrap()).is_err() {
                break;
            }
            masked.copy_within(PAGE_BYTES.., 0);
            for (i, from) in page.iter().enumerate() {
                // Reading this buffer would mask its content twice, which would be a copy.
                masked[PIECE_BYTES - 1 + i] = if own.contains(&(at + i)) { 0 } else { from ^ 0xa5 };
            }
            // The page itself is in the memory that is read.
            page.fill(0);
            std::hint::black_box(&page);
            for piece in masked.windows(PIECE_BYTES) {
                for (start, first) in firsts {
                    let matches = piece[0] == first
                        && piece.iter().enumerate().all(|(i, masked)| *masked == byte(start + i) ^ 0xa5);
                    found += usize::from(matches);
                }
            }
        }
    }
    masked.fill(0);
    std::hint::black_box(&masked);
    found
}
