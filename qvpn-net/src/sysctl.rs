//! The sysctls that protected IPv4 prefixes depend on. One is set here; the other is the operator's choice,
//! and a warning names it.

use std::path::Path;
use std::{fs, io};

const CONF: &str = "/proc/sys/net/ipv4/conf";

/// Whether new devices have no IPv6: `disable_ipv6` is set, or the kernel lacks IPv6.
#[must_use]
pub fn ipv6_is_off() -> bool {
    let value = fs::read_to_string("/proc/sys/net/ipv6/conf/default/disable_ipv6");
    value.map_or(true, |value| value.trim() != "0")
}

/// Returns the interfaces other than `tunnel` whose reverse path filter is strict: with an IPv4 default route
/// into the tunnel, they drop the peers' datagrams.
#[must_use]
pub fn strict_reverse_path(tunnel: &str) -> Vec<String> {
    strict_interfaces(Path::new(CONF), tunnel)
}

/// Sets `src_valid_mark` to 1 unless it is set, as `wg-quick` does. Returns warnings for the operator.
pub(crate) fn set_src_valid_mark() -> Vec<String> {
    let path = format!("{CONF}/all/src_valid_mark");
    let failed = |error: io::Error| {
        format!(
            "{path} can't be set to 1 ({error}): firewall marks are then ignored in the reverse path check; \
             run `sysctl -w net.ipv4.conf.all.src_valid_mark=1` as root"
        )
    };
    set(&path).err().map(failed).into_iter().collect()
}

/// Warns of a strict reverse path filter. `tunnel` is our interface's name.
pub(crate) fn warn_of_strict_reverse_path(tunnel: &str) -> Option<String> {
    // With a default route into the tunnel, the route back to a peer leads into the tunnel for a packet
    // without a mark. A strict filter therefore drops the peer's datagrams, without any other sign.
    let strict = strict_interfaces(Path::new(CONF), tunnel);
    (!strict.is_empty()).then(|| {
        format!(
            "rp_filter is 1 (strict) on {}: the kernel will drop our peers' datagrams there; use 2 (loose), \
             as `sysctl -w net.ipv4.conf.INTERFACE.rp_filter=2`, which wins over all.rp_filter = 1",
            strict.join(", ")
        )
    })
}

fn set(path: &str) -> io::Result<()> {
    // Read first, since a sandboxed daemon may read but not write it, and a unit may have set it.
    if fs::read_to_string(path)?.trim() == "1" { Ok(()) } else { fs::write(path, "1") }
}

/// Returns the interfaces whose effective `rp_filter` (the larger of `all` and their own) is 1, sorted.
fn strict_interfaces(conf: &Path, tunnel: &str) -> Vec<String> {
    let value = |name: &str| -> u8 {
        let text = fs::read_to_string(conf.join(name).join("rp_filter")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    };
    let all = value("all");
    let Ok(entries) = fs::read_dir(conf) else { return Vec::new() };
    let mut strict: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| !["all", "default", "lo", tunnel].contains(&name.as_str()))
        .filter(|name| value(name).max(all) == 1)
        .collect();
    strict.sort();
    strict
}
