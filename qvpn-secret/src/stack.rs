//! Erases stack memory after a computation on secrets. Registers spill, and library code keeps working
//! copies in its frames, so a caller runs the whole computation below one frame and wipes the depth that it
//! used.

use zeroize::Zeroize;

/// The number of bytes to wipe. ML-KEM-1024 key generation needs the most stack: 48 KiB in a release build,
/// measured with a painted stack. An unoptimised build of the same code needs more.
const DEPTH: usize = if cfg!(miri) {
    // Under Miri the full depth takes seconds, and the depth does not matter there.
    4 * 1024
} else if cfg!(debug_assertions) {
    512 * 1024
} else {
    96 * 1024
};

/// Overwrites the stack below the caller's frame, 96 KiB deep (512 KiB in a debug build).
#[inline(never)]
pub fn scrub_stack() {
    // Words, not bytes: volatile writes of single bytes took half the time of an epoch's exchange.
    let mut frame = [u64::MAX; DEPTH / size_of::<u64>()];
    std::hint::black_box(&mut frame);
    frame.zeroize();
    std::hint::black_box(&frame);
}

/// Runs `f` in a frame of its own, then overwrites the stack that it used. The result of `f` is not wiped,
/// so it should be a handle such as [`Secret`](crate::Secret), never the bytes.
pub fn with_scrubbed_stack<R>(f: impl FnOnce() -> R) -> R {
    #[inline(never)]
    fn call<R>(f: impl FnOnce() -> R) -> R {
        f()
    }
    let result = call(f);
    scrub_stack();
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_survives_the_wipe() {
        let sum = with_scrubbed_stack(|| {
            let local = std::hint::black_box([3u8; 1000]);
            local.iter().map(|b| u32::from(*b)).sum::<u32>()
        });
        assert_eq!(sum, 3000);
    }
}
