//! The grammar: which keys each section has, their types, limits and defaults. Reading goes on after an
//! error, so that one run shows them all. Rules about several values are in `rules.rs`.

mod access;
mod audit;
mod context;
mod interface;
mod kms;
mod peer;
mod syntax;

use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use qvpn_types::Suite;
use toml::de::DeTable;

use self::context::{Defaults, HOME_SECTIONS, Reader};
pub(super) use self::syntax::report_syntax;
use super::access::Access;
use super::error::{ConfigErrors, Position, Sink};
use super::files::MAX_SIZE;
use super::model::{AuditEpochs, Config, Interface, Kms, Peer};
use super::positions::ValuePositions;
use super::reader::Section;
use super::rules::Facts;
use super::source_map::SourceMap;

pub(super) fn parse(path: &Path, text: &str, files: SourceMap) -> Result<Config, ConfigErrors> {
    if text.len() > MAX_SIZE {
        let what = format!("the file has {} bytes, and a config at most {MAX_SIZE}", text.len());
        return Err(ConfigErrors::of_file(path, what, "check that this is the right file"));
    }
    let document = DeTable::parse_recoverable(text);
    let Read { interface, kms, peers, access, audit_epochs, mut reader } = read(path, text, files, &document);
    super::rules::check(&reader.facts, &mut reader.sink);
    reader.sink.finish()?;
    match (interface, peers.into_iter().collect::<Option<Vec<_>>>()) {
        (Some(interface), Some(peers)) => Ok(Config {
            path: path.to_owned(),
            interface,
            kms,
            peers,
            access,
            audit_epochs: audit_epochs.unwrap_or(AuditEpochs::Changes),
            text: text.into(),
            positions: reader.positions,
        }),
        // A missing value without an error is a bug in this program.
        _ => Err(ConfigErrors::of_file(
            path,
            "the file could not be read, for an unknown reason",
            "please report this with the file",
        )),
    }
}

/// Returns the interface, if it has no error, and every readable prefix.
pub(super) fn parse_partial(path: &Path, text: &str) -> (Option<Interface>, Vec<IpNet>) {
    if text.len() > MAX_SIZE {
        return (None, Vec::new());
    }
    let document = DeTable::parse_recoverable(text);
    let read = read(path, text, SourceMap::default(), &document);
    (read.interface, read.reader.facts.readable_prefixes)
}

/// The readable part of a TOML text, and its errors.
type Document<'t> = (toml::Spanned<DeTable<'t>>, Vec<toml::de::Error>);

/// The sections of a file; a section with an error is absent.
type Sections = (Option<Interface>, Option<Kms>, Vec<Option<Peer>>, Option<Access>, Option<AuditEpochs>);

/// The result of reading.
struct Read<'t> {
    interface: Option<Interface>,
    kms: Option<Kms>,
    peers: Vec<Option<Peer>>,
    /// Absent also if the section has an error.
    access: Option<Access>,
    audit_epochs: Option<AuditEpochs>,
    reader: Reader<'t>,
}

fn read<'t>(path: &'t Path, text: &'t str, files: SourceMap, (table, syntax): &'t Document<'t>) -> Read<'t> {
    let mut sink = Sink::joined(path, text, files.clone());
    report_syntax(text, syntax, &mut sink);
    let mut reader = Reader {
        path,
        text,
        sink,
        facts: Facts::default(),
        positions: ValuePositions { files, ..ValuePositions::default() },
    };
    let (interface, kms, peers, access, audit_epochs) = reader.file(table.get_ref());
    Read { interface, kms, peers, access, audit_epochs, reader }
}

impl<'t> Reader<'t> {
    fn file(&mut self, table: &'t DeTable<'t>) -> Sections {
        let start = Position { line: 1, column: 1 };
        let mut file = Section::new("a config", start, self.text, table);
        let interface = match file.take(&self.sink, "interface", "") {
            Some(entry) => self.section(&entry, "[interface]").and_then(|s| self.interface(s)),
            None => {
                self.sink.missing(
                    start,
                    "there is no section [interface]",
                    "write `[interface]` and its keys",
                );
                None
            }
        };
        let kms_entry = file.take(&self.sink, "kms", "");
        let has_kms = kms_entry.is_some();
        let mut kms = None;
        let mut kms_facts = None;
        if let Some(section) = kms_entry.and_then(|entry| self.section(&entry, "[kms]")) {
            let (value, facts) = self.kms(section);
            kms = value;
            kms_facts = Some(facts);
        }
        let defaults = Defaults {
            suite: interface.as_ref().map_or(Suite::ChaCha20Poly1305, |i| i.suite),
            rekey_interval: interface.as_ref().map_or(Duration::from_secs(60), |i| i.rekey_interval),
            lanes: interface.as_ref().map_or(1, |i| i.lanes),
        };
        let tables = file.take(&self.sink, "peer", "").and_then(|e| e.tables(&mut self.sink, "[[peer]]"));
        let peers = tables.unwrap_or_default().into_iter();
        let peers = peers.map(|(at, t)| self.peer(at, t, has_kms, kms_facts.as_ref(), &defaults)).collect();
        let access = file.take(&self.sink, "access", "");
        let access = access.and_then(|entry| self.section(&entry, "[access]")).and_then(|s| self.access(s));
        let audit = file.take(&self.sink, "audit", "").and_then(|entry| self.section(&entry, "[audit]"));
        let audit_epochs = audit.and_then(|section| self.audit(section));
        file.finish(&mut self.sink, HOME_SECTIONS);
        (interface, kms, peers, access, audit_epochs)
    }
}
