//! The traffic of the trial: a numbered stream like a video's in both directions, a bulk transfer by TCP, and
//! probes of the round trip. Each program prints `ready`, begins at `go` on its standard input, and ends at
//! `stop`; then it has written its files and prints one line of JSON. `bulk-recv` prints `moves` when the
//! first kilobytes have arrived. Times are microseconds since 1970, and both hosts have the same clock.
//!
//! ```text
//! lab-traffic video     BIND PEER RATE SIZE FILE    FILE.sent, FILE.got: a time for each number, 0 for none
//! lab-traffic bulk-send PEER MBIT/S
//! lab-traffic bulk-recv BIND FILE                   FILE: pairs of a time and the bytes of the next 0.1 s
//! lab-traffic probe     BIND PEER RATE FILE         FILE: pairs of a time and a round trip, 0 for none
//! lab-traffic echo      BIND
//! ```

use std::fs;
use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{Value, json};
use tests::{PAYLOAD_TAG, Pace};

/// Receivers listen for this time after `stop`.
const QUIET_TIMEOUT: Duration = Duration::from_secs(2);
const SEND_INTERVAL: Duration = Duration::from_millis(1);
/// Interval of the bulk transfer's counts.
const BUCKET_US: u64 = 100_000;
/// More than TCP sends before the first acknowledgement: a transfer that has sent more is running.
const MOVES: u64 = 32 << 10;

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("lab-traffic: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<Value, Failure> {
    match words {
        ["video", bind, peer, rate, size, file] => {
            video(&udp(bind, Some(peer))?, rate.parse()?, size.parse()?, file)
        }
        ["bulk-send", peer, rate] => bulk_send(peer.parse()?, rate.parse()?),
        ["bulk-recv", bind, file] => bulk_recv(&TcpListener::bind(bind)?, file),
        ["probe", bind, peer, rate, file] => probe(&udp(bind, Some(peer))?, rate.parse()?, file),
        ["echo", bind] => echo(&udp(bind, None)?),
        _ => Err("usage: lab-traffic video|bulk-send|bulk-recv|probe|echo …".into()),
    }
}

fn udp(bind: &str, peer: Option<&str>) -> Result<UdpSocket, Failure> {
    let socket = UdpSocket::bind(bind)?;
    if let Some(peer) = peer {
        socket.connect(peer)?;
    }
    let buffer = 16 << 20;
    if setsockopt(&socket, sockopt::RcvBufForce, &buffer).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &buffer)?;
    }
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    Ok(socket)
}

/// Prints `ready`, waits for `go`, and returns the flag that `stop` sets.
fn begin() -> Result<Arc<AtomicBool>, Failure> {
    println!("ready");
    io::stdout().flush()?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    let stopped = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&stopped);
    // It ends with the process, or when the trial has.
    thread::spawn(move || {
        let _ = io::stdin().lock().read_line(&mut String::new());
        switch.store(true, Ordering::Release);
    });
    Ok(stopped)
}

fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

fn write_file(file: &str, numbers: &[u64]) -> io::Result<()> {
    fs::write(file, numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>())
}

/// Calls `each` with numbers from 0, `rate` times a second, evenly within a millisecond.
fn paced(rate: u64, stopped: &AtomicBool, mut each: impl FnMut(u64)) {
    let (mut pace, mut next) = (Pace::new(rate), 0);
    while !stopped.load(Ordering::Acquire) {
        let due = pace.due(next);
        while next < due {
            each(next);
            next += 1;
        }
        thread::sleep(SEND_INTERVAL);
    }
}

fn datagram(number: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size.max(PAYLOAD_TAG.len() + 8)];
    bytes[..PAYLOAD_TAG.len()].copy_from_slice(PAYLOAD_TAG);
    bytes[PAYLOAD_TAG.len()..PAYLOAD_TAG.len() + 8].copy_from_slice(&number.to_be_bytes());
    bytes
}

fn number(datagram: &[u8]) -> Option<usize> {
    let rest = datagram.strip_prefix(PAYLOAD_TAG)?;
    usize::try_from(u64::from_be_bytes(*rest.first_chunk()?)).ok()
}

/// Records the time of the first arrival of each number, and counts duplicates and late datagrams.
fn video(socket: &UdpSocket, rate: u64, size: usize, file: &str) -> Result<Value, Failure> {
    let stopped = begin()?;
    let receiver = {
        let (socket, stopped) = (socket.try_clone()?, Arc::clone(&stopped));
        thread::spawn(move || {
            let (mut got, mut doubled, mut reordered, mut strange) = (Vec::<u64>::new(), 0u64, 0u64, 0u64);
            let mut buffer = [0; 2048];
            let mut last = Instant::now();
            while !stopped.load(Ordering::Acquire) || last.elapsed() < QUIET_TIMEOUT {
                if !stopped.load(Ordering::Acquire) {
                    last = Instant::now();
                }
                // A time-out, or an ICMP error: the datagram counts as lost at the receiver.
                let Ok(length) = socket.recv(&mut buffer) else { continue };
                // No run has a billion numbers.
                let Some(at) = number(&buffer[..length]).filter(|n| *n < 1 << 30) else {
                    strange += 1;
                    continue;
                };
                let late = at < got.len();
                got.resize(got.len().max(at + 1), 0);
                if got[at] == 0 {
                    got[at] = now_us();
                    reordered += u64::from(late);
                } else {
                    doubled += 1;
                }
            }
            (got, doubled, reordered, strange)
        })
    };
    let (mut sent, mut refused) = (Vec::new(), 0u64);
    let mut bytes = datagram(0, size);
    paced(rate, &stopped, |next| {
        bytes[PAYLOAD_TAG.len()..PAYLOAD_TAG.len() + 8].copy_from_slice(&next.to_be_bytes());
        sent.push(now_us());
        refused += u64::from(socket.send(&bytes).is_err());
    });
    let (got, doubled, reordered, strange) = receiver.join().map_err(|_| "the receiver panicked")?;
    write_file(&format!("{file}.sent"), &sent)?;
    write_file(&format!("{file}.got"), &got)?;
    Ok(json!({
        "sent": sent.len(),
        "refused": refused,
        "doubled": doubled,
        "reordered": reordered,
        "strange": strange,
    }))
}

/// Sends bytes that count up, eight at a time, so that the receiver can check each.
fn bulk_send(peer: SocketAddr, mbit_per_s: u64) -> Result<Value, Failure> {
    let stopped = begin()?;
    let mut stream = TcpStream::connect(peer)?;
    stream.set_write_timeout(Some(Duration::from_millis(200)))?;
    let (mut next, mut bytes_sent) = (0u64, 0u64);
    let mut waiting: Vec<u8> = Vec::new();
    let per_tick = mbit_per_s * 1_000_000 / 8 / 100;
    let mut due = Instant::now();
    while !stopped.load(Ordering::Acquire) {
        if waiting.is_empty() {
            for _ in 0..per_tick / 8 {
                waiting.extend(next.to_le_bytes());
                next += 1;
            }
            // Time in which sending stalled is not made up for.
            due = due.max(Instant::now()) + Duration::from_millis(10);
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        match stream.write(&waiting) {
            Ok(written) => {
                waiting.drain(..written);
                bytes_sent += written as u64;
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(json!({ "sent": bytes_sent }))
}

fn bulk_recv(listener: &TcpListener, file: &str) -> Result<Value, Failure> {
    let stopped = begin()?;
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(Duration::from_millis(100)))?;
    let (mut buckets, mut received, mut wrong) = (Vec::<u64>::new(), 0u64, 0u64);
    let mut buffer = vec![0; 256 << 10];
    let mut last = Instant::now();
    while !stopped.load(Ordering::Acquire) || last.elapsed() < QUIET_TIMEOUT {
        let length = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(error) => return Err(error.into()),
        };
        last = Instant::now();
        for (at, byte) in (received..).zip(&buffer[..length]) {
            let sent = (at / 8).to_le_bytes()[usize::try_from(at % 8)?];
            wrong += u64::from(sent != *byte);
        }
        let before = received;
        received += length as u64;
        if before < MOVES && received >= MOVES && wrong == 0 {
            println!("moves");
            io::stdout().flush()?;
        }
        let bucket = now_us() / BUCKET_US * BUCKET_US;
        match buckets.last_chunk_mut::<2>() {
            Some([time, bytes]) if *time == bucket => *bytes += length as u64,
            _ => buckets.extend([bucket, length as u64]),
        }
    }
    write_file(file, &buckets)?;
    Ok(json!({ "received": received, "wrong": wrong }))
}

fn probe(socket: &UdpSocket, rate: u64, file: &str) -> Result<Value, Failure> {
    let stopped = begin()?;
    let receiver = {
        let (socket, stopped) = (socket.try_clone()?, Arc::clone(&stopped));
        thread::spawn(move || {
            let mut got = Vec::<u64>::new();
            let mut buffer = [0; 2048];
            let mut end = None;
            while end.is_none_or(|end: Instant| Instant::now() < end) {
                if end.is_none() && stopped.load(Ordering::Acquire) {
                    end = Some(Instant::now() + QUIET_TIMEOUT);
                }
                let Ok(length) = socket.recv(&mut buffer) else { continue };
                let Some(at) = number(&buffer[..length]).filter(|n| *n < 1 << 30) else { continue };
                if at >= got.len() {
                    got.resize(at + 1, 0);
                }
                got[at] = now_us();
            }
            got
        })
    };
    let mut sent = Vec::new();
    paced(rate, &stopped, |next| {
        sent.push(now_us());
        // A probe that can't be sent counts as one without an answer.
        let _ = socket.send(&datagram(next, 64));
    });
    let got = receiver.join().map_err(|_| "the receiver panicked")?;
    let back = |at: usize| got.get(at).copied().unwrap_or(0);
    let pairs: Vec<u64> =
        sent.iter().enumerate().flat_map(|(at, time)| [*time, back(at).saturating_sub(*time)]).collect();
    write_file(file, &pairs)?;
    Ok(json!({ "sent": sent.len() }))
}

fn echo(socket: &UdpSocket) -> Result<Value, Failure> {
    let stopped = begin()?;
    let count = AtomicU64::new(0);
    let mut buffer = [0; 2048];
    let mut end = None;
    while end.is_none_or(|end: Instant| Instant::now() < end) {
        if end.is_none() && stopped.load(Ordering::Acquire) {
            end = Some(Instant::now() + QUIET_TIMEOUT);
        }
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        // A reply that can't be sent counts as missing at the sender.
        let _ = socket.send_to(&buffer[..length], from);
        count.fetch_add(1, Ordering::Relaxed);
    }
    Ok(json!({ "echoed": count.into_inner() }))
}
