//! A simulator of QKD key management entities that speak ETSI GS QKD 014.

fn main() {}
