//! A file of keys, for sites that receive keys on a disk. Both sites have the same file. Each key is wiped
//! from the disk before it is used. Its source is called `file`, never `qkd`, and it does not satisfy `qkd =
//! "required"`.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64ct::{Base64, Encoding};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use qvpn_secret::{SecretBuf, with_scrubbed_stack};
use qvpn_types::{KeyId, SaeId};
use zeroize::Zeroizing;

use crate::api::Api;
use crate::error::{KmsError, KmsErrorKind, Operation, Violation};
use crate::key::{KEY_BITS, QkdKey};
use crate::source::{BoxFuture, KEY_FILE_LINK, KeySource, Link};

/// The largest file, in bytes: about 200,000 keys.
const MAX_FILE: u64 = 16 * 1024 * 1024;
/// Used lines are overwritten with this byte. A line that begins with it is skipped.
const USED_BYTE: u8 = b'#';

/// One file of keys, for one pair of sites.
pub struct KeyFile {
    file: Arc<Path>,
    name: String,
    url: String,
}

/// The position of a key's line in the file.
struct Line {
    number: usize,
    start: usize,
    end: usize,
}

impl KeyFile {
    /// Opens nothing: the file is opened when a key is needed, since its disk may not always be mounted.
    #[must_use]
    pub fn new(name: impl Into<String>, file: impl Into<PathBuf>) -> Self {
        let file: PathBuf = file.into();
        Self { url: format!("file:{}", file.display()), file: file.into(), name: name.into() }
    }

    async fn work<T: Send + 'static>(
        &self,
        operation: Operation,
        peer: &str,
        work: impl FnOnce(&Opened) -> Result<T, KmsError> + Send + 'static,
    ) -> Result<T, KmsError> {
        let (path, name, peer) = (self.file.clone(), self.name.clone(), peer.to_owned());
        let failed = |name: &str, peer: &str| KmsError::new(KmsErrorKind::ServerFault, name, operation, peer);
        let (name_here, peer_here) = (name.clone(), peer.clone());
        // Disk access may block.
        let done = tokio::task::spawn_blocking(move || {
            Opened::new(path, name, operation, peer).and_then(|file| work(&file))
        });
        done.await.unwrap_or_else(|_| {
            Err(failed(&name_here, &peer_here).with_detail("reading the file was given up"))
        })
    }
}

/// The file during one operation, locked against other programs.
struct Opened {
    file: Flock<File>,
    bytes: Zeroizing<Vec<u8>>,
    path: Arc<Path>,
    name: String,
    operation: Operation,
    peer: String,
}

impl Opened {
    fn new(path: Arc<Path>, name: String, operation: Operation, peer: String) -> Result<Self, KmsError> {
        let config = |detail: String, advice: String| {
            KmsError::new(KmsErrorKind::Config, &name, operation, &peer)
                .with_detail(detail)
                .with_advice(advice)
        };
        let shown = path.display().to_string();
        let io = |e: std::io::Error| {
            config(
                format!("the key file {shown} can't be opened: {e}"),
                "check that the disk is there, and that the user of the daemon may read and write the file"
                    .to_owned(),
            )
        };
        // O_NOFOLLOW: the named file itself must be wiped. O_NONBLOCK: a pipe must not block.
        let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC;
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path).map_err(io)?;
        let meta = file.metadata().map_err(io)?;
        if !meta.is_file() || meta.len() > MAX_FILE {
            return Err(config(
                format!("the key file {shown} isn't a regular file of at most {MAX_FILE} bytes"),
                "name a file of lines with a key ID, a space and 32 bytes in base64".to_owned(),
            ));
        }
        if meta.mode() & 0o077 != 0 {
            return Err(config(
                format!("others can reach the key file {shown} (mode {:04o})", meta.mode() & 0o7777),
                format!("run `chmod 0600 {shown}`, with the daemon's user as its owner"),
            ));
        }
        if meta.nlink() != 1 {
            return Err(config(
                format!("the key file {shown} has {} names", meta.nlink()),
                "remove the other hard links, so that no copy of the file remains".to_owned(),
            ));
        }
        let file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => config(
                format!("the key file {shown} is in use by another program"),
                "give each peer and each interface a file of its own".to_owned(),
            ),
            errno => config(
                format!("the key file {shown} can't be locked: {errno}"),
                "put it on a local file system that knows flock(2)".to_owned(),
            ),
        })?;
        // Allocate the whole size at once: a buffer that grows leaves copies behind.
        let room = usize::try_from(meta.len()).unwrap_or(0) + 1;
        let mut bytes = Zeroizing::new(Vec::with_capacity(room));
        (&*file).take(MAX_FILE).read_to_end(&mut bytes).map_err(io)?;
        Ok(Self { file, bytes, path, name, operation, peer })
    }

    fn error(&self, kind: KmsErrorKind) -> KmsError {
        KmsError::new(kind, &self.name, self.operation, &self.peer)
    }

    /// Returns the lines that hold a key.
    fn lines(&self) -> impl Iterator<Item = Line> {
        let mut start = 0;
        self.bytes.split(|byte| *byte == b'\n').enumerate().filter_map(move |(i, line)| {
            let from = start;
            start += line.len() + 1;
            let text = line.trim_ascii();
            (!text.is_empty() && text[0] != USED_BYTE).then_some(Line {
                number: i + 1,
                start: from,
                end: from + line.len(),
            })
        })
    }

    /// Splits a line into the ID and the base64 text.
    fn split(&self, line: &Line) -> Result<(KeyId, &[u8]), KmsError> {
        let text = self.bytes.get(line.start..line.end).unwrap_or_default().trim_ascii();
        let parts = text.iter().position(u8::is_ascii_whitespace).map(|at| text.split_at(at));
        let id = parts.and_then(|(id, _)| std::str::from_utf8(id).ok()).and_then(|id| KeyId::new(id).ok());
        match (id, parts) {
            (Some(id), Some((_, key))) => Ok((id, key.trim_ascii())),
            _ => Err(self.bad_line(line, Violation::KeyId, "doesn't begin with a key ID and a space")),
        }
    }

    fn bad_line(&self, line: &Line, violation: Violation, what: &str) -> KmsError {
        self.error(KmsErrorKind::ProtocolViolation(violation))
            .with_detail(format!("line {} of {} {what}", line.number, self.path.display()))
            .with_advice(
                "each line is a key ID, a space and 32 bytes in base64; correct the line at both \
                          sites, or put a # before it",
            )
    }

    /// Returns the key of a line after it is wiped from the disk.
    fn take(&self, line: &Line) -> Result<QkdKey, KmsError> {
        let (id, text) = self.split(line)?;
        let bytes = usize::try_from(KEY_BITS / 8).unwrap_or(32);
        let mut secret = SecretBuf::zeroed(bytes + 3);
        let decoded = (text.len() == bytes.div_ceil(3) * 4)
            .then(|| with_scrubbed_stack(|| Base64::decode(text, secret.expose_mut()).map(<[u8]>::len).ok()))
            .flatten();
        if decoded != Some(bytes) {
            return Err(self.bad_line(line, Violation::KeySize, "doesn't hold 32 bytes in base64"));
        }
        secret.truncate(bytes);
        if secret.expose().iter().fold(0, |all, byte| all | byte) == 0 {
            return Err(self.bad_line(line, Violation::ZeroKey, "holds only zero bytes"));
        }
        self.wipe(line)?;
        let pair = || KEY_FILE_LINK.to_owned();
        Ok(QkdKey {
            id,
            secret,
            source_kme: pair(),
            target_kme: pair(),
            kme: self.name.clone(),
            api: Api::File,
        })
    }

    /// Overwrites a line in place and waits until the change is on the disk. A key that can't be wiped isn't
    /// used.
    fn wipe(&self, line: &Line) -> Result<(), KmsError> {
        let blank = vec![USED_BYTE; line.end - line.start];
        let at = u64::try_from(line.start).unwrap_or(u64::MAX);
        self.file.write_all_at(&blank, at).and_then(|()| self.file.sync_data()).map_err(|e| {
            self.error(KmsErrorKind::Config)
                .with_detail(format!("a used key can't be wiped from {}: {e}", self.path.display()))
                .with_advice(
                    "make the file writable for the daemon's user; a key that can't be wiped isn't used",
                )
        })
    }
}

impl KeySource for KeyFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn api(&self) -> Api {
        Api::File
    }

    fn url(&self) -> &str {
        &self.url
    }

    fn link<'a>(&'a self, peer: &'a SaeId) -> BoxFuture<'a, Result<Link, KmsError>> {
        Box::pin(self.work(Operation::Status, peer.as_str(), |file| {
            Ok(Link {
                source_kme: KEY_FILE_LINK.to_owned(),
                target_kme: KEY_FILE_LINK.to_owned(),
                stored_key_count: u64::try_from(file.lines().count()).ok(),
                // A key that is taken is wiped, so no more are taken than are needed now.
                max_key_per_request: Some(1),
            })
        }))
    }

    fn fetch_new<'a>(
        &'a self,
        peer: &'a SaeId,
        _number: u32,
        _size_bits: u32,
    ) -> BoxFuture<'a, Result<Vec<QkdKey>, KmsError>> {
        Box::pin(self.work(Operation::EncKeys, peer.as_str(), |file| {
            match file.lines().next() {
                Some(line) => Ok(vec![file.take(&line)?]),
                None => Err(file
                    .error(KmsErrorKind::Exhausted)
                    .with_detail(format!("{} holds no unused key", file.path.display()))
                    .with_advice("put a new file of keys there, the same at both sites")),
            }
        }))
    }

    fn fetch_by_ids<'a>(
        &'a self,
        peer: &'a SaeId,
        ids: &'a [KeyId],
    ) -> BoxFuture<'a, Result<Vec<QkdKey>, KmsError>> {
        let ids = ids.to_vec();
        Box::pin(self.work(Operation::DecKeys, peer.as_str(), move |file| {
            let mut keys: Vec<QkdKey> = Vec::new();
            for line in file.lines() {
                let (id, _) = file.split(&line)?;
                if ids.contains(&id) && !keys.iter().any(|key| key.id == id) {
                    keys.push(file.take(&line)?);
                }
            }
            if keys.is_empty() {
                return Err(file
                    .error(KmsErrorKind::KeyNotFound)
                    .with_detail(format!("{} doesn't hold it any more, or never did", file.path.display()))
                    .with_advice(
                        "compare the files of both sites: they must be the same, and the other \
                                  site's is used up from the top",
                    ));
            }
            Ok(keys)
        }))
    }
}
