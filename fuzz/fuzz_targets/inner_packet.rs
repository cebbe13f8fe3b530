#![no_main]
#[path = "../bodies/mod.rs"]
mod bodies;

const BODY: bodies::Body = bodies::body("inner_packet");

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| BODY(bytes));
