//! The width of text on a terminal, and line breaks.

use unicode_width::UnicodeWidthStr;

/// Returns the number of columns of `text`.
pub(crate) fn width(text: &str) -> usize {
    UnicodeWidthStr::width(text)
}

/// Returns the spaces that pad `text` to `columns`.
pub(crate) fn pad(text: &str, columns: usize) -> String {
    " ".repeat(columns.saturating_sub(width(text)))
}

/// Breaks `text` into lines of at most `limit` columns: the first begins after `first` columns, the others
/// after `rest`. A word that is longer than a line stays whole, so that a key can be copied from the screen.
pub(crate) fn wrap(text: &str, limit: usize, first: usize, rest: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = first;
    for word in text.split(' ') {
        let empty = lines.last().is_none_or(String::is_empty);
        let needed = width(word) + usize::from(!empty);
        if !empty && used + needed > limit {
            lines.push(word.to_owned());
            used = rest + width(word);
            continue;
        }
        if let Some(line) = lines.last_mut() {
            if !empty {
                line.push(' ');
            }
            line.push_str(word);
        }
        used += needed;
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_between_words_only() {
        assert_eq!(wrap("one two three", 80, 2, 4), ["one two three"]);
        assert_eq!(wrap("one two three", 9, 2, 4), ["one two", "three"]);
        assert_eq!(wrap("one two three", 8, 2, 2), ["one", "two", "three"]);
        assert_eq!(wrap("averyveryverylongword x", 8, 2, 2), ["averyveryverylongword", "x"]);
        assert_eq!(wrap("", 8, 2, 2), [""]);
    }

    #[test]
    fn wide_characters_take_two_columns() {
        assert_eq!((width("büro"), width("東京")), (4, 4));
        assert_eq!(pad("東京", 6), "  ");
        assert_eq!(wrap("東京 大阪", 8, 0, 0), ["東京", "大阪"]);
    }
}
