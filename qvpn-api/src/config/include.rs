//! A config with the files that `include` of `[interface]` names: each has sections `[[peer]]` only. They are
//! joined to one text, in the order of their names.

use std::fs;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use toml::de::DeTable;
use toml_edit::DocumentMut;

use super::edit::{EditError, PeerEdit, edit_peer, protect};
use super::error::{ConfigErrors, Sink};
use super::grammar;
use super::model::{Config, Interface};
use super::source_map::SourceMap;
use super::values::include_dir;
use super::{files, grammar::report_syntax};

/// The texts of a config and of the files that it includes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFiles {
    path: PathBuf,
    main: String,
    /// In the order of their names.
    included: Vec<(PathBuf, String)>,
    dir: Option<PathBuf>,
}

impl ConfigFiles {
    /// Reads the config `path` and the files that it includes.
    ///
    /// # Errors
    /// If one of them can't be read, or an included one is no TOML or has other sections than `[[peer]]`.
    pub fn read(path: &Path) -> Result<Self, ConfigErrors> {
        Self::with_main(path, files::read_config(path)?)
    }

    /// As [`read`](Self::read), with another text of the config itself.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn with_main(path: &Path, main: String) -> Result<Self, ConfigErrors> {
        let (files, errors) = Self::readable(path, main);
        errors.map_or(Ok(files), Err)
    }

    /// What can be read, and the errors of the rest.
    pub(super) fn readable(path: &Path, main: String) -> (Self, Option<ConfigErrors>) {
        let dir = pattern(&main).and_then(|pattern| include_dir(path, &pattern));
        let mut files = Self { path: path.to_owned(), main, included: Vec::new(), dir };
        let Some(dir) = &files.dir else { return (files, None) };
        let paths = match toml_files(dir) {
            Ok(paths) => paths,
            Err(error) => {
                let what = format!("the directory {} of `include` can't be read: {error}", dir.display());
                let error = ConfigErrors::of_file(path, what, "make it, or remove `include`");
                return (files, Some(error));
            }
        };
        let mut errors: Option<ConfigErrors> = None;
        for file in paths {
            let checked = files::read_config(&file).and_then(|text| {
                let result = only_peers(&file, &text, path);
                files.included.push((file, text));
                result
            });
            if let Err(error) = checked {
                errors = Some(match errors.take() {
                    Some(before) => before.and(error),
                    None => error,
                });
            }
        }
        (files, errors)
    }

    /// Reads the joined text.
    ///
    /// # Errors
    /// As [`Config::parse`]; each error names its file.
    pub fn parse(&self) -> Result<Config, ConfigErrors> {
        let (text, map) = self.joined();
        grammar::parse(&self.path, &text, map)
    }

    /// The interface and every readable prefix, for the fail-closed block.
    pub(super) fn parse_partial(&self) -> (Option<Interface>, Vec<IpNet>) {
        let (text, _) = self.joined();
        grammar::parse_partial(&self.path, &text)
    }

    fn joined(&self) -> (String, SourceMap) {
        let (mut text, mut map) = (self.main.clone(), SourceMap::default());
        self.included.iter().for_each(|(file, included)| map.append(&mut text, file, included));
        (text, map)
    }

    /// Changes a peer in the file where it stands. A new peer gets a file of its own where `include` is set.
    ///
    /// # Errors
    /// As [`edit_peer`].
    pub fn edit(&mut self, edit: &PeerEdit) -> Result<(), EditError> {
        // The same errors as in the daemon, which has the joined text.
        edit_peer(&self.joined().0, edit)?;
        if let (PeerEdit::Add { .. }, Some(dir)) = (edit, &self.dir) {
            let text = edit_peer("", edit)?;
            let name = text.parse::<DocumentMut>().ok().and_then(|document| {
                Some(document.get("peer")?.as_array_of_tables()?.get(0)?.get("name")?.as_str()?.to_owned())
            });
            let plain = |c: char| if c.is_ascii_alphanumeric() || "-_".contains(c) { c } else { '_' };
            let name: String = name.unwrap_or_default().chars().map(plain).collect();
            let free = |n: u32| {
                let number = if n == 0 { String::new() } else { format!("-{n}") };
                let file = dir.join(format!("{name}{number}.toml"));
                self.included.iter().all(|(path, _)| *path != file).then_some(file)
            };
            let file = (0..).find_map(free).unwrap_or_default();
            self.included.push((file, text));
            self.included.sort();
            return Ok(());
        }
        let texts = std::iter::once(&mut self.main).chain(self.included.iter_mut().map(|(_, text)| text));
        for text in texts {
            match edit_peer(text, edit) {
                Err(EditError::NoPeer(_)) => {}
                result => {
                    *text = result?;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Adds prefixes to `protect` of `[interface]`.
    ///
    /// # Errors
    /// As [`protect`].
    pub fn protect(&mut self, prefixes: &[IpNet]) -> Result<(), EditError> {
        self.main = protect(&self.main, prefixes)?;
        Ok(())
    }

    /// The files whose texts differ from those in `before`, the config first.
    #[must_use]
    pub fn changed_since(&self, before: &Self) -> Vec<(PathBuf, String)> {
        let all = |files: &Self| {
            let main = (files.path.clone(), files.main.clone());
            std::iter::once(main).chain(files.included.iter().cloned()).collect::<Vec<_>>()
        };
        let former = all(before);
        all(self).into_iter().filter(|file| !former.contains(file)).collect()
    }
}

impl Config {
    /// The directory of the included files.
    #[must_use]
    pub fn include_dir(&self) -> Option<PathBuf> {
        include_dir(&self.path, self.interface.include.as_deref()?)
    }

    /// The text in force as a config of its own: what was included is part of it, and `include` is gone.
    #[must_use]
    pub fn self_contained_text(&self) -> String {
        let document = self.text.parse::<DocumentMut>();
        match (self.interface.include.is_some(), document) {
            (true, Ok(mut document)) => {
                let interface = document.get_mut("interface").and_then(|item| item.as_table_like_mut());
                interface.map(|table| table.remove("include"));
                document.to_string()
            }
            _ => self.text.to_string(),
        }
    }
}

/// The value of `include`, if it is a string. The grammar reports one that isn't.
fn pattern(main: &str) -> Option<String> {
    let (table, _) = DeTable::parse_recoverable(main);
    let interface = table.get_ref().get("interface")?.get_ref().as_table()?;
    Some(interface.get("include")?.get_ref().as_str()?.to_owned())
}

/// The files `*.toml` of a directory, in the order of their names. Hidden ones are left out.
fn toml_files(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(".toml") && !name.starts_with('.') {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// Refuses what is no TOML, and other sections than `[[peer]]`.
fn only_peers(file: &Path, text: &str, main: &Path) -> Result<(), ConfigErrors> {
    let (table, syntax) = DeTable::parse_recoverable(text);
    let mut sink = Sink::new(file, text);
    report_syntax(text, &syntax, &mut sink);
    for (key, _) in table.get_ref().iter().filter(|(key, _)| key.get_ref() != "peer") {
        let at = sink.position(text, key.span().start);
        let what =
            format!("`{}` is not for an included file, which has sections [[peer]] only", key.get_ref());
        sink.add(at, what, format!("write it into {}", main.display()));
    }
    sink.finish()
}
