//! Captures the packets on an interface and searches them. A capture begins when its program listens, and
//! ends with a marker packet, so an empty capture means that nothing passed.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use memchr::memmem;

use crate::binaries::binary;
use crate::node::Node;
use crate::packets::is_data;
use crate::process::Process;

/// A running capture.
pub struct Capture<'a> {
    node: &'a Node,
    neighbour: String,
    file: PathBuf,
    program: Process,
    marker: String,
}

impl<'a> Capture<'a> {
    /// Captures everything that passes `interface` of `node`, in both directions. `neighbour` is an address
    /// beyond that interface, to which the marker packet at the end is sent.
    ///
    /// # Panics
    /// If the capture doesn't start.
    #[must_use]
    #[track_caller]
    pub fn start(node: &'a Node, interface: &str, neighbour: &str) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let file = node.dir().join(format!("{interface}-{number}.pcap"));
        let marker: String =
            format!("end of capt {number:04}").bytes().map(|byte| format!("{byte:02x}")).collect();
        let path = file.display().to_string();
        let mut program = node.spawn(binary("lab-capture"), &[interface, &path, &marker]);
        program.line("listening", Duration::from_secs(10));
        Self { node, neighbour: neighbour.to_owned(), file, program, marker }
    }

    /// Returns the pcap file, which is complete after [`stop`](Self::stop).
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Ends the capture and returns the packets.
    ///
    /// # Panics
    /// If the kernel dropped packets before they were read, since the capture would then prove nothing.
    #[must_use]
    #[track_caller]
    pub fn stop(mut self) -> Packets {
        // No answer is needed; the packet only has to pass. 16 bytes hold ping's timestamp, 48 the pattern.
        let ping = format!("ping -n -c 1 -W 1 -s 64 -p {} {}", self.marker, self.neighbour);
        let _ = self.node.try_run(&ping);
        let line = self.program.line("dropped ", Duration::from_secs(10));
        assert_eq!(line, "dropped 0", "the capture has gaps");
        Packets(parse(&fs::read(&self.file).unwrap()))
    }
}

/// One frame of a capture.
#[derive(Clone)]
pub struct Packet {
    /// Seconds since 1970 by the capture's clock.
    pub at: f64,
    /// The whole Ethernet frame.
    pub bytes: Vec<u8>,
    /// Source of the outer IP header, if it is IP.
    pub source: Option<IpAddr>,
    /// Destination of the outer IP header.
    pub destination: Option<IpAddr>,
    /// UDP ports, source and destination.
    pub udp: Option<(u16, u16)>,
    /// The payload of the UDP datagram.
    pub payload: Vec<u8>,
}

impl Packet {
    /// Whether it is a data packet of the tunnel: type 4 with an index whose top bit is set.
    #[must_use]
    pub fn is_data(&self) -> bool {
        self.udp.is_some() && is_data(&self.payload)
    }

    /// Returns the receiver index of a data packet, which identifies one key of one lane and direction.
    #[must_use]
    pub fn index(&self) -> Option<u32> {
        let index = self.payload.get(4..8).filter(|_| self.is_data())?;
        index.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
    }
}

impl std::fmt::Debug for Packet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ip = |ip: Option<IpAddr>| ip.map_or_else(|| "no IP".to_owned(), |ip| ip.to_string());
        write!(f, "{} > {}, {} bytes", ip(self.source), ip(self.destination), self.bytes.len())
    }
}

/// The packets of a capture, in order.
#[derive(Debug, Clone)]
pub struct Packets(pub Vec<Packet>);

impl Packets {
    /// Returns the packets that contain one of `patterns`; see [`crate::Lab::inner_patterns`].
    #[must_use]
    pub fn with_any(&self, patterns: &[Vec<u8>]) -> Vec<&Packet> {
        let finders: Vec<_> = patterns.iter().map(memmem::Finder::new).collect();
        self.0.iter().filter(|packet| finders.iter().any(|f| f.find(&packet.bytes).is_some())).collect()
    }

    /// Returns the data packets of the tunnel.
    #[must_use]
    pub fn data(&self) -> Vec<&Packet> {
        self.0.iter().filter(|packet| packet.is_data()).collect()
    }

    /// Returns, for each key that sealed a data packet, its receiver index and when it was first and last
    /// seen.
    #[must_use]
    pub fn keys(&self) -> BTreeMap<u32, (f64, f64)> {
        let mut keys = BTreeMap::new();
        for packet in &self.0 {
            let Some(index) = packet.index() else { continue };
            keys.entry(index).or_insert((packet.at, packet.at)).1 = packet.at;
        }
        keys
    }

    /// Returns the longest time, in seconds, that one key was in use. A key's age begins before its first
    /// packet, so this is less than `max_age` if the limit holds.
    #[must_use]
    pub fn longest_use_of_a_key(&self) -> f64 {
        self.keys().values().map(|(first, last)| last - first).fold(0.0, f64::max)
    }

    /// Returns the UDP datagrams to or from `port`.
    #[must_use]
    pub fn with_udp_port(&self, port: u16) -> Vec<&Packet> {
        self.0.iter().filter(|p| p.udp.is_some_and(|(from, to)| from == port || to == port)).collect()
    }
}

/// Reads the classic pcap format: a header of 24 bytes, then records of 16 bytes and a frame.
fn parse(bytes: &[u8]) -> Vec<Packet> {
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!(word(0), 0xa1b2_c3d4, "a pcap file of microseconds on a little-endian machine");
    let mut packets = Vec::new();
    let mut at = 24;
    while at + 16 <= bytes.len() {
        let length = usize::try_from(word(at + 8)).unwrap();
        let Some(frame) = bytes.get(at + 16..at + 16 + length) else { break };
        packets.push(dissect(f64::from(word(at)) + f64::from(word(at + 4)) / 1e6, frame));
        at += 16 + length;
    }
    packets
}

fn dissect(at: f64, frame: &[u8]) -> Packet {
    let mut packet =
        Packet { at, bytes: frame.to_vec(), source: None, destination: None, udp: None, payload: Vec::new() };
    let Ok(sliced) = SlicedPacket::from_ethernet(frame) else { return packet };
    match sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            packet.source = Some(ip.header().source_addr().into());
            packet.destination = Some(ip.header().destination_addr().into());
        }
        Some(NetSlice::Ipv6(ip)) => {
            packet.source = Some(ip.header().source_addr().into());
            packet.destination = Some(ip.header().destination_addr().into());
        }
        _ => {}
    }
    if let Some(TransportSlice::Udp(udp)) = sliced.transport {
        packet.udp = Some((udp.source_port(), udp.destination_port()));
        packet.payload = udp.payload().to_vec();
    }
    packet
}
