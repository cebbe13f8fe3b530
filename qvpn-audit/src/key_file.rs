//! The file of the key that seals the next line. It has two slots: the next key is written into the free
//! one, and then the former key is overwritten with zeros. So a crash leaves a whole key, and a stopped
//! machine only the last one. The file never grows, so a full disk doesn't matter.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use qvpn_secret::{Secret, SecretBuf};

use crate::error::AuditError;
use crate::line::Hash;
use crate::seal::SealKey;

/// Slots are in blocks of their own.
const SLOT_BYTES: usize = 4096;
const MAGIC: &[u8; 8] = b"qvpnaud1";
/// Magic, number, hash, key.
const CONTENT: usize = 8 + 8 + 32 + 32;
const USED: usize = CONTENT + 32;

/// The position of the log: the number of the next line, its key, and the hash of the line before.
pub(crate) struct Position {
    pub(crate) seq: u64,
    pub(crate) prev: Hash,
    pub(crate) key: SealKey,
}

pub(crate) struct KeyFile {
    file: File,
    path: PathBuf,
    /// The slot in use.
    slot: u64,
}

impl KeyFile {
    /// Makes the file with a new key for line 0, readable only by its owner, and locks it.
    ///
    /// # Errors
    /// If it is there, or can't be written.
    pub(crate) fn create(path: &Path) -> Result<(Self, Position), AuditError> {
        let failed = AuditError::io(path);
        let position = Position { seq: 0, prev: [0; 32], key: SealKey::generate()? };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => AuditError::SetUpAlready(path.to_owned()),
            _ => failed(error),
        })?;
        file.try_lock().map_err(|_| AuditError::Locked(path.to_owned()))?;
        let keys = Self { file, path: path.to_owned(), slot: 0 };
        keys.erase(1).and_then(|()| keys.write(0, &position)).map_err(&failed)?;
        keys.file.sync_all().map_err(&failed)?;
        if let Some(dir) = path.parent() {
            File::open(dir).and_then(|dir| dir.sync_all()).map_err(&failed)?;
        }
        Ok((keys, position))
    }

    /// Opens the file and locks it.
    ///
    /// # Errors
    /// If there is none, another process has it, others can read it, or it has no key.
    pub(crate) fn open(path: &Path) -> Result<(Self, Position), AuditError> {
        let failed = AuditError::io(path);
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => AuditError::NotSetUp(path.to_owned()),
            _ => failed(e),
        })?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(AuditError::Locked(path.to_owned())),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let mode = file.metadata().map_err(&failed)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(AuditError::WideKey { path: path.to_owned(), mode });
        }
        let mut keys = Self { file, path: path.to_owned(), slot: 0 };
        let slots = [keys.read(0).map_err(&failed)?, keys.read(1).map_err(&failed)?];
        let (slot, position, both) = match slots {
            [Some(a), Some(b)] if a.seq > b.seq => (0, a, true),
            [Some(_), Some(b)] => (1, b, true),
            [Some(a), None] => (0, a, false),
            [None, Some(b)] => (1, b, false),
            [None, None] => return Err(AuditError::BrokenKey(path.to_owned())),
        };
        keys.slot = slot;
        if both {
            // A crash between the two writes.
            keys.erase(1 - slot).map_err(&failed)?;
        }
        Ok((keys, position))
    }

    /// The number of the next line, without a lock; `None` if the file has no whole key at the moment.
    ///
    /// # Errors
    /// If the file can't be read.
    pub(crate) fn next_seq(path: &Path) -> io::Result<Option<u64>> {
        let keys = Self { file: File::open(path)?, path: path.to_owned(), slot: 0 };
        let seq = |slot| Ok::<_, io::Error>(keys.read(slot)?.map(|position| position.seq));
        Ok(seq(0)?.max(seq(1)?))
    }

    /// Whether its path still leads to this file.
    pub(crate) fn is_at_its_path(&self) -> bool {
        let (ours, there) = (self.file.metadata(), std::fs::metadata(&self.path));
        ours.ok().zip(there.ok()).is_some_and(|(a, b)| (a.dev(), a.ino()) == (b.dev(), b.ino()))
    }

    /// Puts `next` in the place of the key in use, which is erased.
    ///
    /// # Errors
    /// If the file can't be written.
    pub(crate) fn advance(&mut self, next: &Position) -> Result<(), AuditError> {
        let failed = AuditError::io(&self.path);
        let free = 1 - self.slot;
        self.write(free, next).map_err(&failed)?;
        self.erase(self.slot).map_err(&failed)?;
        self.slot = free;
        Ok(())
    }

    fn write(&self, slot: u64, position: &Position) -> io::Result<()> {
        let mut bytes = SecretBuf::zeroed(USED);
        let content = bytes.expose_mut();
        content[..8].copy_from_slice(MAGIC);
        content[8..16].copy_from_slice(&position.seq.to_be_bytes());
        content[16..48].copy_from_slice(&position.prev);
        content[48..CONTENT].copy_from_slice(position.key.0.expose());
        let check = position.key.slot_check(&content[..48]);
        content[CONTENT..].copy_from_slice(&check);
        self.file.write_all_at(bytes.expose(), offset(slot))?;
        self.file.sync_data()
    }

    fn erase(&self, slot: u64) -> io::Result<()> {
        self.file.write_all_at(&[0; SLOT_BYTES], offset(slot))?;
        self.file.sync_data()
    }

    fn read(&self, slot: u64) -> io::Result<Option<Position>> {
        let mut bytes = SecretBuf::zeroed(USED);
        match self.file.read_exact_at(bytes.expose_mut(), offset(slot)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let content = bytes.expose();
        let key = SealKey(Secret::filled(|out| out.copy_from_slice(&content[48..CONTENT])));
        let whole = content.starts_with(MAGIC)
            && qvpn_secret::ct_eq(&key.slot_check(&content[..48]), &content[CONTENT..]);
        let (Ok(seq), Ok(prev)) = (content[8..16].try_into(), content[16..48].try_into()) else {
            return Ok(None);
        };
        Ok(whole.then_some(Position { seq: u64::from_be_bytes(seq), prev, key }))
    }
}

fn offset(slot: u64) -> u64 {
    slot * SLOT_BYTES as u64
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn next(position: &Position) -> Position {
        Position { seq: position.seq + 1, prev: [5; 32], key: position.key.next() }
    }

    #[test]
    fn the_file_holds_the_newest_key_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        let (mut keys, first) = KeyFile::create(&path).unwrap();
        let second = next(&first);
        keys.advance(&second).unwrap();
        let bytes = fs::read(&path).unwrap();
        let holds = |key: &SealKey| bytes.windows(32).any(|window| key.0.ct_eq(window));
        assert!(holds(&second.key) && !holds(&first.key));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(matches!(KeyFile::open(&path), Err(AuditError::Locked(_))));
        assert!(matches!(KeyFile::create(&path), Err(AuditError::SetUpAlready(_))));
        drop(keys);
        assert_eq!(KeyFile::next_seq(&path).unwrap(), Some(1));
        let (_keys, read) = KeyFile::open(&path).unwrap();
        assert!(read.seq == 1 && read.prev == [5; 32] && read.key.0.ct_eq(second.key.0.expose()));
    }

    #[test]
    fn a_crash_between_two_writes_leaves_one_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        let (keys, first) = KeyFile::create(&path).unwrap();
        keys.write(1, &next(&first)).unwrap();
        drop(keys);
        let (keys, read) = KeyFile::open(&path).unwrap();
        assert_eq!(read.seq, 1);
        assert!(keys.read(0).unwrap().is_none(), "the former key is erased");
        // A slot that was written half.
        keys.file.write_all_at(&[7; 20], offset(0)).unwrap();
        drop(keys);
        assert_eq!(KeyFile::open(&path).unwrap().1.seq, 1);
    }

    #[test]
    fn a_key_that_others_can_read_or_that_is_none_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        assert!(matches!(KeyFile::open(&path), Err(AuditError::NotSetUp(_))));
        drop(KeyFile::create(&path).unwrap());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(KeyFile::open(&path), Err(AuditError::WideKey { mode: 0o640, .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, b"short").unwrap();
        assert!(matches!(KeyFile::open(&path), Err(AuditError::BrokenKey(_))));
    }
}
