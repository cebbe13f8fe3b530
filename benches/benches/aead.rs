//! Benchmarks of AEAD implementations for the data path, sealing and opening in place: the numbers of
//! docs/decisions/0006. Each implementation gets the same packets. Opening includes a copy of the sealed
//! packet, because opening changes it.

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::aead::{AeadInOut, KeyInit};
use chacha20poly1305::ChaCha20Poly1305;
use criterion::{
    BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};

/// Sizes of packets in bytes, without the tag.
const SIZES: [usize; 3] = [64, 576, 1420];
const TAG: usize = 16;
const KEY: [u8; 32] = [7; 32];

/// An AEAD key: seals the bytes before the tag, and opens the whole packet.
trait Aead {
    fn seal(&self, nonce: [u8; 12], packet: &mut [u8]);
    fn open(&self, nonce: [u8; 12], packet: &mut [u8]);
}

/// aws-lc-rs and ring have the same interface.
macro_rules! like_ring {
    ($name:ident, $library:ident) => {
        struct $name($library::aead::LessSafeKey);

        impl $name {
            fn new(algorithm: &'static $library::aead::Algorithm) -> Self {
                let key = $library::aead::UnboundKey::new(algorithm, &KEY).expect("a key of 32 bytes");
                Self($library::aead::LessSafeKey::new(key))
            }
        }

        impl Aead for $name {
            fn seal(&self, nonce: [u8; 12], packet: &mut [u8]) {
                use $library::aead::{Aad, Nonce};
                let (text, rest) = packet.split_at_mut(packet.len() - TAG);
                let nonce = Nonce::assume_unique_for_key(nonce);
                let tag = self.0.seal_in_place_separate_tag(nonce, Aad::empty(), text).expect("a packet");
                rest.copy_from_slice(tag.as_ref());
            }

            fn open(&self, nonce: [u8; 12], packet: &mut [u8]) {
                use $library::aead::{Aad, Nonce};
                let nonce = Nonce::assume_unique_for_key(nonce);
                self.0.open_in_place(nonce, Aad::empty(), packet).expect("it was sealed so");
            }
        }
    };
}
like_ring!(AwsLc, aws_lc_rs);
like_ring!(Ring, ring);

struct RustCrypto<A>(A);

impl<A: AeadInOut<NonceSize = aes_gcm::aead::consts::U12, TagSize = aes_gcm::aead::consts::U16>> Aead
    for RustCrypto<A>
{
    fn seal(&self, nonce: [u8; 12], packet: &mut [u8]) {
        let (text, rest) = packet.split_at_mut(packet.len() - TAG);
        let tag = self.0.encrypt_inout_detached(&nonce.into(), b"", InOutBuf::from(text)).expect("a packet");
        rest.copy_from_slice(&tag);
    }

    fn open(&self, nonce: [u8; 12], packet: &mut [u8]) {
        let (text, tag) = packet.split_at_mut(packet.len() - TAG);
        let tag: [u8; TAG] = (&*tag).try_into().expect("the tag's length");
        let text = InOutBuf::from(text);
        self.0.decrypt_inout_detached(&nonce.into(), b"", text, &tag.into()).expect("it was sealed so");
    }
}

fn nonce(counter: u64) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    bytes
}

fn both(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, aead: &impl Aead) {
    for size in SIZES {
        group.throughput(Throughput::Bytes(u64::try_from(size).unwrap_or(0)));
        let (mut packet, mut counter) = (vec![1; size + TAG], 0);
        group.bench_function(format!("seal {size}/{name}"), |b| {
            b.iter(|| {
                counter += 1;
                aead.seal(nonce(counter), &mut packet);
            });
        });
        aead.seal(nonce(0), &mut packet);
        let mut copy = packet.clone();
        group.bench_function(format!("open {size}/{name}"), |b| {
            b.iter(|| {
                copy.copy_from_slice(&packet);
                aead.open(nonce(0), &mut copy);
            });
        });
    }
}

fn suites(c: &mut Criterion) {
    let mut group = c.benchmark_group("chacha20poly1305");
    both(&mut group, "aws-lc-rs", &AwsLc::new(&aws_lc_rs::aead::CHACHA20_POLY1305));
    both(&mut group, "ring", &Ring::new(&ring::aead::CHACHA20_POLY1305));
    both(&mut group, "RustCrypto", &RustCrypto(ChaCha20Poly1305::new(&KEY.into())));
    group.finish();
    let mut group = c.benchmark_group("aes256gcm");
    both(&mut group, "aws-lc-rs", &AwsLc::new(&aws_lc_rs::aead::AES_256_GCM));
    both(&mut group, "ring", &Ring::new(&ring::aead::AES_256_GCM));
    both(&mut group, "RustCrypto", &RustCrypto(Aes256Gcm::new(&KEY.into())));
    group.finish();
}

criterion_group!(aead, suites);
criterion_main!(aead);
