//! `peer add`, `peer set` and `peer remove` change the running config, and with `--save` also the file. The
//! new file is written before the request to the daemon, and replaces the old one once the daemon has
//! accepted, so that a refusal or a full disk changes neither.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use qvpn_api::Config;
use qvpn_api::config::{ConfigFiles, PeerEdit};
use qvpn_api::control::{Reply, Request};
use qvpn_api::lookup;
use qvpn_net::{IpNet, RoutePlan};
use tempfile::NamedTempFile;

use crate::cli::PeerSettings;
use crate::client::Client;
use crate::dirs::Dirs;
use crate::error::CtlError;
use crate::output::{self, clean};
use crate::{config_file, endpoint, reload};

/// The requested change.
pub(crate) enum PeerChange {
    Add {
        name: String,
        settings: Box<PeerSettings>,
    },
    /// `peer` may be the beginning of a name or key.
    Set {
        peer: String,
        settings: Box<PeerSettings>,
        unset: Vec<String>,
    },
    Remove {
        peer: String,
    },
    Disable {
        peer: String,
    },
    Enable {
        peer: String,
    },
    Rename {
        peer: String,
        name: String,
    },
}

impl PeerChange {
    /// Returns the endpoint that the peer gets.
    fn endpoint(&self) -> Option<&str> {
        match self {
            Self::Add { settings, .. } | Self::Set { settings, .. } => settings.endpoint.as_deref(),
            _ => None,
        }
    }
}

/// What to do besides changing the running config.
#[derive(Clone, Copy)]
pub(crate) struct Apply {
    /// Whether to change the file too.
    pub(crate) save: bool,
    /// Whether to release prefixes that no peer has any more.
    pub(crate) unblock: bool,
}

pub(crate) fn change(dirs: &Dirs, interface: &str, wanted: PeerChange, how: Apply) -> Result<(), CtlError> {
    let mut client = Client::connect(&dirs.socket_dir, interface)?;
    let endpoint = wanted.endpoint().map(str::to_owned);
    let change = match wanted {
        PeerChange::Add { name, settings } => {
            PeerEdit::Add { settings: format!("name = {}\n{}", quoted(&name), toml(&settings)) }
        }
        PeerChange::Set { peer, settings, unset } => {
            PeerEdit::Set { peer: whole_name(&mut client, &peer)?, settings: toml(&settings), unset }
        }
        PeerChange::Remove { peer } => PeerEdit::Remove { peer: whole_name(&mut client, &peer)? },
        PeerChange::Disable { peer } => {
            set(whole_name(&mut client, &peer)?, "disabled = true\n".to_owned(), &[])
        }
        PeerChange::Enable { peer } => set(whole_name(&mut client, &peer)?, String::new(), &["disabled"]),
        PeerChange::Rename { peer, name } => {
            set(whole_name(&mut client, &peer)?, format!("name = {}\n", quoted(&name)), &[])
        }
    };
    let file = dirs.config_dir.join(format!("{interface}.toml"));
    let pending = match how.save {
        true => Some(Pending::prepare(&file, &change, how.unblock)?),
        false => None,
    };
    let kept = match client.ask(&Request::EditPeer { change })? {
        Reply::Reload { changes, kept } => {
            output::print(&reload::changed(&changes))?;
            kept
        }
        _ => return Err(client.unexpected()),
    };
    if how.unblock && !kept.is_empty() {
        match client.ask(&Request::Unblock { prefixes: kept })? {
            Reply::Unblocked { prefixes } => {
                let line = |prefix: &String| format!("{} is no longer blocked\n", clean(prefix));
                output::print(&prefixes.iter().map(line).collect::<String>())?;
            }
            _ => return Err(client.unexpected()),
        }
    } else {
        reload::note_kept(interface, &kept);
    }
    if let Some(warning) = endpoint.as_deref().and_then(endpoint::unresolved) {
        output::note(&warning);
    }
    match pending {
        Some(pending) => output::print(&format!("saved in {}\n", pending.commit()?.join(", "))),
        None => {
            output::note(
                "not saved: the next reload or restart undoes it; --save also writes it to the config",
            );
            Ok(())
        }
    }
}

fn set(peer: String, settings: String, unset: &[&str]) -> PeerEdit {
    PeerEdit::Set { peer, settings, unset: unset.iter().map(|key| (*key).to_owned()).collect() }
}

fn whole_name(client: &mut Client, text: &str) -> Result<String, CtlError> {
    let Reply::Peers(peers) = client.ask(&Request::Peers)? else { return Err(client.unexpected()) };
    let names =
        |p: &qvpn_api::control::PeerSummary| (p.name.clone(), p.public_key.clone(), p.fingerprint.clone());
    Ok(lookup::find(peers.into_iter(), text, names).map_err(CtlError::NoPeerShown)?.name)
}

/// Returns the settings as lines of a section `[[peer]]`.
fn toml(settings: &PeerSettings) -> String {
    let list = |list: &Option<Vec<String>>| {
        list.as_ref().map(|list| {
            let items: Vec<String> =
                list.iter().filter(|item| !item.is_empty()).map(|item| quoted(item)).collect();
            format!("[{}]", items.join(", "))
        })
    };
    let text = |text: &Option<String>| text.as_deref().map(quoted);
    let public_key = match settings.public_key.as_deref() {
        Some([key]) => Some(quoted(key)),
        _ => list(&settings.public_key),
    };
    let rows = [
        ("public_key", public_key),
        ("endpoint", text(&settings.endpoint)),
        ("allowed_ips", list(&settings.allowed_ips)),
        ("sae_id", text(&settings.sae_id)),
        ("kmes", list(&settings.kmes)),
        ("qkd", text(&settings.qkd)),
        ("role", text(&settings.role)),
        ("preshared_key_file", text(&settings.preshared_key_file)),
        ("persistent_keepalive", text(&settings.persistent_keepalive)),
        ("suite", text(&settings.suite)),
        ("rekey_interval", text(&settings.rekey_interval)),
    ];
    rows.into_iter().filter_map(|(key, value)| Some(format!("{key} = {}\n", value?))).collect()
}

/// Returns `text` as a TOML string, which has the escapes of JSON.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// New files in temporary ones beside the old ones. They are deleted unless they are committed.
struct Pending {
    path: PathBuf,
    before: ConfigFiles,
    /// Each with the file that it replaces; the config comes first.
    new: Vec<(PathBuf, NamedTempFile)>,
    /// The lock prevents two concurrent changes from overwriting each other.
    _lock: File,
}

impl Pending {
    /// Writes what changes of the config `path`, and of the files that it includes, to temporary files.
    /// Prefixes that are no longer allowed IPs go to `protect`, except with `unblock`.
    fn prepare(path: &Path, change: &PeerEdit, unblock: bool) -> Result<Self, CtlError> {
        let failed = |source| CtlError::Save { file: path.to_owned(), source };
        let lock = File::open(path).map_err(failed)?;
        lock.lock().map_err(failed)?;
        let before = ConfigFiles::read(path)?;
        let edit = |source| CtlError::Edit { file: path.to_owned(), source };
        let mut after = before.clone();
        after.edit(change).map_err(edit)?;
        let mut config = after.parse()?;
        let freed = freed(&before, &config);
        if !unblock && !freed.is_empty() {
            after.protect(&freed).map_err(edit)?;
            config = after.parse()?;
        }
        config.check_files()?;
        let mut new = Vec::new();
        for (file, text) in after.changed_since(&before) {
            // If it is a symbolic link, its target changes.
            let file = fs::canonicalize(&file).unwrap_or(file);
            let directory = file.parent().unwrap_or(Path::new("/"));
            new.push((file.clone(), config_file::temporary(directory, &text, &lock).map_err(failed)?));
        }
        Ok(Self { path: path.to_owned(), before, new, _lock: lock })
    }

    /// Replaces the old files. Returns their paths.
    fn commit(self) -> Result<Vec<String>, CtlError> {
        let Self { path, before, new, _lock } = self;
        if ConfigFiles::read(&path)? != before {
            let source = io::Error::other("another program has changed it meanwhile");
            return Err(CtlError::NotSaved { file: path, source });
        }
        let mut saved = Vec::new();
        for (file, new) in new {
            config_file::persist(new, &file)
                .map_err(|source| CtlError::NotSaved { file: file.clone(), source })?;
            saved.push(file.display().to_string());
        }
        Ok(saved)
    }
}

/// Returns the prefixes that `before` protects and `after` does not.
fn freed(before: &ConfigFiles, after: &Config) -> Vec<IpNet> {
    let old = before.parse().ok().and_then(|config| RoutePlan::of(&config).ok());
    let (Some(old), Ok(new)) = (old, RoutePlan::of(after)) else { return Vec::new() };
    let protected = new.protect().clone();
    new.keeping(&old).protect().difference(&protected).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_become_lines_of_a_config_with_any_text() {
        let settings = PeerSettings {
            endpoint: Some("a\"b\\c\u{1}ü".into()),
            allowed_ips: Some(vec!["10.0.0.0/8".into(), "fd00::/8".into()]),
            kmes: Some(vec![String::new()]),
            ..PeerSettings::default()
        };
        assert_eq!(
            toml(&settings),
            "endpoint = \"a\\\"b\\\\c\\u0001ü\"\nallowed_ips = [\"10.0.0.0/8\", \"fd00::/8\"]\nkmes = []\n"
        );
    }
}
