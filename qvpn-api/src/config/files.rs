//! Checks the files that a config names: whether they exist, who may read them, and the keys in them.
//! Permissions are checked on the open file, so that no file can be swapped in between.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use qvpn_identity::{Psk, PublicIdentity, SecretIdentity};
use zeroize::Zeroizing;

use super::error::{ConfigErrors, Position, Sink};
use super::fault::{Fault, split_advice};
use super::model::{ClientKey, Config, KmeAccess, Peer};
use super::positions::PeerPositions;

/// The size of the largest config that is read, in bytes: several ten thousand peers.
pub const MAX_SIZE: usize = 16 * 1024 * 1024;

/// The group that the daemon runs in.
const GROUP: &str = "qvpn";
/// The size of the largest key file, in bytes; a key is one line of less than 200.
const MAX_KEY_FILE: usize = 4096;

/// A file that a config names.
#[derive(Debug, Clone, Copy)]
pub struct NamedFile<'c> {
    /// The position in the config.
    pub at: Position,
    /// What it is, such as `private key`.
    pub kind: &'static str,
    /// Its path.
    pub path: &'c PathBuf,
    /// Whether the daemon also writes it, to erase each key after use.
    pub wiped: bool,
}

impl Config {
    /// Checks every file that the config names: it exists, is readable, and if secret, others can't read
    /// it. Also checks the keys in them: each is well-formed, and no peer has our own.
    ///
    /// # Errors
    /// All faults, in the order of the config file.
    pub fn check_files(&self) -> Result<(), ConfigErrors> {
        let mut sink = Sink::joined(&self.path, "", self.positions.files.clone());
        match read_key(&self.interface.private_key_file, "private key", SecretIdentity::from_text) {
            Ok(identity) => self.own_key(identity.public(), &mut sink),
            Err((what, fix)) => sink.add(self.positions.private_key_file, what, fix),
        }
        for (peer, positions) in self.peers.iter().zip(&self.positions.peers) {
            if let Some(path) = &peer.preshared_key_file
                && let Err((what, fix)) = read_key(path, "pre-shared key", Psk::from_text)
            {
                sink.add(positions.preshared_key_file, what, fix);
            }
        }
        let kmes = self.kms.iter().flat_map(|k| &k.kmes);
        for (kme, positions) in kmes.zip(&self.positions.kmes) {
            let mut check = |at: Position, result: Result<File, Fault>| {
                if let Err((what, fix)) = result {
                    sink.add(at, what, fix);
                }
            };
            match &kme.access {
                KmeAccess::Etsi014(server) | KmeAccess::Etsi004(server, _) | KmeAccess::Skip(server) => {
                    check(positions.ca_file, open(&server.ca_file, "CA certificate"));
                    check(positions.cert_file, open(&server.cert_file, "client certificate"));
                    match &server.key {
                        ClientKey::File(path) => {
                            check(positions.key_file, open_secret(path, "client certificate's key"));
                        }
                        ClientKey::Token(key) => {
                            check(positions.key_file, open(&key.module, "PKCS#11 library"));
                            if let Some(pin) = &key.pin_file {
                                check(positions.key_file, open_secret(pin, "file of the token's PIN"));
                            }
                        }
                    }
                }
                // The file may appear later, when its disk is mounted.
                KmeAccess::File(path) if path.exists() => {
                    check(positions.keys_file, open_secret(path, "file of keys"));
                }
                KmeAccess::File(_) => {}
            }
        }
        sink.finish()
    }

    /// Checks with `can_read` whether the daemon's user can read the config and each file that it names.
    /// `qvpn-ctl check` needs this when root runs it, because root can read every file.
    ///
    /// # Errors
    /// One for each existing file that can't be read.
    pub fn check_readable(&self, can_read: impl Fn(&Path) -> bool) -> Result<(), ConfigErrors> {
        let what = |kind: &str, path: &Path| {
            format!("the daemon, which runs as the user {GROUP}, can't read the {kind} {}", path.display())
        };
        let fix = |path: &Path| {
            let shown = path.display();
            format!(
                "run `chown root:{GROUP} {shown} && chmod 0640 {shown}`; if that is so already, a \
                 directory above it is closed, and `namei -l {shown}` shows which"
            )
        };
        let mut sink = Sink::joined(&self.path, "", self.positions.files.clone());
        for file in self.named_files().filter(|file| !can_read(file.path)) {
            sink.add(file.at, what(file.kind, file.path), fix(file.path));
        }
        let named = sink.finish();
        if can_read(&self.path) {
            return named;
        }
        let own = ConfigErrors::of_file(&self.path, what("config", &self.path), fix(&self.path));
        match named {
            Ok(()) => Err(own),
            Err(errors) => Err(own.and(errors)),
        }
    }

    /// The files that the config names and the daemon reads, except PKCS#11 libraries.
    pub fn named_files(&self) -> impl Iterator<Item = NamedFile<'_>> {
        let named = |at, kind, path| NamedFile { at, kind, path, wiped: false };
        let own = named(self.positions.private_key_file, "private key", &self.interface.private_key_file);
        let psks = self.peers.iter().zip(&self.positions.peers).filter_map(move |(peer, positions)| {
            Some(named(positions.preshared_key_file, "pre-shared key", peer.preshared_key_file.as_ref()?))
        });
        let kmes = self.kms.iter().flat_map(|kms| &kms.kmes).zip(&self.positions.kmes);
        let of_kmes = kmes.flat_map(move |(kme, positions)| match &kme.access {
            KmeAccess::Etsi014(server) | KmeAccess::Etsi004(server, _) | KmeAccess::Skip(server) => {
                let key = match &server.key {
                    ClientKey::File(path) => {
                        Some(named(positions.key_file, "client certificate's key", path))
                    }
                    ClientKey::Token(key) => key
                        .pin_file
                        .as_ref()
                        .map(|pin| named(positions.key_file, "file of the token's PIN", pin)),
                };
                [
                    Some(named(positions.ca_file, "CA certificate", &server.ca_file)),
                    Some(named(positions.cert_file, "client certificate", &server.cert_file)),
                    key,
                ]
            }
            KmeAccess::File(path) => [
                Some(NamedFile { wiped: true, ..named(positions.keys_file, "file of keys", path) }),
                None,
                None,
            ],
        });
        std::iter::once(own).chain(psks).chain(of_kmes.flatten())
    }

    /// Refuses a peer whose key is `own`, our public key.
    ///
    /// # Errors
    /// One for that peer.
    pub fn check_own_key(&self, own: &PublicIdentity) -> Result<(), ConfigErrors> {
        let mut sink = Sink::joined(&self.path, "", self.positions.files.clone());
        self.own_key(own, &mut sink);
        sink.finish()
    }

    /// Reads our secret key from its file.
    ///
    /// # Errors
    /// If the file is missing, others can read it, or it holds no secret key.
    pub fn read_private_key(&self) -> Result<SecretIdentity, ConfigErrors> {
        read_key(&self.interface.private_key_file, "private key", SecretIdentity::from_text)
            .map_err(|fault| self.error_at(self.positions.private_key_file, fault))
    }

    /// Reads the pre-shared key of `peer`, a peer of this config; `None` if it has none.
    ///
    /// # Errors
    /// As [`read_private_key`](Self::read_private_key).
    pub fn read_psk(&self, peer: &Peer) -> Result<Option<Psk>, ConfigErrors> {
        let Some(path) = &peer.preshared_key_file else { return Ok(None) };
        read_key(path, "pre-shared key", Psk::from_text).map(Some).map_err(|fault| {
            let positions = self.peers.iter().zip(&self.positions.peers).find(|(p, _)| p.name == peer.name);
            let at = positions.map_or(PeerPositions::default(), |(_, m)| m.clone()).preshared_key_file;
            self.error_at(at, fault)
        })
    }

    fn own_key(&self, own: &PublicIdentity, sink: &mut Sink<'_>) {
        let peers = self.peers.iter().zip(&self.positions.peers);
        let keys = peers.flat_map(|(peer, positions)| {
            peer.public_keys().zip(&positions.public_keys).map(move |(key, at)| (peer, key, *at))
        });
        for (peer, key, at) in keys {
            if key == own {
                let what = format!("the public_key of peer \"{}\" is our own", peer.name);
                sink.add(at, what, "write the line that `qvpn-ctl pubkey` prints at the other site");
            } else if key.x25519() == own.x25519() {
                let what = format!("the public_key of peer \"{}\" has our own X25519 half", peer.name);
                let fix = "compare `qvpn-ctl fingerprint` at both sites; this key was tampered with";
                sink.add(at, what, fix);
            }
        }
    }

    fn error_at(&self, at: Position, (what, fix): Fault) -> ConfigErrors {
        let mut sink = Sink::joined(&self.path, "", self.positions.files.clone());
        sink.add(at, what.clone(), fix.clone());
        sink.finish().err().unwrap_or_else(|| ConfigErrors::of_file(&self.path, what, fix))
    }
}

/// Returns the text of the config file.
pub(super) fn read_config(path: &Path) -> Result<String, ConfigErrors> {
    let refused = |(what, fix): Fault| ConfigErrors::of_file(path, what, fix);
    let file = open(path, "config").map_err(refused)?;
    let mut bytes = Vec::new();
    let most = u64::try_from(MAX_SIZE).unwrap_or(u64::MAX).saturating_add(1);
    file.take(most)
        .read_to_end(&mut bytes)
        .map_err(|e| refused((format!("can't read the config: {e}"), "check the disk".to_owned())))?;
    if bytes.len() > MAX_SIZE {
        let what = format!("the file has more than {MAX_SIZE} bytes, the limit for a config");
        return Err(refused((what, "check that this is the right file".to_owned())));
    }
    String::from_utf8(bytes).map_err(|e| {
        let good = e.utf8_error().valid_up_to();
        let line = e.as_bytes()[..good].iter().filter(|b| **b == b'\n').count() + 1;
        refused((format!("line {line} is not UTF-8 text"), "save the file as UTF-8".to_owned()))
    })
}

/// Opens a regular file. A directory, a device or a pipe is refused without waiting for it.
fn open(path: &Path, kind: &str) -> Result<File, Fault> {
    let shown = path.display();
    // O_NONBLOCK: a pipe without a writer must not block the program.
    let flags = nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC;
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(|e| {
        let fix = match (e.kind(), kind) {
            (std::io::ErrorKind::NotFound, "private key") => {
                format!(
                    "make one with `install -m 0640 -g {GROUP} /dev/null {shown} && qvpn-ctl genkey > \
                 {shown}`"
                )
            }
            (std::io::ErrorKind::NotFound, "pre-shared key") => {
                format!(
                    "make one with `install -m 0640 -g {GROUP} /dev/null {shown} && qvpn-ctl genpsk > \
                         {shown}`, and copy it to the peer"
                )
            }
            (std::io::ErrorKind::NotFound, _) => "put it there, or write the right path".to_owned(),
            (std::io::ErrorKind::PermissionDenied, _) => {
                format!(
                    "let the daemon's user read it (`chown root:{GROUP} {shown} && chmod 0640 {shown}`); \
                     at a prompt, run as root or as a member of the group {GROUP}"
                )
            }
            _ => "check the path".to_owned(),
        };
        (format!("can't open the {kind} {shown}: {}", plain(&e)), fix)
    })?;
    match file.metadata() {
        Ok(m) if m.is_file() => Ok(file),
        Ok(_) => Err((format!("the {kind} {shown} is not a file"), "write the path of a file".to_owned())),
        Err(e) => {
            Err((format!("can't examine the {kind} {shown}: {}", plain(&e)), "check the path".to_owned()))
        }
    }
}

/// Opens a secret file. Only its owner and the groups `qvpn` and root may have access.
fn open_secret(path: &Path, kind: &str) -> Result<File, Fault> {
    let file = open(path, kind)?;
    let shown = path.display();
    let meta = file.metadata().map_err(|e| {
        (format!("can't examine the {kind} {shown}: {}", plain(&e)), "check the path".to_owned())
    })?;
    let mode = meta.mode() & 0o777;
    let group_may_read = meta.gid() == 0
        || nix::unistd::Group::from_gid(meta.gid().into()).ok().flatten().is_some_and(|g| g.name == GROUP);
    let who = if mode & 0o007 != 0 {
        "everybody"
    } else if mode & 0o030 != 0 || (mode & 0o040 != 0 && !group_may_read) {
        "its group"
    } else {
        return Ok(file);
    };
    let can = if mode & 0o044 != 0 { "read" } else { "reach" };
    Err((
        format!("{who} can {can} the {kind} {shown} (mode {mode:04o})"),
        format!("run `chmod 0600 {shown}`, or `chown root:{GROUP} {shown} && chmod 0640 {shown}`"),
    ))
}

/// Reads a key of one line and erases the text.
fn read_key<K>(
    path: &Path,
    kind: &str,
    parse: impl FnOnce(&str) -> Result<K, qvpn_identity::IdentityError>,
) -> Result<K, Fault> {
    let mut file = open_secret(path, kind)?;
    let shown = path.display();
    let mut bytes = Zeroizing::new(vec![0u8; MAX_KEY_FILE + 1]);
    let mut len = 0;
    // A buffer of fixed size: a growing one would leave copies in memory.
    loop {
        match file.read(&mut bytes[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => {
                return Err((
                    format!("can't read the {kind} {shown}: {}", plain(&e)),
                    "check the disk".to_owned(),
                ));
            }
        }
    }
    if len > MAX_KEY_FILE {
        let what = format!("{shown} is too long to be a {kind}");
        return Err((what, "write the path of a file that holds only the key".to_owned()));
    }
    let text = std::str::from_utf8(&bytes[..len]).unwrap_or("?");
    parse(text).map_err(|e| {
        let (what, fix) = split_advice(&e.to_string(), "make one with `qvpn-ctl genkey`");
        (format!("{shown} holds no {kind}: {what}"), fix)
    })
}

/// Returns the text of an OS error without its number.
fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}
