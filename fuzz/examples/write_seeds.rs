//! Writes the valid messages into `fuzz/seeds`: `cargo run --manifest-path fuzz/Cargo.toml --example
//! write_seeds`. Run it when a message changes; the test `seeds_of_messages_are_messages` in
//! `tests/tests/fuzz.rs` fails until then.

#[path = "../bodies/mod.rs"]
mod bodies;

use std::fs;
use std::io::Result;
use std::path::{Path, PathBuf};

use qvpn_proto::wire::{MessageType, fragment};

fn seeds(target: &str) -> Result<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    fs::create_dir_all(&dir)?;
    Ok(dir)
}

fn main() -> Result<()> {
    for (kind, name) in [(1, "hello"), (2, "stock_offer"), (3, "stock_ack"), (4, "propose"), (5, "accept")] {
        for (n, message) in bodies::valid_messages(kind).into_iter().enumerate() {
            fs::write(seeds(name)?.join(format!("valid-{n}")), &message)?;
            let packets = fragment::packets([1; 8], MessageType::Hello, &message);
            if let Some(last) = packets.last() {
                fs::write(seeds("fragment")?.join(format!("{name}-{n}")), last)?;
            }
            let with_length = |packet: &Vec<u8>| {
                let length = u16::try_from(packet.len()).unwrap_or(u16::MAX);
                [&length.to_be_bytes()[..], packet].concat()
            };
            let stream: Vec<u8> = packets.iter().flat_map(with_length).collect();
            fs::write(seeds("reassembly")?.join(format!("{name}-{n}")), stream)?;
        }
    }
    Ok(())
}
