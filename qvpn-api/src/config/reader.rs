//! Reads a TOML table key by key. A value of the wrong type is an error that names both types, and a key
//! that remains at the end is unknown.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{Position, Sink};

/// One table of the file, with the keys that have not been read yet.
pub(super) struct Section<'t> {
    /// The header: `[interface]`, or `[[peer]]` with the peer's name if known.
    pub(super) title: String,
    /// The position of its header.
    pub(super) at: Position,
    text: &'t str,
    entries: BTreeMap<&'t str, (Range<usize>, &'t Spanned<DeValue<'t>>)>,
    known: Vec<&'static str>,
}

/// One key with its value.
pub(super) struct Entry<'t> {
    pub(super) key: &'static str,
    /// The position of the value.
    pub(super) at: Position,
    pub(super) value: &'t DeValue<'t>,
    /// A valid value of this key, for messages.
    example: &'static str,
    text: &'t str,
}

impl<'t> Section<'t> {
    pub(super) fn new(title: impl Into<String>, at: Position, text: &'t str, table: &'t DeTable<'t>) -> Self {
        let entries =
            table.iter().map(|(k, v)| (k.get_ref().as_ref(), (k.span(), v))).collect::<BTreeMap<_, _>>();
        Self { title: title.into(), at, text, entries, known: Vec::new() }
    }

    /// Takes the value of `key`; `example` is a valid value for messages.
    pub(super) fn take(
        &mut self,
        sink: &Sink<'_>,
        key: &'static str,
        example: &'static str,
    ) -> Option<Entry<'t>> {
        self.known.push(key);
        let (_, value) = self.entries.remove(key)?;
        let at = sink.position(self.text, value.span().start);
        Some(Entry { key, at, value: value.get_ref(), example, text: self.text })
    }

    /// Takes the value of `key`; its absence is an error.
    pub(super) fn need(
        &mut self,
        sink: &mut Sink<'_>,
        key: &'static str,
        example: &'static str,
    ) -> Option<Entry<'t>> {
        let entry = self.take(sink, key, example);
        if entry.is_none() {
            sink.missing(
                self.at,
                format!("{} needs `{key}`", self.title),
                format!("write `{key} = {example}`"),
            );
        }
        entry
    }

    /// Reports each key that was not read. `home_sections` names the section of each key.
    pub(super) fn finish(self, sink: &mut Sink<'_>, home_sections: &[(&str, &str)]) {
        for (key, (span, _)) in &self.entries {
            let at = sink.position(self.text, span.start);
            let shown: String = key.chars().take(64).collect();
            let fix = if let Some(near) = nearest(key, &self.known) {
                format!("did you mean `{near}`?")
            } else if let Some((_, section)) = home_sections.iter().find(|(k, _)| k == key) {
                format!("`{shown}` belongs in {section}")
            } else {
                format!("its keys are {}", list(&self.known))
            };
            sink.add(at, format!("{} has no key `{shown}`", self.title), fix);
        }
    }
}

impl<'t> Entry<'t> {
    pub(super) fn wrong_type(&self, sink: &mut Sink<'_>, expected: &str) {
        let what = format!("`{}` must be {expected}, but this is {}", self.key, type_name(self.value));
        sink.add(self.at, what, format!("write `{} = {}`", self.key, self.example));
    }

    pub(super) fn wrong(&self, sink: &mut Sink<'_>, what: impl Into<String>, fix: impl Into<String>) {
        sink.add(self.at, what, fix);
    }

    pub(super) fn string(&self, sink: &mut Sink<'_>) -> Option<&'t str> {
        let string = self.value.as_str();
        if string.is_none() {
            self.wrong_type(sink, "a string in quotes");
        }
        string
    }

    /// Reads a whole number from `min` to `max`.
    pub(super) fn number(&self, sink: &mut Sink<'_>, min: u32, max: u32) -> Option<u32> {
        let Some(number) = self.value.as_integer() else {
            self.wrong_type(sink, "a number");
            return None;
        };
        let value = i128::from_str_radix(number.as_str(), number.radix()).ok();
        let value = value.and_then(|n| u32::try_from(n).ok()).filter(|n| (min..=max).contains(n));
        if value.is_none() {
            let what = format!("`{}` must be from {min} to {max}, but this is {number}", self.key);
            self.wrong(sink, what, format!("write for example `{} = {}`", self.key, self.example));
        }
        value
    }

    /// Reads `true` or `false`.
    pub(super) fn boolean(&self, sink: &mut Sink<'_>) -> Option<bool> {
        let value = self.value.as_bool();
        if value.is_none() {
            self.wrong_type(sink, "true or false");
        }
        value
    }

    /// Reads a word of a fixed list.
    pub(super) fn word<T>(
        &self,
        sink: &mut Sink<'_>,
        words: &'static [&'static str],
        from_word: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let word = self.string(sink)?;
        let value = from_word(word);
        if value.is_none() {
            self.unknown_word(sink, word, words);
        }
        value
    }

    pub(super) fn unknown_word(&self, sink: &mut Sink<'_>, word: &str, words: &[&'static str]) {
        let shown: String = word.chars().take(64).collect();
        let fix = match nearest(word, words) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => {
                let quoted: Vec<String> = words.iter().map(|w| format!("\"{w}\"")).collect();
                format!("write {}", alternatives(&quoted))
            }
        };
        self.wrong(sink, format!("`{}` can't be \"{shown}\"", self.key), fix);
    }

    /// Reads the strings of an array, each with its position.
    pub(super) fn strings(&self, sink: &mut Sink<'_>) -> Option<Vec<(Position, &'t str)>> {
        let Some(array) = self.value.as_array() else {
            self.wrong_type(sink, "a list of strings");
            return None;
        };
        let mut strings = Vec::with_capacity(array.len());
        let mut all = true;
        for item in array.iter() {
            let at = sink.position(self.text, item.span().start);
            if let Some(string) = item.get_ref().as_str() {
                strings.push((at, string));
            } else {
                all = false;
                let what = format!(
                    "`{}` must be a list of strings, but this is {}",
                    self.key,
                    type_name(item.get_ref())
                );
                sink.add(at, what, format!("write `{} = {}`", self.key, self.example));
            }
        }
        all.then_some(strings)
    }

    /// Reads the inline tables of an array, each with its position.
    pub(super) fn inline_tables(&self, sink: &mut Sink<'_>) -> Option<Vec<(Position, &'t DeTable<'t>)>> {
        let Some(array) = self.value.as_array() else {
            self.wrong_type(sink, "a list of `{ … }`");
            return None;
        };
        let mut tables = Vec::with_capacity(array.len());
        for item in array.iter() {
            let at = sink.position(self.text, item.span().start);
            match item.get_ref().as_table() {
                Some(table) => tables.push((at, table)),
                None => {
                    let kind = type_name(item.get_ref());
                    let what = format!("`{}` must be a list of `{{ … }}`, but this is {kind}", self.key);
                    sink.add(at, what, format!("write `{} = {}`", self.key, self.example));
                }
            }
        }
        (tables.len() == array.len()).then_some(tables)
    }

    /// Reads the tables of `[[key]]`, each with the position of its header.
    pub(super) fn tables(
        &self,
        sink: &mut Sink<'_>,
        header: &str,
    ) -> Option<Vec<(Position, &'t DeTable<'t>)>> {
        let Some(array) = self.value.as_array() else {
            let what = format!("{header} must have two brackets on each side, since there can be several");
            sink.missing(self.at, what, format!("write `{header}`"));
            return None;
        };
        let mut tables = Vec::with_capacity(array.len());
        for item in array.iter() {
            let at = sink.position(self.text, item.span().start);
            match item.get_ref().as_table() {
                Some(table) => tables.push((at, table)),
                None => {
                    let what =
                        format!("{header} must be a section, but this is {}", type_name(item.get_ref()));
                    sink.add(at, what, format!("write `{header}` on a line of its own"));
                }
            }
        }
        Some(tables)
    }
}

/// Returns the known name that is closest to `name`, if it is close enough.
pub(super) fn nearest<'n>(name: &str, known: &[&'n str]) -> Option<&'n str> {
    // A name of this length isn't a typo, and computing the distance takes quadratic time.
    if name.len() > 64 {
        return None;
    }
    let plain = |s: &str| s.to_lowercase().replace('-', "_");
    let name = plain(name);
    let distance = |k: &&str| strsim::damerau_levenshtein(&name, &plain(k));
    let near = known.iter().min_by_key(|k| distance(k))?;
    // A third of the letters may be wrong, and at least two in all but short names.
    let most = (near.chars().count() / 3).max(usize::from(near.len() > 2) + usize::from(near.len() > 4));
    (distance(near) <= most).then_some(*near)
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a section",
    }
}

/// Formats a list: "`a`, `b`, `c`".
fn list(names: &[&str]) -> String {
    names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")
}

/// Formats alternatives: "a, b or c".
pub(super) fn alternatives(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
    }
}
