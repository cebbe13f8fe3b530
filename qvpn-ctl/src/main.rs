//! The qvpn command line.

fn main() {}
