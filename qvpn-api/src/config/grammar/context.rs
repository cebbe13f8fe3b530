//! What all sections of the grammar share: the reader with its errors and facts, and values of several
//! sections.

use std::path::{Path, PathBuf};
use std::time::Duration;

use qvpn_types::Suite;
use toml::de::DeTable;

use crate::config::error::{Position, Sink};
use crate::config::fault::Fault;
use crate::config::positions::ValuePositions;
use crate::config::reader::{Entry, Section};
use crate::config::rules::Facts;
use crate::config::values;

pub(super) use crate::config::model::MIN_REKEY_INTERVAL;

pub(super) const MAX_REKEY_INTERVAL: Duration = Duration::from_secs(120);

/// The section of each key that is often written into another one.
pub(super) const HOME_SECTIONS: &[(&str, &str)] = &[
    ("private_key_file", "[interface]"),
    ("listen_port", "[interface]"),
    ("address", "[interface]"),
    ("mtu", "[interface]"),
    ("suite", "[interface] or [[peer]]"),
    ("rekey_interval", "[interface] or [[peer]]"),
    ("min_rekey_interval", "[interface]"),
    ("liveness", "[interface]"),
    ("lanes", "[interface]"),
    ("table", "[interface]"),
    ("fwmark", "[interface]"),
    ("dscp", "[interface]"),
    ("on_stop", "[interface]"),
    ("protect", "[interface]"),
    ("local", "[interface]"),
    ("routes", "[interface]"),
    ("routes_table", "[interface]"),
    ("metrics_listen", "[interface]"),
    ("log_level", "[interface]"),
    ("include", "[interface]"),
    ("sae_id", "[kms] or [[peer]]"),
    ("stock", "[kms]"),
    ("kme", "[kms], as [[kms.kme]]"),
    ("api", "[[kms.kme]]"),
    ("server_name", "[[kms.kme]]"),
    ("url", "[[kms.kme]]"),
    ("ca_file", "[[kms.kme]]"),
    ("cert_file", "[[kms.kme]]"),
    ("key_file", "[[kms.kme]]"),
    ("keys_file", "[[kms.kme]]"),
    ("dialect", "[[kms.kme]]"),
    ("link", "[[kms.kme]]"),
    ("public_key", "[[peer]]"),
    ("endpoint", "[[peer]]"),
    ("allowed_ips", "[[peer]]"),
    ("tunnel_address", "[[peer]]"),
    ("kmes", "[[peer]]"),
    ("qkd", "[[peer]]"),
    ("role", "[[peer]]"),
    ("preshared_key_file", "[[peer]]"),
    ("persistent_keepalive", "[[peer]]"),
    ("observe", "[access]"),
    ("operate", "[access]"),
    ("admin", "[access]"),
    ("epochs", "[audit]"),
    ("name", "[interface], [[kms.kme]] or [[peer]]"),
    // Keys of `wg`.
    ("PrivateKey", "a file that `private_key_file` in [interface] names"),
    ("PublicKey", "[[peer]], as `public_key`"),
    ("PresharedKey", "a file that `preshared_key_file` in [[peer]] names"),
    ("DNS", "the host's resolver: qvpn sets no DNS server"),
];

/// The reader, and what it collects besides the values.
pub(super) struct Reader<'t> {
    pub(super) path: &'t Path,
    pub(super) text: &'t str,
    pub(super) sink: Sink<'t>,
    pub(super) facts: Facts,
    pub(super) positions: ValuePositions,
}

/// The facts of `[kms]` that peers need.
pub(super) struct KmsFacts {
    pub(super) sae_id: Option<qvpn_types::SaeId>,
    /// The names of the KMEs; absent if not all could be read.
    pub(super) names: Option<Vec<String>>,
}

impl<'t> Reader<'t> {
    pub(super) fn section(&mut self, entry: &Entry<'t>, title: &str) -> Option<Section<'t>> {
        let table = entry.value.as_table();
        if table.is_none() {
            let what = format!("{title} must be one section");
            self.sink.missing(entry.at, what, format!("write `{title}` on a line of its own, once"));
        }
        Some(Section::new(title, entry.at, self.text, table?))
    }

    /// Parses the string of `entry` with `parse`.
    pub(super) fn parsed<T>(
        &mut self,
        entry: &Entry<'t>,
        parse: impl FnOnce(&str) -> Result<T, Fault>,
    ) -> Option<T> {
        parse(entry.string(&mut self.sink)?)
            .map_err(|(what, fix)| entry.wrong(&mut self.sink, what, fix))
            .ok()
    }

    /// Returns `None` after an error, and `Some(None)` if the key is absent.
    pub(super) fn word<T>(
        &mut self,
        s: &mut Section<'t>,
        key: &'static str,
        example: &'static str,
        words: &'static [&'static str],
        from_word: impl Fn(&str) -> Option<T>,
    ) -> Option<Option<T>> {
        match s.take(&self.sink, key, example) {
            Some(entry) => entry.word(&mut self.sink, words, from_word).map(Some),
            None => Some(None),
        }
    }

    /// Returns `None` after an error, and `Some(None)` if the key is absent.
    pub(super) fn duration(
        &mut self,
        s: &mut Section<'t>,
        key: &'static str,
        example: &'static str,
        min: Duration,
        max: Duration,
    ) -> Option<Option<Duration>> {
        let Some(entry) = s.take(&self.sink, key, example) else { return Some(None) };
        if let Some(number) = entry.value.as_integer() {
            let what = format!("the duration `{key}` has no unit");
            entry.wrong(&mut self.sink, what, format!("write `{key} = \"{number}s\"` for seconds"));
            return None;
        }
        self.parsed(&entry, |text| values::duration(text, min, max)).map(Some)
    }

    /// A path; a relative one starts from the config's directory, and `credential:NAME` is a credential of
    /// systemd.
    pub(super) fn file_name(&mut self, entry: &Entry<'t>) -> Option<PathBuf> {
        let name = entry.string(&mut self.sink)?;
        if name.is_empty() || name.contains('\0') {
            entry.wrong(
                &mut self.sink,
                format!("`{}` is not a file name", entry.key),
                "write a path such as \"/etc/qvpn/…\"",
            );
            return None;
        }
        let Some(credential) = name.strip_prefix("credential:") else { return Some(self.beside(name)) };
        if credential.is_empty() || credential.contains('/') || [".", ".."].contains(&credential) {
            entry.wrong(
                &mut self.sink,
                format!("`{name}` doesn't name a credential of systemd"),
                "write \"credential:NAME\", with the NAME in LoadCredential= of the unit",
            );
            return None;
        }
        Some(self.credentials().join(credential))
    }

    /// The directory of the unit's credentials: the one that systemd passes to the daemon, or the one that
    /// systemd.exec(5) documents for the unit's name, so that `qvpn-ctl check` examines the same files.
    pub(super) fn credentials(&self) -> PathBuf {
        let given = std::env::var_os("CREDENTIALS_DIRECTORY").filter(|dir| !dir.is_empty());
        given.map_or_else(
            || {
                let stem = self.path.file_stem().unwrap_or_default().to_string_lossy();
                PathBuf::from(format!("/run/credentials/qvpn@{stem}.service"))
            },
            PathBuf::from,
        )
    }

    pub(super) fn beside(&self, name: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(name)
    }

    /// Returns the position of the value of `key`, or `otherwise`.
    pub(super) fn value_at(&self, table: &DeTable<'_>, key: &str, otherwise: Position) -> Position {
        table.get(key).map_or(otherwise, |v| self.sink.position(self.text, v.span().start))
    }
}

/// The values of `[interface]` that peers inherit.
pub(super) struct Defaults {
    pub(super) suite: Suite,
    pub(super) rekey_interval: Duration,
    pub(super) lanes: u8,
}
