//! One host of a numbered UDP stream: sends datagrams at an even rate and counts those of the peer. The lab
//! starts it at both hosts; it begins at `go` on standard input, and prints its report as one line of JSON.
//!
//! `lab-udp BIND:PORT PEER:PORT COUNT RATE_PER_S SIZE EXPECTED BATCH`: one call sends up to `BATCH`
//! datagrams, which the kernel segments (UDP GSO).

use std::io::{self, BufRead, IoSlice, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg, setsockopt, sockopt};
use tests::{PAYLOAD_TAG, Pace, Received, StreamReport};

/// Time from the last datagram, in either direction, until the count is final.
const QUIET_TIMEOUT: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-udp: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, bind, peer, count, rate, size, expected, together] = &args[..] else {
        return Err("usage: lab-udp BIND:PORT PEER:PORT COUNT RATE_PER_S SIZE EXPECTED BATCH".into());
    };
    let (bind, peer): (SocketAddr, SocketAddr) = (bind.parse()?, peer.parse()?);
    let (count, rate, size): (u64, u64, usize) = (count.parse()?, rate.parse()?, size.parse()?);
    let (expected, together): (u64, u64) = (expected.parse()?, together.parse()?);
    let socket = UdpSocket::bind(bind)?;
    socket.connect(peer)?;
    // A second of a fast stream; without the right to force it the system's limit applies.
    let buffer = 16 << 20;
    if setsockopt(&socket, sockopt::RcvBufForce, &buffer).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &buffer)?;
    }
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;

    let sent_all = Arc::new(AtomicBool::new(false));
    let receiver = {
        let (socket, sent_all) = (socket.try_clone()?, Arc::clone(&sent_all));
        thread::spawn(move || receive(&socket, expected, &sent_all))
    };
    println!("ready");
    io::stdout().flush()?;
    io::stdin().lock().read_line(&mut String::new())?;
    let (sent, refused) = send(&socket, count, rate, size, together.max(1));
    sent_all.store(true, Ordering::Release);
    let received = receiver.join().map_err(|_| "the receiver panicked")??;
    let kernel_drops = kernel_drops(bind)?;
    println!("{}", serde_json::to_string(&StreamReport { sent, refused, received, kernel_drops })?);
    Ok(())
}

/// Sends `count` datagrams, evenly within a tick of a millisecond. Returns the numbers of sent and of refused
/// ones (for example because a route is unreachable). A refused one keeps its number, so it counts as lost at
/// the peer.
fn send(socket: &UdpSocket, count: u64, rate: u64, size: usize, together: u64) -> (u64, u64) {
    let size = size.max(PAYLOAD_TAG.len() + 8);
    let segment = u16::try_from(size).unwrap_or(u16::MAX);
    let mut datagrams = Vec::new();
    let (mut next, mut refused) = (0, 0);
    let mut pace = Pace::new(rate);
    while next < count {
        let due = pace.due(next).min(count);
        while next < due {
            let end = due.min(next + together);
            datagrams.clear();
            for number in next..end {
                let from = datagrams.len();
                datagrams.extend_from_slice(PAYLOAD_TAG);
                datagrams.extend_from_slice(&number.to_be_bytes());
                datagrams.resize(from + size, 0);
            }
            let several = [ControlMessage::UdpGsoSegments(&segment)];
            let control = if end - next > 1 { &several[..] } else { &[] };
            let sent = sendmsg::<()>(
                socket.as_raw_fd(),
                &[IoSlice::new(&datagrams)],
                control,
                MsgFlags::empty(),
                None,
            );
            if sent.is_err() {
                refused += end - next;
            }
            next = end;
        }
        thread::sleep(Duration::from_millis(1));
    }
    (next - refused, refused)
}

fn receive(socket: &UdpSocket, expected: u64, sent_all: &AtomicBool) -> io::Result<Received> {
    let mut counts = vec![0u8; usize::try_from(expected).unwrap_or(0)];
    let mut received = Received::default();
    let (mut highest, mut last) = (None, None::<Instant>);
    let mut datagram = [0u8; 65_536];
    let mut quiet_since = Instant::now();
    while received.distinct < expected {
        match socket.recv(&mut datagram) {
            Ok(length) => {
                let now = Instant::now();
                let Some(number) = number(&datagram[..length]).and_then(|n| usize::try_from(n).ok()) else {
                    received.strange += 1;
                    continue;
                };
                let Some(seen) = counts.get_mut(number) else {
                    received.strange += 1;
                    continue;
                };
                *seen = seen.saturating_add(1);
                if *seen > 1 {
                    received.duplicated += 1;
                } else {
                    received.distinct += 1;
                    received.reordered += u64::from(highest.is_some_and(|h| number < h));
                }
                highest = highest.max(Some(number));
                let gap = last.map_or(Duration::ZERO, |last| now - last);
                received.longest_gap_ms = received.longest_gap_ms.max(gap.as_secs_f64() * 1000.0);
                (last, quiet_since) = (Some(now), now);
            }
            // An ICMP error is reported here and in `send`; its datagram counts as lost.
            Err(_) if !sent_all.load(Ordering::Acquire) => quiet_since = Instant::now(),
            Err(_) if quiet_since.elapsed() > QUIET_TIMEOUT => break,
            Err(_) => {}
        }
    }
    // A duplicate of the last datagrams may still arrive.
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    while let Ok(length) = socket.recv(&mut datagram) {
        match number(&datagram[..length]) {
            Some(_) => received.duplicated += 1,
            None => received.strange += 1,
        }
    }
    received.lost = expected - received.distinct;
    Ok(received)
}

fn number(datagram: &[u8]) -> Option<u64> {
    let rest = datagram.strip_prefix(PAYLOAD_TAG)?;
    Some(u64::from_be_bytes(*rest.first_chunk()?))
}

/// Returns the number of datagrams that the kernel dropped because this socket's receive buffer was full: the
/// counter of `SO_RXQ_OVFL`, read from `/proc`, where it is right even if nothing arrives after the last
/// drop.
fn kernel_drops(bind: SocketAddr) -> Result<u64, Box<dyn std::error::Error>> {
    let table = std::fs::read_to_string(if bind.is_ipv4() { "/proc/net/udp" } else { "/proc/net/udp6" })?;
    let port = format!(":{:04X}", bind.port());
    let line =
        table.lines().find(|line| line.split_whitespace().nth(1).is_some_and(|local| local.ends_with(&port)));
    let drops =
        line.and_then(|line| line.split_whitespace().last()).ok_or("our socket isn't in /proc/net/udp")?;
    Ok(drops.parse()?)
}
