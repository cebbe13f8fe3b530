//! Batches of messages: one system call sends or receives many. Each message is one datagram, or several
//! that the kernel segments (UDP GSO) or has joined (UDP GRO).
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

use socket2::SockAddr;

use super::address::{Endpoint, Source, called_address, canonical};
use super::cmsg::{CONTROL_BYTES, Control};

/// The largest number of messages in one system call.
pub(crate) const MAX_BATCH: usize = 32;

/// The number of messages to ask for once they are large: a few hold enough work, and the buffer stays in
/// the cache.
pub(crate) const SMALL_BATCH: usize = 4;

fn checked(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// One message to send: a datagram, or several of equal size that the kernel segments (the last one may be
/// shorter).
#[derive(Clone, Copy)]
pub(crate) struct Outgoing<'a> {
    pub(crate) bytes: &'a [u8],
    /// Length of each datagram in bytes, if `bytes` holds more than one (`UDP_SEGMENT`).
    pub(crate) segment: Option<u16>,
    /// The traffic class of the outer header, with its ECN bits.
    pub(crate) tos: u8,
    pub(crate) to: &'a Endpoint,
    /// The address to send from; without it the system chooses.
    pub(crate) source: Option<&'a Source>,
}

/// Sends messages without blocking, at most [`MAX_BATCH`] of them. Returns how many the kernel accepted, at
/// least one. There are at most `most` messages.
pub(crate) fn send_batch<'a>(
    fd: BorrowedFd<'_>,
    datagrams: impl Iterator<Item = Outgoing<'a>>,
    most: usize,
) -> io::Result<usize> {
    // The tables that the kernel reads are zeroed on each call, and most calls need only a few entries.
    if most <= SMALL_BATCH {
        send_up_to::<SMALL_BATCH>(fd, datagrams)
    } else {
        send_up_to::<MAX_BATCH>(fd, datagrams)
    }
}

fn send_up_to<'a, const N: usize>(
    fd: BorrowedFd<'_>,
    datagrams: impl Iterator<Item = Outgoing<'a>>,
) -> io::Result<usize> {
    // SAFETY: the messages point to buffers, addresses and control messages that outlive the call, and the
    // kernel only reads those.
    send_by::<N>(datagrams, |messages, count| unsafe {
        libc::sendmmsg(fd.as_raw_fd(), messages, count, libc::MSG_DONTWAIT)
    })
}

/// Implements [`send_batch`] with `call`, which gets the messages and their number.
fn send_by<'a, const N: usize>(
    datagrams: impl Iterator<Item = Outgoing<'a>>,
    call: impl FnOnce(*mut libc::mmsghdr, u32) -> c_int,
) -> io::Result<usize> {
    // SAFETY: all-zero bytes are a valid `iovec` and a valid `mmsghdr`.
    let (mut vectors, mut messages): ([libc::iovec; N], [libc::mmsghdr; N]) = unsafe { std::mem::zeroed() };
    let mut controls = [Control::EMPTY; N];
    let mut count = 0;
    for (((out, vector), message), control) in
        datagrams.zip(&mut vectors).zip(&mut messages).zip(&mut controls)
    {
        *vector = libc::iovec { iov_base: out.bytes.as_ptr().cast_mut().cast(), iov_len: out.bytes.len() };
        let header = &mut message.msg_hdr;
        header.msg_name = out.to.address.as_ptr().cast_mut().cast();
        header.msg_namelen = out.to.address.len();
        header.msg_iov = vector;
        header.msg_iovlen = 1;
        let mut used = 0;
        if let Some(segment) = out.segment {
            used = control.put(used, libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
        }
        if out.tos != 0 {
            let (level, kind) = if out.to.v4 {
                (libc::IPPROTO_IP, libc::IP_TOS)
            } else {
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS)
            };
            used = control.put(used, level, kind, &c_int::from(out.tos).to_ne_bytes());
        }
        if let Some(source) = out.source {
            used = control.put(used, source.level, source.kind, source.data());
        }
        if used > 0 {
            header.msg_control = control.0.as_mut_ptr().cast();
            header.msg_controllen = used;
        }
        count += 1;
    }
    let sent = checked(call(messages.as_mut_ptr(), count))?;
    Ok(usize::try_from(sent).unwrap_or(0))
}

/// The size of one message's slot in the buffer that [`receive_batch`] fills.
pub(crate) const SLOT_BYTES: usize = 65_536;

/// One received message: a datagram, or several of equal size that the kernel joined (the last one may be
/// shorter).
#[derive(Clone, Copy)]
pub(crate) struct Incoming {
    /// The sender; IPv4 is never in mapped form.
    pub(crate) from: SocketAddr,
    /// The address of this machine that it was sent to, if the system says so; IPv4 is never in mapped form.
    pub(crate) to: Option<IpAddr>,
    /// Length of the message in bytes.
    pub(crate) len: usize,
    /// Length of each datagram in bytes.
    pub(crate) segment: usize,
    /// The traffic class of the outer header, with its ECN bits.
    pub(crate) tos: u8,
}

/// Receives the messages that are there, without blocking. Message *i* is written to slot *i* of `buffer`
/// ([`SLOT_BYTES`] bytes each), and its metadata to `metadata[i]`: `None` if the message was truncated or
/// has no address. Returns the number of messages.
pub(crate) fn receive_batch(
    fd: BorrowedFd<'_>,
    buffer: &mut [u8],
    metadata: &mut [Option<Incoming>],
) -> io::Result<usize> {
    if metadata.len() <= SMALL_BATCH {
        receive_up_to::<SMALL_BATCH>(fd, buffer, metadata)
    } else {
        receive_up_to::<MAX_BATCH>(fd, buffer, metadata)
    }
}

fn receive_up_to<const N: usize>(
    fd: BorrowedFd<'_>,
    buffer: &mut [u8],
    metadata: &mut [Option<Incoming>],
) -> io::Result<usize> {
    // SAFETY: the messages point to buffers, names and room for control messages of the sizes given, which
    // outlive the call.
    receive_by::<N>(buffer, metadata, |messages, count| unsafe {
        libc::recvmmsg(fd.as_raw_fd(), messages, count, libc::MSG_DONTWAIT, std::ptr::null_mut())
    })
}

/// Implements [`receive_batch`] with `call`, which gets the messages and their number.
fn receive_by<const N: usize>(
    buffer: &mut [u8],
    metadata: &mut [Option<Incoming>],
    call: impl FnOnce(*mut libc::mmsghdr, u32) -> c_int,
) -> io::Result<usize> {
    // SAFETY: all-zero bytes are valid values of these three types.
    let (mut vectors, mut messages, mut names): (
        [libc::iovec; N],
        [libc::mmsghdr; N],
        [libc::sockaddr_storage; N],
    ) = unsafe { std::mem::zeroed() };
    let mut controls = [Control::EMPTY; N];
    let mut count = 0;
    let places = buffer.chunks_exact_mut(SLOT_BYTES).take(metadata.len());
    for ((((place, vector), message), name), control) in
        places.zip(&mut vectors).zip(&mut messages).zip(&mut names).zip(&mut controls)
    {
        *vector = libc::iovec { iov_base: place.as_mut_ptr().cast(), iov_len: place.len() };
        let header = &mut message.msg_hdr;
        header.msg_name = std::ptr::from_mut(name).cast();
        header.msg_namelen = libc::socklen_t::try_from(size_of::<libc::sockaddr_storage>()).unwrap_or(0);
        header.msg_iov = vector;
        header.msg_iovlen = 1;
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = CONTROL_BYTES;
        count += 1;
    }
    let got = checked(call(messages.as_mut_ptr(), count))?;
    let got = usize::try_from(got).unwrap_or(0);
    for (((message, name), control), metadata) in
        messages.iter().zip(&names).zip(&controls).zip(metadata.iter_mut()).take(got)
    {
        let len = usize::try_from(message.msg_len).unwrap_or(0).min(SLOT_BYTES);
        // SAFETY: the kernel wrote an address of this length into `name`, which is large enough for any.
        let address = unsafe {
            let mut storage = socket2::SockAddrStorage::zeroed();
            *storage.view_as::<libc::sockaddr_storage>() = *name;
            SockAddr::new(storage, message.msg_hdr.msg_namelen)
        };
        let (mut segment, mut tos, mut to) = (len, 0, None);
        control.each(message.msg_hdr.msg_controllen, |level, kind, data| match (level, kind) {
            (libc::SOL_UDP, libc::UDP_GRO) => {
                let size = data.first_chunk().map_or(0, |size| c_int::from_ne_bytes(*size));
                segment = usize::try_from(size).ok().filter(|size| *size > 0).unwrap_or(len);
            }
            (libc::IPPROTO_IP, libc::IP_TOS) => tos = data.first().copied().unwrap_or(0),
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                let class = data.first_chunk().map_or(0, |class| c_int::from_ne_bytes(*class));
                tos = u8::try_from(class & 0xff).unwrap_or(0);
            }
            _ => to = to.or(called_address(level, kind, data)),
        });
        // A truncated datagram is not a valid message.
        let whole = message.msg_hdr.msg_flags & libc::MSG_TRUNC == 0;
        *metadata = address.as_socket().filter(|_| whole).map(|from| Incoming {
            from: canonical(from),
            to,
            len,
            segment,
            tos,
        });
    }
    Ok(got)
}

#[cfg(test)]
mod tests;
