//! The one kernel switch that a default route needs. Without it a strict reverse path filter drops our own datagrams.

use std::{fs, io};

const SRC_VALID_MARK: &str = "/proc/sys/net/ipv4/conf/all/src_valid_mark";

/// Sets `net.ipv4.conf.all.src_valid_mark` to 1, unless it is; returns a sentence for the operator if that fails.
pub(crate) fn enable_src_valid_mark() -> Option<String> {
    match set(SRC_VALID_MARK) {
        Ok(()) => None,
        Err(error) => Some(format!(
            "{SRC_VALID_MARK} can't be set to 1 ({error}): with a strict reverse path filter (rp_filter = 1) the peer's \
             datagrams may be dropped; run `sysctl -w net.ipv4.conf.all.src_valid_mark=1` as root"
        )),
    }
}

fn set(path: &str) -> io::Result<()> {
    // Reading first, since a sandboxed daemon may read but not write, and a unit may have set it.
    if fs::read_to_string(path)?.trim() == "1" { Ok(()) } else { fs::write(path, "1") }
}
