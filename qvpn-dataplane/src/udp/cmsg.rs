//! Control messages of one datagram, laid out by hand for 64-bit Linux.

use std::ffi::c_int;

/// Room for the control messages of one datagram; no call in this crate needs more.
pub(super) const CONTROL_BYTES: usize = 64;

/// Length of a `cmsghdr` in bytes: length, level, type.
const HEADER_BYTES: usize = size_of::<libc::cmsghdr>();

const _: () = assert!(HEADER_BYTES == 16, "control messages are laid out by hand for 64-bit Linux");

/// The buffer of one datagram's control messages.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Control(pub(super) [u8; CONTROL_BYTES]);

impl Control {
    pub(super) const EMPTY: Self = Self([0; CONTROL_BYTES]);

    /// Writes a control message at `at`; returns where the next one begins.
    pub(super) fn put(&mut self, at: usize, level: c_int, kind: c_int, data: &[u8]) -> usize {
        let len = HEADER_BYTES + data.len();
        let place = &mut self.0[at..];
        place[..size_of::<usize>()].copy_from_slice(&len.to_ne_bytes());
        place[8..12].copy_from_slice(&level.to_ne_bytes());
        place[12..16].copy_from_slice(&kind.to_ne_bytes());
        place[HEADER_BYTES..len].copy_from_slice(data);
        at + len.next_multiple_of(8)
    }

    /// Calls `each` with level, type and data of every control message in the first `len` bytes.
    pub(super) fn each(&self, len: usize, mut each: impl FnMut(c_int, c_int, &[u8])) {
        let mut rest = &self.0[..len.min(CONTROL_BYTES)];
        while let Some((header, _)) = rest.split_first_chunk::<16>() {
            let [l0, l1, l2, l3, l4, l5, l6, l7, v0, v1, v2, v3, k0, k1, k2, k3] = *header;
            let len = usize::from_ne_bytes([l0, l1, l2, l3, l4, l5, l6, l7]);
            let Some(data) = rest.get(HEADER_BYTES..len) else { return };
            each(c_int::from_ne_bytes([v0, v1, v2, v3]), c_int::from_ne_bytes([k0, k1, k2, k3]), data);
            rest = rest.get(len.next_multiple_of(8)..).unwrap_or_default();
        }
    }
}
