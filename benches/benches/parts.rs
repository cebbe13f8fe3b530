//! Benchmarks of parts of the data path: split, coalesce, seal, open, allowed-IPs look-up, replay window.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use qvpn_dataplane::AllowedIps;
use qvpn_dataplane::internals::{ReceivedFlow, Session, SuperPacket, Window};
use qvpn_types::{PeerNumber, Suite};

/// Sizes of inner packets in bytes.
const SIZES: [usize; 3] = [64, 576, 1420];

/// A TCP flow through an MTU of 1420: the segments of one read, and their payload in bytes.
const SEGMENTS: u16 = 47;
const MSS: u16 = 1380;

fn bytes(number: usize) -> Throughput {
    Throughput::Bytes(u64::try_from(number).unwrap_or(0))
}

fn offloads(c: &mut Criterion) {
    let mut packet = SuperPacket::new(SEGMENTS, MSS);
    let mut arrived = ReceivedFlow::of(&mut packet);
    let mut group = c.benchmark_group("offload");
    group.throughput(bytes(packet.payload()));
    group.bench_function("split 64 KiB", |b| b.iter(|| assert_eq!(packet.split(), usize::from(SEGMENTS))));
    group.bench_function("coalesce 64 KiB", |b| b.iter(|| assert_eq!(arrived.join(), 1)));
    group.finish();
}

fn sessions(c: &mut Criterion) {
    for (name, suite) in [("chacha20poly1305", Suite::ChaCha20Poly1305), ("aes256gcm", Suite::Aes256Gcm)] {
        let mut group = c.benchmark_group(name);
        for size in SIZES {
            let Some(mut session) = Session::new(suite) else { continue };
            group.throughput(bytes(size));
            let mut buffer = vec![1; Session::sealed(size)];
            group.bench_function(format!("seal {size}"), |b| b.iter(|| assert!(session.seal(&mut buffer))));
            // Each datagram opens only once, so batches are sealed in advance, outside the measurement, and
            // opened in order.
            let Some(mut session) = Session::new(suite) else { continue };
            group.bench_function(format!("open {size}"), |b| {
                b.iter_custom(|count| {
                    let mut spent = std::time::Duration::ZERO;
                    let mut left = count;
                    let mut batch = vec![vec![1; Session::sealed(size)]; 64];
                    while left > 0 {
                        let some = usize::try_from(left.min(64)).unwrap_or(64);
                        for datagram in &mut batch[..some] {
                            assert!(session.seal(datagram));
                        }
                        let start = std::time::Instant::now();
                        for datagram in &mut batch[..some] {
                            assert!(session.open(datagram));
                        }
                        spent += start.elapsed();
                        left -= u64::try_from(some).unwrap_or(left);
                    }
                    spent
                });
            });
        }
        group.finish();
    }
}

/// Makes a table of 2,000 peers with 40 prefixes each, most of them IPv4.
fn table() -> AllowedIps {
    let prefixes = (0..80_000u32).map(|n| {
        let peer = PeerNumber(u16::try_from(n % 2_000).unwrap_or(0));
        if n % 8 == 0 {
            (IpAddr::V6(Ipv6Addr::from((0xfd00 << 112) | u128::from(n) << 64)), 64, peer)
        } else {
            (IpAddr::V4(Ipv4Addr::from((10 << 24) + n * 200)), 24 + u8::try_from(n % 9).unwrap_or(0), peer)
        }
    });
    AllowedIps::new(prefixes).expect("all prefixes are of their family's length")
}

fn lookups(c: &mut Criterion) {
    let all = table();
    let mut group = c.benchmark_group("allowed IPs, 2,000 peers, 80,000 routes");
    // Addresses that are far apart, so that each look-up takes another path through the table.
    let step = |n: u32| n.wrapping_mul(2_654_435_761);
    let mut n = 0u32;
    group.bench_function("IPv4", |b| {
        b.iter(|| {
            n = n.wrapping_add(1);
            black_box(all.lookup(IpAddr::V4(Ipv4Addr::from((10 << 24) + step(n) % 16_000_000))))
        });
    });
    group.bench_function("IPv6", |b| {
        b.iter(|| {
            n = n.wrapping_add(1);
            let address = (0xfd00 << 112) | u128::from(step(n) % 80_000) << 64 | 1;
            black_box(all.lookup(IpAddr::V6(Ipv6Addr::from(address))))
        });
    });
    group.finish();
    c.bench_function("allowed IPs, building 80,000 routes", |b| {
        b.iter_batched(|| (), |()| table(), BatchSize::PerIteration);
    });
}

fn windows(c: &mut Criterion) {
    let mut group = c.benchmark_group("replay window");
    let (mut window, mut next) = (Window::default(), 0);
    group.bench_function("in order", |b| {
        b.iter(|| {
            next += 1;
            assert!(window.see(next));
        });
    });
    let (mut window, mut next) = (Window::default(), 0u64);
    group.bench_function("in pairs turned round", |b| {
        b.iter(|| {
            next += 1;
            assert!(window.see(next ^ 1));
        });
    });
    group.bench_function("replayed", |b| b.iter(|| assert!(!window.see(black_box(next)))));
    group.finish();
}

criterion_group!(parts, offloads, sessions, lookups, windows);
criterion_main!(parts);
