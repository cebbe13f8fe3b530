//! The qvpn gateway daemon.

fn main() {}
