//! Traits that the types of secrets must not have. A line fails to compile if a type gets a forbidden trait:
//! a copy would outlive the owner's erasure, a text form could reach a log, and `==` takes a time that
//! depends on the bytes. Also, no code outside `ct_eq` compares bytes of a secret.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::path::{Path, PathBuf};

/// Fails to compile if the type has one of these traits: then `probe` has two meanings.
macro_rules! never {
    ($($type:ty),+ $(,)? => $traits:tt) => { $( never!(@ $type, $traits); )+ };
    (@ $type:ty, [$($bound:path),+ $(,)?]) => {
        const _: fn() = || {
            #[allow(dead_code)]
            trait Ambiguous<A> {
                fn probe() {}
            }
            impl<T: ?Sized> Ambiguous<()> for T {}
            $(
                const _: () = {
                    #[allow(dead_code)]
                    struct Has;
                    impl<T: ?Sized + $bound> Ambiguous<Has> for T {}
                };
            )+
            let _ = <$type as Ambiguous<_>>::probe;
        };
    };
}

never!(
    qvpn_secret::Secret<32>,
    qvpn_secret::Secret<48>,
    qvpn_secret::Secret<64>,
    qvpn_secret::SecretBuf,
    qvpn_identity::SecretIdentity,
    qvpn_identity::Psk,
    qvpn_audit::VerificationKey,
    qvpn_proto::key_schedule::EpochSecrets<'static>,
    qvpn_proto::key_schedule::EpochKeys,
    qvpn_proto::key_schedule::Chain,
    qvpn_proto::exchange::Proposed,
    qvpn_proto::exchange::Agreed,
    qvpn_proto::exchange::Answered,
    qvpn_proto::FetchedKey,
    qvpn_proto::KmsReport,
    qvpn_proto::LaneOrder,
    qvpn_proto::PeerOutput,
    kms_client::QkdKey,
    => [
        Clone,
        Copy,
        std::fmt::Debug,
        std::fmt::Display,
        std::fmt::LowerHex,
        std::fmt::UpperHex,
        serde::Serialize,
        AsRef<[u8]>,
        std::borrow::Borrow<[u8]>,
        std::ops::Deref,
        PartialEq,
        PartialOrd,
        std::hash::Hash,
        Into<Vec<u8>>,
        Into<String>,
    ]
);

// These two print peer and epoch; see the test below.
never!(
    qvpn_dataplane::SealingKey,
    qvpn_dataplane::OpeningKey,
    => [
        Clone,
        Copy,
        std::fmt::Display,
        serde::Serialize,
        AsRef<[u8]>,
        std::ops::Deref,
        PartialEq,
        std::hash::Hash
    ]
);

#[test]
fn the_text_of_a_lanes_key_has_no_byte_of_it() {
    let key = || qvpn_secret::Secret::<32>::filled(|bytes| bytes.fill(0xa7));
    let seal = qvpn_dataplane::SealingKey {
        peer: qvpn_types::PeerNumber(3),
        epoch: qvpn_types::LocalEpoch(4),
        receiver_index: 1 << 31,
        suite: qvpn_types::Suite::ChaCha20Poly1305,
        key: key(),
        expires_at: qvpn_types::Time::from_nanos(5),
        packets: 6,
    };
    let open = qvpn_dataplane::OpeningKey {
        peer: qvpn_types::PeerNumber(3),
        epoch: qvpn_types::LocalEpoch(4),
        index: 1 << 31,
        suite: qvpn_types::Suite::ChaCha20Poly1305,
        key: key(),
        expires_at: qvpn_types::Time::from_nanos(5),
    };
    assert_eq!(format!("{seal:?}"), "SealingKey { peer: PeerNumber(3), epoch: LocalEpoch(4), .. }");
    assert_eq!(format!("{open:?}"), "OpeningKey { peer: PeerNumber(3), epoch: LocalEpoch(4), .. }");
}

/// Only `expose` returns bytes of secrets, and check values and confirmations have names; no line of code may
/// contain one of these and a comparison that stops at the first difference.
#[test]
fn nothing_secret_is_compared_in_variable_time() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let (mut lines, mut exposed) = (0, 0);
    for dir in [
        "qvpn-secret",
        "qvpn-audit",
        "qvpn-identity",
        "qvpn-proto",
        "qvpn-dataplane",
        "qvpn-daemon",
        "kms-client",
    ] {
        for file in sources(&root.join(dir).join("src")) {
            let text = fs::read_to_string(&file).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap();
            for (number, line) in (1..).zip(code.lines()) {
                lines += 1;
                exposed += usize::from(line.contains(".expose()"));
                assert!(!suspicious(line), "{}:{number}: compares by itself: {line}", file.display());
            }
        }
    }
    assert!(lines > 10_000 && exposed > 30, "the search itself works: {lines} lines, {exposed} exposures");
}

#[test]
fn the_search_for_comparisons_can_fail() {
    assert!(suspicious("if a.expose() == b.expose() {"));
    assert!(suspicious("if keys.confirm_responder.expose()[..] != confirmation {"));
    assert!(suspicious("    Some(pending) if pending.chain.check == check => {"));
    assert!(suspicious("assert!(confirmation == other);"));
    assert!(!suspicious("if secret.ct_eq(other.expose()) == true { // a comparison of what ct_eq said"));
    assert!(!suspicious("let confirmation = *keys.confirm_initiator.expose();"));
    assert!(!suspicious("if confirm.epoch == active.epoch {"));
}

fn suspicious(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    if !["==", "!=", "assert_eq", "memcmp", ".eq(", ".ne("].iter().any(|word| code.contains(word)) {
        return false;
    }
    let words = [
        ".expose()",
        "confirmation",
        "confirm_responder",
        "confirm_initiator",
        ".check ",
        "psk_check",
        "qkd_check",
    ];
    // The last of these reads all bytes in any case: it tests whether one is not zero.
    let constant = ["ct_eq", "fold(0, |all, byte| all | byte) == 0"];
    !constant.iter().any(|word| code.contains(word)) && words.iter().any(|word| code.contains(word))
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
    found
}
