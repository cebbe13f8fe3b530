//! Runs every parser on arbitrary bytes and on damaged messages. A parser never panics, and an accepted
//! message is written back byte for byte. The fuzz targets run the same bodies for longer.

use proptest::prelude::*;
use qvpn_identity::kem::CT_LEN;
use qvpn_proto::wire::{Accept, CONFIRMATION, MessageType, ParseError};
use qvpn_types::EpochNumber;

#[path = "../../fuzz/bodies/wire.rs"]
mod bodies;

#[test]
fn each_kind_has_a_body() {
    for byte in 0..=255u8 {
        if MessageType::from_byte(byte).is_some() {
            bodies::message(&[byte]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..6000)) {
        bodies::message(&bytes);
        bodies::fragment(&bytes);
        bodies::reassembly(&bytes);
    }

    #[test]
    fn damaged_messages_never_panic(
        kind in 1u8..=13, seed in any::<u64>(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut message = bodies::valid(kind, seed);
        bodies::message(&message);
        let at = at.index(message.len());
        message[at] = byte;
        bodies::message(&message);
        message.truncate(at);
        bodies::message(&message);
    }
}

/// Checks that each lane has its own receiver index, with the top bit that distinguishes it from a control
/// session's.
#[test]
fn indices_of_lanes_are_of_data_sessions_and_none_comes_twice() {
    let accept = |indices: Vec<u32>| {
        let accept = Accept {
            epoch: EpochNumber(1),
            x25519: [9; 32],
            ciphertext_ephemeral: Box::new([1; CT_LEN]),
            ciphertext_static: Box::new([2; CT_LEN]),
            indices,
        };
        let bytes = [accept.to_bytes(), vec![3; CONFIRMATION]].concat();
        Accept::parse(&bytes).map(|(accept, ..)| accept.indices)
    };
    let top = 1 << 31;
    for right in [vec![top], vec![top | 1, top, u32::MAX]] {
        assert_eq!(accept(right.clone()), Ok(right));
    }
    for wrong in [vec![1], vec![top, top - 1], vec![top | 1, top, top | 1]] {
        assert_eq!(accept(wrong.clone()), Err(ParseError::Value("receiver index")), "{wrong:?}");
    }
    assert_eq!(accept(Vec::new()), Err(ParseError::Value("lanes")));
}
