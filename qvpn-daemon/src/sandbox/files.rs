//! Which files the process can reach, by Landlock: it reads what its config names and what the name service needs, opens
//! the TUN device, and takes its control socket away at the end. Nothing else, whoever it runs as.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, make_bitflags,
};
use qvpn_api::Config;
use qvpn_api::config::{ClientKey, Kme};

use crate::error::DaemonError;

/// The newest rules that we know; an older kernel applies those that it knows.
const NEWEST: ABI = ABI::V6;
/// What name service reads: `resolv.conf` and its like, which programs replace, so that a rule for each file would be lost
/// with it; and the modules that `nsswitch.conf` names.
const NAME_SERVICE: [&str; 8] = [
    "/etc",
    "/run/systemd/resolve",
    "/run/NetworkManager",
    "/run/resolvconf",
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
];
/// What is looked at of the kernel: `rp_filter`, and how many processors there are.
const KERNEL: [&str; 2] = ["/proc/sys/net", "/sys/devices/system/cpu"];
/// Set for a default route through the tunnel.
const SRC_VALID_MARK: &str = "/proc/sys/net/ipv4/conf/all/src_valid_mark";
const TUN: &str = "/dev/net/tun";

/// The folders of all files that `config` names, so that a file may be replaced there and read again; with the folders that
/// symbolic links lead to.
pub(super) fn readable(config: &Config) -> BTreeSet<PathBuf> {
    folders(read(config))
}

/// The files that `config` names, and itself.
fn read(config: &Config) -> impl Iterator<Item = &PathBuf> {
    let named = config.named_files().filter(|file| !file.wiped).map(|file| file.path);
    std::iter::once(&config.path).chain(named)
}

/// Whether the library of a PKCS#11 token will be loaded. Nobody can know which files, sockets and devices it needs.
pub(super) fn foreign_library(config: &Config) -> bool {
    let kmes = config.kms.iter().flat_map(|kms| &kms.kmes);
    kmes.filter_map(Kme::server).any(|server| matches!(server.key, ClientKey::Token(_)))
}

/// The folders of the files of keys, each of which is wiped before it is used.
pub(super) fn writable(config: &Config) -> BTreeSet<PathBuf> {
    folders(wiped(config))
}

fn wiped(config: &Config) -> impl Iterator<Item = &PathBuf> {
    config.named_files().filter(|file| file.wiped).map(|file| file.path)
}

/// What a process that confined itself can open for ever after.
struct Reach {
    readable: BTreeSet<PathBuf>,
    writable: BTreeSet<PathBuf>,
}

/// Set once Landlock is in force.
static REACH: OnceLock<Reach> = OnceLock::new();

/// The files of `config` that this process shut itself off from, a line each that says what to do. A file that is not there
/// is not among them.
pub(super) fn out_of_reach(config: &Config) -> Vec<String> {
    REACH.get().map_or_else(Vec::new, |reach| reach.lacks(config))
}

impl Reach {
    fn lacks(&self, config: &Config) -> Vec<String> {
        let name_service: BTreeSet<PathBuf> = NAME_SERVICE.iter().map(PathBuf::from).collect();
        let outside = |file: &&PathBuf, sets: &[&BTreeSet<PathBuf>]| {
            let within = |real: &Path| sets.iter().any(|set| set.iter().any(|place| real.starts_with(place)));
            file.canonicalize().is_ok_and(|real| !within(&real))
        };
        let read =
            read(config).filter(|file| outside(file, &[&self.readable, &self.writable, &name_service]));
        let wiped = wiped(config).filter(|file| outside(file, &[&self.writable]));
        let folders =
            self.readable.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
        let line = |file: &PathBuf| {
            format!(
                "{}: permission denied: since its start this daemon can open files only in the folders that its config named \
                 then ({folders}); put the file there, or restart the daemon",
                file.display()
            )
        };
        read.chain(wiped).map(line).collect()
    }
}

fn folders<'a>(files: impl Iterator<Item = &'a PathBuf>) -> BTreeSet<PathBuf> {
    let mut places = BTreeSet::new();
    for file in files {
        for path in [Some(file.clone()), file.canonicalize().ok()].into_iter().flatten() {
            places.insert(folder(&path));
        }
    }
    places
}

/// The folder of a file; of a file in `/`, the file itself.
fn folder(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) if parent != Path::new("/") => parent.to_owned(),
        _ => file.to_owned(),
    }
}

/// Confines this thread, and those that it will make. Returns how far the kernel follows, in words.
pub(super) fn confine(
    readable: &BTreeSet<PathBuf>,
    writable: &BTreeSet<PathBuf>,
    socket_dir: &Path,
) -> Result<String, DaemonError> {
    let status = restrict(readable, writable, socket_dir).map_err(|error| {
        DaemonError::system("confine file access by Landlock", std::io::Error::other(error))
    })?;
    if !matches!(status, RulesetStatus::NotEnforced) {
        // A process confines itself once.
        let _ = REACH.set(Reach { readable: readable.clone(), writable: writable.clone() });
    }
    let folders = readable.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
    Ok(match status {
        RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => {
            format!("files: only {folders}, and what the name service reads (Landlock)")
        }
        RulesetStatus::NotEnforced => {
            "files: as the user may, since this kernel has no Landlock (Linux 5.13 or newer, \
             with `landlock` in /sys/kernel/security/lsm)"
                .to_owned()
        }
    })
}

fn restrict(
    readable: &BTreeSet<PathBuf>,
    writable: &BTreeSet<PathBuf>,
    socket_dir: &Path,
) -> Result<RulesetStatus, RulesetError> {
    let read = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    let set = make_bitflags!(AccessFs::{ReadFile | WriteFile | Truncate});
    let tun = make_bitflags!(AccessFs::{ReadFile | WriteFile | IoctlDev});
    let socket = make_bitflags!(AccessFs::{ReadDir | RemoveFile});
    let mut scope = BitFlags::from(Scope::Signal);
    // Outside of systemd's own machine the notify socket may be an abstract one.
    if !std::env::var_os("NOTIFY_SOCKET").is_some_and(|path| path.as_bytes().starts_with(b"@")) {
        scope |= Scope::AbstractUnixSocket;
    }
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .scope(scope)?
        .create()?;
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").unwrap_or_default();
    let system = NAME_SERVICE.iter().chain(&KERNEL).map(Path::new);
    let ours = readable.iter().map(PathBuf::as_path).chain([Path::new(&credentials)]);
    for path in ours.chain(system) {
        rules = allow(rules, path, read)?;
    }
    for path in writable {
        rules = allow(rules, path, make_bitflags!(AccessFs::{ReadFile | ReadDir | WriteFile}))?;
    }
    rules = allow(rules, Path::new(SRC_VALID_MARK), set)?;
    rules = allow(rules, Path::new(TUN), tun)?;
    rules = allow(rules, socket_dir, socket)?;
    Ok(rules.restrict_self()?.ruleset)
}

/// What isn't there can't be opened anyway.
fn allow(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    if path.as_os_str() == OsStr::new("") {
        return Ok(rules);
    }
    let Ok(place) = PathFd::new(path) else { return Ok(rules) };
    // Rights of folders mean nothing for a file.
    let access = if path.is_dir() { access } else { access & AccessFs::from_file(NEWEST) };
    rules.add_rule(PathBeneath::new(place, access))
}
