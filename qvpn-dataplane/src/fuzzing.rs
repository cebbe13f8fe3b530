//! Bodies of the data path's fuzz targets, as plain functions that also run on stable Rust. They exist only
//! with the feature `fuzzing`, which no program enables.

use std::collections::BTreeSet;
use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use qvpn_secret::Secret;
use qvpn_types::{LocalEpoch, PeerNumber, Suite, Time};

use crate::allowed_ips::AllowedIps;
use crate::checksum::{Sum, addresses_and_protocol};
use crate::key::{OpeningKey, SealingKey};
use crate::lane::internals as lane;
use crate::session::{HEADER, OpeningSession, ReplayWindow, SealingSession, TAG};
use crate::tun::coalesce::Coalescer;
use crate::tun::split;
use crate::tun::vnet::Vnet;

/// Reads fields from the front of the input; returns zeros after its end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let n = N.min(self.0.len());
        out[..n].copy_from_slice(&self.0[..n]);
        self.0 = &self.0[n..];
        out
    }

    fn u8(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Splits a virtio header and packet from a kernel, valid or not. The segments must contain the payload
/// exactly once, in order.
pub fn split(bytes: &[u8]) {
    let Some((header, packet)) = bytes.split_first_chunk::<{ Vnet::LEN }>() else { return };
    let mut packet = packet.to_vec();
    let Ok(Some(split)) = split::plan(Vnet::parse(header), &mut packet) else { return };
    let payloads: Vec<u8> =
        cut(&split, &packet).iter().flat_map(|segment| segment[split.header..].to_vec()).collect();
    assert_eq!(payloads, packet[split.header..], "the payload is there once, in order");
}

fn cut(split: &split::Split, packet: &[u8]) -> Vec<Vec<u8>> {
    let segment = |n: usize| {
        let mut out = vec![0; split.len(n)];
        split.write(packet, n, &mut out);
        out
    };
    (0..split.count()).map(segment).collect()
}

/// Coalesces packets of a few flows, some of them corrupted, and splits the result again, which must give
/// the same packets in the same order.
pub fn coalesce(bytes: &[u8]) {
    let mut input = Input(bytes);
    let udp = input.u8() & 1 == 1;
    let mut packets: Vec<Vec<u8>> = Vec::new();
    let mut sequence = 1000u32;
    while !input.is_empty() && packets.len() < 200 {
        packets.push(packet(&mut input, &mut sequence, packets.len()));
    }
    let (mut buffer, mut places) = (Vec::new(), Vec::new());
    for packet in &packets {
        buffer.extend([0xee; 16]);
        places.push(buffer.len()..buffer.len() + packet.len());
        buffer.extend(packet);
    }
    let (mut written, mut counted) = (Vec::new(), 0);
    let mut write = |parts: &[IoSlice<'_>], count: usize| {
        counted += count;
        let Some(header) = parts[0].first_chunk() else { return };
        let packet: Vec<u8> = parts[1..].iter().flat_map(|part| part.iter().copied()).collect();
        written.push((Vnet::parse(header), packet));
    };
    let mut coalescer = Coalescer::new(udp);
    for place in places {
        coalescer.push(&mut buffer, place, &mut write);
    }
    coalescer.flush(&mut buffer, &mut write);
    assert_eq!(counted, packets.len(), "each packet is counted once");
    let mut out = Vec::new();
    for (header, mut packet) in written {
        match split::plan(header, &mut packet) {
            Ok(Some(split)) => out.extend(cut(&split, &packet)),
            _ => out.push(packet),
        }
    }
    assert_eq!(out.len(), packets.len(), "none is lost, none is made");
    for (got, want) in out.iter().zip(&packets) {
        assert_eq!(without_checksums(got), without_checksums(want));
    }
}

/// Makes a packet whose IP length is right, which the lane ensures; everything else may be wrong.
fn packet(input: &mut Input<'_>, sequence: &mut u32, number: usize) -> Vec<u8> {
    let [shape, spoil, at, value] = input.take::<4>();
    let (v6, tcp) = (shape & 1 == 1, shape & 2 == 2);
    let payload = usize::from(input.u8()) % if shape & 4 == 4 { 7 } else { 64 };
    let (l4, protocol) = (if v6 { 40 } else { 20 }, if tcp { 6u8 } else { 17 });
    let header = l4 + if tcp { 20 } else { 8 };
    let mut out = vec![0u8; header + payload];
    let number = u16::try_from(number).unwrap_or(0);
    let len = u16::try_from(out.len()).unwrap_or(0);
    let l4_len = u16::try_from(out.len() - l4).unwrap_or(0);
    if v6 {
        out[0] = 0x60;
        out[4..6].copy_from_slice(&l4_len.to_be_bytes());
        out[6..8].copy_from_slice(&[protocol, 64]);
        out[8..40].fill(0xfd);
    } else {
        out[0] = 0x45;
        out[2..4].copy_from_slice(&len.to_be_bytes());
        out[4..6].copy_from_slice(&number.to_be_bytes());
        out[8..10].copy_from_slice(&[64, protocol]);
        out[12..20].fill(10);
    }
    out[l4..l4 + 4].copy_from_slice(&[0, 80, 0, shape >> 6]);
    if tcp {
        out[l4 + 4..l4 + 8].copy_from_slice(&sequence.to_be_bytes());
        *sequence = sequence.wrapping_add(u32::try_from(payload).unwrap_or(0));
        out[l4 + 12] = 5 << 4;
        out[l4 + 13] = 0x10 | if shape & 8 == 8 { 8 } else { 0 };
    } else {
        out[l4 + 4..l4 + 6].copy_from_slice(&l4_len.to_be_bytes());
    }
    out[header..].fill(value);
    if spoil & 3 == 3 {
        // Any byte except the version, the IP header's length and the packet's length.
        let fixed: &[usize] = if v6 { &[0, 4, 5] } else { &[0, 2, 3] };
        let at = usize::from(at) % out.len();
        if !fixed.contains(&at) {
            out[at] = value;
        }
    }
    if spoil & 4 == 0 {
        let sum = if tcp { 16 } else { 6 };
        if !v6 {
            out[10..12].fill(0);
            let checksum = Sum::default().bytes(&out[..20]).checksum();
            out[10..12].copy_from_slice(&checksum);
        }
        out[l4 + sum..l4 + sum + 2].fill(0);
        let whole = addresses_and_protocol(&out, v6, protocol).word(l4_len).bytes(&out[l4..]);
        out[l4 + sum..l4 + sum + 2].copy_from_slice(&whole.udp_checksum());
    }
    out
}

/// Zeroes the checksums, since splitting may turn a checksum of 0 into 0xffff.
fn without_checksums(packet: &[u8]) -> Vec<u8> {
    let mut out = packet.to_vec();
    let l4 = if packet[0] >> 4 == 4 { 20 } else { 40 };
    let protocol = if l4 == 20 { packet[9] } else { packet[6] };
    if l4 == 20 {
        out[10..12].fill(0);
    }
    let at = l4 + if protocol == 6 { 16 } else { 6 };
    if let Some(field) = out.get_mut(at..at + 2) {
        field.fill(0);
    }
    out
}

/// Parses the plaintext of a datagram. Source and length must come from the packet alone, and the length
/// must be within it.
pub fn inner_packet(bytes: &[u8]) {
    let Some((tos, text)) = bytes.split_first() else { return };
    let mut text = text.to_vec();
    let Some((source, len)) = lane::source_and_length(&text) else { return };
    assert!(len <= text.len() && len >= if source.is_ipv4() { 20 } else { 40 });
    let rest = text[len..].to_vec();
    lane::decapsulate(*tos, &mut text[..len]);
    assert_eq!(text[len..], rest, "what follows the packet stays");
    assert_eq!(lane::source_and_length(&text), Some((source, len)), "ECN changes neither");
}

/// Builds a table of prefixes and looks up addresses; a linear search must give the same peers.
pub fn allowed_ips(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut entries: Vec<(IpAddr, u8, PeerNumber)> = Vec::new();
    let mut addresses = Vec::new();
    while !input.is_empty() && addresses.len() < 100 {
        let [what, prefix] = input.take::<2>();
        // Few distinct bits, so that prefixes nest and collide.
        let address = if what & 1 == 0 {
            IpAddr::V4(Ipv4Addr::from_bits(u32::from_be_bytes(input.take()) & 0xf003_80ff))
        } else {
            let (high, low) = (u64::from_be_bytes(input.take()), input.u8());
            IpAddr::V6(Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low)))
        };
        if what & 2 == 0 && entries.len() < 60 {
            let most = if address.is_ipv4() { 32 } else { 128 };
            entries.push((address, prefix % (most + 1), PeerNumber(u16::from(what >> 2) % 5)));
        }
        addresses.push(address);
    }
    let Ok(table) = AllowedIps::new(entries.clone()) else { return };
    for address in addresses {
        assert_eq!(table.lookup(address), by_force(&entries, address), "{address}");
    }
}

fn by_force(entries: &[(IpAddr, u8, PeerNumber)], address: IpAddr) -> Option<PeerNumber> {
    let bits = |a: IpAddr| match a {
        IpAddr::V4(a) => u128::from(a.to_bits()) << 96,
        IpAddr::V6(a) => a.to_bits(),
    };
    let holds = |(a, prefix, _): &&(IpAddr, u8, PeerNumber)| {
        a.is_ipv4() == address.is_ipv4() && (bits(*a) ^ bits(address)).leading_zeros() >= u32::from(*prefix)
    };
    // `max_by_key` returns the last of equal prefixes, which is the one that counts.
    entries.iter().filter(holds).max_by_key(|(_, prefix, _)| *prefix).map(|(_, _, peer)| *peer)
}

/// Feeds counters near and far to the replay window, which must agree with a set of all accepted ones.
pub fn replay(bytes: &[u8]) {
    let mut input = Input(bytes);
    let (mut window, mut seen) = (ReplayWindow::default(), BTreeSet::new());
    let mut last = 0u64;
    while !input.is_empty() {
        let [how, step] = input.take::<2>();
        let counter = match how % 8 {
            0 => u64::from_be_bytes(input.take()),
            1 => last.saturating_add(ReplayWindow::SIZE + u64::from(step)),
            2 | 3 => last.saturating_sub(u64::from(step) << (how >> 5)),
            4 => last.saturating_sub(ReplayWindow::SIZE).saturating_add(u64::from(step % 4)),
            5 => last,
            _ => last.saturating_add(u64::from(step)),
        };
        let highest = seen.last().copied();
        let new = !seen.contains(&counter)
            && counter < u64::MAX
            && highest.is_none_or(|highest: u64| counter > highest || highest - counter < ReplayWindow::SIZE);
        assert_eq!(window.is_new(counter), new, "{counter} after {highest:?}");
        if new {
            assert_eq!(window.accept(counter), highest.is_none_or(|highest| counter > highest));
            seen.insert(counter);
            last = last.max(counter);
        }
    }
}

/// A lane's table of receiver indices, for timing measurements.
pub struct IndexTable(lane::IndexTable<u64>);

impl IndexTable {
    /// Makes a table with these indices.
    #[must_use]
    pub fn new(indices: impl IntoIterator<Item = u32>) -> Self {
        Self(indices.into_iter().map(|index| (index, u64::from(index))).collect())
    }

    /// Returns whether the table contains `index`.
    #[must_use]
    pub fn holds(&self, index: u32) -> bool {
        self.0.contains_key(&index)
    }
}

/// Returns the datagram into which a sealing session seals `inner` as its packet number `nth`, padded to 16
/// bytes.
#[must_use]
pub fn seal(suite: Suite, key: Secret<32>, receiver_index: u32, nth: u64, inner: &[u8]) -> Option<Vec<u8>> {
    let key = SealingKey {
        peer: PeerNumber(1),
        epoch: LocalEpoch(1),
        receiver_index,
        suite,
        key,
        expires_at: Time::from_nanos(2),
        packets: nth + 1,
    };
    let mut session = SealingSession::new(&key)?;
    let padded = inner.len().next_multiple_of(16);
    let mut buffer = vec![0; HEADER + padded + TAG];
    for _ in 0..=nth {
        buffer[HEADER..HEADER + inner.len()].copy_from_slice(inner);
        session.seal(&mut buffer, inner.len(), padded, Time::from_nanos(1)).ok()?;
    }
    Some(buffer)
}

/// Opens a datagram with a new opening session; returns the packet with its padding.
#[must_use]
pub fn open(suite: Suite, key: Secret<32>, index: u32, datagram: &[u8]) -> Option<Vec<u8>> {
    let key = OpeningKey {
        peer: PeerNumber(1),
        epoch: LocalEpoch(1),
        index,
        suite,
        key,
        expires_at: Time::from_nanos(2),
    };
    let mut datagram = datagram.to_vec();
    OpeningSession::new(&key)?.open(&mut datagram, Time::from_nanos(1)).ok().map(|(text, _)| text.to_vec())
}
