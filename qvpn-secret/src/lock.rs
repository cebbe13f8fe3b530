//! Locked memory, allocated in slots. Chunks are mapped between two guard pages, `mlock`ed, and excluded
//! from core dumps and forks. A slot is zero when it is allocated and erased when it is freed.
//!
//! All `unsafe` code of this crate is in this module: raw mappings, and views of a slot's bytes.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use zeroize::Zeroize;

/// Usable bytes of one chunk: 256 slots of the smallest class.
const CHUNK: usize = 16 * 1024;
/// Size of the smallest class, a power of two; each class has twice the size of the one before.
const MIN_CLASS: usize = 64;
/// Number of classes: 64, 128, … 16384 bytes, which is a whole chunk.
const CLASSES: usize = 9;

/// Why memory could not be locked.
#[derive(Debug)]
pub struct LockError {
    what: &'static str,
    source: std::io::Error,
}

impl std::fmt::Display for LockError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "cannot {} memory for keys: {}; raise the limit on locked memory (systemd: LimitMEMLOCK=64M, \
             shell: ulimit -l 65536)",
            self.what, self.source
        )
    }
}

impl std::error::Error for LockError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Locks room for about `bytes` of secrets in advance, so that a limit that is too low causes an error at
/// start and not in the middle of a rekey.
///
/// # Errors
/// [`LockError`] if the system refuses to map or lock the memory.
pub fn reserve(bytes: usize) -> Result<(), LockError> {
    let mut pool = pool();
    let have =
        pool.free.iter().map(Vec::len).zip(0..).map(|(n, class)| n * (MIN_CLASS << class)).sum::<usize>();
    let mut missing = bytes.saturating_sub(have);
    while missing > 0 {
        let chunk = map_locked(CHUNK)?;
        pool.free[CLASSES - 1].push(chunk);
        missing = missing.saturating_sub(CHUNK);
    }
    Ok(())
}

/// The free slots of each class. Chunks are never unmapped: the peak is small, and their memory stays
/// locked.
struct Pool {
    free: [Vec<Address>; CLASSES],
}

/// The start of a slot or a chunk, owned by the holder of this value.
struct Address(NonNull<u8>);

// SAFETY: an `Address` is the only handle to its memory, which is not tied to a thread.
unsafe impl Send for Address {}

static POOL: Mutex<Pool> = Mutex::new(Pool { free: [const { Vec::new() }; CLASSES] });

fn pool() -> MutexGuard<'static, Pool> {
    // Each update is atomic, so a poisoned lock is still consistent.
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The memory of one secret: `len` bytes with this value as their only owner.
pub(crate) struct Slot {
    start: NonNull<u8>,
    len: usize,
    class: Option<usize>,
}

// SAFETY: a `Slot` is the only owner of its bytes and gives out references only through `&self` and `&mut
// self`.
unsafe impl Send for Slot {}
// SAFETY: shared access is read-only.
unsafe impl Sync for Slot {}

impl Slot {
    /// Allocates a slot of `len` zero bytes.
    ///
    /// # Panics
    /// If no more memory can be locked. As with an allocation failure, there is no safe way to continue.
    pub(crate) fn zeroed(len: usize) -> Self {
        let class = (0..CLASSES).find(|c| MIN_CLASS << c >= len);
        let start = match class {
            Some(class) => pool().take(class),
            None => map_locked(len),
        };
        match start {
            Ok(Address(start)) => Self { start, len, class },
            Err(error) => panic!("{error}"),
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `start` points to at least `len` initialised bytes that live as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    pub(crate) fn truncate(&mut self, len: usize) {
        if len < self.len {
            self.bytes_mut()[len..].zeroize();
            self.len = len;
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.bytes_mut().zeroize();
        match self.class {
            Some(class) => pool().free[class].push(Address(self.start)),
            None => unmap(self.start, self.len),
        }
    }
}

impl Pool {
    /// Takes a slot of class `class`. If none is free, it splits a larger one or maps a chunk.
    fn take(&mut self, class: usize) -> Result<Address, LockError> {
        let Some(from) = (class..CLASSES).find(|c| !self.free[*c].is_empty()) else {
            let chunk = map_locked(CHUNK)?;
            self.free[CLASSES - 1].push(chunk);
            return self.take(class);
        };
        let mut slot = self.free[from].pop().unwrap_or_else(|| unreachable!());
        for c in (class..from).rev() {
            // SAFETY: the slot has twice the size of class `c`, so its upper half starts inside the same
            // mapping.
            let upper = unsafe { slot.0.add(MIN_CLASS << c) };
            self.free[c].push(Address(upper));
            slot = Address(slot.0);
        }
        Ok(slot)
    }
}

#[cfg(not(miri))]
mod os {
    use super::{Address, LockError, NonNull};

    fn page() -> usize {
        // SAFETY: `sysconf` accesses no memory of this program.
        usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
    }

    fn rounded(len: usize) -> usize {
        len.div_ceil(page()).max(1) * page()
    }

    fn failed(what: &'static str) -> LockError {
        LockError { what, source: std::io::Error::last_os_error() }
    }

    /// Maps `len` zero bytes between two guard pages and locks them.
    pub(super) fn map_locked(len: usize) -> Result<Address, LockError> {
        let (len, page) = (rounded(len), page());
        // SAFETY: a new anonymous mapping affects no existing memory; all results are checked, and the inner
        // range lies within the mapping.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let base = libc::mmap(std::ptr::null_mut(), len + 2 * page, libc::PROT_NONE, flags, -1, 0);
            if base == libc::MAP_FAILED {
                return Err(failed("map"));
            }
            let start = base.add(page);
            if libc::mprotect(start, len, libc::PROT_READ | libc::PROT_WRITE) != 0
                || libc::mlock(start, len) != 0
            {
                let error = failed("lock");
                libc::munmap(base, len + 2 * page);
                return Err(error);
            }
            // Core dumps and forked children get no copy. Both are extra protection, so a refusal is not
            // fatal.
            libc::madvise(start, len, libc::MADV_DONTDUMP);
            libc::madvise(start, len, libc::MADV_DONTFORK);
            NonNull::new(start.cast::<u8>()).map(Address).ok_or_else(|| failed("map"))
        }
    }

    /// Unmaps a mapping of `len` bytes from `map_locked`. Its bytes are erased already.
    pub(super) fn unmap(start: NonNull<u8>, len: usize) {
        let (len, page) = (rounded(len), page());
        // SAFETY: `start` came from `map_locked(len)`, so the mapping begins a page before it and ends a
        // page after.
        unsafe {
            libc::munmap(start.as_ptr().sub(page).cast(), len + 2 * page);
        }
    }
}

/// Plain allocations in place of locked mappings, since Miri has no `mlock`.
#[cfg(miri)]
mod os {
    use super::{Address, LockError, NonNull};
    use std::alloc::{Layout, alloc_zeroed, dealloc};

    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len.max(1), 4096).unwrap()
    }

    pub(super) fn map_locked(len: usize) -> Result<Address, LockError> {
        // SAFETY: the layout is never empty.
        Ok(Address(NonNull::new(unsafe { alloc_zeroed(layout(len)) }).unwrap()))
    }

    pub(super) fn unmap(start: NonNull<u8>, len: usize) {
        // SAFETY: `start` came from `map_locked(len)`.
        unsafe { dealloc(start.as_ptr(), layout(len)) }
    }
}

use os::{map_locked, unmap};
