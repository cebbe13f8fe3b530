//! `metrics`: the daemon's Prometheus metrics, unchanged or as JSON.

use std::collections::BTreeMap;
use std::path::Path;

use qvpn_api::control::{CodecError, Reply, Request};
use serde::Serialize;

use crate::client::Client;
use crate::error::CtlError;
use crate::output;

/// The JSON form; `docs/schemas/metrics.json` describes it.
#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    interface: &'a str,
    samples: Vec<Sample>,
}

#[derive(Debug, Serialize, PartialEq)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    /// As text, because JSON has no infinity and readers round large numbers.
    value: String,
}

pub(crate) fn metrics(dir: &Path, interface: &str, json: bool) -> Result<(), CtlError> {
    let mut client = Client::connect(dir, interface)?;
    let Reply::Metrics { text } = client.ask(&Request::Metrics)? else { return Err(client.unexpected()) };
    if !json {
        return output::print(&text);
    }
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let samples: Option<Vec<Sample>> = lines.map(sample).collect();
    let samples = samples.ok_or_else(|| {
        client.failed(CodecError::Malformed("its metrics are not in the text format".to_owned()))
    })?;
    output::print_json(&Report { schema: 1, interface, samples })
}

/// Parses a line of the text format: `name{label="value",…} value`.
fn sample(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        while let Some((label, value)) = rest.split_once("=\"") {
            let (text, after) = quoted(value)?;
            labels.insert(label.to_owned(), text);
            match after.strip_prefix(',') {
                Some(more) => rest = more,
                None => {
                    rest = after;
                    break;
                }
            }
        }
        rest = rest.strip_prefix('}')?;
    }
    Some(Sample { name: name.to_owned(), labels, value: rest.strip_prefix(' ')?.to_owned() })
}

/// Returns a label's value up to its closing quote, and the rest of the text.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '"' => return Some((value, text.get(i + 1..)?)),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                c => c,
            }),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_text_format_are_read() {
        let read =
            |line: &str| sample(line).map(|s| (s.name, s.labels.into_iter().collect::<Vec<_>>(), s.value));
        let label = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(read("x 1"), Some(("x".into(), vec![], "1".into())));
        let labels = vec![label("a", "b\"c\\d\ne, }"), label("le", "+Inf")];
        assert_eq!(
            read(r#"x_bucket{a="b\"c\\d\ne, }",le="+Inf"} +Inf"#),
            Some(("x_bucket".into(), labels, "+Inf".into()))
        );
        for bad in ["", "x", "x{a=\"b} 1", "x{a=\"b\" 1", "x{a=\"b\"}1"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
