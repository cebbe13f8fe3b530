//! Finds words and phrases that the project does not use (`scripts/words.txt`) in code and prose.

use std::collections::BTreeMap;

/// A place of a word: line (from 1) and the word as in the list.
pub type Place = (usize, String);

/// The two sections of the list.
#[derive(Debug, Default)]
pub struct Words {
    /// Refused.
    pub enforced: Vec<String>,
    /// Still in use; refused once they are gone.
    pub pending: Vec<String>,
}

impl Words {
    /// Parses the list: one word or phrase a line; `#` begins a comment, and the line `# pending` begins the
    /// second section.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut words = Self::default();
        let mut pending = false;
        for line in text.lines().map(str::trim) {
            if line == "# pending" {
                pending = true;
            } else if !line.is_empty() && !line.starts_with('#') {
                if pending { &mut words.pending } else { &mut words.enforced }.push(line.to_owned());
            }
        }
        words
    }
}

/// Returns the places of `words` in a file. A phrase may continue on the next line, also in a comment.
/// Lower-case words are also found with a capital, and as a part of an identifier; a word with a capital also
/// as a part of a name.
#[must_use]
pub fn places(text: &str, words: &[String]) -> Vec<Place> {
    let (joined, starts) = join(text);
    let lower = joined.to_ascii_lowercase();
    let mut found = Vec::new();
    for word in words {
        let has_capital = word.contains(|c: char| c.is_ascii_uppercase());
        let haystack = if has_capital { &joined } else { &lower };
        let boundary = if has_capital { name_boundary } else { word_boundary };
        for (at, _) in haystack.match_indices(word.as_str()) {
            if boundary(&joined, at, at + word.len()) {
                let line = starts.range(..=at).next_back().map_or(1, |(_, line)| *line);
                found.push((line, word.clone()));
            }
        }
    }
    found.sort();
    found.dedup();
    found
}

/// Joins the lines by spaces, without indentation and comment marks; returns the text and the line that
/// begins at each offset.
fn join(text: &str) -> (String, BTreeMap<usize, usize>) {
    let (mut joined, mut starts) = (String::with_capacity(text.len()), BTreeMap::new());
    for (number, line) in (1..).zip(text.lines()) {
        starts.insert(joined.len(), number);
        let line = line.trim();
        let marks = ["///", "//!", "//", "#", ">", "*"];
        let bare = marks.iter().find_map(|mark| line.strip_prefix(mark)).unwrap_or(line);
        joined.push_str(bare.trim_start());
        joined.push(' ');
    }
    (joined, starts)
}

fn word_boundary(text: &str, from: usize, to: usize) -> bool {
    let letter = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    !letter(text[..from].chars().next_back()) && !letter(text[to..].chars().next())
}

fn name_boundary(text: &str, from: usize, to: usize) -> bool {
    let before = text[..from].chars().next_back();
    let after = text[to..].chars().next();
    if text[from..to].contains(|c: char| c.is_ascii_lowercase()) {
        // Other words of a type's name may precede and follow it.
        !before.is_some_and(|c| c.is_ascii_uppercase()) && !after.is_some_and(|c| c.is_ascii_lowercase())
    } else {
        word_boundary(text, from, to)
    }
}
