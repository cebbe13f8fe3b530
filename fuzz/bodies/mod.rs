//! The bodies of all fuzz targets, each a function of a byte slice. `cargo fuzz` runs them for hours on a
//! nightly toolchain; `tests/tests/fuzz.rs` runs each seed and a few thousand mutations on stable.

pub mod change;
pub mod datagram;
mod input;
pub mod peer;
mod text;
mod wire;

/// The function that a target runs on an input.
pub type Body = fn(&[u8]);

/// A target's name, its body, and the number of cases in a short run.
pub type Target = (&'static str, Body, u32);

pub const TARGETS: &[Target] = &[
    ("hello", |bytes| message(1, bytes), 20_000),
    ("stock_offer", |bytes| message(2, bytes), 20_000),
    ("stock_ack", |bytes| message(3, bytes), 20_000),
    ("propose", |bytes| message(4, bytes), 20_000),
    ("accept", |bytes| message(5, bytes), 20_000),
    ("confirm", |bytes| message(6, bytes), 20_000),
    ("reject", |bytes| message(11, bytes), 20_000),
    ("lanes", |bytes| message(13, bytes), 20_000),
    ("fragment", wire::fragment, 20_000),
    ("reassembly", wire::reassembly, 5_000),
    ("datagram", datagram::datagram, 150),
    ("responder", peer::responder, 150),
    ("initiator", peer::initiator, 150),
    ("kme_status", kms_client::fuzzing::status, 5_000),
    ("kme_keys", kms_client::fuzzing::keys, 5_000),
    ("kme_error", kms_client::fuzzing::error_body, 5_000),
    ("etsi004", kms_client::fuzzing::etsi004, 20_000),
    ("skip_key", kms_client::fuzzing::skip_key, 5_000),
    ("skip_capabilities", kms_client::fuzzing::skip_capabilities, 5_000),
    ("config", text::config, 1_000),
    ("control", text::control, 5_000),
    ("split", qvpn_dataplane::fuzzing::split, 20_000),
    ("coalesce", qvpn_dataplane::fuzzing::coalesce, 2_000),
    ("inner_packet", qvpn_dataplane::fuzzing::inner_packet, 20_000),
    ("allowed_ips", qvpn_dataplane::fuzzing::allowed_ips, 5_000),
    ("replay", qvpn_dataplane::fuzzing::replay, 5_000),
];

fn message(kind: u8, bytes: &[u8]) {
    wire::message(&[&[kind], bytes].concat());
}

/// Finds a target's body at compile time. A fuzzed program then has the code of one target only, and no
/// coverage counters of other targets, which would be read after each case.
#[must_use]
#[allow(dead_code, reason = "each user takes what it needs")]
pub const fn body(name: &str) -> Body {
    let mut n = 0;
    while n < TARGETS.len() {
        if same(TARGETS[n].0.as_bytes(), name.as_bytes()) {
            return TARGETS[n].1;
        }
        n += 1;
    }
    panic!("there is no such target");
}

/// Compares two slices: `==` of slices is not a `const fn`.
#[allow(dead_code, reason = "each user takes what it needs")]
const fn same(a: &[u8], b: &[u8]) -> bool {
    let mut n = 0;
    while n < a.len() && n < b.len() && a[n] == b[n] {
        n += 1;
    }
    n == a.len() && n == b.len()
}

/// Returns valid messages of a type, as seeds.
#[allow(dead_code, reason = "each user takes what it needs")]
pub fn valid_messages(kind: u8) -> Vec<Vec<u8>> {
    (0..4).map(|seed| wire::valid(kind, seed)[1..].to_vec()).collect()
}
