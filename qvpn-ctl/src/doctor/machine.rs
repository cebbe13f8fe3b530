//! Checks what every tunnel needs from the machine.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use nix::unistd::{Group, User};

use super::finding::Finding;
use crate::check::daemon_user;

/// The locked memory that is enough for any daemon, in bytes; the unit allows more.
const MIN_MEMLOCK_BYTES: u64 = 64 << 20;

pub(super) fn findings() -> Vec<Finding> {
    vec![tun(), kernel(), clock(), members()]
}

/// Reports who can read secret keys as a member of the daemon's group.
fn members() -> Finding {
    let group = Group::from_name("qvpn").ok().flatten();
    match group.map(|group| group.mem).unwrap_or_default() {
        members if members.is_empty() => {
            Finding::ok("access", "no user is in the group qvpn, which can read secret keys")
        }
        members => Finding::warning(
            "access",
            format!("{} can read the secret keys, as members of the group qvpn", members.join(", ")),
            format!(
                "gpasswd -d {} qvpn # and name them in [access] of the config, see qvpn.toml(5)",
                members[0]
            ),
        ),
    }
}

fn tun() -> Finding {
    let path = Path::new("/dev/net/tun");
    if !path.exists() {
        return Finding::bad(
            "tun",
            "there is no /dev/net/tun, so no tunnel can be made",
            "modprobe tun && echo tun > /etc/modules-load.d/tun.conf",
        );
    }
    let not_for = |whom: &str| {
        Finding::bad(
            "tun",
            format!("/dev/net/tun can't be opened by {whom}"),
            "chmod 0666 /dev/net/tun # as udev does",
        )
    };
    match fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => match daemon_user() {
            Some(user) if !file.metadata().is_ok_and(|meta| is_open_to(&meta, &user)) => {
                not_for("the user qvpn, as whom the daemon runs")
            }
            _ => Finding::ok("tun", "/dev/net/tun is there"),
        },
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => not_for("this user"),
        Err(error) => Finding::bad("tun", format!("/dev/net/tun can't be opened: {error}"), "modprobe tun"),
    }
}

/// Whether the file's mode lets the user read and write it.
fn is_open_to(meta: &Metadata, user: &User) -> bool {
    let all = |bits: u32| meta.mode() & bits == bits;
    all(0o006)
        || (meta.gid() == user.gid.as_raw() && all(0o060))
        || (meta.uid() == user.uid.as_raw() && all(0o600))
}

/// Reports which offloads the kernel has. The daemon works without them.
fn kernel() -> Finding {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    match offloads(release) {
        None => Finding::unknown(
            "offloads",
            format!("the kernel's version is unknown ({release})"),
            "uname -r # UDP GSO came with 4.18, UDP GRO with 5.0, USO of the TUN device with 6.2",
        ),
        Some(missing) if missing.is_empty() => {
            Finding::ok("offloads", format!("kernel {release} has UDP GSO, UDP GRO and USO"))
        }
        // Most servers have such a kernel. TCP has an offload of its own and is as fast.
        Some(missing) if missing == [USO] => Finding::ok(
            "offloads",
            format!(
                "kernel {release} has UDP GSO and UDP GRO; {USO} came with 6.2, and without it large flows \
                 of UDP cost more of the processor"
            ),
        ),
        Some(missing) => Finding::warning(
            "offloads",
            format!(
                "kernel {release} lacks {}, so all large flows cost more of the processor",
                missing.join(" and ")
            ),
            "uname -r # install a kernel of 5.0 or newer, as all systems have that qvpn is made for",
        ),
    }
}

/// The offload that was added to Linux last.
const USO: &str = "USO of the TUN device";

/// Returns the offloads that the kernel lacks; `None` if its version can't be read.
fn offloads(release: &str) -> Option<Vec<&'static str>> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().ok());
    let version = (numbers.next()??, numbers.next()??);
    let all = [((4, 18), "UDP GSO"), ((5, 0), "UDP GRO"), ((6, 2), USO)];
    Some(all.into_iter().filter(|(since, _)| version < *since).map(|(_, what)| what).collect())
}

/// Reports on the clock: it decides whether KMEs' certificates are valid, and after a step backwards peers
/// refuse our handshakes.
fn clock() -> Finding {
    let output = Command::new("timedatectl").args(["show", "--property=NTPSynchronized", "--value"]).output();
    let said = output
        .ok()
        .filter(|o| o.status.success())
        .map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
    match said.as_deref() {
        Some("yes") => Finding::ok("time", "the clock is synchronised"),
        Some("no") => Finding::warning(
            "time",
            "the clock is not synchronised: KMEs' certificates may seem to have ended, and after a step \
             backwards peers refuse our handshakes",
            "timedatectl set-ntp true",
        ),
        _ => Finding::unknown(
            "time",
            "it is unknown whether the clock is synchronised, because timedatectl doesn't work here",
            "chronyc tracking || ntpq -p || date -u # or compare it with another clock",
        ),
    }
}

/// Checks the capabilities and the locked memory of the daemon `pid`; returns nothing if there is no such
/// process.
pub(super) fn process(pid: u32, interface: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    if let Some(set) = effective_capabilities(&status) {
        let drop_in =
            format!("systemctl edit qvpn@{interface} # [Service] AmbientCapabilities=CAP_NET_ADMIN");
        findings.push(match set & (1 << 12) {
            0 => Finding::bad(
                "capabilities",
                "the daemon lacks CAP_NET_ADMIN, so it can't restore its routes",
                drop_in,
            ),
            _ => Finding::ok("capabilities", "the daemon has CAP_NET_ADMIN"),
        });
    }
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
    let locks_freely = effective_capabilities(&status).is_some_and(|set| set & (1 << 14) != 0);
    match memlock_limit(&limits) {
        None => {}
        Some(limit) if limit >= MIN_MEMLOCK_BYTES || locks_freely => {
            findings.push(Finding::ok("memlock", "the daemon may lock enough memory for its keys"));
        }
        Some(limit) => findings.push(Finding::warning(
            "memlock",
            format!(
                "the daemon may lock {} KiB of memory, which is enough for a few hundred \
             peers",
                limit / 1024
            ),
            format!(
                "prlimit --pid {pid} --memlock={MIN_MEMLOCK_BYTES}:{MIN_MEMLOCK_BYTES} # and \
             LimitMEMLOCK=infinity in `systemctl edit qvpn@{interface}`"
            ),
        )),
    }
    findings
}

/// Returns `CapEff` of `/proc/PID/status`.
fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// Returns the soft limit on locked memory in `/proc/PID/limits`, in bytes.
fn memlock_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        bytes => bytes.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_of_itself_is_read() {
        assert_eq!(offloads("6.1.0-13-amd64"), Some(vec!["USO of the TUN device"]));
        assert_eq!(offloads("6.18.5"), Some(vec![]));
        assert_eq!(offloads("4.9"), Some(vec!["UDP GSO", "UDP GRO", "USO of the TUN device"]));
        assert_eq!(offloads("odd"), None);
        assert_eq!(effective_capabilities("Name:\tx\nCapEff:\t0000000000001000\n"), Some(0x1000));
        assert_eq!(effective_capabilities(""), None);
        let limits =
            "Limit  Soft Limit  Hard Limit  Units\nMax locked memory         67108864  67108864  bytes\n";
        assert_eq!(memlock_limit(limits), Some(64 << 20));
        assert_eq!(memlock_limit("Max locked memory unlimited unlimited bytes"), Some(u64::MAX));
    }
}
