//! A lossy WAN, or a NAT whose mappings change: forwards UDP datagrams between two gateways, for both of
//! which this relay is the peer, and drops, delays and reorders them.
//!
//! `lab-relay SEED LISTEN_A TARGET_A LISTEN_B TARGET_B`: a datagram for LISTEN_A leaves from the socket of
//! LISTEN_B for TARGET_B, and the reverse; replies go to the source of the other side's latest datagram.
//! Prints `ready`. Lines on standard input: `set LOSS DELAY_MS JITTER_MS` (a datagram takes the delay and a
//! random part of the jitter), `rebind` (from now on side B sees another port, and datagrams to the old one
//! are lost), `report`.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use tests::{RelayDirection, RelayReport};

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-relay: {error}");
            ExitCode::FAILURE
        }
    }
}

/// One side's socket, and its gateway's address.
struct Side {
    socket: UdpSocket,
    peer: SocketAddr,
    /// Sockets of former mappings: datagrams to them are counted and dropped.
    former: Vec<UdpSocket>,
}

/// A datagram in transit, ordered by its time of arrival.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct OnTheWay {
    due: Instant,
    number: u64,
    to: usize,
    datagram: Vec<u8>,
}

struct Relay {
    sides: [Side; 2],
    /// From side A, and from side B.
    ways: [RelayDirection; 2],
    /// The number of the last datagram that left, to detect overtaken ones.
    left: [u64; 2],
    queue: BinaryHeap<Reverse<OnTheWay>>,
    count: u64,
    loss: f64,
    delay: Duration,
    jitter: Duration,
    random: u64,
}

fn run() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().collect();
    let [_, seed, listen_a, target_a, listen_b, target_b] = &args[..] else {
        return Err("usage: lab-relay SEED LISTEN_A TARGET_A LISTEN_B TARGET_B".into());
    };
    let sides = [Side::bind(listen_a.parse()?, target_a)?, Side::bind(listen_b.parse()?, target_b)?];
    let mut relay = Relay {
        sides,
        ways: Default::default(),
        left: [0; 2],
        queue: BinaryHeap::new(),
        count: 0,
        loss: 0.0,
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        random: seed.parse()?,
    };
    println!("ready");
    io::stdout().flush()?;
    let stdin = io::stdin();
    let flags = OFlag::from_bits_retain(fcntl(stdin.as_fd(), FcntlArg::F_GETFL)?) | OFlag::O_NONBLOCK;
    fcntl(stdin.as_fd(), FcntlArg::F_SETFL(flags))?;
    let mut commands = BufReader::new(stdin);
    let mut line = String::new();
    loop {
        relay.wait(commands.get_ref().as_fd())?;
        loop {
            match commands.read_line(&mut line) {
                Ok(0) => return Ok(()),
                Ok(_) => {
                    relay.apply(line.trim())?;
                    line.clear();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        for from in 0..2 {
            relay.take(from);
        }
        relay.deliver();
    }
}

impl Side {
    fn bind(address: SocketAddr, peer: &str) -> Result<Self, Failure> {
        Ok(Self { socket: socket(address)?, peer: peer.parse()?, former: Vec::new() })
    }
}

fn socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    let buffer = 16 << 20;
    if setsockopt(&socket, sockopt::RcvBufForce, &buffer).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &buffer)?;
    }
    Ok(socket)
}

impl Relay {
    /// Waits until there is something to do.
    fn wait(&self, commands: std::os::fd::BorrowedFd<'_>) -> Result<(), Failure> {
        let sockets = self.sides.iter().flat_map(|side| side.former.iter().chain([&side.socket]));
        let mut all: Vec<PollFd<'_>> = sockets.map(|s| PollFd::new(s.as_fd(), PollFlags::POLLIN)).collect();
        all.push(PollFd::new(commands, PollFlags::POLLIN));
        let left =
            self.queue.peek().map(|Reverse(first)| first.due.saturating_duration_since(Instant::now()));
        let timeout = match left {
            // Rounded up, since poll counts in milliseconds.
            Some(left) => PollTimeout::try_from(left.as_micros().div_ceil(1000))?,
            None => PollTimeout::NONE,
        };
        match poll(&mut all, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn apply(&mut self, line: &str) -> Result<(), Failure> {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["set", loss, delay, jitter] => {
                self.loss = loss.parse()?;
                self.delay = Duration::from_millis(delay.parse()?);
                self.jitter = Duration::from_millis(jitter.parse()?);
                println!("done");
            }
            ["rebind"] => {
                let side = &mut self.sides[1];
                let new = socket(SocketAddr::new(side.socket.local_addr()?.ip(), 0))?;
                side.former.push(std::mem::replace(&mut side.socket, new));
                println!("done");
            }
            ["report"] => {
                let [from_a, from_b] = self.ways.clone();
                println!("{}", serde_json::to_string(&RelayReport { from_a, from_b })?);
            }
            _ => return Err(format!("`{line}` is no command").into()),
        }
        io::stdout().flush()?;
        Ok(())
    }

    /// Receives the datagrams of a side, and decides at random about each.
    fn take(&mut self, from: usize) {
        let mut buffer = [0u8; 65_536];
        // An ICMP error of an earlier datagram shows up here; the next call gives what really came.
        loop {
            let (length, sender) = match self.sides[from].socket.recv_from(&mut buffer) {
                Ok(got) => got,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => continue,
            };
            self.sides[from].peer = sender;
            let datagram = buffer[..length].to_vec();
            let (lost, later) = (self.chance() < self.loss, self.jitter.mul_f64(self.chance()));
            if lost {
                self.ways[from].lose(&datagram);
                continue;
            }
            self.count += 1;
            let due = Instant::now() + self.delay + later;
            self.queue.push(Reverse(OnTheWay { due, number: self.count, to: 1 - from, datagram }));
        }
        for former in &self.sides[from].former {
            while let Ok((length, _)) = former.recv_from(&mut buffer) {
                self.ways[from].lose(&buffer[..length]);
            }
        }
    }

    /// Sends the datagrams that are due.
    fn deliver(&mut self) {
        let now = Instant::now();
        while self.queue.peek().is_some_and(|Reverse(first)| first.due <= now) {
            let Some(Reverse(one)) = self.queue.pop() else { return };
            let (side, way) = (&self.sides[one.to], &mut self.ways[1 - one.to]);
            if side.socket.send_to(&one.datagram, side.peer).is_err() {
                way.lose(&one.datagram);
                continue;
            }
            way.pass(&one.datagram, one.number < self.left[one.to]);
            self.left[one.to] = self.left[one.to].max(one.number);
        }
    }

    /// From 0 to 1; SplitMix64.
    fn chance(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        f64::from(u32::try_from((z ^ (z >> 31)) >> 32).unwrap_or(0)) / f64::from(u32::MAX)
    }
}
