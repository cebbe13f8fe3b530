//! Batches of messages: one system call sends or receives many. Each message is one datagram, or several
//! that the kernel segments (UDP GSO) or has joined (UDP GRO).
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use socket2::SockAddr;

use super::address::{Endpoint, canonical};
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
        let (mut segment, mut tos) = (len, 0);
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
            _ => {}
        });
        // A truncated datagram is not a valid message.
        let whole = message.msg_hdr.msg_flags & libc::MSG_TRUNC == 0;
        *metadata = address.as_socket().filter(|_| whole).map(|from| Incoming {
            from: canonical(from),
            len,
            segment,
            tos,
        });
    }
    Ok(got)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One message as a kernel might write it.
    struct Given<'a> {
        bytes: &'a [u8],
        from: Option<SocketAddr>,
        flags: c_int,
        /// Control messages: level, type, data. `raw_control` follows them as it is, and may be invalid.
        control: &'a [(c_int, c_int, &'a [u8])],
        raw_control: &'a [u8],
    }

    impl<'a> Given<'a> {
        fn plain(bytes: &'a [u8]) -> Self {
            let from = Some("[::ffff:192.0.2.7]:4500".parse().unwrap());
            Self { bytes, from, flags: 0, control: &[], raw_control: &[] }
        }
    }

    /// Writes messages as the kernel would, through the same pointers, so that Miri checks the pointers.
    fn play(given: &[Given<'_>], messages: *mut libc::mmsghdr, count: u32) -> c_int {
        assert!(given.len() <= count as usize);
        for (n, given) in given.iter().enumerate() {
            // SAFETY: the kernel relies on the same with `recvmmsg`: each pointer points to as many bytes as
            // its length says.
            unsafe {
                let message = &mut *messages.add(n);
                let header = &mut message.msg_hdr;
                assert_eq!(header.msg_iovlen, 1);
                let place = &*header.msg_iov;
                assert!(place.iov_len >= given.bytes.len());
                std::ptr::copy_nonoverlapping(given.bytes.as_ptr(), place.iov_base.cast(), given.bytes.len());
                message.msg_len = u32::try_from(given.bytes.len()).unwrap();
                header.msg_flags = given.flags;
                header.msg_namelen = 0;
                if let Some(from) = given.from {
                    let from = SockAddr::from(from);
                    std::ptr::copy_nonoverlapping(
                        from.as_ptr().cast::<u8>(),
                        header.msg_name.cast(),
                        from.len() as usize,
                    );
                    header.msg_namelen = from.len();
                }
                let mut control = Control::EMPTY;
                let used = given
                    .control
                    .iter()
                    .fold(0, |at, (level, kind, data)| control.put(at, *level, *kind, data));
                control.0[used..used + given.raw_control.len()].copy_from_slice(given.raw_control);
                let used = used + given.raw_control.len();
                assert!(used <= header.msg_controllen);
                std::ptr::copy_nonoverlapping(control.0.as_ptr(), header.msg_control.cast(), used);
                header.msg_controllen = used;
            }
        }
        c_int::try_from(given.len()).unwrap()
    }

    #[test]
    fn what_the_kernel_writes_is_read_and_nonsense_is_none_of_ours() {
        let gro = |size: c_int| size.to_ne_bytes();
        let (joined, zero, negative) = (gro(3), gro(0), gro(-5));
        let huge = usize::MAX.to_ne_bytes();
        let given = [
            Given::plain(b"one"),
            Given {
                from: Some("[2001:db8::1]:9".parse().unwrap()),
                control: &[
                    (libc::SOL_UDP, libc::UDP_GRO, &joined),
                    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &[3, 0, 0, 0]),
                ],
                ..Given::plain(b"three.two")
            },
            Given { control: &[(libc::IPPROTO_IP, libc::IP_TOS, &[0xb9])], ..Given::plain(b"") },
            Given { flags: libc::MSG_TRUNC, ..Given::plain(b"cut off") },
            // Only control messages were truncated here.
            Given { flags: libc::MSG_CTRUNC, ..Given::plain(b"whole") },
            Given { from: None, ..Given::plain(b"from nowhere") },
            // Sizes that no kernel reports, and control messages that claim more bytes than there are or
            // less than their header.
            Given { control: &[(libc::SOL_UDP, libc::UDP_GRO, &zero)], ..Given::plain(b"zero") },
            Given { control: &[(libc::SOL_UDP, libc::UDP_GRO, &negative)], ..Given::plain(b"less") },
            Given { control: &[(libc::SOL_UDP, libc::UDP_GRO, &[1])], ..Given::plain(b"short") },
            Given { raw_control: &[huge, [0; 8]].concat(), ..Given::plain(b"huge") },
            Given { raw_control: &[0; 32], ..Given::plain(b"none") },
            Given { raw_control: &[17, 0, 0], ..Given::plain(b"stub") },
        ];
        let mut buffer = vec![0; SLOT_BYTES * given.len()];
        let mut metadata = [None; MAX_BATCH];
        let got = receive_by::<MAX_BATCH>(&mut buffer, &mut metadata[..given.len()], |messages, count| {
            play(&given, messages, count)
        });
        assert_eq!(got.unwrap(), given.len());
        let seen: Vec<_> = metadata
            .iter()
            .take(given.len())
            .map(|n| n.map(|n| (n.from.to_string(), n.len, n.segment, n.tos)))
            .collect();
        let v4 = |len, segment, tos| Some(("192.0.2.7:4500".to_owned(), len, segment, tos));
        assert_eq!(
            seen,
            [
                v4(3, 3, 0),
                Some(("[2001:db8::1]:9".to_owned(), 9, 3, 3)),
                v4(0, 0, 0xb9),
                None,
                v4(5, 5, 0),
                None,
                v4(4, 4, 0),
                v4(4, 4, 0),
                v4(5, 5, 0),
                v4(4, 4, 0),
                v4(4, 4, 0),
                v4(4, 4, 0),
            ]
        );
        assert_eq!(buffer[SLOT_BYTES..SLOT_BYTES + 9], *b"three.two");
    }

    #[test]
    fn control_messages_have_the_layout_that_the_kernel_expects() {
        let to = ["192.0.2.1:1", "[2001:db8::1]:2"].map(|to| Endpoint::new(true, to.parse().unwrap()));
        let out = [
            Outgoing { bytes: b"plain", segment: None, tos: 0, to: &to[0] },
            Outgoing { bytes: b"joined", segment: Some(3), tos: 0xb9, to: &to[0] },
            Outgoing { bytes: b"six", segment: None, tos: 1, to: &to[1] },
        ];
        let mut seen = Vec::new();
        let sent = send_by::<MAX_BATCH>(out.into_iter(), |messages, count| {
            for n in 0..count as usize {
                // SAFETY: the kernel relies on the same with `sendmmsg`: each pointer points to as many
                // bytes as its length says.
                unsafe {
                    let header = &(*messages.add(n)).msg_hdr;
                    let bytes = std::slice::from_raw_parts(
                        (*header.msg_iov).iov_base.cast::<u8>(),
                        (*header.msg_iov).iov_len,
                    );
                    let mut control = Control::EMPTY;
                    if header.msg_controllen > 0 {
                        let from = std::slice::from_raw_parts(
                            header.msg_control.cast::<u8>(),
                            header.msg_controllen,
                        );
                        control.0[..from.len()].copy_from_slice(from);
                    }
                    let mut told = Vec::new();
                    control.each(header.msg_controllen, |level, kind, data| {
                        told.push((level, kind, data.to_vec()))
                    });
                    let name =
                        std::slice::from_raw_parts(header.msg_name.cast::<u8>(), header.msg_namelen as usize);
                    seen.push((bytes.to_vec(), name[2..4].to_vec(), told));
                }
            }
            2
        });
        assert_eq!(sent.unwrap(), 2);
        let tos = |value: c_int| value.to_ne_bytes().to_vec();
        assert_eq!(
            seen,
            [
                (b"plain".to_vec(), vec![0, 1], vec![]),
                (
                    b"joined".to_vec(),
                    vec![0, 1],
                    vec![
                        (libc::SOL_UDP, libc::UDP_SEGMENT, vec![3, 0]),
                        (libc::IPPROTO_IP, libc::IP_TOS, tos(0xb9)),
                    ]
                ),
                (b"six".to_vec(), vec![0, 2], vec![(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, tos(1))]),
            ]
        );
    }
}
