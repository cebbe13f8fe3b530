//! Memory for secret bytes. A [`Secret`] is a handle to memory that is locked, excluded from core dumps and
//! erased when the handle is dropped. A move copies the handle and never the bytes.
//!
//! Secrets have no `Clone`, `Debug`, `Display`, `AsRef` or `Serialize`: a secret is moved to the code that
//! consumes it, and [`Secret::expose`] marks each place where its bytes are read.
//!
//! ```compile_fail,E0599
//! let s = qvpn_secret::Secret::<32>::zeroed();
//! let t = s.clone(); // a secret has one owner
//! ```
//! ```compile_fail,E0277
//! let s = qvpn_secret::Secret::<32>::zeroed();
//! println!("{s:?}"); // a secret is never printed
//! ```

mod lock;
mod stack;

use lock::Slot;
pub use lock::{LockError, reserve};
pub use stack::{scrub_stack, with_scrubbed_stack};
use zeroize::Zeroize;

/// An allocator that erases each block when it is freed, for programs whose TLS and HTTP buffers hold a key
/// for a short time.
///
/// Install it with `#[global_allocator]` in the program's `main.rs`.
pub use zeroizing_alloc::ZeroAlloc;

/// `N` secret bytes in locked memory, erased on drop.
pub struct Secret<const N: usize>(Slot);

impl<const N: usize> Secret<N> {
    /// Returns `N` zero bytes, to be filled in place by [`expose_mut`](Self::expose_mut).
    #[must_use]
    pub fn zeroed() -> Self {
        Self(Slot::zeroed(N))
    }

    /// Copies the bytes of `source` into a secret and erases `source`.
    #[must_use]
    pub fn take(source: &mut [u8; N]) -> Self {
        let mut secret = Self::zeroed();
        secret.expose_mut().copy_from_slice(source);
        source.zeroize();
        secret
    }

    /// Makes a secret by letting `fill` write it in place.
    #[must_use]
    pub fn filled(fill: impl FnOnce(&mut [u8; N])) -> Self {
        let mut secret = Self::zeroed();
        fill(secret.expose_mut());
        secret
    }

    /// Returns the bytes. Each call marks a place for reviewers.
    #[must_use]
    pub fn expose(&self) -> &[u8; N] {
        // A slot of `N` bytes always converts to an array of `N`.
        self.0.bytes().first_chunk().unwrap_or_else(|| unreachable!())
    }

    /// Returns the bytes for writing in place.
    pub fn expose_mut(&mut self) -> &mut [u8; N] {
        self.0.bytes_mut().first_chunk_mut().unwrap_or_else(|| unreachable!())
    }

    /// Compares with `other`, in a time that depends only on the lengths.
    #[must_use]
    pub fn ct_eq(&self, other: &[u8]) -> bool {
        ct_eq(self.expose(), other)
    }
}

/// Secret bytes of a length that is known only at run time, in locked memory, erased on drop.
pub struct SecretBuf {
    slot: Slot,
}

impl SecretBuf {
    /// Returns `len` zero bytes, to be filled in place by [`expose_mut`](Self::expose_mut).
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        Self { slot: Slot::zeroed(len) }
    }

    /// Copies the bytes of `source` into a secret and erases `source`.
    #[must_use]
    pub fn take(source: &mut [u8]) -> Self {
        let mut secret = Self::zeroed(source.len());
        secret.expose_mut().copy_from_slice(source);
        source.zeroize();
        secret
    }

    /// Returns the bytes. Each call marks a place for reviewers.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        self.slot.bytes()
    }

    /// Returns the bytes for writing in place.
    pub fn expose_mut(&mut self) -> &mut [u8] {
        self.slot.bytes_mut()
    }

    /// Returns the number of bytes. A length is not secret.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slot.bytes().len()
    }

    /// Returns whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Shortens the secret to `len` bytes and erases the rest. Does nothing if it is shorter already.
    pub fn truncate(&mut self, len: usize) {
        self.slot.truncate(len);
    }

    /// Compares with `other`, in a time that depends only on the lengths.
    #[must_use]
    pub fn ct_eq(&self, other: &[u8]) -> bool {
        ct_eq(self.expose(), other)
    }
}

impl<const N: usize> From<Secret<N>> for SecretBuf {
    fn from(secret: Secret<N>) -> Self {
        Self { slot: secret.0 }
    }
}

/// Returns whether `a` and `b` are equal, in a time that depends only on their lengths.
#[must_use]
pub fn ct_eq(a: &[u8], b: &[u8]) -> bool {
    bool::from(subtle::ConstantTimeEq::ct_eq(a, b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn take_moves_and_erases_the_source() {
        let mut source = [7u8; 32];
        let secret = Secret::take(&mut source);
        assert_eq!(source, [0; 32]);
        assert_eq!(secret.expose(), &[7; 32]);
        assert!(secret.ct_eq(&[7; 32]));
        assert!(!secret.ct_eq(&[7; 31]));
    }

    #[test]
    fn a_move_keeps_the_address() {
        let secret = Secret::<32>::filled(|b| b.fill(3));
        let before = secret.expose().as_ptr();
        let moved = Box::new(secret);
        assert_eq!(before, moved.expose().as_ptr());
    }

    #[test]
    fn a_reused_slot_is_zero() {
        for len in [1usize, 31, 32, 48, 64, 100, 1000, 5000, 20000] {
            let mut first = SecretBuf::zeroed(len);
            first.expose_mut().fill(0xaa);
            drop(first);
            let again = SecretBuf::zeroed(len);
            assert!(again.expose().iter().all(|b| *b == 0), "{len}");
            assert_eq!(again.len(), len);
        }
    }

    #[test]
    fn truncate_erases_the_tail_and_keeps_the_head() {
        let mut buf = SecretBuf::zeroed(64);
        buf.expose_mut().fill(9);
        buf.truncate(32);
        assert_eq!(buf.expose(), &[9; 32]);
        buf.truncate(40);
        assert_eq!(buf.len(), 32);
        assert!(SecretBuf::zeroed(0).is_empty());
    }

    #[test]
    fn many_secrets_live_at_once_and_do_not_overlap() {
        let secrets: Vec<Secret<32>> =
            (0..4000u32).map(|i| Secret::filled(|b| b[..4].copy_from_slice(&i.to_le_bytes()))).collect();
        for (i, s) in secrets.iter().enumerate() {
            assert_eq!(s.expose()[..4], u32::try_from(i).unwrap().to_le_bytes());
        }
    }

    #[test]
    fn secrets_cross_threads() {
        let secret = Secret::<32>::filled(|b| b.fill(5));
        let back = std::thread::spawn(move || secret).join().unwrap();
        assert!(back.ct_eq(&[5; 32]));
    }
}
