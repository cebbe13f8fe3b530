#![no_main]
#[path = "../../qvpn-proto/fuzz_bodies.rs"]
#[allow(dead_code)]
mod bodies;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bodies::message(&[&[5], bytes].concat()));
