//! One host of the UDP measurements of `bench`: reads commands, one a line, from standard input and writes
//! replies to standard output.
//!
//! - `sink ADDR` counts datagrams: `start` resets, `stop` replies `count DATAGRAMS DROPPED` after 50 ms
//!   without a datagram.
//! - `blast ADDR MTU` sends: `RATE MIX SECONDS` replies `sent DATAGRAMS SECONDS`.
//! - `echo ADDR` returns everything.
//! - `ping ADDR` measures round trips: `COUNT INTERVAL_US` replies `rtt ANSWERED P50_NS P99_NS`.

use std::io::{self, BufRead, ErrorKind, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use benches::load::{Mix, Pacer};
use benches::stats::percentile;
use benches::sys;

/// Interval at which the sender checks for due datagrams.
const SEND_INTERVAL: Duration = Duration::from_micros(200);

/// How long the sink sleeps between reads. It reads batches, so that its wake-ups do not affect the
/// measurement.
const READ_INTERVAL: Duration = Duration::from_millis(1);

/// Size of the sink's receive buffer in bytes, for the datagrams that arrive during that time.
const BUFFER_BYTES: i32 = 64 << 20;

/// How long the sink waits for late datagrams.
const DRAIN_TIME: Duration = Duration::from_millis(50);

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["sink", address] => sink(address.parse()?),
        ["blast", address, mtu] => blast(address.parse()?, mtu.parse()?),
        ["echo", address] => echo(address.parse()?),
        ["ping", address] => ping(address.parse()?),
        _ => bail!("usage: bench-udp sink|blast|echo|ping ADDR:PORT [MTU]"),
    }
}

fn answer(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

/// Makes a socket that is connected to `peer`, from any local address.
fn connected(peer: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(if peer.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect(peer).with_context(|| format!("no way to {peer}"))?;
    Ok(socket)
}

fn sink(address: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(address)?;
    // Without CAP_NET_ADMIN in the initial user namespace the buffer stays small, and the sink must read
    // more often.
    let rest = if sys::force_receive_buffer(socket.as_fd(), BUFFER_BYTES).is_ok() {
        READ_INTERVAL
    } else {
        READ_INTERVAL / 10
    };
    let (count, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let counter = {
        let (count, stop, socket) = (count.clone(), stop.clone(), socket.try_clone()?);
        thread::spawn(move || {
            sys::sleep_precisely();
            while !stop.load(Ordering::Relaxed) {
                match sys::discard_batch(socket.as_fd()) {
                    Ok(got) => {
                        count.fetch_add(u64::try_from(got).unwrap_or(0), Ordering::Relaxed);
                    }
                    Err(_) => thread::sleep(rest),
                }
            }
        })
    };
    answer("ready")?;
    let mut dropped = kernel_drops(address)?;
    for line in io::stdin().lock().lines() {
        match line?.as_str() {
            "start" => {
                count.store(0, Ordering::Relaxed);
                dropped = kernel_drops(address)?;
                answer("started")?;
            }
            "stop" => {
                let mut last = count.load(Ordering::Relaxed);
                loop {
                    thread::sleep(DRAIN_TIME);
                    let now = count.load(Ordering::Relaxed);
                    if now == last {
                        break;
                    }
                    last = now;
                }
                answer(&format!("count {last} {}", kernel_drops(address)? - dropped))?;
            }
            other => bail!("sink doesn't know `{other}`"),
        }
    }
    stop.store(true, Ordering::Relaxed);
    counter.join().ok().context("the counter panicked")
}

/// Returns the number of datagrams that the kernel dropped because this socket's receive buffer was full.
fn kernel_drops(bind: SocketAddr) -> Result<u64> {
    let table = std::fs::read_to_string("/proc/net/udp")?;
    let port = format!(":{:04X}", bind.port());
    let mut lines = table.lines();
    let line = lines.find(|l| l.split_whitespace().nth(1).is_some_and(|local| local.ends_with(&port)));
    let drops = line.and_then(|line| line.split_whitespace().last());
    Ok(drops.context("our socket isn't in /proc/net/udp")?.parse()?)
}

fn blast(peer: SocketAddr, mtu: usize) -> Result<()> {
    let socket = connected(peer)?;
    sys::sleep_precisely();
    // The offered load must not depend on the CPU time that a busy tunnel leaves for its sender.
    if !sys::run_before_others() {
        eprintln!("without real-time priority the sender is held up by the tunnel that it measures");
    }
    let payload = vec![0x5a; mtu];
    answer("ready")?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let [rate, mix, seconds] = words[..] else { bail!("blast takes `RATE MIX SECONDS`, not `{line}`") };
        let (rate, seconds): (f64, f64) = (rate.parse()?, seconds.parse()?);
        let sizes = mix.parse::<Mix>()?.payloads(mtu);
        let mut pacer = Pacer::new(rate, SEND_INTERVAL.as_secs_f64());
        let mut next = sizes.iter().cycle();
        let (mut sent, start) = (0, Instant::now());
        let mut batch: Vec<&[u8]> = Vec::with_capacity(sys::BATCH);
        loop {
            let now = start.elapsed().as_secs_f64();
            if now >= seconds {
                break;
            }
            let mut due = pacer.due(now);
            while due > 0 {
                batch.clear();
                batch.extend(next.by_ref().take(due.min(sys::BATCH)).map(|size| &payload[..*size]));
                // A datagram that the kernel refuses counts as lost.
                let took = sys::send_batch(socket.as_fd(), &batch).unwrap_or(1);
                sent += took;
                due -= took.min(due);
            }
            thread::sleep(SEND_INTERVAL);
        }
        answer(&format!("sent {sent} {}", start.elapsed().as_secs_f64()))?;
    }
    Ok(())
}

fn echo(address: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(address)?;
    answer("ready")?;
    let mut buffer = [0; 2048];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => {
                let _ = socket.send_to(&buffer[..length], from);
            }
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn ping(peer: SocketAddr) -> Result<()> {
    let socket = connected(peer)?;
    sys::sleep_precisely();
    answer("ready")?;
    for (run, line) in (0u64..).zip(io::stdin().lock().lines()) {
        let line = line?;
        let (count, interval) = line.split_once(' ').context("ping takes `COUNT INTERVAL_US`")?;
        let (count, interval): (u32, u64) = (count.parse()?, interval.parse()?);
        let interval = Duration::from_micros(interval);
        let epoch = Instant::now();
        let receiver = {
            let socket = socket.try_clone()?;
            // The last reply may be this late.
            socket.set_read_timeout(Some(Duration::from_millis(500)))?;
            thread::spawn(move || {
                let mut trips = Vec::new();
                let mut buffer = [0; 36];
                let end = epoch + interval * count + Duration::from_secs(1);
                while trips.len() < count as usize && Instant::now() < end {
                    let Ok(length) = socket.recv(&mut buffer) else { continue };
                    let now = nanos(epoch);
                    let number =
                        |at: usize| buffer[..length].get(at..)?.first_chunk().map(|b| u64::from_be_bytes(*b));
                    // A late reply to an earlier run doesn't count.
                    if let (Some(at), true) = (number(0), number(8) == Some(run)) {
                        trips.push(now.saturating_sub(at));
                    }
                }
                trips
            })
        };
        let mut datagram = [0; 36];
        for n in 0..count {
            let due = interval * n;
            thread::sleep(due.saturating_sub(epoch.elapsed()));
            datagram[8..16].copy_from_slice(&run.to_be_bytes());
            datagram[..8].copy_from_slice(&nanos(epoch).to_be_bytes());
            let _ = socket.send(&datagram);
        }
        let mut trips = receiver.join().ok().context("the receiver panicked")?;
        let answered = trips.len();
        let mut at = |share| percentile(&mut trips, share).unwrap_or(0);
        let (p50, p99) = (at(0.5), at(0.99));
        answer(&format!("rtt {answered} {p50} {p99}"))?;
    }
    Ok(())
}

fn nanos(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
