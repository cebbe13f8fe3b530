//! Replaces a config file as a whole: a crash or a full disk leaves either the former text or the new one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::Path;

use tempfile::NamedTempFile;

/// Writes `text` to a temporary file in `directory` and to the disk, with the owner and mode of `like`.
pub(crate) fn temporary(directory: &Path, text: &str, like: &File) -> io::Result<NamedTempFile> {
    let mut new = tempfile::Builder::new().prefix(".qvpn-").suffix(".new").tempfile_in(directory)?;
    let (old, own) = (like.metadata()?, new.as_file().metadata()?);
    if (old.uid(), old.gid()) != (own.uid(), own.gid()) {
        fchown(new.as_file(), Some(old.uid()), Some(old.gid()))?;
    }
    new.as_file().set_permissions(fs::Permissions::from_mode(old.mode() & 0o7777))?;
    new.write_all(text.as_bytes())?;
    new.as_file().sync_all()?;
    Ok(new)
}

/// Replaces `file` by a temporary file.
pub(crate) fn persist(new: NamedTempFile, file: &Path) -> io::Result<()> {
    new.persist(file).map_err(|error| error.error)?;
    // Sync the directory too; otherwise a crash could bring the old file back.
    if let Some(directory) = file.parent() {
        let _ = File::open(directory).and_then(|directory| directory.sync_all());
    }
    Ok(())
}

/// Writes `text` to `file` and gives it the owner and mode of `like`.
pub(crate) fn replace(file: &Path, text: &str, like: &File) -> io::Result<()> {
    persist(temporary(file.parent().unwrap_or(Path::new("/")), text, like)?, file)
}
