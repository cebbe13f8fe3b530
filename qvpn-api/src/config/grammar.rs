//! The grammar: which keys each section has, their types, limits and defaults. It reads on after an error, so that one
//! run shows them all, and leaves what needs several values at once to `rules.rs`.

mod interface;
mod kms;
mod peer;

use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use toml::de::DeTable;

use super::error::{ConfigErrors, Position, Sink};
use super::model::{Interface, Kms, Marks, Peer, Suite};
use super::reader::{Entry, Section};
use super::rules::Facts;
use super::values::{self, Fault};
use super::{Config, MAX_SIZE};

const REKEY_MIN: Duration = Duration::from_millis(100);
const REKEY_MAX: Duration = Duration::from_secs(120);

/// Keys that are often written into another section than theirs.
const ELSEWHERE: [(&str, &str); 36] = [
    ("private_key_file", "[interface]"),
    ("listen_port", "[interface]"),
    ("address", "[interface]"),
    ("mtu", "[interface]"),
    ("suite", "[interface] or [[peer]]"),
    ("rekey_interval", "[interface] or [[peer]]"),
    ("lanes", "[interface]"),
    ("table", "[interface]"),
    ("fwmark", "[interface]"),
    ("dscp", "[interface]"),
    ("on_stop", "[interface]"),
    ("metrics_listen", "[interface]"),
    ("log_level", "[interface]"),
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
    ("public_key", "[[peer]]"),
    ("endpoint", "[[peer]]"),
    ("allowed_ips", "[[peer]]"),
    ("kmes", "[[peer]]"),
    ("qkd", "[[peer]]"),
    ("role", "[[peer]]"),
    ("preshared_key_file", "[[peer]]"),
    ("persistent_keepalive", "[[peer]]"),
    ("name", "[interface], [[kms.kme]] or [[peer]]"),
    // What hands used to `wg` write.
    ("PrivateKey", "a file that `private_key_file` in [interface] names"),
    ("PublicKey", "[[peer]], as `public_key`"),
    ("PresharedKey", "a file that `preshared_key_file` in [[peer]] names"),
    ("DNS", "the host's resolver: qvpn sets no DNS server"),
];

pub(super) fn parse(path: &Path, text: &str) -> Result<Config, ConfigErrors> {
    if text.len() > MAX_SIZE {
        let what = format!("the file has {} bytes, and a config at most {MAX_SIZE}", text.len());
        return Err(ConfigErrors::of_file(path, what, "check that this is the right file"));
    }
    let document = DeTable::parse_recoverable(text);
    let Read { interface, kms, peers, mut reader } = read(path, text, &document);
    super::rules::check(&reader.facts, &mut reader.sink);
    reader.sink.finish()?;
    match (interface, peers.into_iter().collect::<Option<Vec<_>>>()) {
        (Some(interface), Some(peers)) => Ok(Config {
            path: path.to_owned(),
            interface,
            kms,
            peers,
            text: text.into(),
            marks: reader.marks,
        }),
        // Nothing is left out without an error, so this is our fault, not the file's.
        _ => Err(ConfigErrors::of_file(
            path,
            "the file could not be read, for an unknown reason",
            "please report this with the file",
        )),
    }
}

/// The interface, if it has no error, and every prefix that can be read.
pub(super) fn salvage(path: &Path, text: &str) -> (Option<Interface>, Vec<IpNet>) {
    if text.len() > MAX_SIZE {
        return (None, Vec::new());
    }
    let document = DeTable::parse_recoverable(text);
    let read = read(path, text, &document);
    (read.interface, read.reader.facts.readable_prefixes)
}

/// The TOML of a text as far as it could be read, and its errors.
type Document<'t> = (toml::Spanned<DeTable<'t>>, Vec<toml::de::Error>);

/// What was read.
struct Read<'t> {
    interface: Option<Interface>,
    kms: Option<Kms>,
    peers: Vec<Option<Peer>>,
    reader: Reader<'t>,
}

fn read<'t>(path: &'t Path, text: &'t str, (table, syntax): &'t Document<'t>) -> Read<'t> {
    let mut sink = Sink::new(path, text);
    report_syntax(text, syntax, &mut sink);
    let mut reader = Reader { path, text, sink, facts: Facts::default(), marks: Marks::default() };
    let (interface, kms, peers) = reader.file(table.get_ref());
    Read { interface, kms, peers, reader }
}

fn report_syntax(text: &str, errors: &[toml::de::Error], sink: &mut Sink<'_>) {
    let mut errors: Vec<_> = errors.iter().map(|e| (e.span().map_or(0, |s| s.start), e.message())).collect();
    errors.sort_unstable();
    let lines: Vec<&str> = if errors.is_empty() { Vec::new() } else { text.lines().collect() };
    let is_header = |line: usize| lines.get(line - 1).is_some_and(|l| l.trim_start().starts_with('['));
    for (start, message) in errors {
        let at = sink.position(text, start);
        let rest = text.get(start..).and_then(|t| t.lines().next()).unwrap_or_default();
        let (what, fix) = explain_syntax(message, rest);
        sink.syntax(at, what, fix);
        if is_header(at.line) {
            // The parser takes the keys below for those of the section before.
            sink.skip((at.line + 1..=lines.len()).take_while(|line| !is_header(*line)));
        }
    }
}

/// The parser's words, and what to do; `rest` is the line from the error on.
fn explain_syntax(message: &str, rest: &str) -> (String, String) {
    let first = message.lines().next().unwrap_or("not TOML").trim_end_matches('.');
    let no_value =
        first.contains("must be quoted") && matches!(rest.trim_start().chars().next(), None | Some('#'));
    let first = if no_value { "there is no value" } else { first };
    let missing = first.split_once("expected `").and_then(|(_, rest)| rest.strip_suffix('`'));
    let fix = match (first, missing) {
        ("there is no value", _) => "write one after the equals sign, or take the line out".to_owned(),
        ("duplicate key", _) => "keep one of the lines".to_owned(),
        (_, Some(text)) => format!("write the missing `{text}`"),
        (text, _) if text.contains("string") => "put the text between two quotes (\")".to_owned(),
        _ => "write `key = value` with texts in quotes, and sections in brackets, as in the example config"
            .to_owned(),
    };
    (format!("this is not TOML: {first}"), fix)
}

/// What reading collects besides the values.
struct Reader<'t> {
    path: &'t Path,
    text: &'t str,
    sink: Sink<'t>,
    facts: Facts,
    marks: Marks,
}

/// What peers have to know of `[kms]`.
struct KmsFacts {
    sae_id: Option<String>,
    /// The names of the KMEs; absent when not all could be read.
    names: Option<Vec<String>>,
}

impl<'t> Reader<'t> {
    fn file(&mut self, table: &'t DeTable<'t>) -> (Option<Interface>, Option<Kms>, Vec<Option<Peer>>) {
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
            suite: interface.as_ref().map_or(Suite::Chacha20Poly1305, |i| i.suite),
            rekey_interval: interface.as_ref().map_or(Duration::from_secs(60), |i| i.rekey_interval),
            lanes: interface.as_ref().map_or(1, |i| i.lanes),
        };
        let tables = file.take(&self.sink, "peer", "").and_then(|e| e.tables(&mut self.sink, "[[peer]]"));
        let peers = tables.unwrap_or_default().into_iter();
        let peers = peers.map(|(at, t)| self.peer(at, t, has_kms, kms_facts.as_ref(), &defaults)).collect();
        file.finish(&mut self.sink, &ELSEWHERE);
        (interface, kms, peers)
    }

    fn section(&mut self, entry: &Entry<'t>, title: &str) -> Option<Section<'t>> {
        let table = entry.value.as_table();
        if table.is_none() {
            let what = format!("{title} must be one section");
            self.sink.missing(entry.at, what, format!("write `{title}` on a line of its own, once"));
        }
        Some(Section::new(title, entry.at, self.text, table?))
    }

    /// The string of `entry`, through `parse`.
    fn parsed<T>(&mut self, entry: &Entry<'t>, parse: impl FnOnce(&str) -> Result<T, Fault>) -> Option<T> {
        parse(entry.string(&mut self.sink)?)
            .map_err(|(what, fix)| entry.wrong(&mut self.sink, what, fix))
            .ok()
    }

    /// `None`: wrong; `Some(None)`: absent.
    fn word<T>(
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

    /// `None`: wrong; `Some(None)`: absent.
    fn duration(
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

    /// A path; a relative one starts from the config's folder, and `credential:NAME` is one of systemd's.
    fn file_name(&mut self, entry: &Entry<'t>) -> Option<PathBuf> {
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
                format!("`{name}` names no credential of systemd's"),
                "write \"credential:NAME\", with the NAME that stands in LoadCredential= of the unit",
            );
            return None;
        }
        Some(self.credentials().join(credential))
    }

    /// Where systemd puts the credentials of this config's unit: as it tells the daemon, or where it puts them for any
    /// unit of that name (systemd.exec(5)), so that `qvpn-ctl check` looks at the same files.
    fn credentials(&self) -> PathBuf {
        let told = std::env::var_os("CREDENTIALS_DIRECTORY").filter(|dir| !dir.is_empty());
        told.map_or_else(
            || {
                let stem = self.path.file_stem().unwrap_or_default().to_string_lossy();
                PathBuf::from(format!("/run/credentials/qvpn@{stem}.service"))
            },
            PathBuf::from,
        )
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(name)
    }

    /// Where the value of `key` stands, or `otherwise`.
    fn value_at(&self, table: &DeTable<'_>, key: &str, otherwise: Position) -> Position {
        table.get(key).map_or(otherwise, |v| self.sink.position(self.text, v.span().start))
    }
}

/// What `[interface]` gives to peers.
struct Defaults {
    suite: Suite,
    rekey_interval: Duration,
    lanes: u8,
}

/// Splits "what; fix" of another crate's message, which may have no fix.
pub(super) fn split_advice(message: &str, otherwise: &str) -> Fault {
    match message.split_once("; ") {
        Some((what, fix)) => (what.to_owned(), fix.to_owned()),
        None => (message.to_owned(), otherwise.to_owned()),
    }
}
