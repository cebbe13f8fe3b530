//! Restricts with Landlock which files the process may open, also as root: those that the config names,
//! those of the name service, the state file, the audit log, and the TUN device. It may also remove its
//! control socket.

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
use qvpn_api::config::{ClientKey, Kme, state_dir};

use crate::error::DaemonError;

/// An older kernel applies the rules that it knows.
const NEWEST_ABI: ABI = ABI::V6;
/// The files that the name service reads: `resolv.conf` and similar files, and the modules that
/// `nsswitch.conf` names. Programs replace these files, and a rule for a file would not hold for its
/// replacement.
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
/// `rp_filter`, and the number of processors.
const KERNEL_FILES: [&str; 2] = ["/proc/sys/net", "/sys/devices/system/cpu"];
/// Written for a default route through the tunnel.
const SRC_VALID_MARK: &str = "/proc/sys/net/ipv4/conf/all/src_valid_mark";
const TUN: &str = "/dev/net/tun";

/// Returns the directories of all files that `config` names, so that a file may be replaced and read again;
/// also the directories that symbolic links lead to.
pub(super) fn readable(config: &Config) -> BTreeSet<PathBuf> {
    let mut readable = directories(files_read(config));
    readable.extend(config.include_dir());
    if config.interface.local_connected {
        readable.insert(state_dir());
    }
    readable
}

/// Returns the files that `config` names, and the config file.
fn files_read(config: &Config) -> impl Iterator<Item = &PathBuf> {
    let named = config.named_files().filter(|file| !file.wiped).map(|file| file.path);
    std::iter::once(&config.path).chain(named)
}

/// Whether the config loads the library of a PKCS#11 token, which may need any files, sockets and devices.
pub(super) fn foreign_library(config: &Config) -> bool {
    let kmes = config.kms.iter().flat_map(|kms| &kms.kmes);
    kmes.filter_map(Kme::server).any(|server| matches!(server.key, ClientKey::Token(_)))
}

/// Returns the directories of the key files. Each key in them is erased before it is used.
pub(super) fn writable(config: &Config) -> BTreeSet<PathBuf> {
    directories(files_written(config))
}

fn files_written(config: &Config) -> impl Iterator<Item = &PathBuf> {
    config.named_files().filter(|file| file.wiped).map(|file| file.path)
}

/// The directories that Landlock allows for this process.
struct AllowedPaths {
    readable: BTreeSet<PathBuf>,
    writable: BTreeSet<PathBuf>,
}

/// Set once Landlock is in force.
static ALLOWED_PATHS: OnceLock<AllowedPaths> = OnceLock::new();

/// Returns the existing files of `config` that this process may no longer open, with one line each that says
/// what to do.
pub(super) fn denied_files(config: &Config) -> Vec<String> {
    ALLOWED_PATHS.get().map_or_else(Vec::new, |allowed| allowed.missing(config))
}

impl AllowedPaths {
    fn missing(&self, config: &Config) -> Vec<String> {
        let name_service: BTreeSet<PathBuf> = NAME_SERVICE.iter().map(PathBuf::from).collect();
        let outside = |file: &&PathBuf, sets: &[&BTreeSet<PathBuf>]| {
            let within =
                |real: &Path| sets.iter().any(|set| set.iter().any(|directory| real.starts_with(directory)));
            file.canonicalize().is_ok_and(|real| !within(&real))
        };
        let read =
            files_read(config).filter(|file| outside(file, &[&self.readable, &self.writable, &name_service]));
        let written = files_written(config).filter(|file| outside(file, &[&self.writable]));
        let directories =
            self.readable.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
        let line = |file: &PathBuf| {
            format!(
                "{}: permission denied: since its start this daemon can open files only in the directories \
                 that its config named then ({directories}); put the file there, or restart the daemon",
                file.display()
            )
        };
        read.chain(written).map(line).collect()
    }
}

fn directories<'a>(files: impl Iterator<Item = &'a PathBuf>) -> BTreeSet<PathBuf> {
    let mut directories = BTreeSet::new();
    for file in files {
        for path in [Some(file.clone()), file.canonicalize().ok()].into_iter().flatten() {
            directories.insert(directory(&path));
        }
    }
    directories
}

/// Returns the directory of a file; for a file in `/`, the file itself.
fn directory(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) if parent != Path::new("/") => parent.to_owned(),
        _ => file.to_owned(),
    }
}

/// Confines this thread and its future children. Returns what the kernel enforces, in words.
pub(super) fn confine(
    readable: &BTreeSet<PathBuf>,
    writable: &BTreeSet<PathBuf>,
    own: [&Path; 2],
) -> Result<String, DaemonError> {
    let status = restrict(readable, writable, own).map_err(|error| {
        DaemonError::system("confine file access by Landlock", std::io::Error::other(error))
    })?;
    if !matches!(status, RulesetStatus::NotEnforced) {
        // A process is confined only once.
        let _ = ALLOWED_PATHS.set(AllowedPaths { readable: readable.clone(), writable: writable.clone() });
    }
    let directories = readable.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
    Ok(match status {
        RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => {
            format!("files: only {directories}, and what the name service reads (Landlock)")
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
    [socket_dir, state_dir]: [&Path; 2],
) -> Result<RulesetStatus, RulesetError> {
    let read = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    let set = make_bitflags!(AccessFs::{ReadFile | WriteFile | Truncate});
    let tun = make_bitflags!(AccessFs::{ReadFile | WriteFile | IoctlDev});
    let socket = make_bitflags!(AccessFs::{ReadDir | RemoveFile});
    // The file is replaced by a new one.
    let state = make_bitflags!(AccessFs::{ReadFile | ReadDir | WriteFile | Truncate | MakeReg | RemoveFile});
    let mut scope = BitFlags::from(Scope::Signal);
    // In a container the notify socket may be an abstract one.
    if !std::env::var_os("NOTIFY_SOCKET").is_some_and(|path| path.as_bytes().starts_with(b"@")) {
        scope |= Scope::AbstractUnixSocket;
    }
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST_ABI))?
        .scope(scope)?
        .create()?;
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").unwrap_or_default();
    let system = NAME_SERVICE.iter().chain(&KERNEL_FILES).map(Path::new);
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
    // A full log is renamed, and a new one begins; the keys that seal it stay in their files.
    let log = make_bitflags!(AccessFs::{ReadFile | ReadDir | WriteFile | Truncate | MakeReg | RemoveFile});
    rules = allow(rules, &qvpn_audit::log_dir(), log)?;
    rules = allow(rules, &qvpn_audit::key_dir(), make_bitflags!(AccessFs::{ReadFile | WriteFile}))?;
    rules = allow(rules, state_dir, state)?;
    Ok(rules.restrict_self()?.ruleset)
}

/// Adds a rule for `path`, if it exists.
fn allow(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    if path.as_os_str() == OsStr::new("") {
        return Ok(rules);
    }
    let Ok(descriptor) = PathFd::new(path) else { return Ok(rules) };
    // A rule for a file must not have rights of directories.
    let access = if path.is_dir() { access } else { access & AccessFs::from_file(NEWEST_ABI) };
    rules.add_rule(PathBeneath::new(descriptor, access))
}
