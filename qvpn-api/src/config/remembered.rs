//! The networks that `local = "connected"` stands for. They are remembered in a file, so that a network that
//! another host chooses later is not exempt until an operator accepts it.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::model::{Config, Local};

/// The directory of the state files; nothing in it is secret.
pub const STATE_DIR: &str = "/var/lib/qvpn";

#[derive(Serialize, Deserialize)]
struct Entry {
    prefix: String,
    device: String,
}

/// Returns the directory of the state files; tests use another one.
#[must_use]
pub fn state_dir() -> PathBuf {
    let other = std::env::var_os("QVPN_STATE_DIR").filter(|dir| !dir.is_empty());
    other.map_or_else(|| STATE_DIR.into(), PathBuf::from)
}

/// Returns the file of the networks that are remembered for `interface`. The daemon's state file is another
/// one, so that each file has one writer.
#[must_use]
pub fn networks_file(interface: &str) -> PathBuf {
    state_dir().join(format!("{interface}.networks"))
}

/// Returns the networks that are remembered for `interface`; `None` if none were ever stored.
///
/// # Errors
/// If the file can't be read, or is not a state file of this version.
pub fn remembered_local(interface: &str) -> io::Result<Option<Vec<Local>>> {
    let Some(state) = read(&networks_file(interface))? else { return Ok(None) };
    let Some(list) = state.get("local") else { return Ok(None) };
    let entries: Vec<Entry> = serde_json::from_value(list.clone())?;
    let local = |entry: Entry| {
        let prefix = entry.prefix.parse().map_err(io::Error::other)?;
        Ok(Local { prefix, device: entry.device })
    };
    entries.into_iter().map(local).collect::<io::Result<_>>().map(Some)
}

/// Stores `local` for `interface`, and keeps the other fields of the file.
///
/// # Errors
/// If the file can't be written.
pub fn remember_local(interface: &str, local: &[Local]) -> io::Result<()> {
    let file = networks_file(interface);
    let mut state = read(&file)?.unwrap_or_default();
    let entry = |local: &Local| Entry { prefix: local.prefix.to_string(), device: local.device.clone() };
    let entries: Vec<Entry> = local.iter().map(entry).collect();
    state.insert("local".to_owned(), serde_json::to_value(entries)?);
    let new = file.with_extension("networks.new");
    let mut writer = fs::File::create(&new)?;
    writer.set_permissions(Permissions::from_mode(0o644))?;
    writer.write_all(format!("{:#}\n", Value::Object(state)).as_bytes())?;
    writer.sync_all()?;
    fs::rename(&new, &file)
}

fn read(file: &Path) -> io::Result<Option<Map<String, Value>>> {
    match fs::read(file) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl Config {
    /// Adds the remembered networks under `local = "connected"`. If the file can't be read, they stay
    /// blocked.
    pub(super) fn recall(&mut self) {
        if self.interface.local_connected {
            let remembered = remembered_local(&self.interface.name);
            self.interface.local = remembered.ok().flatten().unwrap_or_default();
        }
    }
}
