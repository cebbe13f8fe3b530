//! Abuses a gateway's UDP port from many addresses, as fast as it is told.
//!
//! `lab-flood KIND RATE SECONDS TARGET PUBLIC_KEY NETWORK [FILE]`: sends RATE datagrams a second to TARGET from 200
//! addresses of NETWORK (such as `192.0.2`), which must be local here. KIND is `starts` (handshake starts that are well
//! formed and made for the gateway's key, by nobody), `wrong` (their mac1 is wrong), `data` (data packets of no session),
//! `session` (messages of control sessions that don't open) or `replay` (what FILE holds: a length of two bytes, big
//! endian, before each datagram). Prints `flooding`, and at the end how many it sent.

use std::error::Error;
use std::io::{self, Write};
use std::net::{SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use blake2::digest::{FixedOutput, KeyInit, Update, consts::U16};
use blake2::{Blake2s256, Blake2sMac};

/// Addresses that it sends from.
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
    let target: SocketAddr = target.parse()?;
    let mac_key = mac_key(key)?;
    let sockets: Vec<UdpSocket> = (1..=SOURCES)
        .map(|host| {
            let socket = UdpSocket::bind(format!("{network}.{host}:0"))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
        .collect::<io::Result<_>>()?;
    let recorded = match file {
        [file] => read(&std::fs::read(file)?),
        _ => Vec::new(),
    };
    println!("flooding");
    io::stdout().flush()?;
    let mut random = 1u64;
    let (start, mut sent) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_secs(seconds) {
        let due = u64::try_from(start.elapsed().as_micros())? * rate / 1_000_000;
        while sent < due {
            let datagram = match kind.as_str() {
                "replay" => recorded[usize::try_from(sent)? % recorded.len()].clone(),
                kind => forged(kind, &mac_key, &mut random)?,
            };
            // Where the queue is full the flood is as fast as it can be.
            let _ = sockets[usize::try_from(sent % SOURCES)?].send_to(&datagram, target);
            sent += 1;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("sent {sent}");
    Ok(())
}

fn forged(kind: &str, mac_key: &[u8; 32], random: &mut u64) -> Result<Vec<u8>, Box<dyn Error>> {
    let (first, index, length) = match kind {
        // A start: type, sender, ephemeral key, static key, time, and two MACs of 16 bytes.
        "starts" | "wrong" => (1, next(random), 148),
        // Receiver indices have the top bit set in data sessions; others hold the peer's number and a count.
        "data" => (4, next(random) | 0x8000_0000, 64 + u64::from(next(random) % 1300)),
        "session" => (4, next(random) % 512, 64 + u64::from(next(random) % 1100)),
        _ => return Err(format!("`{kind}` is no kind of flood").into()),
    };
    let mut datagram: Vec<u8> = Vec::with_capacity(1500);
    datagram.extend([first, 0, 0, 0]);
    datagram.extend(index.to_le_bytes());
    while datagram.len() < usize::try_from(length)? {
        datagram.extend(next(random).to_le_bytes());
    }
    datagram.truncate(usize::try_from(length)?);
    if kind == "starts" {
        let mut mac = <Blake2sMac<U16> as KeyInit>::new_from_slice(mac_key).map_err(|e| e.to_string())?;
        Update::update(&mut mac, &datagram[..116]);
        datagram[116..132].copy_from_slice(&mac.finalize_fixed());
    }
    Ok(datagram)
}

/// `HASH("mac1----" ‖ public key)`, WireGuard paper section 5.4.4; the X25519 key is the first part of a public identity.
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
