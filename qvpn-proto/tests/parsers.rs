//! Every parser on arbitrary bytes and on damaged messages: it never panics, and what it takes it writes again byte for
//! byte. The fuzz targets run the same bodies for longer.

use proptest::prelude::*;
use qvpn_proto::wire::Kind;

#[path = "../fuzz_bodies.rs"]
mod bodies;

#[test]
fn each_kind_has_a_body() {
    for byte in 0..=255u8 {
        if Kind::from_byte(byte).is_some() {
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
    fn damaged_messages_never_panic(kind in 1u8..=13, seed in any::<u64>(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut message = bodies::valid(kind, seed);
        bodies::message(&message);
        let at = at.index(message.len());
        message[at] = byte;
        bodies::message(&message);
        message.truncate(at);
        bodies::message(&message);
    }
}
