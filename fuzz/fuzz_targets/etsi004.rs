#![no_main]
#[path = "../bodies/mod.rs"]
mod bodies;

const BODY: bodies::Body = bodies::body("etsi004");

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| BODY(bytes));
