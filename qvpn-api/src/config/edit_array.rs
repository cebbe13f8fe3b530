//! Replaces the values of a list and keeps the text around them: comments before and after a value, line
//! breaks and indentation. A comment moves together with its value.

use toml_edit::{Array, Decor, RawString, Value};

/// One value with the text around it.
struct Row {
    value: Value,
    /// The text between the previous value and this one, without the previous value's comment.
    before: String,
    /// The comment on the value's line, after the value and its comma.
    after: String,
}

/// Formats `new` like `old`, whose values it replaces.
pub(super) fn merge_array(old: &Array, new: &mut Array) {
    let (mut rows, rest) = rows(old);
    let breaks = rest.contains('\n');
    let indent = rows.iter().rev().find_map(|row| row.before.rsplit_once('\n'));
    let indent = indent.map(|(_, indent)| indent.to_owned()).unwrap_or_default();
    let first = rows.first().map(|row| row.before.clone()).unwrap_or_default();
    let laid_out: Vec<Row> = std::mem::take(new)
        .into_iter()
        .map(|value| match rows.iter().position(|row| row.value.as_str() == value.as_str()) {
            Some(at) => rows.swap_remove(at),
            None if breaks => Row { value, before: format!("\n{indent}"), after: String::new() },
            None => Row { value, before: " ".to_owned(), after: String::new() },
        })
        .collect();
    let mut comment = String::new();
    for (at, row) in laid_out.into_iter().enumerate() {
        let mut before = row.before;
        // In a list on one line the first value has no space before it.
        if !breaks && !before.contains('\n') {
            before = if at == 0 { first.clone() } else { " ".to_owned() };
        }
        if !comment.is_empty() && !before.starts_with('\n') {
            before = format!("\n{indent}{}", before.trim_start());
        }
        let mut value = row.value;
        *value.decor_mut() = Decor::new(format!("{comment}{before}"), "");
        new.push_formatted(value);
        comment = row.after;
    }
    let ends_line = comment.is_empty() || rest.starts_with('\n');
    let rest = if ends_line { rest } else { format!("\n{rest}") };
    new.set_trailing(format!("{comment}{rest}"));
    *new.decor_mut() = old.decor().clone();
    new.set_trailing_comma(!new.is_empty() && (breaks || old.trailing_comma()));
}

/// Returns the values of `array` with the text around each, and the text after the last one.
fn rows(array: &Array) -> (Vec<Row>, String) {
    let text = |raw: Option<&RawString>| raw.and_then(RawString::as_str).unwrap_or("").replace("\r\n", "\n");
    let mut rows: Vec<Row> = Vec::with_capacity(array.len());
    let mut behind = String::new();
    for value in array {
        let gap = std::mem::take(&mut behind) + &text(value.decor().prefix());
        let before = take_comment(gap, rows.last_mut());
        behind = text(value.decor().suffix());
        let mut value = value.clone();
        value.decor_mut().clear();
        rows.push(Row { value, before, after: String::new() });
    }
    let gap = behind + &text(Some(array.trailing()));
    let rest = take_comment(gap, rows.last_mut());
    (rows, rest)
}

/// Moves the comment at the beginning of `gap`, on the line of the value before it, to that value.
fn take_comment(gap: String, row: Option<&mut Row>) -> String {
    let Some(row) = row else { return gap };
    let end = gap.find('\n').unwrap_or(gap.len());
    if !gap[..end].contains('#') {
        return gap;
    }
    row.after = gap[..end].to_owned();
    gap[end..].to_owned()
}

#[cfg(test)]
mod tests {
    use toml_edit::DocumentMut;

    use super::*;

    /// Returns `old` with the values of `new`.
    fn merged(old: &str, new: &str) -> String {
        let read = |text: &str| {
            let document: DocumentMut = format!("x = {text}").parse().unwrap();
            document["x"].as_array().unwrap().clone()
        };
        let (old, mut new) = (read(old), read(new));
        merge_array(&old, &mut new);
        let text = new.to_string();
        let expected: Vec<_> = new.iter().map(Value::as_str).collect();
        let again = read(&text);
        assert_eq!(again.iter().map(Value::as_str).collect::<Vec<_>>(), expected, "{text}");
        text.trim().to_owned()
    }

    #[test]
    fn comments_go_with_their_values() {
        let old = "[ # all\n  # first\n  \"a\", # A\n  \"b\", \"c\", # C\n  # last\n]";
        assert_eq!(merged(old, r#"["a", "b", "c"]"#), old);
        assert_eq!(merged(old, r#"["b", "c"]"#), "[\n  \"b\", \"c\", # C\n  # last\n]");
        assert_eq!(
            merged(old, r#"["a", "c", "d"]"#),
            "[ # all\n  # first\n  \"a\", # A\n  \"c\", # C\n  \"d\",\n  # last\n]"
        );
        assert_eq!(merged("[\n  \"a\" # A\n]", r#"["b", "a"]"#), "[\n  \"b\",\n  \"a\", # A\n]");
        assert_eq!(merged("[\n  \"a\" # A\n]", "[]"), "[\n]");
    }

    #[test]
    fn a_list_on_one_line_stays_on_it() {
        assert_eq!(merged(r#"["a", "b"]"#, r#"["b", "c"]"#), r#"["b", "c"]"#);
        assert_eq!(merged(r#"[ "a" ]"#, r#"["b", "c"]"#), r#"[ "b", "c" ]"#);
        assert_eq!(merged("[]", r#"["a", "b"]"#), r#"["a", "b"]"#);
    }
}
