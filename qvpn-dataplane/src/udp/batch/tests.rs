use qvpn_types::Time;

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
            let used =
                given.control.iter().fold(0, |at, (level, kind, data)| control.put(at, *level, *kind, data));
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
fn the_called_address_is_read_and_never_in_mapped_form() {
    let info6 = |address: &str| {
        [&address.parse::<std::net::Ipv6Addr>().unwrap().octets()[..], &[2, 0, 0, 0]].concat()
    };
    let (v6, mapped) = (info6("2001:db8::7"), info6("::ffff:192.0.2.9"));
    let v4 = [2, 0, 0, 0, 192, 0, 2, 1, 192, 0, 2, 8];
    let given: Vec<_> = [
        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &v6[..]),
        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &mapped),
        (libc::IPPROTO_IP, libc::IP_PKTINFO, &v4),
        (libc::IPPROTO_IP, libc::IP_PKTINFO, &v4[..9]),
    ]
    .map(|control| [control])
    .into();
    let given: Vec<_> = given.iter().map(|control| Given { control, ..Given::plain(b"one") }).collect();
    let mut buffer = vec![0; SLOT_BYTES * given.len()];
    let mut metadata = [None; SMALL_BATCH];
    receive_by::<SMALL_BATCH>(&mut buffer, &mut metadata, |messages, count| play(&given, messages, count))
        .unwrap();
    let called: Vec<_> = metadata.map(|m| m.unwrap().to.map(|to| to.to_string())).into();
    let expected = ["2001:db8::7", "192.0.2.9", "192.0.2.8"].map(|to| Some(to.to_owned()));
    assert_eq!((&called[..3], &called[3]), (&expected[..], &None));
}

/// Of all sockets: the kernel sends from the address that a datagram came to, and without it if the
/// address is gone.
#[test]
fn an_answer_comes_from_the_called_address() {
    let socket = crate::udp::bind_lane_socket(0, None).unwrap();
    let port = socket.local_addr().unwrap().port();
    for called in ["127.0.0.1", "127.7.8.9", "::1"] {
        let called: IpAddr = called.parse().unwrap();
        let caller = std::net::UdpSocket::bind((called, 0)).unwrap();
        let at = caller.local_addr().unwrap();
        let here = if called.is_ipv4() { "127.0.0.3".parse().unwrap() } else { called };
        crate::udp::send_to(&socket, b"answer", at, Some(here)).unwrap();
        let mut buffer = [0; 16];
        let (len, from) = caller.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..len], from), (&b"answer"[..], SocketAddr::new(here, port)));
        let gone = if called.is_ipv4() { "198.51.100.7" } else { "2001:db8::7" };
        crate::udp::send_to(&socket, b"again", at, Some(gone.parse().unwrap())).unwrap();
        assert_eq!(caller.recv_from(&mut buffer).unwrap().1.port(), port);
    }
}

#[test]
fn control_messages_have_the_layout_that_the_kernel_expects() {
    let to = ["192.0.2.1:1", "[2001:db8::1]:2"].map(|to| Endpoint::new(true, to.parse().unwrap(), None));
    let local =
        |v6, to: &str, from: &str| Endpoint::new(v6, to.parse().unwrap(), Some(from.parse().unwrap()));
    let from = [local(true, "192.0.2.1:1", "192.0.2.9"), local(false, "192.0.2.1:1", "192.0.2.9")];
    let none = [local(true, "192.0.2.1:1", "2001:db8::9"), local(true, "[2001:db8::1]:2", "fe80::1")];
    assert!(none.iter().all(|to| to.source.is_none()), "of another family, or without a device");
    let out = [
        Outgoing {
            bytes: b"plain",
            segment: None,
            tos: 0,
            to: &to[0],
            source: to[0].source(Time::default()),
        },
        Outgoing {
            bytes: b"joined",
            segment: Some(3),
            tos: 0xb9,
            to: &to[0],
            source: to[0].source(Time::default()),
        },
        Outgoing { bytes: b"six", segment: None, tos: 1, to: &to[1], source: to[1].source(Time::default()) },
        Outgoing {
            bytes: b"mapped",
            segment: Some(3),
            tos: 1,
            to: &from[0],
            source: from[0].source(Time::default()),
        },
        Outgoing {
            bytes: b"four",
            segment: None,
            tos: 0,
            to: &from[1],
            source: from[1].source(Time::default()),
        },
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
                    let from =
                        std::slice::from_raw_parts(header.msg_control.cast::<u8>(), header.msg_controllen);
                    control.0[..from.len()].copy_from_slice(from);
                }
                let mut told = Vec::new();
                control
                    .each(header.msg_controllen, |level, kind, data| told.push((level, kind, data.to_vec())));
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
            (
                b"mapped".to_vec(),
                vec![0, 1],
                vec![
                    (libc::SOL_UDP, libc::UDP_SEGMENT, vec![3, 0]),
                    (libc::IPPROTO_IP, libc::IP_TOS, tos(1)),
                    (
                        libc::IPPROTO_IPV6,
                        libc::IPV6_PKTINFO,
                        [&[0; 10][..], &[0xff, 0xff, 192, 0, 2, 9, 0, 0, 0, 0]].concat()
                    ),
                ]
            ),
            (
                b"four".to_vec(),
                vec![0, 1],
                vec![(libc::IPPROTO_IP, libc::IP_PKTINFO, vec![0, 0, 0, 0, 192, 0, 2, 9, 0, 0, 0, 0])]
            ),
        ]
    );
}
