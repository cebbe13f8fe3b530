//! Floods a gateway's UDP port from many addresses, at a given rate.
//!
//! `lab-flood KIND RATE SECONDS TARGET PUBLIC_KEY NETWORK [FILE]`: sends RATE datagrams a second to TARGET
//! from 200 addresses of NETWORK (such as `192.0.2`), which must be local here. Prints `flooding`, and at the
//! end the number that the kernel accepted. KIND is
//!
//! - `starts`: well-formed handshake initiations for the gateway's key, from unknown senders
//! - `points`: such initiations with X25519 keys of small order
//! - `wrong`: such initiations with a wrong mac1
//! - `data`: data packets of no session
//! - `session`: messages of control sessions that don't open
//! - `short`: up to 15 bytes, mostly one
//! - `long`: 1,500 to 60,000 bytes
//! - `replay`: the datagrams in FILE, each after its length of two bytes, big endian
//! - `live`: the data packets that pass the interface FILE to the gateway now: repeated, changed, truncated,
//!   or with other counters; and the gateway's own packets, sent back
//! - `joined`: these and most of the others, up to 40 in one buffer that the gateway receives at once (UDP
//!   GRO)

use std::error::Error;
use std::io::{self, IoSlice, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use blake2::digest::{FixedOutput, KeyInit, Update, consts::U16};
use blake2::{Blake2s256, Blake2sMac};
use nix::sys::socket::{
    AddressFamily, ControlMessage, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn,
    recvfrom, sendmsg, socket,
};
use tests::is_data;

/// Number of source addresses.
const SOURCES: u64 = 200;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-flood: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [kind, rate, seconds, target, key, network, file @ ..] = &args[..] else {
        return Err("usage: lab-flood KIND RATE SECONDS TARGET PUBLIC_KEY NETWORK [FILE]".into());
    };
    let (rate, seconds): (u64, u64) = (rate.parse()?, seconds.parse()?);
    let target: SocketAddrV4 = target.parse()?;
    let mac_key = mac_key(key)?;
    let sockets: Vec<UdpSocket> = (1..=SOURCES)
        .map(|host| {
            let socket = UdpSocket::bind(format!("{network}.{host}:0"))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
        .collect::<io::Result<_>>()?;
    let mut recorded = Vec::new();
    let seen = Arc::<Mutex<Seen>>::default();
    match (kind.as_str(), file) {
        ("replay", [file]) => recorded = read(&std::fs::read(file)?),
        ("live" | "joined", [interface]) => {
            let (kind, flag) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
            let wire = socket(AddressFamily::Packet, kind, flag, SockProtocol::EthAll)?;
            let index = usize::try_from(nix::net::if_::if_nametoindex(interface.as_str())?)?;
            let (seen, network) = (Arc::clone(&seen), network.clone());
            // The thread ends with the process.
            thread::spawn(move || watch(&wire, index, target.into(), &network, &seen));
        }
        ("replay" | "live" | "joined", _) => return Err(format!("`{kind}` needs FILE").into()),
        _ => {}
    }
    println!("flooding");
    io::stdout().flush()?;
    // The same in each run, but different for each kind.
    let mut random = kind.bytes().fold(1u64, |sum, byte| sum << 8 ^ u64::from(byte));
    let (start, mut done, mut sent) = (Instant::now(), 0, 0);
    while start.elapsed() < Duration::from_secs(seconds) {
        let due = u64::try_from(start.elapsed().as_micros())? * rate / 1_000_000;
        while done < due {
            let socket = &sockets[usize::try_from(done % SOURCES)?];
            let (count, took) = if kind == "joined" {
                let (datagrams, size) = joined(&seen, &mac_key, &mut random)?;
                (datagrams.len(), send_joined(socket, &datagrams, size, target))
            } else {
                let datagram = match kind.as_str() {
                    "replay" => recorded[usize::try_from(done)? % recorded.len()].clone(),
                    "live" => live(&seen, &mut random),
                    kind => forged(kind, &mac_key, &mut random)?,
                };
                (1, socket.send_to(&datagram, target).is_ok())
            };
            // A full queue means that the flood is as fast as possible.
            let count = u64::try_from(count)?;
            done += count;
            sent += if took { count } else { 0 };
        }
        thread::sleep(Duration::from_millis(1));
    }
    println!("sent {sent}");
    Ok(())
}

/// The latest data packets on the wire, to the gateway and from it.
#[derive(Default)]
struct Seen {
    to: Vec<Vec<u8>>,
    from: Vec<Vec<u8>>,
}

/// Number of packets that are kept.
const KEPT: usize = 32;

/// Keeps the latest data packets of others on this interface.
fn watch(wire: &OwnedFd, interface: usize, target: SocketAddr, flood: &str, seen: &Mutex<Seen>) {
    let mut frame = [0; 2048];
    loop {
        let Ok((length, from)) = recvfrom::<LinkAddr>(wire.as_raw_fd(), &mut frame) else { continue };
        if from.is_none_or(|from| from.ifindex() != interface) {
            continue;
        }
        let Some((source, destination, payload)) = udp(&frame[..length.min(frame.len())]) else { continue };
        if !is_data(payload) || [source, destination].iter().any(|a| a.ip().to_string().starts_with(flood)) {
            continue;
        }
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let list = match (SocketAddr::V4(source) == target, SocketAddr::V4(destination) == target) {
            (false, true) => &mut seen.to,
            (true, false) => &mut seen.from,
            _ => continue,
        };
        if list.len() == KEPT {
            list.remove(0);
        }
        list.push(payload.to_vec());
    }
}

/// Returns source, destination and payload of a complete Ethernet frame with IPv4 and UDP.
fn udp(frame: &[u8]) -> Option<(SocketAddrV4, SocketAddrV4, &[u8])> {
    let (ethernet, ip) = frame.split_at_checked(14)?;
    if ethernet[12..] != [8, 0] || *ip.get(9)? != 17 {
        return None;
    }
    let udp = ip.get(usize::from(ip[0] & 15) * 4..)?;
    let word = |at: usize| udp.get(at..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes));
    let address = |at: usize| ip.get(at..)?.first_chunk::<4>().map(|bytes| Ipv4Addr::from(*bytes));
    let payload = udp.get(8..usize::from(word(4)?))?;
    Some((SocketAddrV4::new(address(12)?, word(0)?), SocketAddrV4::new(address(16)?, word(2)?), payload))
}

/// Returns a datagram made from one on the wire; empty until there is one.
fn live(seen: &Mutex<Seen>, random: &mut u64) -> Vec<u8> {
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    let choice = next(random) % 8;
    let list = if choice == 0 { &seen.from } else { &seen.to };
    let pick = usize::try_from(next(random)).unwrap_or(0);
    let Some(mut packet) = list.get(pick % list.len().max(1)).cloned() else { return Vec::new() };
    let at = pick % packet.len();
    match choice {
        // Sent back, or repeated.
        0 | 1 => {}
        // Another payload with a used counter.
        2 => {
            let body = packet.len() - 16;
            packet[16 + at % body] ^= 1;
        }
        3 => packet.truncate(32 + at % (packet.len() - 31)),
        // Future counters, near and far: the index is valid, and the tag is not.
        4 => packet[10] ^= 1,
        5 => packet[8..16].copy_from_slice(&u64::MAX.to_le_bytes()),
        6 => packet[12..16].fill(0x7f),
        _ => packet.extend_from_within(16..),
    }
    packet
}

/// Datagrams of one size, except that the last may be shorter; and that size.
type Joined = (Vec<Vec<u8>>, u16);

/// Returns up to 40 datagrams.
fn joined(seen: &Mutex<Seen>, mac_key: &[u8; 32], random: &mut u64) -> Result<Joined, Box<dyn Error>> {
    let size = seen.lock().unwrap_or_else(PoisonError::into_inner).to.last().map_or(200, Vec::len);
    let count = 2 + next(random) % 39;
    let mut datagrams = Vec::new();
    for _ in 1..count {
        let mut datagram = match next(random) % 6 {
            0..=2 => live(seen, random),
            3 => forged("data", mac_key, random)?,
            4 => forged("session", mac_key, random)?,
            _ => forged("starts", mac_key, random)?,
        };
        datagram.resize(size, 0);
        datagrams.push(datagram);
    }
    datagrams.push(vec![4]);
    Ok((datagrams, u16::try_from(size)?))
}

fn send_joined(socket: &UdpSocket, datagrams: &[Vec<u8>], size: u16, target: SocketAddrV4) -> bool {
    let parts: Vec<IoSlice<'_>> = datagrams.iter().map(|datagram| IoSlice::new(datagram)).collect();
    let cut = [ControlMessage::UdpGsoSegments(&size)];
    sendmsg(socket.as_raw_fd(), &parts, &cut, MsgFlags::empty(), Some(&SockaddrIn::from(target))).is_ok()
}

/// X25519 keys whose products are all zero: of order 1, 2, 4 and 8, and two that are not reduced (RFC 7748
/// section 6.1).
const SMALL_ORDER: [&str; 6] = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
];

fn forged(kind: &str, mac_key: &[u8; 32], random: &mut u64) -> Result<Vec<u8>, Box<dyn Error>> {
    let n = u64::from(next(random));
    let (first, index, length) = match kind {
        // An initiation: type, sender, ephemeral key, static key, time, and two MACs of 16 bytes.
        "starts" | "points" | "wrong" => (1, next(random), 148),
        // Receiver indices of data sessions have the top bit set; others hold the peer's number and a count.
        "data" => (4, next(random) | 0x8000_0000, 64 + n % 1300),
        "session" => (4, next(random) % 512, 64 + n % 1100),
        "short" => (1 + next(random) % 4, next(random), if n % 4 == 0 { n / 4 % 16 } else { 1 }),
        "long" => (4, next(random), 1500 + n % 58_500),
        _ => return Err(format!("`{kind}` is no kind of flood").into()),
    };
    let length = usize::try_from(length)?;
    let mut datagram: Vec<u8> = Vec::with_capacity(length + 8);
    datagram.extend(first.to_le_bytes());
    datagram.extend(index.to_le_bytes());
    while datagram.len() < length {
        datagram.extend(next(random).to_le_bytes());
    }
    datagram.truncate(length);
    if kind == "points" {
        let point = SMALL_ORDER[usize::try_from(n)? % SMALL_ORDER.len()];
        datagram[8..40].copy_from_slice(&data_encoding::HEXLOWER.decode(point.as_bytes())?);
    }
    if kind == "starts" || kind == "points" {
        let mut mac = <Blake2sMac<U16> as KeyInit>::new_from_slice(mac_key).map_err(|e| e.to_string())?;
        Update::update(&mut mac, &datagram[..116]);
        datagram[116..132].copy_from_slice(&mac.finalize_fixed());
    }
    Ok(datagram)
}

/// `HASH("mac1----" ‖ public key)`, WireGuard paper section 5.4.4; the X25519 key is the first part of a
/// public identity.
fn mac_key(public: &str) -> Result<[u8; 32], Box<dyn Error>> {
    let text = public.strip_prefix("qvpn1-").ok_or("a public key begins with qvpn1-")?;
    let bytes = data_encoding::BASE64.decode(text.as_bytes())?;
    let x25519 = bytes.get(..32).ok_or("the public key is too short")?;
    let mut hash = Blake2s256::default();
    Update::update(&mut hash, b"mac1----");
    Update::update(&mut hash, x25519);
    Ok(hash.finalize_fixed().into())
}

fn read(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk().map(|(l, rest)| (u16::from_be_bytes(*l), rest))
    {
        let Some((datagram, rest)) = rest.split_at_checked(length.into()) else { break };
        all.push(datagram.to_vec());
        bytes = rest;
    }
    all
}

/// SplitMix64.
fn next(state: &mut u64) -> u32 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    u32::try_from((z ^ (z >> 31)) >> 32).unwrap_or(0)
}
